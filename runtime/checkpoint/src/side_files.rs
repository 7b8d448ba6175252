//! What belongs to a model besides its weights: configuration, tokenizer, chat template.

use crate::disk::{list, read_bounded, write_new};
use crate::dtype::Dtype;
use crate::error::{CheckpointError, Result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The configuration that every model folder has.
const CONFIG_FILE: &str = "config.json";

/// Where a template goes that is not the source's.
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// No configuration may be larger.
const MAX_CONFIG_BYTES: u64 = 10_000_000;

/// Files that are copied as they are where the source has them.
const COPIED: [&str; 10] = [
    "generation_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
];

/// Whether a file of this name belongs to a model beside its weights and is kept with it.
pub fn is_side_file(name: &str) -> bool {
    let tokenizer = name.starts_with("tokenizer") && name.ends_with(".json");
    name == CONFIG_FILE || tokenizer || COPIED.contains(&name)
}

/// The key of config.json that tells the hash of the chat template that the model was trained with.
const TRAINED_WITH: &str = "trained_chat_template";

/// What the files beside the weights say otherwise than the source's.
#[derive(Clone, Copy, Debug, Default)]
pub struct SideChanges<'a> {
    /// The text of the chat template, in place of the source's wherever that stands.
    pub chat_template: Option<&'a str>,
    /// The BLAKE3 hash of the chat template that the model was trained with, 64 hexadecimal digits.
    pub trained_with: Option<&'a str>,
    /// The token that ends a turn, and its id.
    pub eos_token: Option<(&'a str, u32)>,
}

/// Copies what a model folder holds besides weights into another folder, and gives the names. `config.json` must be there and
/// gets the type of the weights that were written; `tokenizer*.json` and the other files of a tokenizer, its chat template
/// and the generation defaults are copied as they are, but for the `changes`.
pub fn copy_side_files(source: &Path, target: &Path, dtype: Dtype, changes: &SideChanges<'_>) -> Result<Vec<String>> {
    let config = source.join(CONFIG_FILE);
    let content = read_bounded(&config, MAX_CONFIG_BYTES)?;
    let updated = with_dtype(&content, dtype).map_err(|reason| CheckpointError::bad_json(&config, reason))?;
    write_new(&target.join(CONFIG_FILE), &changes.apply(CONFIG_FILE, &config, updated.into_bytes())?)?;
    let mut copied = vec![CONFIG_FILE.to_string()];
    if let Some(template) = changes.chat_template {
        write_new(&target.join(TEMPLATE_FILE), template.as_bytes())?;
        copied.push(TEMPLATE_FILE.to_string());
    }
    for path in list(source)? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        // A link into a cache of models is followed.
        if name != CONFIG_FILE && is_side_file(name) && path.is_file() {
            if changes.replaces(name) {
                continue;
            }
            match changes.touches(name) {
                true => {
                    let content = read_bounded(&path, MAX_CONFIG_BYTES)?;
                    write_new(&target.join(name), &changes.apply(name, &path, content)?)?;
                }
                false => copy(&path, &target.join(name))?,
            }
            copied.push(name.to_string());
        }
    }
    Ok(copied)
}

impl SideChanges<'_> {
    /// Whether this file is left out: the template stands elsewhere.
    fn replaces(&self, name: &str) -> bool {
        self.chat_template.is_some() && name.starts_with("chat_template.")
    }

    /// Whether something changes in this file.
    fn touches(&self, name: &str) -> bool {
        match name {
            CONFIG_FILE => self.trained_with.is_some() || self.eos_token.is_some(),
            "tokenizer_config.json" => self.chat_template.is_some() || self.eos_token.is_some(),
            "special_tokens_map.json" | "generation_config.json" => self.eos_token.is_some(),
            _ => false,
        }
    }

    /// The file with its changes.
    fn apply(&self, name: &str, path: &Path, content: Vec<u8>) -> Result<Vec<u8>> {
        if !self.touches(name) {
            return Ok(content);
        }
        let bad = |reason: String| CheckpointError::bad_json(path, reason);
        let mut file: Value = serde_json::from_slice(&content).map_err(|error| bad(error.to_string()))?;
        let Some(map) = file.as_object_mut() else {
            return Err(bad("it is no JSON object".to_string()));
        };
        match (name, self.eos_token) {
            (CONFIG_FILE, Some((_, id))) => _ = map.insert("eos_token_id".to_string(), id.into()),
            ("generation_config.json", Some((_, id))) => {
                // Others may end a generation as before.
                let mut ids = match map.shift_remove("eos_token_id") {
                    Some(Value::Array(ids)) => ids,
                    Some(Value::Null) | None => Vec::new(),
                    Some(id) => vec![id],
                };
                ids.retain(|other| *other != id);
                ids.insert(0, id.into());
                map.insert("eos_token_id".to_string(), ids.into());
            }
            (_, Some((token, _))) => _ = map.insert("eos_token".to_string(), token.into()),
            (_, None) => {}
        }
        match name {
            CONFIG_FILE => {
                if let Some(digest) = self.trained_with {
                    map.insert(TRAINED_WITH.to_string(), digest.into());
                }
            }
            "tokenizer_config.json" if self.chat_template.is_some() => _ = map.shift_remove("chat_template"),
            _ => {}
        }
        Ok(format!("{file:#}\n").into_bytes())
    }
}

