//! Rows end to end: the same losses as those of padded rows, packs that hold every token once, and going on bit for bit.

use std::path::Path;

use serde_json::Value;
use zerofold_tests::{CURVE_MODEL, Curve, Metrics, Scene, assert_close, fixture};

const MODEL: &str = "tiny-llama";

/// 192 rows of 8 to 48 tokens, in packs of 64: about 85 packs, 8 of them a step.
const PACKED: &str = "--nproc 2 --packing true --max_length 64 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 \
                      --train_sampling_strategy random --learning_rate 1e-3 --warmup_steps 3";

/// Tokens of the rows in the fixture, and how many of them are learned when a document begins wherever `begins` says so of a
/// token's places in its row and in all rows end to end; counted in the file.
fn tokens_of_rows(begins: impl Fn(usize, usize) -> bool) -> (u64, u64) {
    let text = std::fs::read_to_string(fixture("data/rows.jsonl")).unwrap();
    let (mut tokens, mut learned) = (0, 0);
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        for (place, label) in row["labels"].as_array().unwrap().iter().enumerate() {
            learned += u64::from(*label != -100 && place > 0 && !begins(place, tokens));
            tokens += 1;
        }
    }
    (tokens as u64, learned)
}

fn sum(metrics: &Metrics, key: &str) -> u64 {
    metrics.steps().iter().map(|step| step[key].as_u64().unwrap()).sum()
}

fn model_bytes(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("model/model.safetensors")).expect("a model was written")
}

/// The number of packs that the run told.
fn packs(report: &str) -> usize {
    let line = report.lines().find(|line| line.contains("packs  ")).unwrap_or_else(|| panic!("no packs in\n{report}"));
    line.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("no number in {line}"))
}

#[test]
fn rows_end_to_end_train_as_pytorch_trains_them_padded() {
    let curve = Curve::named("batch_8");
    let scene = Scene::new();
    for (stage, recompute) in [(0, "false"), (3, "true")] {
        let run = format!("stage-{stage}");
        let sizes = "--nproc 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --save_strategy no";
        let job = scene.train(CURVE_MODEL, &run, &curve.flags()).words(sizes).words("--padding_free true");
        let job = job.words(&format!("--zero_stage {stage} --gradient_checkpointing {recompute}"));
        job.run().assert_done();
        curve.assert_equals(&run, &Metrics::of(&scene.path(&run)), 1e-5);
    }
}

#[test]
fn an_epoch_of_packs_has_every_token_once() {
    let scene = Scene::new();
    // Packs, tokens and learned tokens of an epoch.
    let run = |name: &str, words: &str| {
        let job = scene.train(MODEL, name, PACKED).words("--num_train_epochs 1 --save_strategy no --zero_stage 3");
        let ended = job.words(words).run();
        ended.assert_done();
        let metrics = Metrics::of(&scene.path(name));
        let finite = |step: &Value| step["loss"].as_f64().is_some_and(f64::is_finite);
        assert!(metrics.steps().iter().all(finite), "{name}");
        let packs = packs(&ended.to_string());
        assert_eq!(metrics.count(), packs.div_ceil(8), "{name}: steps of 8 of {packs} packs");
        (packs as u64, sum(&metrics, "tokens"), sum(&metrics, "supervised_tokens"))
    };
    let (tokens, learned) = tokens_of_rows(|_, _| false);
    // No fewer can hold them, and best fit needs few more.
    let least = tokens.div_ceil(64);
    let (packs, trained, supervised) = run("bfd", "");
    assert!((least..=least + 2).contains(&packs), "{packs} packs of {tokens} tokens");
    assert_eq!((trained, supervised), (tokens, learned));
    // Exactly so many packs; each cut loses the label of the token behind it.
    let (_, learned) = tokens_of_rows(|_, place| place % 64 == 0);
    assert_eq!(run("wrapped", "--packing_strategy wrapped"), (least, tokens, learned));
    // Rows of up to 48 tokens in pieces of up to 20. Packs of prompts alone are left out, and nothing is learned less.
    let (_, learned) = tokens_of_rows(|place, _| place % 20 == 0);
    let (packs, trained, supervised) = run("split", "--packing_strategy bfd_split --max_length 20");
    assert_eq!(supervised, learned);
    assert!(trained < tokens && trained <= 20 * packs, "{trained} tokens in {packs} packs");
}

#[test]
fn a_resumed_run_goes_on_in_the_same_packs() {
    let scene = Scene::new();
    let train = |run: &str, words: &str| {
        // More than one epoch.
        let job = scene.train(MODEL, run, PACKED).words("--max_steps 14 --save_steps 5 --zero_stage 3");
        job.words("--weight_decay 0.1").words(words).run()
    };
    train("whole", "").assert_done();
    assert_eq!(Metrics::of(&scene.path("whole")).count(), 14);
    scene.copy(&scene.path("whole"), "resumed");
    train("resumed", "--resume step-00000005").assert_done();
    assert_eq!(Metrics::of(&scene.path("resumed")).exact(), Metrics::of(&scene.path("whole")).exact());
    assert!(model_bytes(&scene.path("resumed")) == model_bytes(&scene.path("whole")), "the models differ");

    scene.copy(&scene.path("whole"), "other");
    for (words, told) in [
        ("--packing_strategy bfd_split", "packing by bfd to 64 there, by bfd_split to 64 here"),
        ("--max_length 65", "packing by bfd to 64 there, by bfd to 65 here"),
        ("--packing false", "packing by bfd to 64 there, off here"),
    ] {
        train("other", &format!("--resume step-00000005 {words}")).assert_failed(2, &[told, "hint: "]);
    }
}

/// The order depends on the rows of a step, which are more here: what is left of the epoch is trained on all the same.
#[test]
fn grouped_rows_go_on_with_another_global_batch() {
    let scene = Scene::new();
    let (tokens, _) = tokens_of_rows(|_, _| false);
    let train = |words: &str| {
        let job = scene.train(MODEL, "run", "--nproc 2 --train_sampling_strategy group_by_length --num_train_epochs 1");
        job.words("--save_steps 7").words(words).run().assert_done();
    };
    train("--per_device_train_batch_size 6");
    train("--per_device_train_batch_size 8 --resume step-00000007");
    let metrics = Metrics::of(&scene.path("run"));
    // 7 × 12 rows, then the other 108 in steps of 16.
    assert_eq!((metrics.count(), sum(&metrics, "tokens")), (14, tokens));
}

#[test]
fn the_held_out_loss_is_that_of_rows() {
    let scene = Scene::new();
    let loss = |name: &str, words: &str| {
        let job = scene.train(MODEL, name, PACKED).with("--eval_dataset", fixture("data/rows.jsonl"));
        let job = job.words("--max_steps 1 --save_strategy no --eval_on_start --per_device_eval_batch_size 3");
        job.words(words).run().assert_done();
        Metrics::of(&scene.path(name)).evaluations()[0]["eval_loss"].clone()
    };
    let rows = loss("rows", "--packing false");
    for (name, words) in
        [("packs", ""), ("end to end", "--eval_packing false"), ("only", "--packing false --eval_packing true")]
    {
        assert_close(name, &loss(name, words), &rows, 1e-5);
    }
}
