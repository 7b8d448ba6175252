//! `launch compare` with the real worker. How fast this machine is, no test may say.

use std::collections::BTreeSet;

use serde_json::Value;
use zerofold_tests::{Job, Process, Running, Scene, fixture, json, model, signal};

/// A comparison of a fixture model over two ranks, written to the folder `compare` of the scene.
fn compare<'a>(scene: &'a Scene, words: &str) -> Job<'a> {
    scene
        .launch("--nproc 2 compare --gradient_checkpointing false --per_device_train_batch_size 2")
        .with("--model_name_or_path", model("tiny-llama"))
        .with("--dataset", fixture("data/rows.jsonl"))
        .with("--output_dir", scene.path("compare"))
        .words(words)
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no {name}: {value:#}"))
}

/// Where its values stand, such as `rows[].measured.step_seconds`.
fn paths(value: &Value) -> BTreeSet<String> {
    let join = |name: &str, of: &Value| -> Vec<String> {
        let dot = |path: &String| if path.is_empty() || path.starts_with('[') { "" } else { "." };
        paths(of).iter().map(|path| format!("{name}{}{path}", dot(path))).collect()
    };
    match value {
        Value::Object(fields) => fields.iter().flat_map(|(name, of)| join(name, of)).collect(),
        Value::Array(elements) => elements.iter().flat_map(|of| join("[]", of)).collect(),
        _ => BTreeSet::from([String::new()]),
    }
}

