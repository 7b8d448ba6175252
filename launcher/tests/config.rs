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
    std::fs::write(folder.path().join("chat.jsonl"), "{\"text\": \"a\"}\n").unwrap();
    let (code, out, _) = check(job);
    assert_eq!(code, 0, "{out}");
    let data = "data   chat.jsonl: 1 file, 14 bytes, rows of `text`";
    let expected = ["from the hub", data, "ok: 2 ranks, ZeRO stage 3", "16 rows"];
    assert_has(&out, &expected);
    let (code, _, error) = check(&job.replace("owner/model", "./model"));
    assert_eq!(code, 2, "{error}");
    assert_has(&error, &["there is no such folder"]);
}

#[test]
fn check_looks_at_template_end_of_turn_and_columns() {
    let folder = tempfile::tempdir().unwrap();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/models");
    let model = models.join("tiny-llama").display().to_string();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let messages = r#"[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]"#;
    write("chat.jsonl", &format!("{{\"talk\": {messages}}}\n"));
    write("broken.jinja", "{% for message in messages %}");
    write("plain.jinja", "{% for message in messages %}{{ message.role + message.content + eos_token }}{% endfor %}");
    let job = "check --dataset chat.jsonl --output_dir out --num_processes 1";
    let refused = |words: &str, parts: &[&str]| {
        for name in [model.as_str(), "owner/model"] {
            let (code, _, error) = config(folder.path(), &format!("{job} --model_name_or_path {name} {words}"));
            assert_eq!(code, 2, "{words} with {name}: {error}");
            assert_has(&error, parts);
        }
    };
    refused("", &["chat.jsonl:1: no columns to learn from; found: talk", "column_mapping names columns"]);
    refused("--column_mapping massages=talk", &["column_mapping names `massages`, which is no column"]);
    refused(
        "--column_mapping messages=tolk",
        &["chat.jsonl:1: no column `tolk`, which column_mapping takes as `messages`; found: talk"],
    );
    let mapped = "--column_mapping messages=talk";
    refused(&format!("{mapped} --chat_template_path ./none.jinja"), &["there is no such chat template"]);
    refused(&format!("{mapped} --chat_template_path broken.jinja"), &["broken.jinja: chat template: "]);
    let here = |words: &str| {
        let line = format!("{job} --model_name_or_path {model} {mapped} {words}");
        let (code, out, error) = config(folder.path(), &line);
        (code, out + &error)
    };
    for (words, parts) in [
        ("--eos_token <nothing>", "eos_token is \"<nothing>\", which is no token of this tokenizer"),
        ("--chat_template_path gemma", "the built-in chat template does not fit the model's tokenizer"),
        ("--completion_only_loss true", "completion_only_loss is true, but conversations have no completion"),
    ] {
        let (code, told) = here(words);
        assert_eq!(code, 2, "{words}: {told}");
        assert_has(&told, &[parts]);
    }
    let (code, told) = here("--chat_template_path chatml --eos_token <|im_end|>");
    assert_eq!(code, 0, "{told}");
    assert_has(&told, &["template  chatml: a built-in one that fits\n", ", rows of conversations\n", "ok: 1 rank"]);
    let (code, told) = here("--chat_template_path plain.jinja");
    assert_eq!(code, 0, "{told}");
    assert_has(&told, &["template  plain.jinja: can be read\n"]);
    let (code, told) = here("--chat_template_path owner/model");
    assert_eq!(code, 0, "{told}");
    assert_has(&told, &["template  owner/model: taken from the hub, which is not asked here", "rows of `messages`"]);
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "nothing is written: {left:?}");
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

/// A file for other machines does not follow this one.
#[test]
fn what_was_written_for_gpus_stays_so_where_there_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let accelerate = |text: &str| {
        std::fs::write(folder.path().join("job.yaml"), text).unwrap();
        let (code, out, error) = config(folder.path(), "convert --config job.yaml --to accelerate");
        assert_eq!(code, 0, "{error}");
        out
    };
    let plain = accelerate("distributed_type: MULTI_GPU\nnum_processes: 2\n");
    assert_has(&plain, &["distributed_type: MULTI_GPU\n", "use_cpu: false\n"]);
    let fsdp = "distributed_type: FSDP\nnum_processes: 2\nfsdp_config:\n  fsdp_version: 1\n  fsdp_offload_params: true\n  \
                fsdp_activation_checkpointing: false\n";
    assert_has(&accelerate(fsdp), &["fsdp_offload_params: true\n", "fsdp_activation_checkpointing: false\n"]);
    let offloads = "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  zero_stage: 2\n  \
                    offload_optimizer_device: cpu\n";
    assert_has(&accelerate(offloads), &["offload_optimizer_device: cpu\n"]);
    let of_cpu = accelerate("distributed_type: MULTI_CPU\nnum_processes: 2\n");
    assert_has(&of_cpu, &["distributed_type: MULTI_CPU\n", "use_cpu: true\n"]);
}

#[test]
fn the_schema_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, _) = config(folder.path(), "schema");
    assert_eq!(code, 0);
    let schema: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
}
