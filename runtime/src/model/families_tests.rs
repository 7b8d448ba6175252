//! Each family of models against what transformers computes of small random ones (`tests/fixtures/families`).

use std::collections::HashMap;
use std::path::PathBuf;

use tch::{Device, Kind, Tensor};
use zerofold_configs::UnitPolicy;
use zerofold_plan::ModelUnits;

use super::transformer::tests::{FIXTURES, Whole, largest_difference};

/// The folders of all models, and what is expected of them.
fn families() -> Vec<(PathBuf, HashMap<String, Tensor>)> {
    let entries = std::fs::read_dir(PathBuf::from(FIXTURES).join("families")).expect("a folder");
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    folders.retain(|folder| folder.is_dir());
    folders.sort();
    assert!(folders.len() >= 16, "{folders:?}");
    let expected = |folder: &PathBuf| {
        Tensor::read_safetensors(folder.join("expected.safetensors")).expect("a fixture").into_iter().collect()
    };
    folders.into_iter().map(|folder| (folder.clone(), expected(&folder))).collect()
}

#[test]
fn logits_and_gradients_of_all_parameters_equal_those_of_transformers() {
    for (folder, expected) in families() {
        let whole = Whole::in_folder(&folder, Kind::Float);
        let input_ids = &expected["input_ids"];
        let logits = whole.logits(input_ids);
        let difference = largest_difference(&logits, &expected["logits"]);
        assert!(difference < 1e-4, "{}: logits differ by {difference}", folder.display());
        let length = input_ids.size()[1];
        let predicted = logits.narrow(1, 0, length - 1).flatten(0, 1);
        let targets = input_ids.narrow(1, 1, length - 1).flatten(0, 1);
        check_gradients(
            &folder.display().to_string(),
            &whole,
            &predicted.cross_entropy_for_logits(&targets),
            &expected,
        );
    }
}

/// Every parameter that transformers has, none more. (Here the embedding has a graph; what the trainer does for it is tested
/// by whole trainings.)
pub(super) fn check_gradients(name: &str, whole: &Whole, loss: &Tensor, expected: &HashMap<String, Tensor>) {
    let specs = ModelUnits::new(&whole.model.config, UnitPolicy::Blocks).units;
    let leaves: Vec<&Tensor> = whole.units.iter().flatten().collect();
    let gradients = Tensor::run_backward(&[loss], &leaves, false, false);
    let parameters = specs.iter().flat_map(|unit| &unit.leaves);
    let mut checked = 0;
    for (leaf, gradient) in parameters.zip(&gradients) {
        let mut begin = 0;
        for parameter in &leaf.parameters {
            let rows = parameter.shape[0] as i64;
            let (found, expected) =
                (gradient.narrow(0, begin, rows), &expected[&format!("gradient.{}", parameter.name)]);
            let norm = expected.norm().double_value(&[]);
            let difference = (&found - expected).norm().double_value(&[]);
            // What is added to all scores of a position alike changes nothing: such a gradient is what rounding left.
            let nothing = parameter.name.ends_with("key.bias") && norm < 1e-6;
            let error = if nothing { difference } else { difference / norm.max(1e-6) };
            assert!(error < 1e-4, "{name}: the gradient of {} is off by {error}", parameter.name);
            begin += rows;
            checked += 1;
        }
    }
    let gradients = expected.keys().filter(|key| key.starts_with("gradient.")).count();
    assert_eq!(checked, gradients, "{name}: as many parameters as transformers has");
}

/// Rows cut short and put end to end: what is after a token changes nothing, and positions begin anew.
#[test]
fn documents_end_to_end_are_each_as_alone() {
    for (folder, expected) in families() {
        let whole = Whole::in_folder(&folder, Kind::Float);
        let lengths = [23, 5, 17, 1, 20];
        let part = |of: &Tensor, place: usize| of.get(place as i64 % 2).narrow(0, 0, lengths[place]);
        let of_all = |of: &Tensor| Tensor::cat(&(0..lengths.len()).map(|place| part(of, place)).collect::<Vec<_>>(), 0);
        let documents = whole.model.documents(&lengths).expect("documents");
        let found = whole.logits_of(&of_all(&expected["input_ids"]).unsqueeze(0), Some(&documents));
        let difference = largest_difference(&found.squeeze_dim(0), &of_all(&expected["logits"]));
        assert!(difference < 1e-4, "{}: logits differ by {difference}", folder.display());
    }
}

