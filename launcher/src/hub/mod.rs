//! The Hugging Face hub: models and data that are named by `owner/name`, and the command `push`.
//!
//! ```text
//! a model's name ─ place ─┬ a folder of this machine
//!                         └ snapshot → which files? (model)              ─ download ─ cache (huggingface_hub's layout)
//! a name of data ─ data ──┬ snapshot → which files? (dataset_card, splits) ─╯
//!                         └ a file, folder or pattern of this machine
//! push → local (a checked model folder) → remote (repository, branch) → lfs (large files) → one commit
//!                                    all of it: http, with settings from the environment; names are looked at first
//! ```
//!
//! The protocol is that of the Python package `huggingface_hub`; docs/hub.md has it, and decision 0010 why it is written here.

mod cache;
mod data;
mod dataset_card;
mod download;
mod error;
mod http;
mod lfs;
mod local;
mod model;
mod names;
mod place;
mod push;
mod remote;
mod settings;
mod snapshot;
mod splits;
mod transfer;

pub(crate) use data::{DataUse, bring_data, sources, sources_of};
pub use error::{HubError, HubTrouble};
pub(crate) use model::Extent;
pub(crate) use place::{ModelName, bring, is_repository, shown};
pub use push::{PushOptions, push};
