//! Chat templates of our own for models that have none. Each marks what the assistant writes, its end of turn included.
//!
//! Their formats are those of well-known families, so that other programs have a template for them too.

use std::path::Path;

use crate::error::DataError;
use crate::model_files::SpecialTokens;
use crate::tokenizer::Tokenizer;

/// A built-in template.
pub(super) struct Builtin {
    /// The name that chat_template_path gives.
    pub(super) name: &'static str,
    /// The template.
    pub(super) text: &'static str,
    /// Texts that must be tokens of the tokenizer: as plain text they would be learned letter by letter.
    tokens: &'static [&'static str],
    /// Names of special tokens that the template writes.
    special: &'static [&'static str],
}

static BUILTIN: [Builtin; 6] = [
    Builtin {
        name: "chatml",
        text: include_str!("builtin/chatml.jinja"),
        tokens: &["<|im_start|>", "<|im_end|>"],
        special: &[],
    },
    Builtin {
        name: "llama3",
        text: include_str!("builtin/llama3.jinja"),
        tokens: &["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        special: &["bos_token"],
    },
    Builtin {
        name: "mistral",
        text: include_str!("builtin/mistral.jinja"),
        tokens: &["[INST]", "[/INST]"],
        special: &["bos_token", "eos_token"],
    },
    Builtin {
        name: "gemma",
        text: include_str!("builtin/gemma.jinja"),
        tokens: &["<start_of_turn>", "<end_of_turn>"],
        special: &["bos_token"],
    },
    // These two mark the turns with plain text, as the families do that they are from.
    Builtin { name: "zephyr", text: include_str!("builtin/zephyr.jinja"), tokens: &[], special: &["eos_token"] },
    Builtin { name: "alpaca", text: include_str!("builtin/alpaca.jinja"), tokens: &[], special: &["eos_token"] },
];

pub(super) fn names() -> Vec<&'static str> {
    BUILTIN.iter().map(|builtin| builtin.name).collect()
}

pub(super) fn find(name: &str) -> Option<&'static Builtin> {
    BUILTIN.iter().find(|builtin| builtin.name == name)
}

impl Builtin {
    /// Whether the tokenizer has what the template writes: embeddings are never added, so nothing can be made a token.
    pub(super) fn check(&self, tokenizer: &Tokenizer, special: &SpecialTokens) -> Result<(), DataError> {
        let missing = self.missing(tokenizer, special);
        if missing.is_empty() {
            return Ok(());
        }
        let fitting: Vec<&str> = BUILTIN
            .iter()
            .filter(|other| other.missing(tokenizer, special).is_empty())
            .map(|other| other.name)
            .collect();
        let message = format!(
            "the built-in chat template does not fit the model's tokenizer, which has no {}",
            missing.join(", no ")
        );
        let hint = match fitting.is_empty() {
            true => "set eos_token to a token of the tokenizer, or write a template of your own (a .jinja file)".into(),
            false => format!("choose another one that fits ({}), or a .jinja file", fitting.join(", ")),
        };
        Err(DataError::model(Path::new(self.name), message, hint))
    }

    fn missing(&self, tokenizer: &Tokenizer, special: &SpecialTokens) -> Vec<&'static str> {
        let tokens = self.tokens.iter().filter(|token| tokenizer.token_to_id(token).is_none());
        let special = self.special.iter().filter(|name| special.get(name).is_none());
        tokens.chain(special).copied().collect()
    }
}

#[cfg(test)]
#[path = "builtin_tests.rs"]
mod tests;
