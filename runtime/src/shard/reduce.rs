//! Gradients: a unit's full gradient is put together, reduced, and kept as a shard.
//!
//! A reduction is started when the unit's gradient is complete and finished later, while backward goes on with the units
//! before it. At stages 2 and 3 that is each micro-batch; at 0 and 1 the last micro-batch of the window. Reductions finish
//! in the order in which they were started, so a unit's micro-batches are added up in theirs.

use super::{ShardError, Shards, Unit};
use crate::comm::{Collectives, Pending};
use crate::torch::add;
use std::collections::VecDeque;
use std::ops::Range;
use tch::{Kind, Tensor};

/// Reductions under way at once. With two, one unit's can be on its way while the next unit's gradient is put together.
const IN_FLIGHT: usize = 2;

/// A place where full gradients are put together at stages 2 and 3.
struct Scratch {
    tensor: Tensor,
    /// The unit whose gradient lies here, open or on its way.
    unit: Option<usize>,
}

/// A started reduction.
struct Reduction {
    unit: usize,
    /// This rank's part of the sum, once it is there.
    result: Tensor,
    pending: Pending,
}

/// Full gradients and the reductions under way.
pub(super) struct Gradients {
    /// Stages 2 and 3: [`IN_FLIGHT`] places for units that come and go, then one for each that stays open from its last
    /// use to its first.
    scratch: Vec<Scratch>,
    /// The places that each unit may use.
    candidates: Vec<Range<usize>>,
    under_way: VecDeque<Reduction>,
    /// What gradients are sent in, as a copy; none where they are float32 throughout and are sent as they lie.
    wire: Option<Kind>,
    /// The window's last micro-batch: stages 0 and 1 reduce in it.
    last_micro_batch: bool,
    /// Gradients are squared before they are reduced, and added to the Fisher information.
    squares: bool,
}

impl Gradients {
    /// Places for units given as (elements, or 0 of what is never trained, and whether it stays), whose gradients accumulate in
    /// `accumulate` and are reduced by `comm`; no units at stages 0 and 1.
    pub(super) fn new(
        units: &[(usize, bool)],
        accumulate: Kind,
        wire: Option<Kind>,
        comm: &dyn Collectives,
    ) -> Result<Self, ShardError> {
        let (sizes, candidates) = super::buffers::shared_and_own(units, IN_FLIGHT);
        let scratch = sizes
            .into_iter()
            .map(|numel| comm.allocate(numel as i64, accumulate))
            .map(|tensor| Ok(Scratch { tensor: tensor?, unit: None }))
            .collect::<Result<_, ShardError>>()?;
        Ok(Gradients { scratch, candidates, under_way: VecDeque::new(), wire, last_micro_batch: true, squares: false })
    }

    /// The places themselves.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.scratch.iter().map(|scratch| &scratch.tensor)
    }

    /// Whether gradients are squared from now on; none is on its way.
    pub(super) fn square(&mut self, squares: bool) {
        self.squares = squares;
    }

    /// Bytes of the places for full gradients.
    pub(super) fn bytes(&self) -> usize {
        self.tensors().map(|tensor| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum()
    }
}

impl Shards {
    /// Prepares gradients for an accumulation window: all are zero.
    pub fn begin_window(&mut self) -> Result<(), ShardError> {
        for unit in self.units.iter_mut().filter(|unit| unit.is_trained()) {
            let _zeroed = unit.gradient.f_zero_()?;
        }
        Ok(())
    }

    /// Tells whether the micro-batch that begins now is the window's last.
    pub fn begin_micro_batch(&mut self, last: bool) {
        self.gradients.last_micro_batch = last;
    }

