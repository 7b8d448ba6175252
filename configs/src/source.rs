//! From text to settings: the file with the place of each key and value, `--set`, and flags.

use crate::document::{Entry, Node, Spot};
use crate::error::ConfigError;
use crate::flat::Form;
use crate::known::lookup;
use crate::known_training::former;
use crate::registry::Section;
use crate::resolved::Resolved;
use crate::settings::{Layer, Original, Setting, Settings};
use crate::suggestion::suggestion;
use crate::value::quoted;
use crate::written::Written;
use serde_yaml::Value;
use std::io::Read;
use std::path::Path;

/// A configuration file is refused above this size.
const MAX_BYTES: u64 = 1 << 20;

/// The text of a configuration file. A pipe (`/dev/stdin`) may be one.
pub(crate) fn read_text(path: &Path) -> Result<String, ConfigError> {
    let failed = |message: String| ConfigError::Read { path: path.to_path_buf(), message };
    let metadata = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if metadata.is_dir() {
        return Err(failed("it is a folder, not a configuration file".to_owned()));
    }
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(failed(format!("a configuration has at most {MAX_BYTES} bytes")));
    }
    Ok(text)
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
    let form = Form::of(&entries, file)?;
    let mut accelerate = false;
    for entry in entries {
        let key = key_text(file, &entry)?;
        accelerate |= key != Section::Training.name() && form == Form::Sections;
        let section = Section::ALL.into_iter().find(|section| *section != Section::Top && section.name() == key);
        let Some(section) = section else {
            add(settings, form.section_of(&key), &key, entry.node.value(), Layer::File, At::of(file, &entry))?;
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
        settings.add(Setting {
            section,
            key,
            value,
            layer: Layer::File,
            place: at.place,
            original: None,
            column: at.value_column,
        });
    }
    Ok(())
}

/// The entry at a dotted path.
fn find(document: &Node, path: &str) -> Option<Entry> {
    let mut parts = path.split('.');
    let first = document.entry(parts.next()?)?;
    parts.try_fold(first, |entry, part| entry.node.entry(part))
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
    let sections = [Section::Training, Section::Top, Section::DeepSpeed, Section::Fsdp, Section::Parallelism];
    let named = sections.into_iter().find(|section| lookup(*section, path).is_some());
    match named.or(former(path).map(|_| Section::Training)) {
        Some(section) => add(settings, section, path, value, layer, at),
        None => Err(unknown(None, path, &at)),
    }
}

fn add(
    settings: &mut Settings,
    section: Section,
    key: &str,
    value: Value,
    layer: Layer,
    at: At,
) -> Result<(), ConfigError> {
    let renamed = former(key).filter(|_| section == Section::Training);
    let Some(known) = lookup(section, key).or(renamed) else { return Err(unknown(Some(section), key, &at)) };
    let original = renamed.map(|_| Original { path: section.path(&key.replace('-', "_")), value: None });
    let setting = Setting { section, key: known, value, layer, place: at.place, original, column: at.value_column };
    match settings.in_layer(section, known, layer) {
        // One key under two spellings; the same spelling twice is no YAML, and the last one holds elsewhere.
        Some(other) if (layer == Layer::File || other.original != setting.original) && other.value != setting.value => {
            let former = if key == known { other.original.as_ref().map_or(key, |it| it.path.as_str()) } else { key };
            Err(other.conflict(&setting, format!("{former} is another spelling of {known}: keep one")))
        }
        _ => {
            if renamed.is_some() {
                settings.notes.push(format!(
                    "{} ({}) is called {known} here: read as that",
                    setting.path(),
                    setting.place
                ));
            }
            settings.add(setting);
            Ok(())
        }
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
        key: quoted(key),
        place,
        section: named.map(|section| format!(" in {}", section.name())).unwrap_or_default(),
        hint: suggestion(section, key, flag),
    }
}
