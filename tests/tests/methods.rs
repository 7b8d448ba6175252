//! Freezing, groups, unfreezing and what draws toward the pretrained weights through the whole program.

use std::collections::BTreeMap;
use std::path::Path;

use zerofold_checkpoint::{Dtype, SafetensorsReader};
use zerofold_tests::{Curve, Job, Metrics, Scene, assert_close, fixture, json, model};

const MODEL: &str = "tiny-llama";

fn train<'a>(scene: &'a Scene, run: &str, words: &str) -> Job<'a> {
    let same =
        "--train_sampling_strategy sequential --per_device_train_batch_size 4 --learning_rate 1e-3 --warmup_steps 0";
    scene.train(MODEL, run, same).words(words)
}

/// Every tensor of a model of one file, as bits.
fn tensors(folder: &Path) -> BTreeMap<String, Vec<u32>> {
    let reader = SafetensorsReader::open(&folder.join("model.safetensors")).unwrap();
    let names: Vec<String> = reader.names().map(str::to_owned).collect();
    let bits = |name: &String| {
        let entry = reader.entry(name).unwrap();
        assert_eq!(entry.dtype, Dtype::F32);
        let mut values = vec![0.0; entry.shape.iter().product()];
        reader.read_f32(name, 0..values.len(), &mut values).unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    names.iter().map(|name| (name.clone(), bits(name))).collect()
}

#[test]
fn what_is_frozen_is_exported_as_it_was_and_costs_less() {
    let scene = Scene::new();
    let before = tensors(&model(MODEL));
    let plans: Vec<_> = [
        ("all", ""),
        ("head", "--freeze all_but_head"),
        ("upper", "--freeze model.embed_tokens.weight,model.layers.0.*"),
    ]
    .into_iter()
    .map(|(run, words)| {
        train(&scene, run, &format!("--nproc 2 --zero_stage 2 --max_steps 3 {words}")).run().assert_done();
        let after = tensors(&scene.path(run).join("model"));
        let changed: Vec<&String> = after.keys().filter(|name| after[*name] != before[*name]).collect();
        let expected: Vec<&String> = before
            .keys()
            .filter(|name| match run {
                "all" => true,
                "head" => *name == "lm_head.weight",
                _ => !name.starts_with("model.embed_tokens") && !name.starts_with("model.layers.0."),
            })
            .collect();
        assert_eq!(changed, expected, "{run}");
        json(&scene.path(run).join("plan.json"))["measured"].clone()
    })
    .collect();
    let bytes = |run: usize, key: &str| plans[run][key].as_u64().unwrap();
    for key in ["moments", "gradients", "live_peak", "sent_bytes_per_step"] {
        assert!(bytes(1, key) < bytes(2, key) && bytes(2, key) < bytes(0, key), "{key}: {plans:?}");
    }
}

#[test]
fn a_run_stopped_while_layers_open_goes_on_to_the_bit() {
    let scene = Scene::new();
    let methods = "--gradual_unfreezing steps --gradual_unfreezing_steps 2 --gradual_unfreezing_embeddings true \
                   --layer_wise_learning_rate_decay 0.9 --l2_toward_pretrained 0.01 --ewc_lambda 100 --ewc_samples 5";
    let words = |stage: u32| format!("--nproc 2 --zero_stage {stage} --max_steps 8 --save_steps 3 {methods}");
    let train =
        |run: &str, stage: u32| train(&scene, run, &words(stage)).with("--ewc_dataset", fixture("data/rows.jsonl"));
    let whole = train("whole", 3).run();
    whole.assert_done();
    assert!(whole.out.contains("the Fisher information of 5 rows of them is estimated"), "{whole}");
    let expected = Metrics::of(&scene.path("whole"));
    for key in ["l2_toward_pretrained", "ewc_penalty"] {
        let drawn: Vec<f64> = expected.steps().iter().map(|step| step[key].as_f64().unwrap()).collect();
        assert!(drawn[0] == 0.0 && drawn.windows(2).all(|pair| pair[0] < pair[1]), "{key}: {drawn:?}");
    }
    scene.copy(&scene.path("whole"), "again");
    for step in ["step-00000006", "step-00000008"] {
        std::fs::remove_dir_all(scene.path("again/checkpoints").join(step)).unwrap();
    }
    std::fs::remove_dir_all(scene.path("again/model")).unwrap();
    // The Fisher information is that of the checkpoint.
    std::fs::remove_file(scene.path("again/data/ewc.safetensors")).unwrap();
    train("again", 2).words("--resume").run().assert_done();
    assert_eq!(Metrics::of(&scene.path("again")).exact(), expected.exact());
    assert_eq!(tensors(&scene.path("again/model")), tensors(&scene.path("whole/model")));
    // Every tool reads it.
    let run = scene.path("again");
    for command in ["verify", "inspect"] {
        scene.launch(command).adjust(|command| _ = command.arg(&run)).run().assert_done();
    }
}

#[test]
fn another_model_to_be_drawn_toward_is_refused() {
    let scene = Scene::new();
    let source = scene.copy(&model(MODEL), "source");
    let job = |words: &str| {
        let job = scene.launch("train").with("--model", &source).with("--output_dir", scene.path("run"));
        let same = "--per_device_train_batch_size 4 --l2_toward_pretrained 0.1 --save_steps 2";
        job.with("--dataset", fixture("data/rows.jsonl")).words(same).words(words).run()
    };
    job("--max_steps 2 --nproc 2 --zero_stage 3").assert_done();
    zerofold_tests::change_weights(&source, "model.norm.weight", 0..1, |value| value + 1.0);
    job("--max_steps 4 --resume").assert_failed(1, &["training is drawn toward", "hint: resume with"]);
}

/// Evaluation and export see the weights themselves, and training goes on as if nobody had looked.
#[test]
fn mixout_is_of_training_alone() {
    let scene = Scene::new();
    let run = |run: &str, words: &str| {
        let words = format!("--nproc 2 --max_steps 4 --save_strategy no --mixout_probability 0.5 {words}");
        train(&scene, run, &words).run().assert_done();
        Metrics::of(&scene.path(run))
    };
    let held_out = format!("--eval_dataset {}", fixture("data/rows.jsonl").display());
    let losses = |metrics: &Metrics| metrics.steps().iter().map(|step| step["loss"].clone()).collect::<Vec<_>>();
    let alone = losses(&run("alone", "--zero_stage 0"));
    for stage in [0, 1, 2, 3] {
        let words = format!("--zero_stage {stage} {held_out} --eval_strategy steps --eval_steps 1");
        let watched = run(&format!("watched-{stage}"), &words);
        assert_eq!(losses(&watched), alone, "stage {stage}");
        let last = watched.evaluations().pop().unwrap()["eval_loss"].clone();
        let exported = scene.path(&format!("watched-{stage}/model"));
        let job = scene.launch("train").with("--model", exported).with("--dataset", fixture("data/rows.jsonl"));
        let again = scene.path(&format!("again-{stage}"));
        let words = format!("--nproc 2 --max_steps 1 --eval_on_start true --save_strategy no {held_out}");
        job.with("--output_dir", &again).words(&words).run().assert_done();
        assert_eq!(Metrics::of(&again).evaluations()[0]["eval_loss"], last, "stage {stage}");
    }
}

/// The masks of PyTorch's own modules, foretold from seed, step, micro-batch and rank. Expected values:
/// scripts/fixtures/dropout.py.
#[test]
fn what_is_dropped_is_what_pytorch_drops() {
    let expected = json(&fixture("dropout.json"));
    let pytorch = |curve: &serde_json::Value| Curve::of(&expected["recipe"], &curve["steps"]);
    for (name, curve) in expected["curves"].as_object().unwrap() {
        let scene = Scene::new();
        let (kind, named) = name.split_once('/').unwrap();
        let (folder, rows) = match kind {
            "families" => (scene.family(named), fixture("families/rows.jsonl")),
            _ => (scene.copy(&fixture(name), named), fixture(name).join("train.jsonl")),
        };
        let mut config = json(&folder.join("config.json"));
        config.as_object_mut().unwrap().extend(curve["config"].as_object().unwrap().clone());
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        for (run, words) in [
            ("stage-0", "--zero_stage 0"),
            ("stage-3", "--zero_stage 3"),
            ("recomputed", "--zero_stage 3 --gradient_checkpointing true"),
        ] {
            let job = scene.launch("train --train_sampling_strategy sequential --save_strategy no").words(words);
            let job = job.with("--model_name_or_path", &folder).with("--dataset", &rows);
            let job = job.with("--output_dir", scene.path(run)).words(&pytorch(curve).flags());
            let job = job.words("--per_device_train_batch_size 1").with("--seed", expected["seed"].to_string());
            let job = job.with("--gradient_accumulation_steps", expected["gradient_accumulation_steps"].to_string());
            job.with("--nproc", expected["ranks"].to_string()).run().assert_done();
            pytorch(curve).assert_equals(&format!("{name}, {run}"), &Metrics::of(&scene.path(run)), 1e-5);
        }
    }
}

#[test]
fn openings_come_with_epochs() {
    let scene = Scene::new();
    // 192 rows, 96 a step: two steps an epoch.
    let words =
        "--nproc 2 --zero_stage 3 --num_train_epochs 2 --per_device_train_batch_size 48 --gradual_unfreezing epoch";
    scene.train(MODEL, "run", words).words("--learning_rate 1e-3 --save_steps 1").run().assert_done();
    let frozen = |step: u32| {
        let manifest = scene.path("run/checkpoints").join(format!("step-{step:08}/manifest.json"));
        json(&manifest)["state"]["trained"]["frozen"].as_array().unwrap().len()
    };
    // Embedding and the lower two of three layers of nine; then one layer fewer.
    assert_eq!([1, 2, 3, 4].map(frozen), [19, 19, 10, 10]);
}

#[test]
fn what_does_not_fit_is_told_before_anything_starts() {
    let scene = Scene::new();
    let file = scene.write(
        "job.yaml",
        "training:\n  learning_rate: 1e-5\n  parameter_groups:\n  - {pattern: model.layers.9.*, learning_rate: 1e-4}\n",
    );
    let refused = |words: &str, parts: &[&str]| {
        for command in ["train", "plan"] {
            let job = scene.launch(command).with("--model_name_or_path", model(MODEL));
            let job = job.with("--dataset", fixture("data/rows.jsonl")).with("--output_dir", scene.path("run"));
            job.words(words).run().assert_failed(2, parts);
            assert!(!scene.path("run").exists());
        }
    };
    refused(
        &format!("--config {}", file.display()),
        &["job.yaml:3", "no parameter of the model is called model.layers.9.*"],
    );
    refused("--freeze model.layers.0.self_attn.q_proj.weight", &["flag --freeze", "one product"]);
    refused("--freeze *", &["nothing is trained in the first step"]);
    refused("--freeze all_but_head --gradual_unfreezing epoch", &["disagree"]);
}

#[test]
fn rates_and_decay_follow_the_groups() {
    let scene = Scene::new();
    let base = "--nproc 2 --zero_stage 3 --max_steps 4 --save_strategy no --weight_decay 0.1";
    let loss = |run: &str, option: &str, value: &str| {
        train(&scene, run, base).with(option, value).run().assert_done();
        Metrics::of(&scene.path(run)).steps().pop().unwrap()["loss"].clone()
    };
    let plain = loss("plain", "--layer_wise_learning_rate_decay", "1");
    // A group that says what holds anyway changes rounding at most.
    let same = loss("same", "--parameter_groups", "[{pattern: lm_head.weight, weight_decay: 0.1}]");
    assert_close("the same", &same, &plain, 1e-6);
    let other = loss("other", "--layer_wise_learning_rate_decay", "0.5");
    assert_ne!(other, plain);
}
