//! What is compared: every combination of stage, accumulation and backend, resolved as `train` would.

use std::fmt;

use serde::Serialize;
use zerofold_configs::{Backend, ConfigError, Inputs, Resolved, ScheduleShape, Stage, resolve, resolve_job};

use super::CompareOptions;
use crate::error::LaunchError;
use crate::initial_model::settle;

/// Where a comparison is written unless the command line names a folder: the file's is that of a run.
const DEFAULT_FOLDER: &str = "runs/compare";
/// Flags that say what is sharded. Where `--stages` asks for another stage than the configuration has, it goes before them.
const FLAGS_OF_THE_STAGE: [&str; 3] = ["zero_stage", "fsdp_sharding_strategy", "fsdp_reshard_after_forward"];
/// Training that is measured neither evaluates nor saves, estimates nothing before it begins, and is watched by nobody else.
const OF_EVERY_RUN: [(&str, &str); 13] = [
    ("save_strategy", "no"),
    ("checkpoint_store", "null"),
    ("eval_strategy", "no"),
    ("eval_on_start", "false"),
    ("eval_dataset", "null"),
    ("load_best_model_at_end", "false"),
    ("early_stopping_patience", "null"),
    ("ewc_lambda", "0"),
    ("ewc_dataset", "null"),
    ("profile", "null"),
    ("report_to", "none"),
    ("logging_dir", "null"),
    ("metrics_port", "null"),
];

/// One of the things that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Configuration {
    /// The ZeRO stage.
    pub stage: Stage,
    /// What carries the collectives.
    pub backend: Backend,
    /// Micro-batches of an optimizer step.
    #[serde(rename = "gradient_accumulation_steps")]
    pub accumulation: u32,
}

/// `stage 2 over shm, accumulation 4`.
impl fmt::Display for Configuration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, accumulation {}", self.without_accumulation(), self.accumulation)
    }
}

impl Configuration {
    /// `stage 2 over shm`.
    pub fn without_accumulation(&self) -> String {
        match self.backend {
            Backend::Single => format!("stage {}", self.stage),
            backend => format!("stage {} over {backend}", self.stage),
        }
    }

    fn of(config: &Resolved) -> Configuration {
        Configuration {
            stage: config.sharding.stage,
            backend: config.backend,
            accumulation: config.gradient_accumulation_steps,
        }
    }
}

/// The configurations in the order in which they run: by accumulation, then by backend, then by stage. The output folder
/// of each is that of the comparison.
///
/// # Errors
/// A configuration that `train` would refuse too.
pub(super) fn series(options: &CompareOptions) -> Result<Vec<(Configuration, Resolved)>, LaunchError> {
    let mut inputs = with_folder(options);
    if resolve_job(&inputs).is_ok_and(|(_, topology)| !topology.is_alone()) {
        return Err(LaunchError::usage(
            "a comparison runs on one host, and this job has several",
            "leave --nnodes and num_machines out, or compare with `launch train` on all hosts, one configuration at a time",
        ));
    }
    // A rate that follows held-out losses has none to follow here.
    if resolve(&inputs)
        .is_ok_and(|config| matches!(config.training.lr_scheduler_type, ScheduleShape::ReduceLrOnPlateau(_)))
    {
        set(&mut inputs, "lr_scheduler_type", Some("constant"));
        set(&mut inputs, "lr_scheduler_kwargs", Some("null"));
    }
    // The steps are few, however long the job is.
    inputs.flags.retain(|(name, _)| OF_EVERY_RUN.iter().all(|(of_run, _)| name != of_run));
    let fixed = OF_EVERY_RUN.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    inputs.flags.extend(fixed);
    inputs.flags.push(("max_steps".to_owned(), (u64::from(options.steps) + 1).to_string()));
    // A configuration may lack the stage alone.
    let own = resolve(&inputs).ok().map(|config| config.sharding.stage);
    let mut series: Vec<(Configuration, Resolved)> = Vec::new();
    for accumulation in one_or_all(options.accumulations.as_deref()) {
        for backend in one_or_all(options.backends.as_deref()) {
            let mut inputs = inputs.clone();
            set(&mut inputs, "gradient_accumulation_steps", accumulation);
            set(&mut inputs, "backend", backend);
            let at = |stage: Stage| at(&inputs, stage, own);
            for &stage in &options.stages {
                let refused = |error| refused(stage, error, options.stages.iter().filter(|stage| at(**stage).is_ok()));
                let config = settle(at(stage).map_err(refused)?)?;
                let config = Resolved { export_model: false, ..config };
                series.push((Configuration::of(&config), config));
            }
        }
    }
    Ok(series)
}

/// The configuration at a stage. Its own stage stays as it was written, with its copies and what becomes of parameters.
fn at(inputs: &Inputs, stage: Stage, own: Option<Stage>) -> Result<Resolved, ConfigError> {
    let mut inputs = inputs.clone();
    if own != Some(stage) {
        inputs.flags.retain(|(name, _)| !FLAGS_OF_THE_STAGE.contains(&name.as_str()));
        set(&mut inputs, "zero_stage", Some(stage));
    }
    resolve(&inputs)
}

