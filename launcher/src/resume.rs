//! Going on with a run: what must be the same as in the job that saved the checkpoint, and what is told where it is not.

use std::path::Path;

use zerofold_checkpoint::Found;
use zerofold_configs::Resolved;
use zerofold_data::{Cursor, Sampling, StepPlan};

use crate::error::LaunchError;
use crate::format;
use crate::hub;
use crate::initial_model;
use crate::run_folder::{Resume, RunFolder};
use crate::terminal::Terminal;
use crate::train::absolute;

/// The checkpoint to go on from, which this job's model must be that of. Nothing is touched.
pub(crate) fn find(
    run: &RunFolder,
    resume: &Resume,
    config: &Resolved,
    terminal: &Terminal,
) -> Result<Found, LaunchError> {
    let mut found = run.find_resume(resume, |line| terminal.complain(&line))?;
    found.directory = absolute(&found.directory)?;
    initial_model::check_template(&found.manifest, &config.training.model_name_or_path)?;
    // A folder whose configuration cannot be read is no obstacle: the workers compare the parameters as well.
    if let Ok(before) = Resolved::read(&run.config()) {
        let folder = |config: &Resolved| config.training.model_name_or_path.clone();
        let same = |path: &Path| path.canonicalize().ok();
        let same_commit = before.hub_model.as_ref().zip(config.hub_model.as_ref());
        let same_commit =
            same_commit.is_some_and(|(before, now)| (&before.id, &before.commit) == (&now.id, &now.commit));
        if !same_commit && same(&folder(&before)) != same(&folder(config)) {
            let message = format!("the run in it trains {}, this job {}", hub::shown(&before), hub::shown(config));
            let saved = match before.hub_model {
                Some(model) => format!("{} --model_revision {}", model.id, model.commit),
                None => folder(&before).display().to_string(),
            };
            let hint = format!("resume with the same model: --model_name_or_path {saved}");
            return Err(LaunchError::RunFolder { path: run.root().to_owned(), message, hint });
        }
    }
    Ok(found)
}

/// Once everything is known to fit: clears what an interrupted run left behind, and gives the plan from there on. Before that
/// nothing of the run is touched.
pub(crate) fn begin(
    run: &RunFolder,
    found: &Found,
    config: &Resolved,
    plan: StepPlan,
    terminal: &Terminal,
) -> Result<StepPlan, LaunchError> {
    let (manifest, directory) = (&found.manifest, found.directory.display());
    let refused = |message: String, hint: &str| {
        Err(LaunchError::RunFolder { path: run.root().to_owned(), message, hint: hint.to_owned() })
    };
    let Ok(saved) = serde_json::from_value::<Cursor>(manifest.state["data"].clone()) else {
        let message = format!("{directory} does not tell its place in the data");
        return refused(message, "it was written by another version of launch: resume with that one");
    };
    let expected = plan.cursor(manifest.step);
    let differences = differences(&saved, &expected);
    if !differences.is_empty() {
        let message = format!("{directory} was saved by a job with other data: {}", differences.join("; "));
        let hint =
            "resume with the data, seed and sampling of the job that saved it (its config.resolved.yaml has them)";
        return refused(message, hint);
    }
    let plan = plan.resumed(manifest.step, &saved)?;
    run.clear_after(found, |line| terminal.complain(&line))?;
    let (ranks, stage) = (format::plural(u64::from(manifest.world_size), "rank"), manifest.stage);
    let here = (config.num_processes, config.sharding.stage.number());
    let other = match (manifest.world_size, stage) == here {
        true => String::new(),
        false => format!(", saved by {ranks} at stage {stage}"),
    };
    terminal.say(&format!("resuming after step {} from {directory}{other}", manifest.step));
    if saved.global_batch != plan.global_batch() {
        terminal.complain(&format!(
            "note: a step takes {} from here on and took {} before, so the run has {} in all (the learning rate's schedule \
             too)",
            format::plural(plan.global_batch(), "row"),
            saved.global_batch,
            format::plural(plan.total_steps(), "step"),
        ));
    }
    Ok(plan)
}

/// What differs between the data that a checkpoint was saved in and that of this job, in words.
fn differences(saved: &Cursor, here: &Cursor) -> Vec<String> {
    let mut told = Vec::new();
    if saved.rows != here.rows {
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
        };
        let (there, here) = (name(saved.sampling), name(here.sampling));
        told.push(format!("order of the rows {there} there, {here} here (train_sampling_strategy)"));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_told_in_words() {
        let here = Cursor { rows: 500, epoch: 0, row: 24, global_batch: 12, row_seed: 1, sampling: Sampling::Random };
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
    }
}
