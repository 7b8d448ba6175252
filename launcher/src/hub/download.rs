//! One file of a repository: what the hub says of it, and its bytes, into the cache. A part that arrived is kept and gone on
//! with; a file gets its name when its size and, where the hub tells it, its hash are right.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use ureq::Body;
use ureq::http::{HeaderMap, Response, StatusCode};

use super::cache::{RepoCache, folder_of};
use super::error::{HubError, HubTrouble};
use super::http::{Client, Failed, Patience};
use super::names::{RepoId, blob_name, escaped, escaped_path};
use super::snapshot::short;
use super::transfer::Transfer;
use crate::format;
use crate::terminal::Terminal;

/// Redirects inside the hub, as of a repository that was renamed.
const MAX_REDIRECTS: u32 = 5;
const CHUNK_BYTES: usize = 1 << 18;

/// A file of a commit, as the hub describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RemoteFile {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// The name of its blob: the SHA-256 of its bytes where it is a large file, else Git's hash.
    pub(super) etag: String,
}

impl RemoteFile {
    /// The SHA-256 that the file must have, where the hub tells it.
    fn sha256(&self) -> Option<&str> {
        let hash = self.etag.len() == 64 && self.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        hash.then_some(self.etag.as_str())
    }
}

/// One commit of one repository, and where it is kept.
pub(super) struct Source<'a> {
    pub(super) client: &'a Client,
    pub(super) cache: &'a RepoCache,
    pub(super) id: &'a RepoId,
    pub(super) commit: &'a str,
    pub(super) terminal: &'a Terminal,
}

