//! `launch cost` as a person runs it.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use zerofold_configs::{DeviceKind, Inputs, resolve};

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
fn answered_in(folder: &Path, line: &str) -> String {
    let (code, out, err) = launch(folder, &line.split_whitespace().collect::<Vec<_>>());
    assert_eq!((code, err.as_str()), (0, ""), "{line}\n{out}");
    out
}

#[track_caller]
fn answered(line: &str) -> String {
    answered_in(Path::new("."), line)
}

#[track_caller]
fn refused(line: &str) -> String {
    let (code, out, err) = launch(Path::new("."), &line.split_whitespace().collect::<Vec<_>>());
    assert_eq!((code, out.as_str()), (2, ""), "{line}\n{err}");
    err
}

#[track_caller]
fn json(line: &str) -> Value {
    serde_json::from_str(&answered(&format!("{line} --json"))).unwrap()
}

#[track_caller]
fn has(out: &str, parts: &[&str]) {
    for part in parts {
        assert!(out.contains(part), "{part:?} is missing in:\n{out}");
    }
}

const SEVEN: &str =
    "cost --model llama-7b --gpu a100-80gb --gpus 8 --examples 10000 --tokens-per-example 800 --epochs 3";

const SCALED: &str =
    "cost --model llama-7b --gpu h100 --bf16 --max_length 4096 --per_device_train_batch_size 1 --scale";

const BROKEN_EVEN: &str = "cost --model llama-7b --gpu a100-80gb --master_dtype bfloat16 --mixed_precision bf16 --max_length 4096 \
    --tokens-per-example 3550 --epochs 1 --examples 10000 --break-even";

#[test]
fn a_job_has_its_speed_hours_money_and_memory() {
    let out = answered(SEVEN);
    has(
        &out,
        &[
            "note: no precision is set: bfloat16 is taken",
            "note: no stage is set: 1 is taken, the lowest that fits; --stage N sets it",
            "model  llama-7b, 6.738 billion parameters\n",
            "gpus   8 x a100-80gb, 8 to a host; hardware.yaml of 2026-11-30\n",
            "data   10,000 examples of 800 tokens, 3 epochs: 24,000,000 tokens\n",
            "peak_flops             3.12e14   FLOP/s   hardware.yaml  dense operations of a GPU in the compute type\n",
            "compute_efficiency     0.78      share    default ",
            "matrix products ",
            "memory passes ",
            "communication takes ",
            " at $1.50 to $3.50 a GPU-hour\n",
            "at stage 1: fits into 67.1 GiB, 90 % of its 74.5 GiB",
        ],
    );
    // Every view but --break-even leaves out what only that one needs.
    assert!(!out.contains("tuned_tokens"), "{out}");
}

/// The figures are those of each other.
#[test]
fn figures_agree_with_each_other() {
    let value = json(&format!("{SEVEN} --price 2"));
    let number = |path: &str| value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}: {value}"));
    let rate = number("/prediction/tokens_per_second");
    assert!((rate - 8.0 * number("/prediction/tokens_per_second_per_gpu")).abs() < 1e-6 * rate);
    let seconds = number("/run/seconds");
    assert!((seconds - 60.0 - number("/run/steps") * number("/prediction/step/seconds")).abs() < 1e-6 * seconds);
    assert!((number("/run/gpu_hours") - 8.0 * seconds / 3600.0).abs() < 1e-9 * seconds);
    assert!((number("/run/money/low") - 2.0 * number("/run/gpu_hours")).abs() < 1e-9 * seconds);
    let step = |part: &str| number(&format!("/prediction/step/{part}"));
    let compute: f64 =
        ["products", "attention", "passes", "starts"].map(|part| step(&format!("compute/{part}"))).iter().sum();
    let parts = compute + step("optimizer") + step("offload") + step("exposed");
    assert!((parts / step("seconds") - 1.0).abs() < 1e-9, "{value}");
    assert_eq!(value["memory"]["usable"], 72_000_000_000u64);
    assert_eq!(value["job"]["stage"], 1);
}

#[test]
fn assumptions_are_set_and_told() {
    let out = answered(&format!("{SEVEN} --assume compute-efficiency=0.5 --assume host_memory_bandwidth=1e11"));
    has(
        &out,
        &["compute_efficiency     0.5       share    --assume ", "host_memory_bandwidth  1e11      bytes/s  --assume "],
    );
    let rate = |more: &str| json(&format!("{SEVEN} {more}"))["prediction"]["tokens_per_second"].as_f64().unwrap();
    assert!(rate("--assume compute_efficiency=0.5") < rate("--assume compute_efficiency=0.6"));
    assert!(rate("--stage 3 --assume link_bandwidth=1e9") < rate("--stage 3"));
    // Keys of a job count, by flag, --set and file.
    assert!(rate("--gradient_checkpointing false") > rate("--set gradient_checkpointing=true"));
    assert!(rate("--mixed_precision no --master_dtype float32") < rate("--bf16"));
}

