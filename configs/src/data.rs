//! Where data are, how much of which, and how their columns are called.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_yaml::Value;

use crate::hub::HubName;
use crate::registry::{Kind, nearest};
use crate::value::{FromValue, number, text, written};

/// A data set: one source of rows, or several that are mixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Dataset(Vec<DataSource>);

/// Rows of one kind, and what is said of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSource {
    /// Where they are.
    pub path: DataNames,
    /// Of data of the hub: the configuration, in place of the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of data of the hub: the split, in place of the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// What they are called in metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// How much of them there is to be, beside the weights of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Their columns, where they are not called as those of the other sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column_mapping: Option<ColumnMapping>,
}

/// More sources than this, each with a loss of its own at every step, nobody means.
const MAX_SOURCES: usize = 1000;
/// The longest label of a source.
const MAX_LABEL_BYTES: usize = 200;

/// The keys of a [`DataSource`].
const SOURCE_KEYS: [&str; 6] = ["path", "name", "split", "label", "weight", "column_mapping"];

/// One source of which nothing is said is written by its names.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Names(DataNames),
    Sources(Vec<DataSource>),
}

impl From<Written> for Dataset {
    fn from(written: Written) -> Self {
        match written {
            Written::Names(path) => Dataset(vec![DataSource::new(path)]),
            Written::Sources(sources) => Dataset(sources),
        }
    }
}

impl From<Dataset> for Written {
    fn from(Dataset(mut sources): Dataset) -> Self {
        match &sources[..] {
            [source] if *source == DataSource::new(source.path.clone()) => Written::Names(sources.remove(0).path),
            _ => Written::Sources(sources),
        }
    }
}

impl DataSource {
    /// Of which nothing else is said.
    fn new(path: DataNames) -> Self {
        DataSource { path, name: None, split: None, label: None, weight: None, column_mapping: None }
    }
}

impl Dataset {
    /// One source with these names, of which there is at least one.
    pub fn of_names(names: Vec<String>) -> Self {
        Dataset(vec![DataSource::new(DataNames(names))])
    }

    /// The same with other names.
    pub(crate) fn renamed(&self, name: impl Fn(&str) -> String) -> Self {
        let names = |path: &DataNames| DataNames(path.0.iter().map(|written| name(written)).collect());
        Dataset(self.0.iter().map(|source| DataSource { path: names(&source.path), ..source.clone() }).collect())
    }

    /// The same data held out: the split of each is that of the job, and all of it counts.
    pub(crate) fn held_out(&self) -> Self {
        let held_out = |source: &DataSource| DataSource { split: None, weight: None, ..source.clone() };
        Dataset(self.0.iter().map(held_out).collect())
    }

    /// What it has to be, to follow "it must be".
    pub const WORDS: &'static str =
        "a path or a pattern, a list of them, or a list of sources {path: …, weight: …, label: …, column_mapping: …}";

    /// The sources, in their order; at least one.
    pub fn sources(&self) -> &[DataSource] {
        &self.0
    }

    /// How much of each source there is to be, where that is said.
    pub fn weights(&self) -> Option<Vec<f64>> {
        self.0.iter().map(|source| source.weight).collect()
    }

    /// What each source is called in metrics: its label, else the file's name without its ending, or where two would be called
    /// the same, all that was written.
    pub fn labels(&self) -> Vec<String> {
        let short = |source: &DataSource| source.label.clone().unwrap_or_else(|| source.path.short());
        let all: Vec<String> = self.0.iter().map(short).collect();
        let unique = |label: &String| all.iter().filter(|other| *other == label).count() == 1;
        let label = |(source, label): (&DataSource, &String)| match source.label.is_some() || unique(label) {
            true => label.clone(),
            false => source.path.to_string(),
        };
        self.0.iter().zip(&all).map(label).collect()
    }

