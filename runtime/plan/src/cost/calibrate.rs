//! A measured run sets the share of the hardware's speed that a step reaches.

use super::{Assumptions, CostInputs, predict};
use crate::layout::LayoutError;
use thiserror::Error;

/// The shares that are looked through. Above 1 the hardware is faster than it is described.
const SHARES: [f64; 2] = [1e-6, 8.0];
/// Halvings of that range: enough for every digit of the share.
const HALVINGS: usize = 80;

/// Why a measurement does not calibrate.
#[derive(Debug, Error, PartialEq)]
pub enum CalibrationError {
    /// The job cannot be laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// No share of the hardware's speed explains it.
    #[error(
        "{measured:.0} tokens/s a GPU cannot be: at {share} times the speed of this hardware the job would reach {reached:.0}\n\
         hint: check that the GPU, the number of GPUs and their network are those of the run"
    )]
    OutOfReach {
        /// What was measured.
        measured: f64,
        /// The outermost share that was tried.
        share: f64,
        /// What it gives.
        reached: f64,
    },
}

/// The assumptions with the `compute_efficiency` at which the job has this rate.
///
/// # Errors
/// [`CalibrationError`].
pub fn calibrate(
    inputs: &CostInputs<'_>,
    assumed: &Assumptions,
    tokens_per_second_per_gpu: f64,
) -> Result<Assumptions, CalibrationError> {
    let at = |share: f64| Assumptions { compute_efficiency: share, ..*assumed };
    let rate = |share: f64| predict(inputs, &at(share)).map(|it| it.tokens_per_second_per_gpu);
    let [mut low, mut high] = SHARES;
    let (slowest, fastest) = (rate(low)?, rate(high)?);
    if !(slowest..=fastest).contains(&tokens_per_second_per_gpu) {
        let (share, reached) = if tokens_per_second_per_gpu > fastest { (high, fastest) } else { (low, slowest) };
        return Err(CalibrationError::OutOfReach { measured: tokens_per_second_per_gpu, share, reached });
    }
    for _ in 0..HALVINGS {
        // In the middle of what they multiply by: the range spans powers of ten.
        let middle = (low * high).sqrt();
        match rate(middle)? < tokens_per_second_per_gpu {
            true => low = middle,
            false => high = middle,
        }
    }
    Ok(at((low * high).sqrt()))
}
