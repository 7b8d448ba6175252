//! The resolved configuration in the words of a file: for each decided value the key that says it. Read as one file, these
//! keys resolve to the same job.

use crate::data::Dataset;
use crate::registry::{Group, Key, Section, key};
use crate::resolved::Resolved;
use crate::sharding::{BackwardPrefetch, ReshardAfterForward, Stage, UnitPolicy};
use crate::training::KEYS;
use crate::types::{DeviceKind, FsdpStrategy, Offload, Strategy, WrapPolicy};
use serde_yaml::{Mapping, Value};

/// Where a value came from that nobody wrote.
pub(crate) const DEFAULT: &str = "default";

/// What Accelerate calls the keys of several hosts.
pub(crate) const ACCELERATE_HOSTS: [&str; 3] = ["num_machines", "machine_rank", "main_process_ip"];

/// One decided value.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// The section that the key stands in.
    pub section: Section,
    /// The key.
    pub key: &'static str,
    /// The value; null where there is none.
    pub value: Value,
    /// Where it came from, as in [`Resolved::provenance`].
    pub source: String,
    /// Where it stands in `config.resolved.yaml`, as a dotted path.
    pub(crate) field: String,
}

impl Written {
    /// Whether somebody wrote it.
    pub fn is_set(&self) -> bool {
        self.source != DEFAULT
    }

    /// What the registry says of the key; `None` for keys that have no line in `--help`.
    pub fn known(&self) -> Option<&'static Key> {
        key(self.key).filter(|known| known.section == self.section)
    }

    /// The heading of `--help` that it belongs under.
    pub fn group(&self) -> Group {
        match self.known() {
            Some(known) => known.group,
            None if ACCELERATE_HOSTS.contains(&self.key) => Group::Hosts,
            None => Group::Job,
        }
    }

    /// Whether it is what it would be if nobody had written it.
    pub(crate) fn is_default(&self) -> bool {
        let Some(known) = self.known() else { return !self.is_set() };
        match known.default {
            crate::DefaultValue::Text(text) => same(&self.value, &Value::from(text)),
            crate::DefaultValue::Unset => self.value.is_null(),
            _ => !self.is_set(),
        }
    }
}

/// Whether two values mean the same: 2e-5 and "0.00002".
pub(crate) fn same(left: &Value, right: &Value) -> bool {
    let number = crate::value::number;
    let nothing = |value: &Value| value.is_null() || value.as_str() == Some("none");
    match (number(left), number(right)) {
        (Some(left), Some(right)) => left == right,
        _ => crate::value::written(left) == crate::value::written(right) || (nothing(left) && nothing(right)),
    }
}

impl Resolved {
    /// Every decided value in the words of a file, in the order of `--help`; without the hosts of the job, which a resolved
    /// configuration does not tell.
    pub fn written(&self) -> Vec<Written> {
        let fields = serde_yaml::to_value(self).unwrap_or_default();
        let mut all = Vec::new();
        for group in Group::ALL {
            for known in KEYS.iter().filter(|key| key.group == group) {
                all.extend(self.of_key(known, &fields));
                if known.name == "fsdp_auto_wrap_policy" {
                    all.extend(self.layer_classes());
                }
            }
            if group == Group::Job {
                all.push(self.entry(Section::Top, "gpu_ids", optional(self.gpu_ids()), "gpu_ids"));
            }
        }
        all
    }

    fn entry(&self, section: Section, key: &'static str, value: Value, field: &str) -> Written {
        // Provenance names the last part of a path.
        let name = field.rsplit('.').next().unwrap_or(field);
        let source = self.provenance.get(name).map_or(DEFAULT, String::as_str).to_owned();
        Written { section, key, value, source, field: field.to_owned() }
    }

