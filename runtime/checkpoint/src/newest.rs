//! Finding the newest checkpoint that a job can go on from, and telling why newer ones are left out.

use crate::disk::list;
use crate::error::Result;
use crate::publish::{Found, check_files, open_step, step_of, steps};
use std::path::{Path, PathBuf};

/// A folder or file among the steps that is nothing to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where it lies.
    pub directory: PathBuf,
    /// Why it is none.
    pub reason: String,
}

/// The newest whole checkpoint of a folder of steps, and the newer ones that are not whole. A folder that does not exist has
/// none. Every file of the chosen one is read and its hash checked, as by [`verify`](crate::verify).
pub fn newest_whole(checkpoints: &Path) -> Result<(Option<Found>, Vec<Skipped>)> {
    newest_fitting(checkpoints, None, |_| Ok(()))
}

/// As [`newest_whole`], of the steps `below` this one alone, and of those that `fits` takes: a checkpoint of another model, say, is
/// left out with the reason that it gives. Files are read of what fits only.
pub fn newest_fitting(
    checkpoints: &Path,
    below: Option<u64>,
    mut fits: impl FnMut(&Found) -> Result<(), String>,
) -> Result<(Option<Found>, Vec<Skipped>)> {
    let mut skipped = Vec::new();
    for (step, directory) in steps(checkpoints)?.into_iter().rev() {
        if below.is_some_and(|below| step >= below) {
            continue;
        }
        let whole = open_step(&directory).map_err(|error| error.reason()).and_then(|found| {
            fits(&found)?;
            check_files(&found).map_err(|error| error.reason())?;
            Ok(found)
        });
        match whole {
            Ok(found) => return Ok((Some(found), skipped)),
            Err(reason) => skipped.push(Skipped { directory, reason }),
        }
    }
    Ok((None, skipped))
}

/// What is named as if it were a step's folder, and is none. Folders that were moved aside have names of their own.
pub fn strangers(checkpoints: &Path) -> Result<Vec<Skipped>> {
    if !checkpoints.exists() {
        return Ok(Vec::new());
    }
    let reason = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        let reason = match step_of(path) {
            Some(_) if path.is_dir() => return None,
            Some(_) => "it is no folder",
            None if name.starts_with("step-") && !name.contains(".replaced-") => {
                "its name is not that of a step, such as step-00000020"
            }
            None => return None,
        };
        Some(reason.to_owned())
    };
    let found = list(checkpoints)?.into_iter();
    Ok(found.filter_map(|path| Some(Skipped { reason: reason(&path)?, directory: path })).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::tests::{save, write_step};
    use crate::publish::{MANIFEST_FILE, step_directory};
    use std::fs;

    #[test]
    fn what_is_not_whole_is_skipped_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let whole = save(folder.path(), 10);
        // Killed before the manifest.
        write_step(folder.path(), 20);
        // Killed between the temporary manifest and its name.
        let (killed, manifest) = write_step(folder.path(), 30);
        fs::write(killed.join("manifest.json.partial-1"), serde_json::to_vec(&manifest).unwrap()).unwrap();
        let cut = save(folder.path(), 40);
        fs::File::options().write(true).open(cut.join(&manifest.files[0].name)).unwrap().set_len(8).unwrap();
        let garbled = save(folder.path(), 50);
        fs::write(garbled.join(MANIFEST_FILE), "{").unwrap();
        let newer = save(folder.path(), 60);
        fs::write(newer.join(MANIFEST_FILE), r#"{"format_version": 3}"#).unwrap();
        let renamed = save(folder.path(), 70);
        fs::rename(&renamed, step_directory(folder.path(), 80)).unwrap();
        let (found, skipped) = newest_whole(folder.path()).unwrap();
        assert_eq!(found.unwrap().directory, whole);
        let expected = [
            (80, "named for step 80"),
            (60, "its format_version is 3; this program reads 2"),
            (50, "EOF"),
            (40, "has 8 bytes, its manifest says"),
            (30, "no manifest.json"),
            (20, "no manifest.json"),
        ];
        assert_eq!(skipped.len(), expected.len());
        for (skipped, (step, reason)) in skipped.iter().zip(expected) {
            assert_eq!(step_of(&skipped.directory), Some(step));
            assert!(skipped.reason.contains(reason), "{}", skipped.reason);
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_before_its_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest_whole(&folder.path().join("nowhere")).unwrap(), (None, vec![]));
        let directories: Vec<PathBuf> = [10, 20, 30].map(|step| save(folder.path(), step)).to_vec();
        fs::write(folder.path().join("notes.txt"), "").unwrap();
        let (found, skipped) = newest_whole(folder.path()).unwrap();
        assert_eq!((&found.unwrap().directory, skipped), (&directories[2], vec![]));
        // Its files are damaged too, and nobody looks.
        let shard = directories[2].join("rank-00001-of-00002.g1.safetensors");
        let bytes = fs::read(&shard).unwrap();
        fs::write(&shard, vec![0; bytes.len()]).unwrap();
        let fits = |found: &Found| if found.manifest.step < 30 { Ok(()) } else { Err("it is another's".to_owned()) };
        let (found, skipped) = newest_fitting(folder.path(), None, fits).unwrap();
        assert_eq!(found.unwrap().directory, directories[1]);
        assert_eq!(skipped, [Skipped { directory: directories[2].clone(), reason: "it is another's".to_owned() }]);
        let (found, skipped) = newest_fitting(folder.path(), Some(20), |_| Ok(())).unwrap();
        assert_eq!((&found.unwrap().directory, skipped), (&directories[0], vec![]));
        assert_eq!(newest_fitting(folder.path(), Some(10), |_| Ok(())).unwrap(), (None, vec![]));
    }

    #[test]
    fn what_is_named_like_a_step_and_is_none_is_told() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(strangers(&folder.path().join("nowhere")).unwrap(), []);
        save(folder.path(), 20);
        for name in ["step-abc", "step-99999999999999999999", "step-00000020.replaced-1", "others"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("step-00000099"), "").unwrap();
        let told = strangers(folder.path()).unwrap();
        let told: Vec<_> = told
            .iter()
            .map(|stranger| (stranger.directory.file_name().unwrap().to_str().unwrap(), stranger.reason.as_str()))
            .collect();
        let named = "its name is not that of a step, such as step-00000020";
        let expected =
            [("step-00000099", "it is no folder"), ("step-99999999999999999999", named), ("step-abc", named)];
        assert_eq!(told, expected);
    }
}
