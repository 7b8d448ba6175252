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

fn generator(name: &str, kind: Kind, options: Options) -> Generator {
    let model = WholeModel::load(&folder(name), None, kind).expect("a model");
    let tokenizer = Tokenizer::load(&folder(name)).expect("a tokenizer");
    Generator::new(Box::new(model), tokenizer, options).expect("a generator")
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
        let mut model = WholeModel::load(&folder(name), None, Kind::Float).expect("a model");
        let mut sampler = Sampler::new(GREEDY).expect("options");
        for case in cases.as_array().expect("cases") {
            let expected = ids(&case["new_ids"]);
            let mut sequence = Sequence::new(ids(&case["input_ids"]));
            let mut tokens = Vec::new();
            for _ in 0..expected.len() {
                let logits = next_logits(&mut model, &mut [&mut sequence]).expect("logits");
                let token = sampler.next(&logits[0]).expect("a token");
                tokens.push(token);
                sequence.push(token);
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
        let mut generator = generator(name, Kind::Float, options);
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
        let mut generator = generator("tiny-llama", Kind::BFloat16, options);
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

/// What a generator answers to these rows of messages, as one rank of several, by the rows' numbers.
fn answers(
    rows: &str,
    options: Options,
    (rank, world_size, batch): (usize, usize, usize),
) -> Result<Vec<(u64, String)>> {
    let out = tempfile::tempdir()?;
    let data = out.path().join("rows.jsonl");
    std::fs::write(&data, rows)?;
    let request = GenerateRequest { dataset: Some(data), limit: Some(9), ..GenerateRequest::new(folder("tiny-llama")) };
    let ranked = dataset::Ranked { request: &request, rank, world_size, batch };
    ranked.answer(generator("tiny-llama", Kind::Float, options), out.path())?;
    let text = std::fs::read_to_string(GenerateRequest::answers(out.path(), rank))?;
    let line = |line: &str| {
        let (number, object) = line.split_once('\t').expect("a number");
        (number.parse().expect("a number"), object.to_owned())
    };
    let mut lines: Vec<(u64, String)> = text.lines().map(line).collect();
    lines.sort();
    Ok(lines)
}

fn row(question: &str, answer: &str) -> String {
    let (user, assistant) = (serde_json::json!({"role": "user", "content": question}), "assistant");
    let messages = serde_json::json!([user, {"role": assistant, "content": answer}]);
    format!("{}\n", serde_json::json!({ "messages": messages }))
}

/// Prompts of different lengths, more than stand side by side, some of which end early.
#[test]
fn answers_do_not_depend_on_what_stands_beside_them() {
    let _no_gradients = tch::no_grad_guard();
    let questions: Vec<String> = (0..11).map(|at| format!("{}?", "why and ".repeat(at * at % 7))).collect();
    let rows: String = questions.iter().map(|question| row(question, "x")).collect();
    for temperature in [0.0, 1.0] {
        let options = Options { max_new_tokens: 12, sample: SampleOptions { temperature, ..GREEDY } };
        let alone = answers(&rows, options, (0, 1, 1)).expect("answers");
        assert_eq!(alone.iter().map(|(number, _)| *number).collect::<Vec<_>>(), (0..9).collect::<Vec<_>>());
        assert_eq!(answers(&rows, options, (0, 1, 4)).expect("answers"), alone, "temperature {temperature}");
        let of_two: Vec<_> = (0..2).flat_map(|rank| answers(&rows, options, (rank, 2, 3)).expect("answers")).collect();
        assert!(of_two.len() == 9 && of_two.iter().all(|it| alone.contains(it)), "temperature {temperature}");
    }
}

#[test]
fn answers_are_compared_and_bad_rows_named() {
    let _no_gradients = tch::no_grad_guard();
    let options = Options { max_new_tokens: 8, sample: GREEDY };
    let found = |rows: &str| -> Vec<serde_json::Value> {
        let lines = answers(rows, options, (0, 1, 2)).expect("answers");
        lines.iter().map(|(_, line)| serde_json::from_str(line).expect("JSON")).collect()
    };
    let first = found(&row("Hi", "x"));
    assert_eq!((first.len(), &first[0]["match"], &first[0]["expected"]), (1, &false.into(), &"x".into()));
    // With the model's own answer in the file, it matches.
    let answer = first[0]["answer"].as_str().expect("a text");
    let second = found(&[row("Hi", "x"), row("Hi", answer)].concat());
    assert_eq!(second.iter().filter_map(|line| line["match"].as_bool()).collect::<Vec<_>>(), [false, true]);
    let bad = [row("Hi", "x"), "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n".to_owned()].concat();
    let error = format!("{:#}", answers(&bad, options, (0, 1, 2)).expect_err("no assistant turn"));
    assert!(
        error.contains("line 2 of ") && error.contains("rows.jsonl: ") && error.contains("no assistant"),
        "{error}"
    );
    // Another rank's row is that rank's to complain of.
    assert_eq!(answers(&bad, options, (0, 2, 2)).expect("answers").len(), 1);
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
    let table: [(Change, &str); 5] = [
        (|request| request.dataset = Some("rows.jsonl".into()), "a data set is answered by ranks"),
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
