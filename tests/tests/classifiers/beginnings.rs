//! The model that a classifier begins with: new heads, starts that fail, models that change.

use std::path::PathBuf;

use serde_json::{Value, json as value};
use zerofold_checkpoint::ModelFiles;
use zerofold_tests::{Ended, Scene, fixture, json};

use super::tensor;

#[test]
fn a_language_model_becomes_a_classifier() {
    let scene = Scene::new();
    let model = zerofold_tests::model("tiny-llama");
    let rows: Vec<String> = (0..24)
        .map(|row| {
            value!({"sentence": format!("the {row} rain"), "kind": (["wet", "dry", "mild"][row % 3])}).to_string()
        })
        .collect();
    let data = scene.write("rows.jsonl", rows.join("\n"));
    let train = |run: &str, words: &str| {
        scene
            .launch("train --problem_type single_label_classification --learning_rate 1e-30 --weight_decay 0")
            .with("--model_name_or_path", &model)
            .with("--dataset", &data)
            .with("--output_dir", scene.path(run))
            .words("--column_mapping text=sentence,label=kind --per_device_train_batch_size 4 --max_steps 4")
            .words(words)
            .run()
    };
    let ended = train("run", "--nproc 2 --zero_stage 3 --save_steps 2");
    ended.assert_done();
    for words in ["single_label_classification, 3 labels: dry, mild, wet", "new, at random by seed 42: score.weight"] {
        assert!(ended.out.contains(words), "{words}: {ended}");
    }
    let config = json(&scene.path("run/model/config.json"));
    assert_eq!(config["architectures"], value!(["LlamaForSequenceClassification"]));
    assert_eq!((&config["id2label"]["2"], &config["label2id"]["dry"]), (&value!("wet"), &value!(0)));
    // As the head began, in every run with this seed.
    let head = tensor(&scene.path("run/model"), "score.weight");
    let spread = (head.iter().map(|value| value * value).sum::<f32>() / head.len() as f32).sqrt();
    assert!(head.len() == 3 * 64 && (0.017..0.023).contains(&spread), "{} {spread}", head.len());
    train("other", "--nproc 3").assert_done();
    assert_eq!(tensor(&scene.path("other/model"), "score.weight"), head);
    train("seed", "--seed 7").assert_done();
    assert_ne!(tensor(&scene.path("seed/model"), "score.weight"), head);
    // All else is as it was.
    let layer = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(tensor(&scene.path("run/model"), layer), tensor(&model, layer));
    // The result is a classifier that is gone on with, with its own head, and a checkpoint is resumed.
    let again = scene
        .launch("train --max_steps 1 --save_strategy no --column_mapping text=sentence,label=kind")
        .with("--model_name_or_path", scene.path("run/model"))
        .with("--dataset", &data)
        .with("--output_dir", scene.path("again"))
        .run();
    again.assert_done();
    assert!(again.out.contains("3 labels: dry, mild, wet") && !again.out.contains("new, at random"), "{again}");
    std::fs::remove_dir_all(scene.path("run/model")).unwrap();
    let resumed = train("run", "--nproc 2 --zero_stage 3 --save_steps 2 --resume step-00000002");
    resumed.assert_done();
    assert_eq!(tensor(&scene.path("run/model"), "score.weight"), head);
    let exported = scene.launch("export run/checkpoints/step-00000002 --output exported").run();
    exported.assert_done();
    assert_eq!(json(&scene.path("exported/config.json"))["id2label"], config["id2label"]);
}

#[test]
fn an_encoder_gets_the_head_that_its_files_do_not_have() {
    let scene = Scene::new();
    let model = scene.copy(&fixture("classifiers/bert-pairs"), "bert");
    // The files of a language model: without pooler and classifier, with a head of its own.
    let files = ModelFiles::open(&model).unwrap();
    let kept: Vec<String> =
        files.names().filter(|name| name.starts_with("bert.") && !name.contains("pooler")).map(str::to_owned).collect();
    let entries = kept.iter().map(|name| {
        let entry = files.entry(name).unwrap();
        zerofold_checkpoint::TensorEntry::new(name.clone(), entry.dtype, entry.shape)
    });
    let path = scene.path("bare.safetensors");
    let entries: Vec<_> = entries.collect();
    let mut writer = zerofold_checkpoint::SafetensorsWriter::create(&path, &entries, &Default::default()).unwrap();
    kept.iter().for_each(|name| writer.write_f32(name, 0, &tensor(&model, name)).unwrap());
    writer.finish().unwrap();
    drop(files);
    std::fs::rename(path, model.join("model.safetensors")).unwrap();
    let mut config = json(&model.join("config.json"));
    config["architectures"] = value!(["BertForMaskedLM"]);
    for key in ["problem_type", "id2label", "label2id"] {
        config[key] = Value::Null;
    }
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    let ended = scene
        .launch(
            "train --nproc 2 --zero_stage 3 --max_steps 2 --save_strategy no --freeze all_but_head --learning_rate 0.1",
        )
        .with("--model_name_or_path", &model)
        .with("--dataset", model.join("train.jsonl"))
        .with("--output_dir", scene.path("run"))
        .run();
    ended.assert_done();
    let told = "classifier.weight, classifier.bias, bert.pooler.dense.weight, bert.pooler.dense.bias";
    assert!(ended.out.contains(told) && ended.out.contains("3 labels: contradicts, follows, neither"), "{ended}");
    // Feature extraction: the head is trained, and all that the model had is as it was.
    let trained = scene.path("run/model");
    kept.iter().for_each(|name| assert_eq!(tensor(&trained, name), tensor(&model, name), "{name}"));
    assert!(tensor(&trained, "classifier.bias").iter().all(|value| *value != 0.0));
}

