//! A file with the trainer's keys at the top level, as TRL's command line reads it.

use crate::document::Entry;
use crate::error::ConfigError;
use crate::known::lookup;
use crate::known_training::former;
use crate::registry::Section;
use crate::value::text;

/// Which of the two forms a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Accelerate's top level and sections, with `training:` beside them.
    Sections,
    /// The trainer's keys at the top level.
    Flat,
}

impl Form {
    /// The form of a file: flat when the trainer's keys stand at the top level and there is no `training:`. What is only
    /// Accelerate's cannot stand beside them; a key that both have (`fp16`) can.
    pub(crate) fn of(entries: &[Entry], file: &str) -> Result<Self, ConfigError> {
        let keys: Vec<String> = entries.iter().filter_map(|entry| text(&entry.key)).collect();
        if keys.iter().any(|key| key == Section::Training.name()) {
            return Ok(Form::Sections);
        }
        let section = |key: &str| Section::ALL.iter().any(|section| section.name() == key);
        let only_trainers = |key: &&String| trainers(key) && !section(key) && lookup(Section::Top, key).is_none();
        let Some(key) = keys.iter().find(only_trainers) else { return Ok(Form::Sections) };
        let accelerates = |key: &&String| section(key) || (lookup(Section::Top, key).is_some() && !trainers(key));
        let place = |key: &str| {
            let entry = entries.iter().find(|entry| text(&entry.key).as_deref() == Some(key));
            entry.map_or_else(|| file.to_owned(), |entry| format!("{file}:{}:{}", entry.at.line, entry.at.column))
        };
        match keys.iter().find(accelerates) {
            None => Ok(Form::Flat),
            Some(other) => Err(ConfigError::MixedForms {
                key: key.clone(),
                place: place(key),
                other: other.clone(),
                other_place: place(other),
                hint: "put the trainer's keys into a section training:, or keep the two in two files, one of them as flags"
                    .to_owned(),
            }),
        }
    }

    /// The section of a key at the top level.
    pub(crate) fn section_of(self, key: &str) -> Section {
        match self {
            Form::Flat if trainers(key) => Section::Training,
            _ => Section::Top,
        }
    }
}

/// Whether the trainers have a key.
fn trainers(key: &str) -> bool {
    lookup(Section::Training, key).is_some() || former(key).is_some()
}
