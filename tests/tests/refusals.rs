//! What cannot be used is refused with one clear error that names it, before or right after the start.

use std::path::{Path, PathBuf};

use zerofold_tests::{Ended, Job, Scene, fixture, model};

/// A job of two ranks whose model, data and run folder are given.
fn train<'a>(scene: &'a Scene, model: &Path, dataset: &Path) -> Job<'a> {
    let job = scene.launch("train --nproc 2 --max_steps 2 --zero_stage 3").with("--model_name_or_path", model);
    job.with("--dataset", dataset).with("--output_dir", scene.path("run"))
}

/// Replaces all of `from` in a file by `to`.
fn replace(path: &Path, from: &str, to: &str) {
    let content = std::fs::read(path).unwrap();
    let mut replaced = Vec::with_capacity(content.len());
    let mut rest = &content[..];
    let mut count = 0;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from.as_bytes()) {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(to.as_bytes());
        rest = &rest[at + from.len()..];
        count += 1;
    }
    assert!(count > 0, "{from} is not in {}", path.display());
    replaced.extend_from_slice(rest);
    std::fs::write(path, replaced).unwrap();
}

/// A model folder that a test has changed, trained on.
#[track_caller]
fn with_model(change: impl FnOnce(&Path)) -> Ended {
    let scene = Scene::new();
    let folder = scene.copy(&model("tiny-llama"), "a-model");
    change(&folder);
    let ended = train(&scene, &folder, &fixture("data/rows.jsonl")).run();
    assert!(!scene.path("run/model").exists(), "{ended}");
    ended
}

#[test]
fn a_missing_model_folder_or_file_is_named() {
    with_model(|folder| std::fs::remove_dir_all(folder).unwrap()).assert_failed(2, &["a-model", "no such folder"]);
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let ended = with_model(|folder| std::fs::remove_file(folder.join(name)).unwrap());
        ended.assert_failed(2, &["a-model", &format!("it has no {name}"), "hint: "]);
    }
    let scene = Scene::new();
    let folder = scene.copy(&model("tiny-llama-sharded"), "a-model");
    std::fs::remove_file(folder.join("model-00002-of-00003.safetensors")).unwrap();
    let ended = train(&scene, &folder, &fixture("data/rows.jsonl")).run();
    ended.assert_failed(2, &["model-00002-of-00003.safetensors"]);
}

#[test]
fn a_missing_tensor_is_named() {
    let ended = with_model(|folder| {
        replace(&folder.join("model.safetensors"), "model.layers.1.mlp.up_proj", "model.layers.1.mlp.xx_proj");
    });
    ended.assert_failed(1, &["model.layers.1.mlp.up_proj.weight"]);
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    let ended = with_model(|folder| {
        replace(&folder.join("config.json"), "\"intermediate_size\": 160", "\"intermediate_size\": 144");
    });
    ended.assert_failed(1, &["mlp.", "160", "144"]);
}

#[test]
fn an_unsupported_architecture_is_named() {
    let ended = with_model(|folder| {
        replace(&folder.join("config.json"), "LlamaForCausalLM", "FalconForCausalLM");
        replace(&folder.join("config.json"), "\"model_type\": \"llama\"", "\"model_type\": \"falcon\"");
    });
    assert!(matches!(ended.code, Some(1 | 2)), "{ended}");
    ended.assert_failed(ended.code.unwrap_or(-1), &["FalconForCausalLM", "LlamaForCausalLM"]);
}

/// Fixture model, data of the test.
#[track_caller]
fn with_data(content: &str) -> Ended {
    let scene = Scene::new();
    let data: PathBuf = scene.write("rows.jsonl", content);
    let ended = train(&scene, &model("tiny-llama"), &data).run();
    assert!(!scene.path("run/model").exists(), "{ended}");
    ended
}

#[test]
fn a_broken_line_is_named_by_file_and_number() {
    let good =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n";
    let place = "rows.jsonl:3";
    with_data(&format!("{good}{good}{{\"messages\": [\n{good}")).assert_failed(2, &[place]);
    with_data(&format!("{good}{good}{{\"massages\": []}}\n{good}")).assert_failed(2, &[place]);
    with_data(&format!("{good}{good}{{\"messages\": []}}\n{good}")).assert_failed(2, &[place]);
    with_data(&format!("{good}{good}{{\"input_ids\": [1, 2]}}\n{good}")).assert_failed(2, &[place]);
    let mut rows = "{\"input_ids\": [5, 6, 7]}\n".repeat(2);
    rows.push_str("{\"input_ids\": [5, 6, 7], \"labels\": [5]}\n");
    with_data(&rows).assert_failed(2, &[place, "labels"]);
}

#[test]
fn data_without_anything_to_learn_are_refused() {
    let row = "{\"input_ids\": [5, 6, 7], \"labels\": [-100, -100, -100]}\n";
    with_data(&row.repeat(4)).assert_failed(2, &["rows.jsonl", "supervised"]);
    let question = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n";
    with_data(&question.repeat(4)).assert_failed(2, &["rows.jsonl"]);
    with_data("").assert_failed(2, &["rows.jsonl"]);
    with_data("{\"input_ids\": [5, 6, 100000]}\n").assert_failed(2, &["100000", "vocabulary", "320"]);
}

#[test]
fn an_unknown_key_gets_the_nearest_name() {
    let scene = Scene::new();
    let config = scene.write("job.yaml", "num_processes: 2\ntraining:\n  max_steps: 1\n  learning_rat: 0.001\n");
    let ended = train(&scene, &model("tiny-llama"), &fixture("data/rows.jsonl")).with("--config", &config).run();
    ended.assert_failed(2, &["job.yaml:4", "learning_rat", "learning_rate"]);
    let ended = train(&scene, &model("tiny-llama"), &fixture("data/rows.jsonl")).words("--set warmup_step=3").run();
    ended.assert_failed(2, &["warmup_step", "warmup_steps"]);
    assert!(!scene.path("run").exists(), "nothing was begun");
}

#[test]
fn an_unknown_flag_or_command_gets_the_nearest_name() {
    let scene = Scene::new();
    let ended = train(&scene, &model("tiny-llama"), &fixture("data/rows.jsonl")).words("--learning_rat 0.001").run();
    ended.assert_failed(2, &["--learning_rat", "--learning_rate"]);
    scene.launch("trian").run().assert_failed(2, &["trian", "did you mean `train`?"]);
    assert!(!scene.path("run").exists(), "nothing was begun");
}
