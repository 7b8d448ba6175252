//! What the data become before training: token ids, masks, and the order of rows.

use std::path::Path;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use zerofold_tests::{Metrics, Scene, SmallDisk, fixture, json, model, not_tested};

/// Rows of token ids and labels, as a run folder holds them.
fn tokenised(path: &Path) -> Vec<(Vec<i64>, Vec<i64>)> {
    let content = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&content).unwrap();
    let words = |name: &str| -> Vec<i64> {
        let bytes = file.tensor(name).unwrap().data().to_vec();
        bytes.chunks_exact(4).map(|word| i64::from(i32::from_le_bytes(word.try_into().unwrap()))).collect()
    };
    let offsets = file.tensor("offsets").unwrap().data().to_vec();
    let offsets: Vec<usize> =
        offsets.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()) as usize).collect();
    let (ids, labels) = (words("input_ids"), words("labels"));
    offsets.windows(2).map(|ends| (ids[ends[0]..ends[1]].to_vec(), labels[ends[0]..ends[1]].to_vec())).collect()
}

/// Sixty lines that double a text are few steps, and all memory there is.
#[test]
fn a_template_that_takes_all_memory_ends_the_program_with_words() {
    let scene = Scene::new();
    for bomb in [
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ messages }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ messages }}",
    ] {
        let template = scene.write("bomb.jinja", bomb);
        let job = scene.launch("data check").with("--data", fixture("data/chat.jsonl"));
        let ended = job.with("--model", model("tiny-llama")).with("--chat_template_path", template).run();
        ended.assert_failed(1, &["chat template", "more than 1024 MiB of memory", "hint: "]);
    }
}

/// A run's own configuration says it, so it cannot be refused.
#[test]
fn assistant_only_loss_of_rows_without_an_assistant_is_told_and_changes_nothing() {
    let scene = Scene::new();
    let texts = scene.write("texts.jsonl", "{\"text\": \"The boat is late.\"}\n".repeat(8));
    let train = |run: &str, words: &str| {
        let job = scene.launch(&format!("train --max_steps 1 {words}")).with("--model", model("tiny-llama"));
        let ended = job.with("--dataset", &texts).with("--output_dir", scene.path(run)).run();
        ended.assert_done();
        ended
    };
    assert!(!train("run", "").err.contains("assistant_only_loss"));
    let told = "has no effect: texts have no assistant";
    assert!(train("asked", "--assistant_only_loss true").err.contains(told));
    let config = scene.path("run/config.resolved.yaml");
    let again = scene.launch("evaluate").with("--config", config).with("--dataset", &texts).run();
    again.assert_done();
    assert!(again.err.contains(told), "{again}");
}

#[test]
fn conversations_become_the_ids_and_masks_of_transformers() {
    let scene = Scene::new();
    let chat = fixture("data/chat.jsonl");
    let job = scene.train("tiny-llama", "run", "--nproc 2 --max_steps 1 --save_strategy no").with("--dataset", &chat);
    job.with("--eval_dataset", &chat).run().assert_done();
    let expected = json(&fixture("data/chat_tokens.json"));
    let numbers = |value: &Value| -> Vec<i64> {
        value.as_array().unwrap().iter().map(|number| number.as_i64().unwrap()).collect()
    };
    let expected: Vec<(Vec<i64>, Vec<i64>)> = expected["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let ids = numbers(&row["input_ids"]);
            let labels = ids.iter().zip(numbers(&row["assistant_mask"]));
            let labels = labels.map(|(&id, mask)| if mask == 1 { id } else { -100 }).collect();
            (ids, labels)
        })
        .collect();
    assert_eq!(expected.len(), 40);
    for name in ["train", "eval"] {
        let rows = tokenised(&scene.path("run/data").join(format!("{name}.safetensors")));
        assert_eq!(rows.len(), expected.len());
        for (index, (row, expected)) in rows.iter().zip(&expected).enumerate() {
            assert_eq!(row, expected, "row {index} of {name}");
        }
    }
}

