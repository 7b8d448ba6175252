//! What a job computes on, and what carries its collectives.

use crate::accelerate::{Distributed, DistributedType};
use crate::error::ConfigError;
use crate::known::no_effect;
use crate::registry::Section;
use crate::settings::{Opinion, Reader, Setting, agree};
use crate::types::{Backend, DeviceKind};

/// Settles the device: GPUs where this machine has some, unless `use_cpu` or MULTI_CPU says otherwise.
pub(crate) fn device<'a>(
    reader: &mut Reader<'a>,
    distributed: &DistributedType<'a>,
    gpus: u32,
) -> Result<DeviceKind, ConfigError> {
    let key = Reader::key("use_cpu");
    let opinions = [
        reader.opinion::<bool>("use_cpu")?,
        reader.opinion_of::<bool>(Section::Training, "use_cpu", key)?,
        reader.opinion_of::<bool>(Section::Training, "no_cuda", key)?,
    ];
    let multi_cpu = distributed.setting().filter(|_| distributed.kind() == Some(Distributed::MultiCpu));
    let multi_cpu = multi_cpu.map(|setting| Opinion { value: true, setting });
    let held = agree(opinions)?;
    // Every file that Accelerate writes has `use_cpu: false`, which only means that nobody asked for the CPU.
    let held = match (held.filter(|held| held.value), multi_cpu) {
        (Some(held), _) => Some(held),
        (None, multi_cpu) => multi_cpu,
    };
    let chosen = held.map(|held| Opinion { value: DeviceKind::Cpu, setting: held.setting });
    let default = if gpus > 0 { DeviceKind::Cuda } else { DeviceKind::Cpu };
    let device = reader.settle("device", chosen, default);
    if device == DeviceKind::Cpu && gpus == 0 {
        note_absent_gpus(reader, distributed);
    }
    Ok(device)
}

/// Says so where the configuration was written for GPUs and this machine has none.
fn note_absent_gpus(reader: &mut Reader<'_>, distributed: &DistributedType<'_>) {
    let multi_gpu = distributed.setting().filter(|_| distributed.kind() == Some(Distributed::MultiGpu));
    let named = reader.settings.find(Section::Top, "gpu_ids");
    if let Some(setting) = named.filter(|setting| !is_all(setting)).or(multi_gpu) {
        let place = format!("{} ({})", setting.equation(), setting.place);
        reader.notes.push(format!("{place}: this machine has no GPU, so the job runs on the CPU"));
    }
}

fn is_all(setting: &Setting) -> bool {
    setting.value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("all"))
}

/// Settles `gpu_ids`: the GPUs to use, as CUDA counts them; none for all of them.
pub(crate) fn gpu_ids(reader: &mut Reader<'_>, device: DeviceKind) -> Result<Option<Vec<u32>>, ConfigError> {
    let setting = reader.settings.find(Section::Top, "gpu_ids").filter(|setting| !is_all(setting));
    let place = setting.map_or("default", |setting| setting.place.as_str());
    reader.provenance.insert("gpu_ids".to_owned(), place.to_owned());
    let Some(setting) = setting else { return Ok(None) };
    let text = crate::value::text(&setting.value).unwrap_or_default();
    let ids: Option<Vec<u32>> = text.split(',').map(|id| id.trim().parse().ok()).collect();
    let mut seen = std::collections::BTreeSet::new();
    let ids = ids.filter(|ids| ids.iter().all(|id| seen.insert(*id)));
    let Some(ids) = ids else {
        let hint = "write each GPU once, such as gpu_ids: 0,2".to_owned();
        return Err(setting.not_allowed("it must be all, or numbers with commas between them", Some(hint)));
    };
    Ok((device == DeviceKind::Cuda).then_some(ids))
}

/// Settles the backend: by default `nccl` between GPUs, `shm` between processes on the CPU, and nothing for one process.
pub(crate) fn backend(reader: &mut Reader<'_>, device: DeviceKind, num_processes: u32) -> Result<Backend, ConfigError> {
    let ours = reader.opinion::<Backend>("backend")?;
    let theirs = reader.opinion_of::<Backend>(Section::Training, "ddp_backend", Reader::key("backend"))?;
    let held = agree([ours, theirs])?;
    if let Some(held) = &held {
        let refuse = |allowed: &str, hint: String| Err(held.setting.not_allowed(allowed, Some(hint)));
        match (held.value, device) {
            (Backend::Single, _) if num_processes > 1 => {
                let with = if device == DeviceKind::Cuda { "nccl" } else { "shm" };
                let hint = format!("use {with}, or --nproc 1 in place of {num_processes}");
                return refuse("single is for one process", hint);
            }
            (Backend::Gloo | Backend::Shm, DeviceKind::Cuda) => {
                let allowed = format!("{} is for the CPU", held.value);
                return refuse(&allowed, "use nccl (the default), or --use_cpu true".to_owned());
            }
            (Backend::Nccl, DeviceKind::Cpu) => {
                let place = reader.provenance.get("device").filter(|place| *place != "default");
                let why = match place {
                    Some(place) => format!("this job runs on the CPU ({place})"),
                    None => "this machine has none".to_owned(),
                };
                return refuse(
                    &format!("nccl is for GPUs, and {why}"),
                    "use shm or gloo, or leave backend out".to_owned(),
                );
            }
            _ => {}
        }
    }
    let default = match (num_processes, device) {
        (1, _) => Backend::Single,
        (_, DeviceKind::Cuda) => Backend::Nccl,
        (_, DeviceKind::Cpu) => Backend::Shm,
    };
    Ok(reader.settle("backend", held, default))
}

/// Settles `tf32`: whether float32 matrix products may round their factors to TF32; on GPUs only.
pub(crate) fn tf32(reader: &mut Reader<'_>, device: DeviceKind) -> Result<bool, ConfigError> {
    let wanted = reader.read::<bool>("tf32")?;
    note_without_effect(reader, "tf32", wanted, device);
    Ok(wanted && device == DeviceKind::Cuda)
}

/// Settles `share_gpus`: whether a GPU that another job computes on may be used.
pub(crate) fn share_gpus(reader: &mut Reader<'_>, device: DeviceKind) -> Result<bool, ConfigError> {
    let share = reader.read::<bool>("share_gpus")?;
    note_without_effect(reader, "share_gpus", share, device);
    Ok(share)
}

/// Says so where a switch that only counts on GPUs is on for a job on the CPU.
fn note_without_effect(reader: &mut Reader<'_>, key: &str, on: bool, device: DeviceKind) {
    if let (true, DeviceKind::Cpu, Some(setting)) = (on, device, reader.settings.find(Section::Training, key)) {
        reader.notes.push(no_effect(setting, "the job runs on the CPU"));
    }
}
