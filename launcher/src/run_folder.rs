//! The run folder: `output_dir/{config.resolved.yaml, metrics.jsonl, plan.json, profile.json, launch.lock, control.json,
//! generation, initial_model/, logs/, runs/, data/, checkpoints/, model/}`.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use zerofold_checkpoint::publish::{MANIFEST_FILE, step_of};
use zerofold_checkpoint::{
    ClearedWhat, Found, STORAGE_PROOF, StagingDirectory, newest_fitting, prepare_to_resume, published_steps,
    step_directory, strangers, verify,
};

use crate::error::LaunchError;
use crate::worker_command::FIRST_GENERATION;

/// What a start leaves that never reached a step. A folder with nothing else in it is not a run.
const BEFORE_THE_FIRST_STEP: [&str; 11] = [
    "config.resolved.yaml",
    "metrics.jsonl",
    "plan.json",
    LOCK,
    CONTROL,
    GENERATION,
    INITIAL_MODEL,
    "data",
    "logs",
    "runs",
    "checkpoints",
];
/// The file that a `launch` at work holds; it has its pid, and stays when the run is over.
pub(crate) const LOCK: &str = "launch.lock";
/// The file that tells where the `launch` at work can be asked.
const CONTROL: &str = "control.json";
/// The folder of the model that a job began with, where one was made for it.
const INITIAL_MODEL: &str = "initial_model";
/// The file with the number of the newest membership that the job had.
const GENERATION: &str = "generation";

/// What `--resume` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The newest whole checkpoint.
    Newest,
    /// This step's folder: a path, or its name under `checkpoints/`.
    Step(PathBuf),
}

