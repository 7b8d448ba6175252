//! What a rank computes on: checked, claimed and told before anything is built on it.

use crate::gpu::{self, Claimed, GpuError, Version};
use crate::model::{ModelError, Transformer};
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
    let nccl = match wanted.nccl {
        true => {
            let (major, minor, patch) = gpu::nccl_version()?;
            format!(", NCCL {major}.{minor}.{patch}")
        }
        // It may not be there, and nobody needs it.
        false => String::new(),
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

/// Says how attention goes, and warns of a kernel whose memory grows with the square of the rows' length.
pub(crate) fn tell_attention(model: &Transformer, length: usize) -> Result<(), ModelError> {
    let (words, keeps_scores) = model.attention_words(length)?;
    match keeps_scores && model.device().is_cuda() {
        true => tracing::warn!(
            "{words}: libtorch has no fused attention for heads {} wide in {:?} here; all scores are kept, which takes memory by \
             the square of max_length",
            model.config.head_dim,
            model.kind(),
        ),
        false => tracing::info!("{words}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_configs::{Inputs, resolve};

    /// Neither a build for the CPU nor a machine without a card panics, and each names its own way out.
    #[test]
    fn a_job_for_gpus_is_refused_where_there_are_none() {
        let flags = [("model_name_or_path", "m"), ("dataset", "d.jsonl"), ("output_dir", "out")];
        let flags = flags.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let config = resolve(&Inputs { flags, devices: 1, ..Inputs::default() }).unwrap();
        assert_eq!(config.device, DeviceKind::Cuda);
        let message = match claim(&Wanted::from(&config), 0) {
            // A machine with a card, and a build for it.
            Ok(_) => return,
            Err(error) => error.to_string(),
        };
        let expected = match torch::cuda_version().unwrap() {
            None => ["was built against a libtorch for the CPU", "scripts/setup --cuda"],
            Some(_) => ["driver", "--use_cpu true"],
        };
        for part in expected {
            assert!(message.contains(part), "{message}");
        }
    }
}
