//! What can go wrong with a store.

use crate::connect::has_credentials;
use std::error::Error as _;

use zerofold_checkpoint::CheckpointError;

/// A result whose error is a [`StoreError`] unless it says otherwise.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// No reason that a server gives is shown at greater length.
const LONGEST_REASON: usize = 300;

/// What went wrong, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A request failed for good: all that may be tried again was.
    #[error("cannot {action} {url}: {reason}\nhint: {hint}")]
    Request {
        /// What was tried, such as `read`.
        action: &'static str,
        /// The object, or the store.
        url: String,
        /// What the server or the system answered.
        reason: String,
        /// What to do.
        hint: String,
        /// Whether the server answered that nothing of this name is there.
        missing: bool,
    },
    /// The environment and the URL do not make a client.
    #[error("cannot use {url}: {reason}\nhint: {hint}")]
    Setup {
        /// The store.
        url: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The store writes over what is there though it was asked not to: no commit could be told from another run's.
    #[error(
        "the server of {url} ({endpoint}) writes over an object that is there though asked not to (If-None-Match: *), so two \
         runs could spoil each other's checkpoints\nhint: use a store with conditional puts: Amazon S3, MinIO, Ceph, R2 \
         and others have them in their newer versions"
    )]
    NoConditionalPut {
        /// The store.
        url: String,
        /// Where its server is.
        endpoint: String,
    },
    /// What is read back is not what was written.
    #[error("{url} gives back something else than was written to it\nhint: look at what answers there ({endpoint})")]
    ReadBack {
        /// The object.
        url: String,
        /// Where its server is.
        endpoint: String,
    },
    /// The manifest of another save is there.
    #[error(
        "{url} is there already, with other content: another run wrote it\nhint: give each run a prefix of its own"
    )]
    OtherRun {
        /// The manifest.
        url: String,
    },
    /// A checkpoint in the store is not what its manifest says.
    #[error(
        "checkpoint {url} is not whole: {reason}\nhint: use another step; `launch verify` names all that is wrong with this one"
    )]
    NotWhole {
        /// The step.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The files on this machine are not what their manifest says, or cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Somebody asked to give up.
    #[error("it was given up before its end")]
    Interrupted,
}

impl StoreError {
    /// What is wrong in one line, without the hint and, where the step is known anyway, without its name.
    pub fn reason(&self) -> String {
        match self {
            StoreError::NotWhole { reason, .. } => reason.clone(),
            StoreError::Checkpoint(error) => error.reason(),
            other => other.to_string().lines().next().unwrap_or_default().to_owned(),
        }
    }

    /// Whether the checkpoint itself is damaged, and no other try will make it whole.
    pub fn is_damage(&self) -> bool {
        matches!(self, StoreError::NotWhole { .. })
    }

    /// Whether nothing of this name is there.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, StoreError::Request { missing: true, .. })
    }

    /// A request that failed, with what its chain of causes tells.
    pub(crate) fn request(action: &'static str, url: &str, error: &object_store::Error) -> StoreError {
        let told = chain(error);
        let code = between(&told, "<Code>", "</Code>");
        let mut hint = hint(error, code.as_deref(), &told).to_owned();
        if code.is_none() && !has_credentials() {
            hint += "; AWS_ACCESS_KEY_ID is not set, so this machine's own credentials were asked for: that may be what failed";
        }
        let missing = matches!(error, object_store::Error::NotFound { .. }) && code.as_deref() != Some("NoSuchBucket");
        StoreError::Request { action, url: url.to_owned(), reason: reason(&told, code), hint, missing }
    }
}

/// The last cause of an error, which tells most, with how often was tried before.
fn chain(error: &object_store::Error) -> String {
    let mut last = error.source();
    while let Some(next) = last.and_then(|error| error.source()) {
        last = Some(next);
    }
    let whole = error.to_string();
    let tries = between(&whole, ", after ", " retries").map(|count| format!(" (tried again {count} times)"));
    format!("{}{}", last.map_or(whole, ToString::to_string), tries.unwrap_or_default())
}

fn reason(told: &str, code: Option<String>) -> String {
    let tries = told.rfind(" (tried again ").map_or("", |at| &told[at..]);
    let reason = match (code, between(told, "<Message>", "</Message>")) {
        (Some(code), Some(message)) => format!("{code}: {message}{tries}"),
        (Some(code), None) => format!("{code}{tries}"),
        _ => told.to_owned(),
    };
    let line = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST_REASON) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn hint(error: &object_store::Error, code: Option<&str>, told: &str) -> &'static str {
    use object_store::Error::{NotFound, PermissionDenied, Unauthenticated};
    match (error, code) {
        (_, Some("NoSuchBucket")) => "create the bucket, or look at its name and at AWS_ENDPOINT_URL",
        (_, Some("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken")) => {
            "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, for temporary ones, AWS_SESSION_TOKEN to credentials of this store"
        }
        (_, Some("PermanentRedirect" | "AuthorizationHeaderMalformed")) => "set AWS_REGION to the region of the bucket",
        (PermissionDenied { .. } | Unauthenticated { .. }, _) => {
            "these credentials need to list, read, write and delete objects there; AWS_ACCESS_KEY_ID says whose they are"
        }
        (NotFound { .. }, _) => "look at the URL: bucket and names are as the store has them",
        _ if told.contains("redirect") => "set AWS_REGION to the region of the bucket",
        _ => {
            "AWS_ENDPOINT_URL says where the store is (Amazon S3 without it), AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY who \
             asks; they are read from the environment alone"
        }
    }
}

/// What stands between two words, if both are there.
fn between(text: &str, from: &str, to: &str) -> Option<String> {
    let (_, rest) = text.split_once(from)?;
    Some(rest.split_once(to)?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Cause {
        text: &'static str,
        source: Option<Box<Cause>>,
    }

    fn told(text: &'static str, cause: Option<&'static str>) -> StoreError {
        let source = cause.map(|text| Box::new(Cause { text, source: None }));
        let source = Box::new(Cause { text, source });
        StoreError::request("read", "s3://b/p", &object_store::Error::Generic { store: "S3", source })
    }

    #[test]
    fn the_last_cause_is_the_reason() {
        let refused = told("Error performing GET http://x in 9s, after 7 retries - HTTP", Some("Connection refused"));
        let text = refused.to_string();
        assert!(
            text.starts_with("cannot read s3://b/p: Connection refused (tried again 7 times)\nhint: AWS_EN"),
            "{text}"
        );
        let body = "403: <Error><Code>InvalidAccessKeyId</Code><Message>The key\ndoes not exist</Message></Error>";
        let text = told("Error", Some(body)).to_string();
        assert!(
            text.starts_with("cannot read s3://b/p: InvalidAccessKeyId: The key does not exist\nhint: set AWS_ACCESS"),
            "{text}"
        );
        assert!(told("Error", Some("<Code>NoSuchBucket</Code>")).to_string().contains("\nhint: create the bucket"));
    }

    #[test]
    fn what_a_server_says_is_not_shown_without_end() {
        let long: &'static str = Box::leak("é ".repeat(5000).into_boxed_str());
        let text = told("Error", Some(long)).reason();
        assert!(text.chars().count() < 400 && text.ends_with('…'), "{text}");
    }
}
