//! The maths of a transformer as its [`ModelConfig`] describes it: its blocks. The embedding ([`super::embedding`]) and the head
//! ([`super::head`]) stand beside.
//!
//! Shapes: B rows, T positions, H the hidden size, D the width of a head.
//!
//! The maths is that of transformers' models. What lies between matrix products is done by [`Kernels`], in float32 and rounded
//! once, where transformers rounds a 16-bit type after each operation.

use tch::{Device, Kind, Tensor};
use zerofold_plan::{Activation, LayerAttention, NormKind, NormPlacement, RopeConfig, SegmentKind};

use super::attention::{Attending, Attention, Kernel, Way};
use super::documents::Documents;
use super::leaves::{AttentionWeights, Leaves, Linear, MlpWeights, Norm};
use super::rope::{Rope, Tables};
use super::{ModelConfig, ModelError};
use crate::torch::{Gate, HeadLayout, Kernels, linear, linear_transposed};

/// A model; it holds no weights.
pub struct Transformer {
    /// What it was built from.
    pub config: ModelConfig,
    pub(super) kind: Kind,
    pub(super) device: Device,
    /// The model's rotary embeddings, and last one that turns nothing.
    ropes: Vec<Rope>,
    pub(super) attention: Attention,
    pub(super) kernels: Kernels,
}

/// The shares that a pass drops.
#[derive(Clone, Copy, Default)]
pub(super) struct Dropout {
    attention: f64,
    hidden: f64,
    embedding: f64,
}

/// What the attention of a pass is given beside the hidden states.
struct Pass<'a> {
    layer: usize,
    documents: Option<&'a Documents>,
    dropout: Dropout,
}

