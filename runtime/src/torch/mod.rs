//! Safe wrappers over the C++ shim (`csrc/`): what libtorch can do and tch does not offer.

mod ffi;
mod kernels;

use std::ffi::{CStr, c_int, c_void};
use tch::{Device, Kind, Tensor};
use thiserror::Error;

pub use kernels::{
    AttentionRule, Gate, HeadLayout, Kernels, add, add_rows, attention, linear, linear_transposed, multiply,
};

pub(crate) use ffi::{
    STORE_TEXT, Store as StoreCallbacks, zf_gloo_free, zf_gloo_new, zf_gloo_receive, zf_gloo_send, zf_work_free,
    zf_work_wait,
};

/// What libtorch threw.
#[derive(Debug, Error)]
#[error("libtorch: {0}")]
pub struct ShimError(pub String);

/// Turns a shim function's status into a result.
pub(crate) fn checked(status: c_int) -> Result<(), ShimError> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: zf_last_error returns a zero-terminated string of this thread that lives until the next call.
    let text = unsafe { CStr::from_ptr(ffi::zf_last_error()) }.to_string_lossy();
    // libtorch appends a C++ stack trace; the first line says what happened.
    Err(ShimError(text.lines().next().unwrap_or("unknown error").to_string()))
}

/// Libtorch's generator, seeded, for one test alone while the result lives: a program has one, and tests run side by side.
#[cfg(test)]
pub(crate) fn generator_of_this_test(seed: i64) -> std::sync::MutexGuard<'static, ()> {
    static GENERATOR: std::sync::Mutex<()> = std::sync::Mutex::new(());
    // A test that failed leaves nothing behind that the next one would not seed.
    let alone = GENERATOR.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    tch::manual_seed(seed);
    alone
}

/// The handle under which a tensor crosses to the shim.
pub(crate) fn handle(tensor: &Tensor) -> *mut c_void {
    tensor.as_ptr().cast_mut().cast()
}

fn handles(tensors: &[&Tensor]) -> Vec<*mut c_void> {
    tensors.iter().map(|tensor| handle(tensor)).collect()
}

/// Gradients of `outputs`, seeded with `seeds` (same shapes), with respect to `inputs`; `None` where no path leads.
///
/// Nothing is written to `.grad()`, and the graph is freed.
pub fn autograd_grad(
    outputs: &[&Tensor],
    seeds: &[&Tensor],
    inputs: &[&Tensor],
) -> Result<Vec<Option<Tensor>>, ShimError> {
    if outputs.len() != seeds.len() {
        return Err(ShimError(format!("{} outputs but {} seeds", outputs.len(), seeds.len())));
    }
    let mut results: Vec<*mut c_void> = vec![std::ptr::null_mut(); inputs.len()];
    // SAFETY: every handle comes from a live tensor, and the counts are those of the lists.
    checked(unsafe {
        ffi::zf_autograd_grad(
            handles(outputs).as_ptr(),
            handles(seeds).as_ptr(),
            outputs.len(),
            handles(inputs).as_ptr(),
            inputs.len(),
            results.as_mut_ptr(),
        )
    })?;
    Ok(results
        .into_iter()
        // SAFETY: a result is null or an at::Tensor made by `new` that nobody else owns.
        .map(|result| (!result.is_null()).then(|| unsafe { Tensor::from_ptr(result.cast()) }))
        .collect())
}

/// Makes the storage of `tensor`, and of all its views, point at `bytes` bytes at `data`, which it will not own.
///
/// # Safety
/// The memory must stay valid until the storage is repointed again or every tensor on it is gone, nobody else may write
/// to it while they are in use, and whoever reads the tensors, autograd's saved views included, must expect its content.
pub unsafe fn repoint_storage(tensor: &Tensor, data: *mut c_void, bytes: usize) -> Result<(), ShimError> {
    // SAFETY: the handle is a live tensor; the memory, of its device, is the caller's promise.
    checked(unsafe { ffi::zf_repoint_storage(handle(tensor), data, bytes) })
}

