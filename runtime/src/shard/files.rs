//! From model files into shards, and from shards to whole parameters again.

use super::{ShardError, Shards};
use crate::torch::float_slice_mut;
use tch::{Device, Kind, Tensor};
use zerofold_checkpoint::ModelFiles;

impl Shards {
    /// Reads this rank's shards, and nothing else, from a model's files, whatever type they are in; then makes the
    /// parameters exist as the stage wants them.
    pub fn load(&mut self, files: &ModelFiles) -> Result<(), ShardError> {
        for unit in &mut self.units {
            let shard = unit.layout.shard(self.comm.rank());
            let [mut master, _, _] = unit.own_state()?;
            let values = float_slice_mut(&mut master)?;
            for parameter in unit.layout.parameters() {
                let found = files.entry(&parameter.name)?.shape.clone();
                if found != parameter.shape {
                    return Err(ShardError::Shape {
                        name: parameter.name.clone(),
                        found,
                        expected: parameter.shape.clone(),
                    });
                }
                let (begin, end) = (parameter.begin.max(shard.start), parameter.end.min(shard.end));
                if begin < end {
                    let elements = begin - parameter.begin..end - parameter.begin;
                    files.read_f32(&parameter.name, elements, &mut values[begin - shard.start..end - shard.start])?;
                }
            }
        }
        self.share_state()
    }

    /// After this rank's shards of masters and moments were written (by [`Shards::load`] or from a checkpoint): gives
    /// every rank what its stage owns, and publishes the parameters.
    pub fn share_state(&mut self) -> Result<(), ShardError> {
        if !self.stage.shards_optimizer() {
            for index in 0..self.units.len() {
                let parts = self.units[index].own_state()?;
                for (full, mine) in self.units[index].owned_state().into_iter().zip(&parts) {
                    self.collective(index, self.comm.all_gather_into(full, mine))?;
                }
            }
        }
        self.finish_step()
    }

    /// Gathers each unit's float32 masters in turn and hands them to `visit` with the unit's index. Every rank calls
    /// this; at most one unit exists in full at a time.
    pub fn for_each_full_master<E: From<ShardError>>(
        &self,
        mut visit: impl FnMut(usize, &[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let largest = self.layout.units.iter().map(|unit| unit.numel).max().unwrap_or(0) as i64;
        let space = Tensor::f_empty([largest], (Kind::Float, Device::Cpu)).map_err(ShardError::from)?;
        for index in 0..self.units.len() {
            let numel = self.layout.units[index].numel as i64;
            let mut full = space.f_narrow(0, 0, numel).map_err(ShardError::from)?;
            let [master, _, _] = self.units[index].own_state()?;
            self.collective(index, self.comm.all_gather_into(&full, &master))?;
            visit(index, float_slice_mut(&mut full).map_err(ShardError::from)?)?;
        }
        Ok(())
    }
}
