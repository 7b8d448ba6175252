//! Saving and restoring: each rank writes and reads its own shards, `launch` publishes the manifest.
//!
//! A rank's file holds the rank's shard of every unit's masters and moments as float32, at every stage alike. With hybrid
//! sharding the first copy writes for all. The manifest tells where parameters lie in units, so a rank of a job with any
//! other stage, number of ranks or units reads the elements that are its own there, and nothing else.

use super::run::{Job, shown};
use super::saving::{Saving, Share};
use super::snapshot::Snapshot;
use super::unfreezing::TRAINED;
use super::{Best, StepState, TrainError, Trainer};
use crate::comm::Phase;
use crate::control::Identity;
use std::collections::BTreeSet;
use std::time::Instant;
use zerofold_checkpoint::{
    Found, Part, STATES, SavedParameter, SavedUnit, Weights, digest_units, open_step, step_directory,
};
use zerofold_data::Cursor;
use zerofold_plan::{Layout, UnitLayout};

/// The two parts of a checkpoint's state: the place in the data, and what steps leave for the next one.
const DATA: &str = "data";
const OPTIMIZER: &str = "optimizer";

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Optimizer steps finished.
    pub step: u64,
}

/// The place in the data that a checkpoint was saved at.
pub fn saved_cursor(found: &Found) -> Result<Cursor, TrainError> {
    from_state(found, DATA, "the place in the data")
}

fn from_state<T: serde::de::DeserializeOwned>(found: &Found, part: &str, what: &'static str) -> Result<T, TrainError> {
    serde_json::from_value(found.manifest.state[part].clone()).map_err(|error| TrainError::Mismatch {
        path: shown(&found.directory),
        what,
        found: found.manifest.state[part].to_string(),
        expected: format!("something else ({error})"),
        hint: "the checkpoint was written by another version of launch",
    })
}

/// The layout as checkpoints tell it.
fn saved_units(layout: &Layout) -> Vec<SavedUnit> {
    let units = layout.units.iter().map(|unit| {
        let parameters = unit.parameters().map(|parameter| SavedParameter {
            name: parameter.name.clone(),
            shape: parameter.shape.iter().map(|&size| size as u64).collect(),
            begin: parameter.begin as u64,
        });
        SavedUnit { name: unit.name.clone(), length: unit.numel as u64, parameters: parameters.collect() }
    });
    units.collect()
}

impl Trainer {
    /// Begins to save a checkpoint of the present state, which is written and committed while training goes on; none is under
    /// way. `best` is the best one if this is committed.
    pub(super) fn begin_save(
        &mut self,
        job: &Job<'_>,
        progress: &Progress,
        best: Option<Best>,
    ) -> Result<(), TrainError> {
        let began = Instant::now();
        let identity = job.control.identity();
        let checkpoints = job.config.training.output_dir.join("checkpoints");
        let mut part = self.part(identity, progress, &job.plan.cursor(progress.step));
        part.state[OPTIMIZER] = serde_json::json!(StepState { best, ..self.state });
        let snapshot = self.shards.is_first_replica().then(|| Snapshot::new(&self.shards)).transpose()?;
        // The first rank sees to it that there is room for all.
        let numel = |unit: &UnitLayout| if identity.rank == 0 { unit.numel } else { unit.shard_numel };
        let elements: usize = self.shards.layout().units.iter().map(numel).sum();
        let states = STATES.len() + usize::from(self.shards.keeps_fisher());
        let room = (states * size_of::<f32>() * elements) as u64;
        let share = Share { directory: step_directory(&checkpoints, progress.step), part, snapshot, room, best };
        self.saving = Some(Saving::begin(share, job.control.checkpoints(), began)?);
        Ok(())
    }

    /// Waits for a save that is under way, if there is one.
    pub(super) fn finish_save(&mut self) -> Result<(), TrainError> {
        let Some(saving) = self.saving.take() else { return Ok(()) };
        if !saving.is_finished() {
            self.enter(Phase::Checkpoint);
        }
        let best = saving.best();
        if saving.finish()? {
            self.state.best = best;
        }
        Ok(())
    }

