//! The hub's API: what is asked, and what is answered.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::WRITER;
use super::repo::{Repo, State, git_hash, hash, is_large};

/// A request.
pub(super) struct Asked<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) host: &'a str,
    pub(super) token: Option<&'a str>,
    pub(super) range: Option<&'a str>,
    pub(super) body: &'a [u8],
}

impl Asked<'_> {
    fn json(&self) -> Value {
        serde_json::from_slice(self.body).unwrap_or_default()
    }

    fn may_write(&self) -> bool {
        self.token == Some(WRITER)
    }

    /// An address of the storage, which is another host.
    fn storage(&self, path: &str) -> String {
        format!("http://{}/{path}", self.host.replace("127.0.0.1", "localhost"))
    }
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    fn json(value: &Value) -> Answer {
        let headers = vec![("content-type", "application/json".to_owned())];
        Answer { status: 200, headers, body: value.to_string().into_bytes() }
    }

    pub(super) fn error(status: u16, code: &str, message: &str) -> Answer {
        let mut answer = Answer { status, ..Answer::json(&json!({ "error": message })) };
        answer.headers.push(("x-error-message", message.to_owned()));
        if !code.is_empty() {
            answer.headers.push(("x-error-code", code.to_owned()));
        }
        answer
    }

    fn empty(status: u16) -> Answer {
        Answer { status, headers: Vec::new(), body: Vec::new() }
    }
}

/// Answers a request.
pub(super) fn answer(asked: &Asked<'_>, state: &mut State) -> Answer {
    let decoded = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
    let parts: Vec<String> = asked.path.trim_matches('/').split('/').map(decoded).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match (asked.method, &parts[..]) {
        ("GET" | "HEAD" | "PUT" | "POST", ["cdn" | "upload" | "complete", rest @ ..]) => {
            storage(asked, parts[0], rest, state)
        }
        ("POST", ["api", "validate-yaml"]) => Answer::json(&json!({ "errors": [], "warnings": [] })),
        ("POST", ["verify"]) => {
            let body = asked.json();
            let stored = state.large(body["oid"].as_str().unwrap_or_default());
            let whole = stored.is_some_and(|bytes| Some(bytes.len() as u64) == body["size"].as_u64());
            if whole { Answer::empty(200) } else { Answer::error(422, "", "the object is not here") }
        }
        ("POST", ["api", "repos", "create"]) => create(asked, state),
        (_, ["api", "resolve-cache", kinds, owner, name, commit, file @ ..]) => {
            let id = id_of(kinds, &format!("{owner}/{name}"));
            let found = state.repos.get(&id).and_then(|repo| repo.files(commit)?.get(&file.join("/")).cloned());
            found.map_or_else(|| Answer::empty(404), |bytes| regular(asked, commit, &bytes))
        }
        (_, ["api", kinds @ ("models" | "datasets"), rest @ ..]) => {
            let verbs = ["revision", "tree", "branch", "preupload", "commit"];
            let place = rest.iter().position(|part| verbs.contains(part)).unwrap_or(rest.len());
            let id = id_of(kinds, &rest[..place].join("/"));
            of_repo(asked, state, &id).unwrap_or_else(|| match &rest[place..] {
                [] => info(&state.repos[&id], &id, "main"),
                ["revision", revision] => info(&state.repos[&id], &id, revision),
                ["tree", revision, ..] => tree(&state.repos[&id], revision),
                ["branch", branch] => {
                    state.repos.get_mut(&id).expect("it was found").branch(branch);
                    Answer::json(&json!({}))
                }
                ["preupload", revision] => preupload(asked, &state.repos[&id], revision),
                ["commit", branch] => commit(asked, state, &id, branch),
                _ => Answer::empty(404),
            })
        }
        (_, [owner, name, "info", "lfs", "objects", "batch"]) => {
            let id = format!("{owner}/{}", name.trim_end_matches(".git"));
            of_repo(asked, state, &id).unwrap_or_else(|| batch(asked, state))
        }
        (_, rest) if rest.contains(&"resolve") => {
            let place = rest.iter().position(|part| *part == "resolve").unwrap_or_default();
            let id = rest[..place].join("/");
            let (revision, name) = (rest[place + 1], rest[place + 2..].join("/"));
            of_repo(asked, state, &id).unwrap_or_else(|| resolve(asked, state, &id, revision, &name))
        }
        _ => Answer::empty(404),
    }
}

