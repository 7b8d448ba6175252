//! Our rendering against transformers': chat_templates.json is made by scripts/fixtures/chat_templates.py.

use serde_json::Value;
use zerofold_data::{ChatTemplate, Message, Role, SpecialTokens};

fn messages(row: &Value) -> Vec<Message> {
    let message = |entry: &Value| {
        let role = match entry["role"].as_str().unwrap() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => Role::Tool,
        };
        Message::new(role, entry["content"].as_str().unwrap())
    };
    row["messages"].as_array().unwrap().iter().map(message).collect()
}

#[test]
fn renders_what_transformers_renders() {
    let file: Value = serde_json::from_str(include_str!("chat_templates.json")).unwrap();
    let mut compared = 0;
    for case in file["cases"].as_array().unwrap() {
        let special = case["special"].as_object().unwrap();
        let special = SpecialTokens::new(special.iter().map(|(name, token)| (name.as_str(), token.as_str().unwrap())));
        let template = ChatTemplate::from_source(case["template"].as_str().unwrap(), special).unwrap();
        for (index, row) in case["rows"].as_array().unwrap().iter().enumerate() {
            for (key, add_generation_prompt) in [("whole", false), ("prompt", true)] {
                let place = format!("{} row {index} {key}", case["name"]);
                let rendered = template.render_with_spans(&messages(row), add_generation_prompt);
                let expected = &row[key];
                compared += 1;
                if let Some(message) = expected["error"].as_str() {
                    let error = rendered.unwrap_err().to_string();
                    assert!(error.contains(message), "{place}: {error}");
                    continue;
                }
                let rendered = rendered.unwrap_or_else(|error| panic!("{place}: {error}"));
                assert_eq!(rendered.text, expected["text"].as_str().unwrap(), "{place}");
                let in_characters = |byte: usize| rendered.text[..byte].chars().count() as u64;
                let spans: Vec<_> =
                    rendered.spans.iter().map(|span| (in_characters(span.start), in_characters(span.end))).collect();
                let bounds = |span: &Value| (span[0].as_u64().unwrap(), span[1].as_u64().unwrap());
                let expected: Vec<_> = expected["spans"].as_array().unwrap().iter().map(bounds).collect();
                assert_eq!(spans, expected, "{place}");
            }
        }
    }
    assert!(compared >= 80, "only {compared} renderings in the fixture");
}
