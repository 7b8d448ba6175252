//! Conversations as a row writes them: messages with all that a chat template may read of them.
//!
//! A message is what transformers gives a template: its fields, in the order in which they were written. What is `null`
//! is left out, at every depth: rows of Parquet have a null wherever another row has a value.

use serde_json::{Map, Value};

use crate::columns::SHAPES;
use crate::error::Fault;
use crate::rows::kind;

/// The roles that need no look at the template.
const ROLES: [Role; 4] = [Role::System, Role::User, Role::Assistant, Role::Tool];

/// Names under which data sets keep what was thought before an answer, first the one that templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Fields that elsewhere decide which messages are learned from.
const WEIGHTS: [&str; 4] = ["weight", "train", "training", "loss"];

/// Names that the template is given in any case.
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions that stand above the conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// What a tool gave back.
    Tool,
}

impl Role {
    /// The name in rows and templates.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    fields: Map<String, Value>,
}

impl Message {
    /// A message with nothing but a text.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        let fields = [("role", role.name().to_string()), ("content", content.into())];
        Message { fields: fields.into_iter().map(|(name, text)| (name.to_string(), Value::String(text))).collect() }
    }

    /// Who speaks: one of [`Role`]'s names, or another that the template may know.
    pub fn role(&self) -> &str {
        self.text("role")
    }

    /// What is said; empty where there is nothing but calls of tools.
    pub fn content(&self) -> &str {
        self.text("content")
    }

    /// Whether the model speaks.
    pub fn is_assistant(&self) -> bool {
        self.role() == Role::Assistant.name()
    }

    /// Whether every template may be expected to know the role.
    pub(crate) fn has_common_role(&self) -> bool {
        ROLES.iter().any(|role| role.name() == self.role())
    }

    /// All fields, as a template sees them.
    pub(crate) fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// One of the fields.
    pub(crate) fn field(&self, name: &str) -> Option<&Value> {
        field(&self.fields, name)
    }

    /// Whether it calls a tool.
    pub(crate) fn calls_tools(&self) -> bool {
        has_calls(&self.fields)
    }

    /// Whether a text stands anywhere in it, in the names and values of its calls too.
    pub(crate) fn says(&self, text: &str) -> bool {
        self.fields.values().any(|value| says(value, text))
    }

    fn text(&self, name: &str) -> &str {
        self.field(name).and_then(Value::as_str).unwrap_or_default()
    }
}

/// A conversation, with what else a template may be told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// At least one message.
    pub messages: Vec<Message>,
    /// Tools that the model may call, each a JSON schema; none for a conversation without.
    pub tools: Vec<Value>,
    /// Variables of the template (`chat_template_kwargs`), as `enable_thinking`.
    pub template_variables: Map<String, Value>,
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Conversation {
        Conversation { messages, ..Conversation::default() }
    }
}

/// A field of a message. There are few, so that looking at each is faster than a hash.
fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The messages of a column as `messages`: at least one.
pub(crate) fn parse_messages(value: Value) -> Result<Vec<Message>, Fault> {
    let Value::Array(entries) = value else {
        return Err(Fault::new(format!("expected `messages` to be an array, found {}", kind(&value)), SHAPES));
    };
    if entries.is_empty() {
        return Err(Fault::new(
            "`messages` is empty",
            "a conversation has at least a user's and an assistant's message",
        ));
    }
    entries.into_iter().enumerate().map(|(index, entry)| parse_message(index, entry)).collect()
}

fn parse_message(index: usize, entry: Value) -> Result<Message, Fault> {
    let hint = "a message is {\"role\": \"system\", \"user\", \"assistant\" or \"tool\", \"content\": \"text\"}";
    let fault = |message: String| Err(Fault::new(format!("messages[{index}]: {message}"), hint));
    let Value::Object(mut fields) = entry else {
        return fault(format!("expected an object, found {}", kind(&entry)));
    };
    match field(&fields, "role") {
        Some(Value::String(role)) if !role.is_empty() => {}
        Some(value) => return fault(format!("expected `role` to be a name, found {}", shown(value))),
        None => {
            let names: Vec<&str> = fields.keys().map(String::as_str).collect();
            return fault(format!("expected `role` and `content`, found the fields: {}", names.join(", ")));
        }
    }
    if let Some(name) = WEIGHTS.iter().find(|name| field(&fields, name).is_some_and(|value| !value.is_null())) {
        let message = format!("messages[{index}]: the field `{name}` is not supported");
        let hint = "which messages are learned from is decided by their role: all of the assistant's are";
        return Err(Fault::new(message, hint));
    }
    drop_nulls(&mut fields);
    match field(&fields, "content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => {
            let text = parts.iter().enumerate().map(|(part, value)| text_of_part(index, part, value));
            let text = text.collect::<Result<String, Fault>>()?;
            fields.insert("content".to_string(), Value::String(text));
        }
        None if has_calls(&fields) => {}
        other => {
            let found = other.map_or("nothing", kind);
            return fault(format!("expected `content` to be a string, found {found}"));
        }
    }
    check_calls(index, &fields)?;
    Ok(Message { fields: with_reasoning(fields) })
}

