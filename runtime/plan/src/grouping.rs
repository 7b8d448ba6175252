//! Which group of parameters each leaf of a model is of: by `freeze` and `parameter_groups`, the rates of layers, and when
//! gradual unfreezing opens them.
//!
//! Layers count from 0, the lowest, and there are L. The final norm goes with the top layer. Tied embeddings are the head
//! too: they have the rate of embeddings, the lower one, and are open from the start, as a head is.

use crate::model::{ModelUnits, SegmentKind};
use crate::spec::{LeafSpec, Number, OwnGroup, ParameterGroup};
use thiserror::Error;
use zerofold_configs::{Freeze, GroupRule, NamePatterns, Strategy, Training, UnfreezingStart, nearest};

/// Why what a job says of parameters does not fit its model.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GroupingError {
    /// A pattern names nothing.
    #[error("{key}: no parameter of the model is called {pattern}\nhint: {hint}")]
    NoMatch {
        /// The key, with the place in its list.
        key: String,
        /// The pattern.
        pattern: String,
        /// Names that there are.
        hint: String,
    },
    /// A group that no parameter is of.
    #[error(
        "{key}: every parameter that {patterns} names is of an earlier group\nhint: the first group that names a parameter \
         counts: put this one before it, or remove it"
    )]
    Shadowed {
        /// The key, with the place in its list.
        key: String,
        /// The patterns.
        patterns: String,
    },
    /// A group for parameters that are never trained.
    #[error(
        "{key}: {patterns} names parameters that are never trained (freeze, or gradual_unfreezing without embeddings)\nhint: \
         take the group out, or train what it names"
    )]
    AllFrozen {
        /// The key, with the place in its list.
        key: String,
        /// The patterns.
        patterns: String,
    },
    /// Parameters that are computed in one product, of which other things are said.
    #[error(
        "{one} and {other} are used in one product, and freeze or parameter_groups say different things of them\nhint: \
         give both the same"
    )]
    Split {
        /// One of them.
        one: String,
        /// Another.
        other: String,
    },
    /// All is frozen.
    #[error("nothing is trained in the first step: freeze and parameter_groups leave nothing of {left}\nhint: {hint}")]
    NothingTrained {
        /// What could be trained.
        left: &'static str,
        /// What to do.
        hint: &'static str,
    },
}

impl GroupingError {
    /// The key that it comes from, as far as it is of one.
    pub fn key(&self) -> &str {
        match self {
            GroupingError::NoMatch { key, .. }
            | GroupingError::Shadowed { key, .. }
            | GroupingError::AllFrozen { key, .. } => key.split_once(',').map_or(key, |(key, _)| key),
            GroupingError::Split { .. } | GroupingError::NothingTrained { .. } => "freeze",
        }
    }
}

/// What a leaf is in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Embedding,
    /// The embedding, where the head is the same matrix.
    Tied,
    Layer(usize),
    FinalNorm,
    Head,
}

/// What `freeze` and `parameter_groups` say of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Said {
    Frozen,
    /// The entry of `parameter_groups`, if one names it.
    Trained(Option<usize>),
}

/// What a job says, and of how many layers.
struct Grouping<'a> {
    training: &'a Training,
    layers: usize,
}

impl ModelUnits {
    /// Puts every leaf in the group that a job says. What is stacked in one leaf is of one group.
    ///
    /// # Errors
    /// A pattern that names nothing, or nothing that is left; a leaf that would be split; nothing to train.
    pub fn group(&mut self, training: &Training) -> Result<(), GroupingError> {
        let places = self.places();
        let layers = places.iter().flatten().filter_map(|place| match place {
            Place::Layer(layer) => Some(layer + 1),
            _ => None,
        });
        let grouping = Grouping { training, layers: layers.max().unwrap_or(0) };
        grouping.check(self)?;
        for (unit, places) in self.units.iter_mut().zip(&places) {
            for (leaf, place) in unit.leaves.iter_mut().zip(places) {
                leaf.group = grouping.group_of(leaf, *place)?;
            }
        }
        grouping.check_trained(self)?;
        let mut groups = self.units.iter().flat_map(|unit| &unit.leaves).map(|leaf| leaf.group);
        if groups.any(|group| group.is_trained(0)) {
            return Ok(());
        }
        let (left, hint) = match training.gradual_unfreezing {
            Strategy::No => ("the model", "let at least one parameter be trained"),
            _ => ("what gradual unfreezing begins with", "let the head be trained, or begin with the top layer"),
        };
        Err(GroupingError::NothingTrained { left, hint })
    }

