//! What is told of a row by its text alone.

use super::SHORT_WORDS;
use super::kind::FindingKind;
use super::said::{Piece, Words, pieces};
use crate::message::Message;
use crate::rows::Row;

/// What is to be said against a row, each with the reason. `column` is where the messages of a conversation stand.
pub(super) fn findings(row: &Row, words: &Words, column: &str) -> Vec<(FindingKind, String)> {
    let mut findings = Vec::new();
    if let Some(reason) = empty(row, column) {
        findings.push((FindingKind::Empty, reason));
    }
    if let Some(reason) = role_order(row, column) {
        findings.push((FindingKind::RoleOrder, reason));
    }
    let answered = pieces(row).iter().any(|piece| matches!(piece, Piece::Answer(text) if !text.trim().is_empty()));
    // What a tool is called with is no text to be judged by its words.
    if !answered || messages(row).any(Message::calls_tools) {
        return findings;
    }
    let count = words.answers.len();
    if count < SHORT_WORDS {
        let plural = if count == 1 { "" } else { "s" };
        findings.push((FindingKind::Short, format!("{count} word{plural}")));
    }
    if !words.given.is_empty() && count > 0 && !share_a_word(&words.given, &words.answers) {
        findings.push((FindingKind::Unrelated, "no word of what is asked is in the answer".to_owned()));
    }
    findings
}

fn share_a_word(given: &[u64], answers: &[u64]) -> bool {
    let mut given = given.to_vec();
    given.sort_unstable();
    answers.iter().any(|word| given.binary_search(word).is_ok())
}

fn messages(row: &Row) -> Box<dyn Iterator<Item = &Message> + '_> {
    match row {
        Row::Conversation(conversation) => Box::new(conversation.messages.iter()),
        Row::Exchange { prompt, completion } => Box::new(prompt.messages.iter().chain(completion)),
        _ => Box::new(std::iter::empty()),
    }
}

/// Where a message of the row stands: a column, and the index in it.
fn place(row: &Row, column: &str, index: usize) -> String {
    match row {
        Row::Exchange { prompt, .. } => match index.checked_sub(prompt.messages.len()) {
            None => format!("prompt[{index}]"),
            Some(index) => format!("completion[{index}]"),
        },
        _ => format!("{column}[{index}]"),
    }
}

/// Why a row says nothing, if it does.
pub(super) fn empty(row: &Row, column: &str) -> Option<String> {
    let blank = |message: &Message| message.content().trim().is_empty() && !message.calls_tools();
    if let Some(index) = messages(row).position(blank) {
        let role = messages(row).nth(index).map_or("", Message::role);
        return Some(format!("{}, the {role}'s, is empty", place(row, column, index)));
    }
    let blank = |text: &str| text.trim().is_empty();
    match row {
        Row::Completion { prompt, .. } if blank(prompt) => Some("the prompt is empty".to_owned()),
        Row::Completion { completion, .. } if blank(completion) => Some("the completion is empty".to_owned()),
        Row::Instruction { instruction, input, .. } if blank(instruction) && input.is_none() => {
            Some("the instruction is empty".to_owned())
        }
        Row::Instruction { response, .. } if blank(response) => Some("the response is empty".to_owned()),
        Row::Text(text) | Row::Classified { text, pair: None, .. } if blank(text) => {
            Some("the text is empty".to_owned())
        }
        _ => None,
    }
}

/// The first thing in the order of roles that chat templates do not expect.
fn role_order(row: &Row, column: &str) -> Option<String> {
    let messages: Vec<&Message> = messages(row).collect();
    let place = |index: usize| place(row, column, index);
    let system = |message: &Message| ["system", "developer"].contains(&message.role());
    let mut before: Option<&Message> = None;
    for (index, &message) in messages.iter().enumerate() {
        let role = message.role();
        let wrong = match (before, role) {
            _ if !message.has_common_role() && !system(message) => {
                format!("{}: the role {role:?} is not system, user, assistant or tool", place(index))
            }
            (_, "system" | "developer") if index > 0 => format!("{} is the {role}'s, after others", place(index)),
            (None, "assistant" | "tool") => format!("{} is the {role}'s, before the user spoke", place(index)),
            (Some(before), "user") if before.role() == "user" => {
                format!("{} and {} are both the user's", place(index - 1), place(index))
            }
            (Some(before), "assistant") if before.role() == "assistant" => {
                format!("{} and {} are both the assistant's", place(index - 1), place(index))
            }
            (Some(before), "tool") if before.role() == "user" => {
                format!("{} is a tool's, and no call stands before it", place(index))
            }
            _ => {
                before = Some(message).filter(|message| !system(message));
                continue;
            }
        };
        return Some(wrong);
    }
    let last = messages.last()?;
    (!last.is_assistant()).then(|| format!("it ends with the {}'s message, which nothing answers", last.role()))
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
