//! A DeepSpeed JSON: `--config ds.json`, or `deepspeed_config_file` (the trainer's `deepspeed`).
//!
//! Each of its keys becomes the setting of ours that means the same, in the layer of the file, so that flags and `--set`
//! go before it as they do before every file. `auto` leaves a key to the `training:` section, as in the Hugging Face
//! trainer. What only shows once the rest is decided (the size of the whole batch, say) is kept for [`Later`].

mod json;
pub(crate) mod keys;
mod later;
mod translate;

use crate::error::ConfigError;
use crate::known::{judge, lookup};
use crate::known_training::former;
use crate::registry::Section;
use crate::settings::{Layer, Original, Setting, Settings};
use crate::value::quoted;
use json::Source;
use serde_yaml::Value;
use std::path::{Path, PathBuf};

pub(crate) use later::Later;

/// The keys that name a DeepSpeed JSON.
const NAMED_BY: [(Section, &str); 2] =
    [(Section::DeepSpeed, "deepspeed_config_file"), (Section::Training, "deepspeed")];

/// Keys of an Accelerate file that Accelerate refuses beside a DeepSpeed JSON, which must have them itself.
const ONLY_IN_JSON: [(Section, &str); 9] = [
    (Section::DeepSpeed, "zero_stage"),
    (Section::DeepSpeed, "gradient_accumulation_steps"),
    (Section::DeepSpeed, "gradient_clipping"),
    (Section::DeepSpeed, "offload_optimizer_device"),
    (Section::DeepSpeed, "offload_optimizer_nvme_path"),
    (Section::DeepSpeed, "offload_param_device"),
    (Section::DeepSpeed, "offload_param_nvme_path"),
    (Section::DeepSpeed, "zero3_save_16bit_model"),
    (Section::Top, "mixed_precision"),
];

const ONE_PLACE: &str = "write each value in one place, or auto into the DeepSpeed JSON, which leaves it to the other";

/// One key of the JSON: its path, its place, its value, and this as it is written.
struct Entry {
    path: String,
    /// `FILE:LINE`.
    place: String,
    column: usize,
    value: Value,
    written: String,
}

impl Entry {
    fn is_auto(&self) -> bool {
        self.value.as_str() == Some("auto")
    }

