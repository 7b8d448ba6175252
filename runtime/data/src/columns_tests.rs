//! Rows of every shape, and those that could be taken for two.

use serde_json::json;

use super::*;

fn columns(mapping: &[(&str, &str)], text_field: Option<&str>) -> Columns {
    let mapping = mapping.iter().map(|(here, there)| ((*here).to_owned(), (*there).to_owned())).collect();
    Columns::new(mapping, text_field).unwrap()
}

fn parse(columns: &Columns, row: Value) -> Result<Row, String> {
    let Value::Object(mut row) = row else { panic!("a row is an object") };
    let parsed = columns.shape(&row).and_then(|shape| columns.parse(shape, &mut row));
    parsed.map_err(|fault| format!("{}\nhint: {}", fault.message, fault.hint))
}

fn conversation(turns: &[(Role, &str)]) -> Row {
    let messages: Vec<Message> = turns.iter().map(|(role, text)| Message::new(*role, *text)).collect();
    Row::Conversation(messages.into())
}

#[test]
fn every_shape_is_read() {
    let plain = Columns::default();
    let speakers = json!([
        {"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"},
        {"from": "observation", "value": "o", "weight": null}, {"from": "gpt", "value": "b"},
    ]);
    let spoken = conversation(&[
        (Role::System, "s"),
        (Role::User, "q"),
        (Role::Assistant, "a"),
        (Role::Tool, "o"),
        (Role::Assistant, "b"),
    ]);
    let user = json!([{"role": "user", "content": "q"}]);
    let answer = json!([{"role": "assistant", "content": "a"}]);
    let message = |role, text: &str| vec![Message::new(role, text)];
    let instruction = |system: Option<&str>, input: Option<&str>| Row::Instruction {
        system: system.map(str::to_owned),
        instruction: "do".into(),
        input: input.map(str::to_owned),
        response: "done".into(),
    };
    let table = [
        (json!({"conversations": speakers}), spoken),
        (json!({"conversations": user, "id": 1}), conversation(&[(Role::User, "q")])),
        (json!({"messages": user, "prompt": "left over"}), conversation(&[(Role::User, "q")])),
        (json!({"conversations": user, "system": "s"}), conversation(&[(Role::System, "s"), (Role::User, "q")])),
        (json!({"messages": user, "system": ""}), conversation(&[(Role::User, "q")])),
        (
            json!({"prompt": user, "completion": answer, "system": "s"}),
            Row::Exchange {
                prompt: [message(Role::System, "s"), message(Role::User, "q")].concat().into(),
                completion: message(Role::Assistant, "a"),
            },
        ),
        (
            json!({"prompt": "p ", "completion": "c", "messages": null}),
            Row::Completion { prompt: "p ".into(), completion: "c".into() },
        ),
        (
            json!({"prompt": user, "completion": answer}),
            Row::Exchange { prompt: message(Role::User, "q").into(), completion: message(Role::Assistant, "a") },
        ),
        (json!({"instruction": "do", "output": "done", "input": ""}), instruction(None, None)),
        (
            json!({"instruction": "do", "response": "done", "input": "this", "history": []}),
            instruction(None, Some("this")),
        ),
        (json!({"instruction": "do", "output": "done", "system": "s"}), instruction(Some("s"), None)),
        (json!({"text": "t", "label": null}), Row::Text("t".into())),
        (json!({"input_ids": [1, 2]}), Row::Tokens { input_ids: vec![1, 2], labels: vec![1, 2] }),
    ];
    for (row, expected) in table {
        assert_eq!(parse(&plain, row.clone()), Ok(expected), "{row}");
    }
}

#[test]
fn instructions_are_conversations_of_three() {
    let row = json!({"instruction": "do", "input": "this", "output": "done", "system": "s"});
    let conversation = parse(&Columns::default(), row).unwrap().into_conversation().unwrap();
    let expected = [
        Message::new(Role::System, "s"),
        Message::new(Role::User, "do\n\nthis"),
        Message::new(Role::Assistant, "done"),
    ];
    assert_eq!(conversation.messages, expected);
    assert_eq!(Row::Text("t".into()).into_conversation(), None);
}

