//! Ranks as processes: how they are started, waited for and killed, and what they know of themselves.

use crate::common::stand_in;
use crate::store::FolderStore;
use crate::task::Task;
use serde::de::DeserializeOwned;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::Device;
use zerofold_runtime::comm::{Activity, CommError, Nccl, Store};
use zerofold_runtime::gpu;

/// The variables by which a process of this program knows that it is a rank.
const RANK: &str = "NCCL_TEST_RANK";
const WORLD_SIZE: &str = "NCCL_TEST_WORLD_SIZE";
const FOLDER: &str = "NCCL_TEST_FOLDER";
const TASK: &str = "NCCL_TEST_TASK";
const LOG: &str = "ZEROFOLD_STAND_IN_LOG";

/// No test takes as long; whoever does hangs.
const LIMIT: Duration = Duration::from_secs(120);

/// Returns when `condition` holds; fails the test when it does not before the deadline.
pub(crate) fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not after {limit:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A task for some ranks, and the environment in which they do it.
pub(crate) struct Job {
    task: Task,
    world_size: usize,
    /// Variables of all ranks, or of one.
    environment: Vec<(Option<usize>, OsString, OsString)>,
    folder: tempfile::TempDir,
}

impl Job {
    pub(crate) fn new(world_size: usize, task: Task) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["store", "communicators", "temporary"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        Job { task, world_size, environment: Vec::new(), folder }
    }

    /// Sets a variable for all ranks.
    pub(crate) fn with(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((None, name.into(), value.as_ref().into()));
        self
    }

    /// Sets a variable for one rank.
    pub(crate) fn with_for(mut self, rank: usize, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((Some(rank), name.into(), value.as_ref().into()));
        self
    }

    /// Lets a rank write down its calls.
    pub(crate) fn logged(self, rank: usize) -> Self {
        let path = self.folder.path().join(format!("log.{rank}"));
        self.with_for(rank, LOG, path)
    }

    /// The folder that is the ranks' TMPDIR.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.folder.path().join("temporary")
    }

    pub(crate) fn start(self) -> Running {
        let ranks = (0..self.world_size).map(|rank| self.command(rank).spawn().unwrap()).collect();
        Running { ranks, folder: self.folder }
    }

    /// What each rank's task gave.
    pub(crate) fn run<T: DeserializeOwned>(self) -> Vec<T> {
        self.start().outcomes()
    }

    fn command(&self, rank: usize) -> Command {
        let folder = self.folder.path();
        let output = |name: &str| Stdio::from(std::fs::File::create(folder.join(format!("{name}.{rank}"))).unwrap());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            // In the main thread, as a worker trains.
            .args(["rank_process", "--exact", "--nocapture", "--test-threads=1"])
            .env_remove("CUDA_VISIBLE_DEVICES")
            .env("LD_LIBRARY_PATH", stand_in::folder())
            .env("ZEROFOLD_STAND_IN_DIR", folder.join("communicators"))
            .env("TMPDIR", folder.join("temporary"))
            .env("OMP_NUM_THREADS", "1")
            .env(RANK, rank.to_string())
            .env(WORLD_SIZE, self.world_size.to_string())
            .env(FOLDER, folder)
            .env(TASK, serde_json::to_string(&self.task).unwrap())
            .stdin(Stdio::null())
            .stdout(output("stdout"))
            .stderr(output("stderr"));
        for (_, name, value) in self.environment.iter().filter(|(only, ..)| only.is_none_or(|only| only == rank)) {
            command.env(name, value);
        }
        command
    }
}

/// Ranks at work. They end with this, at the latest.
pub(crate) struct Running {
    ranks: Vec<Child>,
    folder: tempfile::TempDir,
}

impl Running {
    fn read(&self, name: &str, rank: usize) -> String {
        std::fs::read_to_string(self.folder.path().join(format!("{name}.{rank}"))).unwrap_or_default()
    }

    /// The calls of a rank so far.
    pub(crate) fn log(&self, rank: usize) -> String {
        self.read("log", rank)
    }

