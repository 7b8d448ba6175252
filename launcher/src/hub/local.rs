//! The model folder that is pushed: which it is, whether it is whole, and its files.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use zerofold_checkpoint::examine_model;

use super::error::HubError;
use crate::error::LaunchError;
use crate::run_folder::RunFolder;
use crate::terminal::Terminal;

/// The hub looks at so many bytes of a file to tell what it is.
const SAMPLE_BYTES: usize = 512;
const CHUNK_BYTES: usize = 1 << 18;

/// A file that is pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LocalFile {
    /// Its name in the folder and in the repository.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// Its first bytes.
    pub(super) sample: Vec<u8>,
    pub(super) sha256: String,
    /// The hash that Git gives to it.
    pub(super) git: String,
}

/// The model folder that is meant: the one given, or that of a run.
///
/// # Errors
/// [`LaunchError::Usage`], if it is no model folder or not whole.
pub(super) fn model_folder(given: &Path) -> Result<PathBuf, LaunchError> {
    let shown = given.display();
    let refuse = |message: String, hint: &str| Err(LaunchError::usage(message, hint));
    if !given.is_dir() {
        let message = if given.exists() { format!("{shown} is a file") } else { format!("there is no folder {shown}") };
        return refuse(message, "give a model folder, as `launch export` writes it, or a run's output_dir");
    }
    let run = RunFolder::new(given.to_owned());
    let folder = match run.config().exists() || given.join("checkpoints").is_dir() {
        true => given.join("model"),
        false => given.to_owned(),
    };
    if !folder.is_dir() {
        let message = format!("the run {shown} has no model yet: there is no {}", folder.display());
        return refuse(message, "it is written at the end of training; `launch export` makes one of a checkpoint");
    }
    if given.join("manifest.json").exists() {
        let hint = "make a model folder of it first: launch export CHECKPOINT --output DIR";
        return refuse(format!("{shown} is a checkpoint"), hint);
    }
    for name in ["config.json", "tokenizer.json"] {
        if !folder.join(name).is_file() {
            let hint = "a Hugging Face model folder has config.json, tokenizer.json and model.safetensors";
            return refuse(format!("{} is no model folder: it has no {name}", folder.display()), hint);
        }
    }
    Ok(folder)
}

/// Reads every byte of the weights: headers, and that each value is finite.
pub(super) fn check(folder: &Path) -> Result<(), LaunchError> {
    let examined = examine_model(folder);
    let Some(fault) = examined.faults.first() else { return Ok(()) };
    let file = fault.file.as_ref().map(|file| format!("{file}: ")).unwrap_or_default();
    let message = format!("{} is not whole, and was not pushed: {file}{}", folder.display(), fault.reason);
    Err(LaunchError::usage(message, format!("`launch verify {}` tells all that is wrong", folder.display())))
}

/// The folder's files, in the order of their names. What is hidden stays here.
pub(super) fn files(folder: &Path, terminal: &Terminal) -> Result<Vec<LocalFile>, LaunchError> {
    let mut names = Vec::new();
    let read = std::fs::read_dir(folder).map_err(HubError::disk("read", folder))?;
    for entry in read {
        let entry = entry.map_err(HubError::disk("read", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        match entry.path().is_file() {
            true => names.push(name),
            false => terminal.tell(&format!("note: {name} is no file and is not pushed")),
        }
    }
    names.sort();
    let file = |name: String| {
        let path = folder.join(&name);
        LocalFile::read(name, &path).map_err(|error| LaunchError::from(HubError::disk("read", &path)(error)))
    };
    names.into_iter().map(file).collect()
}

impl LocalFile {
    fn read(name: String, path: &Path) -> std::io::Result<LocalFile> {
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let (mut sha256, mut git) = (Sha256::new(), Sha1::new());
        git.update(format!("blob {bytes}\0"));
        let (mut chunk, mut sample) = (vec![0; CHUNK_BYTES], Vec::new());
        loop {
            let count = file.read(&mut chunk)?;
            if count == 0 {
                break;
            }
            let room = count.min(SAMPLE_BYTES - sample.len());
            sample.extend_from_slice(&chunk[..room]);
            sha256.update(&chunk[..count]);
            git.update(&chunk[..count]);
        }
        let (sha256, git) = (format!("{:x}", sha256.finalize()), format!("{:x}", git.finalize()));
        Ok(LocalFile { name, path: path.to_owned(), bytes, sample, sha256, git })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_of_lfs() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.txt"), "hello\n").unwrap();
        std::fs::write(folder.path().join(".hidden"), "x").unwrap();
        std::fs::write(folder.path().join("b.bin"), vec![7; 600]).unwrap();
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        let found = files(folder.path(), &Terminal::silent()).unwrap();
        assert_eq!(found.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["a.txt", "b.bin"]);
        // `printf 'hello\n' | git hash-object --stdin`, and sha256sum.
        assert_eq!(found[0].git, "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(found[0].sha256, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        assert_eq!((found[0].bytes, &found[0].sample[..]), (6, &b"hello\n"[..]));
        assert_eq!((found[1].bytes, found[1].sample.len()), (600, SAMPLE_BYTES));
    }

    #[test]
    fn only_a_model_folder_is_pushed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let told = |path: &Path| model_folder(path).unwrap_err().to_string();
        assert!(told(&path("none")).starts_with("there is no folder "));
        std::fs::create_dir_all(path("run/checkpoints/step-00000002")).unwrap();
        assert!(told(&path("run")).contains("has no model yet"), "{}", told(&path("run")));
        std::fs::write(path("run/checkpoints/step-00000002/manifest.json"), "{}").unwrap();
        assert!(told(&path("run/checkpoints/step-00000002")).contains("is a checkpoint\nhint: make a model folder"));
        std::fs::create_dir(path("run/model")).unwrap();
        assert!(told(&path("run")).contains("it has no config.json"));
        std::fs::write(path("run/model/config.json"), "{}").unwrap();
        assert!(told(&path("run/model/config.json")).contains("is a file"));
        std::fs::write(path("run/model/tokenizer.json"), "{}").unwrap();
        assert_eq!(model_folder(&path("run")).unwrap(), path("run/model"));
        assert_eq!(model_folder(&path("run/model")).unwrap(), path("run/model"));
        assert!(check(&path("run/model")).unwrap_err().to_string().contains("is not whole, and was not pushed"));
    }
}
