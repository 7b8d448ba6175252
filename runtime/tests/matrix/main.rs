//! The equivalence matrix: every layout of a training against PyTorch in float64, and against each other to the bit, with
//! real processes over Gloo; and the same over shared memory and through the `nccl` backend over a stand-in for NCCL and the driver.
//!
//!     cargo test --release -p zerofold-runtime --test matrix               a seeded sample; of memory a quarter, and nccl up to 4 ranks
//!     cargo test --release -p zerofold-runtime --test matrix -- --full     the whole product
//!     cargo test --release -p zerofold-runtime --test matrix -- --seed 7   another sample
//!     … -- --memory      the memory of a step against the plan alone, with every job
//!     … -- --precision   16-bit types against FSDP2 alone, with every run
//!     … -- --timeline    the timeline over both wires alone
//!     … -- --gloo        the layouts over Gloo alone
//!     … -- --shm         what goes over shared memory alone
//!     … -- --nccl        what goes through the nccl backend alone
//!     … -- --gpu         the layouts of one process, on a GPU (needs one, and a build for CUDA)
//!     … -- --ranks 4     of any of these, one number of ranks
//!     … -- --full --ranks 8 --from 6   of the whole product, what is left from the sixth group on
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

/// What is run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Everything but what needs a card.
    All,
    /// The memory of a step against the plan.
    Memory,
    /// 16-bit types against FSDP2, with every run of the fixture.
    Precision,
    /// The timeline over Gloo and NCCL.
    Timeline,
    /// The layouts over Gloo.
    Gloo,
    /// What goes over shared memory.
    Shm,
    /// What goes through the `nccl` backend.
    Nccl,
    /// What one process computes on a GPU.
    Gpu,
}

/// What the command line asks for.
struct Options {
    part: Part,
    /// The whole product in place of a sample.
    full: bool,
    /// Which sample.
    seed: u64,
    /// One number of ranks alone.
    only_ranks: Option<usize>,
    /// The first group of each number of ranks, from 1: to go on with the whole product.
    from: usize,
}

impl Options {
    fn read(arguments: &[String]) -> Self {
        let has = |name: &str| arguments.iter().any(|argument| argument == name);
        let value_of = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name)?;
            arguments.get(at + 1)?.parse::<u64>().ok()
        };
        let parts = [
            ("--memory", Part::Memory),
            ("--precision", Part::Precision),
            ("--timeline", Part::Timeline),
            ("--gloo", Part::Gloo),
            ("--shm", Part::Shm),
            ("--nccl", Part::Nccl),
            ("--gpu", Part::Gpu),
        ];
        Options {
            part: parts.into_iter().find(|(name, _)| has(name)).map_or(Part::All, |(_, part)| part),
            full: has("--full"),
            seed: value_of("--seed").unwrap_or(1),
            only_ranks: value_of("--ranks").map(|ranks| ranks as usize),
            from: value_of("--from").unwrap_or(1).max(1) as usize,
        }
    }

    fn groups(&self, ranks: usize) -> Vec<Group> {
        let mut all = Group::all(ranks);
        if self.full { all.split_off((self.from - 1).min(all.len())) } else { vec![Group::sampled(all, self.seed)] }
    }

    /// Runs what is asked for on so many ranks.
    fn run(&self, ranks: usize, tally: &mut Tally) {
        let is = |parts: &[Part]| parts.contains(&self.part);
        let groups = self.groups(ranks);
        if ranks == 2 && is(&[Part::All, Part::Memory]) {
            memory::check(self.full || self.part == Part::Memory, tally);
        }
        if ranks == 2 && is(&[Part::All, Part::Timeline]) {
            timeline::check(tally);
        }
        if ranks == 1 && is(&[Part::Gpu]) {
            let mut workers = Workers::start(ranks, Wire::Gpu);
            groups.iter().for_each(|group| group.check(self.full, &mut workers, tally));
        }
        if is(&[Part::Memory, Part::Timeline, Part::Gpu]) {
            return;
        }
        let mut workers = Workers::start(ranks, Wire::Gloo);
        if is(&[Part::All, Part::Gloo]) {
            groups.iter().for_each(|group| group.check(self.full, &mut workers, tally));
        }
        // What has Gloo's bits needs no other checks, unless it is asked about alone.
        if ranks > 1 && (is(&[Part::Shm]) || is(&[Part::All]) && (self.full || ranks <= 4)) {
            let mut shm = Workers::start(ranks, Wire::Shm);
            groups.iter().for_each(|group| groups::check_same_as_gloo(group, &mut workers, &mut shm, tally));
            if is(&[Part::Shm]) {
                groups.iter().for_each(|group| group.check(self.full, &mut shm, tally));
            }
            if ranks == 3 {
                groups::check_delays(&mut shm, tally);
            }
        }
        // Eight processes on two cores take long, and the order of calls is that of four.
        if is(&[Part::Nccl]) || is(&[Part::All]) && (self.full || ranks <= 4) {
            let mut nccl = Workers::start(ranks, Wire::NcclStandIn);
            groups.iter().for_each(|group| group.check(self.full, &mut nccl, tally));
            if ranks == 2 {
                groups.iter().for_each(|group| groups::check_same_as_gloo(group, &mut workers, &mut nccl, tally));
            }
        }
        if ranks == 2 && is(&[Part::All, Part::Precision]) {
            precision::check(self.full || self.part == Part::Precision, &mut workers, tally);
        }
        if ranks == 3 && is(&[Part::All]) {
            groups::check_delays(&mut workers, tally);
            groups::check_frozen(&mut workers, tally);
            groups::check_dropout(&mut workers, tally);
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
    let options = Options::read(&arguments);
    let began = Instant::now();
    match options.full {
        true => println!("the whole matrix"),
        false => println!("a sample of the matrix: --seed {}", options.seed),
    }
    let mut tally = Tally::default();
    for ranks in RANKS.into_iter().filter(|ranks| options.only_ranks.is_none_or(|only| only == *ranks)) {
        options.run(ranks, &mut tally);
    }
    let Tally { passed, failures } = tally;
    failures.iter().for_each(|failure| println!("failed: {failure}"));
    let (result, failed, seconds) =
        (if failures.is_empty() { "ok" } else { "FAILED" }, failures.len(), began.elapsed().as_secs_f64());
    println!("\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored; finished in {seconds:.2}s");
    std::process::exit(if failures.is_empty() { 0 } else { 1 });
}
