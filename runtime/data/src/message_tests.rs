//! Messages as rows write them, and what is refused of them.

use serde_json::json;

use super::*;
use crate::columns::Columns;

fn parse(row: Value) -> Result<Conversation, String> {
    let Value::Object(mut row) = row else { panic!("a row is an object") };
    let columns = Columns::default();
    let parsed = columns.shape(&row).and_then(|shape| columns.parse(shape, &mut row));
    let row = parsed.map_err(|fault| format!("{}\nhint: {}", fault.message, fault.hint))?;
    row.into_conversation().ok_or_else(|| "no conversation".to_owned())
}

fn fields(message: Value) -> Result<Value, String> {
    parse(json!({"messages": [message]})).map(|found| Value::Object(found.messages[0].fields().clone()))
}

#[test]
fn fields_keep_their_order_and_nulls_are_left_out_at_every_depth() {
    let message = json!({"content": null, "role": "assistant", "name": null, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"b": null, "a": [null, {"c": null}]}}}]});
    let expected = r#"{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":{"a":[null,{}]}}}]}"#;
    assert_eq!(fields(message).unwrap().to_string(), expected);
}

#[test]
fn parts_of_text_are_one_text() {
    let message = json!({"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]});
    assert_eq!(fields(message).unwrap()["content"], "a b");
}

#[test]
fn thinking_has_the_names_that_templates_read() {
    for name in REASONING {
        let mut message = json!({"role": "assistant", "content": "4"});
        message[name] = "hm".into();
        let found = fields(message).unwrap();
        assert_eq!((&found["reasoning_content"], &found["thinking"]), (&json!("hm"), &json!("hm")), "{name}");
    }
}

#[test]
fn tools_are_a_list_or_its_text_and_variables_an_object() {
    let messages = json!([{"role": "user", "content": "x"}]);
    let tools = json!([{"type": "function", "function": {"name": "f", "description": null}}]);
    let expected = json!({"type": "function", "function": {"name": "f"}});
    for tools in [tools.clone(), tools.to_string().into()] {
        let row = json!({"messages": messages, "tools": tools, "chat_template_kwargs": {"enable_thinking": false}});
        let found = parse(row).unwrap();
        assert_eq!(
            (found.tools, &found.template_variables["enable_thinking"]),
            (vec![expected.clone()], &json!(false))
        );
    }
    let found = parse(json!({"messages": messages, "tools": null, "chat_template_kwargs": null})).unwrap();
    assert!(found.tools.is_empty() && found.template_variables.is_empty());
}

#[test]
fn what_is_no_message_is_refused_with_its_place() {
    let cases = [
        (json!({"role": "", "content": ""}), "messages[0]: expected `role` to be a name, found \"\""),
        (json!({"role": ["user"], "content": ""}), "expected `role` to be a name, found an array"),
        (json!({"role": "user"}), "expected `content` to be a string, found nothing"),
        (
            json!({"role": "user", "content": null, "tool_calls": []}),
            "expected `content` to be a string, found nothing",
        ),
        (json!({"role": "tool", "content": {"a": 1}}), "expected `content` to be a string, found an object"),
        (json!({"role": "user", "content": ["x"]}), "content[0]: expected a part with a `type`, found a string"),
        (
            json!({"role": "user", "content": [{"type": "image_url"}]}),
            "content[0]: a part of type \"image_url\" is no text",
        ),
        (json!({"role": "user", "content": [{"type": "text"}]}), "content[0]: expected `text` to be a string"),
        (json!({"role": "assistant", "content": "", "weight": 0}), "the field `weight` is not supported"),
        (
            json!({"role": "assistant", "tool_calls": {"name": "f"}, "content": ""}),
            "expected `tool_calls` to be an array, found an object",
        ),
        (
            json!({"role": "assistant", "tool_calls": [{"function": {}}]}),
            "tool_calls[0]: expected a function with a `name`",
        ),
    ];
    for (message, expected) in cases {
        let error = fields(message.clone()).unwrap_err();
        assert!(error.contains(expected) && error.contains("\nhint: "), "{message}\ngave {error}");
    }
    let with = |name: &str, value: Value| {
        let mut row = json!({"messages": [{"role": "user", "content": "x"}]});
        row[name] = value;
        parse(row).unwrap_err()
    };
    for (name, value, expected) in [
        ("tools", json!("[{"), "`tools` is a text, and not JSON"),
        ("tools", json!({"a": 1}), "expected `tools` to be an array, found an object"),
        ("tools", json!(["f"]), "tools[0]: expected an object, found a string"),
        ("chat_template_kwargs", json!([1]), "expected `chat_template_kwargs` to be an object, found an array"),
        ("chat_template_kwargs", json!({"messages": []}), "`messages` has its own place"),
    ] {
        let error = with(name, value);
        assert!(error.contains(expected) && error.contains("\nhint: "), "{error}");
    }
}
