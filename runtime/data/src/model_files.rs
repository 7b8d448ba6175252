//! What the small JSON files of a model folder say: special tokens, where a generation ends, the vocabulary's size.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::error::DataError;

/// Largest JSON or template file of a model folder that is read, in bytes (tokenizers are the large ones).
const FILE_LIMIT: u64 = 256 << 20;

const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The tokenizer's named special tokens (`bos_token`, `eos_token`, `pad_token`, …), by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens(BTreeMap<String, String>);

impl SpecialTokens {
    /// From pairs of name and token.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> SpecialTokens {
        SpecialTokens(pairs.into_iter().map(|(name, token)| (name.to_string(), token.to_string())).collect())
    }

    /// Reads tokenizer_config.json, and special_tokens_map.json for the names that are missing there.
    ///
    /// # Errors
    /// When one of the files exists and is not readable JSON.
    pub fn load(model_directory: &Path) -> Result<SpecialTokens, DataError> {
        let mut tokens = BTreeMap::new();
        for file in ["special_tokens_map.json", "tokenizer_config.json"] {
            let Some(value) = read_json(&model_directory.join(file))? else {
                continue;
            };
            for name in NAMES {
                if let Some(token) = value.get(name).and_then(token_text) {
                    tokens.insert(name.to_string(), token);
                }
            }
        }
        Ok(SpecialTokens(tokens))
    }

    /// Names a token, in place of the one of that name.
    pub(crate) fn insert(&mut self, name: &str, token: &str) {
        self.0.insert(name.to_string(), token.to_string());
    }

    /// The token of that name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Name and token of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, token)| (name.as_str(), token.as_str()))
    }
}

/// A token is written as a string or as an object with its `content`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string)
}

/// Whether a chat template is found where [`crate::ChatTemplate::load`] looks for one.
pub(crate) fn has_chat_template(model_directory: &Path) -> Result<bool, DataError> {
    if model_directory.join("chat_template.jinja").exists() {
        return Ok(true);
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let file = read_json(&model_directory.join(name))?;
        if file.is_some_and(|file| file.get("chat_template").is_some_and(|template| !template.is_null())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The ids that end a generation: from generation_config.json, else config.json; an integer or a list there.
pub(crate) fn eos_ids(model_directory: &Path) -> Result<Vec<u32>, DataError> {
    for name in ["generation_config.json", "config.json"] {
        let path = model_directory.join(name);
        let Some(file) = read_json(&path)? else { continue };
        let ids = match file.get("eos_token_id") {
            None | Some(Value::Null) => continue,
            Some(Value::Array(entries)) => entries.iter().map(as_id).collect::<Option<Vec<_>>>(),
            Some(value) => as_id(value).map(|id| vec![id]),
        };
        return ids.ok_or_else(|| {
            let message = format!("eos_token_id is {}", file["eos_token_id"]);
            DataError::model(&path, message, "expected a token id or a list of token ids")
        });
    }
    Ok(Vec::new())
}

/// The number of rows of the embedding, from config.json, where it says so.
pub(crate) fn vocabulary_size(model_directory: &Path) -> Result<Option<u32>, DataError> {
    let config = read_json(&model_directory.join("config.json"))?;
    Ok(config.as_ref().and_then(|config| as_id(config.get("vocab_size")?)))
}

fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// A JSON file; nothing when there is no such file.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>, DataError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    let parsed = serde_json::from_str(&text);
    parsed.map(Some).map_err(|error| DataError::model(path, format!("broken JSON: {error}"), "copy the file again"))
}

/// A text file; nothing when there is no such file.
pub(crate) fn read_text(path: &Path) -> Result<Option<String>, DataError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DataError::io("read the file", path)(error)),
    };
    let mut text = String::new();
    let read = file.take(FILE_LIMIT + 1).read_to_string(&mut text).map_err(DataError::io("read the file", path))?;
    if read as u64 > FILE_LIMIT {
        let message = format!("is larger than {} MiB", FILE_LIMIT >> 20);
        return Err(DataError::model(path, message, "is this the right file?"));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn special_tokens_are_strings_or_objects_and_the_tokenizer_config_wins() {
        let folder = tempfile::tempdir().unwrap();
        let config =
            r#"{"eos_token": {"content": "<|im_end|>", "special": true}, "pad_token": null, "bos_token": "<s>"}"#;
        fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let map = r#"{"eos_token": "</s>", "unk_token": "<unk>", "additional_special_tokens": ["a"]}"#;
        fs::write(folder.path().join("special_tokens_map.json"), map).unwrap();
        let tokens = SpecialTokens::load(folder.path()).unwrap();
        let expected = [("bos_token", "<s>"), ("eos_token", "<|im_end|>"), ("unk_token", "<unk>")];
        assert_eq!(tokens, SpecialTokens::new(expected));
        assert_eq!(tokens.get("pad_token"), None);
    }

    #[test]
    fn eos_ids_come_from_the_generation_config_first() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(eos_ids(folder.path()).unwrap(), [] as [u32; 0]);
        fs::write(folder.path().join("config.json"), r#"{"eos_token_id": 2, "vocab_size": 320}"#).unwrap();
        assert_eq!(eos_ids(folder.path()).unwrap(), [2]);
        fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [7, 9]}"#).unwrap();
        assert_eq!(eos_ids(folder.path()).unwrap(), [7, 9]);
        assert_eq!(vocabulary_size(folder.path()).unwrap(), Some(320));
        fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": "</s>"}"#).unwrap();
        let error = eos_ids(folder.path()).unwrap_err().to_string();
        assert!(error.contains("generation_config.json: eos_token_id is \"</s>\""), "{error}");
    }
}
