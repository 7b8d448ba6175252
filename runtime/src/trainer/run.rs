//! A whole run: steps, evaluations, checkpoints, and the model at the end.

use super::checkpoint::Progress;
use super::step::{Best, Requests, SourceLoss, StepOutcome};
use super::{TrainError, Trainer};
use crate::comm::Phase;
use crate::control::Control;
use crate::metrics::Profile;
use crate::optim::Plateau;
use std::path::{Path, PathBuf};
use zerofold_checkpoint::{Found, fault, open_step, step_directory};
use zerofold_configs::{BestMetric, Dataset, ProblemType, Resolved, Strategy, Training};
use zerofold_data::{Batch, Collator, StepPlan, TokenizedDataset};
use zerofold_plan::Head;
use zerofold_proto::v1::{EvaluationRecord, Figure, SourceRecord, StepRecord};

/// Rows are padded with this id. What it is does not matter: causal attention hides padding on the right from every real
/// token, and nothing is supervised there.
const PAD_ID: u32 = 0;

/// What a run works on.
pub struct Job<'a> {
    /// The resolved configuration.
    pub config: &'a Resolved,
    /// The control plane.
    pub control: &'a Control,
    /// Training rows.
    pub train: Rows,
    /// Held-out rows.
    pub held_out: Option<Rows>,
    /// What the Fisher information is estimated on, where the run begins and needs it.
    pub fisher: Option<Rows>,
    /// Which of the training rows, or packs, belong to which step.
    pub plan: StepPlan,
    /// The checkpoint to go on from.
    pub resume: Option<Found>,
}

impl Job<'_> {
    /// How often gradual unfreezing has opened something by the step after so many finished ones.
    fn openings(&self, finished: u64) -> u32 {
        self.config.training.openings(self.plan.epoch_at(finished), finished)
    }
}

/// Rows, and how they come together in micro-batches.
pub struct Rows {
    /// The rows.
    pub dataset: TokenizedDataset,
    /// Side by side, end to end, or packed.
    pub collator: Collator,
}

