//! Address space of a GPU in which one small piece of memory stands again and again.

use super::GpuError;
use super::error::driver;
use cudarc::driver::{result, sys};
use std::ffi::c_void;

/// A range of a device's addresses. Every piece of it is the same memory, so it costs one piece, however long it is.
#[derive(Debug)]
pub(crate) struct RepeatedMemory {
    address: sys::CUdeviceptr,
    length: usize,
    /// How much of it is mapped; less than all of it only when making it failed.
    mapped: usize,
    piece: usize,
    handle: sys::CUmemGenericAllocationHandle,
}

impl RepeatedMemory {
    /// At least `bytes` bytes of the device, which is current, each with the value `byte`.
    pub(crate) fn new(bytes: usize, device: i32, byte: u8) -> Result<Self, GpuError> {
        let location = sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device };
        // SAFETY: all zeros is a valid value: no special handle, no flags.
        let mut properties: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
        properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        properties.location = location;
        let granularity = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        let mut piece = 0;
        // SAFETY: both pointers are valid for the call.
        unsafe { sys::cuMemGetAllocationGranularity(&mut piece, &properties, granularity) }
            .result()
            .map_err(driver("cuMemGetAllocationGranularity"))?;
        let mut handle = 0;
        // SAFETY: both pointers are valid for the call.
        unsafe { sys::cuMemCreate(&mut handle, piece, &properties, 0) }.result().map_err(driver("cuMemCreate"))?;
        let length = bytes.next_multiple_of(piece);
        // From here on dropping it gives back what there is.
        let mut memory = RepeatedMemory { address: 0, length, mapped: 0, piece, handle };
        // SAFETY: the pointer is valid for the call.
        unsafe { sys::cuMemAddressReserve(&mut memory.address, length, 0, 0, 0) }
            .result()
            .map_err(driver("cuMemAddressReserve"))?;
        while memory.mapped < length {
            // SAFETY: the piece lies inside the reserved range, and nothing is mapped there yet.
            unsafe { sys::cuMemMap(memory.address + memory.mapped as u64, piece, 0, handle, 0) }
                .result()
                .map_err(driver("cuMemMap"))?;
            memory.mapped += piece;
        }
        let flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        let access = sys::CUmemAccessDesc { location, flags };
        // SAFETY: the whole range is mapped; the pointer is valid for the call.
        unsafe { sys::cuMemSetAccess(memory.address, length, &access, 1) }
            .result()
            .map_err(driver("cuMemSetAccess"))?;
        // SAFETY: the first piece is mapped and may be written to; all others are the same memory.
        unsafe { result::memset_d8_sync(memory.address, byte, piece) }.map_err(driver("cuMemsetD8"))?;
        Ok(memory)
    }

    /// Its first byte.
    pub(crate) fn pointer(&self) -> *mut c_void {
        self.address as *mut c_void
    }
}

impl Drop for RepeatedMemory {
    fn drop(&mut self) {
        for offset in (0..self.mapped).step_by(self.piece) {
            // SAFETY: mapped by `new` and unmapped once.
            let _status = unsafe { sys::cuMemUnmap(self.address + offset as u64, self.piece) };
        }
        if self.address != 0 {
            // SAFETY: reserved by `new` with this length; nothing is mapped there any more.
            let _status = unsafe { sys::cuMemAddressFree(self.address, self.length) };
        }
        // SAFETY: made by `new` and given back once.
        let _status = unsafe { sys::cuMemRelease(self.handle) };
    }
}
