//! Going on with a run: what must be the same as in the job that saved the checkpoint, and what is told where it is not.

use std::path::Path;

use zerofold_checkpoint::{Found, newest_fitting};
use zerofold_configs::Resolved;
use zerofold_data::{Cursor, Items, Mixture, Packing, Sampling, StepPlan};
use zerofold_plan::ModelConfig;
use zerofold_store::CheckpointStore;

use crate::checkpoints::Parameters;
use crate::error::LaunchError;
use crate::format;
use crate::hub;
use crate::initial_model;
use crate::job::{absolute, step_plan};
use crate::run_folder::{Resume, RunFolder};
use crate::store;
use crate::terminal::Terminal;

const OTHER_MODEL: &str = "was saved from another model";

/// The checkpoint to go on from, which is one of this job's model. Nothing is touched.
pub(crate) fn find(
    run: &RunFolder,
    resume: &Resume,
    config: &Resolved,
    model: &ModelConfig,
    store: Option<&CheckpointStore>,
    terminal: &Terminal,
) -> Result<Found, LaunchError> {
    // A folder whose configuration cannot be read is no obstacle: the parameters are compared as well.
    if let Ok(before) = Resolved::read(&run.config()) {
        let folder = |config: &Resolved| config.training.model_name_or_path.clone();
        let same = |path: &Path| path.canonicalize().ok();
        let same_commit = before.hub_model.as_ref().zip(config.hub_model.as_ref());
        let same_commit =
            same_commit.is_some_and(|(before, now)| (&before.id, &before.commit) == (&now.id, &now.commit));
        // A folder that was moved is the same model; what the weights are comes from the checkpoint.
        let alike = || ModelConfig::read(&folder(&before)).ok().is_none_or(|before| before == *model);
        let moved = before.hub_model.is_none() && config.hub_model.is_none() && alike();
        if !same_commit && !moved && same(&folder(&before)) != same(&folder(config)) {
            let message = format!("the run in it trains {}, this job {}", hub::shown(&before), hub::shown(config));
            let saved = match before.hub_model {
                Some(model) => format!("{} --model_revision {}", model.id, model.commit),
                None => folder(&before).display().to_string(),
            };
            let hint = format!("resume with the same model: --model_name_or_path {saved}");
            return Err(LaunchError::RunFolder { path: run.root().to_owned(), message, hint });
        }
    }
    let parameters = Parameters::of(model);
    let fits = |found: &Found| of_model(found, &parameters);
    let mut found = match store {
        Some(store) => store::resume::find(run, store, resume, fits, terminal)?,
        None => run.find_resume(resume, fits, |line| terminal.complain(&line))?,
    };
    found.directory = absolute(&found.directory)?;
    of_model(&found, &parameters).map_err(|reason| {
        let message = format!("{}: {reason}", found.directory.display());
        let hint = "resume with the model_name_or_path that saved it, or from another step".to_owned();
        LaunchError::RunFolder { path: run.root().to_owned(), message, hint }
    })?;
    if let Resume::Step(_) = resume {
        initial_model::check_template(&found.manifest, config)?;
    }
    Ok(found)
}

/// A checkpoint is one of the model with these parameters, or why not.
fn of_model(found: &Found, parameters: &Parameters) -> Result<(), String> {
    parameters.difference(&found.manifest).map_or(Ok(()), |difference| Err(format!("it {OTHER_MODEL}: {difference}")))
}

/// Once everything is known to fit: clears what an interrupted run left behind, and gives the checkpoint and the plan from there
/// on. Before that nothing of the run is touched. Where the newest one was asked for and was saved by a job with other data or
/// another chat template, as one that was copied here may be, it is the newest that was not.
pub(crate) fn begin(
    run: &RunFolder,
    (found, asked): (Found, &Resume),
    config: &Resolved,
    model: &ModelConfig,
    data: (&Items, &str),
    terminal: &Terminal,
) -> Result<(Found, StepPlan), LaunchError> {
    let after = |found: &Found| Going::after(run, found, config, data);
    let (found, Going { plan, saved, note }) = match (after(&found), asked) {
        (Ok(going), _) => (found, going),
        (Err(misfit), Resume::Step(_)) => return Err(misfit.error),
        (Err(misfit), Resume::Newest) => match older(run, &found, model, after, &misfit, terminal)? {
            Some(older) => older,
            None => return Err(misfit.error),
        },
    };
    let (manifest, directory) = (&found.manifest, found.directory.display());
    run.clear_after(&found, |line| terminal.complain(&line))?;
    let (ranks, stage) = (format::plural(u64::from(manifest.world_size), "rank"), manifest.stage);
    let here = (config.num_processes, config.sharding.stage.number());
    let other = match (manifest.world_size, stage) == here {
        true => String::new(),
        false => format!(", saved by {ranks} at stage {stage}"),
    };
    terminal.say(&format!("resuming after step {} from {directory}{other}", manifest.step));
    note.iter().for_each(|note| terminal.complain(&format!("note: {note}")));
    if saved.global_batch != plan.global_batch() {
        terminal.complain(&format!(
            "note: a step takes {} from here on and took {} before, so the run has {} in all (the learning rate's schedule \
             too)",
            format::items(plan.global_batch(), saved.packing.is_some()),
            saved.global_batch,
            format::plural(plan.total_steps(), "step"),
        ));
    }
    if manifest.step >= plan.total_steps() {
        terminal.complain(&format!(
            "note: the run is at step {} and is to have {}: nothing is trained (max_steps and num_train_epochs decide)",
            manifest.step,
            format::plural(plan.total_steps(), "step"),
        ));
    }
    let changes = changes(&found, config);
    if !changes.is_empty() {
        terminal.complain(&format!("note: changed since the checkpoint: {}", changes.join(", ")));
    }
    Ok((found, plan))
}

