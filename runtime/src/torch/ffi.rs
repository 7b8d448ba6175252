//! The raw interface of `csrc/shim.h`, declaration by declaration.

use std::ffi::{c_char, c_int, c_void};

/// Bytes of the buffer in which a store callback explains an error.
pub(crate) const STORE_TEXT: usize = 512;

/// `zf_store`: the callbacks through which Gloo reaches the control plane's store.
#[repr(C)]
pub(crate) struct Store {
    pub(crate) context: *mut c_void,
    pub(crate) set: extern "C" fn(*mut c_void, *const c_char, *const u8, usize, *mut c_char) -> c_int,
    pub(crate) get: extern "C" fn(
        *mut c_void,
        *const c_char,
        u64,
        extern "C" fn(*mut c_void, *const u8, usize),
        *mut c_void,
        *mut c_char,
    ) -> c_int,
    pub(crate) wait: extern "C" fn(*mut c_void, *const *const c_char, usize, u64, *mut c_char) -> c_int,
    pub(crate) add: extern "C" fn(*mut c_void, *const c_char, i64, *mut i64, *mut c_char) -> c_int,
    pub(crate) check: extern "C" fn(*mut c_void, *const *const c_char, usize, *mut c_int, *mut c_char) -> c_int,
    pub(crate) remove: extern "C" fn(*mut c_void, *const c_char, *mut c_int, *mut c_char) -> c_int,
}

unsafe extern "C" {
    pub(crate) fn zf_last_error() -> *const c_char;
    pub(crate) fn zf_version() -> *const c_char;
    pub(crate) fn zf_processor(text: *mut c_char, length: usize) -> c_int;
    pub(crate) fn zf_autograd_grad(
        outputs: *const *mut c_void,
        grad_outputs: *const *mut c_void,
        output_count: usize,
        inputs: *const *mut c_void,
        input_count: usize,
        results: *mut *mut c_void,
    ) -> c_int;
    pub(crate) fn zf_count_memory();
    pub(crate) fn zf_memory(live: *mut i64, peak: *mut i64);
    pub(crate) fn zf_restart_peak();
    pub(crate) fn zf_count_bytes(change: i64);
    pub(crate) fn zf_tensor_over(
        data: *mut c_void,
        numel: i64,
        like: *mut c_void,
        release: extern "C" fn(*mut c_void),
        owner: *mut c_void,
        out: *mut *mut c_void,
    ) -> c_int;
    pub(crate) fn zf_cuda_version(version: *mut i64) -> c_int;
    pub(crate) fn zf_cuda_use(index: c_int) -> c_int;
    pub(crate) fn zf_cuda_stream(index: c_int, stream: *mut *mut c_void) -> c_int;
    pub(crate) fn zf_cuda_memory(index: c_int, live: *mut i64, peak: *mut i64) -> c_int;
    pub(crate) fn zf_cuda_restart_peak(index: c_int) -> c_int;
    pub(crate) fn zf_cuda_allow_tf32(allow: c_int) -> c_int;
    pub(crate) fn zf_repoint_storage(tensor: *mut c_void, data: *mut c_void, byte_count: usize) -> c_int;
    pub(crate) fn zf_fused_adamw(
        parameters: *const *mut c_void,
        gradients: *const *mut c_void,
        first_moments: *const *mut c_void,
        second_moments: *const *mut c_void,
        count: usize,
        step: *mut c_void,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        epsilon: f64,
    ) -> c_int;
    pub(crate) fn zf_rms_norm(
        x: *mut c_void,
        weight: *mut c_void,
        epsilon: f64,
        offset: f64,
        plain: c_int,
        result: *mut *mut c_void,
    ) -> c_int;
    pub(crate) fn zf_gated(gate_up: *mut c_void, gelu: c_int, plain: c_int, result: *mut *mut c_void) -> c_int;
    pub(crate) fn zf_rotary(
        projected: *mut c_void,
        cosines: *mut c_void,
        sines: *mut c_void,
        heads: i64,
        key_heads: i64,
        layout: c_int,
        plain: c_int,
        results: *mut *mut c_void,
    ) -> c_int;
    pub(crate) fn zf_attention(
        query: *mut c_void,
        key: *mut c_void,
        value: *mut c_void,
        lengths: *const i64,
        length_count: usize,
        scale: f64,
        softcap: f64,
        window: i64,
        causal: c_int,
        result: *mut *mut c_void,
    ) -> c_int;
    pub(crate) fn zf_linear(x: *mut c_void, weight: *mut c_void, transposed: c_int, result: *mut *mut c_void) -> c_int;
    pub(crate) fn zf_multiply(result: *mut c_void, left: *mut c_void, right: *mut c_void) -> c_int;
    pub(crate) fn zf_cross_entropy(
        logits: *mut c_void,
        targets: *mut c_void,
        gradient: c_int,
        scale: f64,
        smoothing: f64,
        plain: c_int,
        results: *mut *mut c_void,
    ) -> c_int;
    pub(crate) fn zf_add(to: *mut c_void, from: *mut c_void) -> c_int;
    pub(crate) fn zf_add_rows(table: *mut c_void, ids: *mut c_void, rows: *mut c_void) -> c_int;
    pub(crate) fn zf_gloo_new(
        store: *const Store,
        rank: c_int,
        world_size: c_int,
        host: *const c_char,
        timeout_ms: u64,
        out: *mut *mut c_void,
    ) -> c_int;
    pub(crate) fn zf_gloo_free(group: *mut c_void);
    pub(crate) fn zf_gloo_send(
        group: *mut c_void,
        tensor: *mut c_void,
        destination: c_int,
        tag: c_int,
        work: *mut *mut c_void,
    ) -> c_int;
    pub(crate) fn zf_gloo_receive(
        group: *mut c_void,
        tensor: *mut c_void,
        source: c_int,
        tag: c_int,
        work: *mut *mut c_void,
    ) -> c_int;
    pub(crate) fn zf_work_wait(work: *mut c_void) -> c_int;
    pub(crate) fn zf_work_free(work: *mut c_void);
}
