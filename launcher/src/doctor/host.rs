//! Kernel, processors, memory and clock.

use std::ffi::CStr;
use std::time::{SystemTime, UNIX_EPOCH};

use super::AskedJob;
use super::finding::{Finding, Verdict};
use crate::format;
use crate::memory::{machine_memory, meminfo};

/// Less free memory than this and the smallest model of the README does not train in one process.
const LITTLE_MEMORY: u64 = 2 << 30;
/// Seconds from 1970 to 2025: an earlier date is that of a clock which nobody set.
const YEAR_2025: u64 = 20089 * 86400;
/// Seconds from 1970 to 2100.
const YEAR_2100: u64 = 47482 * 86400;

/// All checks of this file.
pub(super) fn findings(job: &AskedJob) -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let online = processors_online();
    let usable = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let threads = std::env::var(crate::environment::OMP_NUM_THREADS).ok();
    let memory_text = read("/proc/meminfo");
    let available = meminfo(&memory_text, "MemAvailable");
    let date = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let mut findings = vec![
        kernel(read("/proc/sys/kernel/osrelease").trim(), &glibc()),
        processors(usable, online, job.ranks, threads.as_deref()),
        memory(machine_memory(), available),
    ];
    findings.extend(load(&read("/proc/loadavg"), usable));
    findings.extend(overcommit(&read("/proc/sys/vm/overcommit_memory")));
    findings.extend(huge_pages(&read("/sys/kernel/mm/transparent_hugepage/enabled")));
    findings.push(clock(date, is_synchronised()));
    findings
}

fn kernel(release: &str, glibc: &str) -> Finding {
    Finding::of_system("kernel", format!("Linux {release}, glibc {glibc}"))
}

fn glibc() -> String {
    // SAFETY: glibc returns a constant, zero-terminated string.
    unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) }.to_string_lossy().into_owned()
}

fn processors_online() -> u64 {
    // SAFETY: sysconf takes a number and has no effect.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1)
}

/// `usable` are left of those `online` by the control group's quota and the affinity; `threads` is OMP_NUM_THREADS.
fn processors(usable: u64, online: u64, ranks: u32, threads: Option<&str>) -> Finding {
    let value = match usable < online {
        true => format!("{usable} of {online} usable"),
        false => usable.to_string(),
    };
    let busy = threads.and_then(|threads| threads.trim().parse::<u64>().ok()).map(|it| it * u64::from(ranks));
    let value = match threads {
        Some(threads) => format!("{value}, OMP_NUM_THREADS={threads}"),
        None => value,
    };
    let few = "a quota or an affinity leaves only these to this process; `docker run --cpus`, a higher `cpu.max` or a \
               larger `--cpus-per-task` gives it more";
    let idle = format!("{ranks} ranks leave processors idle; unset OMP_NUM_THREADS and launch shares all of them out");
    let crowded = format!("{ranks} ranks share {usable} processors and take turns; fewer ranks (--nproc) are faster");
    Finding::of_system("processors", value)
        .when(usable < online, Verdict::Note, few)
        .when(busy.is_some_and(|busy| busy < usable), Verdict::Note, idle)
        .when(u64::from(ranks) > usable || busy.is_some_and(|busy| busy > usable), Verdict::Warning, crowded)
}

/// Programs that ran or waited for a processor, on average over the last minute.
fn load(text: &str, usable: u64) -> Option<Finding> {
    let average: f64 = text.split_whitespace().next()?.parse().ok()?;
    let value = format!("{average:.1} programs at work in the last minute");
    Some(Finding::of_system("load", value).when(
        average > 1.5 * usable as f64,
        Verdict::Warning,
        "others keep the processors busy: a job here is slower, and so are the rates; `top` shows who",
    ))
}

fn memory(total: Option<u64>, available: Option<u64>) -> Finding {
    let words = |bytes: Option<u64>| bytes.map_or("an unknown amount".to_owned(), format::bytes);
    // A container sees the machine's free memory, of which it may have less.
    let available = available.map(|bytes| bytes.min(total.unwrap_or(u64::MAX)));
    Finding::of_system("memory", format!("{}, {} available", words(total), words(available))).when(
        available.is_some_and(|bytes| bytes < LITTLE_MEMORY),
        Verdict::Warning,
        "end other programs, or give the container more (`docker run --memory`); `launch plan` tells what a job needs",
    )
}

/// Mode 2 refuses allocations by what could be used, not by what is.
fn overcommit(text: &str) -> Option<Finding> {
    let mode = text.trim();
    let words = match mode {
        "0" => "heuristic (0)",
        "1" => "always (1)",
        "2" => "never (2)",
        _ => return None,
    };
    Some(Finding::of_system("overcommit", words).when(
        mode == "2",
        Verdict::Warning,
        "with 2, allocations fail although memory is free: CUDA and libtorch reserve far more than they use; \
         `sysctl vm.overcommit_memory=0`",
    ))
}

