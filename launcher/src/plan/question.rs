//! What is asked: a resolved configuration, a model's shape, and the memory there is.

use std::path::Path;

use zerofold_configs::{ConfigError, DeviceKind, Inputs, Precision, Resolved, Stage, UnitPolicy, nearest, resolve};
use zerofold_plan::{Layout, Mesh, ModelConfig, ModelUnits, PlanInputs, PlannedDevice};

use super::{Capacity, PlanOptions};
use crate::classifier;
use crate::error::LaunchError;
use crate::format;
use crate::hub::{self, Extent};
use crate::initial_model::settle;
use crate::memory::memory_of_rank;
use crate::model_folder;
use crate::terminal::Terminal;
use crate::trained;

/// Required keys that a plan does without.
const NOT_NEEDED: [&str; 5] = ["dataset", "eval_dataset", "ewc_dataset", "output_dir", "offload_optimizer_nvme_path"];
/// What stands for them.
const PLACEHOLDER: &str = "-";
/// The required key that a published model's name stands in for.
const MODEL: &str = "model_name_or_path";

/// A question that can be answered.
pub(crate) struct Question {
    /// What is configured.
    pub(crate) config: Resolved,
    /// The model's name, or its folder.
    pub(crate) name: String,
    model: ModelConfig,
    device: PlannedDevice,
}

impl Question {
    pub(crate) fn of(options: &PlanOptions, terminal: &Terminal) -> Result<Question, LaunchError> {
        let (options, published) = &named(options)?;
        let for_gpus = published.is_some() || options.gpu_memory.is_some();
        let mut config = resolve_what_matters(&options.inputs, published.is_some())?;
        if for_gpus && config.device == DeviceKind::Cpu {
            // As on a machine that has GPUs, beside which host memory is another place. What only this machine's CPU
            // allows (a backend) is no obstacle.
            let inputs = Inputs { devices: 1, ..options.inputs.clone() };
            config = resolve_what_matters(&inputs, published.is_some()).unwrap_or(config);
        }
        let device = if for_gpus { PlannedDevice::Gpu } else { config.device.into() };
        let (name, model) = match published {
            Some((name, _)) if config.training.num_labels.is_some() || config.training.problem_type.is_some() => {
                let key = if config.training.num_labels.is_some() { "num_labels" } else { "problem_type" };
                return Err(LaunchError::usage(
                    format!("{key} is set, and the published shape {name} is that of a language model"),
                    "give the folder of a classifier, or of a model to make one of: --model_name_or_path FOLDER",
                ));
            }
            Some((name, model)) => (name.clone(), model.clone()),
            None => {
                config = settle(config)?;
                hub::bring(&mut config, None, Extent::Shape, terminal)?;
                (hub::shown(&config), classifier::model(&config)?)
            }
        };
        let note = classifier::cap_length(&mut config, &model);
        config.notes.extend(note.map(|note| note.trim_start_matches("note: ").to_owned()));
        model_folder::check_layer_classes(&config, &model)?;
        model_folder::check_groups(&config, &model)?;
        config.notes.extend(model_folder::too_long("max_length is", config.training.max_length as usize, &model));
        Ok(Question { config, name, model, device })
    }

    pub(crate) fn inputs(&self) -> PlanInputs<'_> {
        PlanInputs::of(&self.config, &self.model, self.device)
    }

    /// Whether data are named, and a model that they can be read for.
    pub(crate) fn has_data(&self) -> bool {
        let named = |path: &str| path != PLACEHOLDER;
        self.config.training.dataset.sources().iter().all(|source| source.path.names().iter().all(|name| named(name)))
            && self.config.training.model_name_or_path.as_os_str() != PLACEHOLDER
    }

    /// Parameters of the model, padding left out.
    pub(crate) fn parameters(&self) -> u64 {
        parameters(&self.model, self.config.sharding.units)
    }

    /// The memory of one rank: the GPU's, or on the CPU an equal share of this machine's.
    pub(crate) fn capacity(&self, gpu_memory: Option<u64>) -> Option<Capacity> {
        if let Some(bytes) = gpu_memory {
            return Some(Capacity { bytes, device: PlannedDevice::Gpu });
        }
        if self.device == PlannedDevice::Gpu {
            return None;
        }
        Some(Capacity { bytes: memory_of_rank(self.config.num_processes)?, device: PlannedDevice::Cpu })
    }

    /// The question in words.
    pub(crate) fn words(&self) -> Vec<String> {
        let inputs = self.inputs();
        let types = &inputs.types;
        let precision = match self.config.mixed_precision {
            Precision::No => format!("{} throughout", types.compute),
            _ => format!("{} compute, {} masters and moments", types.compute, types.master),
        };
        let checkpointing = match (inputs.gradient_checkpointing, inputs.gradient_checkpointing_every) {
            (false, _) => "no gradient checkpointing".to_owned(),
            (true, 1) => "gradient checkpointing".to_owned(),
            (true, every) => format!("gradient checkpointing of one block in {every}"),
        };
        let mut lines = vec![
            format!("model  {}, {}", self.name, format::parameters(self.parameters())),
            format!(
                "job    {} on {}, {precision}, gradients reduced in {}, accumulated in {}",
                format::plural(inputs.world_size as u64, "rank"),
                if inputs.device == PlannedDevice::Gpu { "GPUs" } else { "the CPU" },
                types.reduce,
                types.accumulate,
            ),
            format!(
                "batch  {} of {} a micro-batch, {} a step, {checkpointing}",
                format::items(inputs.per_device_batch as u64, self.config.training.packing),
                format::plural(inputs.length as u64, "token"),
                match inputs.accumulation {
                    1 => "1 micro-batch".to_owned(),
                    count => format!("{count} micro-batches"),
                },
            ),
        ];
        lines.extend(trained::lines(&self.config, &self.model, None));
        lines
    }
}

