//! Classifiers of sequences through the whole program: rows of text and labels, sharded training, figures, the exported model.

use std::path::{Path, PathBuf};

use serde_json::{Value, json as value};
use zerofold_checkpoint::ModelFiles;
use zerofold_tests::{Ended, Metrics, Scene, assert_close, fixture, json};

/// A fixture with what is expected of it.
struct Case {
    folder: PathBuf,
    expected: Value,
}

impl Case {
    fn named(name: &str) -> Case {
        let folder = fixture("classifiers").join(name);
        let expected = json(&folder.join("curve.json"));
        Case { folder, expected }
    }

    fn all() -> Vec<(String, Case)> {
        let entries = std::fs::read_dir(fixture("classifiers")).unwrap().map(|entry| entry.unwrap().path());
        let folders = entries.filter(|path| path.is_dir());
        let named = |path: PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        let mut names: Vec<String> = folders.map(named).collect();
        names.sort();
        assert!(names.len() >= 8, "{names:?}");
        names.into_iter().map(|name| (name.clone(), Case::named(&name))).collect()
    }

    /// Trains it as the fixture's recipe says.
    fn train(&self, scene: &Scene, run: &str, words: &str) -> Ended {
        let number = |key: &str| self.expected["recipe"][key].to_string();
        let ended = scene
            .launch("train --train_sampling_strategy sequential --logging_steps 1 --gradient_checkpointing false")
            .with("--model_name_or_path", &self.folder)
            .with("--dataset", self.folder.join("train.jsonl"))
            .with("--output_dir", scene.path(run))
            .with("--max_steps", number("max_steps"))
            .with("--learning_rate", number("learning_rate"))
            .with("--warmup_steps", number("warmup_steps"))
            .with("--weight_decay", number("weight_decay"))
            .words("--save_strategy no")
            .words(words)
            .run();
        ended.assert_done();
        ended
    }

    fn assert_curve(&self, about: &str, run: &Path, tolerance: f64) {
        let steps = Metrics::of(run).steps();
        let expected = self.expected["steps"].as_array().unwrap();
        assert_eq!(steps.len(), expected.len(), "{about}");
        for (step, expected) in steps.iter().zip(expected) {
            for key in ["loss", "grad_norm"] {
                assert_close(&format!("{about}, {key}"), &step[key], &expected[key], tolerance);
            }
        }
    }
}

/// What is compared to the bit: losses and gradient norms.
fn bits(run: &Path) -> Vec<(u64, u64)> {
    let number = |step: &Value, key: &str| step[key].as_f64().unwrap().to_bits();
    Metrics::of(run).steps().iter().map(|step| (number(step, "loss"), number(step, "grad_norm"))).collect()
}

/// Every value of a tensor in a model folder.
fn tensor(folder: &Path, name: &str) -> Vec<f32> {
    let files = ModelFiles::open(folder).unwrap();
    let mut values = vec![0.0; files.entry(name).unwrap().shape.iter().product()];
    files.read_f32(name, 0..values.len(), &mut values).unwrap();
    values
}

#[test]
fn losses_and_figures_are_those_of_transformers() {
    for (name, case) in Case::all() {
        let scene = Scene::new();
        for stage in [0, 3] {
            let (about, run) = (format!("{name} at stage {stage}"), format!("run-{stage}"));
            let words = format!(
                "--nproc 2 --zero_stage {stage} --per_device_train_batch_size 4 --eval_strategy epoch --eval_on_start \
                 --eval_dataset {}",
                case.folder.join("eval.jsonl").display()
            );
            case.train(&scene, &run, &words);
            let run = scene.path(&run);
            case.assert_curve(&about, &run, 1e-5);
            let evaluations = Metrics::of(&run).evaluations();
            let ends = [("before", evaluations.first()), ("after", evaluations.last())];
            for (when, found) in ends {
                for (figure, expected) in case.expected["evaluation"][when].as_object().unwrap() {
                    let found = &found.unwrap()[format!("eval_{figure}")];
                    match expected.as_f64() {
                        Some(0.0) => assert_eq!(found.as_f64(), Some(0.0), "{about}, {figure} {when}"),
                        _ => assert_close(&format!("{about}, {figure} {when}"), found, expected, 1e-4),
                    }
                }
                assert!(found.unwrap().get("eval_mean_token_accuracy").is_none(), "{about}");
            }
        }
    }
}

