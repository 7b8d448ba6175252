//! The repository that is pushed to: whether it is there, its branch, what it wants of each file, and the commit.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::{HubError, HubTrouble};
use super::http::{Client, Failed, JSON, Patience};
use super::local::LocalFile;
use super::names::{RepoId, escaped};
use super::place::MAIN;
use super::snapshot::{Info, info};

/// Files that one question may ask about.
const MOST_FILES: usize = 256;

/// A branch of a repository.
pub(super) struct Remote<'a> {
    pub(super) client: &'a Client,
    pub(super) id: &'a RepoId,
    pub(super) branch: &'a str,
}

/// How a file is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// Uploaded first, then named in the commit.
    Lfs,
    /// In the commit itself.
    Regular,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    path: String,
    upload_mode: Mode,
    /// The repository's own rules leave the file out.
    #[serde(default)]
    should_ignore: bool,
    /// The hash of the file that is there: SHA-256 of a large one, else Git's.
    oid: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Answers {
    files: Vec<Answer>,
}

/// What becomes of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is there already, byte for byte, or the repository's .gitignore leaves it out.
    Nothing,
    /// It is part of the commit.
    Commit(Mode),
}

/// The commit that was made.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Committed {
    pub(super) commit_url: String,
}

impl Remote<'_> {
    /// Sees to it that the repository and the branch are there; gives what is in the branch.
    pub(super) fn see_to(&self, private: bool) -> Result<Info, HubError> {
        let (client, id) = (self.client, self.id);
        let found = client.get::<Visibility>(id, &format!("api/models/{id}"), Patience::new());
        match found {
            // What was meant for few must not be shown to all.
            Ok(found) if private && !found.private => {
                let hint =
                    format!("make it private at {}, or leave --private out", client.address(&format!("{id}/settings")));
                return Err(HubError::refused(id, "it is there already, and public", hint));
            }
            Ok(_) => {}
            Err(error) if error.trouble == HubTrouble::NotFound => self.create(private)?,
            Err(error) => return Err(error),
        }
        if self.branch != MAIN && !self.has_branch()? {
            let path = format!("api/models/{id}/branch/{}", escaped(self.branch));
            self.create_if_absent(&path, &json!({}))?;
        }
        info(client, id, self.branch, Patience::new())
    }

    fn create(&self, private: bool) -> Result<(), HubError> {
        let (owner, name) = self.id.owner_and_name();
        let body = json!({ "type": "model", "name": name, "organization": owner, "private": private });
        self.create_if_absent("api/repos/create", &body)
    }

    /// A POST after which the thing is there, whoever made it.
    fn create_if_absent(&self, path: &str, body: &Value) -> Result<(), HubError> {
        Patience::new().attempt(|| {
            let answer = self.client.send(path, JSON, body.to_string().as_bytes());
            match &answer {
                Ok(answer) if answer.status() == 409 => Ok(()),
                _ => self.client.check(self.id, answer).map(|_| ()),
            }
        })
    }

    fn has_branch(&self) -> Result<bool, HubError> {
        let path = format!("api/models/{}/revision/{}", self.id, escaped(self.branch));
        Patience::new().attempt(|| {
            let mut request = self.client.agent().get(self.client.address(&path));
            if let Some(authorization) = self.client.authorization() {
                request = request.header("authorization", authorization);
            }
            match request.call() {
                Ok(answer) if answer.status() == 404 => Ok(false),
                answer => self.client.check(self.id, answer).map(|_| true),
            }
        })
    }

    /// Asks what is to be done with each file.
    pub(super) fn fates(&self, files: &[LocalFile]) -> Result<Vec<Fate>, HubError> {
        let path = format!("api/models/{}/preupload/{}", self.id, escaped(self.branch));
        let mut answers = HashMap::new();
        for files in files.chunks(MOST_FILES) {
            let asked = files
                .iter()
                .map(|file| json!({ "path": file.name, "size": file.bytes, "sample": STANDARD.encode(&file.sample) }));
            let body = json!({ "files": asked.collect::<Vec<_>>() });
            let found: Answers = self.client.post(self.id, &path, &body, JSON)?;
            answers.extend(found.files.into_iter().map(|answer| (answer.path.clone(), answer)));
        }
        files.iter().map(|file| fate(file, answers.get(&file.name)).ok_or_else(|| self.no_answer(&file.name))).collect()
    }

    fn no_answer(&self, name: &str) -> HubError {
        let message = format!("the hub does not tell how it wants {name}");
        HubError::refused(self.id, message, "see that HF_ENDPOINT is the address of a Hugging Face hub")
    }

    /// Makes one commit on top of `parent`, or none.
    pub(super) fn commit(&self, body: &[u8]) -> Result<Committed, HubError> {
        let path = format!("api/models/{}/commit/{}", self.id, escaped(self.branch));
        let answer = self.client.send(&path, "application/x-ndjson", body);
        if answer.as_ref().is_ok_and(|answer| [409, 412].contains(&answer.status().as_u16())) {
            let message = format!("somebody else changed {} meanwhile; nothing was committed", self.branch);
            return Err(HubError::new(
                HubTrouble::Failed,
                self.id,
                message,
                "push again: what is uploaded stays uploaded",
            ));
        }
        // It is not sent twice: the first one may have arrived.
        self.client.json(self.id, answer).map_err(|failed| match failed {
            Failed::Lasting(error) => error,
            Failed::Passing(mut error, _) => {
                let page = self.client.address(&format!("{}/commits/{}", self.id, self.branch));
                error.hint = format!("{page} shows whether the commit arrived; if not, push again");
                error
            }
        })
    }
}