    /// Opens the unit's full gradient for one micro-batch. At stages 2 and 3 it starts at zero; at 0 and 1 it goes on from
    /// the window's earlier micro-batches.
    pub fn begin_gradient(&mut self, index: usize) -> Result<(), ShardError> {
        if !self.shards_gradients() {
            return Ok(());
        }
        // The unit's last micro-batch may still be on its way.
        while self.gradients.under_way.iter().any(|reduction| reduction.unit == index) {
            self.finish_oldest()?;
        }
        let place = loop {
            let free = |place: &usize| self.gradients.scratch[*place].unit.is_none();
            match self.gradients.candidates[index].clone().find(free) {
                Some(place) => break place,
                None if self.gradients.under_way.is_empty() => {
                    return Err(ShardError::NoBuffer(self.layout.units[index].name.clone()));
                }
                None => self.finish_oldest()?,
            }
        };
        self.gradients.scratch[place].unit = Some(index);
        let _zeroed = self.full_gradient(index)?.f_zero_()?;
        Ok(())
    }

    fn full_gradient(&self, index: usize) -> Result<Tensor, ShardError> {
        let unit = &self.units[index];
        if !self.shards_gradients() {
            return Ok(unit.gradient.shallow_clone());
        }
        match self.gradients.scratch.iter().find(|scratch| scratch.unit == Some(index)) {
            Some(scratch) => Ok(scratch.tensor.f_narrow(0, 0, unit.layout.numel as i64)?),
            None => Err(ShardError::NoBuffer(unit.layout.name.clone())),
        }
    }

    /// The part of the unit's open full gradient that belongs to a leaf, in the leaf's shape and the type of
    /// accumulation: to be added to.
    pub fn leaf_gradient(&self, index: usize, leaf: usize) -> Result<Tensor, ShardError> {
        let place = &self.units[index].layout.leaves[leaf];
        let shape: Vec<i64> = place.shape.iter().map(|&size| size as i64).collect();
        let flat = self.full_gradient(index)?;
        Ok(flat.f_narrow(0, place.begin as i64, (place.end - place.begin) as i64)?.f_view(shape.as_slice())?)
    }

    /// Closes the unit's gradient of one micro-batch, and starts to reduce it where the stage does so now.
    pub fn finish_gradient(&mut self, index: usize) -> Result<(), ShardError> {
        if !self.shards_gradients() && !self.gradients.last_micro_batch {
            return Ok(());
        }
        while self.gradients.under_way.len() >= IN_FLIGHT {
            self.finish_oldest()?;
        }
        let full = self.full_gradient(index)?;
        let shard = self.layout.units[index].shard(self.place());
        // Squares need the range and digits of float32, whatever gradients are in.
        let (full, wire) = match self.gradients.squares {
            true => (self.squared(&full)?, None),
            false => (full, self.gradients.wire),
        };
        let (sent, result) = match wire {
            Some(wire) => {
                let result = Tensor::f_empty([shard.len() as i64], (Kind::Float, full.device()))?;
                let sent = if full.kind() == wire {
                    full.shallow_clone()
                } else {
                    let mut cast = self.shard_axis.scratch(full.numel() as i64, wire)?;
                    cast.f_copy_(&full)?;
                    cast
                };
                (sent, result)
            }
            None => (full.shallow_clone(), full.f_narrow(0, shard.start as i64, shard.len() as i64)?),
        };
        let pending = self.start(index, || self.shard_axis.start_reduce_scatter_into(&result, &sent))?;
        self.gradients.under_way.push_back(Reduction { unit: index, result, pending });
        Ok(())
    }

    /// The squares of a full gradient in float32: where it lies, if it is of that type.
    fn squared(&self, full: &Tensor) -> Result<Tensor, ShardError> {
        let mut squares = full.shallow_clone();
        if full.kind() != Kind::Float {
            squares = self.shard_axis.scratch(full.numel() as i64, Kind::Float)?;
            squares.f_copy_(full)?;
        }
        Ok(squares.f_square_()?)
    }

