//! From text to settings: the YAML file with the line of each key, `--set`, and flags.

use crate::error::ConfigError;
use crate::flat::Form;
use crate::known::lookup;
use crate::known_training::former;
use crate::registry::Section;
use crate::settings::{Layer, Original, Setting, Settings};
use crate::suggestion::suggestion;
use crate::value::quoted;
use serde_yaml::Value;
use std::collections::HashMap;
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

/// Adds what a YAML file sets. `file` is its name in messages. Returns whether the file has the Accelerate part, which
/// is to say any key beside `training`.
pub(crate) fn add_file(settings: &mut Settings, file: &str, text: &str) -> Result<bool, ConfigError> {
    let syntax = |message: String| ConfigError::Syntax { file: file.to_owned(), message: quoted(&message) };
    crate::bounds::check(text).map_err(syntax)?;
    let mut document: Value = serde_yaml::from_str(text).map_err(|error| {
        let message = error.to_string();
        duplicate(file, text, &message).unwrap_or_else(|| syntax(message))
    })?;
    document.apply_merge().map_err(|error| syntax(error.to_string()))?;
    let lines = key_lines(text);
    let document = match document {
        Value::Mapping(mapping) => mapping,
        Value::Null => return Ok(false),
        _ => return Err(syntax("expected `key: value` lines at the top level".to_owned())),
    };
    let form = Form::of(&document, file, &lines)?;
    let mut accelerate = false;
    for (key, value) in document {
        let key = key_text(&key).ok_or_else(|| syntax("a key at the top level is not text".to_owned()))?;
        accelerate |= key != Section::Training.name() && form == Form::Sections;
        let place = |path: &str| match lines.get(path).or_else(|| lines.get(&key)) {
            Some(line) => format!("{file}:{line}"),
            None => file.to_owned(),
        };
        let section = Section::ALL.into_iter().find(|section| *section != Section::Top && section.name() == key);
        let Some(section) = section else {
            add(settings, form.section_of(&key), &key, value, Layer::File, place(&key))?;
            continue;
        };
        let entries = match value {
            Value::Mapping(entries) => entries,
            Value::Null => continue,
            other => {
                let written = crate::value::written(&other);
                return Err(syntax(format!(
                    "{key} is {written}, expected indented `key: value` lines ({})",
                    place(&key)
                )));
            }
        };
        for (entry, value) in entries {
            let entry = key_text(&entry).ok_or_else(|| syntax(format!("a key in {key} is not text")))?;
            let place = place(&format!("{key}.{entry}"));
            add(settings, section, &entry, value, Layer::File, place)?;
        }
    }
    Ok(accelerate)
}

fn key_text(key: &Value) -> Option<String> {
    crate::value::text(key)
}

/// Adds `--set key=value`: `key` alone, or with its section as in `training.learning_rate`.
pub(crate) fn add_set(settings: &mut Settings, text: &str) -> Result<(), ConfigError> {
    let bad = || ConfigError::BadSet { text: text.to_owned() };
    let (path, value) = text.split_once('=').ok_or_else(bad)?;
    let path = path.trim();
    if path.is_empty() {
        return Err(bad());
    }
    add_path(settings, path, given(value), Layer::Set, format!("--set {path}"))
}

/// Adds a flag. `name` comes without its dashes and may be spelled with `-`.
pub(crate) fn add_flag(settings: &mut Settings, name: &str, value: &str) -> Result<(), ConfigError> {
    let name = name.trim_start_matches('-');
    add_path(settings, name, given(value), Layer::Flag, format!("flag --{name}"))
}

/// What was given on the command line; `null` takes back what a file sets.
fn given(value: &str) -> Value {
    match value.trim() {
        "null" | "~" => Value::Null,
        value => Value::String(value.to_owned()),
    }
}

