//! The model's chat template, rendered as transformers renders it.
//!
//! Chat templates are Jinja2 with Python's string methods, some functions of transformers' own and a `generation` tag;
//! [`python`] supplies what a template may expect of Python, [`generation`] the tag.

mod clock;
mod generation;
mod python;

use std::ops::Range;
use std::path::Path;

use minijinja::{Environment, Value};
use serde_json::Value as Json;

use crate::error::DataError;
use crate::message::Message;
use crate::model_files::{self, SpecialTokens};

/// Instructions that one rendering may take: a template comes with a model from anywhere and must come to an end.
const FUEL: u64 = 10_000_000;

const NAME: &str = "chat_template";

/// A compiled chat template with the special tokens that it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    special: SpecialTokens,
    marked: bool,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// What stands inside `{% generation %}` blocks, as byte ranges of the text, in order; empty ones left out.
    pub spans: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Finds a model folder's template where transformers does: chat_template.jinja, else chat_template.json, else
    /// `chat_template` in tokenizer_config.json (a string, or a list whose entry named "default" is taken).
    ///
    /// # Errors
    /// [`DataError::Model`] when there is none or it cannot be compiled.
    pub fn load(model_directory: &Path) -> Result<ChatTemplate, DataError> {
        let special = SpecialTokens::load(model_directory)?;
        let path = model_directory.join("chat_template.jinja");
        if let Some(source) = model_files::read_text(&path)? {
            return ChatTemplate::compile(source, special, &path);
        }
        for name in ["chat_template.json", "tokenizer_config.json"] {
            let path = model_directory.join(name);
            let Some(file) = model_files::read_json(&path)? else {
                continue;
            };
            match file.get("chat_template") {
                None | Some(Json::Null) => {}
                Some(value) => {
                    let source = default_template(value).ok_or_else(|| {
                        let hint = "expected a string, or a list of {name, template} with one named \"default\"";
                        DataError::model(&path, "`chat_template` has no default template", hint)
                    })?;
                    return ChatTemplate::compile(source.to_string(), special, &path);
                }
            }
        }
        let hint = "rows with `messages` need the template of a chat model: use an instruct model, put a \
                    chat_template.jinja into the folder, or give rows of `input_ids`";
        Err(DataError::model(model_directory, "this model has no chat template", hint))
    }

    /// Compiles a template that did not come out of a model folder.
    ///
    /// # Errors
    /// [`DataError::Model`] when it cannot be compiled.
    pub fn from_source(source: &str, special: SpecialTokens) -> Result<ChatTemplate, DataError> {
        ChatTemplate::compile(source.to_string(), special, Path::new(NAME))
    }

    fn compile(source: String, special: SpecialTokens, path: &Path) -> Result<ChatTemplate, DataError> {
        let broken = |message: String| {
            let hint =
                "the template must be Jinja as transformers takes it; copy it again from where the model came from";
            DataError::model(path, format!("chat template: {message}"), hint)
        };
        let marked = generation::mark(&source).map_err(broken)?;
        let mut environment = python::environment();
        environment.set_fuel(Some(FUEL));
        let text = marked.clone().unwrap_or_else(|| source.clone());
        environment.add_template_owned(NAME, text).map_err(|error| broken(describe(&error)))?;
        Ok(ChatTemplate { environment, source, special, marked: marked.is_some() })
    }

    /// The template as it is written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The BLAKE3 hash of [`source`](ChatTemplate::source), 64 hexadecimal digits.
    pub fn digest(&self) -> String {
        blake3::hash(self.source.as_bytes()).to_hex().to_string()
    }

    /// Whether the template marks with `{% generation %}` what the assistant writes.
    pub fn has_generation_marks(&self) -> bool {
        self.marked
    }

    /// The text of a conversation; with `add_generation_prompt`, up to where the assistant's next answer begins.
    ///
    /// # Errors
    /// [`DataError::Template`] when the template raises an exception, fails or does not come to an end.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, DataError> {
        Ok(self.render_with_spans(messages, add_generation_prompt)?.text)
    }

    /// [`ChatTemplate::render`], with the places that the template marks as the assistant's.
    ///
    /// # Errors
    /// [`DataError::Template`] when the template raises an exception, fails or does not come to an end.
    pub fn render_with_spans(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Rendered, DataError> {
        let fault = |message: String| DataError::Template { message };
        if self.marked && messages.iter().any(|message| generation::contains_mark(&message.content)) {
            return Err(fault("a message holds U+FDD0 or U+FDD1, which are no characters; remove them".into()));
        }
        let mut context: Vec<(&str, Value)> = vec![
            ("messages", Value::from_serialize(messages)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        context.extend(self.special.iter().map(|(name, token)| (name, Value::from(token))));
        let template = self.environment.get_template(NAME).map_err(|error| fault(describe(&error)))?;
        let text = template.render(Value::from_iter(context)).map_err(|error| fault(describe(&error)))?;
        if self.marked {
            generation::take_marks(&text).map_err(fault)
        } else {
            Ok(Rendered { text, spans: Vec::new() })
        }
    }
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

/// What went wrong and in which line of the template.
fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    let what =
        if error.kind() == minijinja::ErrorKind::OutOfFuel { "does not come to an end".to_string() } else { what };
    error.line().map_or_else(|| what.clone(), |line| format!("{what} (line {line} of the template)"))
}

#[cfg(test)]
#[path = "../template_tests.rs"]
mod tests;
