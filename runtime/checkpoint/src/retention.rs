//! Deleting old checkpoints, and clearing away what dead runs left.

use crate::disk::{list, sync_directory, unique_suffix};
use crate::error::{CheckpointError, Result};
use crate::fault;
use crate::publish::{MANIFEST_FILE, MODEL_DIRECTORY, is_published, open_step, step_of, steps};
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
    /// It was published, or holds what no save writes, and stood in the way of the steps to come: it is kept under this name,
    /// which nothing looks at.
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

/// Deletes whole checkpoints that need not stay and gives the folders that are gone. Those of the steps in `held` are being
/// read and stay for now. Call it after a newer one was published.
pub fn delete_old(checkpoints: &Path, keep: Retention, held: &[u64]) -> Result<Vec<PathBuf>> {
    let steps = steps(checkpoints)?;
    let states: Vec<_> = steps.iter().map(|(step, directory)| (*step, open_step(directory).is_ok())).collect();
    let mut plan = plan_deletion(&states, keep);
    plan.retain(|step| !held.contains(step));
    let (mut deleted, mut stays) = (Vec::new(), Ok(()));
    for (_, directory) in steps.into_iter().filter(|(step, _)| plan.contains(step)) {
        match check_ours(&directory).and_then(|()| remove_step(&directory)) {
            Ok(()) => deleted.push(directory),
            // One that cannot be deleted is no reason to keep the others.
            Err(error) => stays = stays.and(Err(error)),
        }
    }
    if !deleted.is_empty() {
        sync_directory(checkpoints)?;
    }
    stays.map(|()| deleted)
}

/// Makes way for a run that goes on after `step` (0: from the start), before any of its workers is started: folders whose save was
/// never finished are removed; published ones of later steps (not whole, or left behind by choosing an older one) would stand
/// in the way when those steps are saved again, and are moved aside, and so is whatever else has the name of such a step: it
/// may be somebody's. `step` itself and older published ones stay.
pub fn prepare_to_resume(checkpoints: &Path, step: u64) -> Result<Vec<Cleared>> {
    let mut cleared = Vec::new();
    let named = if checkpoints.exists() { list(checkpoints)? } else { Vec::new() };
    for directory in named {
        let Some(found) = step_of(&directory) else { continue };
        let what = match is_unfinished(&directory)? {
            true => {
                remove_step(&directory)?;
                ClearedWhat::RemovedUnfinished
            }
            false if found > step => ClearedWhat::MovedTo(set_aside(&directory)?),
            false => continue,
        };
        cleared.push(Cleared { directory, what });
    }
    if !cleared.is_empty() {
        sync_directory(checkpoints)?;
    }
    Ok(cleared)
}

/// Gives a step's folder a name that nothing looks at, and returns it.
pub fn set_aside(directory: &Path) -> Result<PathBuf> {
    let mut name = directory.as_os_str().to_owned();
    name.push(format!(".replaced-{}", unique_suffix()));
    let aside = PathBuf::from(name);
    fs::rename(directory, &aside).map_err(CheckpointError::io("move aside", directory))?;
    Ok(aside)
}

/// Removes a step's folder whose save failed, once nobody writes to it any more. One with a manifest is a checkpoint, and stays.
pub fn discard_unfinished(directory: &Path) -> Result<()> {
    if !directory.exists() || is_published(directory) {
        return Ok(());
    }
    remove_step(directory)?;
    directory.parent().map_or(Ok(()), sync_directory)
}

/// Whether a folder is what a save that was never finished leaves, or a deletion: no manifest, and nothing that somebody else put
/// there. A model is ours beside our shards, which a deletion takes after it.
fn is_unfinished(directory: &Path) -> Result<bool> {
    if !fs::symlink_metadata(directory).is_ok_and(|metadata| metadata.is_dir()) || is_published(directory) {
        return Ok(false);
    }
    let (ours, others): (Vec<_>, Vec<_>) = list(directory)?.into_iter().partition(|path| is_file_of_a_save(path));
    Ok(others.is_empty() || !ours.is_empty() && others.iter().all(|path| is_model(path)))
}

/// Whether a save writes files of this name.
fn is_file_of_a_save(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let shard = name.strip_prefix("rank-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let numbers = |rest: &str| rest.chars().all(|letter| letter.is_ascii_digit() || "-of.g".contains(letter));
    let file = fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_dir());
    file && (name.starts_with(MANIFEST_FILE) || shard.is_some_and(numbers))
}

/// Removes a step's folder, its manifest first: killed half-way, it is no checkpoint. What no save writes stays, and with it
/// the folder, and the error says so.
fn remove_step(directory: &Path) -> Result<()> {
    let manifest = directory.join(MANIFEST_FILE);
    if is_published(directory) {
        fs::remove_file(&manifest).map_err(CheckpointError::io("delete", &manifest))?;
        sync_directory(directory)?;
        fault::reach(fault::DELETING);
    }
    for path in list(directory)? {
        if is_model(&path) {
            fs::remove_dir_all(&path).map_err(CheckpointError::io("delete", &path))?;
        } else if is_file_of_a_save(&path) {
            fs::remove_file(&path).map_err(CheckpointError::io("delete", &path))?;
        }
    }
    check_ours(directory)?;
    fs::remove_dir(directory).map_err(CheckpointError::io("delete", directory))
}

