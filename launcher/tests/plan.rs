//! `launch plan` as a person runs it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `launch` with these words in `folder`; returns exit code, output and errors.
fn launch(folder: &Path, words: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_launch"));
    // The hub is never asked.
    command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.join("hf"));
    let output = command.args(words).current_dir(folder).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn answered(words: &[&str]) -> String {
    let (code, out, err) = launch(Path::new("."), words);
    assert_eq!((code, err.as_str()), (0, ""), "{words:?}\n{out}");
    out
}

#[track_caller]
fn refused(words: &[&str]) -> String {
    let (code, out, err) = launch(Path::new("."), words);
    assert_eq!((code, out.as_str()), (2, ""), "{words:?}\n{err}");
    err
}

#[test]
fn the_table_of_seven_billion_parameters_on_eight_gpus() {
    let words = ["--nproc", "8", "plan", "--model", "llama-7b", "--bf16", "--gpu-memory", "80GiB"];
    let more = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "4"];
    let out = answered(&[&words[..], &more].concat());
    let expected = "\
model  llama-7b, 6.738 billion parameters
job    8 ranks on GPUs, bfloat16 compute, float32 masters and moments, gradients reduced in float32, accumulated in float32
batch  1 row of 1,024 tokens a micro-batch, 4 micro-batches a step, gradient checkpointing

";
    assert!(out.starts_with(expected), "{out}");
    let rows: Vec<Vec<&str>> =
        out.lines().skip(5).take(4).map(|line| line.split("  ").map(str::trim).collect()).collect();
    let columns = |row: usize| rows[row].iter().copied().filter(|cell| !cell.is_empty()).collect::<Vec<_>>();
    // State: 2 + 4 + 4 + 8 bytes a parameter, shared as the stage says.
    assert_eq!(columns(0)[..5], ["0 (DDP)", "12.6 GiB", "25.1 GiB", "25.1 GiB", "50.2 GiB"], "{out}");
    assert_eq!(columns(1)[..5], ["1", "12.6 GiB", "25.1 GiB", "3.14 GiB", "6.28 GiB"], "{out}");
    assert_eq!(columns(2)[..5], ["2", "12.6 GiB", "3.14 GiB", "3.14 GiB", "6.28 GiB"], "{out}");
    assert_eq!(columns(3)[..5], ["3", "-", "3.14 GiB", "3.14 GiB", "6.28 GiB"], "{out}");
    let verdicts: Vec<&str> = (0..4).map(|row| *columns(row).last().unwrap()).collect();
    assert_eq!(verdicts, ["no", "yes", "yes", "yes"], "{out}");
    for part in [
        "fits 72.0 GiB (90 % of 80.0 GiB)",
        "take stage 1: it is the lowest that fits (stage 0 needs 114 GiB)",
        "10 % kept free for the allocator and the CUDA context",
        "With 4 micro-batches a step, stage 1 also sends less than stage 2 (32.9 GiB against 98.8 GiB).",
        "The configuration has stage 0, the default: pass --zero_stage 1.",
        "75.3 GiB for each checkpoint",
    ] {
        assert!(out.contains(part), "{part:?} is missing in:\n{out}");
    }
}

#[test]
fn where_nothing_fits_the_levers_stand_in_order() {
    let words =
        ["--nproc", "8", "plan", "--model", "llama-70b", "--gpu-memory", "80GB", "--gradient_checkpointing", "false"];
    let out = answered(&words);
    let begin = out.find("nothing fits: stage 3 needs least").unwrap_or_else(|| panic!("{out}"));
    let rows: Vec<[&str; 3]> = out[begin..]
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .map(|line| {
            let cells: Vec<&str> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
            cells.try_into().unwrap_or_else(|cells| panic!("{cells:?}"))
        })
        .collect();
    let expected = [
        ["change", "alone", "with those above"],
        ["--mixed_precision bf16", "not enough: stage 3, ", "not enough: stage 3, "],
        ["--gradient_checkpointing true", "not enough: stage 3, ", "not enough: stage 3, "],
        ["--per_device_train_batch_size 1", "not enough: stage 3, ", "not enough: stage 3, "],
        ["--master_dtype bfloat16", "not enough: stage 3, ", "not enough: stage 3, "],
        ["--nproc 16", "not enough: stage 3, ", "fits: stage 3, "],
        ["--zero_stage 3 --offload_optimizer_device cpu", "not enough: stage 3, ", "fits: stage 3, "],
        ["--max_length 512", "not enough: stage 3, ", "fits: stage 3, "],
    ];
    assert_eq!(rows.len(), expected.len(), "{out}");
    for (row, expected) in rows.iter().zip(&expected) {
        assert!(row.iter().zip(expected).all(|(cell, expected)| cell.starts_with(expected)), "{row:?}\n{out}");
        assert!(row == expected || row[1..].iter().all(|cell| cell.ends_with("iB")), "{row:?}");
    }
    assert_eq!(rows[1][1], rows[1][2], "nothing stands above the first change");
    assert!(!out.contains("Not even"), "{out}");
}

