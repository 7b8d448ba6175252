//! What freezing spares: backward ends at the lowest segment with something that is ever trained, and nothing below is kept.

use super::activations::{self, MicroBatchBytes};
use super::sizes::Sizes;
use super::{PlanInputs, recomputed};
use crate::model::{ModelUnits, Segment, SegmentKind};
use crate::spec::LeafSpec;

fn leaves<'a>(cut: &'a ModelUnits, segment: &Segment) -> &'a [LeafSpec] {
    &cut.units[segment.unit].leaves[segment.leaves.clone()]
}

/// The lowest segment of which something is ever trained: once all is open that opens.
pub(super) fn lowest_trained(cut: &ModelUnits) -> usize {
    let trained = |segment: &Segment| leaves(cut, segment).iter().any(|leaf| leaf.group.is_trained(u32::MAX));
    cut.segments.iter().position(trained).unwrap_or(cut.segments.len().saturating_sub(1))
}

/// What a micro-batch needs, once all is open that opens.
pub(super) fn micro_batch(inputs: &PlanInputs<'_>, cut: &ModelUnits) -> MicroBatchBytes {
    let lowest = lowest_trained(cut);
    let kinds: Vec<SegmentKind> = cut.segments[lowest..].iter().map(|segment| segment.kind).collect();
    let below: Vec<SegmentKind> = cut.segments[..lowest].iter().map(|segment| segment.kind).collect();
    let mut sizes = Sizes::of(inputs);
    let head = cut.segments.last().and_then(|segment| leaves(cut, segment).first());
    if head.is_some_and(|head| !head.group.is_trained(u32::MAX)) {
        // Its gradient is not made.
        sizes.head.weight = 0;
    }
    let hidden = kinds.iter().filter(|kind| !matches!(kind, SegmentKind::Embedding | SegmentKind::Head));
    let hidden: Vec<SegmentKind> = hidden.copied().collect();
    let of_blocks = |kinds: &[SegmentKind]| kinds.iter().filter(|kind| kind.is_of_block()).count();
    let first = of_blocks(&below);
    let mut bytes = activations::micro_batch(&sizes, &kinds, |index| {
        hidden[index].is_of_block() && recomputed(inputs, first + of_blocks(&hidden[..index]))
    });
    // Without a graph a forward holds no more than it leaves with one.
    let forward = below.iter().map(|&kind| activations::segment_bytes(&sizes, kind).saved).max().unwrap_or(0);
    bytes.temporary = bytes.temporary.max(forward);
    bytes
}
