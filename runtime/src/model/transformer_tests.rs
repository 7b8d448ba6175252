//! The maths against values that PyTorch computed (`tests/fixtures`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::*;
use crate::model::{Continued, LayerCache};
use zerofold_configs::UnitPolicy;
use zerofold_plan::{LeafSpec, ModelUnits, Segment};

pub(in crate::model) const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");
const MODELS: [&str; 4] = ["tiny-llama", "tiny-llama-tied", "tiny-mistral", "tiny-llama-sharded"];

/// A fixture model with its weights.
pub(in crate::model) struct Whole {
    pub(in crate::model) model: Transformer,
    pub(in crate::model) units: Vec<Vec<Tensor>>,
    pub(in crate::model) segments: Vec<Segment>,
}

impl Whole {
    fn read(name: &str, kind: Kind) -> Whole {
        Whole::in_folder(&PathBuf::from(FIXTURES).join("models").join(name), kind)
    }

    pub(in crate::model) fn in_folder(folder: &Path, kind: Kind) -> Whole {
        let model = Transformer::new(ModelConfig::read(folder).expect("a config"), kind, Device::Cpu).expect("a model");
        let files = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let weights: HashMap<String, Tensor> = files
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .filter(|path| !path.ends_with("expected.safetensors"))
            .flat_map(|path| Tensor::read_safetensors(path).expect("weights"))
            .collect();
        let leaf = |leaf: &LeafSpec| {
            let parts: Vec<Tensor> = leaf.parameters.iter().map(|part| weights[&part.name].to_kind(kind)).collect();
            let stacked = Tensor::cat(&parts, 0);
            let shape: Vec<i64> = leaf.shape().iter().map(|size| *size as i64).collect();
            assert_eq!(stacked.size(), shape, "{}", leaf.parameters[0].name);
            stacked.set_requires_grad(true)
        };
        let ModelUnits { units, segments } = ModelUnits::new(&model.config, UnitPolicy::Blocks);
        let units = units.iter().map(|unit| unit.leaves.iter().map(leaf).collect()).collect();
        Whole { model, units, segments }
    }

    pub(in crate::model) fn leaves(&self, segment: &Segment) -> &[Tensor] {
        &self.units[segment.unit][segment.leaves.clone()]
    }

    pub(in crate::model) fn logits(&self, input_ids: &Tensor) -> Tensor {
        self.logits_of(input_ids, None)
    }

    pub(in crate::model) fn logits_of(&self, input_ids: &Tensor, documents: Option<&Documents>) -> Tensor {
        let head = self.segments.last().expect("a head");
        self.model.logits(self.leaves(head), &self.hidden(input_ids, None, documents)).expect("logits")
    }

    /// What the last block makes.
    pub(in crate::model) fn hidden(
        &self,
        input_ids: &Tensor,
        types: Option<&Tensor>,
        documents: Option<&Documents>,
    ) -> Tensor {
        let [embedding, hidden @ .., _] = &self.segments[..] else { panic!("segments") };
        let mut x = self.model.embed(self.leaves(embedding), input_ids, types, documents).expect("an embedding");
        for segment in hidden {
            x = self.model.segment(segment.kind, self.leaves(segment), &x, documents).expect("a segment");
        }
        x
    }

    /// Empty caches of so many sequences.
    pub(in crate::model) fn caches(&self, sequences: usize) -> Vec<Vec<LayerCache>> {
        let of_one = || (0..self.model.config.num_hidden_layers).map(|_| LayerCache::new()).collect();
        std::iter::repeat_with(of_one).take(sequences).collect()
    }