    /// A setting of `key` with `value`; messages quote the entry as it stands in the JSON.
    fn setting(&self, (section, key): (Section, &'static str), value: Value) -> Setting {
        let original = Original { path: self.path.clone(), value: Some(self.written.clone()) };
        let (place, column) = (self.place.clone(), Some(self.column));
        Setting { section, key, value, layer: Layer::File, place, original: Some(original), column }
    }
}

/// Whether a configuration file is a DeepSpeed JSON. Accelerate reads files of its own keys in JSON too, and the
/// trainers read theirs.
pub(crate) fn is_json(file: &str, text: &str) -> bool {
    let named = file.to_lowercase().ends_with(".json");
    let begin = text.trim_start();
    if !begin.starts_with('{') {
        // A comment before it is refused in JSON's words.
        return named && (begin.starts_with("//") || begin.starts_with("/*"));
    }
    let Ok(members) = (Source { file, text }).members("", text) else { return named };
    let ours = |name: &str| {
        let section = Section::ALL.into_iter().any(|section| section != Section::Top && section.name() == name);
        section
            || lookup(Section::Top, name).is_some()
            || lookup(Section::Training, name).is_some()
            || former(name).is_some()
    };
    let only_theirs = |(name, value): &(String, &str)| keys::is_known(name) && (!ours(name) || value.starts_with('{'));
    match members.iter().any(only_theirs) {
        true => !members.iter().any(|(name, _)| Section::ALL.iter().any(|it| it.name() == name)),
        false => named && !members.iter().any(|(name, _)| ours(name)),
    }
}

/// Reads the DeepSpeed JSON that the settings name, if any. A relative path is looked for in the working directory, as
/// Accelerate does, then beside the configuration file, which is at `config`.
pub(crate) fn add_named(settings: &mut Settings, config: Option<&str>) -> Result<(), ConfigError> {
    let named = |(section, key): (Section, &'static str)| {
        let setting = settings.find(section, key)?;
        let path = crate::value::text(&setting.value)?;
        (!["", "none"].contains(&path.to_lowercase().as_str())).then(|| (setting.clone(), path))
    };
    let found: Vec<(Setting, String)> = NAMED_BY.into_iter().filter_map(named).collect();
    let Some((setting, path)) = found.first() else { return Ok(()) };
    if let Some((other, _)) = found.iter().find(|(_, other)| other != path) {
        return Err(setting.conflict(other, "both name a DeepSpeed JSON: keep one"));
    }
    let hint = "it must be the path of a DeepSpeed JSON";
    if settings.deepspeed.is_some() {
        return Err(
            setting.not_allowed("the configuration is a DeepSpeed JSON itself", Some("name one of them".into()))
        );
    }
    let Some(file) = locate(path, config) else {
        return Err(setting.not_allowed(hint, Some(format!("there is no file {path}, {}", beside(config)))));
    };
    let text = crate::source::read_text(&file)?;
    let name = file.display().to_string();
    let entries = entries(Source { file: &name, text: &text })?;
    refuse_second_places(settings, setting, &entries, &name)?;
    add(settings, &name, &entries)
}

fn locate(path: &str, config: Option<&str>) -> Option<PathBuf> {
    let here = PathBuf::from(path);
    let beside = config.and_then(|config| Path::new(config).parent()).map(|folder| folder.join(path));
    [Some(here), beside].into_iter().flatten().find(|path| path.exists())
}

fn beside(config: Option<&str>) -> String {
    match config {
        Some(config) => format!("neither in the working directory nor beside {config}"),
        None => "in the working directory".to_owned(),
    }
}

/// Refuses what Accelerate refuses beside a DeepSpeed JSON; all of it at once, with what the JSON says.
fn refuse_second_places(settings: &Settings, by: &Setting, entries: &[Entry], file: &str) -> Result<(), ConfigError> {
    let list: Vec<String> = ONLY_IN_JSON
        .iter()
        .filter_map(|&(section, key)| settings.in_layer(section, key, Layer::File))
        .filter(|setting| !setting.value.is_null() && !setting.is_auto())
        .map(|setting| {
            let same = keys::SAME.iter().filter(|(_, section, key)| (*section, *key) == (setting.section, setting.key));
            let paths: Vec<&str> = match setting.key {
                "gradient_clipping" | "gradient_accumulation_steps" => vec![setting.key],
                "mixed_precision" => vec!["bf16.enabled", "fp16.enabled"],
                _ => same.map(|(path, _, _)| *path).collect(),
            };
            let other = entries.iter().find(|entry| paths.contains(&entry.path.as_str()));
            let other = other.map_or_else(
                || format!("{} ({})", by.equation(), by.place),
                |entry| format!("{}: {} ({})", entry.path, entry.written, entry.place),
            );
            format!("{} ({}) and {other}", setting.equation(), setting.place)
        })
        .collect();
    if list.is_empty() {
        return Ok(());
    }
    let hint = "beside a DeepSpeed JSON these keys must stand in the JSON alone, as Accelerate has it".to_owned();
    Err(ConfigError::Disagreements { file: file.to_owned(), list, hint })
}

/// Adds what the DeepSpeed JSON of this text sets. `file` is its name in messages.
pub(crate) fn add_json(settings: &mut Settings, file: &str, text: &str) -> Result<(), ConfigError> {
    let entries = entries(Source { file, text })?;
    add(settings, file, &entries)
}

fn add(settings: &mut Settings, file: &str, entries: &[Entry]) -> Result<(), ConfigError> {
    for entry in entries {
        // Whether float16 is computed in at all is not known yet.
        if let Some(known) = keys::find(&entry.path)
            && !entry.path.starts_with("fp16.")
        {
            let setting = entry.setting((Section::DeepSpeed, known.name), entry.value.clone());
            let note = judge(known, &setting)?;
            settings.notes.extend(note);
        }
    }
    let translated = translate::settings(file, entries)?;
    refuse_disagreements(settings, file, &translated)?;
    settings.deepspeed = Some(Later::of(file, entries));
    for setting in translated {
        if settings.in_layer(setting.section, setting.key, Layer::File).is_none_or(|other| other.value.is_null()) {
            settings.add(setting);
        }
    }
    Ok(())
}

/// Lists every value of the JSON that another file-layer setting of the same thing contradicts.
fn refuse_disagreements(settings: &Settings, file: &str, translated: &[Setting]) -> Result<(), ConfigError> {
    let mut list = Vec::new();
    let mut pair = |one: &Setting, other: &Setting| {
        list.push(format!("{} ({}) and {} ({})", one.equation(), one.place, other.equation(), other.place));
    };
    for (index, setting) in translated.iter().enumerate() {
        let written = settings.in_layer(setting.section, setting.key, Layer::File);
        let within =
            translated[..index].iter().filter(|other| (other.section, other.key) == (setting.section, setting.key));
        for other in written.into_iter().chain(within).filter(|other| !other.value.is_null() && !other.is_auto()) {
            if !same(&setting.value, &other.value) {
                pair(other, setting);
            }
        }
        if setting.key == "warmup_steps"
            && let Some(ratio) = settings.in_layer(Section::Training, "warmup_ratio", Layer::File)
            && crate::value::number(&ratio.value).is_some_and(|ratio| ratio > 0.0)
        {
            pair(ratio, setting);
        }
    }
    if list.is_empty() {
        return Ok(());
    }
    Err(ConfigError::Disagreements { file: file.to_owned(), list, hint: ONE_PLACE.to_owned() })
}

/// Whether two written values mean the same.
fn same(one: &Value, other: &Value) -> bool {
    use crate::value::{FromValue, number, text};
    if let (Some(one), Some(other)) = (number(one), number(other)) {
        return one == other;
    }
    if let (Some(one), Some(other)) = (bool::from_value(one), bool::from_value(other)) {
        return one == other;
    }
    if let (Value::Mapping(one), Value::Mapping(other)) = (one, other) {
        let within = |(key, value): (&Value, &Value)| other.get(key).is_some_and(|other| same(value, other));
        return one.len() == other.len() && one.iter().all(within);
    }
    match (text(one), text(other)) {
        (Some(one), Some(other)) => one.to_lowercase() == other.to_lowercase(),
        _ => one == other,
    }
}

/// Every key of the JSON, by its whole path; unknown and repeated ones are errors.
fn entries(source: Source<'_>) -> Result<Vec<Entry>, ConfigError> {
    let mut found = Vec::new();
    let begin = source.text.trim_start();
    if begin.starts_with("//") || begin.starts_with("/*") {
        return Err(source.syntax("JSON has no comments: take them out"));
    }
    if !begin.starts_with('{') {
        return Err(source.syntax("a DeepSpeed configuration is an object, {\"key\": value, …}"));
    }
    collect(source, "", source.text, &mut found)?;
    Ok(found)
}

fn collect<'a>(source: Source<'a>, outer: &str, object: &'a str, found: &mut Vec<Entry>) -> Result<(), ConfigError> {
    for (name, written) in source.members(outer, object)? {
        let path = if outer.is_empty() { name.clone() } else { format!("{outer}.{name}") };
        if keys::find(&path).is_some() {
            let value = source.value(written)?;
            // A number as it stands there: 5e8 is not 500000000.0.
            let written_as = if value.is_number() { quoted(written) } else { crate::value::written(&value) };
            let (line, column) = source.line_and_column(written);
            let place = format!("{}:{line}", source.file);
            found.push(Entry { path, place, column, value, written: written_as });
        } else if keys::is_branch(&path) && written.starts_with('{') {
            collect(source, &path, written, found)?;
        } else if keys::is_branch(&path) {
            let value = source.value(written)?;
            if value.is_null() {
                continue;
            }
            return Err(ConfigError::InvalidValue {
                key: path,
                value: crate::value::written(&value),
                place: source.place(written),
                allowed: "it must be an object, {\"key\": value, …}".to_owned(),
                hint: String::new(),
            });
        } else {
            return Err(ConfigError::UnknownKey {
                hint: keys::suggestion(outer, &name),
                key: quoted(&name),
                place: source.place(written),
                section: if outer.is_empty() { String::new() } else { format!(" in {outer}") },
            });
        }
    }
    Ok(())
}
