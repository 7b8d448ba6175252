//! Saving and restoring: each rank writes and reads its own shards, `launch` publishes the manifest.
//!
//! A rank's file holds the rank's shard of every unit's masters and moments as float32, at every stage alike. With hybrid
//! sharding the first copy writes for all. The manifest tells where parameters lie in units, so a rank of a job with any
//! other stage, number of ranks or units reads the elements that are its own there, and nothing else.

use super::run::{Job, shown};
use super::{StepState, TrainError, Trainer};
use crate::comm::Phase;
use crate::shard::{ShardError, fill_by_float_chunks, for_each_float_chunk};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use zerofold_checkpoint::{
    CheckpointError, Dtype, FileEntry, Found, Part, STATES, SafetensorsWriter, SavedParameter, SavedUnit, StateReader,
    TensorEntry, TensorRange, digest_units, shard_file_name, step_directory,
};
use zerofold_data::Cursor;
use zerofold_plan::Layout;

/// The two parts of a checkpoint's state: the place in the data, and what steps leave for the next one.
const DATA: &str = "data";
const OPTIMIZER: &str = "optimizer";

/// How long the other ranks may take to write their parts.
const COMMIT_DEADLINE: Duration = Duration::from_secs(1800);

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
    /// Writes this rank's part of a checkpoint and returns when the whole is committed.
    pub(super) fn save(&mut self, job: &Job<'_>, progress: &Progress) -> Result<(), TrainError> {
        self.enter(Phase::Checkpoint);
        let identity = job.control.identity().clone();
        let directory = step_directory(&job.config.training.output_dir.join("checkpoints"), progress.step);
        std::fs::create_dir_all(&directory).map_err(|source| CheckpointError::Io {
            action: "create",
            path: directory.clone(),
            source,
        })?;
        let name = shard_file_name(identity.rank, identity.world_size, identity.generation);
        let files = if self.shards.is_first_replica() { vec![self.write_file(&directory, name)?] } else { Vec::new() };
        let units = saved_units(self.shards.layout());
        let part = Part {
            rank: identity.rank,
            world_size: identity.world_size,
            step: progress.step,
            generation: identity.generation,
            stage: self.shards.sharding().stage.number(),
            layout: digest_units(&units),
            units: if identity.rank == 0 { units } else { Vec::new() },
            state: serde_json::json!({ DATA: job.plan.cursor(progress.step), OPTIMIZER: self.state }),
            files,
        };
        let json = serde_json::json!(part).to_string().into_bytes();
        job.control.checkpoint_written(progress.step, &shown(&directory), json, COMMIT_DEADLINE)?;
        Ok(())
    }

    /// Writes this rank's shards of masters and moments.
    fn write_file(&self, directory: &Path, name: String) -> Result<FileEntry, TrainError> {
        let (mut entries, mut ranges) = (Vec::new(), Vec::new());
        for unit in &self.shards.units {
            let shard = unit.layout.shard(self.shards.place());
            for state in STATES {
                let whole = format!("{}/{state}", unit.layout.name);
                entries.push(TensorEntry::new(whole.clone(), Dtype::F32, [shard.len()]));
                ranges.push(TensorRange {
                    name: whole.clone(),
                    dtype: Dtype::F32,
                    whole,
                    length: unit.layout.numel as u64,
                    begin: shard.start as u64,
                    end: shard.end as u64,
                });
            }
        }
        let mut writer = SafetensorsWriter::create(&directory.join(&name), &entries, &BTreeMap::new())?;
        for unit in &self.shards.units {
            for (state, tensor) in STATES.iter().zip(unit.own_state()?) {
                let whole = format!("{}/{state}", unit.layout.name);
                for_each_float_chunk(&tensor, |range, values| {
                    writer.write_f32(&whole, range.start as u64, values).map_err(ShardError::from)
                })?;
            }
        }
        Ok(FileEntry::new(name, writer.finish()?, ranges))
    }

    /// Reads what this rank owns out of a checkpoint, and makes it the state to go on from.
    pub(super) fn restore(&mut self, found: &Found) -> Result<Progress, TrainError> {
        self.enter(Phase::Loading);
        let saved = StateReader::open(found)?;
        self.check_parameters(&saved)?;
        let state: StepState = from_state(found, OPTIMIZER, "the optimizer's state")?;
        for unit in &self.shards.units {
            let shard = unit.layout.shard(self.shards.place());
            for (state, tensor) in STATES.iter().zip(unit.own_state()?) {
                fill_by_float_chunks(&tensor, |range, values| {
                    let (first, last) = (shard.start + range.start, shard.start + range.end);
                    for parameter in unit.layout.parameters() {
                        let (begin, end) = (parameter.begin.max(first), parameter.end.min(last));
                        if begin < end {
                            let elements = (begin - parameter.begin) as u64..(end - parameter.begin) as u64;
                            saved.read(&parameter.name, state, elements, &mut values[begin - first..end - first])?;
                        }
                    }
                    Ok::<(), ShardError>(())
                })?;
            }
        }
        // A run that goes on in another type begins with a loss scale of its own, or none.
        self.state.skipped = state.skipped;
        self.state.loss_scale = self.state.loss_scale.map(|fresh| state.loss_scale.unwrap_or(fresh));
        self.shards.share_state()?;
        self.activity.finished_steps(found.manifest.step);
        Ok(Progress { step: found.manifest.step })
    }

    /// The checkpoint has this model's parameters in their shapes, and no others.
    fn check_parameters(&self, saved: &StateReader) -> Result<(), TrainError> {
        let mismatch = |what, found: String, expected: String| {
            let hint = "it was saved from another model: resume with the model_name_or_path that saved it";
            Err(TrainError::Mismatch { path: shown(saved.directory()), what, found, expected, hint })
        };
        let layout = self.shards.layout();
        let own: BTreeSet<&str> =
            layout.units.iter().flat_map(|unit| unit.parameters()).map(|parameter| parameter.name.as_str()).collect();
        let theirs: BTreeSet<&str> = saved.parameters().map(|(name, _)| name).collect();
        if own != theirs {
            let some = |one: &BTreeSet<&str>, other: &BTreeSet<&str>| match one.difference(other).next() {
                Some(first) => format!("{} ({first} is there alone)", one.len()),
                None => one.len().to_string(),
            };
            return mismatch("the set of parameters", some(&theirs, &own), some(&own, &theirs));
        }
        for parameter in layout.units.iter().flat_map(|unit| unit.parameters()) {
            let shape = &saved.parameter(&parameter.name)?.shape;
            if !shape.iter().copied().eq(parameter.shape.iter().map(|&size| size as u64)) {
                let (found, expected) = (format!("{shape:?}"), format!("{:?}", parameter.shape));
                return mismatch("the shape of a parameter", format!("{found} ({})", parameter.name), expected);
            }
        }
        Ok(())
    }
}
