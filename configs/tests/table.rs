//! A table of configurations: files on disk, each with what it must resolve to or how it must be refused.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use zerofold_configs::{Inputs, Resolved, resolve};

/// What is expected of one case; its name begins with the file's unless `file` names it.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    file: Option<String>,
    /// GPUs of the machine.
    #[serde(default)]
    devices: u32,
    #[serde(default)]
    flags: BTreeMap<String, Value>,
    #[serde(default)]
    set: Vec<String>,
    /// Fields of the resolved form, by dotted path.
    #[serde(default)]
    resolved: BTreeMap<String, Value>,
    /// One part of each note, in any order; there are no others.
    #[serde(default)]
    notes: Vec<String>,
    /// Parts of the refusal; it must be refused if there are any.
    #[serde(default)]
    refused: Vec<String>,
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/table").join(name)
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Resolves one case. Names of files in messages lose their folder.
fn outcome(folder: &Path, file: &str, case: &Expected) -> Result<Resolved, String> {
    let path = folder.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut flags: Vec<(String, String)> =
        case.flags.iter().map(|(name, value)| (name.clone(), plain(value))).collect();
    for (name, value) in [("model_name_or_path", "m"), ("dataset", "d.jsonl"), ("output_dir", "out")] {
        let written = text.contains(&format!("{name}:")) || text.contains(&format!("\"{name}\""));
        let written = written || (name == "dataset" && text.contains("dataset_name:"));
        if !written && !case.flags.contains_key(name) {
            flags.push((name.to_owned(), value.to_owned()));
        }
    }
    let config = Some(path.display().to_string());
    let inputs = Inputs { config, flags, set: case.set.clone(), devices: case.devices, ..Inputs::default() };
    let prefix = format!("{}/", folder.display());
    let short = |text: &str| text.replace(&prefix, "");
    let mut resolved = resolve(&inputs).map_err(|error| short(&error.to_string()))?;
    resolved.notes.iter_mut().for_each(|note| *note = short(note));
    resolved.provenance.values_mut().for_each(|place| *place = short(place));
    Ok(resolved)
}

fn field<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |value, key| &value[key])
}

/// Numbers are equal by value, whatever their form.
fn equal(found: &Value, expected: &Value) -> bool {
    match (found.as_f64(), expected.as_f64()) {
        (Some(found), Some(expected)) => found == expected,
        _ => found == expected,
    }
}

/// What is wrong with one case.
fn complaints(folder: &Path, name: &str, case: &Expected) -> Vec<String> {
    let file = case.file.as_deref().or(name.split(' ').next()).unwrap();
    let resolved = match outcome(folder, file, case) {
        Err(message) if case.refused.is_empty() => return vec![format!("refused: {message}")],
        Err(message) => {
            let absent = case.refused.iter().filter(|part| !message.contains(part.as_str()));
            return absent.map(|part| format!("{part:?} is not in:\n{message}")).collect();
        }
        Ok(_) if !case.refused.is_empty() => return vec!["it is not refused".to_owned()],
        Ok(resolved) => resolved,
    };
    let value = serde_json::to_value(&resolved).unwrap();
    let mut wrong = Vec::new();
    for (path, expected) in &case.resolved {
        let found = field(&value, path);
        if !equal(found, expected) {
            wrong.push(format!("{path} is {found:?}, not {expected:?}"));
        }
    }
    let mut notes = resolved.notes.clone();
    for part in &case.notes {
        match notes.iter().position(|note| note.contains(part.as_str())) {
            Some(index) => drop(notes.remove(index)),
            None => wrong.push(format!("no note has {part:?}: {:?}", resolved.notes)),
        }
    }
    wrong.extend(notes.iter().map(|note| format!("an unexpected note: {note}")));
    wrong
}

fn check(name: &str, least: usize) {
    let folder = folder(name);
    let text = std::fs::read_to_string(folder.join("expected.yaml")).unwrap();
    let cases: BTreeMap<String, Expected> = serde_yaml::from_str(&text).unwrap();
    assert!(cases.len() >= least, "{} cases", cases.len());
    let mut wrong = String::new();
    for (case_name, case) in &cases {
        for complaint in complaints(&folder, case_name, case) {
            wrong.push_str(&format!("\n{case_name}: {complaint}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    for entry in std::fs::read_dir(&folder).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let named = |(name, case): (&String, &Expected)| name.starts_with(&file) || case.file.as_ref() == Some(&file);
        assert!(file == "expected.yaml" || cases.iter().any(named), "{name}/{file} is in no case");
    }
}

#[test]
fn accelerate_files_resolve_as_expected() {
    check("accelerate", 35);
}

#[test]
fn deepspeed_files_resolve_as_expected() {
    check("deepspeed", 35);
}

#[test]
fn trainer_files_resolve_as_expected() {
    check("trainer", 12);
}

#[test]
fn the_guides_samples_resolve_as_they_are() {
    check("guide", 6);
}
