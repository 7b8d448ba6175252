//! Sharding: makes a unit's full parameters exist and vanish, and turns full gradients into gradient shards.
//!
//! | stage | parameters between uses | gradients | optimizer state |
//! | --- | --- | --- | --- |
//! | 0 | full | full, all-reduced when the window ends | full |
//! | 1 | full | full, reduce-scattered when the window ends | shard |
//! | 2 | full | shard, reduced as each unit finishes | shard |
//! | 3 | shard, gathered per unit | shard | shard |
//!
//! The same reductions over the same flat parameters in the same order at every stage are why stages 0 and 1, and 2 and
//! 3, agree to the bit, and all four at one micro-batch per step (Rajbhandari et al., "ZeRO", 2020; Zhao et al.,
//! "PyTorch FSDP", 2023).

mod buffers;
mod files;
mod poison;
mod unit;

pub use unit::{OwnedRun, Unit};

use crate::comm::{Collectives, CommError};
use crate::torch::ShimError;
use buffers::GatherBuffers;
use poison::Poison;
use std::rc::Rc;
use tch::{Device, Kind, TchError, Tensor};
use thiserror::Error;
use zerofold_configs::Stage;
use zerofold_plan::{Layout, StateBytes};

/// Why sharding failed.
#[derive(Debug, Error)]
pub enum ShardError {
    /// A collective failed.
    #[error("unit {unit}: {source}")]
    Collective {
        /// The unit's name.
        unit: String,
        /// What failed.
        source: CommError,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] TchError),
    /// The shim failed.
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// Every gather buffer is in use.
    #[error("unit {0} cannot be gathered: every gather buffer is in use; a unit was not released")]
    NoBuffer(String),
    /// Reading the model's files failed.
    #[error(transparent)]
    Files(#[from] zerofold_checkpoint::CheckpointError),
    /// A parameter of the model's files does not have the shape that its configuration implies.
    #[error("{name}: the model's files have shape {found:?}, its config.json implies {expected:?}")]
    Shape {
        /// The parameter.
        name: String,
        /// In the files.
        found: Vec<usize>,
        /// By the configuration.
        expected: Vec<usize>,
    },
    /// The poison mapping could not be made.
    #[error("mapping {bytes} bytes that stand for released parameters failed: {source}")]
    Poison {
        /// The size.
        bytes: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

/// All units of a model, sharded over the ranks of a group.
pub struct Shards {
    /// The units, in the order of the forward pass.
    pub units: Vec<Unit>,
    layout: Layout,
    stage: Stage,
    comm: Rc<dyn Collectives>,
    buffers: GatherBuffers,
    /// Stages 2 and 3: where a unit's full gradient is put together before it is reduced; one for units that come and
    /// go, one for the unit that stays gathered, whose gradient is open from the loss to the embedding.
    scratch: [Option<Tensor>; 2],
    // Released units point at it, so it goes last.
    poison: Poison,
}

impl Shards {
    /// Allocates what this rank keeps of `layout` at `stage`, with parameters in `compute` (float32 or bfloat16).
    /// Parameters are undefined until [`Shards::load`] or [`Shards::restore`].
    pub fn new(layout: Layout, stage: Stage, compute: Kind, comm: Rc<dyn Collectives>) -> Result<Self, ShardError> {
        let largest = |stays: bool| {
            let units = layout.units.iter().filter(|unit| unit.stays_gathered == stays);
            units.map(|unit| unit.numel).max().unwrap_or(0) as i64
        };
        let element = compute.elt_size_in_bytes();
        let bytes = largest(false).max(largest(true)) as usize * element;
        let poison = Poison::new(if stage.shards_parameters() { bytes } else { 0 })
            .map_err(|source| ShardError::Poison { bytes, source })?;
        let buffers = GatherBuffers::new(
            if stage.shards_parameters() { largest(false) } else { 0 },
            if stage.shards_parameters() { largest(true) } else { 0 },
            compute,
        )?;
        let units = layout
            .units
            .iter()
            .map(|unit| Unit::new(unit.clone(), stage, compute, comm.rank()))
            .collect::<Result<Vec<_>, _>>()?;
        let scratch = [false, true].map(|stays| {
            let numel = if stage.shards_gradients() { largest(stays) } else { 0 };
            (numel > 0).then(|| Tensor::f_zeros([numel], (Kind::Float, Device::Cpu))).transpose()
        });
        let [passing, staying] = scratch;
        let shards = Shards { units, layout, stage, comm, buffers, scratch: [passing?, staying?], poison };
        for index in 0..shards.units.len() {
            shards.point_at_poison(index)?;
        }
        Ok(shards)
    }

    /// The layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The stage.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The group.
    pub fn comm(&self) -> &dyn Collectives {
        self.comm.as_ref()
    }

    fn collective<T>(&self, unit: usize, result: Result<T, CommError>) -> Result<T, ShardError> {
        result.map_err(|source| ShardError::Collective { unit: self.layout.units[unit].name.clone(), source })
    }

    fn point_at_poison(&self, index: usize) -> Result<(), ShardError> {
        if self.stage.shards_parameters() {
            let unit = &self.units[index];
            // SAFETY: the poison mapping covers the largest unit and outlives the units; nothing may use the values.
            unsafe { unit.point_at(self.poison.pointer())? };
        }
        Ok(())
    }

    /// Makes the unit's full parameters exist. At stages 0 to 2 they always do.
    pub fn gather(&mut self, index: usize) -> Result<(), ShardError> {
        if !self.stage.shards_parameters() {
            return Ok(());
        }
        let (numel, shard, stays) = {
            let layout = &self.units[index].layout;
            (layout.numel, layout.shard(self.comm.rank()), layout.stays_gathered)
        };
        let Some(slot) = self.buffers.acquire(index, stays) else {
            return Err(ShardError::NoBuffer(self.layout.units[index].name.clone()));
        };
        let full = self.buffers.tensor(slot.buffer).f_narrow(0, 0, numel as i64)?;
        if !slot.filled {
            let mut mine = full.f_narrow(0, shard.start as i64, shard.len() as i64)?;
            mine.f_copy_(&self.units[index].master)?;
            self.collective(index, self.comm.all_gather_into(&full, &mine))?;
        }
        // SAFETY: the buffer holds this unit until it is released, outlives the units, and is written only when free.
        unsafe { self.units[index].point_at(full.data_ptr())? };
        Ok(())
    }

    /// Lets the unit's full parameters vanish. Their bytes stay in the buffer until it is needed, so that gathering the
    /// last released units again costs nothing. A unit that stays gathered is kept until [`Shards::finish_step`].
    pub fn release(&mut self, index: usize) -> Result<(), ShardError> {
        if !self.stage.shards_parameters() || self.units[index].layout.stays_gathered {
            return Ok(());
        }
        self.buffers.release(index);
        self.point_at_poison(index)
    }

    /// Prepares gradients for an accumulation window: all are zero.
    pub fn begin_window(&mut self) -> Result<(), ShardError> {
        for unit in &mut self.units {
            let _zeroed = unit.gradient.f_zero_()?;
        }
        Ok(())
    }

    /// Opens the unit's full float32 gradient for one micro-batch. At stages 2 and 3 it starts at zero; at 0 and 1 it
    /// goes on from the window's earlier micro-batches.
    pub fn begin_gradient(&mut self, index: usize) -> Result<(), ShardError> {
        if self.stage.shards_gradients() {
            let _zeroed = self.full_gradient(index)?.f_zero_()?;
        }
        Ok(())
    }

    fn full_gradient(&self, index: usize) -> Result<Tensor, ShardError> {
        let unit = &self.units[index];
        match &self.scratch[usize::from(unit.layout.stays_gathered)] {
            Some(scratch) => Ok(scratch.f_narrow(0, 0, unit.layout.numel as i64)?),
            None => Ok(unit.gradient.shallow_clone()),
        }
    }

    /// The part of the unit's open full gradient that belongs to a leaf, in the leaf's shape: float32, to be added to.
    pub fn leaf_gradient(&self, index: usize, leaf: usize) -> Result<Tensor, ShardError> {
        let place = &self.units[index].layout.leaves[leaf];
        let shape: Vec<i64> = place.shape.iter().map(|&size| size as i64).collect();
        let flat = self.full_gradient(index)?;
        Ok(flat.f_narrow(0, place.begin as i64, (place.end - place.begin) as i64)?.f_view(shape.as_slice())?)
    }

    /// Closes the unit's gradient of one micro-batch. At stages 2 and 3 it is reduced and added to the shard.
    pub fn finish_gradient(&mut self, index: usize) -> Result<(), ShardError> {
        if !self.stage.shards_gradients() {
            return Ok(());
        }
        let full = self.full_gradient(index)?;
        let shard = self.units[index].layout.shard(self.comm.rank());
        let mine = full.f_narrow(0, shard.start as i64, shard.len() as i64)?;
        self.collective(index, self.comm.reduce_scatter_into(&mine, &full))?;
        let _sum = self.units[index].gradient.f_add_(&mine)?;
        Ok(())
    }

    /// Ends the window: every unit's gradient shard is the sum over all ranks and micro-batches.
    pub fn finish_window(&mut self) -> Result<(), ShardError> {
        if self.stage.shards_gradients() {
            return Ok(());
        }
        for index in 0..self.units.len() {
            let mine = self.units[index].own_gradient()?;
            self.collective(index, self.comm.reduce_scatter_into(&mine, &self.units[index].gradient))?;
        }
        Ok(())
    }

    /// Stage 0: completes the all-reduce, so that every rank has all gradients, as its optimizer needs them.
    pub fn share_gradients(&mut self) -> Result<(), ShardError> {
        if self.stage.shards_optimizer() {
            return Ok(());
        }
        for index in 0..self.units.len() {
            let mine = self.units[index].own_gradient()?;
            self.collective(index, self.comm.all_gather_into(&self.units[index].gradient, &mine))?;
        }
        Ok(())
    }

    /// Makes updated masters visible as parameters, and forgets what was gathered of the old ones.
    pub fn finish_step(&mut self) -> Result<(), ShardError> {
        self.forget_gathered()?;
        if self.stage.shards_parameters() {
            return Ok(());
        }
        for index in 0..self.units.len() {
            self.units[index].cast_masters()?;
            if self.stage.shards_optimizer() {
                let mine = self.units[index].own_parameters()?;
                self.collective(index, self.comm.all_gather_into(&self.units[index].flat, &mine))?;
            }
        }
        Ok(())
    }

    /// Stage 3: releases every unit, the one that stays gathered too.
    pub fn forget_gathered(&mut self) -> Result<(), ShardError> {
        for index in 0..self.units.len() {
            self.point_at_poison(index)?;
        }
        self.buffers.forget();
        Ok(())
    }

    /// Persistent bytes that this rank holds, counted over its tensors.
    pub fn state_bytes(&self) -> StateBytes {
        let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        let mut total = StateBytes::default();
        for unit in &self.units {
            let masters_are_parameters = unit.flat.kind() == Kind::Float;
            if self.stage.shards_parameters() {
                *(if masters_are_parameters { &mut total.parameters } else { &mut total.masters }) +=
                    bytes(&unit.master);
            } else {
                total.parameters += bytes(&unit.flat);
                total.masters += if masters_are_parameters { 0 } else { bytes(&unit.master) };
            }
            total.gradients += bytes(&unit.gradient);
            total.moments += bytes(&unit.first_moment) + bytes(&unit.second_moment);
        }
        total
    }

    /// Bytes of the gather buffers, which exist at stage 3 only.
    pub fn gather_buffer_bytes(&self) -> usize {
        self.buffers.bytes()
    }
}

#[cfg(test)]
mod tests;
