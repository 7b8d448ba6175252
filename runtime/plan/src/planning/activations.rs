//! What forward and backward of one micro-batch need, walked through tensor by tensor.
//!
//! **This is the file to calibrate**, with `norms.rs`. Each `take` is a tensor that libtorch allocates, each `give` one that is freed, in
//! the order in which `runtime/src/model/{transformer,attention}.rs`, `runtime/csrc/{kernels,attention}.cpp`, `runtime/src/trainer/loss.rs` and
//! autograd do it. `runtime/tests/activations.rs` holds the segments to what the allocator counts, the matrix test whole steps.
//! Not counted: scratch of the matrix kernels (some hundred KiB per thread), and attention's of all threads but one.

use super::SegmentBytes;
use super::norms::{
    Residual, after_product, before_product, head_norms_backward, head_norms_forward, norm_backward,
    norm_before_backward, norm_before_forward, norm_forward, plainly, product_is_done, sum_norm_backward,
    sum_norm_forward,
};
use super::sizes::{HeadSizes, Sizes};
use crate::model::SegmentKind;

/// Bytes alive, and the most that were.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Walk {
    pub(super) live: u64,
    pub(super) peak: u64,
}

impl Walk {
    pub(super) fn take(&mut self, bytes: u64) {
        self.live += bytes;
        self.peak = self.peak.max(self.live);
    }

    pub(super) fn give(&mut self, bytes: u64) {
        self.live = self.live.saturating_sub(bytes);
    }

    /// Taken and given back at once.
    pub(super) fn pulse(&mut self, bytes: u64) {
        self.take(bytes);
        self.give(bytes);
    }
}

/// What a micro-batch needs beside state and buffers, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MicroBatchBytes {
    /// Kept between forward and backward.
    pub(super) activations: u64,
    /// At most beside that while the head and the loss run.
    pub(super) loss: u64,
    /// At most beside that while a segment's forward or backward runs.
    pub(super) temporary: u64,
}

/// Walks through one micro-batch. `recomputed` tells whether a segment, by its place after the embedding, keeps its input
/// alone (gradient checkpointing).
pub(super) fn micro_batch(
    sizes: &Sizes,
    segments: &[SegmentKind],
    recomputed: impl Fn(usize) -> bool,
) -> MicroBatchBytes {
    let hidden: Vec<SegmentKind> =
        segments.iter().copied().filter(|kind| !matches!(kind, SegmentKind::Embedding | SegmentKind::Head)).collect();
    let mut walk = Walk::default();
    // Ids, tables, and the embedding's output: the first segment's input.
    walk.take(sizes.ids + sizes.tables + sizes.hidden);
    for (index, &kind) in hidden.iter().enumerate() {
        match recomputed(index) {
            true => walk.take(sizes.hidden),
            false => forward(&mut walk, sizes, kind),
        }
    }
    let activations = walk.live;

    let mut head = Walk::default();
    head_and_loss(&mut head, sizes);

    // The gradient of the last output, which is itself dropped unless its graph holds it.
    walk.take(sizes.hidden);
    if !hidden.is_empty() && recomputed(hidden.len() - 1) {
        walk.give(sizes.hidden);
    }
    for (index, &kind) in hidden.iter().enumerate().rev() {
        if recomputed(index) {
            forward(&mut walk, sizes, kind);
        }
        backward(&mut walk, sizes, kind);
        // The output, which the graph held, goes; then the leaves' gradients, after they were added to the flat one.
        walk.give(sizes.hidden);
        add_leaf_gradients(&mut walk, sizes, kind);
        // The seed goes; so does the input, unless it is the output that the graph of the segment before holds.
        walk.give(sizes.hidden);
        if index == 0 || recomputed(index - 1) {
            walk.give(sizes.hidden);
        }
    }
    // The embedding's gradient is added row by row; libtorch's operation casts the seed first.
    walk.pulse(plainly(sizes, sizes.hidden32, 0));
    MicroBatchBytes { activations, loss: head.peak, temporary: walk.peak - activations }
}

