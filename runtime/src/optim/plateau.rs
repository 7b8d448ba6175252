//! A learning rate that falls when the held-out loss has not become better for long enough, as PyTorch's `ReduceLROnPlateau` does it.

use serde::{Deserialize, Serialize};
use zerofold_configs::{PlateauMode, PlateauRule, ScheduleShape, ThresholdMode};

/// What was seen so far; part of a checkpoint. It has no rates, so that a run that goes on with another `learning_rate` falls from that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plateau {
    /// The best held-out loss; none before the first.
    pub best: Option<f64>,
    /// Evaluations in a row that were no better and count.
    pub bad: u64,
    /// Evaluations to come that do not count, since the rate has just fallen.
    pub cooldown: u64,
    /// How often the rate was to fall.
    pub falls: u64,
}

impl Plateau {
    /// Nothing was seen, or nothing is followed.
    pub fn is_new(&self) -> bool {
        *self == Plateau::default()
    }

    /// After another evaluation; of a schedule that does not follow the held-out loss, the same.
    #[must_use]
    pub fn after(self, shape: ScheduleShape, loss: f64) -> Self {
        let ScheduleShape::ReduceLrOnPlateau(rule) = shape else { return self };
        let mut after = match is_better(&rule, loss, self.best) {
            true => Plateau { best: Some(loss), bad: 0, ..self },
            false => Plateau { bad: self.bad + 1, ..self },
        };
        if after.cooldown > 0 {
            after.cooldown -= 1;
            after.bad = 0;
        }
        if after.bad > rule.patience {
            after.falls += 1;
            after.cooldown = rule.cooldown;
            after.bad = 0;
        }
        after
    }

    /// What has become of a rate. Multiplied anew for each fall, in PyTorch's order, so that it has PyTorch's bits.
    pub fn lowered(&self, shape: ScheduleShape, rate: f64) -> f64 {
        let ScheduleShape::ReduceLrOnPlateau(rule) = shape else { return rate };
        let mut now = rate;
        for _ in 0..self.falls {
            let next = (now * rule.factor).max(rule.min_lr);
            // Where one fall is left out, so is every later one: it would be the same.
            if now - next <= rule.eps {
                break;
            }
            now = next;
        }
        now
    }
}

/// Whether a loss is better than the best so far by the threshold. What is not a finite number is better than nothing.
fn is_better(rule: &PlateauRule, loss: f64, best: Option<f64>) -> bool {
    let Some(best) = best else { return loss.is_finite() };
    loss.is_finite()
        && match (rule.mode, rule.threshold_mode) {
            (PlateauMode::Min, ThresholdMode::Relative) => loss < best * (1.0 - rule.threshold),
            (PlateauMode::Min, ThresholdMode::Absolute) => loss < best - rule.threshold,
            (PlateauMode::Max, ThresholdMode::Relative) => loss > best * (rule.threshold + 1.0),
            (PlateauMode::Max, ThresholdMode::Absolute) => loss > best + rule.threshold,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use zerofold_configs::{Inputs, resolve};

    /// The schedule of a job with these parameters.
    fn shape(kwargs: &str) -> ScheduleShape {
        // Which way is better follows from what is judged by.
        let metric = if kwargs.contains("max") { "accuracy" } else { "loss" };
        let flags = [
            ("metric_for_best_model", metric),
            ("model_name_or_path", "m"),
            ("dataset", "d"),
            ("eval_dataset", "e"),
            ("eval_strategy", "steps"),
            ("output_dir", "o"),
            ("lr_scheduler_type", "reduce_lr_on_plateau"),
            ("lr_scheduler_kwargs", kwargs),
        ];
        let flags = flags.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        resolve(&Inputs { flags, ..Inputs::default() }).unwrap().training.lr_scheduler_type
    }

    /// Rates as transformers' `get_scheduler` gives them, to the bit, whatever state is written and read on the way.
    #[test]
    fn rates_are_those_of_pytorch() {
        let path = format!("{}/../tests/fixtures/plateau.json", env!("CARGO_MANIFEST_DIR"));
        let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let (cases, mut falls) = (fixture["cases"].as_array().unwrap(), 0);
        assert!(cases.len() >= 12, "{} cases", cases.len());
        for case in cases {
            let shape = shape(&case["kwargs"].to_string());
            let learning_rate = case["learning_rate"].as_f64().unwrap();
            let mut plateau = Plateau::default();
            let losses = case["losses"].as_array().unwrap();
            for (loss, rate) in losses.iter().zip(case["rates"].as_array().unwrap()) {
                // What is no number stands there as null.
                plateau = plateau.after(shape, loss.as_f64().unwrap_or(f64::NAN));
                let written = serde_json::to_string(&plateau).unwrap();
                plateau = serde_json::from_str(&written).unwrap();
                let ours = plateau.lowered(shape, learning_rate);
                assert_eq!(Some(ours), rate.as_f64(), "{case}\nafter {loss}: {written}");
            }
            falls += plateau.falls;
        }
        assert!(falls > 30, "{falls} falls");
    }

    #[test]
    fn other_schedules_follow_no_loss() {
        let plateau = Plateau::default().after(ScheduleShape::Linear, 1.0);
        assert!(plateau.is_new());
        assert_eq!(Plateau { falls: 3, ..plateau }.lowered(ScheduleShape::Constant, 0.5), 0.5);
    }

    #[test]
    fn any_number_of_falls_ends() {
        let endless = Plateau { falls: u64::MAX, ..Plateau::default() };
        assert_eq!(endless.lowered(shape("{eps: 0}"), 1.0), 0.0);
        assert_eq!(endless.lowered(shape("{eps: 0, factor: 0, min_lr: 1e-6}"), 1e-5), 1e-6);
        let rate = endless.lowered(shape("{factor: 0.5}"), 1e-5);
        assert!(rate > 0.0 && rate * 0.5 <= 1e-8, "{rate}");
    }
}
