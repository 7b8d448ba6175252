//! What a name of data means: files of this machine, or a part of a data set of the hub, which is brought here.
//!
//! ```text
//! a job ─ bring_data ─ each name ─ DataName::find ─┬ a file, folder or pattern of this machine
//!                                                  └ snapshot → README.md, names (splits) → which files? ─ download ─ cache
//! ```

use std::path::Path;

use zerofold_configs::{DataSource, Dataset, HubData, HubName, Resolved, Training, has_ending, is_repository_name};
use zerofold_data::Sources;

use super::cache::RepoCache;
use super::dataset_card::{self, DatasetCard};
use super::download::Source;
use super::error::HubError;
use super::http::Client;
use super::names::RepoId;
use super::place::explained;
use super::settings::Settings;
use super::snapshot::{Request, Snapshot, Wanted, short};
use super::splits::{Choice, DataKeys, Part, Refusal, choose};
use crate::error::LaunchError;
use crate::format;
use crate::terminal::Terminal;

const README: &str = "README.md";
/// Of a repository with more files the hub may not name all.
const MOST_FILES: usize = 50_000;

/// What is trained on.
const TRAINING: DataKeys =
    DataKeys { name: "dataset", config: "dataset_config", split: "dataset_train_split", default_split: "train" };
/// What is held out.
const HELD_OUT: DataKeys =
    DataKeys { name: "eval_dataset", config: "dataset_config", split: "dataset_test_split", default_split: "test" };
/// What the Fisher information is estimated on.
const FISHER: DataKeys = DataKeys { name: "ewc_dataset", ..TRAINING };
/// Which data of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataUse {
    /// Those it trains on.
    Training,
    /// Those it evaluates on.
    HeldOut,
    /// Those it estimates the Fisher information on.
    Fisher,
}

/// Data as they were named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DataName<'a> {
    /// A file, folder or pattern; or of the hub `owner/name`, `owner/name@revision`.
    pub(crate) name: &'a str,
    /// Of the hub: the configuration, if one is named.
    pub(crate) config: Option<&'a str>,
    /// Of the hub: the split.
    pub(crate) split: &'a str,
    /// The keys that say it.
    pub(crate) keys: DataKeys,
}

/// Data that are on this machine.
#[derive(Debug)]
pub(crate) struct FoundData {
    /// Files, folders and patterns.
    pub(crate) paths: Vec<String>,
    /// Where they came from, if from the hub.
    pub(crate) origin: Option<HubData>,
}

impl DataName<'_> {
    /// The data on this machine, brought here if they are of the hub; what there is of this name goes before. A commit that
    /// `kept` tells of them is held to. A name that can be neither is given back as it is: whoever reads it says what is
    /// wrong with it.
    ///
    /// # Errors
    /// The hub does not have them, does not give them or does not answer; a part is chosen of what has none.
    pub(crate) fn find(self, kept: &[HubData], terminal: &Terminal) -> Result<FoundData, LaunchError> {
        let Some(name) = HubName::meant(self.name) else {
            self.check_local()?;
            return Ok(FoundData { paths: vec![self.name.to_owned()], origin: None });
        };
        let id = RepoId::of_data(&name);
        let client = Client::new(Settings::for_data());
        let wanted = WantedData { id: &id, part: Part { config: self.config, split: self.split, keys: self.keys } };
        let commit = kept.iter().find(|data| data.is_of(&name)).map(|data| data.commit.as_str());
        let revision = commit.unwrap_or(name.revision);
        let found = Request { client: &client, id: &id, revision, wanted: &wanted, terminal }.snapshot();
        let found = found.map_err(|error| explained(error, self.name.as_ref(), "file or folder", Path::exists))?;
        let Snapshot { commit, folder } = found;
        let cache = RepoCache::new(&client.settings.cache, &id);
        let Choice { config, files, left_out } = wanted.chosen(&cache, &commit)?;
        if cache.files(&commit).is_none() {
            let count = format::plural(files.len() as u64, "file");
            terminal.tell(&format!(
                "note: {id}: which files its commit {} has was never asked here; taking the {count} of its split {} that are in \
                 the cache",
                short(&commit),
                self.split
            ));
        }
        if left_out > 0 {
            let (left_out, files) = (format::plural(left_out as u64, "file"), files.len());
            terminal.tell(&format!(
                "note: {id}: of its split {} {left_out} left out, which are of another format than the other {files}",
                self.split
            ));
        }
        let paths = files.iter().map(|file| folder.join(file).display().to_string()).collect();
        let (id, revision, split) = (id.to_string(), name.revision.to_owned(), self.split.to_owned());
        Ok(FoundData { paths, origin: Some(HubData { id, revision, commit, config, split }) })
    }

    /// Refuses what is said of a data set of the hub where none is named.
    ///
    /// # Errors
    /// A configuration or a split is named; the name is that of no file, and a data set of the hub that lacks its owner.
    pub(crate) fn check_local(self) -> Result<(), LaunchError> {
        let DataName { name, config, split, keys } = self;
        let refuse = |key: &str, value: &str, what: &str| {
            let message = format!("{key} is {value}, and {name} is no data set of the hub: files have no {what}");
            let hint = format!("leave {key} out, and name the files themselves; of the hub is owner/name alone");
            Err(LaunchError::usage(message, hint))
        };
        if let Some(config) = config {
            return refuse(keys.config, config, "configurations");
        }
        if split != keys.default_split {
            return refuse(keys.split, split, "splits");
        }
        if !name.contains('/') && is_repository_name(name) && !has_ending(name) && !Path::new(name).exists() {
            let message = format!("{name}: there is no such file or folder");
            let hint = format!("a data set of the hub is named with its owner: OWNER/{name}");
            return Err(LaunchError::usage(message, hint));
        }
        Ok(())
    }
}

