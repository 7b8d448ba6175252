//! One optimizer step.

use super::inspect::Inspection;
use super::pass::Pass;
use super::{TrainError, Trainer};
use crate::comm::Phase;
use crate::metrics::{Label, Track};
use crate::optim::{self, Draw, LossScale, Plateau, Schedule};
use crate::shard::Mask;
use crate::torch::{self, AdamW};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};
use zerofold_checkpoint::fault;
use zerofold_configs::{BackwardPrefetch, BestMetric, NonFinite};
use zerofold_data::{Batch, Places};

/// How a step is taken: everything that does not change during a run.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// The learning rate of each step.
    pub schedule: Schedule,
    /// AdamW's numbers; the learning rate is the schedule's.
    pub adamw: AdamW,
    /// Clip to this global norm; 0 for no clipping.
    pub max_grad_norm: f64,
    /// The weight of the squared distance from the pretrained weights beside the loss; 0 for none.
    pub l2_toward_pretrained: f64,
    /// The weight of the distance from them that the Fisher information measures; 0 for none.
    pub ewc_lambda: f64,
    /// The share of the weights that are the pretrained ones in a step.
    pub mixout_probability: f64,
    /// Keep only the input of every so many blocks between forward and backward; none keeps everything.
    pub recompute_every: Option<usize>,
    /// When backward gathers ahead.
    pub backward_prefetch: BackwardPrefetch,
    /// The share of a label's weight that all tokens have evenly, in training and evaluation.
    pub label_smoothing: f64,
    /// What is done when gradients are not finite.
    pub nonfinite: NonFinite,
    /// The seed of everything random in a step: dropout and mixout.
    pub seed: u64,
    /// Where the rows stand in the data files, for messages.
    pub places: Places,
}

/// What a step leaves for the next one beside weights and moments; part of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepState {
    /// Steps that were skipped because their gradients were not finite. The optimizer and its schedule do not count them.
    pub skipped: u64,
    /// The loss scale; only float16 has one.
    pub loss_scale: Option<LossScale>,
    /// What evaluations were judged by.
    #[serde(default, skip_serializing_if = "is_loss")]
    pub metric: BestMetric,
    /// How long no evaluation was better, where a run stops for that.
    #[serde(default, skip_serializing_if = "Patience::is_new")]
    pub patience: Patience,
    /// What the learning rate follows, where it follows the held-out loss.
    #[serde(default, skip_serializing_if = "Plateau::is_new")]
    pub plateau: Plateau,
    /// The best checkpoint, where a run looks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
}

fn is_loss(metric: &BestMetric) -> bool {
    *metric == BestMetric::Loss
}

/// How long evaluations have not become better. What they are judged by is to be low: the held-out loss, or a figure of which less is
/// better; of another one its negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patience {
    /// The lowest so far.
    pub lowest: Option<f64>,
    /// Evaluations since it was last beaten by more than the threshold.
    pub evaluations: u32,
}

impl Patience {
    fn is_new(&self) -> bool {
        *self == Patience::default()
    }

    /// After another evaluation, as transformers' `EarlyStoppingCallback` counts: the lowest loss falls with every lower one, but
    /// only one that is lower by more than `threshold` begins the count anew. What is not a number is not lower than anything.
    #[must_use]
    pub fn after(self, loss: f64, threshold: f64) -> Self {
        let gained = self.lowest.map_or(f64::INFINITY, |lowest| lowest - loss);
        let better = loss.is_finite() && gained > threshold.max(0.0);
        Patience {
            lowest: if loss.is_finite() {
                Some(self.lowest.map_or(loss, |lowest| lowest.min(loss)))
            } else {
                self.lowest
            },
            evaluations: if better { 0 } else { self.evaluations + 1 },
        }
    }
}

/// What a rank is asked to do after a step. Over all ranks it is the most that any was asked for, so they agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Leave.
    pub stop: bool,
    /// How many checkpoints were asked for so far.
    pub saves: u64,
}

/// The checkpoint with the best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Its step.
    pub step: u64,
    /// What it is judged by, as in [`Patience`].
    pub loss: f64,
}

