//! The maths of a Llama: embedding, decoder blocks, final norm.
//!
//! Shapes: B rows, T positions, H the hidden size, D the width of a head.
//!
//! Numerics follow transformers' Llama: norms in float32, everything else in the compute type. In float32 the forward takes
//! the same operations in the same order (with its `sdpa` attention), so that logits come out equal to the last bit where
//! libtorch is the same. In 16-bit types, where the last bit is noise, it takes faster forms of the same sums.

use tch::{Device, Kind, Tensor};
use zerofold_plan::{LeafSpec, ParameterGroup, ParameterSpec, UnitSpec};

use super::attention::Attention;
use super::rope::{Rope, Tables};
use super::{LayerCache, ModelConfig, ModelError};

/// The leaves of a decoder block, in the order of [`Llama::units`].
const BLOCK_LEAVES: &str = "qkv, o, gate_up, down, input_layernorm, post_attention_layernorm";

/// A model of the Llama family; it holds no weights.
pub struct Llama {
    /// What it was built from.
    pub config: ModelConfig,
    kind: Kind,
    device: Device,
    rope: Rope,
    attention: Attention,
}

/// A block's weights by name.
struct BlockWeights<'a> {
    /// `[(heads + 2 * key_value_heads) * D, H]`: query, key and value rows.
    qkv: &'a Tensor,
    /// `[H, heads * D]`.
    output: &'a Tensor,
    /// `[2 * intermediate, H]`: gate rows, then up rows.
    gate_up: &'a Tensor,
    /// `[H, intermediate]`.
    down: &'a Tensor,
    /// `[H]`.
    attention_norm: &'a Tensor,
    /// `[H]`.
    mlp_norm: &'a Tensor,
}

impl<'a> BlockWeights<'a> {
    fn of(leaves: &'a [Tensor]) -> Result<Self, ModelError> {
        let [qkv, output, gate_up, down, attention_norm, mlp_norm] = leaves else {
            return Err(ModelError::Leaves {
                unit: "a decoder block",
                expected: 6,
                names: BLOCK_LEAVES,
                found: leaves.len(),
            });
        };
        Ok(BlockWeights { qkv, output, gate_up, down, attention_norm, mlp_norm })
    }
}

