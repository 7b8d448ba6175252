//! The key-value store that Gloo and NCCL bootstrap through: bytes by name, with waiters and deadlines.
//!
//! Whoever waits for keys sleeps on one of them, the last of those that are missing, and is woken by nobody else. Where N ranks
//! wait for the N keys that they set, each is woken a handful of times, not N times, and its list is gone through once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Instant, timeout_at};

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 4 << 10;
/// The largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// How many keys there may be.
pub const MAX_KEYS: usize = 1 << 18;
/// The most that all keys and values may hold together, in bytes.
pub const MAX_TOTAL_BYTES: usize = 256 << 20;
/// How many keys one call may name.
pub const MAX_KEYS_PER_CALL: usize = 1 << 16;
/// The most that the values which one call asks for may have together, in bytes.
pub const MAX_ANSWER_BYTES: usize = 2 << 20;
/// The longest a caller may wait: a longer wish is cut to this.
pub const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Why a call on the store failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// The deadline passed before the key existed.
    #[error(
        "key `{key}` was not set within {waited_ms} ms\nhint: the rank that sets it is late or gone; see the logs of the other ranks"
    )]
    DeadlineExceeded {
        /// A key that is missing.
        key: String,
        /// How long the caller was ready to wait.
        waited_ms: u64,
    },
    /// The key is too long.
    #[error("a key of {bytes} bytes was sent; at most {MAX_KEY_BYTES} are allowed\nhint: name it by a hash")]
    KeyTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The value is too large.
    #[error(
        "the value of key `{key}` has {bytes} bytes; at most {MAX_VALUE_BYTES} are allowed\nhint: the store is for addresses and ids; put data into files"
    )]
    ValueTooLarge {
        /// The key.
        key: String,
        /// The value's length.
        bytes: usize,
    },
    /// The store has no room.
    #[error(
        "key `{key}` does not fit: the store holds {keys} keys of at most {MAX_KEYS} and {held} bytes of at most {MAX_TOTAL_BYTES}\nhint: delete keys that are no longer needed"
    )]
    Full {
        /// The key.
        key: String,
        /// Keys held before the call.
        keys: usize,
        /// Bytes held before the call.
        held: usize,
    },
    /// One call names too many keys.
    #[error("one call names {count} keys; at most {MAX_KEYS_PER_CALL} are allowed\nhint: ask in several calls")]
    TooManyKeys {
        /// How many.
        count: usize,
    },
    /// One call asks for more than an answer holds.
    #[error(
        "the values of {count} keys have {bytes} bytes; one answer holds at most {MAX_ANSWER_BYTES}\nhint: ask in several calls"
    )]
    AnswerTooLarge {
        /// How many keys.
        count: usize,
        /// Bytes of their values.
        bytes: usize,
    },
    /// `add` met a value that is no decimal integer, or the sum does not fit in 64 bits.
    #[error(
        "cannot add {amount} to key `{key}`, which holds {held}\nhint: count under a key that nothing else is set under"
    )]
    NotANumber {
        /// The key.
        key: String,
        /// What should have been added.
        amount: i64,
        /// What it holds, as text.
        held: String,
    },
}

/// Those who wait for one key.
#[derive(Default)]
struct Waiters {
    count: usize,
    bell: Arc<Notify>,
}

#[derive(Default)]
struct Entries {
    values: HashMap<String, Vec<u8>>,
    bytes: usize,
    waiting: HashMap<String, Waiters>,
}

impl Entries {
    fn insert(&mut self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        let old = self.values.get(key).map(|old| key.len() + old.len());
        let keys = self.values.len() + usize::from(old.is_none());
        let bytes = self.bytes - old.unwrap_or(0) + key.len() + value.len();
        if keys > MAX_KEYS || bytes > MAX_TOTAL_BYTES {
            return Err(StoreError::Full { key: key.to_owned(), keys: self.values.len(), held: self.bytes });
        }
        self.bytes = bytes;
        self.values.insert(key.to_owned(), value);
        if let Some(waiters) = self.waiting.remove(key) {
            waiters.bell.notify_waiters();
        }
        Ok(())
    }

    /// The last of `keys` that is missing, by its place.
    fn last_missing(&self, keys: &[String]) -> Option<usize> {
        keys.iter().rposition(|key| !self.values.contains_key(key))
    }

    fn values(&self, keys: &[String]) -> Result<Vec<Vec<u8>>, StoreError> {
        let found = || keys.iter().filter_map(|key| self.values.get(key));
        let bytes = found().map(Vec::len).sum();
        if bytes > MAX_ANSWER_BYTES {
            return Err(StoreError::AnswerTooLarge { count: keys.len(), bytes });
        }
        Ok(found().cloned().collect())
    }
}

/// The store. All methods may be called from any thread; waiting is asynchronous.
#[derive(Default)]
pub struct Store {
    entries: Mutex<Entries>,
}

/// Somebody who waits for a key; forgotten when dropped, so that callers who went away leave nothing behind.
struct Waiting<'a> {
    store: &'a Store,
    key: &'a str,
    bell: Arc<Notify>,
}

