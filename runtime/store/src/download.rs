//! Objects out of a store. Nothing in there is believed: sizes have bounds, names are checked, hashes are taken as bytes come.

use std::fs::File;
use std::io::Write;
use std::path::Path as FilePath;

use futures_util::stream::{self, StreamExt};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt};
use zerofold_checkpoint::CheckpointError;

use crate::error::{Result, StoreError};
use crate::upload::PART_BYTES;

/// Ranges of an object that are on their way at a time.
const IN_FLIGHT: usize = 4;

/// The content of an object of at most `most` bytes; `None` if there is none.
pub(crate) async fn read_small(
    objects: &dyn ObjectStore,
    place: &Path,
    url: &str,
    most: u64,
) -> Result<Option<Vec<u8>>> {
    let failed = |error: Error| StoreError::request("read", url, &error);
    let found = match objects.get(place).await {
        Ok(found) => found,
        Err(error) => {
            let error = failed(error);
            return if error.is_missing() { Ok(None) } else { Err(error) };
        }
    };
    if found.meta.size > most {
        let reason = format!("it has {} bytes, and at most {most} are read", found.meta.size);
        return Err(StoreError::NotWhole { url: url.to_owned(), reason });
    }
    // A server may send more than it said.
    let (mut content, mut pieces) = (Vec::new(), found.into_stream());
    while let Some(piece) = pieces.next().await {
        content.extend_from_slice(&piece.map_err(failed)?);
        if content.len() as u64 > most {
            let reason = format!("it goes on after {most} bytes");
            return Err(StoreError::NotWhole { url: url.to_owned(), reason });
        }
    }
    Ok(Some(content))
}

/// Writes an object of `bytes` to a new file, and returns the hash of what came.
pub(crate) async fn file(
    objects: &dyn ObjectStore,
    (place, url): (&Path, &str),
    path: &FilePath,
    bytes: u64,
) -> Result<String> {
    let io = |source: std::io::Error| match source.raw_os_error() {
        // ENOSPC and EDQUOT
        Some(28 | 122) => CheckpointError::DiskFull { path: path.to_owned(), needed: bytes, source },
        _ => CheckpointError::Io { action: "write", path: path.to_owned(), source },
    };
    let mut file = File::create_new(path).map_err(io)?;
    let mut hasher = blake3::Hasher::new();
    let ranges = (0..bytes.div_ceil(PART_BYTES)).map(|index| {
        let begin = index * PART_BYTES;
        begin..bytes.min(begin + PART_BYTES)
    });
    let fetch = |range: std::ops::Range<u64>| async move { (range.clone(), objects.get_range(place, range).await) };
    let mut pieces = stream::iter(ranges).map(fetch).buffered(IN_FLIGHT);
    while let Some((range, piece)) = pieces.next().await {
        let piece = match piece {
            Ok(piece) => piece,
            Err(error) => return Err(short(StoreError::request("read", url, &error), &error)),
        };
        if piece.len() as u64 != range.end - range.start {
            let reason = format!("bytes {} to {} are not all there", range.start, range.end);
            return Err(StoreError::NotWhole { url: url.to_owned(), reason });
        }
        hasher.update(&piece);
        file.write_all(&piece).map_err(io)?;
    }
    file.sync_all().map_err(io)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// An object that is gone, or shorter than it was said to be, is damage; all else is a connection that failed.
fn short(request: StoreError, error: &Error) -> StoreError {
    let told = error.to_string();
    let beyond = ["InvalidRange", "416", "Requested range", "out of range", "Wanted range"];
    match request {
        StoreError::Request { url, reason, missing, .. }
            if missing || beyond.iter().any(|word| told.contains(word)) =>
        {
            StoreError::NotWhole { url, reason }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn what_comes_is_hashed_and_what_is_short_is_damage() {
        let (folder, objects) = (tempfile::tempdir().unwrap(), InMemory::new());
        let place = Path::from("p/file");
        let length = PART_BYTES as usize * 2 + 3;
        let content: Vec<u8> = (0..length).map(|index| (index % 251) as u8).collect();
        objects.put(&place, content.clone().into()).await.unwrap();
        let fetch = async |name: &str, bytes: u64| {
            file(&objects, (&place, "s3://b/p/file"), &folder.path().join(name), bytes).await
        };
        let hash = fetch("whole", length as u64).await.unwrap();
        assert_eq!(hash, blake3::hash(&content).to_hex().to_string());
        assert!(std::fs::read(folder.path().join("whole")).unwrap() == content);
        let error = fetch("short", length as u64 + 1).await.unwrap_err();
        assert!(error.is_damage(), "{error}");
        let error = fetch("far", length as u64 + 2 * PART_BYTES).await.unwrap_err();
        assert!(error.is_damage(), "{error}");
        objects.delete(&place).await.unwrap();
        let error = fetch("gone", 5).await.unwrap_err();
        assert!(error.is_damage(), "{error}");
    }

    #[tokio::test]
    async fn small_objects_are_small() {
        let objects = InMemory::new();
        let place = Path::from("p/manifest.json");
        let read = async |most| read_small(&objects, &place, "s3://b/p/manifest.json", most).await;
        assert_eq!(read(10).await.unwrap(), None);
        objects.put(&place, "0123456789".into()).await.unwrap();
        assert_eq!(read(10).await.unwrap().unwrap(), b"0123456789");
        let error = read(9).await.unwrap_err().to_string();
        assert!(error.contains("it has 10 bytes, and at most 9 are read"), "{error}");
    }
}
