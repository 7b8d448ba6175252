//! Whole-program tests: the real `launch`, real `worker` processes, real Gloo.
//!
//! A test makes a [`Scene`] (a folder of its own), starts jobs in it and looks at what they leave: exit codes, output,
//! files, processes. Nothing sleeps for luck: [`wait_for`] looks until something is so, or panics after [`PATIENCE`].

mod clock;
mod curve;
mod disk;
mod hub;
mod metrics;
mod network;
mod process;
mod random_model;
mod weights;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub use clock::Clock;
pub use curve::{CURVE_MODEL, Curve};
pub use disk::{ReadOnly, SmallDisk, not_tested};
pub use hub::{Fault, Hub, Repo, WRITER};
pub use metrics::{Metrics, assert_close, json};
pub use network::Network;
pub use process::{Ended, Process, Running, processes_of, signal};
pub use random_model::{Dtype, RandomModel, random_rows};
pub use weights::change_weights;

/// Nothing here takes nearly as long, on a busy machine either.
pub const PATIENCE: Duration = Duration::from_secs(150);

/// Every process of a scene has this variable in its environment, with the scene's folder as its value.
pub const MARKER: &str = "ZEROFOLD_TEST_RUN";

/// A file or folder of `tests/fixtures/`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// A fixture model's folder.
pub fn model(name: &str) -> PathBuf {
    fixture("models").join(name)
}

/// Looks every few milliseconds until `look` finds something.
///
/// # Panics
/// After [`PATIENCE`].
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The program `name`, built in the same profile as this test.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let path = test.ancestors().nth(2).expect("tests lie in target/PROFILE/deps").join(name);
    assert!(
        path.is_file(),
        "{} is missing; build it: cargo build --release -p zerofold-launcher -p zerofold-runtime",
        path.display()
    );
    path
}

/// A fresh folder, and all processes that were started for it. Dropped, it ends what still runs.
#[derive(Debug)]
pub struct Scene {
    folder: tempfile::TempDir,
}

impl Default for Scene {
    fn default() -> Self {
        Scene::new()
    }
}

impl Scene {
    /// An empty scene.
    pub fn new() -> Scene {
        program("worker");
        Scene { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A path in the scene.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).expect("the scene can be written");
        path
    }

    /// A copy of a folder with all that is in it.
    pub fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.path(name);
        copy_folder(from, &to);
        to
    }

    /// The fixture model of a family, with a tokenizer so that a job takes it.
    pub fn family(&self, name: &str) -> PathBuf {
        let folder = self.copy(&fixture("families").join(name), name);
        for file in ["expected.safetensors", "curve.json"] {
            std::fs::remove_file(folder.join(file)).expect("the scene can be written");
        }
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(model("tiny-llama").join(file), folder.join(file)).expect("the scene can be written");
        }
        folder
    }

    /// `launch` with these words, split at white space; more follow by [`Job::with`]. It runs in the scene's folder with one
    /// thread per rank, so that sums do not depend on the machine's cores.
    pub fn launch(&self, words: &str) -> Job<'_> {
        let mut command = Command::new(program("launch"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if ["ZEROFOLD_", "HF_", "HUGGING", "TRANSFORMERS_"].iter().any(|start| name.starts_with(start)) {
                command.env_remove(&*name);
            }
        }
        // Nobody's own models, tokens and tokenised data are touched, and the real hub is never asked.
        command.env("ZEROFOLD_CACHE", self.path("cache"));
        command.env("HF_HOME", self.path("hf")).env("HF_HUB_OFFLINE", "1").env("NO_PROXY", "*");
        command.args(words.split_whitespace()).current_dir(self.folder.path());
        command.env(MARKER, self.folder.path()).env("OMP_NUM_THREADS", "1").stdin(Stdio::null());
        Job { scene: self, command }
    }

    /// `launch train` of a fixture model on the fixture rows in file order, in the run folder `run` of the scene.
    pub fn train(&self, model_name: &str, run: &str, words: &str) -> Job<'_> {
        let defaults = "--gradient_checkpointing false --train_sampling_strategy sequential --logging_steps 1";
        self.launch("train")
            .with("--model_name_or_path", model(model_name))
            .with("--dataset", fixture("data/rows.jsonl"))
            .with("--output_dir", self.path(run))
            .words(defaults)
            .words(words)
    }

    /// The scene's processes that run, `launch` first.
    pub fn processes(&self) -> Vec<Process> {
        processes_of(MARKER, self.folder.path())
    }

    /// The process of a rank, once it has begun.
    pub fn rank(&self, rank: u32) -> Process {
        wait_for("a worker", || self.processes().into_iter().find(|process| process.rank == Some(rank)))
    }

    /// Waits until none of the scene's processes runs any more.
    #[track_caller]
    pub fn assert_nobody_left(&self) {
        wait_for("the end of all processes", || self.processes().is_empty().then_some(()));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for process in self.processes() {
            signal(process.pid, libc::SIGKILL);
        }
    }
}

/// A command of `launch` that is about to be started.
pub struct Job<'a> {
    scene: &'a Scene,
    command: Command,
}

impl Job<'_> {
    /// Adds words, split at white space. What stands later wins.
    pub fn words(mut self, words: &str) -> Self {
        self.command.args(words.split_whitespace());
        self
    }

    /// Adds an option and its value, which may hold anything.
    pub fn with(mut self, option: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(option).arg(value);
        self
    }

    /// Changes the command itself.
    pub fn adjust(mut self, change: impl FnOnce(&mut Command)) -> Self {
        change(&mut self.command);
        self
    }

    /// Lets it run on a host of this network.
    pub fn on(mut self, network: &Network, host: u32) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &network.host(host)]);
        command.arg(self.command.get_program()).args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.current_dir(self.scene.folder.path()).stdin(Stdio::null());
        self.command = command;
        self
    }

    /// Starts it.
    pub fn start(self) -> Running {
        Running::start(self.command, self.scene.folder.path())
    }

    /// Runs it to its end, after which none of its processes may be left.
    #[track_caller]
    pub fn run(self) -> Ended {
        let scene = self.scene;
        let ended = self.start().finish();
        let left = scene.processes();
        assert!(left.is_empty(), "{left:?} outlived launch\n{ended}");
        ended
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the scene can be written");
    for entry in std::fs::read_dir(from).expect("the folder can be read") {
        let entry = entry.expect("the folder can be read");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("the scene can be written");
        }
    }
}

/// Asserts that a run folder holds no result, nor a part of one: no model, and every checkpoint that claims to be one has
/// all of its files in their sizes.
#[track_caller]
pub fn assert_nothing_half_written(run: &Path) {
    for entry in std::fs::read_dir(run).into_iter().flatten() {
        let name = entry.expect("the run folder can be read").file_name();
        let name = name.to_string_lossy();
        assert!(!name.starts_with("model"), "{name} is in the folder of a run that failed");
    }
    for step in checkpoints(run) {
        let manifest = step.join("manifest.json");
        if !manifest.exists() {
            continue;
        }
        let manifest = json(&manifest);
        let files = manifest["files"].as_array().expect("a manifest lists its files");
        assert!(!files.is_empty(), "{manifest}");
        for file in files {
            let path = step.join(file["name"].as_str().expect("a file has a name"));
            let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
            assert_eq!(Some(bytes), file["bytes"].as_u64(), "{}", path.display());
        }
    }
}

/// The steps' folders of a run, oldest first.
pub fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten();
    let mut steps: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    steps.sort();
    steps
}
