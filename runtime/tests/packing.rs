//! Packed rows against PyTorch's training of the same rows one beside the other: losses and gradient norms of every step,
//! whose updates depend on each gradient.

mod common;

use common::{Spec, rows};
use serde_json::Value;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use zerofold_configs::{ElementType, Sharding, Stage, UnitPolicy};
use zerofold_data::{Batch, Batching, Collator, Packing, PackingStrategy, TokenizedDataset};
use zerofold_runtime::comm::{Activity, Gloo, LocalStore, Store};
use zerofold_runtime::trainer::{Requests, StepOutcome};

/// Tokens of a pack: the longest row has 48.
const MAX_LENGTH: u32 = 64;

/// A rank's micro-batches of a step: the packs of the step's rows, shared out in order.
fn window(spec: &Spec, dataset: &TokenizedDataset, step: u64, rank: usize) -> Vec<Batch> {
    let global_batch = spec.expected()["recipe"]["global_batch"].as_u64().unwrap() as usize;
    let mut of_step = TokenizedDataset::new();
    for row in step as usize * global_batch..(step as usize + 1) * global_batch {
        let (ids, labels) = dataset.row(row % dataset.rows());
        of_step.push(row as u64, ids, labels);
    }
    let packing = Packing { strategy: PackingStrategy::Bfd, max_length: MAX_LENGTH };
    let collator = Collator::new(&of_step, Batching::Packed(packing)).unwrap();
    assert!(collator.count() < global_batch, "nothing was packed");
    let packs: Vec<u32> = (0..collator.count() as u32).collect();
    let slices: Vec<&[u32]> =
        packs.chunks(packs.len().div_ceil(spec.world_size * spec.accumulation as usize)).collect();
    (0..spec.accumulation as usize)
        .map(|micro_batch| slices.get(micro_batch * spec.world_size + rank).copied().unwrap_or(&[]))
        .map(|packs| collator.collate(&of_step, packs, 0).unwrap())
        .collect()
}

/// Trains on packs as one rank.
fn train(spec: &Spec, rank: usize, store: Arc<dyn Store>) -> Vec<StepOutcome> {
    let activity = Arc::new(Activity::default());
    let limit = Duration::from_secs(60);
    let comm = Gloo::connect(store, rank, spec.world_size, "127.0.0.1", limit, activity.clone()).unwrap();
    let dataset = spec.dataset();
    let mut trainer = spec.trainer(Rc::new(comm), activity);
    let outcomes = (0..spec.steps())
        .map(|step| trainer.step(step, &window(spec, &dataset, step, rank), Requests::default()).unwrap())
        .collect();
    trainer.shards.forget_gathered().unwrap();
    trainer.shards.comm().barrier().unwrap();
    outcomes
}

/// Trains on packs with threads as ranks; returns rank 0's steps.
fn outcomes(spec: &Spec) -> Vec<StepOutcome> {
    let store: Arc<dyn Store> = Arc::new(LocalStore::default());
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..spec.world_size)
            .map(|rank| {
                let store = store.clone();
                scope.spawn(move || train(spec, rank, store))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).next().unwrap()
    })
}

#[track_caller]
fn assert_equals_pytorch(name: &str, spec: &Spec) {
    let curve = spec.expected();
    let expected = curve["steps"].as_array().unwrap();
    let outcomes = outcomes(spec);
    assert_eq!(outcomes.len(), expected.len());
    let relative = |ours: f64, theirs: &Value| ((ours - theirs.as_f64().unwrap()) / theirs.as_f64().unwrap()).abs();
    for (ours, theirs) in outcomes.iter().zip(expected) {
        assert_eq!(ours.supervised_tokens, theirs["supervised_tokens"].as_u64().unwrap());
        assert_eq!(ours.tokens, theirs["tokens"].as_u64().unwrap());
        for (what, ours_is, theirs_is) in
            [("loss", ours.loss, &theirs["loss"]), ("gradient norm", ours.grad_norm, &theirs["grad_norm"])]
        {
            let difference = relative(ours_is, theirs_is);
            assert!(difference < 1e-5, "{name}, step {}: {what} differs by {difference:e}", ours.step);
        }
    }
}

#[test]
fn packs_train_as_pytorch_trains_their_rows() {
    for model in ["tiny-llama", "tiny-llama-tied", "tiny-mistral"] {
        for stage in [Stage::Zero, Stage::Three] {
            for recompute_every in [None, Some(1), Some(2)] {
                let spec = Spec { recompute_every, ..Spec::new("training", model, "batch_8", stage, 2, 2) };
                assert_equals_pytorch(&format!("{model}, stage {stage}, recomputing {recompute_every:?}"), &spec);
            }
        }
    }
    // Attention and MLP are units of their own.
    let halves = Sharding { units: UnitPolicy::BlockHalves, ..Sharding::of(Stage::Three) };
    let spec = Spec {
        sharding: halves,
        recompute_every: Some(1),
        ..Spec::new("training", "tiny-llama", "batch_8", Stage::Three, 2, 1)
    };
    assert_equals_pytorch("block halves", &spec);
}

#[test]
fn in_bfloat16_packs_stay_near_their_rows() {
    let spec =
        Spec { compute: ElementType::Bfloat16, ..Spec::new("training", "tiny-llama", "batch_8", Stage::Three, 2, 2) };
    let curve = spec.expected();
    for (ours, theirs) in outcomes(&spec).iter().zip(curve["steps"].as_array().unwrap()) {
        let (loss, expected) = (ours.loss, theirs["loss"].as_f64().unwrap());
        assert!((loss - expected).abs() < 0.02 * expected, "step {}: {loss} {expected}", ours.step);
    }
}

/// Dropout takes another way through attention, and drops the same when a block is computed again. One rank: threads share
/// libtorch's generator.
#[test]
fn recomputing_packs_with_dropout_changes_nothing() {
    let kept = Spec { attention_dropout: 0.2, ..Spec::new("training", "tiny-llama", "batch_8", Stage::Three, 1, 2) };
    let recomputed = Spec { recompute_every: Some(1), ..kept.clone() };
    let (kept, recomputed) = (outcomes(&kept), outcomes(&recomputed));
    assert_eq!(common::bits(&kept), common::bits(&recomputed));
    assert!(kept.iter().all(|step| step.loss.is_finite()));
}

#[test]
fn the_rows_of_the_fixture_fit_into_packs() {
    let dataset = rows("data/rows.jsonl");
    assert!((0..dataset.rows()).all(|row| dataset.row(row).0.len() <= MAX_LENGTH as usize));
}