#[test]
fn where_no_number_of_ranks_is_enough_that_is_told() {
    let words = ["--nproc", "8", "plan", "--model", "llama-70b", "--bf16", "--gpu-memory", "2GiB"];
    let out = answered(&words);
    for part in [
        "  --nproc 4096 ",
        "  --max_length 128 ",
        "Not even 4,096 ranks are enough: with the changes above, a rank then still needs 9.50 GiB",
    ] {
        assert!(out.contains(part), "{part:?} is missing in:\n{out}");
    }
    assert!(!out.contains("  fits: "), "{out}");
}

#[test]
fn the_configuration_is_told_in_its_own_words_and_how_to_write_the_advice() {
    let told = |memory: &str, more: &[&str]| {
        let words = ["--nproc", "4", "plan", "--model", "llama-7b", "--bf16", "--gpu-memory", memory];
        answered(&[&words[..], more].concat())
    };
    let hybrid = ["fsdp_config.fsdp_sharding_strategy=HYBRID_SHARD", "parallelism_config_dp_replicate_size=2"];
    let hybrid = hybrid.map(|entry| ["--set", entry]).concat();
    for (memory, more, part) in [
        (
            "80GiB",
            &hybrid[..],
            "The configuration has fsdp_config.fsdp_sharding_strategy: HYBRID_SHARD (--set fsdp_config.fsdp_sharding_strategy), \
             stage 3 in 2 copies: pass --zero_stage 1 (FSDP has no name for it).",
        ),
        (
            "40GiB",
            &hybrid[..],
            "The configuration's 2 copies need 56.1 GiB and do not fit: for one copy, remove \
             parallelism_config_dp_replicate_size, and write FULL_SHARD for HYBRID_SHARD.",
        ),
        (
            "200GiB",
            &["--fsdp_sharding_strategy", "SHARD_GRAD_OP"][..],
            "SHARD_GRAD_OP (flag --fsdp_sharding_strategy), stage 3: pass --zero_stage 0 in its place (NO_SHARD).",
        ),
        (
            "40GiB",
            &["--fsdp_sharding_strategy", "NO_SHARD"][..],
            "stage 0: pass --zero_stage 3 in its place (FULL_SHARD).",
        ),
        (
            "80GiB",
            &["--zero_stage", "2"][..],
            "zero_stage: 2 (flag --zero_stage), stage 2: pass --zero_stage 1 in its place.",
        ),
        ("80GiB", &[][..], "The configuration has stage 0, the default: pass --zero_stage 1."),
        ("30GiB", &["--fsdp_sharding_strategy", "SHARD_GRAD_OP"][..], "  --zero_stage 3 (FULL_SHARD) "),
        ("30GiB", &["--fsdp_sharding_strategy", "SHARD_GRAD_OP"][..], "(--zero_stage N; 0 is NO_SHARD, 3 FULL_SHARD)"),
    ] {
        let out = told(memory, more);
        assert!(out.contains(part), "{more:?}: {part:?} is missing in:\n{out}");
    }
    let right = told("80GiB", &["--zero_stage", "1"]);
    assert!(!right.contains("The configuration"), "{right}");
}

#[test]
fn copies_without_a_stage_are_planned_at_stage_3() {
    let copies = ["--parallelism_config_dp_replicate_size", "2"];
    let words = ["--nproc", "4", "plan", "--model", "llama-7b", "--gpu-memory", "80GiB"];
    let out = answered(&[&words[..], &copies].concat());
    assert!(out.lines().any(|line| line.starts_with("3 × 2 copies")), "{out}");
    for part in [
        "note: no stage is set: parallelism_config.parallelism_config_dp_replicate_size: 2 (flag \
         --parallelism_config_dp_replicate_size) is planned at stage 3; train needs --zero_stage 3",
        "stage 3 in 2 copies: pass --zero_stage 1 in its place and remove --parallelism_config_dp_replicate_size.",
    ] {
        assert!(out.contains(part), "{part:?} is missing in:\n{out}");
    }
    // What is wrong with the copies themselves is still told, and a stage that was set stands.
    let three = ["plan", "--model", "llama-7b", "--nproc", "4", "--parallelism_config_dp_replicate_size", "3"];
    assert!(refused(&three).contains("3 does not divide 4"));
    assert!(refused(&[&words[..], &copies, &["--zero_stage", "1"]].concat()).contains("disagree"));
}

