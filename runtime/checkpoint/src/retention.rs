//! Deleting old checkpoints, and clearing away what dead runs left.

use crate::disk::{list, sync_directory, unique_suffix};
use crate::error::{CheckpointError, Result};
use crate::fault;
use crate::publish::{MANIFEST_FILE, MODEL_DIRECTORY, open_step, steps};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder that was cleared away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleared {
    /// The step's folder.
    pub directory: PathBuf,
    /// What became of it.
    pub what: ClearedWhat,
}

/// What became of a step's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClearedWhat {
    /// Its save was never finished: it is gone.
    RemovedUnfinished,
    /// It was published, and stood in the way of the steps to come: it is kept under this name, which nothing looks at.
    MovedTo(PathBuf),
}

/// Which checkpoints stay when a newer one was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// So many of the newest, at least one.
    pub newest: usize,
    /// Beside these, those of steps that this number divides.
    pub every: Option<u64>,
    /// And that of this step.
    pub best: Option<u64>,
}

/// Which of these steps (`(step, whole)`) may go. What is not whole is never in the answer, since it may be a save that goes
/// on just now.
pub fn plan_deletion(steps: &[(u64, bool)], keep: Retention) -> Vec<u64> {
    let mut whole: Vec<u64> = steps.iter().filter(|(_, whole)| *whole).map(|(step, _)| *step).collect();
    whole.sort_unstable();
    whole.truncate(whole.len().saturating_sub(keep.newest.max(1)));
    whole.retain(|step| keep.best != Some(*step) && !keep.every.is_some_and(|every| step.is_multiple_of(every)));
    whole
}

/// Deletes whole checkpoints that need not stay and gives the folders that are gone. Call it after a newer one was published.
pub fn delete_old(checkpoints: &Path, keep: Retention) -> Result<Vec<PathBuf>> {
    let steps = steps(checkpoints)?;
    let states: Vec<_> = steps.iter().map(|(step, directory)| (*step, open_step(directory).is_ok())).collect();
    let plan = plan_deletion(&states, keep);
    let mut deleted = Vec::new();
    for (_, directory) in steps.into_iter().filter(|(step, _)| plan.contains(step)) {
        remove_step(&directory)?;
        deleted.push(directory);
    }
    if !deleted.is_empty() {
        sync_directory(checkpoints)?;
    }
    Ok(deleted)
}

/// Makes way for a run that goes on after `step` (0: from the start), before any of its workers is started: folders whose save was
/// never finished are removed; published ones of later steps (not whole, or left behind by choosing an older one) would stand
/// in the way when those steps are saved again, and are moved aside. `step` itself and older published ones stay.
pub fn prepare_to_resume(checkpoints: &Path, step: u64) -> Result<Vec<Cleared>> {
    let mut cleared = Vec::new();
    for (found, directory) in steps(checkpoints)? {
        let published = directory.join(MANIFEST_FILE).exists();
        let what = match published {
            false => {
                remove_step(&directory)?;
                ClearedWhat::RemovedUnfinished
            }
            true if found > step => {
                let mut name = directory.as_os_str().to_owned();
                name.push(format!(".replaced-{}", unique_suffix()));
                let aside = PathBuf::from(name);
                fs::rename(&directory, &aside).map_err(CheckpointError::io("move aside", &directory))?;
                ClearedWhat::MovedTo(aside)
            }
            true => continue,
        };
        cleared.push(Cleared { directory, what });
    }
    if !cleared.is_empty() {
        sync_directory(checkpoints)?;
    }
    Ok(cleared)
}

/// Removes a step's folder whose save failed, once nobody writes to it any more. One with a manifest is a checkpoint, and stays.
pub fn discard_unfinished(directory: &Path) -> Result<()> {
    if !directory.exists() || directory.join(MANIFEST_FILE).exists() {
        return Ok(());
    }
    remove_step(directory)?;
    directory.parent().map_or(Ok(()), sync_directory)
}

