//! Names of the hub: repositories, revisions, commits, files. What comes from outside is looked at here before a path or an
//! address is made of it.

use std::fmt;
use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// The longest name that the hub gives to a repository.
const MAX_LETTERS: usize = 96;
/// What stays as it is in an address.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A repository: `owner/name`, or `name` alone as the first models have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepoId(String);

impl RepoId {
    /// The repository of this name, if it can be one: letters, digits, `-`, `_` and `.`, by the hub's rules.
    pub(crate) fn parse(text: &str) -> Option<RepoId> {
        let parts: Vec<&str> = text.split('/').collect();
        let ends = |part: &str| part.starts_with(['-', '.']) || part.ends_with(['-', '.']);
        let fits = |part: &&str| {
            let letters = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            !part.is_empty() && letters && !ends(part)
        };
        let fits = parts.len() <= 2 && text.len() <= MAX_LETTERS && parts.iter().all(fits);
        (fits && !text.contains("--") && !text.contains("..") && !text.ends_with(".git"))
            .then(|| RepoId(text.to_owned()))
    }

    /// What is meant by a model's name where there is no folder of that name.
    pub(crate) fn of_path(path: &Path) -> Option<RepoId> {
        RepoId::parse(path.to_str()?)
    }

    /// Owner and name; a name alone has no owner.
    pub(super) fn owner_and_name(&self) -> (Option<&str>, &str) {
        match self.0.split_once('/') {
            Some((owner, name)) => (Some(owner), name),
            None => (None, &self.0),
        }
    }

    /// The repository's folder in the cache.
    pub(super) fn folder(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
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
