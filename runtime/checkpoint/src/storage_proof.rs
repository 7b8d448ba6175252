//! Proof that all ranks see the folder that `launch` made: a checkpoint of files on several disks is none.
//!
//! `launch` writes a random token into the folder of checkpoints and tells it to the workers; each reads it there before it begins.

use crate::disk::read_bounded;
use crate::error::{CheckpointError, Result};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The file in the folder of checkpoints.
pub const STORAGE_PROOF: &str = ".storage-proof";

/// A token, in a file for as long as this is there.
#[derive(Debug)]
pub struct StorageProof {
    path: PathBuf,
    token: String,
}

impl StorageProof {
    /// Writes a new token into a folder. What an earlier one left there is written over.
    pub fn write(folder: &Path) -> Result<Self> {
        let path = folder.join(STORAGE_PROOF);
        let mut random = [0; 16];
        let source = Path::new("/dev/urandom");
        File::open(source)
            .and_then(|mut file| file.read_exact(&mut random))
            .map_err(CheckpointError::io("read", source))?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(token.as_bytes())?;
            file.sync_all()
        });
        written.map_err(CheckpointError::write(&path, token.len() as u64))?;
        Ok(StorageProof { path, token })
    }

    /// What the ranks are told.
    pub fn token(&self) -> &str {
        &self.token
    }
}

impl Drop for StorageProof {
    fn drop(&mut self) {
        // One that stays is written over by the next job.
        let _ = fs::remove_file(&self.path);
    }
}

/// Checks that a folder is the one in which this token was written.
pub fn check_storage(folder: &Path, token: &str) -> Result<()> {
    let reason = match read_bounded(&folder.join(STORAGE_PROOF), 1000) {
        Ok(found) if found == token.as_bytes() => return Ok(()),
        Ok(_) => "it holds the token of another job".to_owned(),
        Err(error) => error.reason(),
    };
    Err(CheckpointError::OtherStorage { path: folder.to_owned(), host: host(), reason })
}

/// The name of this host.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "this host".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_folder_has_the_token() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let proof = StorageProof::write(one.path()).unwrap();
        check_storage(one.path(), proof.token()).unwrap();
        let told = check_storage(other.path(), proof.token()).unwrap_err().to_string();
        for part in [&host(), &other.path().display().to_string(), "No such file", "\nhint: "] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
        let second = StorageProof::write(other.path()).unwrap();
        assert_ne!(second.token(), proof.token());
        let told = check_storage(other.path(), proof.token()).unwrap_err().to_string();
        assert!(told.contains("it holds the token of another job"), "{told}");
        drop(second);
        assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
        drop(proof);
        assert!(check_storage(one.path(), "").is_err());
    }
}
