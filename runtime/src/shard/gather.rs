//! Gather and release: makes a unit's full parameters exist and vanish.

use super::{ShardError, Shards, Unit};
use crate::comm::Collectives;
use std::rc::Rc;
use tch::Tensor;

/// What is kept of each unit between forward and backward when `reshard_after_forward` is a group size: a shard over a
/// few neighbouring ranks, which then gather among themselves.
pub(super) struct GroupShards {
    /// The neighbours.
    pub(super) comm: Rc<dyn Collectives>,
    /// Each unit's part, in the compute type.
    pub(super) parts: Vec<Tensor>,
    /// Whether the part is that of the present masters.
    pub(super) filled: Vec<bool>,
}

impl Shards {
    /// Makes the unit's full parameters exist, and waits for them if they are on their way.
    pub fn gather(&mut self, index: usize) -> Result<(), ShardError> {
        if !self.shards_parameters() {
            // What the last step published may still be arriving.
            return match self.arriving[index].take() {
                Some(pending) => self.collective(index, pending.wait()),
                None => Ok(()),
            };
        }
        if self.buffers.in_use(index) {
            return Ok(());
        }
        if !self.start_gather(index)? {
            return Err(ShardError::NoBuffer(self.layout.units[index].name.clone()));
        }
        let numel = self.layout.units[index].numel as i64;
        let name = &self.layout.units[index].name;
        let taken = self.buffers.take(index);
        let full = taken.map_err(|source| ShardError::Collective { unit: name.clone(), source })?;
        let full = full.ok_or_else(|| ShardError::NoBuffer(name.clone()))?.f_narrow(0, 0, numel)?;
        // SAFETY: the buffer holds this unit until it is released, outlives the units, and is written only when free.
        unsafe { self.units[index].point_at(full.data_ptr()) }
    }

    /// Starts to gather a unit that will be needed soon, if there is a buffer for it.
    pub fn prefetch(&mut self, index: usize) -> Result<(), ShardError> {
        if self.shards_parameters() {
            self.start_gather(index)?;
        }
        Ok(())
    }

    /// Sees to it that the unit is there or on its way; false when no buffer is free.
    fn start_gather(&mut self, index: usize) -> Result<bool, ShardError> {
        if self.buffers.has(index) {
            return Ok(true);
        }
        let Some(free) = self.buffers.free(index) else { return Ok(false) };
        let full = self.buffers.tensor(free).f_narrow(0, 0, self.layout.units[index].numel as i64)?;
        let part_of = |comm: &dyn Collectives| {
            let length = (full.numel() / comm.world_size()) as i64;
            full.f_narrow(0, comm.rank() as i64 * length, length)
        };
        let pending = match &self.group {
            Some(group) if group.filled[index] => {
                let mut mine = part_of(group.comm.as_ref())?;
                mine.f_copy_(&group.parts[index])?;
                self.start(index, || group.comm.start_all_gather_into(&full, &mine))?
            }
            _ => {
                // The shard is cast once, straight into its place.
                let mut mine = part_of(self.shard_axis.as_ref())?;
                mine.f_copy_(&self.units[index].master)?;
                self.mix(index, &mine)?;
                self.start(index, || self.shard_axis.start_all_gather_into(&full, &mine))?
            }
        };
        self.buffers.started(free, index, pending);
        Ok(true)
    }

    /// Lets the unit's full parameters vanish. Their values stay in the buffer until it is needed, so that gathering the
    /// last released units again costs nothing.
    pub fn release(&mut self, index: usize) -> Result<(), ShardError> {
        if !self.shards_parameters() || !self.buffers.in_use(index) {
            return Ok(());
        }
        if let Some(group) = &mut self.group
            && !group.filled[index]
        {
            let part = &mut group.parts[index];
            let begin = (group.comm.rank() * part.numel()) as i64;
            part.f_copy_(&self.units[index].flat.f_narrow(0, begin, part.numel() as i64)?)?;
            group.filled[index] = true;
        }
        self.buffers.release(index);
        self.point_at_poison(index)
    }

    pub(super) fn point_at_poison(&self, index: usize) -> Result<(), ShardError> {
        if self.shards_parameters() {
            // SAFETY: the poison mapping covers the largest unit and outlives the units; nothing may use the values.
            unsafe { self.units[index].point_at(self.poison.pointer())? };
        }
        Ok(())
    }

    /// Makes updated masters visible as parameters, and forgets what was gathered of the old ones. At stages 1 and 2 the
    /// parameters are on their way when this returns; [`Shards::gather`] waits for them.
    ///
    /// With mixout this is left to [`Shards::show`], as what is to be seen depends on who looks.
    pub fn finish_step(&mut self) -> Result<(), ShardError> {
        self.stale = self.mixes;
        if self.mixes { Ok(()) } else { self.publish(Unit::is_trained) }
    }

    /// The same of the units that are `changed`.
    pub(super) fn publish(&mut self, changed: impl Fn(&Unit) -> bool) -> Result<(), ShardError> {
        self.forget_gathered()?;
        if let Some(group) = &mut self.group {
            group.filled.fill(false);
        }
        if self.shards_parameters() {
            return Ok(());
        }
        for index in (0..self.units.len()).filter(|&index| changed(&self.units[index])).collect::<Vec<_>>() {
            self.units[index].cast_masters()?;
            let mine = self.units[index].own_parameters()?;
            self.mix(index, &mine)?;
            if self.shards_optimizer() || self.mask.is_some() {
                let full = &self.units[index].flat;
                let started = self.start(index, || self.shard_axis.start_all_gather_into(full, &mine))?;
                self.arriving[index] = Some(started);
            }
        }
        Ok(())
    }

    /// Releases every unit, and waits for what is on its way.
    pub fn forget_gathered(&mut self) -> Result<(), ShardError> {
        for index in 0..self.units.len() {
            if let Some(pending) = self.arriving[index].take() {
                self.collective(index, pending.wait())?;
            }
            self.point_at_poison(index)?;
        }
        self.buffers.forget().map_err(ShardError::Group)
    }
}
