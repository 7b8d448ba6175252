//! DeepSpeed's JSON, by the names and meanings of its configuration.

use super::{Composed, LeftOut};
use crate::outline::Outline;
use crate::registry::Group;
use crate::resolved::Resolved;
use crate::schedule::{Minimum, ScheduleShape};
use crate::sharding::{ReshardAfterForward, Stage};
use crate::types::{ElementType, Offload, Precision};
use crate::written::Written;
use serde_json::{Map, Value, json};

const SCRIPT: &str = "a DeepSpeed JSON says nothing of it: give it to the training script";
const LAUNCHER: &str = "it is an option of the program deepspeed, not of its JSON";
const STEPS: &str = "DeepSpeed's schedules need the number of steps: set max_steps to have one in the JSON";
const SHAPE: &str = "DeepSpeed has no schedule of this shape: let the training script make it";
const UNITS: &str = "DeepSpeed gathers by parameter, not by unit";

pub(super) fn compose(outline: &Outline) -> Composed {
    let resolved = &outline.resolved;
    let mut file = Map::new();
    file.insert("train_micro_batch_size_per_gpu".to_owned(), resolved.training.per_device_train_batch_size.into());
    file.insert("gradient_accumulation_steps".to_owned(), resolved.gradient_accumulation_steps.into());
    file.insert("gradient_clipping".to_owned(), resolved.max_grad_norm.into());
    file.insert("steps_per_print".to_owned(), resolved.training.logging_steps.into());
    match resolved.mixed_precision {
        // Pure bfloat16 is an option of it there: without mixed precision, DeepSpeed computes in float32.
        _ if resolved.master_dtype == ElementType::Bfloat16 => file.insert(
            "bf16".to_owned(),
            json!({"enabled": true, "bf16_master_weights_and_grads": true, "bf16_optimizer_states": true}),
        ),
        Precision::Bf16 => file.insert("bf16".to_owned(), json!({"enabled": true})),
        // A loss scale of 0 is a dynamic one.
        Precision::Fp16 => file.insert("fp16".to_owned(), json!({"enabled": true, "loss_scale": 0})),
        Precision::No => None,
    };
    file.insert("communication_data_type".to_owned(), communication(resolved.reduce_dtype).into());
    file.insert("zero_optimization".to_owned(), zero(resolved));
    file.insert("optimizer".to_owned(), optimizer(resolved));
    let scheduler = scheduler(resolved);
    let schedule = match resolved.training.lr_scheduler_type {
        ScheduleShape::Constant => None,
        shape if of_deepspeed(shape).is_none() => Some(SHAPE),
        _ => scheduler.is_none().then_some(STEPS),
    };
    file.extend(scheduler.map(|scheduler| ("scheduler".to_owned(), scheduler)));
    let text = serde_json::to_string_pretty(&Value::Object(file)).unwrap_or_default() + "\n";
    Composed { text, left_out: left_out(outline, schedule) }
}

fn communication(dtype: ElementType) -> &'static str {
    match dtype {
        ElementType::Float32 => "fp32",
        ElementType::Bfloat16 => "bf16",
        ElementType::Float16 => "fp16",
    }
}

fn zero(resolved: &Resolved) -> Value {
    let stage = resolved.sharding.stage;
    let mut zero = Map::from_iter([("stage".to_owned(), json!(stage.number()))]);
    let place = match &resolved.offload_optimizer {
        Offload::No => None,
        Offload::HostMemory => Some(json!({"device": "cpu", "pin_memory": true})),
        Offload::Files(folder) => Some(json!({"device": "nvme", "nvme_path": folder, "pin_memory": true})),
    };
    if let Some(place) = place {
        if stage == Stage::Three {
            zero.insert("offload_param".to_owned(), place.clone());
        }
        zero.insert("offload_optimizer".to_owned(), place);
    }
    if stage == Stage::Three {
        zero.insert("stage3_gather_16bit_weights_on_model_save".to_owned(), true.into());
        if let ReshardAfterForward::Group(ranks) = resolved.sharding.reshard_after_forward {
            zero.insert("zero_hpz_partition_size".to_owned(), ranks.into());
        }
    }
    Value::Object(zero)
}