/// A repository as it is kept: of data `datasets/owner/name`, as the hub's own pages are called.
fn id_of(kinds: &str, name: &str) -> String {
    if kinds == "datasets" { format!("datasets/{name}") } else { name.to_owned() }
}

/// Why a repository is not shown, if it is not.
fn of_repo(asked: &Asked<'_>, state: &State, id: &str) -> Option<Answer> {
    let visible = state.repos.get(id).is_some_and(|repo| !repo.private || asked.may_write());
    if !visible {
        // Nobody hears whether it is there.
        let status = if asked.token.is_some() { 404 } else { 401 };
        return Some(Answer::error(status, "RepoNotFound", "Repository not found"));
    }
    let writes = asked.method == "POST";
    (writes && !asked.may_write()).then(|| Answer::error(403, "", "you need write access to this repository"))
}

fn create(asked: &Asked<'_>, state: &mut State) -> Answer {
    if !asked.may_write() {
        return Answer::error(401, "", "you need a token");
    }
    let body = asked.json();
    let id = format!("{}/{}", body["organization"].as_str().unwrap_or("me"), body["name"].as_str().unwrap_or_default());
    let url = json!({ "url": format!("http://{}/{id}", asked.host) });
    if state.repos.contains_key(&id) {
        return Answer { status: 409, ..Answer::json(&url) };
    }
    let private = body["private"] == true || body["visibility"] == "private";
    let mut repo = Repo::default();
    repo.private = private;
    repo.commit("main", vec![(".gitattributes".to_owned(), Some(b"*.safetensors filter=lfs\n".to_vec()))]);
    state.repos.insert(id, repo);
    Answer::json(&url)
}

fn no_revision() -> Answer {
    Answer::error(404, "RevisionNotFound", "Invalid rev id")
}

fn info(repo: &Repo, id: &str, revision: &str) -> Answer {
    let (Some(sha), Some(files)) = (repo.resolve(revision), repo.files(revision)) else { return no_revision() };
    let siblings: Vec<Value> = files.keys().map(|name| json!({ "rfilename": name })).collect();
    let id = id.trim_start_matches("datasets/");
    Answer::json(&json!({ "_id": "1", "id": id, "modelId": id, "sha": sha, "private": repo.private,
        "gated": if repo.gated { json!("manual") } else { json!(false) }, "disabled": false, "tags": [],
        "downloads": 0, "likes": 0, "siblings": siblings }))
}

fn tree(repo: &Repo, revision: &str) -> Answer {
    let Some(files) = repo.files(revision) else { return no_revision() };
    let entry = |(name, bytes): (&String, &Arc<Vec<u8>>)| match is_large(name) {
        true => json!({ "type": "file", "path": name, "size": bytes.len(), "oid": git_hash(name.as_bytes()),
            "lfs": { "oid": hash(bytes), "size": bytes.len(), "pointerSize": 134 } }),
        false => json!({ "type": "file", "path": name, "size": bytes.len(), "oid": git_hash(bytes) }),
    };
    Answer::json(&files.iter().map(entry).collect())
}

