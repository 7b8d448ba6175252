//! A row to token ids and labels.

use std::ops::Range;

use serde_json::Value;

use crate::classes::Told;
use crate::dataset::{IGNORED, supervised};
use crate::error::{DataError, Fault};
use crate::mask;
use crate::message::{Conversation, Message};
use crate::model_files;
use crate::prepare::Prepare;
use crate::report::{Loss, RowKind};
use crate::rows::Row;
use crate::template::{ChatTemplate, TemplateSource};
use crate::tokenizer::Tokenizer;

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
    /// Each answer of the assistant ends with a special token that is learned.
    pub(crate) ended: bool,
    /// Of a row of a classifier.
    pub(crate) classified: Option<ClassifiedRow>,
}

/// What a row of a classifier has beside tokens and its one label.
#[derive(Debug)]
pub(crate) struct ClassifiedRow {
    /// Where the tokens of the second text begin.
    pub(crate) second: u32,
    /// The numbers that are told.
    pub(crate) values: Vec<f32>,
}

impl EncodedRow {
    /// Whether anything is learned of it.
    pub(crate) fn is_supervised(&self) -> bool {
        self.classified.is_some() || supervised(&self.labels) > 0
    }
}

/// A row before it is cut.
struct Tokens {
    ids: Vec<u32>,
    labels: Vec<i32>,
    /// Its prompt's tokens begin it otherwise.
    split_token: bool,
    /// Each answer ends.
    ended: bool,
}

impl Tokens {
    fn new(ids: Vec<u32>, labels: Vec<i32>) -> Tokens {
        Tokens { ids, labels, split_token: false, ended: true }
    }

    /// All of it learned.
    fn learned(ids: Vec<u32>) -> Result<Tokens, Fault> {
        let labels = ids.iter().map(|&id| mask::label_of(id)).collect::<Result<_, _>>()?;
        Ok(Tokens::new(ids, labels))
    }

    /// Leaves the tokens of a prompt unlearned, as far as the row begins with them, and notes whether it begins otherwise.
    fn ignore_prompt(mut self, prompt: &[u32]) -> Tokens {
        let same = prompt.iter().zip(&self.ids).take_while(|(left, right)| left == right).count();
        self.labels[..same].fill(IGNORED);
        self.split_token = same < prompt.len();
        self
    }
}

/// What all rows are encoded with.
pub(crate) struct Encoder<'a> {
    options: &'a Prepare<'a>,
    kind: RowKind,
    /// Missing only for rows of `input_ids`, which need none.
    pub(crate) tokenizer: Option<Tokenizer>,
    /// With conversations only.
    pub(crate) template: Option<ChatTemplate>,
    vocabulary: Option<u32>,
}

