//! Where a store of checkpoints is.

use serde::{Deserialize, Serialize};

/// A bucket of an S3-speaking store and what the names in it begin with: `s3://BUCKET/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StoreUrl {
    bucket: String,
    prefix: String,
}

impl StoreUrl {
    /// What it has to be, to follow "it must be".
    pub const WORDS: &'static str = "s3://BUCKET or s3://BUCKET/PREFIX, the only kind of store there is (a bucket's name has 3 to 63 letters, digits, `.`, \
         `-` or `_`; a prefix no spaces, no `..` and no empty parts)";

    /// Reads `s3://BUCKET/PREFIX`, a slash at the end or none; nothing for other schemes, and for names that stores and paths
    /// read in more than one way.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.trim().strip_prefix("s3://")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let plain =
            |text: &str, others: &[u8]| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || others.contains(&byte));
        let is_bucket = (3..=63).contains(&bucket.len()) && plain(bucket, b".-_");
        let is_segment = |segment: &str| !matches!(segment, "" | "." | "..") && plain(segment, b".-_=+@,!");
        let is_prefix = prefix.len() <= 512 && (prefix.is_empty() || prefix.split('/').all(is_segment));
        (is_bucket && is_prefix).then(|| StoreUrl { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    /// The bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// What names begin with, without a slash at either end; may be empty.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl std::fmt::Display for StoreUrl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let StoreUrl { bucket, prefix } = self;
        match prefix.is_empty() {
            true => write!(formatter, "s3://{bucket}"),
            false => write!(formatter, "s3://{bucket}/{prefix}"),
        }
    }
}

impl From<StoreUrl> for String {
    fn from(url: StoreUrl) -> Self {
        url.to_string()
    }
}

impl TryFrom<String> for StoreUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        StoreUrl::parse(&text).ok_or_else(|| format!("{text:?} must be {}", StoreUrl::WORDS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_scheme_and_plain_names() {
        let parts = |text: &str| StoreUrl::parse(text).map(|url| (url.bucket, url.prefix));
        let found = |bucket: &str, prefix: &str| Some((bucket.to_owned(), prefix.to_owned()));
        assert_eq!(parts("s3://models/runs/first"), found("models", "runs/first"));
        assert_eq!(parts(" s3://models/runs/first/ "), found("models", "runs/first"));
        assert_eq!(parts("s3://models"), found("models", ""));
        assert_eq!(parts("s3://models/"), found("models", ""));
        for text in [
            "gs://models/runs",
            "az://models/runs",
            "s3a://models/runs",
            "/models/runs",
            "s3://",
            "s3:///runs",
            "s3://models//runs",
            "s3://models/../other",
            "s3://models/./runs",
            "s3://models/a b",
            "s3://models/a?b",
            "s3://models/a%2fb",
            "s3://mo dels/a",
        ] {
            assert_eq!(parts(text), None, "{text}");
        }
        assert_eq!(StoreUrl::parse("s3://models/runs/first/").unwrap().to_string(), "s3://models/runs/first");
    }
}
