//! What norms need, and what stands at the ends of a half: dropout and the residual. Part of [`super::activations`], and to be calibrated
//! with it.

use super::activations::Walk;
use super::sizes::Sizes;

/// What libtorch's operations hold in between, where they are taken: in a 16-bit type with casts to float32, in float32
/// without.
pub(super) fn plainly(sizes: &Sizes, in_16_bit: u64, in_float32: u64) -> u64 {
    match (sizes.plain, sizes.is_16_bit) {
        (false, _) => 0,
        (true, true) => in_16_bit,
        (true, false) => in_float32,
    }
}

/// The norm before a product. Saved: a number or two per token, and by the product the normed input. (Its own input is saved
/// too, but that is kept anyway.)
pub(super) fn norm_forward(walk: &mut Walk, sizes: &Sizes) {
    walk.take(sizes.hidden + norm_keeps(sizes));
    if !sizes.does.layer_norm {
        // The square of the input; or the input in float32, and its product with the scales.
        walk.pulse(plainly(sizes, 2 * sizes.hidden32, sizes.hidden32));
    }
}

/// The norm before a half, in models that have it there.
pub(super) fn norm_before_forward(walk: &mut Walk, sizes: &Sizes) {
    if !sizes.does.norm_of_sum {
        norm_forward(walk, sizes);
    }
}

/// Backward of [`norm_before_forward`]. Without it the gradient of the product's input is added to the residual's in place.
pub(super) fn norm_before_backward(walk: &mut Walk, sizes: &Sizes, residual: Residual) {
    if !sizes.does.norm_of_sum {
        norm_backward(walk, sizes, residual);
    }
}

/// What a norm keeps beside its input. On a CPU libtorch keeps LayerNorm's two numbers in the type of its input.
fn norm_keeps(sizes: &Sizes) -> u64 {
    match (sizes.does.layer_norm, sizes.is_16_bit && !sizes.plain) {
        (true, false) => 2 * sizes.scalar,
        (true, true) | (false, _) => sizes.scalar,
    }
}

/// What else leads to the input of a norm.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Residual {
    /// A residual whose gradient autograd owns: it adds to it in place.
    Owned,
    /// A residual whose gradient the caller holds.
    Callers,
    /// Nothing; and the caller holds the normed input and its gradient.
    Absent,
}

/// Backward of the norm; enters with the gradient of the normed input, leaves with that of the input.
pub(super) fn norm_backward(walk: &mut Walk, sizes: &Sizes, residual: Residual) {
    let hidden = sizes.hidden;
    if !sizes.does.layer_norm {
        // The normalised input, a product of it, and the gradient in float32, which under float32 becomes the result.
        walk.pulse(plainly(sizes, sizes.weights.norm + 3 * sizes.hidden32, sizes.weights.norm + 3 * sizes.hidden32));
    }
    walk.take(hidden + sizes.weights.norm);
    if residual != Residual::Absent {
        walk.give(hidden);
    }
    walk.give(norm_keeps(sizes));
    // The residual's gradient is added.
    match residual {
        Residual::Owned => walk.give(hidden),
        Residual::Callers => walk.pulse(hidden),
        Residual::Absent => {}
    }
}

/// The norm of what a half makes and the residual, which saves its input.
pub(super) fn sum_norm_forward(walk: &mut Walk, sizes: &Sizes) {
    if sizes.does.norm_of_sum {
        norm_forward(walk, sizes);
    }
}

/// Backward of [`sum_norm_forward`]; enters with the gradient of the output, which autograd owns or the caller holds, leaves with
/// that of the sum.
pub(super) fn sum_norm_backward(walk: &mut Walk, sizes: &Sizes, output: Residual) {
    if sizes.does.norm_of_sum {
        norm_backward(walk, sizes, Residual::Absent);
        // What was normed; then the output's gradient.
        walk.give(sizes.hidden);
        walk.give(if output == Residual::Owned { sizes.hidden } else { 0 });
    }
}

/// What follows the last product of a half, until the residual is added in place: a norm, which saves its input, or dropout,
/// which saves what it dropped.
pub(super) fn after_product(walk: &mut Walk, sizes: &Sizes) {
    if sizes.does.norm_after {
        norm_forward(walk, sizes);
    }
    if sizes.hidden_dropped > 0 {
        walk.take(sizes.hidden + sizes.hidden_dropped);
        walk.give(sizes.hidden);
    }
}

/// Backward of [`after_product`]: leaves the gradient of the product, if it is another than that of the output.
pub(super) fn before_product(walk: &mut Walk, sizes: &Sizes) {
    if sizes.hidden_dropped > 0 {
        walk.take(sizes.hidden);
        walk.give(sizes.hidden_dropped);
    }
    if sizes.does.norm_after {
        norm_backward(walk, sizes, Residual::Absent);
        // What was normed.
        walk.give(sizes.hidden);
    }
}

/// The gradient that [`before_product`] left goes with the product's backward.
pub(super) fn product_is_done(walk: &mut Walk, sizes: &Sizes) {
    if sizes.hidden_dropped > 0 || sizes.does.norm_after {
        walk.give(sizes.hidden);
    }
}

/// Norms of queries and keys, which save copies of them; they take the place of what was projected.
pub(super) fn head_norms_forward(walk: &mut Walk, sizes: &Sizes) {
    if sizes.does.query_key_norm {
        let (query, key) = (sizes.query, sizes.key);
        walk.take(2 * (query + key) + sizes.head_scalars);
        walk.take(query + 2 * key);
        walk.give(query + key + query + 2 * key);
    }
}

/// Backward of [`head_norms_forward`]: enters and leaves with the gradient of what was projected.
pub(super) fn head_norms_backward(walk: &mut Walk, sizes: &Sizes) {
    if sizes.does.query_key_norm {
        let (query, key) = (sizes.query, sizes.key);
        let projected = query + 2 * key;
        // Each part's gradient stands in a tensor of all three, which are added up.
        walk.take(projected + query + key);
        walk.pulse(projected);
        walk.give(projected + query + key);
        walk.give(query + key + sizes.head_scalars);
        walk.take(sizes.weights.head_norms);
    }
}
