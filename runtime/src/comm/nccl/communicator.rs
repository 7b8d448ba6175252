//! NCCL's communicators, made safe to hold: watched for errors from a thread of their own, and aborted once, from anywhere.

use crate::comm::Store;
use crate::gpu::GpuError;
use cudarc::nccl::sys::{self, ncclResult_t as Status};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tch::{Kind, Tensor};

/// How often communicators are asked for errors.
const WATCH: Duration = Duration::from_millis(100);

/// Turns NCCL's status into a result; `raw` is the communicator, if there is one, whose last error is told.
fn checked(call: &'static str, raw: sys::ncclComm_t, status: Status) -> Result<(), GpuError> {
    match status {
        Status::ncclSuccess | Status::ncclInProgress => Ok(()),
        status => Err(GpuError::Nccl { call, message: explained(status, &last_error(raw)) }),
    }
}

/// NCCL's own words on its last error; empty when it has none.
fn last_error(raw: sys::ncclComm_t) -> String {
    // SAFETY: NCCL returns null or a zero-terminated string that lives until its next error in this thread.
    unsafe {
        let text = sys::ncclGetLastError(raw);
        if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().trim().to_owned() }
    }
}

/// What a status means, and what to do about it.
fn explained(status: Status, details: &str) -> String {
    let (meaning, hint) = match status {
        Status::ncclUnhandledCudaError => (
            "a call of CUDA failed",
            "`nvidia-smi` shows whether the GPUs work; NCCL_DEBUG=INFO tells which call it was",
        ),
        Status::ncclSystemError => (
            "a call of the system failed",
            "most often shared memory or the network: `launch doctor` checks /dev/shm; NCCL_SOCKET_IFNAME names the interface; NCCL_DEBUG=INFO tells which call it was",
        ),
        Status::ncclInvalidArgument => ("an argument is not allowed", "NCCL_DEBUG=INFO tells which"),
        Status::ncclInvalidUsage => (
            "the ranks do not fit together",
            "two ranks on one GPU, or ranks that called different collectives; NCCL_DEBUG=INFO tells which",
        ),
        Status::ncclRemoteError => {
            ("another rank is gone or cannot be reached", "the first rank that failed has its own error in its log")
        }
        _ => ("NCCL itself failed", "NCCL_DEBUG=INFO tells more"),
    };
    let details = if details.is_empty() { String::new() } else { format!(": {details}") };
    format!("{meaning} ({status:?}){details}\nhint: {hint}")
}

/// NCCL's name of an element type.
pub(super) fn data_type(kind: Kind) -> Option<sys::ncclDataType_t> {
    Some(match kind {
        Kind::Float => sys::ncclDataType_t::ncclFloat32,
        Kind::Double => sys::ncclDataType_t::ncclFloat64,
        Kind::BFloat16 => sys::ncclDataType_t::ncclBfloat16,
        Kind::Half => sys::ncclDataType_t::ncclFloat16,
        Kind::Int64 => sys::ncclDataType_t::ncclInt64,
        Kind::Int => sys::ncclDataType_t::ncclInt32,
        Kind::Int8 => sys::ncclDataType_t::ncclInt8,
        Kind::Uint8 => sys::ncclDataType_t::ncclUint8,
        _ => return None,
    })
}

/// A communicator's address.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Raw(sys::ncclComm_t);

// SAFETY: NCCL lets any thread ask for errors and abort; all else is called by the training thread alone.
unsafe impl Send for Raw {}

#[derive(Default)]
struct Watched {
    communicators: Vec<Raw>,
    /// Why everything was aborted.
    failure: Option<String>,
    over: bool,
}

/// What the training thread, the watchdog and whoever may abort share.
#[derive(Default)]
struct Shared {
    watched: Mutex<Watched>,
    changed: Condvar,
}

impl Watched {
    fn abort(&mut self, reason: &str) {
        self.failure.get_or_insert_with(|| reason.to_owned());
        // As one group: the end of one communicator may wait for the device, where another's kernel is not told yet.
        let group = Group::start();
        for Raw(raw) in self.communicators.drain(..) {
            // SAFETY: it is in the list, so it is neither aborted nor destroyed yet, and it leaves the list with this.
            let _status = unsafe { sys::ncclCommAbort(raw) };
        }
        if let Err(error) = group.and_then(Group::end) {
            tracing::warn!("{error}");
        }
    }

