//! libtorch, the driver, GPUs and NCCL, as `worker doctor` sees them.

use std::process::Command;
use std::time::Duration;

use zerofold_configs::{Answer, DeviceKind, DriverFacts, GpuFacts, NcclFacts, WorkerFacts};

use super::AskedJob;
use super::finding::{Finding, Group, Verdict};
use crate::worker_command::find_worker;
use crate::{errand, format};

/// A driver that hangs is a finding too; one that starts many GPUs takes seconds.
const LIMIT: Duration = Duration::from_secs(60);
/// A GPU with less of its memory free is in use by somebody.
const MOSTLY_FREE: f64 = 0.9;

/// Asks the worker. An error's last line is what to do.
pub(super) fn ask() -> Result<WorkerFacts, String> {
    let worker = find_worker().map_err(|error| error.to_string())?;
    let mut command = Command::new(&worker);
    command.arg("doctor");
    let name = worker.display();
    let answer = errand::run(vec![command], LIMIT).map_err(|error| match error.contains("\nhint: ") {
        true => error,
        false => format!("{name}: {error}\nhint: {}", what_helps(&error)),
    })?;
    serde_json::from_str(answer.first().map_or("", String::as_str)).map_err(|error| {
        format!(
            "{name} answers otherwise: {error}\nhint: build launch and worker from one source (scripts/launch does)"
        )
    })
}

/// What the loader, or silence, means.
fn what_helps(error: &str) -> &'static str {
    if error.contains("error while loading shared libraries") {
        "the worker was built with a libtorch that is no longer where it was, or lacks this library of it: scripts/launch \
         builds it anew; for a libtorch with CUDA, scripts/setup --cuda"
    } else if error.contains("GLIBC") {
        "this system's glibc is older than that of the machine that built the worker: build it here (scripts/launch)"
    } else if error.contains("did not answer") {
        "the NVIDIA driver may hang: see whether `nvidia-smi` answers; CUDA_VISIBLE_DEVICES= (empty) leaves GPUs out"
    } else {
        "`worker doctor` by itself shows the same; ZEROFOLD_LOG=debug tells more"
    }
}

/// How bad it is when device files are missing: where the driver reaches its GPUs, it takes another way to them.
pub(super) fn severity_of_files(facts: &Result<WorkerFacts, String>, job: &AskedJob) -> Verdict {
    match facts {
        Ok(WorkerFacts { driver: Answer::Value(_), .. }) => Verdict::Ok,
        _ if job.device == DeviceKind::Cuda => Verdict::Problem,
        _ => Verdict::Note,
    }
}

/// All checks of this file.
pub(super) fn findings(facts: &Result<WorkerFacts, String>, job: &AskedJob) -> Vec<Finding> {
    let facts = match facts {
        Ok(facts) => facts,
        // Without a worker nothing runs, whatever the device.
        Err(error) => return vec![Finding::of_error(Group::Libraries, "worker", error, Verdict::Problem)],
    };
    let on_gpus = job.device == DeviceKind::Cuda;
    // A worker for the CPU, without GPUs and what belongs to them, is as it should be where nobody asks for GPUs.
    let for_cpu = !on_gpus && facts.libtorch_cuda.is_none();
    let severe = match on_gpus {
        true => Verdict::Problem,
        false if for_cpu => Verdict::Ok,
        false => Verdict::Note,
    };
    let mut findings = vec![libtorch(facts, on_gpus)];
    for obstacle in &facts.obstacles {
        if !for_cpu {
            findings.push(Finding::of_error(Group::Libraries, "GPUs", obstacle, severe));
        }
    }
    findings.extend(match &facts.driver {
        Answer::Value(driver) => gpus(driver, job),
        Answer::Error(error) => vec![Finding::of_error(Group::Libraries, "driver", error, severe)],
    });
    // One rank talks to nobody.
    let severe = if on_gpus && job.ranks == 1 { Verdict::Note } else { severe };
    findings.extend(match &facts.nccl {
        Answer::Value(nccl) => nccl_findings(nccl, &facts.driver, severe),
        Answer::Error(error) => vec![Finding::of_error(Group::Libraries, "NCCL", error, severe)],
    });
    for choice in facts.attention.iter().filter(|choice| choice.device == job.device) {
        let what = format!("attention, {}", choice.dtype);
        findings.push(Finding::new(Group::Libraries, what, choice.kernel.clone()).when(
            choice.kernel == "math",
            Verdict::Warning,
            "libtorch has no fused kernel here: attention holds the scores of all pairs of positions, so memory grows with \
             the square of max_length",
        ));
    }
    findings
}

