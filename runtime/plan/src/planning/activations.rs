//! What forward and backward of one micro-batch need, walked through tensor by tensor.
//!
//! **This is the file to calibrate.** Each `take` is a tensor that libtorch allocates, each `give` one that is freed, in
//! the order in which `runtime/src/model/{llama,attention,rope}.rs`, `runtime/src/trainer/loss.rs` and autograd do it. The
//! orders were read off PyTorch 2.13's memory events for the same operations, and the tests below hold the numbers. Not
//! counted: scratch of the matrix kernels (some hundred KiB per thread).

use super::sizes::{HeadSizes, Sizes};
use crate::model::SegmentKind;

/// Bytes alive, and the most that were.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Walk {
    pub(super) live: u64,
    pub(super) peak: u64,
}

impl Walk {
    fn take(&mut self, bytes: u64) {
        self.live += bytes;
        self.peak = self.peak.max(self.live);
    }

    fn give(&mut self, bytes: u64) {
        self.live = self.live.saturating_sub(bytes);
    }

    /// Taken and given back at once.
    fn pulse(&mut self, bytes: u64) {
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
    // The embedding's gradient is added row by row: a cast of the seed.
    if sizes.casts_gradients {
        walk.pulse(sizes.hidden32);
    }
    MicroBatchBytes { activations, loss: head.peak, temporary: walk.peak - activations }
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
        SegmentKind::Embedding | SegmentKind::Head => {}
    }
}

/// Backward: frees what was saved; leaves the input's gradient, the leaves' gradients and the output.
pub(super) fn backward(walk: &mut Walk, sizes: &Sizes, kind: SegmentKind) {
    match kind {
        SegmentKind::Block(_) => {
            mlp_backward(walk, sizes);
            // The attention's output was saved by the second norm.
            walk.give(sizes.hidden);
            attention_backward(walk, sizes, Residual::Owned);
        }
        SegmentKind::Attention(_) => attention_backward(walk, sizes, Residual::Callers),
        SegmentKind::Mlp(_) => mlp_backward(walk, sizes),
        SegmentKind::Embedding | SegmentKind::Head => {}
    }
}

/// Gradients of the leaves go one by one into the flat gradient, which is float32 where the types differ: libtorch makes
/// a cast of the whole leaf.
fn add_leaf_gradients(walk: &mut Walk, sizes: &Sizes, kind: SegmentKind) {
    let weights = &sizes.weights;
    let attention = [weights.qkv, weights.output, weights.norm];
    let mlp = [weights.gate_up, weights.down, weights.norm];
    let leaves = match kind {
        SegmentKind::Block(_) => [attention, mlp].concat(),
        SegmentKind::Attention(_) => attention.to_vec(),
        SegmentKind::Mlp(_) => mlp.to_vec(),
        SegmentKind::Embedding | SegmentKind::Head => Vec::new(),
    };
    for leaf in leaves {
        if sizes.casts_gradients {
            walk.pulse(2 * leaf);
        }
        walk.give(leaf);
    }
}

/// The RMSNorm before a product. Saved: one or two numbers per token, the normalised input, the normed input. (Its own
/// input is saved too, but that is kept anyway.)
fn norm_forward(walk: &mut Walk, sizes: &Sizes) {
    if sizes.is_16_bit {
        // The vector norm, and 1 / sqrt of the mean square.
        walk.take(2 * sizes.scalar);
        // The input in float32, its product, the cast, times the weight; the float32 ones go at the statement's end.
        walk.take(2 * sizes.hidden32);
        walk.give(sizes.hidden32);
        walk.take(2 * sizes.hidden);
        walk.give(sizes.hidden32);
    } else {
        // The square, whose mean is one number per token.
        walk.pulse(sizes.hidden);
        walk.take(sizes.scalar);
        walk.take(2 * sizes.hidden);
    }
}

/// What else leads to the input of a norm.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Residual {
    /// A residual whose gradient autograd owns: it adds to it in place.
    Owned,
    /// A residual whose gradient the caller holds.
    Callers,
    /// Nothing; and the caller holds the normed input and its gradient.
    Absent,
}

