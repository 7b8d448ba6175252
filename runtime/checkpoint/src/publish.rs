//! Publishing a checkpoint, and opening one that was published.
//!
//! Publishing the manifest is the commit. A step's folder without `manifest.json` is no checkpoint, whatever lies in it;
//! there is no file that points to the latest one, so none can be stale.

use crate::disk::{Rename, kind_of, list, read_bounded, rename_with, sync_directory, unique_suffix, write_new};
use crate::error::{CheckpointError, Result};
use crate::fault;
use crate::manifest::{FORMAT_VERSION, FileEntry, Manifest, TensorRange};
use crate::places::Places;
use crate::reader::{SafetensorsReader, tensors_cut_off};
use crate::writer::digest_file;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::fs;
use std::path::{Path, PathBuf};

/// The name of the file whose presence makes a step's folder a checkpoint.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The folder in a step's folder that holds the model, where one is asked for beside the shards.
pub const MODEL_DIRECTORY: &str = "model";

/// No manifest may be larger.
pub const MAX_MANIFEST_BYTES: u64 = 256_000_000;
/// Nor what is kept of it as it comes, which takes many times its bytes in memory.
const MAX_VALUE_BYTES: usize = 1_000_000;

/// So many parameters are named where there may be any number of them.
const NAMES_TOLD: usize = 3;

/// A whole checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The step's folder.
    pub directory: PathBuf,
    /// What it holds.
    pub manifest: Manifest,
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
    let mut content =
        serde_json::to_vec_pretty(&manifest.sealed()).map_err(|error| CheckpointError::bad_json(&path, error))?;
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

/// Opens the checkpoint in a step's folder, and checks that its files exist in their sizes, and that the manifest is the one that
/// was published.
pub fn open_step(step_directory: &Path) -> Result<Found> {
    let manifest = manifest_of(step_directory)?;
    check_sizes(step_directory, &manifest)?;
    let changed = |reason| CheckpointError::not_whole(step_directory, format!("{MANIFEST_FILE} {reason}"));
    manifest.check_seal().map_err(changed)?;
    Ok(Found { directory: step_directory.to_owned(), manifest })
}

/// Whether a step's folder has a manifest, or anything else of that name.
pub(crate) fn is_published(step_directory: &Path) -> bool {
    fs::symlink_metadata(step_directory.join(MANIFEST_FILE)).is_ok()
}

/// The manifest in a step's folder; neither its files nor its seal are looked at.
pub(crate) fn manifest_of(step_directory: &Path) -> Result<Manifest> {
    let path = step_directory.join(MANIFEST_FILE);
    if !is_published(step_directory) {
        let reason = "it has no manifest.json, so its save was never finished";
        return Err(CheckpointError::not_whole(step_directory, reason));
    }
    manifest_from(step_directory, &read_bounded(&path, MAX_MANIFEST_BYTES)?)
}

/// Makes sense of the bytes of a manifest, which belongs to the step that this folder is named for. The folder need not exist.
pub fn manifest_from(step_directory: &Path, content: &[u8]) -> Result<Manifest> {
    let manifest = parse_manifest(&step_directory.join(MANIFEST_FILE), content)?;
    manifest.check().map_err(|reason| CheckpointError::not_whole(step_directory, reason))?;
    check_step(step_directory, &manifest)?;
    Ok(manifest)
}

/// As [`open_step`], and reads every file: its hash and the tensors in it must be what the manifest says.
pub fn verify(step_directory: &Path) -> Result<Found> {
    let found = open_step(step_directory)?;
    check_files(&found)?;
    Ok(found)
}

/// Every file of a checkpoint has the hash that its manifest tells, and holds the tensors.
pub(crate) fn check_files(found: &Found) -> Result<()> {
    let step_directory = &found.directory;
    for entry in &found.manifest.files {
        let path = step_directory.join(&entry.name);
        let digest = digest_file(&path)?;
        if digest.blake3 != entry.blake3 {
            let reason = format!("{} has the hash {}, its manifest says {}", entry.name, digest.blake3, entry.blake3);
            return Err(CheckpointError::not_whole(step_directory, reason));
        }
    }
    check_headers(found)
}

