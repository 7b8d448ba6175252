//! `control.json` in a run folder: where the launch that is at work there can be asked.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::control::Contact;
use crate::error::LaunchError;

/// What the file tells. Unknown fields are passed over: a newer launch may tell more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Where the control plane listens.
    pub(crate) address: SocketAddr,
    /// Where the Prometheus endpoint does, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Whether it speaks TLS.
    #[serde(default)]
    pub(crate) tls: bool,
    /// What a caller has to know. Not in the file of a job on several hosts, whose token is the user's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
}

impl Told {
    /// What a job tells that is reached like this; with the token where it is this job's `own`.
    pub(crate) fn of(contact: &Contact, metrics: Option<SocketAddr>, own: bool) -> Told {
        let nobody = SocketAddr::from(([127, 0, 0, 1], contact.port));
        let address = contact.to_string().parse().unwrap_or(nobody);
        Told { address, metrics, tls: contact.tls, token: own.then(|| contact.token.expose().to_owned()) }
    }
}

/// The file, for as long as the job is there; nobody but the job's own user may read it.
#[derive(Debug)]
pub struct ControlFile {
    path: PathBuf,
}

impl ControlFile {
    /// Writes the file, whole or not at all.
    pub(crate) fn write(path: PathBuf, told: &Told) -> Result<ControlFile, LaunchError> {
        let partial = path.with_extension("json.partial");
        let text = serde_json::to_string_pretty(told).unwrap_or_default();
        let write = || {
            // A file that is there already would keep its own mode.
            match std::fs::remove_file(&partial) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&partial)?;
            writeln!(file, "{text}")?;
            std::fs::rename(&partial, &path)
        };
        write().map_err(LaunchError::system(format!("write {}", path.display())))?;
        Ok(ControlFile { path })
    }

    /// Takes the file away, as dropping it does.
    pub(crate) fn remove(&self) {
        // What a killed launch leaves is told apart by the lock that nobody holds.
        let _ = std::fs::remove_file(&self.path);
    }

    /// What a file tells; none where there is no such file.
    pub(crate) fn read(path: &Path) -> Result<Option<Told>, LaunchError> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(LaunchError::system(format!("read {}", path.display())))?,
        };
        let read = serde_json::from_str(&text).map_err(std::io::Error::other);
        read.map(Some).map_err(LaunchError::system(format!("understand {}", path.display())))
    }
}

impl Drop for ControlFile {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_file_is_the_users_own_and_goes_with_the_job() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.json");
        assert_eq!(ControlFile::read(&path).unwrap(), None);
        std::fs::write(folder.path().join("control.json.partial"), "left behind").unwrap();
        let address = ([127, 0, 0, 1], 29500).into();
        let told = Told { address, metrics: None, tls: false, token: Some("secret".to_owned()) };
        let file = ControlFile::write(path.clone(), &told).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(ControlFile::read(&path).unwrap(), Some(told));
        drop(file);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        std::fs::write(&path, "{\"address\":1}").unwrap();
        let error = ControlFile::read(&path).unwrap_err().to_string();
        assert!(error.contains("cannot understand") && error.contains("control.json"), "{error}");
    }
}
