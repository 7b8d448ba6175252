//! What a machine has: libraries that are missing or have other names, devices that are missing, taken or too old.

use crate::common::stand_in;
use crate::ranks::{Job, Rank};
use crate::task::Task;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use zerofold_configs::ElementType;
use zerofold_runtime::gpu::{self, GpuError};

/// What a rank is asked, in its own process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Question {
    /// Whether there are a driver, devices, and NCCL.
    Libraries,
    /// How NCCL is found.
    Nccl,
    /// What devices there are.
    Facts,
    /// Whether the device computes in 16 bits.
    Compute,
    /// Whether a local rank beyond the devices has one.
    Beyond,
    /// Whether two processes may have one device.
    Taken,
}

impl Question {
    pub(crate) fn answer(self, rank: &Rank) -> Value {
        match self {
            Question::Libraries => libraries(),
            Question::Nccl => nccl(),
            Question::Facts => serde_json::to_value(gpu::facts().unwrap()).unwrap(),
            Question::Compute => compute(),
            Question::Beyond => beyond(),
            Question::Taken => taken(rank),
        }
    }
}

/// The error's variant and its text.
fn told<T>(result: Result<T, GpuError>) -> (String, String) {
    match result {
        Ok(_) => ("Ok".to_owned(), String::new()),
        Err(error) => {
            let variant = format!("{error:?}");
            let end = variant.find([' ', '(']).unwrap_or(variant.len());
            (variant[..end].to_owned(), error.to_string())
        }
    }
}

fn libraries() -> Value {
    json!([told(gpu::facts()), told(gpu::require_driver()), told(gpu::require_nccl())])
}

const STARTS: &str = "NCCL_TEST_STARTS";

/// Each start of the process leaves a line in a file.
fn nccl() -> Value {
    let starts = std::env::var_os(STARTS).unwrap();
    writeln!(std::fs::File::options().create(true).append(true).open(&starts).unwrap(), "start").unwrap();
    let found = told(gpu::require_nccl());
    // Once found it stays found, though the link is gone.
    let again = told(gpu::require_nccl());
    let version = (found.0 == "Ok").then(|| gpu::nccl_version().unwrap());
    json!({
        "found": found,
        "again": again,
        "version": version,
        "starts": std::fs::read_to_string(&starts).unwrap().lines().count(),
    })
}

fn compute() -> Value {
    let facts = gpu::facts().unwrap();
    let check = |element_type, tf32| told(gpu::check_compute(&facts.devices[0], element_type, tf32));
    json!([check(ElementType::Bfloat16, false), check(ElementType::Float16, false), check(ElementType::Float32, true)])
}

fn beyond() -> Value {
    let facts = gpu::facts().unwrap();
    json!([told(gpu::claim(&facts, 1, false)), told(gpu::claim(&facts, 2, false))])
}

/// Rank 0 has device 0; rank 1 tries to have it too.
fn taken(rank: &Rank) -> Value {
    let facts = gpu::facts().unwrap();
    if rank.rank == 0 {
        let claimed = gpu::claim(&facts, 0, false).unwrap();
        rank.tell("taken");
        rank.hear("tried");
        let free = claimed.free_memory().unwrap();
        drop(claimed);
        rank.tell("given back");
        return json!(free);
    }
    rank.hear("taken");
    let exclusive = told(gpu::claim(&facts, 0, false));
    let shared = told(gpu::claim(&facts, 0, true));
    let other = told(gpu::claim(&facts, 1, false));
    rank.tell("tried");
    rank.hear("given back");
    json!([exclusive, shared, other, told(gpu::claim(&facts, 0, false))])
}

fn answer(job: Job) -> Value {
    job.run().remove(0)
}

fn assert_told(told: &Value, variant: &str, parts: &[&str]) {
    assert_eq!(told[0], variant, "{told}");
    let text = told[1].as_str().unwrap();
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
}

/// A folder in which the stand-in has this name only.
fn folder_with(name: Option<&str>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    if let Some(name) = name {
        symlink(stand_in::folder().join("libnccl.so"), folder.path().join(name)).unwrap();
    }
    folder
}

#[test]
fn a_machine_without_any_library_has_errors_with_hints() {
    let folder = folder_with(None);
    let answers = answer(Job::new(1, Task::Machine(Question::Libraries)).with("LD_LIBRARY_PATH", folder.path()));
    assert_told(&answers[0], "NoDriver", &["libcuda.so.1", "hint: `nvidia-smi`", "--use_cpu true"]);
    assert_told(&answers[1], "NoDriver", &[]);
    assert_told(&answers[2], "NoNccl", &["libnccl.so.2", "hint: `scripts/setup --cuda`"]);
}