/// The paths of one run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// The folder at `root`; nothing is touched yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        RunFolder { root: root.into() }
    }

    /// `output_dir` itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The configuration that the workers read.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.resolved.yaml")
    }

    /// One object a step.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// What was planned, and what was measured.
    pub fn plan(&self) -> PathBuf {
        self.root.join("plan.json")
    }

    /// The file that the `launch` at work holds.
    pub(crate) fn lock_path(&self) -> PathBuf {
        self.root.join(LOCK)
    }

    /// Where the `launch` at work can be asked, while it is there.
    pub fn control(&self) -> PathBuf {
        self.root.join(CONTROL)
    }

    /// TensorBoard's event files, a folder a run, unless `logging_dir` names another.
    pub fn events(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// The timeline of all ranks, where one was asked for.
    pub fn profile(&self) -> PathBuf {
        self.root.join("profile.json")
    }

    /// Everything that a rank printed.
    pub fn log(&self, rank: u32) -> PathBuf {
        self.root.join("logs").join(format!("rank-{rank}.log"))
    }

    /// The model that a job began with, where one was made for it.
    pub fn initial_model(&self) -> PathBuf {
        self.root.join(INITIAL_MODEL)
    }

    /// The tokenised rows to train on.
    pub fn train_data(&self) -> PathBuf {
        self.root.join("data").join("train.safetensors")
    }

    /// The tokenised held-out rows.
    pub fn eval_data(&self) -> PathBuf {
        self.root.join("data").join("eval.safetensors")
    }

    /// The tokenised rows that the Fisher information is estimated on.
    pub fn ewc_data(&self) -> PathBuf {
        self.root.join("data").join("ewc.safetensors")
    }

    /// One folder a saved step.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// Takes the folder for this process until the file is dropped; `None` where there is none to take yet, since what
    /// turns out to be no run folder of ours is left as it is. `told` gets a line where the file system has no locks.
    pub fn lock_existing(&self, told: impl FnOnce(String)) -> Result<Option<File>, LaunchError> {
        match self.lock_path().is_file() {
            true => self.lock(told).map(Some),
            false => Ok(None),
        }
    }

    /// Takes the folder, which is made if need be, for this process until the file is dropped.
    pub fn lock(&self, told: impl FnOnce(String)) -> Result<File, LaunchError> {
        let path = self.lock_path();
        let open = || {
            std::fs::create_dir_all(&self.root)?;
            File::options().read(true).write(true).create(true).truncate(false).open(&path)
        };
        let mut file = open().map_err(|error| {
            self.error(format!("cannot write {}: {error}", path.display()), "give a folder that can be written")
        })?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = std::fs::read_to_string(&path).unwrap_or_default();
                return Err(self.error(
                    format!("another launch (pid {}) is using this folder", pid.trim()),
                    "wait until it ends or stop it, or choose another output_dir",
                ));
            }
            // Some network file systems have no locks; a job need not stop at that.
            Err(TryLockError::Error(error)) => {
                told(format!("warning: {} cannot be locked ({error}): start no second launch in it", path.display()));
            }
        }
        let pid = std::process::id();
        let written = file.set_len(0).and_then(|()| writeln!(file, "{pid}"));
        written.map_err(LaunchError::system(format!("write {}", path.display())))?;
        Ok(file)
    }

    /// Checks that a new run may begin here: the folder does not exist, is empty, or holds a start that never reached a step.
    pub fn check_fresh(&self) -> Result<(), LaunchError> {
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.error(error.to_string(), "give a folder that can be read and written")),
        };
        for entry in entries {
            let entry = entry.map_err(LaunchError::system(format!("read {}", self.root.display())))?;
            let name = entry.file_name();
            let ours = BEFORE_THE_FIRST_STEP.iter().any(|known| name == *known);
            let has_metrics = name == "metrics.jsonl" && entry.metadata().is_ok_and(|metadata| metadata.len() > 0);
            let has_saves = name == "checkpoints" && !is_empty_folder(&entry.path());
            if !ours || has_metrics || has_saves {
                let message = format!("the folder is not empty (it holds {})", name.to_string_lossy());
                return Err(self.error(
                    message,
                    "give --resume to go on with the run in it, or choose another output_dir for a new one",
                ));
            }
        }
        Ok(())
    }

    /// The checkpoint to go on from; the newest one is the newest that is whole and `fits`, which tells why one does not. `told`
    /// gets a line for each that is skipped, with the reason.
    pub fn find_resume(
        &self,
        resume: &Resume,
        fits: impl FnMut(&Found) -> Result<(), String>,
        mut told: impl FnMut(String),
    ) -> Result<Found, LaunchError> {
        let checkpoints = self.checkpoints();
        match resume {
            Resume::Step(path) if path.is_dir() => {
                if step_of(path).is_none() && !path.join(MANIFEST_FILE).exists() {
                    let message = format!("--resume names {}, which is no checkpoint", path.display());
                    return Err(
                        self.error(message, "name a folder such as output_dir/checkpoints/step-00000020, or its step")
                    );
                }
                Ok(verify(path)?)
            }
            Resume::Step(name) => {
                let step = name.to_str().and_then(|name| name.parse().ok());
                let directory = step.map_or_else(|| checkpoints.join(name), |step| step_directory(&checkpoints, step));
                if !directory.is_dir() {
                    let is_path = name.components().count() > 1;
                    let missing = if is_path { name } else { &directory };
                    let message = format!("there is no checkpoint {}", missing.display());
                    let steps: Vec<String> = published_steps(&checkpoints)?.iter().map(u64::to_string).collect();
                    let hint = match steps.is_empty() {
                        true => {
                            "no step of this run was saved: leave --resume out and choose an empty output_dir".into()
                        }
                        false => format!(
                            "saved are the steps {}: name one of them, or leave it out for the newest whole one",
                            steps.join(", ")
                        ),
                    };
                    return Err(self.error(message, hint));
                }
                Ok(verify(&directory)?)
            }
            Resume::Newest => {
                let (found, skipped) = newest_fitting(&checkpoints, None, fits)?;
                for skipped in strangers(&checkpoints)?.iter().chain(&skipped) {
                    told(format!("skipped {}: {}", skipped.directory.display(), skipped.reason));
                }
                found.ok_or_else(|| {
                    let message = match skipped.len() {
                        0 => "there is no checkpoint to resume from".to_owned(),
                        count => format!("none of its {count} checkpoints is a whole one of this model"),
                    };
                    self.error(message, "leave --resume out and choose an empty output_dir to start from the beginning")
                })
            }
        }
    }

    /// Whether any checkpoint was published here, whole or not.
    pub fn has_checkpoint(&self) -> Result<bool, LaunchError> {
        Ok(!published_steps(&self.checkpoints())?.is_empty())
    }

    /// Clears what stands in the way of going on after `found`. `told` gets a line for each folder.
    pub fn clear_after(&self, found: &Found, mut told: impl FnMut(String)) -> Result<(), LaunchError> {
        let checkpoints = self.checkpoints();
        let own = step_directory(&checkpoints, found.manifest.step);
        let same = |path: &Path| path.canonicalize().ok();
        if same(&own) != same(&found.directory) {
            let message = format!("{} is not a checkpoint of this run", found.directory.display());
            return Err(self.error(message, "resume with the output_dir that the checkpoint lies in"));
        }
        for leftover in StagingDirectory::remove_leftovers(&self.root.join("model"))? {
            told(format!("removed {}, an unfinished export", leftover.display()));
        }
        for cleared in prepare_to_resume(&checkpoints, found.manifest.step)? {
            told(match cleared.what {
                ClearedWhat::RemovedUnfinished => {
                    format!("removed {}, an unfinished save", cleared.directory.display())
                }
                ClearedWhat::MovedTo(aside) => {
                    format!("moved {} to {}: its step will be done again", cleared.directory.display(), aside.display())
                }
            });
        }
        Ok(())
    }

    /// The number of this membership: higher than that of any before it in this folder, and than `stored`, the highest in the
    /// store.
    pub fn next_generation(&self, resume: Option<&Found>, stored: u64) -> u64 {
        let text = std::fs::read_to_string(self.root.join(GENERATION)).unwrap_or_default();
        // The checkpoint may have been copied here.
        let before = text.trim().parse().unwrap_or(0).max(resume.map_or(0, |found| found.manifest.generation));
        before.max(stored).saturating_add(FIRST_GENERATION)
    }

    /// Notes it, before any worker of this membership is started.
    pub fn write_generation(&self, generation: u64) -> Result<(), LaunchError> {
        let path = self.root.join(GENERATION);
        let write = || {
            let mut file = File::create(&path)?;
            writeln!(file, "{generation}")?;
            file.sync_all()
        };
        write().map_err(LaunchError::system(format!("write {}", path.display())))
    }

    /// Makes the folders; a fresh run gets empty logs.
    pub fn create(&self, ranks: u32, fresh: bool) -> Result<(), LaunchError> {
        for name in ["logs", "data", "checkpoints"] {
            let path = self.root.join(name);
            std::fs::create_dir_all(&path).map_err(|error| {
                self.error(format!("cannot create {}: {error}", path.display()), "give a folder that can be written")
            })?;
        }
        for rank in (0..ranks).filter(|_| fresh) {
            let log = self.log(rank);
            std::fs::File::create(&log).map_err(LaunchError::system(format!("write {}", log.display())))?;
        }
        Ok(())
    }

    fn error(&self, message: impl Into<String>, hint: impl Into<String>) -> LaunchError {
        LaunchError::RunFolder { path: self.root.clone(), message: message.into(), hint: hint.into() }
    }
}

