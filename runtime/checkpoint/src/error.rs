//! What can go wrong with checkpoint and model files.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// A result whose error is a [`CheckpointError`] unless it says otherwise.
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;

/// What went wrong, with the file, the values, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as `read`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The disk (or the user's quota) was full during a write.
    #[error(
        "no space left for {} ({} needed in all): {source}\nhint: free space there, or choose an output_dir on a larger disk",
        path.display(), readable_bytes(*needed)
    )]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// How many bytes the whole file needs.
        needed: u64,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// Less space is free than will be needed.
    #[error(
        "not enough space on the disk of {}: {} needed, {} free\nhint: free space there, or choose an output_dir on a larger disk",
        path.display(), readable_bytes(*needed), readable_bytes(*available)
    )]
    NoRoom {
        /// The folder whose disk was asked about.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes that an ordinary user may still write.
        available: u64,
    },
    /// A safetensors file is not one, or is damaged.
    #[error("{} is not a whole safetensors file: {reason}\nhint: copy or download the file again", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor has an element type that is not read here.
    #[error(
        "tensor {tensor} in {} has type {dtype}; only F32, BF16 and F16 are read\nhint: convert the model to one of these types",
        path.display()
    )]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type as the file spells it.
        dtype: String,
    },
    /// A tensor is not there.
    #[error("tensor {tensor} is not in {}{}", path.display(), near.as_ref().map(|near| format!("\nhint: the nearest name there is {near}")).unwrap_or_default())]
    MissingTensor {
        /// The file or folder that was searched.
        path: PathBuf,
        /// The name asked for.
        tensor: String,
        /// A name that is there and looks alike.
        near: Option<String>,
    },
    /// Tensors that the model does not have.
    #[error(
        "{} holds tensors that the model of its config.json does not have: {tensors}\nhint: they would be left out, and the model would be \
         another one: config.json and weights do not belong together",
        path.display()
    )]
    StrangeTensors {
        /// The folder.
        path: PathBuf,
        /// Some of their names, and how many there are.
        tensors: String,
    },
    /// A caller asked for elements or bytes that the tensor does not have, or gave a wrong buffer.
    #[error("tensor {tensor} of {}: {reason}", path.display())]
    BadRange {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What does not fit.
        reason: String,
    },
    /// The list of tensors to be written cannot be a file.
    #[error("cannot lay out {}: {reason}", path.display())]
    BadLayout {
        /// The file.
        path: PathBuf,
        /// What is wrong with the list.
        reason: String,
    },
    /// A file was finished before all of it was written.
    #[error("{} is not complete: tensor {tensor} has {written} of {expected} bytes", path.display())]
    Incomplete {
        /// The file.
        path: PathBuf,
        /// The first tensor with a gap.
        tensor: String,
        /// Bytes written of it.
        written: u64,
        /// Bytes it has.
        expected: u64,
    },
    /// A file names another one that does not lie in its own folder.
    #[error("{} names the file {name:?}, which is not a plain file name\nhint: names inside a folder may not leave it; do not use this folder unless you trust its source", path.display())]
    UnsafeName {
        /// The file with the name in it.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A folder holds no model that can be read.
    #[error("no model.safetensors or model.safetensors.index.json in {}\nhint: {hint}", path.display())]
    NoModel {
        /// The folder.
        path: PathBuf,
        /// What to do about it.
        hint: String,
    },
    /// A JSON file does not have the form it should have.
    #[error("cannot make sense of {}: {reason}", path.display())]
    BadJson {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A manifest has another form than the one that is read here.
    #[error("cannot read {}: its format_version is {version}; this program reads {read}\nhint: use the version of launch that wrote it", path.display())]
    OtherVersion {
        /// The manifest.
        path: PathBuf,
        /// Its version, or `none`.
        version: String,
        /// The version that is read.
        read: u32,
    },
    /// A value of a tensor is not one that can be used.
    #[error("tensor {tensor} of {}: {reason}\nhint: {hint}", path.display())]
    BadValue {
        /// The file or folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Which element, and what it is.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The ranks' parts do not make one checkpoint.
    #[error("the ranks' parts do not make one checkpoint: {reason}")]
    BadParts {
        /// What does not fit.
        reason: String,
    },
    /// A checkpoint's files are not what its manifest says.
    #[error("checkpoint {} is not whole: {reason}\nhint: use another step; `launch verify` names all that is wrong with this one", path.display())]
    NotWhole {
        /// The step's folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A rank sees another folder than `launch`.
    #[error(
        "on host {host}, {} is not the folder that launch made there: {reason}\nhint: all ranks must see one output_dir: give a \
         folder on a disk that they share, at the same path",
        path.display()
    )]
    OtherStorage {
        /// The folder, as it is called on both.
        path: PathBuf,
        /// The rank's host.
        host: String,
        /// What was found there.
        reason: String,
    },
    /// Something stands where a new file or folder is to be.
    #[error("{} exists already\nhint: {hint}", path.display())]
    Exists {
        /// The file or folder.
        path: PathBuf,
        /// What to do about it.
        hint: &'static str,
    },
}

impl CheckpointError {
    /// What is wrong, without the hint and, where the folder is known anyway, without its name.
    pub fn reason(&self) -> String {
        match self {
            CheckpointError::NotWhole { reason, .. } => reason.clone(),
            other => other.to_string().lines().next().unwrap_or_default().to_owned(),
        }
    }

    /// For `map_err` on a call to the operating system.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CheckpointError {
        move |source| CheckpointError::Io { action, path: path.to_owned(), source }
    }

    /// For `map_err` on a write: a full disk or quota has its own variant.
    pub(crate) fn write(path: &Path, needed: u64) -> impl FnOnce(std::io::Error) -> CheckpointError {
        move |source| match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => {
                CheckpointError::DiskFull { path: path.to_owned(), needed, source }
            }
            _ => CheckpointError::Io { action: "write", path: path.to_owned(), source },
        }
    }

    /// A damaged safetensors file.
    pub(crate) fn bad_file(path: &Path, reason: impl Display) -> CheckpointError {
        CheckpointError::BadFile { path: path.to_owned(), reason: reason.to_string() }
    }

    /// A JSON file of the wrong form.
    pub(crate) fn bad_json(path: &Path, reason: impl Display) -> CheckpointError {
        CheckpointError::BadJson { path: path.to_owned(), reason: reason.to_string() }
    }

    /// A checkpoint that is not whole.
    pub(crate) fn not_whole(path: &Path, reason: impl Display) -> CheckpointError {
        CheckpointError::NotWhole { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Bytes as a person reads them, such as `1.5 GB` (powers of ten).
pub(crate) fn readable_bytes(bytes: u64) -> String {
    let units = [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match units.iter().find(|(size, _)| bytes >= *size) {
        Some((size, name)) => format!("{:.1} {name}", bytes as f64 / *size as f64),
        None => format!("{bytes} bytes"),
    }
}
