//! The resolved configuration of one job.

use crate::error::ConfigError;
use crate::hub::{HubData, HubName};
use crate::registry::{DefaultValue, key};
use crate::sharding::{ElementTypes, Sharding};
use crate::training::Training;
use crate::types::{Backend, DeviceKind, ElementType, NonFinite, Offload, Precision, StateDictType};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Everything decided for one job; written to the run folder as `config.resolved.yaml` and read by every worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolved {
    /// Processes of the job (the world size N), at least 1.
    pub num_processes: u32,
    /// What the job computes on.
    pub device: DeviceKind,
    /// The GPUs to use, as CUDA counts them; none for all of them.
    pub gpu_ids: Option<Vec<u32>>,
    /// Whether a GPU that another job computes on may be used.
    pub share_gpus: bool,
    /// Whether float32 matrix products may round their factors to TF32; on GPUs only.
    pub tf32: bool,
    /// What carries the collectives.
    pub backend: Backend,
    /// The port of the control plane; `None` takes any free one.
    pub main_process_port: Option<u16>,
    /// What is sharded, over which ranks, in which units.
    pub sharding: Sharding,
    /// What decided the stage, as it was written (`fsdp_config.fsdp_sharding_strategy: HYBRID_SHARD`); none for the
    /// default. Its place is that of `stage`.
    #[serde(default)]
    pub sharding_as_written: Option<String>,
    /// The compute type.
    pub mixed_precision: Precision,
    /// The type of masters and moments: float32, or bfloat16 (pure bf16).
    pub master_dtype: ElementType,
    /// The type in which gradients travel between ranks. They are added up in the type of `grad_accum_dtype` or in
    /// float32, whichever is wider.
    pub reduce_dtype: ElementType,
    /// The layer classes of `fsdp_transformer_layer_cls_to_wrap` as written, to be checked against the model; empty when
    /// not set.
    pub layer_classes: Vec<String>,
    /// The type in which gradients are accumulated over micro-batches and kept until the optimizer.
    pub grad_accum_dtype: ElementType,
    /// What is done when gradients are NaN or infinite.
    pub nonfinite_gradients: NonFinite,
    /// The global gradient norm above which gradients are scaled down; 0 switches clipping off.
    pub max_grad_norm: f64,
    /// Micro-batches per optimizer step, at least 1.
    pub gradient_accumulation_steps: u32,
    /// Keep only each unit's input in the forward pass and recompute the rest in the backward pass.
    pub gradient_checkpointing: bool,
    /// With gradient checkpointing: recompute one unit in so many, from the first on. 1 recomputes all.
    pub gradient_checkpointing_every: u32,
    /// Where optimizer state lies.
    pub offload_optimizer: Offload,
    /// Whether a save writes the whole model too, in a folder beside the shards.
    #[serde(default = "sharded")]
    pub state_dict_type: StateDictType,
    /// Whether the model is written at the end; what only measures does without.
    #[serde(default = "yes")]
    pub export_model: bool,
    /// Where the model came from, if from the hub; its folder then lies in the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub_model: Option<HubModel>,
    /// Where the data came from, as far as from the hub: training and held-out data name it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hub_data: Vec<HubData>,
    /// The step's folder of the checkpoint whose masters a job begins with; without one, it begins with the weights of
    /// `model_name_or_path`.
    #[serde(default)]
    pub initial_checkpoint: Option<PathBuf>,
    /// The text of the chat template that `chat_template_path` names; without one, it is the model folder's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// The day that the chat template tells, where it tells one: that on which the run was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_date: Option<String>,
    /// The training itself.
    pub training: Training,
    /// Where each value came from, by key: `zero3.yaml:12`, `flag --learning_rate`, `--set learning_rate`, `default`.
    pub provenance: BTreeMap<String, String>,
    /// What was written but has no effect here, one sentence each.
    pub notes: Vec<String>,
}

/// A model of the Hugging Face hub, as it was at one commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubModel {
    /// `owner/name`.
    pub id: String,
    /// The branch, tag or commit that was asked for.
    pub revision: String,
    /// The hash of the commit that it was.
    pub commit: String,
}

