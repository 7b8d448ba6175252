//! Our rendering against transformers': chat_templates.json is made by scripts/fixtures/chat_templates.py.

use std::path::Path;

use serde_json::Value;
use zerofold_data::{ChatTemplate, Columns, Conversation, Row, RowReader, Sources, SpecialTokens};

/// A row as the reader of data files hands it on.
fn conversation(row: &Value) -> Conversation {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("row.jsonl");
    std::fs::write(&path, row.to_string()).unwrap();
    let (sources, columns) = (Sources::find(&[path.to_str().unwrap()]).unwrap(), Columns::default());
    match RowReader::new(&sources, &columns).next().unwrap().unwrap() {
        (_, Row::Conversation(conversation)) => conversation,
        (_, other) => panic!("{other:?}"),
    }
}

/// The text of a built-in template, which the fixture only names.
fn builtin(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/template/builtin");
    std::fs::read_to_string(folder.join(name).with_extension("jinja")).unwrap()
}

/// What we say before the template is asked: it would pass something over in silence.
fn is_our_own_refusal(error: &str) -> bool {
    error.contains("does not read") || error.contains("knows no role")
}

#[test]
fn renders_what_transformers_renders() {
    let file: Value = serde_json::from_str(include_str!("chat_templates.json")).unwrap();
    let (mut compared, mut differences) = (0, Vec::new());
    for case in file["cases"].as_array().unwrap() {
        let special = case["special"].as_object().unwrap();
        let special = SpecialTokens::new(special.iter().map(|(name, token)| (name.as_str(), token.as_str().unwrap())));
        let text = case["builtin"].as_str().map_or_else(|| case["template"].as_str().unwrap().to_string(), builtin);
        let template = ChatTemplate::from_source(&text, special).unwrap();
        for (index, row) in case["rows"].as_array().unwrap().iter().enumerate() {
            let conversation = conversation(&row["row"]);
            for (key, add_generation_prompt) in [("whole", false), ("prompt", true)] {
                let place = format!("{} row {index} {key}", case["name"]);
                let rendered = template.render_with_spans(&conversation, add_generation_prompt);
                let expected = &row[key];
                compared += 1;
                let rendered = match (rendered, expected["error"].as_str()) {
                    (Ok(rendered), None) => rendered,
                    (Err(error), Some(message)) => {
                        let error = error.to_string();
                        assert!(error.contains(message) || is_our_own_refusal(&error), "{place}: {error}");
                        continue;
                    }
                    (Err(error), None) if is_our_own_refusal(&error.to_string()) => continue,
                    (Err(error), None) => {
                        differences.push(format!("{place}: {error}"));
                        continue;
                    }
                    (Ok(rendered), Some(message)) => {
                        differences.push(format!("{place}: {:?} in place of the error {message}", rendered.text));
                        continue;
                    }
                };
                let wanted = expected["text"].as_str().unwrap();
                if rendered.text != wanted {
                    differences.push(lines_that_differ(&place, &rendered.text, wanted));
                    continue;
                }
                let in_characters = |byte: usize| rendered.text[..byte].chars().count() as u64;
                let spans: Vec<_> =
                    rendered.spans.iter().map(|span| (in_characters(span.start), in_characters(span.end))).collect();
                let bounds = |span: &Value| (span[0].as_u64().unwrap(), span[1].as_u64().unwrap());
                let expected: Vec<_> = expected["spans"].as_array().unwrap().iter().map(bounds).collect();
                assert_eq!(spans, expected, "{place}");
            }
        }
    }
    assert!(compared >= 300, "only {compared} renderings in the fixture");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// The lines that differ, on both sides.
fn lines_that_differ(place: &str, found: &str, wanted: &str) -> String {
    let pairs = found.lines().zip(wanted.lines()).filter(|(found, wanted)| found != wanted);
    let shown = pairs.map(|(found, wanted)| format!("\n  ours         {found:?}\n  transformers {wanted:?}"));
    format!("{place}:{}", shown.collect::<String>())
}