    /// The place of each leaf, by unit.
    fn places(&self) -> Vec<Vec<Place>> {
        let mut places: Vec<Vec<Place>> =
            self.units.iter().map(|unit| vec![Place::FinalNorm; unit.leaves.len()]).collect();
        for segment in &self.segments {
            // A norm before the head goes with the top layer, and a linear layer, whose weight is a matrix, with the head.
            let leaves = &self.units[segment.unit].leaves[segment.leaves.clone()];
            let is_matrix = |leaf: &LeafSpec| leaf.parameters.iter().any(|parameter| parameter.shape.len() > 1);
            let has_linear = leaves.iter().skip(1).any(is_matrix);
            for index in segment.leaves.clone() {
                let place = &mut places[segment.unit][index];
                *place = match segment.kind {
                    SegmentKind::Embedding | SegmentKind::EmbeddingOutput => Place::Embedding,
                    SegmentKind::Block(layer) | SegmentKind::Attention(layer) | SegmentKind::Mlp(layer) => {
                        Place::Layer(layer)
                    }
                    SegmentKind::Head if *place == Place::Embedding => Place::Tied,
                    SegmentKind::Head if has_linear || index == segment.leaves.start => Place::Head,
                    SegmentKind::Head => Place::FinalNorm,
                };
            }
        }
        places
    }
}

