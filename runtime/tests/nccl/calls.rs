//! The calls of a training step: against the files in `calls/`, and against what must hold for any of them.

use crate::common::{STAGES, Spec};
use crate::order;
use crate::ranks::{Job, Rank};
use crate::task::Task;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use zerofold_configs::{Sharding, Stage};
use zerofold_runtime::trainer::Requests;

/// Set to write the files anew. What holds for any step is checked first.
const WRITE: &str = "ZEROFOLD_WRITE_CALLS";

/// Reductions that the engine has under way at once.
const REDUCTIONS_UNDER_WAY: usize = 2;

/// Steps with the calls that were made before the first, in each, and after the last; and losses and norms as bits.
pub(crate) fn take_steps(rank: &Rank, spec: &Spec) -> Value {
    let dataset = spec.dataset();
    let comm = Rc::new(rank.connect().unwrap());
    let mut trainer = spec.trainer(comm, rank.activity.clone());
    let mut lengths = vec![rank.log().len()];
    let mut bits = Vec::new();
    for step in 0..spec.steps() {
        let outcome = trainer.step(step, &spec.window(&dataset, step, rank.rank), Requests::default()).unwrap();
        bits.push((outcome.loss.to_bits(), outcome.grad_norm.to_bits()));
        lengths.push(rank.log().len());
    }
    trainer.shards.forget_gathered().unwrap();
    trainer.shards.comm().barrier().unwrap();
    let log = rank.log();
    let begins = std::iter::once(0).chain(lengths.iter().copied());
    let ends = lengths.iter().copied().chain([log.len()]);
    let parts: Vec<&str> = begins.zip(ends).map(|(begin, end)| &log[begin..end]).collect();
    json!({ "calls": parts, "bits": bits })
}

fn spec(sharding: Sharding, world_size: usize) -> Spec {
    let steps = Some(3);
    Spec { sharding, steps, ..Spec::new("matrix", "odd-llama", "clipped", Stage::Zero, world_size, 1) }
}

/// The parts of rank 0's log: before the first step, the three steps, and after the last.
fn calls_of(sharding: Sharding, world_size: usize) -> Vec<String> {
    let outcomes: Vec<Value> = Job::new(world_size, Task::Steps(spec(sharding, world_size))).logged(0).run();
    serde_json::from_value(outcomes[0]["calls"].clone()).unwrap()
}

/// What must hold for the second step, whatever the files say.
fn check_order(parts: &[String], sharding: Sharding) {
    let (second, third) = (order::read(&parts[2]), order::read(&(parts[3].clone() + &parts[4])));
    let (gathers, reductions) = order::streams(&parts.concat()).unwrap();
    let both: Vec<order::Call> = second.iter().chain(&third).cloned().collect();
    // What a step publishes at stages 1 and 2 arrives in the next one.
    let arrives_later = matches!(sharding.stage, Stage::One | Stage::Two);
    let collectives = order::check(&both, second.len(), arrives_later).unwrap();
    // Two exchanges, and something of each of the units.
    assert!(collectives > 6, "only {collectives} collectives");
    let reducing = order::most_under_way(&second, reductions);
    assert!(reducing <= REDUCTIONS_UNDER_WAY, "{reducing} reductions at once");
    if sharding.stage == Stage::Three {
        // The two that pass, and one that stays.
        let gathering = order::most_under_way(&second, gathers);
        assert!((1..=3).contains(&gathering), "{gathering} gathers at once");
    }
}

/// A step makes nothing that the step before did not make.
fn check_steady(parts: &[String]) {
    let other = order::read(&parts[2]).into_iter().filter(|call| matches!(call, order::Call::Other(_)));
    assert_eq!(other.collect::<Vec<_>>(), [], "only collectives, records and waits");
    let known = highest_event(&(parts[0].clone() + &parts[1]));
    let used = highest_event(&parts[2]);
    assert!(used <= known, "event {used} is new: the step before had {known}");
}

/// Events are numbered as they are created.
fn highest_event(log: &str) -> u64 {
    let event = |call: &order::Call| match call {
        order::Call::Record { event, .. } => Some(*event),
        _ => None,
    };
    order::read(log).iter().filter_map(event).max().unwrap_or(0)
}

fn check_file(name: &str, calls: &str) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nccl/calls").join(name);
    let found = order::with_stable_numbers(calls);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    let differs = found.lines().zip(expected.lines()).position(|(found, expected)| found != expected);
    let at = differs.unwrap_or_else(|| found.lines().count().min(expected.lines().count()));
    let line = |text: &str| text.lines().nth(at).unwrap_or("(the end)").to_owned();
    let words = format!("line {}: `{}` instead of `{}`", at + 1, line(&found), line(&expected));
    assert!(found == expected, "the calls of a step are not those of {}: {words}", path.display());
}

fn check(name: &str, sharding: Sharding, world_size: usize) {
    let parts = calls_of(sharding, world_size);
    check_order(&parts, sharding);
    check_steady(&parts);
    check_file(name, &parts[2]);
}

#[test]
fn calls_at_stage_0() {
    check("stage-0.txt", Sharding::of(Stage::Zero), 2);
}

#[test]
fn calls_at_stage_1() {
    check("stage-1.txt", Sharding::of(Stage::One), 2);
}

#[test]
fn calls_at_stage_2() {
    check("stage-2.txt", Sharding::of(Stage::Two), 2);
}

#[test]
fn calls_at_stage_3() {
    check("stage-3.txt", Sharding::of(Stage::Three), 2);
}

/// Two copies of two shards each.
#[test]
fn calls_of_hybrid_sharding() {
    check("hybrid.txt", Sharding { replicas: 2, ..Sharding::of(Stage::Three) }, 4);
}

/// Collectives that take their time: whoever used a buffer too early would have other bits, or a report of the stand-in.
#[test]
fn slow_collectives_change_no_bit() {
    for stage in STAGES {
        let task = Task::Steps(spec(Sharding::of(stage), 2));
        let quick: Vec<Value> = Job::new(2, task.clone()).run();
        let slow: Vec<Value> = Job::new(2, task).with("ZEROFOLD_STAND_IN_DELAY_US", "3000").run();
        for (quick, slow) in quick.iter().zip(&slow) {
            assert_eq!(quick["bits"], slow["bits"], "stage {stage}");
        }
    }
}
