use super::*;
use crate::model::ModelConfig;
use std::collections::BTreeMap;
use zerofold_configs::{Inputs, UnitPolicy, resolve};

fn training(flags: &[(&str, &str)]) -> Training {
    let required = [("model_name_or_path", "m"), ("dataset", "d"), ("output_dir", "o"), ("weight_decay", "0.1")];
    let flags = required.iter().chain(flags).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    resolve(&Inputs { flags: flags.collect(), ..Inputs::default() }).unwrap().training
}

/// A model of four layers.
fn cut(tied: bool) -> ModelUnits {
    let llama = ModelConfig::published("llama-7b").unwrap();
    let model = ModelConfig { num_hidden_layers: 4, tie_word_embeddings: tied, ..llama };
    ModelUnits::new(&model, UnitPolicy::Blocks)
}

fn grouped(tied: bool, flags: &[(&str, &str)]) -> BTreeMap<String, ParameterGroup> {
    let mut cut = cut(tied);
    cut.group(&training(flags)).unwrap();
    let leaves = cut.units.into_iter().flat_map(|unit| unit.leaves);
    let names = leaves.flat_map(|leaf| leaf.parameters.into_iter().map(move |it| (it.name, leaf.group)));
    names.collect()
}

fn told(flags: &[(&str, &str)]) -> String {
    cut(false).group(&training(flags)).unwrap_err().to_string()
}

