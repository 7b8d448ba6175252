//! The checkpoint to go on from, where there is a store beside the run's folder: the newest whole one of both.

use std::path::PathBuf;

use zerofold_checkpoint::{Found, IncomingStep, publish::step_of, steps, verify};
use zerofold_store::{CheckpointStore, StoredStep};

use crate::error::LaunchError;
use crate::run_folder::{Resume, RunFolder};
use crate::terminal::Terminal;

/// Where a step is.
#[derive(Debug, PartialEq, Eq)]
enum Candidate {
    /// In the store.
    Stored(StoredStep),
    /// In the run's folder.
    Local(u64, PathBuf),
}

impl Candidate {
    /// Later ones are looked at first.
    fn order(&self) -> (u64, bool) {
        match self {
            Candidate::Stored(stored) => (stored.step, false),
            Candidate::Local(step, _) => (*step, true),
        }
    }
}

/// Finds it, and brings it here if it is in the store. What is damaged, or where the newest is asked for is none that `fits`, is told,
/// and the next older one is taken.
pub(crate) fn find(
    run: &RunFolder,
    store: &CheckpointStore,
    resume: &Resume,
    mut fits: impl FnMut(&Found) -> Result<(), String>,
    terminal: &Terminal,
) -> Result<Found, LaunchError> {
    let checkpoints = run.checkpoints();
    for leftover in IncomingStep::remove_leftovers(&checkpoints)? {
        terminal.complain(&format!("removed {}, an unfinished download", leftover.display()));
    }
    let stored = store.steps()?.into_iter().filter(StoredStep::is_published).map(Candidate::Stored);
    let local = steps(&checkpoints)?.into_iter().map(|(step, directory)| Candidate::Local(step, directory));
    let mut candidates: Vec<Candidate> = stored.chain(local).collect();
    if let Resume::Step(name) = resume {
        let step = name.to_str().and_then(|name| name.parse().ok()).or_else(|| step_of(name));
        let in_store = |candidate: &Candidate| matches!(candidate, Candidate::Stored(it) if Some(it.step) == step);
        // A path, or a step that is in the folder alone, is as without a store.
        if name.is_dir() || !candidates.iter().any(in_store) {
            return run.find_resume(resume, fits, |line| terminal.complain(&line));
        }
        candidates.retain(|candidate| Some(candidate.order().0) == step);
    }
    candidates.sort_by_key(Candidate::order);
    // What is asked for by its name is refused elsewhere.
    let asked = matches!(resume, Resume::Step(_));
    let mut count = 0;
    while let Some(candidate) = candidates.pop() {
        count += 1;
        let (place, reason) = match candidate {
            Candidate::Local(_, directory) => match verify(&directory).map(|found| (fits(&found), found)) {
                Ok((Ok(()), found)) => return Ok(found),
                Ok((Err(_), found)) if asked => return Ok(found),
                Ok((Err(reason), _)) => (directory.display().to_string(), reason),
                Err(error) => (directory.display().to_string(), error.reason()),
            },
            Candidate::Stored(stored) => {
                terminal.say(&format!("fetching {}", store.step_url(stored.step)));
                match store.fetch(&stored, &checkpoints).map(|found| (fits(&found), found)) {
                    Ok((Ok(()), found)) => return Ok(found),
                    Ok((Err(_), found)) if asked => return Ok(found),
                    Ok((Err(reason), _)) => (store.step_url(stored.step), reason),
                    Err(error) if error.is_damage() => (store.step_url(stored.step), error.reason()),
                    // An older one in place of what could not be reached would lose steps without need.
                    Err(error) => return Err(error.into()),
                }
            }
        };
        terminal.complain(&format!("skipped {place}: {reason}"));
    }
    let message = match count {
        0 => format!("there is no checkpoint to resume from, nor is one in {}", store.url()),
        count => format!("none of {count} checkpoints in it and in {} is whole", store.url()),
    };
    let hint = "leave --resume out and choose an empty output_dir and prefix to start from the beginning".to_owned();
    Err(LaunchError::RunFolder { path: run.root().to_owned(), message, hint })
}

/// Checks that a new run may begin in the store.
pub(crate) fn check_fresh(store: &CheckpointStore, stored: &[StoredStep]) -> Result<(), LaunchError> {
    match stored.iter().rfind(|stored| stored.is_published()) {
        None => Ok(()),
        Some(newest) => Err(LaunchError::usage(
            format!(
                "checkpoint_store: {} holds checkpoints of a run, the newest after step {}",
                store.url(),
                newest.step
            ),
            "give --resume to go on with that run, or choose another prefix for a new one",
        )),
    }
}

/// Clears what stands in the way in the store when a run goes on after `step`.
pub(crate) fn clear_after(store: &CheckpointStore, step: u64, terminal: &Terminal) -> Result<(), LaunchError> {
    for (later, manifest) in store.set_aside_after(step)? {
        let url = store.step_url(later);
        terminal.complain(&format!("set aside {url}: its step will be done again (its manifest is {manifest} now)"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_comes_first_and_the_folder_before_the_store() {
        let stored = |step| Candidate::Stored(StoredStep { step, objects: Default::default() });
        let local = |step| Candidate::Local(step, PathBuf::new());
        let mut candidates = vec![stored(10), stored(20), local(20), local(5), stored(30)];
        candidates.sort_by_key(Candidate::order);
        candidates.reverse();
        assert_eq!(candidates, [stored(30), local(20), stored(20), stored(10), local(5)]);
    }
}
