//! Makes a manifest of every rank's part and publishes it: the commit of a checkpoint.

use std::path::Path;
use std::sync::Arc;

use zerofold_checkpoint::publish::MANIFEST_FILE;
use zerofold_checkpoint::{JobRecord, Manifest, Part, Retention, delete_old, discard_unfinished, open_step, publish};
use zerofold_configs::{Resolved, StateDictType, Training};

use crate::control::Publish;
use crate::initial_model::template_digest;
use crate::model_beside::ModelBeside;

/// Publishes the checkpoint in `directory` from the ranks' parts (JSON of [`Part`], by rank), with the record of the job where one is
/// to be kept. Returns the manifest's path.
///
/// # Errors
/// Why there are no parts; a part that is not one, parts that disagree, files that are missing or of another size, a manifest
/// that is there already, a disk that is full; in words. What is no checkpoint then is cleared away: nobody writes to it any more.
pub fn publish_parts(
    job: Option<&JobRecord>,
    directory: &Path,
    parts: Result<Vec<Vec<u8>>, String>,
) -> Result<String, String> {
    parts.and_then(|parts| publish_all(job, directory, &parts)).inspect_err(|_| {
        if let Err(error) = discard_unfinished(directory) {
            tracing::warn!("an unfinished save stays: {error}");
        }
    })
}

/// As [`publish_parts`], and then deletes the checkpoints that `config` does not ask to keep.
pub fn publisher(config: &Resolved) -> Arc<Publish> {
    let Training { save_total_limit, save_keep_every, .. } = config.training;
    let newest = save_total_limit.filter(|&limit| limit > 0);
    let job = job_record(config);
    let models = (config.state_dict_type == StateDictType::Full).then(ModelBeside::default);
    Arc::new(move |directory, parts| {
        models.iter().for_each(ModelBeside::wait);
        let manifest = publish_parts(Some(&job), directory, parts)?;
        models.iter().for_each(|models| models.begin(directory));
        if let (Some(newest), Some(checkpoints)) = (newest, directory.parent()) {
            let (newest, every) = (newest as usize, save_keep_every.map(u64::from));
            // The checkpoint is there, whatever becomes of older ones; nothing goes where the best one is not known.
            let deleted = open_step(directory).and_then(|found| {
                delete_old(checkpoints, Retention { newest, every, best: best_step(&found.manifest) })
            });
            if let Err(error) = deleted {
                tracing::warn!("an old checkpoint stays: {error}");
            }
        }
        Ok(manifest)
    })
}

/// What every checkpoint tells of its job.
fn job_record(config: &Resolved) -> JobRecord {
    let model = &config.training.model_name_or_path;
    let mut told = config.clone();
    // Wherever a command is run that reads it.
    told.training.model_name_or_path = std::path::absolute(model).unwrap_or_else(|_| model.clone());
    JobRecord { configuration: serde_json::to_value(told).unwrap_or_default(), chat_template: template_digest(model) }
}

/// The step whose held-out loss was the lowest so far, if the job looks for it.
fn best_step(manifest: &Manifest) -> Option<u64> {
    manifest.state["optimizer"]["best"]["step"].as_u64()
}

fn publish_all(job: Option<&JobRecord>, directory: &Path, parts: &[Vec<u8>]) -> Result<String, String> {
    let parse = |(rank, part): (usize, &Vec<u8>)| {
        serde_json::from_slice::<Part>(part)
            .map_err(|error| format!("rank {rank} sent no part of a checkpoint: {error}"))
    };
    let parts = parts.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
    let mut manifest = Manifest::assemble(parts).map_err(|error| error.to_string())?;
    manifest.job = job.cloned();
    publish(directory, &manifest).map_err(|error| error.to_string())?;
    Ok(directory.join(MANIFEST_FILE).display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use zerofold_checkpoint::digest_units;

    fn part(rank: u32, step: u64) -> Vec<u8> {
        let part = json!({"rank": rank, "world_size": 2, "step": step, "generation": 1, "stage": 0, "layout": digest_units(&[]),
            "state": {}, "files": []});
        part.to_string().into_bytes()
    }

    #[test]
    fn parts_that_agree_are_published_once() {
        let folder = tempfile::tempdir().unwrap();
        let step = zerofold_checkpoint::step_directory(folder.path(), 7);
        std::fs::create_dir(&step).unwrap();
        let manifest = publish_parts(None, &step, Ok(vec![part(0, 7), part(1, 7)])).unwrap();
        assert!(Path::new(&manifest).is_file());
        assert!(publish_parts(None, &step, Ok(vec![part(0, 7), part(1, 7)])).is_err());
        assert!(publish_parts(None, &step, Err("rank 1: too late".into())).is_err());
        assert!(Path::new(&manifest).is_file(), "what is published stays");
    }

    #[test]
    fn parts_that_do_not_fit_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let step = zerofold_checkpoint::step_directory(folder.path(), 7);
        let publish = |parts| {
            std::fs::create_dir(&step).unwrap();
            std::fs::write(step.join("rank-00000-of-00002.g1.safetensors"), "half").unwrap();
            let error = publish_parts(None, &step, parts).unwrap_err();
            assert!(!step.exists(), "the unfinished save stays");
            error
        };
        let error = publish(Ok(vec![part(0, 7), b"{}".to_vec()]));
        assert!(error.contains("rank 1 sent no part"), "{error}");
        let error = publish(Ok(vec![part(0, 7), part(1, 8)]));
        assert!(error.contains("rank 1 has 8"), "{error}");
        assert_eq!(publish(Err("rank 1: no space left".into())), "rank 1: no space left");
    }
}
