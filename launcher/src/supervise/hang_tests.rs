//! Tests of who is held to be the culprit, on made-up heartbeats and a made-up clock.

use std::time::{Duration, Instant};

use zerofold_proto::v1::{Call, Doing, Phase};

use super::hang::*;
use crate::control::{Left, Member};

const SECOND: Duration = Duration::from_secs(1);

fn call(sequence: u64, operation: &str, bytes: u64) -> Call {
    Call { sequence, operation: operation.into(), about: format!("layer {}", sequence % 10), bytes }
}

/// A rank at work after step 5, heard at `heard`, which has begun collectives 1 to `begun`.
fn at_work(heard: Instant, phase: Phase, seconds: f64, begun: u64) -> Member {
    let calls = (begun.saturating_sub(3).max(1)..=begun).map(|sequence| call(sequence, "all_gather", 64)).collect();
    let doing = Doing { phase: phase.into(), seconds, usual_seconds: 0.5, calls, ..Doing::default() };
    Member { joined: Some(heard), heard: Some(heard), step: 5, doing, ..Member::default() }
}

/// The same, blocked in the last collective that it began.
fn waiting(heard: Instant, seconds: f64, begun: u64) -> Member {
    let mut member = at_work(heard, Phase::Forward, 0.1, begun);
    member.doing.blocked_in = member.doing.calls.last().cloned();
    member.doing.blocked_seconds = seconds;
    member
}

fn found(now: Instant, members: &[Member]) -> (u32, HangKind, String) {
    let hang = diagnose(now, now - 1000 * SECOND, members).expect("somebody holds the job up");
    (hang.rank, hang.kind, hang.words)
}

fn nobody(now: Instant, members: &[Member]) {
    assert_eq!(diagnose(now, now - 1000 * SECOND, members), None);
}

#[test]
fn a_rank_that_is_elsewhere_while_others_wait_is_named_with_what_it_does() {
    let now = Instant::now();
    let late = at_work(now, Phase::Data, 41.0, 203);
    let members = [waiting(now, 41.0, 204), waiting(now, 40.0, 204), late, waiting(now, 41.0, 204)];
    let (rank, kind, words) = found(now, &members);
    assert_eq!((rank, kind), (2, HangKind::Absent));
    assert_eq!(
        words,
        "rank 2 has not entered all_gather #204 (layer 4), in which ranks 0, 1 and 3 wait for 41 s: 41 s in data loading \
         (usually 0.5 s) (after step 5)"
    );
    // It began the collective and then did something else, as one may between a collective's start and its end.
    let late = at_work(now, Phase::Forward, 41.0, 204);
    let (rank, _, words) = found(now, &[waiting(now, 41.0, 204), late]);
    assert_eq!(rank, 1);
    assert!(
        words.starts_with("rank 1 does not go on with all_gather #204 (layer 4), in which rank 0 waits"),
        "{words}"
    );
}

#[test]
fn patience_follows_what_is_usual_and_is_longer_before_the_first_step() {
    let now = Instant::now();
    let members = |seconds: f64, usual: f64, step: u64| {
        let mut late = at_work(now, Phase::Backward, seconds, 3);
        late.doing.usual_seconds = usual;
        late.step = step;
        [waiting(now, seconds, 4), late]
    };
    nobody(now, &members(9.0, 0.1, 5));
    found(now, &members(11.0, 0.1, 5));
    nobody(now, &members(49.0, 10.0, 5));
    found(now, &members(51.0, 10.0, 5));
    nobody(now, &members(59.0, 0.1, 0));
    let (_, _, words) = found(now, &members(61.0, 0.1, 0));
    assert!(words.ends_with("(before its first step)"), "{words}");
}

#[test]
fn a_silent_rank_is_the_culprit_whatever_it_did_last() {
    let now = Instant::now();
    let silent = waiting(now - 12 * SECOND, 0.0, 204);
    let (rank, kind, words) = found(now, &[waiting(now, 12.0, 204), silent.clone()]);
    assert_eq!((rank, kind), (1, HangKind::Silent));
    assert_eq!(
        words,
        "rank 1 has not been heard from for 12 s; it was waiting in all_gather #204 (layer 4) (after step 5)"
    );
    nobody(now, &[waiting(now, 3.0, 204), at_work(now - 3 * SECOND, Phase::Forward, 0.0, 204)]);
    // `launch` itself stood still until a second ago.
    assert_eq!(diagnose(now, now - SECOND, &[silent.clone(), silent.clone()]), None);
    // Who has left or was never there is not waited for.
    let left = Member { left: Some(Left::default()), ..silent };
    nobody(now, &[left]);
}

