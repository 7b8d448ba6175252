//! Throws at a live control plane what no honest client sends, and looks whether it panics, grows, or lets honest workers down.
//!
//! `ZEROFOLD_FUZZ_SECONDS` says for how long each test does so (default 3), `ZEROFOLD_FUZZ_SEED` what is thrown. What fails
//! tells its seed; times differ from run to run, so one seed may take several.

#[path = "../simulated/mod.rs"]
mod simulated;

mod bytes;
mod calls;
mod dice;
mod raw;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use calls::Caller;
use dice::Dice;
use simulated::{Meeting, Simulated};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;
use zerofold_launcher::control::{ControlOptions, ControlPlane};
use zerofold_launcher::event::Event;
use zerofold_proto::v1::control_client::ControlClient;
use zerofold_trust::{Token, wire};

/// Ranks of the honest job.
const HONEST: u32 = 8;
/// Its generation, which no stranger hits upon.
const GENERATION: u64 = 0x5eed_0000_0007;
/// The honest job saves after every so many steps.
const SAVE_EVERY: u64 = 8;
/// Strangers at a time.
const STRANGERS: u64 = 12;
/// An answer to an honest worker that takes longer counts as none.
const LATEST: Duration = Duration::from_secs(10);
/// How much this process may grow from one round to the next: what a leak of each of thousands of calls would exceed.
const GROWTH: u64 = 24 << 20;

/// One at a time: figures of this process are looked at.
static ALONE: Mutex<()> = Mutex::new(());
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

#[test]
fn honest_workers_are_not_disturbed_by_strangers() {
    let (_alone, seed) = begin();
    let (events, received) = mpsc::channel();
    let control = plane(HONEST, GENERATION, events);
    let address = address_of(&control);
    let over = AtomicBool::new(false);
    let (slowest, figures) = std::thread::scope(|scope| {
        let honest = scope.spawn(|| honest_job(address, &over));
        let rounds: Vec<Figures> = (0..3)
            .map(|round| {
                throw(address, Caller::Stranger(HONEST), seed ^ round);
                wait_until("the strangers' connections are closed", || control.connections() <= HONEST as usize);
                Figures::now()
            })
            .collect();
        over.store(true, Ordering::Release);
        (honest.join().expect("an honest worker was let down"), rounds)
    });
    drop(control);
    let told =
        received.try_iter().filter(|event| matches!(event, Event::Failed { .. } | Event::StopAsked { .. })).count();
    assert_eq!(told, 0, "strangers were believed");
    println!("the slowest answer to an honest worker came after {slowest:?}");
    assert!(slowest < LATEST, "seed {seed}: an honest worker waited {slowest:?}");
    Figures::check(&figures, seed);
    nothing_panicked(seed);
}

#[test]
fn ranks_may_say_anything_in_any_order() {
    const RANKS: u32 = 4;
    let (_alone, seed) = begin();
    let (events, received) = mpsc::channel();
    let control = plane(RANKS, 1, events);
    let mut figures = Vec::new();
    for generation in 1..=4 {
        if generation > 1 {
            control.begin(generation, RANKS);
        }
        throw(address_of(&control), Caller::Insider(RANKS, generation), seed ^ generation);
        wait_until("all connections are closed", || control.connections() == 0);
        // What supervision and the view would do with it.
        control.look(|members| {
            let _ = zerofold_launcher::supervise::hang::diagnose(Instant::now(), Instant::now(), members);
        });
        received.try_iter().for_each(drop);
        figures.push(Figures::now());
    }
    // After all that, an honest membership.
    control.begin(5, 1);
    let address = control.contact().url();
    runtime().block_on(async {
        let mut worker = Simulated::connect(&address, 0, 1).await.unwrap().of(5);
        worker.join().await.unwrap();
        worker.beat(1).await.unwrap();
        assert_eq!(worker.save(1, 1000).await.unwrap(), "manifest");
        worker.leave(1).await.unwrap();
    });
    drop(control);
    Figures::check(&figures[1..], seed);
    nothing_panicked(seed);
}

/// Takes the process for one test; returns the seed.
fn begin() -> (MutexGuard<'static, ()>, u64) {
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    PANICS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    std::panic::set_hook(Box::new(|panic| {
        PANICS.lock().unwrap_or_else(PoisonError::into_inner).push(panic.to_string());
    }));
    (alone, variable("ZEROFOLD_FUZZ_SEED").unwrap_or(7))
}

fn nothing_panicked(seed: u64) {
    let panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = std::panic::take_hook();
    assert!(panics.is_empty(), "seed {seed}: {panics:?}");
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect(name))
}

fn plane(world_size: u32, generation: u64, events: mpsc::Sender<Event>) -> ControlPlane {
    let publish = |_: &Path, parts: Result<Vec<Vec<u8>>, String>| parts.map(|_| "manifest".to_owned());
    let options = ControlOptions::new(simulated::listen(), world_size, generation, Arc::new(publish));
    ControlPlane::start(options, events).unwrap()
}

