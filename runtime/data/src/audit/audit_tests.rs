//! Whole files: what is found in which row, with a model and without, and what a copy leaves out.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::columns::Columns;
use crate::rows::{Row, RowReader};
use crate::testing;

/// A folder with a model whose template is ChatML, and data files.
struct Setting {
    folder: tempfile::TempDir,
}

const LONG: &str = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen \
                    seventeen eighteen nineteen twenty";

impl Setting {
    fn new(files: &[(&str, &str)]) -> Setting {
        let setting = Setting { folder: tempfile::tempdir().unwrap() };
        let config = json!({"chat_template": testing::CHATML, "bos_token": "<s>", "eos_token": "<|im_end|>"});
        fs::write(setting.path("tokenizer.json"), testing::tokenizer_json()).unwrap();
        fs::write(setting.path("tokenizer_config.json"), config.to_string()).unwrap();
        files.iter().for_each(|(name, text)| fs::write(setting.path(name), text).unwrap());
        setting
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn sources(&self, names: &[&str]) -> Sources {
        Sources::find(&names.iter().map(|name| self.path(name).display().to_string()).collect::<Vec<_>>()).unwrap()
    }

    /// Looks at `training`, and hands what it found to `look`.
    fn audit<T>(
        &self,
        training: &[&str],
        held_out: &[&str],
        (with_model, max_length): (bool, u32),
        look: impl FnOnce(&Audited<'_>) -> T,
    ) -> T {
        let (training, columns) = (self.sources(training), Columns::default());
        let held_out = (!held_out.is_empty()).then(|| self.sources(held_out));
        let prepare = Prepare {
            model_directory: self.folder.path(),
            sources: &training,
            columns: &columns,
            max_length: Some(max_length),
            assistant_only_loss: true,
            chat_template: None,
            template_date: None,
            eos_token: None,
            completion_only_loss: None,
            classes: None,
            cache: self.folder.path(),
        };
        look(
            &audit(&Audit {
                prepare: &prepare,
                held_out: held_out.as_ref().map(|sources| (sources, &columns)),
                with_model,
            })
            .unwrap(),
        )
    }

    /// Each finding of a data set that some row has: its name, how many rows, places and reasons.
    fn told(&self, audit: &DataAudit) -> Vec<String> {
        let plain = |text: &str| text.replace(&format!("{}/", self.folder.path().display()), "");
        let finding = |finding: &Finding| {
            let examples = finding.examples.iter().map(|example| format!("{} {}", example.place, example.reason));
            plain(&format!("{} {}: {}", finding.kind.name(), finding.rows, examples.collect::<Vec<_>>().join("; ")))
        };
        audit.findings.iter().filter(|finding| finding.rows > 0).map(finding).collect()
    }
}

fn chat(question: &str, answer: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

#[test]
fn each_row_is_told_by_its_line() {
    let rows = [
        chat("Count, one by one.", LONG),
        json!({"messages": [{"content": "Count, one by one.", "role": "user"}, {"content": LONG, "role": "assistant"}], "id": 7}),
        chat("Count, one by one.", &format!("{LONG} thousand, and so on.")),
        json!({"messages": [{"role": "critic", "content": "x"}]}),
        json!({"text": "another kind"}),
    ];
    let text = format!("{}{{\"messages\": \n", lines(&rows));
    let setting = Setting::new(&[("t.jsonl", &text)]);
    setting.audit(&["t.jsonl"], &[], (true, 1024), |audited| {
        let audit = &audited.report.training;
        let expected = [
            "unreadable 2: t.jsonl:5 this row has `text`, but line 1 of t.jsonl has `messages`; t.jsonl:6:12 broken JSON: \
             EOF while parsing a value",
            "refused 1: t.jsonl:4 chat template: messages[0]: the template knows no role \"critic\"",
            "role-order 1: t.jsonl:4 messages[0]: the role \"critic\" is not system, user, assistant or tool",
            "duplicates 1: t.jsonl:2 the same as t.jsonl:1",
            "near-duplicates 1: t.jsonl:3 similarity about 0.",
            "duplicate-instructions 1: t.jsonl:3 asked in t.jsonl:1 too",
            "conflicts 3: t.jsonl:1 answered otherwise in t.jsonl:3; t.jsonl:2 answered otherwise in t.jsonl:3; t.jsonl:3 answered \
             otherwise in t.jsonl:1",
        ];
        let told = setting.told(audit);
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told}\n{expected}");
        }
        assert_eq!((audit.rows, audit.rows_without_finding, audit.lengths.rows), (6, 0, 3));
        assert_eq!(audit.not_checked, [FindingKind::Leaks, FindingKind::NearLeaks]);
        assert!(audited.report.has_faults());
        let shown: Vec<_> = audit.example.iter().filter(|part| part.supervised).map(|part| &part.text[..]).collect();
        assert_eq!(shown, [format!("{LONG}<|im_end|>")]);
    });
}

#[test]
fn what_is_cut_off_is_counted_in_tokens() {
    // ChatML's tokens of "ab" and "c" by the bytes of its text: the words "user" and "assistant" are spelt out.
    let setting = Setting::new(&[("t.jsonl", &lines(&[chat("ab", "c"), chat("ab", &"c".repeat(30))]))]);
    let whole =
        |max_length| setting.audit(&["t.jsonl"], &[], (true, max_length), |audited| audited.report.training.clone());
    let audit = whole(1024);
    let [short, long] = [audit.lengths.half, audit.lengths.longest];
    assert_eq!((long - short, audit.lengths.total), (29, short + long), "one token a letter");
    assert_eq!(audit.truncation.unwrap().rows, 0);
    // The answer with its end-of-turn token; the line break behind it is not learned.
    assert_eq!(audit.supervised_tokens, Some(2 + 31));
    let audit = whole(short as u32);
    let cut = audit.truncation.unwrap();
    // Of the long row's answer the letter and two tokens in place of end and line break are left.
    assert_eq!((cut.rows, cut.tokens, cut.supervised_tokens), (1, 29, 28));
    assert_eq!(audit.supervised_tokens, Some(2 + 3));
    let audit = whole(short as u32 - 3);
    let told = setting.told(&audit);
    assert!(
        told.contains(
            &"unsupervised 2: t.jsonl:1 all 2 supervised tokens are behind max_length; t.jsonl:2 all 31 \
                            supervised tokens are behind max_length"
                .to_owned()
        ),
        "{told:#?}"
    );
    assert!(told.iter().any(|told| told.starts_with("truncated 2: ")), "{told:#?}");
    assert_eq!(audit.example, []);
}

#[test]
fn without_a_model_the_text_is_judged_alone() {
    let mut with_topic = chat("Say one.", "One.");
    with_topic["topic"] = json!("numbers");
    let setting = Setting::new(&[("t.jsonl", &lines(&[with_topic, chat("Hello?", "")]))]);
    setting.audit(&["t.jsonl"], &[], (false, 8), |audited| {
        let audit = &audited.report.training;
        let expected = ["empty 1: t.jsonl:2 messages[1], the assistant's, is empty", "short 1: t.jsonl:1 1 word"];
        assert_eq!(setting.told(audit), expected);
        assert_eq!((audit.lengths.unit, audit.lengths.total), (LengthUnit::Words, 3 + 1));
        assert_eq!((audit.kind, audit.loss, audit.truncation, audit.supervised_tokens), (None, None, None, None));
        assert!(audit.not_checked.contains(&FindingKind::Refused) && !audited.report.has_faults());
        assert_eq!(audit.unused_columns, ["topic"]);
    });
}

#[test]
fn rows_of_tokens_need_no_model() {
    let rows = [
        json!({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}),
        json!({"input_ids": [1, 2, 4], "labels": [-100, -100, -100]}),
        json!({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}),
    ];
    let setting = Setting::new(&[("t.jsonl", &lines(&rows))]);
    setting.audit(&["t.jsonl"], &[], (false, 2), |audited| {
        let audit = &audited.report.training;
        assert_eq!((audit.lengths.unit, audit.lengths.total), (LengthUnit::Tokens, 9));
        let cut = audit.truncation.unwrap();
        assert_eq!((cut.rows, cut.tokens, cut.supervised_tokens, audit.supervised_tokens), (3, 3, 2, Some(2)));
        let told = setting.told(audit);
        assert!(told.contains(&"unsupervised 1: t.jsonl:2 no token is supervised".to_owned()), "{told:#?}");
        assert!(told.contains(&"duplicates 1: t.jsonl:3 the same as t.jsonl:1".to_owned()), "{told:#?}");
        for kind in [
            FindingKind::Short,
            FindingKind::Conflicts,
            FindingKind::RoleOrder,
            FindingKind::Unended,
            FindingKind::NearDuplicates,
        ] {
            assert!(audit.not_checked.contains(&kind), "{kind:?}");
        }
        assert!(!audit.not_checked.contains(&FindingKind::AllSupervised));
    });
}

#[test]
fn what_nobody_looks_for_is_not_told_to_be_well() {
    let plain = json!({"input_ids": [1, 2, 3]});
    let completion = json!({"prompt": "Say a.", "completion": "A."});
    let setting = Setting::new(&[("t.jsonl", &lines(&[plain])), ("c.jsonl", &lines(&[completion]))]);
    let not_checked = |name: &str, with_model| {
        setting.audit(&[name], &[], (with_model, 8), |audited| audited.report.training.not_checked.clone())
    };
    // Without labels every token is learned, which is as it should be.
    assert!(not_checked("t.jsonl", false).contains(&FindingKind::AllSupervised));
    // Spans of the assistant are found in conversations alone.
    let told = not_checked("c.jsonl", true);
    assert!(told.contains(&FindingKind::Unended) && !told.contains(&FindingKind::Refused), "{told:?}");
}

/// The first token is predicted by nothing; a label says of it all the same whether all is to be learned.
#[test]
fn a_row_with_a_token_that_is_not_learned_is_not_supervised_throughout() {
    let row = |labels: [i32; 3]| json!({"input_ids": [1, 2, 3], "labels": labels});
    let setting = Setting::new(&[("t.jsonl", &lines(&[row([-100, 2, 3]), row([1, 2, 3])]))]);
    setting.audit(&["t.jsonl"], &[], (false, 8), |audited| {
        let told = setting.told(&audited.report.training);
        assert_eq!(told, ["all-supervised 1: t.jsonl:2 all 3 tokens are supervised"]);
    });
}

#[test]
fn training_rows_that_are_held_out_are_leaks() {
    let own = chat("Count, one by one.", LONG);
    let near = chat("Count, one by one!", LONG);
    let rows = [chat("Say it.", "It is said."), near.clone(), near, own.clone()];
    let setting = Setting::new(&[("t.jsonl", &lines(&rows)), ("h.json", &json!([own, own, "x"]).to_string())]);
    setting.audit(&["t.jsonl"], &["h.json"], (false, 8), |audited| {
        let told = setting.told(&audited.report.training);
        let near = "similarity about 1.00 with h.json[0], which is held out";
        assert_eq!(told[0], "leaks 1: t.jsonl:4 held out too, as h.json[0]");
        assert_eq!(
            told[1],
            format!("near-leaks 2: t.jsonl:2 {near}; t.jsonl:3 {near}"),
            "duplicates of leaks are leaks"
        );
        let held_out = audited.report.held_out.as_ref().unwrap();
        let expected = [
            "unreadable 1: h.json[2] expected an object, found a string",
            "duplicates 1: h.json[1] the same as h.json[0]",
        ];
        assert_eq!(setting.told(held_out), expected);
        assert!(!held_out.findings.iter().any(|finding| finding.kind == FindingKind::Leaks), "told of training rows");
        assert!(audited.report.has_faults());
    });
}

#[test]
fn a_copy_has_the_rows_that_are_left_byte_for_byte() {
    let odd = "  {\"messages\" : [{\"role\":\"user\",\"content\":\"Say \\u0061.\"}, {\"content\":\"A.\",\"role\":\"assistant\"}], \
               \"n\": 1.50}\r\n";
    let text = format!("{odd}\n{}not JSON\n{}", lines(&[chat("Say a.", "A.")]), chat("Say b.", "Bee, b."));
    let setting = Setting::new(&[("t.jsonl", &text)]);
    setting.audit(&["t.jsonl"], &[], (false, 8), |audited| {
        let path = setting.path("copy.jsonl");
        let drop = [FindingKind::Duplicates, FindingKind::Unreadable];
        let copied = audited.write_copy(&drop, &path).unwrap();
        let dropped: Vec<_> = copied.dropped.iter().map(|dropped| (dropped.kind, dropped.rows)).collect();
        assert_eq!((copied.rows, dropped), (2, vec![(drop[0], 1), (drop[1], 1)]));
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{odd}{}\n", chat("Say b.", "Bee, b.")));
        let error = |path: PathBuf, drop: &[FindingKind]| audited.write_copy(drop, &path).unwrap_err().to_string();
        assert!(error(path, &drop).contains("is there already\nhint: "));
        assert!(error(setting.path("copy.json"), &drop).contains("the copy is JSONL"));
        let all = [FindingKind::Short, FindingKind::Unreadable];
        assert!(error(setting.path("none.jsonl"), &all).contains("no row would be left"));
        assert!(!setting.path("none.jsonl").exists());
        fs::write(setting.path("t.jsonl"), "{}\n").unwrap();
        assert!(error(setting.path("late.jsonl"), &drop).contains("changed while it was read"));
    });
}

#[test]
fn elements_of_arrays_become_lines() {
    let rows = json!([chat("Say a.", "A."), chat("Say b.", "Bee,\nb.")]);
    let setting = Setting::new(&[("t.json", &serde_json::to_string_pretty(&rows).unwrap())]);
    setting.audit(&["t.json"], &[], (false, 8), |audited| {
        let path = setting.path("copy.jsonl");
        audited.write_copy(&[FindingKind::Duplicates], &path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let read: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(Value::Array(read), rows);
    });
}

#[test]
fn rows_of_parquet_become_json() {
    let setting = Setting::new(&[]);
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/data/files/chat-datasets.parquet");
    fs::copy(file, setting.path("t.parquet")).unwrap();
    let rows = |name: &str| -> Vec<Row> {
        let (sources, columns) = (setting.sources(&[name]), Columns::default());
        RowReader::new(&sources, &columns).map(|row| row.unwrap().1).collect()
    };
    setting.audit(&["t.parquet"], &[], (false, 8), |audited| {
        assert!(audited.report.training.findings.iter().any(|finding| {
            finding.examples.first().is_some_and(|example| example.place.contains("t.parquet: row "))
        }));
        audited.write_copy(&[FindingKind::Empty], &setting.path("copy.jsonl")).unwrap();
    });
    let expected: Vec<Row> =
        rows("t.parquet").into_iter().filter(|row| super::filter::empty(row, "messages").is_none()).collect();
    assert_eq!(rows("copy.jsonl"), expected);
}

/// The files behind a damaged one are read all the same; a copy must be asked to leave its rest out.
#[test]
fn a_damaged_file_does_not_hide_the_next() {
    let setting = Setting::new(&[("b.jsonl", &lines(&[chat("Say b.", "Bee, b.")]))]);
    let whole = zstd::encode_all(lines(&[chat("Say a.", "A.")]).repeat(40).as_bytes(), 3).unwrap();
    fs::write(setting.path("a.jsonl.zst"), &whole[..whole.len() - 3]).unwrap();
    setting.audit(&["a.jsonl.zst", "b.jsonl"], &[], (false, 8), |audited| {
        let told = setting.told(&audited.report.training);
        assert!(told[0].starts_with("unreadable 1: a.jsonl.zst:") && told[0].contains("cannot be read from here on"));
        assert!(told.iter().any(|told| told.contains("b.jsonl:1 2 words")), "{told:#?}");
        let path = setting.path("copy.jsonl");
        let error = audited.write_copy(&[FindingKind::Duplicates], &path).unwrap_err().to_string();
        assert!(error.contains("drop unreadable rows too") && !path.exists(), "{error}");
        audited.write_copy(&[FindingKind::Duplicates, FindingKind::Unreadable], &path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.ends_with(&format!("{}\n", chat("Say b.", "Bee, b."))), "{text}");
    });
}

#[test]
fn a_data_set_without_rows_and_an_unusable_model_are_errors() {
    let setting = Setting::new(&[("t.jsonl", "\n"), ("u.jsonl", &lines(&[chat("a", "b")]))]);
    let error = |name: &str, with_model: bool| {
        let (sources, columns) = (setting.sources(&[name]), Columns::default());
        let prepare = Prepare {
            model_directory: &setting.path("no-model"),
            sources: &sources,
            columns: &columns,
            max_length: Some(8),
            assistant_only_loss: true,
            chat_template: None,
            template_date: None,
            eos_token: None,
            completion_only_loss: None,
            classes: None,
            cache: setting.folder.path(),
        };
        audit(&Audit { prepare: &prepare, held_out: None, with_model }).unwrap_err().to_string()
    };
    assert!(error("t.jsonl", false).contains("there is no row in this file"), "{}", error("t.jsonl", false));
    assert!(error("u.jsonl", true).contains("there is no tokenizer here"), "{}", error("u.jsonl", true));
}

/// Nothing that is found depends on the threads.
#[test]
fn one_thread_finds_what_many_find() {
    let rows: Vec<Value> = (0..3000)
        .map(|row: u64| {
            chat(&format!("What is {} times {}?", row % 37, row % 23), &format!("It is {}. {LONG} {LONG}", row % 11))
        })
        .collect();
    let setting = Setting::new(&[("t.jsonl", &lines(&rows))]);
    let report = || setting.audit(&["t.jsonl"], &[], (false, 8), |audited| audited.report.clone());
    let [one, many] =
        [1, 4].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(report));
    assert_eq!(one, many);
    assert!(
        one.training.findings.iter().any(|finding| finding.kind == FindingKind::NearDuplicates && finding.rows > 0)
    );
}
