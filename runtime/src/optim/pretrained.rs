//! L2 toward the pretrained weights (Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning with
//! Convolutional Networks", 2018): λ‖θ − θ₀‖² beside the loss, over all that is trained.
//!
//! It is no sum over tokens, so it comes once per optimizer step, after the gradients of all ranks and micro-batches are added
//! up: each rank adds it to its own shard. It is there before the gradient norm is taken, as it is where it is part of the loss.

use super::{OptimError, sum_of_squares};
use crate::shard::Shards;
use tch::{Kind, Tensor};

/// Elements whose differences exist at once.
const CHUNK: i64 = 1 << 18;

/// Adds 2 × `weight` × (θ − θ₀) × `loss_scale` to this rank's gradient shards. Returns this rank's part of ‖θ − θ₀‖², a float64
/// scalar where the gradients are.
pub fn draw_toward_pretrained(shards: &mut Shards, weight: f64, loss_scale: f64) -> Result<Tensor, OptimError> {
    let device = shards.comm().device();
    let mut squares = Tensor::f_zeros([0i64; 0], (Kind::Double, device))?;
    for drawn in shards.drawn()? {
        let numel = drawn.master.numel() as i64;
        for begin in (0..numel).step_by(CHUNK as usize) {
            let length = CHUNK.min(numel - begin);
            let part = |tensor: &Tensor| tensor.f_narrow(0, begin, length);
            let float = |tensor: &Tensor| part(tensor)?.f_to_kind(Kind::Float);
            let mut difference = float(&drawn.master)?.f_sub(&float(&drawn.pretrained)?)?;
            squares = squares.f_add_(&sum_of_squares(&difference)?.f_to_device(device)?)?;
            let gradient = difference.f_mul_scalar_(2.0 * weight * loss_scale)?.f_to_device(device)?;
            let _added = part(&drawn.gradient)?.f_add_(&gradient)?;
        }
    }
    Ok(squares)
}
