//! The sizes in bytes that a micro-batch is made of.

use super::{PlanInputs, PlannedDevice};
use crate::model::ModelConfig;
use zerofold_configs::ElementType;

/// Sizes beyond this mean nothing; capped there, sums of them cannot overflow.
const MOST: u64 = 1 << 50;

/// How many positions the rotary tables cover at least (`FIRST_LENGTH` in runtime/src/model/rope.rs).
const FIRST_TABLE: usize = 512;

/// Supervised tokens whose logits exist at once (`CHUNK` in runtime/src/trainer/loss.rs).
const LOSS_CHUNK: u64 = 512;

/// The product of sizes, at most [`MOST`].
pub(super) fn product(factors: &[usize]) -> u64 {
    let product = factors.iter().fold(1u64, |product, &factor| product.saturating_mul(factor as u64));
    product.min(MOST)
}

/// Bytes of the tensors of one micro-batch. `n` tokens = rows × length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Whether what is between the products goes by libtorch's operations, which hold float32 in between; else in one pass.
    pub(super) plain: bool,
    /// Whether parameters and activations take 2 bytes an element, so that libtorch's operations cast them first.
    pub(super) is_16_bit: bool,
    /// Whether attention goes by batched products; else block by block, by our kernel or libtorch's.
    pub(super) products: bool,
    /// Whether what documents attend to is kept once more, put together: our own kernel writes it where it belongs.
    pub(super) joins: bool,
    /// What a block needs meanwhile.
    pub(super) block: BlockSizes,
    /// Whether the fused kernel wants a key head for each query head, though these share them.
    pub(super) repeats: bool,
    /// And whether that takes a copy: a single head is repeated without.
    pub(super) copies: bool,
    /// `[n, hidden]` in the compute type.
    pub(super) hidden: u64,
    /// `[n, hidden]` in float32.
    pub(super) hidden32: u64,
    /// `[n, heads × head width]`.
    pub(super) query: u64,
    /// `[n, heads × head width]` in float32.
    pub(super) query32: u64,
    /// `[n, key heads × head width]`.
    pub(super) key: u64,
    /// `[n, intermediate]`.
    pub(super) inner: u64,
    /// `[rows, heads, length, length]`; of documents, each with itself alone.
    pub(super) scores: u64,
    /// As many elements of one byte: which of the attention weights are dropped. 0 where products drop nothing.
    pub(super) dropped: u64,
    /// `[n, 1]` in float32: what a norm keeps per token.
    pub(super) scalar: u64,
    /// `[n, heads]` in float32: the fused kernel's log-sum-exp.
    pub(super) log_sums: u64,
    /// Token ids, and the positions and ids of supervised targets, 8 bytes each.
    pub(super) ids: u64,
    /// Rotary tables and the attention mask, which stay from the first micro-batch on, and the tables of the documents of this
    /// one.
    pub(super) tables: u64,
    /// Leaves in the compute type.
    pub(super) weights: Weights,
    /// The head.
    pub(super) head: HeadSizes,
}

/// Bytes that our own attention needs beside its results, for one group of heads (`runtime/csrc/attention.cpp`); 0 for
/// libtorch's.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BlockSizes {
    /// Forward: a block's scores and what it attends to.
    pub(super) forward: u64,
    /// Backward: scores and their gradients, seeds, and in 16-bit types the float32 sums of the gradients of keys and values.
    pub(super) backward: u64,
}

/// The positions that attend to each other at most.
fn attending(inputs: &PlanInputs<'_>) -> usize {
    inputs.longest_document.map_or(inputs.length, |longest| longest.min(inputs.length))
}

impl BlockSizes {
    fn of(inputs: &PlanInputs<'_>) -> Self {
        let (length, width, bytes) = (attending(inputs), inputs.model.head_dim, inputs.types.compute.bytes());
        let sharing = inputs.model.queries_per_key();
        let positions = (512 / sharing / 32 * 32).clamp(32, 128).min(length);
        let of_rows = |columns: usize, bytes: usize| product(&[positions, sharing, columns, bytes]);
        let sums = if bytes == 2 { 2 * product(&[length, width, bytes + 4]) } else { 0 };
        BlockSizes {
            forward: of_rows(length, bytes) + of_rows(width, bytes) + of_rows(2, 4),
            backward: 2 * of_rows(length, bytes) + of_rows(width, bytes) + of_rows(1, 4) + sums,
        }
    }
}

