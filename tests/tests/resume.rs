//! Going on from a checkpoint: the same numbers, bit for bit, as if nothing had happened.

use std::path::Path;

use zerofold_tests::{Clock, Ended, Metrics, Scene, assert_nothing_half_written, checkpoints, fixture, json, model};

const MODEL: &str = "tiny-llama";

/// Rows in random order; 192 rows at 20 a step make epochs of 10 steps, the last one short.
const BATCHES: &str = "--nproc 2 --per_device_train_batch_size 5 --gradient_accumulation_steps 2 --save_steps 5 \
                       --train_sampling_strategy random --weight_decay 0.1 --learning_rate 1e-3";
/// What the learning rate is in a step does not depend on how many follow, and it is another one in each.
const WARM_UP: &str = "--lr_scheduler_type constant_with_warmup --warmup_steps 10000";
/// More than one epoch, with a schedule that ends with the run.
const TWELVE_STEPS: &str = "--max_steps 12 --lr_scheduler_type cosine --warmup_steps 3";

fn model_bytes(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("model/model.safetensors")).expect("a model was written")
}

/// Both runs wrote the same steps, and the same model.
#[track_caller]
fn assert_identical(one: &Path, other: &Path) {
    assert_eq!(Metrics::of(one).exact(), Metrics::of(other).exact());
    assert!(model_bytes(one) == model_bytes(other), "the models differ");
}

/// A whole run of twelve steps in `whole`, with checkpoints of steps 5, 10 and 12.
fn twelve_steps(scene: &Scene, stage: u32) {
    let job = scene.train(MODEL, "whole", BATCHES).words(TWELVE_STEPS);
    job.words(&format!("--zero_stage {stage}")).run().assert_done();
    assert_eq!(Metrics::of(&scene.path("whole")).count(), 12);
}

/// A copy of `whole`, gone on with.
fn resume_copy(scene: &Scene, run: &str, words: &str) -> Ended {
    scene.copy(&scene.path("whole"), run);
    scene.train(MODEL, run, BATCHES).words(TWELVE_STEPS).words(words).run()
}

#[test]
fn a_run_stopped_by_sigterm_goes_on_as_if_it_had_not_been() {
    let scene = Scene::new();
    let (stopped, whole) = (scene.path("stopped"), scene.path("whole"));
    let train = |run: &str, steps: usize| {
        let job = scene.train(MODEL, run, BATCHES).words(WARM_UP).words("--zero_stage 3");
        job.words(&format!("--max_steps {steps}"))
    };
    let mut running = train("stopped", 100_000).start();
    // The second epoch has begun.
    running.wait_for("12 steps", || (Metrics::of(&stopped).count() >= 12).then_some(()));
    running.signal(libc::SIGTERM);
    let ended = running.finish();
    assert_eq!(ended.code, Some(143), "{ended}");
    ended.assert_says(&["newest checkpoint: ", "--resume"]);
    scene.assert_nobody_left();
    assert_nothing_half_written(&stopped);
    let done = Metrics::of(&stopped).count();
    let saved = checkpoints(&stopped).pop().expect("a checkpoint");
    assert!(saved.ends_with(format!("step-{done:08}")), "{done} steps are done, but {} is the newest", saved.display());

    train("stopped", done + 6).words("--resume").run().assert_done();
    train("whole", done + 6).run().assert_done();
    assert_eq!(Metrics::of(&whole).count(), done + 6);
    assert_identical(&stopped, &whole);
}

#[test]
fn dropout_goes_on_with_the_masks_of_the_steps_to_come() {
    let scene = Scene::new();
    let source = scene.copy(&fixture("models").join(MODEL), "dropout");
    let mut config = json(&source.join("config.json"));
    config["attention_dropout"] = 0.2.into();
    std::fs::write(source.join("config.json"), config.to_string()).unwrap();
    let train = |run: &str, words: &str| {
        let job = scene.launch("train").with("--model", &source).with("--dataset", fixture("data/rows.jsonl"));
        let job = job.with("--output_dir", scene.path(run)).words("--zero_stage 3").words(BATCHES).words(TWELVE_STEPS);
        job.words(words).run().assert_done();
    };
    train("whole", "");
    scene.copy(&scene.path("whole"), "resumed");
    train("resumed", "--resume step-00000005");
    assert_identical(&scene.path("resumed"), &scene.path("whole"));
    scene.train(MODEL, "without", BATCHES).words(TWELVE_STEPS).words("--zero_stage 3").run().assert_done();
    let (with, without) = (scene.path("whole"), scene.path("without"));
    assert_ne!(Metrics::of(&with).exact()[0], Metrics::of(&without).exact()[0], "nothing is dropped");
}

