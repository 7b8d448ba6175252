//! The time of an optimizer step, by part, and what follows from it.

use super::Assumptions;
use super::collective::{Group, Wire};
use super::compute::{Compute, Recomputed, segment_times};
use super::timeline::{Elapsed, UnitWires, Visit, Window, elapse};
use crate::flops::model_flops;
use crate::layout::{Layout, LayoutError, Mesh};
use crate::model::{ModelUnits, SegmentKind};
use crate::planning::{GatherBuffers, PlanInputs};
use serde::Serialize;
use zerofold_configs::{ReshardAfterForward, Stage, Training};

/// A job whose time is asked for.
#[derive(Clone, Copy, Debug)]
pub struct CostInputs<'a> {
    /// The job, with the longest rows that it may see.
    pub job: PlanInputs<'a>,
    /// Tokens of an average row.
    pub length: usize,
    /// GPUs of a host.
    pub gpus_per_host: usize,
    /// What recomputed blocks compute again.
    pub recomputed: Recomputed,
}

impl<'a> CostInputs<'a> {
    /// The job with rows that are all of the same length, on hosts of so many GPUs, recomputing as the engine does:
    /// everything.
    pub fn new(job: PlanInputs<'a>, gpus_per_host: usize) -> Self {
        CostInputs { job, length: job.length, gpus_per_host: gpus_per_host.max(1), recomputed: Recomputed::ALL }
    }

    /// Tokens of an optimizer step, over all ranks.
    pub fn tokens_per_step(&self) -> f64 {
        self.job.world_size as f64 * self.tokens_of_rank()
    }

    fn tokens_of_rank(&self) -> f64 {
        [self.job.per_device_batch, self.length, self.job.accumulation].iter().map(|factor| *factor as f64).product()
    }

    /// The model's operations in a step of one rank.
    fn flops_of_rank(&self) -> f64 {
        let job = &self.job;
        let rows = job.per_device_batch as f64 * job.accumulation as f64;
        let supervised = job.supervised.map_or(self.length, |all| all / job.per_device_batch.max(1));
        rows * model_flops(job.model, self.length, supervised)
    }
}

/// Seconds of an optimizer step of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepTime {
    /// Forward and backward.
    pub compute: Compute,
    /// The optimizer, on the GPU or, offloaded, on the host.
    pub optimizer: f64,
    /// Moving gradients and parameters, with an offloaded optimizer.
    pub offload: f64,
    /// Gathers of parameters; at stage 0 of gradients.
    pub gather: Wire,
    /// Reductions of gradients inside a copy.
    pub reduce: Wire,
    /// Reductions across copies.
    pub replicate: Wire,
    /// Of these three, what does not hide behind computing.
    pub exposed: f64,
    /// The whole step.
    pub seconds: f64,
}

/// A step's time, and the rates that follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Its time.
    pub step: StepTime,
    /// Of all GPUs.
    pub tokens_per_second: f64,
    /// Of one.
    pub tokens_per_second_per_gpu: f64,
    /// The model's operations over those that the GPU could do, as [`model_flops`] counts them.
    pub model_flops_utilization: f64,
}

/// Predicts how long a step takes.
///
/// # Errors
/// [`LayoutError::Mesh`] when the copies do not divide the ranks.
pub fn predict(inputs: &CostInputs<'_>, assumed: &Assumptions) -> Result<Prediction, LayoutError> {
    let job = &inputs.job;
    let cut = ModelUnits::new(job.model, job.sharding.units);
    let layout = Layout::new(&cut.units, Mesh::new(job.world_size, job.sharding.replicas as usize)?)?;
    let segments: Vec<(SegmentKind, usize)> =
        cut.segments.iter().map(|segment| (segment.kind, leaves(&cut, segment))).collect();
    let times = segment_times(inputs, assumed, &segments);
    let mut visits: Vec<Visit> = Vec::new();
    for (segment, time) in cut.segments.iter().zip(&times) {
        let (forward, backward) = (time.forward.seconds(), time.backward.seconds());
        match visits.last_mut().filter(|visit| visit.unit == segment.unit) {
            Some(visit) => {
                visit.forward += forward;
                visit.backward += backward;
                visit.is_embedding = false;
            }
            None => visits.push(Visit {
                unit: segment.unit,
                forward,
                backward,
                is_embedding: segment.kind == SegmentKind::Embedding,
            }),
        }
    }
    let window = Window {
        stage: job.sharding.stage,
        prefetch: job.sharding.backward_prefetch,
        visits: &visits,
        wires: &unit_wires(inputs, assumed, &layout),
        micro_batches: job.accumulation,
    };
    let elapsed = elapse(&window, GatherBuffers::new(job.sharding.reshard_after_forward, &layout));
    let compute = times.iter().map(|time| time.forward + time.backward).sum::<Compute>() * job.accumulation as f64;
    let step = step_time((inputs, assumed), &layout, elapsed, compute);
    let per_gpu = inputs.tokens_of_rank() / step.seconds;
    Ok(Prediction {
        step,
        tokens_per_second: inputs.tokens_per_step() / step.seconds,
        tokens_per_second_per_gpu: per_gpu,
        model_flops_utilization: inputs.flops_of_rank() / (step.seconds * assumed.peak_flops),
    })
}