/// A causal model, rows of several classes, and the words of a job with them.
struct Several<'a> {
    scene: &'a Scene,
    model: PathBuf,
}

impl Several<'_> {
    fn train(&self, run: &str, words: &str) -> Ended {
        self.scene
            .launch("train --nproc 2 --zero_stage 2 --num_labels 3 --max_steps 4 --save_steps 2 --learning_rate 1e-30")
            .with("--model_name_or_path", &self.model)
            .with("--dataset", self.scene.path("rows.jsonl"))
            .with("--output_dir", self.scene.path(run))
            .words("--per_device_train_batch_size 1")
            .words(words)
            .run()
    }
}

#[test]
fn a_start_that_failed_is_begun_anew_and_a_run_is_gone_on_with() {
    let scene = Scene::new();
    let several = Several { scene: &scene, model: scene.copy(&zerofold_tests::model("tiny-llama"), "model") };
    let rows = ["[2]", "[0, 1]", "[]", "[1]"].map(|label| format!("{{\"text\": \"the rain\", \"label\": {label}}}"));
    scene.write("rows.jsonl", rows.join("\n"));
    scene.write("held-out.jsonl", "{\"text\": \"the rain\", \"label\": [7]}\n");
    let words = "--eval_dataset held-out.jsonl --eval_strategy epoch";
    assert!(several.train("run", words).err.contains("`label` is 7"));
    scene.write("held-out.jsonl", "{\"text\": \"the rain\", \"label\": [1]}\n");
    // Another seed than that of the start that failed: its head is not taken.
    let ended = several.train("run", &format!("{words} --seed 9"));
    ended.assert_done();
    assert!(ended.out.contains("multi_label_classification, 3 labels") && ended.out.contains("by seed 9"), "{ended}");
    let head = tensor(&scene.path("run/model"), "score.weight");
    several.train("seed", "--seed 9").assert_done();
    assert_eq!(tensor(&scene.path("seed/model"), "score.weight"), head);
    std::fs::remove_dir_all(scene.path("run/model")).unwrap();
    let resumed = several.train("run", &format!("{words} --seed 9 --resume step-00000002"));
    resumed.assert_done();
    assert_eq!(tensor(&scene.path("run/model"), "score.weight"), head);
}

#[test]
fn a_model_that_was_changed_is_read_anew() {
    let scene = Scene::new();
    let several = Several { scene: &scene, model: scene.copy(&zerofold_tests::model("tiny-llama"), "model") };
    scene.write("rows.jsonl", "{\"text\": \"the rain\", \"label\": [2]}\n{\"text\": \"rain\", \"label\": []}\n");
    let name = "model.layers.0.mlp.up_proj.weight";
    let (single, part) = (several.model.join("model.safetensors"), several.model.join("part.safetensors"));
    let files = ModelFiles::open(&several.model).unwrap();
    let weight_map: serde_json::Map<_, _> =
        files.names().map(|name| (name.to_owned(), value!("part.safetensors"))).collect();
    drop(files);
    std::fs::rename(&single, &part).unwrap();
    let index = value!({"metadata": {}, "weight_map": weight_map}).to_string();
    std::fs::write(several.model.join("model.safetensors.index.json"), index).unwrap();
    several.train("before", "").assert_done();
    // A single file goes before an index.
    std::fs::copy(&part, &single).unwrap();
    zerofold_tests::change_weights(&several.model, name, 0..4, |weight| weight + 1.0);
    several.train("after", "").assert_done();
    assert_eq!(tensor(&scene.path("after/model"), name), tensor(&several.model, name));
    assert_ne!(tensor(&scene.path("after/model"), name), tensor(&scene.path("before/model"), name));
}
