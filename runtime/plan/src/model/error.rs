//! What can go wrong with a model's description.

use std::path::PathBuf;

/// Why a model's `config.json` is not one that can be trained here.
#[derive(Debug, thiserror::Error)]
pub enum ModelConfigError {
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
    /// Parameters that are computed in one product, of which only some are frozen.
    #[error(
        "{frozen} is to be frozen and {trained} is not, but both are used in one product\nhint: freeze both or neither"
    )]
    PartlyFrozen {
        /// One that is to be frozen.
        frozen: String,
        /// One that is not.
        trained: String,
    },
    /// A class of layers that the model does not have.
    #[error("{architecture} has no layer class {found}, which fsdp_transformer_layer_cls_to_wrap names\nhint: {hint}")]
    LayerClass {
        /// The model's architecture.
        architecture: String,
        /// The class as written.
        found: String,
        /// What could stand there.
        hint: String,
    },
}
