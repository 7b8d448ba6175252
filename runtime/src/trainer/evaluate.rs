//! The loss on held-out rows.

use super::pass::Visit;
use super::run::{Rows, figure, named};
use super::scores::Scores;
use super::step::{SourceLoss, token_accuracy};
use super::{TrainError, Trainer};
use crate::comm::Phase;
use std::ops::Range;
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};
use zerofold_configs::{BestMetric, Dataset};
use zerofold_proto::v1::EvaluationRecord;

/// What an evaluation gave, over all ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean loss over all supervised tokens, whatever rank and batch they were in.
    pub loss: f64,
    /// The same of each source of rows.
    pub sources: Vec<SourceLoss>,
    /// The share of supervised tokens that were the most probable ones.
    /// None of a classifier's: not a number.
    pub token_accuracy: f64,
    /// How well a classifier told them, by the names of the figures; none of a language model.
    pub figures: Vec<(&'static str, f64)>,
    /// How many those are.
    pub supervised_tokens: u64,
    /// Wall-clock time.
    pub elapsed: Duration,
}

impl Evaluation {
    /// One of its figures; no number where it has no such one.
    pub(super) fn figure(&self, metric: BestMetric) -> f64 {
        let of_classifier = || self.figures.iter().find(|(name, _)| *name == metric.name());
        match metric {
            BestMetric::Loss => self.loss,
            BestMetric::MeanTokenAccuracy => self.token_accuracy,
            _ => of_classifier().map_or(f64::NAN, |(_, value)| *value),
        }
    }

    /// As `launch` is told, before any step; `held_out` names the sources.
    pub fn record(&self, held_out: Option<&Dataset>) -> EvaluationRecord {
        EvaluationRecord {
            loss: self.loss,
            mean_token_accuracy: self.token_accuracy,
            figures: self.figures.iter().map(|&(name, value)| figure(name, value)).collect(),
            supervised_tokens: self.supervised_tokens,
            seconds: self.elapsed.as_secs_f64(),
            sources: held_out.map_or(Vec::new(), |dataset| named(dataset, &self.sources)),
            ..EvaluationRecord::default()
        }
    }
}

impl Trainer {
    /// Calls `visit` with the kind and the gathered leaves of each segment, in the order of forward. Every rank does so at the same time.
    ///
    /// # Errors
    /// What gathering says, and what `visit` returns.
    pub fn each_segment<E: From<TrainError>>(&mut self, visit: &mut Visit<'_, E>) -> Result<(), E> {
        self.pass_with(None, None).each_segment(visit)
    }

    /// The token-weighted mean loss over `held_out`, `batch_size` rows or packs at a time on each rank. All ranks run equally
    /// many batches, since each may gather parameters; a rank without rows runs an empty one.
    pub fn evaluate(&mut self, held_out: &Rows, batch_size: usize) -> Result<Evaluation, TrainError> {
        let _no_grad = tch::no_grad_guard();
        let began = Instant::now();
        self.enter(Phase::Evaluation);
        self.shards.show(None)?;
        let (rank, world_size) = (self.shards.comm().rank(), self.shards.comm().world_size());
        let items: Vec<u32> = (0..held_out.collator.count() as u32).collect();
        let sources = held_out.dataset.sources().len();
        let mut sums = Tensor::f_zeros([2, sources as i64], (Kind::Double, self.model.device()))?;
        let mut supervised = vec![0.0; sources];
        let mut scores = Scores::of(self.model.config.head);
        for window in items.chunks(batch_size * world_size) {
            let part = window.chunks(batch_size).nth(rank).unwrap_or(&[]);
            let batch = held_out.batch(part)?;
            let loss = self.pass_with(None, None).forward(&batch)?;
            sums = sums.f_add_(&loss.sums)?;
            if let (Some(scores), Some(logits)) = (&mut scores, &loss.logits) {
                scores.add(logits, &batch)?;
            }
            supervised.iter_mut().zip(batch.supervised_by_source()).for_each(|(count, own)| *count += own as f64);
        }
        self.shards.forget_gathered()?;
        let of_scores = scores.as_ref().map_or(&[][..], Scores::sums);
        let mine = [&Vec::<f64>::try_from(&sums.f_view(-1)?)?, &supervised, of_scores].concat();
        let all = self.shards.comm().exchange(&mine)?;
        let figures = scores.as_ref().map(|scores| scores.figures(all.iter().map(|part| &part[3 * sources..])));
        let total = |range: Range<usize>| all.iter().map(|part| part[range.clone()].iter().sum::<f64>()).sum::<f64>();
        let (sum, count) = (total(0..sources), total(2 * sources..3 * sources));
        Ok(Evaluation {
            loss: sum / count,
            sources: SourceLoss::of_all(&all, sources),
            token_accuracy: if figures.is_some() { f64::NAN } else { token_accuracy(&all, sources) },
            figures: figures.unwrap_or_default(),
            supervised_tokens: count as u64,
            elapsed: began.elapsed(),
        })
    }
}
