//! Rows of every kind against TRL's own functions: tests/fixtures/data/kinds.json is made by scripts/fixtures/data_kinds.py.

use std::path::{Path, PathBuf};

use serde_json::Value;
use zerofold_data::{Columns, Prepare, Sources, prepare};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

/// The folder of tiny-llama, with the post-processor of the case and, unless it wants one, without a chat template.
fn model(folder: &Path, case: &Value) {
    let source = fixtures().join("models/tiny-llama");
    let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(source.join(name)).unwrap()).unwrap() };
    let write = |name: &str, value: &Value| std::fs::write(folder.join(name), value.to_string()).unwrap();
    let (mut tokenizer, mut config) = (read("tokenizer.json"), read("tokenizer_config.json"));
    tokenizer["post_processor"] = case["post_processor"].clone();
    if case["chat_template"] == false {
        config.as_object_mut().unwrap().remove("chat_template");
    }
    write("tokenizer.json", &tokenizer);
    write("tokenizer_config.json", &config);
    write("config.json", &read("config.json"));
}

fn numbers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|number| number.as_i64().unwrap()).collect()
}

#[test]
fn ids_and_labels_are_those_of_trl() {
    let file = std::fs::read_to_string(fixtures().join("data/kinds.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    let mut compared = 0;
    for case in file["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let folder = tempfile::tempdir().unwrap();
        model(folder.path(), case);
        let rows = case["rows"].as_array().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        let prepared = prepare(&Prepare {
            model_directory: folder.path(),
            sources: &Sources::find(&[path.to_str().unwrap()]).unwrap(),
            columns: &Columns::default(),
            max_length: Some(case["max_length"].as_u64().unwrap() as u32),
            assistant_only_loss: case["assistant_only_loss"].as_bool().unwrap(),
            chat_template: None,
            template_date: None,
            eos_token: None,
            completion_only_loss: case["completion_only_loss"].as_bool(),
            classes: None,
            cache: &folder.path().join("cache"),
        })
        .unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = case["expected"].as_array().unwrap();
        assert_eq!(prepared.dataset.rows(), expected.len(), "{name}");
        assert_eq!(prepared.report.dropped, rows.len() - expected.len(), "{name}");
        for (index, expected) in expected.iter().enumerate() {
            let (ids, labels) = prepared.dataset.row(index);
            let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            let labels: Vec<i64> = labels.iter().map(|&label| i64::from(label)).collect();
            assert_eq!(ids, numbers(&expected["input_ids"]), "{name}, row {index}");
            assert_eq!(labels, numbers(&expected["labels"]), "{name}, row {index}");
            compared += 1;
        }
        let told = prepared.report.warnings.iter().any(|warning| warning.contains("the tokens of the prompt"));
        assert_eq!(told, case["mismatches"].as_u64().unwrap() > 0, "{name}");
    }
    assert!(compared >= 100, "only {compared} rows in the fixture");
}
