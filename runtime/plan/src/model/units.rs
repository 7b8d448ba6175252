//! How a model is cut into segments, which are computed in one go, and into units, which communicate together.
//!
//! A unit holds the parameters of one segment, or of several neighbouring ones. With tied weights the embedding and the
//! head share a unit, though everything else is computed between them.

use super::{ModelConfig, ModelConfigError, leaves};
use crate::spec::{LeafSpec, ParameterGroup, UnitSpec};
use std::ops::Range;
use zerofold_configs::UnitPolicy;

/// What a segment computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Token ids to hidden states. Leaves: the embeddings of positions and of types of tokens where there are such, that of
    /// tokens.
    Embedding,
    /// The norm of the embeddings and what training drops of them, in models that have one or the other; of the first block's unit.
    /// Leaves: the norm's, if any.
    EmbeddingOutput,
    /// A whole decoder block. Leaves: those of [`SegmentKind::Attention`], then those of [`SegmentKind::Mlp`].
    Block(usize),
    /// A block's attention with its norms. Leaves: the norm before it, query, key and value (stacked), their norms, the output, the norm
    /// after it, each weight before its bias, as far as the model has them.
    Attention(usize),
    /// A block's MLP with its norms. Leaves: the norm before it, gate and up (stacked), down, the norm after it, likewise.
    Mlp(usize),
    /// The final norm or linear layer, the head and the loss. Leaves: the head, the norm; or the head and the linear layer, each with its bias.
    Head,
}

/// As units are called that hold one segment: `embedding`, `layer 3`, `layer 3 attention`, `layer 3 mlp`, `head`.
impl std::fmt::Display for SegmentKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SegmentKind::Embedding => formatter.write_str("embedding"),
            SegmentKind::EmbeddingOutput => formatter.write_str("embedding output"),
            SegmentKind::Block(layer) => write!(formatter, "layer {layer}"),
            SegmentKind::Attention(layer) => write!(formatter, "layer {layer} attention"),
            SegmentKind::Mlp(layer) => write!(formatter, "layer {layer} mlp"),
            SegmentKind::Head => formatter.write_str("head"),
        }
    }
}

impl SegmentKind {
    /// Whether it is a block or a part of one, which gradient checkpointing counts.
    pub fn is_of_block(self) -> bool {
        matches!(self, SegmentKind::Block(_) | SegmentKind::Attention(_) | SegmentKind::Mlp(_))
    }

    /// Its `count` leaves, as places in the lists above, in the order in which backward makes their gradients.
    pub fn backward_order(self, count: usize) -> Vec<usize> {
        match self {
            SegmentKind::Head => (0..count).collect(),
            _ => (0..count).rev().collect(),
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
        let tied = config.ties_head();
        let mut units = Vec::new();
        let mut segments = Vec::new();
        let mut open = Building { names: vec![SegmentKind::Embedding.to_string()], leaves: leaves::embedding(config) };
        // The embedding of tokens is the last one, so that it and the final norm are neighbours.
        let embeddings = open.leaves.len();
        if tied {
            open.leaves.extend(leaves::final_norm(config));
        }
        let of_tied_head = embeddings - 1..open.leaves.len();
        segments.push(Segment { kind: SegmentKind::Embedding, unit: 0, leaves: 0..embeddings });
        let mut add = |kind: SegmentKind, leaves: Vec<LeafSpec>| {
            let alone = tied && units.is_empty() && policy != UnitPolicy::Whole;
            // The norm of the embeddings is too small for a unit of its own.
            let joins = segments.last().is_some_and(|last: &Segment| last.kind == SegmentKind::EmbeddingOutput);
            if !joins && (alone || open.numel() >= least) {
                units.push(std::mem::take(&mut open).finish(tied && units.is_empty()));
            }
            let begin = open.leaves.len();
            segments.push(Segment { kind, unit: units.len(), leaves: begin..begin + leaves.len() });
            if !leaves.is_empty() {
                open.names.push(kind.to_string());
            }
            open.leaves.extend(leaves);
        };
        if config.changes_embeddings() {
            add(SegmentKind::EmbeddingOutput, leaves::embedding_output(config));
        }
        for layer in 0..config.num_hidden_layers {
            let (attention, mlp) = (leaves::attention(config, layer), leaves::mlp(config, layer));
            if policy == UnitPolicy::BlockHalves {
                add(SegmentKind::Attention(layer), attention);
                add(SegmentKind::Mlp(layer), mlp);
            } else {
                add(SegmentKind::Block(layer), attention.into_iter().chain(mlp).collect());
            }
        }
        if !tied {
            add(SegmentKind::Head, leaves::head(config));
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
            segments.push(Segment { kind: SegmentKind::Head, unit: 0, leaves: of_tied_head });
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
        let known = self.names.classes;
        match classes.iter().find(|class| !known.contains(&class.as_str())) {
            None => Ok(()),
            Some(found) => Err(ModelConfigError::LayerClass {
                architecture: self.architecture.clone(),
                found: found.clone(),
                hint: format!("it has {} (or {} and {} together)", known[0], known[1], known[2]),
            }),
        }
    }
}