/// One segment alone.
pub(super) fn segment_bytes(sizes: &Sizes, kind: SegmentKind) -> SegmentBytes {
    let mut walk = Walk::default();
    forward(&mut walk, sizes, kind);
    let saved = walk.live;
    walk.peak = saved;
    backward(&mut walk, sizes, kind);
    SegmentBytes { saved, peak: walk.peak }
}

/// Forward with a graph: leaves what autograd saved, and the output.
pub(super) fn forward(walk: &mut Walk, sizes: &Sizes, kind: SegmentKind) {
    match kind {
        SegmentKind::Block(_) => {
            attention_forward(walk, sizes);
            mlp_forward(walk, sizes);
        }
        SegmentKind::Attention(_) => attention_forward(walk, sizes),
        SegmentKind::Mlp(_) => mlp_forward(walk, sizes),
        SegmentKind::EmbeddingOutput => embedding_output_forward(walk, sizes),
        SegmentKind::Embedding | SegmentKind::Head => {}
    }
}

/// The norm of the embeddings, then dropout, which saves what it dropped and no more.
fn embedding_output_forward(walk: &mut Walk, sizes: &Sizes) {
    if sizes.does.embedding_norm {
        norm_forward(walk, sizes);
    }
    if sizes.embedding_dropped > 0 {
        walk.take(sizes.hidden + sizes.embedding_dropped);
        walk.give(if sizes.does.embedding_norm { sizes.hidden } else { 0 });
    }
}

/// Backward of [`embedding_output_forward`].
fn embedding_output_backward(walk: &mut Walk, sizes: &Sizes) {
    if sizes.embedding_dropped > 0 {
        // The product with a cast of what was dropped, then scaled into another.
        walk.take(sizes.hidden);
        walk.pulse(sizes.hidden);
        walk.give(sizes.embedding_dropped);
    }
    if sizes.does.embedding_norm {
        norm_backward(walk, sizes, Residual::Absent);
        walk.give(if sizes.embedding_dropped > 0 { sizes.hidden } else { 0 });
    }
}

/// Backward: frees what was saved; leaves the input's gradient, the leaves' gradients and the output.
pub(super) fn backward(walk: &mut Walk, sizes: &Sizes, kind: SegmentKind) {
    match kind {
        SegmentKind::Block(_) => {
            mlp_backward(walk, sizes);
            // The attention's output was saved by the second norm, or by the product after it.
            walk.give(sizes.hidden);
            attention_backward(walk, sizes, Residual::Owned);
        }
        SegmentKind::Attention(_) => attention_backward(walk, sizes, Residual::Callers),
        SegmentKind::Mlp(_) => mlp_backward(walk, sizes),
        SegmentKind::EmbeddingOutput => embedding_output_backward(walk, sizes),
        SegmentKind::Embedding | SegmentKind::Head => {}
    }
}

/// Gradients of the leaves go one by one into the flat gradient.
fn add_leaf_gradients(walk: &mut Walk, sizes: &Sizes, kind: SegmentKind) {
    let weights = &sizes.weights;
    let norms = if sizes.does.norm_after { 2 * weights.norm } else { weights.norm };
    let attention = weights.qkv + weights.output + weights.head_norms + norms;
    let mlp = weights.up + weights.down + norms;
    walk.give(match kind {
        SegmentKind::Block(_) => attention + mlp,
        SegmentKind::Attention(_) => attention,
        SegmentKind::Mlp(_) => mlp,
        SegmentKind::EmbeddingOutput if sizes.does.embedding_norm => weights.norm,
        SegmentKind::Embedding | SegmentKind::EmbeddingOutput | SegmentKind::Head => 0,
    });
}