impl<'a> Encoder<'a> {
    /// For rows as `first` is one.
    ///
    /// # Errors
    /// A model folder without a usable tokenizer or template; a loss that such rows cannot have.
    pub(crate) fn new(options: &'a Prepare<'a>, first: &Row) -> Result<Encoder<'a>, DataError> {
        let model = options.model_directory;
        let templated = options.chat_template.is_some() || model_files::has_chat_template(model)?;
        let kind = kind_of(first, templated);
        if options.completion_only_loss == Some(true) && !matches!(kind, RowKind::Completions | RowKind::Exchanges) {
            return Err(DataError::Plan {
                message: format!("completion_only_loss is true, but {} have no completion", kind.words()),
                hint: "give rows of `prompt` and `completion`, or leave completion_only_loss out".into(),
            });
        }
        if kind == RowKind::Classified && options.classes.is_none() {
            return Err(DataError::Plan {
                message: "the rows are those of a classifier, and the model's classes are not known".to_owned(),
                hint: "set problem_type and num_labels, or name a model that is a classifier".to_owned(),
            });
        }
        let templated = matches!(kind, RowKind::Conversations | RowKind::Exchanges);
        let needed = kind != RowKind::Tokens || model.join("tokenizer.json").exists();
        let mut tokenizer = if needed { Some(Tokenizer::load(model)?) } else { None };
        if let (Some(tokenizer), Some(token)) = (&mut tokenizer, options.eos_token) {
            tokenizer.end_with(token)?;
        }
        let template = match &tokenizer {
            Some(tokenizer) if templated => Some(template_of(options, tokenizer)?),
            _ => None,
        };
        Ok(Encoder { options, kind, tokenizer, template, vocabulary: model_files::vocabulary_size(model)? })
    }

    pub(crate) fn kind(&self) -> RowKind {
        self.kind
    }

    /// What a classifier is to tell of a row, in words.
    pub(crate) fn told(&self, row: &EncodedRow) -> Option<String> {
        let (classified, classes) = row.classified.as_ref().zip(self.options.classes)?;
        Some(classes.words(&row.labels, &classified.values))
    }

    /// What the loss of these rows is taken on.
    pub(crate) fn loss(&self) -> Loss {
        let (completion, assistant) =
            (self.options.completion_only_loss != Some(false), self.options.assistant_only_loss);
        match self.kind {
            RowKind::Tokens => Loss::Labels,
            RowKind::Classified => Loss::Classes,
            RowKind::Conversations if assistant => Loss::Assistant,
            RowKind::Exchanges if assistant && completion => Loss::AssistantOfCompletion,
            RowKind::Exchanges if assistant => Loss::Assistant,
            RowKind::Exchanges | RowKind::Completions if completion => Loss::Completion,
            _ => Loss::All,
        }
    }

    /// A row's tokens and labels, cut to `max_length` where there is one.
    ///
    /// # Errors
    /// What is wrong with the row.
    pub(crate) fn encode(&self, row: Row) -> Result<EncodedRow, Fault> {
        let kind = kind_of(&row, self.template.is_some());
        if kind != self.kind {
            let message = format!("this row is one of {}, the first one of {}", kind.words(), self.kind.words());
            return Err(Fault::new(message, "keep the two kinds in two data sets"));
        }
        if let Row::Classified { text, pair, label } = &row {
            return self.encode_classified((text, pair.as_deref()), label);
        }
        let Tokens { mut ids, mut labels, split_token, ended } = match row {
            Row::Tokens { input_ids, labels } => Tokens::new(input_ids, labels),
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
        let limit = self.options.max_length.map_or(usize::MAX, |most| most as usize);
        let truncated = ids.len() > limit;
        ids.truncate(limit);
        labels.truncate(limit);
        let ends = self.tokenizer.as_ref().map_or(&[][..], Tokenizer::eos_ids);
        let stops = labels.iter().any(|&label| u32::try_from(label).is_ok_and(|id| ends.contains(&id)));
        let truncated = truncated && supervised(&labels) > 0;
        Ok(EncodedRow { ids, labels, truncated, split_token, stops, ended, classified: None })
    }

    fn encode_classified(&self, (text, pair): (&str, Option<&str>), label: &Value) -> Result<EncodedRow, Fault> {
        let (Some(tokenizer), Some(classes)) = (&self.tokenizer, self.options.classes) else {
            unreachable!("loaded for rows of a classifier");
        };
        let told = classes.told(label)?;
        let longest = self.options.max_length.map_or(usize::MAX, |most| most as usize);
        let encoded = tokenizer.encode_classified(text, pair, longest);
        let (ids, second, truncated) = encoded.map_err(|error| mask::fault_of(error, CHANGE))?;
        if ids.is_empty() {
            return Err(Fault::new("`text` has no token", "remove the row"));
        }
        let mut labels = vec![IGNORED; ids.len()];
        let place = if classes.at_last_token { ids.len() - 1 } else { 0 };
        let values = match told {
            Told::Class(class) => {
                labels[place] = class;
                Vec::new()
            }
            Told::Values(values) => {
                labels[place] = 0;
                values
            }
        };
        let classified = Some(ClassifiedRow { second: second as u32, values });
        Ok(EncodedRow { ids, labels, truncated, split_token: false, stops: true, ended: true, classified })
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
                self.encode_conversation(&row.into_conversation().unwrap_or_default(), template, tokenizer)
            }
            (Row::Instruction { system, instruction, input, response }, None) => {
                let prompt = instruction_text(system.as_deref(), &instruction, input.as_deref());
                self.encode_completion(&prompt, response, tokenizer)
            }
            (Row::Completion { prompt, completion }, _) => self.encode_completion(&prompt, completion, tokenizer),
            (Row::Text(text), _) => {
                let ids = tokenizer.encode(&ended(text, tokenizer), true);
                Tokens::learned(ids.map_err(|error| mask::fault_of(error, CHANGE))?)
            }
            _ => unreachable!("loaded for rows of messages; rows of tokens do not come here"),
        }
    }

    fn encode_completion(&self, prompt: &str, completion: String, tokenizer: &Tokenizer) -> Result<Tokens, Fault> {
        let encode = |text: &str| tokenizer.encode(text, true).map_err(|error| mask::fault_of(error, CHANGE));
        let tokens = Tokens::learned(encode(&format!("{prompt}{}", ended(completion, tokenizer)))?)?;
        match self.options.completion_only_loss {
            Some(false) => Ok(tokens),
            _ => Ok(tokens.ignore_prompt(&encode(prompt)?)),
        }
    }

    fn encode_exchange(
        &self,
        (prompt, completion): (Conversation, Vec<Message>),
        template: &ChatTemplate,
        tokenizer: &Tokenizer,
    ) -> Result<Tokens, Fault> {
        let before = template.render(&prompt, true).map_err(|error| mask::fault_of(error, ROLES))?;
        let before = tokenizer.encode(&before, false).map_err(|error| mask::fault_of(error, CHANGE))?;
        let mut conversation = prompt;
        conversation.messages.extend(completion);
        let tokens = self.encode_conversation(&conversation, template, tokenizer)?;
        match self.options.completion_only_loss {
            Some(false) => Ok(tokens),
            _ => Ok(tokens.ignore_prompt(&before)),
        }
    }

    fn encode_conversation(
        &self,
        conversation: &Conversation,
        template: &ChatTemplate,
        tokenizer: &Tokenizer,
    ) -> Result<Tokens, Fault> {
        let full = template.render_with_spans(conversation, false).map_err(|error| mask::fault_of(error, ROLES))?;
        if !self.options.assistant_only_loss {
            let ids = tokenizer.encode(&full.text, false).map_err(|error| mask::fault_of(error, CHANGE))?;
            return Tokens::learned(ids);
        }
        if !conversation.messages.iter().any(Message::is_assistant) {
            let hint = "add the answer, remove the row, or set assistant_only_loss: false";
            return Err(Fault::new("no message of this conversation is the assistant's", hint));
        }
        let encoded = tokenizer.encode_with_offsets(&full.text).map_err(|error| mask::fault_of(error, CHANGE))?;
        let spans = mask::assistant_spans(template, tokenizer.markers(), conversation, &full)?;
        let labels = mask::labels(&encoded, &full.text, (&spans, template.has_generation_marks()), IGNORED)?;
        let ended = |span: &Range<usize>| mask::marker_at_end(&full.text[span.clone()], tokenizer.markers()).is_some();
        Ok(Tokens { ended: spans.iter().all(ended), ..Tokens::new(encoded.ids, labels) })
    }
}

