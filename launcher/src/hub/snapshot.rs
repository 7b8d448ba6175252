//! A commit of a repository on this machine: which commit a revision is, whether what is needed of it is there, and the rest
//! of it downloaded.

use std::path::PathBuf;

use serde::Deserialize;

use super::cache::RepoCache;
use super::download::Source;
use super::error::{HubError, HubTrouble};
use super::http::{Client, Patience};
use super::names::{RepoId, escaped, is_commit, is_inside, is_revision};
use crate::terminal::Terminal;

/// What of a repository somebody needs.
pub(super) trait Wanted {
    /// Whether the cache has of a commit what cannot be done without; an error where it is known that the commit has no such
    /// thing.
    fn is_there(&self, cache: &RepoCache, commit: &str) -> Result<bool, HubError>;

    /// Whether nothing more has to be known of a commit, of which that is there.
    fn is_settled(&self, cache: &RepoCache, commit: &str) -> bool;

    /// Downloads what is missing of a commit that has files of these names.
    fn complete(&self, source: &Source<'_>, names: &[String]) -> Result<(), HubError>;
}

/// A commit that is there as far as it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) commit: String,
    pub(super) folder: PathBuf,
}

/// What the hub tells of a commit.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    /// The commit.
    pub(super) sha: String,
    /// Its files.
    #[serde(default)]
    pub(super) siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Sibling {
    pub(super) rfilename: String,
}

/// Somebody who wants something of a repository.
pub(super) struct Request<'a> {
    pub(super) client: &'a Client,
    pub(super) id: &'a RepoId,
    pub(super) revision: &'a str,
    pub(super) wanted: &'a dyn Wanted,
    pub(super) terminal: &'a Terminal,
}

/// Asks what a revision is.
pub(super) fn info(client: &Client, id: &RepoId, revision: &str, patience: Patience) -> Result<Info, HubError> {
    let info: Info = client.get(id, &format!("{}/revision/{}", id.api(), escaped(revision)), patience)?;
    match is_commit(&info.sha) {
        true => Ok(info),
        false => Err(HubError::refused(
            id,
            format!("`{}` is no commit's hash", info.sha.escape_default()),
            "see that HF_ENDPOINT is the address of a Hugging Face hub",
        )),
    }
}

impl Request<'_> {
    /// The commit's folder. The network is asked only where something is missing, or which commit a branch or a tag is; a hub
    /// that does not answer is no obstacle where the last known commit is there.
    pub(super) fn snapshot(&self) -> Result<Snapshot, HubError> {
        let (id, revision) = (self.id, self.revision);
        if !is_revision(revision) {
            let message = format!("`{}` can be no revision", revision.escape_default());
            return Err(HubError::refused(id, message, "give a branch, a tag or a commit's hash"));
        }
        let cache = RepoCache::new(&self.client.settings.cache, id);
        let known = if is_commit(revision) { Some(revision.to_owned()) } else { cache.commit_of(revision) };
        let found = known.as_ref().map_or(Ok(false), |commit| self.wanted.is_there(&cache, commit));
        let usable = known.filter(|_| matches!(found, Ok(true)));
        let there = |commit: String| Snapshot { folder: cache.snapshot(&commit), commit };
        if let Some(variable) = self.client.settings.offline {
            found?;
            return usable.map(there).ok_or_else(|| self.offline(&cache, variable));
        }
        let settled = |commit: &&String| is_commit(revision) && self.wanted.is_settled(&cache, commit);
        if let Some(commit) = usable.as_ref().filter(settled) {
            return Ok(there(commit.clone()));
        }
        let patience = if usable.is_some() { Patience::none() } else { Patience::new() };
        match (info(self.client, id, revision, patience), usable) {
            (Ok(info), _) => {
                let commit = info.sha;
                // A name that would leave the folder belongs to nothing that is wanted.
                let names = info.siblings.into_iter().map(|sibling| sibling.rfilename);
                let names: Vec<String> = names.filter(|name| is_inside(name)).collect();
                let (client, terminal) = (self.client, self.terminal);
                self.wanted.complete(&Source { client, cache: &cache, id, commit: &commit, terminal }, &names)?;
                cache.remember(revision, &commit)?;
                Ok(there(commit))
            }
            (Err(error), Some(commit)) if error.trouble == HubTrouble::Unreachable => {
                self.terminal.tell(&format!(
                    "note: {id}: {}; using its commit {} from the cache, which may be older than {revision}",
                    error.message,
                    short(&commit)
                ));
                Ok(there(commit))
            }
            (Err(error), _) => Err(error),
        }
    }

    fn offline(&self, cache: &RepoCache, variable: &str) -> HubError {
        let message = format!(
            "the network must not be asked ({variable}), and {} has no whole copy of its revision {}",
            cache.root().display(),
            self.revision
        );
        let hint = format!("download it once without {variable}, or name what is on this machine");
        HubError::new(HubTrouble::NotHere, self.id, message, hint)
    }
}

/// A commit as people write it.
pub(crate) fn short(commit: &str) -> &str {
    commit.get(..7).unwrap_or(commit)
}