#[test]
fn stages_have_the_same_bits_and_processes_the_same_losses() {
    for name in ["bert-pairs", "roberta-two-numbers", "llama-several", "gemma2"] {
        let (case, scene) = (Case::named(name), Scene::new());
        for stage in 0..4 {
            case.train(
                &scene,
                &format!("stage-{stage}"),
                &format!("--nproc 2 --zero_stage {stage} --per_device_train_batch_size 4"),
            );
            assert_eq!(
                bits(&scene.path(&format!("stage-{stage}"))),
                bits(&scene.path("stage-0")),
                "{name}, stage {stage}"
            );
        }
        // The last micro-batch of a step is short, and one rank has none.
        case.train(&scene, "alone", "--per_device_train_batch_size 4 --gradient_accumulation_steps 2");
        case.train(
            &scene,
            "recomputed",
            "--nproc 4 --zero_stage 3 --per_device_train_batch_size 2 --gradient_checkpointing true",
        );
        case.train(
            &scene,
            "padding-free",
            "--nproc 2 --zero_stage 3 --per_device_train_batch_size 4 --padding_free true",
        );
        for run in ["alone", "recomputed", "padding-free"] {
            case.assert_curve(&format!("{name}, {run}"), &scene.path(run), 1e-5);
        }
    }
}

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

