//! `launch generate` against transformers' greedy answers, and a data set answered.

use serde_json::{Value, json};
use zerofold_tests::{Ended, Scene, fixture, json, model};

fn fixtures() -> Value {
    json(&fixture("generate.json"))
}

fn generate<'a>(scene: &'a Scene, model_name: &str) -> zerofold_tests::Job<'a> {
    let words = format!("generate --max_new_tokens {}", fixtures()["max_new_tokens"]);
    scene.launch(&words).with("--model", model(model_name))
}

/// The text without the line end that closes it.
fn text(ended: &Ended) -> &str {
    ended.assert_done();
    ended.out.strip_suffix('\n').unwrap_or_else(|| panic!("no line end\n{ended}"))
}

#[test]
fn greedy_text_equals_that_of_transformers() {
    let scene = Scene::new();
    let mut compared = 0;
    for (name, cases) in fixtures()["models"].as_object().unwrap() {
        for case in cases.as_array().unwrap() {
            let (Some(prompt), Some(false)) = (case["prompt"].as_str(), case["ends_turn"].as_bool()) else { continue };
            let expected = case["new_text"].as_str().unwrap();
            let ended = generate(&scene, name).with("--prompt", prompt).run();
            assert_eq!(text(&ended), expected, "{name}: {prompt:?}");
            compared += 1;
        }
    }
    assert!(compared >= 4, "{compared} cases");
}

#[test]
fn a_chat_message_goes_through_the_template() {
    let scene = Scene::new();
    let case = &fixtures()["models"]["tiny-llama"][1];
    let prompt = case["prompt"].as_str().unwrap();
    let question = "Which train stops at the lake?";
    assert!(prompt.contains(question) && prompt.ends_with("assistant\n"), "{prompt:?}");
    let ended = generate(&scene, "tiny-llama").with("--chat", question).run();
    assert_eq!(Some(text(&ended)), case["new_text"].as_str());
}

#[test]
fn a_data_set_is_answered_and_compared() {
    let scene = Scene::new();
    let row = |question: &str, answer: &str| {
        let messages = json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
        format!("{}\n", json!({"messages": messages}))
    };
    let questions = ["Which train stops at the lake?", "Name a fruit.", "Add 12 and 30."];
    let guesses: String = questions.iter().map(|question| row(question, "never said")).collect();
    let (data, answers) = (scene.write("data.jsonl", guesses), scene.path("answers/first.jsonl"));
    let run = |output| generate(&scene, "tiny-llama").with("--dataset", &data).with("--output", output).run();
    assert_eq!(text(&run(&answers)), "exact match 0/3 (0.0 %)");
    let lines = |path| -> Vec<Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let first = lines(&answers);
    assert_eq!(first.len(), 3);
    assert!(first.iter().all(|line| line["match"] == json!(false) && line["expected"] == json!("never said")));
    assert_eq!(first[0]["answer"], fixtures()["models"]["tiny-llama"][1]["new_text"]);

    // Two rows get the model's own answers.
    let rows = [
        row(questions[0], first[0]["answer"].as_str().unwrap()),
        row(questions[1], "never said"),
        row(questions[2], first[2]["answer"].as_str().unwrap()),
    ];
    scene.write("data.jsonl", rows.concat());
    let second = scene.path("second.jsonl");
    assert_eq!(text(&run(&second)), "exact match 2/3 (66.7 %)");
    let matches: Vec<Value> = lines(&second).iter().map(|line| line["match"].clone()).collect();
    assert_eq!(matches, [json!(true), json!(false), json!(true)]);
    let left: Vec<_> =
        std::fs::read_dir(scene.path("answers")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["first.jsonl"], "no partial file stays");
}

