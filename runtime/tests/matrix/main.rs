//! The equivalence matrix: every layout of a training against PyTorch in float64, and against each other to the bit, with
//! real processes over Gloo; and the same through the `nccl` backend over a stand-in for NCCL and the driver.
//!
//!     cargo test --release -p zerofold-runtime --test matrix               a seeded sample, and everything below
//!     cargo test --release -p zerofold-runtime --test matrix -- --full     the whole product
//!     cargo test --release -p zerofold-runtime --test matrix -- --seed 7   another sample
//!     cargo test --release -p zerofold-runtime --test matrix -- --memory   the memory of a step against the plan alone
//!     cargo test --release -p zerofold-runtime --test matrix -- --precision  16-bit types alone, with every run
//!     cargo test --release -p zerofold-runtime --test matrix -- --nccl     what goes through the nccl backend alone
//!     cargo test --release -p zerofold-runtime --test matrix -- --timeline the timeline over both wires alone
//!     … --ranks 4                                                          of any of these, one number of ranks
//!
//! The product: ranks {1, 2, 3, 4, 8} × accumulation {1, 3} × {tied, untied} × clipping {on, off} are *groups*; in each group,
//! every layout (the four stages, hybrids, `reshard_after_forward`, prefetch, units) with and without activation
//! checkpointing, 50 steps each.
//!
//! Tolerance: 4 times the largest deviation that PyTorch's own float32 shows from float64 on the same work.

#[path = "../common/mod.rs"]
mod common;
mod delay;
mod groups;
mod memory;
mod precision;
mod store;
mod timeline;
mod workers;

use groups::Group;
use std::time::Instant;
use workers::{Wire, Workers};

/// Groups in a sample: one of each number of ranks.
const RANKS: [usize; 5] = [1, 2, 3, 4, 8];

/// Counts what was checked, in the words of Rust's own test harness.
#[derive(Default)]
pub(crate) struct Tally {
    passed: usize,
    failures: Vec<String>,
}

impl Tally {
    /// Notes a check and prints it.
    pub(crate) fn check(&mut self, name: &str, result: Result<String, String>) {
        match result {
            Ok(words) => {
                println!("test {name} ... ok  {words}");
                self.passed += 1;
            }
            Err(words) => {
                println!("test {name} ... FAILED  {words}");
                self.failures.push(format!("{name}: {words}"));
            }
        }
    }
}

fn main() {
    if workers::serve() {
        return;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    let full = arguments.iter().any(|argument| argument == "--full");
    let value_of = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse::<u64>().ok()
    };
    let seed = value_of("--seed").unwrap_or(1);
    let only_ranks = value_of("--ranks").map(|ranks| ranks as usize);
    let only_timeline = arguments.iter().any(|argument| argument == "--timeline");
    let only_memory = arguments.iter().any(|argument| argument == "--memory");
    let only_nccl = arguments.iter().any(|argument| argument == "--nccl");
    let began = Instant::now();
    println!("{}", if full { "the whole matrix".to_owned() } else { format!("a sample of the matrix: --seed {seed}") });
    let mut tally = Tally::default();
    for ranks in RANKS.into_iter().filter(|ranks| only_ranks.is_none_or(|only| only == *ranks)) {
        if ranks == 2 {
            if !only_timeline {
                memory::check(&mut tally);
            }
            if !only_memory {
                timeline::check(&mut tally);
            }
        }
        if only_timeline || only_memory {
            continue;
        }
        let mut workers = Workers::start(ranks, Wire::Gloo);
        if arguments.iter().any(|argument| argument == "--precision") {
            if ranks == 2 {
                precision::check(true, &mut workers, &mut tally);
            }
            continue;
        }
        let all = Group::all(ranks);
        let chosen = if full { all } else { vec![Group::sampled(all, seed)] };
        if !only_nccl {
            chosen.iter().for_each(|group| group.check(full, &mut workers, &mut tally));
        }
        let mut over_nccl = Workers::start(ranks, Wire::NcclStandIn);
        chosen.iter().for_each(|group| group.check(full, &mut over_nccl, &mut tally));
        if ranks == 2 {
            chosen.iter().for_each(|group| groups::check_same_as_gloo(group, &mut workers, &mut over_nccl, &mut tally));
        }
        drop(over_nccl);
        if only_nccl {
            continue;
        }
        if ranks == 2 {
            precision::check(full, &mut workers, &mut tally);
        }
        if ranks == 3 {
            groups::check_delays(&mut workers, &mut tally);
            groups::check_frozen(&mut workers, &mut tally);
            groups::check_dropout(&mut workers, &mut tally);
        }
    }
    let Tally { passed, failures } = tally;
    failures.iter().for_each(|failure| println!("failed: {failure}"));
    let (result, failed, seconds) =
        (if failures.is_empty() { "ok" } else { "FAILED" }, failures.len(), began.elapsed().as_secs_f64());
    println!("\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored; finished in {seconds:.2}s");
    std::process::exit(if failures.is_empty() { 0 } else { 1 });
}
