//! What can go wrong before a job runs, and the exit code of each.

use std::path::PathBuf;

use thiserror::Error;

use crate::control::ControlError;
use crate::supervise::SpawnError;
use crate::watch::MetricsError;

/// A failed run.
pub const EXIT_FAILED: u8 = 1;
/// Bad usage, configuration or data.
pub const EXIT_USAGE: u8 = 2;

/// Why a job did not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The command line cannot be meant like this.
    #[error("{message}\nhint: {hint}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(Box<zerofold_configs::ConfigError>),
    /// The data cannot be used.
    #[error(transparent)]
    Data(Box<zerofold_data::DataError>),
    /// Checkpoints cannot be read.
    #[error(transparent)]
    Checkpoint(Box<zerofold_checkpoint::CheckpointError>),
    /// The model folder cannot be used.
    #[error("model_name_or_path: {}: {message}\nhint: {hint}", path.display())]
    Model {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The hub, or what it keeps on this machine.
    #[error(transparent)]
    Hub(Box<crate::hub::HubError>),
    /// The model's `config.json` cannot be used.
    #[error(transparent)]
    ModelConfig(Box<zerofold_plan::ModelConfigError>),
    /// A key of the configuration does not fit the model.
    #[error("{place}: {source}")]
    DoesNotFit {
        /// Where the key is set.
        place: String,
        /// What does not fit.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The ranks cannot be laid out.
    #[error(transparent)]
    Layout(#[from] zerofold_plan::LayoutError),
    /// The run folder cannot be used.
    #[error("output_dir: {}: {message}\nhint: {hint}", path.display())]
    RunFolder {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The folder for optimizer state in files cannot be used.
    #[error("{place}: offload_optimizer_nvme_path is {}: {message}\nhint: {hint}", path.display())]
    OffloadFolder {
        /// Where it is set.
        place: String,
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The store of checkpoints cannot be used.
    #[error(transparent)]
    Store(Box<zerofold_store::StoreError>),
    /// The control plane did not start.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Other hosts did not come, or cannot do their part.
    #[error("{message}\nhint: {hint}")]
    Hosts {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// It was stopped before anything ran.
    #[error("{}: stopped while waiting for hosts", _0.name())]
    Stopped(crate::event::StopSignal),
    /// The Prometheus endpoint did not start.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A worker could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The program of the workers is missing.
    #[error("{message}\nhint: {hint}")]
    Worker {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// A call to the system failed.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl From<zerofold_configs::ConfigError> for LaunchError {
    fn from(error: zerofold_configs::ConfigError) -> Self {
        LaunchError::Config(Box::new(error))
    }
}

impl From<crate::hub::HubError> for LaunchError {
    fn from(error: crate::hub::HubError) -> Self {
        LaunchError::Hub(Box::new(error))
    }
}

impl From<zerofold_plan::ModelConfigError> for LaunchError {
    fn from(error: zerofold_plan::ModelConfigError) -> Self {
        LaunchError::ModelConfig(Box::new(error))
    }
}

impl From<zerofold_data::DataError> for LaunchError {
    fn from(error: zerofold_data::DataError) -> Self {
        LaunchError::Data(Box::new(error))
    }
}

impl From<zerofold_checkpoint::CheckpointError> for LaunchError {
    fn from(error: zerofold_checkpoint::CheckpointError) -> Self {
        LaunchError::Checkpoint(Box::new(error))
    }
}

impl From<zerofold_store::StoreError> for LaunchError {
    fn from(error: zerofold_store::StoreError) -> Self {
        match error {
            zerofold_store::StoreError::Checkpoint(error) => error.into(),
            other => LaunchError::Store(Box::new(other)),
        }
    }
}

impl LaunchError {
    /// A wrong command line.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        LaunchError::Usage { message: message.into(), hint: hint.into() }
    }

    /// What is wrong with the value of an option; a last line `hint: …` stays the hint.
    pub fn usage_of(option: &str, error: &dyn std::error::Error) -> Self {
        let text = error.to_string();
        let (message, hint) = text.split_once("\nhint: ").unwrap_or((&text, "see `launch cost --help`"));
        LaunchError::usage(format!("{option}: {message}"), hint)
    }

    /// A failed call to the system.
    pub fn system(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| LaunchError::System { action, source }
    }

    /// The exit code of `launch`.
    pub fn exit_code(&self) -> u8 {
        match self {
            LaunchError::Stopped(signal) => signal.exit_code(),
            LaunchError::Hosts { .. }
            | LaunchError::Spawn(_)
            | LaunchError::Worker { .. }
            | LaunchError::System { .. } => EXIT_FAILED,
            LaunchError::Control(ControlError::Start { .. } | ControlError::Token(_) | ControlError::Trust(_)) => {
                EXIT_FAILED
            }
            LaunchError::Metrics(MetricsError::Start { .. }) => EXIT_FAILED,
            LaunchError::Hub(error) if error.is_failure() => EXIT_FAILED,
            _ => EXIT_USAGE,
        }
    }
}
