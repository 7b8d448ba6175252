//! This rank's device: chosen by its local rank, made current, and claimed so that no second process computes on it.

use super::error::driver;
use super::{DeviceFacts, Facts, GpuError};
use cudarc::driver::{result, sys};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// ` (CUDA_VISIBLE_DEVICES=…)` where it is set: the likely reason for a device that is not there.
pub(super) fn restricted() -> String {
    std::env::var(VISIBLE).map_or_else(|_| String::new(), |value| format!(" ({VISIBLE}={value})"))
}

/// A device that is current for this thread. Its context is libtorch's too.
#[derive(Debug)]
pub struct Claimed {
    /// What it is.
    pub facts: DeviceFacts,
    context: sys::CUcontext,
    device: sys::CUdevice,
    /// The lock, held for as long as the process computes; none when devices may be shared.
    _lock: Option<File>,
}

impl Claimed {
    /// Bytes of the device's memory that are free now.
    ///
    /// # Errors
    /// What the driver says.
    pub fn free_memory(&self) -> Result<u64, GpuError> {
        // SAFETY: the context was retained by this and is not yet released.
        unsafe { result::ctx::set_current(self.context) }.map_err(driver("cuCtxSetCurrent"))?;
        result::mem_get_info().map(|(free, _total)| free as u64).map_err(driver("cuMemGetInfo"))
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // SAFETY: retained once by `claim`.
        let _result = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Takes the device of `local_rank` and makes it current for this thread.
///
/// # Errors
/// [`GpuError::NoSuchDevice`]; [`GpuError::Taken`] when another process of this product computes on it, unless `share`;
/// what the driver says.
pub fn claim(facts: &Facts, local_rank: usize, share: bool) -> Result<Claimed, GpuError> {
    let Some(found) = facts.devices.get(local_rank) else {
        return Err(GpuError::NoSuchDevice { local_rank, visible: facts.devices.len(), restricted: restricted() });
    };
    let lock = if share { None } else { Some(lock(found)?) };
    let device = result::device::get(local_rank as i32).map_err(driver("cuDeviceGet"))?;
    // SAFETY: the handle is one that the driver gave; the context is released when the claim is dropped.
    let context = unsafe { result::primary_ctx::retain(device) }.map_err(driver("cuDevicePrimaryCtxRetain"))?;
    // SAFETY: the context was retained a moment ago.
    unsafe { result::ctx::set_current(context) }.map_err(driver("cuCtxSetCurrent"))?;
    Ok(Claimed { facts: found.clone(), context, device, _lock: lock })
}

/// The lock of a device. The kernel gives it back however the process ends.
fn lock(device: &DeviceFacts) -> Result<File, GpuError> {
    let name: String =
        device.bus_id.chars().map(|letter| if letter.is_alphanumeric() { letter } else { '-' }).collect();
    let path = std::env::temp_dir().join(format!("zerofold-gpu-{name}.lock"));
    let failed = |source| GpuError::Claim { index: device.index, path: path.display().to_string(), source };
    // Opened to read where it is there already: it may belong to another user.
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            File::options().create(true).append(true).mode(0o644).open(&path)
        }
        opened => opened,
    };
    let file = file.map_err(failed)?;
    // SAFETY: the descriptor is open for the length of the call.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(file),
        _ => match std::io::Error::last_os_error() {
            error if error.kind() == std::io::ErrorKind::WouldBlock => {
                Err(GpuError::Taken { index: device.index, name: device.name.clone() })
            }
            error => Err(failed(error)),
        },
    }
}
