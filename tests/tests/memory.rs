//! Memory: what a rank holds while it loads a model, and what it can do without when optimizer state lies in files.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use zerofold_tests::{Dtype, Job, Metrics, Process, RandomModel, Scene, SmallDisk, json, random_rows, signal};

const MIB: u64 = 1 << 20;
/// What the heap may hold in gaps and small things beside tensors; a model in memory as a whole would be eight times that.
const GAPS: u64 = 16 * MIB;
/// Bytes that are read and converted at a time, in no tensor.
const FILE_CHUNK: u64 = MIB;

/// `launch train` of a model folder of the scene on short rows.
fn train<'a>(scene: &'a Scene, model: &Path, run: &str, words: &str) -> Job<'a> {
    let rows = scene.write("rows.jsonl", random_rows(64, 8));
    let defaults = "--per_device_train_batch_size 1 --gradient_checkpointing false --save_strategy no \
                    --train_sampling_strategy sequential --logging_steps 1 --learning_rate 1e-3";
    scene
        .launch("train")
        .with("--model_name_or_path", model)
        .with("--dataset", rows)
        .with("--output_dir", scene.path(run))
        .words(defaults)
        .words(words)
}

/// The largest resident memory of a rank that trains the smallest model: the program, libtorch and Gloo.
fn program(scene: &Scene, words: &str) -> u64 {
    let tiny = RandomModel { hidden: 64, intermediate: 128, layers: 1, vocabulary: 320, ..LOADED };
    tiny.write(&scene.path("tiny"));
    train(scene, &scene.path("tiny"), "tiny-run", words).words("--max_steps 1").run().assert_done();
    Metrics::of(&scene.path("tiny-run")).steps()[0]["peak_memory_bytes"].as_u64().expect("every step tells its memory")
}

const RANKS: u64 = 4;

/// 65 million parameters.
const LOADED: RandomModel = RandomModel {
    hidden: 512,
    intermediate: 1408,
    layers: 15,
    vocabulary: 32_000,
    tied: true,
    dtype: Dtype::BF16,
    file_bytes: 40_000_000,
};

/// What a rank of [`RANKS`] may hold in tensors at stage 3 while it loads a model of so many parameters: its shard of
/// masters, moments and float32 gradients; for the gathered parameters and for their gradients, the tied unit and twice
/// a block.
fn bound(model: &RandomModel, parameters: usize, compute_bytes: u64) -> u64 {
    let norm = model.hidden;
    let block = 4 * model.hidden * model.hidden + 3 * model.hidden * model.intermediate + 2 * norm;
    let tied = model.vocabulary * model.hidden + norm;
    let buffers = (compute_bytes + 4) * (2 * block + tied) as u64;
    16 * parameters as u64 / RANKS + buffers
}

/// Loads the model in [`RANKS`] ranks at stage 3 and takes one step; asserts what loading took, by both counts. The last
/// rank is held back while the others load, so that none of them can begin the step before it was looked at.
#[track_caller]
fn assert_loads_within_bounds(model: &RandomModel, mixed_precision: &str, compute_bytes: u64) {
    let scene = Scene::new();
    let words = format!("--nproc {RANKS} --zero_stage 3 --mixed_precision {mixed_precision}");
    let program = program(&scene, &words) + GAPS + FILE_CHUNK;
    let folder = scene.path("model");
    let parameters = model.write(&folder);
    let bound = bound(model, parameters, compute_bytes);

    let mut running = train(&scene, &folder, "run", &words).words("--max_steps 1").start();
    let ranks: Vec<Process> = (0..RANKS as u32).map(|rank| scene.rank(rank)).collect();
    let (held, loading) = ranks.split_last().expect("there are ranks");
    let state_of_a_rank = 16 * parameters as u64 / RANKS;
    running.wait_for("the last rank to be connected and allocate", || {
        held.status_bytes("VmRSS").filter(|&bytes| bytes > program + state_of_a_rank / 4)
    });
    signal(held.pid, libc::SIGSTOP);
    let shard_in_files = model.dtype.size() as u64 * parameters as u64 / RANKS;
    let resident: Vec<u64> = loading
        .iter()
        .map(|rank| {
            running.wait_for("a rank to read its shard", || {
                rank.bytes_read().filter(|&bytes| bytes >= shard_in_files)?;
                rank.status_bytes("VmHWM")
            })
        })
        .collect();
    assert_eq!(Metrics::of(&scene.path("run")).count(), 0, "a step was taken before the ranks were looked at");
    signal(held.pid, libc::SIGCONT);
    running.finish().assert_done();

    let record = json(&scene.path("run/plan.json"));
    let live = record["measured"]["loading_peak"].as_u64().expect("the ranks told");
    let most = *resident.iter().max().expect("there are ranks");
    let in_mib = |bytes: u64| bytes as f64 / MIB as f64;
    eprintln!(
        "{parameters} parameters, {:?} files, {mixed_precision}: live tensors {:.2} MiB of {:.2}; resident {:.1} MiB of \
         {:.1} (the program {:.1})",
        model.dtype,
        in_mib(live),
        in_mib(bound),
        in_mib(most),
        in_mib(program + bound),
        in_mib(program),
    );
    // Padding, and tensors of a few numbers.
    let small = MIB / 16;
    assert!(live <= bound + small, "{live} bytes of tensors were alive while loading, the bound is {bound}");
    assert!(most <= program + bound, "{most} bytes were resident while loading, the bound is {}", program + bound);
    assert!(live > state_of_a_rank, "{live} bytes of tensors cannot be all");
    let planned = record["planned"]["plan"]["loading_peak"].as_u64().expect("loading was planned");
    assert!(planned.abs_diff(bound) < small, "{planned} bytes were planned, the bound is {bound}");
    assert!(planned.abs_diff(live) < small, "{planned} bytes were planned, {live} were measured");
}

