//! A step's files in parts, then its manifest.
//!
//! Of a file, a few parts are on their way at a time, so memory is bounded whatever its size. Bytes are hashed as they are
//! read: what was damaged on this machine's disk is not passed on as whole.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use object_store::path::Path;
use object_store::{Error, MultipartUpload, ObjectStore, ObjectStoreExt, PutMode};
use zerofold_checkpoint::{CheckpointError, FileEntry, fault};

use crate::download::read_small;
use crate::error::{Result, StoreError};
use crate::interrupt::Interrupt;

/// Bytes of a part, unless a file would then have more parts than are allowed.
pub(crate) const PART_BYTES: u64 = 8 << 20;
/// A store takes so many parts of one object.
const MOST_PARTS: u64 = 10_000;
/// Parts of a file that are on their way at a time.
const IN_FLIGHT: usize = 4;
/// How long the end of an upload that failed may take.
const ABORT: Duration = Duration::from_secs(5);
/// Between two tries of a commit.
const PAUSE: Duration = Duration::from_millis(500);

/// Bytes of each part but the last of a file of `bytes`: the same for all, whole MiB, and not too many.
fn part_bytes(bytes: u64, least: u64) -> u64 {
    let needed = bytes.div_ceil(MOST_PARTS);
    if needed <= least { least } else { needed.div_ceil(1 << 20) << 20 }
}

/// Uploads a file of a step as its manifest tells of it.
pub(crate) async fn file(
    objects: &dyn ObjectStore,
    (place, url): (&Path, &str),
    directory: &FilePath,
    entry: &FileEntry,
    least_part: u64,
    interrupt: &Interrupt,
) -> Result<()> {
    let failed = |error: Error| StoreError::request("write", url, &error);
    // The answer to the last request may be lost; then the store knows the upload no more, and all of it is sent again.
    for last_try in [false, true] {
        let begun = async { objects.put_multipart(place).await.map_err(failed) };
        let mut upload = interrupt.unless(begun).await?;
        let path = directory.join(&entry.name);
        let sent = interrupt.unless(parts(upload.as_mut(), url, &path, entry, least_part)).await;
        let ended = match sent {
            Ok(()) => interrupt.unless(async { Ok(upload.complete().await) }).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(Error::NotFound { .. })) if !last_try => continue,
            Ok(Err(error)) => {
                abort(upload.as_mut(), url).await;
                return Err(failed(error));
            }
            Err(error) => {
                abort(upload.as_mut(), url).await;
                return Err(error);
            }
        }
    }
    Ok(())
}

/// What was sent is of no use, and costs money until the store is told so.
async fn abort(upload: &mut dyn MultipartUpload, url: &str) {
    match tokio::time::timeout(ABORT, upload.abort()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, url, "parts of an upload that failed stay"),
        Err(_) => tracing::debug!(url, "parts of an upload that failed stay: no answer"),
    }
}

async fn parts(
    upload: &mut dyn MultipartUpload,
    url: &str,
    path: &FilePath,
    entry: &FileEntry,
    least_part: u64,
) -> Result<()> {
    let io = |source| CheckpointError::Io { action: "read", path: path.to_owned(), source };
    let opened = Arc::new(File::open(path).map_err(io)?);
    let (mut hasher, mut begin) = (blake3::Hasher::new(), 0);
    let mut on_their_way = FuturesUnordered::new();
    let failed = |error: Error| StoreError::request("write", url, &error);
    while begin < entry.bytes {
        let bytes = part_bytes(entry.bytes, least_part).min(entry.bytes - begin);
        let file = opened.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut part = vec![0; bytes as usize];
            file.read_exact_at(&mut part, begin)?;
            hasher.update(&part);
            Ok((part, hasher))
        });
        let part;
        (part, hasher) = read.await.map_err(std::io::Error::other).flatten().map_err(io)?;
        fault::reach(fault::UPLOADING);
        on_their_way.push(upload.put_part(part.into()));
        begin += bytes;
        if on_their_way.len() >= IN_FLIGHT {
            on_their_way.next().await.transpose().map_err(failed)?;
        }
    }
    while let Some(sent) = on_their_way.next().await {
        sent.map_err(failed)?;
    }
    let (own, hash) = (&entry.blake3, hasher.finalize().to_hex().to_string());
    if hash != *own {
        let reason = format!("{} has the hash {hash}, its manifest says {own}", entry.name);
        let path = path.parent().unwrap_or(path).to_owned();
        return Err(CheckpointError::NotWhole { path, reason }.into());
    }
    Ok(())
}

