//! The members of a JSON object with their places.

use crate::error::ConfigError;
use crate::value::quoted;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_yaml::Value;
use std::collections::HashSet;

/// A JSON text and what to call it in messages.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub file: &'a str,
    pub text: &'a str,
}

/// The members of an object in their order, each value as it is written.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> serde::Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object, {\"key\": value, …}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

impl<'a> Source<'a> {
    /// The members of `object`, which is the whole text or the value of one of its members.
    pub(super) fn members(self, outer: &str, object: &'a str) -> Result<Vec<(String, &'a str)>, ConfigError> {
        let Members(members) = serde_json::from_str(object).map_err(|error| self.broken(object, &error))?;
        let mut seen: HashSet<&str> = HashSet::new();
        for (name, value) in &members {
            if !seen.insert(name) {
                let first = members.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value.get());
                return Err(ConfigError::Duplicate {
                    key: quoted(&if outer.is_empty() { name.clone() } else { format!("{outer}.{name}") }),
                    place: self.place(value.get()),
                    first: self.line_and_column(first).0,
                });
            }
        }
        Ok(members.into_iter().map(|(name, value)| (name, value.get())).collect())
    }

    /// The value of a member.
    pub(super) fn value(self, written: &str) -> Result<Value, ConfigError> {
        serde_json::from_str(written)
            .map_err(|error| ConfigError::Syntax { file: self.place(written), message: error.to_string() })
    }

    /// `FILE:LINE:COLUMN` of a value.
    pub(super) fn place(self, value: &str) -> String {
        let (line, column) = self.line_and_column(value);
        format!("{}:{line}:{column}", self.file)
    }

    /// What is wrong with an object, with its place.
    fn broken(self, object: &str, error: &serde_json::Error) -> ConfigError {
        let text = error.to_string();
        let message = text.split(" at line ").next().unwrap_or(&text);
        let line = object.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
        let comment = ["//", "/*", "#"].iter().any(|sign| line.trim_start().starts_with(sign));
        let remark = if comment { "; JSON has no comments: take them out" } else { "" };
        let (first, _) = self.line_and_column(object);
        let file = format!("{}:{}:{}", self.file, first + error.line().max(1) - 1, error.column());
        ConfigError::Syntax { file, message: format!("{message}{remark}") }
    }

    pub(super) fn syntax(self, message: &str) -> ConfigError {
        ConfigError::Syntax { file: self.file.to_owned(), message: quoted(message) }
    }

    /// Where `value`, a part of the text, begins: line and column, in characters, from 1.
    pub(super) fn line_and_column(self, value: &str) -> (usize, usize) {
        let begin = (value.as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize);
        let before = self.text.get(..begin).unwrap_or_default();
        let line = before.rsplit('\n').next().unwrap_or_default();
        (before.matches('\n').count() + 1, line.chars().count() + 1)
    }
}
