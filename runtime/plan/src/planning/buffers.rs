//! The buffers that units share: where parameters are gathered, gradients put together, and reductions received.

use crate::layout::{Layout, UnitLayout};
use zerofold_configs::{ElementTypes, ReshardAfterForward, Sharding, Stage};

/// Buffers that units which come and go share; also how many reductions are under way at once.
pub(super) const PASSING: usize = 2;
/// Reductions are summed in float32.
const SUM_BYTES: usize = 4;

/// Bytes of gather buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct GatherBytes {
    /// Of units that come and go.
    pub(super) passing: u64,
    /// Of the unit that stays gathered.
    pub(super) staying: u64,
}

fn passing(layout: &Layout) -> impl Iterator<Item = &UnitLayout> + Clone {
    layout.units.iter().filter(|unit| !unit.stays_gathered)
}

/// Elements of the buffers that such units share: as many as there are units, at most [`PASSING`], each as long as the longest.
fn shared_elements<'a>(units: impl Iterator<Item = &'a UnitLayout> + Clone) -> usize {
    let longest = units.clone().map(|unit| unit.numel).max().unwrap_or(0);
    PASSING.min(units.count()) * longest
}

fn staying(layout: &Layout) -> impl Iterator<Item = &UnitLayout> {
    layout.units.iter().filter(|unit| unit.stays_gathered)
}

/// Whether anything of a unit is trained at any time, so that it is reduced.
pub(super) fn is_reduced(unit: &&UnitLayout) -> bool {
    unit.trained_numel(u32::MAX) > 0
}

/// Where full parameters exist at stage 3, in the compute type.
pub(super) fn gather_buffers(layout: &Layout, sharding: &Sharding, types: &ElementTypes) -> GatherBytes {
    if !sharding.stage.shards_parameters() {
        return GatherBytes::default();
    }
    let elements = match sharding.reshard_after_forward {
        ReshardAfterForward::Always(true) => shared_elements(passing(layout)),
        // Every unit has a buffer of its own.
        ReshardAfterForward::Always(false) => passing(layout).map(|unit| unit.numel).sum(),
        // Beside the shared ones, what each unit keeps as a shard of a small group.
        ReshardAfterForward::Group(ranks) => {
            let kept: usize = layout.units.iter().map(|unit| unit.numel / (ranks as usize).max(1)).sum();
            shared_elements(passing(layout)) + kept
        }
    };
    let bytes = types.compute.bytes();
    let staying: usize = staying(layout).map(|unit| unit.numel).sum();
    GatherBytes { passing: (bytes * elements) as u64, staying: (bytes * staying) as u64 }
}

/// Where full gradients exist at stages 2 and 3 until they are reduced, in the type of accumulation.
pub(super) fn gradient_buffers(layout: &Layout, stage: Stage, types: &ElementTypes) -> u64 {
    if !stage.shards_gradients() {
        return 0;
    }
    let staying: usize = staying(layout).filter(is_reduced).map(|unit| unit.numel).sum();
    (types.accumulate.bytes() * (shared_elements(passing(layout).filter(is_reduced)) + staying)) as u64
}

/// Bytes that reductions need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ReduceBytes {
    /// Where the other ranks' parts are received; stays for the next ones.
    pub(super) receive: u64,
    /// While they are under way: casts of what is sent, and float32 sums.
    pub(super) under_way: u64,
    /// The same of the unit that a micro-batch reduces last: still under way when the next one computes its loss.
    pub(super) last: u64,
}

/// A reduce-scatter among S ranks receives (S − 1)/S of the unit in the reduce type. At most [`PASSING`] are under way;
/// the space of a finished one serves the next that it is large enough for, unless it is much larger; one
/// that is a little too small gives way to a larger (`Link::take_space` in
/// runtime/src/comm/gloo.rs).
pub(super) fn reduce_buffers(layout: &Layout, types: &ElementTypes) -> ReduceBytes {
    let (shards, replicas, wire) = (layout.mesh.shards, layout.mesh.replicas, types.reduce.bytes());
    let received = |numel: usize, ranks: usize, bytes: usize| numel / ranks * (ranks - 1) * bytes;
    // Backward reduces from the last unit to the first, the one that stays gathered last of all.
    let mut order: Vec<&UnitLayout> = layout.units.iter().rev().filter(is_reduced).collect();
    order.sort_by_key(|unit| unit.stays_gathered);
    let mut spaces = Spaces::default();
    for unit in &order {
        spaces.reduce(received(unit.numel, shards, wire));
    }
    // Copies add up their shards when the window ends.
    for unit in order.iter().filter(|_| replicas > 1) {
        spaces.reduce(received(unit.shard_numel, replicas, types.accumulate.bytes()));
    }
    // What is float32 throughout is sent and summed where it lies (`wire` in runtime/src/shard/reduce.rs).
    let float32 = types.reduce.bytes() == SUM_BYTES && types.accumulate.bytes() == SUM_BYTES;
    let casts = types.reduce != types.accumulate;
    let of_unit = |unit: &&UnitLayout| SUM_BYTES * unit.shard_numel + if casts { wire * unit.numel } else { 0 };
    let together = order.windows(PASSING.min(order.len()).max(1)).map(|units| units.iter().map(of_unit).sum());
    let under_way: usize = if float32 || shards == 1 { 0 } else { together.max().unwrap_or(0) };
    // A unit whose gradient begins with the loss is waited for first: one that stays gathered, or the only one.
    let begins = |unit: &&&UnitLayout| unit.stays_gathered || order.len() == 1;
    let last = order.last().filter(|unit| under_way > 0 && !begins(unit)).map_or(0, of_unit);
    ReduceBytes { receive: spaces.total() as u64, under_way: under_way as u64, last: last as u64 }
}

/// The spaces that reductions receive into, by their bytes.
#[derive(Default)]
struct Spaces {
    spare: Vec<usize>,
    under_way: Vec<usize>,
}

impl Spaces {
    fn reduce(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if self.under_way.len() == PASSING {
            let oldest = self.under_way.remove(0);
            self.spare.push(oldest);
        }
        let between = |least: usize, most: usize| move |space: &usize| (least..=most).contains(space);
        let found = self.spare.iter().position(between(bytes, 2 * bytes));
        let smaller = || self.spare.iter().position(between(bytes / 2, bytes));
        if let Some(index) = found.or_else(smaller) {
            self.under_way.push(self.spare.swap_remove(index).max(bytes));
        } else {
            self.under_way.push(bytes);
        }
    }

    fn total(&self) -> usize {
        self.spare.iter().chain(&self.under_way).sum()
    }
}
