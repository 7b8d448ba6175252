//! The plan: how many bytes a job needs on each rank, before anything runs. Pure arithmetic over a model's configuration.
//!
//! ```text
//! PlanInputs ─ layout + theory ──── state
//!            ├ buffers ──────────── gather, gradient and reduce buffers
//!            ├ sizes ─ activations  activations, loss, temporary     (the file to calibrate)
//!            └ wire ─────────────── bytes sent per step
//! ```

mod activations;
mod advice;
mod buffers;
mod frozen;
mod norms;
mod sizes;
mod wire;

pub use advice::{Advice, Lever, Need, RESERVE, Tried, recommend, usable};
pub(crate) use wire::{Gather, GatherBuffers};

use crate::layout::{Layout, LayoutError, Mesh, UnitLayout};
use crate::model::{ModelConfig, ModelUnits, SegmentKind};
use crate::theory::{StateBytes, fisher_bytes, pretrained_bytes, state_bytes, unmixed_bytes};
use serde::{Deserialize, Serialize};
use zerofold_configs::{Backend, DeviceKind, ElementType, ElementTypes, Offload, Resolved, Sharding, Stage, Training};

/// Elements of a model's files that are cast at a time where masters are not float32 (`CHUNK` in
/// runtime/src/shard/files.rs).
const CAST_CHUNK: usize = 1 << 18;
/// Bytes of a parameter in a checkpoint: master and two moments in float32.
const CHECKPOINT_BYTES: u64 = 12;

/// Where the ranks compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlannedDevice {
    /// On the CPU, where attention goes by our own kernel, and with dropout by products, which keep all scores.
    Cpu,
    /// On a GPU, where attention always goes by the fused kernel.
    Gpu,
}

impl From<DeviceKind> for PlannedDevice {
    fn from(device: DeviceKind) -> Self {
        match device {
            DeviceKind::Cpu => PlannedDevice::Cpu,
            DeviceKind::Cuda => PlannedDevice::Gpu,
        }
    }
}

impl PlannedDevice {
    /// `CPU` or `GPU`.
    pub fn name(self) -> &'static str {
        match self {
            PlannedDevice::Cpu => "CPU",
            PlannedDevice::Gpu => "GPU",
        }
    }
}

/// Everything that a plan follows from.
#[derive(Clone, Copy, Debug)]
pub struct PlanInputs<'a> {
    /// The model's shape.
    pub model: &'a ModelConfig,
    /// Ranks.
    pub world_size: usize,
    /// The stage, the copies, and how the model is cut.
    pub sharding: Sharding,
    /// Element types.
    pub types: ElementTypes,
    /// Rows of a micro-batch on each rank.
    pub per_device_batch: usize,
    /// Tokens of a row, padding included.
    pub length: usize,
    /// Where rows hold documents end to end, the tokens of the longest of these.
    pub longest_document: Option<usize>,
    /// Supervised tokens of a micro-batch on one rank; none when all may be.
    pub supervised: Option<usize>,
    /// Micro-batches of an optimizer step.
    pub accumulation: usize,
    /// Keep only inputs between forward and backward, and recompute the rest.
    pub gradient_checkpointing: bool,
    /// With it: blocks (or halves of blocks, where these are units) 0, k, 2k, … are recomputed, others keep everything.
    pub gradient_checkpointing_every: usize,
    /// From stage 1 on, masters and moments lie in files.
    pub offload_optimizer: bool,
    /// Where the ranks compute.
    pub device: PlannedDevice,
    /// Reductions receive the other ranks' parts into memory of their own: over Gloo.
    pub receives: bool,
    /// What lies nowhere in shared memory is copied there for the others to read: over shared memory, of which stage 0 has no shards.
    pub copies: bool,
    /// What is frozen, when the rest opens, and what is drawn toward the pretrained weights; none trains all of the model.
    pub training: Option<&'a Training>,
}

