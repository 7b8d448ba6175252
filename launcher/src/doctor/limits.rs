//! Limits of this process, which its workers inherit; shared memory; ports.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use zerofold_configs::DeviceKind;

use super::AskedJob;
use super::disk::space;
use super::finding::{Finding, Verdict};
use crate::format;

/// NCCL takes about 10 MiB for each pair of ranks that exchange through memory; Docker's own default is 64 MiB.
const LITTLE_SHARED_MEMORY: u64 = 512 << 20;
/// A rank needs two sockets for each other rank, its libraries, data and checkpoint files.
const FEW_FILES: u64 = 1024;
/// Threads count as processes, and a rank has dozens.
const FEW_PROCESSES: u64 = 1024;
/// Smaller files than this do not hold a checkpoint of a model of a billion parameters.
const SMALL_FILES: u64 = 16 << 30;
/// The ranges of ports that systems come with have tens of thousands.
const FEW_PORTS: u64 = 1000;

/// All checks of this file.
pub(super) fn findings(job: &AskedJob) -> Vec<Finding> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut findings = vec![
        shared_memory(space(std::path::Path::new("/dev/shm")), job),
        open_files(limit(libc::RLIMIT_NOFILE)),
        processes(limit(libc::RLIMIT_NPROC)),
        locked_memory(limit(libc::RLIMIT_MEMLOCK), job.device),
    ];
    findings.extend(address_space(limit(libc::RLIMIT_AS)));
    findings.extend(file_size(limit(libc::RLIMIT_FSIZE)));
    findings.extend(core_files(limit(libc::RLIMIT_CORE)));
    findings.push(ports(&range, loopback()));
    findings
}

/// A limit that holds now; `None` for no limit.
fn limit(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the pointer is valid for the call.
    unsafe { libc::getrlimit(resource, &mut limit) };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

fn shared_memory(space: std::io::Result<super::disk::Space>, job: &AskedJob) -> Finding {
    const HINT: &str = "NCCL exchanges through it where GPUs cannot reach each other directly, and fails with a system \
                        error when it is full; start a container with --shm-size=8g or --ipc=host";
    let several_gpus = job.device == DeviceKind::Cuda && job.ranks > 1;
    let severe = if several_gpus { Verdict::Warning } else { Verdict::Note };
    match space {
        Ok(space) => {
            let value = format!("{} at /dev/shm, {} free", format::bytes(space.total), format::bytes(space.free));
            Finding::of_system("shared memory", value).when(space.free < LITTLE_SHARED_MEMORY, severe, HINT)
        }
        Err(error) => Finding::of_system("shared memory", format!("/dev/shm: {error}")).when(true, severe, HINT),
    }
}

/// `4,096`, or `no limit`.
fn counted(limit: Option<u64>) -> String {
    limit.map_or("no limit".to_owned(), format::count)
}

/// `8.00 MiB`, or `no limit`.
fn sized(limit: Option<u64>) -> String {
    limit.map_or("no limit".to_owned(), format::bytes)
}

fn open_files(limit: Option<u64>) -> Finding {
    Finding::of_system("open files", counted(limit)).when(
        limit.is_some_and(|limit| limit < FEW_FILES),
        Verdict::Warning,
        "`ulimit -n 65536` before launch, or --ulimit nofile=65536 for a container: sockets between ranks count too",
    )
}

fn processes(limit: Option<u64>) -> Finding {
    Finding::of_system("processes", counted(limit)).when(
        limit.is_some_and(|limit| limit < FEW_PROCESSES),
        Verdict::Warning,
        "`ulimit -u 65536` before launch: every thread of every rank counts",
    )
}

fn locked_memory(limit: Option<u64>, device: DeviceKind) -> Finding {
    Finding::of_system("locked memory", sized(limit)).when(
        limit.is_some() && device == DeviceKind::Cuda,
        Verdict::Note,
        "InfiniBand between hosts needs it unlimited: `ulimit -l unlimited`, or --ulimit memlock=-1 for a container; one \
         host does without",
    )
}

fn address_space(limit: Option<u64>) -> Option<Finding> {
    limit?;
    Some(Finding::of_system("address space", sized(limit)).when(
        true,
        Verdict::Warning,
        "CUDA and libtorch reserve far more addresses than they use memory; `ulimit -v unlimited`",
    ))
}

fn file_size(limit: Option<u64>) -> Option<Finding> {
    limit?;
    Some(Finding::of_system("size of a file", sized(limit)).when(
        limit < Some(SMALL_FILES),
        Verdict::Warning,
        "a rank that writes a larger checkpoint is killed by SIGXFSZ; `ulimit -f unlimited`",
    ))
}

fn core_files(limit: Option<u64>) -> Option<Finding> {
    // None, the usual limit, costs nothing.
    let large = limit.is_none_or(|limit| limit > 1 << 30);
    large.then(|| {
        Finding::of_system("core files", sized(limit)).when(
            true,
            Verdict::Note,
            "a rank that crashes may write all of its memory to disk; `ulimit -c 0` prevents it",
        )
    })
}

/// Whether a program can meet itself on loopback.
fn loopback() -> std::io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    TcpStream::connect(listener.local_addr()?)?;
    Ok(())
}