#[test]
fn what_does_not_fit_is_told_with_what_to_change() {
    let out = answered("cost --model llama-70b --gpu h100 --gpus 8");
    has(
        &out,
        &[
            "does not fit into 67.1 GiB",
            "nothing fits: stage 3 needs least",
            "  --master_dtype bfloat16 ",
            "with those above",
        ],
    );
    let out = answered("cost --model llama-7b --gpu h100 --gpus 8 --stage 0");
    has(&out, &["at stage 0: does not fit", "take stage 1: it is the lowest that fits", "pass --zero_stage 1"]);
}

#[test]
fn hardware_of_ones_own_has_its_prices_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let text = "date: 2026-01-02\ngpus:\n  mine:\n    memory: 24e9\n    memory_bandwidth: 1e12\n    bf16_flops: 165e12\n    \
        float32_flops: 82e12\n    product_efficiency: 0.8\n    attention_efficiency: 0.5\n    link_bandwidth: 16e9\n    \
        host_bandwidth: 12.5e9\n";
    std::fs::write(folder.path().join("mine.yaml"), text).unwrap();
    let line = "cost --model smollm2-360m --hardware mine.yaml --gpu mine";
    has(
        &answered_in(folder.path(), line),
        &[
            "gpus   1 x mine, 1 to a host; mine.yaml of 2026-01-02",
            "note: mine.yaml has no price for mine",
            "money  no price is known",
        ],
    );
    has(&answered_in(folder.path(), &format!("{line} --price 0.4..0.6")), &["at $0.40 to $0.60 a GPU-hour"]);
    std::fs::write(folder.path().join("mine.yaml"), text.replace("memory:", "memry:")).unwrap();
    let (code, _, err) = launch(folder.path(), &line.split(' ').collect::<Vec<_>>());
    assert_eq!(code, 2);
    has(&err, &["mine.yaml:4:5: unknown key memry in gpus.mine\nhint: did you mean memory?"]);
}

#[test]
fn scale_marks_the_best_and_tells_what_overtakes_what() {
    let out = answered(SCALED);
    let rows: Vec<&str> = out.lines().skip_while(|line| !line.starts_with("GPUs ")).take(11).collect();
    assert!(rows[0].contains("stage 0") && rows[0].ends_with("hybrid  all tokens/s"), "{out}");
    assert!(rows[1].starts_with("8 ") && rows[10].starts_with("4,096 "), "{out}");
    assert!(rows[1..].iter().all(|row| row.matches('*').count() == 1), "{out}");
    has(&out, &["GPUs on, hybrid is faster than stage 3: "]);
    let value = json(SCALED);
    assert_eq!(value["scale"]["rows"].as_array().unwrap().len(), 10);
    assert_eq!(value["scale"]["rows"][9]["layouts"].as_array().unwrap().len(), 5);
}

#[test]
fn break_even_depends_on_how_much_shorter_the_prompt_gets() {
    let line =
        "cost --model llama-7b --gpu a100-80gb --master_dtype bfloat16 --max_length 4096 --tokens-per-example 3200";
    let out = answered(&format!("{line} --break-even"));
    has(&out, &["tuned_tokens  ", "prompted_input_price ", "breaks even at", "1,000,000 requests", "\ntuned "]);
    let value = json(&format!("{line} --break-even 300,1000 --requests 5000"));
    let prompts = value["break_even"]["prompts"].as_array().unwrap();
    assert_eq!((prompts.len(), prompts[0]["counts"][0]["count"].as_f64()), (2, Some(5000.0)));
    let requests = |index: usize| prompts[index]["requests"][0].as_f64().unwrap();
    assert!((requests(0) / requests(1) - 8.0).abs() < 1e-6, "100 tokens shorter against 800");
    has(&answered(&format!("{line} --break-even 100")), &[" never "]);
    has(&refused("cost --model llama-7b --gpu h200 --break-even"), &["h200 has no price\nhint: give --price"]);
}