/// The model is whole on one rank, sharded over two or three; rows stand side by side or alone.
#[test]
fn ranks_answer_as_one_does() {
    let scene = Scene::new();
    let questions =
        ["Which train stops at the lake?", "Name a fruit.", "Why?", "Add 12 and 30.", "And then, what was it?"];
    let row = |question: &&str| {
        let messages = json!([{"role": "user", "content": question}, {"role": "assistant", "content": "never said"}]);
        format!("{}\n", json!({"messages": messages}))
    };
    let data = scene.write("data.jsonl", questions.iter().map(row).collect::<String>());
    let answers = |name: &str, before: &str, after: &str| {
        let words = format!("{before} generate --max_new_tokens 24 {after}");
        let job = scene.launch(&words).with("--model", model("tiny-llama")).with("--dataset", &data);
        let path = scene.path(name);
        let ended = job.with("--output", &path).run();
        assert_eq!(text(&ended), "exact match 0/5 (0.0 %)", "{words}");
        std::fs::read_to_string(path).unwrap()
    };
    let halves = "distributed_type: FSDP\nnum_processes: 3\nfsdp_config:\n  fsdp_version: 2\n  fsdp_auto_wrap_policy: \
                  TRANSFORMER_BASED_WRAP\n  fsdp_transformer_layer_cls_to_wrap: LlamaAttention,LlamaMLP\n";
    let halves = scene.write("halves.yaml", halves);
    let alone = answers("alone", "", "--per_device_eval_batch_size 1");
    assert_eq!(alone.lines().count(), 5);
    for (before, after) in [
        ("", ""),
        ("--nproc 2", "--zero_stage 3 --per_device_eval_batch_size 2"),
        (&format!("--config {} --backend gloo", halves.display()), "--limit 9"),
        ("--nproc 2 --zero_stage 0", ""),
    ] {
        assert_eq!(answers("others", before, after), alone, "{before} generate {after}");
    }
}

#[test]
fn what_ranks_cannot_answer_is_told() {
    let scene = Scene::new();
    let good = json!({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x"}]});
    let bad = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let data = scene.write("data.jsonl", format!("{good}\n{good}\n{good}\n{bad}\n"));
    let job = |model_name: &str, data: &std::path::Path| {
        let output = scene.path("folder/answers.jsonl");
        let job =
            scene.launch("--nproc 2 generate --max_new_tokens 4 --zero_stage 3").with("--model", model(model_name));
        job.with("--dataset", data).with("--output", output).run()
    };
    job("tiny-llama", &data).assert_failed(1, &["rank 1", "line 4 of ", "data.jsonl: ", "no assistant turn", "hint: "]);
    assert_eq!(std::fs::read_dir(scene.path("folder")).unwrap().count(), 0, "nothing is left of it");
    job("tiny-llama", &scene.path("none.jsonl")).assert_failed(2, &["none.jsonl"]);
    let kept = std::fs::read(&data).unwrap();
    let refused = |data: &std::path::Path, output: &std::path::Path| {
        let job = scene.launch("generate --max_new_tokens 4").with("--model", model("tiny-llama"));
        job.with("--dataset", data).with("--output", output).run()
    };
    refused(&data, &data).assert_failed(2, &["is the data set itself", "hint: name another file"]);
    assert_eq!(std::fs::read(&data).unwrap(), kept);
    refused(&data, &scene.path("folder")).assert_failed(2, &["is a folder", "hint: name a file in it"]);
    let texts = scene.write("texts.jsonl", "{\"text\": \"a\"}\n");
    refused(&texts, &scene.path("o.jsonl")).assert_failed(2, &["texts.jsonl", "no conversation with an answer"]);
    let ended = scene.launch("--nproc 2 generate --prompt Hi").with("--model", model("tiny-llama")).run();
    ended.assert_failed(2, &["--nproc has no meaning for generate without --dataset", "hint: "]);
}

#[test]
fn a_trained_model_is_an_ordinary_folder_that_generates() {
    let scene = Scene::new();
    scene.train("tiny-llama-tied", "run", "--nproc 2 --zero_stage 3 --max_steps 2").run().assert_done();
    for name in
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    {
        assert!(scene.path("run/model").join(name).is_file(), "{name}");
    }
    let ended = scene.launch("generate --max_new_tokens 4 --chat Hello").with("--model", scene.path("run/model")).run();
    assert!(!text(&ended).is_empty(), "{ended}");
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let scene = Scene::new();
    let ended = scene.launch("generate --prompt Hello --model no/such/model").run();
    ended.assert_failed(2, &["no/such/model", "hint: "]);
}
