//! Points at which tests end or stop a process, to see that no checkpoint is lost by it.
//!
//! `ZEROFOLD_FAULT=WHO@POINT#COUNT=ACTION`: when process WHO (a rank, `launch`, or `all`) reaches POINT for the COUNT-th time, it
//! is killed (`kill`) or stopped (`stop`), as the system or a person might do at any time. Without the variable nothing happens.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Before a rank begins to write its part.
pub const BEGIN: &str = "begin";
/// Before each piece that a rank writes.
pub const WRITING: &str = "writing";
/// A rank's part is synced to disk, and `launch` does not know yet.
pub const WRITTEN: &str = "written";
/// `launch` has all parts, and no manifest is there.
pub const COLLECTED: &str = "collected";
/// The manifest is there, and nobody was told.
pub const PUBLISHED: &str = "published";
/// A checkpoint that need not stay has lost its manifest, and nothing else.
pub const DELETING: &str = "deleting";
/// Before each piece of a checkpoint that `launch` sends to a store.
pub const UPLOADING: &str = "uploading";
/// All files of a checkpoint are in the store, and its manifest is not.
pub const UPLOADED: &str = "uploaded";
/// A checkpoint in the store that need not stay has lost its manifest, and nothing else.
pub const DELETING_STORED: &str = "deleting-stored";

/// A model's files are written and synced, and not read back yet.
pub const EXPORTED: &str = "exported";

/// All of them.
pub const POINTS: [&str; 10] =
    [BEGIN, WRITING, WRITTEN, COLLECTED, PUBLISHED, DELETING, UPLOADING, UPLOADED, DELETING_STORED, EXPORTED];

struct Fault {
    point: String,
    count: u64,
    signal: libc::c_int,
}

/// This process has reached a point.
pub fn reach(point: &str) {
    static FAULT: OnceLock<Option<Fault>> = OnceLock::new();
    static REACHED: AtomicU64 = AtomicU64::new(0);
    let own = || read(&std::env::var("ZEROFOLD_FAULT").ok()?, &std::env::var("RANK").unwrap_or("launch".to_owned()));
    if let Some(fault) = FAULT.get_or_init(own)
        && fault.point == point
        && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == fault.count
    {
        // SAFETY: takes numbers only.
        unsafe { libc::kill(libc::getpid(), fault.signal) };
    }
}

/// What `text` asks of the process `who`; nothing where it is not understood.
fn read(text: &str, who: &str) -> Option<Fault> {
    let (whom, rest) = text.split_once('@')?;
    let (place, action) = rest.split_once('=')?;
    let (point, count) = place.split_once('#').unwrap_or((place, "1"));
    let signal = match action {
        "kill" => libc::SIGKILL,
        "stop" => libc::SIGSTOP,
        _ => return None,
    };
    let meant = whom == who || whom == "all" && who != "launch";
    meant.then_some(Fault { point: point.to_owned(), count: count.parse().ok()?, signal })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_for_whom_they_name() {
        let found = |text: &str, who: &str| read(text, who).map(|fault| (fault.point, fault.count, fault.signal));
        let written = Some(("written".to_owned(), 2, libc::SIGKILL));
        assert_eq!(found("1@written#2=kill", "1"), written);
        assert_eq!(found("all@written#2=kill", "0"), written);
        assert_eq!(found("all@written#2=kill", "launch"), None);
        assert_eq!(found("launch@published=stop", "launch"), Some(("published".to_owned(), 1, libc::SIGSTOP)));
        for other in ["", "1@written#2=kill", "0@written#x=kill", "0@written=explode", "0@written"] {
            assert_eq!(found(other, "0"), None, "{other}");
        }
    }
}