impl Rows {
    /// The micro-batch of these rows, or packs.
    pub(super) fn batch(&self, items: &[u32]) -> Result<Batch, TrainError> {
        Ok(self.collator.collate(&self.dataset, items, PAD_ID)?)
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Optimizer steps finished, earlier runs' included.
    pub steps: u64,
    /// True when it ended early because a stop was asked for.
    pub stopped: bool,
    /// Where the model was written; `None` when the run was stopped, or writes none.
    pub model: Option<PathBuf>,
    /// The step whose model it is.
    pub model_step: u64,
}

/// Trains from the start, or from a checkpoint, to the end of the plan or to a requested stop.
pub fn run(trainer: &mut Trainer, job: &Job<'_>) -> Result<Outcome, TrainError> {
    let mut finished = match &job.resume {
        Some(found) => {
            trainer.open(job.openings(found.manifest.step), 0)?;
            trainer.restore(found)?.step
        }
        None => 0,
    };
    if let Some(rows) = &job.fisher {
        trainer.estimate_fisher(rows, job.config.training.ewc_samples as usize)?;
    }
    trainer.judge_by(job.config.training.metric_for_best_model);
    if finished == 0 && job.config.training.eval_on_start {
        trainer.evaluate_and_report(job, finished)?;
    }
    let total = job.plan.total_steps();
    crate::torch::restart_peak(trainer.shards.comm().device());
    let rank = job.control.identity().rank;
    let mut profile = job.config.training.profile.map(|steps| Profile::new(steps, rank, job.config.profile_part(rank)));
    let (training, mut saves) = (&job.config.training, 0);
    let (mut stopped, mut enough) = (false, trainer.is_patient_no_longer(&job.config.training));
    while finished < total && !stopped && !enough {
        if let Some(profile) = &mut profile {
            profile.before_step(finished + 1, trainer.shards.comm())?;
        }
        trainer.open(job.openings(finished), finished)?;
        let window = trainer.window(job, finished)?;
        let requests = Requests { stop: job.control.stop_requested(), saves: job.control.saves_requested() };
        let outcome = trainer.step(finished, &window, requests)?;
        finished = outcome.step;
        if let Some(profile) = &mut profile {
            profile.after_step(finished, trainer.shards.timeline());
        }
        trainer.live_peak = trainer.live_peak.max(outcome.live_peak_bytes);
        stopped = outcome.requests.stop && finished < total;
        trainer.look_after_save()?;
        trainer.report(job, &outcome);
        let mut ends = stopped || finished == total;
        let Training { eval_strategy, eval_steps, save_strategy, save_steps, load_best_model_at_end, .. } = *training;
        let mut judged = None;
        if !stopped && due(eval_strategy, eval_steps, finished, ends, &job.plan) {
            judged = trainer.evaluate_and_report(job, finished)?;
            enough = trainer.is_patient_no_longer(training);
            ends |= enough;
        }
        let asked = std::mem::replace(&mut saves, outcome.requests.saves) < outcome.requests.saves;
        if asked || due(save_strategy, save_steps, finished, ends, &job.plan) {
            // What came of the save before decides which was the best.
            trainer.finish_save()?;
            let loss = judged.filter(|_| load_best_model_at_end);
            let new = loss.map(|loss| Best { step: finished, loss });
            trainer.begin_save(job, &Progress { step: finished }, better(trainer.state.best, new))?;
        }
    }
    trainer.finish_save()?;
    // Nobody leaves while others wait for what it still has to send.
    trainer.shards.forget_gathered()?;
    if let Some(profile) = &mut profile {
        profile.finish(trainer.shards.timeline());
    }
    if stopped || !job.config.export_model {
        return Ok(Outcome { steps: finished, stopped, model: None, model_step: 0 });
    }
    if finished > 0 && trainer.state.skipped == finished {
        return Err(TrainError::NothingTaken { steps: finished });
    }
    let mut model_step = finished;
    if let Some(best) = trainer.state.best.filter(|best| training.load_best_model_at_end && best.step != finished) {
        let found = open_step(&step_directory(&training.output_dir.join("checkpoints"), best.step))?;
        model_step = trainer.restore(&found)?.step;
    }
    let model = trainer.export(job)?;
    Ok(Outcome { steps: finished, stopped, model: Some(model), model_step })
}

/// The checkpoint that is judged lower, and so better; of two alike the earlier one. What is not a number is not better than anything.
fn better(best: Option<Best>, new: Option<Best>) -> Option<Best> {
    let new = new.filter(|new| new.loss.is_finite() && best.is_none_or(|best| new.loss < best.loss));
    new.or(best)
}

/// Whether something with this strategy is done after `finished` steps. Whatever is done at all is done at the end too.
fn due(strategy: Strategy, every: u32, finished: u64, ends: bool, plan: &StepPlan) -> bool {
    match strategy {
        Strategy::No => false,
        Strategy::Steps => ends || finished.is_multiple_of(u64::from(every)),
        Strategy::Epoch => ends || plan.ends_epoch(finished),
    }
}

impl Trainer {
    /// Lets evaluations be judged by this. What was known of them by another measure is forgotten.
    fn judge_by(&mut self, metric: BestMetric) {
        let before = std::mem::replace(&mut self.state.metric, metric);
        if before != metric {
            (self.state.patience, self.state.best, self.state.plateau) = Default::default();
            if self.shards.comm().rank() == 0 && self.activity.step() > 0 {
                tracing::info!(
                    "evaluations were judged by {before}, and are by {metric} from here on: the best is looked for anew"
                );
            }
        }
    }

    /// Whether the run ends by `early_stopping_patience`; the same on every rank, as held-out losses are.
    fn is_patient_no_longer(&self, training: &Training) -> bool {
        training.early_stopping_patience.is_some_and(|most| self.state.patience.evaluations >= most)
    }

    /// This rank's micro-batches of the step after `finished` ones.
    fn window(&self, job: &Job<'_>, finished: u64) -> Result<Vec<Batch>, TrainError> {
        self.enter(Phase::Data);
        fault::reach(fault::DATA);
        let rank = job.control.identity().rank;
        (0..job.config.gradient_accumulation_steps)
            .map(|micro_batch| job.train.batch(&job.plan.rows_of(finished, micro_batch, rank)))
            .collect()
    }