impl<'a> Waiting<'a> {
    /// With what is ready once the key was set. That counts from here on: the key may be set as soon as the lock is released.
    fn begin(store: &'a Store, entries: &mut Entries, key: &'a str) -> (Self, OwnedNotified) {
        let waiters = entries.waiting.entry(key.to_owned()).or_default();
        waiters.count += 1;
        let bell = waiters.bell.clone();
        let rung = bell.clone().notified_owned();
        (Waiting { store, key, bell }, rung)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let waiting = &mut self.store.entries().waiting;
        // Once the bell was rung, others may wait under the same key for its next one.
        if let Some(waiters) = waiting.get_mut(self.key).filter(|it| Arc::ptr_eq(&it.bell, &self.bell)) {
            waiters.count -= 1;
            if waiters.count == 0 {
                waiting.remove(self.key);
            }
        }
    }
}

impl Store {
    /// Keys that somebody waits for.
    #[cfg(test)]
    pub(super) fn awaited(&self) -> usize {
        self.entries().waiting.len()
    }

    /// Bytes that count towards the limit.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.entries().bytes
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets `key`, replacing what it held, and wakes who waits for it.
    pub fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        check_key(key)?;
        if value.len() > MAX_VALUE_BYTES {
            return Err(StoreError::ValueTooLarge { key: key.to_owned(), bytes: value.len() });
        }
        self.entries().insert(key, value)
    }

    /// The value of `key`, as soon as it exists.
    ///
    /// # Errors
    /// [`StoreError::DeadlineExceeded`] after `timeout`.
    pub async fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        let values = self.get_all(&[key.to_owned()], timeout).await?;
        Ok(values.into_iter().next().unwrap_or_default())
    }

    /// The values of all `keys`, in their order, as soon as all exist.
    ///
    /// # Errors
    /// [`StoreError::DeadlineExceeded`] after `timeout`, naming the first key that is missing.
    pub async fn get_all(&self, keys: &[String], timeout: Duration) -> Result<Vec<Vec<u8>>, StoreError> {
        self.until(keys, timeout, |entries| entries.values(keys)).await
    }

    /// Returns once all keys exist.
    ///
    /// # Errors
    /// [`StoreError::DeadlineExceeded`] after `timeout`, naming the first key that is missing.
    pub async fn wait(&self, keys: &[String], timeout: Duration) -> Result<(), StoreError> {
        self.until(keys, timeout, |_| Ok(())).await
    }

    /// Adds `amount` to the decimal integer that `key` holds (absent counts as 0) and returns the sum.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64, StoreError> {
        check_key(key)?;
        let mut entries = self.entries();
        let held = entries.values.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
        let held = held.unwrap_or_else(|| "0".to_owned());
        let sum = held.parse::<i64>().ok().and_then(|number| number.checked_add(amount));
        let sum = sum.ok_or_else(|| StoreError::NotANumber { key: key.to_owned(), amount, held: preview(&held) })?;
        entries.insert(key, sum.to_string().into_bytes())?;
        Ok(sum)
    }

    /// Whether all keys exist now.
    pub fn check(&self, keys: &[String]) -> Result<bool, StoreError> {
        check_keys(keys)?;
        Ok(self.entries().last_missing(keys).is_none())
    }

    /// Removes `key`; tells whether it was there.
    pub fn delete(&self, key: &str) -> bool {
        let mut entries = self.entries();
        match entries.values.remove(key) {
            Some(value) => {
                entries.bytes -= key.len() + value.len();
                true
            }
            None => false,
        }
    }

    /// Forgets everything. Who waits does so until the deadline.
    pub fn clear(&self) {
        *self.entries() = Entries::default();
    }

    /// Waits until all `keys` exist, and then takes what is asked for before any can be removed.
    async fn until<T>(
        &self,
        keys: &[String],
        timeout: Duration,
        take: impl Fn(&Entries) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        check_keys(keys)?;
        let timeout = timeout.min(MAX_WAIT);
        let deadline = Instant::now() + timeout;
        // Keys behind this place have been there.
        let mut open = keys.len();
        loop {
            let (waiting, rung) = {
                let mut entries = self.entries();
                let behind = || entries.last_missing(&keys[open..]).map(|place| open + place);
                let Some(missing) = entries.last_missing(&keys[..open]).or_else(behind) else { return take(&entries) };
                open = missing + 1;
                Waiting::begin(self, &mut entries, &keys[missing])
            };
            if timeout_at(deadline, rung).await.is_err() {
                let entries = self.entries();
                let missing = keys.iter().find(|key| !entries.values.contains_key(*key));
                let key = missing.map_or(waiting.key, String::as_str).to_owned();
                drop(entries);
                let waited_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                return Err(StoreError::DeadlineExceeded { key, waited_ms });
            }
        }
    }
}

fn check_key(key: &str) -> Result<(), StoreError> {
    if key.len() > MAX_KEY_BYTES { Err(StoreError::KeyTooLong { bytes: key.len() }) } else { Ok(()) }
}

fn check_keys(keys: &[String]) -> Result<(), StoreError> {
    if keys.len() > MAX_KEYS_PER_CALL {
        return Err(StoreError::TooManyKeys { count: keys.len() });
    }
    keys.iter().try_for_each(|key| check_key(key))
}

fn preview(text: &str) -> String {
    let start: String = text.chars().take(40).collect();
    format!("{start:?}")
}
