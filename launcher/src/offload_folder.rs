//! Checks of the folder for optimizer state in files, before anything is started.

use std::path::Path;

use zerofold_configs::{Offload, Resolved};

use crate::error::LaunchError;
use crate::report::quote;

/// Checks that optimizer state which is to lie in files has a folder to lie in. It is never made here: the folder of a
/// mistyped path would lie on another disk than the one that was meant.
///
/// # Errors
/// [`LaunchError::OffloadFolder`] where there is no such folder, or no file can be made in it.
pub fn check(config: &Resolved) -> Result<(), LaunchError> {
    let Offload::Files(path) = &config.offload_optimizer else { return Ok(()) };
    let fail = |message: String, hint: String| {
        let place = config.provenance.get("offload_optimizer").cloned().unwrap_or_default();
        Err(LaunchError::OffloadFolder { place, path: path.clone(), message, hint })
    };
    if !path.exists() {
        let hint = format!("if the path is right, make the folder: mkdir -p {}", quote(path));
        return fail("there is no such folder".to_owned(), hint);
    }
    if !path.is_dir() {
        return fail("this is a file".to_owned(), "give a folder on a fast disk".to_owned());
    }
    match unnamed_file(path) {
        Ok(()) => Ok(()),
        Err(error) => {
            let hint = "give a folder on a fast disk in which you may write".to_owned();
            fail(format!("no file can be made in it: {error}"), hint)
        }
    }
}

/// Makes a file as the workers do, which leaves nothing behind.
fn unnamed_file(folder: &Path) -> std::io::Result<()> {
    tempfile::tempfile_in(folder).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_configs::{Inputs, resolve};

    #[test]
    fn the_folder_must_be_there_and_is_never_made() {
        let folder = tempfile::tempdir().unwrap();
        let check = |path: &Path| {
            let flags = [("offload_optimizer_device", "nvme"), ("offload_optimizer_nvme_path", path.to_str().unwrap())];
            let flags = flags.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
            let inputs = Inputs { config: Some("zero3.yaml".to_owned()), flags, ..Inputs::default() };
            super::check(&resolve(&inputs).unwrap()).map_err(|error| error.to_string())
        };
        assert_eq!(check(folder.path()), Ok(()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was left");
        let missing = folder.path().join("no such/place");
        let expected = format!(
            "flag --offload_optimizer_nvme_path: offload_optimizer_nvme_path is {path}: there is no such folder\n\
             hint: if the path is right, make the folder: mkdir -p '{path}'",
            path = missing.display()
        );
        assert_eq!(check(&missing), Err(expected));
        assert!(!missing.exists() && !folder.path().join("no such").exists());
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(check(&file).unwrap_err().contains("this is a file\nhint: give a folder"));
        // Nobody, not even root, makes files there.
        let refused = check(Path::new("/proc")).unwrap_err();
        assert!(refused.contains("/proc: no file can be made in it: ") && refused.contains("\nhint: "), "{refused}");
    }
}
