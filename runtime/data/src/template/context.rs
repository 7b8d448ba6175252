//! What a template is given of a conversation, and whether it will read it.

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::{ChatTemplate, generation, values};
use crate::error::DataError;
use crate::message::{Conversation, Message};
use crate::model_files::SpecialTokens;

/// Fields of a message that say who speaks or answers, which a template need not read.
const NAMING: [&str; 5] = ["role", "content", "name", "tool_call_id", "id"];

/// Fields with what was thought: the same text under each of the names.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A conversation as the template sees it.
pub(crate) struct Context {
    messages: Vec<Value>,
    tools: Value,
    variables: Vec<(String, Value)>,
}

impl Context {
    /// Hands a conversation over. What a template does not read is not learned from, and nothing would tell; so it is
    /// refused here.
    pub(crate) fn of(conversation: &Conversation, template: &ChatTemplate) -> Result<Context, DataError> {
        let Conversation { messages, tools, template_variables } = conversation;
        check(conversation, template).map_err(|message| DataError::Template { message })?;
        let dict = |fields: &Map<String, Json>| values::dict(fields.iter());
        Ok(Context {
            messages: messages.iter().map(|message| dict(message.fields())).collect(),
            tools: match tools.is_empty() {
                true => Value::from(()),
                false => values::list(tools.iter().map(values::of_json).collect()),
            },
            variables: template_variables.iter().map(|(name, value)| (name.clone(), values::of_json(value))).collect(),
        })
    }

    /// All variables of a rendering of the first `count` messages.
    pub(super) fn variables(
        &self,
        count: usize,
        add_generation_prompt: bool,
        special: &SpecialTokens,
    ) -> impl Iterator<Item = (String, Value)> {
        let messages = self.messages.get(..count).unwrap_or(&self.messages);
        let special = special.iter().map(|(name, token)| (name.to_string(), Value::from(token)));
        let own = [
            ("messages", values::list(messages.to_vec())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("tools", self.tools.clone()),
            ("documents", Value::from(())),
        ];
        // A row's own variables come last: as in transformers they go before special tokens of the same name.
        special.chain(own.map(|(name, value)| (name.to_string(), value))).chain(self.variables.iter().cloned())
    }
}

fn check(conversation: &Conversation, template: &ChatTemplate) -> Result<(), String> {
    let Conversation { messages, tools, template_variables } = conversation;
    if template.has_generation_marks() && has_mark(conversation) {
        return Err("a message holds U+FDD0 or U+FDD1, which are no characters; remove them".into());
    }
    let reads = |name: &str| names(template.source(), name);
    for (index, message) in messages.iter().enumerate() {
        if !message.has_common_role() && !reads(message.role()) {
            return Err(format!("messages[{index}]: the template knows no role \"{}\"", message.role()));
        }
        if let Some(name) = unread_field(message, reads) {
            return Err(format!("messages[{index}]: the template does not read the field `{name}`"));
        }
    }
    if !tools.is_empty() && !reads("tools") {
        return Err("the template does not read `tools`".into());
    }
    match template_variables.keys().find(|name| !reads(name)) {
        Some(name) => Err(format!("the template does not read `{name}` of chat_template_kwargs")),
        None => Ok(()),
    }
}

/// A field that says something and that the template never names.
fn unread_field(message: &Message, reads: impl Fn(&str) -> bool) -> Option<&str> {
    let says = |value: &Json| match value {
        Json::Null => false,
        Json::String(text) => !text.is_empty(),
        Json::Array(items) => !items.is_empty(),
        Json::Object(fields) => !fields.is_empty(),
        Json::Bool(_) | Json::Number(_) => true,
    };
    let read = |name: &str| match REASONING.contains(&name) {
        true => REASONING.iter().any(|name| reads(name)),
        false => NAMING.contains(&name) || reads(name),
    };
    message.fields().iter().find(|(name, value)| says(value) && !read(name)).map(|(name, _)| name.as_str())
}

/// Whether a template's text holds a name as a word of its own.
fn names(source: &str, name: &str) -> bool {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    source
        .match_indices(name)
        .any(|(at, _)| !source[..at].ends_with(is_word) && !source[at + name.len()..].starts_with(is_word))
}

fn has_mark(conversation: &Conversation) -> bool {
    let in_fields = |fields: &Map<String, Json>| {
        fields.iter().any(|(name, value)| generation::contains_mark(name) || value_has_mark(value))
    };
    conversation.messages.iter().any(|message| in_fields(message.fields()))
        || conversation.tools.iter().any(value_has_mark)
        || in_fields(&conversation.template_variables)
}

fn value_has_mark(value: &Json) -> bool {
    match value {
        Json::String(text) => generation::contains_mark(text),
        Json::Array(items) => items.iter().any(value_has_mark),
        Json::Object(fields) => {
            fields.iter().any(|(name, value)| generation::contains_mark(name) || value_has_mark(value))
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => false,
    }
}
