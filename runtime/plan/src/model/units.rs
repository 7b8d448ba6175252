//! How a model is cut into segments, which are computed in one go, and into units, which communicate together.
//!
//! A unit holds the parameters of one segment, or of several neighbouring ones. With tied weights the embedding and the
//! head share a unit, though everything else is computed between them.

use super::{ModelConfig, ModelConfigError};
use crate::spec::{LeafSpec, ParameterGroup, ParameterSpec, UnitSpec};
use std::ops::Range;
use zerofold_configs::UnitPolicy;

/// What a segment computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Token ids to hidden states. Leaves: the embedding.
    Embedding,
    /// A whole decoder block. Leaves: those of [`SegmentKind::Attention`], then those of [`SegmentKind::Mlp`].
    Block(usize),
    /// A block's attention with the norm before it. Leaves: qkv (stacked), o, norm.
    Attention(usize),
    /// A block's MLP with the norm before it. Leaves: gate_up (stacked), down, norm.
    Mlp(usize),
    /// The final norm, the head and the loss. Leaves: the head, the norm.
    Head,
}

/// As units are called that hold one segment: `embedding`, `layer 3`, `layer 3 attention`, `layer 3 mlp`, `head`.
impl std::fmt::Display for SegmentKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SegmentKind::Embedding => formatter.write_str("embedding"),
            SegmentKind::Block(layer) => write!(formatter, "layer {layer}"),
            SegmentKind::Attention(layer) => write!(formatter, "layer {layer} attention"),
            SegmentKind::Mlp(layer) => write!(formatter, "layer {layer} mlp"),
            SegmentKind::Head => formatter.write_str("head"),
        }
    }
}

impl SegmentKind {
    /// Its leaves, as places in the lists above, in the order in which backward makes their gradients.
    pub fn backward_order(self) -> &'static [usize] {
        match self {
            SegmentKind::Embedding => &[0],
            SegmentKind::Block(_) => &[4, 3, 5, 1, 0, 2],
            SegmentKind::Attention(_) | SegmentKind::Mlp(_) => &[1, 0, 2],
            SegmentKind::Head => &[0, 1],
        }
    }
}

/// A segment and where its leaves are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What it computes.
    pub kind: SegmentKind,
    /// The unit that has its leaves.
    pub unit: usize,
    /// Its leaves among the unit's.
    pub leaves: Range<usize>,
}

/// A model cut into segments and units, both in the order of the forward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelUnits {
    /// The units.
    pub units: Vec<UnitSpec>,
    /// The segments.
    pub segments: Vec<Segment>,
}

/// A unit while it is put together.
#[derive(Default)]
struct Building {
    names: Vec<String>,
    leaves: Vec<LeafSpec>,
}

impl Building {
    fn numel(&self) -> u64 {
        self.leaves.iter().map(|leaf| leaf.numel() as u64).sum()
    }

    fn finish(self, stays_gathered: bool) -> UnitSpec {
        let name = match self.names.as_slice() {
            [first, .., last] => format!("{first} to {last}"),
            names => names.concat(),
        };
        UnitSpec { name, leaves: self.leaves, stays_gathered }
    }
}

impl ModelUnits {
    /// Cuts the model that `config` describes as `policy` says. A tied embedding keeps a unit of its own, unless the
    /// whole model is one.
    pub fn new(config: &ModelConfig, policy: UnitPolicy) -> Self {
        let least = match policy {
            UnitPolicy::Blocks | UnitPolicy::BlockHalves => 1,
            UnitPolicy::MinParameters(least) => least,
            UnitPolicy::Whole => u64::MAX,
        };
        let tied = config.tie_word_embeddings;
        let mut units = Vec::new();
        let mut segments = Vec::new();
        let mut open =
            Building { names: vec![SegmentKind::Embedding.to_string()], leaves: vec![embedding_leaf(config)] };
        if tied {
            open.leaves.push(final_norm(config));
        }
        segments.push(Segment { kind: SegmentKind::Embedding, unit: 0, leaves: 0..1 });
        let mut add = |kind: SegmentKind, leaves: Vec<LeafSpec>| {
            let alone = tied && units.is_empty() && policy != UnitPolicy::Whole;
            if alone || open.numel() >= least {
                units.push(std::mem::take(&mut open).finish(tied && units.is_empty()));
            }
            let begin = open.leaves.len();
            segments.push(Segment { kind, unit: units.len(), leaves: begin..begin + leaves.len() });
            open.names.push(kind.to_string());
            open.leaves.extend(leaves);
        };
        for layer in 0..config.num_hidden_layers {
            let (attention, mlp) = (attention_leaves(config, layer), mlp_leaves(config, layer));
            if policy == UnitPolicy::BlockHalves {
                add(SegmentKind::Attention(layer), attention);
                add(SegmentKind::Mlp(layer), mlp);
            } else {
                add(SegmentKind::Block(layer), attention.into_iter().chain(mlp).collect());
            }
        }
        if !tied {
            add(SegmentKind::Head, vec![head_leaf(config), final_norm(config)]);
        }
        if open.numel() < least
            && units.len() > usize::from(tied)
            && let Some(last) = units.pop()
        {
            // Too small for a unit of its own: it joins the one before.
            let joined = last.leaves.len();
            for segment in segments.iter_mut().filter(|segment| segment.unit == units.len() + 1) {
                segment.unit = units.len();
                segment.leaves = segment.leaves.start + joined..segment.leaves.end + joined;
            }
            open.names.insert(0, last.name);
            open.leaves.splice(0..0, last.leaves);
        }
        units.push(open.finish(units.is_empty()));
        if tied {
            segments.push(Segment { kind: SegmentKind::Head, unit: 0, leaves: 0..2 });
        }
        ModelUnits { units, segments }
    }
}