/// Nothing is in a folder, but perhaps what a killed job wrote to show its ranks that they see it.
fn is_empty_folder(path: &Path) -> bool {
    let ours = |entry: std::io::Result<std::fs::DirEntry>| entry.is_ok_and(|entry| entry.file_name() == STORAGE_PROOF);
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.all(ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_without_a_run_is_fresh() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::new(folder.path().join("run"));
        run.check_fresh().unwrap();
        run.create(2, true).unwrap();
        std::fs::write(run.checkpoints().join(STORAGE_PROOF), "").unwrap();
        run.check_fresh().unwrap();
        let step = run.checkpoints().join("step-00000001");
        std::fs::create_dir(&step).unwrap();
        let error = run.check_fresh().unwrap_err().to_string();
        assert!(error.contains("it holds checkpoints") && error.contains("--resume"), "{error}");
        std::fs::remove_dir(step).unwrap();
        std::fs::write(run.metrics(), "").unwrap();
        run.check_fresh().unwrap();
        std::fs::write(run.metrics(), "{}\n").unwrap();
        assert!(run.check_fresh().is_err());
    }

    #[test]
    fn resuming_without_a_checkpoint_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::new(folder.path());
        run.create(1, true).unwrap();
        std::fs::create_dir(run.checkpoints().join("step-00000007")).unwrap();
        let any = |_: &Found| Ok(());
        let mut told = Vec::new();
        let error = run.find_resume(&Resume::Newest, any, |line| told.push(line)).unwrap_err().to_string();
        assert!(error.contains("none of its 1 checkpoints is a whole one of this model"), "{error}");
        assert!(told[0].contains("step-00000007") && told[0].contains("manifest.json"), "{told:?}");
        assert!(run.find_resume(&Resume::Step("step-00000007".into()), any, |_| {}).is_err());
        let missing = || run.find_resume(&Resume::Step("99".into()), any, |_| {}).unwrap_err().to_string();
        assert!(missing().contains("step-00000099\nhint: no step of this run was saved"), "{}", missing());
        for step in ["step-00000007", "step-00000020"] {
            let folder = run.checkpoints().join(step);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("manifest.json"), "").unwrap();
        }
        assert!(missing().contains("\nhint: saved are the steps 7, 20: name one of them"), "{}", missing());
    }

    #[test]
    fn a_folder_is_used_by_one_launch_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunFolder::new(folder.path().join("run"));
        let said = |line: String| panic!("{line}");
        assert!(run.lock_existing(said).unwrap().is_none() && !run.root().exists());
        let held = run.lock(said).unwrap();
        run.check_fresh().unwrap();
        let error = run.lock_existing(said).unwrap_err().to_string();
        let expected = format!("another launch (pid {}) is using this folder\nhint: ", std::process::id());
        assert!(error.contains(&expected), "{error}");
        drop(held);
        assert!(run.lock_existing(said).unwrap().is_some());
    }
}