    fn of_key(&self, known: &'static Key, fields: &Value) -> Option<Written> {
        let name = known.name;
        let entry = |value: Value, field: &str| Some(self.entry(known.section, name, value, field));
        match (known.section, name) {
            (Section::Training, "model_name_or_path") => {
                entry(Value::from(self.model_name()), "training.model_name_or_path")
            }
            (Section::Training, "model_revision") if self.hub_model.is_some() => {
                entry(optional(self.hub_model.as_ref().map(|model| model.commit.as_str())), "training.model_revision")
            }
            (Section::Training, "dataset") if !self.hub_data.is_empty() => {
                entry(self.pinned(&self.training.dataset), "training.dataset")
            }
            (Section::Training, "eval_dataset") if !self.hub_data.is_empty() => {
                let names = self.training.eval_dataset.as_ref();
                entry(names.map_or(Value::Null, |names| self.pinned(names)), "training.eval_dataset")
            }
            (Section::Training, "ewc_dataset") if !self.hub_data.is_empty() => {
                let names = self.training.ewc_dataset.as_ref();
                entry(names.map_or(Value::Null, |names| self.pinned(names)), "training.ewc_dataset")
            }
            (Section::Training, "lr_scheduler_type") => {
                entry(self.training.lr_scheduler_type.scheduler().name().into(), "training.lr_scheduler_type")
            }
            (Section::Training, "lr_scheduler_kwargs") => {
                let parameters = self.training.lr_scheduler_type.parameters();
                let value = if parameters.is_empty() { Value::Null } else { Value::Mapping(parameters) };
                let written = self.entry(known.section, name, value, name);
                Some(Written { field: "training.lr_scheduler_type".to_owned(), ..written })
            }
            // `mixed_precision` says it.
            (Section::Training, "bf16" | "fp16") => None,
            (Section::Top, "use_cpu") => entry((self.device == DeviceKind::Cpu).into(), "device"),
            (Section::DeepSpeed | Section::Fsdp | Section::Parallelism, _) => self.of_sharding(known),
            (Section::Training, _) if has(fields.get("training"), name) => {
                entry(fields.get("training")?.get(name)?.clone(), &format!("training.{name}"))
            }
            _ if has(Some(fields), name) => entry(fields.get(name)?.clone(), name),
            _ => None,
        }
    }

    /// The model as it can be named again: of the hub by its id, a warm start by its checkpoint.
    fn model_name(&self) -> String {
        match (&self.initial_checkpoint, &self.hub_model) {
            (Some(checkpoint), _) => checkpoint.display().to_string(),
            (None, Some(model)) => model.id.clone(),
            (None, None) => self.training.model_name_or_path.display().to_string(),
        }
    }

    /// Names of data as they mean the same again: those of the hub with their commits.
    fn pinned(&self, data: &Dataset) -> Value {
        let pinned = data.renamed(|name| match self.hub_data_of(name) {
            Some(data) => format!("{}@{}", data.id, data.commit),
            None => name.to_owned(),
        });
        serde_yaml::to_value(&pinned).unwrap_or_default()
    }

    fn gpu_ids(&self) -> Option<String> {
        let ids = self.gpu_ids.as_ref()?;
        Some(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(","))
    }

    fn of_sharding(&self, known: &'static Key) -> Option<Written> {
        let sharding = &self.sharding;
        let (value, field): (Value, &str) = match known.name {
            "zero_stage" => (sharding.stage.number().into(), "sharding.stage"),
            "offload_optimizer_device" => {
                let device = match self.offload_optimizer {
                    Offload::No => "none",
                    Offload::HostMemory => "cpu",
                    Offload::Files(_) => "nvme",
                };
                (device.into(), "offload_optimizer")
            }
            "offload_optimizer_nvme_path" => match &self.offload_optimizer {
                Offload::Files(folder) => (folder.display().to_string().into(), "offload_optimizer"),
                _ => return None,
            },
            "fsdp_sharding_strategy" => (self.strategy()?.name().into(), "sharding.reshard_after_forward"),
            "fsdp_reshard_after_forward" => match sharding.reshard_after_forward {
                ReshardAfterForward::Group(ranks) => (ranks.into(), "sharding.reshard_after_forward"),
                ReshardAfterForward::Always(_) => return None,
            },
            "fsdp_auto_wrap_policy" => (self.wrap_policy().name().into(), "sharding.units"),
            "fsdp_min_num_params" => match sharding.units {
                UnitPolicy::MinParameters(least) => (least.into(), "sharding.units"),
                _ => return None,
            },
            "fsdp_backward_prefetch" => (sharding.backward_prefetch.name().into(), "sharding.backward_prefetch"),
            "fsdp_state_dict_type" => (self.state_dict_type.name().into(), "state_dict_type"),
            "parallelism_config_dp_replicate_size" => (sharding.replicas.into(), "sharding.replicas"),
            _ => return None,
        };
        Some(self.entry(known.section, known.name, value, field))
    }

