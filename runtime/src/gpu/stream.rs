//! Streams and events of the driver: what one is given waits for the other, without the host waiting for either.
//!
//! libtorch's own stream is used by its handle. On the CPU there is none, so the handle is null: the tests' stand-in for the
//! driver takes the null stream for the host, which computes at the time of the call.

use super::GpuError;
use super::error::driver;
use cudarc::driver::{result, sys};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// A queue of work on the device that is current.
#[derive(Debug)]
pub(crate) struct Stream {
    raw: sys::CUstream,
    /// Whether it is destroyed with this.
    owned: bool,
}

impl Stream {
    /// A new stream of the highest priority, which does not wait for the default stream.
    pub(crate) fn of_high_priority() -> Result<Self, GpuError> {
        let (_lowest, highest) = result::stream::get_priority_range().map_err(driver("cuCtxGetStreamPriorityRange"))?;
        let kind = result::stream::StreamKind::NonBlocking;
        let raw = result::stream::create_with_priority(kind, highest).map_err(driver("cuStreamCreateWithPriority"))?;
        Ok(Stream { raw, owned: true })
    }

    /// A stream that belongs to somebody else and outlives this.
    pub(crate) fn borrowed(raw: *mut std::ffi::c_void) -> Self {
        Stream { raw: raw.cast(), owned: false }
    }

    /// Its handle.
    pub(crate) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// An event that happens when everything that this stream was given so far is done.
    pub(crate) fn record(&self, events: &Events) -> Result<Event, GpuError> {
        let event = events.take()?;
        // SAFETY: both are alive, and of the current device.
        unsafe { result::event::record(event.raw(), self.raw) }.map_err(driver("cuEventRecord"))?;
        Ok(event)
    }

    /// Lets the host wait until everything that this stream was given is done.
    pub(crate) fn synchronize(&self) -> Result<(), GpuError> {
        // SAFETY: the stream is alive, and of the current device.
        unsafe { result::stream::synchronize(self.raw) }.map_err(driver("cuStreamSynchronize"))
    }

    /// Lets everything that this stream is given from now on wait for `event`.
    pub(crate) fn wait(&self, event: &Event) -> Result<(), GpuError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are alive, and of the current device.
        unsafe { result::stream::wait_event(self.raw, event.raw(), flags) }.map_err(driver("cuStreamWaitEvent"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: created by this and destroyed once; the driver lets work that is queued finish.
            let _result = unsafe { result::stream::destroy(self.raw) };
        }
    }
}

/// Events that are not in use. A step needs as many as the one before, so that after the first none is made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Events(Rc<RefCell<Vec<OwnedEvent>>>);

impl Events {
    fn take(&self) -> Result<Event, GpuError> {
        let free = self.0.borrow_mut().pop();
        let owned = match free {
            Some(event) => event,
            None => {
                let raw = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
                OwnedEvent(raw.map_err(driver("cuEventCreate"))?)
            }
        };
        Ok(Event { owned: Some(owned), home: self.clone() })
    }
}

#[derive(Debug)]
struct OwnedEvent(sys::CUevent);

impl Drop for OwnedEvent {
    fn drop(&mut self) {
        // SAFETY: created by `Events::take` and destroyed once.
        let _result = unsafe { result::event::destroy(self.0) };
    }
}

/// A moment in a stream. When it is dropped it can be recorded again: those who wait for it already keep waiting for what
/// it was.
#[derive(Debug)]
pub(crate) struct Event {
    /// None only while it is dropped.
    owned: Option<OwnedEvent>,
    home: Events,
}

impl Event {
    fn raw(&self) -> sys::CUevent {
        self.owned.as_ref().map_or(std::ptr::null_mut(), |event| event.0)
    }

    /// True when it has happened.
    pub(crate) fn happened(&self) -> Result<bool, GpuError> {
        // SAFETY: the event is alive.
        match unsafe { result::event::query(self.raw()) } {
            Ok(()) => Ok(true),
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            Err(error) => Err(driver("cuEventQuery")(error)),
        }
    }

    /// Lets the host wait until it has happened.
    pub(crate) fn synchronise(&self) -> Result<(), GpuError> {
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.raw()) }.map_err(driver("cuEventSynchronize"))
    }

    /// The time from `earlier` to this; both have happened.
    pub(crate) fn since(&self, earlier: &Event) -> Result<Duration, GpuError> {
        Ok(Duration::from_secs_f64(self.milliseconds_since(earlier)?.max(0.0) / 1e3))
    }

    /// Milliseconds from `other` to this, below 0 when this came first; both have happened. The driver tells them in
    /// float32.
    pub(crate) fn milliseconds_since(&self, other: &Event) -> Result<f64, GpuError> {
        // SAFETY: both events are alive.
        let milliseconds = unsafe { result::event::elapsed(other.raw(), self.raw()) };
        Ok(f64::from(milliseconds.map_err(driver("cuEventElapsedTime"))?))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.home.0.borrow_mut().extend(self.owned.take());
    }
}
