//! Several sources of rows: their shares, their losses, and going on bit for bit.

use std::path::Path;

use serde_json::Value;
use zerofold_tests::{Curve, Job, Metrics, Scene, assert_close, fixture, json};

const MODEL: &str = "tiny-llama";

/// 192 rows of token ids, and 40 conversations.
const ROWS: usize = 192;
const CHATS: usize = 40;

/// The two sources, with what more is said of each.
fn sources(of_rows: &str, of_chats: &str) -> String {
    let (rows, chats) = (fixture("data/rows.jsonl"), fixture("data/chat.jsonl"));
    format!("[{{path: {}{of_rows}}}, {{path: {}{of_chats}}}]", rows.display(), chats.display())
}

fn train<'a>(scene: &'a Scene, run: &str, words: &str, dataset: &str) -> Job<'a> {
    scene.train(MODEL, run, "--save_strategy no").words(words).with("--dataset", dataset)
}

/// A place in a line of numbers.
fn loss(line: &Value, key: &str, label: &str) -> f64 {
    line[key][label].as_f64().unwrap_or(f64::NAN)
}

#[test]
fn each_source_has_the_loss_that_it_has_alone() {
    let scene = Scene::new();
    let evaluate = |name: &str, words: &str, dataset: &str| {
        let job = scene.train(MODEL, name, "--max_steps 1 --save_strategy no --eval_on_start").words(words);
        job.with("--eval_dataset", dataset).run().assert_done();
        Metrics::of(&scene.path(name)).evaluations().remove(0)
    };
    let alone = |name: &str, file: &str| evaluate(name, "", &fixture(file).display().to_string());
    let (rows, chats) = (alone("rows", "data/rows.jsonl"), alone("chats", "data/chat.jsonl"));
    let tokens = |line: &Value| line["eval_supervised_tokens"].as_f64().unwrap();
    let all = (tokens(&rows), tokens(&chats));
    let mean =
        (rows["eval_loss"].as_f64().unwrap() * all.0 + chats["eval_loss"].as_f64().unwrap() * all.1) / (all.0 + all.1);
    for (name, words) in [
        ("one", ""),
        ("three", "--nproc 3 --zero_stage 3 --per_device_eval_batch_size 5"),
        ("packed", "--nproc 2 --eval_packing true --max_length 256"),
        ("flat", "--nproc 2 --padding_free true"),
    ] {
        let both = evaluate(name, words, &sources("", ", label: the chats"));
        assert_close(name, &both["eval_loss_by_source"]["rows"], &rows["eval_loss"], 1e-5);
        assert_close(name, &both["eval_loss_by_source"]["the chats"], &chats["eval_loss"], 1e-5);
        assert_close(name, &both["eval_loss"], &mean.into(), 1e-5);
        assert_eq!(tokens(&both), all.0 + all.1);
    }
}

#[test]
fn an_epoch_has_its_share_of_each_source() {
    let scene = Scene::new();
    let steps = |name: &str, words: &str, dataset: &str, told: &str| {
        let ended = train(&scene, name, &format!("--num_train_epochs 1 {words}"), dataset).run();
        ended.assert_done();
        assert!(ended.out.contains(told), "{told} is missing\n{ended}");
        Metrics::of(&scene.path(name)).steps()
    };
    // All of both.
    let told = "mix    an epoch has 192 of 192 rows of rows (82.8 %), 40 of 40 rows of chat (17.2 %)";
    let all = steps("all", "", &sources("", ""), told);
    assert_eq!(all.len(), (ROWS + CHATS).div_ceil(8));
    // Until the smaller one is used up: 40 of it are a half.
    let told = "an epoch has 40 of 192 rows of rows (50.0 %), 40 of 40 rows of chat (50.0 %)";
    let halves = steps("halves", "--train_sampling_strategy sequential", &sources(", weight: 1", ", weight: 1"), told);
    assert_eq!(halves.len(), 10);
    // In sequence every step has four of each.
    let finite = |line: &Value, label: &str| loss(line, "loss_by_source", label).is_finite();
    assert!(halves.iter().all(|step| finite(step, "rows") && finite(step, "chat")));
    // Until the larger one is.
    let told = "an epoch has 192 of 192 rows of rows (75.0 %), 64 of 40 rows of chat (25.0 %)";
    let words = "--stopping_strategy all_exhausted --nproc 2 --zero_stage 2";
    assert_eq!(steps("until-all", words, &sources(", weight: 3", ", weight: 1"), told).len(), 256 / 16);
    // By the roots of 192 and 40: 192 × √40 / √192 is 87.6.
    let words = "--mixing_temperature 2 --stopping_strategy all_exhausted";
    let warm = steps("warm", words, &sources("", ""), "88 of 40 rows of chat (31.4 %)");
    assert_eq!(warm.len(), (192 + 88) / 8);
}

