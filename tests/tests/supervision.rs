//! What goes wrong in a rank or in `launch` is told rightly, soon, and leaves nobody behind: the table of docs/supervision.md.
//! The numbers at the tests are those of the contract in `launcher/src/supervise`.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::{Duration, Instant};

use zerofold_tests::{Clock, Ended, Job, Metrics, Running, Scene, assert_nothing_half_written, signal, wait_for};

/// Only words behind it, or the end, make it save.
const ENDLESS: &str = "--nproc 2 --per_device_train_batch_size 2 --max_steps 100000 --save_steps 100000 --zero_stage 3";

/// A job whose end can be compared with another's.
const SHORT: &str = "--nproc 2 --per_device_train_batch_size 5 --max_steps 12 --save_steps 4 --save_total_limit 2 \
                     --train_sampling_strategy random --learning_rate 1e-3 --zero_stage 3";

fn struck<'a>(scene: &'a Scene, job: &str, fault: &str) -> Job<'a> {
    scene.train("tiny-llama", "run", job).adjust(|command| {
        command.env("ZEROFOLD_FAULT", fault);
    })
}

/// An endless job, some steps after its start.
fn under_way(job: Job<'_>, run: &Path) -> Running {
    let mut running = job.start();
    running.wait_for("3 steps", || (Metrics::of(run).count() >= 3).then_some(()));
    running
}

/// The moment at which a run has finished its last step before a fault.
fn struck_at(run: &Path, steps: usize) -> Instant {
    wait_for("the step before the fault", || (Metrics::of(run).count() >= steps).then(Instant::now))
}

/// One row of the table.
fn row(fault: &str, verdict: &str, ended: &Ended, took: Duration) {
    let end = ended.code.map_or_else(|| format!("signal {}", ended.signal.unwrap_or(0)), |code| code.to_string());
    println!("| {fault} | {verdict} | {end} | {:.1} s |", took.as_secs_f64());
}

/// Contract 2, 3, 6.
#[test]
fn a_rank_that_ends_is_named_at_once_with_how() {
    let cases = [
        ("segv", "error: rank 1 (pid PID) was killed by SIGSEGV", ""),
        ("kill", "error: rank 1 (pid PID) was killed by SIGKILL", "hint: the kernel kills"),
        ("exit0", "error: rank 1 (pid PID) exited with code 0 before its work was done", ""),
        ("exit1", "error: rank 1 (pid PID) exited with code 1", ""),
    ];
    for (action, verdict, more) in cases {
        let scene = Scene::new();
        let run = scene.path("run");
        let running = struck(&scene, ENDLESS, &format!("1@data#4={action}")).start();
        let pid = scene.rank(1).pid.to_string();
        let at = struck_at(&run, 3);
        let ended = running.finish();
        let took = at.elapsed();
        ended.assert_failed(1, &[&verdict.replace("PID", &pid), more, "log: "]);
        assert!(ended.report().starts_with("error: rank 1"), "the cause comes first\n{ended}");
        assert!(took < Duration::from_secs(10), "{action}: {took:?}");
        scene.assert_nobody_left();
        assert_nothing_half_written(&run);
        row(action, verdict, &ended, took);
    }
}

/// Contract 2 and 3.
#[test]
fn a_panic_is_told_in_its_own_words() {
    let scene = Scene::new();
    let running = struck(&scene, ENDLESS, "1@data#4=panic").start();
    let at = struck_at(&scene.path("run"), 3);
    let ended = running.finish();
    assert_eq!(ended.code, Some(1), "{ended}");
    let report = ended.report();
    assert!(report.starts_with("error: rank 1 (pid ") && report.contains("): a panic at "), "{ended}");
    assert!(report.contains(": a panic was asked for by ZEROFOLD_FAULT\nhint: this is a bug"), "{ended}");
    scene.assert_nobody_left();
    row("panic", "a panic at FILE:LINE: WORDS", &ended, at.elapsed());
}