impl Grouping<'_> {
    /// Every pattern names a parameter, and every group has one.
    fn check(&self, model: &ModelUnits) -> Result<(), GroupingError> {
        let leaves = model.units.iter().flat_map(|unit| &unit.leaves);
        let names: Vec<&str> =
            leaves.flat_map(|leaf| &leaf.parameters).map(|parameter| parameter.name.as_str()).collect();
        if let Some(Freeze::Named(patterns)) = &self.training.freeze {
            check_patterns("freeze", patterns, &names)?;
        }
        for (index, rule) in self.training.groups().iter().enumerate() {
            let key = format!("parameter_groups, group {}", index + 1);
            check_patterns(&key, &rule.patterns, &names)?;
            if !names.iter().any(|name| self.rule_of(name) == Some(index)) {
                return Err(GroupingError::Shadowed { key, patterns: rule.patterns.to_string() });
            }
        }
        Ok(())
    }

    /// Of every group that says how something is trained, something is.
    fn check_trained(&self, model: &ModelUnits) -> Result<(), GroupingError> {
        for (index, rule) in self.training.groups().iter().enumerate().filter(|(_, rule)| !rule.freeze) {
            let mut leaves = model.units.iter().flat_map(|unit| &unit.leaves);
            let is_of = |leaf: &LeafSpec| leaf.parameters.iter().any(|one| self.rule_of(&one.name) == Some(index));
            if !leaves.any(|leaf| leaf.group != ParameterGroup::Frozen && is_of(leaf)) {
                let key = format!("parameter_groups, group {}", index + 1);
                return Err(GroupingError::AllFrozen { key, patterns: rule.patterns.to_string() });
            }
        }
        Ok(())
    }

    /// The first entry of `parameter_groups` that names a parameter.
    fn rule_of(&self, name: &str) -> Option<usize> {
        self.training.groups().iter().position(|rule| rule.patterns.any(name))
    }

    fn said_of(&self, name: &str) -> Said {
        let rule = self.rule_of(name);
        let by_name = matches!(&self.training.freeze, Some(Freeze::Named(patterns)) if patterns.any(name));
        let by_group = rule.is_some_and(|rule| self.training.groups()[rule].freeze);
        if by_name || by_group { Said::Frozen } else { Said::Trained(rule) }
    }

    fn group_of(&self, leaf: &LeafSpec, place: Place) -> Result<ParameterGroup, GroupingError> {
        let mut said = leaf.parameters.iter().map(|parameter| (parameter.name.as_str(), self.said_of(&parameter.name)));
        let Some((first, said_of_first)) = said.next() else { return Ok(leaf.group) };
        if let Some((other, _)) = said.find(|(_, said)| *said != said_of_first) {
            return Err(GroupingError::Split { one: first.to_owned(), other: other.to_owned() });
        }
        let below_head = !matches!(place, Place::Head | Place::Tied);
        if self.training.freeze == Some(Freeze::AllButHead) && below_head {
            return Ok(ParameterGroup::Frozen);
        }
        let (Said::Trained(rule), Some(opens)) = (said_of_first, self.opens(place)) else {
            return Ok(ParameterGroup::Frozen);
        };
        let rule = rule.map(|index| &self.training.groups()[index]);
        let (own, rate) = (rule.and_then(|rule| rule.weight_decay), self.rate(place, rule));
        if opens == 0 && rate == 1.0 && own.is_none() {
            return Ok(leaf.group);
        }
        let usual = if leaf.group == ParameterGroup::NotDecayed { 0.0 } else { self.training.weight_decay };
        let weight_decay = Number::new(own.unwrap_or(usual));
        Ok(ParameterGroup::Own(OwnGroup { opens, rate: Number::new(rate), weight_decay }))
    }

    /// What the schedule's rate is multiplied by.
    fn rate(&self, place: Place, rule: Option<&GroupRule>) -> f64 {
        let Training { learning_rate, layer_wise_learning_rate_decay: decay, .. } = self.training;
        if let Some(rate) = rule.and_then(|rule| rule.learning_rate) {
            return if rate == *learning_rate { 1.0 } else { rate / learning_rate };
        }
        let below = match place {
            Place::Embedding | Place::Tied => self.layers,
            Place::Layer(layer) => self.layers - layer - 1,
            Place::FinalNorm | Place::Head => 0,
        };
        let factor = rule.and_then(|rule| rule.learning_rate_factor).unwrap_or(1.0);
        factor * decay.powi(i32::try_from(below).unwrap_or(i32::MAX))
    }

    /// After how many openings it is trained; none for never.
    fn opens(&self, place: Place) -> Option<u32> {
        let Training { gradual_unfreezing, gradual_unfreezing_start, gradual_unfreezing_embeddings, .. } =
            self.training;
        if *gradual_unfreezing == Strategy::No {
            return Some(0);
        }
        // Layers that are open from the start.
        let first = match gradual_unfreezing_start {
            UnfreezingStart::TopLayer => 1,
            UnfreezingStart::Head => 0,
        };
        let from_top = match place {
            Place::Head | Place::Tied => 0,
            Place::FinalNorm => 1,
            Place::Layer(layer) => self.layers - layer,
            Place::Embedding if *gradual_unfreezing_embeddings => self.layers + 1,
            Place::Embedding => return None,
        };
        u32::try_from(from_top.saturating_sub(first)).ok()
    }
}

fn check_patterns(key: &str, patterns: &NamePatterns, names: &[&str]) -> Result<(), GroupingError> {
    let Some(pattern) = patterns.unused(names) else { return Ok(()) };
    let has = |begin: &str| names.iter().any(|name| name.starts_with(begin));
    let tied = pattern.starts_with("lm_head") && !has("lm_head") && !has("score") && !has("classifier");
    // A pattern for many names is near the beginning of some.
    let written = pattern.trim_end_matches(['*', '.']);
    let depth = written.split('.').count();
    let beginning = |name: &&str| name.match_indices('.').nth(depth - 1).map_or(name.len(), |(end, _)| end);
    let beginnings = names.iter().map(|name| &name[..beginning(name)]);
    let near = nearest(written, beginnings).map(|near| format!("{near}{}", &pattern[written.len()..]));
    let hint = match near {
        _ if tied => "its head is the embedding of tokens (tie_word_embeddings)".to_owned(),
        Some(near) => format!("did you mean {near}?"),
        None => {
            let some: Vec<&str> = names.iter().copied().take(3).chain(names.last().copied()).collect();
            format!("it has {}; * stands for any letters, as in *.0.*", some.join(", "))
        }
    };
    Err(GroupingError::NoMatch { key: key.to_owned(), pattern: pattern.to_owned(), hint })
}

#[cfg(test)]
#[path = "grouping_tests.rs"]
mod tests;