/// A message without content says something all the same where it calls a tool.
fn has_calls(fields: &Map<String, Value>) -> bool {
    field(fields, "tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty())
        || field(fields, "function_call").is_some_and(Value::is_object)
}

fn says(value: &Value, text: &str) -> bool {
    match value {
        Value::String(said) => said.contains(text),
        Value::Array(items) => items.iter().any(|item| says(item, text)),
        Value::Object(fields) => fields.iter().any(|(name, value)| name.contains(text) || says(value, text)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

fn check_calls(index: usize, fields: &Map<String, Value>) -> Result<(), Fault> {
    let hint = "tool_calls is [{\"type\": \"function\", \"function\": {\"name\": …, \"arguments\": {…}}}, …]";
    let fault = |message: String| Err(Fault::new(format!("messages[{index}]: {message}"), hint));
    let Some(calls) = field(fields, "tool_calls") else { return Ok(()) };
    let Value::Array(calls) = calls else {
        return fault(format!("expected `tool_calls` to be an array, found {}", kind(calls)));
    };
    for (number, call) in calls.iter().enumerate() {
        let function = call.get("function").unwrap_or(call);
        if !function.get("name").is_some_and(Value::is_string) {
            return fault(format!("tool_calls[{number}]: expected a function with a `name`"));
        }
    }
    Ok(())
}

/// The text of one part of a content that is written as a list.
fn text_of_part(index: usize, part: usize, value: &Value) -> Result<String, Fault> {
    let hint = "a part is {\"type\": \"text\", \"text\": \"…\"}: only models of text are trained";
    let fault = |found: String| Err(Fault::new(format!("messages[{index}]: content[{part}]: {found}"), hint));
    match (value.get("type").and_then(Value::as_str), value.get("text")) {
        (Some("text"), Some(Value::String(text))) => Ok(text.clone()),
        (Some("text"), _) => fault("expected `text` to be a string".to_string()),
        (Some(other), _) => fault(format!("a part of type \"{other}\" is no text")),
        (None, _) => fault(format!("expected a part with a `type`, found {}", kind(value))),
    }
}

/// What was thought, under the names that templates read, as transformers does.
fn with_reasoning(fields: Map<String, Value>) -> Map<String, Value> {
    let Some(reasoning) = REASONING.iter().find_map(|name| field(&fields, name)).cloned() else {
        return fields;
    };
    let mut all = Map::new();
    all.insert("thinking".to_string(), reasoning.clone());
    all.extend(fields);
    all.insert(REASONING[0].to_string(), reasoning);
    all
}

/// The tools of a row: a list, or the JSON text of one, as data sets store it.
pub(crate) fn parse_tools(value: &Value) -> Result<Vec<Value>, Fault> {
    let hint = "tools is a list of JSON schemas of functions, or the JSON text of such a list";
    let parsed;
    let value = match value {
        Value::String(text) => {
            parsed = serde_json::from_str(text)
                .map_err(|error| Fault::new(format!("`tools` is a text, and not JSON: {error}"), hint))?;
            &parsed
        }
        value => value,
    };
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(tools) => match tools.iter().position(|tool| !tool.is_object()) {
            Some(index) => {
                Err(Fault::new(format!("tools[{index}]: expected an object, found {}", kind(&tools[index])), hint))
            }
            None => {
                let mut tools = tools.clone();
                tools.iter_mut().for_each(drop_nulls_of);
                Ok(tools)
            }
        },
        other => Err(Fault::new(format!("expected `tools` to be an array, found {}", kind(other)), hint)),
    }
}

/// Variables of the template.
pub(crate) fn parse_variables(value: &Value) -> Result<Map<String, Value>, Fault> {
    let hint = "chat_template_kwargs is an object of variables that the chat template reads";
    let Value::Object(variables) = value else {
        return match value {
            Value::Null => Ok(Map::new()),
            other => {
                Err(Fault::new(format!("expected `chat_template_kwargs` to be an object, found {}", kind(other)), hint))
            }
        };
    };
    if let Some(name) = variables.keys().find(|name| RESERVED.contains(&name.as_str())) {
        let message = format!("chat_template_kwargs: `{name}` has its own place");
        return Err(Fault::new(message, "messages and tools are columns; the others are not for rows to choose"));
    }
    let mut variables = variables.clone();
    drop_nulls(&mut variables);
    Ok(variables)
}

fn drop_nulls(fields: &mut Map<String, Value>) {
    fields.retain(|_, value| !value.is_null());
    fields.values_mut().for_each(drop_nulls_of);
}

fn drop_nulls_of(value: &mut Value) {
    match value {
        Value::Object(fields) => drop_nulls(fields),
        Value::Array(items) => items.iter_mut().for_each(drop_nulls_of),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| kind(value).to_string(), |text| format!("{text:?}"))
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