/// Contract 2.
#[test]
fn a_rank_without_memory_is_named() {
    let scene = Scene::new();
    let limit = |command: &mut std::process::Command| {
        let limit = || {
            let limit = libc::rlimit { rlim_cur: 4 << 30, rlim_max: 4 << 30 };
            // SAFETY: setrlimit is async-signal-safe, and `limit` outlives the call.
            let failed = unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) };
            if failed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        };
        // SAFETY: the closure runs between fork and exec, makes one such call and does not allocate.
        unsafe { command.pre_exec(limit) };
    };
    let running = struck(&scene, ENDLESS, "1@data#4=memory").words("--backend gloo").adjust(limit).start();
    let at = struck_at(&scene.path("run"), 3);
    let ended = running.finish();
    ended.assert_failed(
        1,
        &["error: rank 1 (pid ", "was killed by SIGABRT", "  | memory allocation of 67108864 bytes failed"],
    );
    scene.assert_nobody_left();
    row("memory", "was killed by SIGABRT", &ended, at.elapsed());
}

/// Contract 4 and 5: five hangs at the same time, since each takes as long as patience does.
#[test]
fn whoever_holds_the_others_up_is_named_and_ended() {
    let waits = "--timeout 14";
    let cases = [
        (
            "stop",
            "1@data#4=stop",
            "",
            "rank 1 has not been heard from for ",
            "; its process is stopped (SIGSTOP or a debugger)",
        ),
        (
            "stuck in data loading",
            "1@data#4=sleep",
            "",
            "rank 1 has not entered all_gather #",
            " in data loading (usually ",
        ),
        ("spins", "0@forward#4=spin", "", "rank 0 has not entered all_gather #", " in forward (usually "),
        (
            "the same over gloo",
            "1@data#4=sleep",
            "--backend gloo",
            "rank 1 has not entered all_gather #",
            "data loading",
        ),
        (
            "another collective over gloo",
            "1@step#4=stray",
            "--backend gloo",
            "rank 1 called another collective",
            "where rank 0 called all_gather #",
        ),
    ];
    let scenes: Vec<Scene> = cases.iter().map(|_| Scene::new()).collect();
    let jobs: Vec<Running> = cases
        .iter()
        .zip(&scenes)
        .map(|((_, fault, words, ..), scene)| struck(scene, ENDLESS, fault).words(waits).words(words).start())
        .collect();
    let struck: Vec<Instant> = scenes.iter().map(|scene| struck_at(&scene.path("run"), 3)).collect();
    let told: Vec<(String, Duration)> =
        scenes.iter().zip(&struck).map(|(scene, at)| (warning(scene), at.elapsed())).collect();
    for ((((name, _, _, verdict, more), scene), running), (line, told)) in cases.iter().zip(&scenes).zip(jobs).zip(told)
    {
        assert!(line.contains(verdict) && line.contains(more), "{name}: {line}");
        assert!(told < Duration::from_secs(30), "{name}: {told:?}");
        let ended = running.finish();
        ended.assert_failed(1, &[&format!("error: {} (pid ", &verdict[..6]), "log: ", "--timeout"]);
        scene.assert_nobody_left();
        assert_nothing_half_written(&scene.path("run"));
        row(name, &line, &ended, told);
    }
    assert!(struck.iter().all(|at| at.elapsed() < Duration::from_secs(60)), "{:?}", struck[0].elapsed());
}

/// What is said of a rank that holds others up, as soon as it is.
fn warning(scene: &Scene) -> String {
    wait_for("the warning", || {
        let said = std::fs::read_to_string(scene.path("launch-0.err")).unwrap_or_default();
        said.lines().find(|line| line.starts_with("warning: rank ")).map(str::to_owned)
    })
}

/// Contract 3.
#[test]
fn ranks_that_share_memory_see_at_once_that_they_call_different_collectives() {
    let scene = Scene::new();
    let running = struck(&scene, ENDLESS, "1@step#4=stray").words("--backend shm").start();
    let at = struck_at(&scene.path("run"), 3);
    let ended = running.finish();
    ended.assert_failed(
        1,
        &["all_gather", " over 32 bytes", "reduce_scatter", "over 512 bytes", "hint: all ranks must call"],
    );
    assert_eq!(Metrics::of(&scene.path("run")).count(), 3, "no step was taken with it");
    scene.assert_nobody_left();
    row("another collective", "all_gather #43 over 32 bytes: … called reduce_scatter", &ended, at.elapsed());
}

