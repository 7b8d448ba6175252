//! Watching a job that is at work, from outside.
//!
//! ```text
//! Event → Board ─┬ control plane's service Status → `launch status`
//!                └ http → prometheus (text)
//! ```
//!
//! The main thread writes what happens on the [`Board`]; whoever asks gets it together with what the ranks' heartbeats told
//! last. `control.json` in the run folder tells where the job can be asked.

mod ask;
mod board;
mod control_file;
mod http;
mod prometheus;
mod status;
mod table;

pub use board::Board;
pub(crate) use board::host_name;
pub use control_file::ControlFile;
pub(crate) use control_file::Told;
pub use http::{MetricsEndpoint, MetricsError};
pub(crate) use status::held_up;
pub use status::{StatusOptions, status};
