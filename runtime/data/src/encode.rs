//! A row to token ids and labels.

use crate::dataset::{IGNORED, supervised};
use crate::error::{DataError, Fault};
use crate::mask;
use crate::message::{Message, Role};
use crate::model_files;
use crate::prepare::Prepare;
use crate::report::{Loss, RowKind};
use crate::rows::Row;
use crate::template::{ChatTemplate, Rendered};
use crate::tokenizer::{Encoded, Tokenizer};

/// One row, encoded and cut.
#[derive(Debug)]
pub(crate) struct EncodedRow {
    pub(crate) ids: Vec<u32>,
    pub(crate) labels: Vec<i32>,
    /// It was longer.
    pub(crate) truncated: bool,
    /// The tokens of its prompt are not the beginning of its tokens.
    pub(crate) split_token: bool,
    /// A supervised token ends a generation.
    pub(crate) stops: bool,
}

/// Ids and labels of a row before it is cut, and whether its prompt's tokens begin it otherwise.
type Tokens = (Vec<u32>, Vec<i32>, bool);

/// What all rows are encoded with.
pub(crate) struct Encoder<'a> {
    options: &'a Prepare<'a>,
    kind: RowKind,
    /// Missing only for rows of `input_ids`, which need none.
    pub(crate) tokenizer: Option<Tokenizer>,
    /// With conversations only.
    template: Option<ChatTemplate>,
    vocabulary: Option<u32>,
}

impl<'a> Encoder<'a> {
    /// For rows as `first` is one.
    ///
    /// # Errors
    /// A model folder without a usable tokenizer or template; a loss that such rows cannot have.
    pub(crate) fn new(options: &'a Prepare<'a>, first: &Row) -> Result<Encoder<'a>, DataError> {
        let model = options.model_directory;
        let kind = kind_of(first, model_files::has_chat_template(model)?);
        if options.completion_only_loss == Some(true) && !matches!(kind, RowKind::Completions | RowKind::Exchanges) {
            return Err(DataError::Plan {
                message: format!("completion_only_loss is true, but {} have no completion", kind.words()),
                hint: "give rows of `prompt` and `completion`, or leave completion_only_loss out".into(),
            });
        }
        let templated = matches!(kind, RowKind::Conversations | RowKind::Exchanges);
        let needed = kind != RowKind::Tokens || model.join("tokenizer.json").exists();
        let tokenizer = if needed { Some(Tokenizer::load(model)?) } else { None };
        let template = if templated { Some(ChatTemplate::load(model)?) } else { None };
        Ok(Encoder { options, kind, tokenizer, template, vocabulary: model_files::vocabulary_size(model)? })
    }

    pub(crate) fn kind(&self) -> RowKind {
        self.kind
    }

    /// What the loss of these rows is taken on.
    pub(crate) fn loss(&self) -> Loss {
        let (completion, assistant) =
            (self.options.completion_only_loss != Some(false), self.options.assistant_only_loss);
        match self.kind {
            RowKind::Tokens => Loss::Labels,
            RowKind::Conversations if assistant => Loss::Assistant,
            RowKind::Exchanges if assistant && completion => Loss::AssistantOfCompletion,
            RowKind::Exchanges if assistant => Loss::Assistant,
            RowKind::Exchanges | RowKind::Completions if completion => Loss::Completion,
            _ => Loss::All,
        }
    }

    /// A row's tokens and labels, cut to `max_length`.
    ///
    /// # Errors
    /// What is wrong with the row.
    pub(crate) fn encode(&self, row: Row) -> Result<EncodedRow, Fault> {
        let kind = kind_of(&row, self.template.is_some());
        if kind != self.kind {
            let message = format!("this row is one of {}, the first one of {}", kind.words(), self.kind.words());
            return Err(Fault::new(message, "keep the two kinds in two data sets"));
        }
        let (mut ids, mut labels, split_token) = match row {
            Row::Tokens { input_ids, labels } => (input_ids, labels, false),
            row => self.encode_text(row)?,
        };
        if let Some(size) = self.vocabulary {
            let beyond = |&id: &u32| id >= size;
            let label_beyond = labels.iter().filter_map(|&label| u32::try_from(label).ok()).find(beyond);
            if let Some(id) = ids.iter().copied().find(beyond).or(label_beyond) {
                let message = format!("token id {id}, but the model's vocabulary has {size} entries");
                return Err(Fault::new(message, "the rows or the tokenizer belong to another model"));
            }
        }
        let limit = self.options.max_length as usize;
        let truncated = ids.len() > limit;
        ids.truncate(limit);
        labels.truncate(limit);
        let ends = self.tokenizer.as_ref().map_or(&[][..], Tokenizer::eos_ids);
        let stops = labels.iter().any(|&label| u32::try_from(label).is_ok_and(|id| ends.contains(&id)));
        let truncated = truncated && supervised(&labels) > 0;
        Ok(EncodedRow { ids, labels, truncated, split_token, stops })
    }

    fn encode_text(&self, row: Row) -> Result<Tokens, Fault> {
        let Some(tokenizer) = &self.tokenizer else {
            unreachable!("loaded for all rows but those of tokens");
        };
        match (row, &self.template) {
            (Row::Exchange { prompt, completion }, Some(template)) => {
                self.encode_exchange((prompt, completion), template, tokenizer)
            }
            (row @ (Row::Conversation(_) | Row::Instruction { .. }), Some(template)) => {
                let messages = row.into_conversation().unwrap_or_default();
                let (ids, labels) = self.encode_conversation(&messages, template, tokenizer)?;
                Ok((ids, labels, false))
            }
            (Row::Instruction { system, instruction, input, response }, None) => {
                let prompt = instruction_text(system.as_deref(), &instruction, input.as_deref());
                self.encode_completion(&prompt, response, tokenizer)
            }
            (Row::Completion { prompt, completion }, _) => self.encode_completion(&prompt, completion, tokenizer),
            (Row::Text(text), _) => {
                let ids =
                    tokenizer.encode(&ended(text, tokenizer), true).map_err(|error| mask::fault_of(error, CHANGE))?;
                let labels = all(&ids)?;
                Ok((ids, labels, false))
            }
            _ => unreachable!("loaded for rows of messages; rows of tokens do not come here"),
        }
    }

    fn encode_completion(&self, prompt: &str, completion: String, tokenizer: &Tokenizer) -> Result<Tokens, Fault> {
        let encode = |text: &str| tokenizer.encode(text, true).map_err(|error| mask::fault_of(error, CHANGE));
        let ids = encode(&format!("{prompt}{}", ended(completion, tokenizer)))?;
        let mut labels = all(&ids)?;
        if self.options.completion_only_loss == Some(false) {
            return Ok((ids, labels, false));
        }
        let before = encode(prompt)?;
        let split_token = ignore_prompt(&before, &ids, &mut labels);
        Ok((ids, labels, split_token))
    }

    fn encode_exchange(
        &self,
        (prompt, completion): (Vec<Message>, Vec<Message>),
        template: &ChatTemplate,
        tokenizer: &Tokenizer,
    ) -> Result<Tokens, Fault> {
        let before = template.render(&prompt, true).map_err(|error| mask::fault_of(error, ROLES))?;
        let before = tokenizer.encode(&before, false).map_err(|error| mask::fault_of(error, CHANGE))?;
        let mut messages = prompt;
        messages.extend(completion);
        let (ids, mut labels) = self.encode_conversation(&messages, template, tokenizer)?;
        if self.options.completion_only_loss == Some(false) {
            return Ok((ids, labels, false));
        }
        let split_token = ignore_prompt(&before, &ids, &mut labels);
        Ok((ids, labels, split_token))
    }

    fn encode_conversation(
        &self,
        messages: &[Message],
        template: &ChatTemplate,
        tokenizer: &Tokenizer,
    ) -> Result<(Vec<u32>, Vec<i32>), Fault> {
        let full = template.render_with_spans(messages, false).map_err(|error| mask::fault_of(error, ROLES))?;
        if !self.options.assistant_only_loss {
            let ids = tokenizer.encode(&full.text, false).map_err(|error| mask::fault_of(error, CHANGE))?;
            let labels = all(&ids)?;
            return Ok((ids, labels));
        }
        let encoded = tokenizer.encode_with_offsets(&full.text).map_err(|error| mask::fault_of(error, CHANGE))?;
        let labels = assistant_labels(messages, template, tokenizer, &full, &encoded)?;
        Ok((encoded.ids, labels))
    }
}