fn libtorch(facts: &WorkerFacts, on_gpus: bool) -> Finding {
    let cuda = facts.libtorch_cuda.as_ref().map_or("for the CPU".to_owned(), |version| format!("for CUDA {version}"));
    let value = format!("{} {cuda}, {} instructions", facts.libtorch, facts.processor);
    Finding::new(Group::Libraries, "libtorch", value).when(
        !on_gpus && facts.processor == "DEFAULT",
        Verdict::Warning,
        "the processor offers no AVX2, or a virtual machine hides it: let it pass the host's processor through",
    )
}

fn gpus(driver: &DriverFacts, job: &AskedJob) -> Vec<Finding> {
    let on_gpus = job.device == DeviceKind::Cuda;
    let count = driver.devices.len();
    let value = format!("for CUDA up to {}, {}", driver.cuda, format::plural(count as u64, "GPU"));
    let mut findings = vec![Finding::new(Group::Libraries, "driver", value).when(
        on_gpus && job.ranks as usize > count,
        Verdict::Problem,
        format!("every rank needs a GPU: --nproc {count}, or let CUDA_VISIBLE_DEVICES name more"),
    )];
    findings.extend(driver.devices.iter().map(|device| gpu(device, on_gpus)));
    if count > 1 {
        findings.push(peers(&driver.devices));
    }
    findings
}

fn gpu(device: &GpuFacts, on_gpus: bool) -> Finding {
    let hint =
        |error: &String| error.split_once("\nhint: ").map_or(error.clone(), |(what, hint)| format!("{what}: {hint}"));
    let memory = match &device.free_memory {
        Answer::Value(free) => format!("{} of {} free", format::bytes(*free), format::bytes(device.total_memory)),
        Answer::Error(error) => format!("{}, {error}", format::bytes(device.total_memory)),
    };
    let value = format!("{}, compute capability {}, {memory}", device.name, device.capability);
    let in_use = match device.free_memory {
        Answer::Value(free) => (free as f64) < MOSTLY_FREE * device.total_memory as f64,
        Answer::Error(_) => false,
    };
    let severe = if on_gpus { Verdict::Problem } else { Verdict::Note };
    Finding::new(Group::Libraries, format!("GPU {}", device.index), value)
        .when(
            in_use,
            Verdict::Note,
            "somebody uses its memory: `nvidia-smi` lists the processes; gpu_ids chooses others",
        )
        .when(
            device.without_bfloat16.is_some(),
            if on_gpus { Verdict::Warning } else { Verdict::Note },
            device.without_bfloat16.as_ref().map_or(String::new(), hint),
        )
        .when(
            matches!(device.free_memory, Answer::Error(_)),
            severe,
            "CUDA does not start on it: `nvidia-smi -q` shows its state and compute mode",
        )
        .when(device.unusable.is_some(), severe, device.unusable.as_ref().map_or(String::new(), hint))
}