#[test]
fn the_loss_of_a_step_is_that_of_its_sources() {
    let scene = Scene::new();
    let one = |name: &str, words: &str| {
        let words = format!("--learning_rate 0 --num_train_epochs 1 {words}");
        train(&scene, name, &words, &sources(", weight: 1", ", weight: 1")).run().assert_done();
        Metrics::of(&scene.path(name)).steps()
    };
    let base = one("base", "--per_device_train_batch_size 8");
    for (name, words) in [
        ("accumulated", "--per_device_train_batch_size 2 --gradient_accumulation_steps 4"),
        ("ranks", "--nproc 2 --per_device_train_batch_size 4 --zero_stage 3"),
        ("flat", "--nproc 2 --per_device_train_batch_size 4 --padding_free true"),
    ] {
        let steps = one(name, words);
        assert_eq!(steps.len(), base.len());
        for (step, expected) in steps.iter().zip(&base) {
            assert_close(name, &step["loss"], &expected["loss"], 1e-5);
            for label in ["rows", "chat"] {
                let (found, expected) = (&step["loss_by_source"][label], &expected["loss_by_source"][label]);
                match expected.is_null() {
                    true => assert!(found.is_null()),
                    false => assert_close(name, found, expected, 1e-5),
                }
            }
            let (rows, chat) = (loss(step, "loss_by_source", "rows"), loss(step, "loss_by_source", "chat"));
            let all = step["loss"].as_f64().unwrap();
            assert!(rows.is_nan() || chat.is_nan() || (rows.min(chat)..=rows.max(chat)).contains(&all), "{step}");
        }
    }
}

/// Rows of every step, shares and losses of each source, against plain PyTorch. Expected values: scripts/fixtures/mixing.py.
#[test]
fn a_mixture_is_learned_as_in_pytorch() {
    let expected = json(&fixture("mixing.json"));
    let scene = Scene::new();
    for (name, curve) in expected["curves"].as_object().unwrap() {
        // Of each file as many rows as the fixture took.
        let mut sources = Vec::new();
        for (place, (label, file)) in expected["sources"].as_object().unwrap().iter().enumerate() {
            let text = std::fs::read_to_string(fixture(file.as_str().unwrap())).unwrap();
            let most = curve["rows"][place].as_u64().map_or(usize::MAX, |rows| rows as usize);
            let path =
                scene.write(&format!("{name}-{label}.jsonl"), text.lines().take(most).collect::<Vec<_>>().join("\n"));
            let weight = curve["weights"].get(place).map_or(String::new(), |weight| format!(", weight: {weight}"));
            sources.push(format!("{{path: {}, label: {label}{weight}}}", path.display()));
        }
        let sources = format!("[{}]", sources.join(", "));
        let pytorch = Curve::of(&expected["recipe"], &curve["steps"]);
        for (words, about) in [
            ("--zero_stage 0 --per_device_train_batch_size 8", "stage 0"),
            ("--nproc 2 --zero_stage 3 --per_device_train_batch_size 2 --gradient_accumulation_steps 2", "stage 3"),
        ] {
            let about = format!("{name}, {about}");
            let mut job = train(&scene, &about, &format!("--train_sampling_strategy sequential {words}"), &sources);
            job = job.words(&pytorch.flags());
            for key in ["stopping_strategy", "mixing_temperature"] {
                if let Some(value) = curve.get(key) {
                    job = job.with(&format!("--{key}"), value.to_string().trim_matches('"'));
                }
            }
            job.run().assert_done();
            pytorch.assert_equals(&about, &Metrics::of(&scene.path(&about)), 1e-5);
        }
    }
}

fn model_bytes(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("model/model.safetensors")).expect("a model was written")
}

