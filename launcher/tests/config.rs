//! `launch config` as a person runs it.

use std::path::Path;
use std::process::Command;

/// Exit code, standard output and standard error of `launch config …` in this folder.
fn config(folder: &Path, line: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_launch"));
    command.arg("config").args(line.split_whitespace()).current_dir(folder).env("HF_HUB_OFFLINE", "1");
    zerofold_configs::ENVIRONMENT.iter().for_each(|name| {
        command.env_remove(name);
    });
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn show_needs_neither_model_nor_data() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, _) = config(folder.path(), "show --zero_stage 3 --num_processes 2 --set seed=7");
    assert_eq!(code, 0, "{out}");
    assert_has(&out, &["Model, data and output\n", "missing", "flag --zero_stage", "--set seed", "default"]);
    let (code, out, _) = config(folder.path(), "show --config zero3.yaml --changed --json");
    assert_eq!(code, 0, "{out}");
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    let keys = told["keys"].as_array().unwrap();
    let rate = keys.iter().find(|key| key["key"] == "learning_rate").unwrap();
    assert_eq!((&rate["value"], &rate["section"]), (&serde_json::json!(2e-4), &serde_json::json!("training")));
    assert!(rate["source"].as_str().unwrap().starts_with("zero3.yaml:"), "{rate}");
    assert!(keys.iter().all(|key| key["changed"] == true) && told["missing"] == serde_json::json!([]), "{out}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is written");
}

#[test]
fn check_tells_what_train_would_refuse() {
    let folder = tempfile::tempdir().unwrap();
    let check = |line: &str| config(folder.path(), &format!("check {line}"));
    let (code, _, error) = check("--zero_stage 3");
    assert_eq!(code, 2, "{error}");
    assert_has(&error, &["not set: model_name_or_path, dataset, output_dir\nhint: "]);
    std::fs::write(folder.path().join("job.yaml"), "training:\n  learning_rate:   fast\n").unwrap();
    let (code, _, error) = check("--config job.yaml");
    assert_eq!(code, 2, "{error}");
    assert_has(&error, &["error: job.yaml:2:20: training.learning_rate is fast", "it must be a number"]);
    let job = "--model_name_or_path owner/model --dataset chat.jsonl --output_dir out --num_processes 2 --zero_stage 3";
    let (code, _, error) = check(job);
    assert_eq!(code, 2, "{error}");
    assert_has(&error, &["flag --dataset: dataset: chat.jsonl: cannot open", "\nhint: paths are relative"]);
    std::fs::write(folder.path().join("chat.jsonl"), "{}\n").unwrap();
    let (code, out, _) = check(job);
    assert_eq!(code, 0, "{out}");
    let expected = ["from the hub", "data   chat.jsonl: 1 file, 3 bytes", "ok: 2 ranks, ZeRO stage 3", "16 rows"];
    assert_has(&out, &expected);
    let (code, _, error) = check(&job.replace("owner/model", "./model"));
    assert_eq!(code, 2, "{error}");
    assert_has(&error, &["there is no such folder"]);
}

#[test]
fn files_are_written_and_never_overwritten_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let run = |line: &str| config(folder.path(), line);
    let flags =
        "--zero_stage 3 --num_processes 2 --learning_rate 1e-4 --dataset d.jsonl --model_name_or_path m --output_dir o";
    let (code, out, error) = run(&format!("init {flags} --output job.yaml"));
    assert_eq!((code, out.as_str()), (0, ""), "{error}");
    let text = std::fs::read_to_string(folder.path().join("job.yaml")).unwrap();
    assert_has(&text, &["  zero_stage: 3  # ", "  learning_rate: 0.0001  # "]);
    let (code, _, error) = run("init --output job.yaml");
    assert_eq!(code, 2);
    assert_has(&error, &["job.yaml is there already\nhint: name another file, or pass --force"]);
    assert_eq!(std::fs::read_to_string(folder.path().join("job.yaml")).unwrap(), text);
    let (code, out, _) = run("show --config job.yaml --changed");
    assert_eq!(code, 0);
    assert_has(&out, &["job.yaml:", "learning_rate"]);
    let (code, out, error) = run("convert --config job.yaml --to deepspeed");
    assert_eq!(code, 0);
    assert_has(&error, &["left out: num_processes: 2, because "]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["zero_optimization"]["stage"], 3);
    let (code, out, error) = run("convert --config job.yaml --to accelerate --output job.yaml --force");
    assert_eq!((code, out.as_str()), (0, ""), "{error}");
    assert_has(&error, &["left out: training.learning_rate: 0.0001, because ", "wrote job.yaml"]);
    assert_has(&std::fs::read_to_string(folder.path().join("job.yaml")).unwrap(), &["distributed_type: DEEPSPEED\n"]);
}

#[test]
fn the_schema_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, _) = config(folder.path(), "schema");
    assert_eq!(code, 0);
    let schema: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
}
