//! The loss on held-out rows.

use super::run::Rows;
use super::{TrainError, Trainer};
use crate::comm::Phase;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// What an evaluation gave, over all ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Evaluation {
    /// Mean loss over all supervised tokens, whatever rank and batch they were in.
    pub(super) loss: f64,
    /// How many those are.
    pub(super) supervised_tokens: u64,
    /// Wall-clock time.
    pub(super) elapsed: Duration,
}

impl Trainer {
    /// The token-weighted mean loss over `held_out`, `batch_size` rows or packs at a time on each rank. All ranks run equally
    /// many batches, since each may gather parameters; a rank without rows runs an empty one.
    pub(super) fn evaluate(&mut self, held_out: &Rows, batch_size: usize) -> Result<Evaluation, TrainError> {
        let _no_grad = tch::no_grad_guard();
        let began = Instant::now();
        self.enter(Phase::Evaluation);
        let (rank, world_size) = (self.shards.comm().rank(), self.shards.comm().world_size());
        let items: Vec<u32> = (0..held_out.collator.count() as u32).collect();
        let mut sum = Tensor::f_zeros([0i64; 0], (Kind::Double, self.model.device()))?;
        let mut supervised = 0;
        for window in items.chunks(batch_size * world_size) {
            let part = window.chunks(batch_size).nth(rank).unwrap_or(&[]);
            let batch = held_out.batch(part)?;
            sum = sum.f_add_(&self.pass_with(0, None).forward(&batch)?)?;
            supervised += batch.supervised;
        }
        self.shards.forget_gathered()?;
        let all = self.shards.comm().exchange(&[sum.f_double_value(&[])?, supervised as f64])?;
        let (sum, count) = all.iter().fold((0.0, 0.0), |(sum, count), part| (sum + part[0], count + part[1]));
        Ok(Evaluation { loss: sum / count, supervised_tokens: count as u64, elapsed: began.elapsed() })
    }
}
