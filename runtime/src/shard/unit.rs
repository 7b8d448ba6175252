//! One unit's tensors on one rank.

use super::mapped::MappedFile;
use super::poison::Poison;
use super::{ShardError, ShardOptions};
use crate::comm::Collectives;
use crate::torch::repoint_storage;
use std::ffi::c_void;
use std::ops::Range;
use tch::{Device, Kind, TchError, Tensor};
use zerofold_configs::Stage;
use zerofold_plan::{ParameterGroup, Run, UnitLayout};

/// A unit: its flat parameter, the leaves that autograd sees, and what the optimizer owns of it.
///
/// "Owned" is the whole flat parameter at stage 0 and this rank's shard from stage 1 on.
pub struct Unit {
    /// Where everything lies.
    pub layout: UnitLayout,
    /// The flat parameter in the compute type: real memory at stages 0 to 2; at stage 3 it points at a gather buffer, or
    /// at poison while released.
    pub(super) flat: Tensor,
    /// Views of `flat`, one per leaf; those that are trained now require gradients.
    leaves: Vec<Tensor>,
    /// Owned masters. Where they have the compute type, at stages 0 to 2, a view of `flat`.
    pub(super) master: Tensor,
    /// Accumulated gradients: all of them at stages 0 and 1, the shard at 2 and 3; empty while nothing is trained.
    pub(super) gradient: Tensor,
    /// First moments of what is trained of the owned range, which is its beginning.
    pub(super) first_moment: Tensor,
    /// Second moments of the same.
    pub(super) second_moment: Tensor,
    /// Masters are stored apart from parameters.
    apart: bool,
    /// Elements that are trained now: those from the first on.
    trained: usize,
    /// How many optimizer steps were taken before each run was trained.
    begun: Vec<u64>,
    /// This rank's range of the flat parameter.
    shard: Range<usize>,
    stage: Stage,
}

/// One run of the owned range: what a fused optimizer call works on.
pub struct OwnedRun {
    /// The parameter group.
    pub group: ParameterGroup,
    /// How many optimizer steps were taken before it was trained.
    pub begun: u64,
    /// Masters of the run.
    pub master: Tensor,
    /// Gradients of the run.
    pub gradient: Tensor,
    /// First moments of the run.
    pub first_moment: Tensor,
    /// Second moments of the run.
    pub second_moment: Tensor,
}

/// The elements that a rank owns of a unit.
pub(super) fn owned_range(layout: &UnitLayout, stage: Stage, place: usize) -> Range<usize> {
    if stage.shards_optimizer() { layout.shard(place) } else { 0..layout.numel }
}

/// How many of a range's elements are trained, where the first `trained` of the flat parameter are.
pub(super) fn trained_within(range: &Range<usize>, trained: usize) -> usize {
    trained.min(range.end).saturating_sub(range.start)
}

/// State of so many zeros, where the optimizer works.
fn zeros(numel: usize, kind: Kind, place: Device, device: Device) -> Result<Tensor, TchError> {
    let state = Tensor::f_zeros([numel as i64], (kind, place))?;
    // Pages that the system may not move are copied to the device without a detour.
    if place == device { Ok(state) } else { state.f_pin_memory(device) }
}

/// Whether masters are stored apart from parameters: in another type, elsewhere, or as other numbers.
fn masters_are_apart(options: &ShardOptions) -> bool {
    let ShardOptions { sharding, kinds, mixes, device, .. } = options;
    let mixed = *mixes && !sharding.stage.shards_parameters();
    kinds.compute != kinds.master || options.state_device() != *device || mixed
}

/// Whether the masters are a view of the parameters.
pub(super) fn masters_are_parameters(options: &ShardOptions) -> bool {
    !options.sharding.stage.shards_parameters() && !masters_are_apart(options)
}

