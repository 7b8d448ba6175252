//! The binary `launch` as a person runs it, with stand-in workers (`examples/stand_in_worker.rs`).

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A folder with a model and data just good enough for the checks before the start.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        std::fs::create_dir(&model).unwrap();
        let config = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 100, "eos_token_id": 2, "hidden_size": 8,
            "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}"#;
        std::fs::write(model.join("config.json"), config).unwrap();
        let tokenizer = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "[UNK]": 2}, "unk_token": "[UNK]"}}"#;
        std::fs::write(model.join("tokenizer.json"), tokenizer).unwrap();
        std::fs::write(model.join("tokenizer_config.json"), r#"{"eos_token": "[UNK]"}"#).unwrap();
        let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let weights = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
        std::fs::write(model.join("model.safetensors"), weights).unwrap();
        std::fs::write(folder.path().join("data.jsonl"), "{\"input_ids\": [1, 0, 1, 2]}\n".repeat(8)).unwrap();
        Fixture { folder }
    }

    fn run_folder(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn command(&self, words: &[&str]) -> Command {
        let worker = stand_in_worker();
        let mut command = Command::new(env!("CARGO_BIN_EXE_launch"));
        command.args(words).current_dir(self.folder.path()).env("ZEROFOLD_WORKER", worker);
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", self.folder.path().join("hf"));
        command.env_remove("STAND_IN").env_remove("STAND_IN_STEPS").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn train(&self, roles: &str, more: &[&str]) -> Command {
        let base = ["--nproc", "2", "train", "--model_name_or_path", "model", "--dataset", "data.jsonl"];
        let rest = ["--output_dir", "run", "--max_steps", "3", "--logging_steps", "1"];
        let mut command = self.command(&[&base[..], &rest[..], more].concat());
        command.env("STAND_IN", roles);
        command
    }
}

fn stand_in_worker() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let worker = tests.ancestors().nth(2).unwrap().join("examples/stand_in_worker");
    assert!(worker.is_file(), "{} is missing: run the crate's tests without --test", worker.display());
    worker
}

