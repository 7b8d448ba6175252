//! What was written: settings from the file, `--set` and flags, each with its place, and the rules by which the
//! highest place wins.

use crate::error::ConfigError;
use crate::registry::{DefaultValue, Key, Kind, Section, key, nearest};
use crate::sharding::Stage;
use crate::value::{FromValue, number, written};
use serde_yaml::Value;
use std::collections::BTreeMap;

/// Behind a value that DeepSpeed takes where none is written.
pub(crate) const DEEPSPEEDS_DEFAULT: &str = " (DeepSpeed's default)";

/// Where a setting was written. A later one goes before an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    File,
    /// torchrun's variables.
    Environment,
    Set,
    Flag,
}

/// What a file calls a setting that is read under another name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Original {
    /// The key as the file has it: `scheduler.type`, `training.max_seq_length`.
    pub path: String,
    /// The value as the file has it, where it is another one too: `WarmupLR`.
    pub value: Option<String>,
}

/// One value as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Setting {
    pub section: Section,
    /// The right name of the key, even where it was written otherwise.
    pub key: &'static str,
    pub value: Value,
    pub layer: Layer,
    /// `zero3.yaml:12`, `--set learning_rate`, `flag --learning_rate`.
    pub place: String,
    /// What the file has in place of `key` and `value`; messages quote it.
    pub original: Option<Original>,
    /// Of a file: the column in that line, where the value begins, or the key where the value stands below.
    pub column: Option<usize>,
}

impl Setting {
    /// The key with its section, as it was written.
    pub(crate) fn path(&self) -> String {
        self.original.as_ref().map_or_else(|| self.section.path(self.key), |original| original.path.clone())
    }

    /// The value as it was written.
    fn written(&self) -> String {
        let original = self.original.as_ref().and_then(|original| original.value.clone());
        original.unwrap_or_else(|| written(&self.value))
    }

    /// `key: value`, for messages.
    pub(crate) fn equation(&self) -> String {
        format!("{}: {}", self.path(), self.written())
    }

    /// The place for an error: in a file with the column, so that an editor goes there.
    pub(crate) fn exact_place(&self) -> String {
        match self.column {
            Some(column) => format!("{}:{column}", self.place),
            None => self.place.clone(),
        }
    }

    /// Whether nobody wrote it: DeepSpeed takes it where its JSON leaves it out.
    pub(crate) fn is_deepspeeds_default(&self) -> bool {
        let original = self.original.as_ref().and_then(|original| original.value.as_ref());
        original.is_some_and(|value| value.ends_with(DEEPSPEEDS_DEFAULT))
    }

    /// `auto`, DeepSpeed's word for "what the trainer says".
    pub(crate) fn is_auto(&self) -> bool {
        self.section == Section::DeepSpeed && self.value.as_str().is_some_and(|text| text.trim() == "auto")
    }

    /// The value as a `T` within the range that the registry gives for `key`.
    pub(crate) fn read<T: FromValue>(&self, known: &Key) -> Result<T, ConfigError> {
        let in_range = number(&self.value).is_none_or(|number| known.allowed.admits(number));
        match T::from_value(&self.value) {
            Some(value) if in_range => Ok(value),
            _ => Err(self.invalid(known, T::hint(&self.value))),
        }
    }

    /// The error for a value that `known` does not allow, and perhaps more on what is wrong with it.
    fn invalid(&self, known: &Key, more: Option<String>) -> ConfigError {
        if let Some(hint) = crate::known_training::unbuilt_choice(self.key, &self.value) {
            return self.not_built(hint);
        }
        let near = match (known.kind, self.value.as_str()) {
            (Kind::Choice(names), Some(text)) => nearest(text, names.iter().copied()),
            _ => None,
        };
        self.not_allowed(known.allowed_words(), more.or(near.map(|name| format!("did you mean {name}?"))))
    }

    /// The error for a value outside of what is allowed; `allowed` is a sentence of its own, such as "it must be …".
    pub(crate) fn not_allowed(&self, allowed: impl Into<String>, hint: Option<String>) -> ConfigError {
        ConfigError::InvalidValue {
            key: self.path(),
            value: self.written(),
            place: self.exact_place(),
            allowed: allowed.into(),
            hint: hint.map(|hint| format!("\nhint: {hint}")).unwrap_or_default(),
        }
    }

    /// The error for something known that is not built.
    pub(crate) fn not_built(&self, hint: impl Into<String>) -> ConfigError {
        ConfigError::NotBuilt { key: self.path(), value: self.written(), place: self.exact_place(), hint: hint.into() }
    }

    /// The error for a setting that needs a stage where none is set.
    pub(crate) fn needs_stage(&self, least: Stage, hint: impl Into<String>) -> ConfigError {
        ConfigError::NeedsStage { setting: self.equation(), place: self.exact_place(), least, hint: hint.into() }
    }

    /// The error for two settings that disagree.
    pub(crate) fn conflict(&self, other: &Setting, hint: impl Into<String>) -> ConfigError {
        ConfigError::Conflict {
            first: self.equation(),
            first_place: self.exact_place(),
            second: other.equation(),
            second_place: other.exact_place(),
            hint: hint.into(),
        }
    }
}

/// Everything that was written; at most one setting per key and layer.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    all: Vec<Setting>,
    /// What was noticed while they were read.
    pub notes: Vec<String>,
    /// What a DeepSpeed JSON asks for that is checked once the rest is decided.
    pub deepspeed: Option<crate::deepspeed::Later>,
}

impl Settings {
    /// Adds one setting; within a layer, a later one of the same key replaces an earlier one.
    pub(crate) fn add(&mut self, setting: Setting) {
        self.all.retain(|other| {
            other.layer != setting.layer || other.key != setting.key || other.section != setting.section
        });
        self.all.push(setting);
    }

