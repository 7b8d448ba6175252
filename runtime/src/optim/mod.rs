//! The optimizer step over flat shards: clip by the global norm, then fused AdamW.

mod schedule;

pub use schedule::{Schedule, ScheduleKind};

use crate::comm::CommError;
use crate::shard::{OwnedRun, ShardError, Shards};
use crate::torch::{AdamW, OptimizerPieces, fused_adamw};
use thiserror::Error;
use zerofold_plan::ParameterGroup;

/// Why an optimizer step failed.
#[derive(Debug, Error)]
pub enum OptimError {
    /// Sharding failed.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The exchange of norms failed.
    #[error("gradient norm: {0}")]
    Norm(#[from] CommError),
    /// libtorch failed.
    #[error(transparent)]
    Shim(#[from] crate::torch::ShimError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] tch::TchError),
}

/// Sum of squares of this rank's gradient shards. Summed shard by shard at every stage, so that the global norm has the
/// same bits at all of them.
pub fn own_sum_of_squares(shards: &Shards) -> Result<f64, OptimError> {
    let mut sum = 0.0;
    for unit in &shards.units {
        let norm = unit.own_gradient()?.f_norm()?.f_double_value(&[])?;
        sum += norm * norm;
    }
    Ok(sum)
}

/// Multiplies this rank's gradient shards so that a global norm of `norm` becomes at most `max_norm`, as PyTorch's
/// `clip_grad_norm_` does. `max_norm` 0 means no clipping.
pub fn clip(shards: &mut Shards, norm: f64, max_norm: f64) -> Result<(), OptimError> {
    let coefficient = max_norm / (norm + 1e-6);
    if max_norm > 0.0 && coefficient < 1.0 {
        for unit in &mut shards.units {
            let _scaled = unit.own_gradient()?.f_mul_scalar_(coefficient)?;
        }
    }
    Ok(())
}

/// One AdamW step on everything this rank owns: one fused call per parameter group. `step` counts from 1; biases and norm
/// weights are not decayed.
pub fn adamw(shards: &mut Shards, step: u64, numbers: &AdamW) -> Result<(), OptimError> {
    let mut runs: Vec<OwnedRun> = Vec::new();
    for unit in &shards.units {
        runs.extend(unit.owned_runs()?);
    }
    for group in [ParameterGroup::Decayed, ParameterGroup::NotDecayed] {
        let mut pieces = OptimizerPieces::default();
        for run in runs.iter().filter(|run| run.group == group) {
            pieces.masters.push(&run.master);
            pieces.gradients.push(&run.gradient);
            pieces.first_moments.push(&run.first_moment);
            pieces.second_moments.push(&run.second_moment);
        }
        let weight_decay = if group == ParameterGroup::Decayed { numbers.weight_decay } else { 0.0 };
        fused_adamw(&pieces, step, &AdamW { weight_decay, ..*numbers })?;
    }
    Ok(())
}