/// Keys of `training:` that do not matter to what is computed, or of which more is told elsewhere.
const TOLD_ELSEWHERE: [&str; 9] = [
    "chat_template_path",
    "model_name_or_path",
    "model_revision",
    "output_dir",
    "dataset",
    "per_device_train_batch_size",
    "report_to",
    "logging_dir",
    "metrics_port",
];

/// What was set otherwise in the job that saved the checkpoint, in words.
fn changes(found: &Found, config: &Resolved) -> Vec<String> {
    let Some(job) = &found.manifest.job else { return Vec::new() };
    let here = serde_json::to_value(&config.training).unwrap_or_default();
    let mut changes = Vec::new();
    for (key, now) in here.as_object().into_iter().flatten() {
        // A key that the job's version did not have yet had its default.
        let Some(before) = job.configuration["training"].get(key) else { continue };
        if before != now && !TOLD_ELSEWHERE.contains(&key.as_str()) {
            let words = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            // The Fisher information goes on with the run.
            let without = ["ewc_dataset", "ewc_samples"].contains(&key.as_str()) && config.training.estimates_fisher();
            let remark = if without { " (without effect: the Fisher information is the checkpoint's)" } else { "" };
            changes.push(format!("{key} {} → {}{remark}", words(before), words(now)));
        }
    }
    changes
}

/// The newest checkpoint before `found` that is whole, of the same model and the same data, if there is one; then tells which newer
/// ones are skipped for it.
fn older(
    run: &RunFolder,
    found: &Found,
    model: &ModelConfig,
    after: impl Fn(&Found) -> Result<Going, Misfit>,
    misfit: &Misfit,
    terminal: &Terminal,
) -> Result<Option<(Found, Going)>, LaunchError> {
    let parameters = Parameters::of(model);
    let mut going = None;
    let fits = |found: &Found| {
        of_model(found, &parameters)?;
        going = Some(after(found).map_err(|misfit| misfit.reason)?);
        Ok(())
    };
    let (older, skipped) = newest_fitting(&run.checkpoints(), Some(found.manifest.step), fits)?;
    let Some((mut older, going)) = older.zip(going) else { return Ok(None) };
    terminal.complain(&format!("skipped {}: {}", found.directory.display(), misfit.reason));
    for skipped in &skipped {
        terminal.complain(&format!("skipped {}: {}", skipped.directory.display(), skipped.reason));
    }
    older.directory = absolute(&older.directory)?;
    Ok(Some((older, going)))
}

/// Why a checkpoint is none to go on from with this job's data.
#[derive(Debug)]
struct Misfit {
    /// Where another one is gone on from.
    reason: String,
    /// Where there is no other.
    error: LaunchError,
}

impl From<LaunchError> for Misfit {
    fn from(error: LaunchError) -> Self {
        Misfit { reason: error.to_string().lines().next().unwrap_or_default().to_owned(), error }
    }
}

/// How a job goes on from a checkpoint.
#[derive(Debug)]
struct Going {
    /// The plan from there on.
    plan: StepPlan,
    /// Where in the data it was saved.
    saved: Cursor,
    /// What is to be told of it.
    note: Option<String>,
}