/// Parameters of a model, padding left out.
pub(crate) fn parameters(model: &ModelConfig, units: UnitPolicy) -> u64 {
    let units = ModelUnits::new(model, units).units;
    let layout = Layout::new(&units, Mesh { replicas: 1, shards: 1 });
    layout.map_or(0, |layout| layout.parameter_numel() as u64)
}

/// What `--model` names: a published shape, which is given beside the options, or a folder or model of the hub, which then is
/// `--model_name_or_path`.
fn named(options: &PlanOptions) -> Result<(PlanOptions, Option<(String, ModelConfig)>), LaunchError> {
    let Some(name) = &options.model else { return Ok((options.clone(), None)) };
    let mut options = options.clone();
    if options.inputs.flags.iter().any(|(name, _)| name == MODEL) {
        let message = "--model and --model_name_or_path both name a model";
        return Err(LaunchError::usage(message, "give one of the two"));
    }
    // A name alone may be a misspelt shape, so that the hub is not asked for it.
    if name.contains('/') || Path::new(name).is_dir() {
        options.inputs.flags.push((MODEL.to_owned(), name.clone()));
        return Ok((options, None));
    }
    let model = published(name)?;
    Ok((options, Some((name.clone(), model))))
}

fn published(name: &str) -> Result<ModelConfig, LaunchError> {
    ModelConfig::published(name).ok_or_else(|| {
        let names = ModelConfig::PUBLISHED.join(", ");
        let near = nearest(name, ModelConfig::PUBLISHED.iter().copied());
        let near = near.map(|near| format!("did you mean {near}? ")).unwrap_or_default();
        let hint =
            format!("{near}known are {names}; a model folder or a model of the hub is given by --model_name_or_path");
        LaunchError::usage(format!("--model {name}: no published shape of this name"), hint)
    })
}

/// Resolves the configuration as `train` does, but for required keys that a plan does without. What needs a stage where
/// none is set has the lowest that allows it: every stage is answered for anyway.
fn resolve_what_matters(inputs: &Inputs, published: bool) -> Result<Resolved, LaunchError> {
    let mut inputs = inputs.clone();
    let mut without_stage = None;
    loop {
        let (keys, hint) = match resolve(&inputs) {
            Ok(config) => return Ok(with_stage(config, without_stage)),
            Err(ConfigError::Missing { keys, hint }) => (keys, hint),
            Err(ConfigError::NeedsStage { setting, place, least, .. }) if without_stage.is_none() => {
                inputs.flags.push(("zero_stage".to_owned(), least.to_string()));
                without_stage = Some((setting, place, least));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let before = inputs.flags.len();
        for key in keys.split(", ") {
            if key == MODEL && !published {
                let hint = "pass --model_name_or_path FOLDER (its config.json is enough), --model llama-7b for a published \
                            shape, or --config FILE that names a model";
                return Err(LaunchError::usage("no model is named", hint));
            }
            let given = inputs.flags.iter().any(|(name, _)| name == key);
            if !given && (key == MODEL || NOT_NEEDED.contains(&key)) {
                inputs.flags.push((key.to_owned(), PLACEHOLDER.to_owned()));
            }
        }
        if inputs.flags.len() == before {
            return Err(ConfigError::Missing { keys, hint }.into());
        }
    }
}

/// Tells that the stage is there for the sake of a setting, given with its place.
fn with_stage(mut config: Resolved, needing: Option<(String, String, Stage)>) -> Resolved {
    if let Some((setting, place, stage)) = needing {
        config.notes.push(format!(
            "no stage is set: {setting} ({place}) is planned at stage {stage}; train needs --zero_stage {stage}"
        ));
        config.sharding_as_written = Some(setting);
        config.provenance.insert("stage".to_owned(), place);
    }
    config
}
