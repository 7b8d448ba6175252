//! Takes out of the cache what nobody looks for any more.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What no run used for so long is removed: its rows are made anew when they are asked for again.
const UNUSED: Duration = Duration::from_secs(30 * 86_400);

/// What a killed run left behind half written. Who still writes to it changes its time.
const LEFT_BEHIND: Duration = Duration::from_secs(86_400);

/// What was removed of the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Data sets that no run used for 30 days.
    pub datasets: usize,
    /// Bytes of them that no run folder has by another name.
    pub bytes: u64,
}

/// Removes data sets and hashes of files that were not used for long (a use touches them), and leftovers of killed runs. Only
/// names that the cache itself gives are looked at; what cannot be removed stays.
pub(crate) fn tidy(cache: &Path, now: SystemTime) -> Tidied {
    let mut tidied = Tidied::default();
    let Some(user) = fs::metadata("/proc/self").ok().map(|process| process.uid()) else { return tidied };
    for folder in [cache.to_path_buf(), cache.join("digests")] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let (Some(name), Ok(known)) = (name.to_str(), entry.metadata()) else { continue };
            let hash = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let dataset = name.strip_suffix(".safetensors").is_some_and(hash);
            let limit = match name.starts_with(".tmp") {
                true => LEFT_BEHIND,
                false if dataset || hash(name) => UNUSED,
                false => continue,
            };
            // Another user's use of it may not have been noted down, so the files of others stay.
            let own = known.uid() == user;
            if own && known.is_file() && age(&known, now) > limit && fs::remove_file(entry.path()).is_ok() && dataset {
                tidied.datasets += 1;
                tidied.bytes += if known.nlink() == 1 { known.len() } else { 0 };
            }
        }
    }
    tidied
}

/// A file of the future is new.
fn age(known: &Metadata, now: SystemTime) -> Duration {
    known.modified().ok().and_then(|time| now.duration_since(time).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn what_was_not_used_for_long_goes_and_what_somebody_else_put_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        fs::create_dir(folder.path().join("digests")).unwrap();
        let hash = "0a".repeat(32);
        let days = |days: u64| now - Duration::from_secs(days * 86_400);
        let other = "0b".repeat(32);
        let files = [
            (format!("{hash}.safetensors"), days(31), false),
            (format!("{other}.safetensors"), days(29), true),
            (format!("digests/{hash}"), days(31), false),
            (format!("digests/{other}"), days(29), true),
            (".tmpAb12Cd".to_owned(), days(2), false),
            ("digests/.tmpAb12Cd".to_owned(), days(2), false),
            (".tmpEf34Gh".to_owned(), days(0), true),
            ("model.safetensors".to_owned(), days(400), true),
            ("notes.txt".to_owned(), days(400), true),
            (format!("{}.safetensors", "0c".repeat(32)), now + Duration::from_secs(86_400 * 400), true),
        ];
        for (name, time, _) in &files {
            let path = folder.path().join(name);
            fs::write(&path, "12345").unwrap();
            File::options().write(true).open(&path).unwrap().set_modified(*time).unwrap();
        }
        assert_eq!(tidy(folder.path(), now), Tidied { datasets: 1, bytes: 5 });
        for (name, _, stays) in &files {
            assert_eq!(folder.path().join(name).exists(), *stays, "{name}");
        }
        assert_eq!(tidy(&folder.path().join("none"), now), Tidied::default());
    }
}