fn copy(from: &Path, to: &PathBuf) -> Result<()> {
    let mut source = fs::File::open(from).map_err(CheckpointError::io("read", from))?;
    let bytes = source.metadata().map_err(CheckpointError::io("read", from))?.len();
    let mut file = fs::File::create_new(to).map_err(CheckpointError::io("create", to))?;
    let copied = std::io::copy(&mut source, &mut file).and_then(|_| file.sync_all());
    copied.map_err(CheckpointError::write(to, bytes))
}

/// The configuration with its type of weights replaced: `dtype`, or `torch_dtype` as older versions of `transformers` spell
/// it, wherever it stands; `torch_dtype`, which every version reads, where neither does.
fn with_dtype(content: &[u8], dtype: Dtype) -> Result<String, String> {
    let mut config: Value = serde_json::from_slice(content).map_err(|error| error.to_string())?;
    let Some(map) = config.as_object_mut() else {
        return Err("it is no JSON object".to_string());
    };
    let keys = ["dtype", "torch_dtype"];
    let present: Vec<&str> = keys.into_iter().filter(|key| map.contains_key(*key)).collect();
    for key in if present.is_empty() { vec!["torch_dtype"] } else { present } {
        map.insert(key.to_string(), dtype.config_name().into());
    }
    Ok(format!("{config:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_type_is_told_and_the_rest_kept() {
        let text = r#"{"rope_theta": 10000.0, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-05, "b": [1, null], "a": 12345678901234567}"#;
        let updated = with_dtype(text.as_bytes(), Dtype::F16).unwrap();
        let config: Value = serde_json::from_str(&updated).unwrap();
        assert_eq!(config["torch_dtype"], "float16");
        assert_eq!(config.get("dtype"), None);
        assert_eq!(config["rms_norm_eps"].as_f64(), Some(1e-5));
        assert_eq!(config["a"].as_u64(), Some(12345678901234567));
        let keys: Vec<_> = config.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["rope_theta", "torch_dtype", "rms_norm_eps", "b", "a"]);
        let newer = with_dtype(br#"{"dtype": "float32"}"#, Dtype::BF16).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&newer).unwrap(), serde_json::json!({"dtype": "bfloat16"}));
        let none = with_dtype(b"{}", Dtype::F32).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&none).unwrap(), serde_json::json!({"torch_dtype": "float32"}));
        assert!(with_dtype(b"[]", Dtype::F32).is_err());
    }

    #[test]
    fn tokenizer_and_template_come_along_and_weights_do_not() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let names = [
            "tokenizer.json",
            "tokenizer_config.json",
            "tokenizer.model",
            "chat_template.jinja",
            "model.safetensors",
            "pytorch_model.bin",
            "trainer.py",
        ];
        for name in names {
            fs::write(source.path().join(name), name).unwrap();
        }
        let error =
            copy_side_files(source.path(), target.path(), Dtype::F32, &SideChanges::default()).unwrap_err().to_string();
        assert!(error.contains("config.json"), "{error}");
        fs::write(source.path().join(CONFIG_FILE), "{}").unwrap();
        std::os::unix::fs::symlink(source.path().join("trainer.py"), source.path().join("merges.txt")).unwrap();
        fs::create_dir(source.path().join("vocab.json")).unwrap();
        let copied = copy_side_files(source.path(), target.path(), Dtype::F32, &SideChanges::default()).unwrap();
        let expected = [
            "config.json",
            "chat_template.jinja",
            "merges.txt",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
        ];
        assert_eq!(copied, expected);
        assert_eq!(fs::read(target.path().join("merges.txt")).unwrap(), b"trainer.py");
        assert_eq!(fs::read_dir(target.path()).unwrap().count(), expected.len());
    }

    #[test]
    fn another_template_and_end_of_turn_stand_wherever_they_are_looked_for() {
        let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |name: &str, text: &str| fs::write(source.path().join(name), text).unwrap();
        write(CONFIG_FILE, r#"{"eos_token_id": 1, "a": 2}"#);
        write("generation_config.json", r#"{"eos_token_id": [1, 7], "top_p": 0.5}"#);
        write("tokenizer_config.json", r#"{"bos_token": "<s>", "chat_template": "old", "eos_token": "</s>", "z": 1}"#);
        write("special_tokens_map.json", r#"{"eos_token": {"content": "</s>"}}"#);
        write("chat_template.json", r#"{"chat_template": "old"}"#);
        write("tokenizer.json", "untouched");
        let changes =
            SideChanges { chat_template: Some("new"), trained_with: Some("abc"), eos_token: Some(("<end>", 7)) };
        copy_side_files(source.path(), target.path(), Dtype::F32, &changes).unwrap();
        let read = |name: &str| fs::read_to_string(target.path().join(name)).unwrap();
        let json = |name: &str| serde_json::from_str::<Value>(&read(name)).unwrap();
        assert_eq!((read("chat_template.jinja"), read("tokenizer.json")), ("new".into(), "untouched".into()));
        assert!(!target.path().join("chat_template.json").exists());
        assert_eq!(json(CONFIG_FILE)["trained_chat_template"], "abc");
        assert_eq!(json(CONFIG_FILE)["eos_token_id"], 7);
        assert_eq!(json("generation_config.json"), serde_json::json!({"top_p": 0.5, "eos_token_id": [7, 1]}));
        let tokenizer = serde_json::json!({"bos_token": "<s>", "eos_token": "<end>", "z": 1});
        assert_eq!(json("tokenizer_config.json"), tokenizer);
        assert_eq!(json("special_tokens_map.json")["eos_token"], "<end>");
    }
}
