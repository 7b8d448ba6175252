//! The key-value store that Gloo and NCCL bootstrap through: bytes by name, with waiters and deadlines.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 4 << 10;
/// The largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1 << 20;
/// The most that all keys and values may hold together, in bytes.
pub const MAX_TOTAL_BYTES: usize = 256 << 20;
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
    #[error("a key of {bytes} bytes was sent; at most {MAX_KEY_BYTES} are allowed")]
    KeyTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The value is too large.
    #[error("the value of key `{key}` has {bytes} bytes; at most {MAX_VALUE_BYTES} are allowed")]
    ValueTooLarge {
        /// The key.
        key: String,
        /// The value's length.
        bytes: usize,
    },
    /// The store is full.
    #[error("key `{key}` does not fit: the store holds {held} bytes of at most {MAX_TOTAL_BYTES}")]
    Full {
        /// The key.
        key: String,
        /// Bytes held before the call.
        held: usize,
    },
    /// `add` met a value that is no decimal integer, or the sum does not fit in 64 bits.
    #[error("cannot add {amount} to key `{key}`, which holds {held}")]
    NotANumber {
        /// The key.
        key: String,
        /// What should have been added.
        amount: i64,
        /// What it holds, as text.
        held: String,
    },
}

#[derive(Default)]
struct Entries {
    values: HashMap<String, Vec<u8>>,
    bytes: usize,
}

impl Entries {
    fn insert(&mut self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        let replaced = self.values.get(key).map_or(0, |old| key.len() + old.len());
        let total = self.bytes - replaced + key.len() + value.len();
        if total > MAX_TOTAL_BYTES {
            return Err(StoreError::Full { key: key.to_owned(), held: self.bytes });
        }
        self.bytes = total;
        self.values.insert(key.to_owned(), value);
        Ok(())
    }
}

/// The store. All methods may be called from any thread; waiting is asynchronous.
pub struct Store {
    entries: Mutex<Entries>,
    changes: watch::Sender<u64>,
}

