//! Rows as they may be, and the messages on those that may not.

use super::*;
use crate::message::{Message, Role};

/// The rows of a file, each with its line.
fn read(text: &[u8]) -> Result<Vec<(u64, Row)>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.jsonl");
    std::fs::write(&path, text).unwrap();
    let (sources, columns) = (Sources::find(&[path.to_str().unwrap()]).unwrap(), Columns::default());
    let rows = RowReader::new(&sources, &columns).collect::<Result<Vec<_>, _>>();
    let line = |place: &str| place.strip_prefix("line ").unwrap().split(' ').next().unwrap().parse().unwrap();
    rows.map(|rows| rows.into_iter().map(|(place, row)| (line(&place), row)).collect())
        .map_err(|error| error.to_string().replace(&format!("{}/", folder.path().display()), ""))
}

fn conversation(messages: Vec<Message>) -> Row {
    Row::Conversation(messages.into())
}

fn tokens(input_ids: &[u32], labels: &[i32]) -> Row {
    Row::Tokens { input_ids: input_ids.to_vec(), labels: labels.to_vec() }
}

#[test]
fn conversations_are_read_with_their_line_numbers() {
    let text = concat!(
        "\u{feff}{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"ü\\n\"}]}\r\n",
        "\n",
        "{\"id\": 7, \"messages\": [{\"role\": \"tool\", \"content\": \"\", \"name\": null}, ",
        "{\"content\": \"a\", \"role\": \"assistant\"}], \"labels\": null}\n",
        "  \r\n\n"
    );
    let expected = [
        (1, conversation(vec![Message::new(Role::System, "s"), Message::new(Role::User, "ü\n")])),
        (3, conversation(vec![Message::new(Role::Tool, ""), Message::new(Role::Assistant, "a")])),
    ];
    assert_eq!(read(text.as_bytes()).unwrap(), expected);
}

#[test]
fn tokens_are_read_with_labels_or_without() {
    let text = b"{\"input_ids\": [1, 2], \"labels\": [-100, 2]}\n{\"input_ids\": [3], \"attention_mask\": [1]}";
    assert_eq!(read(text).unwrap(), [(1, tokens(&[1, 2], &[-100, 2])), (2, tokens(&[3], &[3]))]);
}

#[test]
fn faults_name_file_and_line_and_what_was_found() {
    let good = "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n";
    let message = |fields: &str| format!("{good}{{\"messages\": [{{{fields}}}]}}");
    let cases: Vec<(String, &str)> = vec![
        (format!("{good}{{\"messages\": [}}\n"), "train.jsonl:2:15: broken JSON: expected value\nhint: "),
        (format!("{good}{{\"messages\": "), "train.jsonl:2:12: broken JSON: EOF while parsing a value\nhint: "),
        (
            format!("{good}[1, 2]"),
            "train.jsonl:2: expected an object, found an array\nhint: a JSONL file has one object a line",
        ),
        ("\"text\"".into(), "train.jsonl:1: expected an object, found a string\nhint: "),
        (
            "{\"text\": \"a\", \"text\": \"b\"}".into(),
            "train.jsonl:1:26: broken JSON: the key `text` stands twice in one object\n",
        ),
        (
            message("\"role\": \"user\", \"content\": \"x\", \"role\": \"user\""),
            "the key `role` stands twice in one object\n",
        ),
        (
            format!("{good}{{\"text\": \"a\", \"id\": 1}}"),
            "train.jsonl:2: this row has `text`, but line 1 of train.jsonl has `messages`\nhint: ",
        ),
        ("{}".into(), "no columns to learn from; found: none\n"),
        ("{\"id\": 1, \"a\": 2}".into(), "no columns to learn from; found: id, a\n"),
        (
            "{\"messages\": [], \"input_ids\": [1]}".into(),
            "the row has `messages` and `input_ids`: which is to be learned?\nhint: column_mapping takes",
        ),
        ("{\"messages\": [], \"labels\": [1]}".into(), "`labels` without `input_ids`\n"),
        (
            format!("{good}{{\"input_ids\": [1]}}"),
            "train.jsonl:2: this row has `input_ids`, but line 1 of train.jsonl has `messages`\n",
        ),
        ("{\"messages\": \"hi\"}".into(), "expected `messages` to be an array, found a string\n"),
        ("{\"messages\": []}".into(), "train.jsonl:1: `messages` is empty\n"),
        ("{\"messages\": [\"hi\"]}".into(), "messages[0]: expected an object, found a string\n"),
        (
            message("\"role\": 3, \"content\": \"\""),
            "train.jsonl:2: messages[0]: expected `role` to be a name, found a number\n",
        ),
        (message("\"who\": \"human\""), "expected `role` and `content`, found the fields: who\n"),
        (message("\"role\": \"user\""), "expected `content` to be a string, found nothing\n"),
        ("{\"input_ids\": []}".into(), "train.jsonl:1: `input_ids` is empty\n"),
        ("{\"input_ids\": 5}".into(), "expected `input_ids` to be an array, found a number\n"),
        ("{\"input_ids\": [1, -2]}".into(), "input_ids[1]: expected a token id, found -2\n"),
        ("{\"input_ids\": [2147483648]}".into(), "input_ids[0]: expected a token id, found 2147483648\n"),
        ("{\"input_ids\": [1.5]}".into(), "input_ids[0]: expected a token id, found 1.5\n"),
        ("{\"input_ids\": [1], \"labels\": [-1]}".into(), "labels[0]: expected a token id or -100, found -1\n"),
        ("{\"input_ids\": [1, 2], \"labels\": [1]}".into(), "train.jsonl:1: 2 input_ids but 1 labels\n"),
        (
            "{\"input_ids\": [1], \"attention_mask\": [0]}".into(),
            "attention_mask[0]: expected 1 (rows come without padding), found 0",
        ),
        ("\n \r\n".into(), "train.jsonl: there is no row in this file\nhint: "),
        (String::new(), "train.jsonl: there is no row in this file\nhint: "),
    ];
    for (text, expected) in cases {
        let error = read(text.as_bytes()).unwrap_err();
        assert!(error.contains(expected) && error.contains("\nhint: "), "{text}\ngave {error}\nexpected {expected}");
    }
    let error = read(b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\"}]}").unwrap_err();
    assert!(error.starts_with("train.jsonl:1:4"), "{error}");
}

#[test]
fn nothing_comes_after_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, "{\"input_ids\": [1]}\n{\n{\"input_ids\": [1]}\n").unwrap();
    let (sources, columns) = (Sources::find(&[path.to_str().unwrap()]).unwrap(), Columns::default());
    let mut reader = RowReader::new(&sources, &columns);
    assert!(reader.next().unwrap().is_ok());
    assert!(reader.next().unwrap().is_err());
    assert!(reader.next().is_none());
}