/// Backward of the norm; enters with the gradient of the normed input, leaves with that of the input.
fn norm_backward(walk: &mut Walk, sizes: &Sizes, residual: Residual) {
    let hidden = sizes.hidden;
    // Gradients of the normalised input and, before it is summed, of the weight; then the saved one and the seed go.
    walk.take(2 * hidden + sizes.weights.norm);
    walk.give(if residual == Residual::Absent { 2 * hidden } else { 3 * hidden });
    if sizes.is_16_bit {
        let hidden32 = sizes.hidden32;
        // The seed in float32, the input in float32, the gradient of the scale before it is summed; the input's cast.
        walk.take(hidden32);
        walk.give(hidden);
        walk.take(2 * hidden32);
        walk.take(hidden);
        walk.give(3 * hidden32);
        walk.give(2 * sizes.scalar);
    } else {
        // Gradients of the input, and of the scale before it is summed.
        walk.take(2 * hidden);
        walk.give(2 * hidden);
        walk.give(sizes.scalar);
    }
    // The residual's gradient is added.
    match residual {
        Residual::Owned => walk.give(hidden),
        Residual::Callers => walk.pulse(hidden),
        Residual::Absent => {}
    }
    // The way through the mean square.
    walk.pulse(if sizes.is_16_bit { 2 * sizes.hidden32 } else { 4 * hidden });
}