/// What is wrong; where it is so at some stages only, which can be compared.
fn refused<'a>(stage: Stage, error: ConfigError, others: impl Iterator<Item = &'a Stage>) -> LaunchError {
    let others: Vec<String> = others.map(Stage::to_string).collect();
    if others.is_empty() {
        return error.into();
    }
    let message = error.to_string();
    let message = message.split_once("\nhint: ").map_or(message.as_str(), |(message, _)| message);
    let hint = format!("leave it out: --stages {}", others.join(","));
    LaunchError::usage(format!("stage {stage} cannot be compared: {message}"), hint)
}

/// What was written and has no effect, a sentence each.
pub(super) fn notes(options: &CompareOptions) -> Vec<String> {
    let typed = |(name, _): &&(String, String)| OF_EVERY_RUN.iter().any(|(of_run, _)| name == of_run);
    let typed = options.inputs.flags.iter().filter(typed);
    let typed = typed.map(|(name, _)| format!("--{name} has no effect: a comparison neither evaluates nor saves"));
    // What is wrong with it is told elsewhere.
    let written = resolve(&with_folder(options)).map(|config| config.notes).unwrap_or_default();
    typed.chain(written).collect()
}

/// What was written, with a folder: above the file's, below everything that was typed.
fn with_folder(options: &CompareOptions) -> Inputs {
    let mut inputs = options.inputs.clone();
    inputs.set.insert(0, format!("output_dir={DEFAULT_FOLDER}"));
    inputs
}

/// Every value, or once none: what the configuration has.
fn one_or_all<T: Copy>(values: Option<&[T]>) -> Vec<Option<T>> {
    values.map_or_else(|| vec![None], |values| values.iter().copied().map(Some).collect())
}

fn set(inputs: &mut Inputs, name: &str, value: Option<impl fmt::Display>) {
    if let Some(value) = value {
        inputs.flags.retain(|(other, _)| other != name);
        inputs.flags.push((name.to_owned(), value.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_configs::{ReshardAfterForward, Strategy};

    fn options(flags: &[(&str, &str)]) -> CompareOptions {
        let flags = flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let inputs = Inputs { config: Some("zero3.yaml".to_owned()), flags, ..Inputs::default() };
        CompareOptions { stages: vec![Stage::Zero, Stage::Three], ..CompareOptions::new(inputs) }
    }

    #[test]
    fn all_combinations_stand_in_a_fixed_order() {
        let options = CompareOptions {
            accumulations: Some(vec![1, 4]),
            backends: Some(vec![Backend::Shm, Backend::Gloo]),
            ..options(&[("profile", "1..2")])
        };
        let series = series(&options).unwrap();
        let names: Vec<String> = series.iter().map(|(configuration, _)| configuration.to_string()).collect();
        assert_eq!(names.len(), 8);
        assert_eq!(
            names[..3].join("; "),
            "stage 0 over shm, accumulation 1; stage 3 over shm, accumulation 1; stage 0 over gloo, accumulation 1"
        );
        assert_eq!(names[7], "stage 3 over gloo, accumulation 4");
        for (_, config) in &series {
            let training = &config.training;
            assert_eq!((training.max_steps, training.save_strategy, config.export_model), (4, Strategy::No, false));
            assert!(training.eval_dataset.is_none() && training.profile.is_none() && !training.eval_on_start);
        }
    }

    #[test]
    fn what_follows_evaluations_has_none_to_follow() {
        let evaluated =
            [("eval_strategy", "steps"), ("eval_dataset", "e"), ("save_strategy", "steps"), ("save_steps", "500")];
        for what in [
            ("early_stopping_patience", "2"),
            ("load_best_model_at_end", "true"),
            ("lr_scheduler_type", "reduce_lr_on_plateau"),
        ] {
            let series = series(&options(&[&evaluated[..], &[what]].concat())).unwrap();
            let training = &series[0].1.training;
            assert!(training.early_stopping_patience.is_none() && !training.load_best_model_at_end, "{what:?}");
            assert_eq!(training.lr_scheduler_type == ScheduleShape::Constant, what.0 == "lr_scheduler_type");
        }
    }

    #[test]
    fn the_folder_is_one_that_was_typed_or_the_default() {
        let folder = |options: &CompareOptions| series(options).unwrap()[0].1.training.output_dir.clone();
        assert_eq!(folder(&options(&[])).to_str(), Some("runs/compare"));
        assert_eq!(folder(&options(&[("output_dir", "mine")])).to_str(), Some("mine"));
        let mut set = options(&[]);
        set.inputs.set.push("training.output_dir=set".to_owned());
        assert_eq!(folder(&set).to_str(), Some("set"));
    }

    #[test]
    fn the_configured_stage_is_taken_as_it_was_written() {
        let series = series(&options(&[("fsdp_sharding_strategy", "SHARD_GRAD_OP")])).unwrap();
        let [zero, three] = [0, 1].map(|index| series[index].1.sharding);
        assert_eq!((zero.stage, three.stage), (Stage::Zero, Stage::Three));
        assert_eq!(three.reshard_after_forward, ReshardAfterForward::Always(false));
    }

    #[test]
    fn what_one_stage_does_not_allow_is_told_with_the_stage() {
        let copies = CompareOptions {
            inputs: Inputs { nproc: Some(4), ..options(&[("parallelism_config_dp_replicate_size", "2")]).inputs },
            ..options(&[])
        };
        let error = series(&copies).unwrap_err().to_string();
        assert!(error.starts_with("stage 0 cannot be compared: "), "{error}");
        assert!(error.ends_with("hint: leave it out: --stages 3"), "{error}");
    }
}
