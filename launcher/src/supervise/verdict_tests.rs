//! Tests of the decisions, on made-up facts and a made-up clock.

use std::time::{Duration, Instant};

use super::fleet::Place;
use super::verdict::*;
use crate::control::Left;
use crate::event::{Event, StopSignal};

const SECOND: Duration = Duration::from_secs(1);

fn limits() -> Limits {
    Limits { gather: SECOND, terminate: 5 * SECOND, stop: 60 * SECOND, silence: 1800 * SECOND }
}

/// A job of `count` ranks that all run and were just heard from.
fn running(start: Instant, count: u32) -> Facts {
    let mut facts = Facts::new(start, (100..100 + count).map(|pid| Place { pid, ..Place::default() }).collect());
    for rank in &mut facts.ranks {
        rank.joined = true;
        rank.heard = Some(start);
    }
    facts
}

fn exit(at: Instant, ending: Ending) -> Option<(Instant, Exit)> {
    Some((at, Exit { ending, last_lines: Vec::new() }))
}

fn report(at: Instant, consequence: bool) -> Option<Report> {
    Some(Report { at, message: "why".into(), consequence })
}

fn left(at: Instant, stopped: bool) -> Option<(Instant, Left)> {
    Some((at, Left { stopped, ..Left::default() }))
}

#[test]
fn a_dead_rank_ends_the_job_in_steps() {
    let start = Instant::now();
    let mut facts = running(start, 2);
    assert_eq!(decide(start, &facts, &limits()).0, Decision::Wait(Some(start + 1800 * SECOND)));
    facts.ranks[1].exit = exit(start + SECOND, Ending::Signal(9));
    let gathered = start + 2 * SECOND;
    assert_eq!(decide(start + SECOND, &facts, &limits()).0, Decision::Wait(Some(gathered)));
    assert_eq!(decide(gathered, &facts, &limits()).0, Decision::Terminate);
    facts.terminated = Some(gathered);
    assert_eq!(decide(gathered, &facts, &limits()).0, Decision::Wait(Some(gathered + 5 * SECOND)));
    assert_eq!(decide(gathered + 5 * SECOND, &facts, &limits()).0, Decision::Kill);
    facts.killed = Some(gathered + 5 * SECOND);
    let left_behind = gathered + 65 * SECOND;
    assert_eq!(decide(gathered + 6 * SECOND, &facts, &limits()).0, Decision::Wait(Some(left_behind)));
    assert_eq!(decide(left_behind, &facts, &limits()).0, Decision::Finish, "the kernel does not let it end");
    let Verdict::Failed { first, others } = verdict(left_behind, &facts, &limits()) else { panic!() };
    assert_eq!((first.rank, &others[0].cause), (1, &Cause::Unkillable));
    facts.ranks[0].exit = exit(gathered + 6 * SECOND, Ending::Signal(9));
    assert_eq!(decide(gathered + 6 * SECOND, &facts, &limits()).0, Decision::Finish);
    let Verdict::Failed { first, others } = verdict(gathered + 6 * SECOND, &facts, &limits()) else { panic!() };
    assert_eq!((first.rank, first.cause), (1, Cause::Ended(Ending::Signal(9))));
    assert!(others.len() == 1 && others[0].rank == 0 && others[0].consequence);
}

