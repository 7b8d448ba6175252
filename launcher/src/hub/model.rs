//! What of a model's repository is needed: which files make a model folder.

use zerofold_checkpoint::{CheckpointError, is_side_file, listed_files};

use super::cache::RepoCache;
use super::download::Source;
use super::error::HubError;
use super::names::RepoId;
use super::snapshot::Wanted;

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

impl Wanted for Extent {
    /// Whether what a model cannot be without is in the cache.
    fn is_there(&self, cache: &RepoCache, commit: &str) -> Result<bool, HubError> {
        let has = |name: &str| cache.has(commit, name);
        let weights = || {
            listed_files(&cache.snapshot(commit)).is_ok_and(|files| files.keys().all(|name| cache.has(commit, name)))
        };
        Ok(match self {
            Extent::Shape => has(CONFIG),
            Extent::WithoutWeights => has(CONFIG) && has(TOKENIZER),
            Extent::Whole => has(CONFIG) && has(TOKENIZER) && weights(),
        })
    }

    /// Whether of every other file it is known that it is there, or that there is none.
    fn is_settled(&self, cache: &RepoCache, commit: &str) -> bool {
        let known = |name: &str| cache.has(commit, name) || cache.is_known_missing(commit, name);
        *self == Extent::Shape || OPTIONAL.iter().all(|name| known(name))
    }

    fn complete(&self, source: &Source<'_>, names: &[String]) -> Result<(), HubError> {
        let has = |name: &str| names.iter().any(|other| other == name);
        self.check(source.id, has)?;
        let mut wanted: Vec<String> = match self {
            Extent::Shape => vec![CONFIG.to_owned()],
            _ => names.iter().filter(|name| is_side_file(name)).cloned().collect(),
        };
        if *self == Extent::Whole {
            match has(SINGLE) {
                true => wanted.push(SINGLE.to_owned()),
                false => wanted.extend(shards(source, has)?),
            }
        }
        source.bring(wanted)?;
        if *self != Extent::Shape {
            for name in OPTIONAL.iter().filter(|name| !has(name)) {
                source.cache.remember_missing(source.commit, name)?;
            }
        }
        Ok(())
    }
}

impl Extent {
    /// Whether what is needed is in the repository at all; said in the words of a folder that lacks it.
    fn check(self, id: &RepoId, has: impl Fn(&str) -> bool) -> Result<(), HubError> {
        let refuse = |message: String, hint: &str| Err(HubError::refused(id, message, hint));
        let needed: &[&str] = if self == Extent::Shape { &[CONFIG] } else { &[CONFIG, TOKENIZER] };
        if let Some(missing) = needed.iter().find(|name| !has(name)) {
            let hint = "a Hugging Face model has config.json, tokenizer.json and model.safetensors";
            return refuse(format!("it has no {missing}"), hint);
        }
        if self != Extent::Whole || has(SINGLE) || has(INDEX) {
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
}

/// The index, and the files that it names, none of which lies elsewhere.
fn shards(source: &Source<'_>, has: impl Fn(&str) -> bool) -> Result<Vec<String>, HubError> {
    source.bring(vec![INDEX.to_owned()])?;
    let folder = source.cache.snapshot(source.commit);
    let wrong = |error: CheckpointError| {
        HubError::refused(source.id, error.to_string(), "give another revision, or another model")
    };
    let names: Vec<String> = listed_files(&folder).map_err(wrong)?.into_keys().collect();
    match names.iter().find(|name| !has(name)) {
        Some(name) => {
            let message = format!("{INDEX} names {}, which is not there", name.escape_default());
            Err(HubError::refused(source.id, message, "give another revision, or another model"))
        }
        None => Ok(names),
    }
}
