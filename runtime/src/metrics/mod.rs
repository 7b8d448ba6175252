//! What a rank measures about itself.

mod profile;
mod timeline;

pub use profile::Profile;
pub use timeline::{Begun, Label, Span, Timeline, Track, Transfer};

/// A line of `/proc/self/status` in bytes; 0 where the system does not tell.
fn status_bytes(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// Resident memory of this process now, in bytes.
pub fn memory_bytes() -> u64 {
    status_bytes("VmRSS")
}

/// The largest resident memory this process ever had, in bytes.
pub fn peak_memory_bytes() -> u64 {
    status_bytes("VmHWM")
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