/// `range` as the kernel writes it: the first and the last port that it hands out.
fn ports(range: &str, loopback: std::io::Result<()>) -> Finding {
    let mut numbers = range.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    let free = numbers.next().zip(numbers.next()).map(|(first, last)| (last + 1).saturating_sub(first));
    let range = range.split_whitespace().collect::<Vec<_>>().join(" to ");
    let value = match &loopback {
        Ok(()) if range.is_empty() => "loopback works".to_owned(),
        Ok(()) => format!("loopback works, {range} are handed out"),
        Err(error) => format!("127.0.0.1: {error}"),
    };
    Finding::of_system("ports", value)
        .when(
            free.is_some_and(|free| free < FEW_PORTS),
            Verdict::Warning,
            "ranks meet on ports that the system hands out; `sysctl net.ipv4.ip_local_port_range=\"32768 60999\"`",
        )
        .when(
            loopback.is_err(),
            Verdict::Problem,
            "launch and its workers speak over 127.0.0.1; `ip link set lo up`, or a sandbox or firewall forbids it",
        )
}

#[cfg(test)]
mod tests {
    use super::super::disk::Space;
    use super::*;

    #[test]
    fn shared_memory_matters_between_gpus() {
        let job = |device, ranks| AskedJob { device, ranks, folder: ".".into() };
        let docker = || Ok(Space { total: 64 << 20, free: 64 << 20, kind: 0 });
        assert_eq!(shared_memory(docker(), &job(DeviceKind::Cuda, 8)).verdict, Verdict::Warning);
        assert_eq!(shared_memory(docker(), &job(DeviceKind::Cuda, 1)).verdict, Verdict::Note);
        assert_eq!(shared_memory(docker(), &job(DeviceKind::Cpu, 2)).value, "64.0 MiB at /dev/shm, 64.0 MiB free");
        let large = Ok(Space { total: 8 << 30, free: 8 << 30, kind: 0 });
        assert_eq!(shared_memory(large, &job(DeviceKind::Cuda, 8)).verdict, Verdict::Ok);
        let absent = Err(std::io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(shared_memory(absent, &job(DeviceKind::Cuda, 8)).verdict, Verdict::Warning);
    }

    #[test]
    fn low_limits_are_told() {
        assert_eq!(open_files(Some(256)).verdict, Verdict::Warning);
        assert_eq!(open_files(Some(65536)).verdict, Verdict::Ok);
        assert_eq!(processes(Some(64)).verdict, Verdict::Warning);
        assert_eq!((processes(None).verdict, processes(None).value.as_str()), (Verdict::Ok, "no limit"));
        assert_eq!(locked_memory(Some(8 << 20), DeviceKind::Cuda).verdict, Verdict::Note);
        assert_eq!(locked_memory(Some(8 << 20), DeviceKind::Cpu).verdict, Verdict::Ok);
        assert_eq!(address_space(None), None);
        assert_eq!(address_space(Some(1 << 34)).unwrap().verdict, Verdict::Warning);
        assert_eq!(file_size(Some(1 << 20)).unwrap().verdict, Verdict::Warning);
        assert_eq!(core_files(Some(0)), None);
        assert_eq!(core_files(None).unwrap().verdict, Verdict::Note);
    }

    #[test]
    fn ports_are_counted_and_tried() {
        assert_eq!(ports("32768\t60999\n", Ok(())).verdict, Verdict::Ok);
        assert_eq!(ports("32768\t32800\n", Ok(())).verdict, Verdict::Warning);
        let refused = Err(std::io::Error::from_raw_os_error(libc::EADDRNOTAVAIL));
        assert_eq!(ports("32768\t60999\n", refused).verdict, Verdict::Problem);
        assert_eq!(ports("", Ok(())).value, "loopback works");
        assert!(loopback().is_ok());
    }
}