    /// Aborts when NCCL tells of an error that happened behind the program's back.
    fn look(&mut self) {
        let failed = self.communicators.iter().find_map(|&Raw(raw)| {
            let mut status = Status::ncclSuccess;
            // SAFETY: it is in the list, so it is alive; the pointer is valid for the call.
            unsafe { sys::ncclCommGetAsyncError(raw, &mut status) };
            checked("a collective", raw, status).err()
        });
        if let Some(error) = failed {
            tracing::error!("{error}");
            self.abort(&error.to_string());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn abort(&self, reason: &str) {
        self.lock().abort(reason);
    }
}

/// Ends all communication of this process: whatever waits for other ranks comes back. May be used from any thread.
#[derive(Clone)]
pub struct Abort(Arc<Shared>);

impl Abort {
    /// Aborts, and says why.
    pub fn abort(&self, reason: &str) {
        self.0.abort(reason);
    }
}

/// A thread that asks NCCL for errors which happen behind the program's back, and aborts on the first.
pub(super) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    pub(super) fn start() -> Self {
        let shared = Arc::<Shared>::default();
        let watching = shared.clone();
        let thread = std::thread::Builder::new().name("nccl-watch".to_owned()).spawn(move || watch(&watching)).ok();
        Watchdog { shared, thread }
    }

    /// The handle by which others abort.
    pub(super) fn abort_handle(&self) -> Abort {
        Abort(self.shared.clone())
    }

    /// Why communication was aborted, if it was. NCCL is asked first: the thread may not have looked since it failed.
    pub(super) fn failure(&self) -> Option<String> {
        let mut watched = self.shared.lock();
        watched.look();
        watched.failure.clone()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _joined = thread.join();
        }
    }
}

fn watch(shared: &Shared) {
    let mut watched = shared.lock();
    while !watched.over {
        watched.look();
        watched = shared.changed.wait_timeout(watched, WATCH).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// What a collective does.
#[derive(Clone, Copy)]
pub(super) enum Operation {
    /// `input` of every rank into `output`.
    AllGather,
    /// This rank's part of the sum of every `input` into `output`.
    ReduceScatter,
    /// The sum of every `input` into `output`.
    AllReduce,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::AllGather => "ncclAllGather",
            Operation::ReduceScatter => "ncclReduceScatter",
            Operation::AllReduce => "ncclAllReduce",
        }
    }
}

/// An id under which ranks can meet.
pub(super) fn unique_id() -> Result<sys::ncclUniqueId, GpuError> {
    let mut id = sys::ncclUniqueId { internal: [0; 128] };
    // SAFETY: the pointer is valid for the call.
    checked("ncclGetUniqueId", std::ptr::null_mut(), unsafe { sys::ncclGetUniqueId(&mut id) })?;
    Ok(id)
}

/// Meets `count` ranks under `id`.
fn init(id: sys::ncclUniqueId, place: usize, count: usize) -> Result<sys::ncclComm_t, GpuError> {
    let mut raw: sys::ncclComm_t = std::ptr::null_mut();
    // SAFETY: the pointer is valid for the call; every rank calls it with the same id and count.
    let status = unsafe { sys::ncclCommInitRank(&mut raw, count as c_int, id, place as c_int) };
    checked("ncclCommInitRank", std::ptr::null_mut(), status)?;
    Ok(raw)
}

/// Makes a communicator of one rank and gives it back.
pub(super) fn meet_nobody() -> Result<(), GpuError> {
    let raw = init(unique_id()?, 0, 1)?;
    // SAFETY: made a moment ago, and known to nobody else.
    checked("ncclCommDestroy", std::ptr::null_mut(), unsafe { sys::ncclCommDestroy(raw) })
}

/// A communicator of some ranks.
pub(super) struct Communicator {
    raw: Raw,
    shared: Arc<Shared>,
    /// Handles of registered buffers.
    registered: std::cell::RefCell<Vec<*mut c_void>>,
}

impl Communicator {
    /// Meets the other ranks. The first of them makes the id under which they meet and leaves it in `store` as `key`.
    pub(super) fn meet(
        watchdog: &Watchdog,
        store: &dyn Store,
        key: &str,
        (place, count): (usize, usize),
        timeout: Duration,
    ) -> Result<Self, GpuError> {
        let through_store = |message| GpuError::Nccl { call: "meeting the other ranks", message };
        let mut id = sys::ncclUniqueId { internal: [0; 128] };
        if place == 0 {
            id = unique_id()?;
            let bytes = id.internal.map(|byte| byte as u8);
            store.set(key, &bytes).map_err(through_store)?;
        } else {
            let bytes = store.get(key, timeout).map_err(through_store)?;
            let Ok(bytes) = <[u8; 128]>::try_from(bytes) else {
                return Err(through_store(format!("{key} in the store is no id of NCCL")));
            };
            id.internal = bytes.map(|byte| byte as c_char);
        }
        let raw = init(id, place, count)?;
        watchdog.shared.lock().communicators.push(Raw(raw));
        Ok(Communicator { raw: Raw(raw), shared: watchdog.shared.clone(), registered: Default::default() })
    }

