//! Saving and restoring: each rank writes and reads its own shards, `launch` publishes the manifest.
//!
//! A rank's file holds the rank's shard of every unit's masters and moments, at every stage alike, so a checkpoint
//! does not depend on the stage that wrote it. The number of ranks must be the same for now.

use super::run::{Job, shown};
use super::{TrainError, Trainer};
use crate::comm::Phase;
use crate::torch::float_slice_mut;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use zerofold_checkpoint::{
    CheckpointError, Dtype, FileEntry, Part, SafetensorsReader, SafetensorsWriter, TensorEntry, TensorRange, open_step,
    shard_file_name, step_directory,
};

/// What is kept of each unit, in the order of `Unit::own_state`.
const STATE: [&str; 3] = ["master", "exp_avg", "exp_avg_sq"];

/// How long the other ranks may take to write their parts.
const COMMIT_DEADLINE: Duration = Duration::from_secs(1800);

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Optimizer steps finished.
    pub step: u64,
}

/// The digest by which checkpoints tell whether they fit a job's layout.
fn layout_digest(trainer: &Trainer) -> String {
    blake3::hash(trainer.shards.layout().description().as_bytes()).to_hex().to_string()
}

impl Trainer {
    /// Writes this rank's part of a checkpoint and returns when the whole is committed.
    pub(super) fn save(&mut self, job: &Job<'_>, progress: &Progress) -> Result<(), TrainError> {
        self.activity.enter(Phase::Checkpoint);
        let identity = job.control.identity().clone();
        let directory = step_directory(&job.config.training.output_dir.join("checkpoints"), progress.step);
        std::fs::create_dir_all(&directory).map_err(|source| CheckpointError::Io {
            action: "create",
            path: directory.clone(),
            source,
        })?;
        let name = shard_file_name(identity.rank, identity.world_size, identity.generation);
        let (mut entries, mut ranges) = (Vec::new(), Vec::new());
        for unit in &self.shards.units {
            let shard = unit.layout.shard(identity.rank as usize);
            for state in STATE {
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
            for (state, mut tensor) in STATE.iter().zip(unit.own_state()?) {
                writer.write_f32(&format!("{}/{state}", unit.layout.name), 0, float_slice_mut(&mut tensor)?)?;
            }
        }
        let part = Part {
            rank: identity.rank,
            world_size: identity.world_size,
            step: progress.step,
            generation: identity.generation,
            stage: self.shards.stage().number(),
            layout: layout_digest(self),
            state: serde_json::json!(job.plan.cursor(progress.step)),
            files: vec![FileEntry::new(name, writer.finish()?, ranges)],
        };
        let json = serde_json::json!(part).to_string().into_bytes();
        job.control.checkpoint_written(progress.step, &shown(&directory), json, COMMIT_DEADLINE)?;
        Ok(())
    }

    /// Reads this rank's part of the checkpoint in `directory` and makes it the state to go on from.
    pub(super) fn restore(&mut self, directory: &Path, job: &Job<'_>) -> Result<Progress, TrainError> {
        self.activity.enter(Phase::Loading);
        let manifest = open_step(directory)?.manifest;
        let mismatch = |what, found: String, expected: String, hint| {
            Err(TrainError::Mismatch { path: shown(directory), what, found, expected, hint })
        };
        let identity = job.control.identity();
        if manifest.world_size != identity.world_size {
            let hint = "resume with as many processes as saved it";
            return mismatch(
                "the number of processes",
                manifest.world_size.to_string(),
                identity.world_size.to_string(),
                hint,
            );
        }
        let digest = layout_digest(self);
        if manifest.layout != digest {
            let hint = "it was saved from another model; check model_name_or_path";
            return mismatch("the layout", manifest.layout, digest, hint);
        }
        let expected = serde_json::json!(job.plan.cursor(manifest.step));
        if manifest.state != expected {
            let hint = "resume with the data set, batch sizes, accumulation, seed and sampling that saved it";
            return mismatch("the place in the data", manifest.state.to_string(), expected.to_string(), hint);
        }
        let Some(entry) = manifest.file_of_rank(identity.rank) else {
            let hint = "the checkpoint is not whole; choose another";
            return mismatch("the rank's file", "missing".to_string(), format!("rank {}'s", identity.rank), hint);
        };
        let reader = SafetensorsReader::open(&directory.join(&entry.name))?;
        for unit in &self.shards.units {
            for (state, mut tensor) in STATE.iter().zip(unit.own_state()?) {
                let values = float_slice_mut(&mut tensor)?;
                reader.read_f32(&format!("{}/{state}", unit.layout.name), 0..values.len(), values)?;
            }
        }
        self.shards.share_state()?;
        self.activity.finished_steps(manifest.step);
        Ok(Progress { step: manifest.step })
    }
}
