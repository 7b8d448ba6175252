//! The control plane through its own wire, in one process.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use tonic::Code;
use zerofold_launcher::control::{ControlError, ControlOptions, ControlPlane, Listen};
use zerofold_launcher::event::Event;
use zerofold_proto::v1::control_client::ControlClient;
use zerofold_proto::v1::*;
use zerofold_trust::{Wire, connect};

fn start(world_size: u32, port: Option<u16>) -> Result<(ControlPlane, Receiver<Event>), ControlError> {
    let (events, received) = mpsc::channel();
    let publish = |directory: &Path, parts: Result<Vec<Vec<u8>>, String>| {
        let parts = parts?;
        match parts.iter().any(Vec::is_empty) {
            true => Err("an empty part".to_owned()),
            false => Ok(format!("{}/{}", directory.display(), String::from_utf8_lossy(&parts.concat()))),
        }
    };
    let options = ControlOptions::new(Listen::loopback(port).unwrap(), world_size, 1, Arc::new(publish));
    ControlPlane::start(options, events).map(|control| (control, received))
}

/// Runs a test against a control plane for `world_size` ranks, with a limit on its time.
fn with_clients(world_size: u32, test: impl AsyncFnOnce(ControlPlane, Receiver<Event>, Vec<ControlClient<Wire>>)) {
    let (control, received) = start(world_size, None).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..world_size {
            clients.push(ControlClient::new(
                connect(&control.contact().url(), &control.contact().token, Duration::from_secs(20)).await.unwrap(),
            ));
        }
        tokio::time::timeout(Duration::from_secs(20), test(control, received, clients)).await.expect("the test hangs");
    });
}

fn join(rank: u32, world_size: u32) -> JoinRequest {
    JoinRequest { rank, world_size, generation: 1, pid: 1, version: env!("CARGO_PKG_VERSION").into(), nonce: 0 }
}

/// All join; what is heard of that is not what the test is about.
async fn join_all(clients: &mut [ControlClient<zerofold_trust::Wire>], received: &Receiver<Event>) {
    let world_size = clients.len() as u32;
    for (rank, client) in (0..).zip(clients) {
        client.join(join(rank, world_size)).await.unwrap();
        assert!(matches!(received.try_recv(), Ok(Event::Joined { .. })));
    }
}

fn part(rank: u32, step: u64, part: &str) -> CheckpointPart {
    CheckpointPart { rank, generation: 1, step, directory: "folder".into(), part: part.into(), failure: String::new() }
}

#[test]
fn misfits_may_not_join() {
    with_clients(2, async |_control, received, mut clients| {
        clients[0].join(join(0, 2)).await.unwrap();
        assert!(matches!(received.try_recv(), Ok(Event::Joined { rank: 0 })));
        let cases = [
            (join(0, 2), Code::AlreadyExists),
            (join(2, 2), Code::FailedPrecondition),
            (join(1, 3), Code::FailedPrecondition),
            (JoinRequest { generation: 2, ..join(1, 2) }, Code::FailedPrecondition),
            (JoinRequest { version: "0.0.0".into(), ..join(1, 2) }, Code::FailedPrecondition),
        ];
        for (request, code) in cases {
            assert_eq!(clients[1].join(request).await.unwrap_err().code(), code);
        }
        assert!(received.try_recv().is_err());
    });
}

#[test]
fn the_store_wakes_waiters_and_names_what_is_missing() {
    with_clients(2, async |_control, _received, mut clients| {
        let (mut first, mut second) = (clients.remove(0), clients.remove(0));
        let get = StoreGetRequest { key: "address".into(), timeout_ms: 10_000 };
        let waiter = tokio::spawn(async move { first.store_get(get).await });
        let set = StoreSetRequest { key: "address".into(), value: b"here".to_vec() };
        second.store_set(set).await.unwrap();
        assert_eq!(waiter.await.unwrap().unwrap().into_inner().value, b"here");

        let keys = vec!["address".to_owned(), "absent".to_owned()];
        let wait = StoreWaitRequest { keys: keys.clone(), timeout_ms: 30 };
        let status = second.store_wait(wait).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.message().contains("`absent`"), "{}", status.message());

        let add = StoreAddRequest { key: "count".into(), amount: 5 };
        second.store_add(add.clone()).await.unwrap();
        assert_eq!(second.store_add(add).await.unwrap().into_inner().value, 10);
        assert!(!second.store_check(StoreCheckRequest { keys }).await.unwrap().into_inner().present);
        let delete = StoreDeleteRequest { key: "address".into() };
        assert!(second.store_delete(delete).await.unwrap().into_inner().deleted);
        let large = StoreSetRequest { key: "large".into(), value: vec![0; (1 << 20) + 1] };
        assert_eq!(second.store_set(large).await.unwrap_err().code(), Code::InvalidArgument);
    });
}

#[test]
fn heartbeats_carry_records_up_and_the_directive_down() {
    with_clients(1, async |control, received, mut clients| {
        let client = &mut clients[0];
        let beat = HeartbeatRequest { generation: 1, steps: vec![StepRecord::default()], ..Default::default() };
        assert_eq!(client.heartbeat(beat.clone()).await.unwrap_err().code(), Code::FailedPrecondition);
        client.join(join(0, 1)).await.unwrap();
        let reply = client.heartbeat(beat.clone()).await.unwrap().into_inner();
        assert_eq!(reply.directive(), Directive::Continue);
        control.ask_to_stop();
        let reply =
            client.heartbeat(HeartbeatRequest { steps: Vec::new(), step: 4, ..beat }).await.unwrap().into_inner();
        assert_eq!(reply.directive(), Directive::Stop);
        assert_eq!(control.members()[0].step, 4);
        let events: Vec<Event> = received.try_iter().collect();
        assert!(
            matches!(&events[..], [Event::Joined { rank: 0 }, Event::Steps(steps)] if steps.len() == 1),
            "{events:?}"
        );
    });
}

