//! What those who watch a run are told.

use std::io::Read;
use std::process::Command;

use crate::fixture::{Fixture, assert_has, run, signal, wait_for, worker_pids};

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