/// Contract 4.
#[test]
fn a_rank_that_goes_on_after_all_is_told_too() {
    let scene = Scene::new();
    let run = scene.path("run");
    let mut running = struck(&scene, &format!("{ENDLESS} --max_steps 6 --save_steps 6"), "1@data#4=stop").start();
    let err = scene.path("launch-0.err");
    let said = |part: &str| std::fs::read_to_string(&err).is_ok_and(|text| text.contains(part));
    running.wait_for("the warning", || said("warning: rank 1 has not been heard from").then_some(()));
    signal(scene.rank(1).pid, libc::SIGCONT);
    let ended = running.finish();
    ended.assert_done();
    ended.assert_says(&["rank 1 goes on after 1"]);
    assert_eq!(Metrics::of(&run).count(), 6);
}

/// Contract 7.
#[test]
fn sigterm_at_a_worker_stops_the_job_as_a_whole() {
    let scene = Scene::new();
    let run = scene.path("run");
    let running = under_way(scene.train("tiny-llama", "run", ENDLESS), &run);
    // As a scheduler does, which signals all processes of a job.
    for process in scene.processes() {
        signal(process.pid, libc::SIGTERM);
    }
    let ended = running.finish();
    assert_eq!(ended.code, Some(143), "{ended}");
    ended.assert_says(&["stopping after the current step", "stopped; newest checkpoint: "]);
    scene.assert_nobody_left();
    assert_nothing_half_written(&run);
}

/// Contract 7.
#[test]
fn a_closed_terminal_saves_and_stops() {
    let scene = Scene::new();
    let run = scene.path("run");
    let running = under_way(scene.train("tiny-llama", "run", ENDLESS), &run);
    running.signal(libc::SIGHUP);
    let ended = running.finish();
    assert_eq!(ended.code, Some(129), "{ended}");
    ended.assert_says(&["SIGHUP: stopping", "stopped; newest checkpoint: "]);
    scene.assert_nobody_left();
}

#[test]
fn under_nohup_a_closed_terminal_is_nothing() {
    let scene = Scene::new();
    let run = scene.path("run");
    let ignore = |command: &mut std::process::Command| {
        let ignore = || {
            // SAFETY: signal is async-signal-safe and SIG_IGN a valid disposition.
            unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
            Ok(())
        };
        // SAFETY: the closure runs between fork and exec, makes one such call and does not allocate.
        unsafe { command.pre_exec(ignore) };
    };
    let mut running = under_way(scene.train("tiny-llama", "run", ENDLESS).adjust(ignore), &run);
    running.signal(libc::SIGHUP);
    let count = Metrics::of(&run).count();
    running.wait_for("more steps", || (Metrics::of(&run).count() > count + 20).then_some(()));
    running.signal(libc::SIGINT);
    assert_eq!(running.finish().code, Some(130));
}

/// Contract 5, 9.
#[test]
fn a_launch_that_stands_still_for_a_while_loses_nothing_and_for_ever_its_workers() {
    let scene = Scene::new();
    let run = scene.path("run");
    let mut running = under_way(scene.train("tiny-llama", "run", ENDLESS), &run);
    running.signal(libc::SIGSTOP);
    let stopped = Instant::now();
    wait_for("6 s", || (stopped.elapsed() > Duration::from_secs(6)).then_some(()));
    running.signal(libc::SIGCONT);
    let count = Metrics::of(&run).count();
    running.wait_for("more steps", || (Metrics::of(&run).count() > count + 20).then_some(()));
    assert!(!std::fs::read_to_string(scene.path("launch-0.err")).unwrap().contains("warning: rank"));

    running.signal(libc::SIGSTOP);
    let stopped = Instant::now();
    wait_for("the end of the workers", || (scene.processes().len() == 1).then_some(()));
    let took = stopped.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    running.signal(libc::SIGCONT);
    let ended = running.finish();
    ended.assert_failed(1, &["launch has been silent for 20 s"]);
    row("launch stands still for ever", "launch has been silent for 20 s", &ended, took);
    scene.assert_nobody_left();
}

