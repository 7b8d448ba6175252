//! Causal grouped-query attention, in the way that fits device, type and dropout.
//!
//! Shapes: B rows, T positions, D the width of a head; G query heads share each of the K key and value heads.
//!
//! - **Blocks**: our own kernel ([`attention`]), in float32 and bfloat16 on the CPU. It never holds all scores, so its memory
//!   grows with T alone, and the query heads of a group stand under each other in one product, so that keys and values are
//!   not repeated and the products are as fast as those of the linear layers.
//! - **Flash**: libtorch's fused kernel, on GPUs and for other types.
//! - **Products**: two batched matrix products with a softmax between, out of libtorch's operations, for dropout on the CPU,
//!   where libtorch has no fused kernel: it would hold all B · K · G · T² scores several times over, in float32 whatever the
//!   type. Products hold them twice, and a byte each for what was dropped. A GPU's fused kernel drops by itself.
//!
//! Of documents end to end in one row each attends to itself: our own kernel knows where they begin, the others are called for
//! one document after the other.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

use super::llama::is_16_bit;
use super::{ModelConfig, ModelError};
use crate::torch::{HeadLayout, Kernels, attention};

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

/// The attention of one model; it has no weights.
pub(super) struct Attention {
    key_heads: i64,
    queries_per_key: i64,
    kind: Kind,
    device: Device,
    /// The mask of the last length asked for: the blocks of a model all ask for the same one.
    mask: RefCell<Option<Tensor>>,
}

impl Attention {
    pub(super) fn new(config: &ModelConfig, kind: Kind, device: Device) -> Self {
        let (key_heads, queries_per_key) = (config.num_key_value_heads as i64, config.queries_per_key() as i64);
        Attention { key_heads, queries_per_key, kind, device, mask: RefCell::new(None) }
    }

    /// How attention goes here with this share of its weights dropped.
    pub(super) fn way(&self, kernels: Kernels, dropout: f64) -> Way {
        match (dropout > 0.0, self.device) {
            (true, Device::Cpu) => Way::Products,
            (false, _) if kernels.attends(self.kind, self.device) => Way::Blocks,
            _ => Way::Flash,
        }
    }

    /// Causal attention among T positions of query, key and value, which lie as the way wants them: `[B, T, K * G * D]`.
    /// A share `dropout` of the attention weights is dropped, by libtorch's generator.
    pub(super) fn causal(
        &self,
        way: Way,
        [query, key, value]: &[Tensor; 3],
        dropout: f64,
    ) -> Result<Tensor, ModelError> {
        match way {
            Way::Blocks => Ok(attention(query, key, value, &[])?),
            Way::Flash => self.by_flash(query, key, value, dropout),
            Way::Products => self.by_products(query, key, value, dropout),
        }
    }

    /// The same in documents of these lengths, end to end in one row: B is 1, and T their sum.
    pub(super) fn by_document(
        &self,
        way: Way,
        parts: &[Tensor; 3],
        lengths: &[i64],
        dropout: f64,
    ) -> Result<Tensor, ModelError> {
        if way == Way::Blocks {
            let [query, key, value] = parts;
            return Ok(attention(query, key, value, lengths)?);
        }
        let mut begin = 0;
        let mut attended = Vec::with_capacity(lengths.len());
        for &length in lengths {
            let [query, key, value] = parts.each_ref().map(|part| part.f_narrow(2, begin, length));
            attended.push(self.causal(way, &[query?, key?, value?], dropout)?);
            begin += length;
        }
        Ok(Tensor::f_cat(&attended, 1)?)
    }

