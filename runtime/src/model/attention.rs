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
            Way::Blocks => Ok(attention(query, key, value)?),
            Way::Flash => self.by_flash(query, key, value, dropout),
            Way::Products => self.by_products(query, key, value, dropout),
        }
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

    /// Numbers between -2 and 2 that look random, others for each `phase`: tests run side by side on one generator.
    fn scattered(shape: &[i64], phase: f64) -> Tensor {
        let count = shape.iter().product::<i64>();
        let angles = Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + phase;
        ((angles.sin() * 43758.5453).frac() * 2.0).to_kind(Kind::Float).reshape(shape)
    }

    /// A way's result for these shapes, and the gradients of query, key and value.
    fn results(way: Way, kind: Kind, sharing: i64, length: i64) -> Vec<Tensor> {
        let (rows, key_heads, head_dim) = (2, 3, 16);
        let attention =
            Attention { key_heads, queries_per_key: sharing, kind, device: Device::Cpu, mask: RefCell::new(None) };
        let inputs = [(key_heads * sharing, 0.1), (key_heads, 0.2), (key_heads, 0.3)].map(|(heads, phase)| {
            scattered(&[rows, heads, length, head_dim], phase).to_kind(kind).set_requires_grad(true)
        });
        let weight = scattered(&[rows, length, key_heads * sharing * head_dim], 0.4).to_kind(kind);
        let [query, key, value] = &inputs;
        let query = match way {
            Way::Blocks => query.reshape([rows, key_heads, sharing, length, head_dim]).transpose(2, 3).contiguous(),
            _ => query.shallow_clone(),
        };
        let parts = [query, key.shallow_clone(), value.shallow_clone()];
        let attended = attention.causal(way, &parts, 0.0).expect("attention");
        let loss = (&attended * &weight).sum(Kind::Float);
        let mut results = Tensor::run_backward(&[loss], &inputs, false, false);
        results.push(attended);
        results
    }

    #[test]
    fn all_ways_agree_and_so_do_their_gradients() {
        // One position, part of a block, blocks and a part, blocks with many query heads.
        for (sharing, length) in [(1, 1), (1, 45), (3, 45), (3, 128), (1, 300), (3, 257), (17, 70)] {
            for (kind, tolerance) in [(Kind::Float, 2e-5), (Kind::BFloat16, 0.01)] {
                let flash = results(Way::Flash, Kind::Float, sharing, length);
                for way in [Way::Products, Way::Blocks, Way::Flash] {
                    for (found, flash) in results(way, kind, sharing, length).iter().zip(&flash) {
                        assert_eq!(found.size(), flash.size());
                        // With one position nothing depends on queries and keys: what is left are rounded terms of about 1.
                        let error = (found.to_kind(Kind::Float) - flash).norm().double_value(&[]);
                        let least = (flash.numel() as f64).sqrt();
                        let relative = error / flash.norm().double_value(&[]).max(least);
                        assert!(relative < tolerance, "{way:?}, {kind:?}, {sharing} × {length}: off by {relative}");
                    }
                }
            }
        }
    }

    /// With 3 threads groups are shared out; with 8 there are too few groups, and products are.
    #[test]
    fn blocks_give_the_same_on_one_thread_and_several() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let first = results(Way::Blocks, kind, 3, 300);
            for threads in [3, 8] {
                tch::set_num_threads(threads);
                let again = results(Way::Blocks, kind, 3, 300);
                tch::set_num_threads(1);
                assert!(
                    first.iter().zip(&again).all(|(one, other)| one.allclose(other, 1e-5, 1e-5, false)),
                    "{threads}"
                );
            }
        }
    }

    /// oneDNN in libtorch wants AVX-512 for its products; processors without it take others.
    #[test]
    fn processors_without_avx512_pass_the_same_test() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["attention::tests::all_ways_agree", "loss_and_gradients_equal"])
            .env("ONEDNN_MAX_CPU_ISA", "AVX2")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(" 2 passed"), "{text}");
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
    fn the_way_follows_from_device_type_and_dropout() {
        let way = |kind, device, kernels, dropout| {
            let attention = Attention { key_heads: 3, queries_per_key: 3, kind, device, mask: RefCell::new(None) };
            attention.way(kernels, dropout)
        };
        let ours = Kernels::default();
        for kind in [Kind::Float, Kind::BFloat16] {
            assert_eq!(way(kind, Device::Cpu, ours, 0.0), Way::Blocks);
            assert_eq!(way(kind, Device::Cpu, Kernels::plain(), 0.0), Way::Flash);
            assert_eq!(way(kind, Device::Cpu, ours, 0.1), Way::Products);
            assert_eq!(way(kind, Device::Cuda(0), ours, 0.1), Way::Flash);
        }
        assert_eq!(way(Kind::Half, Device::Cpu, ours, 0.0), Way::Flash);
    }
}
