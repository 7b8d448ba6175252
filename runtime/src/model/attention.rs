//! Causal grouped-query attention, by whichever of two ways is faster.
//!
//! Shapes: B rows, T positions, D the width of a head; G query heads share each of the K key and value heads.
//!
//! - **Flash**: libtorch's fused kernel. It never holds all scores, so its memory grows with T alone. It is also what
//!   transformers uses, so float32 always goes this way and comes out the same.
//! - **Products**: two batched matrix products with a softmax between. It holds B · K · G · T² scores, but in bfloat16
//!   on a CPU the products run through the same fast matrix kernels as the linear layers, which the fused kernel does not,
//!   and the query heads of a group stand under each other in one product, so that keys and values are not repeated.
//!
//! With dropout a CPU has no fused kernel: libtorch would hold all scores several times over, in float32 whatever the
//! type. Products hold them twice, and a byte each for what was dropped. A GPU's fused kernel drops by itself.

use std::cell::RefCell;

use tch::{Device, Kind, Tensor};

use super::llama::is_16_bit;
use super::{ModelConfig, ModelError};

/// The longest sequences for which products were measured to be faster on a CPU, forward and backward together.
const PRODUCTS_UP_TO: i64 = 768;
/// Never more scores than this at once (64 MiB in bfloat16): beyond it, memory matters more.
const MOST_SCORES: i64 = 32 << 20;

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

    /// Causal attention among T positions: query `[B, K * G, T, D]`, key and value `[B, K, T, D]` →
    /// `[B, T, K * G * D]`.
    /// A share `dropout` of the attention weights is dropped, by libtorch's generator.
    pub(super) fn causal(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        dropout: f64,
    ) -> Result<Tensor, ModelError> {
        let (rows, _, length, _) = query.size4()?;
        match self.goes_by_products(rows, length, dropout) {
            true => self.by_products(query, key, value, dropout),
            false => self.by_flash(query, key, value, dropout),
        }
    }

    /// Whether B rows of T positions go by products, which want all positions of a head one after the other.
    pub(super) fn goes_by_products(&self, rows: i64, length: i64, dropout: f64) -> bool {
        let dropped_on_cpu = dropout > 0.0 && self.device == Device::Cpu;
        dropped_on_cpu || self.products_are_faster(rows * self.key_heads * self.queries_per_key, length)
    }

    fn products_are_faster(&self, sequences: i64, length: i64) -> bool {
        let few = length <= PRODUCTS_UP_TO && sequences.saturating_mul(length * length) <= MOST_SCORES;
        self.device == Device::Cpu && self.kind == Kind::BFloat16 && few
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
mod tests {
    use super::*;

    /// Both ways with the gradients of query, key and value.
    fn both_ways(kind: Kind, sharing: i64) -> [Vec<Tensor>; 2] {
        tch::manual_seed(3);
        let (rows, length, key_heads, head_dim) = (2, 45, 3, 16);
        let attention =
            Attention { key_heads, queries_per_key: sharing, kind, device: Device::Cpu, mask: RefCell::new(None) };
        let random =
            |heads: i64| Tensor::randn([rows, heads, length, head_dim], (Kind::Float, Device::Cpu)).to_kind(kind);
        let inputs = [random(key_heads * sharing), random(key_heads), random(key_heads)];
        let inputs = inputs.map(|input| input.set_requires_grad(true));
        let weight =
            Tensor::randn([rows, length, key_heads * sharing * head_dim], (Kind::Float, Device::Cpu)).to_kind(kind);
        let [query, key, value] = &inputs;
        [attention.by_products(query, key, value, 0.0), attention.by_flash(query, key, value, 0.0)].map(|attended| {
            let attended = attended.expect("attention");
            let loss = (&attended * &weight).sum(Kind::Float);
            let mut results = Tensor::run_backward(&[loss], &inputs, false, false);
            results.push(attended);
            results
        })
    }

    #[test]
    fn both_ways_agree_and_so_do_their_gradients() {
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 0.06)] {
            for sharing in [1, 3] {
                let [products, flash] = both_ways(kind, sharing);
                for (product, flash) in products.iter().zip(&flash) {
                    assert_eq!(product.size(), flash.size());
                    let difference = (product.to_kind(Kind::Float) - flash.to_kind(Kind::Float)).abs().max();
                    let difference = difference.double_value(&[]);
                    assert!(difference < tolerance, "{kind:?}, {sharing} sharing: differ by {difference}");
                }
            }
        }
    }

    #[test]
    fn on_a_cpu_libtorch_takes_its_fused_kernel() {
        let attention =
            |kind| Attention { key_heads: 2, queries_per_key: 3, kind, device: Device::Cpu, mask: RefCell::new(None) };
        for kind in [Kind::Float, Kind::BFloat16] {
            assert_eq!(attention(kind).kernel(64, 16).unwrap(), Kernel::Flash, "{kind:?}");
        }
    }

    #[test]
    fn short_bfloat16_sequences_go_by_products_and_all_others_by_flash() {
        let attention =
            |kind, device| Attention { key_heads: 3, queries_per_key: 3, kind, device, mask: RefCell::new(None) };
        let bfloat16 = attention(Kind::BFloat16, Device::Cpu);
        assert!(bfloat16.products_are_faster(36, 512) && !bfloat16.products_are_faster(36, 769));
        assert!(!bfloat16.products_are_faster(1000, 512), "too many scores at once");
        assert!(!attention(Kind::Float, Device::Cpu).products_are_faster(36, 64));
        assert!(!attention(Kind::Half, Device::Cpu).products_are_faster(36, 64));
        assert!(!attention(Kind::BFloat16, Device::Cuda(0)).products_are_faster(36, 64));
    }
}