fn names(scene: &Scene) -> Vec<String> {
    let entries = std::fs::read_dir(scene.path("compare")).expect("the folder is there");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// What must be so of a row that was measured.
#[track_caller]
fn assert_row(row: &Value, ceiling: f64) {
    let (planned, measured) = (&row["planned"], &row["measured"]);
    let speed = number(measured, "tokens_per_second");
    let [lowest, highest] =
        ["tokens_per_second_lowest", "tokens_per_second_highest"].map(|name| number(measured, name));
    assert!(0.0 < lowest && lowest <= speed && speed <= highest, "{row:#}");
    assert_eq!(measured["tokens_per_second_by_round"].as_array().unwrap().len(), 2);
    let flops = number(planned, "model_flops_per_step") / number(measured, "step_seconds");
    assert!((number(measured, "share_of_gemm_rate") / (flops / ceiling) - 1.0).abs() < 1e-9, "{row:#}");
    for (name, tolerance) in [("peak_bytes_per_rank", 0.2), ("sent_bytes_per_step", 0.06)] {
        // The model is tiny, so that what a plan leaves out (counts, norms, scratch, copies of short inputs) is seen.
        let ratio = number(measured, name) / number(planned, name);
        assert!((ratio - 1.0).abs() < tolerance, "{name}: {row:#}");
    }
    let exposed = number(measured, "exposed_communication_share_of_step");
    assert!((0.0..=1.0).contains(&exposed), "{row:#}");
}

/// The ranks of the run at work, by rank. (Those that measure the ceilings come before it has a folder.)
fn at_work(scene: &Scene, running: &mut Running) -> Vec<Process> {
    running.wait_for("the ranks of a run", || {
        let mut ranks = scene.processes();
        ranks.retain(|process| process.rank.is_some());
        ranks.sort_by_key(|process| process.rank);
        let begun = scene.path("compare/compare.run/data/train.safetensors").exists();
        (begun && ranks.len() == 2).then_some(ranks)
    })
}

#[test]
fn stages_are_compared_and_written_down() {
    let scene = Scene::new();
    // Four steps of 8 rows are more than the file has.
    let ended = compare(&scene, "--stages 0,3 --accumulation 2 --backend shm --save_strategy steps").run();
    ended.assert_done();
    assert_eq!(names(&scene), ["compare.html", "compare.json", "launch.lock"]);
    let found = json(&scene.path("compare/compare.json"));
    assert_eq!((&found["machine"]["ranks"], &found["method"]["rounds"]), (&2.into(), &2.into()));
    let ceiling = number(&found["ceilings"], "gemm_flops_per_second_all_ranks");
    let rows = found["rows"].as_array().expect("rows");
    let stages: Vec<_> = rows.iter().map(|row| row["stage"].as_u64()).collect();
    assert_eq!(stages, [Some(0), Some(3)]);
    for row in rows {
        assert_eq!((&row["backend"], &row["gradient_accumulation_steps"]), (&"shm".into(), &2.into()));
        assert_row(row, ceiling);
    }
    let sent = |index: usize| number(&rows[index]["measured"], "sent_bytes_per_step");
    assert!(sent(1) > sent(0), "stage 3 gathers for every micro-batch: {found:#}");
    let choice = &found["choices"][0];
    assert!(stages.contains(&choice["stage"].as_u64()), "{found:#}");
    let reason = choice["reason"].as_str().expect("a reason");
    for part in ["0 (DDP)", "of GEMM rate", &format!("choice: {reason}")] {
        assert!(ended.out.contains(part), "{part}\n{ended}");
    }
    ended.assert_says(&[
        "stage 0 over shm, accumulation 2, round 1 of 2: ",
        "stage 3 over shm, accumulation 2, round 2 of 2: ",
        " left)",
        "note: --save_strategy has no effect: a comparison neither evaluates nor saves",
        "compare.html",
    ]);
    let page = std::fs::read_to_string(scene.path("compare/compare.html")).expect("a page");
    for part in
        ["<title>Sharding compared: tiny-llama</title>", "<h2>Speed</h2>", "<svg ", "prefers-color-scheme: dark"]
    {
        assert!(page.contains(part), "{part} is not in the page");
    }
    // No network, no scripts, nothing left of the template.
    for part in ["http:", "https:", "<script", "src=", "url(", "{{"] {
        assert!(!page.contains(part), "{part} is in the page");
    }
    let document = include_str!("../../docs/comparing.md");
    for path in paths(&found) {
        assert!(document.contains(&format!("`{path}`")), "docs/comparing.md does not tell of {path}");
    }
    // What is there is not written over, neither by a comparison nor by a run.
    let again = compare(&scene, "--stages 0").run();
    again.assert_failed(2, &["there is a comparison in it", "hint: remove it, or give another folder by --output_dir"]);
    assert_eq!(json(&scene.path("compare/compare.json")), found);
}

#[test]
fn a_failing_run_tells_its_own_error_first() {
    let scene = Scene::new();
    let mut running = compare(&scene, "--stages 1 --steps 1000000").start();
    let victim = at_work(&scene, &mut running)[1];
    signal(victim.pid, libc::SIGKILL);
    let ended = running.finish();
    let death = format!("error: rank 1 (pid {}) was killed by SIGKILL", victim.pid);
    ended.assert_failed(1, &[&death, "the comparison ended at stage 1 over shm, accumulation 1, round 1 of 2"]);
    assert!(ended.report().starts_with(&death), "{ended}");
    scene.assert_nobody_left();
    // What it left is not in the way of the next one.
    assert!(names(&scene).contains(&"compare.run".to_owned()));
    compare(&scene, "--stages 1 --rounds 1 --steps 1 --json").run().assert_done();
    assert_eq!(names(&scene), ["compare.html", "compare.json", "launch.lock"]);
}

#[test]
fn ctrl_c_ends_everything() {
    let scene = Scene::new();
    let mut running = compare(&scene, "--stages 1 --steps 1000000").start();
    at_work(&scene, &mut running);
    signal(running.pid(), libc::SIGINT);
    let ended = running.finish();
    assert_eq!(ended.code, Some(130), "{ended}");
    ended.assert_says(&["Ctrl-C: ", "stopped; the comparison is not complete and nothing was written"]);
    scene.assert_nobody_left();
    assert_eq!(names(&scene), ["launch.lock"]);
}

#[test]
fn what_is_wrong_is_told_before_anything_runs() {
    let scene = Scene::new();
    for (words, parts) in [
        (
            "--stages 0,1 --offload_optimizer_device nvme --offload_optimizer_nvme_path .",
            ["stage 0 cannot be compared: ", "hint: leave it out: --stages 1"],
        ),
        ("--backend nccl", ["nccl is for GPUs", "hint: "]),
        ("--dataset nowhere.jsonl", ["nowhere.jsonl", "cannot open"]),
        ("--max_length 1", ["max_length", "2 or more"]),
    ] {
        compare(&scene, words).run().assert_failed(2, &parts);
        assert!(!scene.path("compare").exists(), "{words}");
    }
}
