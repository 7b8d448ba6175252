//! The maths of a Llama: embedding, decoder blocks, final norm.
//!
//! Shapes: B rows, T positions, H the hidden size, D the width of a head.
//!
//! The maths is that of transformers' Llama with its `sdpa` attention. What lies between matrix products is done by
//! [`Kernels`], in float32 and rounded once, where transformers rounds a 16-bit type after each operation.

use tch::{Device, Kind, Tensor};
use zerofold_plan::SegmentKind;

use super::attention::{Attention, Kernel};
use super::documents::Documents;
use super::rope::{Rope, Tables};
use super::{LayerCache, ModelConfig, ModelError};
use crate::torch::{HeadLayout, Kernels, linear};

/// A model of the Llama family; it holds no weights.
pub struct Llama {
    /// What it was built from.
    pub config: ModelConfig,
    kind: Kind,
    device: Device,
    rope: Rope,
    attention: Attention,
    kernels: Kernels,
}

/// The weights of a block's attention by name, in the order of the leaves.
struct AttentionWeights<'a> {
    /// `[(heads + 2 * key_value_heads) * D, H]`: query, key and value rows.
    qkv: &'a Tensor,
    /// `[H, heads * D]`.
    output: &'a Tensor,
    /// `[H]`.
    norm: &'a Tensor,
}

impl<'a> AttentionWeights<'a> {
    fn of(leaves: &'a [Tensor]) -> Result<Self, ModelError> {
        let [qkv, output, norm] = three("a block's attention", "qkv, o, input_layernorm", leaves)?;
        Ok(AttentionWeights { qkv, output, norm })
    }
}

/// The weights of a block's MLP by name, in the order of the leaves.
struct MlpWeights<'a> {
    /// `[2 * intermediate, H]`: gate rows, then up rows.
    gate_up: &'a Tensor,
    /// `[H, intermediate]`.
    down: &'a Tensor,
    /// `[H]`.
    norm: &'a Tensor,
}

impl<'a> MlpWeights<'a> {
    fn of(leaves: &'a [Tensor]) -> Result<Self, ModelError> {
        let [gate_up, down, norm] = three("a block's MLP", "gate_up, down, post_attention_layernorm", leaves)?;
        Ok(MlpWeights { gate_up, down, norm })
    }
}

/// Leaves of an attention; the rest of a block's are its MLP's.
const ATTENTION_LEAVES: usize = 3;

fn three<'a>(
    unit: &'static str,
    names: &'static str,
    leaves: &'a [Tensor],
) -> Result<[&'a Tensor; ATTENTION_LEAVES], ModelError> {
    match leaves {
        [first, second, third] => Ok([first, second, third]),
        _ => Err(ModelError::Leaves { unit, expected: 3, names, found: leaves.len() }),
    }
}

/// A block's leaves: its attention's and its MLP's.
fn halves(leaves: &[Tensor]) -> (&[Tensor], &[Tensor]) {
    leaves.split_at(ATTENTION_LEAVES.min(leaves.len()))
}