    /// The highest setting of a key, when it is not null.
    pub(crate) fn find(&self, section: Section, key: &str) -> Option<&Setting> {
        self.highest(section, key).filter(|setting| !setting.value.is_null())
    }

    /// The setting of a key in one layer.
    pub(crate) fn in_layer(&self, section: Section, key: &str, layer: Layer) -> Option<&Setting> {
        self.all.iter().find(|setting| setting.section == section && setting.key == key && setting.layer == layer)
    }

    fn highest(&self, section: Section, key: &str) -> Option<&Setting> {
        self.all
            .iter()
            .filter(|setting| setting.section == section && setting.key == key)
            .max_by_key(|setting| setting.layer)
    }

    /// The settings that hold: for each key the highest one, in the order of writing, without nulls.
    pub(crate) fn effective(&self) -> impl Iterator<Item = &Setting> {
        self.all.iter().filter(|setting| {
            !setting.value.is_null()
                && self.highest(setting.section, setting.key).is_some_and(|highest| highest.layer == setting.layer)
        })
    }

    /// Whether a key was written as null in its highest place.
    pub(crate) fn null(&self, section: Section, key: &str) -> Option<&Setting> {
        self.highest(section, key).filter(|setting| setting.value.is_null())
    }
}

/// One written opinion on a decision that several keys have a say in.
pub(crate) struct Opinion<'a, T> {
    pub value: T,
    pub setting: &'a Setting,
}

/// The opinion that holds: of the highest place; two in that place that disagree are an error.
pub(crate) fn agree<'a, T: PartialEq>(
    opinions: impl IntoIterator<Item = Option<Opinion<'a, T>>>,
) -> Result<Option<Opinion<'a, T>>, ConfigError> {
    let mut held: Option<Opinion<'a, T>> = None;
    for opinion in opinions.into_iter().flatten() {
        held = match held {
            Some(held) if held.setting.layer > opinion.setting.layer => Some(held),
            Some(held) if held.setting.layer == opinion.setting.layer => {
                if held.value != opinion.value {
                    return Err(held.setting.conflict(opinion.setting, "keep one of the two, or make them agree"));
                }
                Some(held)
            }
            _ => Some(opinion),
        };
    }
    Ok(held)
}

/// Reads decided values out of [`Settings`] and remembers where each came from.
pub(crate) struct Reader<'a> {
    pub settings: &'a Settings,
    pub provenance: BTreeMap<String, String>,
    pub notes: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(settings: &'a Settings) -> Self {
        Self { settings, provenance: BTreeMap::new(), notes: Vec::new() }
    }

    /// The registry's key of this name. Only names of the registry are asked for.
    pub(crate) fn key(name: &str) -> &'static Key {
        key(name).unwrap_or_else(|| unreachable!("{name} is not in the registry"))
    }

    /// The value of a key of the registry: as written, else its default.
    pub(crate) fn read<T: FromValue>(&mut self, name: &str) -> Result<T, ConfigError> {
        let known = Self::key(name);
        match self.settings.find(known.section, known.name) {
            Some(setting) => {
                self.provenance.insert(name.to_owned(), setting.place.clone());
                setting.read(known)
            }
            None => {
                self.provenance.insert(name.to_owned(), "default".to_owned());
                self.default(known)
            }
        }
    }

    fn default<T: FromValue>(&mut self, known: &Key) -> Result<T, ConfigError> {
        let value = match known.default {
            DefaultValue::Text(text) => Value::String(text.to_owned()),
            DefaultValue::SameAs(other) => {
                let other = Self::key(other);
                return match self.settings.find(other.section, other.name) {
                    Some(setting) => setting.read(other),
                    None => self.default(other),
                };
            }
            DefaultValue::Unset | DefaultValue::Computed(_) => Value::Null,
            DefaultValue::Required => Value::Null,
        };
        T::from_value(&value).ok_or_else(|| missing(&[known]))
    }

    /// The written opinion of a key of the registry; `None` when it is not set, or `auto`.
    pub(crate) fn opinion<T: FromValue>(&self, name: &str) -> Result<Option<Opinion<'a, T>>, ConfigError> {
        let known = Self::key(name);
        self.opinion_of(known.section, known.name, known)
    }

    /// The written opinion of `section.key` on what `known` decides.
    pub(crate) fn opinion_of<T: FromValue>(
        &self,
        section: Section,
        key: &str,
        known: &Key,
    ) -> Result<Option<Opinion<'a, T>>, ConfigError> {
        match self.settings.find(section, key) {
            Some(setting) if !setting.is_auto() => Ok(Some(Opinion { value: setting.read(known)?, setting })),
            _ => Ok(None),
        }
    }

    /// Settles a decision and remembers where it came from; `name` is the field of [`crate::Resolved`].
    pub(crate) fn settle<T>(&mut self, name: &str, held: Option<Opinion<'a, T>>, default: T) -> T {
        let place = held.as_ref().map_or("default", |held| held.setting.place.as_str());
        self.provenance.insert(name.to_owned(), place.to_owned());
        held.map_or(default, |held| held.value)
    }
}

/// The error for required keys that nobody set.
pub(crate) fn missing(keys: &[&Key]) -> ConfigError {
    let names = keys.iter().map(|key| key.name).collect::<Vec<_>>().join(", ");
    let flags =
        keys.iter().map(|key| format!("--{} {}", key.name, key.kind.placeholder())).collect::<Vec<_>>().join(" ");
    let yaml = keys.iter().map(|key| key.section.path(key.name)).collect::<Vec<_>>().join(", ");
    ConfigError::Missing { keys: names, hint: format!("pass {flags}, or set {yaml} in the configuration file") }
}