    /// Gives a collective to `stream`. `count` is the number of elements of the smaller of the two tensors.
    ///
    /// # Safety
    /// Both tensors have one element type and the lengths that `operation` wants, and stay as they are until the stream has
    /// done it.
    pub(super) unsafe fn enqueue(
        &self,
        operation: Operation,
        (output, input): (&Tensor, &Tensor),
        stream: &crate::gpu::Stream,
    ) -> Result<(), GpuError> {
        let call = operation.name();
        let Some(kind) = data_type(input.kind()) else {
            return Err(GpuError::Nccl { call, message: format!("NCCL does not know the type {:?}", input.kind()) });
        };
        let (send, receive) = (input.data_ptr().cast_const(), output.data_ptr());
        let count = input.numel().min(output.numel());
        let (sum, raw, stream) = (sys::ncclRedOp_t::ncclSum, self.raw.0, stream.raw().cast());
        // SAFETY: the tensors are the caller's promise; the communicator is alive unless it was aborted, which the caller
        // asked for a moment ago and after which this process only has its error to tell.
        let status = unsafe {
            match operation {
                Operation::AllGather => sys::ncclAllGather(send, receive, count, kind, raw, stream),
                Operation::ReduceScatter => sys::ncclReduceScatter(send, receive, count, kind, sum, raw, stream),
                Operation::AllReduce => sys::ncclAllReduce(send, receive, count, kind, sum, raw, stream),
            }
        };
        checked(call, raw, status)
    }

    /// Tells NCCL of a buffer that will be used again and again, which lets some networks and NVLink read it in place.
    /// Where NCCL cannot use that, nothing changes.
    pub(super) fn register(&self, buffer: &Tensor) {
        // Such a buffer may consist of several pieces, of which NCCL has been known to see the first alone.
        let settings = std::env::var("PYTORCH_ALLOC_CONF").unwrap_or_default();
        if settings.contains("expandable_segments:True") {
            return;
        }
        let bytes = buffer.numel() * buffer.kind().elt_size_in_bytes();
        let mut handle = std::ptr::null_mut();
        // SAFETY: the buffer is alive, and outlives this: see the order of fields of `Shards`.
        let status = unsafe { sys::ncclCommRegister(self.raw.0, buffer.data_ptr(), bytes, &mut handle) };
        match checked("ncclCommRegister", self.raw.0, status) {
            Ok(()) if !handle.is_null() => self.registered.borrow_mut().push(handle),
            Ok(()) => {}
            Err(error) => tracing::debug!("a buffer of {bytes} bytes is not registered: {error}"),
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let mut watched = self.shared.lock();
        let Some(index) = watched.communicators.iter().position(|raw| *raw == self.raw) else { return };
        watched.communicators.swap_remove(index);
        drop(watched);
        for handle in self.registered.get_mut().drain(..) {
            // SAFETY: the handle is one that NCCL gave for this communicator.
            let _status = unsafe { sys::ncclCommDeregister(self.raw.0, handle) };
        }
        // SAFETY: it was in the list, so it is neither aborted nor destroyed yet.
        let _status = unsafe { sys::ncclCommDestroy(self.raw.0) };
    }
}

/// Several calls that NCCL carries out as one. Ends when it is dropped, at the latest.
pub(super) struct Group {
    open: bool,
}

impl Group {
    pub(super) fn start() -> Result<Self, GpuError> {
        // SAFETY: no arguments.
        checked("ncclGroupStart", std::ptr::null_mut(), unsafe { sys::ncclGroupStart() })?;
        Ok(Group { open: true })
    }

    pub(super) fn end(mut self) -> Result<(), GpuError> {
        self.open = false;
        // SAFETY: a group is open.
        checked("ncclGroupEnd", std::ptr::null_mut(), unsafe { sys::ncclGroupEnd() })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.open {
            // SAFETY: a group is open.
            let _status = unsafe { sys::ncclGroupEnd() };
        }
    }
}
