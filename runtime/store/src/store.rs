//! The store of one run, with calls that block: whoever uses it has threads, not tasks.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::path::Path;
use tokio::runtime::Runtime;
use zerofold_checkpoint::publish::{MANIFEST_FILE, MAX_MANIFEST_BYTES, step_directory};
use zerofold_checkpoint::{
    CheckpointError, Found, IncomingStep, Manifest, Retention, ensure_room, fault, manifest_from, open_step,
};

use crate::connect::connect;
use crate::error::{Result, StoreError};
use crate::interrupt::Interrupt;
use crate::listing::{self, StoredStep};
use crate::upload::PART_BYTES;
use crate::{download, probe, retention, upload};

/// The prefix of one run in a bucket.
#[derive(Debug)]
pub struct CheckpointStore {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    url: String,
    endpoint: String,
    patience: Duration,
    runtime: Runtime,
}

impl CheckpointStore {
    /// The prefix of a bucket; credentials, region and endpoint come from the environment (see [`crate::connect`]). Nothing is
    /// sent yet. Requests that fail for a reason that may pass are tried again for `patience`.
    pub fn open(bucket: &str, prefix: &str, patience: Duration) -> Result<Self> {
        let url = if prefix.is_empty() { format!("s3://{bucket}") } else { format!("s3://{bucket}/{prefix}") };
        let setup = |reason: String, hint| StoreError::Setup { url: url.clone(), reason, hint };
        let prefix = Path::parse(prefix).map_err(|error| setup(error.to_string(), "give s3://BUCKET/PREFIX"))?;
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name("store").enable_all().build();
        let runtime = runtime.map_err(|error| setup(error.to_string(), "the system has no thread to spare"))?;
        // A client binds itself to the runtime that it is made in.
        let connection = runtime.block_on(async { connect(bucket, &url, patience) })?;
        Ok(CheckpointStore {
            objects: connection.objects,
            prefix,
            url,
            endpoint: connection.endpoint,
            patience,
            runtime,
        })
    }

    /// `s3://BUCKET/PREFIX`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL of a step.
    pub fn step_url(&self, step: u64) -> String {
        step_directory(FilePath::new(&self.url), step).display().to_string()
    }

    /// Tries with a small object that the store can be written, read and deleted from, and that it refuses to write over what
    /// is there.
    pub fn prove_writable(&self) -> Result<()> {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let name = format!("zerofold-probe-{:x}-{:x}", std::process::id(), time.as_nanos());
        let place = self.prefix.clone().join(name);
        self.runtime.block_on(probe::probe(&*self.objects, &place, &self.url, &self.endpoint))
    }

    /// The steps in it, oldest first, published or not.
    pub fn steps(&self) -> Result<Vec<StoredStep>> {
        self.runtime.block_on(listing::steps(&*self.objects, &self.prefix, &self.url))
    }

    /// The highest generation that any name in it tells, of uploads that were never finished too; 0 for none.
    pub fn generation(steps: &[StoredStep]) -> u64 {
        steps.iter().map(StoredStep::generation).max().unwrap_or(0)
    }

    /// The manifest of a step, its bytes as they are, and whether all objects are there in their sizes.
    ///
    /// # Errors
    /// [`StoreError::NotWhole`] where they are not, or the manifest cannot be made sense of.
    pub fn manifest(&self, stored: &StoredStep) -> Result<(Manifest, Vec<u8>)> {
        let (manifest, content) = self.read_manifest(stored)?;
        for file in &manifest.files {
            let reason = match stored.objects.get(&file.name) {
                Some(bytes) if *bytes == file.bytes => continue,
                Some(bytes) => format!("{} has {bytes} bytes, its manifest says {}", file.name, file.bytes),
                None => format!("{} is missing", file.name),
            };
            return Err(StoreError::NotWhole { url: self.step_url(stored.step), reason });
        }
        Ok((manifest, content))
    }

    fn read_manifest(&self, stored: &StoredStep) -> Result<(Manifest, Vec<u8>)> {
        let url = self.step_url(stored.step);
        let (place, object) = self.place(stored.step, MANIFEST_FILE);
        let read = download::read_small(&*self.objects, &place, &object, MAX_MANIFEST_BYTES);
        let Some(content) = self.runtime.block_on(read)? else {
            let reason = "it has no manifest.json, so its upload was never finished".to_owned();
            return Err(StoreError::NotWhole { url, reason });
        };
        let manifest = manifest_from(FilePath::new(&url), &content)
            .map_err(|error| StoreError::NotWhole { url: url.clone(), reason: error.reason() })?;
        let changed = |reason| StoreError::NotWhole { url, reason: format!("{MANIFEST_FILE} {reason}") };
        manifest.check_seal().map_err(changed)?;
        Ok((manifest, content))
    }

