//! Where a number that is not finite comes from: the window is gone through again, row by row.

use super::{TrainError, Trainer};
use crate::shard::Shards;
use tch::{Kind, Tensor};
use zerofold_configs::NonFinite;
use zerofold_data::Batch;

/// What was found to be not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A parameter itself, before anything was computed with it.
    Parameter,
    /// What a unit made of finite input with finite parameters.
    Output,
    /// The loss.
    Loss,
    /// The gradient of a parameter.
    Gradient,
}

const EVERYTHING: [What; 4] = [What::Parameter, What::Output, What::Loss, What::Gradient];

/// What one rank finds in one row: the first value, in the order of computation, that is not finite.
#[derive(Debug, Default)]
pub(super) struct Inspection {
    found: Option<(What, usize, usize)>,
}

impl Inspection {
    fn note(&mut self, what: What, unit: usize, parameter: usize) {
        self.found.get_or_insert((what, unit, parameter));
    }

    /// Looks at the parameters of a gathered unit.
    pub(super) fn parameters(&mut self, shards: &Shards, unit: usize) -> Result<(), TrainError> {
        if let Some(parameter) = shards.inspect_parameters(unit)? {
            self.note(What::Parameter, unit, parameter);
        }
        Ok(())
    }

    /// Looks at what a unit's forward made.
    pub(super) fn output(&mut self, unit: usize, output: &Tensor) -> Result<(), TrainError> {
        if output.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            self.note(What::Output, unit, 0);
        }
        Ok(())
    }

    /// Looks at the loss.
    pub(super) fn loss(&mut self, sum: f64) {
        if !sum.is_finite() {
            self.note(What::Loss, 0, 0);
        }
    }

    /// Looks at a unit's finished gradient of this rank, its leaves in the order given, which is then dropped.
    pub(super) fn gradient(&mut self, shards: &mut Shards, unit: usize, leaves: &[usize]) -> Result<(), TrainError> {
        if let Some(parameter) = shards.inspect_gradient(unit, leaves)? {
            self.note(What::Gradient, unit, parameter);
        }
        Ok(())
    }

    /// As numbers that ranks can exchange: 0 for nothing, else what (from 1), unit, parameter.
    fn numbers(&self) -> [f64; 3] {
        match self.found {
            None => [0.0; 3],
            Some((what, unit, parameter)) => {
                let code = EVERYTHING.iter().position(|&other| other == what).unwrap_or(0) + 1;
                [code as f64, unit as f64, parameter as f64]
            }
        }
    }
}

/// What the ranks found together.
#[derive(Debug)]
pub(super) struct Finding {
    /// Where the first value comes from that is not finite, as a sentence.
    pub(super) words: String,
    /// It is a parameter, so every later step meets it too, and leaving steps out mends nothing.
    pub(super) in_parameter: bool,
}

impl Finding {
    /// What a person can do about it, `taken` steps after the model's files were read, in a model that computes in `kind`.
    pub(super) fn hint(&self, taken: u64, kind: Kind, policy: NonFinite) -> String {
        let mut hints = Vec::new();
        if self.in_parameter {
            let files = "the model's files hold it";
            hints.push(match taken {
                0 => format!("no step was taken yet, so {files}: mend them, or take another model"),
                _ => format!("{files} (an embedding's row is first read when its token comes), or an update made it"),
            });
            if kind == Kind::Half {
                hints.push("float16 ends at 65504; mixed_precision: bf16 has the range of float32".to_owned());
            }
            if taken > 0 {
                hints.push("a lower learning_rate or a warm-up may help, from an earlier checkpoint".to_owned());
            }
            if policy == NonFinite::Skip {
                hints.push("nonfinite_gradients: skip cannot help, as every later step would meet it too".to_owned());
            }
            return hints.join("; ");
        }
        hints.push(match taken {
            0 => "no step was taken yet, so learning_rate has no part in it: look at the row and the model".to_owned(),
            _ => "a lower learning_rate or a warm-up may help".to_owned(),
        });
        hints.extend(match kind {
            Kind::Half => Some("so may mixed_precision: bf16, with the range of float32".to_owned()),
            Kind::BFloat16 => Some("so may mixed_precision: 'no', which is more exact".to_owned()),
            _ => None,
        });
        if policy == NonFinite::Stop {
            hints.push("nonfinite_gradients: skip leaves such steps out".to_owned());
        }
        hints.join("; ")
    }
}

