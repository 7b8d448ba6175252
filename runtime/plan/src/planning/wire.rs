//! Bytes that one rank sends in one optimizer step.
//!
//! Gathers and reduce-scatters among S ranks send (S − 1)/S of the unit (ring or pairwise exchange alike); gathers in the
//! compute type, reductions in the reduce type. P elements, A micro-batches:
//!
//! | stage | reduced | gathered |
//! | --- | --- | --- |
//! | 0 | P once | P once, gradients in the accumulation type; with mixout P more, parameters |
//! | 1 | P once | P once |
//! | 2 | A × P | P once |
//! | 3 | A × P | up to 2 A × P: what lies in a buffer from its last use is not gathered again |
//! | frozen | nothing | at stage 3 in forward, and in backward above the lowest segment that is trained |
//! | copies | as above within a copy | and all-reduced gradient shards across copies once |

use super::PlanInputs;
use super::buffers::{PASSING, is_reduced};
use super::frozen::lowest_trained;
use crate::layout::Layout;
use crate::model::{ModelUnits, SegmentKind};
use zerofold_configs::{ReshardAfterForward, Stage, Training};

/// Bytes sent per optimizer step. Counts and norms (some bytes) are left out.
pub(super) fn sent_bytes(inputs: &PlanInputs<'_>, cut: &ModelUnits, layout: &Layout) -> u64 {
    let (types, stage, accumulation) = (&inputs.types, inputs.sharding.stage, inputs.accumulation as u64);
    let (shards, replicas) = (layout.mesh.shards as u64, layout.mesh.replicas as u64);
    let elements = layout.units.iter().filter(is_reduced).map(|unit| unit.numel as u64).sum::<u64>();
    // Every unit is a multiple of the ranks, so these divisions are exact.
    let among = |elements: u64, ranks: u64| elements / ranks * (ranks - 1);
    let (compute, reduce) = (types.compute.bytes() as u64, types.reduce.bytes() as u64);
    let reduced = among(elements, shards) * reduce;
    let within = match stage {
        Stage::Zero => {
            let mixed = if inputs.training.is_some_and(Training::mixes) { compute } else { 0 };
            reduced + among(elements, shards) * (types.accumulate.bytes() as u64 + mixed)
        }
        Stage::One => reduced + among(elements, shards) * compute,
        Stage::Two => accumulation * reduced + among(elements, shards) * compute,
        Stage::Three => {
            let gathered = gathers(inputs, cut, layout);
            let full = among(gathered.all, shards) * compute;
            let group = match inputs.sharding.reshard_after_forward {
                ReshardAfterForward::Group(ranks) => among(gathered.group, u64::from(ranks).clamp(1, shards)) * compute,
                ReshardAfterForward::Always(_) => 0,
            };
            accumulation * reduced + full + group
        }
    };
    // An all-reduce is a reduce-scatter and a gather.
    let accumulate = types.accumulate.bytes() as u64;
    let across = if replicas > 1 { 2 * among(elements / shards, replicas) * accumulate } else { 0 };
    within + across
}

/// Elements gathered in a window at stage 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Gathered {
    /// Among all ranks of a copy.
    all: u64,
    /// After a unit's first gather, among the small groups of `reshard_after_forward: NUMBER`.
    group: u64,
}

/// Goes through the gathers of a window with the buffers that there are.
fn gathers(inputs: &PlanInputs<'_>, cut: &ModelUnits, layout: &Layout) -> Gathered {
    let forward: Vec<usize> = cut.segments.iter().map(|segment| segment.unit).collect();
    // The embedding's backward needs no weights, and what lies below everything trained has none.
    let backward = cut.segments[lowest_trained(cut)..].iter().rev();
    let backward = backward.filter(|segment| segment.kind != SegmentKind::Embedding);
    let backward: Vec<usize> = backward.map(|segment| segment.unit).collect();
    let mut buffers = GatherBuffers::new(inputs.sharding.reshard_after_forward, layout);
    let mut gathered = Gathered::default();
    for _ in 0..inputs.accumulation {
        for &unit in forward.iter().chain(&backward) {
            let numel = layout.units[unit].numel as u64;
            match buffers.take(unit) {
                Gather::None => {}
                Gather::All => gathered.all += numel,
                Gather::Group => gathered.group += numel,
            }
        }
    }
    gathered
}

/// What a unit that is needed asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gather {
    /// Nothing: it is there.
    None,
    /// A gather among all ranks of a copy.
    All,
    /// A gather among a small group's.
    Group,
}

/// The buffers of stage 3 in a window. A buffer keeps what it last held until another unit needs it, so the units that forward
/// used last need no second gather (runtime/src/shard/buffers.rs).
pub(crate) struct GatherBuffers {
    limit: usize,
    grouped: bool,
    stays: Vec<bool>,
    /// Units that were gathered in this window: those that stay are there, of others a group may keep the shards.
    seen: Vec<bool>,
    /// The units in the shared buffers, the one used last at the end.
    held: Vec<usize>,
}

impl GatherBuffers {
    /// Empty ones, as at the window's beginning.
    pub(crate) fn new(reshard: ReshardAfterForward, layout: &Layout) -> GatherBuffers {
        let (limit, grouped) = match reshard {
            ReshardAfterForward::Always(true) => (PASSING, false),
            ReshardAfterForward::Always(false) => (layout.units.len(), false),
            ReshardAfterForward::Group(_) => (PASSING, true),
        };
        let stays = layout.units.iter().map(|unit| unit.stays_gathered).collect();
        GatherBuffers { limit, grouped, stays, seen: vec![false; layout.units.len()], held: Vec::new() }
    }

    /// The unit is needed now.
    pub(crate) fn take(&mut self, unit: usize) -> Gather {
        let again = std::mem::replace(&mut self.seen[unit], true);
        if self.stays[unit] {
            return if again { Gather::None } else { Gather::All };
        }
        let gather = match self.held.iter().position(|&other| other == unit) {
            Some(index) => {
                self.held.remove(index);
                Gather::None
            }
            None if again && self.grouped => Gather::Group,
            None => Gather::All,
        };
        self.held.push(unit);
        if self.held.len() > self.limit {
            self.held.remove(0);
        }
        gather
    }
}
