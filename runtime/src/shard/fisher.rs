//! The diagonal of the empirical Fisher information, sharded: how much each weight matters to what the model can do already.
//!
//! It is a mean of squared gradients of single examples. So each rank has one example at a time and squares its full gradient before
//! it is reduced: the sum over ranks is then one of squares. Each rank keeps its shard of what is ever trained, at every stage, in
//! float32 where the masters lie.

use super::files::fill_from;
use super::{ShardError, Shards, Unit};
use tch::{Kind, Tensor};
use zerofold_checkpoint::{FISHER, Weights};

impl Shards {
    /// Whether there is Fisher information.
    pub fn keeps_fisher(&self) -> bool {
        !self.fisher.is_empty()
    }

    /// Begins to estimate it, from zero. Until [`Shards::finish_fisher`] gradients are there of all that is ever trained, and those
    /// of each window, which has one micro-batch, are squared and added up. Every rank calls it.
    pub fn begin_fisher(&mut self) -> Result<(), ShardError> {
        self.train_now(u32::MAX)?;
        self.fisher = self.fisher_zeros()?;
        self.gradients.square(true);
        Ok(())
    }

    /// Ends the estimate: multiplies the sum over all windows and copies by `factor`. What is trained is what was at the start.
    pub fn finish_fisher(&mut self, factor: f64) -> Result<(), ShardError> {
        self.gradients.square(false);
        for fisher in &self.fisher {
            if let Some(replicate_axis) = &self.replicate_axis
                && fisher.numel() > 0
            {
                let sum = fisher.f_to_device(self.comm.device())?;
                replicate_axis.about("Fisher information");
                replicate_axis.all_reduce(&sum).map_err(ShardError::Group)?;
                fisher.shallow_clone().f_copy_(&sum)?;
            }
            let _mean = fisher.shallow_clone().f_mul_scalar_(factor)?;
        }
        self.train_now(0)
    }

    /// This rank's shard of a unit, as far as it is ever trained, if there is Fisher information.
    pub fn own_fisher(&self, unit: usize) -> Option<Tensor> {
        self.fisher.get(unit).map(Tensor::shallow_clone)
    }

    /// The sum of this rank's shards.
    pub fn fisher_sum(&self) -> Result<f64, ShardError> {
        let sums = self.fisher.iter().map(|fisher| fisher.f_sum(Kind::Double)?.f_double_value(&[]));
        Ok(sums.sum::<Result<f64, _>>()?)
    }

    /// Reads this rank's shards from a checkpoint that has them.
    pub fn read_fisher(&mut self, weights: &Weights) -> Result<(), ShardError> {
        let all = self.fisher_zeros()?;
        for (unit, fisher) in self.units.iter().zip(&all) {
            let shard = unit.layout.shard(self.place());
            fill_from(fisher, &unit.layout, &shard, (weights, FISHER))?;
        }
        self.fisher = all;
        Ok(())
    }

    /// Adds a unit's squared gradients, this rank's part of their sum.
    pub(super) fn add_to_fisher(&mut self, unit: usize, squares: &Tensor) -> Result<(), ShardError> {
        let mut fisher = self.fisher[unit].shallow_clone();
        let squares = squares.f_narrow(0, 0, fisher.numel() as i64)?.f_to_device(fisher.device())?;
        let _added = fisher.f_add_(&squares)?;
        Ok(())
    }

    fn fisher_zeros(&self) -> Result<Vec<Tensor>, ShardError> {
        let place = self.place();
        let zeros = |unit: &Unit| {
            let kept = super::trained_within(&unit.layout.shard(place), unit.layout.trained_numel(u32::MAX));
            Ok(Tensor::f_zeros([kept as i64], (Kind::Float, unit.master.device()))?)
        };
        self.units.iter().map(zeros).collect()
    }

    /// Gives gradients to what is trained after so many openings of gradual unfreezing, and to nothing else.
    fn train_now(&mut self, openings: u32) -> Result<(), ShardError> {
        let shard_axis = self.shard_axis.as_ref();
        self.units.iter_mut().try_for_each(|unit| unit.train(unit.layout.trained_numel(openings), shard_axis))
    }
}