    /// What was written, or what is wrong with it.
    fn read(value: &Value) -> Result<Self, String> {
        let is_source = |value: &Value| matches!(value, Value::Mapping(_));
        let sources = match value {
            // A flag has it as text.
            Value::String(text) if text.trim_start().starts_with("[{") => {
                return match serde_yaml::from_str::<Value>(text) {
                    Ok(value) if !value.is_string() => Dataset::read(&value),
                    _ => Err("the text is no list of {path: …, weight: …}".to_owned()),
                };
            }
            Value::Sequence(sources) if sources.iter().any(is_source) => sources,
            _ => {
                let names = DataNames::from_value(value).ok_or_else(String::new)?;
                return Ok(Written::Names(names).into());
            }
        };
        let sources: Vec<DataSource> = sources
            .iter()
            .enumerate()
            .map(|(index, source)| read_source(index + 1, source))
            .collect::<Result<_, _>>()?;
        if sources.len() > MAX_SOURCES {
            return Err(format!("{} sources: there may be {MAX_SOURCES}; a path may name many files", sources.len()));
        }
        let dataset = Dataset(sources);
        let weighted = dataset.0.iter().filter(|source| source.weight.is_some()).count();
        if weighted != 0 && weighted != dataset.0.len() {
            return Err(format!("{weighted} of {} sources have a weight: give each one, or none", dataset.0.len()));
        }
        let labels = dataset.labels();
        match labels.iter().enumerate().find(|(index, label)| labels[..*index].contains(label)) {
            Some((_, label)) => Err(format!("two sources are called {label}: give each a label of its own")),
            None => Ok(dataset),
        }
    }
}

/// Words on one line.
fn words(value: &Value) -> Option<String> {
    text(value).filter(|text| !text.is_empty() && !text.contains(char::is_control))
}

/// One source of a list, the `place`th.
fn read_source(place: usize, value: &Value) -> Result<DataSource, String> {
    let Value::Mapping(pairs) = value else {
        return Err(format!("source {place} is {}: write it as {{path: …}} as the others are", written(value)));
    };
    let mut source = DataSource::new(DataNames(Vec::new()));
    for (key, value) in pairs.iter().filter(|(_, value)| !value.is_null()) {
        let key = key.as_str().unwrap_or_default();
        let wrong = |allowed: &str| format!("{key} of source {place} is {}: it must be {allowed}", written(value));
        match key {
            "path" => source.path = DataNames::from_value(value).ok_or_else(|| wrong(DataNames::WORDS))?,
            "name" => source.name = Some(words(value).ok_or_else(|| wrong("words"))?),
            "split" => source.split = Some(words(value).ok_or_else(|| wrong("words"))?),
            "label" => {
                let label = words(value).filter(|label| label.len() <= MAX_LABEL_BYTES);
                source.label = Some(label.ok_or_else(|| wrong("words of at most 200 bytes"))?);
            }
            "weight" => {
                let weight = number(value).filter(|weight| *weight > 0.0);
                source.weight = Some(weight.ok_or_else(|| wrong("a number, more than 0"))?);
            }
            "column_mapping" => {
                let mapping = ColumnMapping::from_value(value);
                source.column_mapping = Some(mapping.ok_or_else(|| wrong(ColumnMapping::WORDS))?);
            }
            // TRL's, whose work other keys do here.
            "data_dir" | "data_files" => {
                return Err(format!("{key} of source {place}: path names the files themselves"));
            }
            "columns" => {
                return Err(format!("columns of source {place}: use column_mapping, which uses those that it names"));
            }
            _ => {
                let meant = nearest(key, SOURCE_KEYS).map(|near| format!("did you mean {near}? "));
                let known = SOURCE_KEYS.join(", ");
                return Err(format!(
                    "source {place} has an unknown key {key}: {}it has {known}",
                    meant.unwrap_or_default()
                ));
            }
        }
    }
    match source.path.0.is_empty() {
        true => Err(format!("source {place} has no path")),
        false => Ok(source),
    }
}

impl fmt::Display for Dataset {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(|source| source.path.to_string()).collect();
        formatter.write_str(&names.join(", "))
    }
}

impl FromValue for Dataset {
    const KIND: Kind = Kind::Data;

