//! The Hugging Face hub: models that are named by `owner/name`, and the command `push`.
//!
//! ```text
//! a model's name ─ place ─┬ a folder of this machine
//!                         └ snapshot → which files?  ─ download ─ cache (huggingface_hub's layout)
//! push → local (a checked model folder) → remote (repository, branch) → lfs (large files) → one commit
//!                                    all of it: http, with settings from the environment; names are looked at first
//! ```
//!
//! The protocol is that of the Python package `huggingface_hub`; docs/hub.md has it, and decision 0010 why it is written here.

mod cache;
mod download;
mod error;
mod http;
mod lfs;
mod local;
mod names;
mod place;
mod push;
mod remote;
mod settings;
mod snapshot;
mod transfer;

pub use error::{HubError, HubTrouble};
pub(crate) use place::{ModelName, bring, is_repository, shown};
pub use push::{PushOptions, push};
pub(crate) use snapshot::Extent;
