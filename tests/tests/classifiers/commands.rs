//! What is refused, and the commands beside `train`.

use std::path::Path;

use serde_json::Value;
use zerofold_tests::{Scene, assert_close, fixture};

use super::Case;

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
        (
            &model,
            r#"{"text": "a", "label": [1, "x"]}"#,
            "--num_labels 3",
            &["a number in some rows (", "rows.jsonl:1: \"x\")"],
        ),
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
