//! Sharding: makes a unit's full parameters exist and vanish, and turns full gradients into gradient shards.
//!
//! | stage | parameters between uses | gradients | optimizer state |
//! | --- | --- | --- | --- |
//! | 0 | full | full, all-reduced when the window ends | full |
//! | 1 | full | full, reduce-scattered when the window ends | shard |
//! | 2 | full | shard, reduced as each unit finishes | shard |
//! | 3 | shard, gathered per unit | shard | shard |
//!
//! With hybrid sharding all of this happens among the ranks of one copy, and the copies' gradient shards are summed once a
//! window.
//!
//! The same reductions over the same flat parameters in the same order at every stage are why stages 0 and 1, and 2 and
//! 3, agree to the bit, and all four at one micro-batch per step (Rajbhandari et al., "ZeRO", 2020; Zhao et al.,
//! "PyTorch FSDP", 2023).

mod buffers;
mod error;
mod files;
mod fisher;
mod gather;
mod mapped;
mod mixout;
mod poison;
mod pretrained;
mod reduce;
mod unit;

pub use error::ShardError;
pub use files::{fill_by_float_chunks, for_each_float_chunk};
pub use mixout::Mask;
pub use unit::{OwnedRun, Unit};

use crate::comm::{Collectives, CommError, Pending};
use crate::metrics::Timeline;
use buffers::GatherBuffers;
use gather::GroupShards;
use mapped::MappedFile;
use poison::Poison;
use reduce::Gradients;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};
use unit::{masters_are_parameters, owned_range, trained_within};
use zerofold_configs::{ElementType, ElementTypes, Offload, ReshardAfterForward, Sharding};
use zerofold_plan::{Layout, StateBytes, UnitLayout};

/// libtorch's name of an element type.
pub fn kind(element_type: ElementType) -> Kind {
    match element_type {
        ElementType::Float32 => Kind::Float,
        ElementType::Bfloat16 => Kind::BFloat16,
        ElementType::Float16 => Kind::Half,
    }
}

/// The element types of a job, by libtorch's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    /// Parameters, activations and what is gathered.
    pub compute: Kind,
    /// Masters and moments.
    pub master: Kind,
    /// Gradients between ranks.
    pub reduce: Kind,
    /// Gradients accumulated over micro-batches.
    pub accumulate: Kind,
}

impl From<ElementTypes> for Kinds {
    fn from(types: ElementTypes) -> Self {
        Kinds {
            compute: kind(types.compute),
            master: kind(types.master),
            reduce: kind(types.reduce),
            accumulate: kind(types.accumulate),
        }
    }
}

/// How a model is sharded on this rank.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// What is sharded.
    pub sharding: Sharding,
    /// In which types.
    pub kinds: Kinds,
    /// Where optimizer state lies.
    pub offload: Offload,
    /// Parameters are mixed with pretrained ones, so masters are never a view of them.
    pub mixes: bool,
    /// Where parameters and gradients lie.
    pub device: Device,
}

impl ShardOptions {
    /// Where the optimizer works: on the device, unless its state lies in host memory or in files.
    pub(crate) fn state_device(&self) -> Device {
        if self.offload == Offload::No { self.device } else { Device::Cpu }
    }
}

/// All units of a model, sharded over the ranks of a group.
pub struct Shards {
    // What is on its way goes before the groups, and they before the buffers that they were told of.
    /// Stages 1 and 2: parameters that the last step published and that are still on their way, by unit.
    arriving: Vec<Option<Pending>>,
    /// All ranks.
    comm: Rc<dyn Collectives>,
    /// The ranks of this rank's copy.
    shard_axis: Rc<dyn Collectives>,
    /// The ranks with the same shard in each copy; none when there is one copy.
    replicate_axis: Option<Rc<dyn Collectives>>,
    /// The units, in the order of the forward pass.
    pub units: Vec<Unit>,
    layout: Layout,
    sharding: Sharding,
    kinds: Kinds,
    buffers: GatherBuffers,
    group: Option<GroupShards>,
    gradients: Gradients,
    /// Where training is drawn toward them: this rank's shards of the weights that the model came with, by unit.
    pretrained: Vec<Tensor>,
    /// With it: this rank's shards of their Fisher information, by unit.
    fisher: Vec<Tensor>,
    /// With mixout: how parameters are mixed when they are published or gathered; none as they are.
    mask: Option<Mask>,
    mixes: bool,
    /// With mixout: masters changed since parameters were published.
    stale: bool,
    // Released units point at it, and offloaded state lies in it, so these go last.
    poison: Poison,
    file: Option<MappedFile>,
}

