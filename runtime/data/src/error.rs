//! The errors of this crate. Each says where, what, and on its last line what to do.

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong between a data file and a batch.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file could not be read or written.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// What was tried, as in "read the data set".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A row of a data file is not what it should be.
    #[error("{place}: {message}\nhint: {hint}")]
    Row {
        /// The data file and the place in it, in the form of its format: `file:line:column`, `file[element]`, `file: row N`.
        place: String,
        /// What is wrong, with the values.
        message: String,
        /// What to do.
        hint: String,
    },
    /// A data file as a whole cannot be used.
    #[error("{}: {message}\nhint: {hint}", path.display())]
    Dataset {
        /// The data file.
        path: PathBuf,
        /// What is wrong, with the values.
        message: String,
        /// What to do.
        hint: String,
    },
    /// A file of the model folder (tokenizer, template, configuration) cannot be used.
    #[error("{}: {message}\nhint: {hint}", path.display())]
    Model {
        /// The file or the model folder.
        path: PathBuf,
        /// What is wrong, with the values.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The chat template refused a conversation or failed on it.
    #[error("chat template: {message}")]
    Template {
        /// What is wrong, with the template's own line where it has one.
        message: String,
    },
    /// Text could not be encoded, or ids not be decoded.
    #[error("tokenizer: {message}")]
    Tokenizer {
        /// What is wrong.
        message: String,
    },
    /// The numbers of a step plan make no sense together.
    #[error("{message}\nhint: {hint}")]
    Plan {
        /// What is wrong, with the values.
        message: String,
        /// What to do.
        hint: String,
    },
}

impl DataError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError {
        move |source| DataError::Io { action, path: path.to_path_buf(), source }
    }

    pub(crate) fn dataset(path: &Path, message: impl Into<String>, hint: impl Into<String>) -> DataError {
        DataError::Dataset { path: path.to_path_buf(), message: message.into(), hint: hint.into() }
    }

    pub(crate) fn model(path: &Path, message: impl Into<String>, hint: impl Into<String>) -> DataError {
        DataError::Model { path: path.to_path_buf(), message: message.into(), hint: hint.into() }
    }

    pub(crate) fn row(place: String, fault: Fault) -> DataError {
        DataError::Row { place, message: fault.message, hint: fault.hint }
    }
}

/// What is wrong with one row, before the place is known.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    /// Column in the line, from 1, where it has one.
    pub(crate) column: Option<usize>,
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Fault {
        Fault { column: None, message: message.into(), hint: hint.into() }
    }
}