#[test]
fn an_earlier_step_can_be_gone_on_from_at_another_stage() {
    let scene = Scene::new();
    twelve_steps(&scene, 2);
    resume_copy(&scene, "same", "--zero_stage 2 --resume step-00000005").assert_done();
    assert_identical(&scene.path("same"), &scene.path("whole"));
    // Stages 2 and 3 do the same additions.
    resume_copy(&scene, "other", "--zero_stage 3 --resume step-00000005").assert_done();
    assert_identical(&scene.path("other"), &scene.path("whole"));
}

#[test]
fn checkpoints_that_are_not_whole_are_skipped_with_the_reason() {
    let scene = Scene::new();
    twelve_steps(&scene, 0);
    let cut = scene.copy(&scene.path("whole"), "cut");
    // A save that was never finished, and one that lost the end of a file.
    let [_, tenth, twelfth] = &checkpoints(&cut)[..] else { panic!("three checkpoints: {:?}", checkpoints(&cut)) };
    std::fs::remove_file(twelfth.join("manifest.json")).unwrap();
    let shard = tenth.join("rank-00001-of-00002.g1.safetensors");
    let file = std::fs::File::options().write(true).open(&shard).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    let ended = scene.train(MODEL, "cut", BATCHES).words(TWELVE_STEPS).words("--resume").run();
    ended.assert_done();
    ended.assert_says(&["step-00000012: ", "manifest.json", "step-00000010: ", "rank-00001-of-00002.g1.safetensors"]);
    assert!(ended.out.contains("resuming after step 5 "), "{ended}");
    assert_identical(&cut, &scene.path("whole"));
    assert_nothing_but_whole_checkpoints(&cut);
}

/// What was in the way was cleared, and every step saved anew.
fn assert_nothing_but_whole_checkpoints(run: &Path) {
    for step in ["step-00000005", "step-00000010", "step-00000012"] {
        assert!(run.join("checkpoints").join(step).join("manifest.json").is_file(), "{step}");
    }
}

#[test]
fn what_does_not_fit_the_checkpoint_is_one_clear_error() {
    let scene = Scene::new();
    twelve_steps(&scene, 1);
    let refused = |run: &str, words: &str, code, parts: &[&str]| {
        resume_copy(&scene, run, &format!("--zero_stage 1 {words}")).assert_failed(code, parts);
        let kept = |name: &str| {
            (std::fs::read(scene.path(name).join("metrics.jsonl")).unwrap(), model_bytes(&scene.path(name)))
        };
        assert!(kept(run) == kept("whole"), "the run was touched");
        for step in ["step-00000005", "step-00000010", "step-00000012"] {
            assert!(scene.path(run).join("checkpoints").join(step).join("manifest.json").exists(), "{step} is gone");
        }
    };
    refused("seed", "--seed 7 --resume step-00000005", 2, &["step-00000005", "seed"]);
    refused("no-such-step", "--resume step-00000007", 2, &["step-00000007"]);
    // Another model: the earlier configuration tells, or where it is gone the parameters.
    let other = |run: &str| {
        scene.copy(&scene.path("whole"), run);
        scene.train("tiny-llama-tied", run, BATCHES).words(TWELVE_STEPS).words("--zero_stage 1 --resume step-00000005")
    };
    other("model")
        .run()
        .assert_failed(2, &["the run in it trains ", "tiny-llama-tied", "hint: resume with the same model"]);
    std::fs::remove_file(scene.path("whole").join("config.resolved.yaml")).unwrap();
    let parts = [
        "step-00000005: it was saved from another model: lm_head.weight is no such parameter in the model, and [320, 64] in the \
         checkpoint",
        "hint: resume with the model_name_or_path that saved it",
    ];
    other("unknown-model").run().assert_failed(2, &parts);
}

