//! The command `launch`: command line, control plane, supervision, terminal. Links no libtorch, so it starts at once; what
//! needs tensors is done by `worker`.
//!
//! ```text
//! main → cli ─ generate → becomes `worker generate`
//!            ├ plan → what a job would need, from config.json alone
//!            └ train → configuration, checks, data → announce
//!                 → control (serves the workers)  ─┐
//!                 → supervise::child (N workers)  ─┼─ Event → supervise → verdict → report
//!                 → signals (Ctrl-C, SIGTERM)     ─┘            └→ view, metrics.jsonl
//! ```
//!
//! The main thread alone decides: everything else sends it [`event::Event`]s.

pub mod announce;
pub mod checkpoint_publisher;
pub mod cli;
pub mod control;
pub mod environment;
pub mod error;
pub mod event;
pub mod format;
pub mod generate;
pub mod gpus;
pub mod metrics;
pub mod model_folder;
pub mod offload_folder;
pub mod plan;
pub mod profile;
pub mod report;
mod resume;
pub mod run_folder;
pub mod signals;
pub mod supervise;
pub mod terminal;
pub mod train;
pub mod view;
pub mod worker_command;