/// A run folder of an earlier version does not say.
fn yes() -> bool {
    true
}

/// As in [`yes`].
fn sharded() -> StateDictType {
    StateDictType::Sharded
}

const HEADER: &str =
    "# The configuration that this run used: everything decided. Written by launch, read by its workers.\n";

impl Resolved {
    /// Writes the configuration as YAML, whole or not at all: a temporary file beside `path` is renamed into place.
    ///
    /// # Errors
    /// [`ConfigError::Write`] when the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ConfigError> {
        let failed = |message: String| ConfigError::Write { path: path.to_path_buf(), message };
        let yaml = serde_yaml::to_string(self).map_err(|error| failed(error.to_string()))?;
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let written = std::fs::write(&partial, format!("{HEADER}{yaml}"))
            .and_then(|()| std::fs::File::open(&partial)?.sync_all())
            .and_then(|()| std::fs::rename(&partial, path));
        written.map_err(|error| {
            let _ = std::fs::remove_file(&partial);
            failed(error.to_string())
        })
    }

    /// Reads what [`Resolved::write`] wrote.
    ///
    /// # Errors
    /// [`ConfigError::Read`] when the file cannot be read, [`ConfigError::Syntax`] when it is not such a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = crate::source::read_text(path)?;
        let read = serde_yaml::from_str(&text).or_else(|error| {
            let earlier = serde_yaml::from_str(&text).ok().and_then(|value| Resolved::of_value(value).ok());
            earlier.ok_or(error)
        });
        read.map_err(|error| ConfigError::Syntax { file: path.display().to_string(), message: error.to_string() })
    }

    /// A configuration that was written by this version, or by an earlier one: keys of `training:` that were not there yet have
    /// their defaults.
    ///
    /// # Errors
    /// It is no resolved configuration.
    pub fn of_value(mut value: Value) -> Result<Self, serde_json::Error> {
        if let Some(training) = value.get_mut("training").and_then(Value::as_object_mut) {
            for name in Training::FIELDS.iter().filter(|name| !training.contains_key(**name)).collect::<Vec<_>>() {
                let default = match key(name).map(|key| key.default) {
                    Some(DefaultValue::Text("none")) | Some(DefaultValue::Unset | DefaultValue::Computed(_)) => {
                        Value::Null
                    }
                    Some(DefaultValue::Text(text)) => serde_yaml::from_str(text).unwrap_or_default(),
                    Some(DefaultValue::SameAs(other)) => training.get(other).cloned().unwrap_or_default(),
                    Some(DefaultValue::Required) | None => continue,
                };
                training.insert((*name).to_string(), default);
            }
        }
        serde_json::from_value(value)
    }

    /// The element types. Without mixed precision the compute type is the masters'.
    pub fn element_types(&self) -> ElementTypes {
        let compute = match self.mixed_precision {
            Precision::No => self.master_dtype,
            Precision::Bf16 => ElementType::Bfloat16,
            Precision::Fp16 => ElementType::Float16,
        };
        let (master, reduce, accumulate) = (self.master_dtype, self.reduce_dtype, self.grad_accum_dtype);
        ElementTypes { compute, master, reduce, accumulate }
    }

    /// The data set of the hub that a name of data meant, if it was one.
    pub fn hub_data_of(&self, name: &str) -> Option<&HubData> {
        let name = HubName::parse(name)?;
        self.hub_data.iter().find(|data| data.is_of(&name))
    }

    /// Where a rank writes its part of the timeline, which `launch` puts together with the others' at the end.
    pub fn profile_part(&self, rank: u32) -> PathBuf {
        self.training.output_dir.join(format!("profile-rank-{rank}.json"))
    }

    /// Rows of one optimizer step over all processes: processes × rows per device × accumulated micro-batches.
    pub fn global_batch(&self) -> u64 {
        u64::from(self.num_processes)
            * u64::from(self.training.per_device_train_batch_size)
            * u64::from(self.gradient_accumulation_steps)
    }
}