impl Going {
    fn after(
        run: &RunFolder,
        found: &Found,
        config: &Resolved,
        (items, digest): (&Items, &str),
    ) -> Result<Going, Misfit> {
        let (manifest, directory) = (&found.manifest, found.directory.display());
        let misfit = |reason: String, hint: &str| {
            let (path, message, hint) = (run.root().to_owned(), format!("{directory} {reason}"), hint.to_owned());
            Misfit { reason: format!("it {reason}"), error: LaunchError::RunFolder { path, message, hint } }
        };
        let note = initial_model::check_template(manifest, config)?;
        let plan = step_plan(config, items.clone())?;
        let Ok(saved) = serde_json::from_value::<Cursor>(manifest.state["data"].clone()) else {
            let hint = "it was written by another version of launch: resume with that one";
            return Err(misfit("does not tell its place in the data".to_owned(), hint));
        };
        let hint =
            "resume with the data, seed and sampling of the job that saved it (its config.resolved.yaml has them)";
        let mut differences = differences(&saved, &plan.cursor(manifest.step));
        let there = manifest.job.as_ref().and_then(|job| job.data.as_deref());
        if differences.is_empty() && there.is_some_and(|there| there != digest) {
            let from = "dataset, tokenizer, chat template, max_length and assistant_only_loss decide";
            differences.push(format!("as many rows, and other tokens in them ({from})"));
        }
        if !differences.is_empty() {
            let reason = format!("was saved by a job with other data: {}", differences.join("; "));
            return Err(misfit(reason, hint));
        }
        match plan.resumed(manifest.step, &saved) {
            Ok(plan) => Ok(Going { plan, saved, note }),
            Err(error) => {
                let reason = error.to_string();
                let reason = reason.lines().next().unwrap_or_default();
                Err(misfit(format!("tells of a place in the data that there is not: {reason}"), hint))
            }
        }
    }
}

/// What differs between the data that a checkpoint was saved in and that of this job, in words.
fn differences(saved: &Cursor, here: &Cursor) -> Vec<String> {
    let mut told = Vec::new();
    if saved.packing != here.packing {
        let words = |packing: Option<Packing>| match packing {
            Some(Packing { strategy, max_length }) => format!("by {} to {max_length}", strategy.name()),
            None => "off".to_owned(),
        };
        let (there, here) = (words(saved.packing), words(here.packing));
        told.push(format!("packing {there} there, {here} here (packing, packing_strategy and max_length)"));
    } else if saved.sources != here.sources {
        let words = |sources: &[usize]| if sources.is_empty() { "one".to_owned() } else { format!("{sources:?}") };
        let (there, here) = (words(&saved.sources), words(&here.sources));
        told.push(format!("packs of the sources {there} there, {here} here (dataset)"));
    } else if saved.rows != here.rows {
        let from = "dataset, max_length and assistant_only_loss decide";
        told.push(format!("rows of data {} there, {} here ({from})", saved.rows, here.rows));
    }
    if saved.row_seed != here.row_seed {
        let (there, here) = (saved.row_seed, here.row_seed);
        told.push(format!("seed of the order of the rows {there} there, {here} here (data_seed, else seed)"));
    }
    if saved.sampling != here.sampling {
        let name = |sampling| match sampling {
            Sampling::Random => "random",
            Sampling::Sequential => "sequential",
            Sampling::GroupByLength => "group_by_length",
        };
        let (there, here) = (name(saved.sampling), name(here.sampling));
        told.push(format!("order of the rows {there} there, {here} here (train_sampling_strategy)"));
    }
    if saved.mixture != here.mixture {
        let words = |mixture: &Option<Mixture>| match mixture {
            Some(mixture) => format!("{:?} of sources of {:?}", mixture.taken(), mixture.sources()),
            None => "all of each source".to_owned(),
        };
        let (there, here) = (words(&saved.mixture), words(&here.mixture));
        told.push(format!(
            "an epoch takes {there} there, {here} here (weights, mixing_temperature, stopping_strategy)"
        ));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_data::PackingStrategy;

    #[test]
    fn what_differs_is_told_in_words() {
        let here = Cursor {
            rows: 500,
            packing: None,
            sources: Vec::new(),
            epoch: 0,
            row: 24,
            global_batch: 12,
            row_seed: 1,
            sampling: Sampling::Random,
            group: None,
            mixture: None,
        };
        let there = Cursor { row: 8, global_batch: 4, ..here.clone() };
        assert!(differences(&there, &here).is_empty());
        let there = Cursor { rows: 600, row_seed: 7, sampling: Sampling::Sequential, ..here.clone() };
        assert_eq!(
            differences(&there, &here),
            [
                "rows of data 600 there, 500 here (dataset, max_length and assistant_only_loss decide)",
                "seed of the order of the rows 7 there, 1 here (data_seed, else seed)",
                "order of the rows sequential there, random here (train_sampling_strategy)",
            ]
        );
        let packing = Some(Packing { strategy: PackingStrategy::BfdSplit, max_length: 1024 });
        let there = Cursor { rows: 40, packing, ..here.clone() };
        assert_eq!(
            differences(&there, &here),
            ["packing by bfd_split to 1024 there, off here (packing, packing_strategy and max_length)"]
        );
    }
}