impl DataUse {
    /// All data of a training.
    pub(crate) const ALL: [DataUse; 3] = [DataUse::Training, DataUse::HeldOut, DataUse::Fisher];

    /// The sources of these data.
    pub(crate) fn data_sources(self, training: &Training) -> &[DataSource] {
        match self {
            DataUse::Training => training.dataset.sources(),
            DataUse::HeldOut => training.eval_dataset.as_ref().map(Dataset::sources).unwrap_or_default(),
            DataUse::Fisher => training.ewc_dataset.as_ref().map(Dataset::sources).unwrap_or_default(),
        }
    }

    /// The key that names them.
    pub(crate) fn key(self) -> &'static str {
        match self {
            DataUse::Training => TRAINING.name,
            DataUse::HeldOut => HELD_OUT.name,
            DataUse::Fisher => FISHER.name,
        }
    }

    /// What one of a source's names means: what the source says of it goes before what the job says. `dataset_config` is one of
    /// what is trained on; what is held out, or estimated on, may be another data set.
    pub(crate) fn meant<'a>(self, training: &'a Training, source: &'a DataSource, name: &'a str) -> DataName<'a> {
        let of_job = training.dataset_config.as_deref();
        let same = || {
            let id = |name: &'a str| HubName::meant(name).map(|name| name.id);
            let mut trained = training.dataset.sources().iter().flat_map(|source| source.path.names());
            trained.any(|other| id(other).is_some() && id(other) == id(name))
        };
        let (config, split, keys) = match self {
            DataUse::Training => (of_job, training.dataset_train_split.as_str(), TRAINING),
            DataUse::HeldOut => (of_job.filter(|_| same()), training.dataset_test_split.as_str(), HELD_OUT),
            DataUse::Fisher if same() => (of_job, training.dataset_train_split.as_str(), FISHER),
            DataUse::Fisher => (None, FISHER.default_split, FISHER),
        };
        let keys = DataKeys {
            config: if source.name.is_some() { "name" } else { keys.config },
            split: if source.split.is_some() { "split" } else { keys.split },
            ..keys
        };
        DataName {
            name,
            config: source.name.as_deref().or(config),
            split: source.split.as_deref().unwrap_or(split),
            keys,
        }
    }
}

/// Brings these data of a job to this machine, and makes the configuration tell where they came from. A run that is gone on with
/// keeps the commits that it began with, which its own configuration tells.
///
/// # Errors
/// As of [`DataName::find`].
pub(crate) fn bring_data(
    config: &mut Resolved,
    uses: &[DataUse],
    earlier: Option<&Resolved>,
    terminal: &Terminal,
) -> Result<(), LaunchError> {
    let mut kept = earlier.map(|earlier| earlier.hub_data.clone()).unwrap_or_default();
    let mut brought = Vec::new();
    for which in uses {
        for source in which.data_sources(&config.training) {
            for name in source.path.names() {
                let found = which.meant(&config.training, source, name).find(&kept, terminal)?;
                let new = found.origin.filter(|origin| !brought.contains(origin));
                kept.extend(new.clone());
                brought.extend(new);
            }
        }
    }
    config.hub_data = brought;
    Ok(())
}

/// The files of a source of a job's data, which were brought and told of before.
///
/// # Errors
/// As of [`DataName::find`] and [`Sources::find`].
pub(crate) fn sources(source: &DataSource, config: &Resolved, which: DataUse) -> Result<Sources, LaunchError> {
    sources_of(source, config, which, &Terminal::new(true))
}

/// The same of any source; what of it is of the hub is brought.
pub(crate) fn sources_of(
    source: &DataSource,
    config: &Resolved,
    which: DataUse,
    terminal: &Terminal,
) -> Result<Sources, LaunchError> {
    let (mut paths, mut words) = (Vec::new(), Vec::new());
    for name in source.path.names() {
        let found = which.meant(&config.training, source, name).find(&config.hub_data, terminal)?;
        words.push(found.origin.as_ref().map_or_else(|| name.clone(), shown));
        paths.extend(found.paths);
    }
    Ok(Sources::find(&paths)?.called(words.join(", ")))
}