/// Waits for the end, at most 15 s.
fn finish(mut child: Child) -> Output {
    let deadline = Instant::now() + Duration::from_secs(15);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("launch hangs: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn run(command: &mut Command) -> (i32, String, String) {
    let output = finish(command.spawn().unwrap());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// The pids of the workers, from their logs, once all of them have written it.
fn worker_pids(run: &Path, count: u32) -> Vec<u32> {
    let pid = |rank| {
        let log = std::fs::read_to_string(run.join("logs").join(format!("rank-{rank}.log"))).ok()?;
        log.split_once("pid ")?.1.split_once(' ')?.0.parse().ok()
    };
    wait_for("pids in the logs", || (0..count).map(pid).collect::<Option<Vec<u32>>>())
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_alive(pid: u32) -> bool {
    // A zombie that nobody has reaped yet (the workers' new parent may be slow) runs no more.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn assert_ended(pids: &[u32]) {
    wait_for("end of the workers", || pids.iter().all(|&pid| !is_alive(pid)).then_some(()));
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

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

fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: kill takes numbers only; the child is not reaped yet.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
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

/// A run's status as JSON, or nothing while its launch does not answer yet.
fn status(fixture: &Fixture) -> Option<serde_json::Value> {
    let (code, out, _) = run(&mut fixture.command(&["status", "run", "--json"]));
    (code == 0).then(|| serde_json::from_str(&out).unwrap())
}

fn get(address: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    std::io::Write::write_all(&mut stream, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_run_is_watched_while_it_works_and_told_of_when_it_is_over() {
    let fixture = Fixture::new();
    let mut child = fixture.train("0:endless,1:endless", &["--metrics_port", "0"]).spawn().unwrap();
    let heard = |told: &serde_json::Value| {
        let ranks = told["ranks"].as_array().unwrap();
        told["job"]["step"] != 0 && ranks.iter().all(|rank| rank["memory_bytes"] != 0)
    };
    let told = wait_for("status of a finished step, and of every rank", || status(&fixture).filter(heard));
    assert_eq!((&told["job"]["state"], &told["job"]["total_steps"]), (&"training".into(), &3.into()));
    assert_eq!((&told["job"]["generation"], &told["job"]["restarts"]), (&1.into(), &0.into()));
    assert!(told["job"]["last_step"]["tokens_per_second"] == 10000.0, "{told}");
    assert_eq!(told["job"]["last_evaluation"]["eval_loss"], 3.0);
    let pids = worker_pids(&fixture.run_folder(), 2);
    for (rank, pid) in told["ranks"].as_array().unwrap().iter().zip(&pids) {
        assert_eq!((&rank["pid"], &rank["memory_bytes"]), (&(*pid).into(), &(1 << 20).into()), "{told}");
        assert!(rank["heard_seconds"].as_f64().unwrap() < 15.0, "{told}");
    }
    let (code, out, _) = run(&mut fixture.command(&["status", "run"]));
    assert_eq!(code, 0);
    assert_has(&out, &["job    training, step ", " of 3", "rank  host", "\nloss   ", "saved  nothing so far"]);

    let control = std::fs::read_to_string(fixture.run_folder().join("control.json")).unwrap();
    let control: serde_json::Value = serde_json::from_str(&control).unwrap();
    let metrics = get(control["metrics"].as_str().unwrap());
    assert_has(
        &metrics,
        &["zerofold_up 1\n", "zerofold_tokens_per_second 10000\n", "zerofold_rank_memory_bytes{rank=\"1\","],
    );

    signal(&child, libc::SIGTERM);
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert_has(&out, &["watch  http://127.0.0.1:"]);
    assert!(!fixture.run_folder().join("control.json").exists());
    let (code, out, _) = run(&mut fixture.command(&["status", "run"]));
    assert_eq!(code, 1);
    assert_has(&out, &["no launch is at work in run; its last step is ", " ago (loss "]);
    let (code, _, err) = run(&mut fixture.command(&["status", "nowhere"]));
    assert_eq!(code, 2);
    assert_has(&err, &["nowhere: there is no such folder\nhint: give the output_dir of a run"]);
}

#[test]
fn a_port_for_metrics_that_is_taken_is_told_before_anything_is_touched() {
    let fixture = Fixture::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, _, err) = run(&mut fixture.train("", &["--metrics_port", &port]));
    assert_eq!(code, 2);
    assert_has(&err, &["(metrics_port) is in use by another process\nhint: choose another"]);
    assert!(!fixture.run_folder().exists());
}

#[test]
fn messages_are_one_object_a_line_where_that_was_asked_for() {
    let fixture = Fixture::new();
    let by_flag: fn(&Fixture) -> Command = |fixture| fixture.train("1:panic", &["--log-format", "json"]);
    let by_environment: fn(&Fixture) -> Command = |fixture| {
        let mut command = fixture.train("1:panic", &["--output_dir", "other"]);
        command.env("ZEROFOLD_LOG_FORMAT", "json");
        command
    };
    for job in [by_flag, by_environment] {
        let (code, out, err) = run(job(&fixture).env("ZEROFOLD_LOG", "debug"));
        assert_eq!(code, 1, "{err}");
        let read = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("{line}"));
        let lines: Vec<_> = out.lines().chain(err.lines()).map(read).collect();
        assert!(lines.iter().all(|line| line["timestamp"].is_string() && line["generation"] == 1), "{err}");
        let of = |part: &str| {
            let has = |line: &&serde_json::Value| line["message"].as_str().unwrap().contains(part);
            lines.iter().find(has).unwrap_or_else(|| panic!("no {part} in {out}{err}"))
        };
        assert_eq!((&of("something went wrong")["rank"], &of("very wrong")["rank"]), (&1.into(), &1.into()));
        assert_eq!(of("control plane listens")["level"], "DEBUG");
        assert!(of("control plane listens")["address"].is_string());
        let failure = of("rank 1 (pid");
        assert_eq!((&failure["level"], failure.get("rank")), (&"ERROR".into(), None));
        assert!(failure["message"].as_str().unwrap().contains("\n  | very wrong\n"), "{failure}");
    }
    let log = std::fs::read_to_string(fixture.run_folder().join("logs/rank-1.log")).unwrap();
    for line in log.lines() {
        assert_eq!(serde_json::from_str::<serde_json::Value>(line).unwrap()["rank"], 1, "{log}");
    }
    let (code, _, err) = run(fixture.train("", &[]).env("ZEROFOLD_LOG_FORMAT", "xml"));
    assert_eq!(code, 2);
    assert_has(&err, &["ZEROFOLD_LOG_FORMAT is xml, which is no form of messages\nhint: "]);
}
