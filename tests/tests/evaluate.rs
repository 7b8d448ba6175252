//! `launch evaluate` against PyTorch, against the evaluation inside training, and what it refuses.

use serde_json::{Value, json};
use zerofold_tests::{Ended, Job, Metrics, Scene, assert_close, change_weights, checkpoints, fixture, json, model};

/// What `launch evaluate … --json` found of each model.
#[track_caller]
fn found(job: Job<'_>) -> Vec<Value> {
    let ended = job.words("--json").run();
    ended.assert_done();
    let report: Value = serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}\n{ended}"));
    report["models"].as_array().unwrap().clone()
}

/// The figures that an evaluation inside training has too.
fn figures(of: &Value) -> [&Value; 3] {
    ["eval_loss", "eval_mean_token_accuracy", "eval_supervised_tokens"].map(|key| &of[key])
}

/// A run of a tiny model that was evaluated before its first and after its last step.
fn trained<'a>(scene: &'a Scene, words: &str) -> Job<'a> {
    scene
        .train("tiny-llama-tied", "run", "--max_steps 2 --eval_on_start --eval_strategy epoch --save_dtype float32")
        .with("--eval_dataset", fixture("data/chat.jsonl"))
        .words(words)
}

#[test]
fn loss_and_token_accuracy_are_those_of_pytorch() {
    for name in ["qwen3", "gemma2", "gpt2"] {
        let scene = Scene::new();
        let model = scene.family(name);
        let expected = &json(&fixture("families").join(name).join("curve.json"))["evaluation"];
        for words in ["", "--nproc 2 --zero_stage 3 --per_device_eval_batch_size 3"] {
            let job = scene.launch("evaluate").with("--dataset", fixture("families/rows.jsonl")).words(words);
            let of = &found(job.with("--model", &model))[0];
            assert_close(name, &of["eval_loss"], &expected["loss"], 1e-5);
            let perplexity = expected["loss"].as_f64().unwrap().exp();
            assert_close(name, &of["eval_perplexity"], &json!(perplexity), 1e-4);
            assert_close(name, &of["eval_mean_token_accuracy"], &expected["token_accuracy"], 1e-9);
            assert_eq!(of["eval_supervised_tokens"], expected["supervised_tokens"], "{name}");
        }
    }
}

#[test]
fn a_model_has_the_bits_that_it_had_inside_training() {
    let scene = Scene::new();
    trained(&scene, "").run().assert_done();
    let evaluations = Metrics::of(&scene.path("run")).evaluations();
    let (before, after) = (&evaluations[0], &evaluations[1]);
    assert_ne!(before["eval_loss"], after["eval_loss"]);
    let (base, step) = (model("tiny-llama-tied"), checkpoints(&scene.path("run")).pop().unwrap());
    let job = scene.launch("evaluate").with("--dataset", fixture("data/chat.jsonl"));
    // The model that it began with; the run, its checkpoint and what it exported.
    let models = [&base, &scene.path("run"), &step, &scene.path("run/model")];
    let found = found(models.iter().fold(job, |job, model| job.adjust(|command| _ = command.arg(model))));
    assert_eq!(figures(&found[0]), figures(before));
    for of in &found[1..] {
        assert_eq!(figures(of), figures(after), "{}", of["model"]);
        let gained = after["eval_loss"].as_f64().unwrap() - before["eval_loss"].as_f64().unwrap();
        assert_eq!(of["difference"]["eval_loss"], json!(gained));
    }
    let shown = |path: &std::path::Path| json!(path.display().to_string());
    assert_eq!([&found[1]["checkpoint"], &found[2]["checkpoint"]], [&shown(&step); 2]);
    assert_eq!([&found[0]["checkpoint"], &found[3]["checkpoint"]], [&Value::Null; 2]);
}

