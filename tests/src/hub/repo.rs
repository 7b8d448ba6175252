//! What the hub keeps: repositories, their commits and branches, and the storage of large files.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sha1::{Digest, Sha1};
use sha2::Sha256;

use super::Fault;

/// Files by name.
pub(super) type Files = BTreeMap<String, Arc<Vec<u8>>>;

/// Everything.
pub(super) struct State {
    pub(super) repos: BTreeMap<String, Repo>,
    /// Large files that were uploaded, by SHA-256.
    pub(super) storage: HashMap<String, Arc<Vec<u8>>>,
    /// Parts of uploads.
    pub(super) parts: HashMap<(String, usize), Vec<u8>>,
    pub(super) part_bytes: usize,
    pub(super) faults: Vec<Fault>,
    pub(super) requests: Vec<String>,
    pub(super) spoilt: Option<String>,
}

impl Default for State {
    fn default() -> Self {
        State {
            repos: BTreeMap::new(),
            storage: HashMap::new(),
            parts: HashMap::new(),
            part_bytes: 1 << 30,
            faults: Vec::new(),
            requests: Vec::new(),
            spoilt: None,
        }
    }
}

impl State {
    /// A large file, by its SHA-256.
    pub(super) fn large(&self, sha256: &str) -> Option<Arc<Vec<u8>>> {
        let all = self.repos.values().flat_map(|repo| repo.commits.values()).flatten();
        let found = all.into_iter().find(|(_, bytes)| hash(bytes) == sha256).map(|(_, bytes)| bytes.clone());
        self.storage.get(sha256).cloned().or(found)
    }
}

/// A repository.
#[derive(Debug, Default)]
pub struct Repo {
    /// Whether only those who may write see it.
    pub private: bool,
    /// Whether files are given only to those who may write.
    pub gated: bool,
    /// Commits of each branch, oldest first.
    branches: BTreeMap<String, Vec<String>>,
    commits: BTreeMap<String, Files>,
}

impl Repo {
    /// Makes a branch that begins where main is.
    pub fn branch(&mut self, name: &str) {
        let main = self.branches.get("main").cloned().unwrap_or_default();
        self.branches.insert(name.to_owned(), main);
    }

    /// The commit that a branch's name or a commit's hash means.
    pub(super) fn resolve(&self, revision: &str) -> Option<String> {
        let of_branch = self.branches.get(revision).and_then(|commits| commits.last());
        of_branch.cloned().or_else(|| self.commits.contains_key(revision).then(|| revision.to_owned()))
    }

    pub(super) fn files(&self, revision: &str) -> Option<&Files> {
        self.commits.get(&self.resolve(revision)?)
    }

    pub(super) fn length(&self, branch: &str) -> usize {
        self.branches.get(branch).map_or(0, Vec::len)
    }

    /// Changes files on a branch (those without bytes go away); gives the commit's hash.
    pub(super) fn commit(&mut self, branch: &str, changes: Vec<(String, Option<Vec<u8>>)>) -> String {
        let mut files = self.files(branch).cloned().unwrap_or_default();
        for (name, bytes) in changes {
            match bytes {
                Some(bytes) => files.insert(name, Arc::new(bytes)),
                None => files.remove(&name),
            };
        }
        let mut sum = Sha1::new();
        sum.update(format!("{branch} {}", self.commits.len()));
        for (name, bytes) in &files {
            sum.update(format!("{name} {}\n", hash(bytes)));
        }
        let commit = format!("{:x}", sum.finalize());
        self.commits.insert(commit.clone(), files);
        self.branches.entry(branch.to_owned()).or_default().push(commit.clone());
        commit
    }
}

/// Whether a file of this name is kept as a large one, as a new repository's .gitattributes has it.
pub(super) fn is_large(name: &str) -> bool {
    [".safetensors", ".bin", ".parquet", ".gz", ".zst"].iter().any(|ending| name.ends_with(ending))
}

/// The SHA-256.
pub(super) fn hash(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Git's hash of a file.
pub(super) fn git_hash(bytes: &[u8]) -> String {
    let mut sum = Sha1::new();
    sum.update(format!("blob {}\0", bytes.len()));
    sum.update(bytes);
    format!("{:x}", sum.finalize())
}