impl Default for Store {
    fn default() -> Self {
        Store { entries: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Store {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets `key`, replacing what it held, and wakes who waits for it.
    pub fn set(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        check_key(key)?;
        if value.len() > MAX_VALUE_BYTES {
            return Err(StoreError::ValueTooLarge { key: key.to_owned(), bytes: value.len() });
        }
        self.entries().insert(key, value)?;
        self.changes.send_modify(|version| *version = version.wrapping_add(1));
        Ok(())
    }

    /// The value of `key`, as soon as it exists.
    ///
    /// # Errors
    /// [`StoreError::DeadlineExceeded`] after `timeout`.
    pub async fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, StoreError> {
        check_key(key)?;
        self.until(timeout, |entries| entries.values.get(key).cloned().ok_or_else(|| key.to_owned())).await
    }

    /// Returns once all keys exist.
    ///
    /// # Errors
    /// [`StoreError::DeadlineExceeded`] after `timeout`, naming the first key that is missing.
    pub async fn wait(&self, keys: &[String], timeout: Duration) -> Result<(), StoreError> {
        keys.iter().try_for_each(|key| check_key(key))?;
        self.until(timeout, |entries| match keys.iter().find(|key| !entries.values.contains_key(*key)) {
            Some(missing) => Err(missing.clone()),
            None => Ok(()),
        })
        .await
    }

    /// Adds `amount` to the decimal integer that `key` holds (absent counts as 0) and returns the sum.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64, StoreError> {
        check_key(key)?;
        let sum = {
            let mut entries = self.entries();
            let held = entries.values.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
            let held = held.unwrap_or_else(|| "0".to_owned());
            let sum = held.parse::<i64>().ok().and_then(|number| number.checked_add(amount));
            let sum =
                sum.ok_or_else(|| StoreError::NotANumber { key: key.to_owned(), amount, held: preview(&held) })?;
            entries.insert(key, sum.to_string().into_bytes())?;
            sum
        };
        self.changes.send_modify(|version| *version = version.wrapping_add(1));
        Ok(sum)
    }

    /// Whether all keys exist now.
    pub fn check(&self, keys: &[String]) -> bool {
        let entries = self.entries();
        keys.iter().all(|key| entries.values.contains_key(key))
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

    /// Forgets everything.
    pub fn clear(&self) {
        *self.entries() = Entries::default();
    }

    /// Tries `look` now and after each change until it succeeds; its error is the missing key.
    async fn until<T>(&self, timeout: Duration, look: impl Fn(&Entries) -> Result<T, String>) -> Result<T, StoreError> {
        let timeout = timeout.min(MAX_WAIT);
        let deadline = Instant::now() + timeout;
        // Subscribed before the first look: a change between the look and the wait is not lost.
        let mut changes = self.changes.subscribe();
        loop {
            let missing = match look(&self.entries()) {
                Ok(found) => return Ok(found),
                Err(missing) => missing,
            };
            // The sender lives in `self`, so `changed` cannot fail before the deadline does.
            if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                let waited_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                return Err(StoreError::DeadlineExceeded { key: missing, waited_ms });
            }
        }
    }
}

fn check_key(key: &str) -> Result<(), StoreError> {
    if key.len() > MAX_KEY_BYTES { Err(StoreError::KeyTooLong { bytes: key.len() }) } else { Ok(()) }
}

fn preview(text: &str) -> String {
    let start: String = text.chars().take(40).collect();
    format!("{start:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_waiter_gets_what_is_set_later() {
        runtime().block_on(async {
            let store = Arc::new(Store::default());
            let waiter = tokio::spawn({
                let store = store.clone();
                async move { store.get("rank/1", Duration::from_secs(30)).await }
            });
            tokio::task::yield_now().await;
            store.set("other", b"no".to_vec()).unwrap();
            tokio::task::yield_now().await;
            assert!(!waiter.is_finished());
            store.set("rank/1", b"address".to_vec()).unwrap();
            assert_eq!(waiter.await.unwrap().unwrap(), b"address");
        });
    }

    #[test]
    fn a_deadline_names_the_missing_key() {
        runtime().block_on(async {
            let store = Store::default();
            store.set("here", Vec::new()).unwrap();
            let keys = ["here".to_owned(), "absent".to_owned()];
            let before = Instant::now();
            let error = store.wait(&keys, Duration::from_millis(40)).await.unwrap_err();
            assert_eq!(error, StoreError::DeadlineExceeded { key: "absent".into(), waited_ms: 40 });
            assert!(before.elapsed() >= Duration::from_millis(40));
            assert!(error.to_string().contains("`absent`"));
        });
    }

    #[test]
    fn adding_counts_from_zero_and_refuses_text() {
        let store = Store::default();
        assert_eq!(store.add("count", 3), Ok(3));
        assert_eq!(store.add("count", -5), Ok(-2));
        store.set("text", b"abc".to_vec()).unwrap();
        assert!(matches!(store.add("text", 1), Err(StoreError::NotANumber { .. })));
        store.set("large", i64::MAX.to_string().into_bytes()).unwrap();
        assert!(matches!(store.add("large", 1), Err(StoreError::NotANumber { .. })));
    }

    #[test]
    fn sizes_are_bounded_and_deleting_frees() {
        let store = Store::default();
        let long = "k".repeat(MAX_KEY_BYTES + 1);
        assert!(matches!(store.set(&long, Vec::new()), Err(StoreError::KeyTooLong { .. })));
        assert!(matches!(store.set("k", vec![0; MAX_VALUE_BYTES + 1]), Err(StoreError::ValueTooLarge { .. })));
        let fit = MAX_TOTAL_BYTES / (MAX_VALUE_BYTES + 4);
        for index in 0..fit {
            store.set(&format!("{index:04}"), vec![0; MAX_VALUE_BYTES]).unwrap();
        }
        assert!(matches!(store.set("one more", vec![0; MAX_VALUE_BYTES]), Err(StoreError::Full { .. })));
        assert!(store.delete("0000"));
        assert!(!store.delete("0000"));
        store.set("9999", vec![0; MAX_VALUE_BYTES]).unwrap();
        assert!(store.check(&["9999".to_owned()]));
        assert!(!store.check(&["9999".to_owned(), "0000".to_owned()]));
    }
}