/// The loss of one source of rows, over all ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SourceLoss {
    /// Mean over its supervised tokens; not a number where there are none.
    pub loss: f64,
    /// How many those are.
    pub supervised_tokens: u64,
}

impl SourceLoss {
    /// Of each source, from what every rank tells: the sums of all sources, then their hits, then how many tokens each has.
    pub(super) fn of_all(ranks: &[Vec<f64>], sources: usize) -> Vec<SourceLoss> {
        let total = |index: usize| ranks.iter().map(|numbers| numbers[index]).sum::<f64>();
        let of = |source: usize| {
            let (sum, count) = (total(source), total(2 * sources + source));
            SourceLoss { loss: sum / count, supervised_tokens: count as u64 }
        };
        (0..sources).map(of).collect()
    }
}

/// The share of supervised tokens that are the most probable ones, from what every rank tells ([`SourceLoss::of_all`]).
pub(super) fn token_accuracy(ranks: &[Vec<f64>], sources: usize) -> f64 {
    let total = |numbers: std::ops::Range<usize>| ranks.iter().flat_map(|all| &all[numbers.clone()]).sum::<f64>();
    total(sources..2 * sources) / total(2 * sources..3 * sources)
}

/// What one step gave, over all ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOutcome {
    /// The step, from 1.
    pub step: u64,
    /// Mean loss over the step's supervised tokens.
    pub loss: f64,
    /// The same of each source of rows; of one source it is `loss`.
    pub sources: Vec<SourceLoss>,
    /// The share of the supervised tokens that were the most probable ones.
    pub token_accuracy: f64,
    /// What is added to the loss for the distance from the pretrained weights, where they are kept.
    pub l2_toward_pretrained: Option<f64>,
    /// What is added for that which the Fisher information measures, where it was estimated.
    pub ewc_penalty: Option<f64>,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// The learning rate it was taken with.
    pub learning_rate: f64,
    /// Non-padding input tokens.
    pub tokens: u64,
    /// Supervised tokens.
    pub supervised_tokens: u64,
    /// What the loss was multiplied by for backward; 1 except in float16.
    pub loss_scale: f64,
    /// Why the step was skipped; none when it was taken.
    pub skipped: Option<String>,
    /// Wall-clock time.
    pub elapsed: Duration,
    /// This rank's time blocked in collectives.
    pub communication: Duration,
    /// Bytes this rank sent.
    pub sent_bytes: u64,
    /// Bytes of the full buffers that were gathered and reduced, which theory counts.
    pub logical_bytes: u64,
    /// The largest rank's peak of resident memory, in bytes.
    pub peak_memory_bytes: u64,
    /// The largest rank's peak of live tensors since the last step's gradients were there, in bytes; 0 where they are not
    /// counted.
    pub live_peak_bytes: u64,
    /// What is asked for after it.
    pub requests: Requests,
}

/// The window's positions with a label, of each source.
fn supervised_by_source(window: &[Batch], sources: usize) -> Vec<f64> {
    let mut counts = vec![0.0; sources];
    for batch in window {
        counts.iter_mut().zip(batch.supervised_by_source()).for_each(|(count, own)| *count += own as f64);
    }
    counts
}

