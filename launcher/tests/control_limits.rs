//! What one client may take from a control plane: each limit is met, told, and leaves the others undisturbed.

mod simulated;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use simulated::Simulated;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::{Code, Request};
use zerofold_launcher::control::limits::{MAX_CALLS_PER_CONNECTION, MAX_HEADER_BYTES, MAX_PART_BYTES, max_connections};
use zerofold_launcher::control::{ControlOptions, ControlPlane};
use zerofold_proto::v1::control_client::ControlClient;
use zerofold_proto::v1::*;
use zerofold_trust::{Wire, connect};

const LIMIT: Duration = Duration::from_secs(30);

/// Runs a test against a control plane for one rank, with a limit on its time.
fn with_plane(test: impl AsyncFnOnce(&ControlPlane, String)) {
    let (events, _received) = mpsc::channel();
    let publish =
        |_: &Path, parts: Result<Vec<Vec<u8>>, String>| parts.map(|parts| format!("{} bytes", parts[0].len()));
    let options = ControlOptions::new(simulated::listen(), 1, 1, Arc::new(publish));
    let control = ControlPlane::start(options, events).unwrap();
    let address = control.contact().url();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(LIMIT, test(&control, address)).await.expect("the test hangs");
    });
}

async fn client(address: &str) -> ControlClient<Wire> {
    ControlClient::new(connect(address, &simulated::token(), LIMIT).await.unwrap())
}

#[test]
fn messages_are_small_but_for_parts_of_a_checkpoint() {
    with_plane(async |_control, address| {
        let mut client = client(&address).await;
        let set = |bytes| StoreSetRequest { key: "key".into(), value: vec![0; bytes] };
        client.store_set(set(1 << 20)).await.unwrap();
        let status = client.store_set(set((1 << 20) + 1)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("hint: "), "{}", status.message());
        assert_eq!(client.store_set(set(2 << 20)).await.unwrap_err().code(), Code::OutOfRange);

        let mut worker = Simulated::connect(&address, 0, 1).await.unwrap();
        assert_eq!(worker.save(20, 9).await.unwrap_err().code(), Code::FailedPrecondition, "it has not joined");
        worker.join().await.unwrap();
        assert_eq!(worker.save(20, 5 << 20).await.unwrap(), format!("{} bytes", 5 << 20));
        let status = worker.save(40, MAX_PART_BYTES + 1).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("67108865 bytes") && status.message().contains("hint: "), "{status}");
        assert_eq!(worker.save(40, MAX_PART_BYTES + (1 << 20)).await.unwrap_err().code(), Code::OutOfRange);
        worker.leave(40).await.unwrap();
        let status = worker.save(60, 9).await.unwrap_err();
        assert!(status.message().contains("rank 0 has left the job"), "{status}");
    });
}

#[test]
fn sockets_that_say_nothing_keep_no_worker_out() {
    with_plane(async |control, address| {
        let socket = address.strip_prefix("http://").unwrap();
        let mut silent = Vec::new();
        for _ in 0..max_connections(1) {
            silent.push(TcpStream::connect(socket).await.unwrap());
        }
        let mut worker = Simulated::connect(&address, 0, 1).await.unwrap();
        worker.join().await.unwrap();
        // The server's own first words, and then the end.
        let oldest = tokio::time::timeout(LIMIT / 2, silent[0].read_to_end(&mut Vec::new())).await;
        assert!(oldest.is_ok(), "the oldest does not make room");
        // From now on it is a member, however many come.
        for _ in 0..3 * max_connections(1) {
            silent.push(TcpStream::connect(socket).await.unwrap());
        }
        worker.beat(1).await.unwrap();
        assert_eq!(control.connections(), max_connections(1));
        drop((silent, worker));
        while control.connections() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn one_connection_has_so_many_calls_under_way_and_others_go_on() {
    with_plane(async |_control, address| {
        let (crowded, mut other) = (client(&address).await, client(&address).await);
        let wait = |key: &str| {
            let (mut client, request) = (crowded.clone(), StoreGetRequest { key: key.into(), timeout_ms: 30_000 });
            tokio::spawn(async move { client.store_get(request).await.map(|_| ()) })
        };
        let waiting: Vec<_> = (0..MAX_CALLS_PER_CONNECTION).map(|_| wait("go")).collect();
        let set = |key: &str| StoreSetRequest { key: key.into(), value: Vec::new() };
        other.store_set(set("here")).await.unwrap();
        tokio::task::yield_now().await;
        let one_more = wait("here");
        for _ in 0..50 {
            other.store_check(StoreCheckRequest::default()).await.unwrap();
        }
        assert!(!one_more.is_finished());
        other.store_set(set("go")).await.unwrap();
        for call in waiting {
            call.await.unwrap().unwrap();
        }
        one_more.await.unwrap().unwrap();
    });
}

#[test]
fn headers_are_bounded() {
    with_plane(async |_control, address| {
        let mut client = client(&address).await;
        let mut request = Request::new(StoreCheckRequest::default());
        let long = "x".repeat(MAX_HEADER_BYTES as usize);
        request.metadata_mut().insert("long", long.parse().unwrap());
        client.store_check(request).await.unwrap_err();
        assert!(client.store_check(StoreCheckRequest::default()).await.unwrap().into_inner().present);
    });
}

#[test]
fn all_values_come_in_one_call() {
    with_plane(async |_control, address| {
        let (mut asks, mut sets) = (client(&address).await, client(&address).await);
        let keys = vec!["b".to_owned(), "a".to_owned()];
        let request = StoreGetAllRequest { keys: keys.clone(), timeout_ms: 30_000 };
        let answer = tokio::spawn(async move { asks.store_get_all(request).await });
        for key in ["a", "b"] {
            let value = key.repeat(2).into_bytes();
            sets.store_set(StoreSetRequest { key: key.into(), value }).await.unwrap();
        }
        assert_eq!(answer.await.unwrap().unwrap().into_inner().values, [b"bb", b"aa"]);
        let absent = StoreGetAllRequest { keys: vec!["a".into(), "absent".into()], timeout_ms: 20 };
        let status = sets.store_get_all(absent).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.message().contains("`absent`"), "{status}");
    });
}
