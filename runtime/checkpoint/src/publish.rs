//! Publishing a checkpoint, and finding the newest whole one.
//!
//! Publishing the manifest is the commit. A step's folder without `manifest.json` is no checkpoint, whatever lies in it;
//! there is no file that points to the latest one, so none can be stale.

use crate::disk::{Rename, list, read_bounded, rename_with, sync_directory, unique_suffix, write_new};
use crate::error::{CheckpointError, Result};
use crate::fault;
use crate::manifest::{FORMAT_VERSION, FileEntry, Manifest, TensorRange};
use crate::reader::SafetensorsReader;
use crate::writer::digest_file;
use std::fs;
use std::path::{Path, PathBuf};

/// The name of the file whose presence makes a step's folder a checkpoint.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The folder in a step's folder that holds the model, where one is asked for beside the shards.
pub const MODEL_DIRECTORY: &str = "model";

/// No manifest may be larger.
const MAX_MANIFEST_BYTES: u64 = 256_000_000;

/// A whole checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The step's folder.
    pub directory: PathBuf,
    /// What it holds.
    pub manifest: Manifest,
}

/// A step's folder that is no whole checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The step's folder.
    pub directory: PathBuf,
    /// Why it is none.
    pub reason: String,
}

/// The folder of a step: `step-00000020`.
pub fn step_directory(checkpoints: &Path, step: u64) -> PathBuf {
    checkpoints.join(format!("step-{step:08}"))
}

/// The step of a folder that is named as [`step_directory`] names it.
pub fn step_of(directory: &Path) -> Option<u64> {
    let name = directory.file_name()?.to_str()?;
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (step_directory(Path::new(""), step).as_os_str() == name).then_some(step)
}

/// Publishes the manifest of a step whose files are all written and synced: after this returns, the checkpoint lasts over a
/// power cut; if it fails or is killed anywhere, there is no checkpoint.
///
/// # Errors
/// If a file is missing or has another size, or a manifest is there already (another run, or an earlier attempt, won).
pub fn publish(step_directory: &Path, manifest: &Manifest) -> Result<()> {
    manifest.check().map_err(|reason| CheckpointError::BadParts { reason })?;
    check_step(step_directory, manifest)?;
    check_sizes(step_directory, manifest)?;
    let path = step_directory.join(MANIFEST_FILE);
    let mut content = serde_json::to_vec_pretty(manifest).map_err(|error| CheckpointError::bad_json(&path, error))?;
    content.push(b'\n');
    fault::reach(fault::COLLECTED);
    // The names of the files must last before the manifest does.
    sync_directory(step_directory)?;
    let temporary = step_directory.join(format!("{MANIFEST_FILE}.partial-{}", unique_suffix()));
    let published = write_new(&temporary, &content).and_then(|()| link(&temporary, &path));
    // After a rename it is gone already; one that stays is harmless.
    let _ = fs::remove_file(&temporary);
    published?;
    fault::reach(fault::PUBLISHED);
    sync_directory(step_directory)?;
    step_directory.parent().map_or(Ok(()), sync_directory)
}

/// Opens the checkpoint in a step's folder, and checks that its files exist in their sizes.
pub fn open_step(step_directory: &Path) -> Result<Found> {
    let manifest = manifest_of(step_directory)?;
    check_sizes(step_directory, &manifest)?;
    Ok(Found { directory: step_directory.to_owned(), manifest })
}

/// The manifest in a step's folder; its files are not looked at.
pub(crate) fn manifest_of(step_directory: &Path) -> Result<Manifest> {
    let path = step_directory.join(MANIFEST_FILE);
    if !path.exists() {
        let reason = "it has no manifest.json, so its save was never finished";
        return Err(CheckpointError::not_whole(step_directory, reason));
    }
    let manifest = read_manifest(&path)?;
    manifest.check().map_err(|reason| CheckpointError::not_whole(step_directory, reason))?;
    check_step(step_directory, &manifest)?;
    Ok(manifest)
}

/// As [`open_step`], and reads every file: its hash and the tensors in it must be what the manifest says.
pub fn verify(step_directory: &Path) -> Result<Found> {
    let found = open_step(step_directory)?;
    for entry in &found.manifest.files {
        let path = step_directory.join(&entry.name);
        let digest = digest_file(&path)?;
        if digest.blake3 != entry.blake3 {
            let reason = format!("{} has the hash {}, its manifest says {}", entry.name, digest.blake3, entry.blake3);
            return Err(CheckpointError::not_whole(step_directory, reason));
        }
        check_tensors(&SafetensorsReader::open(&path)?, entry)
            .map_err(|reason| CheckpointError::not_whole(step_directory, reason))?;
    }
    Ok(found)
}

