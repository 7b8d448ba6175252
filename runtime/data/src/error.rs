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
    #[error("{}:{line}{}: {message}\nhint: {hint}", path.display(), column_suffix(*column))]
    Row {
        /// The data file.
        path: PathBuf,
        /// Line in it, from 1.
        line: u64,
        /// Column in the line, from 1, where the fault has one.
        column: Option<usize>,
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

    pub(crate) fn row(path: &Path, line: u64, fault: Fault) -> DataError {
        DataError::Row {
            path: path.to_path_buf(),
            line,
            column: fault.column,
            message: fault.message,
            hint: fault.hint,
        }
    }
}

/// What is wrong with one row, before the place is known.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) column: Option<usize>,
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> Fault {
        Fault { column: None, message: message.into(), hint: hint.into() }
    }
}

fn column_suffix(column: Option<usize>) -> String {
    column.map(|column| format!(":{column}")).unwrap_or_default()
}