#[test]
fn published_runs_and_the_guide_stand_beside_the_prediction() {
    let out = answered("cost --published");
    has(
        &out,
        &[
            "calibrated on the first: compute_efficiency 0.7",
            "calibrated on it",
            "held to: within 15 %",
            "source: github.com/pytorch/torchtitan",
            "350M, A100 40GB ",
            "a run of 7B, A100 80GB: the guide says $5.00 to $15.00; inside",
            "a run of 7B, H100 80GB: the guide says $4.00 to $12.00; inside",
            "70B, 8 x H100: the guide's range asks for ",
            "; of published runs, that of llama-70b did ",
        ],
    );
    assert!(!out.contains("NOT within"), "{out}");
    let value = json("cost --published");
    let runs = value["runs"].as_array().unwrap();
    for run in runs.iter().filter(|run| run["held_to"] == true) {
        assert!(run["error"].as_f64().unwrap().abs() < 0.15, "{run}");
    }
    assert_eq!(value["guide"].as_array().unwrap().len(), 7);
}

/// A run's folder as `launch train` leaves it, of this rate.
fn measured(folder: &Path, tokens_per_second: f64, device: DeviceKind) {
    let config = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32}"#;
    std::fs::create_dir_all(folder.join("model")).unwrap();
    std::fs::create_dir_all(folder.join("run")).unwrap();
    std::fs::write(folder.join("model/config.json"), config).unwrap();
    let flags = [
        ("model_name_or_path", folder.join("model").display().to_string()),
        ("dataset", "rows.jsonl".to_owned()),
        ("output_dir", folder.join("run").display().to_string()),
        ("mixed_precision", "bf16".to_owned()),
        ("zero_stage", "3".to_owned()),
        ("per_device_train_batch_size", "2".to_owned()),
        ("max_length", "2048".to_owned()),
    ];
    let flags = flags.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let mut config = resolve(&Inputs { flags, nproc: Some(8), ..Inputs::default() }).unwrap();
    config.device = device;
    config.write(&folder.join("run/config.resolved.yaml")).unwrap();
    let step = |step: u64, rate: f64| {
        format!(
            "{{\"step\":{step},\"loss\":1.0,\"tokens\":32768,\"supervised_tokens\":16384,\"tokens_per_second\":{rate}}}\n"
        )
    };
    let lines: String = (1..6).map(|number| step(number, if number == 1 { 1.0 } else { tokens_per_second })).collect();
    std::fs::write(folder.join("run/metrics.jsonl"), lines).unwrap();
}

#[test]
fn a_measured_run_calibrates() {
    let folder = tempfile::tempdir().unwrap();
    measured(folder.path(), 30_000.0, DeviceKind::Cuda);
    let line = "cost --model model --gpu h100 --gpus 8 --bf16 --stage 3 --per_device_train_batch_size 2 --max_length 2048 \
        --examples 1000 --calibrate run";
    let out = answered_in(folder.path(), line);
    has(&out, &["compute_efficiency ", "measured: run ", "speed  "]);
    // The same job but for its supervision, which is everything here and half of the tokens there.
    let value: Value = serde_json::from_str(&answered_in(folder.path(), &format!("{line} --json"))).unwrap();
    let rate = value["prediction"]["tokens_per_second"].as_f64().unwrap();
    assert!((0.95..1.0).contains(&(rate / 30_000.0)), "{rate}");
    let fails = |line: &str, parts: &[&str]| {
        let (code, out, err) = launch(folder.path(), &line.split_whitespace().collect::<Vec<_>>());
        assert_eq!((code, out.as_str()), (2, ""), "{line}\n{err}");
        has(&err, parts);
    };
    fails(&format!("{line} --assume compute_efficiency=1"), &["--calibrate and --assume compute_efficiency both set"]);
    fails(
        "cost --model model --calibrate model",
        &["--calibrate model: it is no run\nhint: give the output_dir of a run"],
    );
    measured(folder.path(), 1e9, DeviceKind::Cuda);
    fails(line, &["--calibrate: 125000000 tokens/s a GPU cannot be", "hint: check that the GPU"]);
    measured(folder.path(), 30_000.0, DeviceKind::Cpu);
    fails(line, &["the run computed on the CPU, which tells nothing of a h100\nhint: "]);
    std::fs::write(folder.path().join("run/metrics.jsonl"), "").unwrap();
    measured(folder.path(), 30_000.0, DeviceKind::Cuda);
    std::fs::write(folder.path().join("run/metrics.jsonl"), "{\"step\":1}\n").unwrap();
    fails(line, &["it has no step that can be measured by\nhint: "]);
}

