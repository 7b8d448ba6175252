//! NVIDIA GPUs through their driver: what the machine has, and streams and events.
//!
//! libtorch computes; this module only orders what NCCL does against it. All of it is loaded when it is needed, so a worker
//! runs on a machine that has none of it.

mod device;
mod error;
mod facts;
mod library;
mod repeated;
mod stream;

pub use device::{Claimed, claim};
pub use error::GpuError;
pub use facts::{DeviceFacts, Facts, Version, check_compute, facts};
pub use library::{nccl_version, require_driver, require_nccl};
pub(crate) use repeated::RepeatedMemory;
pub(crate) use stream::{Event, Events, Stream};
