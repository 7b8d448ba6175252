//! Accelerate's part of the configuration: which sections count, what is sharded, and how many processes there are.

use crate::error::ConfigError;
use crate::fsdp::{self, Strategy};
use crate::known::no_effect;
use crate::registry::Section;
use crate::settings::{Layer, Opinion, Reader, Setting};
use crate::sharding::Stage;
use crate::value::{number, text};
use serde_yaml::Value;

/// What `distributed_type` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Distributed {
    /// One process.
    No,
    /// Data parallel on processors.
    MultiCpu,
    /// Data parallel on GPUs.
    MultiGpu,
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
        Some("MULTI_CPU") => Ok(Distributed::MultiCpu),
        Some("MULTI_GPU") => Ok(Distributed::MultiGpu),
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

/// `distributed_type`, which decides whose section counts.
pub(crate) struct DistributedType<'a>(Option<Opinion<'a, Distributed>>);

impl<'a> DistributedType<'a> {
    pub(crate) fn read(reader: &Reader<'a>) -> Result<Self, ConfigError> {
        let setting = reader.settings.find(Section::Top, "distributed_type");
        let opinion = setting.map(|setting| Ok::<_, ConfigError>(Opinion { value: distributed(setting)?, setting }));
        Ok(DistributedType(opinion.transpose()?))
    }

    pub(crate) fn kind(&self) -> Option<Distributed> {
        self.0.as_ref().map(|opinion| opinion.value)
    }

    pub(crate) fn setting(&self) -> Option<&'a Setting> {
        self.0.as_ref().map(|opinion| opinion.setting)
    }

    /// Whether a setting of DeepSpeed's or FSDP's section counts: where the type reads that section, and in any place
    /// above the type's (a flag over a file).
    fn counts(&self, setting: &Setting) -> bool {
        let Some(by) = &self.0 else { return true };
        let reads = match setting.section {
            Section::DeepSpeed => by.value == Distributed::DeepSpeed,
            Section::Fsdp => by.value == Distributed::Fsdp,
            _ => true,
        };
        reads || setting.layer > by.setting.layer
    }

    /// The setting of a key, when it counts.
    pub(crate) fn find(&self, reader: &Reader<'a>, section: Section, key: &str) -> Option<&'a Setting> {
        reader.settings.find(section, key).filter(|setting| self.counts(setting))
    }
}

/// What is to be sharded, before it is laid over the ranks.
pub(crate) struct Asked<'a> {
    pub strategy: Strategy,
    /// What said so; none for the default of a job without `distributed_type`.
    pub setting: Option<&'a Setting>,
}

/// Settles what is sharded, but for the number of copies.
///
/// `zero_stage` and FSDP's keys above the place of `distributed_type` (a flag over a file) decide; else
/// `distributed_type` and the section that it reads do, and a section that it does not read must not stand in the same
/// place.
pub(crate) fn asked<'a>(
    reader: &mut Reader<'a>,
    distributed: &DistributedType<'a>,
    accelerate_file: Option<&str>,
) -> Result<Asked<'a>, ConfigError> {
    let zero = zero_stage(reader, distributed)?;
    let fsdp = fsdp::strategy(reader, distributed)?;
    let held = highest(zero, fsdp)?;
    let is_file = |setting: &Setting| setting.layer == Layer::File;
    let Some(by) = &distributed.0 else {
        if let (Some(file), true) = (accelerate_file, held.as_ref().is_none_or(|held| is_file(held.setting))) {
            return Err(ConfigError::Missing {
                keys: "distributed_type".to_owned(),
                hint: format!("set it in {file} (NO, MULTI_CPU, MULTI_GPU, DEEPSPEED or FSDP), or pass --zero_stage N"),
            });
        }
        return Ok(settled(reader, held, Stage::Zero, None, "default"));
    };
    unread_sections(reader, by, held.as_ref().is_some_and(|held| held.setting.layer > by.setting.layer))?;
    let place = by.setting.place.as_str();
    Ok(match by.value {
        Distributed::No | Distributed::MultiCpu | Distributed::MultiGpu => {
            settled(reader, held, Stage::Zero, Some(by.setting), place)
        }
        Distributed::Fsdp => settled(reader, held, Stage::Three, Some(by.setting), place),
        Distributed::DeepSpeed => {
            if held.is_none() {
                reader.notes.push("deepspeed_config.zero_stage is not set: it is 2, as in Accelerate".to_owned());
            }
            settled(reader, held, Stage::Two, Some(by.setting), "default")
        }
    })
}

