//! What a row says: its words, and its text in a form in which equal rows are equal.

use serde_json::Value;
use twox_hash::{XxHash3_64, XxHash3_128};
use unicode_segmentation::UnicodeSegmentation;

use super::sketch::Sketch;
use crate::message::{Conversation, Message};
use crate::rows::Row;

/// The hash that stands for nothing.
pub(super) const NONE: u128 = 0;

/// A text of a row, and whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// What was asked or given: of users and tools, a prompt, an instruction; a plain text too.
    Given(&'a str),
    /// What is answered.
    Answer(&'a str),
}

/// The words of a row, as hashes of their lower-case forms, in their order.
///
/// System messages and tools are no part of it: often they are the same in all rows, and long.
#[derive(Debug, Default)]
pub(super) struct Words {
    pub(super) all: Vec<u64>,
    pub(super) given: Vec<u64>,
    /// Of all answers.
    pub(super) answers: Vec<u64>,
    /// How many of these stand before the last answer.
    earlier_answers: usize,
}

impl Words {
    pub(super) fn of(row: &Row) -> Words {
        let mut words = Words::default();
        if let Row::Tokens { input_ids, .. } = row {
            words.all.extend(input_ids.iter().map(|&id| u64::from(id)));
            return words;
        }
        let mut buffer = String::new();
        for piece in pieces(row) {
            let begin = words.all.len();
            let (text, own) = match piece {
                Piece::Given(text) => (text, &mut words.given),
                Piece::Answer(text) => {
                    words.earlier_answers = words.answers.len();
                    (text, &mut words.answers)
                }
            };
            add_words(text, &mut buffer, &mut words.all);
            own.extend_from_slice(&words.all[begin..]);
        }
        words
    }

    fn last_answer(&self) -> &[u64] {
        &self.answers[self.earlier_answers..]
    }
}

/// The texts of a row, in their order, but for system messages. None for rows of tokens.
pub(super) fn pieces(row: &Row) -> Vec<Piece<'_>> {
    match row {
        Row::Conversation(conversation) => conversation.messages.iter().filter_map(piece).collect(),
        Row::Exchange { prompt, completion } => {
            let before = prompt.messages.iter().filter_map(piece).map(|piece| match piece {
                Piece::Given(text) | Piece::Answer(text) => Piece::Given(text),
            });
            before.chain(completion.iter().filter_map(piece)).collect()
        }
        Row::Completion { prompt, completion } => vec![Piece::Given(prompt), Piece::Answer(completion)],
        Row::Instruction { instruction, input, response, .. } => {
            let given = [Some(instruction), input.as_ref()].into_iter().flatten().map(|text| Piece::Given(text));
            given.chain([Piece::Answer(response)]).collect()
        }
        Row::Text(text) => vec![Piece::Given(text)],
        Row::Tokens { .. } => Vec::new(),
    }
}

fn piece(message: &Message) -> Option<Piece<'_>> {
    match message.role() {
        "assistant" => Some(Piece::Answer(message.content())),
        "system" | "developer" => None,
        _ => Some(Piece::Given(message.content())),
    }
}

/// What equal rows have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    /// Of all that is learned from: roles, texts, calls and tools; columns that nothing is made of do not count.
    pub(super) content: u128,
    /// Of all before the last answer; [`NONE`] where nothing is asked or answered.
    pub(super) instruction: u128,
    /// Of the words of the last answer, else of all that is in it.
    pub(super) answer: u64,
    /// Of all words.
    pub(super) sketch: Sketch,
}

impl Identity {
    pub(super) fn of(row: &Row, words: &Words) -> Identity {
        let Canonical { bytes, answer } = Canonical::of(row);
        let (instruction, last_answer) = match answer {
            Some(begin) if !words.given.is_empty() => (XxHash3_128::oneshot(&bytes[..begin]), &bytes[begin..]),
            _ => (NONE, &bytes[..0]),
        };
        let answer = match words.last_answer() {
            [] => XxHash3_64::oneshot(last_answer),
            words => XxHash3_64::oneshot(bytemuck::cast_slice(words)),
        };
        let content = XxHash3_128::oneshot(&bytes);
        Identity { content, instruction, answer, sketch: Sketch::of_words(&words.all) }
    }
}

/// A row in bytes: each part with its length before it, so that no two rows are the same bytes.
#[derive(Default)]
struct Canonical {
    bytes: Vec<u8>,
    /// Where the last answer begins.
    answer: Option<usize>,
}

impl Canonical {
    fn of(row: &Row) -> Canonical {
        let mut canonical = Canonical::default();
        match row {
            Row::Conversation(conversation) => canonical.add_conversation(conversation, &[]),
            Row::Exchange { prompt, completion } => canonical.add_conversation(prompt, completion),
            Row::Completion { prompt, completion } => {
                canonical.add(prompt);
                canonical.add_answer(completion);
            }
            Row::Instruction { system, instruction, input, response } => {
                for text in [system.as_ref(), Some(instruction), input.as_ref()] {
                    canonical.add(text.map_or("", String::as_str));
                }
                canonical.add_answer(response);
            }
            Row::Text(text) => canonical.add(text),
            Row::Tokens { input_ids, labels } => {
                canonical.bytes.extend_from_slice(bytemuck::cast_slice(input_ids));
                canonical.bytes.extend_from_slice(bytemuck::cast_slice(labels));
            }
        }
        canonical
    }

    fn add(&mut self, text: &str) {
        self.bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
    }

