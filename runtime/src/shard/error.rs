//! Why sharding failed.

use crate::comm::CommError;
use crate::gpu::GpuError;
use crate::torch::ShimError;
use std::path::PathBuf;
use tch::TchError;
use thiserror::Error;

/// Why sharding failed.
#[derive(Debug, Error)]
pub enum ShardError {
    /// A collective failed.
    #[error("unit {unit}: {source}")]
    Collective {
        /// The unit's name.
        unit: String,
        /// What failed.
        source: CommError,
    },
    /// A group of ranks could not be made.
    #[error(transparent)]
    Group(#[from] CommError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] TchError),
    /// The shim failed.
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// Every gather buffer is in use.
    #[error("unit {0} cannot be gathered: every gather buffer is in use; a unit was not released")]
    NoBuffer(String),
    /// Reading the model's files failed.
    #[error(transparent)]
    Files(#[from] zerofold_checkpoint::CheckpointError),
    /// A parameter of the model's files does not have the shape that its configuration implies.
    #[error("{name}: the model's files have shape {found:?}, its config.json implies {expected:?}")]
    Shape {
        /// The parameter.
        name: String,
        /// In the files.
        found: Vec<usize>,
        /// By the configuration.
        expected: Vec<usize>,
    },
    /// The poison mapping could not be made.
    #[error("mapping {bytes} bytes that stand for released parameters failed: {source}")]
    Poison {
        /// The size.
        bytes: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// The same on a GPU.
    #[error("mapping {bytes} bytes of the GPU that stand for released parameters failed: {source}")]
    DevicePoison {
        /// The size.
        bytes: usize,
        /// What the driver said.
        source: GpuError,
    },
    /// The file that optimizer state is offloaded to could not be made.
    #[error(
        "offloading {bytes} bytes of optimizer state to {path} failed: {source}\n\
         hint: offload_optimizer_nvme_path must be a folder that exists and has that much room on every host",
        path = path.display()
    )]
    Offload {
        /// The folder.
        path: PathBuf,
        /// The size.
        bytes: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

impl ShardError {
    /// True when another rank's failure is the most likely cause.
    pub fn is_consequence(&self) -> bool {
        match self {
            ShardError::Collective { source, .. } | ShardError::Group(source) => source.is_consequence(),
            _ => false,
        }
    }
}
