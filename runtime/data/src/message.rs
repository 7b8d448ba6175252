//! The messages of a conversation, as a row writes them.

use serde_json::Value;

use crate::columns::SHAPES;
use crate::error::Fault;
use crate::rows::kind;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
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

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into() }
    }
}

/// The messages of a row's column `messages`: at least one.
pub(crate) fn parse_messages(value: &Value) -> Result<Vec<Message>, Fault> {
    let Value::Array(entries) = value else {
        return Err(Fault::new(format!("expected `messages` to be an array, found {}", kind(value)), SHAPES));
    };
    if entries.is_empty() {
        return Err(Fault::new(
            "`messages` is empty",
            "a conversation has at least a user's and an assistant's message",
        ));
    }
    entries.iter().enumerate().map(|(index, entry)| parse_message(index, entry)).collect()
}

fn parse_message(index: usize, entry: &Value) -> Result<Message, Fault> {
    let hint = "a message is {\"role\": \"system\", \"user\", \"assistant\" or \"tool\", \"content\": \"text\"}";
    let fault = |message: String| Err(Fault::new(format!("messages[{index}]: {message}"), hint));
    let Value::Object(fields) = entry else {
        return fault(format!("expected an object, found {}", kind(entry)));
    };
    let role = match fields.get("role").and_then(Value::as_str) {
        Some("system") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        Some(other) => return fault(format!("unknown role \"{other}\"")),
        None => {
            let names: Vec<&str> = fields.keys().map(String::as_str).collect();
            return fault(format!("expected `role` and `content`, found the fields: {}", names.join(", ")));
        }
    };
    let Some(Value::String(content)) = fields.get("content") else {
        let found = fields.get("content").map_or("nothing", kind);
        return fault(format!("expected `content` to be a string, found {found}"));
    };
    let extra = fields.iter().find(|(name, value)| !["role", "content"].contains(&name.as_str()) && !value.is_null());
    if let Some((name, _)) = extra {
        return fault(format!("the field `{name}` is not supported"));
    }
    Ok(Message { role, content: content.clone() })
}
