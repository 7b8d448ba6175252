//! A save that goes on behind training: a thread writes this rank's part, tells `launch`, and waits for the commit.

use super::snapshot::{Held, Snapshot};
use super::{Best, TrainError};
use crate::control::{CheckpointClient, ControlError};
use crate::shard::ShardError;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use zerofold_checkpoint::{CheckpointError, FileEntry, Part, ensure_room, fault, shard_file_name};

/// How long `launch` may take to tell what came of a save. It gives up sooner on ranks that do not write their parts.
const COMMIT_DEADLINE: Duration = Duration::from_secs(2 * 3600);

/// A save under way.
pub(super) struct Saving {
    step: u64,
    began: Instant,
    /// How long training stood still for it.
    waited: Duration,
    best: Option<Best>,
    held: Option<Arc<Held>>,
    thread: Option<JoinHandle<Result<Outcome, ControlError>>>,
}

/// What came of a save, the same on all ranks.
enum Outcome {
    Committed,
    /// Training goes on without it.
    Failed(String),
}

/// What a save writes on this rank.
pub(super) struct Share {
    /// The step's folder.
    pub(super) directory: PathBuf,
    /// All but the files.
    pub(super) part: Part,
    /// Nothing where another copy writes the same.
    pub(super) snapshot: Option<Snapshot>,
    /// Bytes that must be free on the disk.
    pub(super) room: u64,
    /// The best checkpoint once this one is committed.
    pub(super) best: Option<Best>,
}

impl Share {
    fn write(&mut self) -> Result<(), ShardError> {
        fault::reach(fault::BEGIN);
        // Ranks do this at the same time; one of them, or several, make it.
        std::fs::create_dir_all(&self.directory).map_err(|source| CheckpointError::Io {
            action: "create",
            path: self.directory.clone(),
            source,
        })?;
        let Part { rank, world_size, generation, .. } = self.part;
        if let Some(snapshot) = self.snapshot.take() {
            ensure_room(&self.directory, self.room)?;
            let name = shard_file_name(rank, world_size, generation);
            let file: FileEntry = snapshot.write(&self.directory, &name)?;
            self.part.files = vec![file];
        }
        fault::reach(fault::WRITTEN);
        Ok(())
    }
}

impl Saving {
    /// Begins to write. Training has stood still for it since `began`.
    pub(super) fn begin(mut share: Share, control: CheckpointClient, began: Instant) -> Result<Self, TrainError> {
        let (step, best, held) = (share.part.step, share.best, share.snapshot.as_ref().map(Snapshot::held));
        let save = move || {
            // Whatever happens to this rank's part, `launch` hears of it: the other ranks wait for that.
            let written = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| share.write()));
            let part = match &written {
                Ok(Ok(())) => Ok(serde_json::json!(share.part).to_string().into_bytes()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("writing panicked; this rank's log tells where".to_owned()),
            };
            let failure = control.written(step, &share.directory.display().to_string(), part, COMMIT_DEADLINE)?;
            Ok(failure.map_or(Outcome::Committed, Outcome::Failed))
        };
        let thread = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(save);
        let thread = thread.map_err(TrainError::Thread)?;
        Ok(Saving { step, began, waited: began.elapsed(), best, held, thread: Some(thread) })
    }

    /// Lets the state change: what is not written yet is copied, or waited for where `copies` is false.
    pub(super) fn release(&mut self, copies: bool) -> Result<(), ShardError> {
        if let Some(held) = self.held.take() {
            let began = Instant::now();
            let bytes = held.release(copies)?;
            self.waited += began.elapsed();
            tracing::debug!("{bytes} bytes of the checkpoint of step {} were copied", self.step);
        }
        Ok(())
    }

    /// The best checkpoint once this one is committed.
    pub(super) fn best(&self) -> Option<Best> {
        self.best
    }

    /// True when [`Saving::finish`] returns at once.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until the checkpoint is committed; false when it is known to have failed, which does not end the run.
    pub(super) fn finish(mut self) -> Result<bool, TrainError> {
        let Some(thread) = self.thread.take() else { return Ok(false) };
        let (step, came) = (self.step, Instant::now());
        let outcome = thread.join().unwrap_or_else(|_| Ok(Outcome::Failed("its thread panicked".to_owned())));
        let outcome = outcome?;
        match &outcome {
            Outcome::Committed => {
                let millis = self.began.elapsed().as_millis();
                let waited = (self.waited + came.elapsed()).as_millis();
                tracing::info!(
                    "the checkpoint of step {step} was committed after {millis} ms; steps waited {waited} ms"
                );
            }
            // Standard output goes to the log alone: `launch` tells people.
            Outcome::Failed(reason) => println!("no checkpoint of step {step}: {reason}"),
        }
        Ok(matches!(outcome, Outcome::Committed))
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        // The state may go away from here on, so nobody reads it.
        if let Some(held) = self.held.take() {
            held.abandon();
        }
    }
}
