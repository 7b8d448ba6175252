//! Where the optimizer's state lies: in memory, or in files.

use crate::accelerate::{Asked, DistributedType};
use crate::error::ConfigError;
use crate::known::no_effect;
use crate::registry::Section;
use crate::settings::Reader;
use crate::sharding::Stage;
use crate::types::OffloadDevice;
use std::path::PathBuf;

const DEVICE: &str = "offload_optimizer_device";
const FOLDER: &str = "offload_optimizer_nvme_path";

/// The folder of the files, when the optimizer's state is to lie in files.
pub(crate) fn optimizer(
    reader: &mut Reader<'_>,
    distributed: &DistributedType<'_>,
    asked: &Asked<'_>,
) -> Result<Option<PathBuf>, ConfigError> {
    let device_setting = distributed.find(reader, Section::DeepSpeed, DEVICE);
    let device = match device_setting {
        Some(setting) => setting.read::<Option<OffloadDevice>>(Reader::key(DEVICE))?,
        None => None,
    };
    let folder_setting = distributed.find(reader, Section::DeepSpeed, FOLDER);
    let folder = match folder_setting {
        Some(setting) => setting.read::<Option<PathBuf>>(Reader::key(FOLDER))?,
        None => None,
    };
    let place = device_setting.map_or("default", |setting| setting.place.as_str());
    reader.provenance.insert("offload_optimizer".to_owned(), place.to_owned());
    let (Some(OffloadDevice::Nvme), Some(setting)) = (device, device_setting) else {
        if let (Some(OffloadDevice::Cpu), Some(setting)) = (device, device_setting) {
            let reason = "optimizer state is in host memory already: this version trains on the CPU";
            reader.notes.push(no_effect(setting, reason));
        }
        if let (Some(_), Some(setting)) = (folder, folder_setting) {
            reader.notes.push(no_effect(setting, &format!("{DEVICE} is not nvme")));
        }
        return Ok(None);
    };
    if asked.strategy.stage == Stage::Zero {
        let hint = "pass --zero_stage 1 or more, or remove the key";
        return match asked.setting {
            Some(by) => Err(setting.conflict(by, format!("only optimizer state that is sharded is offloaded: {hint}"))),
            None => Err(setting.not_allowed("at ZeRO stage 0 nothing is offloaded", Some(hint.to_owned()))),
        };
    }
    match (folder, folder_setting) {
        (Some(folder), Some(folder_setting)) => {
            let place = folder_setting.place.clone();
            reader.provenance.insert("offload_optimizer".to_owned(), place);
            Ok(Some(folder))
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
