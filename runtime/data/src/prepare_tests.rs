//! Whole rows: what is supervised under each shape of template, and what is refused.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::report::{Loss, RowKind};
use crate::testing;

#[path = "prepare_cache_tests.rs"]
mod cached;

struct Setting {
    folder: tempfile::TempDir,
}

impl Setting {
    fn new(template: &str, rows: &str) -> Setting {
        let setting = Setting { folder: tempfile::tempdir().unwrap() };
        let config = serde_json::json!({"chat_template": template, "bos_token": "<s>", "eos_token": "<|im_end|>"});
        setting.write("tokenizer.json", &testing::tokenizer_json());
        setting.write("tokenizer_config.json", &config.to_string());
        setting.write("config.json", r#"{"vocab_size": 267}"#);
        setting.write("train.jsonl", rows);
        setting
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn prepare(&self, max_length: u32, assistant_only_loss: bool) -> Result<Prepared, String> {
        self.prepare_with(&["train.jsonl"], |options| Prepare {
            max_length: Some(max_length),
            assistant_only_loss,
            ..options
        })
    }

    fn prepare_with(&self, names: &[&str], change: impl Fn(Prepare<'_>) -> Prepare<'_>) -> Result<Prepared, String> {
        let names: Vec<String> = names.iter().map(|name| self.path(name).display().to_string()).collect();
        let plain = |error: DataError| error.to_string().replace(&format!("{}/", self.folder.path().display()), "");
        let sources = Sources::find(&names).map_err(plain)?;
        let (columns, cache) = (Columns::default(), self.path("cache"));
        let options = change(Prepare {
            model_directory: self.folder.path(),
            sources: &sources,
            columns: &columns,
            max_length: Some(1024),
            assistant_only_loss: true,
            chat_template: None,
            template_date: None,
            eos_token: None,
            completion_only_loss: None,
            classes: None,
            cache: &cache,
        });
        prepare(&options).map_err(plain)
    }
}

/// A conversation of user and assistant in turns; a first text that begins with "system:" is the system's.
fn row(texts: &[&str]) -> String {
    let system = texts[0].strip_prefix("system:");
    let mut messages: Vec<_> =
        system.iter().map(|text| serde_json::json!({"role": "system", "content": text})).collect();
    for (index, text) in texts[system.iter().len()..].iter().enumerate() {
        let role = if index % 2 == 0 { "user" } else { "assistant" };
        messages.push(serde_json::json!({"role": role, "content": text}));
    }
    serde_json::json!({ "messages": messages }).to_string() + "\n"
}

/// The example with what is supervised in ⟦ ⟧.
fn shown(prepared: &Prepared) -> String {
    let segments = prepared.report.example.iter();
    segments.map(|part| if part.supervised { format!("⟦{}⟧", part.text) } else { part.text.clone() }).collect()
}

#[test]
fn answers_are_supervised_with_their_end_of_turn_under_every_shape_of_template() {
    let texts = ["system:S", "Q", "the 🙂", "R", "B"];
    let cases = [
        (
            testing::CHATML,
            &texts[..],
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n⟦the 🙂<|im_end|>⟧\n\
             <|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n⟦B<|im_end|>⟧\n",
        ),
        (
            testing::CHATML,
            &texts[1..3],
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n\
             ⟦the 🙂<|im_end|>⟧\n",
        ),
        (
            testing::HEADERS,
            &texts[1..],
            "<s><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n\
             ⟦the 🙂<|eot_id|>⟧<|start_header_id|>user<|end_header_id|>\n\nR<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\n⟦B<|eot_id|>⟧",
        ),
        (testing::BRACKETS, &texts[1..], "<s> [INST] Q [/INST]⟦ the 🙂<|im_end|>⟧ [INST] R [/INST]⟦ B<|im_end|>⟧"),
        (
            testing::MARKED,
            &texts[..],
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n⟦the 🙂<|im_end|>⟧\n\
             <|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n⟦B<|im_end|>⟧\n",
        ),
    ];
    for (template, texts, expected) in cases {
        let prepared = Setting::new(template, &row(texts)).prepare(1024, true).unwrap();
        assert_eq!(shown(&prepared), expected);
        assert!(
            prepared.report.lessons.iter().all(|warning| !warning.contains("stop")) || template == testing::HEADERS
        );
    }
}

#[test]
fn with_and_without_marks_the_same_tokens_are_supervised() {
    let rows = row(&["system:S", "Q", "A", "the", "line\n"]) + &row(&["system:", "🙂", "x\n\ny the "]);
    let plain = Setting::new(testing::CHATML, &rows).prepare(1024, true).unwrap();
    let marked = Setting::new(testing::MARKED, &rows).prepare(1024, true).unwrap();
    assert_eq!(plain.dataset, marked.dataset);
}

#[test]
fn all_tokens_are_supervised_when_asked() {
    let prepared = Setting::new(testing::FORGETFUL, &row(&["Q", "A", "R", "B"])).prepare(1024, false).unwrap();
    assert_eq!(prepared.report.supervised_tokens, prepared.report.tokens - 1);
    assert_eq!(prepared.report.loss, Loss::All);
    let text: String = prepared.report.example.iter().map(|segment| segment.text.as_str()).collect();
    assert!(text.starts_with("<|im_start|>user\nQ<|im_end|>"), "{text}");
}

#[test]
fn where_earlier_thinking_is_left_out_the_answers_are_found_all_the_same() {
    let thinking = row(&["Q", "<think>hm</think>A", "R", "<think>ho</think>B"]);
    let prepared = Setting::new(testing::FORGETFUL, &thinking).prepare(1024, true).unwrap();
    assert_eq!(
        shown(&prepared),
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n⟦A<|im_end|>⟧\n\
         <|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n⟦<think>ho</think>B<|im_end|>⟧\n"
    );
}

#[test]
fn a_template_that_rewrites_the_past_is_refused() {
    let rewriting = format!("{{{{ messages | length }}}}{}", testing::CHATML);
    let error = Setting::new(&rewriting, &row(&["Q", "A", "R", "B"])).prepare(1024, true).unwrap_err();
    assert!(
        error.starts_with("train.jsonl:1: which tokens are the assistant's cannot be told: messages[0] with a prompt"),
        "{error}"
    );
    assert!(error.contains("renders as …\"1<|") && error.contains("but the whole conversation as …\"4<|"), "{error}");
    assert!(error.contains("hint: put {% generation %}") && error.contains("assistant_only_loss: false"), "{error}");
    // An answer that itself holds the end of a turn may end anywhere.
    let forged = row(&["Q", "<think>hm</think>A<|im_end|>more", "R", "B"]);
    let error = Setting::new(testing::FORGETFUL, &forged).prepare(1024, true).unwrap_err();
    assert!(error.contains("no end-of-turn token tells where they end"), "{error}");
}

#[test]
fn an_end_of_turn_in_what_a_tool_is_asked_ends_no_answer() {
    let calling = testing::FORGETFUL.replacen(
        "<|im_end|>",
        "{{ message.tool_calls | tojson if message.tool_calls }}<|im_end|>",
        1,
    );
    let rows = |asked: &str| {
        let call = format!(r#"[{{"function": {{"name": "f", "arguments": {{"q": "{asked}"}}}}}}]"#);
        row(&["Q", "<think>hm</think>A", "R", "B"]).replacen(
            "</think>A\"",
            &format!("</think>A\", \"tool_calls\": {call}"),
            1,
        )
    };
    let prepared = Setting::new(&calling, &rows("it")).prepare(1024, true).unwrap();
    assert!(
        shown(&prepared).contains("⟦A[{\"function\": {\"name\": \"f\", \"arguments\": {\"q\": \"it\"}}}]<|im_end|>⟧")
    );
    let error = Setting::new(&calling, &rows("<|im_end|>")).prepare(1024, true).unwrap_err();
    assert!(error.contains("no end-of-turn token tells where they end"), "{error}");
}

#[test]
fn answers_without_an_end_of_turn_are_told_with_the_first_line() {
    let template = testing::CHATML.replace("<|im_end|>", "~");
    let rows = row(&["Q", "A"]) + "\n" + &row(&["Q", "B"]);
    let prepared = Setting::new(&template, &rows).prepare(1024, true).unwrap();
    let told = |prepared: &Prepared| {
        prepared.report.lessons.iter().find(|warning| warning.contains("end-of-turn")).cloned().unwrap_or_default()
    };
    let warning = told(&prepared);
    assert!(
        warning.starts_with("line 1 of ")
            && warning.contains("train.jsonl: an answer ends without")
            && warning.contains("2 of 2 rows"),
        "{warning}"
    );
    assert_eq!(told(&Setting::new(testing::CHATML, &rows).prepare(1024, true).unwrap()), "");
}

#[test]
fn a_chosen_template_and_end_of_turn_go_before_the_models_own() {
    let setting = Setting::new("{{ raise_exception('mine') }}", &row(&["Q", "A"]));
    let prepare_with = |chat_template: Option<&'static str>, eos_token: Option<&'static str>| {
        setting.prepare_with(&["train.jsonl"], |options| Prepare { chat_template, eos_token, ..options })
    };
    let chosen = "{{ messages[0].content }}{% generation %}{{ messages[1].content + eos_token }}{% endgeneration %}";
    assert_eq!(shown(&prepare_with(Some(chosen), None).unwrap()), "Q⟦A<|im_end|>⟧");
    let ended = prepare_with(Some(chosen), Some("</s>")).unwrap();
    assert_eq!((shown(&ended).as_str(), ended.report.lessons.len()), ("Q⟦A</s>⟧", 0));
    let error = prepare_with(Some(chosen), Some("<nothing>")).unwrap_err();
    assert!(error.contains("eos_token is \"<nothing>\", which is no token of this tokenizer"), "{error}");
    assert!(prepare_with(None, None).unwrap_err().contains("mine"));
}

#[test]
fn a_template_tells_the_day_that_it_is_told() {
    let template = "{{ strftime_now('%d %b %Y %H:%M') }}{{ messages[0].content }}{% generation %}\
                    {{ messages[1].content + eos_token }}{% endgeneration %}";
    let setting = Setting::new(template, &row(&["Q", "A"]));
    let on = |date: &'static str| {
        setting.prepare_with(&["train.jsonl"], |options| Prepare { template_date: Some(date), ..options })
    };
    let (first, next) = (on("2024-12-31").unwrap(), on("2025-01-01").unwrap());
    assert_eq!(shown(&first), "31 Dec 2024 00:00Q⟦A<|im_end|>⟧");
    assert_eq!(shown(&next), "01 Jan 2025 00:00Q⟦A<|im_end|>⟧");
    assert!(!next.from_cache && on("2024-12-31").unwrap().from_cache);
    let error = on("31.12.2024").unwrap_err();
    assert!(error.contains("template_date is \"31.12.2024\"\nhint: a day is written as "), "{error}");
}

#[test]
fn what_the_template_would_pass_over_is_refused() {
    let rows = |fields: &str| {
        format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"Q\"}}, {{\"role\": \"assistant\", {fields}}}]}}\n"
        )
    };
    let call = rows("\"tool_calls\": [{\"function\": {\"name\": \"f\"}}]");
    let thought = rows("\"content\": \"A\", \"reasoning\": \"hm\"");
    let tools = row(&["Q", "A"]).replace("{\"messages\"", "{\"tools\": [{\"name\": \"f\"}], \"messages\"");
    let variable = tools.replace("\"tools\": [{\"name\": \"f\"}]", "\"chat_template_kwargs\": {\"thinking\": 1}");
    let developer = row(&["Q", "A"]).replace("\"user\"", "\"developer\"");
    for (rows, expected) in [
        (call, "messages[1]: the template does not read the field `tool_calls`"),
        (thought, "messages[1]: the template does not read the field `thinking`"),
        (tools, "the template does not read `tools`"),
        (variable, "the template does not read `thinking` of chat_template_kwargs"),
        (developer, "messages[0]: the template knows no role \"developer\""),
    ] {
        let error = Setting::new(testing::CHATML, &rows).prepare(1024, true).unwrap_err();
        assert!(error.starts_with("train.jsonl:1: ") && error.contains(expected), "{error}");
        assert!(error.contains("\nhint: "), "{error}");
    }
    // Empty ones say nothing, and names need not be read.
    let rows = rows("\"content\": \"A\", \"tool_calls\": [], \"name\": \"me\", \"refusal\": null");
    Setting::new(testing::CHATML, &rows).prepare(1024, true).unwrap();
}

#[test]
fn conversations_whose_answers_cannot_be_told_are_refused() {
    let assistant_first = "{\"messages\": [{\"role\": \"assistant\", \"content\": \"A\"}]}\n";
    let two_users =
        "{\"messages\": [{\"role\": \"user\", \"content\": \"A\"}, {\"role\": \"user\", \"content\": \"B\"}]}";
    let unmarked = "{% for message in messages %}{{ message.content }}{% generation %}{% endgeneration %}{% endfor %}";
    let cases = [
        (
            testing::CHATML,
            assistant_first,
            "train.jsonl:1: which tokens are the assistant's cannot be told: on no message",
        ),
        (testing::CHATML, two_users, "train.jsonl:1: no message of this conversation is the assistant's\nhint: "),
        (testing::BRACKETS, two_users, "train.jsonl:1: chat template: Roles must alternate"),
        (unmarked, &row(&["Q", "A"]), "train.jsonl:1: the chat template marks nothing of this conversation"),
        ("{{ messages[0].content }}", &row(&["Q", "A"]), "leaves nothing of messages[1] after the prompt before it"),
        (testing::CHATML, &row(&["Q", "  the"]), "train.jsonl:1: the token \"\\n \" stands half in and half outside"),
    ];
    for (template, rows, expected) in cases {
        let error = Setting::new(template, rows).prepare(1024, true).unwrap_err();
        assert!(error.contains(expected) && error.contains("\nhint: "), "{error}");
    }
}

/// As transformers counts: the template says what is to be learned, and a token cannot be learned by half.
#[test]
fn white_space_that_melts_with_what_a_template_marks_is_learned_with_it() {
    let prepared = Setting::new(testing::MARKED, &row(&["Q", "  the"])).prepare(1024, true).unwrap();
    assert!(shown(&prepared).ends_with("<|im_start|>assistant⟦\n  the<|im_end|>⟧\n"), "{}", shown(&prepared));
}

#[test]
fn long_rows_are_cut_and_rows_without_supervision_dropped_and_counted() {
    let rows = "{\"input_ids\": [1, 2, 3, 4], \"labels\": [-100, -100, 3, 4]}\n\
                {\"input_ids\": [1, 2, 3, 4], \"labels\": [-100, -100, -100, 4]}\n\
                {\"input_ids\": [5], \"labels\": [5]}\n\
                {\"input_ids\": [6, 7]}\n";
    let prepared = Setting::new("", rows).prepare(3, true).unwrap();
    let report = &prepared.report;
    assert_eq!((report.rows, report.dropped, report.truncated, report.longest), (2, 2, 1, 3));
    assert_eq!((report.tokens, report.supervised_tokens, report.kind), (5, 2, RowKind::Tokens));
    assert_eq!(prepared.dataset.row(0), (&[1, 2, 3][..], &[-100, -100, 3][..]));
    assert_eq!(prepared.dataset.row(1), (&[6, 7][..], &[6, 7][..]));
    assert_eq!(*prepared.dataset.places.numbers, [1, 4]);
    assert!(prepared.dataset.places.words(1).starts_with("line 4 of "));
    assert!(report.lessons[0].contains("does not learn to stop"), "{:?}", report.lessons);
}

#[test]
fn a_data_set_with_nothing_to_learn_is_refused() {
    let rows = "{\"input_ids\": [1, 2], \"labels\": [1, -100]}\n{\"input_ids\": [3]}\n";
    let error = Setting::new("", rows).prepare(1024, true).unwrap_err();
    assert!(
        error.contains("train.jsonl: nothing in its 2 rows is supervised (with max_length 1024)\nhint: "),
        "{error}"
    );
    let error = Setting::new(testing::CHATML, &row(&["Q", "A"])).prepare(20, true).unwrap_err();
    assert!(error.contains("nothing in its only row is supervised (with max_length 20)"), "{error}");
    let error = Setting::new(testing::CHATML, &row(&["Q", "A"])).prepare(1, true).unwrap_err();
    assert!(error.contains("max_length is 1\nhint: "), "{error}");
}

#[test]
fn ids_of_another_model_are_refused() {
    let setting = Setting::new("", "{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 267]}\n");
    let error = setting.prepare(1024, true).unwrap_err();
    assert!(error.contains("train.jsonl:2: token id 267, but the model's vocabulary has 267 entries"), "{error}");
    setting.write("train.jsonl", "{\"input_ids\": [1, 2], \"labels\": [1, 300]}\n");
    assert!(setting.prepare(1024, true).unwrap_err().contains("token id 300"));
}

#[test]
fn tokens_need_no_tokenizer() {
    let setting = Setting::new("", "{\"input_ids\": [1, 2, 3], \"labels\": [-100, -100, 3]}\n");
    fs::remove_file(setting.path("tokenizer.json")).unwrap();
    assert_eq!(shown(&setting.prepare(1024, true).unwrap()), "1 2 ⟦3 ⟧");
    setting.write("train.jsonl", &row(&["Q", "A"]));
    assert!(setting.prepare(1024, true).unwrap_err().contains("tokenizer.json: there is no tokenizer here"));
}

#[test]
fn many_rows_come_out_in_file_order_and_the_first_fault_is_told() {
    let mut rows: String = (0..5000).map(|index| row(&["Q", &index.to_string()])).collect();
    let prepared = Setting::new(testing::CHATML, &rows).prepare(1024, true).unwrap();
    let tokenizer = testing::tokenizer();
    assert_eq!(prepared.report.rows, 5000);
    for index in 0..5000 {
        let labels: Vec<u32> =
            prepared.dataset.row(index).1.iter().filter_map(|&label| label.try_into().ok()).collect();
        assert_eq!(tokenizer.decode(&labels, false).unwrap(), format!("{index}<|im_end|>"));
    }
    rows.push_str(&row(&["Q", "  the"]));
    rows.push_str("{\n");
    let error = Setting::new(testing::CHATML, &rows).prepare(1024, true).unwrap_err();
    assert!(error.starts_with("train.jsonl:5001: the token \"\\n \" stands"), "{error}");
}

#[test]
fn unused_columns_are_told() {
    let rows = row(&["Q", "A"]).replace("{\"messages\"", "{\"source\": \"web\", \"messages\"");
    let prepared = Setting::new(testing::CHATML, &rows).prepare(1024, true).unwrap();
    assert_eq!(prepared.report.warnings, ["columns that are not used: source"]);
}

#[test]
fn texts_and_completions_end_and_only_the_completion_is_learned() {
    let cases = [
        (r#"{"text": "the"}"#, "<s>⟦the<|im_end|>⟧"),
        (r#"{"text": "the<|im_end|>"}"#, "<s>⟦the<|im_end|>⟧"),
        (r#"{"prompt": "Q:", "completion": " the"}"#, "<s>Q:⟦ the<|im_end|>⟧"),
        (
            r#"{"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]}"#,
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n⟦A<|im_end|>⟧\n",
        ),
        (
            r#"{"instruction": "Q", "input": "I", "output": "A"}"#,
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nQ\n\nI<|im_end|>\n<|im_start|>assistant\n⟦A<|im_end|>⟧\n",
        ),
    ];
    for (row, expected) in cases {
        let prepared = Setting::new(testing::CHATML, row).prepare(1024, true).unwrap();
        assert_eq!(shown(&prepared), expected, "{row}");
    }
    let setting = Setting::new(testing::CHATML, cases[2].0);
    let with = |completion_only_loss| {
        setting.prepare_with(&["train.jsonl"], |options| Prepare { completion_only_loss, ..options })
    };
    assert_eq!(shown(&with(Some(false)).unwrap()), "<s>⟦Q: the<|im_end|>⟧");
    assert_eq!(with(Some(true)).unwrap().report.loss, Loss::Completion);
    setting.write("train.jsonl", cases[0].0);
    let error = with(Some(true)).unwrap_err();
    assert!(error.contains("completion_only_loss is true, but texts have no completion\nhint: "), "{error}");
}

#[test]
fn an_instruction_reads_as_a_text_to_a_model_without_a_chat_template() {
    let setting = Setting::new("", r#"{"instruction": "Q", "input": "I", "output": "A", "system": "S"}"#);
    setting.write("tokenizer_config.json", r#"{"bos_token": "<s>", "eos_token": "<|im_end|>"}"#);
    let prepared = setting.prepare(1024, true).unwrap();
    assert_eq!(shown(&prepared), "<s>S\n\n### Instruction:\nQ\n\n### Input:\nI\n\n### Response:\n⟦A<|im_end|>⟧");
    assert_eq!((prepared.report.kind, prepared.report.loss), (RowKind::Completions, Loss::Completion));
}

#[test]
fn prompts_that_melt_with_their_completions_are_counted_and_told() {
    let rows = "{\"prompt\": \"Q\", \"completion\": \"the\"}\n{\"prompt\": \"Q \", \"completion\": \"the\"}\n\
                {\"prompt\": \"R \", \"completion\": \"the\"}\n";
    let prepared = Setting::new("", rows).prepare(1024, true).unwrap();
    let warning = &prepared.report.warnings[0];
    assert!(warning.starts_with("in 2 rows the tokens of the prompt are not those"), "{warning}");
    assert!(warning.contains("(first: line 2 of "), "{warning}");
}

#[test]
fn files_follow_one_another_and_errors_name_the_right_one() {
    let setting = Setting::new(testing::CHATML, "");
    setting.write("a.jsonl", &(row(&["Q", "A"]) + "\n" + &row(&["Q", "B"])));
    setting.write("b.jsonl", &row(&["Q", "C"]));
    let prepared = setting.prepare_with(&["a.jsonl", "b.jsonl"], |options| options).unwrap();
    let places: Vec<String> = (0..3).map(|row| prepared.dataset.places.words(row)).collect();
    for (place, (line, name)) in places.iter().zip([(1, "a.jsonl"), (3, "a.jsonl"), (1, "b.jsonl")]) {
        assert!(place.starts_with(&format!("line {line} of ")) && place.ends_with(name), "{place}");
    }
    assert_eq!((prepared.report.files, prepared.report.rows), (2, 3));
    setting.write("b.jsonl", "{\"input_ids\": [1, 2]}");
    let error = setting.prepare_with(&["a.jsonl", "b.jsonl"], |options| options).unwrap_err();
    assert!(error.starts_with("b.jsonl:1: this row has `input_ids`, but line 1 of a.jsonl has `messages`"), "{error}");
}