fn address_of(control: &ControlPlane) -> SocketAddr {
    control.contact().to_string().parse().unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A job that does what it should until it is over; returns the longest that any rank waited for an answer.
fn honest_job(address: SocketAddr, over: &AtomicBool) -> Duration {
    runtime().block_on(async {
        let mut ranks = JoinSet::new();
        let (furthest, last) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(u64::MAX)));
        for rank in 0..HONEST {
            let (address, furthest, last) = (format!("http://{address}"), furthest.clone(), last.clone());
            ranks.spawn(async move {
                let mut slowest = Duration::ZERO;
                let mut worker = Simulated::enter(&address, rank, HONEST, GENERATION).await.unwrap();
                worker.meet(Meeting::All, LATEST).await.unwrap();
                for step in 1.. {
                    furthest.fetch_max(step, Ordering::AcqRel);
                    let answered = tokio::time::timeout(LATEST, worker.beat(step)).await;
                    slowest = slowest.max(answered.expect("no answer").unwrap());
                    if step % SAVE_EVERY == 0 {
                        let saved = tokio::time::timeout(LATEST, worker.save(step, 1000)).await;
                        assert_eq!(saved.expect("no manifest").unwrap(), "manifest");
                    }
                    if step >= last.load(Ordering::Acquire) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                worker.leave(1).await.unwrap();
                slowest
            });
        }
        while !over.load(Ordering::Acquire) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // All leave after the same step, as real ranks do: one that none has come to, since saves keep them together.
        let save = furthest.load(Ordering::Acquire) / SAVE_EVERY + 2;
        last.store(save * SAVE_EVERY, Ordering::Release);
        let mut slowest = Duration::ZERO;
        while let Some(rank) = ranks.join_next().await {
            slowest = slowest.max(rank.unwrap());
        }
        slowest
    })
}

/// Many strangers at once, for a while.
fn throw(address: SocketAddr, caller: Caller, seed: u64) {
    let until = Instant::now() + Duration::from_secs(variable("ZEROFOLD_FUZZ_SECONDS").unwrap_or(3)) / 3;
    let runtime = runtime();
    runtime.block_on(async {
        let mut strangers = JoinSet::new();
        for stranger in 0..STRANGERS {
            let mut dice = Dice::new(seed.wrapping_mul(1000).wrapping_add(stranger));
            strangers.spawn(async move {
                while Instant::now() < until {
                    throw_something(address, caller, &mut dice, until).await;
                }
            });
        }
        while let Some(done) = strangers.join_next().await {
            done.unwrap();
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
}

async fn throw_something(address: SocketAddr, caller: Caller, dice: &mut Dice, until: Instant) {
    match dice.below(10) {
        0..=2 => bytes::nonsense(address, dice).await,
        3 => bytes::crowd(address, dice).await,
        kind => {
            let Ok(endpoint) = Endpoint::from_shared(format!("http://{address}")) else { return };
            let Ok(channel) = endpoint.connect().await else { return };
            // Now and then one with another job's token.
            let token = if dice.once_in(6) { "a5" } else { "5a" };
            let wire = wire(channel, &Token::parse(&token.repeat(32)).unwrap());
            let mut client = ControlClient::new(wire.clone());
            for _ in 0..dice.below(30) {
                if Instant::now() >= until {
                    return;
                }
                let patience = Duration::from_millis(dice.one_of(&[0, 1, 5, 20]));
                let call = async {
                    match kind {
                        4 | 5 => raw::call(&wire, dice).await,
                        _ => calls::call(&mut client, caller, dice).await,
                    }
                };
                // What is answered counts for nothing, and some is given up midway.
                let _ = tokio::time::timeout(patience, call).await;
            }
        }
    }
}

/// Waits for something with a deadline.
fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(Instant::now() < deadline, "it takes too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What this process takes.
#[derive(Debug)]
struct Figures {
    threads: u64,
    files: u64,
    memory: u64,
}

impl Figures {
    fn now() -> Figures {
        // Otherwise what the busiest moment took would count, which the allocator keeps in pieces: that is no leak.
        // SAFETY: it gives free pages back to the system, and touches nothing that is allocated.
        unsafe { libc::malloc_trim(0) };
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        let files = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        Figures { threads: field("Threads:"), files, memory: field("VmRSS:") << 10 }
    }

    /// After the first round, in which everything is done once, nothing grows.
    fn check(rounds: &[Figures], seed: u64) {
        println!("{rounds:?}");
        for pair in rounds.windows(2) {
            let (before, after) = (&pair[0], &pair[1]);
            // A thread that publishes stays for some seconds.
            assert!(after.threads <= before.threads + 1, "seed {seed}: {rounds:?}");
            assert!(after.files <= before.files + 1, "seed {seed}: {rounds:?}");
            assert!(after.memory <= before.memory + GROWTH, "seed {seed}: {rounds:?}");
        }
    }
}
