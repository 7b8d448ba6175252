//! Several hosts: one launch on each. Where namespaces are not permitted, those tests that need a network say so.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use zerofold_tests::{Ended, Job, Metrics, Network, Running, Scene, checkpoints, signal};

const TOKEN: &str = "a-token-of-these-tests-0123456789";
/// Only the words behind it, or the end, make it save.
const ENDLESS: &str = "--per_device_train_batch_size 2 --max_steps 100000 --save_steps 100000";

/// A launch of a job on `nodes` hosts that meet at `endpoint`, one rank each unless `words` say otherwise.
fn host<'a>(scene: &'a Scene, nodes: &str, node_rank: u32, endpoint: &str, words: &str) -> Job<'a> {
    let job = scene.train("tiny-llama", "run", "--nproc 1 --backend gloo").with("--nnodes", nodes);
    let job = job.with("--node-rank", node_rank.to_string()).with("--rdzv-endpoint", endpoint).words(words);
    job.adjust(|command| {
        command.env("ZEROFOLD_TOKEN", TOKEN);
    })
}

/// An endpoint on this host that is free.
fn endpoint() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn steps(running: &mut Running, run: &Path, count: usize) {
    running.wait_for(&format!("{count} steps"), || (Metrics::of(run).count() >= count).then_some(()));
}

/// What a launch that runs has said so far.
fn said(scene: &Scene, launch: u32) -> String {
    std::fs::read_to_string(scene.path(&format!("launch-{launch}.err"))).unwrap_or_default()
}

fn losses(run: &Path) -> Vec<f64> {
    Metrics::of(run).steps().iter().map(|step| step["loss"].as_f64().unwrap()).collect()
}

#[test]
fn losses_on_two_and_four_hosts_are_those_of_one() {
    let Some(network) = Network::make(4) else { return };
    let words = "--zero_stage 2 --max_steps 4 --per_device_train_batch_size 1";
    for hosts in [2, 4] {
        let scene = Scene::new();
        let endpoint = format!("{}:29400", network.address(0));
        let nodes = hosts.to_string();
        let on = |node_rank| host(&scene, &nodes, node_rank, &endpoint, words).on(&network, node_rank);
        let coordinator = on(0).start();
        if hosts == 2 {
            let stranger = on(1).adjust(|command| {
                command.env("ZEROFOLD_TOKEN", "another-token-of-these-tests-0123456789");
            });
            stranger.start().finish().assert_failed(2, &["refuses", "does not have this job's token", "hint: "]);
        }
        let agents: Vec<Running> = (1..hosts).map(|node_rank| on(node_rank).start()).collect();
        let ended = coordinator.finish();
        ended.assert_done();
        assert!(!ended.err.contains(TOKEN), "{ended}");
        agents.into_iter().for_each(|agent| agent.finish().assert_done());
        let alone = scene.train("tiny-llama", "alone", words).with("--nproc", &nodes).words("--backend gloo").run();
        alone.assert_done();
        let (many, one) = (losses(&scene.path("run")), losses(&scene.path("alone")));
        assert_eq!(many.len(), 4);
        assert_eq!(many, one, "{hosts} hosts");
        for file in ["config.resolved.yaml", "logs/rank-0.log", "logs/rank-1.log", "metrics.jsonl"] {
            let text = std::fs::read_to_string(scene.path("run").join(file)).unwrap();
            assert!(!text.contains(TOKEN), "the token is in {file}");
        }
    }
}

#[test]
fn a_cut_link_is_named_the_job_goes_on_with_fewer_and_takes_the_host_back() {
    let Some(network) = Network::make(3) else { return };
    let scene = Scene::new();
    let run = scene.path("run");
    let endpoint = format!("{}:29400", network.address(0));
    let words =
        format!("{ENDLESS} --save_steps 2 --save_total_limit 2 --max-restarts 3 --rdzv-conf last_call_timeout=2");
    let on = |node_rank| host(&scene, "2:3", node_rank, &endpoint, &words).on(&network, node_rank);
    let mut coordinator = on(0).start();
    let (first, second) = (on(1).start(), on(2).start());
    steps(&mut coordinator, &run, 3);
    network.cut(2);
    let cut = Instant::now();
    coordinator.wait_for("the word of the lost host", || {
        said(&scene, 0).contains("(rank 2) has not been heard from for 10 s").then_some(())
    });
    let after = cut.elapsed();
    assert!((9..20).contains(&after.as_secs()), "{after:?}");
    coordinator.wait_for("fewer", || said(&scene, 0).contains("goes on with 2 processes in place of 3").then_some(()));
    let reached = Metrics::of(&run).count();
    steps(&mut coordinator, &run, reached + 2);
    // It is back before the next membership, which begins when another rank dies.
    network.heal(2);
    coordinator.wait_for("the host to come back", || {
        (said_out(&scene, 2).matches("offered 1 rank to host 0").count() == 2).then_some(())
    });
    let victim = scene.rank(1);
    signal(victim.pid, libc::SIGKILL);
    coordinator
        .wait_for("all three", || said(&scene, 0).contains("goes on with 3 processes in place of 2").then_some(()));
    let reached = Metrics::of(&run).count();
    steps(&mut coordinator, &run, reached + 2);
    coordinator.signal(libc::SIGTERM);
    let ended = coordinator.finish();
    assert_eq!(ended.code, Some(143), "{ended}");
    for agent in [first, second] {
        let ended = agent.finish();
        assert_eq!(ended.code, Some(143), "{ended}");
        ended.assert_says(&["the job was stopped by SIGTERM"]);
    }
    scene.assert_nobody_left();
}

