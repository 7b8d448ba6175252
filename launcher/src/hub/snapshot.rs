//! A commit of a repository as a model folder: which files are needed, which of them are there, and the rest of them
//! downloaded.

use std::path::PathBuf;

use serde::Deserialize;
use zerofold_checkpoint::{CheckpointError, is_side_file, listed_files};

use super::cache::RepoCache;
use super::download::{RemoteFile, Source};
use super::error::{HubError, HubTrouble};
use super::http::{Client, Patience};
use super::names::{RepoId, escaped, is_commit, is_inside, is_revision};
use super::transfer::Transfer;
use crate::format;
use crate::terminal::Terminal;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Files that a commit may have or not. Of each of them it must be known before the network is not asked.
const OPTIONAL: [&str; 5] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// What of a model is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Its shape: config.json.
    Shape,
    /// All that is not weights.
    WithoutWeights,
    /// All of it.
    Whole,
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

/// Somebody who wants a model.
pub(super) struct Request<'a> {
    pub(super) client: &'a Client,
    pub(super) id: &'a RepoId,
    pub(super) revision: &'a str,
    pub(super) extent: Extent,
    pub(super) terminal: &'a Terminal,
}

/// Asks what a revision is.
pub(super) fn info(client: &Client, id: &RepoId, revision: &str, patience: Patience) -> Result<Info, HubError> {
    let info: Info = client.get(id, &format!("api/models/{id}/revision/{}", escaped(revision)), patience)?;
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
    /// The model's folder. The network is asked only where something is missing, or which commit a branch or a tag is; a hub
    /// that does not answer is no obstacle where the last known commit is there.
    pub(super) fn snapshot(&self) -> Result<Snapshot, HubError> {
        let (id, revision) = (self.id, self.revision);
        if !is_revision(revision) {
            let message = format!("`{}` can be no revision", revision.escape_default());
            return Err(HubError::refused(id, message, "give a branch, a tag or a commit's hash"));
        }
        let cache = RepoCache::new(&self.client.settings.cache, id);
        let known = if is_commit(revision) { Some(revision.to_owned()) } else { cache.commit_of(revision) };
        let usable = known.filter(|commit| self.is_there(&cache, commit));
        let there = |commit: String| Snapshot { folder: cache.snapshot(&commit), commit };
        if self.client.settings.offline {
            return usable.map(there).ok_or_else(|| self.offline(&cache));
        }
        if let Some(commit) = usable.as_ref().filter(|commit| is_commit(revision) && self.is_settled(&cache, commit)) {
            return Ok(there(commit.clone()));
        }
        let patience = if usable.is_some() { Patience::none() } else { Patience::new() };
        match (info(self.client, id, revision, patience), usable) {
            (Ok(info), _) => {
                let commit = info.sha.clone();
                self.complete(&cache, info)?;
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

    /// Whether what a model cannot be without is in the cache.
    fn is_there(&self, cache: &RepoCache, commit: &str) -> bool {
        let has = |name: &str| cache.has(commit, name);
        let weights = || {
            listed_files(&cache.snapshot(commit)).is_ok_and(|files| files.keys().all(|name| cache.has(commit, name)))
        };
        match self.extent {
            Extent::Shape => has(CONFIG),
            Extent::WithoutWeights => has(CONFIG) && has(TOKENIZER),
            Extent::Whole => has(CONFIG) && has(TOKENIZER) && weights(),
        }
    }

    /// Whether of every other file it is known that it is there, or that there is none.
    fn is_settled(&self, cache: &RepoCache, commit: &str) -> bool {
        let known = |name: &str| cache.has(commit, name) || cache.is_known_missing(commit, name);
        self.extent == Extent::Shape || OPTIONAL.iter().all(|name| known(name))
    }

    /// Downloads what is missing.
    fn complete(&self, cache: &RepoCache, info: Info) -> Result<(), HubError> {
        let names: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        // A name that would leave the folder belongs to no model.
        let names: Vec<String> = names.into_iter().filter(|name| is_inside(name)).collect();
        let has = |name: &str| names.iter().any(|other| other == name);
        self.check(has)?;
        let source = Source { client: self.client, cache, id: self.id, commit: &info.sha };
        let mut wanted: Vec<String> = match self.extent {
            Extent::Shape => vec![CONFIG.to_owned()],
            _ => names.iter().filter(|name| is_side_file(name)).cloned().collect(),
        };
        if self.extent == Extent::Whole {
            match has(SINGLE) {
                true => wanted.push(SINGLE.to_owned()),
                false => wanted.extend(self.shards(&source, has)?),
            }
        }
        self.download(&source, wanted)?;
        if self.extent != Extent::Shape {
            for name in OPTIONAL.iter().filter(|name| !has(name)) {
                cache.remember_missing(&info.sha, name)?;
            }
        }
        Ok(())
    }

    /// Whether what is needed is in the repository at all; said in the words of a folder that lacks it.
    fn check(&self, has: impl Fn(&str) -> bool) -> Result<(), HubError> {
        let refuse = |message: String, hint: &str| Err(HubError::refused(self.id, message, hint));
        let needed: &[&str] = if self.extent == Extent::Shape { &[CONFIG] } else { &[CONFIG, TOKENIZER] };
        if let Some(missing) = needed.iter().find(|name| !has(name)) {
            let hint = "a Hugging Face model has config.json, tokenizer.json and model.safetensors";
            return refuse(format!("it has no {missing}"), hint);
        }
        if self.extent != Extent::Whole || has(SINGLE) || has(INDEX) {
            return Ok(());
        }
        match has("pytorch_model.bin") || has("pytorch_model.bin.index.json") {
            true => refuse(
                "its weights are a pickle (pytorch_model.bin), which can run code when it is read; it was not downloaded"
                    .to_owned(),
                "load it with transformers and save_pretrained it to a folder: that writes safetensors",
            ),
            false => refuse("it has no model.safetensors".to_owned(), "give a model with weights in safetensors"),
        }
    }

    /// The index, and the files that it names, none of which lies elsewhere.
    fn shards(&self, source: &Source<'_>, has: impl Fn(&str) -> bool) -> Result<Vec<String>, HubError> {
        self.download(source, vec![INDEX.to_owned()])?;
        let folder = source.cache.snapshot(source.commit);
        let wrong = |error: CheckpointError| {
            HubError::refused(self.id, error.to_string(), "give another revision, or another model")
        };
        let names: Vec<String> = listed_files(&folder).map_err(wrong)?.into_keys().collect();
        match names.iter().find(|name| !has(name)) {
            Some(name) => {
                let message = format!("{INDEX} names {}, which is not there", name.escape_default());
                Err(HubError::refused(self.id, message, "give another revision, or another model"))
            }
            None => Ok(names),
        }
    }

    fn download(&self, source: &Source<'_>, wanted: Vec<String>) -> Result<(), HubError> {
        let (cache, commit) = (source.cache, source.commit);
        let missing = wanted.iter().filter(|name| !cache.has(commit, name));
        let files = missing.map(|name| source.describe(name)).collect::<Result<Vec<RemoteFile>, _>>()?;
        if files.is_empty() {
            return Ok(());
        }
        let bytes = files.iter().map(|file| file.bytes).sum();
        let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |found| found.len());
        let there = files.iter().map(|file| size(cache.blob(&file.etag)).max(size(cache.incomplete(&file.etag))));
        let needed = files.iter().zip(there).map(|(file, there)| file.bytes.saturating_sub(there)).sum();
        if let Err(error) = zerofold_checkpoint::ensure_room(cache.root(), needed) {
            let reason = error.to_string();
            let reason = reason.lines().next().unwrap_or_default();
            let hint = "free some space, or set HF_HOME to a folder on another disk";
            return Err(HubError::new(HubTrouble::Failed, self.id, reason, hint));
        }
        self.terminal.tell(&format!(
            "downloading {} of {} at {} ({}) to {}",
            format::plural(files.len() as u64, "file"),
            self.id,
            short(commit),
            format::bytes(bytes),
            cache.root().display()
        ));
        let transfer = Transfer::new(self.terminal, "downloaded", bytes);
        files.iter().try_for_each(|file| source.fetch(file, &transfer))
    }

    fn offline(&self, cache: &RepoCache) -> HubError {
        let message = format!(
            "the network must not be asked (HF_HUB_OFFLINE), and {} has no whole copy of its revision {}",
            cache.root().display(),
            self.revision
        );
        HubError::refused(self.id, message, "download it once without HF_HUB_OFFLINE, or give a local folder")
    }
}

/// A commit as people write it.
pub(crate) fn short(commit: &str) -> &str {
    commit.get(..7).unwrap_or(commit)
}
