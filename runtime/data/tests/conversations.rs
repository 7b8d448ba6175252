//! Ids and masks against transformers' on the committed conversations (tests/fixtures, made by scripts/fixtures).

use std::path::{Path, PathBuf};

use serde_json::Value;
use zerofold_data::{Columns, IGNORED, Message, Prepare, Role, Sources, prepare};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures")
}

fn numbers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|number| number.as_i64().unwrap()).collect()
}

#[test]
fn ids_and_masks_are_those_of_transformers() {
    let file = std::fs::read_to_string(fixtures().join("data/chat_tokens.json")).unwrap();
    let expected: Value = serde_json::from_str(&file).unwrap();
    let model_directory = fixtures().join("models/tiny-llama");
    let dataset = fixtures().join("data/chat.jsonl");
    let cache = tempfile::tempdir().unwrap();
    let options = Prepare {
        model_directory: &model_directory,
        sources: &Sources::find(&[dataset.to_str().unwrap()]).unwrap(),
        columns: &Columns::default(),
        max_length: Some(1024),
        assistant_only_loss: true,
        chat_template: None,
        template_date: None,
        eos_token: None,
        completion_only_loss: None,
        classes: None,
        cache: cache.path(),
    };
    let prepared = prepare(&options).unwrap();
    let rows = expected["rows"].as_array().unwrap();
    assert_eq!(prepared.dataset.rows(), rows.len());
    for (index, row) in rows.iter().enumerate() {
        let (ids, labels) = prepared.dataset.row(index);
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        assert_eq!(ids, numbers(&row["input_ids"]), "row {index}");
        let mask: Vec<i64> = labels.iter().map(|&label| i64::from(label != IGNORED)).collect();
        assert_eq!(mask, numbers(&row["assistant_mask"]), "row {index}");
        assert!(labels.iter().zip(&ids).all(|(&label, &id)| label == IGNORED || i64::from(label) == id));
    }
}

#[test]
fn the_prompt_of_a_generation_is_that_of_transformers() {
    let file = std::fs::read_to_string(fixtures().join("data/chat_tokens.json")).unwrap();
    let prompt = &serde_json::from_str::<Value>(&file).unwrap()["generation_prompt"];
    let model = fixtures().join("models/tiny-llama");
    let template = zerofold_data::ChatTemplate::load(&model).unwrap();
    let tokenizer = zerofold_data::Tokenizer::load(&model).unwrap();
    let messages = vec![Message::new(Role::User, prompt["messages"][0]["content"].as_str().unwrap())];
    let text = template.render(&messages.into(), true).unwrap();
    assert_eq!(text, prompt["text"].as_str().unwrap());
    let ids: Vec<i64> = tokenizer.encode(&text, false).unwrap().into_iter().map(i64::from).collect();
    assert_eq!(ids, numbers(&prompt["input_ids"]));
}