impl Shards {
    /// Allocates what this rank keeps of `layout`. Parameters are undefined until [`Shards::load`] or a checkpoint is
    /// read.
    pub fn new(layout: Layout, options: &ShardOptions, comm: Rc<dyn Collectives>) -> Result<Self, ShardError> {
        let ShardOptions { sharding, kinds, offload, mixes, device } = options;
        let stage = sharding.stage;
        let mesh = layout.mesh;
        let shard_axis = comm.axis(&mesh.shard_axis(comm.rank()))?;
        let replicate_axis = if mesh.replicas > 1 { Some(comm.axis(&mesh.replicate_axis(comm.rank()))?) } else { None };
        let place = shard_axis.rank();
        let mut file = match offload {
            Offload::Files(folder) => {
                let bytes = layout.units.iter().map(|unit| offloaded_bytes(unit, options, place)).sum();
                Some(MappedFile::create(folder, bytes)?)
            }
            Offload::No | Offload::HostMemory => None,
        };
        let longest = match stage.shards_parameters() {
            true => layout.units.iter().map(|unit| unit.numel).max().unwrap_or(0),
            false => 0,
        };
        let bytes = longest * kinds.compute.elt_size_in_bytes();
        let poison = Poison::new(bytes, *device)?;
        let units = layout
            .units
            .iter()
            .map(|unit| Unit::new(unit.clone(), options, shard_axis.as_ref(), &poison, &mut file))
            .collect::<Result<Vec<_>, _>>()?;
        // Unless all of it is float32, gradients travel as a copy, and what arrives is added up in float32.
        let float32 = kinds.reduce == Kind::Float && kinds.accumulate == Kind::Float;
        let wire = (!float32 && mesh.shards > 1).then_some(kinds.reduce);
        let reduced = |unit: &UnitLayout| match unit.trained_numel(u32::MAX) {
            0 => (0, false),
            _ => (unit.numel, unit.stays_gathered),
        };
        let reduced: Vec<(usize, bool)> = match stage.shards_gradients() {
            true => layout.units.iter().map(reduced).collect(),
            false => Vec::new(),
        };
        let gradients = Gradients::new(&reduced, kinds.accumulate, wire, shard_axis.as_ref())?;
        let (buffers, group) = if stage.shards_parameters() {
            let kept = sharding.reshard_after_forward == ReshardAfterForward::Always(false);
            let own: Vec<(usize, bool)> =
                layout.units.iter().map(|unit| (unit.numel, unit.stays_gathered || kept)).collect();
            let buffers = GatherBuffers::new(&own, kinds.compute, shard_axis.as_ref())?;
            (buffers, group_shards(&layout, options, &shard_axis)?)
        } else {
            (GatherBuffers::none(), None)
        };
        buffers.tensors().chain(gradients.tensors()).for_each(|buffer| shard_axis.register(buffer));
        let arriving = units.iter().map(|_| None).collect();
        let (pretrained, fisher) = (Vec::new(), Vec::new());
        let (sharding, kinds, mixes, mask, stale) = (*sharding, *kinds, *mixes, None, false);
        Ok(Shards {
            units,
            layout,
            sharding,
            kinds,
            comm,
            shard_axis,
            replicate_axis,
            buffers,
            group,
            arriving,
            gradients,
            pretrained,
            fisher,
            mask,
            mixes,
            stale,
            poison,
            file,
        })
    }

    /// Trains what is to be trained after so many openings of gradual unfreezing, from now on: after `taken` optimizer steps.
    /// All ranks call it between steps.
    pub fn open(&mut self, openings: u32, taken: u64) -> Result<(), ShardError> {
        self.units.iter_mut().try_for_each(|unit| unit.open(openings, taken, self.shard_axis.as_ref()))
    }

    /// The layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How the model is sharded.
    pub fn sharding(&self) -> &Sharding {
        &self.sharding
    }

    /// The element types.
    pub fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    /// All ranks.
    pub fn comm(&self) -> &dyn Collectives {
        self.comm.as_ref()
    }

    /// The recorder of this rank.
    pub fn timeline(&self) -> &Timeline {
        self.comm.timeline()
    }

    /// This rank's place on the shard axis: which shard it owns.
    pub fn place(&self) -> usize {
        self.shard_axis.rank()
    }

