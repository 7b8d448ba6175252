//! Data as they are written.

use super::*;

fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap()
}

#[test]
fn data_are_one_name_or_several() {
    let names = |text: &str| Dataset::from_value(&yaml(text)).map(|data| data.sources()[0].path.names().join("|"));
    assert_eq!(names("a.jsonl").as_deref(), Some("a.jsonl"));
    assert_eq!(names("[data/*.parquet, b]").as_deref(), Some("data/*.parquet|b"));
    assert_eq!(names("2024").as_deref(), Some("2024"));
    for text in ["[]", "''", "{a: b}", "[a, [b]]", "null"] {
        assert_eq!(names(text), None, "{text}");
    }
    for text in ["a.jsonl\n", "- a\n- b\n"] {
        let data: Dataset = serde_yaml::from_str(text).unwrap();
        assert_eq!(serde_yaml::to_string(&data).unwrap(), text);
    }
}

#[test]
fn columns_are_mapped_by_pairs_in_either_form() {
    let pairs =
        |text: &str| ColumnMapping::from_value(&yaml(text)).map(|mapping| mapping.0.into_iter().collect::<Vec<_>>());
    let expected = vec![("completion".to_owned(), "answer".to_owned()), ("prompt".to_owned(), "question".to_owned())];
    assert_eq!(pairs("prompt=question, completion = answer"), Some(expected.clone()));
    assert_eq!(pairs("{prompt: question, completion: answer}"), Some(expected));
    for text in ["prompt", "prompt=", "=question", "prompt=a,prompt=b", "''", "{}", "[a=b]", "{a: [b]}"] {
        assert_eq!(pairs(text), None, "{text}");
    }
}

#[test]
fn several_sources_have_weights_labels_and_columns() {
    let list = "- {path: [chats.jsonl, more/], weight: 0.9, label: chats}\n\
                - {path: 'wiki/*.parquet', weight: '0.1', column_mapping: text=body}\n";
    let data = Dataset::from_value(&yaml(list)).unwrap();
    assert_eq!(data.weights(), Some(vec![0.9, 0.1]));
    assert_eq!(data.labels(), ["chats", "wiki"]);
    assert_eq!(data.sources()[0].path.names(), ["chats.jsonl", "more/"]);
    assert_eq!(data.sources()[1].column_mapping.as_ref().unwrap().pairs()["text"], "body");
    // As a flag has it, and as a resolved configuration has it.
    let flag = Value::String(
        "[{path: [chats.jsonl, more/], weight: 0.9, label: chats}, {path: 'wiki/*.parquet', \
                              weight: 0.1, column_mapping: {text: body}}]"
            .to_owned(),
    );
    assert_eq!(Dataset::from_value(&flag), Some(data.clone()));
    let resolved = serde_yaml::to_string(&data).unwrap();
    assert_eq!(serde_yaml::from_str::<Dataset>(&resolved).unwrap(), data);
    assert_eq!(Dataset::from_value(&yaml(&resolved)), Some(data));
}

#[test]
fn sources_are_called_by_what_tells_them_apart() {
    let labels = |text: &str| Dataset::from_value(&yaml(text)).unwrap().labels();
    assert_eq!(labels("[{path: data/a.jsonl.gz}, {path: b.json}, {path: c/train-*.parquet}]"), ["a", "b", "c"]);
    assert_eq!(labels("[{path: x/train.jsonl}, {path: y/train.jsonl}]"), ["x/train.jsonl", "y/train.jsonl"]);
    assert_eq!(labels("[{path: '*.jsonl'}, {path: .jsonl}]"), ["*.jsonl", ".jsonl"]);
    assert_eq!(labels("a.jsonl"), ["a"]);
}

#[test]
fn what_is_wrong_with_a_source_is_told() {
    let table = [
        (
            "[{path: a, weigth: 1}]",
            "source 1 has an unknown key weigth: did you mean weight? it has path, name, split, label",
        ),
        ("[{path: a, weight: 1}, {path: b}]", "1 of 2 sources have a weight: give each one, or none"),
        ("[{path: a, weight: 0}]", "weight of source 1 is 0: it must be a number, more than 0"),
        ("[{path: a}, {weight: 1}]", "source 2 has no path"),
        ("[{path: a}, b]", "source 2 is b: write it as {path: …} as the others are"),
        ("[{path: a}, {path: a}]", "two sources are called a: give each a label of its own"),
        ("[{path: a, label: x}, {path: b, label: x}]", "two sources are called x"),
        ("[{path: a, label: \"x\\ny\"}]", "label of source 1 is"),
        ("[{path: a, data_files: b}]", "data_files of source 1: path names the files themselves"),
        ("[{path: a, columns: [b]}]", "columns of source 1: use column_mapping"),
        ("[{path: a, column_mapping: x}]", "column_mapping of source 1 is x: it must be pairs"),
        ("'[{path: a, weight}'", "the text is no list"),
    ];
    for (text, told) in table {
        assert_eq!(Dataset::from_value(&yaml(text)), None, "{text}");
        let hint = Dataset::hint(&yaml(text)).unwrap_or_default();
        assert!(hint.contains(told), "{text}: {hint}");
    }
    assert_eq!(Dataset::hint(&yaml("[]")), None);
}
