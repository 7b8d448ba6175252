//! Accelerate's part of the configuration: how many processes, and what is sharded.

use crate::error::ConfigError;
use crate::known::no_effect;
use crate::registry::Section;
use crate::settings::{Opinion, Reader, Setting};
use crate::types::Stage;
use crate::value::{number, text};
use serde_yaml::Value;

/// What `distributed_type` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distributed {
    /// One process.
    No,
    /// Data parallel.
    Multi,
    DeepSpeed,
    Fsdp,
}

const TYPES: &str = "it must be NO, MULTI_CPU, MULTI_GPU, DEEPSPEED or FSDP";

fn distributed(setting: &Setting) -> Result<Distributed, ConfigError> {
    // YAML 1.1 makes false of a bare NO.
    let name = match &setting.value {
        Value::Bool(false) => Some("NO".to_owned()),
        value => text(value).map(|text| text.to_uppercase().replace('-', "_")),
    };
    match name.as_deref() {
        Some("NO") => Ok(Distributed::No),
        Some("MULTI_CPU" | "MULTI_GPU") => Ok(Distributed::Multi),
        Some("DEEPSPEED") => Ok(Distributed::DeepSpeed),
        Some("FSDP") => Ok(Distributed::Fsdp),
        Some("XLA" | "TPU" | "MEGATRON_LM") => Err(setting.not_built("use DEEPSPEED, FSDP or MULTI_CPU")),
        Some(other) if other.starts_with("MULTI_") && other.len() > 6 => {
            Err(setting.not_built("this device is not supported: use DEEPSPEED, FSDP or MULTI_CPU"))
        }
        name => {
            let names = ["NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED", "FSDP"];
            let near = name.and_then(|name| crate::registry::nearest(name, names));
            Err(setting.not_allowed(TYPES, near.map(|near| format!("did you mean {near}?"))))
        }
    }
}

/// Settles the ZeRO stage.
///
/// `zero_stage` above the place of `distributed_type` (a flag over a file) decides alone; else `distributed_type` does,
/// and a section that it does not read must not stand in the same place.
pub(crate) fn stage(reader: &mut Reader<'_>, accelerate_file: Option<&str>) -> Result<Stage, ConfigError> {
    let kind_setting = reader.settings.find(Section::Top, "distributed_type");
    let zero: Option<Opinion<'_, Stage>> = match reader.settings.find(Section::DeepSpeed, "zero_stage") {
        Some(setting) => {
            let number: u8 = setting.read(Reader::key("zero_stage"))?;
            let allowed = |_| setting.not_allowed("it must be 0, 1, 2 or 3", None);
            Some(Opinion { value: Stage::try_from(number).map_err(allowed)?, setting })
        }
        None => None,
    };
    let Some(kind_setting) = kind_setting else {
        if let (Some(file), true) = (accelerate_file, zero.as_ref().is_none_or(|zero| is_file(zero.setting))) {
            return Err(ConfigError::Missing {
                keys: "distributed_type".to_owned(),
                hint: format!("set it in {file} (NO, MULTI_CPU, MULTI_GPU, DEEPSPEED or FSDP), or pass --zero_stage N"),
            });
        }
        return Ok(reader.settle("stage", zero, Stage::Zero));
    };
    let kind = distributed(kind_setting)?;
    if let Some(zero) = &zero
        && zero.setting.layer > kind_setting.layer
    {
        let place = zero.setting.place.clone();
        reader.provenance.insert("stage".to_owned(), place);
        return Ok(zero.value);
    }
    unread_sections(reader, kind, kind_setting)?;
    let (stage, setting) = match kind {
        Distributed::No | Distributed::Multi => (Stage::Zero, Some(kind_setting)),
        Distributed::Fsdp => {
            let (stage, setting) = crate::fsdp::stage(reader)?;
            (stage, setting.or(Some(kind_setting)))
        }
        Distributed::DeepSpeed => match zero {
            Some(zero) => (zero.value, Some(zero.setting)),
            None => {
                reader.notes.push("deepspeed_config.zero_stage is not set: it is 2, as in Accelerate".to_owned());
                (Stage::Two, None)
            }
        },
    };
    let place = setting.map_or("default", |setting| setting.place.as_str());
    reader.provenance.insert("stage".to_owned(), place.to_owned());
    Ok(stage)
}

fn is_file(setting: &Setting) -> bool {
    setting.layer == crate::settings::Layer::File
}

/// Refuses a section that this `distributed_type` does not read, where both stand in one place; notes it elsewhere.
fn unread_sections(reader: &mut Reader<'_>, kind: Distributed, by: &Setting) -> Result<(), ConfigError> {
    for (section, reads) in [(Section::DeepSpeed, Distributed::DeepSpeed), (Section::Fsdp, Distributed::Fsdp)] {
        if kind == reads {
            continue;
        }
        let unread = |setting: &&Setting| {
            // Accumulation and clipping are read whatever the type.
            let shared = ["gradient_accumulation_steps", "gradient_clipping", "fsdp_activation_checkpointing"];
            setting.section == section && !shared.contains(&setting.key)
        };
        if let Some(setting) = reader.settings.effective().find(unread) {
            if setting.layer == by.layer {
                let hint = format!("{} is not read with this distributed_type: remove one of the two", section.name());
                return Err(by.conflict(setting, hint));
            }
            reader.notes.push(no_effect(setting, &format!("{} ({})", by.equation(), by.place)));
        }
    }
    Ok(())
}

/// Settles the number of processes: as written, else the number of devices, else 1. With `distributed_type: NO` it is 1
/// unless a higher place says otherwise.
pub(crate) fn num_processes(reader: &mut Reader<'_>, devices: u32) -> Result<u32, ConfigError> {
    let unset = |setting: &&Setting| number(&setting.value) != Some(-1.0);
    let written = reader.settings.find(Section::Top, "num_processes").filter(unset);
    let written = match written {
        Some(setting) => Some(Opinion { value: setting.read::<u32>(Reader::key("num_processes"))?, setting }),
        None => None,
    };
    let kind_setting = reader.settings.find(Section::Top, "distributed_type");
    if let Some(kind_setting) = kind_setting
        && distributed(kind_setting)? == Distributed::No
        && written.as_ref().is_none_or(|written| written.setting.layer <= kind_setting.layer)
    {
        if let Some(written) = written.filter(|written| written.value != 1) {
            reader.notes.push(no_effect(written.setting, &format!("{} is one process", kind_setting.equation())));
        }
        reader.provenance.insert("num_processes".to_owned(), kind_setting.place.clone());
        return Ok(1);
    }
    Ok(reader.settle("num_processes", written, devices.max(1)))
}

/// Refuses a `parallelism_config` whose sharding is not over all processes.
pub(crate) fn check_shard_size(reader: &Reader<'_>, num_processes: u32) -> Result<(), ConfigError> {
    match reader.settings.find(Section::Parallelism, "parallelism_config_dp_shard_size") {
        Some(setting) if ![1.0, f64::from(num_processes)].map(Some).contains(&number(&setting.value)) => {
            Err(setting.not_built(format!("shards lie over all {num_processes} processes: remove the key")))
        }
        _ => Ok(()),
    }
}
