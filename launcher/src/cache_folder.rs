//! Where tokenised data are kept from run to run.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use zerofold_data::DataError;

use crate::environment as names;
use crate::error::LaunchError;

/// The folder of tokenised data, and what is to be told where it is another than it should be: a cache that cannot be
/// written, on a home that is read-only, must not keep a run from starting, so the run's own folder takes its place.
pub(crate) fn datasets(output_dir: &Path) -> (PathBuf, Option<String>) {
    choose(of(|name| std::env::var(name).ok()), output_dir)
}

/// Where a disk is full.
const FULL: &str = "make room there, or name a folder of another file system by ZEROFOLD_CACHE; tokenised data take 8 bytes a token, \
                    twice while they are put together";
/// Where the run's own folder is on another file system than the cache, and full.
const FULL_RUN: &str = "make room there, or let ZEROFOLD_CACHE name a folder of the same file system: the rows are then there by a second \
                        name, and are not copied";

/// An error of tokenising, with what to do where the disk of the cache is full.
pub(crate) fn tokenising(error: DataError) -> LaunchError {
    with_room(error, FULL)
}

/// An error of putting tokenised data into the run's folder, with what to do where its disk is full.
pub(crate) fn putting(error: DataError) -> LaunchError {
    with_room(error, FULL_RUN)
}

fn with_room(error: DataError, hint: &str) -> LaunchError {
    match &error {
        DataError::Io { source, .. } if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            LaunchError::usage(error.to_string(), hint)
        }
        _ => error.into(),
    }
}

fn choose(wanted: Option<PathBuf>, output_dir: &Path) -> (PathBuf, Option<String>) {
    let own = output_dir.join("data").join("cache");
    let Some(wanted) = wanted else {
        let note =
            format!("note: neither {} nor HOME is set: tokenised data are kept in {}", names::CACHE, own.display());
        return (own, Some(note));
    };
    let usable = fs::create_dir_all(&wanted).and_then(|()| tempfile::tempfile_in(&wanted));
    match usable {
        Ok(_) => (wanted, None),
        Err(error) => {
            let (wanted, there) = (wanted.display(), own.display());
            let note = format!(
                "note: {wanted} cannot be written ({error}): tokenised data are kept in {there}; {} names another folder",
                names::CACHE
            );
            (own, Some(note))
        }
    }
}

/// `variable` gives the value of a variable; an empty one counts as none.
fn of(variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|text| !text.trim().is_empty()).map(PathBuf::from);
    let cache = set(names::CACHE).or_else(|| set(names::XDG_CACHE_HOME).map(|folder| folder.join("zerofold")));
    let cache = cache.or_else(|| set("HOME").map(|user| user.join(".cache").join("zerofold")));
    cache.map(|folder| folder.join("datasets"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_where_caches_are() {
        let folder = |set: &[(&str, &str)]| {
            let value = |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            of(value).map(|path| path.display().to_string())
        };
        assert_eq!(folder(&[("HOME", "/u")]).as_deref(), Some("/u/.cache/zerofold/datasets"));
        assert_eq!(folder(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x")]).as_deref(), Some("/x/zerofold/datasets"));
        assert_eq!(folder(&[("XDG_CACHE_HOME", "/x"), (names::CACHE, "/z")]).as_deref(), Some("/z/datasets"));
        assert_eq!(folder(&[("HOME", " ")]), None);
    }

    #[test]
    fn without_a_usable_folder_the_run_has_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let run = folder.path().join("run");
        let (place, note) = choose(Some(file.join("datasets")), &run);
        assert_eq!(place, run.join("data/cache"));
        assert!(note.unwrap().contains("cannot be written"));
        let wanted = folder.path().join("cache");
        assert_eq!(choose(Some(wanted.clone()), &run), (wanted, None));
        assert_eq!(choose(None, &run).0, run.join("data/cache"));
    }
}
