//! One optimizer step.

use super::pass::Pass;
use super::{TrainError, Trainer};
use crate::comm::Phase;
use crate::optim::{self, Schedule};
use crate::torch::AdamW;
use std::time::{Duration, Instant};
use zerofold_data::Batch;

/// How a step is taken: everything that does not change during a run.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// The learning rate of each step.
    pub schedule: Schedule,
    /// AdamW's numbers; the learning rate is the schedule's.
    pub adamw: AdamW,
    /// Clip to this global norm; 0 for no clipping.
    pub max_grad_norm: f64,
    /// Keep only each block's input between forward and backward.
    pub gradient_checkpointing: bool,
}

/// What one step gave, over all ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// The step, from 1.
    pub step: u64,
    /// Mean loss over the step's supervised tokens.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// The learning rate it was taken with.
    pub learning_rate: f64,
    /// Non-padding input tokens.
    pub tokens: u64,
    /// Supervised tokens.
    pub supervised_tokens: u64,
    /// Wall-clock time.
    pub elapsed: Duration,
    /// This rank's time blocked in collectives.
    pub communication: Duration,
    /// Bytes this rank sent.
    pub sent_bytes: u64,
    /// The largest rank's peak of resident memory, in bytes.
    pub peak_memory_bytes: u64,
    /// True when any rank was asked to stop: all ranks agree.
    pub stop: bool,
}

impl Trainer {
    /// Takes the optimizer step that follows `finished` finished ones, on this rank's micro-batches of the window.
    /// `stop` tells that this rank was asked to stop.
    pub fn step(&mut self, finished: u64, window: &[Batch], stop: bool) -> Result<StepOutcome, TrainError> {
        let _no_grad = tch::no_grad_guard();
        let (began, traffic) = (Instant::now(), self.shards.comm().traffic());
        let step = finished + 1;

        // How much each token weighs has to be known before the first backward.
        let count = |of: fn(&Batch) -> usize| window.iter().map(of).sum::<usize>() as f64;
        let mine = [count(|batch| batch.tokens), count(|batch| batch.supervised), f64::from(u8::from(stop))];
        let all = self.shards.comm().exchange(&mine)?;
        let total = |index: usize| all.iter().map(|numbers| numbers[index]).sum::<f64>();
        let (tokens, supervised_tokens, stop) = (total(0), total(1), total(2) > 0.0);
        if supervised_tokens == 0.0 {
            return Err(TrainError::NothingSupervised { step });
        }

        self.shards.begin_window()?;
        let mut loss = 0.0;
        for batch in window {
            loss += self.pass().forward_backward(batch, 1.0 / supervised_tokens)?;
        }
        self.activity.enter(Phase::Backward);
        self.shards.finish_window()?;

        self.activity.enter(Phase::Optimizer);
        let mine = [optim::own_sum_of_squares(&self.shards)?, loss, crate::metrics::peak_memory_bytes() as f64];
        let all = self.shards.comm().exchange(&mine)?;
        let grad_norm = all.iter().map(|numbers| numbers[0]).sum::<f64>().sqrt();
        let loss = all.iter().map(|numbers| numbers[1]).sum::<f64>() / supervised_tokens;
        if !grad_norm.is_finite() || !loss.is_finite() {
            let culprit = all.iter().position(|numbers| !numbers[0].is_finite() || !numbers[1].is_finite());
            return Err(TrainError::NotFinite { step, loss, norm: grad_norm, rank: culprit.unwrap_or(0) });
        }
        optim::clip(&mut self.shards, grad_norm, self.options.max_grad_norm)?;
        self.shards.share_gradients()?;
        let learning_rate = self.options.schedule.rate(finished);
        optim::adamw(&mut self.shards, step, &AdamW { learning_rate, ..self.options.adamw })?;
        self.shards.finish_step()?;
        self.activity.finished_steps(step);

        let now = self.shards.comm().traffic();
        Ok(StepOutcome {
            step,
            loss,
            grad_norm,
            learning_rate,
            tokens: tokens as u64,
            supervised_tokens: supervised_tokens as u64,
            elapsed: began.elapsed(),
            communication: now.blocked - traffic.blocked,
            sent_bytes: now.sent_bytes - traffic.sent_bytes,
            peak_memory_bytes: all.iter().map(|numbers| numbers[2] as u64).max().unwrap_or(0),
            stop,
        })
    }

    /// Runs single micro-batches over the shards.
    pub(super) fn pass(&mut self) -> Pass<'_> {
        Pass {
            model: &self.model,
            shards: &mut self.shards,
            activity: &self.activity,
            checkpointing: self.options.gradient_checkpointing,
        }
    }
}