    /// The logits of the next tokens of sequences, each of which has a cache for every layer.
    pub(in crate::model) fn logits_continued(&self, next: &[Tensor], caches: &mut [Vec<LayerCache>]) -> Vec<Tensor> {
        let [embedding, hidden @ .., head] = &self.segments[..] else { panic!("segments") };
        let lengths: Vec<i64> = next.iter().map(|ids| ids.size()[0]).collect();
        let spans: Vec<(i64, i64)> = caches.iter().map(|it| it[0].length()).zip(lengths.iter().copied()).collect();
        let ids = Tensor::cat(next, 0).unsqueeze(0);
        let mut x = self.model.embed_continued(self.leaves(embedding), &ids, &spans).expect("an embedding");
        for segment in hidden {
            let mut sequences: Vec<Continued<'_>> =
                caches.iter_mut().zip(&lengths).map(|(caches, &length)| Continued { length, caches }).collect();
            x = self
                .model
                .segment_continued(segment.kind, self.leaves(segment), &x, &mut sequences)
                .expect("a segment");
        }
        let last = self.model.last_logits(self.leaves(head), &x, &lengths).expect("logits");
        let all = self.model.logits(self.leaves(head), &x).expect("logits").squeeze_dim(0);
        let each = all.split_with_sizes(&lengths, 0);
        let ends = Tensor::stack(&each.iter().map(|of| of.get(-1)).collect::<Vec<_>>(), 0);
        assert!(largest_difference(&ends, &last) < 1e-5, "the last logits of each");
        each
    }
}

fn expected(name: &str) -> (Tensor, Tensor) {
    let path = Path::new(FIXTURES).join("forward").join(format!("{name}.safetensors"));
    let tensors: HashMap<String, Tensor> = Tensor::read_safetensors(path).expect("a fixture").into_iter().collect();
    (tensors["input_ids"].shallow_clone(), tensors["logits"].shallow_clone())
}

pub(in crate::model) fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Float) - b.to_kind(Kind::Float)).abs().max().double_value(&[])
}

#[test]
fn logits_equal_those_of_transformers() {
    for name in MODELS {
        let (input_ids, logits) = expected(name);
        let difference = largest_difference(&Whole::read(name, Kind::Float).logits(&input_ids), &logits);
        assert!(difference < 1e-4, "{name}: logits differ by {difference}");
    }
}

/// The beginnings of the fixture's rows, end to end in one row: each as transformers computes it alone.
#[test]
fn documents_end_to_end_have_the_logits_of_transformers() {
    for name in MODELS {
        let (input_ids, logits) = expected(name);
        let whole = Whole::read(name, Kind::Float);
        let (rows, longest) = input_ids.size2().unwrap();
        let lengths: Vec<i64> = (0..2 * rows).map(|place| 1 + (place * 5 + longest - 1) % longest).collect();
        let part = |of: &Tensor, place: usize| of.get(place as i64 % rows).narrow(0, 0, lengths[place]);
        let of_all = |of: &Tensor| Tensor::cat(&(0..lengths.len()).map(|place| part(of, place)).collect::<Vec<_>>(), 0);
        let documents = whole.model.documents(&lengths).expect("documents");
        let found = whole.logits_of(&of_all(&input_ids).unsqueeze(0), Some(&documents));
        let difference = largest_difference(&found.squeeze_dim(0), &of_all(&logits));
        assert!(difference < 1e-4, "{name}: logits differ by {difference}");
    }
}

#[test]
fn bfloat16_stays_near_float32() {
    for name in MODELS {
        let (input_ids, logits) = expected(name);
        let difference = largest_difference(&Whole::read(name, Kind::BFloat16).logits(&input_ids), &logits);
        let scale = logits.abs().max().double_value(&[]);
        assert!(difference < 0.05 * scale, "{name}: logits of up to {scale} differ by {difference}");
    }
}