#[test]
fn the_odd_collective_out_is_named() {
    let now = Instant::now();
    let mut members: Vec<Member> = (0..3).map(|_| waiting(now, 20.0, 204)).collect();
    let odd = call(204, "reduce_scatter", 128);
    members[1].doing.calls.pop();
    members[1].doing.calls.push(odd.clone());
    members[1].doing.blocked_in = Some(odd);
    let (rank, kind, words) = found(now, &members);
    assert_eq!((rank, kind), (1, HangKind::Mismatch));
    assert_eq!(
        words,
        "rank 1 called another collective than the others: reduce_scatter #204 (layer 4), 128 bytes where ranks 0 and 2 \
         called all_gather #204 (layer 4), 64 bytes"
    );
    // Of two that differ, rank 0 is not the one that is blamed; and another length is another collective.
    let mut pair = [waiting(now, 20.0, 204), waiting(now, 20.0, 204)];
    pair[1].doing.calls[2].bytes = 32;
    let (rank, kind, words) = found(now, &pair);
    assert_eq!((rank, kind), (1, HangKind::Mismatch));
    assert!(words.contains("all_gather #203 (layer 3), 32 bytes where rank 0 called"), "{words}");
}

#[test]
fn a_cut_network_and_a_rank_behind_are_told_apart() {
    let now = Instant::now();
    let (rank, kind, words) = found(now, &[waiting(now, 30.0, 204), waiting(now, 29.0, 204)]);
    assert_eq!((rank, kind), (0, HangKind::Network));
    assert!(words.contains("rank 0 and all others wait in all_gather #204 (layer 4) for 29 s"), "{words}");
    let (rank, kind, _) = found(now, &[waiting(now, 30.0, 204), waiting(now, 29.0, 203)]);
    assert_eq!((rank, kind), (1, HangKind::Behind));
    nobody(now, &[waiting(now, 5.0, 204), waiting(now, 30.0, 204)]);
}

#[test]
fn a_rank_alone_that_does_not_go_on_is_told() {
    let now = Instant::now();
    let (rank, kind, words) = found(now, &[at_work(now, Phase::Data, 15.0, 0)]);
    assert_eq!((rank, kind), (0, HangKind::Slow));
    assert!(words.starts_with("rank 0 does not go on: 15 s in data loading"), "{words}");
    for phase in [Phase::Checkpoint, Phase::Evaluation, Phase::Loading, Phase::Export] {
        nobody(now, &[at_work(now, phase, 500.0, 0)]);
    }
    nobody(now, &[at_work(now, Phase::Data, 2.0, 0)]);
}

#[test]
fn a_rank_that_does_not_come_is_named_before_anything_began() {
    let now = Instant::now();
    let at = |phase: Phase, seconds: f64| {
        let mut member = at_work(now, phase, seconds, 0);
        (member.step, member.doing.usual_seconds, member.doing.calls) = (0, 0.0, Vec::new());
        member
    };
    let members = [at(Phase::Meeting, 61.0), at(Phase::Loading, 65.0)];
    let (rank, kind, words) = found(now, &members);
    assert_eq!((rank, kind), (1, HangKind::Absent));
    assert!(
        words.starts_with("rank 1 has not come to meet the others, for whom rank 0 waits for 1 min 01 s"),
        "{words}"
    );
    nobody(now, &[at(Phase::Meeting, 20.0), at(Phase::Loading, 65.0)]);
    nobody(now, &[at(Phase::Meeting, 200.0), at(Phase::Meeting, 200.0)]);

    let early = Member { joined: Some(now - 70 * SECOND), ..at(Phase::Meeting, 1.0) };
    let (rank, kind, words) = found(now, &[early.clone(), Member::default()]);
    assert_eq!((rank, kind), (1, HangKind::NotJoined));
    assert_eq!(words, "rank 1 has not joined the job, 1 min 10 s after the first one did");
    nobody(now, &[Member { joined: Some(now - 30 * SECOND), ..early }, Member::default()]);
}