#[test]
fn what_is_advised_beside_a_flag_is_what_train_takes() {
    let flags = ["--zero_stage", "3", "--parallelism_config_dp_replicate_size", "2"];
    let words = ["--nproc", "4", "plan", "--model", "llama-7b", "--gpu-memory"];
    let out = answered(&[&words[..], &["80GiB"], &flags].concat());
    let part = "pass --zero_stage 1 in its place and remove --parallelism_config_dp_replicate_size.";
    assert!(out.contains(part), "{out}");
    // Copies that do not fit: fewer of them come first.
    let out = answered(&[&words[..], &["20GiB"], &flags].concat());
    let first = out.lines().skip_while(|line| !line.starts_with("  change")).nth(1).unwrap_or_default();
    assert!(
        first.starts_with("  --parallelism_config_dp_replicate_size 1 (in place of 2)  not enough: stage 3, "),
        "{out}"
    );
    assert!(out.contains("leaves the 2 copies as they are") && out.contains("dp_shard_size must go"), "{out}");
}

#[test]
fn offloading_has_a_stage_and_host_memory_counts_beside_gpus() {
    let gpu = ["--nproc", "8", "plan", "--model", "llama-7b", "--gpu-memory", "80GiB", "--bf16"];
    let cpu = ["--offload_optimizer_device", "cpu"];
    let out = answered(&[&gpu[..], &cpu].concat());
    for part in [
        "note: no stage is set: deepspeed_config.offload_optimizer_device: cpu (flag --offload_optimizer_device) is \
         planned at stage 1; train needs --zero_stage 1",
        "host   masters and moments of one rank, by row: -, 9.41 GiB, 9.41 GiB, 9.41 GiB",
        "take stage 1: it is the lowest whose optimizer state is sharded",
    ] {
        assert!(out.contains(part), "{part:?} is missing in:\n{out}");
    }
    assert!(!out.contains("in host memory already"), "{out}");
    let copied = answered(&[&gpu[..], &cpu, &["--zero_stage", "3"]].concat());
    assert!(!copied.contains("note: "), "{copied}");
    // On the CPU the way out is files, and it is written whole.
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 65536,
        "intermediate_size": 262144, "num_hidden_layers": 200, "num_attention_heads": 512}"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let (code, out, err) = launch(folder.path(), &["--nproc", "2", "plan", "--model_name_or_path", "."]);
    let part = "--offload_optimizer_device nvme --offload_optimizer_nvme_path FOLDER  not enough: stage ";
    assert!(code == 0 && out.contains(&format!("  --zero_stage 3 {part}")), "{out}{err}");
}

#[test]
fn rows_beyond_the_positions_of_the_model_are_noted() {
    let out = answered(&["plan", "--model", "llama-7b", "--max_length", "8192"]);
    assert!(out.contains("note: max_length is 8192 tokens, and the model's context is 4096"), "{out}");
}

#[test]
fn without_a_memory_there_is_no_verdict_and_hybrid_is_a_row() {
    let out = answered(&["--nproc", "8", "plan", "--model", "llama-13b", "--bf16", "--zero_stage", "3"]);
    assert!(out.contains("sent/step\n") && out.contains("give --gpu-memory SIZE"), "{out}");
    let hybrid = ["plan", "--model", "llama-13b", "--set", "distributed_type=FSDP", "--nproc", "8", "--set"];
    let out = answered(&[&hybrid[..], &["parallelism_config_dp_replicate_size=2"]].concat());
    assert!(out.lines().any(|line| line.starts_with("3 × 2 copies")), "{out}");
}

#[test]
fn json_has_every_number() {
    let words = ["plan", "--model", "llama-7b", "--nproc", "4", "--bf16", "--gpu-memory", "80GB", "--json"];
    let value: serde_json::Value = serde_json::from_str(&answered(&words)).unwrap();
    assert_eq!(value["model"]["parameters"], 6_738_415_616u64);
    assert_eq!(value["plans"].as_array().unwrap().len(), 4);
    assert_eq!(value["plans"][3]["stage"], 3);
    assert!(value["plans"][3]["gather_buffers"].as_u64().unwrap() > 0);
    assert_eq!(value["memory"]["usable"], 72_000_000_000u64);
    assert_eq!(value["memory"]["fits"], serde_json::json!([false, true, true, true]));
    assert_eq!(value["advice"]["stage"]["stage"], 1);
}