/// The newest whole checkpoint of a folder of steps, and the newer ones that are not whole. A folder that does not exist has
/// none. Every file of the chosen one is read and its hash checked, as by [`verify`].
pub fn newest_whole(checkpoints: &Path) -> Result<(Option<Found>, Vec<Skipped>)> {
    let mut skipped = Vec::new();
    for (_, directory) in steps(checkpoints)?.into_iter().rev() {
        match verify(&directory) {
            Ok(found) => return Ok((Some(found), skipped)),
            Err(error) => skipped.push(Skipped { directory, reason: error.reason() }),
        }
    }
    Ok((None, skipped))
}

/// The published steps under `checkpoints`, in order; whether their files are whole is not looked at.
pub fn published_steps(checkpoints: &Path) -> Result<Vec<u64>> {
    let steps = steps(checkpoints)?;
    Ok(steps.iter().filter(|(_, directory)| directory.join(MANIFEST_FILE).exists()).map(|(step, _)| *step).collect())
}

/// The steps' folders under `checkpoints`, oldest first, published or not.
pub fn steps(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>> {
    if !checkpoints.exists() {
        return Ok(Vec::new());
    }
    let paths = list(checkpoints)?.into_iter();
    let mut steps: Vec<_> = paths.filter_map(|path| Some((step_of(&path)?, path))).collect();
    steps.retain(|(_, path)| path.is_dir());
    steps.sort();
    Ok(steps)
}

fn read_manifest(path: &Path) -> Result<Manifest> {
    let content = read_bounded(path, MAX_MANIFEST_BYTES)?;
    let value: serde_json::Value =
        serde_json::from_slice(&content).map_err(|error| CheckpointError::bad_json(path, error))?;
    // Asked first: a newer form may lack what this one needs.
    match value.get("format_version").and_then(serde_json::Value::as_u64) {
        Some(version) if version == u64::from(FORMAT_VERSION) => {}
        version => {
            let version = version.map_or("none".to_string(), |version| version.to_string());
            return Err(CheckpointError::OtherVersion { path: path.to_owned(), version, read: FORMAT_VERSION });
        }
    }
    serde_json::from_value(value).map_err(|error| CheckpointError::bad_json(path, error))
}

fn check_step(directory: &Path, manifest: &Manifest) -> Result<()> {
    match step_of(directory) {
        Some(step) if step != manifest.step => {
            let reason = format!("the folder is named for step {step}, the manifest is of step {}", manifest.step);
            Err(CheckpointError::not_whole(directory, reason))
        }
        _ => Ok(()),
    }
}

fn check_sizes(directory: &Path, manifest: &Manifest) -> Result<()> {
    for file in &manifest.files {
        let reason = match fs::metadata(directory.join(&file.name)) {
            Ok(metadata) if metadata.len() == file.bytes && metadata.is_file() => continue,
            Ok(metadata) => format!("{} has {} bytes, its manifest says {}", file.name, metadata.len(), file.bytes),
            Err(error) => format!("{}: {error}", file.name),
        };
        return Err(CheckpointError::not_whole(directory, reason));
    }
    Ok(())
}

fn check_tensors(file: &SafetensorsReader, entry: &FileEntry) -> Result<(), String> {
    entry.tensors.iter().try_for_each(|tensor| check_tensor(file, &entry.name, tensor))
}

/// A file holds a tensor as the manifest tells of it.
pub(crate) fn check_tensor(file: &SafetensorsReader, name: &str, tensor: &TensorRange) -> Result<(), String> {
    let stored = file.entry(&tensor.name).map_err(|error| error.to_string())?;
    if stored.dtype == tensor.dtype && stored.elements() as u64 == tensor.end - tensor.begin {
        return Ok(());
    }
    let (elements, dtype, expected) = (stored.elements(), stored.dtype, tensor.end - tensor.begin);
    Err(format!(
        "tensor {} of {name} has {elements} elements of {dtype}, its manifest says {expected} of {}",
        tensor.name, tensor.dtype
    ))
}

/// Gives the temporary file its name, if nothing has that name.
fn link(temporary: &Path, path: &Path) -> Result<()> {
    let linked = match fs::hard_link(temporary, path) {
        // Some file systems have no hard links.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS)) => {
            rename_with(temporary, path, Rename::NoReplace)
        }
        other => other,
    };
    linked.map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists => CheckpointError::Exists {
            path: path.to_owned(),
            hint: "this step was saved by another run in the same output_dir; give each run a folder of its own",
        },
        _ => CheckpointError::Io { action: "publish", path: path.to_owned(), source },
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::header::TensorEntry;
    use crate::manifest::{Part, tests::part};
    use crate::writer::SafetensorsWriter;
    use std::collections::BTreeMap;

    /// Writes the shard files of a step as two ranks would, and gives the manifest that is not published yet.
    pub(crate) fn write_step(checkpoints: &Path, step: u64) -> (PathBuf, Manifest) {
        let directory = step_directory(checkpoints, step);
        fs::create_dir_all(&directory).unwrap();
        let write = |rank| -> Part {
            let mut part = Part { step, ..part(rank, 2) };
            let file = &mut part.files[0];
            let entries: Vec<_> =
                file.tensors.iter().map(|tensor| TensorEntry::new(&tensor.name, Dtype::F32, [4])).collect();
            let mut writer =
                SafetensorsWriter::create(&directory.join(&file.name), &entries, &BTreeMap::new()).unwrap();
            entries.iter().for_each(|entry| writer.write_f32(&entry.name, 0, &[step as f32; 4]).unwrap());
            *file = FileEntry::new(file.name.clone(), writer.finish().unwrap(), file.tensors.clone());
            part
        };
        let parts = vec![write(0), write(1)];
        (directory.clone(), Manifest::assemble(parts).unwrap())
    }

    pub(crate) fn save(checkpoints: &Path, step: u64) -> PathBuf {
        let (directory, manifest) = write_step(checkpoints, step);
        publish(&directory, &manifest).unwrap();
        directory
    }

    #[test]
    fn what_was_published_is_found_and_verified() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest_whole(&folder.path().join("nowhere")).unwrap(), (None, vec![]));
        save(folder.path(), 20);
        let newest = save(folder.path(), 100);
        fs::write(folder.path().join("notes.txt"), "").unwrap();
        let (found, skipped) = newest_whole(folder.path()).unwrap();
        let found = found.unwrap();
        assert_eq!((&found.directory, skipped), (&newest, vec![]));
        assert_eq!(found.manifest.state["learning_rate"].as_f64().unwrap().to_bits(), (0.1f64 + 0.2).to_bits());
        assert_eq!(verify(&newest).unwrap(), found);
        let names: Vec<_> = list(&newest).unwrap();
        assert_eq!(names.len(), 3, "two shards and a manifest, nothing temporary: {names:?}");
    }

    #[test]
    fn a_step_is_published_once() {
        let folder = tempfile::tempdir().unwrap();
        let (directory, mut manifest) = write_step(folder.path(), 20);
        publish(&directory, &manifest).unwrap();
        let before = fs::read(directory.join(MANIFEST_FILE)).unwrap();
        manifest.state = serde_json::json!("other");
        let error = publish(&directory, &manifest).unwrap_err();
        assert!(matches!(error, CheckpointError::Exists { .. }), "{error}");
        assert_eq!(fs::read(directory.join(MANIFEST_FILE)).unwrap(), before);
        assert_eq!(list(&directory).unwrap().len(), 3);
    }

    #[test]
    fn nothing_incomplete_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let (directory, manifest) = write_step(folder.path(), 20);
        fs::remove_file(directory.join(&manifest.files[1].name)).unwrap();
        let error = publish(&directory, &manifest).unwrap_err().to_string();
        assert!(error.contains("rank-00001-of-00002.g1.safetensors: No such file"), "{error}");
        let elsewhere = step_directory(folder.path(), 21);
        fs::create_dir(&elsewhere).unwrap();
        assert!(publish(&elsewhere, &manifest).unwrap_err().to_string().contains("named for step 21"));
        assert_eq!(newest_whole(folder.path()).unwrap().0, None);
    }

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
    fn a_manifest_of_a_stranger_names_no_file_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let directory = save(folder.path(), 20);
        let path = directory.join(MANIFEST_FILE);
        let text = fs::read_to_string(&path).unwrap().replace("rank-00001", "../rank-00001");
        fs::write(&path, text).unwrap();
        assert!(open_step(&directory).unwrap_err().to_string().contains("is not of the form"));
    }

    #[test]
    fn verify_sees_a_single_flipped_bit_and_a_wrong_list() {
        let folder = tempfile::tempdir().unwrap();
        let directory = save(folder.path(), 20);
        let manifest = open_step(&directory).unwrap().manifest;
        let path = directory.join(&manifest.files[0].name);
        let mut content = fs::read(&path).unwrap();
        *content.last_mut().unwrap() ^= 1;
        fs::write(&path, &content).unwrap();
        open_step(&directory).unwrap();
        assert!(verify(&directory).unwrap_err().to_string().contains("has the hash"));

        let (directory, mut manifest) = write_step(folder.path(), 30);
        manifest.files[0].tensors[0].dtype = Dtype::BF16;
        publish(&directory, &manifest).unwrap();
        let error = verify(&directory).unwrap_err().to_string();
        assert!(error.contains("has 4 elements of F32, its manifest says 4 of BF16"), "{error}");
    }

    #[test]
    fn names_of_steps() {
        assert_eq!(step_directory(Path::new("c"), 20), Path::new("c/step-00000020"));
        for (name, step) in [("step-00000020", Some(20)), ("step-123456789", Some(123456789))] {
            assert_eq!(step_of(Path::new(name)), step);
        }
        for name in ["step-20", "step-", "step-+0000020", "step-00000020.broken-1", "model"] {
            assert_eq!(step_of(Path::new(name)), None, "{name}");
        }
    }
}
