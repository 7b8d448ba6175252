//! The key-value store that backends bootstrap through, as callbacks for C++.
//!
//! Gloo calls from threads of its own. No panic crosses the border: a panic in a callback becomes an error text.

use crate::torch::{STORE_TEXT, StoreCallbacks};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A store shared by all ranks of a job.
pub trait Store: Send + Sync {
    /// Sets `key`.
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String>;
    /// The value of `key`, waiting for it at most `timeout`.
    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String>;
    /// The values of all `keys`, in their order, waiting for them at most `timeout`.
    fn get_all(&self, keys: &[String], timeout: Duration) -> Result<Vec<Vec<u8>>, String> {
        let deadline = Instant::now() + timeout;
        keys.iter().map(|key| self.get(key, deadline.saturating_duration_since(Instant::now()))).collect()
    }
    /// Waits until all `keys` exist, at most `timeout`.
    fn wait(&self, keys: &[String], timeout: Duration) -> Result<(), String>;
    /// Adds to the integer at `key` (absent is 0) and returns the sum.
    fn add(&self, key: &str, amount: i64) -> Result<i64, String>;
    /// True when all `keys` exist now.
    fn check(&self, keys: &[String]) -> Result<bool, String>;
    /// Removes `key`; true when it was there.
    fn remove(&self, key: &str) -> Result<bool, String>;
}

/// A store in which all keys have a prefix, so that they are not another group's.
pub(super) struct Prefixed {
    pub(super) store: Arc<dyn Store>,
    pub(super) prefix: &'static str,
}

impl Prefixed {
    fn key(&self, key: &str) -> String {
        format!("{}/{key}", self.prefix)
    }

    fn keys(&self, keys: &[String]) -> Vec<String> {
        keys.iter().map(|key| self.key(key)).collect()
    }
}

impl Store for Prefixed {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        self.store.set(&self.key(key), value)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
        self.store.get(&self.key(key), timeout)
    }

    fn get_all(&self, keys: &[String], timeout: Duration) -> Result<Vec<Vec<u8>>, String> {
        self.store.get_all(&self.keys(keys), timeout)
    }

    fn wait(&self, keys: &[String], timeout: Duration) -> Result<(), String> {
        self.store.wait(&self.keys(keys), timeout)
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        self.store.add(&self.key(key), amount)
    }

    fn check(&self, keys: &[String]) -> Result<bool, String> {
        self.store.check(&self.keys(keys))
    }

    fn remove(&self, key: &str) -> Result<bool, String> {
        self.store.remove(&self.key(key))
    }
}

/// What the callbacks' context pointer points at; keeps the store alive as long as C++ may call.
pub(super) struct Context(pub(super) Arc<dyn Store>);

impl Context {
    /// The callbacks over this context. The context must outlive their use.
    pub(super) fn callbacks(&self) -> StoreCallbacks {
        StoreCallbacks {
            context: std::ptr::from_ref(self).cast_mut().cast(),
            set: set_callback,
            get: get_callback,
            wait: wait_callback,
            add: add_callback,
            check: check_callback,
            remove: remove_callback,
        }
    }
}

/// Runs `body` and writes an error, or a panic's message, to `text`.
fn answer(context: *mut c_void, text: *mut c_char, body: impl FnOnce(&dyn Store) -> Result<(), String>) -> c_int {
    // SAFETY: the context is the `Context` that `callbacks` was called on, which outlives Gloo's use of it.
    let store = unsafe { &*context.cast::<Context>() };
    let error = match catch_unwind(AssertUnwindSafe(|| body(store.0.as_ref()))) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error,
        Err(_) => "the store's client panicked".to_string(),
    };
    let bytes = error.as_bytes();
    let length = bytes.len().min(STORE_TEXT - 1);
    // SAFETY: C++ gives a buffer of STORE_TEXT bytes; `length` leaves room for the zero.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), text, length);
        *text.add(length) = 0;
    }
    1
}

fn text_of(pointer: *const c_char) -> String {
    // SAFETY: C++ passes zero-terminated strings that live during the call.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

fn texts_of(pointers: *const *const c_char, count: usize) -> Vec<String> {
    // SAFETY: C++ passes `count` pointers to zero-terminated strings that live during the call.
    (0..count).map(|index| text_of(unsafe { *pointers.add(index) })).collect()
}

/// c10d says 0 for "no limit"; the store always has one.
fn deadline(timeout_ms: u64) -> Duration {
    Duration::from_millis(if timeout_ms == 0 { 1_800_000 } else { timeout_ms })
}

extern "C" fn set_callback(
    context: *mut c_void,
    key: *const c_char,
    value: *const u8,
    length: usize,
    text: *mut c_char,
) -> c_int {
    answer(context, text, |store| {
        // SAFETY: C++ passes `length` readable bytes, or none.
        let value = if length == 0 { &[] } else { unsafe { std::slice::from_raw_parts(value, length) } };
        store.set(&text_of(key), value)
    })
}

extern "C" fn get_callback(
    context: *mut c_void,
    key: *const c_char,
    timeout_ms: u64,
    sink: extern "C" fn(*mut c_void, *const u8, usize),
    sink_context: *mut c_void,
    text: *mut c_char,
) -> c_int {
    answer(context, text, |store| {
        let value = store.get(&text_of(key), deadline(timeout_ms))?;
        sink(sink_context, value.as_ptr(), value.len());
        Ok(())
    })
}

extern "C" fn wait_callback(
    context: *mut c_void,
    keys: *const *const c_char,
    count: usize,
    timeout_ms: u64,
    text: *mut c_char,
) -> c_int {
    answer(context, text, |store| store.wait(&texts_of(keys, count), deadline(timeout_ms)))
}

extern "C" fn add_callback(
    context: *mut c_void,
    key: *const c_char,
    amount: i64,
    sum: *mut i64,
    text: *mut c_char,
) -> c_int {
    answer(context, text, |store| {
        let value = store.add(&text_of(key), amount)?;
        // SAFETY: C++ passes a place for the sum.
        unsafe { *sum = value };
        Ok(())
    })
}

extern "C" fn check_callback(
    context: *mut c_void,
    keys: *const *const c_char,
    count: usize,
    present: *mut c_int,
    text: *mut c_char,
) -> c_int {
    answer(context, text, |store| {
        let value = store.check(&texts_of(keys, count))?;
        // SAFETY: C++ passes a place for the answer.
        unsafe { *present = c_int::from(value) };
        Ok(())
    })
}

extern "C" fn remove_callback(
    context: *mut c_void,
    key: *const c_char,
    removed: *mut c_int,
    text: *mut c_char,
) -> c_int {
    answer(context, text, |store| {
        let value = store.remove(&text_of(key))?;
        // SAFETY: C++ passes a place for the answer.
        unsafe { *removed = c_int::from(value) };
        Ok(())
    })
}
