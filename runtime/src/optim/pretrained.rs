//! What draws training toward the pretrained weights θ₀: λ‖θ − θ₀‖² (Li, Grandvalet and Davoine, "Explicit Inductive Bias for
//! Transfer Learning with Convolutional Networks", 2018) and λ/2 · ΣF(θ − θ₀)² with the Fisher information F (Kirkpatrick et al.,
//! "Overcoming catastrophic forgetting in neural networks", 2017) beside the loss, over all that is trained.
//!
//! They are no sums over tokens, so they come once per optimizer step, after the gradients of all ranks and micro-batches are added
//! up: each rank adds them to its own shard. They are there before the gradient norm is taken, as where they are part of the loss.

use super::{OptimError, sum_of_squares};
use crate::shard::Shards;
use tch::{Kind, Tensor};

/// Elements whose differences exist at once.
const CHUNK: i64 = 1 << 18;

/// How strongly training is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// λ of λ‖θ − θ₀‖².
    pub l2: f64,
    /// λ of λ/2 · ΣF(θ − θ₀)²; 0 where there is no Fisher information.
    pub ewc: f64,
}

impl Draw {
    /// Adds the gradients of both × `loss_scale` to this rank's gradient shards. Returns this rank's part of ‖θ − θ₀‖² and of
    /// ΣF(θ − θ₀)², two float64 numbers where the gradients are.
    pub fn apply(self, shards: &mut Shards, loss_scale: f64) -> Result<Tensor, OptimError> {
        let device = shards.comm().device();
        let distances = Tensor::f_zeros([2], (Kind::Double, device))?;
        let add = |index: i64, squares: Tensor| {
            let _sum = distances.f_select(0, index)?.f_add_(&squares.f_to_device(device)?)?;
            Ok::<(), OptimError>(())
        };
        for drawn in shards.drawn()? {
            let numel = drawn.master.numel() as i64;
            for begin in (0..numel).step_by(CHUNK as usize) {
                let length = CHUNK.min(numel - begin);
                let part = |tensor: &Tensor| tensor.f_narrow(0, begin, length);
                let float = |tensor: &Tensor| part(tensor)?.f_to_kind(Kind::Float);
                let pull = |gradient: &Tensor| {
                    let _added = part(&drawn.gradient)?.f_add_(&gradient.f_to_device(device)?)?;
                    Ok::<(), OptimError>(())
                };
                let mut difference = float(&drawn.master)?.f_sub(&float(&drawn.pretrained)?)?;
                if let Some(fisher) = drawn.fisher.as_ref().filter(|_| self.ewc > 0.0) {
                    let fisher = part(fisher)?;
                    add(1, sum_of_squares(&fisher.f_sqrt()?.f_mul_(&difference)?)?)?;
                    pull(&fisher.f_mul(&difference)?.f_mul_scalar_(self.ewc * loss_scale)?)?;
                }
                if self.l2 > 0.0 {
                    add(0, sum_of_squares(&difference)?)?;
                    pull(&difference.f_mul_scalar_(2.0 * self.l2 * loss_scale)?)?;
                }
            }
        }
        Ok(distances)
    }
}
