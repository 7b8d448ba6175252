//! The command `launch`: command line, control plane, supervision, terminal. Links no libtorch, so it starts at once; what
//! needs tensors is done by `worker`.
//!
//! ```text
//! main → cli ─ generate → becomes `worker generate`; a data set is answered by ranks of `worker answer`
//!            ├ inspect, verify, diff, export → checkpoints and model folders on a disk
//!            ├ push → a model folder into a repository of the Hugging Face hub
//!            ├ status → what a run that is at work is doing
//!            ├ doctor → what this machine has, lacks and reaches; asks `worker doctor` and bench
//!            ├ bench → this machine's rates, by an errand of `worker bench`
//!            ├ plan → what a job would need, from config.json alone
//!            ├ cost → what it would take in time and money, from the same
//!            ├ config → the configuration itself: shown, checked, written as a file
//!            ├ data → training and held-out data: what is wrong with them, or a copy without it
//!            ├ evaluate → models on held-out data, each by ranks of `worker evaluate`
//!            ├ compare → `train` in several configurations, a few steps each
//!            └ train → job: configuration, checks, data → announce; memberships, again after a failure
//!                 → control (serves the workers)  ─┐
//!                 → supervise::child (N workers)  ─┼─ Event → supervise → verdict → report
//!                 → signals (Ctrl-C, SIGTERM)     ─┘            └→ view, metrics.jsonl
//! ```
//!
//! The main thread alone decides: everything else sends it [`event::Event`]s.

pub mod announce;
mod at_work;
pub mod bench;
mod best_checkpoint;
mod cache_folder;
mod chat_template;
pub mod checkpoint_publisher;
pub mod checkpoints;
mod classifier;
pub mod cli;
pub mod columns;
pub mod compare;
pub mod config_command;
pub mod control;
pub mod cost;
pub mod data_command;
pub mod doctor;
pub mod environment;
pub mod errand;
pub mod error;
pub mod evaluate;
pub mod event;
pub mod format;
pub mod generate;
pub mod gpus;
pub mod hosts;
pub mod hub;
mod initial_model;
mod job;
pub mod logs;
pub mod memory;
pub mod metrics;
mod model_beside;
pub mod model_folder;
pub mod offload_folder;
mod page;
pub mod plan;
pub mod profile;
mod records;
pub mod report;
mod resume;
pub mod run_folder;
pub mod run_report;
mod short_job;
pub mod signals;
pub mod store;
pub mod supervise;
pub mod tensorboard;
pub mod terminal;
pub mod train;
mod trained;
pub mod view;
pub mod watch;
pub mod worker_command;