fn huge_pages(text: &str) -> Option<Finding> {
    let chosen = text.split_once('[')?.1.split_once(']')?.0;
    Some(Finding::of_system("huge pages", chosen).when(
        chosen == "never",
        Verdict::Note,
        "every 4 KiB of a large tensor costs a page fault at its first use; \
         `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled` lets programs ask for larger pages",
    ))
}

/// `seconds` since 1970; whether the kernel knows its clock to be synchronised, `None` when it does not tell.
fn clock(seconds: u64, synchronised: Option<bool>) -> Finding {
    let value = match synchronised {
        Some(true) => format!("{}, synchronised", format::date(seconds)),
        Some(false) => format!("{}, not known to be synchronised", format::date(seconds)),
        None => format::date(seconds),
    };
    Finding::of_system("clock", value)
        .when(
            synchronised == Some(false),
            Verdict::Note,
            "one host does not care; logs of several hosts compare only if each runs chrony, ntpd or systemd-timesyncd",
        )
        .when(
            !(YEAR_2025..YEAR_2100).contains(&seconds),
            Verdict::Warning,
            "the date is wrong: make (cargo, pip) and TLS certificates fail by it, and files get wrong times; set it \
             (`timedatectl set-ntp true`, or `date -s`)",
        )
}

/// The kernel's own opinion; it needs no rights to ask.
fn is_synchronised() -> Option<bool> {
    // SAFETY: all zeros is a valid value of this plain C struct: it asks for no change.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid for the call.
    let status = unsafe { libc::adjtimex(&mut state) };
    (status >= 0).then_some(state.status & libc::STA_UNSYNC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(finding: Option<Finding>) -> Verdict {
        finding.unwrap().verdict
    }

    #[test]
    fn processors_are_counted_against_ranks_and_threads() {
        assert_eq!(processors(8, 8, 2, None).verdict, Verdict::Ok);
        let quota = processors(2, 64, 2, None);
        assert_eq!((quota.value.as_str(), quota.verdict), ("2 of 64 usable", Verdict::Note));
        assert_eq!(processors(2, 2, 3, None).verdict, Verdict::Warning);
        assert_eq!(processors(8, 8, 2, Some("1")).verdict, Verdict::Note);
        assert_eq!(processors(8, 8, 2, Some("8")).verdict, Verdict::Warning);
        assert_eq!(processors(8, 8, 2, Some("4")).value, "8, OMP_NUM_THREADS=4");
    }

    #[test]
    fn a_busy_machine_is_told() {
        assert_eq!(verdict(load("0.42 1.00 2.00 1/200 4711\n", 2)), Verdict::Ok);
        assert_eq!(verdict(load("15.31 15.84 13.38 9/300 4711\n", 2)), Verdict::Warning);
        assert_eq!(verdict(load("15.31 15.84 13.38 9/300 4711\n", 64)), Verdict::Ok);
        assert_eq!(load("", 2), None);
    }

    #[test]
    fn little_memory_is_told() {
        assert_eq!(memory(Some(16 << 30), Some(12 << 30)).verdict, Verdict::Ok);
        assert_eq!(memory(Some(16 << 30), Some(1 << 30)).verdict, Verdict::Warning);
        let limited = memory(Some(1 << 30), Some(60 << 30));
        assert_eq!((limited.value.as_str(), limited.verdict), ("1.00 GiB, 1.00 GiB available", Verdict::Warning));
    }

    #[test]
    fn settings_of_the_kernel_are_read_as_it_writes_them() {
        assert_eq!(verdict(overcommit("0\n")), Verdict::Ok);
        assert_eq!(verdict(overcommit("2\n")), Verdict::Warning);
        assert_eq!(overcommit(""), None);
        assert_eq!(verdict(huge_pages("always [madvise] never\n")), Verdict::Ok);
        assert_eq!(verdict(huge_pages("always madvise [never]\n")), Verdict::Note);
        assert_eq!(huge_pages(""), None);
    }

    #[test]
    fn a_clock_is_sane_and_synchronised() {
        let seconds = 1_795_501_773;
        assert_eq!(clock(seconds, Some(true)).value, "2026-11-24 06:29:33 UTC, synchronised");
        assert_eq!(clock(seconds, Some(true)).verdict, Verdict::Ok);
        assert_eq!(clock(seconds, Some(false)).verdict, Verdict::Note);
        assert_eq!(clock(17, Some(true)).verdict, Verdict::Warning);
        assert_eq!(
            [format::date(YEAR_2025), format::date(YEAR_2100)].map(|text| text[..10].to_owned()),
            ["2025-01-01", "2100-01-01"]
        );
    }
}
