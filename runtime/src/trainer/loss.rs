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
    /// By source, float64 `[2, sources]`, where `hidden` is, so that the host need not wait for them: the sums of the tokens'
    /// cross-entropies, and how many tokens are the most probable ones.
    pub(super) sums: Tensor,
    /// The gradient of all sums × `scale` with respect to the hidden states given; `None` when it was not asked for.
    pub(super) hidden_gradient: Option<Tensor>,
}

/// The head.
pub(super) struct Head<'a> {
    /// `[vocabulary, hidden size]`.
    pub(super) weight: &'a Tensor,
    /// What logits are capped at: l becomes c · tanh(l / c).
    pub(super) softcap: Option<f64>,
    /// The share of a label's weight that all classes have evenly.
    pub(super) smoothing: f64,
}

/// Which gradients are asked for.
pub(super) struct HeadGradients {
    /// The accumulated gradient of the head to add to; none for a frozen head.
    pub(super) weight: Option<Tensor>,
    /// Whether that of the hidden states is.
    pub(super) hidden: bool,
    /// What both are multiplied by.
    pub(super) scale: f64,
}

/// What to predict.
pub(super) struct Targets {
    /// Token ids `[tokens]`.
    pub(super) ids: Tensor,
    /// How many sources of rows there are.
    pub(super) sources: i64,
    /// The source of each token `[tokens]`; none where there is one.
    pub(super) of_source: Option<Tensor>,
}

/// Cross-entropy of `hidden` `[tokens, hidden size]` under the head for `targets`, summed by source, and the gradients that are asked
/// for.
pub(super) fn head_loss(
    hidden: &Tensor,
    &Head { weight, softcap, smoothing }: &Head<'_>,
    targets: &Targets,
    gradients: Option<&HeadGradients>,
) -> Result<HeadLoss, TrainError> {
    let tokens = hidden.size()[0];
    let of_hidden = gradients.is_some_and(|gradients| gradients.hidden);
    let hidden_gradient = of_hidden.then(|| hidden.f_zeros_like()).transpose()?;
    let sums = Tensor::f_zeros([2, targets.sources], (Kind::Double, hidden.device()))?;
    let mut begin = 0;
    while begin < tokens {
        let length = CHUNK.min(tokens - begin);
        let chunk = hidden.f_narrow(0, begin, length)?;
        let target = targets.ids.f_narrow(0, begin, length)?;
        let logits = Tensor::f_empty([length, weight.size()[0]], (weight.kind(), weight.device()))?;
        multiply(&logits, &chunk, &weight.f_transpose(0, 1)?)?;
        let slopes = softcap.map(|softcap| cap(&logits, softcap, gradients.is_some())).transpose()?.flatten();
        let scale = gradients.map(|gradients| gradients.scale);
        let losses = Kernels::default().cross_entropy(&logits, &target, scale, smoothing)?;
        if let Some(slopes) = slopes {
            let _scaled = logits.shallow_clone().f_mul_(&slopes)?;
        }
        match &targets.of_source {
            None => {
                let _added =
                    sums.shallow_clone().f_add_(&losses.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Double)?)?;
            }
            Some(of_source) => add_by_source(&sums, &losses, &of_source.f_narrow(0, begin, length)?)?,
        }
        if let Some(hidden_gradient) = &hidden_gradient {
            multiply(&hidden_gradient.f_narrow(0, begin, length)?, &logits, weight)?;
        }
        if let Some(weight_gradient) = gradients.and_then(|gradients| gradients.weight.as_ref()) {
            let of_chunk = weight.f_empty_like()?;
            multiply(&of_chunk, &logits.f_transpose(0, 1)?, &chunk)?;
            add(weight_gradient, &of_chunk)?;
        }
        begin += length;
    }
    Ok(HeadLoss { sums, hidden_gradient })
}

/// Caps logits in place; gives the slopes of the caps if they are wanted.
fn cap(logits: &Tensor, softcap: f64, wants_slopes: bool) -> Result<Option<Tensor>, TrainError> {
    let shares = logits.shallow_clone().f_div_scalar_(softcap)?.f_tanh_()?;
    let slopes = wants_slopes.then(|| shares.f_square()?.f_neg_()?.f_add_scalar_(1.0)).transpose()?;
    let _capped = logits.shallow_clone().f_mul_scalar_(softcap)?;
    Ok(slopes)
}

/// Adds each token's loss and hit to its source's sums: source by source, so that the order of adding, and with it the sum, is always the same.
fn add_by_source(sums: &Tensor, losses: &Tensor, of_source: &Tensor) -> Result<(), TrainError> {
    let none = losses.f_zeros_like()?;
    for source in 0..sums.size()[1] {
        // Chosen, not multiplied by 0: a loss that is no number is one of its own source alone.
        let own = losses.f_where_self(&of_source.f_eq(source)?, &none)?;
        let _added =
            sums.f_select(1, source)?.f_add_(&own.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Double)?)?;
    }
    Ok(())
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
            let targets = Targets { ids: targets.shallow_clone(), sources: 1, of_source: None };
            let gradients = HeadGradients { weight: Some(weight_gradient.shallow_clone()), hidden: true, scale };
            let head = Head { weight: &weight, softcap: None, smoothing: 0.0 };
            let loss = head_loss(&hidden, &head, &targets, Some(&gradients)).unwrap();
            (loss, weight_gradient)
        });
        let sum = loss.sums.double_value(&[0, 0]);
        assert!((sum - expected.double_value(&[])).abs() < 1e-3 * sum);
        assert!(weight_gradient.allclose(&weight.grad(), 1e-4, 1e-5, false));
        assert!(loss.hidden_gradient.unwrap().allclose(&hidden.grad(), 1e-4, 1e-6, false));
    }

    #[test]
    fn each_source_has_the_loss_of_its_own_tokens() {
        tch::manual_seed(4);
        let options = (Kind::Float, Device::Cpu);
        let (tokens, width, vocabulary) = (CHUNK + 88, 8, 20);
        let (hidden, weight) = (Tensor::randn([tokens, width], options), Tensor::randn([vocabulary, width], options));
        // The last token's loss is no number.
        let _infinite = hidden.get(tokens - 1).fill_(f64::INFINITY);
        let ids = Tensor::randint(vocabulary, [tokens], (Kind::Int64, Device::Cpu));
        let of_source = Tensor::arange(tokens, (Kind::Int64, Device::Cpu)).remainder(3);
        let losses =
            hidden.matmul(&weight.transpose(0, 1)).cross_entropy_loss::<Tensor>(&ids, None, Reduction::None, -100, 0.0);
        let targets = Targets { ids, sources: 3, of_source: Some(of_source.shallow_clone()) };
        let sums = tch::no_grad(|| {
            head_loss(&hidden, &Head { weight: &weight, softcap: None, smoothing: 0.0 }, &targets, None)
        })
        .unwrap()
        .sums;
        let broken = (tokens - 1) % 3;
        for source in 0..3 {
            let expected = losses.masked_select(&of_source.eq(source)).sum(Kind::Double).double_value(&[]);
            let sum = sums.double_value(&[0, source]);
            match source == broken {
                true => assert!(!sum.is_finite()),
                false => {
                    assert!((sum - expected).abs() < 1e-4 * expected, "source {source}: {sum}, expected {expected}")
                }
            }
        }
    }
}
