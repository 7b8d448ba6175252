//! Large files, by the batch API of Git LFS with the hub's transfer in parts. What is uploaded is part of nothing until a
//! commit names it.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use serde::Deserialize;
use serde_json::{Value, json};
use ureq::SendBody;
use ureq::http::HeaderMap;

use super::error::{HubError, HubTrouble};
use super::http::{Failed, LFS, Patience, THINKING};
use super::local::LocalFile;
use super::remote::Remote;
use super::transfer::Transfer;

/// Files that one question may ask about.
const MOST_FILES: usize = 256;

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    /// None where the hub has the file.
    actions: Option<Actions>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

/// A file that the hub wants, and where it wants it.
struct Order<'a> {
    file: &'a LocalFile,
    upload: Action,
    verify: Option<Action>,
}

/// Uploads those of the files that the hub does not have; gives how many bytes these were. `transfer` is made once their size
/// is known.
pub(super) fn upload<'t>(
    remote: &Remote<'_>,
    files: &[&LocalFile],
    transfer: impl FnOnce(usize, u64) -> Transfer<'t>,
) -> Result<(), HubError> {
    let mut orders = Vec::new();
    for files in files.chunks(MOST_FILES) {
        orders.extend(ask(remote, files)?);
    }
    if orders.is_empty() {
        return Ok(());
    }
    let transfer = transfer(orders.len(), orders.iter().map(|order| order.file.bytes).sum());
    orders.iter().try_for_each(|order| order.carry_out(remote, &transfer))
}

