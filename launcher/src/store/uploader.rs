//! A thread that puts published checkpoints into the store, behind training, one at a time and in order.
//!
//! 1. A step that is uploaded, or waits for it, is held: local retention deletes it only afterwards.
//! 2. At most one step waits. A newer one takes its place, and the older is told to be skipped: a store that is slower than
//!    the run gets fewer checkpoints, never older ones.
//! 3. In the store nothing is deleted before a newer checkpoint was committed there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use zerofold_checkpoint::{Found, Manifest, Retention, delete_old, open_step};
use zerofold_configs::{Resolved, Training};
use zerofold_store::{CheckpointStore, Interrupt};

use crate::best_checkpoint::best_step;
use crate::event::Event;

/// Which checkpoints stay, as the configuration has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep {
    newest: Option<usize>,
    every: Option<u64>,
}

impl Keep {
    /// By `save_total_limit` and `save_keep_every`.
    pub fn of(config: &Resolved) -> Keep {
        let Training { save_total_limit, save_keep_every, .. } = config.training;
        let newest = save_total_limit.filter(|&limit| limit > 0).map(|limit| limit as usize);
        Keep { newest, every: save_keep_every.map(u64::from) }
    }

    /// What stays once this checkpoint is there; nothing where all do. It knows the best one so far.
    fn retention(&self, manifest: &Manifest) -> Option<Retention> {
        self.newest.map(|newest| Retention { newest, every: self.every, best: best_step(manifest) })
    }

    /// Deletes the checkpoints in a run's folder that need not stay beside this published one. The checkpoint is there, whatever
    /// becomes of older ones; nothing goes where the best one is not known.
    pub fn delete_old(&self, directory: &Path, held: &[u64]) {
        let Some(checkpoints) = directory.parent().filter(|_| self.newest.is_some()) else { return };
        let deleted = open_step(directory).and_then(|found| match self.retention(&found.manifest) {
            Some(keep) => delete_old(checkpoints, keep, held),
            None => Ok(Vec::new()),
        });
        if let Err(error) = deleted {
            tracing::warn!("an old checkpoint stays: {error}");
        }
    }
}

/// The thread, and what it is to do.
#[derive(Debug)]
pub struct Uploader {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    store: CheckpointStore,
    keep: Keep,
    interrupt: Interrupt,
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    waiting: Option<Job>,
    at_work: Option<u64>,
    /// The newest published one in the run's folder.
    newest: Option<PathBuf>,
    closed: bool,
}

#[derive(Clone, Debug)]
struct Job {
    step: u64,
    directory: PathBuf,
}

impl Work {
    fn held(&self) -> Vec<u64> {
        self.at_work.into_iter().chain(self.waiting.as_ref().map(|job| job.step)).collect()
    }
}

impl Uploader {
    /// Starts the thread. What comes of each upload is told as an [`Event`].
    pub fn start(store: CheckpointStore, keep: Keep, events: Sender<Event>) -> std::io::Result<Uploader> {
        let work = Mutex::default();
        let shared = Arc::new(Shared { store, keep, interrupt: Interrupt::default(), work, changed: Condvar::new() });
        let own = shared.clone();
        let thread = std::thread::Builder::new().name("upload".to_owned()).spawn(move || own.run(&events))?;
        Ok(Uploader { shared, thread: Some(thread) })
    }

    /// The store.
    pub fn store(&self) -> &CheckpointStore {
        &self.shared.store
    }

    /// Hands over a step that was just published; then deletes what need not stay in the run's folder. Gives the step that
    /// waited and will not be uploaded.
    pub fn offer(&self, directory: &Path) -> Option<u64> {
        let found = match open_step(directory) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!("a checkpoint is not uploaded: {error}");
                return None;
            }
        };
        let mut work = self.shared.work();
        let job = Job { step: found.manifest.step, directory: directory.to_owned() };
        work.newest = Some(directory.to_owned());
        let skipped = work.waiting.replace(job).map(|job| job.step);
        self.shared.changed.notify_all();
        // Under the lock, so that the step at work is not another one meanwhile.
        self.shared.keep.delete_old(directory, &work.held());
        skipped
    }

    /// The step that is uploaded or waits for it, the newest if there are two.
    pub fn pending(&self) -> Option<u64> {
        self.shared.work().held().into_iter().max()
    }

    /// Gives up what is being uploaded, and what waits. The thread tells of it.
    pub fn give_up(&self) {
        self.shared.interrupt.ask();
    }
}

impl Drop for Uploader {
    fn drop(&mut self) {
        self.shared.interrupt.ask();
        self.shared.work().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn work(&self) -> MutexGuard<'_, Work> {
        // Valid between any two statements, so a panic elsewhere does not spoil it.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, events: &Sender<Event>) {
        while let Some(job) = self.next() {
            let began = Instant::now();
            // The end of the job waits for what comes of this, so something must, whatever happens in there.
            let upload = || self.store.upload(&job.directory, &self.interrupt).map_err(|error| error.to_string());
            let uploaded = catch_unwind(AssertUnwindSafe(upload));
            let uploaded =
                uploaded.unwrap_or_else(|_| Err("launch panicked, which is a fault of this program".to_owned()));
            let (step, url) = (job.step, self.store.step_url(job.step));
            let event = match &uploaded {
                Ok(found) => Event::Stored { step, url, bytes: found.manifest.bytes(), time: began.elapsed() },
                Err(reason) => Event::StoreFailed { step, url, reason: reason.clone() },
            };
            // Nobody listens any more once the job is over.
            let _ = events.send(event);
            if let Ok(found) = uploaded {
                self.delete_old(&found);
            }
            self.done();
        }
    }

    /// Waits for a step to upload; nothing once there will be none.
    fn next(&self) -> Option<Job> {
        let mut work = self.work();
        loop {
            if let Some(job) = work.waiting.take() {
                work.at_work = Some(job.step);
                return Some(job);
            }
            if work.closed {
                return None;
            }
            work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// In the store; a checkpoint is there, whatever becomes of older ones.
    fn delete_old(&self, found: &Found) {
        let keep = self.keep.retention(&found.manifest);
        match self.store.delete_old(found.manifest.step, keep, &self.interrupt) {
            Ok(deleted) => tracing::debug!(?deleted, "steps deleted from the store"),
            Err(error) => tracing::warn!("old checkpoints stay in the store: {error}"),
        }
    }

    /// What was held may go now.
    fn done(&self) {
        let mut work = self.work();
        work.at_work = None;
        if let Some(newest) = &work.newest {
            self.keep.delete_old(newest, &work.held());
        }
    }
}
