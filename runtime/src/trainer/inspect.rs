//! Where a number that is not finite comes from: the window is gone through again, row by row.

use super::{TrainError, Trainer};
use crate::shard::Shards;
use tch::Tensor;
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

impl Trainer {
    /// Goes through the window again, one row at a time on every rank, with the same numbers at the same scale, and says in
    /// words where the first value comes from that is not finite. All ranks call it and all get the same answer.
    pub(super) fn find_not_finite(&mut self, step: u64, window: &[Batch], scale: f64) -> Result<String, TrainError> {
        self.shards.abandon_window()?;
        for (micro_batch, batch) in window.iter().enumerate() {
            let seed = self.micro_batch_seed(step, micro_batch);
            let rows = self.shards.comm().exchange(&[batch.indices.len() as f64])?;
            let most = rows.iter().map(|rows| rows[0] as usize).max().unwrap_or(0);
            for place in 0..most {
                let row = batch.single_row(place);
                let mut inspection = Inspection::default();
                self.shards.begin_window()?;
                self.shards.begin_micro_batch(true);
                let _loss = self.pass_with(seed, Some(&mut inspection)).forward_backward(&row, scale)?;
                self.shards.abandon_window()?;
                let [what, unit, parameter] = inspection.numbers();
                let index = row.indices.first().copied().unwrap_or(0);
                let all = self.shards.comm().exchange(&[what, unit, parameter, f64::from(index)])?;
                if let Some((rank, found)) = all.iter().enumerate().find(|(_, found)| found[0] > 0.0) {
                    return Ok(self.words(rank, found));
                }
            }
        }
        Ok("gone through row by row, every value is finite: what overflows is the sum over rows, or the squares in the norm".to_owned())
    }

    fn words(&self, rank: usize, found: &[f64]) -> String {
        let unit = &self.shards.units[found[1] as usize].layout;
        let parameter = unit.parameters().nth(found[2] as usize).map_or("", |parameter| parameter.name.as_str());
        let what = match EVERYTHING.get(found[0] as usize - 1) {
            // No row has to do with it.
            Some(What::Parameter) => {
                return format!("the parameter {parameter} (unit {}) itself is not finite", unit.name);
            }
            Some(What::Output) => format!("the forward of unit {} is the first that is not finite", unit.name),
            Some(What::Loss) => "the loss is the first that is not finite".to_owned(),
            _ => format!("the gradient of {parameter} (unit {}) is the first that is not finite", unit.name),
        };
        format!("{what}, in row {} of the training data on rank {rank}", found[3] as u64)
    }
}
