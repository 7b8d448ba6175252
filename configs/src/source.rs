//! From text to settings: the file with the place of each key and value, `--set`, and flags.

use crate::document::{Entry, Node, Spot};
use crate::error::ConfigError;
use crate::known::lookup;
use crate::registry::Section;
use crate::resolved::Resolved;
use crate::settings::{Layer, Setting, Settings};
use crate::suggestion::suggestion;
use crate::written::Written;
use serde_yaml::Value;
use std::path::Path;

/// A configuration file is refused above this size.
const MAX_BYTES: u64 = 1 << 20;

/// The text of a configuration file.
pub(crate) fn read_text(path: &Path) -> Result<String, ConfigError> {
    let failed = |message: String| ConfigError::Read { path: path.to_path_buf(), message };
    let metadata = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if metadata.is_dir() {
        return Err(failed("it is a folder, not a configuration file".to_owned()));
    }
    if metadata.len() > MAX_BYTES {
        return Err(failed(format!("it has {} bytes; a configuration has at most {MAX_BYTES}", metadata.len())));
    }
    std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))
}

/// Adds what a file sets, YAML or JSON. `file` is its name in messages. Returns whether the file has the Accelerate part,
/// which is to say any key beside `training`.
pub(crate) fn add_file(settings: &mut Settings, file: &str, text: &str) -> Result<bool, ConfigError> {
    let document = Node::read(file, text)?;
    let Some(entries) = document.entries() else {
        let file = place(file, document.at);
        return Err(ConfigError::Syntax { file, message: "expected `key: value` lines at the top level".to_owned() });
    };
    if is_resolved(&document) {
        add_resolved(settings, file, &document)?;
        return Ok(false);
    }
    refuse_deepspeed_json(&entries, file)?;
    let mut accelerate = false;
    for entry in entries {
        let key = key_text(file, &entry)?;
        accelerate |= key != Section::Training.name();
        let section = Section::ALL.into_iter().find(|section| *section != Section::Top && section.name() == key);
        let Some(section) = section else {
            add(settings, Section::Top, &key, entry.node.value(), Layer::File, At::of(file, &entry))?;
            continue;
        };
        let Some(inside) = entry.node.entries() else {
            let written = crate::value::written(&entry.node.value());
            return Err(ConfigError::Syntax {
                file: place(file, entry.node.at),
                message: format!("{key} is {written}, expected indented `key: value` lines"),
            });
        };
        for entry in inside {
            let key = key_text(file, &entry)?;
            add(settings, section, &key, entry.node.value(), Layer::File, At::of(file, &entry))?;
        }
    }
    Ok(accelerate)
}

/// Whether this is the `config.resolved.yaml` of a run: only there stands where each value came from.
fn is_resolved(document: &Node) -> bool {
    ["provenance", "sharding", "training"].iter().all(|part| document.entry(part).is_some())
}

/// Adds what a run was configured with, so that it can be had again; each value from its line of the file.
fn add_resolved(settings: &mut Settings, file: &str, document: &Node) -> Result<(), ConfigError> {
    let resolved: Resolved = serde_yaml::from_value(document.value()).map_err(|error| ConfigError::Syntax {
        file: file.to_owned(),
        message: format!("as the resolved configuration of a run it does not fit this version: {error}"),
    })?;
    for written in resolved.repeated() {
        let at = find(document, &written.field);
        let at = at.map_or_else(|| At::named(file.to_owned()), |entry| At::of(file, &entry));
        let Written { section, key, value, .. } = written;
        settings.add(Setting { section, key, value, layer: Layer::File, place: at.place, column: at.value_column });
    }
    Ok(())
}

/// The entry at a dotted path.
fn find(document: &Node, path: &str) -> Option<Entry> {
    let mut parts = path.split('.');
    let first = document.entry(parts.next()?)?;
    parts.try_fold(first, |entry, part| entry.node.entry(part))
}

/// A DeepSpeed JSON is YAML too, but its keys mean other things.
fn refuse_deepspeed_json(entries: &[Entry], file: &str) -> Result<(), ConfigError> {
    let theirs = ["zero_optimization", "train_micro_batch_size_per_gpu"];
    let found = theirs.into_iter().find_map(|key| entries.iter().find(|entry| entry.key.as_str() == Some(key)));
    match found {
        Some(entry) => Err(ConfigError::NotBuilt {
            key: crate::value::written(&entry.key),
            value: "a DeepSpeed JSON as the configuration".to_owned(),
            place: place(file, entry.at),
            hint: "write distributed_type: DEEPSPEED, with deepspeed_config.zero_stage below it, into a YAML file"
                .to_owned(),
        }),
        None => Ok(()),
    }
}