#[test]
fn a_cache_changes_nothing() {
    let _guard = tch::no_grad_guard();
    for name in MODELS {
        let whole = Whole::read(name, Kind::Float);
        let (input_ids, logits) = expected(name);
        let length = input_ids.size()[1];
        let rows = input_ids.size()[0];
        let mut caches = whole.caches(rows as usize);
        let check = |caches: &mut Vec<Vec<LayerCache>>, begin: i64, length: i64| {
            let next: Vec<Tensor> = (0..rows).map(|row| input_ids.get(row).narrow(0, begin, length)).collect();
            let found = Tensor::stack(&whole.logits_continued(&next, caches), 0);
            let difference = largest_difference(&found, &logits.narrow(1, begin, length));
            assert!(difference < 1e-4, "{name}: {length} positions from {begin} on differ by {difference}");
        };
        // A prompt, single tokens, and several at once after others, as in a second question of a chat.
        for (begin, end) in [(0, 9), (9, 10), (10, 11), (11, 24), (24, length)] {
            check(&mut caches, begin, end - begin);
        }
        // Back to position 9, then the same again.
        caches.iter_mut().flatten().for_each(|cache| cache.truncate(9));
        check(&mut caches, 9, 4);
        assert_eq!(caches[0][0].length(), 13);
    }
}

#[test]
fn a_cache_grows_past_its_first_room() {
    let _guard = tch::no_grad_guard();
    let whole = Whole::read("tiny-llama-tied", Kind::Float);
    let input_ids = Tensor::arange(300, (Kind::Int64, Device::Cpu)).remainder(64).view([1, 300]);
    let mut caches = whole.caches(1);
    let mut part =
        |begin, length| whole.logits_continued(&[input_ids.get(0).narrow(0, begin, length)], &mut caches).remove(0);
    let _prompt = part(0, 250);
    let parts: Vec<Tensor> = (250..300).map(|at| part(at, 1)).collect();
    let difference = largest_difference(&Tensor::cat(&parts, 0), &whole.logits(&input_ids).get(0).narrow(0, 250, 50));
    assert!(difference < 1e-4, "differ by {difference}");
}

#[test]
fn a_gradient_reaches_every_leaf_and_is_the_slope() {
    for name in ["tiny-llama", "tiny-llama-tied", "tiny-mistral"] {
        let whole = Whole::read(name, Kind::Double);
        let (input_ids, _) = expected(name);
        let target = input_ids.roll([-1], [1]).flatten(0, 1);
        let loss = || whole.logits(&input_ids).flatten(0, 1).cross_entropy_for_logits(&target).to_kind(Kind::Double);
        let leaves: Vec<&Tensor> = whole.units.iter().flatten().collect();
        let gradients = Tensor::run_backward(&[loss()], &leaves, false, false);
        for (leaf, gradient) in leaves.iter().zip(&gradients) {
            let length = gradient.norm().double_value(&[]);
            assert!(length.is_finite() && length > 0.0, "{name}: {:?} has gradient {length}", leaf.size());
        }
        // Along the gradient itself, the loss must rise by its squared length.
        let step = 1e-3;
        let squares: f64 = gradients.iter().map(|gradient| gradient.square().sum(Kind::Double).double_value(&[])).sum();
        let at = |factor: f64| {
            tch::no_grad(|| {
                let move_by = |by: f64| {
                    for (leaf, gradient) in leaves.iter().zip(&gradients) {
                        let _moved = leaf.shallow_clone().f_add_(&(gradient * by)).expect("moved");
                    }
                };
                move_by(factor);
                let value = loss().double_value(&[]);
                move_by(-factor);
                value
            })
        };
        let slope = (at(step) - at(-step)) / (2.0 * step);
        assert!((slope / squares - 1.0).abs() < 1e-2, "{name}: slope {slope}, squared gradient {squares}");
    }
}

#[test]
fn padding_on_the_right_changes_no_earlier_position() {
    let whole = Whole::read("tiny-mistral", Kind::Float);
    let (input_ids, logits) = expected("tiny-mistral");
    let padded = Tensor::cat(&[&input_ids, &Tensor::full([2, 11], 2, (Kind::Int64, Device::Cpu))], 1);
    let part = whole.logits(&padded).narrow(1, 0, input_ids.size()[1]);
    assert!(largest_difference(&part, &logits) < 1e-4);
}

