//! The binary `launch` as a person runs it, with stand-in workers (`examples/stand_in_worker.rs`).

mod fixture;
mod watched;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::Child;

use fixture::{Fixture, assert_ended, assert_has, finish, is_alive, run, signal, wait_for, worker_pids};

#[test]
fn a_missing_folder_for_optimizer_state_stops_the_job_before_it_starts() {
    let fixture = Fixture::new();
    let words = ["--zero_stage", "3", "--offload_optimizer_device", "nvme", "--offload_optimizer_nvme_path", "no/such"];
    let (code, out, err) = run(&mut fixture.train("0:checkpoint,1:checkpoint", &words));
    assert_eq!((code, out.as_str()), (2, ""), "{err}");
    let place = "flag --offload_optimizer_nvme_path: offload_optimizer_nvme_path is no/such: there is no such folder";
    assert_has(&err, &[place, "\nhint: if the path is right, make the folder: mkdir -p no/such"]);
    assert!(!fixture.folder.path().join("no").exists() && !fixture.run_folder().exists());
    std::fs::create_dir_all(fixture.folder.path().join("no/such")).unwrap();
    let (code, _, err) = run(&mut fixture.train("0:checkpoint,1:checkpoint", &words));
    assert_eq!(code, 0, "{err}");
}

#[test]
fn a_job_runs_to_its_end_and_fills_the_run_folder() {
    let fixture = Fixture::new();
    let (code, out, err) = run(&mut fixture.train("0:checkpoint,1:checkpoint", &[]));
    assert_eq!(code, 0, "{out}\n{err}");
    let told = [
        "8 rows, 32 tokens, 75.0 % supervised",
        "first example, the loss is taken on what stands in ⟦ ⟧",
        "2 ranks",
        "8 × 1 × 2 = 16 rows a step",
        "step 1/3",
        "step 3/3",
        "held-out loss after step 1: 3.0000",
        "checkpoint of step 3",
        "loss 2.0000 → 0.6667",
        "peak memory 2.00 MiB per rank",
        "bytes per rank",
        "  parameters",
        "  peak in a step",
        "launch generate --model the/model --chat \"Hello\"",
    ];
    assert_has(&out, &told);
    assert_has(&err, &["[rank 0] pid", "[rank 1] pid"]);
    let run = fixture.run_folder();
    let metrics = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 5, "{metrics}");
    assert_has(&metrics, &["\"loss\":2.0", "\"eval_loss\":3.0", "\"tokens_per_second\":10000.0"]);
    assert_has(&metrics, &["\"step\":3,\"checkpoint\":\"checkpoints/step-00000003\",\"seconds\":"]);
    let log = std::fs::read_to_string(run.join("logs/rank-1.log")).unwrap();
    assert_has(&log, &["rank 1 writes to standard output", "is checkpoint"]);
    let plan = std::fs::read_to_string(run.join("plan.json")).unwrap();
    assert_has(&plan, &["\"planned\"", "\"length\": 4", "\"live_peak\": 3145728"]);
    assert!(run.join("checkpoints/step-00000003/manifest.json").is_file());
    assert!(run.join("data/train.safetensors").is_file() && run.join("config.resolved.yaml").is_file());

    let (code, _, err) = run_again(&fixture, &[]);
    assert_eq!(code, 2);
    assert_has(&err, &["error: output_dir: ", "not empty", "--resume"]);
    let (code, out, err) = run_again(&fixture, &["--resume"]);
    assert_eq!(code, 0, "{out}\n{err}");
    assert_has(&out, &["resuming after step 3"]);
    let (code, _, err) = run_again(&fixture, &["--resume=99"]);
    assert_eq!(code, 2);
    assert_has(&err, &["step-00000099", "hint: saved are the steps 3: "]);
    let (code, out, err) = run_again(&fixture, &["--resume", "--gradient_accumulation_steps", "3"]);
    assert_eq!(code, 0, "{out}\n{err}");
    assert_has(&err, &["note: a step takes 48 rows from here on and took 16 before, so the run has "]);
    let (code, _, err) = run_again(&fixture, &["--resume", "--seed", "7"]);
    assert_eq!(code, 2);
    assert_has(&err, &["seed of the order of the rows 42 there, 7 here (data_seed, else seed)"]);
    let (code, out, err) = run_again(&fixture, &["--resume", "--nproc", "1"]);
    assert_eq!(code, 0, "{out}\n{err}");
    assert_has(&out, &["resuming after step 3 from ", ", saved by 2 ranks at stage 0"]);
}