/// Who asks for a checkpoint of a job that hangs learns why none comes, and who stops it, why none was written.
#[test]
fn what_waits_for_a_rank_that_hangs_says_so() {
    let scene = Scene::new();
    let run = scene.path("run");
    let words = format!("{ENDLESS} --grace 2");
    let mut running = struck(&scene, &words, "1@data#4=sleep").start();
    running.wait_for("the word of the hang", || warning(&scene).contains("rank 1").then_some(()));
    let mut asking = scene.launch("checkpoint").words(&run.display().to_string()).start();
    asking.wait_for("why nothing is saved", || {
        let said = std::fs::read_to_string(scene.path("launch-1.err")).unwrap_or_default();
        said.contains("still waiting: rank 1 has not entered all_gather #").then_some(())
    });
    running.signal(libc::SIGTERM);
    let ended = running.finish();
    assert_eq!(ended.code, Some(143), "{ended}");
    ended.assert_says(&[
        "stopped before its step was finished (rank 1 has not entered ",
        "no checkpoint was written; the run is",
    ]);
    asking.finish().assert_failed(2, &["the run ended without another checkpoint"]);
}

/// Contract 9.
#[test]
fn setting_the_clock_changes_nothing() {
    let scene = Scene::new();
    let clock = Clock::of(&scene);
    let run = scene.path("run");
    let job = clock.seen_by(scene.train("tiny-llama", "run", ENDLESS));
    let mut running = under_way(job, &run);
    let mut times = Vec::new();
    for seconds in [40_000_000, -40_000_000] {
        clock.jump(seconds);
        let count = Metrics::of(&run).count();
        running.wait_for("more steps", || (Metrics::of(&run).count() > count + 20).then_some(()));
        times.push(Metrics::of(&run).steps().last().unwrap()["time"].as_f64().unwrap());
    }
    assert!(times[0] - times[1] > 7e7, "the clock was set: {times:?}");
    running.signal(libc::SIGINT);
    let ended = running.finish();
    assert_eq!(ended.code, Some(130), "{ended}");
    assert!(!ended.err.contains("warning: rank"), "{ended}");
}

/// Contract 8.
#[test]
fn a_failed_job_goes_on_from_its_checkpoint_as_if_nothing_had_been() {
    let scene = Scene::new();
    scene.train("tiny-llama", "whole", SHORT).run().assert_done();
    let run = scene.path("run");
    let running = struck(&scene, SHORT, "1@data#8/1=kill").words("--max-restarts 3").start();
    let at = struck_at(&run, 7);
    let begun = wait_for("a step of the next membership", || {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
        text.split_once("\"restart\":2").filter(|(_, after)| after.contains("\"loss\":")).map(|_| at.elapsed())
    });
    let ended = running.finish();
    ended.assert_done();
    ended.assert_says(&["was killed by SIGKILL", "restart 1 of at most 3"]);
    assert!(ended.out.contains("resuming after step 4") && ended.out.contains("begun again once"), "{ended}");
    assert_eq!(Metrics::of(&run).exact(), Metrics::of(&scene.path("whole")).exact());
    let model = |run: &str| std::fs::read(scene.path(run).join("model/model.safetensors")).unwrap();
    assert!(model("run") == model("whole"), "the models differ");
    assert!(begun < Duration::from_secs(30), "{begun:?}");
    println!("begun again after {:.1} s", begun.as_secs_f64());
}

#[test]
fn a_job_without_a_checkpoint_begins_from_the_beginning() {
    let scene = Scene::new();
    scene.train("tiny-llama", "whole", SHORT).run().assert_done();
    let ended = struck(&scene, SHORT, "0@data#3/1=segv").words("--max-restarts 1").run();
    ended.assert_done();
    ended.assert_says(&["no step was saved yet: from the beginning"]);
    assert_eq!(Metrics::of(&scene.path("run")).exact(), Metrics::of(&scene.path("whole")).exact());
}

/// Contract 8.
#[test]
fn the_same_failure_again_is_not_tried_for_ever() {
    let scene = Scene::new();
    let ended = struck(&scene, SHORT, "1@data#3=exit1").words("--max-restarts 50").run();
    assert_eq!(ended.code, Some(1), "{ended}");
    ended.assert_says(&["restart 1 of at most 50", "not begun again: it failed 2 times in a row at the same step"]);
    assert!(!ended.err.contains("restart 2 of"), "{ended}");
    let ended = struck(&scene, SHORT, "1@data#3=kill").words("--max-restarts 1 --output_dir other").run();
    assert_eq!(ended.code, Some(1), "{ended}");
    ended.assert_says(&["not begun again: it was begun again 1 times (--max-restarts)"]);
}
