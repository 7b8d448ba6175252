//! Generation against what transformers generates (`tests/fixtures/generate.json`).

use std::path::PathBuf;

use super::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");
const GREEDY: SampleOptions = SampleOptions { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 1 };

fn folder(name: &str) -> PathBuf {
    PathBuf::from(FIXTURES).join("models").join(name)
}

fn fixture() -> serde_json::Value {
    let text = std::fs::read_to_string(PathBuf::from(FIXTURES).join("generate.json")).expect("a fixture");
    serde_json::from_str(&text).expect("JSON")
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    let numbers = value.as_array().expect("an array").iter();
    numbers.map(|id| u32::try_from(id.as_u64().expect("a number")).expect("an id")).collect()
}

#[test]
fn greedy_tokens_equal_those_of_transformers() {
    let _no_gradients = tch::no_grad_guard();
    let fixture = fixture();
    let models = fixture["models"].as_object().expect("models");
    assert!(!models.is_empty());
    for (name, cases) in models {
        let model = WholeModel::load(&folder(name), None, Kind::Float).expect("a model");
        let mut sampler = Sampler::new(GREEDY).expect("options");
        for case in cases.as_array().expect("cases") {
            let expected = ids(&case["new_ids"]);
            let mut caches = model.empty_caches();
            let mut feed = ids(&case["input_ids"]);
            let mut tokens = Vec::new();
            for _ in 0..expected.len() {
                let logits = model.next_logits(&feed, &mut caches).expect("logits");
                let token = sampler.next(&logits).expect("a token");
                tokens.push(token);
                feed = vec![token];
            }
            assert_eq!(tokens, expected, "{name}: {}", case["prompt"]);
        }
    }
}

#[test]
fn a_generator_gives_the_same_text_up_to_the_end_of_the_turn() {
    let _no_gradients = tch::no_grad_guard();
    let fixture = fixture();
    let max_new_tokens = fixture["max_new_tokens"].as_u64().expect("a number") as usize;
    for (name, cases) in fixture["models"].as_object().expect("models") {
        let options = Options { max_new_tokens, sample: GREEDY };
        let mut generator = Generator::load(&folder(name), None, Kind::Float, options).expect("a generator");
        let tokenizer = zerofold_data::Tokenizer::load(&folder(name)).expect("a tokenizer");
        // All cases go through one generator, forwards and then backwards: what one leaves behind must not reach the next.
        let cases = cases.as_array().expect("cases");
        for case in cases.iter().chain(cases.iter().rev()) {
            let new_ids = ids(&case["new_ids"]);
            let length = new_ids.iter().position(|id| tokenizer.eos_ids().contains(id)).unwrap_or(new_ids.len());
            let expected = tokenizer.decode(&new_ids[..length], true).expect("text");
            let mut shown = String::new();
            let mut show = |piece: &str| {
                shown.push_str(piece);
                Ok(())
            };
            let answer = generator.generate(&ids(&case["input_ids"]), &mut show).expect("an answer");
            assert_eq!(answer, expected, "{name}: {}", case["prompt"]);
            // Bytes that are no text may come out in other portions.
            assert_eq!(shown.replace('\u{FFFD}', "").is_empty(), answer.replace('\u{FFFD}', "").is_empty());
            assert!(shown == answer || answer.contains('\u{FFFD}'), "{shown:?} was shown of {answer:?}");
        }
    }
}

#[test]
fn sampling_repeats_with_its_seed() {
    let _no_gradients = tch::no_grad_guard();
    let text = |seed| {
        let sample = SampleOptions { temperature: 1.0, top_k: 50, top_p: 0.95, seed };
        let options = Options { max_new_tokens: 16, sample };
        let mut generator = Generator::load(&folder("tiny-llama"), None, Kind::BFloat16, options).expect("a generator");
        let prompt = generator.encode("The harbour master", true).expect("ids");
        generator.generate(&prompt, &mut |_| Ok(())).expect("text")
    };
    assert_eq!(text(5), text(5));
    assert_ne!(text(5), text(6));
}