#[test]
fn wrong_words_are_told() {
    for (line, part) in [
        ("cost", "no model is named\nhint: "),
        ("cost --model llama-8c", "did you mean llama-8b?"),
        (
            "cost --model llama-7b --gpu h10",
            "--gpu h10: hardware.yaml has no GPU of this name\nhint: did you mean h100",
        ),
        ("cost --model llama-7b --gpus 0", "0 is not in 1.."),
        ("cost --model llama-7b --gpus 9999999999", "which is not allowed"),
        ("cost --model llama-7b --gpus 2 --nproc 2", "--gpus and --nproc name the same\nhint: give one of the two"),
        ("cost --model llama-7b --stage 2 --zero_stage 2", "--stage and --zero_stage name the same"),
        ("cost --model llama-7b --stage 4", "zero_stage is 4"),
        ("cost --model llama-7b --price 3..2", "--price 3..2: it is no price"),
        ("cost --model llama-7b --price many", "hint: write dollars of a GPU-hour"),
        ("cost --model llama-7b --assume weather", "--assume weather: expected NAME=NUMBER\nhint: "),
        ("cost --model llama-7b --assume weather=1", "--assume: no assumption is called weather\nhint: there are "),
        ("cost --model llama-7b --assume overlap_cost=-1", "overlap_cost is -1, which is not allowed"),
        ("cost --model llama-7b --break-even 5,x", "--break-even 5,x: expected whole numbers"),
        ("cost --model llama-7b --requests 5", "--break-even"),
        ("cost --model llama-7b --scale --break-even", "cannot be used with"),
        ("cost --model llama-7b --hardware none.yaml", "cannot read none.yaml"),
        ("cost --model llama-7b --calibrate none", "--calibrate none: it is no run"),
        ("cost --resume --model llama-7b", "unexpected argument '--resume'"),
        ("--timeout 5 cost --model llama-7b", "--timeout has no meaning for cost"),
    ] {
        has(&refused(line), &[part]);
    }
}

/// The dotted paths of all values in `value`, with `[]` for each element of a list.
fn paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            let dot = if path.is_empty() { "" } else { "." };
            fields.iter().for_each(|(name, value)| paths(value, &format!("{path}{dot}{name}"), found));
        }
        Value::Array(elements) => {
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
    let mut printed = BTreeSet::new();
    for line in [SEVEN, "cost --model llama-7b --scale", &format!("{SEVEN} --break-even"), "cost --published"] {
        paths(&json(line), "", &mut printed);
    }
    let document = include_str!("../../docs/cost.md");
    let section = document.split_once("\n## JSON\n").unwrap().1.split("\n## ").next().unwrap();
    let fields = section.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let documented: BTreeSet<String> =
        fields.flat_map(|cell| cell.trim_end_matches('`').split("`, `")).map(str::to_owned).collect();
    assert_eq!(printed, documented);
}

/// The tables in the documentation are those that are printed.
#[test]
fn what_is_printed_stands_in_the_documentation() {
    let document = include_str!("../../docs/cost.md");
    for line in ["cost --published", SCALED, BROKEN_EVEN] {
        let out = answered(line);
        // Rows of tables, but for the words before them and the assumptions, which have a table of their own there.
        let words = ["data ", "model ", "job ", "batch ", "gpus ", "assumption "];
        let is_row = |row: &&str| row.contains("  ") && !words.iter().any(|word| row.starts_with(word));
        for row in out.lines().filter(is_row).filter(|row| !row.contains(" default  ")) {
            assert!(
                document.contains(&format!("    {row}\n")),
                "{line}: docs/cost.md has no line\n    {row}\nof\n{out}"
            );
        }
    }
}

/// Each assumption stands in the documentation's table with its default.
#[test]
fn every_assumption_is_documented() {
    let document = include_str!("../../docs/cost.md");
    let value = json(SEVEN);
    for assumption in value["assumptions"].as_array().unwrap() {
        let name = assumption["name"].as_str().unwrap();
        assert!(document.contains(&format!("| `{name}` | ")), "{name}");
    }
}

#[test]
fn the_jobs_own_data_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160,
        "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}"#;
    std::fs::create_dir(folder.path().join("model")).unwrap();
    std::fs::write(folder.path().join("model/config.json"), config).unwrap();
    let rows = "{\"input_ids\": [1, 2, 3, 4]}\n{\"input_ids\": [1, 2, 3, 4, 5, 6, 7, 8]}\n".repeat(3);
    std::fs::write(folder.path().join("rows.jsonl"), rows).unwrap();
    let line = "cost --model model --dataset rows.jsonl --gpu h100 --max_length 32 --bf16";
    has(&answered_in(folder.path(), line), &["data   6 examples of 6.00 tokens, 3 epochs: 108 tokens"]);
}