#[test]
fn a_checkpoint_is_answered_to_all_once_it_is_published() {
    with_clients(2, async |_control, received, mut clients| {
        join_all(&mut clients, &received).await;
        let (mut first, mut second) = (clients.remove(0), clients.remove(0));
        let late = tokio::spawn({
            let mut first = first.clone();
            async move { first.checkpoint_written(part(0, 20, "zero")).await }
        });
        let manifest = second.checkpoint_written(part(1, 20, "one")).await.unwrap().into_inner().manifest;
        assert_eq!(manifest, "folder/zeroone");
        assert_eq!(late.await.unwrap().unwrap().into_inner().manifest, manifest);
        assert!(matches!(received.try_recv(), Ok(Event::Checkpoint { step: 20, .. })));

        // What cannot be published is told to all as well.
        let (one, other) =
            tokio::join!(first.checkpoint_written(part(0, 40, "")), second.checkpoint_written(part(1, 40, "x")));
        for outcome in [one.unwrap().into_inner(), other.unwrap().into_inner()] {
            assert_eq!((outcome.manifest.as_str(), outcome.failure.as_str()), ("", "an empty part"));
        }
        assert!(matches!(received.try_recv(), Ok(Event::CheckpointFailed { step: 40, .. })));
        // So is a rank that could not write its part.
        let failed = CheckpointPart { failure: "no space left".into(), ..part(1, 60, "") };
        let (one, other) =
            tokio::join!(first.checkpoint_written(part(0, 60, "zero")), second.checkpoint_written(failed));
        for outcome in [one.unwrap().into_inner(), other.unwrap().into_inner()] {
            assert_eq!(outcome.failure, "rank 1: no space left");
        }
    });
}

#[test]
fn a_dead_rank_leaves_nobody_waiting() {
    with_clients(2, async |control, received, mut clients| {
        join_all(&mut clients, &received).await;
        let (mut first, mut second) = (clients.remove(0), clients.remove(0));
        let waiting = tokio::spawn(async move { first.checkpoint_written(part(0, 20, "zero")).await });
        // Time for the part to arrive; whichever comes first, the answer must be the same.
        tokio::time::sleep(Duration::from_millis(30)).await;
        control.rank_gone(1, "was killed by SIGKILL");
        let status = waiting.await.unwrap().unwrap_err();
        assert!(status.message().contains("rank 1 was killed by SIGKILL"), "{}", status.message());
        assert!(second.checkpoint_written(part(1, 20, "one")).await.is_err());
    });
}

#[test]
fn ranks_at_different_steps_are_both_told() {
    with_clients(2, async |_control, received, mut clients| {
        join_all(&mut clients, &received).await;
        let (mut first, mut second) = (clients.remove(0), clients.remove(0));
        let (one, other) =
            tokio::join!(first.checkpoint_written(part(0, 20, "a")), second.checkpoint_written(part(1, 30, "b")));
        for status in [one.unwrap_err(), other.unwrap_err()] {
            assert!(
                status.message().contains("step 20") && status.message().contains("step 30"),
                "{}",
                status.message()
            );
        }
    });
}

#[test]
fn a_port_in_use_is_named() {
    let (control, _received) = start(1, None).unwrap();
    let port = control.contact().port;
    let Err(error) = start(1, Some(port)) else { panic!("two control planes on one port") };
    assert!(matches!(error, ControlError::PortInUse { .. }));
    assert!(error.to_string().contains(&format!("port {port} (main_process_port)")), "{error}");
    drop(control);
    assert!(start(1, Some(port)).is_ok());
}

#[test]
fn who_never_writes_a_part_keeps_nobody_waiting() {
    let (events, received) = mpsc::channel();
    let publish = |directory: &Path, parts: Result<Vec<Vec<u8>>, String>| {
        parts.map(|parts| format!("{}/{}", directory.display(), parts.len()))
    };
    let mut options = ControlOptions::new(Listen::loopback(None).unwrap(), 2, 1, Arc::new(publish));
    options.save_patience = Duration::from_millis(100);
    let control = ControlPlane::start(options, events).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let contact = control.contact();
    let connected = async || {
        let wire = connect(&contact.url(), &contact.token, Duration::from_secs(20)).await;
        ControlClient::new(wire.unwrap())
    };
    let test = async {
        let (mut first, mut second) = (connected().await, connected().await);
        first.join(join(0, 2)).await.unwrap();
        second.join(join(1, 2)).await.unwrap();
        let outcome = first.checkpoint_written(part(0, 20, "a")).await.unwrap().into_inner();
        assert!(outcome.failure.starts_with("no part came from rank 1 within"), "{}", outcome.failure);
        let late = second.checkpoint_written(part(1, 20, "b")).await.unwrap().into_inner();
        assert!(late.failure.contains("rank 1 was too late"), "{}", late.failure);
        let failed = received.try_iter().find_map(|event| match event {
            Event::CheckpointFailed { step, reason } => Some((step, reason)),
            _ => None,
        });
        assert_eq!(failed, Some((20, outcome.failure)), "told once");
        let (one, other) =
            tokio::join!(first.checkpoint_written(part(0, 40, "a")), second.checkpoint_written(part(1, 40, "b")));
        assert_eq!(one.unwrap().into_inner().manifest, "folder/2");
        assert_eq!(other.unwrap().into_inner().manifest, "folder/2", "the next save has nothing to do with it");
    };
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test hangs") });
}
