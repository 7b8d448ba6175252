//! Encoders against what transformers computes of small random ones (`tests/fixtures/encoders`), which pads rows and masks them;
//! here they lie end to end.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use zerofold_plan::{HeadInput, SegmentKind};

use super::families_tests::check_gradients;
use super::transformer::tests::{FIXTURES, Whole, largest_difference};
use super::{ModelConfig, ModelError, Transformer, model_files};
use crate::torch::Kernels;

/// An encoder, and what is expected of it.
struct Encoder {
    name: String,
    folder: PathBuf,
    expected: HashMap<String, Tensor>,
    lengths: Vec<i64>,
}

impl Encoder {
    fn all() -> Vec<Encoder> {
        let entries = std::fs::read_dir(PathBuf::from(FIXTURES).join("encoders")).expect("a folder");
        let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        folders.sort();
        assert!(folders.len() >= 4, "{folders:?}");
        folders.iter().map(|folder| Encoder::in_folder(folder)).collect()
    }

    fn named(name: &str) -> Encoder {
        Encoder::in_folder(&PathBuf::from(FIXTURES).join("encoders").join(name))
    }

    fn in_folder(folder: &Path) -> Encoder {
        let tensors = Tensor::read_safetensors(folder.join("expected.safetensors")).expect("a fixture");
        let expected: HashMap<String, Tensor> = tensors.into_iter().collect();
        let lengths = Vec::<i64>::try_from(&expected["lengths"]).expect("lengths");
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        Encoder { name, folder: folder.to_owned(), expected, lengths }
    }

    fn whole(&self, kind: Kind) -> Whole {
        Whole::in_folder(&self.folder, kind)
    }

    /// What is no padding of a tensor `[rows, length, …]`, end to end: `[1, sum of lengths, …]`.
    fn end_to_end(&self, name: &str) -> Tensor {
        let row = |(row, &length): (usize, &i64)| self.expected[name].get(row as i64).narrow(0, 0, length);
        Tensor::cat(&self.lengths.iter().enumerate().map(row).collect::<Vec<_>>(), 0).unsqueeze(0)
    }

    /// What the last block makes of all rows.
    fn hidden(&self, whole: &Whole) -> Tensor {
        let documents = whole.model.documents(&self.lengths).expect("documents");
        whole.hidden(&self.end_to_end("input_ids"), Some(&self.end_to_end("token_type_ids")), Some(&documents))
    }

    /// The hidden states `[rows, H]` of each row's first token.
    fn first(&self, whole: &Whole) -> Tensor {
        let begin = |row: usize| self.lengths[..row].iter().sum::<i64>();
        let begins: Vec<i64> = (0..self.lengths.len()).map(begin).collect();
        self.hidden(whole).squeeze_dim(0).index_select(0, &Tensor::from_slice(&begins))
    }

    fn logits(&self, whole: &Whole) -> Tensor {
        whole.model.logits(head(whole), &self.first(whole)).expect("logits")
    }
}

fn head(whole: &Whole) -> &[Tensor] {
    whole.leaves(whole.segments.last().expect("a head"))
}

#[test]
fn hidden_states_logits_and_gradients_of_all_parameters_equal_those_of_transformers() {
    for encoder in Encoder::all() {
        let whole = encoder.whole(Kind::Float);
        let name = &encoder.name;
        let difference = largest_difference(&encoder.hidden(&whole), &encoder.end_to_end("last_hidden_state"));
        assert!(difference < 1e-4, "{name}: hidden states differ by {difference}");
        let logits = encoder.logits(&whole);
        let difference = largest_difference(&logits, &encoder.expected["logits"]);
        assert!(difference < 1e-4, "{name}: logits differ by {difference}");
        let loss = logits.cross_entropy_for_logits(&encoder.expected["labels"]);
        check_gradients(name, &whole, &loss, &encoder.expected);
    }
}

