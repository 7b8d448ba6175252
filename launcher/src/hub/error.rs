//! What can go wrong between this machine and the hub.

use std::path::Path;

use thiserror::Error;

/// What kind of failure it is; what is done next depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubTrouble {
    /// The hub has no such repository, or does not show it to this account.
    NotFound,
    /// It is not on this machine, and the hub is not to be asked.
    NotHere,
    /// The hub says no, or what it has cannot be used.
    Refused,
    /// The hub does not answer, or only with errors of its own.
    Unreachable,
    /// Something on this machine, or what arrived was not what was promised.
    Failed,
}

/// One failure: of which repository, what, and what to do.
#[derive(Clone, Debug, Error)]
#[error("{subject}: {message}\nhint: {hint}")]
pub struct HubError {
    /// The kind.
    pub trouble: HubTrouble,
    /// The repository, or the file on the disk.
    pub subject: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl HubError {
    pub(super) fn new(
        trouble: HubTrouble,
        subject: impl ToString,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> HubError {
        HubError { trouble, subject: subject.to_string(), message: message.into(), hint: hint.into() }
    }

    /// What the hub has cannot be used.
    pub(super) fn refused(subject: impl ToString, message: impl Into<String>, hint: impl Into<String>) -> HubError {
        HubError::new(HubTrouble::Refused, subject, message, hint)
    }

    /// A failed call to the file system.
    pub(super) fn disk(action: &str, path: &Path) -> impl FnOnce(std::io::Error) -> HubError {
        let (action, path) = (action.to_owned(), path.to_owned());
        move |error| {
            let hint = match error.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    "the disk is full: free some of it, or set HF_HOME to a folder on another one; what has arrived is kept \
                     and the download goes on with it"
                }
                _ => "see that the folder can be written, or set HF_HOME to another one",
            };
            HubError::new(HubTrouble::Failed, path.display(), format!("cannot {action} it: {error}"), hint)
        }
    }

    /// Whether the job could run as it was asked for, at another time or after something on this machine is mended.
    pub(crate) fn is_failure(&self) -> bool {
        matches!(self.trouble, HubTrouble::Unreachable | HubTrouble::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_folder_that_cannot_be_written() {
        let told = |kind: std::io::ErrorKind| HubError::disk("write", Path::new("/cache/x"))(kind.into()).to_string();
        let full = told(std::io::ErrorKind::StorageFull);
        assert!(full.starts_with("/cache/x: cannot write it: ") && full.contains("hint: the disk is full"), "{full}");
        assert!(told(std::io::ErrorKind::PermissionDenied).contains("hint: see that the folder can be written"));
    }
}
