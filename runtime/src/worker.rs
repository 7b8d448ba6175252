//! One rank: joins the job, builds model, shards and trainer, trains, leaves.

use crate::comm::{Activity, Collectives, CommError, Gloo, Nccl, Phase, Rendezvous, Single};
use crate::control::{Control, ControlError, Identity};
use crate::device;
use crate::gpu::{self, GpuError};
use crate::model::{ModelConfig, ModelError, Transformer, model_weights};
use crate::optim::Schedule;
use crate::panics;
use crate::shard::{Kinds, ShardError, ShardOptions, Shards};
use crate::torch::AdamW;
use crate::trainer::{Job, Outcome, Rows, StepOptions, TrainError, Trainer, saved_cursor};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tch::Device;
use thiserror::Error;
use zerofold_checkpoint::{Found, Weights, check_storage, open_step};
use zerofold_configs::{Backend, Resolved, Training};
use zerofold_data::{Batching, Collator, Items, Places, Sampling, StepPlan, StepPlanOptions, TokenizedDataset};
use zerofold_plan::{Layout, LayoutError, Mesh, ModelUnits};
use zerofold_proto::v1::{LeaveRequest, StateBytes};
use zerofold_trust::Token;

/// How much longer than `launch` waits a collective does, so that the verdict is that of `launch`.
const AFTER_LAUNCH: Duration = Duration::from_secs(60);