/// A flat tensor over memory of `owner`, which is dropped when the last view of the tensor is gone.
///
/// # Safety
/// At `data` there is room for `numel` elements of `kind`, aligned for it, as long as `owner` lives, and for nobody else to
/// write to while the tensor is in use.
pub(crate) unsafe fn tensor_over<T: Send + 'static>(
    data: *mut c_void,
    numel: usize,
    kind: Kind,
    owner: T,
) -> Result<Tensor, ShimError> {
    extern "C" fn release<T>(owner: *mut c_void) {
        // SAFETY: made by `Box::into_raw` below; libtorch calls this once.
        drop(unsafe { Box::from_raw(owner.cast::<T>()) });
    }
    let like = Tensor::f_empty([0], (kind, Device::Cpu)).map_err(|error| ShimError(error.to_string()))?;
    let owner = Box::into_raw(Box::new(owner)).cast();
    let mut out = std::ptr::null_mut();
    // SAFETY: the memory is the caller's promise; the shim releases the owner also when it fails.
    checked(unsafe { ffi::zf_tensor_over(data, numel as i64, handle(&like), release::<T>, owner, &mut out) })?;
    // SAFETY: the shim made it by `new`, and nobody else owns it.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

/// Adds to the count of live bytes of tensors on the CPU what did not come from libtorch's allocator.
pub(crate) fn count_bytes(change: i64) {
    // SAFETY: no pointers.
    unsafe { ffi::zf_count_bytes(change) }
}

/// Bytes of live tensors on a device, of the whole process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Now.
    pub live: usize,
    /// At most, since the peak was last restarted.
    pub peak: usize,
}

/// From now on tensors on the CPU are counted. To be called before the first tensor is made.
pub fn count_memory() {
    // SAFETY: sets libtorch's allocator; tensors made before know their own.
    unsafe { ffi::zf_count_memory() }
}

/// Bytes of the tensors on `device`. On the CPU those that are counted.
pub fn memory(device: Device) -> Memory {
    let (mut live, mut peak) = (0, 0);
    match device {
        Device::Cuda(index) => {
            // SAFETY: both pointers are valid for the call. Without CUDA nothing is alive there.
            let _status = unsafe { ffi::zf_cuda_memory(index as c_int, &mut live, &mut peak) };
        }
        // SAFETY: both pointers are valid for the call.
        _ => unsafe { ffi::zf_memory(&mut live, &mut peak) },
    }
    Memory { live: live.max(0) as usize, peak: peak.max(0) as usize }
}

/// Lets the peak of `device` begin anew at what is alive now.
pub fn restart_peak(device: Device) {
    match device {
        Device::Cuda(index) => {
            // SAFETY: no pointers. Without CUDA there is no peak.
            let _status = unsafe { ffi::zf_cuda_restart_peak(index as c_int) };
        }
        // SAFETY: no arguments.
        _ => unsafe { ffi::zf_restart_peak() },
    }
}

/// The version of libtorch.
pub fn version() -> String {
    // SAFETY: a constant, zero-terminated string.
    unsafe { CStr::from_ptr(ffi::zf_version()) }.to_string_lossy().into_owned()
}

/// The processor's instructions that libtorch's own kernels use here, such as `AVX2`; `DEFAULT` for none beyond the oldest.
pub fn processor() -> Result<String, ShimError> {
    let mut text = [0u8; 32];
    // SAFETY: the shim writes at most the given length, zero-terminated.
    checked(unsafe { ffi::zf_processor(text.as_mut_ptr().cast(), text.len()) })?;
    Ok(CStr::from_bytes_until_nul(&text).map_or(String::new(), |text| text.to_string_lossy().into_owned()))
}

/// The version of CUDA that libtorch was built with, as major × 1000 + minor × 10; `None` without CUDA.
///
/// # Errors
/// What libtorch says.
pub fn cuda_version() -> Result<Option<u32>, ShimError> {
    let mut version = 0;
    // SAFETY: the pointer is valid for the call.
    checked(unsafe { ffi::zf_cuda_version(&mut version) })?;
    Ok(u32::try_from(version).ok().filter(|version| *version > 0))
}

/// Makes a GPU current for this thread and lets libtorch start on it.
///
/// # Errors
/// What libtorch says: without CUDA, or without that GPU, there is nothing to start on.
pub fn use_cuda(index: usize) -> Result<(), ShimError> {
    // SAFETY: no pointers.
    checked(unsafe { ffi::zf_cuda_use(index as c_int) })
}

/// Whether float32 matrix products on GPUs may round their factors to TF32.
///
/// # Errors
/// What libtorch says.
pub fn allow_tf32(allow: bool) -> Result<(), ShimError> {
    // SAFETY: no pointers.
    checked(unsafe { ffi::zf_cuda_allow_tf32(c_int::from(allow)) })
}

/// The handle of the stream that libtorch gives this thread's work on `device`; null on the CPU, which has none.
///
/// # Errors
/// What libtorch says.
pub(crate) fn current_stream(device: Device) -> Result<*mut c_void, ShimError> {
    let mut stream = std::ptr::null_mut();
    if let Device::Cuda(index) = device {
        // SAFETY: the pointer is valid for the call.
        checked(unsafe { ffi::zf_cuda_stream(index as c_int, &mut stream) })?;
    }
    Ok(stream)
}