#[test]
fn a_consequence_heard_first_is_not_the_cause() {
    let start = Instant::now();
    let mut facts = running(start, 3);
    facts.ranks[0].report = report(start + SECOND, true);
    facts.ranks[2].exit = exit(start + SECOND + SECOND / 2, Ending::Code(1));
    facts.ranks[0].exit = exit(start + 2 * SECOND, Ending::Code(1));
    facts.terminated = Some(start + 2 * SECOND);
    facts.ranks[1].exit = exit(start + 3 * SECOND, Ending::Signal(15));
    let Verdict::Failed { first, others } = verdict(start + 3 * SECOND, &facts, &limits()) else { panic!() };
    assert_eq!(first.rank, 2);
    assert_eq!(others.iter().map(|failure| failure.rank).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn nothing_is_awaited_once_every_rank_told_its_failure() {
    let start = Instant::now();
    let mut facts = running(start, 2);
    facts.ranks[0].report = report(start, false);
    assert!(matches!(decide(start, &facts, &limits()).0, Decision::Wait(_)));
    facts.ranks[1].report = report(start, true);
    assert_eq!(decide(start, &facts, &limits()).0, Decision::Terminate);
}

#[test]
fn exiting_well_without_leaving_is_a_failure() {
    let start = Instant::now();
    let mut facts = running(start, 1);
    facts.ranks[0].exit = exit(start, Ending::Code(0));
    let Verdict::Failed { first, .. } = verdict(start, &facts, &limits()) else { panic!() };
    assert_eq!(first.cause, Cause::LeftSilently);
    facts.ranks[0].left = left(start, false);
    assert_eq!(verdict(start, &facts, &limits()), Verdict::Completed);
}

#[test]
fn ranks_that_say_nothing_for_too_long_fail() {
    let start = Instant::now();
    let late = start + 1800 * SECOND;
    let mut facts = running(start, 2);
    facts.ranks[0].heard = Some(late);
    facts.ranks[1].joined = false;
    facts.ranks[1].heard = None;
    assert_eq!(failures(late - SECOND, &facts, &limits()), []);
    let found = failures(late, &facts, &limits());
    assert_eq!((found[0].rank, &found[0].cause), (1, &Cause::NeverJoined(1800 * SECOND)));
    facts.ranks[1].joined = true;
    facts.ranks[1].heard = Some(start);
    assert_eq!(failures(late, &facts, &limits())[0].cause, Cause::Silent(1800 * SECOND));
    // It stays the cause after launch has terminated the rank.
    give_up(late, &mut facts, &limits());
    facts.terminated = Some(late);
    for rank in &mut facts.ranks {
        rank.exit = exit(late + SECOND, Ending::Signal(15));
    }
    let Verdict::Failed { first, others } = verdict(late + SECOND, &facts, &limits()) else { panic!() };
    assert_eq!((first.rank, first.cause), (1, Cause::Silent(1800 * SECOND)));
    assert!(others[0].rank == 0 && others[0].consequence);
}

#[test]
fn a_signal_stops_politely_a_second_one_does_not() {
    let start = Instant::now();
    let mut facts = running(start, 1);
    facts.stop = Some((start, StopSignal::Interrupt));
    facts.signals = 1;
    assert_eq!(decide(start, &facts, &limits()).0, Decision::AskToStop);
    facts.asked_to_stop = true;
    assert_eq!(decide(start, &facts, &limits()).0, Decision::Wait(Some(start + 60 * SECOND)));
    assert_eq!(decide(start + 60 * SECOND, &facts, &limits()).0, Decision::Terminate);
    facts.signals = 2;
    assert_eq!(decide(start, &facts, &limits()).0, Decision::Terminate);
    facts.terminated = Some(start);
    facts.signals = 3;
    assert_eq!(decide(start, &facts, &limits()).0, Decision::Kill);
    facts.ranks[0].exit = exit(start + SECOND, Ending::Signal(15));
    assert_eq!(verdict(start + SECOND, &facts, &limits()), Verdict::Stopped(StopSignal::Interrupt));
}

#[test]
fn a_stopped_job_is_complete_only_if_its_work_was_done() {
    let start = Instant::now();
    let mut facts = running(start, 1);
    facts.stop = Some((start, StopSignal::Terminate));
    facts.asked_to_stop = true;
    facts.ranks[0].exit = exit(start, Ending::Code(0));
    facts.ranks[0].left = left(start, true);
    assert_eq!(verdict(start, &facts, &limits()), Verdict::Stopped(StopSignal::Terminate));
    facts.ranks[0].left = left(start, false);
    assert_eq!(verdict(start, &facts, &limits()), Verdict::Completed);
}

#[test]
fn a_failure_while_stopping_is_still_a_failure() {
    let start = Instant::now();
    let mut facts = running(start, 2);
    facts.stop = Some((start, StopSignal::Interrupt));
    facts.ranks[0].report = report(start + SECOND, false);
    facts.ranks[0].exit = exit(start + SECOND, Ending::Code(1));
    facts.ranks[1].exit = exit(start + SECOND, Ending::Code(0));
    facts.ranks[1].left = left(start, true);
    assert!(matches!(verdict(start + SECOND, &facts, &limits()), Verdict::Failed { first, .. } if first.rank == 0));
}

#[test]
fn a_scheduler_that_sends_sigterm_twice_asks_once() {
    let first = Instant::now();
    let after = |milliseconds| first + Duration::from_millis(milliseconds);
    let (int, term) = (StopSignal::Interrupt, StopSignal::Terminate);
    let table = [
        (None, 0, term, false),
        (Some(term), 200, term, true),
        (Some(int), 200, term, true),
        (Some(term), 6000, term, false),
        (Some(int), 200, int, false),
        (Some(term), 200, int, false),
    ];
    for (before, milliseconds, signal, repeats) in table {
        let before = before.map(|signal| (first, signal));
        assert_eq!(is_repetition(before, after(milliseconds), signal), repeats, "{before:?} {signal:?}");
    }
}

#[test]
fn who_has_left_but_does_not_end_is_ended_and_blamed_for_nothing() {
    let start = Instant::now();
    let mut facts = running(start, 2);
    facts.ranks[0].left = left(start, false);
    facts.ranks[1].heard = Some(start + SECOND);
    assert_eq!(decide(start, &facts, &limits()).0, Decision::Wait(Some(start + 1801 * SECOND)), "the other is at work");
    facts.ranks[1].left = left(start + SECOND, false);
    facts.ranks[1].exit = exit(start + 2 * SECOND, Ending::Code(0));
    let ended = start + 60 * SECOND;
    assert_eq!(decide(start + 2 * SECOND, &facts, &limits()).0, Decision::Wait(Some(ended)));
    assert_eq!(decide(ended, &facts, &limits()).0, Decision::Terminate);
    facts.terminated = Some(ended);
    facts.ranks[0].exit = exit(ended + SECOND, Ending::Signal(9));
    assert_eq!(verdict(ended + SECOND, &facts, &limits()), Verdict::Completed);
    let long_after = ended + 7200 * SECOND;
    facts.ranks[0].exit = None;
    facts.killed = Some(ended + 5 * SECOND);
    assert_eq!(decide(long_after, &facts, &limits()).0, Decision::Finish);
    assert_eq!(verdict(long_after, &facts, &limits()), Verdict::Completed, "its work is done");
}

#[test]
fn sigterm_at_a_worker_that_does_not_know_it_yet_stops_the_job() {
    let start = Instant::now();
    let mut facts = running(start, 2);
    let ended =
        |signal| Event::Exited { rank: 0, exit: Exit { ending: Ending::Signal(signal), last_lines: Vec::new() } };
    let mut killed = facts.clone();
    super::note(&mut killed, start, ended(libc::SIGKILL));
    assert_eq!(killed.stop, None);
    super::note(&mut facts, start, ended(libc::SIGTERM));
    assert_eq!(decide(start + SECOND, &facts, &limits()).0, Decision::Terminate);
    facts.terminated = Some(start + SECOND);
    facts.ranks[1].exit = exit(start + 2 * SECOND, Ending::Signal(15));
    assert_eq!(verdict(start + 2 * SECOND, &facts, &limits()), Verdict::Stopped(StopSignal::Terminate));
    let mut ended_by_launch = running(start, 2);
    ended_by_launch.terminated = Some(start);
    super::note(&mut ended_by_launch, start + SECOND, ended(libc::SIGTERM));
    assert_eq!(ended_by_launch.stop, None);
}
