//! A run that was measured sets `compute_efficiency`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::Value;
use zerofold_configs::{DeviceKind, Resolved};
use zerofold_plan::{Assumptions, CostInputs, ModelConfig, PlanInputs, PlannedDevice, calibrate};

use super::CostOptions;
use crate::error::LaunchError;
use crate::format;
use crate::run_folder::RunFolder;

/// Steps at the beginning that do not count: they warm up.
const WARM_UP: usize = 1;

/// What a run's steps tell, by the median.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Steps {
    tokens_per_second: f64,
    /// Tokens of a step, of all ranks.
    tokens: f64,
    supervised_tokens: f64,
}

/// The assumptions as a run's folder calibrates them.
pub(super) fn calibrated(
    folder: &Path,
    options: &CostOptions,
    assumed: &Assumptions,
) -> Result<Assumptions, LaunchError> {
    let run = RunFolder::new(folder);
    if !run.config().exists() || !run.metrics().exists() {
        let hint = "give the output_dir of a run, which has config.resolved.yaml and metrics.jsonl";
        return Err(refused(folder, "it is no run", hint));
    }
    let config = Resolved::read(&run.config())?;
    if config.device == DeviceKind::Cpu && options.hardware.is_none() {
        let message = format!("the run computed on the CPU, which tells nothing of a {}", options.gpu);
        return Err(refused(
            folder,
            &message,
            "give a run on that GPU; or describe the machine of this run by --hardware FILE",
        ));
    }
    let steps = steps(&run.metrics())?;
    let Some(steps) = steps else {
        let hint = "a run of a few steps more is enough: the first one warms up and does not count";
        return Err(refused(folder, "it has no step that can be measured by", hint));
    };
    let model = ModelConfig::read(&config.training.model_name_or_path)?;
    let inputs = inputs(&config, &model, options, steps);
    let per_gpu = steps.tokens_per_second / inputs.job.world_size as f64;
    calibrate(&inputs, assumed, per_gpu).map_err(|error| LaunchError::usage_of("--calibrate", &error))
}

/// The run's job, with rows as long as they were on average.
fn inputs<'a>(config: &'a Resolved, model: &'a ModelConfig, options: &CostOptions, steps: Steps) -> CostInputs<'a> {
    let job = PlanInputs::of(config, model, PlannedDevice::Gpu);
    let micro_batches = (job.world_size * job.accumulation).max(1) as f64;
    let of_micro_batch = |tokens: f64| (tokens / micro_batches).round().max(1.0) as usize;
    let supervised = Some(of_micro_batch(steps.supervised_tokens));
    let length = of_micro_batch(steps.tokens / job.per_device_batch.max(1) as f64);
    CostInputs { length, ..CostInputs::new(PlanInputs { supervised, ..job }, options.gpus_per_host) }
}

/// What the steps of a `metrics.jsonl` tell; none where there are too few. A step that was done again counts once.
fn steps(path: &Path) -> Result<Option<Steps>, LaunchError> {
    let failed = || LaunchError::system(format!("read {}", path.display()));
    let mut steps = std::collections::BTreeMap::new();
    for line in BufReader::new(File::open(path).map_err(failed())?).split(b'\n') {
        let line = line.map_err(failed())?;
        let Ok(line) = serde_json::from_slice::<Value>(&line) else { continue };
        let number = |key: &str| line[key].as_f64().filter(|number| *number > 0.0);
        let figures = [number("tokens_per_second"), number("tokens"), number("supervised_tokens")];
        if let (Some(step), [Some(rate), Some(tokens), Some(supervised)]) = (line["step"].as_u64(), figures) {
            steps.insert(step, [rate, tokens, supervised]);
        }
    }
    let counted: Vec<[f64; 3]> = steps.into_values().skip(WARM_UP).collect();
    let median = |figure: fn(&[f64; 3]) -> f64| format::median(&counted.iter().map(figure).collect::<Vec<_>>());
    let of = median(|[rate, ..]| *rate).zip(median(|[_, tokens, _]| *tokens)).zip(median(|[.., it]| *it));
    Ok(of.map(|((tokens_per_second, tokens), supervised_tokens)| Steps {
        tokens_per_second,
        tokens,
        supervised_tokens,
    }))
}

fn refused(folder: &Path, message: &str, hint: &str) -> LaunchError {
    LaunchError::usage(format!("--calibrate {}: {message}", folder.display()), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_does_not_count_and_a_step_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let step = |step: u64, rate: f64| {
            format!(
                "{{\"step\":{step},\"loss\":1.0,\"tokens\":100,\"supervised_tokens\":40,\"tokens_per_second\":{rate}}}\n"
            )
        };
        let write = |lines: &[String]| std::fs::write(&path, lines.concat()).unwrap();
        write(&[step(1, 1.0)]);
        assert_eq!(steps(&path).unwrap(), None);
        let other = "{\"step\":2,\"eval_loss\":1.0}\nno json\n".to_owned();
        write(&[step(1, 1.0), step(2, 9.0), other, step(3, 12.0), step(2, 10.0), step(4, 11.0)]);
        let expected = Steps { tokens_per_second: 11.0, tokens: 100.0, supervised_tokens: 40.0 };
        assert_eq!(steps(&path).unwrap(), Some(expected));
        assert!(steps(&folder.path().join("none")).is_err());
    }
}