/// The tensors that the manifest lists are in its files; no values and no hashes are looked at.
pub(crate) fn check_headers(found: &Found) -> Result<()> {
    found.manifest.files.iter().try_for_each(|entry| {
        check_tensors(&SafetensorsReader::open(&found.directory.join(&entry.name))?, entry)
            .map_err(|reason| CheckpointError::not_whole(&found.directory, reason))
    })
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

fn parse_manifest(path: &Path, content: &[u8]) -> Result<Manifest> {
    let outline: Outline<'_> =
        serde_json::from_slice(content).map_err(|error| CheckpointError::bad_json(path, error))?;
    let version = outline.format_version.map_or("none", RawValue::get);
    if version.parse() != Ok(FORMAT_VERSION) {
        let version = version.chars().take(40).collect();
        return Err(CheckpointError::OtherVersion { path: path.to_owned(), version, read: FORMAT_VERSION });
    }
    for (name, value) in [("state", outline.state), ("job", outline.job)] {
        let bytes = value.map_or(0, |value| value.get().len());
        if bytes > MAX_VALUE_BYTES {
            let reason = format!("its {name} has {bytes} bytes, and may have {MAX_VALUE_BYTES}");
            return Err(CheckpointError::bad_json(path, reason));
        }
    }
    serde_json::from_slice(content).map_err(|error| CheckpointError::bad_json(path, error))
}

/// What is looked at before the rest is believed: a newer form may lack what this one needs.
#[derive(Deserialize)]
#[serde(expecting = "a manifest")]
struct Outline<'a> {
    #[serde(borrow)]
    format_version: Option<&'a RawValue>,
    #[serde(borrow)]
    state: Option<&'a RawValue>,
    #[serde(borrow)]
    job: Option<&'a RawValue>,
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
        let path = directory.join(&file.name);
        let reason = match fs::metadata(&path) {
            Ok(metadata) if !metadata.is_file() => format!("{} is {}, not a file", file.name, kind_of(&metadata)),
            Ok(metadata) if metadata.len() == file.bytes => continue,
            Ok(metadata) => {
                let cut =
                    if metadata.len() < file.bytes { words_cut_off(&path, manifest, file) } else { String::new() };
                format!("{} has {} bytes, its manifest says {}{cut}", file.name, metadata.len(), file.bytes)
            }
            Err(error) => format!("{}: {error}", file.name),
        };
        return Err(CheckpointError::not_whole(directory, reason));
    }
    Ok(())
}

/// Which parameters a file that was cut short has lost, at least in part, if its header still tells.
fn words_cut_off(path: &Path, manifest: &Manifest, file: &FileEntry) -> String {
    let lost = tensors_cut_off(path).unwrap_or_default();
    let places = Places::of(manifest);
    let names = places.parameters_in(file.tensors.iter().filter(|range| lost.contains(&range.name)));
    let told = names[..names.len().min(NAMES_TOLD)].join(", ");
    match names.len().saturating_sub(NAMES_TOLD) {
        _ if names.is_empty() => String::new(),
        0 => format!(": parts of {told} are missing"),
        more => format!(": parts of {told} and {more} more are missing"),
    }
}

fn check_tensors(file: &SafetensorsReader, entry: &FileEntry) -> Result<(), String> {
    entry.tensors.iter().try_for_each(|tensor| check_tensor(file, &entry.name, tensor))
}

/// A file holds a tensor as the manifest tells of it.
pub(crate) fn check_tensor(file: &SafetensorsReader, name: &str, tensor: &TensorRange) -> Result<(), String> {
    let stored = file.entry(&tensor.name).map_err(|error| error.reason())?;
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
        let newest = save(folder.path(), 100);
        let found = open_step(&newest).unwrap();
        assert_eq!((&found.directory, found.manifest.step), (&newest, 100));
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
        assert!(!is_published(&directory) && !is_published(&elsewhere));
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