fn run_again(fixture: &Fixture, more: &[&str]) -> (i32, String, String) {
    run(&mut fixture.train("", more))
}

#[test]
fn the_first_cause_is_told_first() {
    // Roles, then what the error must begin with, then what follows.
    let cases = [
        ("0:endless,1:crash", "error: rank 1 (pid ", &["was killed by SIGKILL", "hint: "][..]),
        (
            "0:consequence,1:fail",
            "error: rank 1 (pid ",
            &["the loss is gone", "then: rank 0 (pid ", "a peer went away"],
        ),
        ("0:endless,1:panic", "error: rank 1 (pid ", &["exited with code 101", "  | very wrong"]),
        ("0:leave-early,1:endless", "error: rank 0 (pid ", &["exited with code 0 before its work was done"]),
    ];
    std::thread::scope(|scope| {
        for (roles, first, rest) in cases {
            scope.spawn(move || {
                let fixture = Fixture::new();
                let (code, _, err) = run(&mut fixture.train(roles, &[]));
                assert_eq!(code, 1, "{roles}: {err}");
                let line = err
                    .lines()
                    .find(|line| !line.starts_with('[') && !line.starts_with("warning: "))
                    .unwrap_or_default();
                assert!(line.starts_with(first), "{roles}: {err}");
                assert_has(&err, rest);
                assert_has(&err, &["logs/rank-"]);
                assert_ended(&worker_pids(&fixture.run_folder(), 2));
            });
        }
    });
}

#[test]
fn a_rank_that_never_joins_is_named() {
    let fixture = Fixture::new();
    let (code, _, err) = run(&mut fixture.train("0:endless,1:silent", &["--timeout", "1"]));
    assert_eq!(code, 1, "{err}");
    assert_has(&err, &["error: rank 1 (pid ", "did not join the job within 1.0 s", "hint: "]);
    assert_ended(&worker_pids(&fixture.run_folder(), 2));
}

/// Starts a job and waits until its first step is told.
fn start(fixture: &Fixture, roles: &str) -> (Child, Vec<u32>) {
    let child = fixture.train(roles, &[]).spawn().unwrap();
    let metrics = fixture.run_folder().join("metrics.jsonl");
    wait_for("step", || std::fs::metadata(&metrics).ok().filter(|metadata| metadata.len() > 0));
    (child, worker_pids(&fixture.run_folder(), 2))
}

#[test]
fn signals_stop_the_job_after_its_step() {
    for (number, code, name) in [(libc::SIGINT, 130, "Ctrl-C"), (libc::SIGTERM, 143, "SIGTERM")] {
        let fixture = Fixture::new();
        let (child, pids) = start(&fixture, "0:endless,1:endless");
        signal(&child, number);
        let output = finish(child);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{err}");
        assert_has(&err, &[&format!("{name}: stopping after the current step"), "stopped; no checkpoint was written"]);
        assert_ended(&pids);
    }
}

#[test]
fn a_folder_in_use_is_left_alone() {
    let fixture = Fixture::new();
    let (child, pids) = start(&fixture, "0:endless,1:endless");
    let in_use = format!("another launch (pid {}) is using this folder\nhint: ", child.id());
    for more in [&[][..], &["--resume"], &["--resume", "7"]] {
        let (code, _, err) = run_again(&fixture, more);
        assert_eq!(code, 2, "{err}");
        assert_has(&err, &[&in_use]);
    }
    assert!(pids.iter().all(|&pid| is_alive(pid)));
    signal(&child, libc::SIGTERM);
    assert_eq!(finish(child).status.code(), Some(143));
}

