//! A store without a control plane: what engine tests bootstrap Gloo through.

use super::Store;
use std::collections::HashMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A store for ranks that are threads of one process.
#[derive(Default)]
pub struct LocalStore {
    values: Mutex<HashMap<String, Vec<u8>>>,
    changed: Condvar,
}

impl Store for LocalStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_string(), value.to_vec());
        self.changed.notify_all();
        Ok(())
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
        self.wait(&[key.to_string()], timeout)?;
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.get(key).cloned().ok_or_else(|| format!("{key} was removed while it was waited for"))
    }

    fn wait(&self, keys: &[String], timeout: Duration) -> Result<(), String> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = |values: &mut HashMap<String, Vec<u8>>| keys.iter().any(|key| !values.contains_key(key));
        let (_values, result) =
            self.changed.wait_timeout_while(values, timeout, missing).unwrap_or_else(PoisonError::into_inner);
        if result.timed_out() { Err(format!("no {keys:?} after {timeout:?}")) } else { Ok(()) }
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let old = values.get(key).map_or(0, |value| String::from_utf8_lossy(value).parse().unwrap_or(0));
        values.insert(key.to_string(), (old + amount).to_string().into_bytes());
        self.changed.notify_all();
        Ok(old + amount)
    }

    fn check(&self, keys: &[String]) -> Result<bool, String> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(keys.iter().all(|key| values.contains_key(key)))
    }

    fn remove(&self, key: &str) -> Result<bool, String> {
        Ok(self.values.lock().unwrap_or_else(PoisonError::into_inner).remove(key).is_some())
    }
}
