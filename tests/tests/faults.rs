//! What happens while a job runs: processes that die, signals, disks that are full, numbers that explode.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;

use zerofold_tests::{
    Job, Metrics, Running, Scene, SmallDisk, assert_nothing_half_written, checkpoints, fixture, model, signal,
};

/// Only the words behind it, or the end, make it save.
const ENDLESS: &str = "--nproc 2 --per_device_train_batch_size 2 --max_steps 100000 --save_steps 100000";

/// An endless job, some steps after its start.
fn under_way(job: Job<'_>, run: &Path) -> Running {
    let mut running = job.start();
    running.wait_for("3 steps", || (Metrics::of(run).count() >= 3).then_some(()));
    running
}

#[test]
fn a_killed_worker_ends_the_job_and_the_last_checkpoint_stays_good() {
    let scene = Scene::new();
    let run = scene.path("run");
    let train =
        |words: &str| scene.train("tiny-llama", "run", ENDLESS).words("--zero_stage 3 --save_steps 1").words(words);
    let running = under_way(train(""), &run);
    let victim = scene.rank(1);
    signal(victim.pid, libc::SIGKILL);
    let ended = running.finish();
    let death = format!("error: rank 1 (pid {}) was killed by SIGKILL", victim.pid);
    ended.assert_failed(1, &[&death, "log: ", "rank-1.log", "hint: "]);
    let line_of = |part: &str| ended.err.lines().position(|line| line.starts_with(part));
    assert!(line_of("then: ").is_none_or(|then| line_of("error: ") < Some(then)), "{ended}");
    assert!(scene.processes().is_empty(), "{:?}", scene.processes());
    assert_nothing_half_written(&run);

    let saved = checkpoints(&run).iter().filter(|step| step.join("manifest.json").exists()).count();
    assert!(saved > 0, "steps were saved before the worker died");
    train(&format!("--resume --max_steps {}", saved + 2)).run().assert_done();
    assert_eq!(Metrics::of(&run).count(), saved + 2);
    assert!(run.join("model/model.safetensors").is_file());
}

#[test]
fn workers_die_with_a_killed_launch() {
    let scene = Scene::new();
    let run = scene.path("run");
    let running = under_way(scene.train("tiny-llama", "run", ENDLESS).words("--zero_stage 2"), &run);
    assert_eq!(scene.processes().len(), 3, "launch and two workers");
    running.signal(libc::SIGKILL);
    assert_eq!(running.finish().signal, Some(libc::SIGKILL));
    scene.assert_nobody_left();
    assert_nothing_half_written(&run);
}

#[test]
fn ctrl_c_stops_cleanly_after_a_saved_step() {
    let scene = Scene::new();
    let run = scene.path("run");
    let running = under_way(scene.train("tiny-llama", "run", ENDLESS).words("--zero_stage 1"), &run);
    running.signal(libc::SIGINT);
    let ended = running.finish();
    assert_eq!(ended.code, Some(130), "{ended}");
    ended.assert_says(&["Ctrl-C: stopping", "stopped; newest checkpoint: ", "--resume"]);
    assert!(!ended.err.contains("error: "), "{ended}");
    scene.assert_nobody_left();
    assert_nothing_half_written(&run);
    let saved = checkpoints(&run);
    assert!(saved.len() == 1 && saved[0].join("manifest.json").is_file(), "{saved:?}");
}

#[test]
fn a_second_ctrl_c_does_not_wait() {
    let scene = Scene::new();
    let run = scene.path("run");
    let mut running = under_way(scene.train("tiny-llama", "run", ENDLESS).words("--zero_stage 0"), &run);
    // A worker that stands still cannot stop politely.
    let rank = scene.rank(0);
    signal(rank.pid, libc::SIGSTOP);
    running.signal(libc::SIGINT);
    let err = scene.path("launch-0.err");
    running.wait_for("the notice", || std::fs::read_to_string(&err).ok().filter(|text| text.contains("again to stop")));
    assert_eq!(scene.processes().len(), 3, "everybody is still there");
    running.signal(libc::SIGINT);
    let ended = running.finish();
    assert_eq!(ended.code, Some(130), "{ended}");
    scene.assert_nobody_left();
    assert_nothing_half_written(&run);
}

#[test]
fn a_port_in_use_is_named() {
    let scene = Scene::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let train = || scene.train("tiny-llama", "run", "--nproc 2 --max_steps 1").with("--main_process_port", &port);
    let ended = train().run();
    assert!(ended.code.is_some_and(|code| code == 1 || code == 2), "{ended}");
    ended.assert_failed(ended.code.unwrap(), &[&port, "in use", "hint: "]);
    assert!(!scene.path("run").exists(), "nothing was begun");
    drop(listener);
    train().run().assert_done();
}