#[derive(Deserialize)]
struct Visibility {
    #[serde(default)]
    private: bool,
}

fn fate(file: &LocalFile, answer: Option<&Answer>) -> Option<Fate> {
    let answer = answer?;
    // Storage for large files takes no empty ones.
    let mode = if file.bytes == 0 { Mode::Regular } else { answer.upload_mode };
    let own = if mode == Mode::Lfs { &file.sha256 } else { &file.git };
    let there = answer.oid.as_ref() == Some(own);
    Some(if there || answer.should_ignore { Fate::Nothing } else { Fate::Commit(mode) })
}

/// The body of a commit: a line for what is said about it, one for each file, one for each that goes.
pub(super) fn commit_body(
    message: &str,
    parent: &str,
    files: &[(LocalFile, Mode)],
    gone: &[String],
) -> std::io::Result<Vec<u8>> {
    let header = json!({ "summary": message, "description": "", "parentCommit": parent });
    let mut lines = vec![json!({ "key": "header", "value": header })];
    for (file, mode) in files {
        lines.push(match mode {
            Mode::Lfs => json!({ "key": "lfsFile", "value": {
                "path": file.name, "algo": "sha256", "oid": file.sha256, "size": file.bytes,
            }}),
            Mode::Regular => json!({ "key": "file", "value": {
                "path": file.name, "encoding": "base64", "content": STANDARD.encode(std::fs::read(&file.path)?),
            }}),
        });
    }
    lines.extend(gone.iter().map(|name| json!({ "key": "deletedFile", "value": { "path": name } })));
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: u64) -> LocalFile {
        let (sha256, git) = ("s".to_owned(), "g".to_owned());
        LocalFile { name: "a".to_owned(), path: "a".into(), bytes, sample: Vec::new(), sha256, git }
    }

    #[test]
    fn what_is_there_is_not_uploaded_again() {
        let fate = |bytes: u64, answer: Value| {
            let answer: Answer = serde_json::from_value(answer).unwrap();
            fate(&file(bytes), Some(&answer)).unwrap()
        };
        let lfs = |oid: Value| json!({ "path": "a", "uploadMode": "lfs", "shouldIgnore": false, "oid": oid });
        assert_eq!(fate(5, lfs(Value::Null)), Fate::Commit(Mode::Lfs));
        assert_eq!(fate(5, lfs("other".into())), Fate::Commit(Mode::Lfs));
        assert_eq!(fate(5, lfs("s".into())), Fate::Nothing);
        assert_eq!(fate(0, lfs(Value::Null)), Fate::Commit(Mode::Regular));
        assert_eq!(fate(5, json!({ "path": "a", "uploadMode": "regular", "oid": "g" })), Fate::Nothing);
        assert_eq!(fate(5, json!({ "path": "a", "uploadMode": "regular", "oid": "s" })), Fate::Commit(Mode::Regular));
        assert_eq!(fate(5, json!({ "path": "a", "uploadMode": "regular", "shouldIgnore": true })), Fate::Nothing);
        assert_eq!(super::fate(&file(5), None), None);
    }
}
