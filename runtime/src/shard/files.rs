//! From model files into shards, and from shards to whole parameters again.

use super::{ShardError, Shards};
use crate::torch::float_slice_mut;
use std::ops::Range;
use tch::{Device, Kind, TchError, Tensor};
use zerofold_checkpoint::{CheckpointError, STATES, Weights};
use zerofold_plan::UnitLayout;

/// Elements that are converted or copied at a time where a state is not float32 in host memory: as many bytes as are read
/// from a file at a time.
pub(super) const CHUNK: usize = 1 << 18;

/// Hands the float32 values of a flat tensor to `read`, piece by piece, with the range that each covers.
pub fn for_each_float_chunk<E: From<ShardError>>(
    tensor: &Tensor,
    mut read: impl FnMut(Range<usize>, &[f32]) -> Result<(), E>,
) -> Result<(), E> {
    let numel = tensor.numel();
    if is_float_in_host_memory(tensor) {
        let mut tensor = tensor.shallow_clone();
        return read(0..numel, float_slice_mut(&mut tensor).map_err(ShardError::from)?);
    }
    let staging = staging(tensor.device(), numel).map_err(ShardError::from)?;
    for begin in (0..numel).step_by(CHUNK) {
        let end = numel.min(begin + CHUNK);
        let length = (end - begin) as i64;
        let part = tensor.f_narrow(0, begin as i64, length);
        let mut staged = staging.f_narrow(0, 0, length).map_err(ShardError::from)?;
        part.and_then(|part| staged.f_copy_(&part)).map_err(ShardError::from)?;
        read(begin..end, float_slice_mut(&mut staged).map_err(ShardError::from)?)?;
    }
    Ok(())
}

fn is_float_in_host_memory(tensor: &Tensor) -> bool {
    tensor.kind() == Kind::Float && tensor.device() == Device::Cpu
}

/// Float32 host memory for a chunk. What comes from a device goes through pages that the system may not move, without a
/// detour.
fn staging(from: Device, numel: usize) -> Result<Tensor, TchError> {
    let staging = Tensor::f_zeros([CHUNK.min(numel) as i64], (Kind::Float, Device::Cpu))?;
    if from == Device::Cpu { Ok(staging) } else { staging.f_pin_memory(from) }
}

/// Fills a flat tensor with float32 values that `write` puts down piece by piece for the range that it is given.
pub fn fill_by_float_chunks<E: From<ShardError>>(
    tensor: &Tensor,
    mut write: impl FnMut(Range<usize>, &mut [f32]) -> Result<(), E>,
) -> Result<(), E> {
    let numel = tensor.numel();
    if is_float_in_host_memory(tensor) {
        let mut tensor = tensor.shallow_clone();
        return write(0..numel, float_slice_mut(&mut tensor).map_err(ShardError::from)?);
    }
    let mut values = vec![0.0; CHUNK.min(numel)];
    for begin in (0..numel).step_by(CHUNK) {
        let end = numel.min(begin + CHUNK);
        let values = &mut values[..end - begin];
        values.fill(0.0);
        write(begin..end, values)?;
        let part = tensor.f_narrow(0, begin as i64, values.len() as i64);
        part.and_then(|mut part| part.f_copy_(&Tensor::f_from_slice(values)?)).map_err(ShardError::from)?;
    }
    Ok(())
}

/// Fills a rank's shard of a unit, or its beginning, with a state of the unit's parameters.
pub(super) fn fill_from(
    tensor: &Tensor,
    layout: &UnitLayout,
    shard: &Range<usize>,
    (weights, state): (&Weights, &str),
) -> Result<(), ShardError> {
    fill_by_float_chunks(tensor, |range, values| {
        let wanted = shard.start + range.start..shard.start + range.end;
        for parameter in layout.parameters() {
            let (begin, end) = (parameter.begin.max(wanted.start), parameter.end.min(wanted.end));
            if begin < end {
                let elements = (begin - parameter.begin) as u64..(end - parameter.begin) as u64;
                let target = &mut values[begin - wanted.start..end - wanted.start];
                weights.read(&parameter.name, state, elements, target)?;
            }
        }
        Ok(())
    })
}

