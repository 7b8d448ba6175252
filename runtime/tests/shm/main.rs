//! Shared memory between real processes: what becomes of the others when one is killed, and what is left when all are gone.
//!
//!     cargo test --release -p zerofold-runtime --test shm

#[path = "../matrix/store.rs"]
mod store;
mod worker;

use std::time::{Duration, Instant};
use worker::{Call, End, MOMENTS, Moment, Workers};

const RANKS: usize = 3;
/// How long the others may take to notice that a rank is gone.
const LIMIT: Duration = Duration::from_secs(1);

fn main() {
    if worker::serve() {
        return;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    let mut failures = Vec::new();
    let mut passed = 0;
    let mut check = |name: String, result: Result<String, String>| match result {
        Ok(words) => {
            println!("test {name} ... ok  {words}");
            passed += 1;
        }
        Err(words) => {
            println!("test {name} ... FAILED  {words}");
            failures.push(format!("{name}: {words}"));
        }
    };
    for call in Call::ALL {
        for moment in MOMENTS {
            check(format!("rank 1 is killed {moment:?} in {call:?}"), killed(call, moment));
        }
    }
    check("a rank that goes its own way is an error at once".to_owned(), left());
    check("a rank that does nothing is given up in time".to_owned(), silent());
    check("nothing is left of a group that ends well".to_owned(), nothing_is_left());
    let result = if failures.is_empty() { "ok" } else { "FAILED" };
    println!("\ntest result: {result}. {passed} passed; {} failed", failures.len());
    std::process::exit(i32::from(!failures.is_empty()));
}

/// Names in /dev/shm; empty where there is none.
fn named_memory() -> Vec<std::ffi::OsString> {
    let Ok(entries) = std::fs::read_dir("/dev/shm") else { return Vec::new() };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

/// The other ranks are told within a second, wherever they are in a collective, and nothing of the killed one stays.
fn killed(call: Call, moment: Moment) -> Result<String, String> {
    let names = named_memory();
    let mut workers = Workers::start(RANKS, Duration::from_secs(600));
    workers.begin(call, moment);
    let killed = Instant::now();
    workers.kill(1);
    let mut latest = Duration::ZERO;
    for rank in [0, 2] {
        match workers.end_of(rank) {
            // What rank 1 gave before it died may have been enough.
            End::Done if moment == Moment::BeforeWaiting && !call.reads_in_place() => {}
            End::Failed { consequence: true, text } if text.contains("with rank") => {}
            other => return Err(format!("rank {rank}: {other:?}")),
        }
        latest = latest.max(killed.elapsed());
    }
    let left = workers.finish();
    if latest > LIMIT {
        return Err(format!("the others were told after {latest:?}"));
    }
    if named_memory() != names || left.iter().any(|left| !left.is_empty()) {
        return Err(format!("left: {left:?}, {:?}", named_memory()));
    }
    Ok(format!("{} ms", latest.as_millis()))
}

/// A rank drops its side while others wait for it.
fn left() -> Result<String, String> {
    let mut workers = Workers::start(RANKS, Duration::from_secs(600));
    workers.begin(Call::Barrier, Moment::BeforeStarting);
    let began = Instant::now();
    workers.leave(1);
    for rank in [0, 2] {
        match workers.end_of(rank) {
            End::Failed { consequence: true, text } if text.contains("it closed the connection") => {}
            other => return Err(format!("rank {rank}: {other:?}")),
        }
    }
    let took = began.elapsed();
    if took > LIMIT { Err(format!("after {took:?}")) } else { Ok(format!("{} ms", took.as_millis())) }
}

/// Rank 1 lives and does nothing.
fn silent() -> Result<String, String> {
    let limit = Duration::from_millis(400);
    let mut workers = Workers::start(RANKS, limit);
    let began = Instant::now();
    workers.begin(Call::Barrier, Moment::BeforeStarting);
    for rank in [0, 2] {
        match workers.end_of(rank) {
            End::Failed { consequence: true, text } if text.contains("it did not come for 0.4 s") => {}
            // Whoever gave up first left, which the other may have seen before.
            End::Failed { consequence: true, text } if text.contains("it closed the connection") => {}
            other => return Err(format!("rank {rank}: {other:?}")),
        }
    }
    let took = began.elapsed();
    if took < limit { Err(format!("after {took:?} already")) } else { Ok(format!("{} ms", took.as_millis())) }
}

/// No name, descriptor or mapping.
fn nothing_is_left() -> Result<String, String> {
    let names = named_memory();
    let mut workers = Workers::start(RANKS, Duration::from_secs(600));
    for call in Call::ALL {
        workers.begin(call, Moment::Never);
        for rank in 0..RANKS {
            match workers.end_of(rank) {
                End::Done => {}
                other => return Err(format!("{call:?}, rank {rank}: {other:?}")),
            }
        }
    }
    let left = workers.finish();
    let names_after = named_memory();
    if left.len() == RANKS && left.iter().all(Vec::is_empty) && names == names_after {
        return Ok(String::new());
    }
    Err(format!("left: {left:?}, {names_after:?}"))
}
