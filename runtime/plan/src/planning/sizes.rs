//! The sizes in bytes that a micro-batch is made of.

use super::{PlanInputs, PlannedDevice};
use crate::model::{ModelConfig, NormKind, NormPlacement};
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
    /// What the blocks do.
    pub(super) does: Does,
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
    /// `[n, hidden]` of one byte: what is dropped of that which is added to the residual stream; 0 where nothing is.
    pub(super) hidden_dropped: u64,
    /// The same of the embeddings.
    pub(super) embedding_dropped: u64,
    /// `[n, 1]` in float32: what an RMSNorm keeps per token; LayerNorm keeps two.
    pub(super) scalar: u64,
    /// `[n, heads + key heads]` in float32: what norms of queries and keys keep.
    pub(super) head_scalars: u64,
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

/// What the blocks of a family do in its own way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Does {
    /// LayerNorm in place of RMSNorm.
    pub(super) layer_norm: bool,
    /// A norm after attention and MLP too.
    pub(super) norm_after: bool,
    /// A norm of attention and MLP with the residual, and none before.
    pub(super) norm_of_sum: bool,
    /// A norm of the embeddings.
    pub(super) embedding_norm: bool,
    /// Norms of queries and keys.
    pub(super) query_key_norm: bool,
    /// A gate beside up.
    pub(super) gate: bool,
    /// Caps of scores.
    pub(super) softcap: bool,
    /// Caps of logits.
    pub(super) logit_softcap: bool,
}

impl Does {
    fn of(model: &ModelConfig) -> Self {
        Does {
            layer_norm: model.norm == NormKind::Layer,
            norm_after: model.norm_placement == NormPlacement::Around,
            norm_of_sum: model.norm_placement == NormPlacement::After,
            embedding_norm: model.embedding_norm,
            query_key_norm: model.query_key_norm,
            gate: model.gated,
            softcap: model.attention_softcap.is_some(),
            logit_softcap: model.logit_softcap.is_some(),
        }
    }
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
        // The layer that sees most.
        let windows = (0..inputs.model.num_hidden_layers).map(|layer| inputs.model.layer(layer).window);
        let seen = windows.map(|window| window.map_or(length, |window| length.min(positions + window - 1))).max();
        let seen = seen.unwrap_or(length);
        let scores = if inputs.model.attention_softcap.is_some() { 3 } else { 2 };
        let of_rows = |columns: usize, bytes: usize| product(&[positions, sharing, columns, bytes]);
        let sums = if bytes == 2 { 2 * product(&[length, width, bytes + 4]) } else { 0 };
        BlockSizes {
            forward: of_rows(seen, bytes) + of_rows(width, bytes) + of_rows(2, 4),
            backward: scores * of_rows(seen, bytes) + of_rows(width, bytes) + of_rows(1, 4) + sums,
        }
    }
}

/// Bytes of a block's leaves in the compute type, each linear layer with its bias, each norm too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights {
    pub(super) qkv: u64,
    pub(super) output: u64,
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) norm: u64,
    /// Those of queries and keys; 0 where there are none.
    pub(super) head_norms: u64,
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
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, .. } = *inputs.model;
        let vocabulary = inputs.model.head_rows();
        let (heads, key_heads) = (inputs.model.num_attention_heads, inputs.model.num_key_value_heads);
        let (query, key) = (heads * inputs.model.head_dim, key_heads * inputs.model.head_dim);
        let (rows, length, bytes) = (inputs.per_device_batch, inputs.length, inputs.types.compute.bytes());
        let is_16_bit = bytes == 2;
        let tokens = product(&[rows, length]);
        let per_token = |width: usize, bytes: usize| product(&[rows, length, width, bytes]);
        let attending = attending(inputs);
        let on_cpu = inputs.device == PlannedDevice::Cpu;
        let does = Does::of(inputs.model);
        let ours = on_cpu && inputs.types.compute != ElementType::Float16;
        // A CPU drops attention weights in products only, a GPU in the fused kernel; and no fused kernel but ours caps scores.
        let drops = on_cpu && inputs.model.attention_dropout > 0.0;
        let products = drops || (does.softcap && !ours);
        let dropped = |share: f64| if share > 0.0 { per_token(hidden, 1) } else { 0 };
        let biases = inputs.model.biases;
        let linear = |from: usize, to: usize, bias: bool| product(&[from + usize::from(bias), to, bytes]);
        let norm_vectors = if inputs.model.norm.has_bias() { 2 } else { 1 };
        let up = if does.gate { 2 * inner } else { inner };
        let supervised = inputs.supervised.map_or(tokens, |supervised| supervised as u64).min(tokens);
        let chunk = supervised.min(LOSS_CHUNK) as usize;
        // One mask for each kind of layer: of products for all query heads that share a key, of a fused kernel where a window hides
        // something.
        let mut kinds: Vec<Option<usize>> = (0..inputs.model.num_hidden_layers)
            .map(|layer| inputs.model.layer(layer).window.filter(|&window| window < attending))
            .collect();
        kinds.sort_unstable();
        kinds.dedup();
        let sharing = heads / key_heads.max(1);
        let masks = match (products, ours) {
            _ if !inputs.model.causal => 0,
            (true, _) => sharing * kinds.len(),
            (false, true) => 0,
            (false, false) => kinds.iter().flatten().count(),
        };
        let mask = product(&[masks, attending, attending, bytes]);
        let documents = inputs.longest_document.is_some();
        // Cosines and sines of what turns, of every rotary embedding.
        let turned: usize = inputs.model.ropes.iter().map(|rope| rope.turned(inputs.model.head_dim)).sum();
        let of_documents = if documents { per_token(turned, 4) } else { 0 };
        let of_head = |width: usize, bytes: usize| product(&[supervised as usize, width, bytes]);
        // Our kernel shares them, and a GPU's for 16-bit types.
        let repeats = heads != key_heads && !ours && (on_cpu || !is_16_bit);
        Sizes {
            plain: !on_cpu,
            is_16_bit,
            does,
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
            dropped: if drops { product(&[rows, heads, length, attending]) } else { 0 },
            hidden_dropped: dropped(inputs.model.hidden_dropout),
            embedding_dropped: dropped(inputs.model.embedding_dropout),
            head_scalars: per_token(heads + key_heads, 4),
            scalar: per_token(1, 4),
            log_sums: per_token(heads, 4),
            ids: 8 * tokens + 16 * supervised,
            tables: mask + of_documents + product(&[attending.max(FIRST_TABLE), turned, 4]),
            weights: Weights {
                qkv: linear(hidden, query + 2 * key, biases.qkv),
                output: linear(query, hidden, biases.output),
                up: linear(hidden, up, biases.mlp),
                down: linear(inner, hidden, biases.mlp),
                norm: product(&[norm_vectors, hidden, bytes]),
                head_norms: if does.query_key_norm { product(&[2, inputs.model.head_dim, bytes]) } else { 0 },
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
