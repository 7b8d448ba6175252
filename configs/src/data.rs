//! Where data are, and how their columns are called.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_yaml::Value;

use crate::registry::Kind;
use crate::value::{FromValue, text};

/// The path of a file or folder, or a pattern such as `data/*.parquet`; or several of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct DataNames(Vec<String>);

/// One name is written as such, several as a list.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    One(String),
    Several(Vec<String>),
}

impl DataNames {
    /// What it has to be, to follow "it must be".
    pub const WORDS: &'static str = "a path or a pattern, or a list of them";

    /// The names, in their order.
    pub fn names(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for DataNames {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.join(", "))
    }
}

impl From<Written> for DataNames {
    fn from(written: Written) -> Self {
        match written {
            Written::One(name) => DataNames(vec![name]),
            Written::Several(names) => DataNames(names),
        }
    }
}

impl From<DataNames> for Written {
    fn from(DataNames(mut names): DataNames) -> Self {
        match names.len() {
            1 => Written::One(names.remove(0)),
            _ => Written::Several(names),
        }
    }
}

impl FromValue for DataNames {
    const KIND: Kind = Kind::Data;

    fn from_value(value: &Value) -> Option<Self> {
        let name = |value: &Value| text(value).filter(|text| !text.is_empty());
        match value {
            Value::Sequence(names) if !names.is_empty() => names.iter().map(name).collect::<Option<_>>().map(DataNames),
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
mod tests {
    use super::*;

    fn yaml(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn data_are_one_name_or_several() {
        let names = |text: &str| DataNames::from_value(&yaml(text)).map(|data| data.names().join("|"));
        assert_eq!(names("a.jsonl").as_deref(), Some("a.jsonl"));
        assert_eq!(names("[data/*.parquet, b]").as_deref(), Some("data/*.parquet|b"));
        assert_eq!(names("2024").as_deref(), Some("2024"));
        for text in ["[]", "''", "{a: b}", "[a, [b]]", "null"] {
            assert_eq!(names(text), None, "{text}");
        }
        for text in ["a.jsonl\n", "- a\n- b\n"] {
            let data: DataNames = serde_yaml::from_str(text).unwrap();
            assert_eq!(serde_yaml::to_string(&data).unwrap(), text);
        }
    }

    #[test]
    fn columns_are_mapped_by_pairs_in_either_form() {
        let pairs = |text: &str| {
            ColumnMapping::from_value(&yaml(text)).map(|mapping| mapping.0.into_iter().collect::<Vec<_>>())
        };
        let expected =
            vec![("completion".to_owned(), "answer".to_owned()), ("prompt".to_owned(), "question".to_owned())];
        assert_eq!(pairs("prompt=question, completion = answer"), Some(expected.clone()));
        assert_eq!(pairs("{prompt: question, completion: answer}"), Some(expected));
        for text in ["prompt", "prompt=", "=question", "prompt=a,prompt=b", "''", "{}", "[a=b]", "{a: [b]}"] {
            assert_eq!(pairs(text), None, "{text}");
        }
    }
}