impl Llama {
    /// A model that computes in `kind` on `device`.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn new(config: ModelConfig, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let rope = Rope::new(&config.rope, config.head_dim, device)?;
        let attention = Attention::new(&config, kind, device);
        Ok(Llama { config, kind, device, rope, attention, kernels: Kernels::default() })
    }

    /// The same with other kernels, to compare them.
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        Llama { kernels, ..self }
    }

    /// The compute type.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The kernel that libtorch takes for the attention of rows of `length` tokens, where it is asked to.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn attention_kernel(&self, length: usize) -> Result<Kernel, ModelError> {
        self.attention.kernel(length as i64, self.config.head_dim as i64)
    }

    /// Embeds token ids `[B, T]` (int64): `[B, T, H]`.
    ///
    /// # Errors
    /// An id outside the vocabulary, as libtorch says it.
    pub fn embed(&self, weight: &Tensor, input_ids: &Tensor) -> Result<Tensor, ModelError> {
        Ok(Tensor::f_embedding(weight, input_ids, -1, false, false)?)
    }

    /// Documents of these lengths, to lie end to end in one row.
    ///
    /// # Errors
    /// A document of no tokens or beyond [`ModelConfig::max_exact_length`], and what libtorch says.
    pub fn documents(&self, lengths: &[i64]) -> Result<Documents, ModelError> {
        lengths.iter().try_for_each(|&length| self.check_length(length))?;
        Documents::new(&self.rope, lengths)
    }

    /// What a segment between embedding and head makes of `[B, T, H]`, causal, at positions 0 to T - 1. Rows padded on
    /// the right need no mask: what comes after a token does not reach it. With `documents` the one row of `x` holds them end
    /// to end, and positions and attention are those of each alone. `leaves` are the segment's, in the order that
    /// [`SegmentKind`] tells.
    ///
    /// # Errors
    /// The wrong number of leaves, a T beyond [`ModelConfig::max_exact_length`], documents of another length than the row,
    /// and what libtorch says.
    pub fn segment(
        &self,
        kind: SegmentKind,
        leaves: &[Tensor],
        x: &Tensor,
        documents: Option<&Documents>,
    ) -> Result<Tensor, ModelError> {
        self.segment_with(kind, leaves, (x, documents), 0.0)
    }

    /// The same in training: with the model's dropout, which follows from `seed` alone, so that computing a segment a
    /// second time for backward drops the same.
    ///
    /// # Errors
    /// As [`Llama::segment`].
    pub fn segment_in_training(
        &self,
        kind: SegmentKind,
        leaves: &[Tensor],
        x: &Tensor,
        documents: Option<&Documents>,
        seed: u64,
    ) -> Result<Tensor, ModelError> {
        if self.config.attention_dropout > 0.0 {
            tch::manual_seed(seed.cast_signed());
        }
        self.segment_with(kind, leaves, (x, documents), self.config.attention_dropout)
    }

    fn segment_with(
        &self,
        kind: SegmentKind,
        leaves: &[Tensor],
        (x, documents): (&Tensor, Option<&Documents>),
        dropout: f64,
    ) -> Result<Tensor, ModelError> {
        match kind {
            SegmentKind::Block(_) => {
                let (attention, mlp) = halves(leaves);
                self.mlp(mlp, &self.attention(attention, x, documents, dropout)?)
            }
            SegmentKind::Attention(_) => self.attention(leaves, x, documents, dropout),
            SegmentKind::Mlp(_) => self.mlp(leaves, x),
            SegmentKind::Embedding | SegmentKind::Head => Err(ModelError::NoHidden(kind)),
        }
    }

    fn attention(
        &self,
        leaves: &[Tensor],
        x: &Tensor,
        documents: Option<&Documents>,
        dropout: f64,
    ) -> Result<Tensor, ModelError> {
        let weights = AttentionWeights::of(leaves)?;
        let way = self.attention.way(self.kernels, dropout);
        let attended = match documents {
            Some(documents) => {
                documents.check(x)?;
                let parts = self.query_key_value(&weights, x, &documents.tables, way.layout())?;
                self.attention.by_document(way, &parts, &documents.lengths, dropout)?
            }
            None => {
                let (_, length, _) = x.size3()?;
                self.check_length(length)?;
                let tables = self.rope.tables(0, length)?;
                let parts = self.query_key_value(&weights, x, &tables, way.layout())?;
                self.attention.causal(way, &parts, dropout)?
            }
        };
        project(&attended, weights.output, x)
    }

    /// One decoder block on the positions that follow those in `cache`, which then holds these too. For generation: no
    /// gradients.
    ///
    /// # Errors
    /// As [`Llama::segment`].
    pub fn block_cached(&self, leaves: &[Tensor], x: &Tensor, cache: &mut LayerCache) -> Result<Tensor, ModelError> {
        let (attention, mlp) = halves(leaves);
        let weights = AttentionWeights::of(attention)?;
        let (_, length, _) = x.size3()?;
        let begin = cache.length();
        self.check_length(begin + length)?;
        let tables = self.rope.tables(begin, length)?;
        let way = self.attention.way(self.kernels, 0.0);
        let layout = if begin == 0 { way.layout() } else { HeadLayout::ByPosition };
        let parts = self.query_key_value(&weights, x, &tables, layout)?;
        let [query, key, value] = &parts;
        let (all_keys, all_values) = cache.append(key, value)?;
        let attended = if begin == 0 {
            self.attention.causal(way, &parts, 0.0)?
        } else {
            self.attention.cached(query, &all_keys, &all_values)?
        };
        self.mlp(mlp, &project(&attended, weights.output, x)?)
    }

    /// The last norm, on `[…, H]`, before the head.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn final_norm(&self, weight: &Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
        self.rms_norm(weight, x)
    }

    fn check_length(&self, length: i64) -> Result<(), ModelError> {
        let length = length as usize;
        match self.config.max_exact_length() {
            Some(window) if length > window => Err(ModelError::BeyondWindow { length, window }),
            _ => Ok(()),
        }
    }

    fn rms_norm(&self, weight: &Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.kernels.rms_norm(x, weight, self.config.rms_norm_eps)?)
    }

    /// Query `[B, heads, T, D]` (of another shape if grouped), key and value `[B, key_value_heads, T, D]`, the first two turned
    /// by their positions.
    fn query_key_value(
        &self,
        weights: &AttentionWeights<'_>,
        x: &Tensor,
        tables: &Tables,
        layout: HeadLayout,
    ) -> Result<[Tensor; 3], ModelError> {
        let heads = (self.config.num_attention_heads as i64, self.config.num_key_value_heads as i64);
        let projected = linear(&self.rms_norm(weights.norm, x)?, weights.qkv)?;
        Ok(self.kernels.rotary(&projected, (&tables.cosines, &tables.sines), heads, layout)?)
    }

    /// The gated MLP with its norm and residual.
    fn mlp(&self, leaves: &[Tensor], x: &Tensor) -> Result<Tensor, ModelError> {
        let weights = MlpWeights::of(leaves)?;
        let normed = self.rms_norm(weights.norm, x)?;
        let gated = self.kernels.swiglu(&linear(&normed, weights.gate_up)?)?;
        project(&gated, weights.down, x)
    }
}

/// `x` plus the projection of `inner` by `weight`. Nobody needs the projection once the residual is in it, so it is added
/// in place.
fn project(inner: &Tensor, weight: &Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
    Ok(linear(inner, weight)?.f_add_(x)?)
}

/// bfloat16 or float16.
pub(super) fn is_16_bit(kind: Kind) -> bool {
    matches!(kind, Kind::BFloat16 | Kind::Half)
}

#[cfg(test)]
#[path = "llama_tests.rs"]
mod tests;