/// Elements whose gradients a segment adds in one pass; an embedding adds the rows of its tokens alone.
fn leaves(cut: &ModelUnits, segment: &crate::model::Segment) -> usize {
    match segment.kind {
        SegmentKind::Embedding => 0,
        _ => cut.units[segment.unit].leaves[segment.leaves.clone()].iter().map(|leaf| leaf.numel()).sum(),
    }
}

/// What gathering and reducing takes of each unit.
fn unit_wires(inputs: &CostInputs<'_>, assumed: &Assumptions, layout: &Layout) -> UnitWires {
    let (job, types) = (&inputs.job, &inputs.job.types);
    let shards = Group::shards(layout.mesh, inputs.gpus_per_host);
    let small = match job.sharding.reshard_after_forward {
        ReshardAfterForward::Group(ranks) => Group::neighbours(ranks as usize, inputs.gpus_per_host),
        ReshardAfterForward::Always(_) => shards,
    };
    let gathered = if job.sharding.stage == Stage::Zero { types.accumulate } else { types.compute };
    // Mixed parameters come from the shards at stage 0 too.
    let publishes = match job.sharding.stage {
        Stage::Zero => job.training.is_some_and(Training::mixes),
        Stage::One | Stage::Two => true,
        Stage::Three => false,
    };
    let of = |group: &Group, element: usize| -> Vec<Wire> {
        layout.units.iter().map(|unit| group.collective((unit.numel * element) as f64, assumed)).collect()
    };
    UnitWires {
        gather: of(&shards, gathered.bytes()),
        gather_in_group: of(&small, gathered.bytes()),
        reduce: of(&shards, types.reduce.bytes()),
        publish: if publishes { of(&shards, types.compute.bytes()) } else { Vec::new() },
    }
}

/// The window, and what follows on it: copies' gradients, the optimizer.
fn step_time(
    (inputs, assumed): (&CostInputs<'_>, &Assumptions),
    layout: &Layout,
    elapsed: Elapsed,
    compute: Compute,
) -> StepTime {
    let (job, types) = (&inputs.job, &inputs.job.types);
    let copies = Group::replicas(layout.mesh, inputs.gpus_per_host);
    let shard = (layout.shard_numel() * types.accumulate.bytes()) as f64;
    // An all-reduce is a reduce-scatter and a gather.
    let replicate = copies.collective(shard, assumed) * 2.0;
    let owned = if job.sharding.stage.shards_optimizer() { layout.shard_numel() } else { layout.numel() } as f64;
    // AdamW reads and writes masters and both moments, and reads gradients, once before for their norm.
    let gradients = types.accumulate.bytes() as f64;
    let state = 6.0 * types.master.bytes() as f64 + gradients;
    let copy = if types.compute == types.master { 0 } else { types.compute.bytes() } as f64;
    let (optimizer, offload) = match job.offload_optimizer && job.sharding.stage.shards_optimizer() {
        true => {
            let on_host = inputs.gpus_per_host.min(job.world_size) as f64;
            let moved = owned * (gradients + types.compute.bytes() as f64);
            (owned * on_host * state / assumed.host_memory_bandwidth, moved / assumed.offload_bandwidth)
        }
        false => (assumed.pass(owned * (state + gradients + copy)) / assumed.compute_efficiency, 0.0),
    };
    let sent = elapsed.gather.seconds + elapsed.reduce.seconds;
    let shown = elapsed.seconds - elapsed.computing;
    let hidden = (sent - shown).max(0.0);
    let exposed = shown + assumed.overlap_cost * hidden + replicate.seconds;
    StepTime {
        compute,
        optimizer,
        offload,
        gather: elapsed.gather,
        reduce: elapsed.reduce,
        replicate,
        exposed,
        seconds: elapsed.computing + exposed + optimizer + offload,
    }
}
