//! Names of the hub: repositories, revisions, commits, files. What comes from outside is looked at here before a path or an
//! address is made of it.

use std::fmt;
use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use zerofold_configs::{HubName, is_repository_name};

/// What stays as it is in an address.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RepoKind {
    Model,
    Data,
}

/// A repository: `owner/name`, or of a model `name` alone as the first ones have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepoId {
    kind: RepoKind,
    name: String,
}

impl RepoId {
    /// The model of this name, if it can be one.
    pub(crate) fn parse(text: &str) -> Option<RepoId> {
        is_repository_name(text).then(|| RepoId { kind: RepoKind::Model, name: text.to_owned() })
    }

    /// What is meant by a model's name where there is no folder of that name.
    pub(crate) fn of_path(path: &Path) -> Option<RepoId> {
        RepoId::parse(path.to_str()?)
    }

    /// The data set that a name means.
    pub(crate) fn of_data(name: &HubName<'_>) -> RepoId {
        RepoId { kind: RepoKind::Data, name: name.id.to_owned() }
    }

    /// Owner and name; a name alone has no owner.
    pub(super) fn owner_and_name(&self) -> (Option<&str>, &str) {
        match self.name.split_once('/') {
            Some((owner, name)) => (Some(owner), name),
            None => (None, &self.name),
        }
    }

    /// What it is, in words.
    pub(super) fn noun(&self) -> &'static str {
        match self.kind {
            RepoKind::Model => "model",
            RepoKind::Data => "data set",
        }
    }

    /// The repository's folder in the cache.
    pub(super) fn folder(&self) -> String {
        format!("{}--{}", self.kinds(), self.name.replace('/', "--"))
    }

    /// The beginning of what is asked about it.
    pub(super) fn api(&self) -> String {
        format!("api/{}/{}", self.kinds(), self.name)
    }

    /// Its page, below which its files are too.
    pub(super) fn page(&self) -> String {
        match self.kind {
            RepoKind::Model => self.name.clone(),
            RepoKind::Data => format!("{}/{}", self.kinds(), self.name),
        }
    }

    /// The hub's word for all of its kind.
    fn kinds(&self) -> &'static str {
        match self.kind {
            RepoKind::Model => "models",
            RepoKind::Data => "datasets",
        }
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

/// Whether this is the whole hash of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Whether this can be a branch, a tag or a commit: it becomes a path in the cache, which it must not leave.
pub(super) fn is_revision(text: &str) -> bool {
    is_inside(text) && !text.contains(char::is_whitespace) && text.len() <= 255
}

/// Whether a file's name, as a path with slashes, stays inside its folder.
pub(super) fn is_inside(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0']);
    name.split('/').all(plain)
}

/// The name of a blob out of an ETag: without quotes and the mark of a weak one. None where it cannot be a file's name.
pub(super) fn blob_name(etag: &str) -> Option<&str> {
    let name = etag.trim().trim_start_matches("W/").trim_matches('"');
    let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    (!name.is_empty() && name.len() <= 128 && letters && !name.starts_with('.')).then_some(name)
}

/// Part of an address; slashes are escaped too.
pub(super) fn escaped(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// A file's name in an address.
pub(super) fn escaped_path(name: &str) -> String {
    name.split('/').map(escaped).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_have_the_hubs_names() {
        for name in ["gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "a/b", "meta-llama/Llama-3.2-1B", "runs/zero3"] {
            let id = RepoId::parse(name).unwrap();
            assert_eq!(id.to_string(), name);
        }
        for name in [
            "",
            "/",
            "a/",
            "/a",
            "./a",
            "../a",
            "a/b/c",
            "~/a",
            "a b",
            "a\\b",
            "a--b",
            "a..b",
            "-a",
            "a.",
            "a.git",
            "a/é",
            "/models/a",
            "a/.b",
        ] {
            assert_eq!(RepoId::parse(name), None, "{name:?}");
        }
        assert_eq!(RepoId::parse(&"a".repeat(97)), None);
        assert_eq!(RepoId::parse("a/b").unwrap().folder(), "models--a--b");
        assert_eq!(RepoId::parse("gpt2").unwrap().folder(), "models--gpt2");
        let data = RepoId::of_data(&HubName::parse("a/b@v1").unwrap());
        assert_eq!((data.folder().as_str(), data.to_string().as_str()), ("datasets--a--b", "a/b"));
        assert_eq!((data.api().as_str(), data.page().as_str()), ("api/datasets/a/b", "datasets/a/b"));
    }

    #[test]
    fn names_never_leave_their_folder() {
        for name in ["../a", "a/../../b", "/etc/passwd", "a//b", "", ".", "a\\b", "a\0b", "a/"] {
            assert!(!is_inside(name), "{name:?}");
            assert!(!is_revision(name), "{name:?}");
        }
        assert!(is_inside("config.json") && is_inside("a/b.json") && is_revision("refs/pr/1") && is_revision("main"));
        for etag in ["", "\"\"", "\"../x\"", "\"a/b\"", "..", "\".hidden\""] {
            assert_eq!(blob_name(etag), None, "{etag:?}");
        }
        assert_eq!(blob_name("W/\"abc\""), Some("abc"));
        assert_eq!(blob_name("\"0f-1\""), Some("0f-1"));
        assert!(is_commit(&"0123456789".repeat(4)) && !is_commit("main") && !is_commit(&"A".repeat(40)));
    }

    #[test]
    fn addresses_are_escaped() {
        assert_eq!(escaped("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(escaped_path("a b/c?.json"), "a%20b/c%3F.json");
    }
}