impl Shards {
    /// Reads this rank's shards of the masters, and nothing else, from a model's files or a checkpoint, whatever type they
    /// are in; then makes the parameters exist as the stage wants them.
    pub fn load(&mut self, weights: &Weights) -> Result<(), ShardError> {
        for parameter in self.layout.units.iter().flat_map(|unit| unit.parameters()) {
            let (shape, _) = weights.describe(&parameter.name)?;
            let found: Vec<usize> = shape.into_iter().map(|size| size as usize).collect();
            if found != parameter.shape {
                let (name, expected) = (parameter.name.clone(), parameter.shape.clone());
                return Err(ShardError::Shape { name, found, expected });
            }
        }
        self.read_state(weights, &STATES[..1])
    }

    /// Reads this rank's shards of these [`STATES`], and nothing else, of parameters that have this model's shapes; then
    /// makes the parameters exist as the stage wants them.
    pub fn read_state(&mut self, weights: &Weights, states: &[&str]) -> Result<(), ShardError> {
        for unit in &self.units {
            let shard = unit.layout.shard(self.place());
            for (state, tensor) in states.iter().zip(unit.own_state()?) {
                fill_from(&tensor, &unit.layout, &shard, (weights, state))?;
            }
        }
        self.share_state()
    }

    /// After this rank's shards of masters and moments were written: gives every rank what its stage owns, and publishes the parameters.
    pub fn share_state(&mut self) -> Result<(), ShardError> {
        if !self.shards_optimizer() {
            for index in 0..self.units.len() {
                let parts = self.units[index].own_state()?;
                // At stage 0 nothing is offloaded, so all of it lies on the device.
                for (full, mine) in self.units[index].owned_state().into_iter().zip(&parts) {
                    self.gather_state(index, full, mine)?;
                }
            }
        }
        (self.mask, self.stale) = (None, false);
        self.publish(|_| true)
    }

    /// Gathers a state of a unit, of which there is the beginning where not all is trained: then through memory for all of it.
    fn gather_state(&self, index: usize, full: &Tensor, mine: &Tensor) -> Result<(), ShardError> {
        let layout = &self.units[index].layout;
        if full.numel() == 0 {
            return Ok(());
        }
        if layout.shard_numel == layout.numel {
            // Alone, a rank has read all of it in its place.
            return Ok(());
        }
        if full.numel() == layout.numel {
            return self.collective(index, self.shard_axis.all_gather_into(full, mine));
        }
        let space = |numel: usize| Tensor::f_zeros([numel as i64], (full.kind(), full.device()));
        let (all, part) = (space(layout.numel)?, space(layout.shard_numel)?);
        part.f_narrow(0, 0, mine.numel() as i64)?.f_copy_(mine)?;
        self.collective(index, self.shard_axis.all_gather_into(&all, &part))?;
        let trained = all.f_narrow(0, 0, full.numel() as i64)?;
        full.shallow_clone().f_copy_(&trained)?;
        Ok(())
    }

    /// Gathers each unit's masters in turn and hands them, as float32, to `visit` with the unit's index. Every rank calls
    /// this; at most one unit exists in full at a time.
    pub fn for_each_full_master<E: From<ShardError> + From<CheckpointError>>(
        &self,
        mut visit: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let largest = self.layout.units.iter().map(|unit| unit.numel).max().unwrap_or(0) as i64;
        let device = self.comm.device();
        let space = Tensor::f_empty([largest], (self.kinds.master, device)).map_err(ShardError::from)?;
        for index in 0..self.units.len() {
            let numel = self.layout.units[index].numel as i64;
            let full = space.f_narrow(0, 0, numel).map_err(ShardError::from)?;
            let [master, _, _] = self.units[index].own_state()?;
            let master = master.f_to_device(device).map_err(ShardError::from)?;
            self.collective(index, self.shard_axis.all_gather_into(&full, &master))?;
            let values = full.f_to_device(Device::Cpu).and_then(|full| full.f_to_kind(Kind::Float));
            let mut values = values.map_err(ShardError::from)?;
            visit(index, float_slice_mut(&mut values).map_err(ShardError::from)?)?;
        }
        Ok(())
    }
}