impl Transformer {
    /// A model that computes in `kind` on `device`.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn new(config: ModelConfig, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let rope = |rope: &RopeConfig| Rope::new(rope, config.head_dim, device);
        let mut ropes = config.ropes.iter().map(rope).collect::<Result<Vec<_>, _>>()?;
        ropes.push(Rope::still(device)?);
        let attention = Attention::new(&config, kind, device);
        Ok(Transformer { config, kind, device, ropes, attention, kernels: Kernels::default() })
    }

    /// The same with other kernels, to compare them.
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        Transformer { kernels, ..self }
    }

    /// The compute type.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// How training computes the attention of rows of `length` tokens, in words for the log, and whether all scores are kept for
    /// it, so that memory grows with the square of the length.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn attention_words(&self, length: usize) -> Result<(String, bool), ModelError> {
        let layers = self.config.num_hidden_layers;
        let windows = (0..layers).filter_map(|layer| self.config.layer(layer).window);
        let hiding: Vec<usize> = windows.filter(|&window| window < length).collect();
        let window = hiding.iter().min().copied();
        let (mut words, keeps_scores) = match self.attention.way(self.kernels, self.config.attention_dropout) {
            Way::Blocks => ("attention block by block".to_owned(), false),
            Way::Products => (Kernel::Math.to_string(), true),
            Way::Flash => {
                let of = |window: Option<usize>| {
                    let window = window.map(|window| window as i64);
                    self.attention.kernel(length as i64, self.config.head_dim as i64, window)
                };
                let (full, windowed) = (of(None)?, of(window)?);
                let words =
                    if full == windowed { full.to_string() } else { format!("{full}, with a window {windowed}") };
                (words, full == Kernel::Math || windowed == Kernel::Math)
            }
        };
        if let Some(window) = window {
            words.push_str(&format!(", {} of {layers} layers see {window} tokens", hiding.len()));
        }
        if let Some(softcap) = self.config.attention_softcap {
            words.push_str(&format!(", scores capped at {softcap}"));
        }
        Ok((words, keeps_scores))
    }

    /// Documents of these lengths, to lie end to end in one row.
    ///
    /// # Errors
    /// A document of no tokens or beyond [`ModelConfig::max_exact_length`], and what libtorch says.
    pub fn documents(&self, lengths: &[i64]) -> Result<Documents, ModelError> {
        lengths.iter().try_for_each(|&length| self.check_length(length))?;
        Documents::new(&self.ropes, lengths)
    }

    /// What a segment between embedding and head makes of `[B, T, H]`, at positions 0 to T - 1. Where the model is causal rows padded on
    /// the right need no mask: what comes after a token does not reach it; rows of an encoder must have no padding. With `documents` the one row of `x` holds them end
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
        self.segment_with(kind, leaves, (x, documents), Dropout::default())
    }

    /// The same in training: with the model's dropout, which follows from `seed` alone, so that computing a segment a
    /// second time for backward drops the same.
    ///
    /// # Errors
    /// As [`Transformer::segment`].
    pub fn segment_in_training(
        &self,
        kind: SegmentKind,
        leaves: &[Tensor],
        x: &Tensor,
        documents: Option<&Documents>,
        seed: u64,
    ) -> Result<Tensor, ModelError> {
        let ModelConfig { attention_dropout: attention, hidden_dropout: hidden, embedding_dropout: embedding, .. } =
            self.config;
        if attention > 0.0 || hidden > 0.0 || embedding > 0.0 {
            tch::manual_seed(seed.cast_signed());
        }
        self.segment_with(kind, leaves, (x, documents), Dropout { attention, hidden, embedding })
    }

    fn segment_with(
        &self,
        kind: SegmentKind,
        leaves: &[Tensor],
        (x, documents): (&Tensor, Option<&Documents>),
        dropout: Dropout,
    ) -> Result<Tensor, ModelError> {
        let mut leaves = Leaves::new(kind, leaves);
        let output = match kind {
            SegmentKind::EmbeddingOutput => {
                let normed = match self.config.embedding_norm {
                    true => self.norm(&leaves.norm(&self.config, "the norm of the embeddings")?, x)?,
                    false => x.shallow_clone(),
                };
                dropped(normed, dropout.embedding)?
            }
            SegmentKind::Block(layer) => {
                let attended = self.attention(&mut leaves, x, &Pass { layer, documents, dropout })?;
                self.mlp(&mut leaves, &attended, dropout)?
            }
            SegmentKind::Attention(layer) => self.attention(&mut leaves, x, &Pass { layer, documents, dropout })?,
            SegmentKind::Mlp(_) => self.mlp(&mut leaves, x, dropout)?,
            SegmentKind::Embedding | SegmentKind::Head => return Err(ModelError::NoHidden(kind)),
        };
        leaves.end()?;
        Ok(output)
    }

    fn attention(&self, leaves: &mut Leaves<'_>, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor, ModelError> {
        let weights = AttentionWeights::take(leaves, &self.config)?;
        let LayerAttention { window, .. } = self.config.layer(pass.layer);
        let (window, dropout) = (window.map(|window| window as i64), pass.dropout.attention);
        let by = Attending { way: self.attention.way(self.kernels, dropout), window, dropout };
        let attended = match pass.documents {
            Some(documents) => {
                documents.check(x)?;
                let tables = &documents.tables[self.rope(pass.layer)];
                let parts = self.turned(&self.projected(&weights, x)?, tables, by.way.layout())?;
                self.attention.by_document(&by, &parts, &documents.lengths)?
            }
            None => {
                let (_, length, _) = x.size3()?;
                self.check_length(length)?;
                let tables = self.tables(pass.layer, 0, length)?;
                let parts = self.turned(&self.projected(&weights, x)?, &tables, by.way.layout())?;
                self.attention.among(&by, &parts)?
            }
        };
        self.add_attended(x, &attended, weights, pass.dropout.hidden)
    }

    /// `x` plus what the output layer makes of what was attended to.
    pub(super) fn add_attended(
        &self,
        x: &Tensor,
        attended: &Tensor,
        weights: AttentionWeights<'_>,
        dropout: f64,
    ) -> Result<Tensor, ModelError> {
        self.add_to_residual(x, self.linear(attended, &weights.output)?, weights.norm_after, dropout)
    }

    /// The tables of a layer's `length` positions from `begin` on.
    pub(super) fn tables(&self, layer: usize, begin: i64, length: i64) -> Result<Tables, ModelError> {
        self.ropes[self.rope(layer)].tables(begin, length)
    }

    pub(super) fn check_length(&self, length: i64) -> Result<(), ModelError> {
        let length = length as usize;
        match self.config.max_exact_length() {
            Some(longest) if length > longest => Err(ModelError::TooLong { length, longest }),
            _ => Ok(()),
        }
    }

    /// The place of a layer's rotary embedding among the model's.
    fn rope(&self, layer: usize) -> usize {
        self.config.layer(layer).rope.unwrap_or(self.ropes.len() - 1)
    }

    pub(super) fn norm(&self, norm: &Norm<'_>, x: &Tensor) -> Result<Tensor, ModelError> {
        let epsilon = self.config.norm_epsilon;
        Ok(match self.config.norm {
            NormKind::Rms => self.kernels.rms_norm(x, norm.weight, epsilon, 0.0)?,
            NormKind::RmsFromOne => self.kernels.rms_norm(x, norm.weight, epsilon, 1.0)?,
            NormKind::Layer => x.f_layer_norm(norm.weight.size(), Some(norm.weight), norm.bias, epsilon, false)?,
        })
    }

    pub(super) fn linear(&self, x: &Tensor, Linear { weight, bias }: &Linear<'_>) -> Result<Tensor, ModelError> {
        let product = if self.config.transposed { linear_transposed(x, weight)? } else { linear(x, weight)? };
        Ok(match bias {
            Some(bias) => product.shallow_clone().f_add_(bias)?,
            None => product,
        })
    }

    /// Query, key and value side by side, `[B, T, (heads + 2 key_value_heads) × D]`, before they are turned.
    pub(super) fn projected(&self, weights: &AttentionWeights<'_>, x: &Tensor) -> Result<Tensor, ModelError> {
        let projected = self.linear(&self.norm_before(&weights.norm, x)?, &weights.qkv)?;
        match &weights.head_norms {
            Some(norms) => self.norm_heads(&projected, norms),
            None => Ok(projected),
        }
    }

    /// Of these query `[B, heads, T, D]` (of another shape if grouped), key and value `[B, key_value_heads, T, D]`, the first two turned
    /// by their positions.
    pub(super) fn turned(
        &self,
        projected: &Tensor,
        tables: &Tables,
        layout: HeadLayout,
    ) -> Result<[Tensor; 3], ModelError> {
        let heads = (self.config.num_attention_heads as i64, self.config.num_key_value_heads as i64);
        Ok(self.kernels.rotary(projected, (&tables.cosines, &tables.sines), heads, layout)?)
    }

    /// Norms each head of queries and of keys; values stay as they are.
    fn norm_heads(&self, projected: &Tensor, [of_query, of_key]: &[Norm<'_>; 2]) -> Result<Tensor, ModelError> {
        let (heads, key_heads) = (self.config.num_attention_heads as i64, self.config.num_key_value_heads as i64);
        let (rows, length, width) = projected.size3()?;
        let by_head = projected.f_view([rows, length, heads + 2 * key_heads, self.config.head_dim as i64])?;
        let query = self.norm(of_query, &by_head.f_narrow(2, 0, heads)?)?;
        let key = self.norm(of_key, &by_head.f_narrow(2, heads, key_heads)?)?;
        let value = by_head.f_narrow(2, heads + key_heads, key_heads)?;
        Ok(Tensor::f_cat(&[query, key, value], 2)?.f_view([rows, length, width])?)
    }

    pub(super) fn mlp(&self, leaves: &mut Leaves<'_>, x: &Tensor, dropout: Dropout) -> Result<Tensor, ModelError> {
        let weights = MlpWeights::take(leaves, &self.config)?;
        let inner = self.linear(&self.norm_before(&weights.norm, x)?, &weights.up)?;
        let inner = match (self.config.gated, self.config.activation) {
            (true, Activation::Silu) => self.kernels.gated(&inner, Gate::Silu)?,
            (true, Activation::GeluTanh) => self.kernels.gated(&inner, Gate::GeluTanh)?,
            (true, Activation::Gelu) => {
                let parts = inner.f_chunk(2, -1)?;
                parts[0].f_gelu("none")?.f_mul(&parts[1])?
            }
            (false, Activation::Silu) => inner.f_silu()?,
            (false, Activation::GeluTanh) => inner.f_gelu("tanh")?,
            (false, Activation::Gelu) => inner.f_gelu("none")?,
        };
        self.add_to_residual(x, self.linear(&inner, &weights.down)?, weights.norm_after, dropout.hidden)
    }

    /// `x` normed, where the model norms it before attention or MLP.
    fn norm_before(&self, norm: &Option<Norm<'_>>, x: &Tensor) -> Result<Tensor, ModelError> {
        norm.as_ref().map_or_else(|| Ok(x.shallow_clone()), |norm| self.norm(norm, x))
    }

    /// `x` plus what attention or MLP made of it, with a norm and dropout where the model has them. Nobody needs the projection once
    /// the residual is in it, so it is added in place.
    fn add_to_residual(
        &self,
        x: &Tensor,
        projected: Tensor,
        norm: Option<Norm<'_>>,
        dropout: f64,
    ) -> Result<Tensor, ModelError> {
        match norm {
            Some(norm) if self.config.norm_placement == NormPlacement::After => {
                self.norm(&norm, &dropped(projected, dropout)?.f_add_(x)?)
            }
            Some(norm) => Ok(dropped(self.norm(&norm, &projected)?, dropout)?.f_add_(x)?),
            None => Ok(dropped(projected, dropout)?.f_add_(x)?),
        }
    }
}

/// A share of the elements dropped, by libtorch's generator. The native form keeps a byte for each.
pub(super) fn dropped(x: Tensor, dropout: f64) -> Result<Tensor, ModelError> {
    if dropout > 0.0 { Ok(x.f_native_dropout(dropout, true)?.0) } else { Ok(x) }
}

/// bfloat16 or float16.
pub(super) fn is_16_bit(kind: Kind) -> bool {
    matches!(kind, Kind::BFloat16 | Kind::Half)
}

#[cfg(test)]
#[path = "transformer_tests.rs"]
pub(super) mod tests;