/// What was held, else `stage` because of `setting`; remembers where the stage came from.
fn settled<'a>(
    reader: &mut Reader<'a>,
    held: Option<Opinion<'a, Strategy>>,
    stage: Stage,
    setting: Option<&'a Setting>,
    place: &str,
) -> Asked<'a> {
    let place = held.as_ref().map_or(place, |held| held.setting.place.as_str());
    reader.provenance.insert("stage".to_owned(), place.to_owned());
    match held {
        Some(held) => Asked { strategy: held.value, setting: Some(held.setting) },
        None => Asked { strategy: Strategy::of(stage), setting },
    }
}

fn zero_stage<'a>(
    reader: &Reader<'a>,
    distributed: &DistributedType<'a>,
) -> Result<Option<Opinion<'a, Strategy>>, ConfigError> {
    let Some(setting) = distributed.find(reader, Section::DeepSpeed, "zero_stage") else { return Ok(None) };
    let number: u8 = setting.read(Reader::key("zero_stage"))?;
    let stage = Stage::try_from(number).map_err(|_| setting.not_allowed("it must be 0, 1, 2 or 3", None))?;
    Ok(Some(Opinion { value: Strategy::of(stage), setting }))
}

/// Of DeepSpeed's and FSDP's word the one in the higher place. In one place they must mean the same stage; FSDP's says
/// more.
fn highest<'a>(
    zero: Option<Opinion<'a, Strategy>>,
    fsdp: Option<Opinion<'a, Strategy>>,
) -> Result<Option<Opinion<'a, Strategy>>, ConfigError> {
    Ok(match (zero, fsdp) {
        (Some(zero), Some(fsdp)) => Some(match zero.setting.layer.cmp(&fsdp.setting.layer) {
            std::cmp::Ordering::Greater => zero,
            std::cmp::Ordering::Less => fsdp,
            std::cmp::Ordering::Equal if zero.value.stage == fsdp.value.stage => fsdp,
            std::cmp::Ordering::Equal => {
                let hint = format!("{} is ZeRO stage {}: keep one of the two", fsdp.setting.key, fsdp.value.stage);
                return Err(zero.setting.conflict(fsdp.setting, hint));
            }
        }),
        (zero, fsdp) => zero.or(fsdp),
    })
}

/// Refuses a section that this `distributed_type` does not read, where both stand in one place; notes it where the type
/// stands higher, or where a higher place decided without the type.
fn unread_sections(
    reader: &mut Reader<'_>,
    by: &Opinion<'_, Distributed>,
    decided_above: bool,
) -> Result<(), ConfigError> {
    for (section, reads) in [(Section::DeepSpeed, Distributed::DeepSpeed), (Section::Fsdp, Distributed::Fsdp)] {
        if by.value == reads {
            continue;
        }
        let unread = |setting: &&Setting| {
            // Accumulation and clipping are read whatever the type.
            let shared = ["gradient_accumulation_steps", "gradient_clipping", "fsdp_activation_checkpointing"];
            setting.section == section && !shared.contains(&setting.key) && setting.layer <= by.setting.layer
        };
        let settings = reader.settings;
        let same_place = |setting: &&Setting| setting.layer == by.setting.layer;
        let unread = || settings.effective().filter(unread);
        if let Some(setting) = unread().find(same_place).filter(|_| !decided_above) {
            let hint = format!("{} is not read with this distributed_type: remove one of the two", section.name());
            return Err(by.setting.conflict(setting, hint));
        }
        if let Some(setting) = unread().next() {
            reader.notes.push(no_effect(setting, &format!("{} ({})", by.setting.equation(), by.setting.place)));
        }
    }
    Ok(())
}

/// Settles the number of processes on all hosts: as written, else one for each of `devices`. With `distributed_type: NO` it is 1
/// unless a higher place says otherwise.
pub(crate) fn num_processes(
    reader: &mut Reader<'_>,
    distributed: &DistributedType<'_>,
    devices: u32,
) -> Result<u32, ConfigError> {
    let unset = |setting: &&Setting| number(&setting.value) != Some(-1.0);
    let written = reader.settings.find(Section::Top, "num_processes").filter(unset);
    let written = match written {
        Some(setting) => Some(Opinion { value: setting.read::<u32>(Reader::key("num_processes"))?, setting }),
        None => None,
    };
    if let (Some(Distributed::No), Some(by)) = (distributed.kind(), distributed.setting())
        && written.as_ref().is_none_or(|written| written.setting.layer <= by.layer)
    {
        if let Some(written) = written.filter(|written| written.value != 1) {
            reader.notes.push(no_effect(written.setting, &format!("{} is one process", by.equation())));
        }
        reader.provenance.insert("num_processes".to_owned(), by.place.clone());
        return Ok(1);
    }
    Ok(reader.settle("num_processes", written, devices))
}