#[test]
fn logits_of_a_file_equal_those_of_transformers() {
    let out = tempfile::tempdir().expect("a folder");
    let out = out.path().join("logits.safetensors");
    let forward = PathBuf::from(FIXTURES).join("forward/tiny-llama-sharded.safetensors");
    logits(&folder("tiny-llama-sharded"), &forward, &out).expect("logits");
    let read = |path: &Path| {
        let tensors = Tensor::read_safetensors(path).expect("a file");
        tensors.into_iter().find(|(name, _)| name == "logits").expect("logits").1
    };
    let difference = (read(&out) - read(&forward)).abs().max().double_value(&[]);
    assert!(difference < 1e-4, "logits differ by {difference}");
}

#[test]
fn a_data_set_is_answered_and_counted() {
    let out = tempfile::tempdir().expect("a folder");
    let rows = out.path().join("rows.jsonl");
    let output = out.path().join("answers/answers.jsonl");
    let mut request = GenerateRequest::new(folder("tiny-llama"));
    request.max_new_tokens = 8;
    request.output = Some(output.clone());
    request.dataset = Some(rows.clone());
    let row = |answer: &str| {
        let messages = serde_json::json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]);
        serde_json::json!({ "messages": messages }).to_string()
    };
    std::fs::write(&rows, row("x") + "\n").expect("written");
    run(&request).expect("answers");
    let read = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&output).expect("an output");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let first = read();
    assert_eq!((first.len(), &first[0]["match"], &first[0]["expected"]), (1, &false.into(), &"x".into()));
    // With the model's own answer in the file, it matches.
    let answer = first[0]["answer"].as_str().expect("a text");
    std::fs::write(&rows, [row("x"), row(answer), row("z")].join("\n")).expect("written");
    request.limit = Some(2);
    run(&request).expect("answers");
    let matches: Vec<bool> = read().iter().filter_map(|line| line["match"].as_bool()).collect();
    assert_eq!(matches, [false, true]);
    assert!(!output.with_file_name("answers.jsonl.partial").exists());
    // A row that cannot be compared names its place.
    std::fs::write(&rows, "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n").expect("written");
    let error = format!("{:#}", run(&request).expect_err("no assistant turn"));
    assert!(
        error.contains("line 1 of ") && error.contains("rows.jsonl") && error.contains("no assistant turn"),
        "{error}"
    );
}

#[test]
fn requests_that_contradict_themselves_and_broken_folders_are_refused() {
    type Change = fn(&mut GenerateRequest);
    let base = GenerateRequest::new(folder("tiny-llama"));
    let with = |change: Change| {
        let mut request = base.clone();
        request.prompt = Some("Hi".to_owned());
        change(&mut request);
        format!("{:#}", run(&request).expect_err("refused"))
    };
    let table: [(Change, &str); 6] = [
        (|request| request.dataset = Some("rows.jsonl".into()), "cannot be given together"),
        (|request| request.limit = Some(1), "belong to a data set"),
        (|request| request.system = Some("Be brief".to_owned()), "hint: add --chat"),
        (|request| request.temperature = -1.0, "temperature is -1"),
        (|request| request.prompt = Some("word ".repeat(600)), "the model's context holds 512"),
        (|request| request.model = "no/such/folder".into(), "no/such/folder"),
    ];
    for (change, expected) in table {
        let error = with(change);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn weights_of_another_shape_name_the_tensor() {
    let copy = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(folder("tiny-llama")).expect("a folder") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, copy.path().join(path.file_name().expect("a name"))).expect("copied");
    }
    let config = copy.path().join("config.json");
    let text = std::fs::read_to_string(&config).expect("a config");
    let change = |from: &str, to: &str| {
        assert!(text.contains(from));
        std::fs::write(&config, text.replace(from, to)).expect("written");
        format!("{:#}", WholeModel::load(copy.path(), None, Kind::Float).err().expect("refused"))
    };
    let error = change("\"intermediate_size\": 160", "\"intermediate_size\": 161");
    assert!(error.contains("model.layers.0.mlp.gate_proj.weight has shape [160, 64]"), "{error}");
    assert!(error.contains("[161, 64]"), "{error}");
    let error = change("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
    assert!(error.contains("model.layers.3."), "{error}");
}