    /// Rank 0 tells `launch` of a step; every rank's numbers are the same.
    fn report(&self, job: &Job<'_>, outcome: &StepOutcome) {
        if job.control.identity().rank != 0 {
            return;
        }
        job.control.report_step(StepRecord {
            step: outcome.step,
            epoch: job.plan.epochs_after(outcome.step),
            loss: outcome.loss,
            l2_toward_pretrained: outcome.l2_toward_pretrained,
            ewc_penalty: outcome.ewc_penalty,
            grad_norm: outcome.grad_norm,
            learning_rate: outcome.learning_rate,
            tokens: outcome.tokens,
            supervised_tokens: outcome.supervised_tokens,
            seconds: outcome.elapsed.as_secs_f64(),
            communication_seconds: outcome.communication.as_secs_f64(),
            sent_bytes: outcome.sent_bytes,
            peak_memory_bytes: outcome.peak_memory_bytes,
            logical_bytes: outcome.logical_bytes,
            live_peak_bytes: outcome.live_peak_bytes,
            loss_scale: outcome.loss_scale,
            skipped: outcome.skipped.clone().unwrap_or_default(),
            phases: self.activity.take_times(),
            sources: named(&job.config.training.dataset, &outcome.sources),
            mean_token_accuracy: if self.is_classifier() { f64::NAN } else { outcome.token_accuracy },
            figures: self.figures_of_step(outcome.token_accuracy),
        });
    }

    fn is_classifier(&self) -> bool {
        self.model.config.head != Head::Language
    }

    /// What a classifier's step tells beside its loss: the share of rows that were told right.
    fn figures_of_step(&self, right: f64) -> Vec<Figure> {
        match self.model.config.head {
            Head::Classes { problem: ProblemType::SingleLabel | ProblemType::MultiLabel, .. } => {
                vec![figure("accuracy", right)]
            }
            Head::Classes { problem: ProblemType::Regression, .. } | Head::Language => Vec::new(),
        }
    }

    /// What evaluations are judged by, lower being better ([`super::step::Patience`]), if there are held-out rows; the same on every rank.
    fn evaluate_and_report(&mut self, job: &Job<'_>, finished: u64) -> Result<Option<f64>, TrainError> {
        let Some(held_out) = &job.held_out else { return Ok(None) };
        let batch_size = job.config.training.per_device_eval_batch_size as usize;
        let evaluation = self.evaluate(held_out, batch_size)?;
        let (metric, threshold) =
            (job.config.training.metric_for_best_model, job.config.training.early_stopping_threshold);
        let value = evaluation.figure(metric);
        let judged = if metric.greater_is_better() { -value } else { value };
        if finished > 0 {
            self.state.patience = self.state.patience.after(judged, threshold);
            self.look_for_plateau(value);
        }
        if job.control.identity().rank == 0 {
            let ends_early = finished < job.plan.total_steps() && self.is_patient_no_longer(&job.config.training);
            let without_gain = match ends_early {
                true => self.state.patience.evaluations,
                false => 0,
            };
            let record = evaluation.record(job.config.training.eval_dataset.as_ref());
            job.control.report_evaluation(EvaluationRecord { step: finished, without_gain, ..record });
        }
        Ok(Some(judged))
    }
}

pub(super) fn figure(name: &str, value: f64) -> Figure {
    Figure { name: name.to_owned(), value }
}

impl Trainer {
    /// Lets the learning rate fall where it follows evaluations, and these have not become better for long enough.
    fn look_for_plateau(&mut self, value: f64) {
        let schedule = &self.options.schedule;
        let rate = |plateau: Plateau| plateau.lowered(schedule.shape, schedule.peak);
        let after = self.state.plateau.after(schedule.shape, value);
        let (from, to) = (rate(self.state.plateau), rate(after));
        if from != to && self.shards.comm().rank() == 0 {
            tracing::info!("evaluations are on a plateau: the learning rate falls from {from:e} to {to:e}");
        }
        self.state.plateau = after;
    }
}

/// The losses of several sources with their names; none of one source, which is all there is.
pub(super) fn named(dataset: &Dataset, losses: &[SourceLoss]) -> Vec<SourceRecord> {
    let labels = dataset.labels().into_iter().zip(losses).filter(|_| losses.len() > 1);
    let record = |(label, of): (String, &SourceLoss)| SourceRecord {
        label,
        loss: of.loss,
        supervised_tokens: of.supervised_tokens,
    };
    labels.map(record).collect()
}

/// A path as text, for messages.
pub(super) fn shown(path: &Path) -> String {
    path.display().to_string()
}