    fn add_answer(&mut self, text: &str) {
        self.answer = Some(self.bytes.len());
        self.add(text);
    }

    /// A conversation whose last answer is the last message of the assistant, or the `completion` behind it.
    fn add_conversation(&mut self, conversation: &Conversation, completion: &[Message]) {
        for value in conversation.tools.iter().chain(conversation.template_variables.values()) {
            self.add(&value.to_string());
        }
        let messages = &conversation.messages;
        let last = messages.iter().rposition(Message::is_assistant).filter(|_| completion.is_empty());
        for (index, message) in messages.iter().enumerate() {
            if last == Some(index) {
                self.answer = Some(self.bytes.len());
            }
            self.add_message(message);
        }
        if !completion.is_empty() {
            self.answer = Some(self.bytes.len());
        }
        completion.iter().for_each(|message| self.add_message(message));
    }

    /// The fields of a message by their names: their order means nothing.
    fn add_message(&mut self, message: &Message) {
        self.add(message.role());
        self.add(message.content());
        let fields = message.fields();
        let mut others: Vec<(&String, &Value)> =
            fields.iter().filter(|(name, _)| !["role", "content"].contains(&name.as_str())).collect();
        others.sort_by_key(|(name, _)| *name);
        for (name, value) in others {
            self.add(name);
            self.add(&value.to_string());
        }
    }
}

/// Adds the hashes of a text's words, as Unicode's annex 29 finds them (each ideograph is a word), in lower case.
fn add_words(text: &str, buffer: &mut String, words: &mut Vec<u64>) {
    for word in text.unicode_words() {
        if word.is_ascii() {
            buffer.clear();
            buffer.push_str(word);
            buffer.make_ascii_lowercase();
            words.push(XxHash3_64::oneshot(buffer.as_bytes()));
        } else {
            words.push(XxHash3_64::oneshot(word.to_lowercase().as_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::message::{parse_messages, parse_tools};

    fn conversation(messages: Value) -> Conversation {
        parse_messages(&messages).unwrap().into()
    }

    fn identity(row: &Row) -> Identity {
        Identity::of(row, &Words::of(row))
    }

    #[test]
    fn rows_that_say_the_same_are_the_same() {
        let user = json!({"role": "user", "content": "Hi, you."});
        let answer = json!({"role": "assistant", "content": "Hello!", "name": "x", "thinking": "hm"});
        let turned =
            json!({"thinking": "hm", "name": "x", "content": "Hello!", "role": "assistant", "tool_calls": null});
        let one = identity(&Row::Conversation(conversation(json!([user, answer]))));
        let exchange =
            Row::Exchange { prompt: conversation(json!([user])), completion: conversation(json!([turned])).messages };
        assert_eq!(identity(&exchange), one);
        let other = json!({"role": "assistant", "content": "hello"});
        let other = identity(&Row::Conversation(conversation(json!([user, other]))));
        assert_ne!(other.content, one.content);
        let same = (other.instruction, other.answer, other.sketch);
        assert_eq!(same, (one.instruction, one.answer, one.sketch), "case and punctuation are no words");
        let mut with_tools = conversation(json!([user, answer]));
        with_tools.tools = parse_tools(&json!([{"type": "function"}])).unwrap();
        let with_tools = identity(&Row::Conversation(with_tools));
        assert!(with_tools.content != one.content && with_tools.instruction != one.instruction);
    }

    #[test]
    fn what_is_asked_is_all_before_the_last_answer() {
        let message = |role: &str, text: &str| json!({"role": role, "content": text});
        let of = |texts: &[(&str, &str)]| {
            let messages: Vec<Value> = texts.iter().map(|(role, text)| message(role, text)).collect();
            identity(&Row::Conversation(conversation(Value::Array(messages))))
        };
        let (ask, again) = (("user", "Hi."), ("user", "And?"));
        let long = of(&[ask, ("assistant", "Yes."), again, ("assistant", "No.")]);
        let otherwise = of(&[ask, ("assistant", "Yes."), again, ("assistant", "Perhaps.")]);
        assert_eq!(long.instruction, otherwise.instruction);
        assert_ne!(long.answer, otherwise.answer);
        assert_ne!(of(&[ask, ("assistant", "Oh."), again, ("assistant", "No.")]).instruction, long.instruction);
        assert_ne!(
            of(&[("system", "Be kind."), ask, ("assistant", "A.")]).instruction,
            of(&[ask, ("assistant", "A.")]).instruction
        );
        assert_eq!(
            of(&[("system", "Be kind."), ask, ("assistant", "A.")]).sketch,
            of(&[ask, ("assistant", "A.")]).sketch
        );
        assert_eq!(of(&[ask]).instruction, NONE, "nothing is answered");
        assert_eq!(identity(&Row::Completion { prompt: " ".into(), completion: "A.".into() }).instruction, NONE);
        assert_eq!(identity(&Row::Text("A.".into())).instruction, NONE);
    }

    /// No two rows have the same bytes because a border between texts is somewhere else.
    #[test]
    fn borders_between_texts_count() {
        let row = |prompt: &str, completion: &str| {
            identity(&Row::Completion { prompt: prompt.into(), completion: completion.into() }).content
        };
        assert_ne!(row("ab", "c"), row("a", "bc"));
        let tokens = |input_ids: &[u32], labels: &[i32]| {
            identity(&Row::Tokens { input_ids: input_ids.to_vec(), labels: labels.to_vec() }).content
        };
        assert_ne!(tokens(&[1, 2], &[1, 2]), tokens(&[1, 2], &[-100, 2]));
    }
}