#[test]
fn heads_are_trained_first_and_layers_open_from_the_top() {
    let (case, scene) = (Case::named("bert-pairs"), Scene::new());
    let words =
        "--gradual_unfreezing steps --gradual_unfreezing_steps 2 --gradual_unfreezing_start head --eval_strategy no";
    for stage in 0..4 {
        let run = format!("stage-{stage}");
        case.train(&scene, &run, &format!("--nproc 2 --zero_stage {stage} --per_device_train_batch_size 4 {words}"));
        assert_eq!(bits(&scene.path(&run)), bits(&scene.path("stage-0")), "stage {stage}");
    }
    let (trained, before) = (scene.path("stage-3/model"), &case.folder);
    let changed = |name: &str| tensor(&trained, name) != tensor(before, name);
    assert!(changed("classifier.weight") && changed("bert.encoder.layer.1.output.dense.weight"));
    assert!(changed("bert.encoder.layer.0.output.dense.weight"), "the third opening is at step 5");
    assert!(!changed("bert.embeddings.word_embeddings.weight"));
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let scene = Scene::new();
    let model = scene.family("qwen3");
    let bert = fixture("classifiers/bert-pairs");
    let table: [(&Path, &str, &str, &[&str]); 14] = [
        (&model, r#"{"text": "a", "label": 1}"#, "", &["trains a language model", "set problem_type"]),
        (&model, r#"{"text": "a"}"#, "--num_labels 2", &["rows.jsonl:1", "no `label`"]),
        (&model, r#"{"label": 1}"#, "--num_labels 2", &["no `text`", "column_mapping"]),
        (&bert, r#"{"text": "w1", "label": "maybe"}"#, "", &["\"maybe\"", "3 classes: contradicts, follows, neither"]),
        (&bert, r#"{"text": "w1", "label": 3}"#, "", &["`label` is 3", "3 classes"]),
        (&bert, r#"{"text": "w1", "label": 1}"#, "--num_labels 2", &["num_labels is 2", "a trained head for 3"]),
        (
            &bert,
            r#"{"text": "w1", "label": 1}"#,
            "--metric_for_best_model pearson",
            &["metric_for_best_model is pearson", "use one of loss, accuracy, f1, matthews_correlation"],
        ),
        (
            &model,
            r#"{"text": "a", "label": [0]}"#,
            "--num_labels 3 --metric_for_best_model matthews_correlation",
            &["metric_for_best_model is matthews_correlation", "use one of loss, accuracy, f1"],
        ),
        (&model, r#"{"text": "a", "label": [0, 1, 1]}"#, "--num_labels 4", &["names the class LABEL_1 twice"]),
        (&bert, r#"{"text": "w1", "label": 1}"#, "--packing true", &["packing is for language models"]),
        (&bert, r#"{"text": "w1", "label": 1}"#, "--max_length 2", &["max_length is 2", "adds 2 tokens"]),
        (
            &bert,
            r#"{"text": "w1", "label": "x"}"#,
            "--problem_type regression",
            &["`label` is of 1, and the model tells 3"],
        ),
        (&model, r#"{"text": "a", "label": [1, "x"]}"#, "--num_labels 3", &["a number in some rows and a name"]),
        (&model, r#"{"text": "a", "label": 5}"#, "--num_labels 3", &["num_labels is 3", "6 labels"]),
    ];
    for (at, (model, row, words, told)) in table.into_iter().enumerate() {
        let data = scene.write("rows.jsonl", format!("{row}\n"));
        let ended = scene
            .launch("train --nproc 2 --max_steps 1")
            .with("--model_name_or_path", model)
            .with("--dataset", data)
            .with("--output_dir", scene.path(&format!("run-{at}")))
            .words(words)
            .run();
        told.iter().for_each(|words| assert!(ended.code != Some(0) && ended.err.contains(words), "{words}: {ended}"));
    }
}

#[test]
fn plans_checks_and_audits_know_classifiers() {
    let scene = Scene::new();
    let bert = fixture("classifiers/bert-pairs");
    let rows =
        "{\"text\": \"w1 w2\", \"label\": 0}\n{\"text\": \"w1 w2\", \"label\": 2}\n{\"text\": \" \", \"label\": 1}\n";
    let data = scene.write("rows.jsonl", rows);
    let launch = |words: &str| {
        scene
            .launch(words)
            .with("--model_name_or_path", &bert)
            .with("--dataset", &data)
            .with("--output_dir", scene.path("run"))
            .run()
    };
    let checked = launch("config check");
    checked.assert_done();
    assert!(checked.out.contains("rows of texts and labels"), "{checked}");
    let planned = launch("plan --nproc 2");
    planned.assert_done();
    // Two rows with one text are told apart by nothing.
    let audited = launch("data check");
    audited.assert_done();
    for words in [
        "the text is empty",
        "3 rows, texts and labels",
        "is answered otherwise elsewhere",
        "[CLS] w1 w2 [SEP]⟦contradicts⟧",
    ] {
        assert!(audited.out.contains(words), "{words}: {audited}");
    }
}

#[test]
fn the_best_model_is_that_of_the_figure_that_is_asked_for() {
    let (case, scene) = (Case::named("llama"), Scene::new());
    let train = |run: &str, words: &str| {
        let eval = case.folder.join("eval.jsonl");
        let evaluated = format!(
            "--nproc 2 --zero_stage 3 --per_device_train_batch_size 4 --eval_dataset {} --eval_strategy steps --eval_steps 1 \
             --save_strategy steps --save_steps 1",
            eval.display()
        );
        case.train(&scene, run, &format!("{evaluated} {words}"));
        Metrics::of(&scene.path(run)).evaluations()
    };
    let evaluations = train("run", "--load_best_model_at_end true --metric_for_best_model eval_f1");
    let f1 = |evaluation: &Value| evaluation["eval_f1"].as_f64().unwrap();
    let best = evaluations.iter().max_by(|one, other| f1(one).total_cmp(&f1(other))).unwrap();
    // The first of those that are alike is kept.
    let best = evaluations.iter().find(|evaluation| f1(evaluation) == f1(best)).unwrap();
    let lowest = evaluations
        .iter()
        .min_by(|one, other| one["eval_loss"].as_f64().unwrap().total_cmp(&other["eval_loss"].as_f64().unwrap()));
    assert_ne!(best["step"], lowest.unwrap()["step"], "the fixture tells them apart");
    let step = format!("run/checkpoints/step-{:08}", best["step"].as_u64().unwrap());
    scene.launch(&format!("export {step} --output exported")).run().assert_done();
    for name in ["score.weight", "model.layers.1.mlp.up_proj.weight"] {
        assert_eq!(tensor(&scene.path("run/model"), name), tensor(&scene.path("exported"), name), "{name}");
    }
    // Accuracy does not change from the third step on at this rate: the count is of it, though the loss still falls.
    let stopped =
        train("patient", "--metric_for_best_model accuracy --early_stopping_patience 2 --learning_rate 1e-30");
    assert_eq!(stopped.len(), 3);
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

#[test]
fn classifiers_are_evaluated_side_by_side() {
    let (case, scene) = (Case::named("bert-pairs"), Scene::new());
    case.train(&scene, "run", "--nproc 2 --zero_stage 3 --per_device_train_batch_size 4 --save_strategy epoch");
    let evaluate = |words: &str| {
        let data = case.folder.join("eval.jsonl");
        scene.launch("evaluate").with("--dataset", data).words(words).words("--json").run()
    };
    let model = case.folder.display();
    let ended = evaluate(&format!("{model} run run/model"));
    ended.assert_done();
    let report: Value = serde_json::from_str(&ended.out).unwrap();
    for (at, when) in ["before", "after", "after"].into_iter().enumerate() {
        for (figure, expected) in case.expected["evaluation"][when].as_object().unwrap() {
            assert_close(&format!("{at}, {figure}"), &report["models"][at][format!("eval_{figure}")], expected, 1e-3);
        }
    }
    let (other, rows) = (fixture("classifiers/gemma2"), fixture("classifiers/gemma2/eval.jsonl"));
    let refused = evaluate(&format!("{model} {} --dataset {}", other.display(), rows.display()));
    refused.assert_failed(2, &["tells single_label_classification of contradicts, follows, neither, and "]);
}