impl ModelUnits {
    /// Freezes the parameters that `is_frozen` tells by name. What is stacked in one leaf is frozen together or not at all.
    ///
    /// # Errors
    /// [`ModelConfigError::PartlyFrozen`] when some parameters of a leaf are to be frozen and others are not.
    pub fn freeze(&mut self, is_frozen: impl Fn(&str) -> bool) -> Result<(), ModelConfigError> {
        for leaf in self.units.iter_mut().flat_map(|unit| &mut unit.leaves) {
            let (frozen, trained): (Vec<_>, Vec<_>) =
                leaf.parameters.iter().map(|parameter| &parameter.name).partition(|name| is_frozen(name));
            match (frozen.first(), trained.first()) {
                (Some(frozen), Some(trained)) => {
                    let (frozen, trained) = (frozen.to_string(), trained.to_string());
                    return Err(ModelConfigError::PartlyFrozen { frozen, trained });
                }
                (Some(_), None) => leaf.group = ParameterGroup::Frozen,
                (None, _) => {}
            }
        }
        Ok(())
    }
}

impl ModelConfig {
    /// Checks names of `fsdp_transformer_layer_cls_to_wrap` against the classes that this model has.
    ///
    /// # Errors
    /// [`ModelConfigError::LayerClass`] for a class that it does not have.
    pub fn check_layer_classes(&self, classes: &[String]) -> Result<(), ModelConfigError> {
        let family = self.architecture.trim_end_matches("ForCausalLM");
        let known = ["DecoderLayer", "Attention", "MLP"].map(|class| format!("{family}{class}"));
        match classes.iter().find(|class| !known.contains(class)) {
            None => Ok(()),
            Some(found) => Err(ModelConfigError::LayerClass {
                architecture: self.architecture.clone(),
                found: found.clone(),
                hint: format!("it has {} (or {} and {} together)", known[0], known[1], known[2]),
            }),
        }
    }
}

fn matrix(name: String, rows: usize, columns: usize) -> ParameterSpec {
    ParameterSpec::new(name, [rows, columns])
}

fn norm(name: String, width: usize) -> LeafSpec {
    LeafSpec::single(ParameterGroup::NotDecayed, ParameterSpec::new(name, [width]))
}

fn embedding_leaf(config: &ModelConfig) -> LeafSpec {
    let embedding = matrix("model.embed_tokens.weight".to_owned(), config.vocab_size, config.hidden_size);
    LeafSpec::single(ParameterGroup::Decayed, embedding)
}

fn head_leaf(config: &ModelConfig) -> LeafSpec {
    let head = matrix("lm_head.weight".to_owned(), config.vocab_size, config.hidden_size);
    LeafSpec::single(ParameterGroup::Decayed, head)
}

fn final_norm(config: &ModelConfig) -> LeafSpec {
    norm("model.norm.weight".to_owned(), config.hidden_size)
}

fn attention_leaves(config: &ModelConfig, layer: usize) -> Vec<LeafSpec> {
    let hidden = config.hidden_size;
    let query = config.num_attention_heads * config.head_dim;
    let key = config.num_key_value_heads * config.head_dim;
    let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
    let qkv = vec![
        matrix(name("self_attn.q_proj"), query, hidden),
        matrix(name("self_attn.k_proj"), key, hidden),
        matrix(name("self_attn.v_proj"), key, hidden),
    ];
    vec![
        LeafSpec::stacked(ParameterGroup::Decayed, qkv),
        LeafSpec::single(ParameterGroup::Decayed, matrix(name("self_attn.o_proj"), hidden, query)),
        norm(name("input_layernorm"), hidden),
    ]
}

fn mlp_leaves(config: &ModelConfig, layer: usize) -> Vec<LeafSpec> {
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
    let gate_up =
        vec![matrix(name("mlp.gate_proj"), intermediate, hidden), matrix(name("mlp.up_proj"), intermediate, hidden)];
    vec![
        LeafSpec::stacked(ParameterGroup::Decayed, gate_up),
        LeafSpec::single(ParameterGroup::Decayed, matrix(name("mlp.down_proj"), hidden, intermediate)),
        norm(name("post_attention_layernorm"), hidden),
    ]
}