fn resolve(asked: &Asked<'_>, state: &State, id: &str, revision: &str, name: &str) -> Answer {
    let repo = &state.repos[id];
    if repo.gated && !asked.may_write() {
        let status = if asked.token.is_some() { 403 } else { 401 };
        return Answer::error(status, "GatedRepo", "Access to this repository is restricted");
    }
    let (Some(commit), Some(files)) = (repo.resolve(revision), repo.files(revision)) else { return no_revision() };
    let Some(bytes) = files.get(name) else {
        let mut answer = Answer::error(404, "EntryNotFound", "Entry not found");
        answer.headers.push(("x-repo-commit", commit));
        return answer;
    };
    let mut answer = Answer::empty(302);
    answer.headers.push(("x-repo-commit", commit.clone()));
    if is_large(name) {
        answer.headers.push(("x-linked-etag", format!("\"{}\"", hash(bytes))));
        answer.headers.push(("x-linked-size", bytes.len().to_string()));
        answer.headers.push(("location", asked.storage(&format!("cdn/{}?signed=yes", hash(bytes)))));
        return answer;
    }
    if id.contains('/') && ["config.json", "README.md"].contains(&name) {
        // As the hub does for small files.
        let page = if id.starts_with("datasets/") { id.to_owned() } else { format!("models/{id}") };
        answer.status = 307;
        answer.headers.push(("location", format!("/api/resolve-cache/{page}/{commit}/{name}?etag=1")));
        return answer;
    }
    regular(asked, &commit, bytes)
}

fn regular(asked: &Asked<'_>, commit: &str, bytes: &[u8]) -> Answer {
    let mut answer = with_range(asked, bytes);
    answer.headers.push(("x-repo-commit", commit.to_owned()));
    answer.headers.push(("etag", format!("\"{}\"", git_hash(bytes))));
    answer
}

fn with_range(asked: &Asked<'_>, bytes: &[u8]) -> Answer {
    let length = bytes.len();
    let headers = vec![("accept-ranges", "bytes".to_owned())];
    let begin = asked.range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    match begin {
        None => Answer { status: 200, headers, body: bytes.to_vec() },
        Some(begin) if begin >= length => Answer { status: 416, headers, body: Vec::new() },
        Some(begin) => {
            let mut headers = headers;
            headers.push(("content-range", format!("bytes {begin}-{}/{length}", length - 1)));
            Answer { status: 206, headers, body: bytes[begin..].to_vec() }
        }
    }
}

/// The storage of large files: it knows addresses, not people.
fn storage(asked: &Asked<'_>, verb: &str, rest: &[&str], state: &mut State) -> Answer {
    if asked.token.is_some() && verb != "complete" {
        return Answer::error(400, "", "only one way to authorize is allowed");
    }
    match (asked.method, verb, rest) {
        ("GET" | "HEAD", "cdn", [sha256]) => {
            let Some(bytes) = state.large(sha256) else { return Answer::empty(404) };
            let spoilt = state.spoilt.as_deref().is_some_and(|name| {
                state.repos.values().any(|repo| {
                    repo.files("main").and_then(|files| files.get(name)).is_some_and(|file| hash(file) == *sha256)
                })
            });
            match spoilt {
                true => with_range(asked, &bytes.iter().map(|byte| byte ^ 1).collect::<Vec<_>>()),
                false => with_range(asked, &bytes),
            }
        }
        ("PUT", "upload", [sha256]) if hash(asked.body) == *sha256 => {
            state.storage.insert((*sha256).to_owned(), Arc::new(asked.body.to_vec()));
            Answer::empty(200)
        }
        ("PUT", "upload", [_]) => Answer::error(400, "", "these bytes have another hash"),
        ("PUT", "upload", [sha256, number]) => {
            let number = number.parse().unwrap_or_default();
            state.parts.insert(((*sha256).to_owned(), number), asked.body.to_vec());
            let mut answer = Answer::empty(200);
            answer.headers.push(("etag", format!("\"{}\"", hash(asked.body))));
            answer
        }
        ("POST", "complete", [sha256]) => {
            let mut whole = Vec::new();
            for part in asked.json()["parts"].as_array().into_iter().flatten() {
                let number = part["partNumber"].as_u64().unwrap_or_default() as usize;
                let bytes = state.parts.remove(&((*sha256).to_owned(), number)).unwrap_or_default();
                if part["etag"] != format!("\"{}\"", hash(&bytes)) {
                    return Answer::error(400, "", "a part has another ETag");
                }
                whole.extend(bytes);
            }
            if hash(&whole) != *sha256 {
                return Answer::error(400, "", "the parts have another hash");
            }
            state.storage.insert((*sha256).to_owned(), Arc::new(whole));
            Answer::empty(200)
        }
        _ => Answer::empty(404),
    }
}