/// The elements of a contiguous float32 tensor on the CPU.
pub fn float_slice_mut(tensor: &mut Tensor) -> Result<&mut [f32], ShimError> {
    if tensor.kind() != Kind::Float || tensor.device() != Device::Cpu || !tensor.is_contiguous() {
        let (kind, device) = (tensor.kind(), tensor.device());
        return Err(ShimError(format!(
            "a contiguous float32 tensor on the CPU was expected, not {kind:?} on {device:?}"
        )));
    }
    let (pointer, length) = (tensor.data_ptr().cast::<f32>(), tensor.numel());
    if length == 0 {
        return Ok(&mut []);
    }
    // SAFETY: the tensor is contiguous float32 CPU memory of `length` elements, aligned by libtorch, and stays alive as
    // long as the borrow; tensors are used from one thread only.
    Ok(unsafe { std::slice::from_raw_parts_mut(pointer, length) })
}

/// The numbers of one AdamW step (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay; multiplied by the learning rate.
    pub weight_decay: f64,
}

/// Flat float32 pieces that one fused optimizer call works on; the lists run in parallel.
#[derive(Default)]
pub struct OptimizerPieces<'a> {
    /// Masters, updated in place.
    pub masters: Vec<&'a Tensor>,
    /// Gradients.
    pub gradients: Vec<&'a Tensor>,
    /// First moments, updated in place.
    pub first_moments: Vec<&'a Tensor>,
    /// Second moments, updated in place.
    pub second_moments: Vec<&'a Tensor>,
}

/// One AdamW step, each piece in one fused pass. `step` counts this step: 1 at the first.
pub fn fused_adamw(pieces: &OptimizerPieces<'_>, step: u64, numbers: &AdamW) -> Result<(), ShimError> {
    let count = pieces.masters.len();
    let lengths = [pieces.gradients.len(), pieces.first_moments.len(), pieces.second_moments.len()];
    if lengths.iter().any(|&length| length != count) || step == 0 {
        return Err(ShimError(format!(
            "AdamW needs lists of one length ({count}, {lengths:?}) and a step ({step}) ≥ 1"
        )));
    }
    if count == 0 {
        return Ok(());
    }
    // Filled where it is needed, so that the host does not wait for a device.
    let device = pieces.masters[0].device();
    let step =
        Tensor::f_full([0i64; 0], step as f64, (Kind::Float, device)).map_err(|error| ShimError(error.to_string()))?;
    // SAFETY: all handles are live tensors and the count is that of every list.
    checked(unsafe {
        ffi::zf_fused_adamw(
            handles(&pieces.masters).as_ptr(),
            handles(&pieces.gradients).as_ptr(),
            handles(&pieces.first_moments).as_ptr(),
            handles(&pieces.second_moments).as_ptr(),
            count,
            handle(&step),
            numbers.learning_rate,
            numbers.beta1,
            numbers.beta2,
            numbers.weight_decay,
            numbers.epsilon,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeded_gradient_is_the_seed_times_the_derivative() {
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0]).set_requires_grad(true);
        let unused = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
        let y = &x * &x;
        let seed = Tensor::from_slice(&[1.0f32, 10.0, 100.0]);
        let grads = autograd_grad(&[&y], &[&seed], &[&x, &unused]).unwrap();
        assert_eq!(Vec::<f32>::try_from(grads[0].as_ref().unwrap()).unwrap(), [2.0, 40.0, 600.0]);
        assert!(grads[1].is_none());
        assert!(!x.grad().defined());
    }

    #[test]
    fn what_libtorch_throws_comes_back_as_an_error() {
        let x = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
        let y = &x * 2.0;
        let seed = Tensor::from_slice(&[1.0f32, 1.0, 1.0]);
        let error = autograd_grad(&[&y], &[&seed], &[&x]).unwrap_err();
        assert!(error.to_string().contains("shape"), "{error}");
    }

    /// A linker that drops libtorch's CUDA half leaves a program that knows of no GPU.
    #[test]
    fn a_libtorch_with_cuda_is_linked_with_it() {
        assert_eq!(cuda_version().unwrap().is_some(), env!("ZEROFOLD_LIBTORCH_HAS_CUDA") == "true");
    }

    #[test]
    fn views_follow_a_repointed_storage() {
        let flat = Tensor::zeros([4], (Kind::Float, Device::Cpu));
        let view = flat.narrow(0, 2, 2);
        let other = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]);
        // SAFETY: `other` outlives the use of `flat` and `view` below.
        unsafe { repoint_storage(&flat, other.data_ptr(), 16).unwrap() };
        assert_eq!(Vec::<f32>::try_from(&view).unwrap(), [3.0, 4.0]);
    }
}