impl<'a> PlanInputs<'a> {
    /// What a resolved configuration says, for rows of `max_length` tokens that are supervised throughout: the most that
    /// the data can ask for.
    pub fn of(config: &'a Resolved, model: &'a ModelConfig, device: PlannedDevice) -> Self {
        PlanInputs {
            model,
            world_size: config.num_processes as usize,
            sharding: config.sharding,
            types: config.element_types(),
            per_device_batch: config.training.per_device_train_batch_size as usize,
            length: config.training.max_length as usize,
            longest_document: config.training.padding_free.then_some(config.training.max_length as usize),
            supervised: None,
            accumulation: config.gradient_accumulation_steps as usize,
            gradient_checkpointing: config.gradient_checkpointing,
            gradient_checkpointing_every: config.gradient_checkpointing_every as usize,
            offload_optimizer: config.offload_optimizer != Offload::No,
            device,
            receives: config.backend == Backend::Gloo,
            copies: config.backend == Backend::Shm,
            training: Some(&config.training),
        }
    }

    /// The same at another stage, without copies.
    pub fn at(self, stage: Stage) -> Self {
        let sharding = Sharding { stage, replicas: 1, ..self.sharding };
        PlanInputs { sharding, ..self }
    }
}

/// What a job needs. All numbers are bytes, of one rank unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The stage.
    pub stage: Stage,
    /// How many copies of what is sharded there are; above 1 it is hybrid.
    pub replicas: u32,
    /// Between optimizer steps, in memory.
    pub state: StateBytes,
    /// Stage 3: where units that come and go are gathered.
    pub gather_buffers: u64,
    /// Stage 3: where the unit that stays gathered lies.
    pub stays_gathered: u64,
    /// Stages 2 and 3: full gradients of units until they are reduced.
    pub gradient_buffers: u64,
    /// Where reductions receive the other ranks' parts: over Gloo, which cannot read them where they are. At stage 0 over shared memory,
    /// copies of this rank's shards that others read.
    pub reduce_buffers: u64,
    /// Kept between forward and backward of a micro-batch.
    pub activations: u64,
    /// Most beside that while head and loss run, with what is under way of the micro-batch before.
    pub loss: u64,
    /// Most beside that while a block's forward or backward runs, with casts of gradients that are on their way.
    pub temporary: u64,
    /// The most at once in a step: state, buffers, activations, and the larger of loss and temporary; or what the
    /// optimizer needs, if that is more.
    pub total: u64,
    /// The most at once while the model is read, in tensors, as the ranks measure it.
    pub loading_peak: u64,
    /// Of one checkpoint, over all ranks, on disk.
    pub checkpoint_disk: u64,
    /// Of host memory, at most, beside all that while a checkpoint is written: the part of this rank's shards that the disk has not
    /// taken when the next step changes them. (What is offloaded to files is waited for in place of being copied.)
    pub save_copy: u64,
    /// Masters and moments in this rank's files, with offload.
    pub offloaded_disk: u64,
    /// Sent to other ranks in one optimizer step.
    pub sent_bytes_per_step: u64,
}

impl Plan {
    /// All gather buffers.
    pub fn all_gather_buffers(&self) -> u64 {
        self.gather_buffers + self.stays_gathered
    }
}