    fn from_value(value: &Value) -> Option<Self> {
        Dataset::read(value).ok()
    }

    fn hint(value: &Value) -> Option<String> {
        Dataset::read(value).err().filter(|fault| !fault.is_empty())
    }
}

/// The path of a file or folder, or a pattern such as `data/*.parquet`; or several of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WrittenNames", into = "WrittenNames")]
pub struct DataNames(Vec<String>);

/// One name is written as such, several as a list.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenNames {
    One(String),
    Several(Vec<String>),
}

/// Endings of data files.
const ENDINGS: [&str; 7] = [".gz", ".zst", ".jsonl", ".ndjson", ".json", ".parquet", ".pq"];

impl DataNames {
    /// What it has to be, to follow "it must be".
    const WORDS: &'static str = "a path or a pattern, or a list of them";

    /// The names, in their order.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// The last part of the first name that is no pattern, without the ending of a file.
    fn short(&self) -> String {
        let whole = self.0.first().map_or("", |name| name.trim_end_matches('/'));
        let whole = HubName::parse(whole).map_or(whole, |of_hub| of_hub.id);
        let part = whole.rsplit('/').find(|part| !part.is_empty() && !part.contains(['*', '?', '[']));
        let Some(mut short) = part else { return whole.to_owned() };
        for ending in ENDINGS {
            short = short.strip_suffix(ending).filter(|rest| !rest.is_empty()).unwrap_or(short);
        }
        short.to_owned()
    }
}

impl fmt::Display for DataNames {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.join(", "))
    }
}

impl From<WrittenNames> for DataNames {
    fn from(written: WrittenNames) -> Self {
        match written {
            WrittenNames::One(name) => DataNames(vec![name]),
            WrittenNames::Several(names) => DataNames(names),
        }
    }
}

impl From<DataNames> for WrittenNames {
    fn from(DataNames(mut names): DataNames) -> Self {
        match names.len() {
            1 => WrittenNames::One(names.remove(0)),
            _ => WrittenNames::Several(names),
        }
    }
}

impl DataNames {
    fn from_value(value: &Value) -> Option<Self> {
        let name = |value: &Value| text(value).filter(|text| !text.is_empty());
        match value {
            Value::Sequence(names) if !names.is_empty() => names.iter().map(name).collect::<Option<_>>().map(DataNames),
            // A flag has a list as text; one name in brackets is a pattern.
            Value::String(text) if text.trim_start().starts_with('[') && text.contains(',') => {
                match serde_yaml::from_str::<Value>(text) {
                    Ok(list @ Value::Sequence(_)) => DataNames::from_value(&list),
                    _ => name(value).map(|name| DataNames(vec![name])),
                }
            }
            _ => name(value).map(|name| DataNames(vec![name])),
        }
    }
}

/// Which column of the data stands for which: names that rows have here, each with its name in the data.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ColumnMapping(BTreeMap<String, String>);

impl ColumnMapping {
    /// What it has to be, to follow "it must be".
    pub const WORDS: &'static str =
        "pairs as HERE=THERE, such as messages=dialogue, with commas between them, or a mapping";

    /// Name here to name in the data.
    pub fn pairs(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl FromValue for ColumnMapping {
    const KIND: Kind = Kind::Mapping;

    fn from_value(value: &Value) -> Option<Self> {
        let pairs: Vec<(String, String)> = match value {
            Value::Mapping(pairs) => {
                pairs.iter().map(|(here, there)| Some((text(here)?, text(there)?))).collect::<Option<_>>()?
            }
            _ => {
                let written = text(value)?;
                let pair =
                    |pair: &str| pair.split_once('=').map(|(here, there)| (here.trim().into(), there.trim().into()));
                written.split(',').map(pair).collect::<Option<_>>()?
            }
        };
        let count = pairs.len();
        let whole = pairs.iter().all(|(here, there)| !here.is_empty() && !there.is_empty());
        let mapping: BTreeMap<String, String> = pairs.into_iter().collect();
        (whole && count > 0 && mapping.len() == count).then_some(ColumnMapping(mapping))
    }
}

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
