//! The training loop. Start reading at `step.rs`.

mod checkpoint;
mod evaluate;
mod export;
mod fisher;
mod inspect;
mod loss;
mod micro_batch;
mod pass;
mod run;
mod saving;
mod scores;
mod segments;
mod snapshot;
mod step;
mod unfreezing;

pub use checkpoint::{Progress, saved_cursor};
pub use evaluate::Evaluation;
pub use run::{Job, Outcome, Rows, run};
pub use snapshot::Snapshot;
pub use step::{Best, Requests, SourceLoss, StepOptions, StepOutcome, StepState};

use crate::comm::{Activity, CommError, Phase};
use crate::metrics::{Label, Timeline, Track};
use crate::model::{ModelError, Transformer};
use crate::optim::{LossScale, OptimError};
use crate::shard::{ShardError, Shards};
use crate::torch::ShimError;
use saving::Saving;
use segments::Segments;
use std::sync::Arc;
use tch::{Kind, TchError};
use thiserror::Error;
use zerofold_plan::Segment;

/// Why training failed.
#[derive(Debug, Error)]
pub enum TrainError {
    /// The model's forward failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Sharding failed.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The optimizer failed.
    #[error(transparent)]
    Optim(#[from] OptimError),
    /// A collective failed.
    #[error(transparent)]
    Collective(#[from] CommError),
    /// The shim failed.
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] TchError),
    /// Writing or reading a checkpoint or an export failed.
    #[error(transparent)]
    Checkpoint(#[from] zerofold_checkpoint::CheckpointError),
    /// The data do not fit the plan.
    #[error(transparent)]
    Data(#[from] zerofold_data::DataError),
    /// The control plane did not do what was asked.
    #[error(transparent)]
    Control(#[from] crate::control::ControlError),
    /// The system gave no thread.
    #[error("a thread could not be started: {0}\nhint: `ulimit -u` bounds how many there may be")]
    Thread(#[source] std::io::Error),
    /// A block's output does not depend on its input.
    #[error("unit {0}: no gradient reaches its input")]
    NoGradient(String),
    /// A window in which nothing is supervised.
    #[error("step {step}: none of the window's tokens is supervised, so there is no loss")]
    NothingSupervised {
        /// The step, from 1.
        step: u64,
    },
    /// Data to estimate the Fisher information on in which nothing is supervised.
    #[error(
        "ewc_dataset: none of its rows has a token that is supervised, so there is no Fisher information\n\
         hint: take rows with answers, or raise max_length if these are cut off"
    )]
    NothingToEstimateOn,
    /// Squared gradients that are NaN or infinite.
    #[error(
        "the Fisher information is not finite after {rows}\nhint: the model's own loss or gradients are not finite on these rows of \
         ewc_dataset: train with bf16 or float32, or leave them out"
    )]
    FisherNotFinite {
        /// The rows that were looked at last, in words.
        rows: String,
    },
    /// A token id outside the vocabulary.
    #[error(
        "{place}: token id {token}, but the model's vocabulary has {vocabulary} entries\n\
         hint: the tokenizer and the model do not belong together"
    )]
    TokenOutside {
        /// The row, in words.
        place: String,
        /// The token id.
        token: i64,
        /// The vocabulary's size.
        vocabulary: usize,
    },
    /// Loss or gradients are NaN or infinite.
    #[error(
        "step {step}: loss {loss}, gradient norm {norm}: not finite, so the step was not taken\n{cause}\n\
         hint: {hint}"
    )]
    NotFinite {
        /// The step, from 1.
        step: u64,
        /// The mean loss.
        loss: f64,
        /// The global gradient norm.
        norm: f64,
        /// Where it comes from: unit, parameter, line and rank.
        cause: String,
        /// What to do.
        hint: String,
    },
    /// Every step was skipped: what was trained is what was there before.
    #[error(
        "none of {steps} steps was taken: all were skipped, so no model is written\n\
         hint: the warnings above and `skipped` in metrics.jsonl say why; with nonfinite_gradients: stop the first of \
         them ends the run"
    )]
    NothingTaken {
        /// The steps.
        steps: u64,
    },
    /// A checkpoint that does not fit this job.
    #[error("checkpoint {path}: {what} is {found} there and {expected} in this job\nhint: {hint}")]
    Mismatch {
        /// The checkpoint's folder.
        path: String,
        /// What differs.
        what: &'static str,
        /// In the checkpoint.
        found: String,
        /// In the job.
        expected: String,
        /// What to do.
        hint: &'static str,
    },
}

impl TrainError {
    /// True when another rank's failure is the most likely cause.
    pub fn is_consequence(&self) -> bool {
        match self {
            TrainError::Collective(error) | TrainError::Optim(OptimError::Norm(error)) => error.is_consequence(),
            TrainError::Shard(error) | TrainError::Optim(OptimError::Shard(error)) => error.is_consequence(),
            TrainError::Control(error) => error.is_consequence(),
            _ => false,
        }
    }
}

/// A model over its shards, ready to be trained.
pub struct Trainer {
    /// The save that goes on behind the steps. It reads the shards, so it is dropped before them.
    saving: Option<Saving>,
    /// The maths.
    pub model: Transformer,
    /// Its parameters, gradients and optimizer state.
    pub shards: Shards,
    /// What this rank is doing.
    pub activity: Arc<Activity>,
    /// How a step is taken.
    pub options: StepOptions,
    /// What one step leaves for the next.
    pub state: StepState,
    /// The largest sum of live tensors of any rank during any step so far, in bytes.
    pub live_peak: u64,
    segments: Segments,
    /// What the weights are known by that training is drawn toward.
    pretrained: Option<String>,
    /// How many examples the Fisher information was estimated on.
    fisher: Option<u64>,
}

/// Notes, for `launch` and for the timeline, what this rank does from now on.
fn enter(activity: &Activity, timeline: &Timeline, phase: Phase) {
    activity.enter(phase);
    if timeline.is_on() {
        timeline.enter(&phase.as_str_name().trim_start_matches("PHASE_").to_lowercase());
    }
}

impl Trainer {
    /// A trainer of `model`, whose parameters `shards` hold and which is computed in `segments`. A model in float16 has
    /// its loss scaled.
    pub fn new(
        model: Transformer,
        segments: Vec<Segment>,
        shards: Shards,
        activity: Arc<Activity>,
        options: StepOptions,
    ) -> Self {
        let loss_scale = (model.kind() == Kind::Half).then(LossScale::default);
        let state = StepState { loss_scale, ..StepState::default() };
        let segments = Segments::new(segments, &shards.units);
        let (pretrained, fisher, saving) = (None, None, None);
        Trainer { saving, model, shards, activity, options, state, live_peak: 0, segments, pretrained, fisher }
    }

    fn enter(&self, phase: Phase) {
        enter(&self.activity, self.shards.timeline(), phase);
    }

    /// Computes something that the timeline shows under this name.
    fn computing<T>(&mut self, name: &str, compute: impl FnOnce(&mut Self) -> T) -> T {
        let span = self.shards.timeline().begin(Track::Compute, || Label::new(name));
        let computed = compute(self);
        self.shards.timeline().end(span);
        computed
    }
}
