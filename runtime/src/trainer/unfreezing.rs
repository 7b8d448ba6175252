//! What is trained from when on, and what it is drawn toward: kept in checkpoints, so that a resumed run goes on as it was.

use super::run::shown;
use super::{TrainError, Trainer};
use crate::shard::{Shards, Unit};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use zerofold_checkpoint::{Found, Weights};

/// The part of a checkpoint's state that tells it. It is not there where all of the model is trained from the start.
pub(super) const TRAINED: &str = "trained";

/// What a checkpoint tells of its parameters beside their values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TrainedState {
    /// Parameters that were not trained, or not yet: their moments are zeros.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    frozen: BTreeSet<String>,
    /// Of those that were opened later: how many optimizer steps were taken before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    begun: BTreeMap<String, u64>,
    /// What the weights are known by that training was drawn toward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pretrained: Option<String>,
    /// How many examples the Fisher information was estimated on, which the files then have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fisher: Option<u64>,
}

impl TrainedState {
    /// What a checkpoint tells.
    fn of(found: &Found) -> Result<Self, TrainError> {
        let Some(state) = found.manifest.state.get(TRAINED) else { return Ok(TrainedState::default()) };
        serde_json::from_value(state.clone()).map_err(|error| TrainError::Mismatch {
            path: shown(&found.directory),
            what: "what was trained",
            found: state.to_string(),
            expected: format!("something else ({error})"),
            hint: "the checkpoint was written by another version of launch",
        })
    }

    pub(super) fn is_plain(&self) -> bool {
        *self == TrainedState::default()
    }

    /// How many steps were taken before the parameter was trained; none while it was not.
    fn begun(&self, name: &str) -> Option<u64> {
        (!self.frozen.contains(name)).then(|| self.begun.get(name).copied().unwrap_or(0))
    }
}

impl Trainer {
    /// Trains what is to be trained after so many openings of gradual unfreezing, from the step after `finished` ones on. Every
    /// rank calls it. Nothing is closed again.
    pub fn open(&mut self, openings: u32, finished: u64) -> Result<(), TrainError> {
        let trained = |shards: &Shards| shards.units.iter().map(Unit::trained).sum::<usize>();
        let before = trained(&self.shards);
        self.shards.open(openings, finished - self.state.skipped)?;
        self.segments.look_again(&self.shards.units);
        let now = trained(&self.shards);
        if now > before && finished > 0 && self.shards.comm().rank() == 0 {
            tracing::info!(
                "from step {} on {now} parameters are trained, {} more than before",
                finished + 1,
                now - before
            );
        }
        Ok(())
    }

    /// Draws training toward these weights, where the options say so.
    pub fn keep_pretrained(&mut self, weights: &Weights) -> Result<(), TrainError> {
        let sum = self.shards.keep_pretrained(weights)?;
        // Halves, since numbers are exchanged as float64.
        let all = self.shards.comm().exchange(&[(sum >> 32) as f64, (sum & u64::from(u32::MAX)) as f64])?;
        let one_copy = &all[..self.shards.layout().mesh.shards];
        let sum = one_copy
            .iter()
            .fold(0u64, |sum, halves| sum.wrapping_add(((halves[0] as u64) << 32).wrapping_add(halves[1] as u64)));
        self.pretrained = Some(format!("{sum:016x}"));
        Ok(())
    }

    /// What a checkpoint of now tells.
    pub(super) fn trained_state(&self) -> TrainedState {
        let mut state =
            TrainedState { pretrained: self.pretrained.clone(), fisher: self.fisher, ..TrainedState::default() };
        for unit in &self.shards.units {
            for (index, leaf) in unit.layout.leaves.iter().enumerate() {
                let names = leaf.parameters.iter().map(|parameter| parameter.name.clone());
                match unit.leaf_begun(index) {
                    Some(0) => {}
                    Some(begun) => state.begun.extend(names.map(|name| (name, begun))),
                    None => state.frozen.extend(names),
                }
            }
        }
        state
    }

    /// Takes the Fisher information from a checkpoint, where it is needed and not there yet.
    ///
    /// # Errors
    /// A checkpoint without it: at its weights it would be another one.
    pub(super) fn restore_fisher(&mut self, found: &Found, saved: &Weights) -> Result<(), TrainError> {
        if self.options.ewc_lambda == 0.0 || self.shards.keeps_fisher() {
            return Ok(());
        }
        let Some(examples) = TrainedState::of(found)?.fisher.filter(|_| found.manifest.has_fisher()) else {
            return Err(TrainError::Mismatch {
                path: shown(&found.directory),
                what: "the Fisher information",
                found: "missing".to_owned(),
                expected: "needed: ewc_lambda is more than 0".to_owned(),
                hint: "it is estimated where a run begins: resume without ewc_lambda, or begin a new run from the checkpoint, \
                       --model_name_or_path CHECKPOINT",
            });
        };
        self.shards.read_fisher(saved)?;
        self.fisher = Some(examples);
        Ok(())
    }

    /// Goes on with what a checkpoint tells, after `taken` optimizer steps: what was trained there counts its steps on, what was not
    /// begins now.
    ///
    /// # Errors
    /// Other weights to be drawn toward; parameters of one group of which some were trained and others were not, or not as long.
    pub(super) fn restore_trained(&mut self, found: &Found, taken: u64) -> Result<(), TrainError> {
        let state = TrainedState::of(found)?;
        if let (Some(there), Some(here)) = (&state.pretrained, &self.pretrained)
            && there != here
        {
            return Err(TrainError::Mismatch {
                path: shown(&found.directory),
                what: "the hash of the weights that training is drawn toward",
                found: there.clone(),
                expected: here.clone(),
                hint: "resume with the model_name_or_path that the run began with, unchanged",
            });
        }
        for unit in &mut self.shards.units {
            let layout = unit.layout.clone();
            for (run, begun) in unit.trained_runs() {
                let leaves = layout.leaves.iter().filter(|leaf| leaf.group == run.group);
                let names = leaves.flat_map(|leaf| &leaf.parameters).map(|parameter| parameter.name.as_str());
                let mut all = names.map(|name| (name, state.begun(name)));
                let Some((first, of_first)) = all.next() else { continue };
                if let Some((other, of_other)) = all.find(|(_, of_other)| *of_other != of_first) {
                    let words = |begun: Option<u64>| match begun {
                        Some(begun) => format!("trained from step {} on", begun + 1),
                        None => "frozen".to_owned(),
                    };
                    return Err(TrainError::Mismatch {
                        path: shown(&found.directory),
                        what: "what was trained",
                        found: format!("{first} {}, {other} {}", words(of_first), words(of_other)),
                        expected: "both of one group".to_owned(),
                        hint: "resume with the freeze, parameter_groups and gradual_unfreezing that saved it, or begin a new \
                               run from it: --model_name_or_path CHECKPOINT",
                    });
                }
                *begun = of_first.unwrap_or(taken);
            }
        }
        Ok(())
    }
}
