//! A job that begins with the weights of a checkpoint, and the same read by `generate` and `plan`.

use std::path::{Path, PathBuf};
use std::process::Command;

use zerofold_tests::{Metrics, Scene, fixture, model};

const STEPS: &str = "--per_device_train_batch_size 2 --max_steps 4 --save_steps 2 --learning_rate 1e-2";

fn step(run: &Path, step: u32) -> PathBuf {
    run.join("checkpoints").join(format!("step-{step:08}"))
}

/// What the steps of a job say that begins with this model.
fn losses(scene: &Scene, start: &Path, run: &str, words: &str) -> Vec<String> {
    let defaults =
        "--train_sampling_strategy sequential --per_device_train_batch_size 2 --max_steps 3 --save_strategy no";
    scene
        .launch("train")
        .with("--model", start)
        .with("--dataset", fixture("data/rows.jsonl"))
        .with("--output_dir", scene.path(run))
        .words(defaults)
        .words(words)
        .run()
        .assert_done();
    Metrics::of(&scene.path(run)).exact()
}

#[test]
fn a_job_begins_with_the_masters_of_a_checkpoint() {
    let scene = Scene::new();
    scene.train("tiny-llama-tied", "first", STEPS).words("--nproc 2 --zero_stage 3").run().assert_done();
    let first = scene.path("first");
    let exact = scene.path("exact");
    let arguments = |command: &mut Command| {
        command.arg(&first);
    };
    scene.launch("export --dtype float32").with("--output", &exact).adjust(arguments).run().assert_done();
    // The run means its newest checkpoint, and where it lies does not matter: it tells its model itself.
    let copied = scene.copy(&step(&first, 4), "somewhere/step-00000004");
    let expected = losses(&scene, &exact, "from-export", "--nproc 2 --zero_stage 1");
    for (name, start) in [("from-run", &first), ("from-copy", &copied)] {
        assert_eq!(losses(&scene, start, name, "--nproc 2 --zero_stage 1"), expected, "{name}");
    }
    let other = losses(&scene, &step(&first, 2), "from-second", "--nproc 2 --zero_stage 1");
    assert_ne!(other, expected, "another step has other weights");
    let source = losses(&scene, &model("tiny-llama-tied"), "from-source", "--nproc 2 --zero_stage 1");
    assert_ne!(source, expected);
    // What was begun from a checkpoint saves, goes on and exports like any other.
    let run = scene.path("again");
    let again = |words: &str| {
        let job = scene
            .launch("train")
            .with("--model", &first)
            .with("--output_dir", &run)
            .with("--dataset", fixture("data/rows.jsonl"));
        job.words(STEPS).words("--nproc 2").words(words).run()
    };
    let begun = again("");
    begun.assert_done();
    assert!(begun.out.contains(", weights of "), "{begun}");
    again("--max_steps 6 --resume").assert_done();
}

#[test]
fn generate_and_plan_take_a_checkpoint() {
    let scene = Scene::new();
    scene.train("tiny-llama", "first", STEPS).words("--nproc 2 --zero_stage 2").run().assert_done();
    let first = scene.path("first");
    let arguments = |command: &mut Command| {
        command.arg(&first);
    };
    scene.launch("export --dtype float32").with("--output", scene.path("exact")).adjust(arguments).run().assert_done();
    let generate = |folder: &Path| {
        let ended = scene.launch("generate --prompt abc --max_new_tokens 24").with("--model", folder).run();
        ended.assert_done();
        ended.out
    };
    assert_eq!(generate(&first), generate(&scene.path("exact")));
    scene.launch("plan --nproc 2").with("--model_name_or_path", &first).run().assert_done();
}

#[test]
fn what_cannot_be_begun_with_is_refused_before_anything_starts() {
    let scene = Scene::new();
    let source = scene.copy(&model("tiny-llama"), "source");
    let train = |start: &Path, run: &str, words: &str| {
        let job = scene.launch("train").with("--model", start).with("--output_dir", scene.path(run));
        job.with("--dataset", fixture("data/rows.jsonl")).words(STEPS).words(words).run()
    };
    train(&source, "first", "").assert_done();
    let refused = |why: &str| {
        let ended = train(&scene.path("first"), "second", "");
        ended.assert_failed(2, &[why]);
        assert!(!scene.path("second").exists(), "something was begun");
    };
    std::fs::write(source.join("chat_template.jinja"), "{{ messages }}").unwrap();
    refused("is not that of the checkpoint of step 4");
    std::fs::remove_file(source.join("chat_template.jinja")).unwrap();
    std::fs::rename(&source, scene.path("moved")).unwrap();
    refused("no config.json is there any more");
    std::fs::rename(scene.path("moved"), &source).unwrap();
    let shard = step(&scene.path("first"), 4).join("rank-00000-of-00001.g1.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    refused("has the hash");
    std::fs::remove_dir_all(scene.path("first/checkpoints")).unwrap();
    refused("has no checkpoint");
}