/// Why a worker could not do its work.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// A variable that `launch` sets is missing or not what it should be.
    #[error("{name}={value:?} in the environment: {problem}\nhint: workers are started by `launch train`, not by hand")]
    Environment {
        /// The variable.
        name: &'static str,
        /// Its value, empty when it is not set.
        value: String,
        /// What is wrong.
        problem: String,
    },
    /// The resolved configuration cannot be read.
    #[error(transparent)]
    Config(#[from] zerofold_configs::ConfigError),
    /// The control plane.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The tokenised data.
    #[error(transparent)]
    Data(#[from] zerofold_data::DataError),
    /// The model's files.
    #[error(transparent)]
    Files(#[from] zerofold_checkpoint::CheckpointError),
    /// The GPU.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// libtorch.
    #[error(transparent)]
    Shim(#[from] crate::torch::ShimError),
    /// The model's configuration.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Laying the model out.
    #[error(transparent)]
    Layout(#[from] zerofold_plan::LayoutError),
    /// The backend.
    #[error(transparent)]
    Collective(#[from] CommError),
    /// Sharding.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// Training.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Generating.
    #[error("{}", told(.0))]
    Generate(anyhow::Error),
    /// A bug.
    #[error("{0}\nhint: this is a bug of the worker; its log has more, and RUST_BACKTRACE=1 the way to it")]
    Panic(String),
}

/// An error with its causes in one line, but for those that it tells itself.
pub fn told(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |told, cause| match cause.to_string() {
        cause if told.is_empty() => cause,
        cause if told.contains(&cause) => told,
        cause => format!("{told}: {cause}"),
    })
}

impl WorkerError {
    /// True when another rank's failure, or `launch`'s, is the most likely cause.
    pub fn is_consequence(&self) -> bool {
        match self {
            WorkerError::Control(error) => error.is_consequence(),
            WorkerError::Collective(error) => error.is_consequence(),
            WorkerError::Shard(error) => error.is_consequence(),
            WorkerError::Train(error) => error.is_consequence(),
            WorkerError::Generate(error) => {
                error.downcast_ref().is_some_and(TrainError::is_consequence)
                    || error.downcast_ref().is_some_and(CommError::is_consequence)
            }
            _ => false,
        }
    }
}

/// What `launch` tells every rank through its environment.
pub(crate) struct Environment {
    pub(crate) identity: Identity,
    pub(crate) local_rank: usize,
    pub(crate) control: String,
    /// What calls to the control plane prove to know.
    pub(crate) token: Token,
    /// The name or address of the interface that collectives use.
    interface: String,
    pub(crate) threads: i32,
    /// How long a collective may wait for another rank.
    timeout: Duration,
}

fn variable<T: std::str::FromStr>(name: &'static str) -> Result<T, WorkerError>
where
    T::Err: std::fmt::Display,
{
    let value = std::env::var(name).unwrap_or_default();
    value.parse().map_err(|error: T::Err| WorkerError::Environment { name, value, problem: error.to_string() })
}

impl Environment {
    pub(crate) fn read() -> Result<Self, WorkerError> {
        let identity = Identity {
            rank: variable("RANK")?,
            world_size: variable("WORLD_SIZE")?,
            generation: variable("ZEROFOLD_GENERATION")?,
        };
        if identity.rank >= identity.world_size {
            let problem = format!("a rank is below WORLD_SIZE={}", identity.world_size);
            return Err(WorkerError::Environment { name: "RANK", value: identity.rank.to_string(), problem });
        }
        Ok(Environment {
            identity,
            local_rank: variable("LOCAL_RANK")?,
            control: variable("ZEROFOLD_CONTROL")?,
            token: Token::parse(&variable::<String>("ZEROFOLD_TOKEN")?).map_err(|error| WorkerError::Environment {
                name: "ZEROFOLD_TOKEN",
                // Never shown, right or wrong.
                value: "…".to_string(),
                problem: error.to_string(),
            })?,
            interface: variable("ZEROFOLD_INTERFACE")?,
            threads: variable("OMP_NUM_THREADS")?,
            timeout: Duration::from_secs(variable("ZEROFOLD_TIMEOUT")?) + AFTER_LAUNCH,
        })
    }
}

/// Runs one rank of a training job; tells whether its work is done. Where it is not, `launch` knows why and shows it.
///
/// # Errors
/// What `launch` could not be told.
pub fn train() -> Result<bool, WorkerError> {
    as_rank(train_joined)
}

/// What a rank does once it has joined the job.
type Work = fn(&Environment, &Resolved, &Control, Arc<Activity>) -> Result<(), WorkerError>;

/// Joins the job that the environment names, and does the work in it; tells whether that is done. Where it is not, `launch`
/// knows why and shows it.
///
/// # Errors
/// What `launch` could not be told.
pub(crate) fn as_rank(work: Work) -> Result<bool, WorkerError> {
    let environment = Environment::read()?;
    tch::set_num_threads(environment.threads.max(1));
    let config = Resolved::read(Path::new(&variable::<String>("ZEROFOLD_CONFIG")?))?;
    if config.backend == Backend::Nccl {
        // May start this program again, so it comes before the others hear of this rank.
        gpu::require_nccl()?;
    }
    let activity = Arc::new(Activity::default());
    let control =
        Control::join(&environment.control, &environment.token, environment.identity.clone(), activity.clone())?;
    let done = panics::told(|| work(&environment, &config, &control, activity));
    let Err(error) = done.unwrap_or_else(|panic| Err(WorkerError::Panic(panic))) else { return Ok(true) };
    // Standard output goes to the log alone, which has the error before `launch` hears of it and may end this process.
    println!("error: {error}");
    match control.fail(error.to_string(), error.is_consequence()) {
        Ok(()) => Ok(false),
        Err(unheard) => {
            tracing::warn!("the error could not be told to launch: {unheard}");
            Err(error)
        }
    }
}

fn train_joined(
    environment: &Environment,
    config: &Resolved,
    control: &Control,
    activity: Arc<Activity>,
) -> Result<(), WorkerError> {
    activity.enter(Phase::Loading);
    check_storage(&config.training.output_dir.join("checkpoints"), &variable::<String>("ZEROFOLD_STORAGE")?)?;
    // Held for as long as this rank computes.
    let device = device::claim(&config.into(), environment.local_rank)?;
    let data = config.training.output_dir.join("data");
    let training = &config.training;
    let train = rows(&data.join("train.safetensors"), training, training.packing)?;
    let held_out = match training.eval_dataset {
        Some(_) => Some(rows(&data.join("eval.safetensors"), training, training.eval_packing)?),
        None => None,
    };
    let resume = std::env::var_os("ZEROFOLD_RESUME").map(|path| open_step(Path::new(&path))).transpose()?;
    let fisher = match resume {
        None if training.estimates_fisher() => Some(rows(&data.join("ewc.safetensors"), training, false)?),
        _ => None,
    };
    let items = train.collator.items(&train.dataset, Sampling::of(training));
    let plan = step_plan(config, items, resume.as_ref())?;
    activity.enter(Phase::Meeting);
    let comm = connect(environment, config.backend, control, device.torch(), activity.clone())?;
    activity.enter(Phase::Loading);
    let model_directory = &config.training.model_name_or_path;
    let mut trainer = build(config, model_directory, comm, activity, plan.total_steps())?;
    trainer.options.places = train.dataset.places.clone();
    for rows in [Some(&train), fisher.as_ref()].into_iter().flatten() {
        check_tokens(&rows.dataset, trainer.model.config.vocab_size)?;
    }
    // The same on every rank.
    if trainer.shards.comm().rank() == 0 {
        device::tell_attention(&trainer.model, config.training.max_length as usize)?;
    }
    let drawn = config.training.keeps_pretrained();
    if resume.is_none() || drawn {
        let weights = first_weights(config, &trainer.model.config)?;
        if resume.is_none() {
            trainer.shards.load(&weights)?;
        }
        if drawn {
            trainer.keep_pretrained(&weights)?;
        }
    }
    let loading_peak = crate::torch::memory(device.torch()).peak;
    let job = Job { config, control, train, held_out, fisher, plan, resume };
    let outcome = crate::trainer::run(&mut trainer, &job)?;
    control.leave(leave_request(&trainer, &outcome, loading_peak))?;
    Ok(())
}

/// What a job begins with: the masters of a checkpoint, or what lies in the model's folder.
pub(crate) fn first_weights(config: &Resolved, model: &ModelConfig) -> Result<Weights, WorkerError> {
    Ok(match &config.initial_checkpoint {
        Some(step) => Weights::of_checkpoint(step)?,
        None => model_weights(&config.training.model_name_or_path, model)?,
    })
}

/// The tokenised rows in a file, and how they come together; packed alike on every rank.
pub(crate) fn rows(path: &Path, training: &Training, packing: bool) -> Result<Rows, WorkerError> {
    let dataset = TokenizedDataset::load(path)?;
    let collator = Collator::new(&dataset, Batching::of(training, packing))?;
    Ok(Rows { dataset, collator })
}

/// The plan of steps, the same on every rank; from where a checkpoint ends, if there is one.
fn step_plan(config: &Resolved, items: Items, resume: Option<&Found>) -> Result<StepPlan, WorkerError> {
    let plan = StepPlan::new(StepPlanOptions::of(config, items))?;
    Ok(match resume {
        Some(found) => plan.resumed(found.manifest.step, &saved_cursor(found)?)?,
        None => plan,
    })
}

/// Connects this rank to the others.
pub(crate) fn connect(
    environment: &Environment,
    backend: Backend,
    control: &Control,
    device: Device,
    activity: Arc<Activity>,
) -> Result<Rc<dyn Collectives>, WorkerError> {
    let (rank, world_size) = (environment.identity.rank as usize, environment.identity.world_size as usize);
    let store = Arc::new(control.store());
    let timeout = environment.timeout;
    Ok(match backend {
        Backend::Single => Rc::new(Single::new(device)?),
        Backend::Gloo => Rc::new(Gloo::connect(store, rank, world_size, &environment.interface, timeout, activity)?),
        Backend::Shm => {
            let interface = environment.interface.as_str();
            Rendezvous { store, rank, world_size, interface, timeout, activity }.connect()?
        }
        Backend::Nccl => {
            let nccl = Nccl::connect(store, rank, world_size, device, timeout, activity)?;
            let abort = nccl.abort_handle();
            control.before_giving_up(move |reason| abort.abort(reason));
            Rc::new(nccl)
        }
    })
}

/// Model, shards and options, of what the job trains; parameters are not yet read.
fn build(
    config: &Resolved,
    model_directory: &Path,
    comm: Rc<dyn Collectives>,
    activity: Arc<Activity>,
    total_steps: u64,
) -> Result<Trainer, WorkerError> {
    let (model, mut cut) = model_and_units(config, model_directory, comm.device())?;
    cut.group(&config.training).map_err(LayoutError::from)?;
    trainer(config, (model, cut), comm, activity, total_steps)
}

/// The model, and what it is cut into.
pub(crate) fn model_and_units(
    config: &Resolved,
    model_directory: &Path,
    device: Device,
) -> Result<(Transformer, ModelUnits), WorkerError> {
    let compute = Kinds::from(config.element_types()).compute;
    let model = Transformer::new(ModelConfig::read(model_directory).map_err(ModelError::from)?, compute, device)?;
    let cut = ModelUnits::new(&model.config, config.sharding.units);
    Ok((model, cut))
}

/// A trainer of a model that is cut into these units.
pub(crate) fn trainer(
    config: &Resolved,
    (model, cut): (Transformer, ModelUnits),
    comm: Rc<dyn Collectives>,
    activity: Arc<Activity>,
    total_steps: u64,
) -> Result<Trainer, WorkerError> {
    let kinds = Kinds::from(config.element_types());
    let ModelUnits { units, segments } = cut;
    let mesh = Mesh::new(comm.world_size(), config.sharding.replicas as usize)?;
    let device = comm.device();
    let (mixes, offload) = (config.training.mixes(), config.offload_optimizer.clone());
    let options = ShardOptions { sharding: config.sharding, kinds, device, offload, mixes };
    let shards = Shards::new(Layout::new(&units, mesh)?, &options, comm)?;
    let training = &config.training;
    let options = StepOptions {
        schedule: Schedule {
            shape: training.lr_scheduler_type,
            peak: training.learning_rate,
            warmup_steps: training.warmup_steps_of(total_steps),
            warmup: training.warmup_type,
            total_steps,
        },
        adamw: AdamW {
            learning_rate: training.learning_rate,
            beta1: training.adam_beta1,
            beta2: training.adam_beta2,
            epsilon: training.adam_epsilon,
            weight_decay: training.weight_decay,
        },
        max_grad_norm: config.max_grad_norm,
        l2_toward_pretrained: training.l2_toward_pretrained,
        ewc_lambda: training.ewc_lambda,
        mixout_probability: training.mixout_probability,
        recompute_every: config.gradient_checkpointing.then_some(config.gradient_checkpointing_every as usize),
        backward_prefetch: config.sharding.backward_prefetch,
        label_smoothing: training.label_smoothing_factor,
        nonfinite: config.nonfinite_gradients,
        seed: training.seed,
        // Those of the rows that are trained on: known to whoever has the data.
        places: Places::default(),
    };
    Ok(Trainer::new(model, segments, shards, activity, options))
}

/// A token id that the embedding does not have would be an index error deep inside a step, on one rank only.
pub(crate) fn check_tokens(dataset: &TokenizedDataset, vocabulary: usize) -> Result<(), TrainError> {
    if dataset.largest_token().is_some_and(|largest| (largest as usize) < vocabulary) {
        return Ok(());
    }
    for row in 0..dataset.rows() {
        let (ids, labels) = dataset.row(row);
        let outside = ids.iter().map(|&id| i64::from(id)).chain(labels.iter().map(|&label| i64::from(label)));
        if let Some(token) = outside.into_iter().find(|&token| token >= vocabulary as i64) {
            return Err(TrainError::TokenOutside { place: dataset.places.words(row), token, vocabulary });
        }
    }
    Ok(())
}

fn leave_request(trainer: &Trainer, outcome: &Outcome, loading_peak: usize) -> LeaveRequest {
    let state = trainer.shards.state_bytes();
    LeaveRequest {
        step: outcome.steps,
        stopped: outcome.stopped,
        model_directory: outcome.model.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        model_step: outcome.model_step,
        state: Some(StateBytes {
            parameters: state.parameters as u64,
            gradients: state.gradients as u64,
            masters: state.masters as u64,
            moments: state.moments as u64,
            pretrained: state.pretrained as u64,
            gather_buffers: trainer.shards.gather_buffer_bytes() as u64,
            gradient_buffers: trainer.shards.gradient_buffer_bytes() as u64,
            offloaded: trainer.shards.offloaded_bytes() as u64,
            live_peak: trainer.live_peak,
            loading_peak: loading_peak as u64,
        }),
        ..LeaveRequest::default()
    }
}
