//! Sequences of tokens that go on side by side, and what a model says comes next.

use anyhow::{Result, ensure};
use tch::Tensor;
use zerofold_plan::SegmentKind;

use crate::model::{Continued, LayerCache, Transformer};

/// What is called with each segment of a model: its kind and its leaves.
pub type Visit<'a> = dyn FnMut(&Transformer, SegmentKind, &[Tensor]) -> Result<()> + 'a;

/// A model whose segments are gone through in the order of forward: whole in memory, or gathered from the ranks' shards.
pub trait Segmented {
    /// The maths.
    fn transformer(&self) -> &Transformer;

    /// Calls `visit` with each segment. Where the model is sharded every rank does so at the same time.
    ///
    /// # Errors
    /// What `visit` returns, and what gathering says.
    fn each_segment(&mut self, visit: &mut Visit<'_>) -> Result<()>;

    /// Whether any rank that the model is sharded over is `busy`.
    ///
    /// # Errors
    /// What the exchange says.
    fn any_rank(&self, busy: bool) -> Result<bool>;
}

/// A sequence: what the model has seen of it, and what it has not yet.
#[derive(Debug, Default)]
pub struct Sequence {
    /// A cache for each layer.
    caches: Vec<LayerCache>,
    /// The tokens that the caches hold.
    seen: Vec<u32>,
    /// Those that come next, at least one when it is to go on.
    feed: Vec<u32>,
}

impl Sequence {
    /// One that begins with `prompt`.
    pub fn new(prompt: Vec<u32>) -> Self {
        Sequence { feed: prompt, ..Sequence::default() }
    }

    /// Makes it one that begins with `prompt`. What was seen of that already need not be seen again.
    pub fn begin_again(&mut self, prompt: &[u32]) {
        let known = self.seen.iter().zip(prompt).take_while(|(seen, new)| seen == new).count();
        let known = known.min(prompt.len().saturating_sub(1));
        self.seen.truncate(known);
        self.caches.iter_mut().for_each(|cache| cache.truncate(known as i64));
        self.feed = prompt[known..].to_vec();
    }

    /// Adds a token.
    pub fn push(&mut self, token: u32) {
        self.feed.push(token);
    }
}

/// Refuses tokens that the model does not have, and none at all.
pub(super) fn check_ids(ids: &[u32], vocab_size: usize) -> Result<()> {
    ensure!(!ids.is_empty(), "there is no token to go on from\nhint: give a prompt that is not empty");
    match ids.iter().find(|id| **id as usize >= vocab_size) {
        None => Ok(()),
        Some(outside) => anyhow::bail!(
            "token id {outside} is outside the model's vocabulary of {vocab_size}\nhint: tokenizer and model do not belong together"
        ),
    }
}

/// The logits after the last token of each sequence, one float32 for each token of the vocabulary; they are all seen then. Without any
/// sequence the segments are gone through for the other ranks' sake.
///
/// # Errors
/// A sequence without a token to go on from, ids outside the vocabulary, and what libtorch and gathering say.
pub fn next_logits(model: &mut dyn Segmented, sequences: &mut [&mut Sequence]) -> Result<Vec<Vec<f32>>> {
    if sequences.is_empty() {
        model.each_segment(&mut |_, _, _| Ok(()))?;
        return Ok(Vec::new());
    }
    let (config, device) = (&model.transformer().config, model.transformer().device());
    let (vocab_size, layers) = (config.vocab_size, config.num_hidden_layers);
    for sequence in sequences.iter_mut() {
        check_ids(&sequence.feed, vocab_size)?;
        sequence.caches.resize_with(layers, LayerCache::new);
    }
    let spans: Vec<(i64, i64)> = sequences.iter().map(|it| (it.seen.len() as i64, it.feed.len() as i64)).collect();
    let lengths: Vec<i64> = spans.iter().map(|(_, length)| *length).collect();
    let ids: Vec<i64> = sequences.iter().flat_map(|it| &it.feed).map(|id| i64::from(*id)).collect();
    let ids = Tensor::f_from_slice(&ids)?.f_unsqueeze(0)?.f_to_device(device)?;
    let (mut x, mut logits) = (Tensor::new(), Tensor::new());
    let going = sequences.iter_mut().zip(&lengths);
    let mut going: Vec<Continued<'_>> =
        going.map(|(sequence, &length)| Continued { length, caches: &mut sequence.caches }).collect();
    model.each_segment(&mut |transformer, kind, leaves| {
        match kind {
            SegmentKind::Embedding => x = transformer.embed_continued(leaves, &ids, &spans)?,
            SegmentKind::Head => logits = transformer.last_logits(leaves, &x, &lengths)?,
            kind => x = transformer.segment_continued(kind, leaves, &x, &mut going)?,
        }
        Ok(())
    })?;
    drop(going);
    for sequence in sequences {
        sequence.seen.append(&mut sequence.feed);
    }
    Ok(Vec::<Vec<f32>>::try_from(&logits)?)
}
