//! The keys that users' files carry beside those of the registry: each is known, and is read, has no effect here, or
//! is not built. The names are Accelerate's; those of the trainers are in `known_training`.

use crate::error::ConfigError;
use crate::known_training::TRAINING;
use crate::registry::{Section, same_name};
use crate::settings::{Setting, Settings};
use crate::training::KEYS;
use crate::value::text;
use serde_yaml::Value;

/// What becomes of a known key that is set to something else than its neutral values.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    /// It is read elsewhere.
    Used,
    /// It has no effect here, for this reason; the user is told.
    NoEffect(&'static str),
    /// It would change the result, and is refused with this hint.
    NotBuilt(&'static str),
}

/// A key that is known but is not in the registry.
#[derive(Debug)]
pub(crate) struct Known {
    pub name: &'static str,
    /// Values that mean what happens anyway, in small letters; `*` is any value, `off` an object with `enabled: false`.
    /// Nothing at all is always neutral.
    pub neutral: &'static [&'static str],
    pub role: Role,
}

impl Known {
    /// Whether the key holds a whole section, which no flag can set.
    pub(crate) fn is_section(&self) -> bool {
        self.name.ends_with("_config") || matches!(self.name, "tpu_env" | "commands" | "env")
    }
}

/// One line of a table.
pub(crate) const fn known(name: &'static str, neutral: &'static [&'static str], role: Role) -> Known {
    Known { name, neutral, role }
}

use Role::{NoEffect, NotBuilt, Used};

const NO: &[&str] = &["false", "no", "off", "none", ""];
const NONE: &[&str] = &["none", ""];
const ANY: &[&str] = &["*"];
const ONE: &[&str] = &["1"];
const TRUE: &[&str] = &["true"];
const AUTO: &[&str] = &["auto", "none", ""];
const BUCKETS: Role = NoEffect("a unit is what is sent at once; fsdp_auto_wrap_policy says how large it is");
const LIVE: Role = NoEffect("at stage 3 two units are gathered at a time, and no more");
const TPU: Role = NoEffect("it is for TPUs");
const ONE_LAUNCH_EACH: Role =
    NotBuilt("start launch on each host yourself, or by Slurm or Kubernetes: --nnodes, --node-rank");
const TOP: &[Known] = &[
    known("distributed_type", &[], Used),
    known("fp16", &[], Used),
    known("compute_environment", &["local_machine"], NotBuilt("jobs run on the local machine: use LOCAL_MACHINE")),
    known("debug", NO, NoEffect("the buffers of every collective are always checked")),
    known("machine_rank", &[], Used),
    known("num_machines", &[], Used),
    known("main_process_ip", &[], Used),
    known("standalone", ANY, NoEffect("")),
    known("local_addr", NONE, NotBuilt("use --interface for the address of this host")),
    known("gpu_ids", &[], Used),
    known("rdzv_backend", &["static", "c10d"], NoEffect("launch does the rendezvous itself")),
    known("same_network", ANY, NoEffect("")),
    known("main_training_function", ANY, NoEffect("")),
    known("enable_cpu_affinity", NO, NoEffect("the cores are shared out evenly among the processes")),
    known("downcast_bf16", NO, TPU),
    known("dynamo_config", &["no", "false", "default"], NotBuilt("remove dynamo_config: nothing is compiled so far")),
    known("dynamo_backend", NO, NotBuilt("remove dynamo_backend: nothing is compiled so far")),
    known("megatron_lm_config", NO, NotBuilt("use distributed_type: DEEPSPEED or FSDP")),
    known("mpirun_config", &["", "0", "1", "false"], NotBuilt("launch starts the processes itself, on this machine")),
    known("mpirun_ccl", ANY, NoEffect("")),
    known("fp8_config", NO, NotBuilt("use mixed_precision: bf16")),
    known("ipex_config", NO, NoEffect("it is an option of an extension to PyTorch")),
    known("tpu_name", NO, TPU),
    known("tpu_zone", NO, TPU),
    known("tpu_use_cluster", NO, TPU),
    known("tpu_use_sudo", NO, TPU),
    known("tpu_vm", NO, TPU),
    known("tpu_env", NO, TPU),
    known("command_file", NO, TPU),
    known("commands", NO, TPU),
];

const DEEPSPEED: &[Known] = &[
    known("gradient_accumulation_steps", &[], Used),
    known("gradient_clipping", &[], Used),
    known("deepspeed_config_file", &[], Used),
    known("offload_param_device", &[], Used),
    known("offload_param_nvme_path", &[], Used),
    known("zero3_init_flag", ANY, NoEffect("")),
    known("zero3_save_16bit_model", NO, NoEffect("the model is always exported, in the type that save_dtype says")),
    known("deepspeed_multinode_launcher", ANY, NoEffect("")),
    known("deepspeed_hostfile", NONE, ONE_LAUNCH_EACH),
    known("deepspeed_inclusion_filter", NONE, ONE_LAUNCH_EACH),
    known("deepspeed_exclusion_filter", NONE, ONE_LAUNCH_EACH),
    known("deepspeed_moe_layer_cls_names", NONE, NoEffect("no model here has experts")),
    known("seq_parallel_communication_data_type", NONE, NoEffect("sequences are not split over processes")),
];

/// What stands under `zero_optimization` in a DeepSpeed JSON, and is taken in `deepspeed_config` too.
pub(crate) const ZERO: &[Known] = &[
    known("overlap_comm", TRUE, NoEffect("what is sent always travels while the next unit computes")),
    known("contiguous_gradients", TRUE, NoEffect("a unit's gradients always lie end to end")),
    known("reduce_scatter", TRUE, NoEffect("from stage 1 on gradients are always reduced by a reduce-scatter")),
    known("allgather_partitions", TRUE, NoEffect("parameters are always gathered by an all-gather")),
    known("round_robin_gradients", NO, NoEffect("every rank always has an equal part of each unit's gradients")),
    known("reduce_bucket_size", AUTO, BUCKETS),
    known("allgather_bucket_size", AUTO, BUCKETS),
    known("sub_group_size", AUTO, NoEffect("the optimizer always goes unit by unit")),
    known("stage3_prefetch_bucket_size", AUTO, NoEffect("the next unit is always gathered ahead, and no other")),
    known("stage3_param_persistence_threshold", AUTO, NoEffect("small parameters are sharded with their unit")),
    known("stage3_max_live_parameters", AUTO, LIVE),
    known("stage3_max_reuse_distance", AUTO, LIVE),
    known("stage3_gather_16bit_weights_on_model_save", ANY, NoEffect("")),
    known("elastic_checkpoint", NO, NoEffect("a checkpoint is resumed by any number of processes")),
    known("ignore_unused_parameters", ANY, NoEffect("")),
    known("load_from_fp32_weights", ANY, NoEffect("")),
    known("stage3_model_persistence_threshold", AUTO, NoEffect("small parameters are sharded with their unit")),
    known("zero_hpz_partition_size", ONE, NotBuilt("use fsdp_reshard_after_forward with the size of a group")),
    known("zero_quantized_weights", NO, NotBuilt("parameters travel in the compute type: remove the key")),
    known("zero_quantized_gradients", NO, NotBuilt("use reduce_dtype: bfloat16 to send half the bytes")),
];

const FSDP: &[Known] = &[
    known("fsdp_version", &[], Used),
    known("fsdp_transformer_layer_cls_to_wrap", &[], Used),
    known("fsdp_backward_prefetch_policy", &[], Used),
    known("fsdp_activation_checkpointing", &[], Used),
    known("fsdp_cpu_offload", &[], Used),
    known(
        "fsdp_activation_checkpointing_offload",
        NO,
        NoEffect("what is kept for the backward pass stays on the device"),
    ),
    // The next unit is always gathered ahead, which is what `true` asks for.
    known("fsdp_forward_prefetch", ANY, NoEffect("")),
    known("fsdp_use_orig_params", ANY, NoEffect("")),
    known("fsdp_cpu_ram_efficient_loading", ANY, NoEffect("")),
    known("fsdp_sync_module_states", &["true"], NoEffect("every rank reads the model's files itself")),
    known("fsdp_ignored_modules", NO, NotBuilt("every parameter is trained and sharded: remove fsdp_ignored_modules")),
];

const ONLY_DATA_PARALLEL: Role = NotBuilt("only data parallelism is built so far: use size 1");

const PARALLELISM: &[Known] = &[
    known("parallelism_config_tp_size", ONE, ONLY_DATA_PARALLEL),
    known("parallelism_config_cp_size", ONE, ONLY_DATA_PARALLEL),
    known("parallelism_config_sp_size", ONE, ONLY_DATA_PARALLEL),
    known("parallelism_config_cp_backend", ANY, NoEffect("")),
    known("parallelism_config_cp_comm_strategy", ANY, NoEffect("")),
    known("parallelism_config_sp_backend", ANY, NoEffect("")),
    known("parallelism_config_sp_seq_length", ANY, NoEffect("")),
    known("parallelism_config_sp_seq_length_is_variable", ANY, NoEffect("")),
    known("parallelism_config_sp_attn_implementation", ANY, NoEffect("")),
];

/// The tables, by section.
pub(crate) const TABLES: &[(Section, &[Known])] = &[
    (Section::Training, TRAINING),
    (Section::Top, TOP),
    (Section::DeepSpeed, DEEPSPEED),
    (Section::DeepSpeed, ZERO),
    (Section::Fsdp, FSDP),
    (Section::Parallelism, PARALLELISM),
];

fn table(section: Section) -> impl Iterator<Item = &'static Known> {
    TABLES.iter().filter(move |(of, _)| *of == section).flat_map(|(_, table)| table.iter())
}