#[test]
fn a_mapping_drops_nothing_that_changes_the_loss() {
    let tokens = columns(&[("input_ids", "tokens")], None);
    let error = parse(&tokens, json!({"tokens": [1, 2], "labels": [-100, 2]})).unwrap_err();
    assert!(error.contains("`labels` is not in column_mapping") && error.contains("add labels=labels"), "{error}");
    assert!(parse(&tokens, json!({"tokens": [1, 2], "labels": null, "other": 1})).is_ok());
    let both = columns(&[("input_ids", "tokens"), ("labels", "labels")], None);
    let row = Row::Tokens { input_ids: vec![1, 2], labels: vec![-100, 2] };
    assert_eq!(parse(&both, json!({"tokens": [1, 2], "labels": [-100, 2]})), Ok(row));
    let messages = columns(&[("messages", "messages")], None);
    let row = json!({"messages": [{"role": "user", "content": "q"}], "text": "t", "tools": [{"name": "f"}]});
    assert!(parse(&messages, row).unwrap_err().contains("`tools` is not in column_mapping"));
}

#[test]
fn columns_can_be_called_otherwise() {
    let mapped = columns(&[("prompt", "question"), ("completion", "answer")], None);
    let row = json!({"question": "q", "answer": "a", "messages": [], "text": "t"});
    assert_eq!(parse(&mapped, row.clone()), Ok(Row::Completion { prompt: "q".into(), completion: "a".into() }));
    let Value::Object(row) = row else { unreachable!() };
    let mut unused = BTreeSet::new();
    mapped.note_unused(Shape::Completion, &row, &mut unused);
    assert_eq!(unused.iter().collect::<Vec<_>>(), ["messages", "text"]);

    // One column for two names.
    let learned = columns(&[("input_ids", "ids"), ("labels", "ids")], None);
    let tokens = Row::Tokens { input_ids: vec![1, 2], labels: vec![1, 2] };
    assert_eq!(parse(&learned, json!({"ids": [1, 2]})), Ok(tokens));
    let echoed = columns(&[("prompt", "t"), ("completion", "t")], None);
    let twice = Row::Completion { prompt: "a".into(), completion: "a".into() };
    assert_eq!(parse(&echoed, json!({"t": "a"})), Ok(twice));
    let misspelt = parse(&mapped, json!({"questoin": "q", "answer": "a"})).unwrap_err();
    let told = "no column `question`, which column_mapping takes as `prompt`; found: questoin, answer";
    assert!(misspelt.contains(told), "{misspelt}");
    let begun =
        json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "system": "t"});
    for (row, told) in [
        (begun, "the row has `system`, and `messages` begins with a system message"),
        (
            json!({"prompt": "p", "completion": "c", "system": "s"}),
            "`system` beside a `prompt` and a `completion` of text",
        ),
        (
            json!({"instruction": "i", "input": "n", "output": "o", "text": "t"}),
            "such as instruction=instruction,input=input,output=output",
        ),
    ] {
        let error = parse(&Columns::default(), row).unwrap_err();
        assert!(error.contains(told), "{error}");
    }
    let shown = parse(&Columns::default(), json!({"text": "t", "images": ["a.png"]})).unwrap_err();
    assert!(shown.contains("the column `images` holds pictures"), "{shown}");
    assert_eq!(parse(&Columns::default(), json!({"text": "t", "images": []})), Ok(Row::Text("t".into())));
    assert_eq!(parse(&columns(&[("text", "t")], None), json!({"t": "t", "image": "a.png"})), Ok(Row::Text("t".into())));
    let null = parse(&Columns::default(), json!({"text": null})).unwrap_err();
    assert!(null.contains("no columns to learn from; found: text (null)"), "{null}");

    let field = columns(&[], Some("content"));
    assert_eq!(parse(&field, json!({"content": "c", "text": "t"})), Ok(Row::Text("c".into())));
    assert!(parse(&field, json!({"text": "t"})).is_err());
    let error = Columns::new(BTreeMap::from([("message".to_owned(), "m".to_owned())]), None).unwrap_err().to_string();
    assert!(
        error.contains("column_mapping names `message`, which is no column") && error.contains("messages"),
        "{error}"
    );
}

