//! Makes a manifest of every rank's part and publishes it: the commit of a checkpoint.

use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use zerofold_checkpoint::publish::MANIFEST_FILE;
use zerofold_checkpoint::{JobRecord, Manifest, Part, discard_unfinished, publish};
use zerofold_configs::{Resolved, StateDictType};

use crate::chat_template;
use crate::control::Publish;
use crate::event::Event;
use crate::initial_model;
use crate::model_beside::ModelBeside;
use crate::store::{Keep, Uploader};

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

/// As [`publish_parts`], and then deletes the checkpoints that need not stay. With an uploader, hands the new one to it, which sees
/// to that; `told` hears of what will not be uploaded.
/// `data` is the hash of the rows, once they are there.
pub fn publisher(
    config: &Resolved,
    data: Arc<OnceLock<String>>,
    uploader: Option<Arc<Uploader>>,
    told: Sender<Event>,
) -> Arc<Publish> {
    let (job, keep) = (job_record(config), Keep::of(config));
    let models = (config.state_dict_type == StateDictType::Full).then(ModelBeside::default);
    let told = Mutex::new(told);
    Arc::new(move |directory, parts| {
        models.iter().for_each(ModelBeside::wait);
        let job = JobRecord { data: data.get().cloned(), ..job.clone() };
        let manifest = publish_parts(Some(&job), directory, parts)?;
        models.iter().for_each(|models| models.begin(directory));
        match &uploader {
            None => keep.delete_old(directory, &[]),
            Some(uploader) => {
                if let Some(step) = uploader.offer(directory) {
                    // Nobody listens any more once the job is over.
                    let _ = told.lock().unwrap_or_else(PoisonError::into_inner).send(Event::StoreSkipped { step });
                }
            }
        }
        Ok(manifest)
    })
}

/// What every checkpoint tells of its job.
fn job_record(config: &Resolved) -> JobRecord {
    let configuration = serde_json::to_value(initial_model::anywhere(config)).unwrap_or_default();
    JobRecord { configuration, chat_template: chat_template::digest(config), data: None }
}

fn publish_all(job: Option<&JobRecord>, directory: &Path, parts: &[Vec<u8>]) -> Result<String, String> {
    let parse = |(rank, part): (usize, &Vec<u8>)| {
        serde_json::from_slice::<Part>(part)
            .map_err(|error| format!("rank {rank} sent no part of a checkpoint: {error}"))
    };
    let parts = parts.iter().enumerate().map(parse).collect::<Result<Vec<_>, _>>()?;
    let parts_count = parts.len();
    let mut manifest = Manifest::assemble(parts).map_err(|error| error.to_string())?;
    manifest.job = job.cloned();
    if let Some(configuration) = manifest.job.as_mut().and_then(|job| job.configuration.as_object_mut()) {
        // The job may go on with other numbers of processes than it began with.
        configuration.insert("num_processes".to_owned(), parts_count.into());
    }
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
        let job = JobRecord { configuration: json!({"num_processes": 8}), chat_template: None, data: None };
        let manifest = publish_parts(Some(&job), &step, Ok(vec![part(0, 7), part(1, 7)])).unwrap();
        let written = std::fs::read_to_string(&manifest).unwrap();
        let written: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert_eq!(written["job"]["configuration"]["num_processes"], 2, "as many as wrote it");
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