/// A part of a data set as it is told to people.
fn shown(HubData { id, revision, commit, config, split }: &HubData) -> String {
    let revision = if revision == commit { String::new() } else { format!(" ({revision})") };
    format!("{id} at {}{revision}, {config}, {split}", short(commit))
}

/// A part of a data set that somebody needs.
struct WantedData<'a> {
    id: &'a RepoId,
    part: Part<'a>,
}

impl WantedData<'_> {
    /// What is meant, of a commit whose README.md is there if it has one.
    fn chosen(&self, cache: &RepoCache, commit: &str) -> Result<Choice, HubError> {
        let names = cache.files(commit).unwrap_or_else(|| cache.present(commit));
        self.choose(cache, commit, &names)
    }

    fn choose(&self, cache: &RepoCache, commit: &str, names: &[String]) -> Result<Choice, HubError> {
        let refused = |Refusal(message, hint)| HubError::refused(self.id, message, hint);
        let card = match names.iter().any(|name| name == README) {
            true => read_card(cache, commit).map_err(|error| {
                let message = format!("the head of its {README} cannot be read: {error}");
                refused(Refusal(message, "its owner has to mend that; download its files and name them".to_owned()))
            })?,
            false => DatasetCard::default(),
        };
        choose(&self.id.to_string(), names, &card, &self.part).map_err(refused)
    }
}

impl Wanted for WantedData<'_> {
    fn is_there(&self, cache: &RepoCache, commit: &str) -> Result<bool, HubError> {
        let listed = cache.files(commit);
        let is_listed = listed.is_some();
        let names = listed.unwrap_or_else(|| cache.present(commit));
        if names.iter().any(|name| name == README) && !cache.has(commit, README) {
            return Ok(false);
        }
        match self.choose(cache, commit, &names) {
            Ok(choice) => {
                let has_all = choice.files.iter().all(|name| cache.has(commit, name));
                Ok(has_all && (is_listed || has_all_shards(&choice.files)))
            }
            Err(error) if is_listed => Err(error),
            Err(_) => Ok(false),
        }
    }

    fn is_settled(&self, cache: &RepoCache, commit: &str) -> bool {
        cache.files(commit).is_some()
    }

    fn complete(&self, source: &Source<'_>, names: &[String]) -> Result<(), HubError> {
        if names.len() > MOST_FILES {
            let message =
                format!("it has {} files, and of more than {MOST_FILES} the hub may not name all", names.len());
            return Err(HubError::refused(
                self.id,
                message,
                "download what is needed by `hf download`, and name its files",
            ));
        }
        if names.iter().any(|name| name == README) {
            source.bring(vec![README.to_owned()])?;
        }
        source.cache.remember_files(source.commit, names)?;
        source.bring(self.choose(source.cache, source.commit, names)?.files)
    }
}

fn read_card(cache: &RepoCache, commit: &str) -> Result<DatasetCard, String> {
    let read = |path: &Path| -> std::io::Result<Vec<u8>> {
        use std::io::Read;
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(dataset_card::MOST_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read(&cache.snapshot(commit).join(README)).map_err(|error| error.to_string())?;
    DatasetCard::parse(&String::from_utf8_lossy(&bytes))
}

/// Whether of files that tell how many of them there are (`-00000-of-00004`) none is missing.
fn has_all_shards(files: &[String]) -> bool {
    let shard = |file: &str| {
        let (before, after) = file.rsplit_once("-of-")?;
        let (name, _) = before.rsplit_once('-')?;
        let of: usize = after.get(..5)?.parse().ok()?;
        Some((name.to_owned(), of))
    };
    let shards: Vec<_> = files.iter().filter_map(|file| shard(file)).collect();
    shards.iter().all(|one| shards.iter().filter(|other| *other == one).count() == one.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_shards_are_noticed() {
        let all = |names: &[&str]| has_all_shards(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert!(all(&["a.jsonl", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002-ab.parquet"]));
        assert!(!all(&["data/train-00000-of-00002.parquet"]));
        assert!(!all(&["a-00000-of-00002.parquet", "b-00001-of-00002.parquet"]));
    }

    #[test]
    fn a_part_is_chosen_of_the_hubs_data_alone() {
        let name = DataName { name: "data.jsonl", config: None, split: "train", keys: TRAINING };
        name.check_local().unwrap();
        let says = |name: DataName<'_>, parts: &[&str]| {
            let error = name.check_local().unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        };
        says(
            DataName { config: Some("en"), ..name },
            &["dataset_config is en", "data.jsonl is no data set of the hub"],
        );
        says(
            DataName { split: "test", ..name },
            &["dataset_train_split is test", "hint: leave dataset_train_split out"],
        );
        DataName { split: "test", keys: HELD_OUT, ..name }.check_local().unwrap();
        says(DataName { name: "imdb", ..name }, &["there is no such file or folder", "hint: ", "OWNER/imdb"]);
        DataName { name: "src", ..name }.check_local().unwrap();
    }
}