/// A row by itself is what it is among others, and tokens without types are of type 0.
#[test]
fn a_row_alone_is_the_same() {
    for encoder in Encoder::all() {
        let whole = encoder.whole(Kind::Float);
        let (row, length) = (2, encoder.lengths[2]);
        let of = |name: &str| encoder.expected[name].get(row).narrow(0, 0, length).unsqueeze(0);
        let (ids, types) = (of("input_ids"), of("token_type_ids"));
        let alone = whole.hidden(&ids, Some(&types), None);
        let difference = largest_difference(&alone, &of("last_hidden_state"));
        assert!(difference < 1e-4, "{}: hidden states differ by {difference}", encoder.name);
        let without = whole.hidden(&ids, None, None);
        assert!(without.equal(&whole.hidden(&ids, Some(&types.zeros_like()), None)), "{}", encoder.name);
        // Of several types the last tokens have another than the first.
        assert_eq!(without.equal(&alone), whole.model.config.token_types == 1, "{}", encoder.name);
    }
}

#[test]
fn libtorchs_operations_products_and_16_bits_stay_near() {
    let _alone = crate::torch::generator_of_this_test(0);
    for encoder in Encoder::all() {
        let (logits, hidden) = (&encoder.expected["logits"], encoder.end_to_end("last_hidden_state"));
        let scale = logits.abs().max().double_value(&[]);
        for (kind, tolerance) in [(Kind::Float, 1e-4), (Kind::BFloat16, 0.1), (Kind::Half, 0.02)] {
            let whole = encoder.whole(kind);
            let found = encoder.logits(&whole);
            let Whole { model, units, segments } = whole;
            let plain = Whole { model: model.with_kernels(Kernels::plain()), units, segments };
            for (way, found) in [("kernels", found), ("operations", encoder.logits(&plain))] {
                let difference = largest_difference(&found, logits);
                assert!(difference < tolerance * scale, "{}, {way} in {kind:?}: {difference}", encoder.name);
            }
        }
        // Attention by products is what drops its weights: almost none here.
        let mut whole = encoder.whole(Kind::Float);
        whole.model.config.attention_dropout = 1e-12;
        let found = in_training(&encoder, &whole, 1);
        let difference = largest_difference(&found, &hidden);
        assert!(difference < 1e-4, "{}: hidden states by products differ by {difference}", encoder.name);
    }
}

/// What the last block makes of all rows in training.
fn in_training(encoder: &Encoder, whole: &Whole, seed: u64) -> Tensor {
    let documents = whole.model.documents(&encoder.lengths).expect("documents");
    let (ids, types) = (encoder.end_to_end("input_ids"), encoder.end_to_end("token_type_ids"));
    let [embedding, hidden @ .., _] = &whole.segments[..] else { panic!("segments") };
    let mut x = whole.model.embed(whole.leaves(embedding), &ids, Some(&types), Some(&documents)).expect("embeddings");
    for segment in hidden {
        let leaves = whole.leaves(segment);
        x = whole.model.segment_in_training(segment.kind, leaves, &x, Some(&documents), seed).expect("a segment");
    }
    x
}