#[test]
fn the_first_example_is_shown_with_its_mask() {
    let scene = Scene::new();
    let job = scene.train("tiny-llama", "run", "--max_steps 1").with("--dataset", fixture("data/chat.jsonl"));
    let ended = job.run();
    ended.assert_done();
    assert!(ended.out.contains("What is the capital of France?<|im_end|>"), "{ended}");
    assert!(ended.out.contains("⟦Paris.<|im_end|>⟧"), "{ended}");
}

/// How many tokens each of a run's steps had: with one row a step, the lengths of the rows in the order of their use.
fn lengths(scene: &Scene, run: &str, words: &str) -> Vec<u64> {
    let job = scene.train("tiny-llama", run, "--num_train_epochs 2 --save_strategy no").words(words);
    job.run().assert_done();
    Metrics::of(&scene.path(run)).steps().iter().map(|step| step["tokens"].as_u64().unwrap()).collect()
}

#[test]
fn every_row_is_used_once_per_epoch_in_the_order_asked_for() {
    let scene = Scene::new();
    // 15 rows of lengths 2 to 16, all different.
    let row =
        |length: usize| format!("{{\"input_ids\": {:?}}}\n", (0..length).map(|id| id % 7 + 3).collect::<Vec<_>>());
    let data: String = (0..15).map(|index| row(2 + (index * 4) % 15)).collect();
    let in_file: Vec<u64> = (0..15).map(|index| 2 + (index * 4) % 15).collect();
    let path = scene.write("lengths.jsonl", data);
    let lengths = |run: &str, words: &str| {
        let words = format!("--dataset {} {words}", path.display());
        lengths(&scene, run, &words)
    };
    let sorted = |lengths: &[u64]| {
        let mut lengths = lengths.to_vec();
        lengths.sort_unstable();
        lengths
    };
    let sequential = lengths("sequential", "--per_device_train_batch_size 1");
    assert_eq!(sequential, [&in_file[..], &in_file[..]].concat());
    let random = lengths("random", "--per_device_train_batch_size 1 --train_sampling_strategy random");
    let (first, second) = random.split_at(15);
    assert_eq!((sorted(first), sorted(second)), (sorted(&in_file), sorted(&in_file)));
    assert!(first != in_file && second != in_file && first != second, "{random:?}");
    let other_seed = lengths("seed", "--per_device_train_batch_size 1 --train_sampling_strategy random --seed 7");
    assert_ne!(other_seed, random);

    // The same order whatever the number of ranks: 4 rows a step, the last step of each epoch has 3.
    let sums = |lengths: &[u64]| -> Vec<u64> {
        lengths.chunks(15).flat_map(|epoch| epoch.chunks(4).map(|step| step.iter().sum())).collect()
    };
    for (nproc, batch) in [(1, 4), (2, 2), (4, 1)] {
        let words = format!("--nproc {nproc} --per_device_train_batch_size {batch} --train_sampling_strategy random");
        assert_eq!(lengths(&format!("ranks-{nproc}"), &words), sums(&random), "{nproc} ranks");
    }
}

/// A copy of tiny-llama without a chat template and without an end of turn, whose generations end in two ways.
fn untrained_model(scene: &Scene) -> std::path::PathBuf {
    let folder = scene.copy(&model("tiny-llama"), "model");
    let write = |name: &str, value: &Value| std::fs::write(folder.join(name), value.to_string()).unwrap();
    let mut tokenizer = json(&folder.join("tokenizer_config.json"));
    for key in ["chat_template", "eos_token", "pad_token"] {
        tokenizer.as_object_mut().unwrap().remove(key);
    }
    write("tokenizer_config.json", &tokenizer);
    let mut config = json(&folder.join("config.json"));
    config["eos_token_id"] = json!(0);
    write("config.json", &config);
    write("generation_config.json", &json!({"eos_token_id": [0, 5], "top_p": 0.5}));
    folder
}

