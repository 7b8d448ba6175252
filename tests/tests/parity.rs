//! Training, from the command line to `metrics.jsonl`, against plain single-process PyTorch and against itself.

use serde_json::Value;
use zerofold_tests::{Metrics, Scene, assert_close, fixture, json};

const MODEL: &str = "tiny-llama-tied";

/// The training that PyTorch did, and its curve with this global batch.
fn expected(curve: &str) -> (Value, Value) {
    let whole = json(&fixture("training/tiny-llama-tied.json"));
    let curve = whole["curves"][curve].clone();
    assert!(curve.is_object(), "the fixture has the curve");
    (whole, curve)
}

/// The fixture's recipe as flags.
fn flags(recipe: &Value) -> String {
    let keys = ["max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1"];
    let keys = keys.into_iter().chain(["adam_beta2", "adam_epsilon", "max_grad_norm"]);
    let flag = |key| format!("--{key} {} ", recipe[key].to_string().trim_matches('"'));
    keys.map(flag).collect()
}

#[track_caller]
fn assert_equals_pytorch(name: &str, metrics: &Metrics, curve: &Value) {
    let expected = curve["steps"].as_array().expect("a curve has steps");
    let steps = metrics.steps();
    assert_eq!(steps.len(), expected.len(), "{name}");
    for (ours, theirs) in steps.iter().zip(expected) {
        let name = format!("{name}, step {}", theirs["step"]);
        assert_close(&format!("{name}: loss"), &ours["loss"], &theirs["loss"], 1e-5);
        // PyTorch sums squares parameter by parameter.
        assert_close(&format!("{name}: gradient norm"), &ours["grad_norm"], &theirs["grad_norm"], 1e-4);
        for key in ["step", "tokens", "supervised_tokens"] {
            assert_eq!(ours[key], theirs[key], "{name}: {key}");
        }
    }
}

#[test]
fn every_stage_equals_pytorch_and_pairs_of_stages_are_bit_identical() {
    let (_, curve) = expected("batch_8");
    let flags = flags(&curve["recipe"]);
    let scene = Scene::new();
    let runs: Vec<(Metrics, Vec<u8>)> = (0..4)
        .map(|stage| {
            let run = format!("stage-{stage}");
            let sizes = "--nproc 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --save_strategy no";
            let job = scene.train(MODEL, &run, &flags).words(sizes).words(&format!("--zero_stage {stage}"));
            job.run().assert_done();
            let metrics = Metrics::of(&scene.path(&run));
            assert_equals_pytorch(&run, &metrics, &curve);
            (metrics, std::fs::read(scene.path(&run).join("model/model.safetensors")).expect("a model was written"))
        })
        .collect();
    for (one, other) in [(0, 1), (2, 3)] {
        assert_eq!(runs[one].0.exact(), runs[other].0.exact(), "stages {one} and {other}");
        assert!(runs[one].1 == runs[other].1, "the models of stages {one} and {other} differ");
    }
    assert!(!std::fs::read_dir(scene.path("stage-0/checkpoints")).unwrap().any(|_| true), "save_strategy was no");
}

#[test]
fn any_number_of_processes_equals_pytorch_at_the_same_global_batch() {
    let (whole, curve) = expected("batch_24");
    let flags = flags(&curve["recipe"]);
    let scene = Scene::new();
    // With 7 rows at a time the last evaluation batch leaves ranks with fewer rows and without any.
    let evaluation = "--eval_on_start --eval_strategy steps --eval_steps 1000 --per_device_eval_batch_size 7";
    for (nproc, stage) in [(1, 0), (2, 3), (3, 3), (4, 2), (8, 3)] {
        let run = format!("nproc-{nproc}");
        let job = scene.train(MODEL, &run, &flags).with("--eval_dataset", fixture("data/rows.jsonl")).words(evaluation);
        let batch = 24 / nproc;
        job.words(&format!("--nproc {nproc} --zero_stage {stage} --per_device_train_batch_size {batch}"))
            .run()
            .assert_done();
        let metrics = Metrics::of(&scene.path(&run));
        assert_equals_pytorch(&run, &metrics, &curve);
        let evaluations = metrics.evaluations();
        let [before, after] = &evaluations[..] else { panic!("{run}: not two evaluations: {evaluations:?}") };
        assert_close(&format!("{run}: untrained"), &before["eval_loss"], &whole["evaluation"]["loss"], 1e-5);
        assert_close(&format!("{run}: trained"), &after["eval_loss"], &curve["evaluation_loss_after"], 1e-5);
        for evaluation in [before, after] {
            assert_eq!(evaluation["eval_supervised_tokens"], whole["evaluation"]["supervised_tokens"], "{run}");
        }
        assert_eq!((&before["step"], &after["step"]), (&0.into(), &curve["recipe"]["max_steps"]), "{run}");
    }
}

#[test]
fn activation_checkpointing_changes_no_bit() {
    let (_, curve) = expected("batch_8");
    let flags = flags(&curve["recipe"]);
    let scene = Scene::new();
    let run = |name: &str, value: &str| {
        let words =
            format!("--nproc 2 --zero_stage 3 --per_device_train_batch_size 4 --gradient_checkpointing {value}");
        scene.train(MODEL, name, &flags).words(&words).run().assert_done();
        Metrics::of(&scene.path(name)).exact()
    };
    assert_eq!(run("kept", "false"), run("recomputed", "true"));
}
