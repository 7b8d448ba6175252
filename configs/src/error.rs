//! What can be wrong with a configuration. Each message says what, where, which value and what to do; advice stands on
//! a last line that begins with `hint:`.

use crate::sharding::Stage;
use std::path::PathBuf;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}: {message}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        message: String,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {message}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        message: String,
    },
    /// Neither a file nor a preset has this name.
    #[error("no configuration named {name}: there is no such file, and no such preset\nhint: {hint}")]
    NoSuchConfig {
        /// The name as it was given.
        name: String,
        /// The presets there are, and the nearest one.
        hint: String,
    },
    /// A description of hardware has no GPU of this name.
    #[error("--gpu {name}: {file} has no GPU of this name\nhint: {hint}")]
    NoSuchGpu {
        /// The name as it was given.
        name: String,
        /// The file.
        file: String,
        /// The GPUs there are, and the nearest one.
        hint: String,
    },
    /// A file is not YAML, or not of the expected form.
    #[error("{file} cannot be understood: {message}")]
    Syntax {
        /// The file.
        file: String,
        /// What the reader said, with its line.
        message: String,
    },
    /// A key that a file sets twice.
    #[error("{place}: {key} is set a second time; the first is in line {first}\nhint: keep one of the two")]
    Duplicate {
        /// The key, with its section.
        key: String,
        /// Where it is set again.
        place: String,
        /// The line where it was set first.
        first: usize,
    },
    /// A `--set` that is not `key=value`.
    #[error("--set {text}: expected key=value\nhint: for example --set learning_rate=1e-5")]
    BadSet {
        /// The argument as it was given.
        text: String,
    },
    /// A key that nobody knows.
    #[error("{place}: unknown key {key}{section}\nhint: {hint}")]
    UnknownKey {
        /// The key as it was written.
        key: String,
        /// Where it stands.
        place: String,
        /// ` in SECTION`, or nothing.
        section: String,
        /// The nearest right name, or where keys are listed.
        hint: String,
    },
    /// A value of the wrong type or out of its range.
    #[error("{place}: {key} is {value}, which is not allowed: {allowed}{hint}")]
    InvalidValue {
        /// The key.
        key: String,
        /// The value as it was written.
        value: String,
        /// Where it stands.
        place: String,
        /// `it must be …`.
        allowed: String,
        /// A whole hint line with its line break, or nothing.
        hint: String,
    },
    /// A known key or value whose meaning is not built, and which would change the result if it were dropped.
    #[error("{place}: {key}: {value} is not built yet\nhint: {hint}")]
    NotBuilt {
        /// The key.
        key: String,
        /// The value as it was written.
        value: String,
        /// Where it stands.
        place: String,
        /// What can be done instead.
        hint: String,
    },
    /// Two values that were both written and disagree.
    #[error("{first} ({first_place}) and {second} ({second_place}) disagree\nhint: {hint}")]
    Conflict {
        /// The first, as `key: value`.
        first: String,
        /// Where the first stands.
        first_place: String,
        /// The second, as `key: value`.
        second: String,
        /// Where the second stands.
        second_place: String,
        /// How to settle it.
        hint: String,
    },
    /// Values of a DeepSpeed JSON that were also written elsewhere, differently, or where Accelerate allows one place
    /// only; all of them.
    #[error("{file} does not agree with what is written elsewhere:{}\nhint: {hint}", lines(list))]
    Disagreements {
        /// The DeepSpeed JSON.
        file: String,
        /// Each as `key: value (place) and key: value (place)`.
        list: Vec<String>,
        /// How to settle them.
        hint: String,
    },
    /// A file with the trainer's keys at the top level and something that does not go with them there.
    #[error("{place}: {key} stands at the top level beside {other} ({other_place})\nhint: {hint}")]
    MixedForms {
        /// The trainer's key.
        key: String,
        /// Where it stands.
        place: String,
        /// The key that is not the trainer's.
        other: String,
        /// Where that stands.
        other_place: String,
        /// How to settle it.
        hint: String,
    },
    /// Batch sizes that do not multiply.
    #[error("{total} ({place}) must be rows per device × accumulation × processes, but {equation}\nhint: {hint}")]
    Batch {
        /// The size of the whole batch, as `key: value`.
        total: String,
        /// Where it stands.
        place: String,
        /// What the factors make, each with its place.
        equation: String,
        /// How to settle it.
        hint: String,
    },
    /// Something that needs what is sharded, where nothing says what is: copies, or optimizer state elsewhere.
    #[error("{place}: {setting} needs ZeRO stage {least}{}, and no stage is set\nhint: {hint}", or_more(*least))]
    NeedsStage {
        /// The setting, as `key: value`.
        setting: String,
        /// Where it stands.
        place: String,
        /// The lowest stage that allows it.
        least: Stage,
        /// How to set the stage.
        hint: String,
    },
    /// Keys without which no job can run.
    #[error("not set: {keys}\nhint: {hint}")]
    Missing {
        /// The keys.
        keys: String,
        /// The flags and the YAML that set them.
        hint: String,
    },
}

/// Each on an indented line of its own.
fn lines(list: &[String]) -> String {
    list.iter().map(|line| format!("\n  {line}")).collect()
}

/// What follows the lowest of several stages.
fn or_more(least: Stage) -> &'static str {
    if least == Stage::Three { "" } else { " or more" }
}