/// Nothing is in a step's folder but what saves write.
fn check_ours(directory: &Path) -> Result<()> {
    let paths = list(directory)?;
    let Some(other) = paths.iter().find(|path| !is_model(path) && !is_file_of_a_save(path)) else { return Ok(()) };
    let name = other.file_name().unwrap_or_default().display();
    let reason = std::io::Error::other(format!("no save wrote {name}, which is in it"));
    Err(CheckpointError::io("delete", directory)(reason))
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
    use crate::newest::newest_whole;
    use crate::publish::tests::{save, write_step};
    use crate::publish::{publish, step_directory};

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
        assert_eq!(delete_old(folder.path(), newest(1), &[]).unwrap(), Vec::<PathBuf>::new());
        assert!(first.exists() && second.exists());
        publish(&second, &manifest).unwrap();
        assert_eq!(delete_old(folder.path(), newest(1), &[10]).unwrap(), Vec::<PathBuf>::new(), "it is being read");
        assert_eq!(delete_old(folder.path(), newest(1), &[20]).unwrap(), [first]);
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
        assert!(delete_old(folder.path(), newest(1), &[]).unwrap_err().to_string().contains("models"));
        assert!(!first.exists() && second.join("models").exists());
        assert!(second.join(MANIFEST_FILE).exists(), "what cannot be deleted whole is left whole");
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

    /// A folder of a step that is not saved yet, with files that no save writes, and a file of such a name.
    #[test]
    fn what_somebody_else_put_there_is_moved_and_never_removed() {
        let folder = tempfile::tempdir().unwrap();
        let chosen = save(folder.path(), 20);
        for step in [10, 99] {
            let (directory, _) = write_step(folder.path(), step);
            fs::write(directory.join("thesis.tex"), "all of it").unwrap();
        }
        fs::write(step_directory(folder.path(), 98), "a file").unwrap();
        let cleared = prepare_to_resume(folder.path(), 20).unwrap();
        let moved: Vec<_> = cleared
            .iter()
            .map(|cleared| match &cleared.what {
                ClearedWhat::MovedTo(aside) => aside.clone(),
                ClearedWhat::RemovedUnfinished => panic!("{cleared:?}"),
            })
            .collect();
        assert_eq!(moved.len(), 2, "{cleared:?}");
        assert_eq!(fs::read(&moved[0]).unwrap(), b"a file");
        assert_eq!(fs::read(moved[1].join("thesis.tex")).unwrap(), b"all of it");
        assert_eq!(list(&moved[1]).unwrap().len(), 3, "the shards are with it");
        // An older step stands in nobody's way.
        assert!(step_directory(folder.path(), 10).join("thesis.tex").exists() && chosen.exists());
        // A model that nobody's shards are beside is somebody's.
        for (name, expected) in [("model", false), ("rank-00000-of-00001.g1.safetensors", true)] {
            fs::create_dir_all(folder.path().join("step-00000050/model")).unwrap();
            if name != "model" {
                fs::write(folder.path().join("step-00000050").join(name), "").unwrap();
            }
            assert_eq!(is_unfinished(&folder.path().join("step-00000050")).unwrap(), expected, "{name}");
        }
        // A save that fails removes its own files alone.
        assert!(discard_unfinished(&step_directory(folder.path(), 10)).is_err());
        assert_eq!(list(&step_directory(folder.path(), 10)).unwrap().len(), 1);
    }

    #[test]
    fn names_that_a_save_writes() {
        let folder = tempfile::tempdir().unwrap();
        let ours = ["rank-00001-of-00002.g1.safetensors", "manifest.json", "manifest.json.partial-1-2-3"];
        let others = ["model.safetensors", "rank-of-mine.safetensors", "optimizer.pt", "rank-00001-of-00002.g1"];
        for (names, expected) in [(&ours[..], true), (&others[..], false)] {
            for name in names {
                let path = folder.path().join(name);
                fs::write(&path, "").unwrap();
                assert_eq!(is_file_of_a_save(&path), expected, "{name}");
            }
        }
    }

    #[test]
    fn a_step_killed_while_it_is_deleted_is_no_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        save(folder.path(), 10);
        let directory = save(folder.path(), 20);
        fs::create_dir(directory.join("somebody's")).unwrap();
        fs::write(directory.join("notes.txt"), "mine").unwrap();
        let error = remove_step(&directory).unwrap_err().to_string();
        assert!(error.contains("cannot delete") && error.contains("no save wrote notes.txt"), "{error}");
        assert_eq!(list(&directory).unwrap(), [directory.join("notes.txt"), directory.join("somebody's")]);
        let (found, skipped) = newest_whole(folder.path()).unwrap();
        assert_eq!(found.unwrap().directory, step_directory(folder.path(), 10));
        assert_eq!(skipped.len(), 1);
    }
}
