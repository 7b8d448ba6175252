//! The loss on held-out rows.

use super::run::Rows;
use super::step::{SourceLoss, token_accuracy};
use super::{TrainError, Trainer};
use crate::comm::Phase;
use std::ops::Range;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// What an evaluation gave, over all ranks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Evaluation {
    /// Mean loss over all supervised tokens, whatever rank and batch they were in.
    pub(super) loss: f64,
    /// The same of each source of rows.
    pub(super) sources: Vec<SourceLoss>,
    /// The share of supervised tokens that were the most probable ones.
    pub(super) token_accuracy: f64,
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
        self.shards.show(None)?;
        let (rank, world_size) = (self.shards.comm().rank(), self.shards.comm().world_size());
        let items: Vec<u32> = (0..held_out.collator.count() as u32).collect();
        let sources = held_out.dataset.sources().len();
        let mut sums = Tensor::f_zeros([2, sources as i64], (Kind::Double, self.model.device()))?;
        let mut supervised = vec![0.0; sources];
        for window in items.chunks(batch_size * world_size) {
            let part = window.chunks(batch_size).nth(rank).unwrap_or(&[]);
            let batch = held_out.batch(part)?;
            sums = sums.f_add_(&self.pass_with(None, None).forward(&batch)?)?;
            supervised.iter_mut().zip(batch.supervised_by_source()).for_each(|(count, own)| *count += own as f64);
        }
        self.shards.forget_gathered()?;
        let all = self.shards.comm().exchange(&[Vec::<f64>::try_from(&sums.f_view(-1)?)?, supervised].concat())?;
        let total = |range: Range<usize>| all.iter().map(|part| part[range.clone()].iter().sum::<f64>()).sum::<f64>();
        let (sum, count) = (total(0..sources), total(2 * sources..3 * sources));
        Ok(Evaluation {
            loss: sum / count,
            sources: SourceLoss::of_all(&all, sources),
            token_accuracy: token_accuracy(&all, sources),
            supervised_tokens: count as u64,
            elapsed: began.elapsed(),
        })
    }
}
