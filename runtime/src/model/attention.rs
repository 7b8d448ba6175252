//! Grouped-query attention, causal or of all positions to all, in the way that fits device, type and dropout.
//!
//! Shapes: B rows, T positions, D the width of a head; G query heads share each of the K key and value heads. A layer may have a
//! window: a position sees so many, itself included (Beltagy et al., "Longformer", 2020). A model may cap its scores.
//!
//! - **Blocks**: our own kernel ([`attention`]), in float32 and bfloat16 on the CPU. It never holds all scores, so its memory
//!   grows with T alone, and the query heads of a group stand under each other in one product, so that keys and values are
//!   not repeated and the products are as fast as those of the linear layers.
//! - **Flash**: libtorch's fused kernel, on GPUs and for other types.
//! - **Products**: two batched matrix products with a softmax between, out of libtorch's operations, for dropout on the CPU,
//!   where libtorch has no fused kernel: it would hold all B · K · G · T² scores several times over, in float32 whatever the
//!   type. Products hold them twice, and a byte each for what was dropped. A GPU's fused kernel drops by itself. No fused
//!   kernel of libtorch caps scores, so these go by products where our own is not there.
//!
//! Of documents end to end in one row each attends to itself: our own kernel knows where they begin, the others are called for
//! one document after the other.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

use super::transformer::is_16_bit;
use super::{ModelConfig, ModelError};
use crate::torch::{AttentionRule, HeadLayout, Kernels, attention};

/// libtorch's kernels for attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// FlashAttention (Dao, "FlashAttention-2", 2023).
    Flash,
    /// xFormers' memory-efficient kernel.
    MemoryEfficient,
    /// That of cuDNN.
    CuDnn,
    /// Matrix products that keep all scores.
    Math,
}

impl std::fmt::Display for Kernel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Kernel::Flash => "flash attention",
            Kernel::MemoryEfficient => "memory-efficient attention",
            Kernel::CuDnn => "cuDNN's attention",
            Kernel::Math => "attention by products, which keep all scores",
        })
    }
}

/// How attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By our own kernel.
    Blocks,
    /// By libtorch's fused kernel.
    Flash,
    /// By batched products.
    Products,
}

impl Way {
    /// How query, key and value lie for it.
    pub(super) fn layout(self) -> HeadLayout {
        match self {
            Way::Blocks => HeadLayout::Grouped,
            Way::Flash => HeadLayout::ByPosition,
            Way::Products => HeadLayout::ByHead,
        }
    }
}

/// How a layer attends in one pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attending {
    /// By what.
    pub(super) way: Way,
    /// How many positions one sees, itself included; none for all before it.
    pub(super) window: Option<i64>,
    /// The share of the attention weights that is dropped, by libtorch's generator.
    pub(super) dropout: f64,
}

impl Attending {
    /// The window, if it hides anything among `length` positions.
    fn window(&self, length: i64) -> Option<i64> {
        self.window.filter(|&window| window < length)
    }
}

/// The attention of one model; it has no weights.
pub(super) struct Attention {
    key_heads: i64,
    queries_per_key: i64,
    /// Whether a position sees none after it; else all.
    causal: bool,
    /// What scores are multiplied by.
    scale: f64,
    /// What they are capped at then.
    softcap: Option<f64>,
    kind: Kind,
    device: Device,
    /// The masks of the last lengths and windows asked for: the blocks of a model all ask for the same few.
    masks: RefCell<Vec<(Option<i64>, Tensor)>>,
}

/// Masks that are kept.
const KEPT_MASKS: usize = 2;

impl Attention {
    pub(super) fn new(config: &ModelConfig, kind: Kind, device: Device) -> Self {
        Attention {
            key_heads: config.num_key_value_heads as i64,
            queries_per_key: config.queries_per_key() as i64,
            causal: config.causal,
            scale: config.score_scale(),
            softcap: config.attention_softcap,
            kind,
            device,
            masks: RefCell::new(Vec::new()),
        }
    }

    /// How attention goes here with this share of its weights dropped.
    pub(super) fn way(&self, kernels: Kernels, dropout: f64) -> Way {
        match (dropout > 0.0, self.device) {
            (true, Device::Cpu) => Way::Products,
            (false, _) if kernels.attends(self.kind, self.device) => Way::Blocks,
            _ if self.softcap.is_some() => Way::Products,
            _ => Way::Flash,
        }
    }

    /// Attention among T positions of query, key and value, which lie as the way wants them: `[B, T, K * G * D]`.
    pub(super) fn among(&self, by: &Attending, parts: &[Tensor; 3]) -> Result<Tensor, ModelError> {
        match by.way {
            Way::Blocks => self.by_blocks(by, parts, &[]),
            Way::Flash => self.by_flash(by, parts),
            Way::Products => self.by_products(by, parts),
        }
    }

