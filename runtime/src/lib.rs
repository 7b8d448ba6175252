//! One rank of a job: model, sharding, collectives, optimizer, trainer, metrics.
//!
//! In the order of a training step: [`worker`] joins the job and builds everything, [`trainer`] runs it (start reading at
//! `trainer/step.rs`), [`model`] is maths only, [`shard`] gathers and releases a unit's parameters and reduces its
//! gradients, [`comm`] carries them, [`optim`] updates the shards. [`torch`] wraps what libtorch can and tch does not offer,
//! [`control`] speaks with `launch`, [`gpu`] with the driver of NVIDIA GPUs. [`doctor`] and
//! [`bench`] tell what a machine has and reaches. [`evaluate`] and [`generate`] use a model without training it.

pub mod bench;
pub mod comm;
pub mod control;
mod device;
pub mod doctor;
pub mod evaluate;
pub mod generate;
pub mod gpu;
pub mod metrics;
pub mod model;
pub mod optim;
mod panics;
pub mod shard;
pub mod torch;
pub mod trainer;
pub mod worker;
