//! What elastic weight consolidation needs to know before the first step (Kirkpatrick et al., "Overcoming catastrophic forgetting
//! in neural networks", 2017): the diagonal of the empirical Fisher information at the pretrained weights.

use super::run::Rows;
use super::{TrainError, Trainer};
use std::time::Instant;
use tch::Kind;
use zerofold_data::Batch;

/// The loss scale that float16 begins with; halved until squares are finite.
const FIRST_SCALE: f64 = 65536.0;

impl Trainer {
    /// Estimates the Fisher information of all that is ever trained, at the present weights: the mean, over `samples` rows spread
    /// evenly over `rows`, of the squared gradient of the row's mean loss, without dropout and label smoothing. Each rank has one row
    /// at a time, so that every stage adds the same numbers in the same order. Every rank calls it, before anything was opened.
    ///
    /// # Errors
    /// Rows of which none is supervised; squares that are not finite.
    pub fn estimate_fisher(&mut self, rows: &Rows, samples: usize) -> Result<(), TrainError> {
        let (_no_grad, began) = (tch::no_grad_guard(), Instant::now());
        let dataset = &rows.dataset;
        let supervised: Vec<u32> = (0..dataset.rows())
            .filter(|&row| dataset.row(row).1.iter().any(|&label| label >= 0))
            .map(|row| row as u32)
            .collect();
        let count = samples.min(supervised.len());
        if count == 0 {
            return Err(TrainError::NothingToEstimateOn);
        }
        let chosen: Vec<u32> = (0..count).map(|index| supervised[index * supervised.len() / count]).collect();
        let mut scale = if self.model.kind() == Kind::Half { FIRST_SCALE } else { 1.0 };
        loop {
            self.shards.begin_fisher()?;
            self.segments.look_again(&self.shards.units);
            let overflow = self.add_squares(rows, &chosen, scale)?;
            self.shards.finish_fisher(1.0 / (scale * scale * count as f64))?;
            self.segments.look_again(&self.shards.units);
            match overflow {
                None => break,
                Some(_) if scale > 1.0 => scale /= 2.0,
                Some(overflow) => {
                    let places = overflow.iter().map(|&row| dataset.places.words(row as usize));
                    return Err(TrainError::FisherNotFinite { rows: places.collect::<Vec<_>>().join(", ") });
                }
            }
        }
        self.fisher = Some(count as u64);
        let millis = began.elapsed().as_millis();
        tracing::info!("the Fisher information was estimated on {count} rows in {millis} ms");
        Ok(self.shards.forget_gathered()?)
    }

    /// Adds the squared gradients of these rows, one on each rank at a time; ends with those after which the sum is not finite.
    fn add_squares(&mut self, rows: &Rows, chosen: &[u32], scale: f64) -> Result<Option<Vec<u32>>, TrainError> {
        let rank = self.shards.comm().rank();
        for round in chosen.chunks(self.shards.comm().world_size()) {
            let mine: &[u32] = round.get(rank).map_or(&[], std::slice::from_ref);
            let batch: Batch = rows.batch(mine)?;
            self.shards.begin_window()?;
            self.shards.begin_micro_batch(true);
            let mut pass = self.pass_with(None, None);
            pass.label_smoothing = 0.0;
            let _losses = pass.forward_backward(&batch, scale / batch.supervised.max(1) as f64)?;
            self.shards.finish_window()?;
            let sums = self.shards.comm().exchange(&[self.shards.fisher_sum()?])?;
            if sums.iter().any(|sum| !sum[0].is_finite()) {
                return Ok(Some(round.to_vec()));
            }
        }
        Ok(None)
    }
}
