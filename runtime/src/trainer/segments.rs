//! The segments of a model: when each unit is needed, and where backward ends.

use crate::shard::Unit;
use zerofold_plan::{Segment, SegmentKind};

/// The segments of a model, and when each unit is needed.
pub(super) struct Segments {
    pub(super) all: Vec<Segment>,
    /// The lowest segment of which something is trained: backward ends there.
    pub(super) lowest: usize,
    /// Each unit's first segment from there on; those of units below are in forward alone.
    pub(super) first: Vec<usize>,
    /// Each unit's last segment.
    pub(super) last: Vec<usize>,
}

impl Segments {
    /// The segments of a model with these units.
    pub(super) fn new(all: Vec<Segment>, units: &[Unit]) -> Self {
        let last = |unit: usize| all.iter().rposition(|segment| segment.unit == unit).unwrap_or(0);
        let last = (0..units.len()).map(last).collect();
        let mut segments = Segments { all, lowest: 0, first: Vec::new(), last };
        segments.look_again(units);
        segments
    }

    /// To be called when other parameters are trained than before.
    pub(super) fn look_again(&mut self, units: &[Unit]) {
        let trained = |segment: &Segment| segment.leaves.clone().any(|leaf| units[segment.unit].leaf_is_trained(leaf));
        let lowest = self.all.iter().position(trained).unwrap_or(self.all.len().saturating_sub(1));
        let first = |unit: usize| {
            let first = self.all[lowest..].iter().position(|segment| segment.unit == unit);
            first.map_or(self.last[unit], |first| lowest + first)
        };
        self.first = (0..units.len()).map(first).collect();
        self.lowest = lowest;
    }

    /// Whether segment `index` is one in `every` of the blocks or their halves, the first included.
    pub(super) fn is_every(&self, index: usize, every: usize) -> bool {
        let before = self.all[..index].iter().filter(|segment| segment.kind.is_of_block()).count();
        self.all[index].kind.is_of_block() && before.is_multiple_of(every)
    }

    /// The unit that forward needs after the one of segment `index`.
    pub(super) fn next_unit(&self, index: usize) -> Option<usize> {
        let unit = self.all[index].unit;
        self.all[index..].iter().map(|segment| segment.unit).find(|&next| next != unit)
    }

    /// The unit whose parameters backward needs after the one of segment `index`. An embedding's gradient needs none, and what
    /// lies below everything trained has none.
    pub(super) fn previous_unit(&self, index: usize) -> Option<usize> {
        let unit = self.all[index].unit;
        let before = self.all[self.lowest.min(index)..index]
            .iter()
            .rev()
            .filter(|segment| segment.kind != SegmentKind::Embedding);
        before.map(|segment| segment.unit).find(|&previous| previous != unit)
    }

    /// The unit's leaves in the order in which backward makes their gradients.
    pub(super) fn backward_order(&self, unit: usize) -> Vec<usize> {
        let segments = self.all.iter().rev().filter(|segment| segment.unit == unit);
        let leaves = segments.flat_map(|segment| {
            let places = segment.kind.backward_order(segment.leaves.len()).into_iter();
            places.map(|place| segment.leaves.start + place)
        });
        leaves.collect()
    }
}
