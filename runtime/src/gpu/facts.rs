//! What GPUs a machine has, for the log, for `launch doctor`, and to refuse what a card cannot do before anything starts.

use super::error::driver;
use super::{GpuError, require_driver};
use cudarc::driver::{result, sys};
use serde::Serialize;
use std::ffi::{CStr, c_char, c_int};
use std::fmt;
use zerofold_configs::ElementType;

/// A version of two numbers: of CUDA, or a compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second.
    pub minor: u32,
}

impl Version {
    /// CUDA counts as major × 1000 + minor × 10.
    pub fn of_cuda(number: u32) -> Self {
        Version { major: number / 1000, minor: number % 1000 / 10 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// What the driver tells of a machine.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// The newest CUDA that the driver supports.
    pub driver: Version,
    /// The visible devices, in the order in which CUDA counts them.
    pub devices: Vec<DeviceFacts>,
}

/// What the driver tells of a device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceFacts {
    /// Its place among the visible devices.
    pub index: usize,
    /// The product's name.
    pub name: String,
    /// Where it sits on the PCI bus: the same for every process of the machine.
    pub bus_id: String,
    /// What its processors can do.
    pub capability: Version,
    /// Bytes of its memory.
    pub total_memory: u64,
    /// The visible devices whose memory it can read directly.
    pub peers: Vec<usize>,
}

/// Asks the driver.
///
/// # Errors
/// [`GpuError::NoDriver`], [`GpuError::NoDevice`], and what the driver says.
pub fn facts() -> Result<Facts, GpuError> {
    require_driver()?;
    let mut number: c_int = 0;
    // SAFETY: the pointer is valid for the call.
    unsafe { sys::cuDriverGetVersion(&mut number) }.result().map_err(driver("cuDriverGetVersion"))?;
    let count = result::device::get_count().map_err(driver("cuDeviceGetCount"))?;
    if count == 0 {
        return Err(GpuError::NoDevice { restricted: super::device::restricted() });
    }
    let handles = (0..count).map(result::device::get).collect::<Result<Vec<_>, _>>().map_err(driver("cuDeviceGet"))?;
    let devices = (0..handles.len()).map(|index| device_facts(index, &handles)).collect::<Result<Vec<_>, _>>()?;
    Ok(Facts { driver: Version::of_cuda(number.unsigned_abs()), devices })
}

fn device_facts(index: usize, handles: &[sys::CUdevice]) -> Result<DeviceFacts, GpuError> {
    use sys::CUdevice_attribute as Attribute;
    let device = handles[index];
    let attribute = |attribute: Attribute| {
        // SAFETY: the handle is one that the driver gave.
        unsafe { result::device::get_attribute(device, attribute) }.map_err(driver("cuDeviceGetAttribute"))
    };
    let capability = Version {
        major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?.unsigned_abs(),
        minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?.unsigned_abs(),
    };
    // SAFETY: the handle is one that the driver gave.
    let total_memory = unsafe { result::device::total_mem(device) }.map_err(driver("cuDeviceTotalMem"))? as u64;
    let mut peers = Vec::new();
    for (other, &handle) in handles.iter().enumerate().filter(|(other, _)| *other != index) {
        let mut can = 0;
        // SAFETY: both handles are ones that the driver gave; the pointer is valid for the call.
        unsafe { sys::cuDeviceCanAccessPeer(&mut can, device, handle) }
            .result()
            .map_err(driver("cuDeviceCanAccessPeer"))?;
        if can != 0 {
            peers.push(other);
        }
    }
    let name = result::device::get_name(device).map_err(driver("cuDeviceGetName"))?;
    Ok(DeviceFacts { index, name, bus_id: bus_id(device)?, capability, total_memory, peers })
}

fn bus_id(device: sys::CUdevice) -> Result<String, GpuError> {
    let mut text: [c_char; 32] = [0; 32];
    // SAFETY: the driver writes at most the given length, zero-terminated.
    unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr(), text.len() as c_int, device) }
        .result()
        .map_err(driver("cuDeviceGetPCIBusId"))?;
    // SAFETY: zero-terminated, see above; the last byte was 0 before.
    Ok(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
}

/// The capability from which on a card has bfloat16 and TF32 matrix products (Ampere).
const AMPERE: Version = Version { major: 8, minor: 0 };
/// The oldest that libtorch 2.13 for CUDA 13 has kernels for (Turing).
const OLDEST: Version = Version { major: 7, minor: 5 };

/// Checks that `device` can compute in `compute`, and in TF32 where that is asked for.
///
/// # Errors
/// [`GpuError::Capability`].
pub fn check_compute(device: &DeviceFacts, compute: ElementType, tf32: bool) -> Result<(), GpuError> {
    let lacks = |what, needed, hint| {
        let DeviceFacts { index, name, capability, .. } = device.clone();
        Err(GpuError::Capability { what, needed, index, name, found: capability, hint })
    };
    if compute == ElementType::Bfloat16 && device.capability < AMPERE {
        return lacks("bfloat16", AMPERE, "--mixed_precision fp16 runs on this card");
    }
    if tf32 && device.capability < AMPERE {
        return lacks("tf32", AMPERE, "leave tf32 out, or say tf32: false");
    }
    if device.capability < OLDEST {
        let hint =
            "bring a libtorch 2.13 that was built for this card (LIBTORCH), or train on the CPU with --use_cpu true";
        return lacks("libtorch for CUDA 13", OLDEST, hint);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(major: u32, minor: u32) -> DeviceFacts {
        DeviceFacts {
            index: 1,
            name: "Tesla V100-SXM2-32GB".to_owned(),
            bus_id: "0000:00:1e.0".to_owned(),
            capability: Version { major, minor },
            total_memory: 32 << 30,
            peers: Vec::new(),
        }
    }

    #[test]
    fn a_card_without_bfloat16_is_pointed_to_fp16() {
        let message = check_compute(&card(7, 0), ElementType::Bfloat16, false).unwrap_err().to_string();
        for part in ["bfloat16 needs compute capability 8.0", "GPU 1 (Tesla V100-SXM2-32GB) has 7.0", "fp16"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(check_compute(&card(7, 5), ElementType::Float16, false).is_ok());
        assert!(check_compute(&card(7, 5), ElementType::Float32, true).unwrap_err().to_string().contains("tf32"));
        assert!(check_compute(&card(8, 0), ElementType::Bfloat16, true).is_ok());
    }

    #[test]
    fn versions_are_read_as_cuda_writes_them() {
        assert_eq!(Version::of_cuda(13000).to_string(), "13.0");
        assert_eq!(Version::of_cuda(12080).to_string(), "12.8");
    }
}
