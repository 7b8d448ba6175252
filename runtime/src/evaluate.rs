//! `worker evaluate`: the held-out loss of a model as one rank of a job that trains nothing.
//!
//! It is the evaluation inside training ([`crate::trainer::Trainer::evaluate`]), over the same units and shards. Everything is frozen, so there are
//! neither gradients nor moments, and weights lie in the type that is computed in: they are rounded to it once, as masters are.

use crate::comm::{Activity, Phase};
use crate::control::Control;
use crate::device::{self, RankDevice};
use crate::trainer::Trainer;
use crate::worker::{
    Environment, WorkerError, as_rank, check_tokens, connect, first_weights, model_and_units, rows, trainer,
};
use std::sync::Arc;
use zerofold_configs::{Offload, Resolved};
use zerofold_plan::{ModelUnits, ParameterGroup};
use zerofold_proto::v1::LeaveRequest;

/// Steps of the schedule, of which none is taken.
const NO_STEPS: u64 = 0;

/// Evaluates as the rank that the environment names; tells whether its work is done. Where it is not, `launch` knows why and
/// shows it.
///
/// # Errors
/// What `launch` could not be told.
pub fn evaluate() -> Result<bool, WorkerError> {
    as_rank(evaluate_joined)
}

fn evaluate_joined(
    environment: &Environment,
    config: &Resolved,
    control: &Control,
    activity: Arc<Activity>,
) -> Result<(), WorkerError> {
    let training = &config.training;
    let held_out = rows(&training.output_dir.join("data/eval.safetensors"), training, training.eval_packing)?;
    let (_device, mut trainer) = untrained(environment, config, control, activity)?;
    check_tokens(&held_out.dataset, trainer.model.config.vocab_size)?;
    let evaluation = trainer.evaluate(&held_out, training.per_device_eval_batch_size as usize)?;
    if environment.identity.rank == 0 {
        control.report_evaluation(evaluation.record(training.eval_dataset.as_ref()));
    }
    control.leave(LeaveRequest::default())?;
    Ok(())
}

/// Meets the other ranks and loads the model, of which nothing is trained; with the device, which is to be held for as long as
/// this rank computes.
pub(crate) fn untrained(
    environment: &Environment,
    config: &Resolved,
    control: &Control,
    activity: Arc<Activity>,
) -> Result<(RankDevice, Trainer), WorkerError> {
    activity.enter(Phase::Loading);
    let config = &without_optimizer(config);
    let device = device::claim(&config.into(), environment.local_rank)?;
    activity.enter(Phase::Meeting);
    let comm = connect(environment, config.backend, control, device.torch(), activity.clone())?;
    activity.enter(Phase::Loading);
    let (model, mut cut) = model_and_units(config, &config.training.model_name_or_path, comm.device())?;
    freeze(&mut cut);
    let mut trainer = trainer(config, (model, cut), comm, activity, NO_STEPS)?;
    trainer.shards.load(&first_weights(config, &trainer.model.config)?)?;
    Ok((device, trainer))
}

/// The same configuration without what only an optimizer needs: masters in a wider type, and a place for them elsewhere.
fn without_optimizer(config: &Resolved) -> Resolved {
    let compute = config.element_types().compute;
    let mut config = Resolved { master_dtype: compute, offload_optimizer: Offload::No, ..config.clone() };
    // Only training mixes weights, for which masters would be apart from them.
    config.training.mixout_probability = 0.0;
    config
}

/// Trains nothing of a model.
fn freeze(cut: &mut ModelUnits) {
    for leaf in cut.units.iter_mut().flat_map(|unit| &mut unit.leaves) {
        leaf.group = ParameterGroup::Frozen;
    }
}