#[test]
fn a_resumed_run_goes_on_in_the_same_mixture() {
    let scene = Scene::new();
    let start = |run: &str, words: &str, dataset: &str| {
        // More than one epoch of 80 rows.
        let job =
            scene.train(MODEL, run, "--nproc 2 --per_device_train_batch_size 4 --learning_rate 1e-3 --zero_stage 3");
        job.words("--max_steps 14 --save_steps 5").words(words).with("--dataset", dataset).run()
    };
    let halves = sources(", weight: 1", ", weight: 1");
    start("whole", "", &halves).assert_done();
    scene.copy(&scene.path("whole"), "resumed");
    start("resumed", "--resume step-00000005", &halves).assert_done();
    assert_eq!(Metrics::of(&scene.path("resumed")).exact(), Metrics::of(&scene.path("whole")).exact());
    assert!(model_bytes(&scene.path("resumed")) == model_bytes(&scene.path("whole")), "the models differ");
    // As many rows a step by other processes, and another number of them: the rows that come next.
    scene.copy(&scene.path("whole"), "alone");
    start("alone", "--resume step-00000005 --nproc 1 --per_device_train_batch_size 8", &halves).assert_done();
    for (step, expected) in
        Metrics::of(&scene.path("alone")).steps().iter().zip(Metrics::of(&scene.path("whole")).steps())
    {
        assert_close("one rank", &step["loss"], &expected["loss"], 1e-4);
        assert_eq!(step["tokens"], expected["tokens"]);
    }
    scene.copy(&scene.path("whole"), "wider");
    start("wider", "--resume step-00000005 --per_device_train_batch_size 5 --max_steps 12", &halves).assert_done();
    scene.copy(&scene.path("whole"), "other");
    for (dataset, told) in [
        (sources(", weight: 2", ", weight: 1"), "takes [40, 40] of sources of [192, 40] there, [80, 40] of sources of"),
        (sources("", ""), "takes [40, 40] of sources of [192, 40] there, all of each source here"),
        (sources(", weight: 4", ", weight: 4"), ""),
    ] {
        let ended = start("other", "--resume step-00000010", &dataset);
        match told {
            "" => ended.assert_done(),
            told => ended.assert_failed(2, &[told, "hint: "]),
        }
    }
}

#[test]
fn what_is_written_says_whose_loss_it_is() {
    let scene = Scene::new();
    let job = train(
        &scene,
        "run",
        "--max_steps 2 --logging_steps 1 --report_to tensorboard --eval_strategy epoch",
        &sources("", ""),
    );
    let ended = job.with("--eval_dataset", sources("", "")).run();
    ended.assert_done();
    for told in ["held-out loss after step 2: ", "  loss 6.1840 [rows 6.1840, chat –]  lr ", ", chat 6.1099], "] {
        assert!(ended.out.contains(told), "{told} is missing\n{ended}");
    }
    let metrics = Metrics::of(&scene.path("run"));
    assert!(metrics.steps().iter().all(|step| step["loss_by_source"].as_object().is_some_and(|it| it.len() == 2)));
    assert!(metrics.evaluations()[0]["eval_loss_by_source"].as_object().is_some_and(|it| it.len() == 2));
    // Of one source there is nothing to tell apart.
    scene.train(MODEL, "single", "--max_steps 1 --save_strategy no").run().assert_done();
    assert!(Metrics::of(&scene.path("single")).steps()[0].get("loss_by_source").is_none());
}

#[test]
fn packs_are_mixed_and_resumed_too() {
    let scene = Scene::new();
    let start = |run: &str, words: &str, dataset: &str| {
        let words =
            format!("--nproc 2 --packing true --max_length 128 --per_device_train_batch_size 1 --max_steps 12 {words}");
        scene.train(MODEL, run, &words).words("--save_steps 5 --learning_rate 1e-3").with("--dataset", dataset).run()
    };
    let halves = sources(", weight: 1", ", weight: 1");
    let whole = start("whole", "", &halves);
    whole.assert_done();
    let mix = whole.out.lines().find(|line| line.starts_with("mix ")).unwrap_or_default();
    assert!(mix.contains(" packs of chat (50.0 %)"), "{whole}");
    scene.copy(&scene.path("whole"), "resumed");
    start("resumed", "--resume step-00000005", &halves).assert_done();
    assert_eq!(Metrics::of(&scene.path("resumed")).exact(), Metrics::of(&scene.path("whole")).exact());
    // Grouped by length, each epoch's share of each source is the same.
    let words = "--train_sampling_strategy group_by_length --max_steps 10 --per_device_train_batch_size 8";
    train(&scene, "grouped", words, &halves).run().assert_done();
    let steps = Metrics::of(&scene.path("grouped")).steps();
    assert!(steps.iter().any(|step| loss(step, "loss_by_source", "chat").is_finite()));
}