    /// What a rank and its libraries said.
    pub(crate) fn words(&self, rank: usize) -> String {
        self.read("stderr", rank)
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&mut self, rank: usize) {
        self.ranks[rank].kill().unwrap();
    }

    /// What a rank's task gave, once it has.
    pub(crate) fn outcome<T: DeserializeOwned>(&self, rank: usize) -> Option<T> {
        serde_json::from_str(&self.read("outcome", rank)).ok()
    }

    /// What each rank's task gave; a rank that gives nothing fails the test.
    pub(crate) fn outcomes<T: DeserializeOwned>(mut self) -> Vec<T> {
        self.wait_for_ends();
        (0..self.ranks.len())
            .map(|rank| self.outcome(rank).unwrap_or_else(|| panic!("rank {rank} failed: {}", self.words(rank))))
            .collect()
    }

    /// Returns when every rank has ended. When one fails the others may wait for it, so that is not waited for.
    pub(crate) fn wait_for_ends(&mut self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let ends: Vec<_> = self.ranks.iter_mut().map(|rank| rank.try_wait().unwrap()).collect();
            if let Some(failed) = ends.iter().position(|end| end.is_some_and(|status| !status.success())) {
                panic!("rank {failed} failed: {}", self.words(failed));
            }
            if ends.iter().all(Option::is_some) {
                return;
            }
            if let (true, Some(rank)) = (Instant::now() > deadline, ends.iter().position(Option::is_none)) {
                panic!("rank {rank} hangs; it said: {}\nits calls:\n{}", self.words(rank), self.log(rank));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for rank in &mut self.ranks {
            let _killed = rank.kill();
            let _status = rank.wait();
        }
    }
}

/// A rank, in its own process.
pub(crate) struct Rank {
    pub(crate) rank: usize,
    pub(crate) world_size: usize,
    pub(crate) activity: Arc<Activity>,
    folder: PathBuf,
}

impl Rank {
    /// None in a process that is no rank.
    pub(crate) fn from_environment() -> Option<(Self, Task)> {
        let task = serde_json::from_str(&std::env::var(TASK).ok()?).unwrap();
        let number = |name| std::env::var(name).unwrap().parse().unwrap();
        let folder = std::env::var_os(FOLDER).unwrap().into();
        Some((Rank { rank: number(RANK), world_size: number(WORLD_SIZE), activity: Arc::default(), folder }, task))
    }

    /// Hands over what came of the task, whole or not at all.
    pub(crate) fn leave(&self, outcome: &serde_json::Value) {
        let partial = self.folder.join(format!("partial.{}", self.rank));
        std::fs::write(&partial, outcome.to_string()).unwrap();
        std::fs::rename(&partial, self.folder.join(format!("outcome.{}", self.rank))).unwrap();
    }

    pub(crate) fn store(&self) -> FolderStore {
        FolderStore(self.folder.join("store"))
    }

    /// Tells the other ranks of something.
    pub(crate) fn tell(&self, what: &str) {
        self.store().set(what, b"").unwrap();
    }

    /// Returns when another rank has told of it.
    pub(crate) fn hear(&self, what: &str) {
        self.store().wait(&[what.to_owned()], LIMIT).unwrap();
    }

    /// Takes a device and connects with the other ranks, as a worker does.
    pub(crate) fn connect(&self) -> Result<Nccl, CommError> {
        gpu::require_nccl().unwrap();
        let claimed = gpu::claim(&gpu::facts().unwrap(), self.rank, true).unwrap();
        // Current for as long as the process lives.
        std::mem::forget(claimed);
        let (store, activity) = (Arc::new(self.store()), self.activity.clone());
        Nccl::connect(store, self.rank, self.world_size, Device::Cpu, LIMIT, activity)
    }

    /// This rank's calls so far; none where they are not written down.
    pub(crate) fn log(&self) -> String {
        std::env::var_os(LOG).map_or_else(String::new, |path| std::fs::read_to_string(path).unwrap_or_default())
    }
}