impl Source<'_> {
    /// Makes files a part of the commit's folder; what is not there is downloaded, and that is told.
    pub(super) fn bring(&self, wanted: Vec<String>) -> Result<(), HubError> {
        let (cache, commit) = (self.cache, self.commit);
        let missing = wanted.iter().filter(|name| !cache.has(commit, name));
        let files = missing.map(|name| self.describe(name)).collect::<Result<Vec<RemoteFile>, _>>()?;
        if files.is_empty() {
            return Ok(());
        }
        let bytes = files.iter().map(|file| file.bytes).sum();
        let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |found| found.len());
        let there = files.iter().map(|file| size(cache.blob(&file.etag)).max(size(cache.incomplete(&file.etag))));
        let needed = files.iter().zip(there).map(|(file, there)| file.bytes.saturating_sub(there)).sum();
        if let Err(error) = zerofold_checkpoint::ensure_room(cache.root(), needed) {
            let reason = error.to_string();
            let reason = reason.lines().next().unwrap_or_default();
            let hint = "free some space, or set HF_HOME to a folder on another disk";
            return Err(HubError::new(HubTrouble::Failed, self.id, reason, hint));
        }
        self.terminal.tell(&format!(
            "downloading {} of {} at {} ({}) to {}",
            format::plural(files.len() as u64, "file"),
            self.id,
            short(commit),
            format::bytes(bytes),
            cache.root().display()
        ));
        let transfer = Transfer::new(self.terminal, "downloaded", bytes);
        files.iter().try_for_each(|file| self.fetch(file, &transfer))
    }

    /// Asks what a file is; its bytes do not come.
    pub(super) fn describe(&self, name: &str) -> Result<RemoteFile, HubError> {
        Patience::new().attempt(|| {
            let mut address = self.address(name);
            for _ in 0..MAX_REDIRECTS {
                let mut request = self.client.agent().head(&address).config().max_redirects(0).build();
                request = request.header("accept-encoding", "identity");
                if let Some(authorization) = self.client.authorization() {
                    request = request.header("authorization", authorization);
                }
                let response = self.client.check(self.id, request.call())?;
                // To the storage of large files, whose headers are not the hub's, nobody goes here.
                match header(response.headers(), "location").filter(|place| place.starts_with('/')) {
                    Some(place) if response.status().is_redirection() => address = self.client.address(&place[1..]),
                    _ => return Ok(self.described(name, &response)?),
                }
            }
            Err(self
                .refused(format!("{name} is sent from one address to another, more than {MAX_REDIRECTS} times"))
                .into())
        })
    }

    fn described(&self, name: &str, response: &Response<Body>) -> Result<RemoteFile, HubError> {
        let headers = response.headers();
        if let Some(commit) = header(headers, "x-repo-commit").filter(|commit| *commit != self.commit) {
            return Err(self.refused(format!("asked for commit {}, the hub answers of {commit}", self.commit)));
        }
        let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag")).and_then(blob_name);
        let plain = || header(headers, "content-length").filter(|_| !response.status().is_redirection());
        let bytes = header(headers, "x-linked-size").or_else(plain).and_then(|bytes| bytes.parse().ok());
        match (etag, bytes) {
            (Some(etag), Some(bytes)) => Ok(RemoteFile { name: name.to_owned(), bytes, etag: etag.to_owned() }),
            _ => Err(self.refused(format!("of {name} the hub tells no size, or no ETag that can be a file's name"))),
        }
    }

    /// Makes the file a part of the commit's folder; downloads it unless its blob is there.
    pub(super) fn fetch(&self, file: &RemoteFile, transfer: &Transfer<'_>) -> Result<(), HubError> {
        let RemoteFile { name, etag, .. } = file;
        let wait = || transfer.tell(&format!("waiting for another program that downloads {name} of {}", self.id));
        let _lock = self.cache.lock(etag, wait)?;
        let blob = self.cache.blob(etag);
        if fs::metadata(&blob).is_ok_and(|found| found.len() == file.bytes) {
            transfer.add(file.bytes, name);
        } else {
            folder_of(&blob)?;
            self.complete(file, transfer)?;
        }
        self.cache.link(self.commit, name, etag)
    }

    fn complete(&self, file: &RemoteFile, transfer: &Transfer<'_>) -> Result<(), HubError> {
        let path = self.cache.incomplete(&file.etag);
        let open = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut partial = open.map_err(HubError::disk("write", &path))?;
        let disk = |action| HubError::disk(action, &path);
        let mut there = partial.metadata().map_err(disk("read"))?.len();
        if there > file.bytes {
            partial.set_len(0).map_err(disk("write"))?;
            there = 0;
        }
        // What another program began may be anything; then it is done over.
        let mut resumed = there > 0;
        transfer.add(there, &file.name);
        loop {
            self.fill(file, (&mut partial, &path), &mut there, transfer)?;
            let Some(expected) = file.sha256() else { break };
            let found = sha256(&path).map_err(disk("read"))?;
            if found == expected {
                break;
            }
            self.start_over((&mut partial, &path), &mut there, transfer)?;
            if !std::mem::take(&mut resumed) {
                let message = format!("{} arrived with the SHA-256 {found}, the hub says {expected}", file.name);
                let hint = "what arrived was deleted: try again";
                return Err(HubError::new(HubTrouble::Failed, self.id, message, hint));
            }
        }
        partial.sync_all().map_err(disk("sync"))?;
        fs::rename(&path, self.cache.blob(&file.etag)).map_err(disk("rename"))
    }

    /// Asks again and again for what is missing.
    fn fill(
        &self,
        file: &RemoteFile,
        (partial, path): (&mut File, &Path),
        there: &mut u64,
        transfer: &Transfer<'_>,
    ) -> Result<(), HubError> {
        let mut patience = Patience::new();
        while *there < file.bytes {
            let before = *there;
            if let Err(failed) = self.go_on(file, (&mut *partial, path), there, transfer) {
                // As long as something arrives, it is worth while.
                if *there > before {
                    patience = Patience::new();
                }
                patience.after(failed)?;
            }
        }
        Ok(())
    }

    fn start_over(
        &self,
        (partial, path): (&mut File, &Path),
        there: &mut u64,
        transfer: &Transfer<'_>,
    ) -> Result<(), HubError> {
        partial.set_len(0).map_err(HubError::disk("write", path))?;
        transfer.take_back(*there);
        *there = 0;
        Ok(())
    }

    /// One request for what is missing. `there` is kept at what is in the file.
    fn go_on(
        &self,
        file: &RemoteFile,
        (partial, path): (&mut File, &Path),
        there: &mut u64,
        transfer: &Transfer<'_>,
    ) -> Result<(), Failed> {
        let mut request = self.client.agent().get(self.address(&file.name)).header("accept-encoding", "identity");
        if let Some(authorization) = self.client.authorization() {
            request = request.header("authorization", authorization);
        }
        if *there > 0 {
            request = request.header("range", format!("bytes={there}-"));
        }
        let answer = request.call();
        match answer.as_ref().map_or(Place::AsAsked, |answer| place(answer, *there)) {
            Place::AsAsked => {}
            Place::Beginning => self.start_over((&mut *partial, path), there, transfer)?,
            Place::Elsewhere => {
                self.start_over((&mut *partial, path), there, transfer)?;
                return Err(self.client.unreachable(self.id, &"other bytes came than were asked for"));
            }
        }
        let response = self.client.check(self.id, answer)?;
        partial.seek(SeekFrom::Start(*there)).map_err(HubError::disk("write", path))?;
        let mut body = response.into_body().into_reader();
        let mut chunk = vec![0; CHUNK_BYTES];
        while *there < file.bytes {
            let room = chunk.len().min(usize::try_from(file.bytes - *there).unwrap_or(usize::MAX));
            let count = match body.read(&mut chunk[..room]) {
                Ok(0) => return Err(self.client.unreachable(self.id, &"the connection ended early")),
                Ok(count) => count,
                Err(error) => return Err(self.client.unreachable(self.id, &error)),
            };
            partial.write_all(&chunk[..count]).map_err(HubError::disk("write", path))?;
            *there += count as u64;
            transfer.add(count as u64, &file.name);
        }
        match body.read(&mut chunk) {
            Ok(0) => Ok(()),
            _ => {
                self.start_over((&mut *partial, path), there, transfer)?;
                Err(self.refused(format!("more bytes come for {} than the {} it has", file.name, file.bytes)).into())
            }
        }
    }

    fn address(&self, name: &str) -> String {
        self.client.address(&format!("{}/resolve/{}/{}", self.id.page(), escaped(self.commit), escaped_path(name)))
    }

    fn refused(&self, message: String) -> HubError {
        HubError::refused(self.id, message, "see that HF_ENDPOINT is the address of a Hugging Face hub, and try again")
    }
}

/// Where the bytes of an answer begin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At the byte that was asked for, or the answer is an error, which is looked at elsewhere.
    AsAsked,
    /// At the file's first, whatever was asked for.
    Beginning,
    /// At another, or the file has no such byte.
    Elsewhere,
}

fn place(answer: &Response<Body>, there: u64) -> Place {
    match answer.status() {
        StatusCode::OK if there > 0 => Place::Beginning,
        StatusCode::PARTIAL_CONTENT => {
            let range = header(answer.headers(), "content-range").unwrap_or_default();
            if range.starts_with(&format!("bytes {there}-")) { Place::AsAsked } else { Place::Elsewhere }
        }
        StatusCode::RANGE_NOT_SATISFIABLE => Place::Elsewhere,
        _ => Place::AsAsked,
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The SHA-256 of a file, as hexadecimal digits.
pub(super) fn sha256(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    std::io::copy(&mut File::open(path)?, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}