#[test]
fn numbers_that_explode_name_their_step() {
    let scene = Scene::new();
    let words =
        "--nproc 2 --zero_stage 3 --max_steps 5 --max_grad_norm 0 --learning_rate 1e30 --lr_scheduler_type constant";
    let ended = scene.train("tiny-llama", "run", words).run();
    ended.assert_failed(1, &["step 2: loss ", "not finite", "learning_rate"]);
    assert_eq!(Metrics::of(&scene.path("run")).count(), 1, "the first step was sound");
    assert_nothing_half_written(&scene.path("run"));
}

/// Refuses every write behind this many bytes of a file, as a full disk does (with another word). Shared memory counts as a
/// file.
fn limit_files(job: Job<'_>, bytes: u64) -> Job<'_> {
    job.adjust(|command| {
        let limit = move || {
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
            // SAFETY: signal and setrlimit are async-signal-safe, and `limit` outlives the call.
            let failed = unsafe {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                libc::setrlimit(libc::RLIMIT_FSIZE, &limit)
            };
            if failed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: the closure runs between fork and exec, makes two such calls and does not allocate.
        unsafe { command.pre_exec(limit) };
    })
}

#[test]
fn a_write_that_fails_while_saving_leaves_no_checkpoint() {
    let scene = Scene::new();
    let words = "--nproc 2 --zero_stage 1 --max_steps 3 --save_steps 2 --backend gloo";
    // The model (about 700 kB) fits, a rank's masters and moments (about 1 MB) do not.
    let ended = limit_files(scene.train("tiny-llama", "run", words), 800_000).run();
    ended.assert_done();
    let told =
        ["error: no checkpoint of step 2: rank ", "rank-0000", "File too large", "error: no checkpoint of step 3: "];
    ended.assert_says(&told);
    assert!(ended.out.contains("2 saves failed, the last one after step 3: rank "), "{ended}");
    let run = scene.path("run");
    assert_eq!(Metrics::of(&run).count(), 3, "training went on");
    assert_eq!(checkpoints(&run), [] as [std::path::PathBuf; 0], "nothing is left of them");
}

#[test]
fn a_write_that_fails_while_exporting_leaves_no_model() {
    let scene = Scene::new();
    let words = "--nproc 2 --zero_stage 2 --max_steps 3 --save_strategy no --backend gloo";
    let ended = limit_files(scene.train("tiny-llama", "run", words), 200_000).run();
    ended.assert_failed(1, &["error: rank 0 ", "model", "File too large"]);
    assert_nothing_half_written(&scene.path("run"));
}

#[test]
fn a_full_disk_is_one_error_at_whatever_write_it_fills() {
    let scene = Scene::new();
    let run = scene.path("run");
    // In turn there is no room for: the tokenised rows, the first checkpoint (2 MB), the second, the model (0.7 MB). Training
    // goes on without a checkpoint, and the earlier one stays.
    let cases = [
        (20_000, "--save_steps 2", false, "/data/train.safetensors: "),
        (1_500_000, "--save_steps 2", true, "/step-00000002"),
        (3_500_000, "--save_steps 2", true, "/step-00000004"),
        (500_000, "--save_strategy no", false, "/run: "),
    ];
    for (bytes, saves, goes_on, place) in cases {
        let Some(disk) = SmallDisk::mount(&run, bytes) else {
            return zerofold_tests::not_tested(
                "mounting is not permitted here; the tests with limited files stand for it",
            );
        };
        let words = "--nproc 2 --zero_stage 3 --max_steps 4";
        let ended = scene.train("tiny-llama", "run", words).words(saves).run();
        if goes_on {
            ended.assert_done();
            ended.assert_says(&["error: no checkpoint of step ", place]);
            assert!(ended.out.contains("failed, the last one after step 4: rank 0: not enough space"), "{ended}");
        } else {
            assert!(ended.code.is_some_and(|code| code == 1 || code == 2), "{bytes} bytes: {ended}");
            ended.assert_failed(ended.code.unwrap(), &[place]);
            assert!(
                ["No space left", "free"].iter().any(|word| ended.report().contains(word)),
                "{bytes} bytes: {ended}"
            );
            assert_nothing_half_written(&run);
        }
        assert_eq!(checkpoints(&run).len(), usize::from(bytes == 3_500_000), "{bytes} bytes: {ended}");
        drop(disk);
    }
}

#[test]
fn a_worker_that_cannot_read_its_weights_names_the_file() {
    let scene = Scene::new();
    let copy = scene.copy(&model("tiny-llama"), "model");
    let weights = copy.join("model.safetensors");
    let mut content = std::fs::read(&weights).unwrap();
    content.truncate(content.len() - 1000);
    std::fs::write(&weights, content).unwrap();
    let train = scene.launch("train --nproc 2 --max_steps 1").with("--model_name_or_path", &copy);
    let ended = train.with("--dataset", fixture("data/rows.jsonl")).with("--output_dir", scene.path("run")).run();
    assert_ne!(ended.code, Some(0));
    ended.assert_failed(ended.code.unwrap_or(-1), &["model.safetensors"]);
}
