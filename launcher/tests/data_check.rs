//! `launch data check` as a person runs it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// Exit code, standard output and standard error of `launch data check …` in this folder.
fn check(folder: &Path, line: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_launch"));
    command.args(["data", "check"]).args(line.split_whitespace()).current_dir(folder).env("HF_HUB_OFFLINE", "1");
    zerofold_configs::ENVIRONMENT.iter().for_each(|name| {
        command.env_remove(name);
    });
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn model() -> String {
    fixtures().join("models/tiny-llama").display().to_string()
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

/// So many words that no other name has.
fn words(name: &str, count: usize) -> String {
    (0..count).map(|index| format!("{name}{index}")).collect::<Vec<_>>().join(" ")
}

fn chat(question: &str, answer: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
}

/// One of each finding; and two held-out rows.
fn one_of_each(folder: &Path) {
    let rows = [
        chat("Tell of stone0.", &words("stone", 100)),
        json!({"messages": [
            {"content": "Tell of stone0.", "role": "user"},
            {"content": words("stone", 100), "role": "assistant"},
        ]}),
        chat("Tell of stone1.", &words("stone", 100)),
        chat("Tell of rain.", "Rain is wet."),
        chat("Tell of wind.", &words("bread", 20)),
        chat("Tell of night0.", &words("night", 25)),
        chat("Tell of night0.", &format!("night0 {}", words("dawn", 25))),
        chat("Tell of nothing.", ""),
        json!({"messages": [
            {"role": "user", "content": "Tell."},
            {"role": "user", "content": "Of snow0!"},
            {"role": "assistant", "content": words("snow", 20)},
        ]}),
        json!({"messages": [{"role": "user", "content": "Tell of fog."}]}),
        Value::Null,
        chat("Tell of sun0.", &words("sun", 20)),
        chat("Tell of cloud0.", &words("cloud", 100)),
        chat("Tell of sea0.", &words("sea", 600)),
        chat(&words("land", 600), &words("land", 20)),
    ];
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(folder.join("train.jsonl"), lines.replace("null\n", "{\"messages\": [\n")).unwrap();
    let held_out = [chat("Tell of sun0.", &words("sun", 20)), chat("Tell of cloud1.", &words("cloud", 100))];
    let lines: String = held_out.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(folder.join("held-out.jsonl"), lines).unwrap();
}

/// Kind, rows, and places with the beginnings of their reasons.
type Told = (&'static str, u64, &'static [(&'static str, &'static str)]);

const EXPECTED: [Told; 16] = [
    ("unreadable", 1, &[("train.jsonl:11:14", "broken JSON: EOF while parsing a ")]),
    ("refused", 1, &[("train.jsonl:10", "no message of this conversation is the assistant's")]),
    ("leaks", 1, &[("train.jsonl:12", "held out too, as held-out.jsonl:1")]),
    ("near-leaks", 1, &[("train.jsonl:13", "similarity about 0.9")]),
    ("unended", 0, &[]),
    ("unsupervised", 1, &[("train.jsonl:15", "all ")]),
    ("all-supervised", 0, &[]),
    ("truncated", 2, &[("train.jsonl:14", ""), ("train.jsonl:15", "")]),
    ("empty", 1, &[("train.jsonl:8", "messages[1], the assistant's, is empty")]),
    (
        "role-order",
        2,
        &[
            ("train.jsonl:9", "messages[0] and messages[1] are both the user's"),
            ("train.jsonl:10", "it ends with the user's message"),
        ],
    ),
    ("duplicates", 1, &[("train.jsonl:2", "the same as train.jsonl:1")]),
    ("near-duplicates", 1, &[("train.jsonl:3", "similarity about 0.9")]),
    ("duplicate-instructions", 1, &[("train.jsonl:7", "asked in train.jsonl:6 too")]),
    (
        "conflicts",
        2,
        &[
            ("train.jsonl:6", "answered otherwise in train.jsonl:7"),
            ("train.jsonl:7", "answered otherwise in train.jsonl:6"),
        ],
    ),
    ("short", 1, &[("train.jsonl:4", "3 words")]),
    ("unrelated", 1, &[("train.jsonl:5", "no word of what is asked is in the answer")]),
];

#[test]
fn one_of_each_is_found_and_dropped() {
    let folder = tempfile::tempdir().unwrap();
    one_of_each(folder.path());
    let job = format!("--data train.jsonl --eval_dataset held-out.jsonl --model {} --max_length 1500", model());
    let (code, out, error) = check(folder.path(), &format!("{job} --json"));
    assert_eq!(code, 1, "{out}{error}");
    let told: Value = serde_json::from_str(&out).unwrap();
    let training = &told["training"];
    let findings = training["findings"].as_array().unwrap();
    assert_eq!(findings.len(), EXPECTED.len(), "{findings:#?}");
    for (finding, (kind, rows, examples)) in findings.iter().zip(EXPECTED) {
        assert_eq!((&finding["kind"], &finding["rows"]), (&json!(kind), &json!(rows)), "{finding:#}");
        let fault = ["unreadable", "refused", "leaks", "near-leaks"].contains(&kind);
        assert_eq!(finding["fault"], json!(fault), "{kind}");
        let found = finding["examples"].as_array().unwrap();
        assert_eq!(found.len(), examples.len(), "{finding:#}");
        for (found, (place, reason)) in found.iter().zip(examples) {
            assert_eq!(found["place"], json!(place), "{finding:#}");
            assert!(found["reason"].as_str().unwrap().starts_with(reason), "{finding:#}");
        }
    }
    assert_eq!((&training["rows"], &training["rows_without_finding"]), (&json!(15), &json!(1)));
    assert_eq!((&training["kind"], &training["loss"]), (&json!("conversations"), &json!("assistant")));
    assert_eq!(training["not_checked"], json!([]));
    assert_eq!(training["truncation"]["rows"], json!(2));
    let held_out = told["held_out"]["findings"].as_array().unwrap();
    assert!(held_out.iter().all(|finding| finding["rows"] == 0), "{held_out:#?}");
    assert_eq!((&told["copy"], &told["near_duplicates_from"]), (&Value::Null, &json!(0.8)));

    let kinds: Vec<&str> = EXPECTED.iter().map(|(kind, ..)| *kind).collect();
    let (code, out, error) =
        check(folder.path(), &format!("{job} --drop {} --output clean.jsonl --json", kinds.join(",")));
    assert_eq!(code, 1, "what was found is in the data that were checked: {error}");
    let copy = &serde_json::from_str::<Value>(&out).unwrap()["copy"];
    // Each row goes for the first reason that it has.
    let dropped = EXPECTED.map(|(kind, rows, _)| {
        let first = match kind {
            "truncated" | "role-order" => rows - 1,
            "conflicts" => rows - 1,
            _ => rows,
        };
        json!({"kind": kind, "rows": first})
    });
    assert_eq!(*copy, json!({"path": "clean.jsonl", "rows": 1, "dropped": dropped}));
    let line =
        |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap().lines().next().unwrap().to_owned();
    assert_eq!(line("clean.jsonl"), line("train.jsonl"));
    let (code, out, error) = check(folder.path(), &job.replace("train.jsonl", "clean.jsonl"));
    assert_eq!(code, 0, "{out}{error}");
    assert_has(&out, &["data     clean.jsonl: 1 row, conversations\n", "amount   1 of 1 row without a finding; "]);
}

/// The tokens and the mask of transformers (tests/fixtures, made by scripts/fixtures).
#[test]
fn tokens_are_counted_as_transformers_counts_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::read_to_string(fixtures().join("data/chat_tokens.json")).unwrap();
    let expected: Value = serde_json::from_str(&file).unwrap();
    let rows = expected["rows"].as_array().unwrap();
    let count = |row: &Value, name: &str| {
        row[name].as_array().unwrap().iter().filter(|value| name == "input_ids" || **value == json!(1)).count()
    };
    let mut lengths: Vec<usize> = rows.iter().map(|row| count(row, "input_ids")).collect();
    lengths.sort_unstable();
    let supervised: usize = rows.iter().map(|row| count(row, "assistant_mask")).sum();
    let data = fixtures().join("data/chat.jsonl");
    let line = format!("--data {} --model {} --json", data.display(), model());
    let (code, out, error) = check(folder.path(), &line);
    assert_eq!(code, 0, "{out}{error}");
    let training = &serde_json::from_str::<Value>(&out).unwrap()["training"];
    let told = &training["lengths"];
    assert_eq!((&told["unit"], &told["rows"]), (&json!("tokens"), &json!(rows.len())));
    assert_eq!(told["total"], json!(lengths.iter().sum::<usize>()));
    assert_eq!(told["longest"], json!(lengths.last()));
    assert_eq!(told["half"], json!(lengths[rows.len().div_ceil(2) - 1]));
    assert_eq!(training["supervised_tokens"], json!(supervised));
    let bars = told["histogram"].as_array().unwrap();
    for bar in bars {
        let inside = |length: &&usize| {
            **length as u64 >= bar["from"].as_u64().unwrap() && **length as u64 <= bar["to"].as_u64().unwrap()
        };
        assert_eq!(bar["rows"], json!(lengths.iter().filter(inside).count()), "{bar}");
    }
}

#[test]
fn a_person_reads_lines() {
    let folder = tempfile::tempdir().unwrap();
    one_of_each(folder.path());
    let (code, out, error) = check(folder.path(), "--data train.jsonl --eval_dataset held-out.jsonl");
    assert_eq!(code, 1, "{out}{error}");
    let expected = [
        "model    none: rows are judged by their text",
        "data     train.jsonl: 15 rows\n",
        "lengths  ",
        " words (",
        "fault    leaks: 1 row: ",
        "           train.jsonl:12: held out too, as held-out.jsonl:1\n",
        "warning  short: 1 row: answers of fewer than 20 words",
        "skipped  not looked for: refused, unended, unsupervised, all-supervised, truncated\n",
        "held out held-out.jsonl: 2 rows\n",
        "█",
    ];
    assert_has(&out, &expected);
    let line = format!("--data train.jsonl --model {}", model());
    let (_, out, _) = check(folder.path(), &line);
    assert_has(
        &out,
        &["loss on the assistant's tokens only", "⟦stone0 stone1", "masks    ", "cut      at max_length 1024: "],
    );
    assert!(!out.contains('\u{1b}'), "no colours where nobody sees them: {out}");
}

#[test]
fn what_cannot_be_done_is_told_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    one_of_each(folder.path());
    for (line, parts) in [
        ("", "error: data check needs data\nhint: pass --data FILE"),
        ("--data none.jsonl", "none.jsonl: cannot open the data set"),
        ("--data train.jsonl --model no-such-folder/", "error: "),
        ("--data train.jsonl --drop leaks --output c.jsonl", "--drop leaks: nothing was written"),
        ("--data train.jsonl --drop truncated --output c.jsonl", "give the model whose template"),
        ("--data train.jsonl --drop short --output held-out.jsonl", "is there already\nhint: name another file"),
        ("--data train.jsonl --drop short --output c.parquet", "the copy is JSONL"),
        (
            "--data train.jsonl --drop short --output no/folder/c.jsonl",
            "no/folder/c.jsonl: its folder is not there\nhint: make the folder first",
        ),
    ] {
        let (code, out, error) = check(folder.path(), line);
        assert_eq!(code, 2, "{line}: {out}{error}");
        assert_has(&error, &[parts]);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    // What can be known beforehand is told before anything is read.
    let (_, _, error) = check(folder.path(), "--data train.jsonl --drop unended --output c.jsonl");
    assert!(error.contains("--drop unended: nothing was written") && !error.contains("reading "), "{error}");
    // A report is told though the copy fails.
    std::fs::write(folder.path().join("short.jsonl"), format!("{}\n", chat("Tell of rain.", "Rain."))).unwrap();
    for (drop, part) in [("short", "no row would be left"), ("truncated", "this was not looked for")] {
        let line = format!("--data short.jsonl --drop {drop} --output c.jsonl --json");
        let (code, out, error) = check(folder.path(), &line);
        assert_eq!(code, 2, "{out}{error}");
        let told: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(told["training"]["rows"], json!(1));
        assert!(told["copy"]["error"].as_str().unwrap().contains(part), "{told:#}");
        assert_has(&error, &[part]);
    }
    assert!(!folder.path().join("c.jsonl").exists());
    let (_, _, error) = check(folder.path(), "--data train.jsonl --chat_template_path chatml");
    assert_has(&error, &["note: chat_template_path (flag --chat_template_path) has no effect without a model"]);
}

#[test]
fn each_source_is_checked_beside_the_held_out_one_of_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, rows: &[Value]| {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(folder.path().join(name), text).unwrap();
    };
    let text = |name: &str| json!({"body": words(name, 30)});
    write("chats.jsonl", &[chat("Tell of stone0.", &words("stone", 30))]);
    write("general.jsonl", &[text("rain"), text("wind")]);
    write("other.jsonl", &[chat("Tell of sea0.", &words("sea", 30))]);
    write("held.jsonl", &[json!({"page": words("wind", 30)})]);
    let config = "training:
  model_name_or_path: MODEL
  output_dir: out
  dataset:
    - {path: chats.jsonl}
    - {path: general.jsonl, column_mapping: {text: body}}
  eval_dataset:
    - {path: held.jsonl, label: general, column_mapping: {text: page}}
    - {path: other.jsonl}
";
    std::fs::write(folder.path().join("job.yaml"), config.replace("MODEL", &model())).unwrap();
    let (code, out, error) = check(folder.path(), "--config job.yaml");
    assert_eq!(code, 1, "{out}{error}");
    assert_has(&out, &["source chats", "source general", "leaks"]);
    let told = ["leaks of chats are not looked for", "(there are general, other)", "held-out data of other"];
    assert_has(&error, &told);
    let (code, out, _) = check(folder.path(), "--config job.yaml --json");
    let all: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, all.as_array().map(Vec::len), &all[1]["source"]), (1, Some(2), &json!("general")));
    assert_eq!(all[0]["held_out"], Value::Null);
    let (code, _, error) = check(folder.path(), "--config job.yaml --drop short --output copy.jsonl");
    assert_eq!(code, 2);
    assert_has(&error, &["a copy is of one source, and there are 2", "--data FILE"]);
}