#[test]
fn other_tokens_are_other_data_and_other_settings_are_told() {
    let scene = Scene::new();
    twelve_steps(&scene, 1);
    let text = std::fs::read_to_string(fixture("data/rows.jsonl")).unwrap();
    let turned: Vec<&str> = text.lines().rev().collect();
    let turned = scene.write("turned.jsonl", turned.join("\n"));
    let whole =
        |words: &str| scene.train(MODEL, "whole", BATCHES).words(TWELVE_STEPS).words("--zero_stage 1").words(words);
    let refused = whole("--resume").with("--dataset", &turned).run();
    refused.assert_failed(2, &["other data: as many rows, and other tokens in them (dataset, tokenizer, "]);
    let ended = whole("--resume --max_steps 13 --learning_rate 2e-3 --seed 42").run();
    ended.assert_done();
    ended.assert_says(&["note: changed since the checkpoint: ", "learning_rate 0.001 → 0.002", "max_steps 12 → 13"]);
    let ended = whole("--resume --max_steps 5").run();
    ended.assert_done();
    ended.assert_says(&["the run is at step 13 and is to have 5 steps: nothing is trained"]);
}

/// A template that tells the day tells that of the run's first start: the rows of a run stay what they were.
#[test]
fn the_day_in_a_template_is_that_of_the_first_start() {
    let scene = Scene::new();
    let folder = scene.copy(&model(MODEL), "model");
    let template = "{{ strftime_now('%d %b %Y') }}{% for message in messages %}{% generation %}\
                    {{ message.role + message.content + '<|im_end|>' }}{% endgeneration %}{% endfor %}";
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let clock = Clock::of(&scene);
    let train = |run: &str, words: &str| -> (Ended, String) {
        let job = scene.train(MODEL, run, "--per_device_train_batch_size 2 --save_steps 1").words(words);
        let job = job.with("--model_name_or_path", &folder).with("--dataset", fixture("data/chat.jsonl"));
        let ended = clock.seen_by(job).run();
        ended.assert_done();
        let config = std::fs::read_to_string(scene.path(run).join("config.resolved.yaml")).unwrap();
        let date = config.lines().find_map(|line| line.strip_prefix("template_date: "));
        (ended, date.expect("the day of the template").to_owned())
    };
    let (_, first) = train("run", "--max_steps 1");
    clock.jump(86_400);
    let (ended, resumed) = train("run", "--max_steps 2 --resume");
    assert_eq!(resumed, first);
    assert!(ended.out.contains("tokenised data taken from cache"), "{ended}");
    let (ended, other) = train("other", "--max_steps 1");
    assert_ne!(other, first);
    assert!(!ended.out.contains("tokenised data taken from cache"), "{ended}");
}

/// The losses of two runs, step by step.
#[track_caller]
fn assert_same_losses(one: &Path, other: &Path) {
    let losses = |run: &Path| -> Vec<f64> {
        Metrics::of(run).steps().iter().map(|step| step["loss"].as_f64().unwrap()).collect()
    };
    let (one, other) = (losses(one), losses(other));
    assert_eq!(one.len(), other.len());
    for (step, (one, other)) in (1..).zip(one.iter().zip(&other)) {
        assert!(((one - other) / one).abs() <= 1e-6, "step {step}: {one} and {other}");
    }
}

#[test]
fn a_run_goes_on_with_any_number_of_ranks_and_any_units() {
    let scene = Scene::new();
    twelve_steps(&scene, 3);
    let same_batch = [
        ("one rank", "--nproc 1 --gradient_accumulation_steps 4 --zero_stage 0"),
        ("four ranks", "--nproc 4 --gradient_accumulation_steps 1 --zero_stage 2"),
        ("one unit", "--zero_stage 3 --fsdp_auto_wrap_policy NO_WRAP"),
    ];
    for (run, words) in same_batch {
        let ended = resume_copy(&scene, run, &format!("{words} --resume step-00000005"));
        ended.assert_done();
        assert!(ended.out.contains("resuming after step 5 from "), "{ended}");
        assert_same_losses(&scene.path(run), &scene.path("whole"));
    }
}

