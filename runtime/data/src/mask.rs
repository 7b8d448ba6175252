//! Which tokens of a conversation are the assistant's.

use std::ops::Range;

use crate::error::{DataError, Fault};
use crate::message::{Message, Role};
use crate::template::{ChatTemplate, Rendered};
use crate::tokenizer::{Encoded, Tokenizer};

/// What to do when the assistant's part of a conversation cannot be told.
const NO_SPANS: &str = "put {% generation %} and {% endgeneration %} into the chat template round what the assistant \
                        writes, or set assistant_only_loss: false to learn from all tokens";

/// The byte ranges of `full`, the rendered `messages`, that the assistant wrote, its end-of-turn token included.
///
/// By the template's own marks where it has them. Else by rendering what comes before each answer and what comes up to
/// its end: where the template renders a conversation's beginning as it renders the whole's (which is checked, both
/// times, and refused if not), the answer is what lies between.
pub(crate) fn assistant_spans(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Message],
    full: &Rendered,
) -> Result<Vec<Range<usize>>, Fault> {
    let turns: Vec<usize> = (0..messages.len()).filter(|&index| messages[index].role == Role::Assistant).collect();
    if template.has_generation_marks() {
        if full.spans.is_empty() && !turns.is_empty() {
            let message = "the chat template marks nothing of this conversation as the assistant's";
            return Err(Fault::new(
                message,
                "the template's {% generation %} blocks must enclose what the assistant writes",
            ));
        }
        return Ok(full.spans.clone());
    }
    let mut spans = Vec::with_capacity(turns.len());
    for turn in turns {
        let start = prefix(template, &messages[..turn], true, &full.text)?.len();
        let through = if turn + 1 == messages.len() {
            full.text.as_str()
        } else {
            prefix(template, &messages[..=turn], false, &full.text)?
        };
        let end = end_of_turn(through, tokenizer);
        if start >= end || spans.last().is_some_and(|span: &Range<usize>| span.end > start) {
            let message = format!("the chat template leaves nothing of messages[{turn}] after the prompt before it");
            return Err(Fault::new(message, NO_SPANS));
        }
        spans.push(start..end);
    }
    Ok(spans)
}

/// The rendering of a conversation's beginning, as the part of `full` that it must be.
fn prefix<'a>(
    template: &ChatTemplate,
    messages: &[Message],
    add_generation_prompt: bool,
    full: &'a str,
) -> Result<&'a str, Fault> {
    let what = match (messages.len(), add_generation_prompt) {
        (0, _) => "no message".to_string(),
        (1, _) => "messages[0]".to_string(),
        (count, _) => format!("messages[0..={}]", count - 1),
    };
    let text = template.render(messages, add_generation_prompt).map_err(|error| {
        let message = format!("which tokens are the assistant's cannot be told: on {what} alone, {error}");
        Fault::new(message, NO_SPANS)
    })?;
    match full.get(..text.len()) {
        Some(beginning) if beginning == text => Ok(beginning),
        _ => {
            let same = text.bytes().zip(full.bytes()).take_while(|(left, right)| left == right).count();
            let prompt = if add_generation_prompt { " with a prompt for the answer" } else { "" };
            let message = format!(
                "which tokens are the assistant's cannot be told: {what}{prompt} renders as …{}, but the whole \
                 conversation as …{}",
                excerpt(&text, same),
                excerpt(full, same)
            );
            Err(Fault::new(message, NO_SPANS))
        }
    }
}

/// A little of `text` before and after the byte `at`, quoted.
fn excerpt(text: &str, at: usize) -> String {
    let near = |index: usize| (index.saturating_sub(20)..index + 20).contains(&at);
    format!(
        "{:?}",
        text.char_indices().filter(|&(index, _)| near(index)).map(|(_, character)| character).collect::<String>()
    )
}

/// The end of the turn that `text` ends with: without the white space after an end-of-turn token.
fn end_of_turn(text: &str, tokenizer: &Tokenizer) -> usize {
    let trimmed = text.trim_end();
    if tokenizer.ends_with_special(trimmed) { trimmed.len() } else { text.len() }
}

/// A label for each token: its id where it lies in one of the `spans`, −100 elsewhere.
pub(crate) fn labels(encoded: &Encoded, text: &str, spans: &[Range<usize>], ignored: i32) -> Result<Vec<i32>, Fault> {
    let mut remaining = spans.iter().peekable();
    let mut labels = Vec::with_capacity(encoded.ids.len());
    for (&id, &(first, after)) in encoded.ids.iter().zip(&encoded.offsets) {
        while remaining.next_if(|span| span.end <= first).is_some() {}
        let label = match remaining.peek() {
            Some(span) if span.start <= first && after <= span.end => label_of(id)?,
            Some(span) if span.start < after => {
                let token = text.get(first..after).unwrap_or_default();
                let message = format!("the token {token:?} stands half in and half outside the assistant's answer");
                let hint = "often white space at the start of an answer that melts with what the template writes before \
                            it: remove it, or set assistant_only_loss: false";
                return Err(Fault::new(message, hint));
            }
            _ => ignored,
        };
        labels.push(label);
    }
    Ok(labels)
}

/// An id as a label, which is signed.
pub(crate) fn label_of(id: u32) -> Result<i32, Fault> {
    i32::try_from(id)
        .map_err(|_| Fault::new(format!("the token id {id} is too large"), "no tokenizer has so many tokens"))
}

/// An error met while a row was rendered or encoded, to be given its place.
pub(crate) fn fault_of(error: DataError, hint: &str) -> Fault {
    Fault::new(error.to_string(), hint)
}