    /// Uploads the published step in `directory`: its files, then its manifest. Once this returns, it is a checkpoint in the
    /// store; if it fails or is killed, it is none.
    ///
    /// # Errors
    /// The connection is lost for too long, the store refuses, another run's manifest is there, or the files are not what the
    /// manifest says.
    pub fn upload(&self, directory: &FilePath, interrupt: &Interrupt) -> Result<Found> {
        let found = open_step(directory)?;
        let path = directory.join(MANIFEST_FILE);
        let content = std::fs::read(&path).map_err(|source| CheckpointError::Io { action: "read", path, source })?;
        let step = found.manifest.step;
        self.runtime.block_on(async {
            for entry in &found.manifest.files {
                let (place, url) = self.place(step, &entry.name);
                upload::file(&*self.objects, (&place, &url), directory, entry, PART_BYTES, interrupt).await?;
            }
            fault::reach(fault::UPLOADED);
            let (place, url) = self.place(step, MANIFEST_FILE);
            upload::commit(&*self.objects, (&place, &url), &content, self.patience, interrupt).await
        })?;
        Ok(found)
    }

    /// Deletes what need not stay now that `committed` is in the store, and what killed uploads of older steps have left. Gives
    /// the steps.
    pub fn delete_old(&self, committed: u64, keep: Option<Retention>, interrupt: &Interrupt) -> Result<Vec<u64>> {
        self.runtime.block_on(interrupt.unless(async {
            let steps = listing::steps(&*self.objects, &self.prefix, &self.url).await?;
            let plan = retention::plan(&steps, committed, keep);
            for stored in steps.iter().filter(|stored| plan.contains(&stored.step)) {
                retention::delete(&*self.objects, stored, |name| self.place(stored.step, name)).await?;
            }
            Ok(plan)
        }))
    }

    /// Makes way for a run that goes on after `step`: published steps after it are set aside, and their manifests have other
    /// names from then on. Gives the steps with these manifests' URLs.
    pub fn set_aside_after(&self, step: u64) -> Result<Vec<(u64, String)>> {
        let mut aside = Vec::new();
        for stored in self.steps()?.iter().filter(|stored| stored.step > step && stored.is_published()) {
            let (place, url) = self.place(stored.step, MANIFEST_FILE);
            let moved = async {
                let content = download::read_small(&*self.objects, &place, &url, MAX_MANIFEST_BYTES).await?;
                let content = content.unwrap_or_default();
                retention::set_aside(&*self.objects, content, |name| self.place(stored.step, name)).await
            };
            aside.push((stored.step, self.runtime.block_on(moved)?));
        }
        Ok(aside)
    }

    /// Brings a step to a folder of steps, where it is there whole or not at all. Every file's size and hash is checked as it
    /// comes.
    ///
    /// # Errors
    /// [`StoreError::NotWhole`] if the step is damaged; the connection is lost for too long; the disk has no room.
    pub fn fetch(&self, stored: &StoredStep, checkpoints: &FilePath) -> Result<Found> {
        let (manifest, content) = self.manifest(stored)?;
        ensure_room(checkpoints, manifest.bytes().saturating_add(content.len() as u64))?;
        let incoming = IncomingStep::create(checkpoints, stored.step)?;
        for entry in &manifest.files {
            let (place, url) = self.place(stored.step, &entry.name);
            let path = incoming.directory().join(&entry.name);
            let hash = self.runtime.block_on(download::file(&*self.objects, (&place, &url), &path, entry.bytes))?;
            if hash != entry.blake3 {
                let reason = format!("{} has the hash {hash}, its manifest says {}", entry.name, entry.blake3);
                return Err(StoreError::NotWhole { url: self.step_url(stored.step), reason });
            }
        }
        incoming.finish(&content).map_err(|error| match error {
            // What came is not what the manifest tells of.
            CheckpointError::NotWhole { reason, .. } | CheckpointError::BadFile { reason, .. } => {
                StoreError::NotWhole { url: self.step_url(stored.step), reason }
            }
            other => other.into(),
        })
    }

    /// Copies what is there of a step to a new folder below `folder` as it is, damaged or not, to be looked at.
    pub fn copy_as_it_is(&self, stored: &StoredStep, folder: &FilePath) -> Result<PathBuf> {
        let (manifest, content) = self.read_manifest(stored)?;
        let there = manifest.files.iter().filter_map(|file| Some((file, *stored.objects.get(&file.name)?)));
        let there: Vec<_> = there.collect();
        let bytes = there.iter().map(|(_, bytes)| *bytes).fold(content.len() as u64, u64::saturating_add);
        ensure_room(folder, bytes)?;
        let directory = step_directory(folder, stored.step);
        let write = |path: &FilePath, source| CheckpointError::Io { action: "write", path: path.to_owned(), source };
        std::fs::create_dir(&directory).map_err(|source| write(&directory, source))?;
        for (file, bytes) in there {
            let (place, url) = self.place(stored.step, &file.name);
            let path = directory.join(&file.name);
            self.runtime.block_on(download::file(&*self.objects, (&place, &url), &path, bytes))?;
        }
        let path = directory.join(MANIFEST_FILE);
        std::fs::write(&path, content).map_err(|source| write(&path, source))?;
        Ok(directory)
    }

    /// Where an object of a step is, and its URL.
    fn place(&self, step: u64, name: &str) -> (Path, String) {
        let folder = step_directory(FilePath::new(""), step).display().to_string();
        let url = format!("{}/{folder}/{name}", self.url);
        (self.prefix.clone().join(folder).join(name), url)
    }
}
