//! The commands `checkpoint`, which asks a run for one, and `inspect`, `verify`, `diff` and `export`: what lies in a checkpoint or a model folder, whether it is whole,
//! what differs, and a model folder out of it. No libtorch, and never more than a chunk of a tensor in memory.
//!
//! ```text
//! PATH ─ place, remote ─┬ inspect → manifest, headers
//!                       ├ verify  → zerofold_checkpoint::examine
//!                       ├ diff    → zerofold_checkpoint::difference
//!                       └ export  → zerofold_checkpoint::model_export, with a model card
//! ```

mod ask;
mod card;
mod diff;
mod export;
mod inspect;
mod parameters;
mod place;
mod remote;
mod verify;

pub use ask::ask;
pub(crate) use diff::DEFAULT_TOP;
pub use diff::{DiffOptions, diff};
pub(crate) use export::write_model;
pub use export::{ExportDtype, ExportOptions, export};
pub use inspect::{InspectOptions, inspect};
pub(crate) use parameters::Parameters;
pub(crate) use place::Place;
pub use verify::{VerifyOptions, verify};

use crate::terminal::Terminal;

/// Prints a JSON answer.
fn print_json(answer: &impl serde::Serialize, terminal: &Terminal) {
    terminal.result(&serde_json::to_string_pretty(answer).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Two units of 2⁶³ elements each, in a file of a few bytes.
    #[test]
    fn a_manifest_that_boasts_is_not_believed_and_ends_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let step = folder.path().join("step-00000020");
        std::fs::create_dir(&step).unwrap();
        let (file, length) = ("rank-00000-of-00001.g1.safetensors", 1_u64 << 63);
        let unit = |name: &str| json!({"name": name, "length": length, "parameters": [{"name": name, "shape": [length], "begin": 0}]});
        let range = |unit: &str, state: &str| {
            let whole = format!("{unit}/{state}");
            json!({"name": whole, "dtype": "F32", "whole": whole, "length": length, "begin": 0, "end": length})
        };
        let states = ["master", "exp_avg", "exp_avg_sq"];
        let tensors: Vec<_> = ["a", "b"].iter().flat_map(|unit| states.map(|state| range(unit, state))).collect();
        let manifest = json!({
            "format_version": 2, "step": 20, "generation": 1, "world_size": 1, "stage": 0, "state": {},
            "units": [unit("a"), unit("b")],
            "files": [{"name": file, "bytes": 10, "blake3": "0".repeat(64), "tensors": tensors}],
        });
        std::fs::write(step.join("manifest.json"), manifest.to_string()).unwrap();
        std::fs::write(step.join(file), b"\x02\0\0\0\0\0\0\0{}").unwrap();
        let terminal = Terminal::silent();
        inspect(&InspectOptions { path: step.clone(), tensors: true, json: false }, &terminal).unwrap();
        assert_eq!(verify(&VerifyOptions { paths: vec![step.clone()], json: false }, &terminal).unwrap(), 1);
        let both = DiffOptions { left: step.clone(), right: step.clone(), top: 1, json: false };
        let told = diff(&both, &terminal).unwrap_err().to_string();
        assert!(told.contains("tensor a/master is not in "), "{told}");
        let output = folder.path().join("model");
        let order =
            ExportOptions { checkpoint: step, output: output.clone(), dtype: None, model: None, model_revision: None };
        let told = export(&order, &terminal).unwrap_err().to_string();
        assert!(told.contains("has the hash ") && !output.exists(), "{told}");
    }
}
