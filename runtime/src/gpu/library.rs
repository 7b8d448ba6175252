//! Finds the driver's library and NCCL without ever panicking over a missing one.
//!
//! cudarc looks for NCCL as `libnccl.so`, a name that only development packages have: PyTorch's wheels and libnccl2 bring
//! `libnccl.so.2`. Where that is all there is, the worker makes a link of the right name in a folder of its own and starts
//! itself again with that folder on the library path, which the system's loader reads at the start of a program only.

use super::GpuError;
use super::error::driver;
use cudarc::{driver::sys as driver_sys, nccl::sys as nccl_sys};
use std::ffi::{CStr, c_int, c_void};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

/// The folder with the link, told to the restarted worker.
const LINK: &str = "ZEROFOLD_NCCL_LINK";
const SEARCH_PATH: &str = "LD_LIBRARY_PATH";

/// Loads the driver and lets it start.
///
/// # Errors
/// [`GpuError::NoDriver`], [`GpuError::NoDevice`], and what the driver says.
pub fn require_driver() -> Result<(), GpuError> {
    // SAFETY: only tries to load the library.
    if !unsafe { driver_sys::is_culib_present() } {
        return Err(GpuError::NoDriver);
    }
    match cudarc::driver::result::init() {
        Err(error) if error.0 == driver_sys::CUresult::CUDA_ERROR_NO_DEVICE => {
            Err(GpuError::NoDevice { restricted: super::device::restricted() })
        }
        result => result.map_err(driver("cuInit")),
    }
}

/// Loads NCCL. Where it has only its versioned name, this starts the program again, once, with the same arguments: so it is
/// to be called before the program has done anything that must not be done twice.
///
/// # Errors
/// [`GpuError::NoNccl`], [`GpuError::Link`].
pub fn require_nccl() -> Result<(), GpuError> {
    // SAFETY: only tries to load the library.
    let found = unsafe { nccl_sys::is_culib_present() };
    if let Some(folder) = std::env::var_os(LINK) {
        if found {
            // SAFETY: the library was found a moment ago; from here on it stays loaded.
            unsafe { nccl_sys::culib() };
        }
        let _removed = std::fs::remove_dir_all(folder);
    }
    match (found, std::env::var_os(LINK)) {
        (true, _) => Ok(()),
        (false, Some(_)) => Err(GpuError::NoNccl),
        (false, None) => Err(restart_with(&versioned_nccl().ok_or(GpuError::NoNccl)?)),
    }
}

/// Where the loader finds `libnccl.so.2`.
fn versioned_nccl() -> Option<PathBuf> {
    // SAFETY: names are zero-terminated; the handle is checked, and never closed, so the symbol stays valid.
    unsafe {
        let handle = libc::dlopen(c"libnccl.so.2".as_ptr(), libc::RTLD_LAZY);
        if handle.is_null() {
            return None;
        }
        let symbol: *mut c_void = libc::dlsym(handle, c"ncclGetVersion".as_ptr());
        let mut place: libc::Dl_info = std::mem::zeroed();
        if symbol.is_null() || libc::dladdr(symbol, &mut place) == 0 || place.dli_fname.is_null() {
            return None;
        }
        let path = CStr::from_ptr(place.dli_fname).to_string_lossy().into_owned();
        std::fs::canonicalize(path).ok()
    }
}

/// Starts this program again with `libnccl.so` on the library path; comes back only when that fails.
fn restart_with(nccl: &Path) -> GpuError {
    let failed = |source| GpuError::Link { path: nccl.display().to_string(), source };
    let folder = match tempfile::Builder::new().prefix("zerofold-nccl-").tempdir() {
        // The restarted program removes it.
        Ok(folder) => folder.keep(),
        Err(source) => return failed(source),
    };
    if let Err(source) = std::os::unix::fs::symlink(nccl, folder.join("libnccl.so")) {
        return failed(source);
    }
    let mut search_path = folder.clone().into_os_string();
    if let Some(before) = std::env::var_os(SEARCH_PATH) {
        search_path.push(":");
        search_path.push(before);
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(source) => return failed(source),
    };
    let mut command = std::process::Command::new(program);
    command.args(std::env::args_os().skip(1)).env(SEARCH_PATH, search_path).env(LINK, &folder);
    let source = command.exec();
    let _removed = std::fs::remove_dir_all(&folder);
    failed(source)
}

/// NCCL's version as (major, minor, patch). NCCL must have been required.
///
/// # Errors
/// What NCCL says.
pub fn nccl_version() -> Result<(u32, u32, u32), GpuError> {
    let mut number: c_int = 0;
    // SAFETY: the pointer is valid for the call; the library is loaded.
    let status = unsafe { nccl_sys::ncclGetVersion(&mut number) };
    if status != nccl_sys::ncclResult_t::ncclSuccess {
        return Err(GpuError::Nccl { call: "ncclGetVersion", message: format!("{status:?}") });
    }
    Ok(version_of(number.unsigned_abs()))
}

/// 2.9 and later count as major × 10000 + minor × 100 + patch, earlier ones as major × 1000 + …
fn version_of(number: u32) -> (u32, u32, u32) {
    let major = if number >= 10000 { 10000 } else { 1000 };
    (number / major, number % major / 100, number % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_nccl_writes_them() {
        assert_eq!(version_of(22907), (2, 29, 7));
        assert_eq!(version_of(2708), (2, 7, 8));
    }
}
