//! What a rank measures about itself.

mod profile;
mod timeline;

pub use profile::Profile;
pub use timeline::{Begun, Label, Span, Timeline, Track, Transfer};

use std::sync::atomic::{AtomicU64, Ordering};

/// The most bytes of memory shared with other ranks that this one had for itself.
static OWN_SHARED_BYTES: AtomicU64 = AtomicU64::new(0);
/// The most that was ever resident of other ranks' memory.
static FOREIGN_BYTES: AtomicU64 = AtomicU64::new(0);
/// The most of this rank's own that was resident whenever somebody looked.
static SEEN_BYTES: AtomicU64 = AtomicU64::new(0);

/// Tells that so many bytes of shared memory, from its beginning, are or were this rank's.
pub(crate) fn has_shared(bytes: u64) {
    OWN_SHARED_BYTES.fetch_max(bytes, Ordering::Relaxed);
}

/// What counts as resident here and is the other ranks': what this rank has read of their memory.
fn foreign_bytes() -> u64 {
    match OWN_SHARED_BYTES.load(Ordering::Relaxed) {
        0 => 0,
        own => status_bytes("RssShmem").saturating_sub(own),
    }
}

/// A line of `/proc/self/status` in bytes; 0 where the system does not tell.
fn status_bytes(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Resident memory of this process now, in bytes, without that of other ranks.
pub fn memory_bytes() -> u64 {
    let foreign = foreign_bytes();
    FOREIGN_BYTES.fetch_max(foreign, Ordering::Relaxed);
    let own = status_bytes("VmRSS").saturating_sub(foreign);
    SEEN_BYTES.fetch_max(own, Ordering::Relaxed);
    own
}

/// The largest resident memory this process ever had, in bytes, without that of other ranks. Over shared memory the system's
/// own maximum counts that too, so there it is at least this much: that maximum without the most that was others', or the most
/// that was seen at a step's end or a heartbeat.
pub fn peak_memory_bytes() -> u64 {
    let now = memory_bytes();
    let whole = status_bytes("VmHWM").saturating_sub(FOREIGN_BYTES.load(Ordering::Relaxed));
    whole.max(SEEN_BYTES.load(Ordering::Relaxed)).max(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_at_least_what_is_resident() {
        let now = memory_bytes();
        assert!(now > 1 << 20 && peak_memory_bytes() >= now / 2);
    }
}
