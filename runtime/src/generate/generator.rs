//! From a prompt's tokens to an answer, token by token.

use std::path::Path;

use anyhow::{Result, ensure};
use tch::Kind;
use zerofold_data::{SpecialTokens, Tokenizer};

use super::{SampleOptions, Sampler, WholeModel};
use crate::model::LayerCache;

/// How a [`Generator`] goes about it.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// At most so many tokens for each prompt.
    pub max_new_tokens: usize,
    /// How they are chosen.
    pub sample: SampleOptions,
}

/// A model that answers prompts, one after another.
pub struct Generator {
    model: WholeModel,
    tokenizer: Tokenizer,
    sampler: Sampler,
    max_new_tokens: usize,
    caches: Vec<LayerCache>,
    /// The tokens that the caches hold.
    seen: Vec<u32>,
}

impl Generator {
    /// Loads model and tokenizer from a model folder, the weights from the checkpoint if there is one; the model computes in
    /// `kind`.
    ///
    /// # Errors
    /// Options out of range, an unsupported model, missing or broken files.
    pub fn load(model_dir: &Path, checkpoint: Option<&Path>, kind: Kind, options: Options) -> Result<Self> {
        let sampler = Sampler::new(options.sample)?;
        let tokenizer = Tokenizer::load(model_dir)?;
        let model = WholeModel::load(model_dir, checkpoint, kind)?;
        let caches = model.empty_caches();
        Ok(Generator { model, tokenizer, sampler, max_new_tokens: options.max_new_tokens, caches, seen: Vec::new() })
    }

    /// Lets answers end with this token too.
    ///
    /// # Errors
    /// A token that the tokenizer does not have.
    pub fn end_with(&mut self, token: &str) -> Result<()> {
        Ok(self.tokenizer.end_with(token)?)
    }

    /// The tokenizer's named special tokens.
    pub fn special(&self) -> &SpecialTokens {
        self.tokenizer.special()
    }

    /// Text to token ids; `add_special` adds what the tokenizer puts around plain text, which a chat template has written
    /// itself.
    ///
    /// # Errors
    /// A tokenizer that fails.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, add_special)?)
    }

    /// Answers a prompt. Pieces of whole characters go to `show` as they come; the whole text is returned. The token that
    /// ends the answer is not part of it, nor are special tokens.
    ///
    /// # Errors
    /// An empty or overlong prompt, logits that are not numbers, and what `show` returns.
    pub fn generate(&mut self, prompt: &[u32], show: &mut dyn FnMut(&str) -> Result<()>) -> Result<String> {
        let room = self.room_after(prompt.len())?;
        let mut answer = Vec::new();
        let mut decoder = self.tokenizer.stream(true);
        let mut emit = |piece: String| if piece.is_empty() { Ok(()) } else { show(&piece) };
        let known = common_prefix(&self.seen, prompt).min(prompt.len().saturating_sub(1));
        self.seen.truncate(known);
        self.caches.iter_mut().for_each(|cache| cache.truncate(known as i64));
        let mut feed = prompt[known..].to_vec();
        for _ in 0..room {
            let logits = self.model.next_logits(&feed, &mut self.caches)?;
            self.seen.extend_from_slice(&feed);
            let token = self.sampler.next(&logits)?;
            if self.tokenizer.eos_ids().contains(&token) {
                break;
            }
            answer.push(token);
            emit(decoder.push(token)?)?;
            feed = vec![token];
        }
        emit(decoder.finish()?)?;
        Ok(self.tokenizer.decode(&answer, true)?)
    }

    /// How many tokens may follow a prompt of so many.
    fn room_after(&self, prompt: usize) -> Result<usize> {
        let config = &self.model.model.config;
        let context = config.max_exact_length().unwrap_or(usize::MAX).min(config.max_position_embeddings);
        ensure!(
            prompt < context,
            "the prompt has {prompt} tokens, and the model's context holds {context}\nhint: shorten the prompt"
        );
        Ok(self.max_new_tokens.min(context - prompt))
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