fn ask<'a>(remote: &Remote<'_>, files: &[&'a LocalFile]) -> Result<Vec<Order<'a>>, HubError> {
    // Files with the same bytes are one object.
    let by_hash: HashMap<&str, &'a LocalFile> = files.iter().map(|file| (file.sha256.as_str(), *file)).collect();
    let objects: Vec<Value> = by_hash.values().map(|file| json!({ "oid": file.sha256, "size": file.bytes })).collect();
    let body = json!({
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "objects": objects,
        "hash_algo": "sha256",
        "ref": { "name": remote.branch },
    });
    let path = format!("{}.git/info/lfs/objects/batch", remote.id);
    let batch: Batch = remote.client.post(remote.id, &path, &body, LFS)?;
    let mut orders = Vec::new();
    for object in batch.objects {
        let Some(&file) = by_hash.get(object.oid.as_str()) else { continue };
        if let Some(refusal) = object.error {
            let message = format!("the hub does not take {}: {}", file.name, refusal.message);
            return Err(HubError::refused(remote.id, message, "nothing was committed"));
        }
        if let Some(Actions { upload: Some(upload), verify }) = object.actions {
            orders.push(Order { file, upload, verify });
        }
    }
    Ok(orders)
}

impl Order<'_> {
    fn carry_out(&self, remote: &Remote<'_>, transfer: &Transfer<'_>) -> Result<(), HubError> {
        match self.upload.header.get("chunk_size") {
            Some(size) => self.in_parts(remote, size, transfer)?,
            None => {
                let whole = (0, self.file.bytes);
                self.put(remote, &self.upload.href, &self.upload.header, whole, transfer)?;
            }
        }
        let Some(verify) = &self.verify else { return Ok(()) };
        let body = json!({ "oid": self.file.sha256, "size": self.file.bytes });
        Patience::new().attempt(|| {
            let mut request = remote.client.agent().post(&verify.href).header("content-type", LFS);
            if let Some(authorization) = remote.client.authorization() {
                request = request.header("authorization", authorization);
            }
            remote.client.check(remote.id, request.send(body.to_string())).map(|_| ())
        })
    }

    /// Each part has an address of its own, under its number; the parts' ETags go to the hub at the end.
    fn in_parts(&self, remote: &Remote<'_>, size: &Value, transfer: &Transfer<'_>) -> Result<(), HubError> {
        let malformed = || {
            let message = format!("the hub does not tell how to upload the parts of {}", self.file.name);
            HubError::refused(remote.id, message, "nothing was committed: try again")
        };
        let size = size.as_u64().or_else(|| size.as_str()?.parse().ok()).filter(|size| *size > 0);
        let size = size.ok_or_else(malformed)?;
        let numbered = self.upload.header.iter().filter_map(|(name, address)| {
            let digits = name.bytes().all(|byte| byte.is_ascii_digit());
            Some((name.parse::<u64>().ok().filter(|_| digits)?, address.as_str()?))
        });
        let addresses: BTreeMap<u64, &str> = numbered.collect();
        if addresses.len() as u64 != self.file.bytes.div_ceil(size) {
            return Err(malformed());
        }
        let mut parts = Vec::new();
        for (index, (number, address)) in addresses.into_iter().enumerate() {
            let begin = index as u64 * size;
            let range = (begin, (begin + size).min(self.file.bytes));
            let headers = self.put(remote, address, &BTreeMap::new(), range, transfer)?;
            let etag = headers.get("etag").and_then(|etag| etag.to_str().ok()).ok_or_else(malformed)?;
            parts.push(json!({ "partNumber": number, "etag": etag }));
        }
        let body = json!({ "oid": self.file.sha256, "parts": parts });
        Patience::new().attempt(|| {
            let request =
                remote.client.agent().post(&self.upload.href).config().timeout_per_read(Some(THINKING)).build();
            let request = request.header("content-type", LFS).header("accept", LFS);
            remote.client.check(remote.id, request.send(body.to_string())).map(|_| ())
        })
    }

    /// Sends bytes of the file, as often as it takes. The address holds the permission to do so: the token stays here.
    fn put(
        &self,
        remote: &Remote<'_>,
        address: &str,
        headers: &BTreeMap<String, Value>,
        (begin, end): (u64, u64),
        transfer: &Transfer<'_>,
    ) -> Result<HeaderMap, HubError> {
        let path = &self.file.path;
        Patience::new().attempt(|| {
            let mut file = File::open(path).map_err(HubError::disk("read", path))?;
            file.seek(SeekFrom::Start(begin)).map_err(HubError::disk("read", path))?;
            let sent = Cell::new(0);
            let mut section = Section { file, left: end - begin, sent: &sent, transfer, name: &self.file.name };
            let request = remote.client.agent().put(address).config().timeout_per_read(Some(THINKING)).build();
            let mut request = request.header("content-length", end - begin);
            for (name, value) in headers {
                if let Some(value) = value.as_str() {
                    request = request.header(name, value);
                }
            }
            let answer = request.send(SendBody::from_reader(&mut section));
            let failed = match remote.client.check(remote.id, answer) {
                Ok(answer) => return Ok(answer.headers().clone()),
                Err(failed) => failed,
            };
            transfer.take_back(sent.get());
            if section.left > 0 && section.is_at_end() {
                let message = format!("{} became shorter while it was uploaded", path.display());
                let hint = "push when nothing writes to the folder; nothing was committed";
                return Err(HubError::new(HubTrouble::Failed, remote.id, message, hint).into());
            }
            Err(match failed {
                // Storage says 403 when an address is too old; the next push gets new ones.
                Failed::Lasting(error) => {
                    let message = format!("{} was not taken: {}", self.file.name, error.message);
                    Failed::Lasting(HubError::new(
                        HubTrouble::Failed,
                        remote.id,
                        message,
                        "nothing was committed: push again",
                    ))
                }
                passing => passing,
            })
        })
    }
}

/// Part of a file on its way.
struct Section<'a> {
    file: File,
    left: u64,
    sent: &'a Cell<u64>,
    transfer: &'a Transfer<'a>,
    name: &'a str,
}

impl Section<'_> {
    fn is_at_end(&mut self) -> bool {
        let place = self.file.stream_position().unwrap_or(0);
        self.file.metadata().is_ok_and(|file| file.len() <= place)
    }
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let room = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read(&mut buffer[..room])?;
        if count == 0 && room > 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        self.sent.set(self.sent.get() + count as u64);
        self.transfer.add(count as u64, self.name);
        Ok(count)
    }
}