/// Every right name in a section.
fn names(section: Section) -> impl Iterator<Item = &'static str> {
    let registry = KEYS.iter().filter(move |key| key.section == section).map(|key| key.name);
    registry.chain(table(section).map(|known| known.name))
}

/// The names in a section that can be recommended: what is not built is no way out.
pub(crate) fn suggestible(section: Section) -> impl Iterator<Item = &'static str> {
    let built = move |name: &&'static str| {
        let known = table(section).find(|known| known.name == *name);
        !known.is_some_and(|known| matches!(known.role, NotBuilt(_)))
    };
    names(section).filter(built)
}

/// What Accelerate puts before the keys of a section when it is missing.
pub(crate) fn prefix(section: Section) -> &'static str {
    match section {
        Section::Fsdp => "fsdp_",
        Section::Parallelism => "parallelism_config_",
        _ => "",
    }
}

/// The right name of `key` in `section`, when it is known there; `-` counts as `_`, and the section's prefix may lack.
pub(crate) fn lookup(section: Section, key: &str) -> Option<&'static str> {
    let prefixed = format!("{}{key}", prefix(section));
    names(section).find(|name| same_name(name, key) || same_name(name, &prefixed))
}

/// Whether `value` is among `neutral`, or holds nothing; a mapping or list is when all of its values are.
fn is_neutral(value: &Value, neutral: &[&str]) -> bool {
    if neutral.contains(&"*") {
        return true;
    }
    if let (["off"], Value::Mapping(entries)) = (neutral, value) {
        return entries.is_empty() || entries.get("enabled") == Some(&Value::Bool(false));
    }
    match value {
        Value::Null => true,
        Value::Sequence(entries) => entries.iter().all(|entry| is_neutral(entry, neutral)),
        Value::Mapping(entries) => entries.values().all(|entry| is_neutral(entry, neutral)),
        scalar => {
            let number = crate::value::number(scalar);
            text(scalar).is_some_and(|text| {
                let text = text.to_lowercase();
                neutral.iter().any(|neutral| {
                    *neutral == text || number.is_some_and(|number| neutral.parse::<f64>().is_ok_and(|it| it == number))
                })
            })
        }
    }
}

/// Goes through everything that holds: refuses what is not built, and returns a note for each key that has no effect.
pub(crate) fn check(settings: &Settings) -> Result<Vec<String>, ConfigError> {
    let mut notes = Vec::new();
    for setting in settings.effective() {
        let Some(known) = table(setting.section).find(|known| known.name == setting.key) else {
            continue;
        };
        notes.extend(judge(known, setting)?);
    }
    Ok(notes)
}

/// What becomes of one setting of a known key: an error where it is not built, a note where it has no effect.
pub(crate) fn judge(known: &Known, setting: &Setting) -> Result<Option<String>, ConfigError> {
    match known.role {
        Used => Ok(None),
        _ if is_neutral(&setting.value, known.neutral) => Ok(None),
        NoEffect(reason) => Ok(Some(no_effect(setting, reason))),
        NotBuilt(hint) => Err(setting.not_built(hint)),
    }
}

/// The note for a setting without effect.
pub(crate) fn no_effect(setting: &Setting, reason: &str) -> String {
    format!("{} ({}) has no effect: {reason}", setting.equation(), setting.place)
}