#[test]
fn without_tls_all_hosts_are_without_it_and_who_is_not_is_told() {
    let Some(network) = Network::make(2) else { return };
    let scene = Scene::new();
    let endpoint = format!("{}:29400", network.address(0));
    let on = |node_rank, words: &str| {
        let words = format!("--zero_stage 2 --max_steps 2 {words}");
        host(&scene, "2", node_rank, &endpoint, &words).on(&network, node_rank)
    };
    let ended = on(0, "--no-tls --interface nowhere0").start().finish();
    ended.assert_failed(2, &["--interface nowhere0: this host has no such interface", "hint: it has "]);
    let mut coordinator = on(0, "--no-tls").start();
    let encrypted = on(1, "").start().finish();
    encrypted.assert_failed(2, &["it does not speak TLS", "hint: give --no-tls on every host or on none"]);
    coordinator.wait_for("the word of the one who speaks TLS", || {
        said(&scene, 1).contains("it speaks TLS, and this launch does not").then_some(())
    });
    let agent = on(1, &format!("--no-tls --interface {}", network.address(1))).start();
    coordinator.finish().assert_done();
    agent.finish().assert_done();
    let mut coordinator = on(0, "--output_dir encrypted").start();
    let plain = on(1, "--no-tls --rdzv-conf join_timeout=3").start().finish();
    plain.assert_failed(1, &["it does not answer without TLS", "hint: give --no-tls on every host or on none"]);
    coordinator.wait_for("the word of the one who speaks without TLS", || {
        said(&scene, 4).contains("it speaks without it (give --no-tls on every host or on none)").then_some(())
    });
}

#[test]
fn two_launches_on_one_machine_meet_over_ipv6_and_share_its_processors() {
    let Ok(free) = TcpListener::bind("[::1]:0") else {
        eprintln!("not tested: this machine has no IPv6");
        return;
    };
    let endpoint = free.local_addr().unwrap().to_string();
    drop(free);
    let scene = Scene::new();
    let on = |node_rank| {
        let job = host(&scene, "2", node_rank, &endpoint, &format!("--zero_stage 3 {ENDLESS}"));
        job.adjust(|command| {
            command.env_remove("OMP_NUM_THREADS");
        })
    };
    let (mut coordinator, agent) = (on(0).start(), on(1).start());
    steps(&mut coordinator, &scene.path("run"), 1);
    let threads = (std::thread::available_parallelism().unwrap().get() / 2).max(1);
    for rank in 0..2 {
        let environment = std::fs::read(format!("/proc/{}/environ", scene.rank(rank).pid)).unwrap();
        let told = format!("OMP_NUM_THREADS={threads}");
        assert!(environment.split(|byte| *byte == 0).any(|it| it == told.as_bytes()), "rank {rank} has not {told}");
    }
    agent.signal(libc::SIGTERM);
    let ended = coordinator.finish();
    assert_eq!((ended.code, agent.finish().code), (Some(143), Some(143)), "{ended}");
    ended.assert_says(&["was asked to stop by SIGTERM"]);
    let words = if threads == 1 { "1 thread,".to_owned() } else { format!("{threads} threads,") };
    assert!(ended.out.contains(&format!("job    2 ranks × {words}")), "{ended}");
}

#[test]
fn a_job_that_waits_for_a_lost_host_says_so_and_tells_the_cause_when_nobody_comes() {
    let scene = Scene::new();
    let run = scene.path("run");
    let endpoint = endpoint();
    let on = |node_rank| {
        let words = format!("{ENDLESS} --save_steps 1 --max-restarts 1 --rdzv-conf join_timeout=15");
        host(&scene, "2", node_rank, &endpoint, &words)
    };
    let (mut coordinator, agent) = (on(0).start(), on(1).start());
    steps(&mut coordinator, &run, 2);
    agent.signal(libc::SIGKILL);
    assert_eq!(agent.finish().signal, Some(libc::SIGKILL));
    coordinator.wait_for("the status of the wait", || {
        let words = format!("status {}", run.display());
        let status = scene.launch(&words).adjust(|command| {
            command.env("ZEROFOLD_TOKEN", TOKEN);
        });
        let told = status.start().finish().out;
        let waits = told.contains("waiting for hosts, 1 of 2 are here, ") && !told.contains("rank  host");
        (waits && told.contains("1 restart, the last one: host ")).then_some(())
    });
    let ended = coordinator.finish();
    assert_eq!(ended.code, Some(1), "{ended}");
    // The cause is said when the wait begins, and again where it is over.
    let (before, after) =
        ended.err.split_once("not begun again: 1 of at least 2 hosts came within 15").expect("the wait");
    assert!(before.contains("error: host ") && after.contains("error: host "), "{ended}");
    assert!(after.contains("\nnewest checkpoint: ") && after.contains("\ngo on: "), "{ended}");
    scene.assert_nobody_left();
}

