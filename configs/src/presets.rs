//! Configurations that ship inside the program, and finding one by name.

use crate::error::ConfigError;
use crate::registry::nearest;
use std::path::Path;

/// A configuration that ships inside the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// Its name, as given to `--config`.
    pub name: &'static str,
    /// Its YAML.
    pub text: &'static str,
}

/// Every preset: the demo by stage, then supervised fine-tuning of a model and data of one's own.
pub const PRESETS: &[Preset] = &[
    Preset { name: "ddp.yaml", text: include_str!("../ddp.yaml") },
    Preset { name: "zero1.yaml", text: include_str!("../zero1.yaml") },
    Preset { name: "zero2.yaml", text: include_str!("../zero2.yaml") },
    Preset { name: "zero3.yaml", text: include_str!("../zero3.yaml") },
    Preset { name: "sft-basic.yaml", text: include_str!("../sft-basic.yaml") },
    Preset { name: "sft-recipe.yaml", text: include_str!("../sft-recipe.yaml") },
];

/// The configuration called `name`: a file at that path, else a preset. Returns what to call it in messages, and its
/// text.
pub(crate) fn find(name: &str) -> Result<(String, String), ConfigError> {
    let path = Path::new(name);
    if path.exists() {
        return Ok((name.to_owned(), crate::source::read_text(path)?));
    }
    match PRESETS.iter().find(|preset| preset.name == name || preset.name.strip_suffix(".yaml") == Some(name)) {
        Some(preset) => Ok((preset.name.to_owned(), preset.text.to_owned())),
        None => {
            let names = PRESETS.iter().map(|preset| preset.name);
            let list = format!("the presets are {}", names.clone().collect::<Vec<_>>().join(", "));
            let hint = match nearest(name, names) {
                Some(near) => format!("did you mean {near}? {list}"),
                None => list,
            };
            Err(ConfigError::NoSuchConfig { name: name.to_owned(), hint })
        }
    }
}