impl Llama {
    /// A model that computes in `kind` on `device`.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn new(config: ModelConfig, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let rope = Rope::new(&config.rope, config.head_dim, kind, device)?;
        let attention = Attention::new(&config, kind, device);
        Ok(Llama { config, kind, device, rope, attention })
    }

    /// The compute type.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The parameters, unit by unit.
    ///
    /// - `embedding`: `model.embed_tokens.weight`, and with tied weights also `model.norm.weight`; then it stays gathered.
    /// - `layer i`: qkv (query, key and value stacked), o, gate_up (gate and up stacked), down, and the two norms.
    /// - `head`, only with untied weights: `lm_head.weight` and `model.norm.weight`.
    pub fn units(&self) -> Vec<UnitSpec> {
        let config = &self.config;
        let decayed = ParameterGroup::Decayed;
        let matrix = |name: &str| {
            let shape = [config.vocab_size, config.hidden_size];
            LeafSpec::single(decayed, ParameterSpec::new(name, shape))
        };
        let final_norm = || norm_leaf("model.norm.weight".to_owned(), config.hidden_size);
        let mut embedding = vec![matrix("model.embed_tokens.weight")];
        if config.tie_word_embeddings {
            embedding.push(final_norm());
        }
        let mut units = vec![UnitSpec {
            name: "embedding".to_owned(),
            leaves: embedding,
            stays_gathered: config.tie_word_embeddings,
        }];
        units.extend((0..config.num_hidden_layers).map(|layer| self.block_unit(layer)));
        if !config.tie_word_embeddings {
            units.push(UnitSpec {
                name: "head".to_owned(),
                leaves: vec![matrix("lm_head.weight"), final_norm()],
                stays_gathered: false,
            });
        }
        units
    }

    fn block_unit(&self, layer: usize) -> UnitSpec {
        let config = &self.config;
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let query = config.num_attention_heads * config.head_dim;
        let key = config.num_key_value_heads * config.head_dim;
        let parameter = |name: &str, rows: usize, columns: usize| {
            ParameterSpec::new(format!("model.layers.{layer}.{name}.weight"), [rows, columns])
        };
        let decayed = |parameters: Vec<ParameterSpec>| LeafSpec::stacked(ParameterGroup::Decayed, parameters);
        let norm = |name: &str| norm_leaf(format!("model.layers.{layer}.{name}.weight"), hidden);
        UnitSpec {
            name: format!("layer {layer}"),
            leaves: vec![
                decayed(vec![
                    parameter("self_attn.q_proj", query, hidden),
                    parameter("self_attn.k_proj", key, hidden),
                    parameter("self_attn.v_proj", key, hidden),
                ]),
                decayed(vec![parameter("self_attn.o_proj", hidden, query)]),
                decayed(vec![
                    parameter("mlp.gate_proj", intermediate, hidden),
                    parameter("mlp.up_proj", intermediate, hidden),
                ]),
                decayed(vec![parameter("mlp.down_proj", hidden, intermediate)]),
                norm("input_layernorm"),
                norm("post_attention_layernorm"),
            ],
            stays_gathered: false,
        }
    }

    /// Embeds token ids `[B, T]` (int64): `[B, T, H]`.
    ///
    /// # Errors
    /// An id outside the vocabulary, as libtorch says it.
    pub fn embed(&self, weight: &Tensor, input_ids: &Tensor) -> Result<Tensor, ModelError> {
        Ok(Tensor::f_embedding(weight, input_ids, -1, false, false)?)
    }

    /// One decoder block on `[B, T, H]`, causal, at positions 0 to T - 1. Rows padded on the right need no mask: what
    /// comes after a token does not reach it.
    ///
    /// # Errors
    /// The wrong number of leaves, a T beyond [`ModelConfig::max_exact_length`], and what libtorch says.
    pub fn block(&self, leaves: &[Tensor], x: &Tensor) -> Result<Tensor, ModelError> {
        let weights = BlockWeights::of(leaves)?;
        let (_, length, _) = x.size3()?;
        self.check_length(length)?;
        let tables = self.rope.tables(0, length)?;
        let (query, key, value) = self.query_key_value(&weights, x, &tables)?;
        let attended = self.attention.causal(&query, &key, &value)?;
        self.finish_block(&weights, x, &attended)
    }

    /// The same for the positions that follow those in `cache`, which then holds these too. For generation: no gradients.
    ///
    /// # Errors
    /// As [`Llama::block`].
    pub fn block_cached(&self, leaves: &[Tensor], x: &Tensor, cache: &mut LayerCache) -> Result<Tensor, ModelError> {
        let weights = BlockWeights::of(leaves)?;
        let (_, length, _) = x.size3()?;
        let begin = cache.length();
        self.check_length(begin + length)?;
        let tables = self.rope.tables(begin, length)?;
        let (query, key, value) = self.query_key_value(&weights, x, &tables)?;
        let (all_keys, all_values) = cache.append(&key.f_transpose(1, 2)?, &value.f_transpose(1, 2)?)?;
        let attended = if begin == 0 {
            self.attention.causal(&query, &key, &value)?
        } else {
            self.attention.cached(&query, &all_keys, &all_values)?
        };
        self.finish_block(&weights, x, &attended)
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

    /// `x / sqrt(mean(x²) + eps)` in float32, cast, times the weight.
    ///
    /// In a 16-bit type the mean comes by way of the vector norm, so that autograd keeps `x` itself and no float32 copy.
    fn rms_norm(&self, weight: &Tensor, x: &Tensor) -> Result<Tensor, ModelError> {
        let last: &[i64] = &[-1];
        let mean_square = if is_16_bit(self.kind) {
            let norm = x.f_norm_scalaropt_dim_dtype(2.0, last, true, Kind::Float)?;
            norm.f_mul(&norm)?.f_mul_scalar(1.0 / self.config.hidden_size as f64)?
        } else {
            x.f_square()?.f_mean_dim(last, true, None)?
        };
        let scale = mean_square.f_add_scalar(self.config.rms_norm_eps)?.f_rsqrt()?;
        Ok(x.f_mul(&scale)?.f_to_kind(self.kind)?.f_mul(weight)?)
    }

    /// Query `[B, T, heads, D]`, key and value `[B, T, key_value_heads, D]`, the first two turned by their positions.
    fn query_key_value(
        &self,
        weights: &BlockWeights<'_>,
        x: &Tensor,
        tables: &Tables,
    ) -> Result<(Tensor, Tensor, Tensor), ModelError> {
        let (rows, length, _) = x.size3()?;
        let heads = self.config.num_attention_heads as i64;
        let key_heads = self.config.num_key_value_heads as i64;
        let head_dim = self.config.head_dim as i64;
        let normed = self.rms_norm(weights.attention_norm, x)?;
        let projected = normed.f_linear::<Tensor>(weights.qkv, None)?;
        let projected = projected.f_view([rows, length, heads + 2 * key_heads, head_dim].as_slice())?;
        // Queries and keys are turned in one pass.
        let [turning, value] = two(projected.f_split_with_sizes([heads + key_heads, key_heads], 2)?)?;
        let [query, key] = two(self.rope.turn(&turning, tables)?.f_split_with_sizes([heads, key_heads], 2)?)?;
        Ok((query, key, value))
    }

    /// The output projection, the residuals and the gated MLP.
    fn finish_block(&self, weights: &BlockWeights<'_>, x: &Tensor, attended: &Tensor) -> Result<Tensor, ModelError> {
        // Nobody needs a projection's output once the residual is in it, so it is added in place.
        let x = attended.f_linear::<Tensor>(weights.output, None)?.f_add_(x)?;
        let normed = self.rms_norm(weights.mlp_norm, &x)?;
        let [gate, up] = two(normed.f_linear::<Tensor>(weights.gate_up, None)?.f_chunk(2, -1)?)?;
        let gated = gate.f_silu()?.f_mul(&up)?;
        Ok(gated.f_linear::<Tensor>(weights.down, None)?.f_add_(&x)?)
    }
}

/// bfloat16 or float16.
pub(super) fn is_16_bit(kind: Kind) -> bool {
    matches!(kind, Kind::BFloat16 | Kind::Half)
}

fn norm_leaf(name: String, hidden_size: usize) -> LeafSpec {
    LeafSpec::single(ParameterGroup::NotDecayed, ParameterSpec::new(name, [hidden_size]))
}

/// Exactly two parts of a split.
fn two(parts: Vec<Tensor>) -> Result<[Tensor; 2], ModelError> {
    <[Tensor; 2]>::try_from(parts)
        .map_err(|parts| tch::TchError::Shape(format!("a split gave {} parts instead of 2", parts.len())).into())
}

#[cfg(test)]
#[path = "llama_tests.rs"]
mod tests;