    /// Whether this rank belongs to the first copy, which alone writes what all copies have.
    pub fn is_first_replica(&self) -> bool {
        self.comm.rank() < self.layout.mesh.shards
    }

    fn shards_parameters(&self) -> bool {
        self.sharding.stage.shards_parameters()
    }

    fn shards_gradients(&self) -> bool {
        self.sharding.stage.shards_gradients()
    }

    fn shards_optimizer(&self) -> bool {
        self.sharding.stage.shards_optimizer()
    }

    fn collective<T>(&self, unit: usize, result: Result<T, CommError>) -> Result<T, ShardError> {
        result.map_err(|source| ShardError::Collective { unit: self.layout.units[unit].name.clone(), source })
    }

    /// Starts a collective of a unit.
    fn start<T>(&self, unit: usize, collective: impl FnOnce() -> Result<T, CommError>) -> Result<T, ShardError> {
        self.comm.about(&self.layout.units[unit].name);
        self.collective(unit, collective())
    }

    fn state_is_offloaded(&self) -> bool {
        self.file.is_some() || self.units.iter().any(|unit| unit.first_moment.device() != unit.gradient.device())
    }

    /// Persistent bytes that this rank holds in the memory it computes in, counted over its tensors.
    pub fn state_bytes(&self) -> StateBytes {
        let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        let mut total = StateBytes::default();
        for unit in &self.units {
            if self.shards_parameters() {
                *(if unit.has_masters() { &mut total.masters } else { &mut total.parameters }) += bytes(&unit.master);
            } else {
                total.parameters += bytes(&unit.flat);
                total.masters += if unit.has_masters() { bytes(&unit.master) } else { 0 };
            }
            total.gradients += bytes(&unit.gradient);
            total.moments += bytes(&unit.first_moment) + bytes(&unit.second_moment);
        }
        // Beside masters in host memory they are not in that of the device.
        let drawn = self.pretrained.iter().chain(&self.fisher);
        let here = drawn.filter(|tensor| tensor.device() == self.comm.device());
        total.pretrained = here.map(bytes).sum();
        if self.state_is_offloaded() {
            let parameters = if self.shards_parameters() { 0 } else { total.parameters };
            total = StateBytes { parameters, masters: 0, moments: 0, ..total };
        }
        total
    }

    /// Bytes of optimizer state that lie in a file instead of memory.
    pub fn offloaded_bytes(&self) -> usize {
        self.file.as_ref().map_or(0, MappedFile::bytes)
    }

    /// Bytes of the buffers that full parameters are gathered into, and of what groups keep of them: stage 3 only.
    pub fn gather_buffer_bytes(&self) -> usize {
        let parts = self.group.iter().flat_map(|group| &group.parts);
        self.buffers.bytes() + parts.map(|part| part.numel() * part.kind().elt_size_in_bytes()).sum::<usize>()
    }

    /// Bytes of the buffers that full gradients are put together in: stages 2 and 3 only.
    pub fn gradient_buffer_bytes(&self) -> usize {
        self.gradients.bytes()
    }
}

/// Bytes of a unit's state that lie in a file when optimizer state is offloaded.
fn offloaded_bytes(unit: &UnitLayout, options: &ShardOptions, place: usize) -> usize {
    let stage = options.sharding.stage;
    let owned = owned_range(unit, stage, place);
    let masters = if masters_are_parameters(options) { 0 } else { owned.len() };
    let moments = trained_within(&owned, unit.trained_numel(u32::MAX));
    let bytes = |numel| MappedFile::piece_bytes(numel, options.kinds.master);
    bytes(masters) + 2 * bytes(moments)
}

/// What `reshard_after_forward` with a group size needs.
fn group_shards(
    layout: &Layout,
    options: &ShardOptions,
    shard_axis: &Rc<dyn Collectives>,
) -> Result<Option<GroupShards>, ShardError> {
    let ReshardAfterForward::Group(size) = options.sharding.reshard_after_forward else { return Ok(None) };
    let size = size as usize;
    let first = shard_axis.rank() / size * size;
    let comm = shard_axis.axis(&(first..first + size).collect::<Vec<_>>())?;
    let part =
        |unit: &UnitLayout| Tensor::f_zeros([(unit.numel / size) as i64], (options.kinds.compute, options.device));
    let parts = layout.units.iter().map(part).collect::<Result<Vec<_>, _>>()?;
    Ok(Some(GroupShards { comm, filled: vec![false; parts.len()], parts }))
}

#[cfg(test)]
mod tests;