fn add_path(settings: &mut Settings, path: &str, value: Value, layer: Layer, place: String) -> Result<(), ConfigError> {
    if let Some((section, key)) = path.split_once('.') {
        let section = section.replace('-', "_");
        return match Section::ALL.into_iter().find(|known| *known != Section::Top && known.name() == section) {
            Some(known) => add(settings, known, key, value, layer, place),
            None => Err(unknown(None, path, place)),
        };
    }
    // A bare name is looked for where users set most: in the training section, then as Accelerate's own.
    let sections = [Section::Training, Section::Top, Section::DeepSpeed, Section::Fsdp, Section::Parallelism];
    let named = sections.into_iter().find(|section| lookup(*section, path).is_some());
    match named.or(former(path).map(|_| Section::Training)) {
        Some(section) => add(settings, section, path, value, layer, place),
        None => Err(unknown(None, path, place)),
    }
}

fn add(
    settings: &mut Settings,
    section: Section,
    key: &str,
    value: Value,
    layer: Layer,
    place: String,
) -> Result<(), ConfigError> {
    let renamed = former(key).filter(|_| section == Section::Training);
    let Some(known) = lookup(section, key).or(renamed) else { return Err(unknown(Some(section), key, place)) };
    let original = renamed.map(|_| Original { path: section.path(&key.replace('-', "_")), value: None });
    let setting = Setting { section, key: known, value, layer, place, original };
    match settings.in_layer(section, known, layer) {
        // One key under two spellings; the same spelling twice is no YAML, and the last one holds elsewhere.
        Some(other) if (layer == Layer::File || other.original != setting.original) && other.value != setting.value => {
            Err(other.conflict(&setting, format!("{key} is another spelling of {known}: keep one")))
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

fn unknown(section: Option<Section>, key: &str, place: String) -> ConfigError {
    let flag = place.starts_with("flag ");
    let named = section.filter(|section| *section != Section::Top);
    ConfigError::UnknownKey {
        key: quoted(key),
        place,
        section: named.map(|section| format!(" in {}", section.name())).unwrap_or_default(),
        hint: suggestion(section, key, flag),
    }
}

/// The error for a key that stands twice, which the reader of YAML tells without a line.
fn duplicate(file: &str, text: &str, message: &str) -> Option<ConfigError> {
    let (_, named) = message.split_once("duplicate entry with key \"")?;
    let named = named.split('"').next()?;
    let mut lines: HashMap<String, usize> = HashMap::new();
    for (path, line) in keys(text).into_iter().filter(|(path, _)| path.rsplit('.').next() == Some(named)) {
        if let Some(&first) = lines.get(&path) {
            return Some(ConfigError::Duplicate { key: path, place: format!("{file}:{line}"), first });
        }
        lines.insert(path, line);
    }
    None
}

/// The first line (from 1) of each key of a block-style YAML text, by its dotted path.
fn key_lines(text: &str) -> HashMap<String, usize> {
    let mut lines = HashMap::new();
    for (path, line) in keys(text) {
        lines.entry(path).or_insert(line);
    }
    lines
}

/// Every key of a block-style YAML text with its line, in order. Keys inside `{…}` and `[…]` have none.
fn keys(text: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let mut open: Vec<(usize, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        if trimmed.is_empty() || trimmed.starts_with(['#', '-', '{', '}', '[', ']']) {
            continue;
        }
        let Some((key, rest)) = trimmed.split_once(':') else {
            continue;
        };
        if !(rest.is_empty() || rest.starts_with([' ', '\t'])) {
            continue;
        }
        let indent = line.len() - trimmed.len();
        while open.last().is_some_and(|(outer, _)| *outer >= indent) {
            open.pop();
        }
        let key = key.trim().trim_matches(['"', '\'']).to_owned();
        open.push((indent, key));
        let path = open.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>().join(".");
        found.push((path, index + 1));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_keys_are_found() {
        let text =
            "# comment: not a key\na: 1\n\nnested:\n  # x: y\n  one: http://host:80\n  'two': 2\nlast:\n- item: 1\n";
        let lines = key_lines(text);
        let line = |path: &str| lines.get(path).copied();
        assert_eq!(line("a"), Some(2));
        assert_eq!(line("nested"), Some(4));
        assert_eq!(line("nested.one"), Some(6));
        assert_eq!(line("nested.two"), Some(7));
        assert_eq!(line("last"), Some(8));
        assert_eq!(lines.len(), 5, "{lines:?}");
    }
}