    /// The same in documents of these lengths, end to end in one row: B is 1, and T their sum.
    pub(super) fn by_document(
        &self,
        by: &Attending,
        parts: &[Tensor; 3],
        lengths: &[i64],
    ) -> Result<Tensor, ModelError> {
        if by.way == Way::Blocks {
            return self.by_blocks(by, parts, lengths);
        }
        let mut begin = 0;
        let mut attended = Vec::with_capacity(lengths.len());
        for &length in lengths {
            let [query, key, value] = parts.each_ref().map(|part| part.f_narrow(2, begin, length));
            attended.push(self.among(by, &[query?, key?, value?])?);
            begin += length;
        }
        Ok(Tensor::f_cat(&attended, 1)?)
    }

    fn by_blocks(&self, by: &Attending, parts: &[Tensor; 3], lengths: &[i64]) -> Result<Tensor, ModelError> {
        let window = by.window(parts[1].size4()?.2);
        let rule = AttentionRule { scale: self.scale, softcap: self.softcap, window, causal: self.causal };
        Ok(attention(parts, lengths, &rule)?)
    }

    fn by_products(&self, by: &Attending, [query, key, value]: &[Tensor; 3]) -> Result<Tensor, ModelError> {
        let (rows, heads, length, head_dim) = query.size4()?;
        let (groups, sharing) = (rows * self.key_heads, self.queries_per_key);
        // The query heads of a group lie one after the other.
        let query = query.f_reshape([groups, sharing * length, head_dim])?;
        let key = key.f_reshape([groups, length, head_dim])?.f_transpose(1, 2)?;
        let value = value.f_reshape([groups, length, head_dim])?;
        let mask = self.mask(length, by.window(length), sharing)?;
        let scores = match self.softcap {
            // scores = mask + query · key × scale, in one product.
            None => mask.f_baddbmm(&query, &key, 1.0, self.scale)?,
            // The share of the cap is kept for backward; the mask is added in place.
            Some(softcap) => self.shares_of_cap(query.f_bmm(&key)?, softcap)?.f_mul_scalar(softcap)?.f_add_(&mask)?,
        };
        let mut weights = scores.f_softmax(-1, None)?;
        drop(scores);
        if by.dropout > 0.0 {
            // The native form keeps a byte for each weight; the plain one keeps a factor in the weights' type.
            weights = weights.f_native_dropout(by.dropout, true)?.0;
        }
        let attended = weights.f_bmm(&value)?;
        drop(weights);
        self.ungroup(&attended, [rows, length, heads * head_dim])
    }

    /// tanh of scaled scores over their cap, in the place of the products of queries and keys.
    fn shares_of_cap(&self, mut products: Tensor, softcap: f64) -> Result<Tensor, ModelError> {
        Ok(products.f_mul_scalar_(self.scale / softcap)?.f_tanh_()?)
    }

    fn by_flash(&self, by: &Attending, [query, key, value]: &[Tensor; 3]) -> Result<Tensor, ModelError> {
        let length = query.size4()?.2;
        let window = by.window(length);
        let shares = self.kernel_shares_heads(window);
        let (key, value) = match shares {
            true => (key.shallow_clone(), value.shallow_clone()),
            false => (self.repeat_heads(key)?, self.repeat_heads(value)?),
        };
        // In the compute type, so that no layer makes another form of it.
        let mask = window.map(|_| self.mask(length, window, 1)).transpose()?;
        let (causal, scale) = (self.causal && mask.is_none(), self.scale);
        let attended =
            Tensor::f_scaled_dot_product_attention(query, &key, &value, mask, by.dropout, causal, scale, shares)?;
        Ok(attended.f_transpose(1, 2)?.f_flatten(2, 3)?)
    }

    /// Whether the fused kernel takes fewer key heads than query heads, backward included: CUDA's flash kernel does, which is
    /// for 16-bit types and knows no mask. All others want keys and values repeated.
    fn kernel_shares_heads(&self, window: Option<i64>) -> bool {
        let flash = matches!(self.device, Device::Cuda(_)) && is_16_bit(self.kind) && window.is_none();
        flash && self.queries_per_key > 1
    }