/// Openings, factor of the rate, weight decay.
fn own(opens: u32, rate: f64, weight_decay: f64) -> ParameterGroup {
    ParameterGroup::Own(OwnGroup { opens, rate: Number::new(rate), weight_decay: Number::new(weight_decay) })
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const QUERY: &str = "model.layers.1.self_attn.q_proj.weight";
const TOP: &str = "model.layers.3.self_attn.q_proj.weight";
const NORM: &str = "model.layers.1.input_layernorm.weight";
const FINAL_NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

#[test]
fn a_job_that_says_nothing_changes_nothing() {
    let mut grouped = cut(false);
    grouped.group(&training(&[])).unwrap();
    assert_eq!(grouped, cut(false));
}

/// The guide's rule: b·d^L, b·d^(L−i−1), b; here d = 0.5 and L = 4.
#[test]
fn rates_fall_from_layer_to_layer() {
    let flags = [("layer_wise_learning_rate_decay", "0.5")];
    let groups = grouped(false, &flags);
    assert_eq!(groups[EMBEDDING], own(0, 0.0625, 0.1));
    assert_eq!(groups[QUERY], own(0, 0.25, 0.1));
    assert_eq!(groups[NORM], own(0, 0.25, 0.0));
    assert_eq!(groups[TOP], ParameterGroup::Decayed);
    assert_eq!((groups[FINAL_NORM], groups[HEAD]), (ParameterGroup::NotDecayed, ParameterGroup::Decayed));
    assert_eq!(grouped(true, &flags)[EMBEDDING], own(0, 0.0625, 0.1), "tied");
}

#[test]
fn the_first_group_that_names_a_parameter_counts() {
    let rules = "[{pattern: model.layers.1.*, learning_rate: 1e-5}, {patterns: ['*norm*'], weight_decay: 0.3}, \
                 {pattern: lm_head.*, learning_rate_factor: 10, weight_decay: 0}]";
    let flags = [("parameter_groups", rules), ("learning_rate", "2e-5"), ("layer_wise_learning_rate_decay", "0.5")];
    let groups = grouped(false, &flags);
    // A rate of its own is not multiplied by that of the layer, a factor is.
    assert_eq!(groups[QUERY], own(0, 0.5, 0.1));
    assert_eq!(groups[NORM], own(0, 0.5, 0.0));
    assert_eq!(groups["model.layers.0.input_layernorm.weight"], own(0, 0.125, 0.3));
    assert_eq!(groups[FINAL_NORM], own(0, 1.0, 0.3));
    assert_eq!(groups[HEAD], own(0, 10.0, 0.0));
}

#[test]
fn freezing_is_by_name_or_all_but_the_head() {
    let groups = grouped(false, &[("freeze", "model.layers.1.*,model.embed_tokens.weight")]);
    let frozen = |groups: &BTreeMap<String, ParameterGroup>| {
        groups.values().filter(|group| **group == ParameterGroup::Frozen).count()
    };
    assert_eq!(groups[QUERY], ParameterGroup::Frozen);
    assert_eq!(frozen(&groups), 9 + 1);
    let groups = grouped(false, &[("freeze", "all_but_head")]);
    assert_eq!((groups[HEAD], frozen(&groups)), (ParameterGroup::Decayed, groups.len() - 1));
    let groups = grouped(true, &[("freeze", "all_but_head")]);
    assert_eq!((groups[EMBEDDING], frozen(&groups)), (ParameterGroup::Decayed, groups.len() - 1));
    assert_eq!(
        grouped(false, &[("parameter_groups", "[{pattern: model.layers.1.*, freeze: true}]")])[QUERY],
        ParameterGroup::Frozen
    );
}

/// The guide's sample: epoch e opens the head and the top min(e + 1, L) layers; its prose begins with the head alone.
#[test]
fn layers_open_from_the_top() {
    let opened = |tied: bool, flags: &[(&str, &str)], openings: u32| {
        let flags: Vec<_> = [("gradual_unfreezing", "epoch")].iter().chain(flags).copied().collect();
        let groups = grouped(tied, &flags);
        let layer = |layer: usize| format!("model.layers.{layer}.mlp.down_proj.weight");
        let names = [EMBEDDING.to_owned(), layer(0), layer(1), layer(2), layer(3), FINAL_NORM.to_owned()];
        let open = |name: &String| if groups[name].is_trained(openings) { 'x' } else { '.' };
        assert!(tied || groups[HEAD].is_trained(0));
        names.iter().map(open).collect::<String>()
    };
    for (openings, expected) in [(0, "....xx"), (1, "...xxx"), (2, "..xxxx"), (3, ".xxxxx"), (9, ".xxxxx")] {
        assert_eq!(opened(false, &[], openings), expected, "{openings}");
    }
    let prose = [("gradual_unfreezing_start", "head"), ("gradual_unfreezing_embeddings", "true")];
    for (openings, expected) in [(0, "......"), (1, "....xx"), (4, ".xxxxx"), (5, "xxxxxx")] {
        assert_eq!(opened(false, &prose, openings), expected, "{openings}");
    }
    assert_eq!(opened(true, &[], 0), "x...xx", "the head is the embedding");
}

#[test]
fn what_does_not_fit_is_told() {
    let says = |flags: &[(&str, &str)], parts: &[&str]| {
        let told = told(flags);
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
    };
    says(
        &[("freeze", "model.layers.*,lm_haed.weight")],
        &["freeze:", "lm_haed.weight", "did you mean lm_head.weight?"],
    );
    says(&[("freeze", "transformer.h.0.*")], &["transformer.h.0.*", "it has model.embed_tokens.weight"]);
    let shadowed = "[{pattern: '*', weight_decay: 0}, {pattern: lm_head.weight, weight_decay: 1}]";
    says(&[("parameter_groups", shadowed)], &["parameter_groups, group 2", "of an earlier group"]);
    says(&[("freeze", QUERY)], &["q_proj", "k_proj", "one product"]);
    let rate = format!("[{{pattern: {QUERY}, learning_rate_factor: 2}}]");
    says(&[("parameter_groups", &rate)], &["q_proj", "one product"]);
    let of_head = "[{pattern: 'lm_head.*', learning_rate: 1e-3}]";
    says(
        &[("parameter_groups", of_head), ("freeze", "lm_head.*")],
        &["group 1: lm_head.* names parameters that are never"],
    );
    let of_body = "[{pattern: 'model.layers.0.*', learning_rate: 1e-3}]";
    says(&[("parameter_groups", of_body), ("freeze", "all_but_head")], &["group 1: model.layers.0.*", "never trained"]);
    says(&[("freeze", "*")], &["nothing is trained", "leave nothing of the model"]);
    let later = [("gradual_unfreezing", "epoch"), ("gradual_unfreezing_start", "head"), ("freeze", "lm_head.*")];
    says(&later, &["nothing is trained in the first step", "what gradual unfreezing begins with"]);
    let error = cut(true).group(&training(&[("freeze", "lm_head.weight")])).unwrap_err().to_string();
    assert!(error.contains("its head is the embedding"), "{error}");
}
