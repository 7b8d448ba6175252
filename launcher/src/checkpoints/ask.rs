//! The command `checkpoint`: asks a run that is at work for a checkpoint, and waits for it.

use std::path::Path;
use std::time::{Duration, Instant};

use zerofold_checkpoint::{published_steps, step_directory};

use crate::at_work;
use crate::error::LaunchError;
use crate::run_folder::RunFolder;
use crate::terminal::Terminal;
use crate::watch;

/// How often the run's folder is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a step, the save before and this one may take together.
const PATIENCE: Duration = Duration::from_secs(1800);
/// How often it is asked what the run waits for, while nothing is saved.
const ASK_WHY: Duration = Duration::from_secs(5);

/// Returns once the run in `folder` has saved a checkpoint that it had not when this was called. Why it takes long is told, where the
/// run can be asked: on several hosts with the token in the environment.
///
/// # Errors
/// Nobody is at work there, or not where this can reach it; the run ends, or saves nothing.
pub fn ask(folder: &Path, terminal: &Terminal) -> Result<u8, LaunchError> {
    let run = RunFolder::new(folder);
    let refused = |message: String, hint: &str| {
        Err(LaunchError::RunFolder { path: folder.to_owned(), message, hint: hint.to_owned() })
    };
    let lock = run.lock_path();
    if !at_work::is_held(&lock) {
        return refused("no launch is at work in it".to_owned(), "give the output_dir of a run that is being trained");
    }
    let pid = std::fs::read_to_string(&lock).unwrap_or_default().trim().parse::<u32>().ok();
    let Some(pid) = pid.filter(|pid| at_work::holds(*pid, &lock)) else {
        let hint = "ask on the host, in the container and as the user that it runs on, in and as";
        return refused("the launch at work in it cannot be seen from here".to_owned(), hint);
    };
    let newest = || published_steps(&run.checkpoints()).map(|steps| steps.last().copied());
    let before = newest()?;
    let failed = failures(&run.metrics())?.len();
    // SAFETY: takes numbers only; whoever has this number holds the run's lock.
    if unsafe { libc::kill(pid as libc::pid_t, libc::SIGUSR1) } != 0 {
        return Err(LaunchError::system(format!("signal launch (pid {pid})"))(std::io::Error::last_os_error()));
    }
    let asked = Instant::now();
    let (mut ask_why, mut said) = (asked + ASK_WHY, None);
    loop {
        // Looked at first: a run may save and end between two looks.
        let (works, after) = (at_work::is_held(&lock), newest()?);
        if let Some(step) = after.filter(|_| after > before) {
            let directory = step_directory(&run.checkpoints(), step);
            terminal.result(&format!("checkpoint of step {step}: {}", directory.display()));
            return Ok(0);
        }
        if let Some(reason) = failures(&run.metrics())?.get(failed) {
            return refused(format!("the save failed: {reason}"), "the run goes on; mend that and ask again");
        }
        if !works {
            return refused(
                "the run ended without another checkpoint".to_owned(),
                "what launch printed there tells why",
            );
        }
        if asked.elapsed() > PATIENCE {
            let message = format!("no checkpoint was saved within {} s", PATIENCE.as_secs());
            return refused(message, "what launch prints there tells whether the save failed");
        }
        if Instant::now() >= ask_why {
            let why = watch::held_up(&run);
            if let Some(why) = why.as_ref().filter(|why| said.as_ref() != Some(*why)) {
                terminal.complain(&format!("still waiting: {why}"));
            }
            (ask_why, said) = (Instant::now() + ASK_WHY, why);
        }
        std::thread::sleep(LOOK);
    }
}

/// Why saves of a run failed, as its `metrics.jsonl` tells.
fn failures(metrics: &Path) -> Result<Vec<String>, LaunchError> {
    let text = match std::fs::read_to_string(metrics) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other.map_err(LaunchError::system(format!("read {}", metrics.display())))?,
    };
    let failure = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(line.get("checkpoint_failed")?.as_str()?.to_owned())
    };
    // Most lines are steps.
    Ok(text.lines().filter(|line| line.contains("\"checkpoint_failed\"")).filter_map(failure).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_folder::LOCK;
    use std::fs::File;

    #[test]
    fn failed_saves_are_read_from_the_metrics() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        assert!(failures(&path).unwrap().is_empty());
        let mut metrics = crate::metrics::MetricsFile::create(&path).unwrap();
        metrics.checkpoint_failed(7, "rank 1: no \"room\"").unwrap();
        std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        assert_eq!(failures(&path).unwrap(), ["rank 1: no \"room\""]);
    }

    #[test]
    fn a_folder_in_which_nobody_works_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let told = || ask(folder.path(), &Terminal::silent()).unwrap_err().to_string();
        assert!(told().contains("no launch is at work in it\nhint: "), "{}", told());
        std::fs::write(folder.path().join(LOCK), "1\n").unwrap();
        assert!(told().contains("no launch is at work in it\nhint: "), "{}", told());
        // Held, but not by the process whose number is in it.
        let held = File::open(folder.path().join(LOCK)).unwrap();
        held.lock().unwrap();
        assert!(told().contains("cannot be seen from here\nhint: "), "{}", told());
    }
}
