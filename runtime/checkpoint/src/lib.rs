//! Checkpoints, safetensors files and exported model folders. Free of tensors: `launch` uses it as well as `worker`.
//!
//! - [`dtype`], [`header`], [`writer`], [`reader`]: one safetensors file, written and read at byte ranges.
//! - [`model_files`]: a Hugging Face model folder, one file or several with an index.
//! - [`export`], [`read_back`], [`side_files`], [`staging`]: such a folder written, read back, and put in place whole or not at all.
//! - [`manifest`], [`mod@publish`], [`newest`], [`retention`]: a checkpoint. Every rank writes its shard file into the step's folder and
//!   reports a [`Part`]; the launcher assembles the [`Manifest`] and publishes it. Publishing is the commit: a step's folder
//!   without a manifest is no checkpoint.
//! - [`incoming`]: a checkpoint that comes from elsewhere, a folder that is there whole or not at all.
//! - [`units`], [`state`], [`places`]: where parameters lie in it, and how any other layout reads them.
//! - [`examine`], [`difference`], [`model_export`]: a checkpoint or a model folder looked through, compared with another, made
//!   a model folder. [`weights`] is what the two have in common.
//! - [`storage_proof`]: all ranks see one folder.
//! - [`fault`]: where tests kill a process that saves.
//! - `direct`: writing past the page cache.
//! - [`disk`]: free space, syncing, names that may not leave their folder.
//!
//! Errors are [`CheckpointError`]: what, where, the values, and on a last line what to do.

#[cfg(not(all(target_endian = "little", target_pointer_width = "64")))]
compile_error!("safetensors files are read in place: a 64-bit little-endian machine is needed");

pub mod difference;
mod direct;
pub mod disk;
pub mod dtype;
pub mod error;
pub mod examine;
pub mod export;
pub mod fault;
pub mod header;
pub mod incoming;
pub mod manifest;
pub mod model_export;
pub mod model_files;
mod naming;
pub mod newest;
pub mod places;
pub mod publish;
pub mod read_back;
pub mod reader;
pub mod retention;
mod seal;
pub mod side_files;
pub mod staging;
pub mod state;
pub mod storage_proof;
pub mod units;
pub mod weights;
pub mod writer;

pub use difference::{Difference, Distance, differences};
pub use disk::ensure_room;
pub use dtype::{Dtype, decode_f32, encode_f32};
pub use error::{CheckpointError, Result};
pub use examine::{Examined, Fault, examine_checkpoint, examine_model};
pub use export::{ExportFile, ExportPlan, ExportWriter};
pub use header::TensorEntry;
pub use incoming::IncomingStep;
pub use manifest::{FileEntry, JobRecord, Manifest, Part, TensorRange, shard_file_name};
pub use model_export::{ModelExport, refuse_existing};
pub use model_files::{ModelFiles, listed_files};
pub use naming::Naming;
pub use newest::{Skipped, newest_fitting, newest_whole, strangers};
pub use places::{Place, Places};
pub use publish::{Found, manifest_from, open_step, publish, published_steps, step_directory, steps, verify};
pub use read_back::WrittenModel;
pub use reader::{DescribedTensor, SafetensorsReader, StoredTensor};
pub use retention::{Cleared, ClearedWhat, Retention, delete_old, discard_unfinished, prepare_to_resume, set_aside};
pub use side_files::{SideChanges, copy_side_files, is_side_file};
pub use staging::StagingDirectory;
pub use state::{StateReader, StoredParameter};
pub use storage_proof::{STORAGE_PROOF, StorageProof, check_storage};
pub use units::{FISHER, STATES, SavedParameter, SavedUnit, digest_units};
pub use weights::Weights;
pub use writer::{FileDigest, SafetensorsWriter, digest_file};