impl Trainer {
    /// Takes the optimizer step that follows `finished` finished ones, on this rank's micro-batches of the window.
    /// `requests` is what this rank is asked to do after it.
    pub fn step(&mut self, finished: u64, window: &[Batch], requests: Requests) -> Result<StepOutcome, TrainError> {
        let _no_grad = tch::no_grad_guard();
        let (began, traffic) = (Instant::now(), self.shards.comm().traffic());
        let step = finished + 1;

        if fault::reach(fault::STEP) {
            let comm = self.shards.comm();
            comm.about("a collective of its own");
            comm.all_reduce(&Tensor::f_zeros([(64 * comm.world_size()) as i64], (Kind::Float, comm.device()))?)?;
        }
        // How much each token weighs has to be known before the first backward.
        let count = |of: fn(&Batch) -> usize| window.iter().map(of).sum::<usize>() as f64;
        let (tokens, supervised) = (count(|batch| batch.tokens), count(|batch| batch.supervised));
        let mine = [tokens, supervised, f64::from(u8::from(requests.stop)), requests.saves as f64];
        let all = self.shards.comm().exchange(&mine)?;
        let total = |index: usize| all.iter().map(|numbers| numbers[index]).sum::<f64>();
        let (tokens, supervised_tokens) = (total(0), total(1));
        let saves = all.iter().map(|numbers| numbers[3] as u64).max().unwrap_or(0);
        let requests = Requests { stop: total(2) > 0.0, saves };
        if supervised_tokens == 0.0 {
            return Err(TrainError::NothingSupervised { step });
        }

        let loss_scale = self.state.loss_scale.map_or(1.0, |state| state.scale);
        let scale = loss_scale / supervised_tokens;
        self.shards.show(self.mask(step))?;
        self.shards.begin_window()?;
        let device = self.shards.comm().device();
        let sources = window.first().map_or(1, |batch| batch.sources);
        let mut losses = Tensor::f_zeros([2, sources as i64], (Kind::Double, device))?;
        for (index, batch) in window.iter().enumerate() {
            self.shards.begin_micro_batch(index + 1 == window.len());
            let seed = self.micro_batch_seed(step, index);
            losses = losses.f_add_(&self.pass_with(Some(seed), None).forward_backward(batch, scale)?)?;
        }
        self.enter(Phase::Backward);
        self.shards.finish_window()?;

        self.enter(Phase::Optimizer);
        self.shards.unmix_gradients()?;
        let draw = Draw { l2: self.options.l2_toward_pretrained, ewc: self.options.ewc_lambda };
        let distances = match self.shards.keeps_pretrained() {
            true => self.computing("toward pretrained", |trainer| draw.apply(&mut trainer.shards, loss_scale))?,
            false => Tensor::f_zeros([2], (Kind::Double, device))?,
        };
        let squares = self.computing("gradient norm", |trainer| optim::own_sum_of_squares(&trainer.shards))?;
        // Here the host waits for the device.
        let wait = self.shards.timeline().begin(Track::Host, || Label::new("wait"));
        let (squares, distances, losses) = {
            let _blocked = device.is_cuda().then(|| self.activity.block());
            let numbers = |tensor: &Tensor| Vec::<f64>::try_from(&tensor.f_view(-1)?);
            (squares.f_double_value(&[])?, numbers(&distances)?, numbers(&losses)?)
        };
        self.shards.timeline().end(wait);
        let memory = [crate::metrics::peak_memory_bytes() as f64, torch::memory(device).peak as f64];
        let mut mine = vec![squares, memory[0], memory[1]];
        mine.extend(distances.iter().chain(&losses));
        mine.extend(supervised_by_source(window, sources));
        let all = self.shards.comm().exchange(&mine)?;
        // What the optimizer needs from here on counts for the next step.
        torch::restart_peak(device);
        let largest = |index: usize| all.iter().map(|numbers| numbers[index] as u64).max().unwrap_or(0);
        // Copies hold the same gradients, so one of them is summed.
        let one_copy = &all[..self.shards.layout().mesh.shards];
        let grad_norm = one_copy.iter().map(|numbers| numbers[0]).sum::<f64>().sqrt() / loss_scale;
        let penalty = |weight: f64, index: usize| {
            (weight > 0.0).then(|| weight * one_copy.iter().map(|numbers| numbers[index]).sum::<f64>())
        };
        let by_source = all.iter().map(|numbers| numbers[5..].to_vec()).collect::<Vec<_>>();
        let loss = by_source.iter().map(|sums| sums[..sources].iter().sum::<f64>()).sum::<f64>() / supervised_tokens;

        let taken = finished - self.state.skipped;
        let schedule = &self.options.schedule;
        let learning_rate = self.state.plateau.lowered(schedule.shape, schedule.rate(taken)?);
        let skipped = if grad_norm.is_finite() && loss.is_finite() {
            let max_grad_norm = self.options.max_grad_norm;
            self.computing("clip", |trainer| {
                optim::unscale_and_clip(&mut trainer.shards, loss_scale, grad_norm, max_grad_norm)
            })?;
            self.shards.share_gradients()?;
            self.release_state()?;
            let adamw = AdamW { learning_rate, ..self.options.adamw };
            self.computing("optimizer", |trainer| optim::adamw(&mut trainer.shards, taken, &adamw))?;
            self.shards.finish_step()?;
            self.state.loss_scale = self.state.loss_scale.map(LossScale::after_step);
            None
        } else {
            self.state.skipped += 1;
            Some(self.skip(step, taken, window, scale, (loss, grad_norm))?)
        };
        self.activity.finished_steps(step);

        let now = self.shards.comm().traffic();
        Ok(StepOutcome {
            step,
            loss,
            sources: SourceLoss::of_all(&by_source, sources),
            token_accuracy: token_accuracy(&by_source, sources),
            l2_toward_pretrained: penalty(draw.l2, 3),
            ewc_penalty: penalty(draw.ewc / 2.0, 4),
            grad_norm,
            learning_rate,
            tokens: tokens as u64,
            supervised_tokens: supervised_tokens as u64,
            loss_scale,
            skipped,
            elapsed: began.elapsed(),
            communication: now.blocked - traffic.blocked,
            sent_bytes: now.sent_bytes - traffic.sent_bytes,
            logical_bytes: now.logical_bytes - traffic.logical_bytes,
            peak_memory_bytes: largest(1),
            live_peak_bytes: largest(2),
            requests,
        })
    }