    /// Finishes the reduction that was started first.
    fn finish_oldest(&mut self) -> Result<(), ShardError> {
        let Some(Reduction { unit, result, pending }) = self.gradients.under_way.pop_front() else { return Ok(()) };
        self.collective(unit, pending.wait())?;
        let mut own = self.units[unit].own_gradient()?;
        if self.gradients.squares {
            self.add_to_fisher(unit, &result)?;
        } else if self.shards_gradients() {
            add(&own, &result)?;
        } else if own.data_ptr() != result.data_ptr() {
            own.f_copy_(&result)?;
        }
        for scratch in self.gradients.scratch.iter_mut().filter(|scratch| scratch.unit == Some(unit)) {
            scratch.unit = None;
        }
        Ok(())
    }

    /// Ends the window: every unit's gradient shard is the sum over all ranks and micro-batches. Copies of the shards
    /// (hybrid sharding) are summed here, once a window.
    pub fn finish_window(&mut self) -> Result<(), ShardError> {
        while !self.gradients.under_way.is_empty() {
            self.finish_oldest()?;
        }
        let Some(replicate_axis) = self.replicate_axis.as_ref().filter(|_| !self.gradients.squares) else {
            return Ok(());
        };
        let trained = self.units.iter().filter(|unit| unit.is_trained());
        let own = trained.map(Unit::own_gradient).collect::<Result<Vec<_>, _>>()?;
        replicate_axis.about("all copies");
        replicate_axis.all_reduce_each(&own).map_err(ShardError::Group)
    }

    /// Stage 0: completes the all-reduce, so that every rank has all gradients, as its optimizer needs them.
    pub fn share_gradients(&mut self) -> Result<(), ShardError> {
        if self.shards_optimizer() {
            return Ok(());
        }
        let mut arriving = Vec::with_capacity(self.units.len());
        for (index, unit) in self.units.iter().enumerate().filter(|(_, unit)| unit.is_trained()) {
            let own = unit.own_gradient()?;
            let started = self.start(index, || self.shard_axis.start_all_gather_into(&unit.gradient, &own))?;
            arriving.push((index, started));
        }
        arriving.into_iter().try_for_each(|(index, pending)| self.collective(index, pending.wait()))
    }

    /// Gives up the window: gradients that were put together or are under way are thrown away.
    pub fn abandon_window(&mut self) -> Result<(), ShardError> {
        while !self.gradients.under_way.is_empty() {
            self.finish_oldest()?;
        }
        self.gradients.scratch.iter_mut().for_each(|scratch| scratch.unit = None);
        Ok(())
    }

    /// Closes the unit's gradient without reducing it; tells the first of the unit's parameters, its `leaves` taken in the
    /// order given, whose gradient on this rank is not finite.
    pub fn inspect_gradient(&mut self, index: usize, leaves: &[usize]) -> Result<Option<usize>, ShardError> {
        let flat = self.full_gradient(index)?;
        let found = self.first_not_finite(index, &flat, leaves)?;
        for scratch in self.gradients.scratch.iter_mut().filter(|scratch| scratch.unit == Some(index)) {
            scratch.unit = None;
        }
        Ok(found)
    }

    /// The first of a gathered unit's parameters whose values are not finite.
    pub fn inspect_parameters(&self, index: usize) -> Result<Option<usize>, ShardError> {
        let leaves: Vec<usize> = (0..self.layout.units[index].leaves.len()).collect();
        self.first_not_finite(index, &self.units[index].flat, &leaves)
    }

    fn first_not_finite(&self, index: usize, flat: &Tensor, leaves: &[usize]) -> Result<Option<usize>, ShardError> {
        let parameters: Vec<_> = self.layout.units[index].parameters().collect();
        for place in leaves.iter().flat_map(|&leaf| self.layout.units[index].parameters_of(leaf)) {
            let (begin, end) = (parameters[place].begin as i64, parameters[place].end as i64);
            if flat.f_narrow(0, begin, end - begin)?.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }
}
