//! Where a chat template's text comes from: the model folder, a file, another model, or a name of [`builtin`].

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::builtin;
use crate::error::DataError;
use crate::model_files;
use crate::tokenizer::Tokenizer;

/// The key of config.json under which an exported model tells the hash of the template that it was trained with.
const TRAINED_WITH: &str = "trained_chat_template";

/// A chat template's text, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSource {
    /// The text.
    pub text: String,
    /// Its file; of a built-in template, its name.
    pub place: PathBuf,
}

impl TemplateSource {
    /// Finds a model folder's template where transformers does: chat_template.jinja, else chat_template.json, else
    /// `chat_template` in tokenizer_config.json (a string, or a list whose entry named "default" is taken).
    ///
    /// # Errors
    /// [`DataError::Model`] when there is none.
    pub fn of_model(model_directory: &Path) -> Result<TemplateSource, DataError> {
        let place = model_directory.join("chat_template.jinja");
        if let Some(text) = model_files::read_text(&place)? {
            return Ok(TemplateSource { text, place });
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let place = model_directory.join(name);
            let Some(file) = model_files::read_json(&place)? else {
                continue;
            };
            match file.get("chat_template") {
                None | Some(Json::Null) => {}
                Some(value) => {
                    let text = default_template(value).ok_or_else(|| {
                        let hint = "expected a string, or a list of {name, template} with one named \"default\"";
                        DataError::model(&place, "`chat_template` has no default template", hint)
                    })?;
                    return Ok(TemplateSource { text: text.to_string(), place });
                }
            }
        }
        let hint = format!(
            "rows with `messages` need one: name a built-in one (chat_template_path: {}) or a .jinja file, use an \
             instruct model, or give rows of `input_ids`",
            builtin::names().join(", ")
        );
        Err(DataError::model(model_directory, "this model has no chat template", hint))
    }

    /// What `chat_template_path` names: a template's file, the folder of a model that has one, or a built-in template,
    /// which must fit the tokenizer of `model_directory`, with `eos_token` in place of its own end of a turn.
    ///
    /// # Errors
    /// [`DataError::Model`] when it is none of these, or the built-in template's tokens are none of this tokenizer;
    /// [`DataError::Tokenizer`] when `eos_token` is none.
    pub fn named(name: &Path, model_directory: &Path, eos_token: Option<&str>) -> Result<TemplateSource, DataError> {
        if name.is_dir() {
            return TemplateSource::of_model(name);
        }
        if name.is_file() {
            if name.extension().is_none_or(|extension| extension != "jinja" && extension != "j2") {
                let hint = "give a file that ends with .jinja, or the folder of a model that has a template";
                return Err(DataError::model(name, "this is no template's file", hint));
            }
            let text = model_files::read_text(name)?.unwrap_or_default();
            return Ok(TemplateSource { text, place: name.to_path_buf() });
        }
        let Some(found) = name.to_str().and_then(builtin::find) else {
            let hint = format!(
                "give a .jinja file, the folder or the hub's id of a model, or a built-in template: {}",
                builtin::names().join(", ")
            );
            return Err(DataError::model(name, "there is no such chat template", hint));
        };
        let mut tokenizer = Tokenizer::load(model_directory)?;
        if let Some(token) = eos_token {
            tokenizer.end_with(token)?;
        }
        found.check(&tokenizer, tokenizer.special())?;
        Ok(TemplateSource { text: found.text.to_string(), place: name.to_path_buf() })
    }

    /// Whether it may tell the day, so that what it renders tomorrow is something else.
    pub fn tells_the_day(&self) -> bool {
        self.text.contains("strftime_now")
    }

    /// The BLAKE3 hash of the text, 64 hexadecimal digits.
    pub fn digest(&self) -> String {
        digest(&self.text)
    }

    /// The names of the built-in templates.
    pub fn builtin_names() -> Vec<&'static str> {
        builtin::names()
    }

    /// Whether `name` is that of a built-in template, so that no model of the hub is meant.
    pub fn is_builtin(name: &str) -> bool {
        builtin::find(name).is_some()
    }
}

/// The hash of the template that a model folder says it was trained with; none where it does not say.
///
/// # Errors
/// When config.json exists and is not readable JSON.
pub fn trained_template_digest(model_directory: &Path) -> Result<Option<String>, DataError> {
    let config = model_files::read_json(&model_directory.join("config.json"))?;
    Ok(config.as_ref().and_then(|config| Some(config.get(TRAINED_WITH)?.as_str()?.to_string())))
}

pub(super) fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

fn default_template(value: &Json) -> Option<&str> {
    match value {
        Json::String(source) => Some(source),
        Json::Array(entries) => entries
            .iter()
            .find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"))?
            .get("template")?
            .as_str(),
        Json::Object(entries) => entries.get("default")?.as_str(),
        _ => None,
    }
}