/// What transformers' trainer makes of a tokenizer with a new end: `eos_token` there, its id in the model's configuration, and
/// before the others in the generation's.
#[test]
fn a_chosen_template_and_end_of_turn_are_trained_with_and_exported() {
    let scene = Scene::new();
    let folder = untrained_model(&scene);
    let train = |run: &str, words: &str| {
        let job = scene.train("tiny-llama", run, "--max_steps 1 --save_strategy no");
        job.with("--model_name_or_path", &folder).with("--dataset", fixture("data/chat.jsonl")).words(words).run()
    };
    let without = train("without", "--chat_template_path zephyr");
    without.assert_failed(2, &["has no eos_token", "hint: choose another one that fits (chatml"]);
    let unknown = train("unknown", "--chat_template_path zephyr --eos_token <end>");
    unknown.assert_failed(2, &["eos_token is \"<end>\", which is no token of this tokenizer"]);
    for name in ["zephyr", "chatml"] {
        let ended = train(name, &format!("--chat_template_path {name} --eos_token <|im_end|>"));
        ended.assert_done();
        assert!(ended.out.contains("⟦Paris.<|im_end|>⟧"), "{ended}");
        assert!(!ended.err.contains("does not learn to stop"), "{ended}");
        let exported = scene.path(name).join("model");
        let read = |name: &str| json(&exported.join(name));
        let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/data/src/template/builtin");
        let text = std::fs::read(builtin.join(format!("{name}.jinja"))).unwrap();
        assert_eq!(std::fs::read(exported.join("chat_template.jinja")).unwrap(), text, "{name}");
        let tokenizer = read("tokenizer_config.json");
        assert_eq!((&tokenizer["eos_token"], tokenizer.get("chat_template")), (&json!("<|im_end|>"), None));
        let config = read("config.json");
        assert_eq!(config["eos_token_id"], 2);
        assert_eq!(config["trained_chat_template"].as_str().map(str::len), Some(64), "{config}");
        assert_eq!(read("generation_config.json"), json!({"eos_token_id": [2, 0, 5], "top_p": 0.5}));
    }
}

#[test]
fn a_full_disk_under_the_cache_is_told_with_what_to_do() {
    let scene = Scene::new();
    let cache = scene.path("cache");
    let Some(_disk) = SmallDisk::mount(&cache, 16 << 10) else {
        return not_tested("mounting is not permitted");
    };
    let ended = scene.train("tiny-llama", "run", "--max_steps 1").run();
    let place = cache.join("datasets").display().to_string();
    ended.assert_failed(
        2,
        &[
            &place,
            "cannot write the tokenised data set: No space left on device",
            "\nhint: make room there, or name a folder of another file \
                             system by ZEROFOLD_CACHE",
        ],
    );
}

#[test]
fn what_is_said_of_training_rows_is_not_said_again_of_held_out_ones() {
    let scene = Scene::new();
    let template = "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{% endfor %}";
    let template = scene.write("plain.jinja", template);
    let messages = json!([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]);
    let row = json!({"messages": messages, "source": "here"}).to_string();
    let (data, held_out) = (scene.write("train.jsonl", &row), scene.write("test.jsonl", &row));
    let job = scene.train("tiny-llama", "run", "--max_steps 1 --save_strategy no").with("--dataset", data);
    let ended = job.with("--eval_dataset", held_out).with("--chat_template_path", template).run();
    ended.assert_done();
    for sentence in
        ["columns that are not used: source", "no supervised token ends a generation", "an answer ends without"]
    {
        let told: Vec<&str> = ended.err.lines().filter(|line| line.contains(sentence)).collect();
        assert_eq!(told.len(), 1, "{sentence}\n{ended}");
        assert!(told[0].starts_with("warning: ") && told[0].contains("train.jsonl: "), "{}", told[0]);
    }
}