/// Attention with its norm and residual; leaves what was saved, and the output.
fn attention_forward(walk: &mut Walk, sizes: &Sizes) {
    let (query, key) = (sizes.query, sizes.key);
    let (turned, projected) = (query + key, query + 2 * key);
    norm_forward(walk, sizes);
    walk.take(projected);
    // Queries and keys are turned: rolled, times the cosines, the rolled times the sines; the sum is in place.
    walk.take(3 * turned);
    walk.give(2 * turned);
    if sizes.products {
        let saved = saved_by_products(sizes);
        walk.take(saved.copied);
        // Scores, and the probabilities that are saved.
        walk.take(2 * sizes.scores);
        walk.give(sizes.scores);
        dropout_forward(walk, sizes);
        // The attended values, and those with their heads side by side.
        walk.take(2 * query);
        walk.give(query);
        // The output while the function still holds its views of everything.
        walk.take(sizes.hidden);
        walk.give(turned + projected - saved.turned - saved.projected);
    } else {
        // Key and value repeated for the query heads that share them; what is attended, and its log-sum-exp.
        walk.take(if sizes.grouped { 2 * query } else { 0 });
        walk.take(query + sizes.log_sums);
        walk.take(sizes.hidden);
        // Repeated values no longer need the projection; a view of it does.
        walk.give(if sizes.grouped { projected } else { 0 });
    }
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

/// What attention by products saves of query, key and value.
struct SavedByProducts {
    /// Bytes that are copied.
    copied: u64,
    /// Bytes of the turned heads that views keep.
    turned: u64,
    /// Bytes of the projection that views keep.
    projected: u64,
}

fn saved_by_products(sizes: &Sizes) -> SavedByProducts {
    let (query, key) = (sizes.query, sizes.key);
    match sizes.views_merge {
        false => SavedByProducts { copied: query + 2 * key, turned: 0, projected: 0 },
        // Keys are a view of the turned heads, values of the projection; queries too, unless they are grouped.
        true => SavedByProducts {
            copied: if sizes.grouped { query } else { 0 },
            turned: query + key,
            projected: query + 2 * key,
        },
    }
}

/// Backward of [`attention_forward`].
fn attention_backward(walk: &mut Walk, sizes: &Sizes, residual: Residual) {
    let (query, key) = (sizes.query, sizes.key);
    let (turned, projected) = (query + key, query + 2 * key);
    // The output projection: gradients of its weight and of what was attended.
    walk.take(sizes.weights.output + query);
    if sizes.products {
        // The saved attended values go; the gradient is moved to one head under the other.
        walk.give(query);
        walk.take(query);
        walk.give(query);
        let saved = saved_by_products(sizes);
        // Values and probabilities; the gradient of what was attended goes, and the saved values.
        walk.take(key + sizes.scores);
        let values = if sizes.views_merge { saved.projected } else { key };
        walk.give(query + values + if sizes.dropped > 0 { sizes.scores } else { 0 });
        dropout_backward(walk, sizes);
        // Scores; the probabilities and their gradient go.
        walk.take(sizes.scores);
        walk.give(2 * sizes.scores);
        // Query and key, each scaled into a copy; the scores' gradient goes, and what was saved.
        walk.take(query);
        walk.pulse(query);
        walk.take(key);
        walk.pulse(key);
        walk.give(sizes.scores + saved.copied + saved.turned + saved.projected - values);
    } else {
        // Query, key and value; then everything saved goes.
        walk.take(3 * query);
        walk.give(query);
        let kept_values = if sizes.grouped { 2 * query } else { projected };
        walk.give(query + turned + kept_values + sizes.log_sums);
        // Gradients of repeated heads are summed.
        for _ in 0..if sizes.grouped { 2 } else { 0 } {
            walk.take(key);
            walk.give(query);
        }
    }
    // Query and key side by side.
    walk.take(turned);
    walk.give(query + key);
    // Through the turning: times the cosines, times the sines, rolled back; then beside the values.
    walk.take(2 * turned);
    walk.give(turned);
    walk.take(turned);
    walk.give(2 * turned);
    walk.take(projected);
    walk.give(turned + key);
    // The stacked projection: gradients of its weight and of the normed input, which goes.
    walk.take(sizes.weights.qkv + sizes.hidden);
    walk.give(projected + sizes.hidden);
    norm_backward(walk, sizes, residual);
}

/// The gated MLP with its norm and residual; leaves what was saved, and the output.
fn mlp_forward(walk: &mut Walk, sizes: &Sizes) {
    norm_forward(walk, sizes);
    // Gate and up in one; silu of the gate; times up: all saved.
    walk.take(4 * sizes.inner);
    walk.take(sizes.hidden);
}

/// Backward of [`mlp_forward`].
fn mlp_backward(walk: &mut Walk, sizes: &Sizes) {
    let inner = sizes.inner;
    // The down projection: gradients of its weight and of the gated, which goes.
    walk.take(sizes.weights.down + inner);
    walk.give(inner);
    // Gradients of silu and of up; silu goes, and the seed.
    walk.take(2 * inner);
    walk.give(2 * inner);
    // The gate's; its seed goes, and gate and up.
    walk.take(inner);
    walk.give(3 * inner);
    // Both side by side.
    walk.take(2 * inner);
    walk.give(2 * inner);
    walk.take(sizes.weights.gate_up + sizes.hidden);
    walk.give(2 * inner + sizes.hidden);
    norm_backward(walk, sizes, Residual::Callers);
}

/// The final norm, the head and the loss over supervised tokens, with the hidden states' gradient at the end.
pub(super) fn head_and_loss(walk: &mut Walk, sizes: &Sizes) {
    let HeadSizes { hidden, hidden32, scalar, logits, logits32, weight } = sizes.head;
    let over_supervised = Sizes { hidden, hidden32, scalar, ..*sizes };
    // The supervised rows, normed; the gradient of the normed ones.
    walk.take(hidden);
    norm_forward(walk, &over_supervised);
    walk.take(hidden);
    // Logits, and in float32; log-sum-exp takes another of them.
    if sizes.is_16_bit {
        walk.take(logits + logits32);
        walk.give(logits);
    } else {
        walk.take(logits32);
    }
    walk.pulse(logits32);
    // The logits' gradient in the compute type; the head's gradient in that type, and its cast.
    walk.take(if sizes.is_16_bit { logits } else { 0 });
    walk.take(weight);
    walk.pulse(if sizes.casts_gradients { 2 * weight } else { 0 });
    walk.give(weight + logits32 + if sizes.is_16_bit { logits } else { 0 });
    // The gradient of all hidden states, zero where nothing is supervised; that of the rows through the norm.
    walk.take(sizes.hidden);
    norm_backward(walk, &over_supervised, Residual::Absent);
}

#[cfg(test)]
#[path = "activations_tests.rs"]
mod tests;