/// Which GPUs read each other's memory directly.
fn peers(devices: &[GpuFacts]) -> Finding {
    let without = |device: &GpuFacts| {
        let others = devices.iter().map(|other| other.index).filter(|&other| other != device.index);
        let missing: Vec<String> =
            others.filter(|other| !device.peers.contains(other)).map(|other| other.to_string()).collect();
        (!missing.is_empty()).then(|| format!("GPU {} not {}", device.index, missing.join(", ")))
    };
    let missing: Vec<String> = devices.iter().filter_map(without).collect();
    let value = match missing.is_empty() {
        true => "every GPU reads every other directly".to_owned(),
        false => missing.join("; "),
    };
    Finding::new(Group::Libraries, "peer access", value).when(
        !missing.is_empty(),
        Verdict::Note,
        "NCCL goes through host memory and /dev/shm between these, which is slower; `nvidia-smi topo -p2p r` tells why \
         (virtual machines and ACS of the PCI bus often forbid it)",
    )
}

fn nccl_findings(nccl: &NcclFacts, driver: &Answer<DriverFacts>, severe: Verdict) -> Vec<Finding> {
    let mut findings = vec![Finding::new(Group::Libraries, "NCCL", nccl.version.clone())];
    if let Some(error) = &nccl.without_id {
        findings.push(Finding::of_error(Group::Libraries, "NCCL's id", error, severe));
    }
    if let Some(error) = &nccl.without_communicator {
        // Without a driver this only follows, and that is told already.
        let severe = if matches!(driver, Answer::Error(_)) { severe.min(Verdict::Note) } else { severe };
        findings.push(Finding::of_error(Group::Libraries, "NCCL's communicator", error, severe));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_configs::{AttentionChoice, ElementType};

    fn job(device: DeviceKind, ranks: u32) -> AskedJob {
        AskedJob { device, ranks, folder: ".".into() }
    }

    fn card(index: usize, peers: &[usize]) -> GpuFacts {
        GpuFacts {
            index,
            name: "NVIDIA H100".to_owned(),
            bus_id: format!("0000:0{index}:00.0"),
            capability: "9.0".to_owned(),
            total_memory: 80 << 30,
            free_memory: Answer::Value(79 << 30),
            peers: peers.to_vec(),
            without_bfloat16: None,
            unusable: None,
        }
    }

    fn worker(devices: Vec<GpuFacts>) -> WorkerFacts {
        WorkerFacts {
            libtorch: "2.13.0".to_owned(),
            libtorch_cuda: Some("13.0".to_owned()),
            processor: "AVX512".to_owned(),
            driver: Answer::Value(DriverFacts { cuda: "13.0".to_owned(), devices }),
            nccl: Answer::Value(NcclFacts {
                version: "2.29.7".to_owned(),
                without_id: None,
                without_communicator: None,
            }),
            obstacles: Vec::new(),
            attention: vec![AttentionChoice {
                device: DeviceKind::Cuda,
                dtype: ElementType::Bfloat16,
                kernel: "flash".to_owned(),
            }],
        }
    }

    fn worst(facts: WorkerFacts, job: &AskedJob) -> (Verdict, String) {
        let findings = findings(&Ok(facts), job);
        let worst = findings.iter().max_by_key(|it| it.verdict).unwrap();
        (worst.verdict, worst.hint.clone().unwrap_or_default())
    }

    #[test]
    fn a_good_machine_is_well() {
        let facts = worker(vec![card(0, &[1]), card(1, &[0])]);
        assert_eq!(worst(facts, &job(DeviceKind::Cuda, 2)).0, Verdict::Ok);
    }

    #[test]
    fn what_is_missing_stops_a_job_on_gpus_alone() {
        let mut facts = worker(Vec::new());
        facts.driver = Answer::Error("no driver\nhint: install it".to_owned());
        let mut without_communicator = facts.clone();
        without_communicator.nccl = Answer::Value(NcclFacts {
            version: "2.29.7".to_owned(),
            without_id: None,
            without_communicator: Some("CUDA failed\nhint: look".to_owned()),
        });
        for facts in [facts, without_communicator] {
            assert_eq!(worst(facts.clone(), &job(DeviceKind::Cuda, 2)), (Verdict::Problem, "install it".to_owned()));
            assert_eq!(worst(facts, &job(DeviceKind::Cpu, 2)).0, Verdict::Note);
        }
        let mut facts = worker(vec![card(0, &[1]), card(1, &[0])]);
        facts.nccl = Answer::Error("no NCCL\nhint: install NCCL".to_owned());
        assert_eq!(worst(facts.clone(), &job(DeviceKind::Cuda, 2)), (Verdict::Problem, "install NCCL".to_owned()));
        assert_eq!(worst(facts, &job(DeviceKind::Cuda, 1)), (Verdict::Note, "install NCCL".to_owned()));
    }

    #[test]
    fn a_worker_for_the_cpu_matters_only_to_a_job_on_gpus() {
        let mut facts = worker(vec![card(0, &[])]);
        facts.libtorch_cuda = None;
        facts.obstacles = vec!["built for the CPU\nhint: build it with CUDA".to_owned()];
        assert_eq!(
            worst(facts.clone(), &job(DeviceKind::Cuda, 1)),
            (Verdict::Problem, "build it with CUDA".to_owned())
        );
        assert_eq!(worst(facts.clone(), &job(DeviceKind::Cpu, 1)).0, Verdict::Ok);
        facts.driver = Answer::Error("no driver\nhint: install it".to_owned());
        assert_eq!(worst(facts, &job(DeviceKind::Cpu, 1)).0, Verdict::Ok);
    }

    #[test]
    fn missing_device_files_matter_unless_the_driver_finds_its_way() {
        let mut facts = worker(vec![card(0, &[])]);
        let cuda = job(DeviceKind::Cuda, 1);
        assert_eq!(severity_of_files(&Ok(facts.clone()), &cuda), Verdict::Ok);
        facts.driver = Answer::Error("no driver".to_owned());
        assert_eq!(severity_of_files(&Ok(facts.clone()), &cuda), Verdict::Problem);
        assert_eq!(severity_of_files(&Ok(facts), &job(DeviceKind::Cpu, 1)), Verdict::Note);
        assert_eq!(severity_of_files(&Err("no worker".to_owned()), &cuda), Verdict::Problem);
    }

    #[test]
    fn cards_are_judged_one_by_one() {
        let mut facts = worker(vec![card(0, &[]), card(1, &[])]);
        let (verdict, hint) = worst(facts.clone(), &job(DeviceKind::Cuda, 2));
        assert!(verdict == Verdict::Note && hint.contains("host memory"), "{hint}");
        assert_eq!(peers(&[card(0, &[1]), card(1, &[0, 2]), card(2, &[])]).value, "GPU 0 not 2; GPU 2 not 0, 1");
        let (verdict, hint) = worst(facts.clone(), &job(DeviceKind::Cuda, 3));
        assert!(verdict == Verdict::Problem && hint.contains("--nproc 2"), "{hint}");
        let Answer::Value(driver) = &mut facts.driver else { panic!() };
        driver.devices[1].without_bfloat16 = Some("bfloat16 needs 8.0\nhint: take fp16".to_owned());
        let found = worst(facts.clone(), &job(DeviceKind::Cuda, 2));
        assert_eq!(found, (Verdict::Warning, "bfloat16 needs 8.0: take fp16".to_owned()));
        let Answer::Value(driver) = &mut facts.driver else { panic!() };
        driver.devices[0].unusable = Some("too old\nhint: another libtorch".to_owned());
        assert_eq!(worst(facts, &job(DeviceKind::Cuda, 2)), (Verdict::Problem, "too old: another libtorch".to_owned()));
    }

    #[test]
    fn a_worker_that_cannot_start_is_a_problem_with_the_loaders_words() {
        let error = "worker 0 exited with code 127: worker: error while loading shared libraries: libtorch_cuda.so: cannot \
                     open shared object file: No such file or directory";
        assert!(what_helps(error).contains("scripts/setup --cuda"));
        let facts = Err(format!("{error}\nhint: {}", what_helps(error)));
        let found = findings(&facts, &job(DeviceKind::Cpu, 2));
        assert_eq!((found.len(), found[0].verdict), (1, Verdict::Problem));
        assert!(found[0].value.contains("libtorch_cuda.so"), "{found:?}");
    }
}
