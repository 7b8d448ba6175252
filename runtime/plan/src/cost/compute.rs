//! How long segments compute: matrix products, attention, and passes over memory.

use super::{Assumptions, CostInputs};
use crate::model::SegmentKind;
use crate::planning::recomputed;
use serde::Serialize;
use std::ops::{Add, Mul};

/// Seconds of computing, by what they go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Compute {
    /// Matrix products.
    pub products: f64,
    /// Attention's two products and its softmax, fused.
    pub attention: f64,
    /// What reads and writes memory and computes little: norms, rotary embedding, SwiGLU, residuals, loss, gradients.
    pub passes: f64,
    /// What the starts of kernels take beyond all that, where they are too small.
    pub starts: f64,
}

impl Compute {
    /// All of it.
    pub fn seconds(&self) -> f64 {
        self.products + self.attention + self.passes + self.starts
    }

    /// The same, for at least so long.
    fn at_least(self, seconds: f64) -> Compute {
        Compute { starts: self.starts + (seconds - self.seconds()).max(0.0), ..self }
    }
}

impl Add for Compute {
    type Output = Compute;

    fn add(self, other: Compute) -> Compute {
        Compute {
            products: self.products + other.products,
            attention: self.attention + other.attention,
            passes: self.passes + other.passes,
            starts: self.starts + other.starts,
        }
    }
}

impl Mul<f64> for Compute {
    type Output = Compute;

    fn mul(self, factor: f64) -> Compute {
        Compute {
            products: self.products * factor,
            attention: self.attention * factor,
            passes: self.passes * factor,
            starts: self.starts * factor,
        }
    }
}

impl std::iter::Sum for Compute {
    fn sum<I: Iterator<Item = Compute>>(parts: I) -> Compute {
        parts.fold(Compute::default(), Add::add)
    }
}

/// How much of a segment's forward is computed a second time in backward, where it is recomputed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recomputed {
    /// Share of its matrix products.
    pub products: f64,
    /// Share of its attention.
    pub attention: f64,
    /// Share of its passes over memory.
    pub passes: f64,
}

impl Recomputed {
    /// Everything.
    pub const ALL: Recomputed = Recomputed { products: 1.0, attention: 1.0, passes: 1.0 };

    fn of(self, forward: Compute) -> Compute {
        Compute {
            products: self.products * forward.products,
            attention: self.attention * forward.attention,
            passes: self.passes * forward.passes,
            starts: 0.0,
        }
    }
}

/// A segment of one micro-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct SegmentTime {
    pub(super) forward: Compute,
    /// With what is recomputed, and with the adding of gradients.
    pub(super) backward: Compute,
}

/// Every segment, in the order of forward; `leaves` are the elements of each.
pub(super) fn segment_times(
    inputs: &CostInputs<'_>,
    assumed: &Assumptions,
    segments: &[(SegmentKind, usize)],
) -> Vec<SegmentTime> {
    let efficiency = assumed.compute_efficiency;
    let mut place = 0;
    let mut time = |&(kind, leaves): &(SegmentKind, usize)| {
        let blocks = share_of_block(kind);
        let again = blocks > 0.0 && recomputed(&inputs.job, place);
        place += usize::from(blocks > 0.0);
        let forward = forward(inputs, assumed, kind);
        // A product's backward is two of its size.
        let mut backward = Compute {
            products: 2.0 * forward.products,
            attention: assumed.backward_attention * forward.attention,
            passes: assumed.backward_passes * forward.passes,
            starts: 0.0,
        };
        if kind == SegmentKind::Head {
            // The loss is counted both ways at once.
            backward.passes = 0.0;
        }
        if again {
            backward = backward + inputs.recomputed.of(forward);
        }
        backward.passes += assumed.pass(gradient_bytes(inputs) * leaves as f64);
        let starts = blocks * assumed.kernels_per_block * assumed.kernel_seconds;
        SegmentTime {
            forward: (forward * (1.0 / efficiency)).at_least(starts),
            backward: (backward * (1.0 / efficiency)).at_least(starts * if again { 3.0 } else { 2.0 }),
        }
    };
    segments.iter().map(&mut time).collect()
}

/// How much of a decoder block a segment is.
fn share_of_block(kind: SegmentKind) -> f64 {
    match kind {
        SegmentKind::Block(_) => 1.0,
        SegmentKind::Attention(_) | SegmentKind::Mlp(_) => 0.5,
        SegmentKind::Embedding | SegmentKind::EmbeddingOutput | SegmentKind::Head => 0.0,
    }
}

/// Read and written for each element of a gradient when a micro-batch adds its own to the flat one.
fn gradient_bytes(inputs: &CostInputs<'_>) -> f64 {
    (inputs.job.types.compute.bytes() + 2 * inputs.job.types.accumulate.bytes()) as f64
}

fn forward(inputs: &CostInputs<'_>, assumed: &Assumptions, kind: SegmentKind) -> Compute {
    let (job, model) = (&inputs.job, inputs.job.model);
    let tokens = job.per_device_batch as f64 * inputs.length as f64;
    let [hidden, inner] = [model.hidden_size, model.intermediate_size].map(|it| it as f64);
    let [query, key] = [model.num_attention_heads, model.num_key_value_heads].map(|it| (it * model.head_dim) as f64);
    let products = |weights: f64| 2.0 * weights * tokens / (assumed.peak_flops * assumed.product_efficiency);
    let attention = |layer: usize| Compute {
        products: products(hidden * (query + 2.0 * key) + query * hidden),
        // Scores, and what is attended: of what is seen.
        attention: 4.0 * query * model.positions_seen(layer, inputs.length) * job.per_device_batch as f64
            / (assumed.peak_flops * assumed.attention_efficiency),
        // A block has two norms and two residuals: one of each is here.
        passes: assumed.pass(tokens * (assumed.hidden_bytes / 2.0 * hidden + assumed.rotary_bytes * (query + key))),
        starts: 0.0,
    };
    let mlp = || Compute {
        products: products(model.mlp_weights() as f64),
        passes: assumed.pass(tokens * (assumed.hidden_bytes / 2.0 * hidden + assumed.swiglu_bytes * inner)),
        ..Compute::default()
    };
    match kind {
        SegmentKind::Block(layer) => attention(layer) + mlp(),
        SegmentKind::Attention(layer) => attention(layer),
        SegmentKind::Mlp(_) => mlp(),
        SegmentKind::EmbeddingOutput => Compute {
            passes: assumed.pass(2.0 * tokens * hidden * job.types.compute.bytes() as f64),
            ..Compute::default()
        },
        SegmentKind::Embedding => Compute::default(),
        SegmentKind::Head => {
            let asked = job.supervised.map_or(tokens, |supervised| supervised as f64);
            let logits = model.vocab_size as f64 * asked;
            Compute {
                products: 2.0 * hidden * logits / (assumed.peak_flops * assumed.product_efficiency),
                passes: assumed.pass(assumed.logit_bytes * logits),
                ..Compute::default()
            }
        }
    }
}
