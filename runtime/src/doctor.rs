//! What libtorch, the driver and NCCL say of this machine. Every failure is told, and none ends the telling.

use crate::gpu::{self, DeviceFacts, Facts, GpuError, Version};
use crate::{comm, device, shard, torch};
use tch::{Device, Kind, TchError, Tensor};
use zerofold_configs::{AttentionChoice, DeviceKind, DriverFacts, ElementType, GpuFacts, NcclFacts, WorkerFacts};

/// Looks at everything. May start the program anew once, so it is to be called first: see [`gpu::require_nccl`].
pub fn examine() -> WorkerFacts {
    let found = gpu::require_nccl();
    let facts = gpu::facts();
    let (cuda, obstacles) = obstacles(&facts);
    let mut attention = attention(DeviceKind::Cpu, &[ElementType::Float32, ElementType::Bfloat16]);
    if facts.is_ok() && obstacles.is_empty() {
        attention.extend(self::attention(
            DeviceKind::Cuda,
            &[ElementType::Float32, ElementType::Bfloat16, ElementType::Float16],
        ));
    }
    WorkerFacts {
        libtorch: torch::version(),
        libtorch_cuda: cuda.map(|version| version.to_string()),
        processor: torch::processor().unwrap_or_else(|error| error.to_string()),
        driver: facts.map(|facts| driver(&facts)).into(),
        nccl: found.and_then(|()| nccl()).into(),
        obstacles,
        attention,
    }
}

/// The CUDA that libtorch was built with, and what stands between it and the GPUs.
fn obstacles(facts: &Result<Facts, GpuError>) -> (Option<Version>, Vec<String>) {
    let libtorch = match device::built_for() {
        Ok(version) => version,
        Err(error) => return (None, vec![error.to_string()]),
    };
    let Ok(facts) = facts else { return (Some(libtorch), Vec::new()) };
    let starts = match device::check_driver(facts.driver, libtorch) {
        Ok(()) => torch::use_cuda(0).map_err(|error| format!("GPU 0 cannot be started: {error}\nhint: {STARTS}")),
        Err(error) => Err(error.to_string()),
    };
    (Some(libtorch), starts.err().into_iter().collect())
}

const STARTS: &str = "`nvidia-smi` shows whether it works; a driver that was updated needs a restart of the machine";

fn driver(facts: &Facts) -> DriverFacts {
    let device = |device: &DeviceFacts| {
        let lacks = |compute| gpu::check_compute(device, compute, false).err().map(|error| error.to_string());
        GpuFacts {
            index: device.index,
            name: device.name.clone(),
            bus_id: device.bus_id.clone(),
            capability: device.capability.to_string(),
            total_memory: device.total_memory,
            // Shared: to look at a GPU is not to compute on it.
            free_memory: gpu::claim(facts, device.index, true).and_then(|claimed| claimed.free_memory()).into(),
            peers: device.peers.clone(),
            without_bfloat16: lacks(ElementType::Bfloat16),
            unusable: lacks(ElementType::Float32),
        }
    };
    DriverFacts { cuda: facts.driver.to_string(), devices: facts.devices.iter().map(device).collect() }
}

fn nccl() -> Result<NcclFacts, GpuError> {
    let (major, minor, patch) = gpu::nccl_version()?;
    let [without_id, without_communicator] = comm::try_nccl().map(|tried| tried.err().map(|error| error.to_string()));
    Ok(NcclFacts { version: format!("{major}.{minor}.{patch}"), without_id, without_communicator })
}

fn attention(device: DeviceKind, types: &[ElementType]) -> Vec<AttentionChoice> {
    let choice = |&dtype: &ElementType| AttentionChoice {
        device,
        dtype,
        kernel: kernel(device, shard::kind(dtype)).unwrap_or_else(|error| error.to_string()),
    };
    types.iter().map(choice).collect()
}

/// The kernel that libtorch takes for causal attention that is trained: `at::SDPBackend`.
fn kernel(device: DeviceKind, kind: Kind) -> Result<String, TchError> {
    let device = match device {
        DeviceKind::Cpu => Device::Cpu,
        DeviceKind::Cuda => Device::Cuda(0),
    };
    // One row, heads, positions and width of a head of SmolLM2-135M.
    let query = Tensor::f_zeros([1, 9, 512, 64], (kind, device))?.set_requires_grad(true);
    let choice = Tensor::f_internal_fused_sdp_choice::<Tensor>(&query, &query, &query, None, 0.0, true, None, false)?;
    Ok(match choice {
        0 => "math".to_owned(),
        1 => "flash".to_owned(),
        2 => "efficient".to_owned(),
        3 => "cudnn".to_owned(),
        other => format!("number {other} of at::SDPBackend"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_on_the_processor_is_fused() {
        for choice in attention(DeviceKind::Cpu, &[ElementType::Float32, ElementType::Bfloat16]) {
            assert_eq!(choice.kernel, "flash", "{choice:?}");
        }
    }

    #[test]
    fn libtorch_tells_what_it_is() {
        assert!(torch::version().starts_with("2.13."), "{}", torch::version());
        assert!(!torch::processor().unwrap().is_empty());
    }
}
