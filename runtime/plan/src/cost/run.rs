//! Hours and money of a whole run.

use super::{Assumptions, CostInputs, Prediction};
use serde::Serialize;
use zerofold_configs::PriceRange;

/// Seconds of an hour.
const HOUR: f64 = 3600.0;

/// What is trained on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RunData {
    /// Examples.
    pub examples: u64,
    /// Tokens of one, on average.
    pub tokens_per_example: f64,
    /// How often all of them are gone through.
    pub epochs: f64,
    /// Optimizer steps in place of epochs.
    pub max_steps: Option<u64>,
}

/// What a run takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RunCost {
    /// Tokens that are trained on.
    pub tokens: f64,
    /// Optimizer steps.
    pub steps: f64,
    /// From the start of the rent to the end.
    pub seconds: f64,
    /// The same for all GPUs, in hours.
    pub gpu_hours: f64,
    /// Dollars, from and to; none where no price is known.
    pub money: Option<PriceRange>,
}

impl RunCost {
    /// The run of a job whose steps take as long as predicted.
    pub fn of(
        data: &RunData,
        inputs: &CostInputs<'_>,
        (prediction, assumed): (&Prediction, &Assumptions),
        price: Option<PriceRange>,
    ) -> RunCost {
        let (tokens, steps) = match data.max_steps {
            Some(steps) => (steps as f64 * inputs.tokens_per_step(), steps as f64),
            None => {
                let tokens = data.examples as f64 * data.tokens_per_example * data.epochs;
                (tokens, (tokens / inputs.tokens_per_step()).ceil())
            }
        };
        let seconds = assumed.start_seconds + steps * prediction.step.seconds;
        let gpu_hours = seconds / HOUR * inputs.job.world_size as f64;
        let money = price.map(|price| PriceRange { low: price.low * gpu_hours, high: price.high * gpu_hours });
        RunCost { tokens, steps, seconds, gpu_hours, money }
    }

    /// Hours from the start of the rent to the end.
    pub fn hours(&self) -> f64 {
        self.seconds / HOUR
    }
}