fn optimizer(resolved: &Resolved) -> Value {
    let training = &resolved.training;
    json!({"type": "AdamW", "params": {
        "lr": training.learning_rate,
        "betas": [training.adam_beta1, training.adam_beta2],
        "eps": training.adam_epsilon,
        "weight_decay": training.weight_decay,
    }})
}

/// The schedule, where the number of steps is known. DeepSpeed's own warm-up is logarithmic unless told otherwise.
fn scheduler(resolved: &Resolved) -> Option<Value> {
    let training = &resolved.training;
    let total = u64::try_from(training.max_steps).ok().filter(|steps| *steps > 0);
    let (kind, cosine_end) = of_deepspeed(training.lr_scheduler_type)?;
    // A number of steps stands for itself; a share is one of the total.
    let fixed = training.warmup_steps >= 1.0 || (training.warmup_steps == 0.0 && training.warmup_ratio == 0.0);
    let warmup = match total {
        Some(total) => training.warmup_steps_of(total),
        None if kind == "WarmupLR" && fixed => training.warmup_steps_of(0),
        None => return None,
    };
    // DeepSpeed refuses a warm-up of no steps.
    if warmup == 0 {
        return None;
    }
    let kind_of_warmup = json!(training.warmup_type.name());
    let mut parameters =
        Map::from_iter([("warmup_num_steps".to_owned(), json!(warmup)), ("warmup_type".to_owned(), kind_of_warmup)]);
    match cosine_end {
        None => {
            parameters.insert("warmup_min_lr".to_owned(), json!(0.0));
            parameters.insert("warmup_max_lr".to_owned(), json!(training.learning_rate));
        }
        Some(end) => {
            parameters.insert("warmup_min_ratio".to_owned(), json!(0.0));
            parameters.insert("cos_min_ratio".to_owned(), json!(end.share(training.learning_rate)));
        }
    }
    if kind != "WarmupLR" {
        parameters.insert("total_num_steps".to_owned(), json!(total));
    }
    Some(json!({"type": kind, "params": parameters}))
}

/// DeepSpeed's schedule of this shape, and of a cosine where it ends.
fn of_deepspeed(shape: ScheduleShape) -> Option<(&'static str, Option<Minimum>)> {
    // The half of a wave that DeepSpeed's cosine is.
    const HALF: f64 = 0.5;
    match shape {
        ScheduleShape::Linear => Some(("WarmupDecayLR", None)),
        ScheduleShape::ConstantWithWarmup => Some(("WarmupLR", None)),
        ScheduleShape::Cosine { num_cycles } if num_cycles == HALF => {
            Some(("WarmupCosineLR", Some(Minimum::Share(0.0))))
        }
        ScheduleShape::CosineWithMinLr { num_cycles, minimum } if num_cycles == HALF => {
            Some(("WarmupCosineLR", Some(minimum)))
        }
        _ => None,
    }
}

/// Everything that is set and does not stand in the JSON.
fn left_out(outline: &Outline, unscheduled: Option<&'static str>) -> Vec<LeftOut> {
    let schedule = ["lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "warmup_type"];
    let told = [
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "max_grad_norm",
        "logging_steps",
        "mixed_precision",
        "master_dtype",
        "reduce_dtype",
        "zero_stage",
        "offload_optimizer_device",
        "offload_optimizer_nvme_path",
        "learning_rate",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "weight_decay",
    ];
    let group = matches!(outline.resolved.sharding.reshard_after_forward, ReshardAfterForward::Group(_));
    let reason = |written: &Written| match written.key {
        key if schedule.contains(&key) => unscheduled,
        key if told.contains(&key) => None,
        "fsdp_reshard_after_forward" if group => None,
        key if key.starts_with("fsdp_") || key.starts_with("parallelism_") => (!written.is_default()).then_some(UNITS),
        "num_processes" | "gpu_ids" | "main_process_port" => Some(LAUNCHER),
        _ if written.group() == Group::Hosts => Some(LAUNCHER),
        _ => Some(SCRIPT),
    };
    let written = outline.written();
    let set = written
        .iter()
        .filter(|written| written.is_set() && !written.value.is_null() && !outline.missing.contains(&written.key));
    set.filter_map(|written| Some(LeftOut::of(written, reason(written)?))).collect()
}