/// The dotted paths of all values in `value`, with `[]` for each element of a list.
fn paths(value: &serde_json::Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            let dot = if path.is_empty() { "" } else { "." };
            fields.iter().for_each(|(name, value)| paths(value, &format!("{path}{dot}{name}"), found));
        }
        serde_json::Value::Array(elements) => {
            let path = format!("{path}[]");
            match elements.as_slice() {
                [] => drop(found.insert(path)),
                elements => elements.iter().for_each(|element| paths(element, &path, found)),
            }
        }
        _ => drop(found.insert(path.to_owned())),
    }
}

#[test]
fn every_field_of_the_json_is_documented_and_no_other() {
    let questions = [
        "--gpu-memory 80GB --bf16",
        "--gpu-memory 2GB --fsdp_sharding_strategy HYBRID_SHARD_ZERO2 --parallelism_config_dp_replicate_size 2",
        "--fsdp_auto_wrap_policy SIZE_BASED_WRAP",
    ];
    let mut printed = BTreeSet::new();
    for question in questions {
        let words = format!("plan --model llama-7b --nproc 8 --json {question}");
        let out = answered(&words.split(' ').collect::<Vec<_>>());
        paths(&serde_json::from_str(&out).unwrap(), "", &mut printed);
    }
    let document = include_str!("../../docs/planning.md");
    let section = document.split_once("\n## JSON\n").unwrap().1.split("\n## ").next().unwrap();
    let fields = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let documented: BTreeSet<String> =
        fields.flat_map(|cell| cell.trim_end_matches('`').split("`, `")).map(str::to_owned).collect();
    assert_eq!(printed, documented);
}

#[test]
fn a_folder_needs_its_config_alone_and_this_machine_is_the_measure() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let config = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160,
        "num_hidden_layers": 3, "num_attention_heads": 4, "tie_word_embeddings": true}"#;
    std::fs::write(model.join("config.json"), config).unwrap();
    std::fs::write(folder.path().join("job.yaml"), "training:\n  model_name_or_path: model\n  eval_strategy: epoch\n")
        .unwrap();
    let (code, out, err) = launch(folder.path(), &["plan", "--config", "job.yaml", "--nproc", "2"]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for part in [
        "model  model, 162,240 parameters\n",
        "2 ranks on the CPU",
        "take stage 0",
        "this machine's memory over its ranks",
    ] {
        assert!(out.contains(part), "{part:?} is missing in:\n{out}");
    }
    // A folder for files is no part of the question.
    let files = ["--zero_stage", "3", "--offload_optimizer_device", "nvme", "--offload_optimizer_nvme_path", "no/such"];
    let (code, out, err) = launch(folder.path(), &[&["plan", "--config", "job.yaml"], &files[..]].concat());
    assert!(code == 0 && out.contains("files  masters and moments"), "{out}{err}");
    let (code, _, err) = launch(folder.path(), &["plan", "--model_name_or_path", "nowhere"]);
    assert!(code == 2 && err.contains("nowhere: there is no such folder; the network must not be asked"), "{err}");
}

#[test]
fn what_cannot_be_planned_is_told() {
    for (words, part) in [
        (&["plan"][..], "no model is named\nhint: pass --model_name_or_path FOLDER"),
        (&["plan", "--model", "llama-9b"], "did you mean llama-7b?"),
        (&["plan", "--model", "llama-7b", "--model_name_or_path", "x"], "both name a model"),
        (&["plan", "--model", "llama-7b", "--gpu-memory", "80 apples"], "`apples` is no unit"),
        (&["plan", "--model", "llama-7b", "--gpu-memory", "80"], "less than 1 MiB\nhint: did you mean 80GiB?"),
        (&["plan", "--model", "llama-7b", "--gpu-memory", "-5GiB"], "it is negative\nhint: did you mean 5GiB?"),
        (&["plan", "--model", "llama-7b", "--nproc", "0"], "--nproc is 0, which is not allowed: a job has from 1"),
        (&["plan", "--model", "llama-7b", "--nproc", "-2"], "4294967295 processes\nhint: pass --nproc 1 or more"),
        (&["plan", "--model", "llama-7b", "--set", "lerning_rate=1"], "unknown key lerning_rate"),
        (&["plan", "--model", "llama-7b", "--zero_stage", "4"], "4"),
        (&["plan", "--model", "llama-7b", "--resum"], "--resum"),
        (&["--timeout", "3", "plan", "--model", "llama-7b"], "--timeout has no meaning for plan"),
    ] {
        let err = refused(words);
        assert!(err.contains(part), "{words:?}: {part:?} is missing in:\n{err}");
    }
}