    /// FSDP's name for stage 3 where parameters are kept after the forward pass. Without it `zero_stage` says all.
    fn strategy(&self) -> Option<FsdpStrategy> {
        match (self.sharding.stage, self.sharding.reshard_after_forward, self.sharding.replicas) {
            (Stage::Three, ReshardAfterForward::Always(false), 1) => Some(FsdpStrategy::ShardGradOp),
            (Stage::Three, ReshardAfterForward::Always(false), _) => Some(FsdpStrategy::HybridShardZero2),
            _ => None,
        }
    }

    pub(crate) fn wrap_policy(&self) -> WrapPolicy {
        match self.sharding.units {
            UnitPolicy::Blocks | UnitPolicy::BlockHalves => WrapPolicy::TransformerBased,
            UnitPolicy::MinParameters(_) => WrapPolicy::SizeBased,
            UnitPolicy::Whole => WrapPolicy::NoWrap,
        }
    }

    fn layer_classes(&self) -> Option<Written> {
        let classes = (!self.layer_classes.is_empty()).then(|| self.layer_classes.join(","));
        let value = Value::from(classes?);
        Some(self.entry(Section::Fsdp, "fsdp_transformer_layer_cls_to_wrap", value, "layer_classes"))
    }

    /// Whether a value says nothing because another one rules it out; it is then left at its default in silence.
    fn is_ruled_out(&self, written: &Written) -> bool {
        let training = &self.training;
        match written.key {
            "num_train_epochs" => training.max_steps > 0,
            "eval_steps" => training.eval_strategy != Strategy::Steps,
            "save_steps" => training.save_strategy != Strategy::Steps,
            "logging_dir" => training.report_to.is_none(),
            "save_keep_every" => training.save_total_limit.unwrap_or(0) == 0,
            "gradient_checkpointing_every" => !self.gradient_checkpointing,
            _ => false,
        }
    }

    /// What a file has to say for this job to be had again: everything but what follows from the rest. The default backend
    /// follows from the number of processes.
    pub(crate) fn repeated(&self) -> Vec<Written> {
        let follows = |written: &Written| match written.key {
            "backend" => !written.is_set(),
            "fsdp_backward_prefetch" => self.sharding.backward_prefetch == BackwardPrefetch::Pre,
            "model_revision" => self.hub_model.is_none() && !written.is_set(),
            "use_cpu" => self.device == DeviceKind::Cuda,
            _ => self.is_ruled_out(written) && !written.is_set(),
        };
        let mut all = self.written();
        all.retain(|written| !written.value.is_null() && !follows(written));
        if matches!(self.sharding.reshard_after_forward, ReshardAfterForward::Group(_)) {
            all.push(self.entry(Section::Fsdp, "fsdp_version", 2.into(), "sharding.reshard_after_forward"));
        }
        all
    }
}

fn optional<T: Into<Value>>(value: Option<T>) -> Value {
    value.map_or(Value::Null, Into::into)
}

fn has(fields: Option<&Value>, name: &str) -> bool {
    fields.and_then(Value::as_mapping).is_some_and(|fields: &Mapping| fields.contains_key(name))
}