    /// Looks whether a save has ended.
    pub(super) fn look_after_save(&mut self) -> Result<(), TrainError> {
        match &self.saving {
            Some(saving) if saving.is_finished() => self.finish_save(),
            _ => Ok(()),
        }
    }

    /// What this rank tells of a checkpoint, without its files.
    pub fn part(&self, identity: &Identity, progress: &Progress, cursor: &Cursor) -> Part {
        let units = saved_units(self.shards.layout());
        let mut state = serde_json::json!({ DATA: cursor, OPTIMIZER: self.state });
        let trained = self.trained_state();
        if !trained.is_plain() {
            state[TRAINED] = serde_json::json!(trained);
        }
        Part {
            rank: identity.rank,
            world_size: identity.world_size,
            step: progress.step,
            generation: identity.generation,
            stage: self.shards.sharding().stage.number(),
            layout: digest_units(&units),
            units: if identity.rank == 0 { units } else { Vec::new() },
            state,
            files: Vec::new(),
        }
    }

    /// Reads what this rank owns out of a checkpoint, and makes it the state to go on from.
    pub fn restore(&mut self, found: &Found) -> Result<Progress, TrainError> {
        self.enter(Phase::Loading);
        let began = Instant::now();
        let saved = Weights::of_found(found)?;
        self.check_parameters(&saved)?;
        let state: StepState = from_state(found, OPTIMIZER, "the optimizer's state")?;
        self.shards.read_state(&saved, &STATES)?;
        // A run that goes on in another type begins with a loss scale of its own, or none.
        self.state.skipped = state.skipped;
        self.state.metric = state.metric;
        self.state.patience = state.patience;
        self.state.plateau = state.plateau;
        self.restore_trained(found, found.manifest.step - state.skipped)?;
        self.restore_fisher(found, &saved)?;
        // The best one may be gone: then it is looked for anew, as `launch` told.
        let there = |best: &Best| {
            let beside = found.directory.parent().map(|checkpoints| step_directory(checkpoints, best.step));
            beside.is_some_and(|directory| open_step(&directory).is_ok())
        };
        self.state.best = state.best.filter(there);
        self.state.loss_scale = self.state.loss_scale.map(|fresh| state.loss_scale.unwrap_or(fresh));
        self.activity.finished_steps(found.manifest.step);
        let (step, millis) = (found.manifest.step, began.elapsed().as_millis());
        tracing::info!("read the checkpoint of step {step} in {millis} ms");
        Ok(Progress { step: found.manifest.step })
    }

    /// The checkpoint has this model's parameters in their shapes, and no others.
    fn check_parameters(&self, saved: &Weights) -> Result<(), TrainError> {
        let mismatch = |what, found: String, expected: String| {
            let hint = "it was saved from another model: resume with the model_name_or_path that saved it";
            Err(TrainError::Mismatch { path: shown(saved.directory()), what, found, expected, hint })
        };
        let layout = self.shards.layout();
        let own: BTreeSet<&str> =
            layout.units.iter().flat_map(|unit| unit.parameters()).map(|parameter| parameter.name.as_str()).collect();
        let theirs: BTreeSet<&str> = saved.names().into_iter().collect();
        if own != theirs {
            let some = |one: &BTreeSet<&str>, other: &BTreeSet<&str>| match one.difference(other).next() {
                Some(first) => format!("{} ({first} is there alone)", one.len()),
                None => one.len().to_string(),
            };
            return mismatch("the set of parameters", some(&theirs, &own), some(&own, &theirs));
        }
        for parameter in layout.units.iter().flat_map(|unit| unit.parameters()) {
            let (shape, _) = saved.describe(&parameter.name)?;
            if !shape.iter().copied().eq(parameter.shape.iter().map(|&size| size as u64)) {
                let (found, expected) = (format!("{shape:?}"), format!("{:?}", parameter.shape));
                return mismatch("the shape of a parameter", format!("{found} ({})", parameter.name), expected);
            }
        }
        Ok(())
    }
}