/// What the job needs.
///
/// # Errors
/// [`LayoutError::Mesh`] when the copies do not divide the ranks, [`LayoutError::Grouping`] when what the job says of
/// parameters does not fit the model.
pub fn plan(inputs: &PlanInputs<'_>) -> Result<Plan, LayoutError> {
    let sharding = &inputs.sharding;
    let mut cut = ModelUnits::new(inputs.model, sharding.units);
    if let Some(training) = inputs.training {
        cut.group(training)?;
    }
    let layout = Layout::new(&cut.units, Mesh::new(inputs.world_size, sharding.replicas as usize)?)?;
    let (state, offloaded_disk) = state_in_memory(inputs, &layout);
    let gathering = buffers::gather_buffers(&layout, sharding, &inputs.types);
    let gradient_buffers = buffers::gradient_buffers(&layout, sharding.stage, &inputs.types);
    let reduce_buffers = buffers::reduce_buffers(&layout, &inputs.types);
    let micro_batch = frozen::micro_batch(inputs, &cut);
    let held = state.total() as u64 + gathering.passing + gathering.staying + gradient_buffers;
    let temporary = micro_batch.temporary + reduce_buffers.under_way;
    let reduces_each = sharding.stage.shards_gradients() && inputs.accumulation > 1;
    let loss = micro_batch.loss + if reduces_each { reduce_buffers.last } else { 0 };
    let during = micro_batch.activations + loss.max(temporary);
    let receive = if inputs.receives { reduce_buffers.receive } else { 0 };
    let receive = receive + copied(inputs, layout.units.iter().filter(buffers::is_reduced), inputs.types.accumulate);
    let peak = receive + during.max(optimizer_casts(inputs, &layout));
    Ok(Plan {
        stage: sharding.stage,
        replicas: sharding.replicas,
        state,
        gather_buffers: gathering.passing,
        stays_gathered: gathering.staying,
        gradient_buffers,
        reduce_buffers: receive,
        activations: micro_batch.activations,
        loss,
        temporary,
        total: held + peak,
        // Stages 0 to 2 gather full parameters in place, where the state counts them already.
        // The Fisher information is not yet there.
        loading_peak: held + loading_cast(inputs, &layout) + sharing_state(inputs, &layout)
            - fisher_in_memory(inputs, &layout) as u64,
        checkpoint_disk: (CHECKPOINT_BYTES + if estimates_fisher(inputs) { 4 } else { 0 }) * layout.numel() as u64,
        save_copy: CHECKPOINT_BYTES * layout.shard_numel() as u64,
        offloaded_disk,
        sent_bytes_per_step: wire::sent_bytes(inputs, &cut, &layout),
    })
}

/// The same job at stages 0 to 3 without copies and, when it has copies, as it is: five rows.
///
/// # Errors
/// As [`plan`].
pub fn plan_all_stages(inputs: &PlanInputs<'_>) -> Result<Vec<Plan>, LayoutError> {
    let stages = [Stage::Zero, Stage::One, Stage::Two, Stage::Three];
    let mut plans = stages.iter().map(|&stage| plan(&inputs.at(stage))).collect::<Result<Vec<_>, _>>()?;
    if inputs.sharding.replicas > 1 {
        plans.push(plan(inputs)?);
    }
    Ok(plans)
}

/// What autograd keeps of one segment and the most that it needs, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentBytes {
    /// Alive after forward: the output, and what was saved for backward. The input is the caller's.
    pub saved: u64,
    /// The most alive at once during backward, what was saved included. The output's gradient is the caller's.
    pub peak: u64,
}

/// What the plan counts for one segment of the job's micro-batches.
pub fn segment_bytes(inputs: &PlanInputs<'_>, kind: SegmentKind) -> SegmentBytes {
    activations::segment_bytes(&sizes::Sizes::of(inputs), kind)
}

/// Whether a segment, by its place after the embedding, is computed a second time for backward.
pub(crate) fn recomputed(inputs: &PlanInputs<'_>, index: usize) -> bool {
    inputs.gradient_checkpointing && index.is_multiple_of(inputs.gradient_checkpointing_every.max(1))
}

/// The optimizer takes gradients in the type of the masters: a cast of what this rank owns of a unit where theirs is
/// another.
fn optimizer_casts(inputs: &PlanInputs<'_>, layout: &Layout) -> u64 {
    let sharded = inputs.sharding.stage.shards_optimizer();
    let owned = layout.units.iter().map(|unit| if sharded { unit.shard_numel } else { unit.numel });
    match inputs.types.accumulate == inputs.types.master {
        true => 0,
        false => (owned.max().unwrap_or(0) * inputs.types.master.bytes()) as u64,
    }
}