/// Attention with its norm and residual; leaves what was saved, and the output.
fn attention_forward(walk: &mut Walk, sizes: &Sizes) {
    let (query, key) = (sizes.query, sizes.key);
    let projected = query + 2 * key;
    norm_before_forward(walk, sizes);
    walk.take(projected);
    head_norms_forward(walk, sizes);
    // Queries, keys and values are parted and turned; nothing needs the projection any more.
    walk.take(projected);
    walk.pulse(plainly(sizes, 3 * sizes.query32 + query, 2 * query));
    walk.give(projected);
    if sizes.products {
        // What is kept of caps.
        walk.take(if sizes.does.softcap { sizes.scores } else { 0 });
        // Scores, and the probabilities that are saved.
        walk.take(2 * sizes.scores);
        walk.give(sizes.scores);
        dropout_forward(walk, sizes);
        // The attended values, and those with their heads side by side.
        walk.take(2 * query);
        walk.give(query);
        walk.take(sizes.hidden);
    } else {
        // Key and value repeated for the query heads that share them; what is attended, and its log-sum-exp.
        walk.take(if sizes.copies { 2 * query } else { 0 });
        walk.take(query + sizes.log_sums);
        walk.pulse(sizes.block.forward);
        walk.take(sizes.hidden);
        walk.give(if sizes.copies { 2 * key } else { 0 });
    }
    // The output projection saves what documents attend to, put together; the fused kernel saves its parts.
    walk.take(joined(sizes));
    after_product(walk, sizes);
    sum_norm_forward(walk, sizes);
}

fn joined(sizes: &Sizes) -> u64 {
    if sizes.joins { sizes.query } else { 0 }
}

/// Dropout of the probabilities: leaves which were dropped, and what is left of them, both saved.
fn dropout_forward(walk: &mut Walk, sizes: &Sizes) {
    if sizes.dropped > 0 {
        walk.take(sizes.dropped);
        // The generator draws 32-bit numbers.
        walk.pulse(4 * sizes.dropped);
        // The product with a cast of what is dropped.
        walk.take(2 * sizes.scores);
        walk.give(sizes.scores);
    }
}

/// Backward of [`dropout_forward`]; enters without what was left of the probabilities, which their product no longer
/// needs.
fn dropout_backward(walk: &mut Walk, sizes: &Sizes) {
    if sizes.dropped > 0 {
        // The product with a cast of what was dropped, then scaled into another; then the gradient goes.
        walk.take(2 * sizes.scores);
        walk.give(sizes.scores);
        walk.pulse(sizes.scores);
        walk.give(sizes.scores + sizes.dropped);
    }
}

/// Backward of [`attention_forward`].
fn attention_backward(walk: &mut Walk, sizes: &Sizes, residual: Residual) {
    let (query, key) = (sizes.query, sizes.key);
    let projected = query + 2 * key;
    sum_norm_backward(walk, sizes, residual);
    before_product(walk, sizes);
    // The output projection: gradients of its weight and of what was attended.
    walk.take(sizes.weights.output + query);
    product_is_done(walk, sizes);
    walk.give(joined(sizes));
    if sizes.products {
        // The saved attended values go; the gradient is moved to one head under the other.
        walk.give(query);
        walk.take(query);
        walk.give(query);
        // Values and probabilities; the gradient of what was attended goes, and the saved values.
        walk.take(key + sizes.scores);
        walk.give(query + key + if sizes.dropped > 0 { sizes.scores } else { 0 });
        dropout_backward(walk, sizes);
        // Scores; the probabilities and their gradient go.
        walk.take(sizes.scores);
        walk.give(2 * sizes.scores);
        if sizes.does.softcap {
            // Through the product with the cap and through its tanh, which goes then.
            walk.take(2 * sizes.scores);
            walk.give(3 * sizes.scores);
        }
        // Query and key, each scaled into a copy; then the scores' gradient goes, and what was saved.
        walk.take(query);
        walk.pulse(query);
        walk.take(key);
        walk.pulse(key);
        walk.give(sizes.scores);
        walk.give(query + key);
        // The keys' gradient with its positions one after the other.
        walk.take(projected);
        walk.pulse(key);
    } else {
        // Query, key and value; then everything saved goes.
        let each = if sizes.repeats { query } else { key };
        walk.take(query + 2 * each);
        walk.pulse(sizes.block.backward);
        walk.give(query);
        walk.give(2 * query + 2 * if sizes.copies { query } else { key } + sizes.log_sums);
        // Gradients of repeated heads are summed.
        for _ in 0..if sizes.repeats { 2 } else { 0 } {
            walk.take(key);
            walk.give(query);
        }
        walk.take(projected);
    }
    // Through the turning.
    walk.pulse(plainly(sizes, 3 * sizes.query32 + query, 2 * query));
    walk.give(projected);
    head_norms_backward(walk, sizes);
    // The stacked projection: gradients of its weight and of the normed input, which goes.
    walk.take(sizes.weights.qkv + sizes.hidden);
    walk.give(projected + sizes.hidden);
    norm_before_backward(walk, sizes, residual);
}