#[test]
fn sequences_that_go_on_side_by_side_are_each_as_alone() {
    let _guard = tch::no_grad_guard();
    for (folder, expected) in families() {
        let whole = Whole::in_folder(&folder, Kind::Float);
        let mut caches = whole.caches(3);
        // Two sequences go on by other parts; a third, which is the first again, comes later.
        for round in [[9, 1, 0], [1, 7, 0], [1, 1, 5], [12, 14, 18]] {
            let going = (0..3).filter(|&place| round[place] > 0);
            let span = |place: usize| (place as i64 % 2, caches[place][0].length(), round[place]);
            let spans: Vec<(i64, i64, i64)> = going.map(span).collect();
            let part = |of: &Tensor, (row, at, length): (i64, i64, i64)| of.get(row).narrow(0, at, length);
            let of = |name: &str| spans.iter().map(|&span| part(&expected[name], span)).collect::<Vec<Tensor>>();
            let found = whole.logits_continued(&of("input_ids"), &mut caches[..spans.len()]);
            for ((found, expected), span) in found.iter().zip(&of("logits")).zip(&spans) {
                let difference = largest_difference(found, expected);
                assert!(difference < 1e-4, "{}: {span:?} differs by {difference}", folder.display());
            }
        }
    }
}

#[test]
fn libtorchs_operations_and_16_bits_stay_near() {
    for (folder, expected) in families() {
        let logits = &expected["logits"];
        let scale = logits.abs().max().double_value(&[]);
        for (kind, tolerance) in [(Kind::Float, 1e-4), (Kind::BFloat16, 0.1)] {
            let Whole { model, units, segments } = Whole::in_folder(&folder, kind);
            let plain = Whole { model: model.with_kernels(crate::torch::Kernels::plain()), units, segments };
            let whole = Whole::in_folder(&folder, kind);
            for (name, whole) in [("kernels", whole), ("operations", plain)] {
                let difference = largest_difference(&whole.logits(&expected["input_ids"]), logits);
                let folder = folder.display();
                assert!(difference < tolerance * scale, "{folder}, {name} in {kind:?}: {difference} of {scale}");
            }
        }
    }
}

#[test]
fn what_a_rank_drops_follows_from_its_seed() {
    let _alone = crate::torch::generator_of_this_test(0);
    let folder = PathBuf::from(FIXTURES).join("families/gpt2");
    let mut whole = Whole::in_folder(&folder, Kind::Float);
    whole.model.config.hidden_dropout = 0.5;
    let x = Tensor::ones([1, 30, 32], (Kind::Float, Device::Cpu));
    let block = |seed| {
        let leaves = &whole.units[1];
        whole.model.segment_in_training(zerofold_plan::SegmentKind::Block(0), leaves, &x, None, seed).expect("a block")
    };
    assert!(block(1).equal(&block(1)) && !block(1).equal(&block(2)));
    let plain = whole.model.segment(zerofold_plan::SegmentKind::Block(0), &whole.units[1], &x, None).expect("a block");
    // Half of what attention adds, and half of what the MLP adds.
    let untouched = block(1).eq_tensor(&x).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
    assert!((untouched - 0.25).abs() < 0.06 && !block(1).allclose(&plain, 1e-5, 1e-5, false), "{untouched}");
}

#[test]
fn how_attention_goes_is_told() {
    let words = |name: &str, length| {
        let folder = PathBuf::from(FIXTURES).join("families").join(name);
        Whole::in_folder(&folder, Kind::Float).model.attention_words(length).expect("words").0
    };
    assert_eq!(words("qwen2", 64), "attention block by block");
    assert_eq!(words("gemma3", 64), "attention block by block, 2 of 3 layers see 5 tokens");
    assert_eq!(words("gemma2", 4), "attention block by block, scores capped at 1.5");
    assert_eq!(words("gemma2", 64), "attention block by block, 2 of 3 layers see 5 tokens, scores capped at 1.5");
}
