//! The whole way from text and flags to a resolved configuration, as tables.

mod again;
mod compose;
mod device;
mod errors;
mod forms;
mod freezing;
mod keys;
mod mesh;
mod mixing;
mod precedence;
mod precision;
mod schedule;
mod schema;
mod sharding;

use crate::{ConfigError, Inputs, Resolved, resolve};

/// The `training:` section that every job needs.
const TRAINING: &str = "training:\n  model_name_or_path: m\n  dataset: d.jsonl\n  output_dir: out\n";

/// Flags as pairs.
fn pairs(flags: &[(&str, &str)]) -> Vec<(String, String)> {
    flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Resolves a file of this text, called `job.yaml`, with these flags. The name in messages is `job.yaml` alone.
fn with_flags(text: &str, flags: &[(&str, &str)], set: &[&str]) -> Result<Resolved, String> {
    on_machine(0, text, flags, set)
}

/// The same on a machine with so many GPUs.
fn on_machine(devices: u32, text: &str, flags: &[(&str, &str)], set: &[&str]) -> Result<Resolved, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.yaml");
    std::fs::write(&path, text).unwrap();
    let inputs = Inputs {
        config: Some(path.display().to_string()),
        flags: pairs(flags),
        set: set.iter().map(|text| (*text).to_owned()).collect(),
        devices,
        ..Inputs::default()
    };
    let folder = format!("{}/", folder.path().display());
    let short = |text: String| text.replace(&folder, "");
    let mut resolved = resolve(&inputs).map_err(|error: ConfigError| short(error.to_string()))?;
    resolved.provenance.values_mut().for_each(|place| *place = short(place.clone()));
    resolved.notes.iter_mut().for_each(|note| *note = short(note.clone()));
    Ok(resolved)
}

/// Asserts that a message has every part.
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in:\n{message}");
    }
}

/// Resolves `accelerate` followed by the required training keys and then `more` of them (indented by 2).
fn resolved(accelerate: &str, more: &str) -> Result<Resolved, String> {
    with_flags(&format!("{accelerate}{TRAINING}{more}"), &[], &[])
}