/// What a launch that runs has written to its standard output so far.
fn said_out(scene: &Scene, launch: u32) -> String {
    std::fs::read_to_string(scene.path(&format!("launch-{launch}.out"))).unwrap_or_default()
}

#[test]
fn strangers_are_refused_and_disturb_nobody() {
    let scene = Scene::new();
    let endpoint = endpoint();
    let words = "--zero_stage 1 --max_steps 2";
    let agent = |words: &str| host(&scene, "2", 1, &endpoint, words);
    let alone = agent(words).adjust(|command| {
        command.env_remove("ZEROFOLD_TOKEN");
    });
    alone.start().finish().assert_failed(2, &["needs a token", "launch token FILE", "--token-file FILE"]);

    let mut coordinator = host(&scene, "2", 0, &endpoint, words).start();
    coordinator.wait_for("the coordinator", || said_out(&scene, 1).contains("1 of 2 hosts are here").then_some(()));
    let other_token = agent(words).adjust(|command| {
        command.env("ZEROFOLD_TOKEN", "another-token-of-these-tests-0123456789");
    });
    let refused = |job: Job<'_>, parts: &[&str]| {
        let began = Instant::now();
        job.start().finish().assert_failed(2, parts);
        assert!(began.elapsed() < Duration::from_secs(20), "at once");
    };
    refused(other_token, &["host 0 refuses this one: the token is not this job's", "--token-file"]);
    refused(
        agent("--zero_stage 1 --max_steps 3"),
        &["another configuration: training.max_steps is 2 on host 0 and 3 there"],
    );
    refused(agent(words).words("--rdzv-id other"), &["run \"other\", this is \"default\"", "--rdzv-id"]);
    refused(agent(words).words("--nnodes 3"), &["for 3 hosts, host 0 for 2"]);
    let agent = agent(words).start();
    let ended = coordinator.finish();
    ended.assert_done();
    for part in [
        "it has another token",
        "it was given another configuration: training.max_steps",
        "it belongs to run \"other\"",
    ] {
        let told = ended.err.matches(&format!("refused 127.0.0.1: {part}")).count();
        assert_eq!(told, 1, "{part}: {ended}");
    }
    agent.finish().assert_done();
    scene.assert_nobody_left();
}

#[test]
fn a_stop_of_any_host_stops_the_whole_job_with_a_checkpoint() {
    let scene = Scene::new();
    let run = scene.path("run");
    let endpoint = endpoint();
    let on = |node_rank| host(&scene, "2", node_rank, &endpoint, ENDLESS);
    let (mut coordinator, agent) = (on(0).start(), on(1).start());
    steps(&mut coordinator, &run, 3);
    agent.signal(libc::SIGTERM);
    let stopped = |ended: Ended| assert_eq!(ended.code, Some(143), "{ended}");
    stopped(coordinator.finish());
    let ended = agent.finish();
    ended.assert_says(&["SIGTERM: host 0 is asked to stop the job after its step", "the job was stopped by SIGTERM"]);
    stopped(ended);
    assert_eq!(checkpoints(&run).len(), 1);
    scene.assert_nobody_left();
}

#[test]
fn a_dead_rank_is_named_with_its_host_and_agents_end_with_the_verdict() {
    let scene = Scene::new();
    let run = scene.path("run");
    let endpoint = endpoint();
    let on = |node_rank| host(&scene, "2", node_rank, &endpoint, ENDLESS);
    let (mut coordinator, agent) = (on(0).start(), on(1).start());
    steps(&mut coordinator, &run, 2);
    let victim = scene.rank(1);
    signal(victim.pid, libc::SIGKILL);
    let ended = coordinator.finish();
    ended.assert_failed(1, &["error: rank 1 (host ", &format!("pid {}) was killed by SIGKILL", victim.pid)]);
    let ended = agent.finish();
    assert_eq!(ended.code, Some(1), "{ended}");
    ended.assert_says(&["the job failed: rank 1 (host ", "details on host 0"]);

    // And when the agent itself is killed, its ranks go with it.
    let scene = Scene::new();
    let on = |node_rank| host(&scene, "2", node_rank, &endpoint, ENDLESS);
    let (mut coordinator, agent) = (on(0).start(), on(1).start());
    steps(&mut coordinator, &scene.path("run"), 2);
    agent.signal(libc::SIGKILL);
    assert_eq!(agent.finish().signal, Some(libc::SIGKILL));
    coordinator.finish().assert_failed(1, &["error: host ", "(rank 1) lost its connection"]);
    scene.assert_nobody_left();
}
