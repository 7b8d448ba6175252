//! Every family of models through the whole program: read, trained sharded, written as it was.

use std::path::Path;

use zerofold_checkpoint::ModelFiles;
use zerofold_tests::{Scene, fixture, json};

/// The names of the fixture models.
fn families() -> Vec<String> {
    let entries = std::fs::read_dir(fixture("families")).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name());
    let mut names: Vec<String> = folders.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 16, "{names:?}");
    names
}

/// Every tensor of a model folder: name, type, shape, and its values.
fn tensors(folder: &Path) -> Vec<(String, String, Vec<u64>, Vec<u32>)> {
    let files = ModelFiles::open(folder).unwrap();
    let read = |name: &str| {
        let entry = files.entry(name).unwrap();
        let count: usize = entry.shape.iter().product();
        let mut values = vec![0.0; count];
        files.read_f32(name, 0..count, &mut values).unwrap();
        let shape = entry.shape.iter().map(|&size| size as u64).collect();
        (name.to_owned(), format!("{:?}", entry.dtype), shape, values.into_iter().map(f32::to_bits).collect())
    };
    files.names().map(read).collect()
}

#[test]
fn a_model_that_is_not_changed_is_written_as_it_was_read() {
    for name in families() {
        let scene = Scene::new();
        let model = scene.family(&name);
        let run = scene.path("run");
        let ended = scene
            .launch("train --nproc 2 --zero_stage 3 --max_steps 1 --learning_rate 1e-30 --save_strategy no")
            .with("--model_name_or_path", &model)
            .with("--dataset", fixture("families/rows.jsonl"))
            .with("--output_dir", &run)
            .words("--train_sampling_strategy sequential --per_device_train_batch_size 4")
            .run();
        ended.assert_done();
        assert_eq!(tensors(&run.join("model")), tensors(&model), "{name}");
        let [source, written] = [&model, &run.join("model")].map(|folder| json(&folder.join("config.json")));
        assert_eq!(written["architectures"], source["architectures"], "{name}");
        let log = std::fs::read_to_string(run.join("logs/rank-0.log")).unwrap();
        assert!(log.contains("attention block by block"), "{name}: {log}");
    }
}

#[test]
fn what_a_model_does_not_have_is_refused_before_it_is_trained() {
    let scene = Scene::new();
    let model = scene.family("qwen2");
    // Read as a Llama its biases would be left out.
    let text = std::fs::read_to_string(model.join("config.json")).unwrap();
    let text = text.replace("Qwen2ForCausalLM", "LlamaForCausalLM").replace("\"qwen2\"", "\"llama\"");
    std::fs::write(model.join("config.json"), text).unwrap();
    let ended = scene
        .launch("train --nproc 2 --max_steps 1")
        .with("--model_name_or_path", &model)
        .with("--dataset", fixture("families/rows.jsonl"))
        .with("--output_dir", scene.path("run"))
        .run();
    ended.assert_failed(1, &["holds tensors that the model of its config.json does not have", "q_proj.bias"]);
}

/// Weights and config.json that are not of one model, told before anything starts.
#[test]
fn a_configuration_of_another_model_is_refused() {
    let scene = Scene::new();
    for (key, value, told) in [
        ("tie_word_embeddings", "true", "lm_head.weight is another matrix than model.embed_tokens.weight"),
        ("num_hidden_layers", "4", "config.json says num_hidden_layers: 4, and the weights have 3 layers"),
    ] {
        let model = scene.copy(&zerofold_tests::model("tiny-llama"), key);
        let mut config = json(&model.join("config.json"));
        config[key] = serde_json::from_str(value).unwrap();
        std::fs::write(model.join("config.json"), config.to_string()).unwrap();
        let train = scene.launch("train --max_steps 1").with("--output_dir", scene.path("run"));
        let train = train.with("--model_name_or_path", &model).with("--dataset", fixture("data/rows.jsonl"));
        train.run().assert_failed(2, &[told, "hint: "]);
        let evaluate = scene.launch("evaluate").adjust(|command| _ = command.arg(&model));
        evaluate.with("--dataset", fixture("data/rows.jsonl")).run().assert_failed(2, &[told]);
    }
    // A copy of the embedding is what other programs write.
    let model = scene.copy(&zerofold_tests::model("tiny-llama-tied"), "tied");
    let ended = scene.launch("train --max_steps 1 --save_strategy no").with("--model_name_or_path", &model);
    ended.with("--dataset", fixture("data/rows.jsonl")).with("--output_dir", scene.path("done")).run().assert_done();
}
