//! The model's chat template, rendered as transformers renders it.
//!
//! Chat templates are Jinja2 with Python's string methods, some functions of transformers' own and a `generation` tag;
//! [`python`] supplies what a template may expect of Python, [`generation`] the tag, [`bounds`] and [`watch`] an end. [`builtin`] has
//! templates of our own for models without one.

mod bounds;
mod builtin;
mod clock;
mod context;
mod generation;
mod json;
mod methods;
mod python;
mod source;
mod values;
mod watch;

use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;

use minijinja::{Environment, Value};

use crate::error::DataError;
use crate::mask;
use crate::message::{Conversation, Message, Role};
use crate::model_files::SpecialTokens;

pub use clock::today;
pub(crate) use context::Context;
pub use source::{TemplateSource, trained_template_digest};
pub(crate) use watch::end_without_memory;

const NAME: &str = "chat_template";

/// A compiled chat template with the special tokens that it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    place: Arc<Path>,
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
    /// The template of a model folder ([`TemplateSource::of_model`]), compiled, with the folder's special tokens.
    ///
    /// # Errors
    /// [`DataError::Model`] when there is none or it cannot be compiled.
    pub fn load(model_directory: &Path) -> Result<ChatTemplate, DataError> {
        ChatTemplate::compile(TemplateSource::of_model(model_directory)?, SpecialTokens::load(model_directory)?)
    }

    /// Compiles a template that did not come out of a model folder.
    ///
    /// # Errors
    /// [`DataError::Model`] when it cannot be compiled.
    pub fn from_source(source: &str, special: SpecialTokens) -> Result<ChatTemplate, DataError> {
        ChatTemplate::compile(TemplateSource { text: source.to_string(), place: NAME.into() }, special)
    }

    /// Compiles a template with the special tokens that it may name.
    ///
    /// # Errors
    /// [`DataError::Model`] when it cannot be compiled.
    pub fn compile(source: TemplateSource, special: SpecialTokens) -> Result<ChatTemplate, DataError> {
        let TemplateSource { text: source, place } = source;
        let broken = |message: String| {
            let hint =
                "the template must be Jinja as transformers takes it; copy it again from where the model came from";
            DataError::model(&place, format!("chat template: {message}"), hint)
        };
        if source.len() > bounds::LONGEST_TEMPLATE {
            let size = bounds::LONGEST_TEMPLATE >> 20;
            return Err(broken(format!("it is longer than {size} MiB, as none should be")));
        }
        // As Jinja does: files of Windows have lines that end otherwise.
        let text = source.replace("\r\n", "\n").replace('\r', "\n");
        let marked = generation::mark(&text).map_err(broken)?;
        let mut environment = python::environment();
        environment.set_fuel(Some(bounds::FUEL));
        let is_marked = marked.is_some();
        let text = marked.unwrap_or(text);
        let added = panic::catch_unwind(AssertUnwindSafe(|| environment.add_template_owned(NAME, text)));
        match added {
            Ok(added) => added.map_err(|error| broken(bounds::describe(&error)))?,
            Err(_) => return Err(broken(PANICKED.to_string())),
        }
        Ok(ChatTemplate { environment, source, place: place.into(), special, marked: is_marked })
    }

    /// Lets `strftime_now` tell the beginning of this day ([`today`]), whenever the template is rendered.
    ///
    /// # Errors
    /// [`DataError::Plan`] when it is no day.
    pub(crate) fn on(mut self, date: &str) -> Result<ChatTemplate, DataError> {
        let Some(seconds) = clock::beginning(date) else {
            let message = format!("template_date is {date:?}");
            return Err(DataError::Plan { message, hint: "a day is written as 2026-03-01".into() });
        };
        self.environment.add_function("strftime_now", move |format: &str| clock::format(format, seconds));
        Ok(self)
    }

    /// The template as it is written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The BLAKE3 hash of [`source`](ChatTemplate::source), 64 hexadecimal digits.
    pub fn digest(&self) -> String {
        source::digest(&self.source)
    }

    /// Whether the template marks with `{% generation %}` what the assistant writes.
    pub fn has_generation_marks(&self) -> bool {
        self.marked
    }

    /// Whether it renders the same with `add_generation_prompt` and without, as none should that marks where an answer begins.
    pub(crate) fn passes_over_the_generation_prompt(&self) -> bool {
        let question = Conversation::from(vec![Message::new(Role::User, "a")]);
        match (self.render(&question, true), self.render(&question, false)) {
            (Ok(with), Ok(without)) => with == without,
            _ => false,
        }
    }

    /// The text of a conversation; with `add_generation_prompt`, up to where the assistant's next answer begins.
    ///
    /// # Errors
    /// [`DataError::Template`] when the template raises an exception, fails or does not come to an end, or does not read
    /// something that the conversation says (a role, a call of a tool, tools).
    pub fn render(&self, conversation: &Conversation, add_generation_prompt: bool) -> Result<String, DataError> {
        Ok(self.render_with_spans(conversation, add_generation_prompt)?.text)
    }

    /// [`ChatTemplate::render`], with the places that the template marks as the assistant's.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with_spans(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<Rendered, DataError> {
        let context = Context::of(conversation, self)?;
        self.render_messages(&context, conversation.messages.len(), add_generation_prompt)
    }

    /// The byte ranges of a rendered conversation that the assistant wrote, ends of turns included: by the template's own
    /// marks, else by rendering turn by turn. `markers` are the texts of special tokens.
    ///
    /// # Errors
    /// [`DataError::Template`] when they cannot be told for sure.
    pub fn answers(
        &self,
        conversation: &Conversation,
        rendered: &Rendered,
        markers: &[String],
    ) -> Result<Vec<Range<usize>>, DataError> {
        mask::assistant_spans(self, markers, conversation, rendered)
            .map_err(|fault| DataError::Template { message: fault.message })
    }

    /// The first `count` messages of a conversation.
    pub(crate) fn render_messages(
        &self,
        context: &Context,
        count: usize,
        add_generation_prompt: bool,
    ) -> Result<Rendered, DataError> {
        let fault = |message: String| DataError::Template { message };
        let template = self.environment.get_template(NAME).map_err(|error| fault(bounds::describe(&error)))?;
        let variables = context.variables(count, add_generation_prompt, &self.special);
        bounds::begin();
        let watched = watch::Watched::begin(&self.place);
        let mut output = bounds::BoundedText::default();
        // A template must not end the program: the engine takes some slices and numbers for impossible.
        let rendered = panic::catch_unwind(AssertUnwindSafe(|| {
            template.render_captured_to(Value::from_iter(variables), &mut output).map(|_| ())
        }));
        drop(watched);
        match rendered {
            Ok(rendered) => rendered.map_err(|error| fault(bounds::describe(&error)))?,
            Err(_) => return Err(fault(PANICKED.to_string())),
        }
        let text = String::from_utf8(output.bytes).map_err(|_| fault("it writes what is no text".to_string()))?;
        if self.marked {
            generation::take_marks(&text).map_err(fault)
        } else {
            Ok(Rendered { text, spans: Vec::new() })
        }
    }
}

/// What is said where the engine gave up.
const PANICKED: &str = "it computes something that cannot be computed (a slice or a number out of range)";

#[cfg(test)]
#[path = "../template_tests.rs"]
mod tests;