/// Removes a step's folder, its manifest first: killed half-way, it is no checkpoint.
fn remove_step(directory: &Path) -> Result<()> {
    let manifest = directory.join(MANIFEST_FILE);
    if manifest.exists() {
        fs::remove_file(&manifest).map_err(CheckpointError::io("delete", &manifest))?;
        sync_directory(directory)?;
        fault::reach(fault::DELETING);
    }
    for path in list(directory)? {
        // The only folder that is written here is the model's: another is somebody else's, and the error says so.
        let removed = if is_model(&path) { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(CheckpointError::io("delete", &path))?;
    }
    fs::remove_dir(directory).map_err(CheckpointError::io("delete", directory))
}

/// The model beside a checkpoint's shards, or what is left of an attempt to write it.
fn is_model(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(MODEL_DIRECTORY));
    name.is_some_and(|rest| rest.is_empty() || rest.starts_with(".partial-"))
        && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::tests::{save, write_step};
    use crate::publish::{newest_whole, publish, step_directory};

    fn newest(newest: usize) -> Retention {
        Retention { newest, every: None, best: None }
    }

    #[test]
    fn the_plan_keeps_the_newest_whole_ones() {
        type Case = (&'static [(u64, bool)], Retention, &'static [u64]);
        let all: &[(u64, bool)] = &[(1, true), (2, true), (3, true), (4, true), (5, true)];
        let cases: [Case; 10] = [
            (&[], newest(1), &[]),
            (&[(1, true)], newest(0), &[]),
            (&[(3, true), (1, true), (2, true)], newest(1), &[1, 2]),
            (&[(1, true), (2, true), (3, false)], newest(1), &[1]),
            (&[(1, true), (2, false), (3, false)], newest(1), &[]),
            (&[(1, true), (2, true)], newest(5), &[]),
            (all, Retention { best: Some(2), ..newest(1) }, &[1, 3, 4]),
            (all, Retention { best: Some(5), ..newest(1) }, &[1, 2, 3, 4]),
            (all, Retention { every: Some(2), ..newest(2) }, &[1, 3]),
            (all, Retention { every: Some(3), best: Some(1), ..newest(1) }, &[2, 4]),
        ];
        for (steps, keep, expected) in cases {
            assert_eq!(plan_deletion(steps, keep), expected, "{steps:?} {keep:?}");
        }
    }

    #[test]
    fn nothing_goes_before_a_newer_one_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let first = save(folder.path(), 10);
        let (second, manifest) = write_step(folder.path(), 20);
        assert_eq!(delete_old(folder.path(), newest(1)).unwrap(), Vec::<PathBuf>::new());
        assert!(first.exists() && second.exists());
        publish(&second, &manifest).unwrap();
        assert_eq!(delete_old(folder.path(), newest(1)).unwrap(), [first]);
        assert_eq!(newest_whole(folder.path()).unwrap().0.unwrap().directory, second);
    }

    #[test]
    fn a_step_goes_with_the_model_beside_it_and_with_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let first = save(folder.path(), 10);
        for name in ["model", "model.partial-7"] {
            fs::create_dir(first.join(name)).unwrap();
            fs::write(first.join(name).join("config.json"), "{}").unwrap();
        }
        let second = save(folder.path(), 20);
        fs::create_dir(second.join("models")).unwrap();
        save(folder.path(), 30);
        assert!(delete_old(folder.path(), newest(1)).unwrap_err().to_string().contains("models"));
        assert!(!first.exists() && second.join("models").exists());
    }

    #[test]
    fn a_resumed_run_finds_its_way_free() {
        let folder = tempfile::tempdir().unwrap();
        let older = save(folder.path(), 10);
        let chosen = save(folder.path(), 20);
        let (unfinished, _) = write_step(folder.path(), 15);
        let later = save(folder.path(), 30);
        fs::write(folder.path().join("step-notes"), "").unwrap();
        let cleared = prepare_to_resume(folder.path(), 20).unwrap();
        assert_eq!(cleared.len(), 2);
        assert_eq!(cleared[0], Cleared { directory: unfinished.clone(), what: ClearedWhat::RemovedUnfinished });
        let ClearedWhat::MovedTo(aside) = &cleared[1].what else { panic!("{cleared:?}") };
        assert!(aside.join(MANIFEST_FILE).exists());
        assert!(older.exists() && chosen.exists() && !unfinished.exists() && !later.exists());
        assert_eq!(newest_whole(folder.path()).unwrap().0.unwrap().directory, chosen);
        // The same steps can be saved again.
        save(folder.path(), 15);
        save(folder.path(), 30);
    }

    #[test]
    fn a_step_killed_while_it_is_deleted_is_no_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), 10);
        let directory = save(folder.path(), 20);
        fs::create_dir(directory.join("somebody's")).unwrap();
        let error = remove_step(&directory).unwrap_err().to_string();
        assert!(error.contains("cannot delete"), "{error}");
        let (found, skipped) = newest_whole(folder.path()).unwrap();
        assert_eq!(found.unwrap().directory, step_directory(folder.path(), 10));
        assert_eq!(skipped.len(), 1);
    }
}
