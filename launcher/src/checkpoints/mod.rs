//! The commands `inspect`, `verify`, `diff` and `export`: what lies in a checkpoint or a model folder, whether it is whole,
//! what differs, and a model folder out of it. No libtorch, and never more than a chunk of a tensor in memory.
//!
//! ```text
//! PATH ─ place ─┬ inspect → manifest, headers
//!               ├ verify  → zerofold_checkpoint::examine
//!               ├ diff    → zerofold_checkpoint::difference
//!               └ export  → zerofold_checkpoint::model_export, with a model card
//! ```

mod card;
mod diff;
mod export;
mod inspect;
mod place;
mod verify;

pub(crate) use diff::DEFAULT_TOP;
pub use diff::{DiffOptions, diff};
pub use export::{ExportDtype, ExportOptions, export};
pub use inspect::{InspectOptions, inspect};
pub use verify::{VerifyOptions, verify};

use crate::terminal::Terminal;

/// Prints a JSON answer.
fn print_json(answer: &impl serde::Serialize, terminal: &Terminal) {
    terminal.result(&serde_json::to_string_pretty(answer).unwrap_or_default());
}