    fn by_products(&self, query: &Tensor, key: &Tensor, value: &Tensor, dropout: f64) -> Result<Tensor, ModelError> {
        let (rows, heads, length, head_dim) = query.size4()?;
        let (groups, sharing) = (rows * self.key_heads, self.queries_per_key);
        // The query heads of a group lie one after the other.
        let query = query.f_reshape([groups, sharing * length, head_dim])?;
        let key = key.f_reshape([groups, length, head_dim])?.f_transpose(1, 2)?;
        let value = value.f_reshape([groups, length, head_dim])?;
        // scores = mask + query · key / √D, in one product.
        let scores = self.mask(length)?.f_baddbmm(&query, &key, 1.0, 1.0 / (head_dim as f64).sqrt())?;
        let mut weights = scores.f_softmax(-1, None)?;
        drop(scores);
        if dropout > 0.0 {
            // The native form keeps a byte for each weight; the plain one keeps a factor in the weights' type.
            weights = weights.f_native_dropout(dropout, true)?.0;
        }
        let attended = weights.f_bmm(&value)?;
        drop(weights);
        self.ungroup(&attended, [rows, length, heads * head_dim])
    }

    fn by_flash(&self, query: &Tensor, key: &Tensor, value: &Tensor, dropout: f64) -> Result<Tensor, ModelError> {
        let shares = self.kernel_shares_heads();
        let (key, value) = match shares {
            true => (key.shallow_clone(), value.shallow_clone()),
            false => (self.repeat_heads(key)?, self.repeat_heads(value)?),
        };
        let attended =
            Tensor::f_scaled_dot_product_attention::<Tensor>(query, &key, &value, None, dropout, true, None, shares)?;
        Ok(attended.f_transpose(1, 2)?.f_flatten(2, 3)?)
    }

    /// Whether the fused kernel takes fewer key heads than query heads, backward included: CUDA's flash kernel does, which is
    /// for 16-bit types. All others want keys and values repeated.
    fn kernel_shares_heads(&self) -> bool {
        matches!(self.device, Device::Cuda(_)) && is_16_bit(self.kind) && self.queries_per_key > 1
    }

    /// The kernel that libtorch takes for rows of `length` positions with heads `head_dim` wide.
    ///
    /// # Errors
    /// What libtorch says.
    pub(super) fn kernel(&self, length: i64, head_dim: i64) -> Result<Kernel, ModelError> {
        let heads = self.key_heads * self.queries_per_key;
        let shares = self.kernel_shares_heads();
        let tensor = |heads: i64| Tensor::f_zeros([1, heads, length, head_dim], (self.kind, self.device));
        let key = tensor(if shares { self.key_heads } else { heads })?;
        let choice = Tensor::f_internal_fused_sdp_choice::<Tensor>(
            &tensor(heads)?.f_set_requires_grad(true)?,
            &key,
            &key,
            None,
            0.0,
            true,
            None,
            shares,
        )?;
        Ok(match choice {
            1 => Kernel::Flash,
            2 => Kernel::MemoryEfficient,
            3 => Kernel::CuDnn,
            _ => Kernel::Math,
        })
    }

    /// Attention of the last T positions to all S of a cache (`[B, K, S, D]` each): `[B, T, K * G * D]`.
    pub(super) fn cached(&self, query: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor, ModelError> {
        let (rows, heads, length, head_dim) = query.size4()?;
        let (_, _, total, _) = keys.size4()?;
        let query = query.f_reshape([rows, self.key_heads, self.queries_per_key * length, head_dim])?;
        let mask = if length == 1 {
            None
        } else {
            let seen = Tensor::f_ones([length, total], (Kind::Bool, self.device))?.f_tril(total - length)?;
            Some(seen.f_repeat([self.queries_per_key, 1])?)
        };
        let attended = Tensor::f_scaled_dot_product_attention(&query, keys, values, mask, 0.0, false, None, false)?;
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

    /// What is added to the scores: 0 where a position may look, −∞ at what comes after it; `[1, G * T, T]`.
    fn mask(&self, length: i64) -> Result<Tensor, ModelError> {
        let mut kept = self.mask.borrow_mut();
        if let Some(mask) = kept.as_ref().filter(|mask| mask.size().last() == Some(&length)) {
            return Ok(mask.shallow_clone());
        }
        let hidden = Tensor::f_full([length, length], f64::NEG_INFINITY, (self.kind, self.device))?.f_triu(1)?;
        let mask = hidden.f_repeat([self.queries_per_key, 1])?.f_unsqueeze(0)?;
        *kept = Some(mask.shallow_clone());
        Ok(mask)
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
