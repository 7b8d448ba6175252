//! A checkpoint that comes from elsewhere. Its files are put into a folder under another name, which nothing looks at; once all
//! of them are there the folder gets its own name, so that it is there whole or not at all.

use crate::disk::{Rename, list, rename_with, sync_tree, unique_suffix, write_new};
use crate::error::{CheckpointError, Result};
use crate::publish::{Found, MANIFEST_FILE, check_headers, manifest_from, open_step, step_directory, step_of};
use crate::retention::{discard_unfinished, set_aside};
use std::fs;
use std::path::{Path, PathBuf};

/// What stands between a step's name and a number of its own, while it is on its way.
const MARK: &str = ".incoming-";

/// A step's folder on its way. Dropped before [`finish`](IncomingStep::finish), it is removed.
#[derive(Debug)]
pub struct IncomingStep {
    directory: PathBuf,
    target: PathBuf,
    finished: bool,
}

impl IncomingStep {
    /// Makes an empty folder for a step, and the folder of all steps if need be.
    pub fn create(checkpoints: &Path, step: u64) -> Result<Self> {
        let target = step_directory(checkpoints, step);
        let mut name = target.as_os_str().to_owned();
        name.push(format!("{MARK}{}", unique_suffix()));
        let directory = PathBuf::from(name);
        fs::create_dir_all(&directory).map_err(CheckpointError::io("create", &directory))?;
        Ok(IncomingStep { directory, target, finished: false })
    }

    /// Where its files are to be put.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes the manifest after all other files, checks that they are there in their sizes with the tensors it lists (their
    /// hashes are for whoever brings them), and gives the folder its name. What stands there so far is moved aside if it has a
    /// manifest, else removed.
    pub fn finish(mut self, manifest: &[u8]) -> Result<Found> {
        manifest_from(&self.target, manifest)?;
        write_new(&self.directory.join(MANIFEST_FILE), manifest)?;
        check_headers(&open_step(&self.directory)?)?;
        sync_tree(&self.directory)?;
        if self.target.join(MANIFEST_FILE).exists() {
            set_aside(&self.target)?;
        }
        discard_unfinished(&self.target)?;
        match rename_with(&self.directory, &self.target, Rename::NoReplace) {
            // Old kernels and some file systems know no such rename; nobody else works in this folder.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
                fs::rename(&self.directory, &self.target)
            }
            other => other,
        }
        .map_err(CheckpointError::io("name", &self.target))?;
        self.finished = true;
        self.target.parent().map_or(Ok(()), crate::disk::sync_directory)?;
        open_step(&self.target)
    }

    /// Removes what killed processes left on its way, and gives the folders. Call it while nobody else works in there.
    pub fn remove_leftovers(checkpoints: &Path) -> Result<Vec<PathBuf>> {
        let paths = if checkpoints.exists() { list(checkpoints)? } else { Vec::new() };
        let is_leftover = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once(MARK));
            name.is_some_and(|(step, _)| step_of(Path::new(step)).is_some()) && path.is_dir()
        };
        let leftovers: Vec<PathBuf> = paths.into_iter().filter(is_leftover).collect();
        for leftover in &leftovers {
            fs::remove_dir_all(leftover).map_err(CheckpointError::io("delete", leftover))?;
        }
        Ok(leftovers)
    }
}

impl Drop for IncomingStep {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::newest::newest_whole;
    use crate::publish::tests::{save, write_step};

    /// Copies the files of a step but for its manifest, which is returned.
    fn copy(from: &Path, to: &Path) -> Vec<u8> {
        for path in list(from).unwrap() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
        fs::remove_file(to.join(MANIFEST_FILE)).unwrap();
        fs::read(from.join(MANIFEST_FILE)).unwrap()
    }

    #[test]
    fn a_step_arrives_whole_or_not_at_all() {
        let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let source = save(there.path(), 20);
        let checkpoints = here.path().join("checkpoints");
        let incoming = IncomingStep::create(&checkpoints, 20).unwrap();
        let manifest = copy(&source, incoming.directory());
        assert_eq!(newest_whole(&checkpoints).unwrap(), (None, vec![]), "nothing looks at it on its way");
        let found = incoming.finish(&manifest).unwrap();
        assert_eq!(found.directory, step_directory(&checkpoints, 20));
        assert_eq!(newest_whole(&checkpoints).unwrap().0.unwrap(), found);
        assert_eq!(list(&checkpoints).unwrap().len(), 1);

        // A file that is missing, or too short, and a manifest of another step.
        type Damage = fn(&Path);
        let damages: [(&str, u64, Damage); 3] = [
            ("No such file", 20, |folder| fs::remove_file(&list(folder).unwrap()[0]).unwrap()),
            ("has 3 bytes, its manifest says", 20, |folder| fs::write(&list(folder).unwrap()[0], "abc").unwrap()),
            ("named for step 21, the manifest is of step 20", 21, |_| {}),
        ];
        for (expected, step, damage) in damages {
            let incoming = IncomingStep::create(&checkpoints, step).unwrap();
            copy(&source, incoming.directory());
            damage(incoming.directory());
            let error = incoming.finish(&manifest).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(list(&checkpoints).unwrap().len(), 1, "{expected}: a part stays");
        }
        assert_eq!(newest_whole(&checkpoints).unwrap().0.unwrap(), found);
    }

    #[test]
    fn what_stands_in_its_place_is_cleared_and_leftovers_are_removed() {
        let (there, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (damaged, unfinished) = (save(here.path(), 20), write_step(here.path(), 30).0);
        fs::write(damaged.join("rank-00000-of-00002.g1.safetensors"), "").unwrap();
        for (step, directory) in [(20, &damaged), (30, &unfinished)] {
            let source = save(there.path(), step);
            let incoming = IncomingStep::create(here.path(), step).unwrap();
            let manifest = copy(&source, incoming.directory());
            assert_eq!(&incoming.finish(&manifest).unwrap().directory, directory);
        }
        let names = || -> Vec<String> {
            list(here.path()).unwrap().iter().map(|path| path.file_name().unwrap().to_str().unwrap().into()).collect()
        };
        assert_eq!(names().len(), 3, "{:?}", names());
        assert!(names()[1].starts_with("step-00000020.replaced-"), "{:?}", names());

        let mut killed = IncomingStep::create(here.path(), 40).unwrap();
        killed.finished = true;
        fs::write(killed.directory().join("half"), "").unwrap();
        fs::create_dir(here.path().join("notes.incoming-1")).unwrap();
        assert_eq!(IncomingStep::remove_leftovers(here.path()).unwrap(), [killed.directory().to_owned()]);
        assert_eq!(IncomingStep::remove_leftovers(&here.path().join("none")).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(names().len(), 4, "{:?}", names());
    }
}
