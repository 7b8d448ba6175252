//! The memory of this machine.

/// Where a control group says how much memory it may have: version 2, then version 1.
const LIMITS: [&str; 2] = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

/// Bytes of memory that this machine has, or that this container may use.
pub fn machine_memory() -> Option<u64> {
    // SAFETY: sysconf takes a number and has no effect.
    let (pages, page) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    let machine = u64::try_from(pages).ok()? * u64::try_from(page).ok()?;
    let limits = LIMITS.iter().filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok());
    Some(limits.fold(machine, u64::min))
}

/// Bytes that each of so many ranks on this machine's processors may have: an equal share.
pub fn memory_of_rank(ranks: u32) -> Option<u64> {
    Some(machine_memory()? / u64::from(ranks.max(1)))
}

/// A line of `/proc/meminfo`, such as `MemAvailable`, in bytes.
pub fn meminfo(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_counts_in_kilobytes() {
        let text = "MemTotal:       24689716 kB\nMemAvailable:   20136236 kB\nHugePages_Total:       0\n";
        assert_eq!(meminfo(text, "MemAvailable"), Some(20_136_236 * 1024));
        assert_eq!([meminfo(text, "Mem"), meminfo(text, "HugePages_Total")], [None, None]);
        assert!(machine_memory().unwrap() > 1 << 28);
    }
}
