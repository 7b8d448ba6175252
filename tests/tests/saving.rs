//! When checkpoints are saved, which stay, and which becomes the model.

use std::path::Path;

use zerofold_tests::{Metrics, Scene, checkpoints, fixture};

const MODEL: &str = "tiny-llama";
const JOB: &str = "--nproc 2 --zero_stage 3 --per_device_train_batch_size 5 --learning_rate 1e-3";

/// The steps of a run that are saved.
fn saved(run: &Path) -> Vec<u64> {
    let steps = checkpoints(run).into_iter().filter(|step| step.join("manifest.json").is_file());
    let number = |step: std::path::PathBuf| step.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok();
    steps.filter_map(number).collect()
}

#[test]
fn a_signal_asks_for_a_checkpoint_and_the_run_goes_on() {
    let scene = Scene::new();
    let run = scene.path("run");
    let words = "--max_steps 100000 --save_strategy no --lr_scheduler_type constant";
    let mut running = scene.train(MODEL, "run", JOB).words(words).start();
    running.wait_for("a step", || (Metrics::of(&run).count() >= 1).then_some(()));
    let mut newest = 0;
    for _ in 0..2 {
        running.signal(libc::SIGUSR1);
        newest = running.wait_for("a newer checkpoint", || saved(&run).last().copied().filter(|&step| step > newest));
    }
    let asked = scene.launch("checkpoint").adjust(|command| {
        command.arg(&run);
    });
    let ended = asked.start().finish();
    assert_eq!(ended.code, Some(0), "{ended}");
    let told: u64 =
        ended.out.trim().strip_prefix("checkpoint of step ").unwrap().split(':').next().unwrap().parse().unwrap();
    assert!(told > newest, "{ended}");
    newest = told;
    running.wait_for("more steps", || (Metrics::of(&run).count() as u64 > newest + 3).then_some(()));
    running.signal(libc::SIGTERM);
    let ended = running.finish();
    assert_eq!(ended.code, Some(143), "{ended}");
    ended.assert_says(&["SIGUSR1: a checkpoint is saved after the current step"]);
    assert_eq!(saved(&run).len(), 3, "one for each request: {:?}", saved(&run));
    assert_eq!(saved(&run).last(), Some(&newest));
    scene.train(MODEL, "run", JOB).words("--max_steps 1 --resume").run().assert_done();
}

#[test]
fn as_many_checkpoints_stay_as_are_asked_for() {
    let scene = Scene::new();
    let words = "--max_steps 7 --save_steps 1 --save_total_limit 2 --save_keep_every 3";
    scene.train(MODEL, "run", JOB).words(words).run().assert_done();
    assert_eq!(saved(&scene.path("run")), [3, 6, 7]);
    scene.train(MODEL, "all", JOB).words("--max_steps 3 --save_steps 1 --save_total_limit 0").run().assert_done();
    assert_eq!(saved(&scene.path("all")), [1, 2, 3]);
}

#[test]
fn a_full_state_dict_is_a_model_beside_each_checkpoint() {
    let scene = Scene::new();
    let words = "--fsdp_state_dict_type FULL_STATE_DICT --max_steps 6 --save_steps 2 --save_total_limit 2";
    let ended = scene.train(MODEL, "run", JOB).words(words).run();
    ended.assert_done();
    assert!(!ended.err.contains("no model beside"), "{ended}");
    let run = scene.path("run");
    assert_eq!(saved(&run), [4, 6], "a step goes with its model");
    let weights = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    let steps = checkpoints(&run);
    assert!(weights(&steps[1].join("model")) == weights(&run.join("model")), "the last step's is the run's");
    let export = |command: &mut std::process::Command| {
        command.arg(&steps[0]);
    };
    scene.launch("export").with("--output", scene.path("export")).adjust(export).run().assert_done();
    assert!(weights(&steps[0].join("model")) == weights(&scene.path("export")));
    // What resumes, verifies and begins again does not mind.
    scene.train(MODEL, "run", JOB).words(words).words("--max_steps 7 --resume").run().assert_done();
    assert_eq!(saved(&run), [6, 7]);
}