#[test]
fn a_driver_without_devices_is_an_error_with_a_hint() {
    let job = Job::new(1, Task::Machine(Question::Libraries)).with("ZEROFOLD_STAND_IN_FAIL", "no-device");
    let answers = answer(job.with("CUDA_VISIBLE_DEVICES", "7"));
    let parts = ["finds no GPU (CUDA_VISIBLE_DEVICES=7)", "hint: `nvidia-smi -L`", "--use_cpu true"];
    assert_told(&answers[0], "NoDevice", &parts);
    assert_told(&answers[1], "NoDevice", &parts);
    assert_told(&answers[2], "Ok", &[]);
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

/// Asks how NCCL is found with that folder on the library path.
fn nccl_in(folder: &Path, link: Option<&Path>) -> (Value, bool) {
    let counted = tempfile::tempdir().unwrap();
    let job = Job::new(1, Task::Machine(Question::Nccl));
    let temporary = job.temporary();
    let job = job.with("LD_LIBRARY_PATH", folder).with(STARTS, counted.path().join("starts"));
    let job = match link {
        Some(link) => job.with("ZEROFOLD_NCCL_LINK", link),
        None => job,
    };
    let mut running = job.start();
    running.wait_for_ends();
    (running.outcome(0).unwrap(), is_empty(&temporary))
}

#[test]
fn nccl_is_found_by_its_versioned_name_after_one_restart() {
    let folder = folder_with(Some("libnccl.so.2"));
    let (answer, is_clean) = nccl_in(folder.path(), None);
    assert_told(&answer["found"], "Ok", &[]);
    assert_told(&answer["again"], "Ok", &[]);
    assert_eq!(answer["version"], json!([2, 29, 7]));
    assert_eq!(answer["starts"], 2, "started once again");
    assert!(is_clean, "the link is left behind");
}

#[test]
fn nccl_by_its_plain_name_needs_no_restart() {
    let folder = folder_with(Some("libnccl.so"));
    let (answer, is_clean) = nccl_in(folder.path(), None);
    assert_told(&answer["found"], "Ok", &[]);
    assert_eq!(answer["starts"], 1);
    assert!(is_clean);
}

/// What a restarted program sees whose loader does not look at the link.
#[test]
fn a_restart_that_did_not_help_is_not_repeated() {
    let folder = folder_with(Some("libnccl.so.2"));
    let link = tempfile::tempdir().unwrap();
    let (answer, is_clean) = nccl_in(folder.path(), Some(link.path()));
    assert_told(&answer["found"], "NoNccl", &["hint:"]);
    assert_told(&answer["again"], "NoNccl", &[]);
    assert_eq!(answer["starts"], 1);
    assert!(is_clean && !link.path().exists(), "the link is left behind");
}

#[test]
fn no_nccl_of_any_name_is_no_reason_to_restart() {
    let folder = folder_with(None);
    let (answer, is_clean) = nccl_in(folder.path(), None);
    assert_told(&answer["found"], "NoNccl", &[]);
    assert_eq!(answer["starts"], 1);
    assert!(is_clean);
}

#[test]
fn facts_are_what_the_driver_says() {
    let job = Job::new(1, Task::Machine(Question::Facts))
        .with("ZEROFOLD_STAND_IN_DEVICES", "3")
        .with("ZEROFOLD_STAND_IN_CAPABILITY", "8.6")
        .with("ZEROFOLD_STAND_IN_MEMORY", "1073741824");
    let facts = answer(job);
    assert_eq!(facts["driver"], json!({ "major": 13, "minor": 0 }));
    assert_eq!(facts["devices"].as_array().unwrap().len(), 3);
    let second = json!({
        "index": 1,
        "name": "Zerofold GPU stand-in",
        "bus_id": "0000:02:00.0",
        "capability": { "major": 8, "minor": 6 },
        "total_memory": 1_073_741_824,
        "peers": [0, 2],
    });
    assert_eq!(facts["devices"][1], second);
}

#[test]
fn an_old_card_is_refused_what_it_cannot_do() {
    let job = Job::new(1, Task::Machine(Question::Compute)).with("ZEROFOLD_STAND_IN_CAPABILITY", "7.0");
    let answers = answer(job);
    let parts = ["bfloat16 needs compute capability 8.0", "GPU 0 (Zerofold GPU stand-in) has 7.0"];
    assert_told(&answers[0], "Capability", &parts);
    assert_told(&answers[0], "Capability", &["hint: --mixed_precision fp16 runs on this card"]);
    // libtorch itself has nothing for a card of 7.0; one of 7.5 does what is not bfloat16 or TF32.
    assert_told(&answers[1], "Capability", &["libtorch for CUDA 13 needs compute capability 7.5"]);
    let job = Job::new(1, Task::Machine(Question::Compute)).with("ZEROFOLD_STAND_IN_CAPABILITY", "7.5");
    let answers = answer(job);
    assert_told(&answers[0], "Capability", &["fp16"]);
    assert_told(&answers[1], "Ok", &[]);
    assert_told(&answers[2], "Capability", &["tf32 needs"]);
}

#[test]
fn a_local_rank_beyond_the_devices_has_none() {
    let job = Job::new(1, Task::Machine(Question::Beyond)).with("ZEROFOLD_STAND_IN_DEVICES", "2");
    let answers = answer(job.with("CUDA_VISIBLE_DEVICES", "4,5"));
    assert_told(&answers[0], "Ok", &[]);
    let parts = ["local rank 2 needs GPU 2, but 2 are visible (CUDA_VISIBLE_DEVICES=4,5)", "hint:", "--nproc 2"];
    assert_told(&answers[1], "NoSuchDevice", &parts);
}

#[test]
fn a_device_belongs_to_one_process_unless_it_is_shared() {
    let answers: Vec<Value> = Job::new(2, Task::Machine(Question::Taken)).run();
    assert_eq!(answers[0], json!(17_179_869_184_u64));
    let parts = ["GPU 0 (Zerofold GPU stand-in) is taken by another Zerofold process", "hint:", "--share_gpus true"];
    assert_told(&answers[1][0], "Taken", &parts);
    for free in [1, 2, 3] {
        assert_told(&answers[1][free], "Ok", &[]);
    }
}
