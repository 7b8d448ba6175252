//! `FULL_STATE_DICT`: each checkpoint gets its model too, as a Hugging Face folder beside its shards, behind training.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use zerofold_checkpoint::open_step;
use zerofold_checkpoint::publish::MODEL_DIRECTORY;

use crate::checkpoints::{ExportOptions, write_model};
use crate::error::LaunchError;
use crate::terminal::Terminal;

/// Writes one model at a time.
#[derive(Debug, Default)]
pub(crate) struct ModelBeside {
    under_way: Mutex<Option<JoinHandle<()>>>,
}

impl ModelBeside {
    /// Begins to write the model of the checkpoint that was published in a step's folder.
    pub(crate) fn begin(&self, step_directory: &Path) {
        self.wait();
        let directory = step_directory.to_owned();
        let write = move || {
            if let Err(error) = write(&directory) {
                tracing::warn!("no model beside {}: {error}", directory.display());
            }
        };
        match std::thread::Builder::new().name("model".to_owned()).spawn(write) {
            Ok(thread) => *self.under_way.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread),
            Err(error) => tracing::warn!("no model beside {}: {error}", step_directory.display()),
        }
    }

    /// Waits until nothing is read from a checkpoint any more, which may then be deleted.
    pub(crate) fn wait(&self) {
        let thread = self.under_way.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("writing the model beside a checkpoint panicked");
        }
    }
}

impl Drop for ModelBeside {
    fn drop(&mut self) {
        self.wait();
    }
}

fn write(step_directory: &Path) -> Result<(), LaunchError> {
    let output = step_directory.join(MODEL_DIRECTORY);
    let checkpoint = step_directory.to_owned();
    let options = ExportOptions { checkpoint, output, dtype: None, model: None, model_revision: None };
    write_model(&open_step(step_directory)?, &options, &Terminal::silent()).map(|_| ())
}
