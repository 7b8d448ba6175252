//! A store for ranks that are processes of one host: a folder with one file per key.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use zerofold_runtime::comm::Store;

pub(crate) struct FolderStore(pub(crate) PathBuf);

impl FolderStore {
    fn path(&self, key: &str) -> PathBuf {
        let name: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.0.join(name)
    }

    fn read(&self, key: &str) -> Option<Vec<u8>> {
        std::fs::read(self.path(key)).ok()
    }
}

impl Store for FolderStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        // Whole or not at all: a reader never sees half a value.
        let partial = self.0.join(format!("{}.{:?}.partial", std::process::id(), std::thread::current().id()));
        std::fs::write(&partial, value)
            .and_then(|()| std::fs::rename(&partial, self.path(key)))
            .map_err(|error| error.to_string())
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
        self.wait(&[key.to_owned()], timeout)?;
        self.read(key).ok_or_else(|| format!("{key} was removed while it was waited for"))
    }

    fn wait(&self, keys: &[String], timeout: Duration) -> Result<(), String> {
        let deadline = Instant::now() + timeout;
        while !self.check(keys)? {
            if Instant::now() > deadline {
                return Err(format!("no {keys:?} after {timeout:?}"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        let lock = std::fs::File::create(self.0.join("lock")).map_err(|error| error.to_string())?;
        // SAFETY: the descriptor is open; the lock goes with it.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) } != 0 {
            return Err(std::io::Error::last_os_error().to_string());
        }
        let old: i64 = self.read(key).map_or(0, |value| String::from_utf8_lossy(&value).parse().unwrap_or(0));
        self.set(key, (old + amount).to_string().as_bytes())?;
        Ok(old + amount)
    }

    fn check(&self, keys: &[String]) -> Result<bool, String> {
        Ok(keys.iter().all(|key| self.path(key).exists()))
    }

    fn remove(&self, key: &str) -> Result<bool, String> {
        Ok(std::fs::remove_file(self.path(key)).is_ok())
    }
}