#[test]
fn processes_stages_types_and_packing_change_nothing_but_rounding() {
    let scene = Scene::new();
    let data = format!(
        "[{{path: {}}}, {{path: {}, label: the chats}}]",
        fixture("data/rows.jsonl").display(),
        fixture("data/chat.jsonl").display()
    );
    let evaluate = |words: &str| {
        let job = scene.launch("evaluate").with("--model", model("tiny-llama")).with("--dataset", &data);
        found(job.words(words)).remove(0)
    };
    let one = evaluate("");
    let sources = |of: &Value| ["rows", "the chats"].map(|label| of["eval_loss_by_source"][label].clone());
    assert!(sources(&one).iter().all(Value::is_f64), "{one}");
    for words in [
        "--nproc 2 --zero_stage 0",
        "--nproc 2 --zero_stage 1 --per_device_eval_batch_size 3",
        "--nproc 3 --zero_stage 2 --backend gloo",
        "--nproc 2 --zero_stage 3 --eval_packing true --max_length 256",
        "--nproc 4 --fsdp_sharding_strategy HYBRID_SHARD --parallelism_config_dp_replicate_size 2",
    ] {
        let of = evaluate(words);
        assert_eq!(of["eval_supervised_tokens"], one["eval_supervised_tokens"], "{words}");
        assert_close(words, &of["eval_loss"], &one["eval_loss"], 1e-6);
        assert_close(words, &of["eval_mean_token_accuracy"], &one["eval_mean_token_accuracy"], 1e-9);
        sources(&of).iter().zip(&sources(&one)).for_each(|(of, one)| assert_close(words, of, one, 1e-6));
    }
    let half = evaluate("--nproc 2 --zero_stage 3 --bf16");
    assert_ne!(half["eval_loss"], one["eval_loss"]);
    assert_close("bfloat16", &half["eval_loss"], &one["eval_loss"], 1e-2);
}

#[test]
fn the_configuration_of_a_run_says_what_it_is_evaluated_on_and_how() {
    let scene = Scene::new();
    let words = "--nproc 2 --zero_stage 3 --max_length 96 --per_device_eval_batch_size 3 --label_smoothing_factor 0.1 \
                 --freeze *embed_tokens* --early_stopping_patience 3 --save_strategy epoch --load_best_model_at_end --bf16";
    trained(&scene, words).run().assert_done();
    let evaluations = Metrics::of(&scene.path("run")).evaluations();
    let config = scene.path("run/config.resolved.yaml");
    // In bfloat16 too, and with the smoothing: the same bits on as many processes.
    let of = &found(scene.launch("evaluate").with("--config", &config).with("--model", scene.path("run")))[0];
    assert_eq!(figures(of), figures(evaluations.last().unwrap()));
    // Without a model it is the one that the run began with.
    let of = &found(scene.launch("evaluate").with("--config", &config))[0];
    assert_eq!(figures(of), figures(&evaluations[0]));
    assert_eq!(std::fs::read_dir(scene.path("run")).unwrap().flatten().filter(|it| it.path().is_dir()).count(), 4);
}

#[test]
fn models_stand_side_by_side_and_answer() {
    let scene = Scene::new();
    let other = scene.copy(&model("tiny-llama"), "other");
    change_weights(&other, "model.layers.0.mlp.down_proj.weight", 0..2000, |value| 2.0 * value);
    let (question, prompts) = ("Which train stops at the lake?", "Which train stops at the lake?\n\nName a fruit.\n");
    let ended = scene
        .launch("evaluate")
        .adjust(|command| _ = command.arg(model("tiny-llama")).arg(&other))
        .with("--dataset", fixture("data/chat.jsonl"))
        .with("--prompts", scene.write("prompts.txt", prompts))
        .with("--max_new_tokens", json(&fixture("generate.json"))["max_new_tokens"].to_string())
        .run();
    ended.assert_done();
    let line = |name: &str| ended.out.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{ended}"));
    let numbers = |name: &str| -> Vec<f64> {
        line(name).trim_start_matches(name).split_whitespace().filter_map(|cell| cell.parse().ok()).collect()
    };
    let [before, after, difference] = numbers("held-out loss")[..] else { panic!("{ended}") };
    assert!((after - before - difference).abs() < 2e-4 && difference != 0.0, "{ended}");
    let [before, after, difference] = numbers("perplexity")[..] else { panic!("{ended}") };
    assert!((after - before - difference).abs() < 2e-3, "{ended}");
    assert!(ended.out.lines().next().unwrap().ends_with("difference"), "{ended}");
    // What the model answers by `generate`, too.
    let answer = json(&fixture("generate.json"))["models"]["tiny-llama"][1]["new_text"].as_str().unwrap().to_owned();
    let shown = ended.out.split(&format!("> {question}\n")).nth(1).unwrap_or_else(|| panic!("{ended}"));
    let harmless = |letter: char| if letter.is_control() { '\u{fffd}' } else { letter };
    assert!(shown.contains(&answer.chars().map(harmless).collect::<String>()), "{ended}");
    assert!(shown.contains("> Name a fruit."), "{ended}");
    assert!(ended.err.contains("40 rows, "), "{ended}");
}