/// The chosen chat template, or the model's, with the special tokens of the tokenizer.
fn template_of(options: &Prepare<'_>, tokenizer: &Tokenizer) -> Result<ChatTemplate, DataError> {
    let source = match options.chat_template {
        Some(text) => TemplateSource { text: text.to_owned(), place: "chat_template_path".into() },
        None => TemplateSource::of_model(options.model_directory)?,
    };
    let template = ChatTemplate::compile(source, tokenizer.special().clone())?;
    match options.template_date {
        Some(date) => template.on(date),
        None => Ok(template),
    }
}

const ROLES: &str = "a chat template takes certain roles, often in turns; change the row, or choose another template \
                     (chat_template_path)";
const CHANGE: &str = "change the row";

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

/// What a row is to a model with a chat template or without.
fn kind_of(row: &Row, templated: bool) -> RowKind {
    match row {
        Row::Conversation(_) => RowKind::Conversations,
        Row::Exchange { .. } => RowKind::Exchanges,
        Row::Instruction { .. } if templated => RowKind::Conversations,
        Row::Instruction { .. } | Row::Completion { .. } => RowKind::Completions,
        Row::Text(_) => RowKind::Texts,
        Row::Tokens { .. } => RowKind::Tokens,
        Row::Classified { .. } => RowKind::Classified,
    }
}