fn preupload(asked: &Asked<'_>, repo: &Repo, revision: &str) -> Answer {
    let Some(files) = repo.files(revision) else { return no_revision() };
    let decide = |file: &Value| {
        let name = file["path"].as_str().unwrap_or_default();
        let oid = files.get(name).map(|bytes| if is_large(name) { hash(bytes) } else { git_hash(bytes) });
        json!({ "path": name, "uploadMode": if is_large(name) { "lfs" } else { "regular" }, "shouldIgnore": false, "oid": oid })
    };
    let body = asked.json();
    let answers: Vec<Value> = body["files"].as_array().into_iter().flatten().map(decide).collect();
    Answer::json(&json!({ "files": answers, "commitOid": repo.resolve(revision) }))
}

fn batch(asked: &Asked<'_>, state: &State) -> Answer {
    let order = |object: &Value| {
        let sha256 = object["oid"].as_str().unwrap_or_default();
        let size = object["size"].as_u64().unwrap_or_default() as usize;
        if state.large(sha256).is_some() {
            return json!({ "oid": sha256, "size": size });
        }
        let upload = if size <= state.part_bytes {
            json!({ "href": asked.storage(&format!("upload/{sha256}?signed=yes")) })
        } else {
            let parts = 1..=size.div_ceil(state.part_bytes);
            let mut header: serde_json::Map<String, Value> = parts
                .map(|part| (format!("{part:05}"), asked.storage(&format!("upload/{sha256}/{part}")).into()))
                .collect();
            header.insert("chunk_size".to_owned(), state.part_bytes.to_string().into());
            json!({ "href": format!("http://{}/complete/{sha256}", asked.host), "header": header })
        };
        let verify = json!({ "href": format!("http://{}/verify", asked.host) });
        json!({ "oid": sha256, "size": size, "authenticated": true, "actions": { "upload": upload, "verify": verify } })
    };
    let body = asked.json();
    let objects: Vec<Value> = body["objects"].as_array().into_iter().flatten().map(order).collect();
    Answer::json(&json!({ "transfer": "basic", "objects": objects }))
}

fn commit(asked: &Asked<'_>, state: &mut State, id: &str, branch: &str) -> Answer {
    let text = String::from_utf8_lossy(asked.body).into_owned();
    let mut changes = Vec::new();
    for line in text.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { return Answer::error(400, "", "no JSON") };
        let value = &line["value"];
        let name = value["path"].as_str().unwrap_or_default().to_owned();
        match line["key"].as_str() {
            Some("header") => {
                let now = state.repos[id].resolve(branch);
                if value["parentCommit"].as_str().is_some_and(|parent| Some(parent) != now.as_deref()) {
                    return Answer::error(412, "", "A commit has happened since. Please refresh and try again.");
                }
            }
            Some("file") => {
                let content = STANDARD.decode(value["content"].as_str().unwrap_or_default()).unwrap_or_default();
                changes.push((name, Some(content)));
            }
            Some("lfsFile") => match state.large(value["oid"].as_str().unwrap_or_default()) {
                Some(bytes) => changes.push((name, Some(bytes.to_vec()))),
                None => return Answer::error(400, "", "a large file was never uploaded"),
            },
            Some("deletedFile") => changes.push((name, None)),
            _ => return Answer::error(400, "", "an unknown line"),
        }
    }
    let Some(repo) = state.repos.get_mut(id).filter(|repo| repo.resolve(branch).is_some()) else {
        return no_revision();
    };
    let sha = repo.commit(branch, changes);
    let url = format!("http://{}/{id}/commit/{sha}", asked.host);
    Answer::json(
        &json!({ "success": true, "commitOid": sha, "commitUrl": url, "hookOutput": "", "query": asked.query }),
    )
}