impl Unit {
    /// The unit for this rank's place on the shard axis, released. What the optimizer alone needs lies in `file`, if given.
    /// `poison` outlives the unit and is as long as its parameters at stage 3.
    pub(super) fn new(
        layout: UnitLayout,
        options: &ShardOptions,
        shard_axis: &dyn Collectives,
        poison: &Poison,
        file: &mut Option<MappedFile>,
    ) -> Result<Self, ShardError> {
        let _no_grad = tch::no_grad_guard();
        let ShardOptions { kinds, device, .. } = options;
        let (stage, place) = (options.sharding.stage, shard_axis.rank());
        let owned = owned_range(&layout, stage, place);
        let shape = [layout.numel as i64];
        let flat = if stage.shards_parameters() {
            // Memory of its own, though never touched, would be that of the whole model.
            // SAFETY: the mapping is as long as the parameters and outlives them; they are written only while gathered.
            unsafe { Tensor::f_from_blob(poison.pointer().cast(), &shape, &[1], kinds.compute, *device)? }
        } else {
            shard_axis.allocate(layout.numel as i64, kinds.compute)?
        };
        let leaves = layout
            .leaves
            .iter()
            .map(|leaf| {
                let shape: Vec<i64> = leaf.shape.iter().map(|&size| size as i64).collect();
                let view =
                    flat.f_narrow(0, leaf.begin as i64, (leaf.end - leaf.begin) as i64)?.f_view(shape.as_slice())?;
                view.f_set_requires_grad(leaf.group.is_trained(0))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let trained = layout.trained_numel(0);
        // In a file there is room for all that is ever trained; in memory there is for what is trained now.
        let moments = trained_within(&owned, if file.is_some() { layout.trained_numel(u32::MAX) } else { trained });
        let mut state = |numel: usize| match file {
            Some(file) => Ok(file.piece(numel, kinds.master)),
            None => zeros(numel, kinds.master, options.state_device(), *device),
        };
        let master = if masters_are_parameters(options) {
            flat.f_narrow(0, owned.start as i64, owned.len() as i64)?
        } else {
            state(owned.len())?
        };
        let mut unit = Unit {
            flat,
            leaves,
            master,
            first_moment: state(moments)?,
            second_moment: state(moments)?,
            gradient: Tensor::f_zeros([0i64], (kinds.accumulate, *device))?,
            apart: masters_are_apart(options),
            trained,
            begun: vec![0; layout.runs.len()],
            shard: layout.shard(place),
            stage,
            layout,
        };
        unit.make_gradient(shard_axis)?;
        Ok(unit)
    }

    /// Elements that are trained now.
    pub fn trained(&self) -> usize {
        self.trained
    }

    /// Makes room for the gradient, if there is something to be trained and none yet; gives it up where there is nothing.
    fn make_gradient(&mut self, shard_axis: &dyn Collectives) -> Result<(), ShardError> {
        let numel = if self.stage.shards_gradients() { self.layout.shard_numel } else { self.layout.numel };
        if self.trained == 0 {
            self.gradient = Tensor::f_zeros([0i64], (self.gradient.kind(), self.gradient.device()))?;
        } else if self.gradient.numel() == 0 {
            self.gradient = shard_axis.allocate(numel as i64, self.gradient.kind())?;
        }
        Ok(())
    }

    /// Gives gradients to the first `trained` elements, and to nothing else.
    pub(super) fn train(&mut self, trained: usize, shard_axis: &dyn Collectives) -> Result<(), ShardError> {
        self.trained = trained;
        for (leaf, tensor) in self.layout.leaves.iter().zip(&mut self.leaves) {
            *tensor = tensor.f_set_requires_grad(leaf.end <= trained)?;
        }
        self.make_gradient(shard_axis)
    }

    /// Trains what is to be trained after so many openings of gradual unfreezing, from now on: after `taken` optimizer steps.
    /// Nothing is closed again.
    pub(super) fn open(&mut self, openings: u32, taken: u64, shard_axis: &dyn Collectives) -> Result<(), ShardError> {
        let trained = self.layout.trained_numel(openings);
        if trained <= self.trained {
            return Ok(());
        }
        for (run, begun) in self.layout.runs.iter().zip(&mut self.begun) {
            if run.begin >= self.trained && run.end <= trained {
                *begun = taken;
            }
        }
        let numel = trained_within(&self.owned(), trained);
        let device = self.flat.device();
        for moment in [&mut self.first_moment, &mut self.second_moment] {
            if moment.numel() < numel {
                let grown = zeros(numel, moment.kind(), moment.device(), device)?;
                grown.f_narrow(0, 0, moment.numel() as i64)?.f_copy_(moment)?;
                *moment = grown;
            }
        }
        self.train(trained, shard_axis)
    }

    /// Whether any of it is trained now, so that it is reduced and published.
    pub fn is_trained(&self) -> bool {
        self.trained > 0
    }

    /// Whether a leaf is trained now.
    pub fn leaf_is_trained(&self, leaf: usize) -> bool {
        self.layout.leaves[leaf].end <= self.trained
    }

    /// How many optimizer steps were taken before a leaf was trained; none while it is not.
    pub fn leaf_begun(&self, leaf: usize) -> Option<u64> {
        let group = self.layout.leaves[leaf].group;
        let run = self.layout.runs.iter().position(|run| run.group == group)?;
        self.leaf_is_trained(leaf).then(|| self.begun[run])
    }

    /// The runs that are trained now, each with how many optimizer steps were taken before it was.
    pub fn trained_runs(&mut self) -> impl Iterator<Item = (&Run, &mut u64)> {
        let trained = self.trained;
        self.layout.runs.iter().zip(&mut self.begun).filter(move |(run, _)| run.end <= trained)
    }

    /// The leaves, in the order of the model's specification. At stage 3 valid only while gathered.
    pub fn leaves(&self) -> &[Tensor] {
        &self.leaves
    }

    /// Points the flat parameter and all its views at `pointer`.
    ///
    /// # Safety
    /// As [`repoint_storage`]: `numel` elements there stay valid and unchanged while they are used.
    pub(super) unsafe fn point_at(&self, pointer: *mut c_void) -> Result<(), ShardError> {
        let bytes = self.layout.numel * self.flat.kind().elt_size_in_bytes();
        // SAFETY: passed on to the caller.
        Ok(unsafe { repoint_storage(&self.flat, pointer, bytes) }?)
    }

    fn shard_of(&self, tensor: &Tensor) -> Result<Tensor, ShardError> {
        if tensor.numel() == self.shard.len() && tensor.numel() != self.layout.numel {
            return Ok(tensor.shallow_clone());
        }
        Ok(tensor.f_narrow(0, self.shard.start as i64, self.shard.len() as i64)?)
    }

    /// This rank's shard of the gradient, a view.
    pub fn own_gradient(&self) -> Result<Tensor, ShardError> {
        self.shard_of(&self.gradient)
    }

    /// This rank's shard of the parameters in the compute type, a view. Not at stage 3.
    pub(super) fn own_parameters(&self) -> Result<Tensor, ShardError> {
        self.shard_of(&self.flat)
    }

    /// This rank's shards of masters, first and second moments: views, what checkpoints keep, at every stage. Of moments there
    /// is the beginning alone, as far as it is trained.
    pub fn own_state(&self) -> Result<[Tensor; 3], ShardError> {
        Ok([self.shard_of(&self.master)?, self.own_moment(&self.first_moment)?, self.own_moment(&self.second_moment)?])
    }

    fn own_moment(&self, moment: &Tensor) -> Result<Tensor, ShardError> {
        let begin = if self.stage.shards_optimizer() { 0 } else { self.shard.start.min(self.trained) };
        Ok(moment.f_narrow(0, begin as i64, trained_within(&self.shard, self.trained) as i64)?)
    }

    /// The owned state in full: masters, first and second moments.
    pub(super) fn owned_state(&self) -> [&Tensor; 3] {
        [&self.master, &self.first_moment, &self.second_moment]
    }

    /// Writes masters into the parameters where they are different memory.
    pub(super) fn cast_masters(&mut self) -> Result<(), ShardError> {
        if self.apart {
            let mut target =
                if self.stage.shards_optimizer() { self.own_parameters()? } else { self.flat.shallow_clone() };
            target.f_copy_(&self.master)?;
        }
        Ok(())
    }

    /// The owned range of the flat parameter.
    fn owned(&self) -> Range<usize> {
        if self.stage.shards_optimizer() { self.shard.clone() } else { 0..self.layout.numel }
    }

    /// What is trained of the owned range, cut into runs by parameter group. Gradients come in the type of the masters, and to
    /// where they lie.
    pub fn owned_runs(&self) -> Result<Vec<OwnedRun>, ShardError> {
        if !self.is_trained() {
            return Ok(Vec::new());
        }
        let owned = self.owned();
        let gradient = if self.stage.shards_optimizer() { self.own_gradient()? } else { self.gradient.shallow_clone() };
        let runs = self.layout.runs_within(owned.clone()).into_iter().filter(|run| run.end <= self.trained);
        runs.map(|run| {
            let (begin, length) = ((run.begin - owned.start) as i64, (run.end - run.begin) as i64);
            let whole = self.layout.runs.iter().position(|whole| whole.group == run.group);
            Ok(OwnedRun {
                group: run.group,
                begun: whole.map_or(0, |index| self.begun[index]),
                master: self.master.f_narrow(0, begin, length)?,
                gradient: gradient
                    .f_narrow(0, begin, length)?
                    .f_to_device(self.master.device())?
                    .f_to_kind(self.master.kind())?,
                first_moment: self.first_moment.f_narrow(0, begin, length)?,
                second_moment: self.second_moment.f_narrow(0, begin, length)?,
            })
        })
        .collect()
    }

    /// True when the unit's masters are stored apart from its parameters.
    pub(super) fn has_masters(&self) -> bool {
        self.apart
    }
}
