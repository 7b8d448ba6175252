//! The head and the loss: cross-entropy over supervised tokens only, in chunks.
//!
//! Logits exist for one chunk of supervised tokens at a time, in the compute type; their gradient (softmax minus one-hot,
//! over the count, computed in float32) takes their place, so no logits are kept for autograd. The head's weight gradient is
//! added up in float32. Chunks begin anew with each micro-batch, so they are the same at every stage.

use super::TrainError;
use crate::torch::{Kernels, add, multiply};
use tch::{Kind, Tensor};

/// Supervised tokens whose logits exist at once.
const CHUNK: i64 = 512;

/// What the head gives for one micro-batch.
pub(super) struct HeadLoss {
    /// The sum of the tokens' cross-entropies: a float64 scalar where `hidden` is, so that the host need not wait for it.
    pub(super) sum: Tensor,
    /// The gradient of `sum × scale` with respect to the hidden states given; `None` when only the loss was asked for.
    pub(super) hidden_gradient: Option<Tensor>,
}

/// Cross-entropy of `hidden` `[tokens, hidden size]` under the head `weight` `[vocabulary, hidden size]` for `targets`
/// `[tokens]`, summed. With `gradient` = (float32 gradient of `weight` to add to, `scale`) the gradients of
/// `sum × scale` are computed too.
pub(super) fn head_loss(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &Tensor,
    gradient: Option<(&Tensor, f64)>,
) -> Result<HeadLoss, TrainError> {
    let tokens = hidden.size()[0];
    let hidden_gradient = gradient.map(|_| hidden.f_zeros_like()).transpose()?;
    let mut sum = Tensor::f_zeros([0i64; 0], (Kind::Double, hidden.device()))?;
    let mut begin = 0;
    while begin < tokens {
        let length = CHUNK.min(tokens - begin);
        let chunk = hidden.f_narrow(0, begin, length)?;
        let target = targets.f_narrow(0, begin, length)?;
        let logits = Tensor::f_empty([length, weight.size()[0]], (weight.kind(), weight.device()))?;
        multiply(&logits, &chunk, &weight.f_transpose(0, 1)?)?;
        let losses = Kernels::default().cross_entropy(&logits, &target, gradient.map(|(_, scale)| scale))?;
        sum = sum.f_add_(&losses.f_sum(Kind::Double)?)?;
        if let (Some((weight_gradient, _)), Some(hidden_gradient)) = (gradient, &hidden_gradient) {
            multiply(&hidden_gradient.f_narrow(0, begin, length)?, &logits, weight)?;
            let of_chunk = weight.f_empty_like()?;
            multiply(&of_chunk, &logits.f_transpose(0, 1)?, &chunk)?;
            add(weight_gradient, &of_chunk)?;
        }
        begin += length;
    }
    Ok(HeadLoss { sum, hidden_gradient })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Reduction};

    #[test]
    fn loss_and_gradients_equal_autograds() {
        tch::manual_seed(3);
        let options = (Kind::Float, Device::Cpu);
        // More tokens than one chunk holds.
        let (tokens, width, vocabulary) = (CHUNK + 88, 16, 40);
        let hidden = Tensor::randn([tokens, width], options).set_requires_grad(true);
        let weight = Tensor::randn([vocabulary, width], options).set_requires_grad(true);
        let targets = Tensor::randint(vocabulary, [tokens], (Kind::Int64, Device::Cpu));
        let logits = hidden.matmul(&weight.transpose(0, 1));
        let expected = logits.cross_entropy_loss::<Tensor>(&targets, None, Reduction::Sum, -100, 0.0);
        let scale = 1.0 / 37.0;
        (&expected * scale).backward();
        let (loss, weight_gradient) = tch::no_grad(|| {
            let weight_gradient = Tensor::zeros([vocabulary, width], options);
            let loss = head_loss(&hidden, &weight, &targets, Some((&weight_gradient, scale))).unwrap();
            (loss, weight_gradient)
        });
        let sum = loss.sum.double_value(&[]);
        assert!((sum - expected.double_value(&[])).abs() < 1e-3 * sum);
        assert!(weight_gradient.allclose(&weight.grad(), 1e-4, 1e-5, false));
        assert!(loss.hidden_gradient.unwrap().allclose(&hidden.grad(), 1e-4, 1e-6, false));
    }
}
