//! What a rank computes on: checked, claimed and told before anything is built on it.

use crate::gpu::{self, Claimed, GpuError, Version};
use crate::torch;
use crate::worker::WorkerError;
use tch::Device;
use zerofold_configs::{DeviceKind, ElementType, Resolved};

/// The device of a rank, held for as long as it computes.
pub(crate) enum RankDevice {
    Cpu,
    Gpu { index: usize, _claimed: Claimed },
}

impl RankDevice {
    /// libtorch's name of it.
    pub(crate) fn torch(&self) -> Device {
        match self {
            RankDevice::Cpu => Device::Cpu,
            RankDevice::Gpu { index, .. } => Device::Cuda(*index),
        }
    }
}

/// What a rank wants of its device.
pub(crate) struct Wanted {
    /// What it computes on.
    pub(crate) device: DeviceKind,
    /// The type that it computes in.
    pub(crate) compute: ElementType,
    /// Round the factors of float32 products to TF32.
    pub(crate) tf32: bool,
    /// Let other processes compute there too.
    pub(crate) share: bool,
    /// Whether NCCL connects it.
    pub(crate) nccl: bool,
}

impl From<&Resolved> for Wanted {
    fn from(config: &Resolved) -> Self {
        Wanted {
            device: config.device,
            compute: config.element_types().compute,
            tf32: config.tf32,
            share: config.share_gpus,
            nccl: config.num_processes > 1,
        }
    }
}

/// The version of CUDA that libtorch was built with.
///
/// # Errors
/// [`GpuError::CpuBuild`], and what libtorch says.
pub(crate) fn built_for() -> Result<Version, WorkerError> {
    Ok(Version::of_cuda(torch::cuda_version()?.ok_or(GpuError::CpuBuild)?))
}

/// A driver runs what was built for an older CUDA, or for the same one with another second number.
pub(crate) fn check_driver(driver: Version, libtorch: Version) -> Result<(), GpuError> {
    match driver.major < libtorch.major {
        true => Err(GpuError::OldDriver { driver, libtorch }),
        false => Ok(()),
    }
}

/// Takes the device of a local rank once everything is known to fit: build, driver, card.
pub(crate) fn claim(wanted: &Wanted, local_rank: usize) -> Result<RankDevice, WorkerError> {
    if wanted.device == DeviceKind::Cpu {
        return Ok(RankDevice::Cpu);
    }
    let libtorch = built_for()?;
    let facts = gpu::facts()?;
    check_driver(facts.driver, libtorch)?;
    let claimed = gpu::claim(&facts, local_rank, wanted.share)?;
    gpu::check_compute(&claimed.facts, wanted.compute, wanted.tf32)?;
    torch::use_cuda(local_rank)?;
    torch::allow_tf32(wanted.tf32)?;
    let nccl = match gpu::nccl_version() {
        Ok((major, minor, patch)) if wanted.nccl => format!(", NCCL {major}.{minor}.{patch}"),
        _ => String::new(),
    };
    let gpu::DeviceFacts { name, capability, total_memory, peers, .. } = &claimed.facts;
    tracing::info!(
        "GPU {local_rank}: {name}, compute capability {capability}, {} of {} MiB free, reads GPUs {peers:?} directly; \
         driver for CUDA {}, libtorch for CUDA {libtorch}{nccl}",
        claimed.free_memory()? >> 20,
        total_memory >> 20,
        facts.driver,
    );
    Ok(RankDevice::Gpu { index: local_rank, _claimed: claimed })
}