#[test]
fn a_rank_loads_its_shard_and_no_more() {
    assert_loads_within_bounds(&LOADED, "no", 4);
}

#[test]
fn a_rank_loads_its_shard_and_no_more_in_bfloat16() {
    assert_loads_within_bounds(&LOADED, "bf16", 2);
}

/// Larger than the whole state of the others, so that what does not belong to a rank cannot hide.
const TWO_GIGABYTES: RandomModel =
    RandomModel { hidden: 1024, intermediate: 2816, layers: 37, dtype: Dtype::F32, file_bytes: 500_000_000, ..LOADED };

#[test]
#[ignore = "needs 12 GiB of memory, 5 GB of disk and a minute"]
fn loading_two_gigabytes_needs_12_gib_of_memory() {
    assert_loads_within_bounds(&TWO_GIGABYTES, "no", 4);
}

#[test]
#[ignore = "needs 20 GiB of memory, 7 GB of disk and two minutes"]
fn loading_two_gigabytes_of_bfloat16_needs_20_gib_of_memory() {
    assert_loads_within_bounds(&RandomModel { layers: 75, dtype: Dtype::BF16, ..TWO_GIGABYTES }, "bf16", 2);
}

/// 22 million parameters, in units of about the same size.
const OFFLOADED: RandomModel = RandomModel { layers: 7, vocabulary: 320, tied: false, ..LOADED };

/// What a process takes beside its tensors, most of it libtorch's: data and stacks, written on or not.
const PROGRAM_DATA: u64 = 96 * MIB;

/// An empty folder for optimizer state in files, which nobody else makes.
fn files_folder(scene: &Scene) -> PathBuf {
    let files = scene.path("files");
    std::fs::create_dir(&files).unwrap();
    files
}

