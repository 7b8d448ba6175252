//! What a kind of damage is: what is done to a step's folder, and what is told of it.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::shards;

/// The tools that see a damage, each all that those before it see.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Tool {
    /// Only a job that would go on: the checkpoint as such is sound.
    Resume,
    /// Whoever reads the files.
    Verify,
    /// Whoever looks at manifest and sizes.
    Inspect,
}

/// A kind of damage.
pub(crate) struct Kind {
    /// Its name, for messages.
    pub(crate) name: &'static str,
    damage: Damage,
    vouched: bool,
    /// The last tool that sees it.
    pub(crate) seen_by: Tool,
    /// What `--resume` says.
    pub(crate) told: Vec<&'static str>,
    verified: Option<&'static [&'static str]>,
}

enum Damage {
    Done(fn(&Path)),
    Edited(fn(&mut Value)),
}

impl Kind {
    /// Something done to the folder; `told` is part of the reason.
    pub(crate) fn new(name: &'static str, damage: fn(&Path), told: &[&'static str]) -> Kind {
        let damage = Damage::Done(damage);
        Kind { name, damage, vouched: false, seen_by: Tool::Inspect, told: told.to_vec(), verified: None }
    }

    /// Something changed in the manifest.
    pub(crate) fn edited(name: &'static str, change: fn(&mut Value), told: &[&'static str]) -> Kind {
        Kind { damage: Damage::Edited(change), ..Kind::new(name, |_| (), told) }
    }

    pub(crate) fn also(mut self, told: &'static str) -> Kind {
        self.told.push(told);
        self
    }

    pub(crate) fn seen_by(self, seen_by: Tool) -> Kind {
        Kind { seen_by, ..self }
    }

    /// The manifest is made to fit the file of rank 1.
    pub(crate) fn vouched_for(self) -> Kind {
        Kind { vouched: true, ..self }
    }

    /// `verify` has words of its own, and these are among them.
    pub(crate) fn verify(self, told: &'static [&'static str]) -> Kind {
        Kind { verified: Some(told), ..self }
    }

    /// What `launch verify` says: of the files the same in other words.
    pub(crate) fn verified(&self) -> Vec<String> {
        match self.verified {
            Some(told) => told.iter().map(|&part| part.to_owned()).collect(),
            None => self.told.iter().map(|part| part.replace("its manifest says", "the manifest says")).collect(),
        }
    }

    /// Does it.
    pub(crate) fn strike(&self, step: &Path) {
        match self.damage {
            Damage::Done(damage) => damage(step),
            Damage::Edited(change) => edit_manifest(step, change),
        }
        if self.vouched {
            shards::vouch(step);
        }
    }
}

/// The path of a step's manifest.
pub(crate) fn manifest(step: &Path) -> PathBuf {
    step.join("manifest.json")
}

/// Changes a manifest, which keeps its seal unless that is changed too.
pub(crate) fn edit_manifest(step: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = zerofold_tests::json(&manifest(step));
    change(&mut value);
    fs::write(manifest(step), format!("{value:#}")).unwrap();
}

/// A pipe, to which nobody writes.
pub(crate) fn make_pipe(path: &Path) {
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: `name` is zero-terminated and outlives the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0, "{}", std::io::Error::last_os_error());
}

/// All that lies in a folder, without opening what is no file: names, what they are, and contents.
pub(crate) fn contents(folder: &Path) -> Vec<(PathBuf, Content)> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_dir() {
                folders.push(path.clone());
                Content::Folder
            } else if metadata.is_symlink() {
                Content::Link(fs::read_link(&path).unwrap())
            } else if metadata.is_file() && metadata.len() < 10_000_000 {
                Content::File(fs::read(&path).unwrap())
            } else {
                Content::Other(metadata.len())
            };
            all.push((path.strip_prefix(folder).unwrap().to_owned(), content));
        }
    }
    all.sort();
    all
}

/// What lies at a path.
#[derive(PartialEq, Eq, PartialOrd, Ord, Clone)]
pub(crate) enum Content {
    Folder,
    Link(PathBuf),
    File(Vec<u8>),
    /// A pipe, or a large file.
    Other(u64),
}