/// Bytes of a block's leaves in the compute type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights {
    pub(super) qkv: u64,
    pub(super) output: u64,
    pub(super) gate_up: u64,
    pub(super) down: u64,
    pub(super) norm: u64,
}

/// Bytes of the head's tensors over `s` supervised tokens, at most [`LOSS_CHUNK`] of them (`m`) at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadSizes {
    /// `[s, hidden]` in the compute type.
    pub(super) hidden: u64,
    /// `[s, hidden]` in float32.
    pub(super) hidden32: u64,
    /// `[s, 1]` in float32.
    pub(super) scalar: u64,
    /// `[m, vocabulary]` in the compute type.
    pub(super) logits: u64,
    /// `[m, vocabulary]` in float32.
    pub(super) logits32: u64,
    /// `[vocabulary, hidden]` in the compute type.
    pub(super) weight: u64,
}

impl Sizes {
    pub(super) fn of(inputs: &PlanInputs<'_>) -> Self {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, vocab_size: vocabulary, .. } = *inputs.model;
        let (heads, key_heads) = (inputs.model.num_attention_heads, inputs.model.num_key_value_heads);
        let (query, key) = (heads * inputs.model.head_dim, key_heads * inputs.model.head_dim);
        let (rows, length, bytes) = (inputs.per_device_batch, inputs.length, inputs.types.compute.bytes());
        let is_16_bit = bytes == 2;
        let tokens = product(&[rows, length]);
        let per_token = |width: usize, bytes: usize| product(&[rows, length, width, bytes]);
        let attending = attending(inputs);
        let scores = product(&[rows, heads, length, attending]);
        let on_cpu = inputs.device == PlannedDevice::Cpu;
        // A CPU drops attention weights in products only, a GPU in the fused kernel.
        let products = on_cpu && inputs.model.attention_dropout > 0.0;
        let ours = on_cpu && inputs.types.compute != ElementType::Float16;
        let supervised = inputs.supervised.map_or(tokens, |supervised| supervised as u64).min(tokens);
        let chunk = supervised.min(LOSS_CHUNK) as usize;
        let mask = if products { product(&[heads / key_heads.max(1), attending, attending, bytes]) } else { 0 };
        let documents = inputs.longest_document.is_some();
        let of_documents = if documents { per_token(inputs.model.head_dim, 4) } else { 0 };
        let of_head = |width: usize, bytes: usize| product(&[supervised as usize, width, bytes]);
        // Our kernel shares them, and a GPU's for 16-bit types.
        let repeats = heads != key_heads && !ours && (on_cpu || !is_16_bit);
        Sizes {
            plain: !on_cpu,
            is_16_bit,
            products,
            joins: documents && !products && !ours,
            block: if ours { BlockSizes::of(inputs) } else { BlockSizes::default() },
            repeats,
            copies: repeats && key_heads > 1,
            hidden: per_token(hidden, bytes),
            hidden32: per_token(hidden, 4),
            query: per_token(query, bytes),
            query32: per_token(query, 4),
            key: per_token(key, bytes),
            inner: per_token(inner, bytes),
            scores: product(&[rows, heads, length, attending, bytes]),
            dropped: if products { scores } else { 0 },
            scalar: per_token(1, 4),
            log_sums: per_token(heads, 4),
            ids: 8 * tokens + 16 * supervised,
            tables: mask + of_documents + product(&[attending.max(FIRST_TABLE), inputs.model.head_dim, 4]),
            weights: Weights {
                qkv: product(&[query + 2 * key, hidden, bytes]),
                output: product(&[hidden, query, bytes]),
                gate_up: product(&[2, inner, hidden, bytes]),
                down: product(&[hidden, inner, bytes]),
                norm: product(&[hidden, bytes]),
            },
            head: HeadSizes {
                hidden: of_head(hidden, bytes),
                hidden32: of_head(hidden, 4),
                scalar: of_head(1, 4),
                logits: product(&[chunk, vocabulary, bytes]),
                logits32: product(&[chunk, vocabulary, 4]),
                weight: product(&[vocabulary, hidden, bytes]),
            },
        }
    }
}