#[test]
fn rope_frequencies_equal_those_of_transformers() {
    let text = std::fs::read_to_string(Path::new(FIXTURES).join("rope.json")).expect("a fixture");
    let fixture: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let cases = fixture["cases"].as_array().expect("cases");
    assert!(!cases.is_empty());
    for case in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let head_dim = case["head_dim"].as_u64().expect("a head width");
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": head_dim, "intermediate_size": 1, "vocab_size": 1,
            "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": head_dim,
            "rope_parameters": case["rope_parameters"],
        });
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
        let config = ModelConfig::read(folder.path()).expect("a config");
        let ours = super::super::inverse_frequencies(&config.ropes[0], config.head_dim).expect("frequencies");
        let theirs: Vec<f64> = case["inv_freq"].as_array().expect("values").iter().filter_map(|v| v.as_f64()).collect();
        assert_eq!(ours.len(), theirs.len(), "{}", case["name"]);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            let relative = (f64::from(*ours) / theirs - 1.0).abs();
            assert!(relative < 1e-6, "{}: {ours} is not {theirs}", case["name"]);
        }
    }
}

#[test]
fn units_hold_every_parameter_once() {
    for name in MODELS {
        let whole = Whole::read(name, Kind::Float);
        let folder = PathBuf::from(FIXTURES).join("models").join(name);
        let mut in_files: Vec<String> = std::fs::read_dir(&folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
            .flat_map(|path| Tensor::read_safetensors(path).expect("weights"))
            .map(|(name, _)| name)
            .collect();
        let units = ModelUnits::new(&whole.model.config, UnitPolicy::Blocks).units;
        let mut in_units: Vec<String> = units
            .iter()
            .flat_map(|unit| &unit.leaves)
            .flat_map(|leaf| &leaf.parameters)
            .map(|parameter| parameter.name.clone())
            .collect();
        in_files.sort();
        in_units.sort();
        assert_eq!(in_files, in_units, "{name}");
        let tied = whole.model.config.tie_word_embeddings;
        assert_eq!(units[0].stays_gathered, tied);
        assert_eq!(units.len(), whole.model.config.num_hidden_layers + if tied { 1 } else { 2 });
    }
}

#[test]
fn misuse_is_an_error_and_no_panic() {
    let whole = Whole::read("tiny-mistral", Kind::Float);
    let x = Tensor::zeros([1, 6, 48], (Kind::Float, Device::Cpu));
    let block = |leaves: &[Tensor]| whole.model.segment(SegmentKind::Block(0), leaves, &x, None);
    assert!(matches!(block(&whole.units[0]), Err(ModelError::LeafMissing { name: "query, key and value", .. })));
    let twice: Vec<Tensor> = whole.units[1].iter().chain(&whole.units[1]).map(Tensor::shallow_clone).collect();
    assert!(matches!(block(&twice), Err(ModelError::LeavesLeft { left: 6, .. })));
    let documents = whole.model.documents(&[5, 1]).expect("documents");
    assert!(whole.model.segment(SegmentKind::Block(0), &whole.units[1], &x, Some(&documents)).is_ok());
    for lengths in [&[][..], &[0], &[3, -1]] {
        assert!(whole.model.documents(lengths).is_err(), "{lengths:?}");
    }
    let narrow = x.narrow(1, 0, 5);
    assert!(matches!(
        whole.model.segment(SegmentKind::Block(0), &whole.units[1], &narrow, Some(&documents)),
        Err(ModelError::Documents { .. })
    ));
    let outside = Tensor::from_slice(&[100_000i64]).view([1, 1]);
    assert!(matches!(whole.model.embed(&whole.units[0], &outside, None, None), Err(ModelError::Torch(_))));
    assert!(matches!(whole.model.embed(&[], &outside, None, None), Err(ModelError::LeafMissing { .. })));
    let narrow = x.narrow(1, 0, 5).narrow(2, 0, 40);
    assert!(matches!(
        whole.model.segment(SegmentKind::Block(0), &whole.units[1], &narrow, None),
        Err(ModelError::Kernel(_))
    ));
}
