//! The optimizer step over flat shards: clip by the global norm, then fused AdamW.

mod loss_scale;
mod plateau;
mod pretrained;
mod schedule;

pub use loss_scale::LossScale;
pub use plateau::Plateau;
pub use pretrained::Draw;
pub use schedule::Schedule;

use crate::comm::CommError;
use crate::shard::{ShardError, Shards};
use crate::torch::{AdamW, OptimizerPieces, fused_adamw};
use tch::{Kind, Tensor};
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
    /// A learning rate that is none.
    #[error(
        "the learning rate of step {step} is {rate} by the schedule {schedule}\nhint: this is a bug of the schedule: use another"
    )]
    Rate {
        /// The schedule.
        schedule: zerofold_configs::Scheduler,
        /// The step, from 1 on.
        step: u64,
        /// What it makes of it.
        rate: f64,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] tch::TchError),
}

/// Sum of squares of this rank's gradient shards. Summed shard by shard at every stage, so that the global norm has the
/// same bits at all of them. A float64 scalar where the gradients are.
pub fn own_sum_of_squares(shards: &Shards) -> Result<Tensor, OptimError> {
    let mut sum = Tensor::f_zeros([0i64; 0], (Kind::Double, shards.comm().device()))?;
    for unit in shards.units.iter().filter(|unit| unit.is_trained()) {
        sum = sum.f_add_(&sum_of_squares(&unit.own_gradient()?)?)?;
    }
    Ok(sum)
}

/// Elements whose squares are added up in float32 before float64 takes over.
const NORM_CHUNK: i64 = 4096;

/// Sum of squares of a flat tensor. libtorch's norm adds in float32 without compensation, which for a flat
/// parameter of millions of elements is wrong in the fourth digit; short pieces keep it right to rounding.
fn sum_of_squares(flat: &Tensor) -> Result<Tensor, OptimError> {
    let numel = flat.numel() as i64;
    let whole = numel / NORM_CHUNK * NORM_CHUNK;
    let mut sum = Tensor::f_zeros([0i64; 0], (Kind::Double, flat.device()))?;
    for piece in [
        flat.f_narrow(0, 0, whole)?.f_view([-1, NORM_CHUNK])?,
        flat.f_narrow(0, whole, numel - whole)?.f_view([1, -1])?,
    ] {
        if piece.numel() > 0 {
            let norms =
                piece.f_norm_scalaropt_dim_dtype(2, [1i64].as_slice(), false, Kind::Float)?.f_to_kind(Kind::Double)?;
            sum = sum.f_add_(&norms.f_square()?.f_sum(Kind::Double)?)?;
        }
    }
    Ok(sum)
}

/// Divides this rank's gradient shards by the loss scale, and then scales them down to a global norm of at most
/// `max_norm`, as PyTorch's `clip_grad_norm_` does, in one pass. `norm` is that of the gradients without the loss scale.
/// `max_norm` 0 means no clipping.
pub fn unscale_and_clip(shards: &mut Shards, loss_scale: f64, norm: f64, max_norm: f64) -> Result<(), OptimError> {
    let clipping = if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 };
    let factor = clipping / loss_scale;
    if factor != 1.0 {
        for unit in shards.units.iter().filter(|unit| unit.is_trained()) {
            let _scaled = unit.own_gradient()?.f_mul_scalar_(factor)?;
        }
    }
    Ok(())
}

/// One AdamW step on everything this rank owns that is trained now: one fused call per unit and parameter group. `taken` steps were
/// taken before; moments of what was opened later count from when it was. Biases and norm weights are not decayed, unless their group
/// says otherwise.
pub fn adamw(shards: &mut Shards, taken: u64, numbers: &AdamW) -> Result<(), OptimError> {
    for unit in &shards.units {
        for run in unit.owned_runs()? {
            let pieces = OptimizerPieces {
                masters: vec![&run.master],
                gradients: vec![&run.gradient],
                first_moments: vec![&run.first_moment],
                second_moments: vec![&run.second_moment],
            };
            let (factor, weight_decay) = match run.group {
                ParameterGroup::Decayed => (1.0, numbers.weight_decay),
                ParameterGroup::Own(group) => (group.rate.get(), group.weight_decay.get()),
                ParameterGroup::NotDecayed | ParameterGroup::Frozen => (1.0, 0.0),
            };
            let numbers = AdamW { learning_rate: factor * numbers.learning_rate, weight_decay, ..*numbers };
            fused_adamw(&pieces, taken + 1 - run.begun, &numbers)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn the_norm_of_millions_of_elements_is_right_to_rounding() {
        let _alone = crate::torch::generator_of_this_test(1);
        for numel in [1i64, 64, 4096, 5000, 6_000_064] {
            let flat = Tensor::randn([numel], (Kind::Float, Device::Cpu)) * 1e-3;
            let exact = flat.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]);
            let ours = sum_of_squares(&flat).unwrap().double_value(&[]);
            assert!((ours - exact).abs() <= 1e-6 * exact, "{numel} elements: {ours} instead of {exact}");
        }
    }
}