fn key_text(file: &str, entry: &Entry) -> Result<String, ConfigError> {
    crate::value::text(&entry.key).ok_or_else(|| ConfigError::Syntax {
        file: place(file, entry.at),
        message: "a key here is not text".to_owned(),
    })
}

fn place(file: &str, Spot { line, column }: Spot) -> String {
    format!("{file}:{line}:{column}")
}

/// Where a key and its value stand.
struct At {
    /// Without columns.
    place: String,
    key_column: Option<usize>,
    value_column: Option<usize>,
}

impl At {
    /// A place without lines.
    fn named(place: String) -> Self {
        At { place, key_column: None, value_column: None }
    }

    fn of(file: &str, entry: &Entry) -> Self {
        let (key, value) = (entry.at, entry.node.at);
        // Null that nobody wrote begins where the key ends; a value of another line is told by its key.
        let same = value.line == key.line && value.column > key.column;
        let value_column = if same { value.column } else { key.column };
        At { place: format!("{file}:{}", key.line), key_column: Some(key.column), value_column: Some(value_column) }
    }
}

/// Adds `--set key=value`: `key` alone, or with its section as in `training.learning_rate`.
pub(crate) fn add_set(settings: &mut Settings, text: &str) -> Result<(), ConfigError> {
    let bad = || ConfigError::BadSet { text: text.to_owned() };
    let (path, value) = text.split_once('=').ok_or_else(bad)?;
    let path = path.trim();
    if path.is_empty() {
        return Err(bad());
    }
    add_path(settings, path, given(value), Layer::Set, At::named(format!("--set {path}")))
}

/// Adds a flag. `name` comes without its dashes and may be spelled with `-`.
pub(crate) fn add_flag(settings: &mut Settings, name: &str, value: &str) -> Result<(), ConfigError> {
    let name = name.trim_start_matches('-');
    add_path(settings, name, given(value), Layer::Flag, At::named(format!("flag --{name}")))
}

/// What was given on the command line; `null` takes back what a file sets.
fn given(value: &str) -> Value {
    match value.trim() {
        "null" | "~" => Value::Null,
        value => Value::String(value.to_owned()),
    }
}

fn add_path(settings: &mut Settings, path: &str, value: Value, layer: Layer, at: At) -> Result<(), ConfigError> {
    if let Some((section, key)) = path.split_once('.') {
        let section = section.replace('-', "_");
        return match Section::ALL.into_iter().find(|known| *known != Section::Top && known.name() == section) {
            Some(known) => add(settings, known, key, value, layer, at),
            None => Err(unknown(None, path, &at)),
        };
    }
    // A bare name is looked for where users set most: in the training section, then as Accelerate's own.
    for section in [Section::Training, Section::Top, Section::DeepSpeed, Section::Fsdp, Section::Parallelism] {
        if let Some(known) = lookup(section, path) {
            settings.add(Setting { section, key: known, value, layer, place: at.place, column: None });
            return Ok(());
        }
    }
    Err(unknown(None, path, &at))
}

fn add(
    settings: &mut Settings,
    section: Section,
    key: &str,
    value: Value,
    layer: Layer,
    at: At,
) -> Result<(), ConfigError> {
    match lookup(section, key) {
        Some(known) => {
            let setting = Setting { section, key: known, value, layer, place: at.place, column: at.value_column };
            match settings.in_layer(section, known, layer) {
                // One key under two spellings; the same spelling twice is no YAML.
                Some(other) if layer == Layer::File && other.value != setting.value => {
                    Err(other.conflict(&setting, format!("{key} is another spelling of {known}: keep one")))
                }
                _ => {
                    settings.add(setting);
                    Ok(())
                }
            }
        }
        None => Err(unknown(Some(section), key, &at)),
    }
}

fn unknown(section: Option<Section>, key: &str, at: &At) -> ConfigError {
    let flag = at.place.starts_with("flag ");
    let place = match at.key_column {
        Some(column) => format!("{}:{column}", at.place),
        None => at.place.clone(),
    };
    let named = section.filter(|section| *section != Section::Top);
    ConfigError::UnknownKey {
        key: key.to_owned(),
        place,
        section: named.map(|section| format!(" in {}", section.name())).unwrap_or_default(),
        hint: suggestion(section, key, flag),
    }
}
