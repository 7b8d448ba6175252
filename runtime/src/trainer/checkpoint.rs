//! Saving and restoring: each rank writes and reads its own shards, `launch` publishes the manifest.
//!
//! A rank's file holds the rank's shard of every unit's masters and moments as float32, at every stage alike, so a
//! checkpoint does not depend on the stage that wrote it. With hybrid sharding the first copy writes for all. The number of
//! ranks and the units must be the same for now.

use super::run::{Job, shown};
use super::{StepState, TrainError, Trainer};
use crate::comm::Phase;
use crate::shard::{ShardError, fill_by_float_chunks, for_each_float_chunk};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;
use zerofold_checkpoint::{
    CheckpointError, Dtype, FileEntry, Manifest, Part, SafetensorsReader, SafetensorsWriter, TensorEntry, TensorRange,
    open_step, shard_file_name, step_directory,
};

/// What is kept of each unit, in the order of `Unit::own_state`.
const STATE: [&str; 3] = ["master", "exp_avg", "exp_avg_sq"];

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

/// The digest by which checkpoints tell whether they fit a job's layout.
fn layout_digest(trainer: &Trainer) -> String {
    blake3::hash(trainer.shards.layout().description().as_bytes()).to_hex().to_string()
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
        let part = Part {
            rank: identity.rank,
            world_size: identity.world_size,
            step: progress.step,
            generation: identity.generation,
            stage: self.shards.sharding().stage.number(),
            layout: layout_digest(self),
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
            for (state, tensor) in STATE.iter().zip(unit.own_state()?) {
                let whole = format!("{}/{state}", unit.layout.name);
                for_each_float_chunk(&tensor, |range, values| {
                    writer.write_f32(&whole, range.start as u64, values).map_err(ShardError::from)
                })?;
            }
        }
        Ok(FileEntry::new(name, writer.finish()?, ranges))
    }

    /// Reads this rank's part of the checkpoint in `directory` and makes it the state to go on from.
    pub(super) fn restore(&mut self, directory: &Path, job: &Job<'_>) -> Result<Progress, TrainError> {
        self.enter(Phase::Loading);
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
            let hint = "it was saved from another model, or with other units: resume with the model_name_or_path, \
                        fsdp_auto_wrap_policy, fsdp_transformer_layer_cls_to_wrap and fsdp_min_num_params that saved it";
            let units = &self.shards.layout().units;
            let here = size_of_layout(units.iter().map(|unit| unit.numel as u64));
            return mismatch("the layout", size_of_layout(saved_units(&manifest).into_values()), here, hint);
        }
        let expected = serde_json::json!(job.plan.cursor(manifest.step));
        if manifest.state[DATA] != expected {
            let hint = "resume with the data set, batch sizes, accumulation, seed and sampling that saved it";
            return mismatch("the place in the data", manifest.state[DATA].to_string(), expected.to_string(), hint);
        }
        let Ok(state) = serde_json::from_value::<StepState>(manifest.state[OPTIMIZER].clone()) else {
            let hint = "the checkpoint was written by another version of launch";
            return mismatch(
                "the optimizer's state",
                manifest.state[OPTIMIZER].to_string(),
                "an object".to_owned(),
                hint,
            );
        };
        for unit in &self.shards.units {
            let shard = unit.layout.shard(self.shards.place());
            for (name, tensor) in STATE.iter().zip(unit.own_state()?) {
                let whole = format!("{}/{name}", unit.layout.name);
                fill_by_float_chunks(&tensor, |range, values| {
                    let wanted = shard.start + range.start..shard.start + range.end;
                    read_range(directory, &manifest, &whole, wanted, values).map_err(ShardError::from)
                })?;
            }
        }
        // A run that goes on in another type begins with a loss scale of its own, or none.
        self.state.skipped = state.skipped;
        self.state.loss_scale = self.state.loss_scale.map(|fresh| state.loss_scale.unwrap_or(fresh));
        self.shards.share_state()?;
        self.activity.finished_steps(manifest.step);
        Ok(Progress { step: manifest.step })
    }
}

/// The units in a checkpoint, by name, with their elements.
fn saved_units(manifest: &Manifest) -> BTreeMap<&str, u64> {
    let tensors = manifest.files.iter().flat_map(|file| &file.tensors);
    tensors.filter_map(|tensor| Some((tensor.whole.strip_suffix("/master")?, tensor.length))).collect()
}

/// A layout in words: its units' elements.
fn size_of_layout(units: impl Iterator<Item = u64>) -> String {
    let units: Vec<u64> = units.collect();
    format!("{} units with {} elements, padding included,", units.len(), units.iter().sum::<u64>())
}

/// Reads elements `wanted` of a whole tensor from whichever files hold them.
fn read_range(
    directory: &Path,
    manifest: &Manifest,
    whole: &str,
    wanted: Range<usize>,
    values: &mut [f32],
) -> Result<(), CheckpointError> {
    for file in &manifest.files {
        for held in file.tensors.iter().filter(|held| held.whole == whole) {
            let (begin, end) = (wanted.start.max(held.begin as usize), wanted.end.min(held.end as usize));
            if begin < end {
                let reader = SafetensorsReader::open(&directory.join(&file.name))?;
                let elements = begin - held.begin as usize..end - held.begin as usize;
                reader.read_f32(&held.name, elements, &mut values[begin - wanted.start..end - wanted.start])?;
            }
        }
    }
    Ok(())
}
