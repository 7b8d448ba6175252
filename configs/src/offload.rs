//! Where the optimizer's state lies: on the device, in host memory, or in files.

use crate::accelerate::{Asked, DistributedType};
use crate::error::ConfigError;
use crate::known::no_effect;
use crate::registry::Section;
use crate::settings::{Reader, Setting};
use crate::sharding::Stage;
use crate::types::{DeviceKind, Offload, OffloadDevice};
use std::path::PathBuf;

const DEVICE: &str = "offload_optimizer_device";
const FOLDER: &str = "offload_optimizer_nvme_path";
const PARAMETERS: &str = "offload_param_device";
const PARAMETERS_FOLDER: &str = "offload_param_nvme_path";
const FSDP: [&str; 2] = ["fsdp_offload_params", "fsdp_cpu_offload"];
const IN_HOST_MEMORY: &str = "it is in host memory already: the job runs on the CPU";

/// Settles where the optimizer's state lies, and with it the parameters' shards of stage 3, which are part of it.
pub(crate) fn optimizer(
    reader: &mut Reader<'_>,
    distributed: &DistributedType<'_>,
    asked: &Asked<'_>,
    device: DeviceKind,
) -> Result<Offload, ConfigError> {
    let device_setting = distributed.find(reader, Section::DeepSpeed, DEVICE);
    let place_of = read::<OffloadDevice>(device_setting, DEVICE)?;
    let folder_setting = distributed.find(reader, Section::DeepSpeed, FOLDER);
    let folder = read::<PathBuf>(folder_setting, FOLDER)?;
    let fsdp = fsdp_setting(reader, distributed)?;
    let asking = device_setting.filter(|_| place_of.is_some_and(|place| place != OffloadDevice::None)).or(fsdp);
    let place = asking.map_or("default", |setting| setting.place.as_str());
    reader.provenance.insert("offload_optimizer".to_owned(), place.to_owned());
    if let (Some(_), Some(setting)) = (&folder, folder_setting)
        && place_of != Some(OffloadDevice::Nvme)
    {
        reader.notes.push(no_effect(setting, &format!("{DEVICE} is not nvme")));
    }
    let offload = match (place_of, asking) {
        (Some(OffloadDevice::Nvme), Some(setting)) => {
            refuse_whole_state(setting, asked)?;
            Offload::Files(folder_of(reader, setting, folder, folder_setting)?)
        }
        (_, Some(setting)) if device == DeviceKind::Cpu => {
            reader.notes.push(no_effect(setting, IN_HOST_MEMORY));
            Offload::No
        }
        (_, Some(setting)) => {
            refuse_whole_state(setting, asked)?;
            Offload::HostMemory
        }
        (_, None) => Offload::No,
    };
    parameters(reader, distributed, asked, device, &offload)?;
    let folder_setting = distributed.find(reader, Section::DeepSpeed, PARAMETERS_FOLDER);
    if let (Some(folder), Some(setting)) = (read::<PathBuf>(folder_setting, FOLDER)?, folder_setting)
        && offload != Offload::Files(folder)
    {
        reader.notes.push(no_effect(setting, "parameters lie where the optimizer's state does"));
    }
    Ok(offload)
}

fn read<T>(setting: Option<&Setting>, key: &str) -> Result<Option<T>, ConfigError>
where
    Option<T>: crate::value::FromValue,
{
    match setting {
        Some(setting) => setting.read::<Option<T>>(Reader::key(key)),
        None => Ok(None),
    }
}

/// FSDP's switch, where it is on: parameters, gradients and optimizer state in host memory.
fn fsdp_setting<'a>(
    reader: &Reader<'a>,
    distributed: &DistributedType<'a>,
) -> Result<Option<&'a Setting>, ConfigError> {
    for name in FSDP {
        if let Some(setting) = distributed.find(reader, Section::Fsdp, name)
            && setting.read::<bool>(Reader::key(FSDP[0]))?
        {
            return Ok(Some(setting));
        }
    }
    Ok(None)
}

/// Only optimizer state that is sharded is offloaded.
fn refuse_whole_state(setting: &Setting, asked: &Asked<'_>) -> Result<(), ConfigError> {
    if asked.strategy.stage != Stage::Zero {
        return Ok(());
    }
    let hint = "pass --zero_stage 1 or more, or remove the key";
    match asked.setting {
        Some(by) => Err(setting.conflict(by, format!("only optimizer state that is sharded is offloaded: {hint}"))),
        None => Err(setting.needs_stage(Stage::One, hint)),
    }
}

/// The folder that `setting`, which is nvme, needs.
fn folder_of(
    reader: &mut Reader<'_>,
    setting: &Setting,
    folder: Option<PathBuf>,
    folder_setting: Option<&Setting>,
) -> Result<PathBuf, ConfigError> {
    match (folder, folder_setting) {
        (Some(folder), Some(folder_setting)) => {
            reader.provenance.insert("offload_optimizer".to_owned(), folder_setting.place.clone());
            Ok(folder)
        }
        _ => Err(ConfigError::Missing {
            keys: FOLDER.to_owned(),
            hint: format!(
                "{DEVICE} is nvme ({}): pass --{FOLDER} FOLDER, or set {}, to a folder on a fast disk",
                setting.place,
                Section::DeepSpeed.path(FOLDER)
            ),
        }),
    }
}

/// Checks `offload_param_device`. At stage 3 a rank's parameters are the masters that its optimizer owns, so they lie where
/// these do.
fn parameters(
    reader: &mut Reader<'_>,
    distributed: &DistributedType<'_>,
    asked: &Asked<'_>,
    device: DeviceKind,
    optimizer: &Offload,
) -> Result<(), ConfigError> {
    let Some(setting) = distributed.find(reader, Section::DeepSpeed, PARAMETERS) else { return Ok(()) };
    match setting.read::<Option<OffloadDevice>>(Reader::key(DEVICE))? {
        None | Some(OffloadDevice::None) => Ok(()),
        _ if asked.strategy.stage != Stage::Three => {
            let hint = format!("pass --zero_stage 3, or remove {PARAMETERS}");
            match asked.setting {
                Some(by) => {
                    Err(setting.conflict(by, format!("only parameters that are sharded are offloaded: {hint}")))
                }
                None => Err(setting.needs_stage(Stage::Three, hint)),
            }
        }
        Some(OffloadDevice::Nvme) if !matches!(optimizer, Offload::Files(_)) => {
            Err(setting.not_built(format!("parameters lie where the optimizer's state does: set {DEVICE}: nvme too")))
        }
        Some(OffloadDevice::Cpu) if device == DeviceKind::Cpu => {
            reader.notes.push(no_effect(setting, IN_HOST_MEMORY));
            Ok(())
        }
        Some(OffloadDevice::Cpu) if *optimizer == Offload::No => {
            Err(setting.not_built(format!("parameters lie where the optimizer's state does: set {DEVICE}: cpu too")))
        }
        Some(_) => Ok(()),
    }
}
