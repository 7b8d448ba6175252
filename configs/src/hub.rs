//! Data of the Hugging Face hub: which names mean such, and what is decided about them before the hub is asked.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::data::Dataset;
use crate::known::no_effect;
use crate::registry::Section;
use crate::settings::Reader;
use crate::training::Training;
use crate::types::Strategy;

/// The branch that a repository has from its beginning.
const MAIN: &str = "main";
/// The split that is held out where no other is named.
const TEST: &str = "test";
/// The longest name that the hub gives to a repository.
const MAX_LETTERS: usize = 96;
/// How names of data files end, those that are read and those that are not.
const ENDINGS: [&str; 25] = [
    "jsonl",
    "ndjson",
    "jsonlines",
    "json",
    "parquet",
    "pq",
    "gz",
    "zst",
    "zstd",
    "csv",
    "tsv",
    "arrow",
    "txt",
    "xz",
    "bz2",
    "lz4",
    "zip",
    "tar",
    "tgz",
    "pt",
    "pkl",
    "bin",
    "idx",
    "npy",
    "safetensors",
];

/// Part of a data set of the hub, as it was at one commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubData {
    /// `owner/name`.
    pub id: String,
    /// The branch, tag or commit that was asked for.
    pub revision: String,
    /// The hash of the commit that it was.
    pub commit: String,
    /// The configuration.
    pub config: String,
    /// The split.
    pub split: String,
}

impl HubData {
    /// Whether this is what `name` means.
    pub fn is_of(&self, name: &HubName<'_>) -> bool {
        self.id == name.id && (self.revision == name.revision || self.commit == name.revision)
    }
}

/// What a name means on the hub: `owner/name`, or `owner/name@revision`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubName<'a> {
    /// `owner/name`.
    pub id: &'a str,
    /// The branch, tag or commit; main where none is written.
    pub revision: &'a str,
}

impl<'a> HubName<'a> {
    /// The data set that a name can mean, whatever there is on this machine: the name has one slash, and is that of no data
    /// file and no pattern.
    pub fn parse(name: &'a str) -> Option<HubName<'a>> {
        let (id, revision) = name.split_once('@').unwrap_or((name, MAIN));
        let is_file = |text: &str| has_ending(text.rsplit('/').next().unwrap_or(text));
        let fits = id.matches('/').count() == 1 && is_repository_name(id) && !is_file(id) && !is_file(name);
        let plain = !revision.is_empty() && !revision.contains(['*', '?', '[']);
        (fits && plain).then_some(HubName { id, revision })
    }

    /// The data set of the hub that is meant by a name of data; none where there is a file or folder of this name.
    pub fn meant(name: &'a str) -> Option<HubName<'a>> {
        HubName::parse(name).filter(|_| !Path::new(name).exists())
    }
}

/// Whether a name ends as those of data files do.
pub fn has_ending(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, ending)| ENDINGS.contains(&ending.to_ascii_lowercase().as_str()))
}

/// Whether this can be a repository's name by the hub's rules, with an owner or without: letters, digits, `-`, `_` and `.`.
pub fn is_repository_name(text: &str) -> bool {
    let ends = |part: &str| part.starts_with(['-', '.']) || part.ends_with(['-', '.']);
    let fits = |part: &str| {
        let letters = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        !part.is_empty() && letters && !ends(part)
    };
    let fits = text.matches('/').count() <= 1 && text.len() <= MAX_LETTERS && text.split('/').all(fits);
    fits && !text.contains("--") && !text.contains("..") && !text.ends_with(".git")
}

/// Whether all of these are data sets of the hub.
pub(crate) fn all_of_hub(data: &Dataset) -> bool {
    data.sources().iter().flat_map(|source| source.path.names()).all(|name| HubName::meant(name).is_some())
}

/// Evaluates on the test split of the data that are trained on, where there is to be an evaluation and nothing else is named
/// for it.
pub(crate) fn settle(reader: &mut Reader<'_>, training: &mut Training) {
    let evaluates = training.eval_strategy != Strategy::No || training.eval_on_start;
    if training.eval_dataset.is_none() && evaluates && all_of_hub(&training.dataset) {
        training.eval_dataset = Some(training.dataset.held_out());
        reader.provenance.insert("eval_dataset".to_owned(), "derived from dataset".to_owned());
    }
    if training.eval_dataset.is_none()
        && training.dataset_test_split != TEST
        && let Some(setting) = reader.settings.find(Section::Training, "dataset_test_split")
    {
        reader.notes.push(no_effect(setting, "nothing is evaluated: eval_strategy is no and there is no eval_dataset"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_are_told_from_those_of_files() {
        let parse = |name| HubName::parse(name).map(|HubName { id, revision }| (id, revision));
        for (name, expected) in [
            ("HuggingFaceH4/ultrachat_200k", ("HuggingFaceH4/ultrachat_200k", "main")),
            ("data/train", ("data/train", "main")),
            ("a/v1.0", ("a/v1.0", "main")),
            ("a/b@refs/convert/parquet", ("a/b", "refs/convert/parquet")),
            ("a/b@v1.0", ("a/b", "v1.0")),
        ] {
            assert_eq!(parse(name), Some(expected), "{name}");
        }
        for name in [
            "imdb",
            "-",
            "a/b/c",
            "/a/b",
            "./a",
            "../a",
            "~/a",
            "data/*",
            "data/train-?",
            "data/train.jsonl",
            "data/a.JSON",
            "data/a.parquet",
            "data/a.jsonl.gz",
            "data/a.zst",
            "data/a.csv",
            "data/a@b.jsonl",
            "a/b@",
            "a b/c",
            "a/b@v*",
            "s3://a/b",
            "hf://datasets/a/b",
            "",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
        assert!(HubName::meant("owner/name").is_some());
        assert!(HubName::meant("src/tests").is_none(), "there is such a folder");
    }

    #[test]
    fn a_commit_stands_for_the_revision_that_it_was() {
        let [id, revision, commit, config, split] = ["a/b", "v1", "c0ffee", "default", "train"].map(str::to_owned);
        let data = HubData { id, revision, commit, config, split };
        let is = |name| data.is_of(&HubName::parse(name).unwrap());
        assert!(is("a/b@v1") && is("a/b@c0ffee") && !is("a/b") && !is("a/c@v1"));
    }
}