/// 192 rows at 20 a step; after 5 steps 92 are left of the epoch.
#[test]
fn with_another_global_batch_the_next_rows_come_next() {
    let scene = Scene::new();
    let train = |words: &str| scene.train(MODEL, "run", BATCHES).words(WARM_UP).words(words).run();
    train("--zero_stage 3 --num_train_epochs 1 --max_steps 5").assert_done();
    let ended = train("--zero_stage 3 --nproc 3 --num_train_epochs 1 --resume");
    ended.assert_done();
    ended.assert_says(&["note: a step takes 30 rows from here on and took 20 before, so the run has 9 steps in all"]);
    let steps = Metrics::of(&scene.path("run")).steps();
    let tokens = |steps: &[serde_json::Value]| steps.iter().map(|step| step["tokens"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(steps.len(), 9);
    assert_eq!(steps[8]["epoch"].as_f64(), Some(1.0));
    // Every row once: as many tokens as in an epoch that nothing interrupted.
    scene.train(MODEL, "whole", BATCHES).words(WARM_UP).words("--num_train_epochs 1").run().assert_done();
    assert_eq!(tokens(&steps), tokens(&Metrics::of(&scene.path("whole")).steps()));
}

/// One flipped bit in the newest checkpoint: it is not gone on from.
#[test]
fn a_damaged_checkpoint_is_never_gone_on_from() {
    let scene = Scene::new();
    twelve_steps(&scene, 3);
    let checkpoints = scene.path("whole").join("checkpoints");
    let newest = checkpoints.join("step-00000012");
    let shard = newest.join("rank-00001-of-00002.g1.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let by_name = resume_copy(&scene, "by-name", "--zero_stage 3 --resume step-00000012");
    by_name.assert_failed(2, &["step-00000012", "hash"]);
    let newest_whole = resume_copy(&scene, "newest-whole", "--zero_stage 3 --resume");
    newest_whole.assert_done();
    assert_identical(&scene.path("newest-whole"), &scene.path("whole"));
}

#[test]
fn folders_that_cannot_be_used_are_refused_untouched() {
    let scene = Scene::new();
    let run = scene.path("run");
    let train = |words: &str| scene.train(MODEL, "run", BATCHES).words("--max_steps 2").words(words).run();
    train("--resume").assert_failed(2, &["no checkpoint to resume from", "hint: "]);
    std::fs::create_dir_all(&run).unwrap();
    std::fs::write(run.join("notes.txt"), "mine").unwrap();
    train("--resume").assert_failed(2, &["no checkpoint to resume from", "hint: "]);
    train("").assert_failed(2, &["the folder is not empty", "notes.txt", "--resume"]);
    let left: Vec<_> = std::fs::read_dir(&run).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["notes.txt"]);

    // A finished run is not overwritten either.
    std::fs::remove_file(run.join("notes.txt")).unwrap();
    train("").assert_done();
    let before = model_bytes(&run);
    let again = scene.train(MODEL, "run", BATCHES).words("--max_steps 2").with("--dataset", fixture("data/none.jsonl"));
    again.run().assert_failed(2, &["the folder is not empty", "--resume"]);
    assert!(model_bytes(&run) == before);
}

#[test]
fn a_decay_branches_off_a_step_of_the_stable_phase() {
    let scene = Scene::new();
    let train = |run: &str, steps: u32, kwargs: &str, words: &str| {
        let job = scene.train(MODEL, run, BATCHES).words("--zero_stage 2 --lr_scheduler_type warmup_stable_decay");
        let job = job.words("--warmup_steps 2").words(&format!("--max_steps {steps}")).words(words);
        job.with("--lr_scheduler_kwargs", kwargs).run()
    };
    let decay = "{num_decay_steps: 4, decay_type: 1-sqrt, min_lr_ratio: 0.1}";
    train("stable", 7, "{num_stable_steps: 1000, num_decay_steps: 100}", "").assert_done();
    scene.copy(&scene.path("stable"), "branch");
    let ended = train("branch", 9, decay, "--resume step-00000005");
    ended.assert_done();
    ended.assert_says(&["note: changed since the checkpoint: ", "lr_scheduler_type ", "max_steps 7 → 9"]);
    // The rates of a run whose decay is in these steps: warm-up to step 2, the highest to step 6, then down.
    let rates = |run: &str| -> Vec<f64> {
        let steps = Metrics::of(&scene.path(run)).steps();
        steps.iter().map(|step| step["learning_rate"].as_f64().expect("a rate")).collect()
    };
    let falling = |done: f64| 1e-3 * (0.1 + 0.9 * (1.0 - done.sqrt()));
    let expected = [[1e-3; 3], [falling(0.25), falling(0.5), falling(0.75)]].concat();
    let branched = rates("branch");
    assert_eq!(branched.len(), 9);
    for (found, expected) in branched[3..].iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-12, "{branched:?}");
    }
    assert_eq!(rates("stable")[2..], [1e-3; 5]);
    // The warm-up begins at the lowest rate of the decay, which the first steps of the run did not know; with the same one there,
    // all is the same to the last bit.
    train("same", 7, "{num_stable_steps: 1000, num_decay_steps: 100, min_lr_ratio: 0.1}", "").assert_done();
    train("same", 9, decay, "--resume step-00000005").assert_done();
    train("whole", 9, decay, "").assert_done();
    assert_identical(&scene.path("same"), &scene.path("whole"));
}