#[test]
fn what_is_dropped_follows_from_the_seed() {
    let _alone = crate::torch::generator_of_this_test(0);
    let encoder = Encoder::named("bert");
    let mut whole = encoder.whole(Kind::Float);
    whole.model.config.embedding_dropout = 0.5;
    let x = Tensor::ones([1, 30, 32], (Kind::Float, Device::Cpu)).cumsum(2, Kind::Float);
    let output = &whole.segments[1];
    assert_eq!(output.kind, SegmentKind::EmbeddingOutput);
    let embedded = |seed| {
        let leaves = whole.leaves(output);
        whole.model.segment_in_training(output.kind, leaves, &x, None, seed).expect("embeddings")
    };
    let zeros = |x: &Tensor| x.eq(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
    assert!(embedded(1).equal(&embedded(1)) && !embedded(1).equal(&embedded(2)));
    // What is left is doubled, after the norm.
    let normed = whole.model.segment(output.kind, whole.leaves(output), &x, None).expect("embeddings");
    let twice = (&normed * 2.0).where_self(&embedded(1).ne(0.0), &Tensor::from(0.0f32));
    assert!(embedded(1).allclose(&twice, 1e-6, 1e-6, false) && (zeros(&embedded(1)) - 0.5).abs() < 0.08);
}

/// BERT drops of what the head is given; RoBERTa also of what the linear layer before it is given.
#[test]
fn the_heads_dropout_is_that_of_its_family() {
    let _alone = crate::torch::generator_of_this_test(0);
    for (name, drops_input) in [("bert", false), ("roberta", true)] {
        let encoder = Encoder::named(name);
        let mut whole = encoder.whole(Kind::Float);
        assert_eq!(whole.model.config.head_input, HeadInput::Dense { drops_input });
        whole.model.config.head_dropout = 0.4;
        let x = encoder.first(&whole);
        let input = |seed| whole.model.head_input_in_training(head(&whole), &x, seed).expect("an input");
        assert!(input(1).equal(&input(1)) && !input(1).equal(&input(2)), "{name}");
        let plain = whole.model.head_input(head(&whole), &x).expect("an input");
        let kept = input(1).ne(0.0);
        let untouched = (&plain / 0.6).where_self(&kept, &Tensor::from(0.0f32));
        assert_eq!(input(1).allclose(&untouched, 1e-5, 1e-6, false), !drops_input, "{name}");
        let share = kept.to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
        assert!((share - 0.6).abs() < 0.12, "{name}: {share} are kept");
    }
}

#[test]
fn rows_beyond_the_positions_and_types_that_are_none_are_refused() {
    let encoder = Encoder::named("roberta");
    let whole = encoder.whole(Kind::Float);
    // 25 embeddings, of which two stand for no position.
    assert!(whole.model.documents(&[23]).is_ok());
    assert!(matches!(whole.model.documents(&[24]), Err(ModelError::TooLong { length: 24, longest: 23 })));
    let ids = Tensor::full([1, 4], 7, (Kind::Int64, Device::Cpu));
    let embed = |types: &Tensor| whole.model.embed(whole.leaves(&whole.segments[0]), &ids, Some(types), None);
    assert!(embed(&ids.zeros_like()).is_ok());
    assert!(matches!(embed(&ids.ones_like()), Err(ModelError::Torch(_))));
    let llama = PathBuf::from(FIXTURES).join("models/tiny-llama");
    let llama = Whole::in_folder(&llama, Kind::Float);
    let refused = llama.model.embed(llama.leaves(&llama.segments[0]), &ids, Some(&ids.zeros_like()), None);
    let refused = refused.expect_err("types of a Llama").to_string();
    assert_eq!(refused, "LlamaForCausalLM does not tell types of tokens apart, but was given some");
}

/// The name in files of old.
fn of_old(name: &str) -> String {
    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
}

/// The name in files of the bare model.
fn bare(name: &str) -> String {
    name.strip_prefix("bert.").or(name.strip_prefix("roberta.")).unwrap_or(name).to_owned()
}

/// Files of the bare model, of old, and with heads that are not trained here.
#[test]
fn files_of_other_classes_are_read() {
    let heads = [
        (
            "bert",
            &["cls.predictions.transform.LayerNorm.weight", "cls.seq_relationship.bias", "cls.predictions.bias"][..],
        ),
        ("roberta", &["lm_head.layer_norm.weight", "lm_head.bias", "roberta.pooler.dense.weight"]),
    ];
    for (name, strangers) in heads {
        let encoder = Encoder::named(name);
        let config = ModelConfig::read(&encoder.folder).expect("a config");
        let weights = Tensor::read_safetensors(encoder.folder.join("model.safetensors")).expect("weights");
        let renamings: [fn(&str) -> String; 4] = [str::to_owned, of_old, bare, |name| of_old(&bare(name))];
        for renamed in renamings {
            let folder = tempfile::tempdir().expect("a folder");
            let extra = Tensor::zeros([2], (Kind::Float, Device::Cpu));
            let tensors = weights.iter().map(|(name, tensor)| (renamed(name), tensor.shallow_clone()));
            let others = strangers.iter().map(|name| (renamed(name), extra.shallow_clone()));
            let tensors: Vec<_> = tensors.chain(others).collect();
            Tensor::write_safetensors(&tensors, folder.path().join("model.safetensors")).expect("a file");
            let files = model_files(folder.path(), &config).expect("files");
            assert!(weights.iter().all(|(name, _)| files.entry(name).is_ok()), "{name}");
        }
    }
}

#[test]
fn an_encoders_attention_is_told() {
    let config = ModelConfig::read(&Encoder::named("bert").folder).expect("a config");
    let model = Transformer::new(config, Kind::Float, Device::Cpu).expect("a model");
    assert_eq!(model.attention_words(64).expect("words").0, "attention block by block");
}
