//! Configuration files out of a decided job: ours, Accelerate's, DeepSpeed's.
//!
//! ```text
//! Outline ── layout (which distributed_type, which sections) ─┬─ ours        (commented YAML)
//!                                                             └─ accelerate  (YAML)
//!         └─ deepspeed (JSON)
//! ```
//!
//! What a form has no words for is in [`Composed::left_out`].

mod accelerate;
mod deepspeed;
mod layout;
mod ours;
mod yaml;

use crate::error::ConfigError;
use crate::outline::{Outline, stand_in};
use crate::resolve::{Inputs, resolve_file};
use crate::value::written as one_line;
use crate::written::{Written, same};
use serde_yaml::Value;

/// Whose file it is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Ours: Accelerate's form with a section `training:`, commented.
    Zerofold,
    /// A YAML of `accelerate launch --config_file`.
    Accelerate,
    /// A JSON of `deepspeed --deepspeed_config`.
    DeepSpeed,
}

impl Form {
    /// The names of the forms.
    pub const NAMES: [&'static str; 3] = ["zerofold", "accelerate", "deepspeed"];

    /// The form of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        let at = Self::NAMES.iter().position(|known| *known == name)?;
        Some([Form::Zerofold, Form::Accelerate, Form::DeepSpeed][at])
    }
}

/// A file, and what it does not say.
#[derive(Debug, Clone, PartialEq)]
pub struct Composed {
    /// The text of the file.
    pub text: String,
    /// What was set and has no counterpart there.
    pub left_out: Vec<LeftOut>,
}

/// A setting that a form has no words for.
#[derive(Debug, Clone, PartialEq)]
pub struct LeftOut {
    /// The setting, as `key: value`.
    pub setting: String,
    /// Why, as a sentence without its full stop.
    pub reason: String,
}

impl LeftOut {
    fn of(written: &Written, reason: &str) -> Self {
        let setting = format!("{}: {}", written.section.path(written.key), one_line(&written.value));
        LeftOut { setting, reason: reason.to_owned() }
    }
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "left out: {}, because {}", self.setting, self.reason)
    }
}

/// One line of a file: a key of a section, and its value.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    section: crate::Section,
    key: &'static str,
    value: Value,
}

const NVME_FOLDER: &str = "offload_optimizer_nvme_path";

/// Writes the job as a file of this form. A file of ours is read again, and what then differs from the job is left out
/// openly.
///
/// # Errors
/// As [`crate::resolve`], if that file cannot be read: two settings that no one file can hold; a folder for optimizer state that
/// is not named.
pub fn compose(outline: &Outline, form: Form, inputs: &Inputs) -> Result<Composed, ConfigError> {
    // The folder is part of what is written, and what stands in for it would be taken for one.
    if outline.missing.contains(&NVME_FOLDER) {
        outline.check()?;
    }
    match form {
        Form::Accelerate => Ok(accelerate::compose(outline)),
        Form::DeepSpeed => Ok(deepspeed::compose(outline)),
        Form::Zerofold => {
            let mut composed = ours::compose(outline);
            composed.left_out.extend(differences(outline, &composed, inputs)?);
            Ok(composed)
        }
    }
}

/// What the job sets and its file, read on this machine, does not.
fn differences(outline: &Outline, composed: &Composed, inputs: &Inputs) -> Result<Vec<LeftOut>, ConfigError> {
    let (environment, devices) = (inputs.environment.clone(), inputs.devices);
    let mut inputs = Inputs { environment, devices, ..Inputs::default() };
    stand_in(&mut inputs, &outline.missing);
    let (read, _) = resolve_file(Some(("the file", &composed.text)), &inputs)?;
    let read = read.written();
    let differs = |written: &&Written| {
        let other = read.iter().find(|other| (other.section, other.key) == (written.section, written.key));
        !other.is_some_and(|other| same(&other.value, &written.value))
    };
    let told = |left: &LeftOut| !composed.left_out.iter().any(|told| told.setting == left.setting);
    let written = outline.resolved.written();
    let left = written.iter().filter(differs).map(|written| LeftOut::of(written, "no one file can say it"));
    Ok(left.filter(told).collect())
}