/// Creates the manifest if none is there: the commit. An equal one that is there already is our own, whose answer was lost.
pub(crate) async fn commit(
    objects: &dyn ObjectStore,
    (place, url): (&Path, &str),
    manifest: &[u8],
    patience: Duration,
    interrupt: &Interrupt,
) -> Result<()> {
    let began = Instant::now();
    let attempt = async || {
        let put = objects.put_opts(place, manifest.to_vec().into(), PutMode::Create.into()).await;
        let Err(error) = put else { return Ok(true) };
        // What is there decides: the request may have been carried out though its answer was lost.
        match read_small(objects, place, url, manifest.len() as u64).await {
            Ok(Some(found)) if found == manifest => Ok(true),
            Ok(Some(_)) => Err(StoreError::OtherRun { url: url.to_owned() }),
            Err(StoreError::NotWhole { .. }) => Err(StoreError::OtherRun { url: url.to_owned() }),
            Ok(None) if may_pass(&error) && began.elapsed() < patience => Ok(false),
            Ok(None) | Err(_) => Err(StoreError::request("write", url, &error)),
        }
    };
    while !interrupt.unless(attempt()).await? {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

fn may_pass(error: &Error) -> bool {
    !matches!(
        error,
        Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::NotFound { .. }
            | Error::NotImplemented { .. }
            | Error::NotSupported { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;
    use zerofold_checkpoint::writer::FileDigest;

    #[test]
    fn no_file_has_too_many_parts() {
        assert_eq!(part_bytes(1, PART_BYTES), PART_BYTES);
        assert_eq!(part_bytes(80 << 30, PART_BYTES), 9 << 20);
        for bytes in [83_886_080_000_u64, 83_886_080_001, 5 << 40] {
            assert!(bytes.div_ceil(part_bytes(bytes, PART_BYTES)) <= MOST_PARTS, "{bytes}");
        }
    }

    fn entry(content: &[u8]) -> FileEntry {
        let digest = FileDigest { bytes: content.len() as u64, blake3: blake3::hash(content).to_hex().to_string() };
        FileEntry::new("file", digest, Vec::new())
    }

    #[tokio::test]
    async fn parts_lie_end_to_end_and_damage_is_not_passed_on() {
        let (folder, objects) = (tempfile::tempdir().unwrap(), InMemory::new());
        let place = Path::from("p/file");
        let send = async |entry: &FileEntry, interrupt: &Interrupt| {
            file(&objects, (&place, "s3://b/p/file"), folder.path(), entry, 10, interrupt).await
        };
        for length in [1, 9, 10, 11, 100, 101] {
            let content: Vec<u8> = (0..length).collect();
            std::fs::write(folder.path().join("file"), &content).unwrap();
            send(&entry(&content), &Interrupt::default()).await.unwrap();
            assert_eq!(objects.get(&place).await.unwrap().bytes().await.unwrap(), content);
        }
        let before = objects.get(&place).await.unwrap().bytes().await.unwrap();
        std::fs::write(folder.path().join("file"), [1; 30]).unwrap();
        let error = send(&entry(&[2; 30]), &Interrupt::default()).await.unwrap_err();
        assert!(error.reason().starts_with("file has the hash "), "{error}");
        let error = send(&entry(&[1; 31]), &Interrupt::default()).await.unwrap_err();
        assert!(error.reason().starts_with("cannot read "), "{error}");
        let interrupt = Interrupt::default();
        interrupt.ask();
        assert!(matches!(send(&entry(&[1; 30]), &interrupt).await, Err(StoreError::Interrupted)));
        assert_eq!(objects.get(&place).await.unwrap().bytes().await.unwrap(), before, "nothing of these is there");
    }

    #[tokio::test]
    async fn a_manifest_is_written_once() {
        let objects = InMemory::new();
        let place = Path::from("p/manifest.json");
        let commit = async |content: &'static str| {
            let place = (&place, "s3://b/p/manifest.json");
            commit(&objects, place, content.as_bytes(), Duration::ZERO, &Interrupt::default()).await
        };
        commit("ours").await.unwrap();
        commit("ours").await.unwrap();
        for other in ["theirs", "a longer one of theirs", "x"] {
            let error = commit(other).await.unwrap_err().to_string();
            assert!(error.starts_with("s3://b/p/manifest.json is there already, with other content"), "{error}");
        }
        assert_eq!(objects.get(&place).await.unwrap().bytes().await.unwrap(), "ours");
    }
}