    /// The kernel that libtorch takes for rows of `length` positions with heads `head_dim` wide, where a position sees `window`.
    ///
    /// # Errors
    /// What libtorch says.
    pub(super) fn kernel(&self, length: i64, head_dim: i64, window: Option<i64>) -> Result<Kernel, ModelError> {
        let heads = self.key_heads * self.queries_per_key;
        let shares = self.kernel_shares_heads(window);
        let tensor = |heads: i64| Tensor::f_zeros([1, heads, length, head_dim], (self.kind, self.device));
        let key = tensor(if shares { self.key_heads } else { heads })?;
        let mask = window.map(|_| self.mask(length, window, 1)).transpose()?;
        let causal = self.causal && mask.is_none();
        let query = tensor(heads)?.f_set_requires_grad(true)?;
        let choice = Tensor::f_internal_fused_sdp_choice(&query, &key, &key, mask, 0.0, causal, None, shares)?;
        Ok(match choice {
            1 => Kernel::Flash,
            2 => Kernel::MemoryEfficient,
            3 => Kernel::CuDnn,
            _ => Kernel::Math,
        })
    }

    /// Attention of the last T positions to all S of a cache (`[B, K, S, D]` each): `[B, T, K * G * D]`.
    pub(super) fn cached(
        &self,
        query: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        window: Option<i64>,
    ) -> Result<Tensor, ModelError> {
        let (rows, heads, length, head_dim) = query.size4()?;
        let (_, _, total, _) = keys.size4()?;
        let query = query.f_reshape([rows, self.key_heads, self.queries_per_key * length, head_dim])?;
        let window = window.filter(|&window| window < total);
        let mask = match length == 1 && window.is_none() {
            true => None,
            false => Some(self.seen(length, total, window)?.f_repeat([self.queries_per_key, 1])?),
        };
        let attended = match self.softcap {
            None => {
                let scale = self.scale;
                Tensor::f_scaled_dot_product_attention(&query, keys, values, mask, 0.0, false, scale, false)?
            }
            Some(softcap) => {
                let products = query.f_matmul(&keys.f_transpose(2, 3)?)?;
                let mut scores = self.shares_of_cap(products, softcap)?.f_mul_scalar(softcap)?;
                if let Some(mask) = mask {
                    scores = scores.f_masked_fill(&mask.f_logical_not()?, f64::NEG_INFINITY)?;
                }
                scores.f_softmax(-1, None)?.f_matmul(values)?
            }
        };
        self.ungroup(&attended, [rows, length, heads * head_dim])
    }

    /// `[…, T, D]` by head with the heads of a position side by side: `shape` is `[B, T, K * G * D]`.
    fn ungroup(&self, attended: &Tensor, shape: [i64; 3]) -> Result<Tensor, ModelError> {
        let [rows, length, width] = shape;
        let heads = self.key_heads * self.queries_per_key;
        let by_head = attended.f_reshape([rows, heads, length, width / heads])?;
        Ok(by_head.f_transpose(1, 2)?.f_reshape(shape)?)
    }

    /// Keys or values `[B, K, T, D]` repeated for the query heads that share them: `[B, K * G, T, D]`.
    fn repeat_heads(&self, shared: &Tensor) -> Result<Tensor, ModelError> {
        if self.queries_per_key == 1 {
            return Ok(shared.shallow_clone());
        }
        let (rows, heads, length, head_dim) = shared.size4()?;
        let repeated = shared.f_unsqueeze(2)?.f_expand([rows, heads, self.queries_per_key, length, head_dim], false)?;
        Ok(repeated.f_reshape([rows, heads * self.queries_per_key, length, head_dim])?)
    }

    /// What is added to the scores: 0 where a position may look, −∞ elsewhere; `[1, sharing * T, T]`, or one 0 where all see all.
    fn mask(&self, length: i64, window: Option<i64>, sharing: i64) -> Result<Tensor, ModelError> {
        if !self.causal {
            return Ok(Tensor::f_zeros([1, 1, 1], (self.kind, self.device))?);
        }
        let mut kept = self.masks.borrow_mut();
        let shape = [1, sharing * length, length];
        if let Some((_, mask)) = kept.iter().find(|(of, mask)| *of == window && mask.size() == shape) {
            return Ok(mask.shallow_clone());
        }
        let seen = self.seen(length, length, window)?;
        let hidden = Tensor::f_zeros([length, length], (self.kind, self.device))?
            .f_masked_fill_(&seen.f_logical_not()?, f64::NEG_INFINITY)?;
        let mask = hidden.f_repeat([sharing, 1])?.f_unsqueeze(0)?;
        if kept.len() == KEPT_MASKS {
            let _oldest = kept.remove(0);
        }
        kept.push((window, mask.shallow_clone()));
        Ok(mask)
    }

    /// Which of `total` positions each of the last `length` sees: true where it does, `[length, total]`.
    fn seen(&self, length: i64, total: i64, window: Option<i64>) -> Result<Tensor, ModelError> {
        let seen = Tensor::f_ones([length, total], (Kind::Bool, self.device))?.f_tril(total - length)?;
        match window {
            Some(window) => Ok(seen.f_triu(total - length - window + 1)?),
            None => Ok(seen),
        }
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