#[test]
fn rows_that_do_not_say_what_they_are_are_refused() {
    let user = json!([{"role": "user", "content": "q"}]);
    let cases = [
        (
            json!({"messages": user, "text": "t"}),
            "the row has `messages` and `text`: which is to be learned?\nhint: column_mapping takes the columns that it names alone, such as messages=messages",
        ),
        (json!({"text": "t", "label": 1}), "the job trains a language model\nhint: set problem_type"),
        (json!({"text": "t", "text_pair": "u", "label": 0}), "has `text` and `label`"),
        (
            json!({"prompt": "p", "chosen": "a", "rejected": "b"}),
            "no columns to learn from; found: prompt, chosen, rejected",
        ),
        (json!({"prompt": "p", "completion": user}), "`prompt` is a string and `completion` is an array\nhint: both"),
        (json!({"prompt": [], "completion": user}), "`prompt` is empty"),
        (json!({"text": 5}), "expected `text` to be a text, found a number"),
        (json!({"instruction": "i", "output": 1}), "expected `output` to be a text, found a number"),
        (json!({"instruction": "i", "output": "a", "response": "b"}), "has both `response` and `output`"),
        (json!({"instruction": "i", "output": "a", "history": [["q", "a"]]}), "the column `history` is not supported"),
        (
            json!({"conversations": [{"from": "wolf", "value": "x"}]}),
            "conversations[0]: unknown speaker \"wolf\"\nhint: ",
        ),
        (
            json!({"conversations": [{"from": "gpt", "value": "x"}, {"value": "y"}]}),
            "conversations[1]: expected `from`",
        ),
        (
            json!({"conversations": [{"from": "gpt"}]}),
            "conversations[0]: expected `content` to be a string, found nothing",
        ),
        (json!({"conversations": "x"}), "expected `conversations` to be an array, found a string"),
        (json!({"position_ids": [1], "input_ids": [1]}), "the column `position_ids` is not supported"),
    ];
    for (row, expected) in cases {
        let error = parse(&Columns::default(), row.clone()).unwrap_err();
        assert!(error.contains(expected) && error.contains("\nhint: "), "{row}\ngave {error}\nexpected {expected}");
    }
}

#[test]
fn rows_of_a_classifier_are_texts_and_a_label() {
    let columns = Columns::default().of_classifier();
    let read = |row: Value| {
        let mut row = row.as_object().unwrap().clone();
        let shape = columns.shape(&row).map_err(|fault| format!("{}\nhint: {}", fault.message, fault.hint))?;
        assert_eq!(shape, Shape::Classified);
        columns.parse(shape, &mut row).map_err(|fault| fault.message)
    };
    let classified = |text: &str, pair: Option<&str>, label: Value| {
        Ok(Row::Classified { text: text.into(), pair: pair.map(str::to_owned), label })
    };
    assert_eq!(read(json!({"text": "t", "label": 1, "messages": []})), classified("t", None, json!(1)));
    let pair = json!({"text": "t", "text_pair": "u", "label": ["a"]});
    assert_eq!(read(pair), classified("t", Some("u"), json!(["a"])));
    for (row, missing) in [(json!({"text": "t", "label": null}), "`label` is null"), (json!({"label": 1}), "no `text`")]
    {
        let told = read(row).unwrap_err();
        assert!(told.contains(missing) && told.contains("column_mapping"), "{told}");
    }
    assert_eq!(read(json!({"text": ["t"], "label": 1})).unwrap_err(), "expected `text` to be a text, found an array");
}