/// Lets `launch` and its workers have this much data each. Shared mappings of files are not counted, nor is shared
/// memory: such jobs run over Gloo.
fn limit_data(job: Job<'_>, bytes: u64) -> Job<'_> {
    job.adjust(|command| {
        let limit = move || {
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
            // SAFETY: setrlimit is async-signal-safe, and `limit` outlives the call.
            let failed = unsafe { libc::setrlimit(libc::RLIMIT_DATA, &limit) };
            if failed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: the closure runs between fork and exec, makes one such call and does not allocate.
        unsafe { command.pre_exec(limit) };
    })
}

fn model_of(scene: &Scene, run: &str) -> Vec<u8> {
    std::fs::read(scene.path(run).join("model/model.safetensors")).expect("a model was written")
}

/// Trains with a limit on each process's memory that state of `file_bytes` a parameter is half too much for: without
/// offload it fails, with offload it equals the run that has no limit.
fn assert_trains_in_less_memory(stage: u32, mixed_precision: &str, file_bytes: u64) {
    let scene = Scene::new();
    let folder = scene.path("model");
    let parameters = OFFLOADED.write(&folder) as u64;
    let words =
        format!("--nproc 2 --max_steps 3 --zero_stage {stage} --mixed_precision {mixed_precision} --backend gloo");

    train(&scene, &folder, "free", &words).run().assert_done();
    let planned = json(&scene.path("free/plan.json"))["planned"]["plan"]["total"].as_u64().expect("it was planned");
    let in_files = file_bytes * parameters / 2;
    let limit = PROGRAM_DATA + planned - in_files / 2;

    let ended = limit_data(train(&scene, &folder, "too-large", &words), limit).run();
    ended.assert_failed(1, &["error: rank ", "out of memory: a tensor of", "rank-"]);
    assert!(!ended.err.contains("frame #"), "a stack of C++ frames: {}", ended.err);
    assert_eq!(Metrics::of(&scene.path("too-large")).count(), 0, "the limit was no limit");
    assert!(!scene.path("too-large/model").exists());

    let files = files_folder(&scene);
    let offload = |run: &str| {
        let job = train(&scene, &folder, run, &words).words("--offload_optimizer_device nvme");
        limit_data(job.with("--offload_optimizer_nvme_path", &files), limit)
    };
    offload("offloaded").run().assert_done();
    let name = format!("stage {stage}, {mixed_precision}");
    assert_eq!(Metrics::of(&scene.path("offloaded")).exact(), Metrics::of(&scene.path("free")).exact(), "{name}");
    assert!(model_of(&scene, "offloaded") == model_of(&scene, "free"), "{name}: the models differ");
    assert_eq!(std::fs::read_dir(&files).unwrap().count(), 0, "{name}: something was left");
    eprintln!(
        "{name}: limit {} MiB, {} MiB planned without offload, {} MiB in files",
        limit / MIB,
        planned / MIB,
        in_files / MIB
    );
}

#[test]
fn a_state_that_does_not_fit_trains_from_files_at_stage_1() {
    assert_trains_in_less_memory(1, "no", 8);
}

#[test]
fn a_state_that_does_not_fit_trains_from_files_at_stage_1_in_bfloat16() {
    assert_trains_in_less_memory(1, "bf16", 12);
}

#[test]
fn a_state_that_does_not_fit_trains_from_files_at_stage_3() {
    assert_trains_in_less_memory(3, "no", 12);
}

#[test]
fn a_state_that_does_not_fit_trains_from_files_at_stage_3_in_bfloat16() {
    assert_trains_in_less_memory(3, "bf16", 12);
}

#[test]
fn a_disk_without_room_for_the_state_is_an_error_at_the_start() {
    let scene = Scene::new();
    let files = scene.path("files");
    // Masters and moments of the tiny model take 2.1 MB.
    let Some(_disk) = SmallDisk::mount(&files, 600_000) else {
        return zerofold_tests::not_tested("mounting is not permitted here");
    };
    let words = "--nproc 2 --max_steps 2 --zero_stage 3 --offload_optimizer_device nvme";
    let ended = scene.train("tiny-llama", "run", words).with("--offload_optimizer_nvme_path", &files).run();
    let place = files.display().to_string();
    ended.assert_failed(1, &["offloading ", " bytes of optimizer state to ", &place, "No space left", "hint: "]);
    assert_eq!(Metrics::of(&scene.path("run")).count(), 0, "nothing was trained");
    assert_eq!(std::fs::read_dir(&files).unwrap().count(), 0, "something was left");
}

#[test]
fn while_a_job_runs_its_files_have_no_names_and_killing_it_frees_them() {
    let scene = Scene::new();
    let files = files_folder(&scene);
    let words = "--nproc 2 --max_steps 100000 --save_strategy no --zero_stage 1 --offload_optimizer_device nvme";
    let mut running = scene.train("tiny-llama", "run", words).with("--offload_optimizer_nvme_path", &files).start();
    running.wait_for("3 steps", || (Metrics::of(&scene.path("run")).count() >= 3).then_some(()));
    assert_eq!(std::fs::read_dir(&files).unwrap().count(), 0);
    let rank = scene.rank(0);
    assert!(rank.maps(&files), "rank 0 has nothing of {} in its memory", files.display());
    running.signal(libc::SIGKILL);
    running.finish();
    scene.assert_nobody_left();
    assert_eq!(std::fs::read_dir(&files).unwrap().count(), 0);
}

#[test]
fn a_run_goes_on_with_its_state_in_memory_or_in_files() {
    let scene = Scene::new();
    let files = files_folder(&scene);
    let train = |run: &str, words: &str| {
        let words = format!("--nproc 2 --max_steps 4 --save_steps 2 --zero_stage 3 --mixed_precision bf16 {words}");
        scene.train("tiny-llama", run, &words).with("--offload_optimizer_nvme_path", &files)
    };
    train("whole", "--offload_optimizer_device none").run().assert_done();
    for (run, before, after) in [("to-memory", "nvme", "none"), ("to-files", "none", "nvme")] {
        train(run, &format!("--offload_optimizer_device {before}")).run().assert_done();
        train(run, &format!("--offload_optimizer_device {after} --resume step-00000002")).run().assert_done();
        assert_eq!(Metrics::of(&scene.path(run)).exact(), Metrics::of(&scene.path("whole")).exact(), "{run}");
        assert!(model_of(&scene, run) == model_of(&scene, "whole"), "{run}: the models differ");
    }
}