/// Shards of units that are copied for the others to read, at most [`buffers::PASSING`] at once.
fn copied<'a>(inputs: &PlanInputs<'_>, units: impl Iterator<Item = &'a UnitLayout>, kind: ElementType) -> u64 {
    if !inputs.copies || inputs.sharding.stage != Stage::Zero {
        return 0;
    }
    let shards: Vec<usize> = units.filter(|unit| unit.shard_numel < unit.numel).map(|unit| unit.shard_numel).collect();
    let longest = shards.iter().max().copied().unwrap_or(0);
    (shards.len().min(buffers::PASSING) * longest * kind.bytes()) as u64
}

/// What stage 0 needs while ranks give each other the state that each has read: copies, or, of a unit of which a part is trained, all of
/// it and this rank's shard.
fn sharing_state(inputs: &PlanInputs<'_>, layout: &Layout) -> u64 {
    let Stage::Zero = inputs.sharding.stage else { return 0 };
    let in_part =
        |unit: &&UnitLayout| unit.shard_numel < unit.numel && (1..unit.numel).contains(&unit.trained_numel(u32::MAX));
    let of_part = layout.units.iter().filter(in_part).map(|unit| {
        let shards = 1 + usize::from(inputs.copies);
        (unit.numel + shards * unit.shard_numel) * inputs.types.master.bytes()
    });
    copied(inputs, layout.units.iter(), inputs.types.master).max(of_part.max().unwrap_or(0) as u64)
}

/// Model files are read as float32, straight into masters of that type; others are cast from a tensor piece by piece.
fn loading_cast(inputs: &PlanInputs<'_>, layout: &Layout) -> u64 {
    let longest = layout.units.iter().map(|unit| unit.shard_numel).max().unwrap_or(0);
    match inputs.types.master == ElementType::Float32 {
        true => 0,
        false => (ElementType::Float32.bytes() * longest.min(CAST_CHUNK)) as u64,
    }
}

/// Where a GPU's masters are offloaded they are in host memory, and with them what they are drawn toward.
fn state_lies_elsewhere(inputs: &PlanInputs<'_>) -> bool {
    inputs.offload_optimizer && inputs.device == PlannedDevice::Gpu
}

fn estimates_fisher(inputs: &PlanInputs<'_>) -> bool {
    inputs.training.is_some_and(Training::estimates_fisher)
}

fn fisher_in_memory(inputs: &PlanInputs<'_>, layout: &Layout) -> usize {
    if estimates_fisher(inputs) && !state_lies_elsewhere(inputs) { fisher_bytes(layout) } else { 0 }
}

/// The state in memory, and the bytes of it that lie in files instead.
fn state_in_memory(inputs: &PlanInputs<'_>, layout: &Layout) -> (StateBytes, u64) {
    let mut state = state_bytes(layout, inputs.sharding.stage, &inputs.types);
    if inputs.training.is_some_and(Training::mixes) {
        state.masters += unmixed_bytes(layout, inputs.sharding.stage, &inputs.types);
    }
    let pretrained = match inputs.training.filter(|training| training.keeps_pretrained()) {
        Some(_) if !state_lies_elsewhere(inputs) => pretrained_bytes(layout, &inputs.types),
        _ => 0,
    };
    let state = StateBytes { pretrained: pretrained + fisher_in_memory(inputs, layout), ..state };
    // Only what is sharded is offloaded.
    if !inputs.offload_optimizer || !inputs.sharding.stage.shards_optimizer() {
        return (state, 0);
    }
    // At stage 3 what stays of the parameters is the masters, whatever they are counted as.
    let parameters = if inputs.sharding.stage.shards_parameters() { 0 } else { state.parameters };
    let in_memory = StateBytes { parameters, masters: 0, moments: 0, ..state };
    (in_memory, (state.total() - in_memory.total()) as u64)
}

#[cfg(test)]
mod tests;
