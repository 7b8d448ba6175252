//! Storage that lets a job down: a folder that becomes read-only, a file that reads back otherwise than it was written, a rank
//! that sees another disk.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zerofold_checkpoint::STORAGE_PROOF;
use zerofold_checkpoint::fault::EXPORTED;
use zerofold_tests::{Metrics, ReadOnly, Running, Scene, checkpoints, program, signal, wait_for};

const JOB: &str = "--nproc 2 --zero_stage 3 --per_device_train_batch_size 2 --train_sampling_strategy random \
                   --learning_rate 1e-3 --lr_scheduler_type constant";
const MODEL: &str = "tiny-llama-tied";

fn saved(run: &Path) -> usize {
    checkpoints(run).iter().filter(|step| step.join("manifest.json").is_file()).count()
}

/// Asks for a checkpoint, and waits for it.
fn save(running: &mut Running, run: &Path) {
    let before = saved(run);
    running.wait_for("a step", || (Metrics::of(run).count() > 0).then_some(()));
    running.signal(libc::SIGUSR1);
    running.wait_for("a checkpoint", || (saved(run) > before).then_some(()));
}

/// What `launch` has said so far.
fn said(scene: &Scene, job: u32) -> String {
    fs::read_to_string(scene.path(&format!("launch-{job}.err"))).unwrap_or_default()
}

/// A model folder's partial writes.
fn partial_models(run: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("model.partial-")).collect()
}

