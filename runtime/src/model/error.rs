//! What can go wrong with a model's description and its maths.

use std::path::PathBuf;

use tch::TchError;

/// Errors of [`crate::model`].
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// `config.json` could not be read.
    #[error("cannot read {path}: {source}\nhint: a model folder in Hugging Face form has a config.json beside its .safetensors files", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `config.json` is not JSON, or not an object.
    #[error("{path} is not a JSON object: {detail}", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        detail: String,
    },
    /// The architecture is not one that is built here.
    #[error("{path}: the architecture {found} is not supported\nhint: supported are {supported}", path = path.display())]
    UnsupportedArchitecture {
        /// The file.
        path: PathBuf,
        /// What it names.
        found: String,
        /// What could stand there.
        supported: String,
    },
    /// A value that must be there is not.
    #[error("{path}: the key {key} is missing", path = path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A value that cannot be right.
    #[error("{path}: {key} is {value}: {reason}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value as written.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A value that means something which is not built.
    #[error("{path}: {key} is {value}, which is not built yet\nhint: {hint}", path = path.display())]
    NotBuilt {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value as written.
        value: String,
        /// What can be done.
        hint: String,
    },
    /// A unit was called with the wrong number of tensors.
    #[error("{unit} expects {expected} tensors ({names}) but was given {found}")]
    Leaves {
        /// The unit.
        unit: &'static str,
        /// What it expects.
        expected: usize,
        /// Their names, in order.
        names: &'static str,
        /// How many came.
        found: usize,
    },
    /// A sequence that full attention would treat otherwise than the model's sliding window.
    #[error(
        "a sequence of {length} tokens is longer than the model's sliding window of {window}, and sliding windows are not built yet\nhint: keep prompts and max_length at {window} tokens or fewer"
    )]
    BeyondWindow {
        /// Tokens in the sequence.
        length: usize,
        /// The model's window.
        window: usize,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}
