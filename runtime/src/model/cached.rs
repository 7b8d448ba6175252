//! Segments on sequences that go on, for generation: what was seen of each lies in its caches.

use tch::{Kind, Tensor};
use zerofold_plan::SegmentKind;

use super::attention::Attending;
use super::leaves::{AttentionWeights, Leaves};
use super::transformer::Dropout;
use super::{LayerCache, ModelError, Transformer};
use crate::torch::HeadLayout;

/// One of several sequences that go on side by side, end to end in one row: how many tokens of it lie there, and what the layers have
/// seen of it before.
pub struct Continued<'a> {
    /// Tokens of it in the row.
    pub length: i64,
    /// The cache of each layer.
    pub caches: &'a mut [LayerCache],
}

impl Transformer {
    /// Embeds the tokens (int64 ids `[1, T]`) of sequences end to end, of each so many from a position on: `[1, T, H]`. `leaves` are those
    /// of [`SegmentKind::Embedding`].
    ///
    /// # Errors
    /// As [`Transformer::embed`].
    pub fn embed_continued(
        &self,
        leaves: &[Tensor],
        input_ids: &Tensor,
        sequences: &[(i64, i64)],
    ) -> Result<Tensor, ModelError> {
        self.embed_at(leaves, (input_ids, None), |_| {
            let positions = sequences.iter().map(|&(begin, length)| self.positions(begin, length, None));
            Ok(Tensor::f_cat(&positions.collect::<Result<Vec<_>, _>>()?, 0)?)
        })
    }

    /// What a segment between embedding and head makes of the tokens of `sequences`, end to end in `[1, T, H]`, which follow those that
    /// each one's cache of the segment's layer holds, and are in it then. No gradients. Every sequence has a cache for every layer.
    ///
    /// # Errors
    /// As [`Transformer::segment`].
    pub fn segment_continued(
        &self,
        kind: SegmentKind,
        leaves: &[Tensor],
        x: &Tensor,
        sequences: &mut [Continued<'_>],
    ) -> Result<Tensor, ModelError> {
        let (SegmentKind::Block(layer) | SegmentKind::Attention(layer)) = kind else {
            return self.segment(kind, leaves, x, None);
        };
        let mut leaves = Leaves::new(kind, leaves);
        let mut output = self.attention_continued(&mut leaves, layer, x, sequences)?;
        if matches!(kind, SegmentKind::Block(_)) {
            output = self.mlp(&mut leaves, &output, Dropout::default())?;
        }
        leaves.end()?;
        Ok(output)
    }

    /// Linear layers are of all sequences at once, attention of one after the other.
    fn attention_continued(
        &self,
        leaves: &mut Leaves<'_>,
        layer: usize,
        x: &Tensor,
        sequences: &mut [Continued<'_>],
    ) -> Result<Tensor, ModelError> {
        let weights = AttentionWeights::take(leaves, &self.config)?;
        let window = self.config.layer(layer).window.map(|window| window as i64);
        let by = Attending { way: self.attention.way(self.kernels, 0.0), window, dropout: 0.0 };
        let projected = self.projected(&weights, x)?;
        let (mut attended, mut at) = (Vec::with_capacity(sequences.len()), 0);
        for Continued { length, caches } in sequences {
            let cache = &mut caches[layer];
            let begin = cache.length();
            self.check_length(begin + *length)?;
            let layout = if begin == 0 { by.way.layout() } else { HeadLayout::ByPosition };
            let parts =
                self.turned(&projected.f_narrow(1, at, *length)?, &self.tables(layer, begin, *length)?, layout)?;
            let [query, key, value] = &parts;
            let (keys, values) = cache.append(key, value)?;
            attended.push(match begin {
                0 => self.attention.among(&by, &parts)?,
                _ => self.attention.cached(query, &keys, &values, window)?,
            });
            at += *length;
        }
        self.add_attended(x, &Tensor::f_cat(&attended, 1)?, weights, 0.0)
    }

    /// The logits after the last token of each of these sequences, whose tokens lie end to end in `[1, T, H]`: float32 `[sequences, V]`.
    /// `leaves` are those of [`SegmentKind::Head`].
    ///
    /// # Errors
    /// As [`Transformer::logits`].
    pub fn last_logits(&self, leaves: &[Tensor], x: &Tensor, lengths: &[i64]) -> Result<Tensor, ModelError> {
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end - 1)
        });
        let last = Tensor::f_from_slice(&ends.collect::<Vec<i64>>())?.f_to_device(x.device())?;
        let logits = self.logits(leaves, &x.f_squeeze_dim(0)?.f_index_select(0, &last)?)?;
        Ok(logits.f_to_kind(Kind::Float)?)
    }
}