impl Trainer {
    /// Goes through the window again, one row at a time on every rank, with the same numbers at the same scale, and says in
    /// words where the first value comes from that is not finite. All ranks call it and all get the same answer.
    pub(super) fn find_not_finite(&mut self, step: u64, window: &[Batch], scale: f64) -> Result<Finding, TrainError> {
        self.shards.abandon_window()?;
        for (micro_batch, batch) in window.iter().enumerate() {
            let seed = self.micro_batch_seed(step, micro_batch);
            let rows = self.shards.comm().exchange(&[batch.of_dataset.len() as f64])?;
            let most = rows.iter().map(|rows| rows[0] as usize).max().unwrap_or(0);
            for place in 0..most {
                let row = batch.single_row(place);
                let mut inspection = Inspection::default();
                self.shards.begin_window()?;
                self.shards.begin_micro_batch(true);
                let _loss = self.pass_with(Some(seed), Some(&mut inspection)).forward_backward(&row, scale)?;
                self.shards.abandon_window()?;
                let [what, unit, parameter] = inspection.numbers();
                let of_dataset = row.of_dataset.first().copied().unwrap_or(0);
                let all = self.shards.comm().exchange(&[what, unit, parameter, f64::from(of_dataset)])?;
                if let Some((rank, found)) = all.iter().enumerate().find(|(_, found)| found[0] > 0.0) {
                    return Ok(self.finding(rank, found));
                }
            }
        }
        let words = "gone through row by row, every value is finite: what overflows is the sum over rows, or the squares in \
                     the norm";
        Ok(Finding { words: words.to_owned(), in_parameter: false })
    }

    fn finding(&self, rank: usize, found: &[f64]) -> Finding {
        let unit = &self.shards.units[found[1] as usize].layout;
        let parameter = unit.parameters().nth(found[2] as usize).map_or("", |parameter| parameter.name.as_str());
        let what = match EVERYTHING.get(found[0] as usize - 1) {
            // No row has to do with it.
            Some(What::Parameter) => {
                let words = format!("the parameter {parameter} (unit {}) itself is not finite", unit.name);
                return Finding { words, in_parameter: true };
            }
            Some(What::Output) => format!("the forward of unit {} is the first that is not finite", unit.name),
            Some(What::Loss) => "the loss is the first that is not finite".to_owned(),
            _ => format!("the gradient of {parameter} (unit {}) is the first that is not finite", unit.name),
        };
        let place = self.options.places.words(found[3] as usize);
        Finding { words: format!("{what}, in {place}, on rank {rank}"), in_parameter: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_says_only_what_can_help() {
        let hint = |in_parameter, taken, kind, policy| {
            Finding { words: String::new(), in_parameter }.hint(taken, kind, policy)
        };
        let float32 = hint(false, 3, Kind::Float, NonFinite::Stop);
        assert_eq!(
            float32,
            "a lower learning_rate or a warm-up may help; nonfinite_gradients: skip leaves such steps out"
        );
        assert!(hint(false, 3, Kind::BFloat16, NonFinite::Stop).contains("mixed_precision: 'no'"));
        assert!(hint(false, 3, Kind::Half, NonFinite::Stop).contains("mixed_precision: bf16"));
        assert!(!hint(false, 3, Kind::Float, NonFinite::Skip).contains("skip"));
        let first = hint(false, 0, Kind::Float, NonFinite::Stop);
        assert!(first.contains("learning_rate has no part in it"), "{first}");
        let in_file = hint(true, 0, Kind::Float, NonFinite::Stop);
        assert_eq!(in_file, "no step was taken yet, so the model's files hold it: mend them, or take another model");
        assert!(hint(true, 2, Kind::Float, NonFinite::Skip).contains("skip cannot help"));
        assert!(hint(true, 0, Kind::Half, NonFinite::Stop).contains("65504"));
    }
}
