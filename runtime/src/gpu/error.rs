//! What can be wrong with a machine's GPUs.

use super::facts::Version;
use cudarc::driver::DriverError;
use thiserror::Error;

/// Why a GPU cannot be used.
#[derive(Debug, Error)]
pub enum GpuError {
    /// The driver is not installed.
    #[error(
        "the NVIDIA driver's library (libcuda.so.1) cannot be loaded: this machine has no GPU, or no driver for it\nhint: `nvidia-smi` shows whether the driver works; in a container, start it with the GPUs (--gpus all); to train on the CPU pass --use_cpu true"
    )]
    NoDriver,
    /// The driver has no device to offer.
    #[error(
        "the NVIDIA driver finds no GPU{restricted}\nhint: `nvidia-smi -L` lists the GPUs; to train on the CPU pass --use_cpu true"
    )]
    NoDevice {
        /// ` (CUDA_VISIBLE_DEVICES=…)`, when that may be why.
        restricted: String,
    },
    /// NCCL is not installed.
    #[error(
        "NCCL (libnccl.so.2) cannot be loaded\nhint: `scripts/setup --cuda` installs it with libtorch, `apt install libnccl2` for the whole machine; LD_LIBRARY_PATH may name its folder"
    )]
    NoNccl,
    /// NCCL says no.
    #[error("NCCL: {call} failed: {message}")]
    Nccl {
        /// The function.
        call: &'static str,
        /// NCCL's words.
        message: String,
    },
    /// The link by which NCCL is found cannot be made.
    #[error(
        "NCCL lies at {path} but cannot be made findable: {source}\nhint: put a link libnccl.so to it into a folder that LD_LIBRARY_PATH names"
    )]
    Link {
        /// Where NCCL lies.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// This worker was built without CUDA.
    #[error(
        "this worker was built against a libtorch for the CPU, and the job is to run on GPUs\nhint: build it with CUDA (scripts/setup --cuda, then scripts/launch again), or train on the CPU with --use_cpu true"
    )]
    CpuBuild,
    /// The driver is too old for libtorch's CUDA.
    #[error(
        "the NVIDIA driver supports CUDA up to {driver}, but libtorch was built with CUDA {libtorch}\nhint: update the driver, or build against a libtorch for CUDA {}.x (LIBTORCH)", driver.major
    )]
    OldDriver {
        /// What the driver supports.
        driver: Version,
        /// What libtorch wants.
        libtorch: Version,
    },
    /// The rank's device does not exist.
    #[error(
        "local rank {local_rank} needs GPU {local_rank}, but {visible} {} visible{restricted}\nhint: start as many processes as there are GPUs (--nproc {visible}), or name others by gpu_ids", if *visible == 1 { "is" } else { "are" }
    )]
    NoSuchDevice {
        /// The rank on this machine.
        local_rank: usize,
        /// How many GPUs there are.
        visible: usize,
        /// ` (CUDA_VISIBLE_DEVICES=…)`, when it is set.
        restricted: String,
    },
    /// Another process computes on the device.
    #[error(
        "GPU {index} ({name}) is taken by another Zerofold process\nhint: choose other GPUs by gpu_ids, wait for the other job, or allow it with --share_gpus true"
    )]
    Taken {
        /// The device.
        index: usize,
        /// Its name.
        name: String,
    },
    /// The device cannot compute in a type.
    #[error("{what} needs compute capability {needed} or newer, GPU {index} ({name}) has {found}\nhint: {hint}")]
    Capability {
        /// What was asked for.
        what: &'static str,
        /// The capability it needs.
        needed: Version,
        /// The device.
        index: usize,
        /// Its name.
        name: String,
        /// Its capability.
        found: Version,
        /// What to do.
        hint: &'static str,
    },
    /// A call of the driver failed.
    #[error("the NVIDIA driver: {call} failed: {reason}")]
    Driver {
        /// The function.
        call: &'static str,
        /// The driver's words.
        reason: String,
    },
    /// The lock of a device cannot be taken.
    #[error(
        "GPU {index} cannot be claimed: {path}: {source}\nhint: TMPDIR may name another folder for such files; --share_gpus true does without"
    )]
    Claim {
        /// The device.
        index: usize,
        /// The lock's file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Says which call of the driver failed.
pub(super) fn driver(call: &'static str) -> impl Fn(DriverError) -> GpuError {
    move |error| {
        let text = |result: Result<&std::ffi::CStr, DriverError>| {
            result.map_or_else(|_| format!("error {}", error.0 as u32), |text| text.to_string_lossy().into_owned())
        };
        GpuError::Driver { call, reason: format!("{} ({})", text(error.error_string()), text(error.error_name())) }
    }
}