#[test]
fn a_second_signal_stops_at_once_and_a_third_kills() {
    let fixture = Fixture::new();
    let (mut child, pids) = start(&fixture, "0:deaf,1:deaf");
    let mut err = BufReader::new(child.stderr.take().unwrap());
    signal(&child, libc::SIGINT);
    read_until(&mut err, "stopping after the current step");
    signal(&child, libc::SIGINT);
    read_until(&mut err, "stopping the workers at once");
    signal(&child, libc::SIGINT);
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    assert_ended(&pids);
}

fn read_until(reader: &mut impl BufRead, part: &str) {
    let mut line = String::new();
    while !line.contains(part) {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "no {part:?}");
    }
}

#[test]
fn no_worker_outlives_a_killed_launch() {
    let fixture = Fixture::new();
    let (mut child, pids) = start(&fixture, "0:deaf,1:deaf");
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert_ended(&pids);
}

#[test]
fn bad_starts_have_one_clear_error() {
    let fixture = Fixture::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    std::fs::write(fixture.folder.path().join("broken.jsonl"), "{\"input_ids\": [1, 0]}\n{\"input_ids\": \n").unwrap();
    let cases: [(&[&str], &[&str]); 6] = [
        (&["--main_process_port", &port], &[&port, "in use", "hint: "]),
        (&["--model_name_or_path", "org/name"], &["org/name", "hint: "]),
        (&["--dataset", "broken.jsonl"], &["broken.jsonl:2", "hint: "]),
        (&["--set", "learning_rat=1"], &["learning_rat", "learning_rate"]),
        (&["--learning_rat", "1"], &["--learning_rate"]),
        (&["train.py"], &["launch runs no script"]),
    ];
    for (words, parts) in cases {
        let (code, out, err) = run(&mut fixture.train("", words));
        assert_eq!(code, 2, "{words:?}: {out}\n{err}");
        assert_has(&err, parts);
        assert!(err.starts_with("error: "), "{err}");
        assert!(!fixture.run_folder().join("logs/rank-0.log").metadata().is_ok_and(|log| log.len() > 0), "{words:?}");
    }
    // None of them is in the way of the next start.
    assert_eq!(run(&mut fixture.train("", &[])).0, 0);
}

#[test]
fn generate_hands_over_to_the_worker() {
    let fixture = Fixture::new();
    let (code, out, err) = run(&mut fixture.command(&["generate", "--model", "model", "--chat", "Hello"]));
    assert_eq!(code, 7, "{err}");
    assert_has(&out, &["\"prompt\":\"Hello\"", "\"chat\":true", "\"model\":\"model\""]);
    let (code, _, err) = run(&mut fixture.command(&["generate", "--model", "nowhere", "--chat", "Hello"]));
    assert_eq!(code, 2);
    assert_has(&err, &["nowhere", "hint: "]);
}

#[test]
fn a_closed_pipe_does_not_end_the_job() {
    let fixture = Fixture::new();
    let mut child = fixture.train("", &["--logging_steps", "1"]).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 1]).unwrap();
    drop(out);
    let output = finish(child);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn help_shows_examples_and_keys() {
    let fixture = Fixture::new();
    let (code, out, _) = run(&mut fixture.command(&["--help"]));
    assert_eq!(code, 0);
    assert_has(&out, &["Examples:", "launch --nproc 2 --config zero3.yaml train", "generate", "--resume"]);
    assert!(!out.contains("--learning_rate <"), "{out}");
    let (_, out, _) = run(&mut fixture.command(&["train", "--help"]));
    let also = zerofold_configs::other_keys();
    assert!(also.contains(&"fsdp_transformer_layer_cls_to_wrap") && also.contains(&"distributed_type"), "{also:?}");
    also.iter().for_each(|key| assert!(out.contains(key), "{key} is not in the help"));
    assert_has(&out, &["--learning_rate <X>", "[default: 2e-5]", "Optimizer and schedule", "[required]"]);
}