/// The MLP with its norm and residual; leaves what was saved, and the output.
fn mlp_forward(walk: &mut Walk, sizes: &Sizes) {
    norm_before_forward(walk, sizes);
    // What goes up, with a gate or without, and what becomes of it: saved.
    walk.take(up(sizes) + sizes.inner);
    walk.take(sizes.hidden);
    after_product(walk, sizes);
    sum_norm_forward(walk, sizes);
}

/// Gate and up in one, or up alone.
fn up(sizes: &Sizes) -> u64 {
    if sizes.does.gate { 2 * sizes.inner } else { sizes.inner }
}

/// Backward of [`mlp_forward`].
fn mlp_backward(walk: &mut Walk, sizes: &Sizes) {
    let (inner, up) = (sizes.inner, up(sizes));
    sum_norm_backward(walk, sizes, Residual::Callers);
    before_product(walk, sizes);
    // The down projection: gradients of its weight and of what it was given, which goes.
    walk.take(sizes.weights.down + inner);
    product_is_done(walk, sizes);
    walk.give(inner);
    // Gradients of gate and up; their seed goes, and gate and up.
    walk.take(up);
    walk.pulse(plainly(sizes, inner, inner));
    walk.give(inner + up);
    walk.take(sizes.weights.up + sizes.hidden);
    walk.give(up + sizes.hidden);
    norm_before_backward(walk, sizes, Residual::Callers);
}

/// The final norm, the head and the loss over supervised tokens, with the hidden states' gradient at the end.
pub(super) fn head_and_loss(walk: &mut Walk, sizes: &Sizes) {
    let HeadSizes { hidden, hidden32, scalar, logits, logits32, weight } = sizes.head;
    let over_supervised = Sizes { hidden, hidden32, scalar, ..*sizes };
    // The supervised rows, normed; the gradient of the normed ones.
    walk.take(hidden);
    norm_forward(walk, &over_supervised);
    walk.take(hidden);
    // Logits, which their gradient replaces; libtorch's operations hold them in float32 twice. Beside them the slopes of their
    // caps, which take another copy while they are made.
    walk.take(logits);
    let slopes = if sizes.does.logit_softcap { logits } else { 0 };
    walk.take(slopes);
    walk.pulse(slopes);
    walk.pulse(plainly(sizes, 2 * logits32, logits32));
    // The gradient of the head.
    walk.give(slopes);
    walk.pulse(weight);
    walk.give(logits);
    // The gradient of all hidden states, zero where nothing is supervised; that of the rows through the norm.
    walk.take(sizes.hidden);
    norm_backward(walk, &over_supervised, Residual::Absent);
}

#[cfg(test)]
#[path = "activations_tests.rs"]
mod tests;