#[test]
fn a_folder_that_becomes_read_only_between_two_saves_costs_these_saves_alone() {
    let scene = Scene::new();
    let run = scene.path("run");
    let train = |run: &str, words: &str| scene.train(MODEL, run, JOB).words("--save_strategy no").words(words);
    let mut running = train("run", "--max_steps 1000000").start();
    save(&mut running, &run);
    let folder = run.join("checkpoints");
    let Some(read_only) = ReadOnly::make(&folder) else {
        return zerofold_tests::not_tested("no folder can be made read-only here");
    };
    running.signal(libc::SIGUSR1);
    let failed = running.wait_for("the error", || said(&scene, 0).find("error: no checkpoint of step "));
    let told = said(&scene, 0)[failed..].to_owned();
    for part in ["cannot create ", "checkpoints/step-", "Read-only file system"] {
        // Without mounting it is the folder's mode.
        let part = if part.contains("Read-only") && !read_only.is_mounted() { "Permission denied" } else { part };
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    let steps = Metrics::of(&run).count();
    running.wait_for("more steps", || (Metrics::of(&run).count() > steps + 3).then_some(()));
    assert_eq!(saved(&run), 1, "the one before stays");
    drop(read_only);
    save(&mut running, &run);
    running.signal(libc::SIGTERM);
    let ended = running.finish();
    assert_eq!(ended.code, Some(143), "{ended}");
    assert_eq!(ended.err.matches("error: ").count(), 1, "{ended}");
    assert!(ended.out.contains("1 save failed, the last one after step "), "{ended}");
    let verify = scene.launch("verify").adjust(|command| {
        command.arg(&run);
    });
    verify.run().assert_done();

    let done = Metrics::of(&run).count();
    train("run", &format!("--resume --max_steps {}", done + 3)).run().assert_done();
    train("whole", &format!("--max_steps {}", done + 3)).run().assert_done();
    assert_eq!(Metrics::of(&run).exact(), Metrics::of(&scene.path("whole")).exact());
}

#[test]
fn a_model_for_which_the_folder_became_read_only_is_one_clear_error_and_made_later() {
    let scene = Scene::new();
    let run = scene.path("run");
    let train = || scene.train(MODEL, "run", JOB).words("--save_strategy no --max_steps 400");
    let mut running = train().start();
    save(&mut running, &run);
    // What is open stays so: metrics and logs go on.
    let Some(read_only) = ReadOnly::make(&run) else {
        return zerofold_tests::not_tested("no folder can be made read-only here");
    };
    let ended = running.finish();
    let why = if read_only.is_mounted() { "Read-only file system" } else { "Permission denied" };
    ended.assert_failed(1, &["error: rank 0 ", "cannot create ", "run/model.partial-", why, "--resume"]);
    assert_eq!(Metrics::of(&run).count(), 400, "every step was taken");
    drop(read_only);
    assert!(!run.join("model").exists() && partial_models(&run).is_empty());
    train().words("--resume").run().assert_done();
    assert!(run.join("model/model.safetensors").is_file());
}

#[test]
fn a_model_that_reads_back_otherwise_gets_no_name() {
    let scene = Scene::new();
    let run = scene.path("run");
    let train = || scene.train(MODEL, "run", JOB).words("--max_steps 2 --save_dtype float32");
    let mut running = train()
        .adjust(|command| {
            command.env("ZEROFOLD_FAULT", format!("0@{EXPORTED}=stop"));
        })
        .start();
    let rank = scene.rank(0);
    running.wait_for("the model to be written", || rank.is_stopped().then_some(()));
    let [partial] = &partial_models(&run)[..] else { panic!("{:?}", partial_models(&run)) };
    let file = File::options().read(true).write(true).open(partial.join("model.safetensors")).unwrap();
    let (mut last, place) = ([0], file.metadata().unwrap().len() - 1);
    file.read_exact_at(&mut last, place).unwrap();
    file.write_all_at(&[last[0] ^ 1], place).unwrap();
    signal(rank.pid, libc::SIGCONT);
    let ended = running.finish();
    let parts =
        ["error: rank 0 ", "tensor model.layers.", "model.safetensors: its bytes read back with the hash ", "hint: "];
    ended.assert_failed(1, &parts);
    assert!(!run.join("model").exists() && partial_models(&run).is_empty(), "{ended}");
    train().words("--resume").run().assert_done();
    assert!(run.join("model/model.safetensors").is_file());
}

/// A worker for which rank 1 has another folder at its output_dir, as on a host where the disk is not mounted.
#[test]
fn a_rank_that_sees_another_disk_is_named_before_the_first_step() {
    let scene = Scene::new();
    let (run, other) = (scene.path("run"), scene.path("other"));
    fs::create_dir_all(other.join("checkpoints")).unwrap();
    let script = format!(
        "#!/bin/sh\nif [ \"$RANK\" = 1 ]; then\n\
         sed 's#{}#{}#' \"$ZEROFOLD_CONFIG\" >'{}/config.yaml' || exit 1\nexport ZEROFOLD_CONFIG='{2}/config.yaml'\nfi\n\
         exec '{}' \"$@\"\n",
        run.display(),
        other.display(),
        scene.path("").display(),
        program("worker").display(),
    );
    let worker = scene.write("worker", script);
    fs::set_permissions(&worker, fs::Permissions::from_mode(0o755)).unwrap();
    let train = || scene.train(MODEL, "run", JOB).words("--max_steps 2 --save_strategy no");
    for reason in ["No such file", "it holds the token of another job"] {
        if reason.starts_with("it holds") {
            fs::write(other.join("checkpoints").join(STORAGE_PROOF), "0123").unwrap();
        }
        let ended = train()
            .adjust(|command| {
                command.env("ZEROFOLD_WORKER", &worker);
            })
            .run();
        let place = format!("{} is not the folder that launch made there: ", other.join("checkpoints").display());
        ended.assert_failed(
            1,
            &["error: rank 1", "on host ", &place, reason, "hint: all ranks must see one output_dir"],
        );
        assert_eq!(Metrics::of(&run).count(), 0, "a step was taken");
    }
    // It is one job's word to its ranks, and gone with it.
    train().run().assert_done();
    wait_for("the proof to go", || (!run.join("checkpoints").join(STORAGE_PROOF).exists()).then_some(()));
}