/// A learning rate that soon makes things worse: the best checkpoint is an early one.
#[test]
fn the_best_checkpoint_stays_and_becomes_the_model() {
    let scene = Scene::new();
    let train = |run: &str, steps: u32| {
        let words = "--eval_strategy steps --eval_steps 1 --save_steps 1 --save_total_limit 1 --load_best_model_at_end \
                     --learning_rate 0.3 --lr_scheduler_type constant_with_warmup --warmup_steps 12";
        let job = scene.train(MODEL, run, JOB).words(words).words(&format!("--max_steps {steps}"));
        job.with("--eval_dataset", fixture("data/rows.jsonl"))
    };
    let ended = train("run", 6).run();
    ended.assert_done();
    let run = scene.path("run");
    let loss = |evaluation: &serde_json::Value| evaluation["eval_loss"].as_f64().unwrap();
    let evaluations = Metrics::of(&run).evaluations();
    let best = evaluations.iter().min_by(|one, other| loss(one).total_cmp(&loss(other))).unwrap();
    let best = best["step"].as_u64().unwrap();
    assert!((1..6).contains(&best), "the rate is to be such that the best is not the last: {evaluations:?}");
    assert_eq!(saved(&run), [best, 6]);
    assert!(ended.out.contains(&format!("(of step {best}, the best of those that were evaluated)")), "{ended}");

    // The model is that of a run that ended there, which has the same steps.
    let short = scene.train(MODEL, "short", JOB).words(&format!("--max_steps {best} --learning_rate 0.3"));
    short.words("--lr_scheduler_type constant_with_warmup --warmup_steps 12").run().assert_done();
    let model = |run: &str| std::fs::read(scene.path(run).join("model/model.safetensors")).unwrap();
    assert!(model("run") == model("short"));

    // What was the best is known after going on as well.
    let ended = train("run", 8).words("--resume").run();
    ended.assert_done();
    assert_eq!(saved(&run), [best, 8]);
    assert!(model("run") == model("short"));
}

#[test]
fn a_best_checkpoint_that_is_gone_costs_no_model() {
    let scene = Scene::new();
    // So high a rate that every step is worse than the one before: the first checkpoint is the best.
    let best = "--save_steps 2 --eval_steps 2 --eval_strategy steps --load_best_model_at_end --save_total_limit 1 \
                --learning_rate 30 --lr_scheduler_type constant";
    let train = |words: &str| {
        let held_out = fixture("data/rows.jsonl");
        scene
            .train(MODEL, "run", "--nproc 2 --zero_stage 3")
            .with("--eval_dataset", held_out)
            .words(best)
            .words(words)
            .run()
    };
    train("--max_steps 6").assert_done();
    let run = scene.path("run");
    let steps = saved(&run);
    assert_eq!(steps.len(), 2, "the best and the newest: {steps:?}");
    let shard = checkpoints(&run)[0].join("rank-00000-of-00002.g1.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let ended = train("--max_steps 8 --resume");
    ended.assert_done();
    let told = format!("warning: the best checkpoint so far, of step {}, cannot become the model: ", steps[0]);
    ended.assert_says(&[&told, "has the hash", "the best is looked for anew"]);
    assert!(run.join("model/model.safetensors").is_file());
}

#[test]
fn who_asks_for_a_checkpoint_hears_why_there_is_none() {
    let scene = Scene::new();
    let run = scene.path("run");
    let words = "--max_steps 100000 --save_strategy no --lr_scheduler_type constant";
    let mut running = scene.train(MODEL, "run", JOB).words(words).start();
    let newest = running.wait_for("steps", || Some(Metrics::of(&run).count()).filter(|&count| count >= 1));
    // Files in the way of the steps to come, whichever is saved.
    let checkpoints = run.join("checkpoints");
    for step in newest..newest + 4000 {
        std::fs::write(checkpoints.join(format!("step-{step:08}")), "").unwrap();
    }
    let ask = |command: &mut std::process::Command| {
        command.arg(&run);
    };
    scene.launch("checkpoint").adjust(ask).start().finish().assert_failed(2, &["the save failed: ", "step-"]);
    assert!(!running.has_ended(), "training goes on");
    running.signal(libc::SIGTERM);
    running.finish();
}