const ROLES: &str = "the chat template takes only certain roles, often in turns; change the row";
const CHANGE: &str = "change the row";

fn assistant_labels(
    messages: &[Message],
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    full: &Rendered,
    encoded: &Encoded,
) -> Result<Vec<i32>, Fault> {
    if !messages.iter().any(|message| message.role == Role::Assistant) {
        let hint = "add the answer, remove the row, or set assistant_only_loss: false";
        return Err(Fault::new("no message of this conversation is the assistant's", hint));
    }
    let spans = mask::assistant_spans(template, tokenizer, messages, full)?;
    mask::labels(encoded, &full.text, &spans, IGNORED)
}

/// The text with the end of a sequence behind it, unless it is there. TRL does so for what no template ends.
fn ended(mut text: String, tokenizer: &Tokenizer) -> String {
    if let Some(end) = tokenizer.special().get("eos_token")
        && !text.ends_with(end)
    {
        text.push_str(end);
    }
    text
}

/// What an instruction reads like to a model without a chat template, up to its response.
fn instruction_text(system: Option<&str>, instruction: &str, input: Option<&str>) -> String {
    let mut text = system.map(|system| format!("{system}\n\n")).unwrap_or_default();
    text.push_str(&format!("### Instruction:\n{instruction}\n\n"));
    if let Some(input) = input {
        text.push_str(&format!("### Input:\n{input}\n\n"));
    }
    text.push_str("### Response:\n");
    text
}

fn all(ids: &[u32]) -> Result<Vec<i32>, Fault> {
    ids.iter().map(|&id| mask::label_of(id)).collect()
}

/// Leaves the tokens of a prompt unlearned, as far as the row begins with them; tells whether it begins otherwise.
fn ignore_prompt(prompt: &[u32], ids: &[u32], labels: &mut [i32]) -> bool {
    let same = prompt.iter().zip(ids).take_while(|(left, right)| left == right).count();
    labels[..same].fill(IGNORED);
    same < prompt.len()
}

/// What a row is to a model with a chat template or without.
fn kind_of(row: &Row, templated: bool) -> RowKind {
    match row {
        Row::Conversation(_) => RowKind::Conversations,
        Row::Exchange { .. } => RowKind::Exchanges,
        Row::Instruction { .. } if templated => RowKind::Conversations,
        Row::Instruction { .. } | Row::Completion { .. } => RowKind::Completions,
        Row::Text(_) => RowKind::Texts,
        Row::Tokens { .. } => RowKind::Tokens,
    }
}