    /// Decides what becomes of a step whose loss or gradient norm is not finite; the same on every rank, since both are
    /// sums over all. `taken` steps were taken before. Returns why it is skipped, unless the run ends here.
    fn skip(
        &mut self,
        step: u64,
        taken: u64,
        window: &[Batch],
        scale: f64,
        (loss, norm): (f64, f64),
    ) -> Result<String, TrainError> {
        if let Some(before) = self.state.loss_scale
            && loss.is_finite()
            && before.can_fall()
        {
            let after = before.after_overflow();
            self.state.loss_scale = Some(after);
            self.shards.abandon_window()?;
            return Ok(format!("gradients overflow at loss scale {}; it is {} from now on", before.scale, after.scale));
        }
        let finding = self.find_not_finite(step, window, scale)?;
        let policy = self.options.nonfinite;
        if policy == NonFinite::Skip && !finding.in_parameter {
            return Ok(format!("not finite: {}", finding.words));
        }
        let hint = finding.hint(taken, self.model.kind(), policy);
        Err(TrainError::NotFinite { step, loss, norm, cause: finding.words, hint })
    }

    /// Lets masters and moments change though a save may not have written all of them. Where they are offloaded memory is
    /// what is short, so it is waited for.
    fn release_state(&mut self) -> Result<(), TrainError> {
        let copies = self.shards.offloaded_bytes() == 0;
        if self.saving.is_none() {
            return Ok(());
        }
        self.enter(Phase::Checkpoint);
        if let Some(saving) = &mut self.saving {
            saving.release(copies)?;
        }
        self.enter(Phase::Optimizer);
        Ok(())
    }

    /// Which weights are the pretrained ones in a step; none without mixout.
    fn mask(&self, step: u64) -> Option<Mask> {
        let StepOptions { mixout_probability: probability, seed, .. } = self.options;
        (probability > 0.0).then_some(Mask { probability, seed, step })
    }

    /// What everything random in a micro-batch of this rank follows from. It does not depend on the stage, nor on what was
    /// computed before, so that stages, recomputation and resumed runs agree.
    pub(super) fn micro_batch_seed(&self, step: u64, micro_batch: usize) -> u64 {
        let rank = self.shards.comm().rank() as u64;
        let numbers = [self.options.seed, step, micro_batch as u64, rank];
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let mut seed = [0; 8];
        seed.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..8]);
        u64::from_le_bytes(seed)
    }

    /// Runs single micro-batches over the shards.
    pub(super) fn pass_with<'a>(&'a mut self, seed: Option<u64>, inspection: Option<&'a mut Inspection>) -> Pass<'a> {
        Pass {
            model: &self.model,
            segments: &self.segments,
            shards: &mut self.shards,
            activity: &self.activity,
            recompute_every: self.options.recompute_every,
            backward_prefetch: self.options.backward_prefetch,
            label_smoothing: self.options.label_smoothing,
            seed,
            inspection,
        }
    }
}
