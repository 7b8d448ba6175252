//! Going on with a run: what must be the same as in the job that saved the checkpoint, and what is told where it is not.

use std::path::Path;

use serde_json::Value;
use zerofold_checkpoint::Found;
use zerofold_configs::{Resolved, UnitPolicy};
use zerofold_data::{Cursor, StepPlan};
use zerofold_plan::{ModelConfig, ModelUnits};

use crate::announce;
use crate::error::LaunchError;
use crate::run_folder::{Resume, RunFolder};
use crate::terminal::Terminal;
use crate::train::absolute;

/// The checkpoint to go on from, which this job's processes and model must be those of. Nothing is touched.
pub(crate) fn find(
    run: &RunFolder,
    resume: &Resume,
    (config, model): (&Resolved, &ModelConfig),
    terminal: &Terminal,
) -> Result<Found, LaunchError> {
    let mut found = run.find_resume(resume, |line| terminal.complain(&line))?;
    found.directory = absolute(&found.directory)?;
    let manifest = &found.manifest;
    if manifest.world_size != config.num_processes {
        let (saved, asked) = (manifest.world_size, config.num_processes);
        let message = format!("{} was saved by {saved} processes, this job has {asked}", found.directory.display());
        let hint = format!("resume with the same number of processes: --nproc {saved}");
        return Err(LaunchError::RunFolder { path: run.root().to_owned(), message, hint });
    }
    // A folder whose configuration cannot be read is no obstacle: the workers check the layout as well.
    if let Ok(before) = Resolved::read(&run.config()) {
        let folder = |config: &Resolved| config.training.model_name_or_path.clone();
        let same = |path: &Path| path.canonicalize().ok();
        if same(&folder(&before)) != same(&folder(config)) {
            let (saved, asked) = (folder(&before), folder(config));
            let message = format!("the run in it trains {}, this job {}", saved.display(), asked.display());
            let hint = format!("resume with the same model: --model_name_or_path {}", saved.display());
            return Err(LaunchError::RunFolder { path: run.root().to_owned(), message, hint });
        }
        let units = |config: &Resolved| ModelUnits::new(model, config.sharding.units).units;
        if units(&before) != units(config) {
            let (saved, asked) = (before.sharding.units, config.sharding.units);
            let (directory, saved_words, asked) =
                (found.directory.display(), announce::units(saved), announce::units(asked));
            let message = format!("{directory} was saved with other units: {saved_words}; this job has: {asked}");
            let hint = format!("resume with the units that saved it: {}", units_as_flags(&before));
            return Err(LaunchError::RunFolder { path: run.root().to_owned(), message, hint });
        }
    }
    Ok(found)
}

/// The flags that make a job's units what they are in `config`, over any file.
fn units_as_flags(config: &Resolved) -> String {
    let transformer = |classes: &str| {
        format!("--fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_transformer_layer_cls_to_wrap {classes}")
    };
    match config.sharding.units {
        UnitPolicy::Whole => "--fsdp_auto_wrap_policy NO_WRAP".to_owned(),
        UnitPolicy::MinParameters(least) => {
            format!("--fsdp_auto_wrap_policy SIZE_BASED_WRAP --fsdp_min_num_params {least}")
        }
        // Without classes, blocks are the units; a file may name some.
        UnitPolicy::Blocks if config.layer_classes.is_empty() => transformer("none"),
        UnitPolicy::Blocks | UnitPolicy::BlockHalves => transformer(&config.layer_classes.join(",")),
    }
}

/// Once everything is known to fit: clears what an interrupted run left behind. Before that nothing of the run is touched.
pub(crate) fn begin(
    run: &RunFolder,
    found: &Found,
    config: &Resolved,
    plan: &StepPlan,
    terminal: &Terminal,
) -> Result<(), LaunchError> {
    let manifest = &found.manifest;
    let expected = plan.cursor(manifest.step);
    let saved = &manifest.state["data"];
    if *saved != serde_json::json!(expected) {
        let differences = differences(saved, &expected, config);
        let message = format!("{} was saved by a job with other numbers: {differences}", found.directory.display());
        let hint = "resume with the data, batch sizes, accumulation, seed and sampling of the job that saved it (its \
                    config.resolved.yaml has them)"
            .to_owned();
        return Err(LaunchError::RunFolder { path: run.root().to_owned(), message, hint });
    }
    run.clear_after(found, |line| terminal.complain(&line))?;
    terminal.say(&format!("resuming after step {} from {}", manifest.step, found.directory.display()));
    Ok(())
}

/// What differs between the place in the data that a checkpoint has and the one that this job would have, in words.
fn differences(saved: &Value, expected: &Cursor, config: &Resolved) -> String {
    let here = serde_json::json!(expected);
    let batch = format!(
        "per_device_train_batch_size {} × gradient_accumulation_steps {} × {}",
        config.training.per_device_train_batch_size,
        config.gradient_accumulation_steps,
        match config.num_processes {
            1 => "1 process".to_owned(),
            processes => format!("{processes} processes"),
        },
    );
    let told: Vec<String> = [
        ("rows", "rows of data", "dataset, max_length and assistant_only_loss decide".to_owned()),
        ("global_batch", "rows a step", batch),
        ("row_seed", "seed of the order of the rows", "data_seed, else seed".to_owned()),
        ("sampling", "order of the rows", "train_sampling_strategy".to_owned()),
    ]
    .iter()
    .filter(|(field, _, _)| saved[field] != here[field])
    .map(|(field, name, from)| {
        let value = |cursor: &Value| match &cursor[field] {
            Value::String(text) => text.clone(),
            Value::Null => "unknown".to_owned(),
            other => other.to_string(),
        };
        format!("{name} {} there, {} here ({from})", value(saved), value(&here))
    })
    .collect();
    match told.is_empty() {
        true => format!("the place in the data is {saved} there and {here} here"),
        false => told.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_configs::{Inputs, resolve};
    use zerofold_data::Sampling;

    #[test]
    fn what_differs_is_told_in_words() {
        let inputs = Inputs { config: Some("zero3.yaml".into()), nproc: Some(2), ..Inputs::default() };
        let config = resolve(&inputs).unwrap();
        let here = Cursor { rows: 500, rows_finished: 24, global_batch: 12, row_seed: 1, sampling: Sampling::Random };
        let there = Cursor { rows_finished: 8, global_batch: 4, ..here.clone() };
        let words = differences(&serde_json::json!(there), &here, &config);
        assert!(words.starts_with("rows a step 4 there, 12 here (per_device_train_batch_size "), "{words}");
        assert!(words.ends_with(" × 2 processes)"), "{words}");
        let there = Cursor { rows: 600, row_seed: 7, sampling: Sampling::Sequential, ..here.clone() };
        assert_eq!(
            differences(&serde_json::json!(there), &here, &config),
            "rows of data 600 there, 500 here (dataset, max_length and assistant_only_loss decide); seed of the order of \
             the rows 7 there, 1 here (data_seed, else seed); order of the rows sequential there, random here \
             (train_sampling_strategy)"
        );
        let none = differences(&Value::Null, &here, &config);
        assert!(none.starts_with("rows of data unknown there, 500 here"), "{none}");
    }
}