#[test]
fn another_chat_template_is_told_or_refused() {
    let scene = Scene::new();
    let folder = scene.copy(&model("tiny-llama"), "a-model");
    let train = scene.launch("train --max_steps 1").with("--model_name_or_path", &folder);
    train.with("--dataset", fixture("data/chat.jsonl")).with("--output_dir", scene.path("run")).run().assert_done();
    let evaluate = |path: &str| {
        let job = scene.launch("evaluate").with("--dataset", fixture("data/chat.jsonl"));
        job.with("--model", scene.path(path)).run()
    };
    let change = |folder: &str| {
        let folder = scene.path(folder);
        let template = json(&folder.join("tokenizer_config.json"))["chat_template"].clone();
        std::fs::write(folder.join("chat_template.jinja"), format!("{{# another #}}{}", template.as_str().unwrap()))
            .unwrap();
    };
    for path in ["run", "run/model"] {
        let ended = evaluate(path);
        ended.assert_done();
        assert!(!ended.err.contains("chat template"), "{ended}");
    }
    change("run/model");
    let ended = evaluate("run/model");
    ended.assert_done();
    assert!(ended.err.contains("was trained with another chat template"), "{ended}");
    change("a-model");
    evaluate("run").assert_failed(2, &["the chat template of", "is not that of the checkpoint of step 1", "hint: "]);
}

#[test]
fn what_cannot_be_evaluated_is_told_before_anything_is_started() {
    let scene = Scene::new();
    let (data, llama) = (fixture("data/chat.jsonl"), model("tiny-llama"));
    let evaluate = |words: &str| -> Ended {
        let words = words.replace("LLAMA", &llama.display().to_string()).replace("DATA", &data.display().to_string());
        scene.launch("evaluate").words(&words).run()
    };
    let encoder = scene.copy(&fixture("encoders/bert"), "bert");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(llama.join(file), encoder.join(file)).unwrap();
    }
    scene.write("nothing.jsonl", "{\"input_ids\": [5, 6, 7], \"labels\": [-100, -100, -100]}\n");
    scene.write("run.yaml", "training: {model_name_or_path: m, dataset: d.jsonl, output_dir: o}\n");
    for (words, parts) in [
        ("--dataset DATA", &["evaluate needs a model", "launch evaluate MODEL --dataset FILE"][..]),
        ("LLAMA", &["evaluate needs held-out data", "pass --dataset FILE"]),
        ("--config run.yaml LLAMA", &["evaluate needs held-out data", "that has an eval_dataset"]),
        ("LLAMA no/such/model/here --dataset DATA", &["no/such/model/here", "there is no such folder", "hint: "]),
        ("LLAMA --dataset none.jsonl", &["none.jsonl"]),
        ("LLAMA --dataset nothing.jsonl", &["nothing.jsonl", "supervised"]),
        ("bert --dataset DATA", &["no `text`"]),
        (
            "LLAMA --dataset DATA --nnodes 2 --node_rank 0 --rdzv_endpoint localhost:29511",
            &["an evaluation runs on one host"],
        ),
        ("LLAMA --dataset DATA --prompts none.txt", &["none.txt"]),
        ("LLAMA --dataset DATA --zero_stage 4", &["zero_stage"]),
    ] {
        evaluate(words).assert_failed(2, parts);
    }
}

#[test]
fn a_rank_that_fails_is_told_in_its_own_words() {
    let scene = Scene::new();
    let folder = scene.copy(&model("tiny-llama"), "a-model");
    let path = folder.join("model.safetensors");
    let mut content = std::fs::read(&path).unwrap();
    let name = b"model.layers.1.mlp.up_proj";
    let at = content.windows(name.len()).position(|window| window == name).unwrap();
    content[at..at + name.len()].copy_from_slice(b"model.layers.1.mlp.xx_proj");
    std::fs::write(path, content).unwrap();
    let job = scene.launch("evaluate --nproc 2").with("--dataset", fixture("data/chat.jsonl")).with("--model", folder);
    let ended = job.run();
    ended.assert_failed(1, &["error: rank", "model.layers.1.mlp.up_proj.weight", "\nlog: "]);
    let log = ended.err.lines().find_map(|line| line.strip_prefix("log: ")).unwrap();
    assert!(std::fs::read_to_string(log).unwrap().contains("up_proj.weight"), "{ended}");
    std::fs::remove_dir_all(std::path::Path::new(log).ancestors().nth(3).unwrap()).unwrap();
}
