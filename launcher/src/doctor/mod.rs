//! The command `doctor`: what on this machine would hurt a training job, and how to mend it.
//!
//! ```text
//! DoctorOptions → AskedJob ─┬ host, limits, disk, device_files   (this process looks)
//!                           ├ libraries ← `worker doctor`        (libtorch, driver, NCCL, GPUs)
//!                           └ rates     ← bench::measure         (`worker bench`, one process for each rank)
//!                                └→ Finding … → finding: table, what to do, exit code
//! ```

mod device_files;
mod disk;
mod finding;
mod host;
mod libraries;
mod limits;
mod rates;

use std::path::{Path, PathBuf};

use serde_json::json;
use zerofold_configs::{BenchRequest, DeviceKind, Rates, WorkerFacts};

pub use finding::{Finding, Group, Verdict};

use crate::bench::{self, BenchOptions};
use crate::error::{EXIT_FAILED, LaunchError};
use crate::terminal::Terminal;

/// Bytes that are written to try the disk: more than its own cache swallows at once; and in quick.
const DISK_TRIAL: [u64; 2] = [256 << 20, 64 << 20];

/// What the command line asks of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoctorOptions {
    /// What the job would run on, how many ranks it would have, and how it is shown.
    pub bench: BenchOptions,
    /// The folder whose disk is looked at.
    pub output_dir: PathBuf,
}

/// The job that the machine is looked at for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AskedJob {
    /// What it computes on.
    device: DeviceKind,
    /// How many ranks it has.
    ranks: u32,
    /// Where it writes.
    folder: PathBuf,
}

/// Looks at everything and prints it. Returns the exit code: 1 when the job that was asked about would not run.
///
/// # Errors
/// None of its own: what cannot be looked at is a finding.
pub fn doctor(options: &DoctorOptions, terminal: &Terminal) -> Result<u8, LaunchError> {
    let (device, ranks) = options.bench.job();
    let job = AskedJob { device, ranks, folder: options.output_dir.clone() };
    let quick = options.bench.quick;
    if !options.bench.json {
        terminal.complain(if quick {
            "looking at this machine …"
        } else {
            "looking at this machine, up to a minute …"
        });
    }
    let mut findings = host::findings(&job);
    findings.extend(limits::findings(&job));
    findings.extend(disk::findings(&job.folder, DISK_TRIAL[usize::from(quick)]));
    let facts = libraries::ask();
    let version = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    findings.extend(device_files::findings(Path::new("/dev"), &version, libraries::severity_of_files(&facts, &job)));
    findings.extend(libraries::findings(&facts, &job));
    // What does not run cannot be measured, and the reason is told already.
    let stopped = findings.iter().any(|it| it.group == Group::Libraries && it.verdict == Verdict::Problem);
    let measured = (!stopped).then(|| bench::measure(&BenchRequest { device, quick }, ranks, None));
    findings.extend(rates::findings(measured.as_ref(), &job));

    print(options, terminal, &job, &findings, (facts.as_ref().ok(), measured.as_ref().and_then(|it| it.as_ref().ok())));
    let stopped = findings.iter().any(|finding| finding.verdict == Verdict::Problem);
    Ok(if stopped { EXIT_FAILED } else { 0 })
}

fn print(
    options: &DoctorOptions,
    terminal: &Terminal,
    job: &AskedJob,
    findings: &[Finding],
    (facts, rates): (Option<&WorkerFacts>, Option<&Rates>),
) {
    if options.bench.json {
        let answer = json!({
            "job": { "device": job.device, "num_processes": job.ranks, "output_dir": job.folder },
            "findings": findings,
            "worker": facts,
            "rates": rates,
        });
        terminal.result(&serde_json::to_string_pretty(&answer).unwrap_or_default());
        return;
    }
    finding::lines(findings).iter().for_each(|line| terminal.result(line));
    let ranks = crate::format::plural(u64::from(job.ranks), "rank");
    terminal.result(&format!("\n{} for {ranks} on {}", finding::summary(findings), job.device));
}
