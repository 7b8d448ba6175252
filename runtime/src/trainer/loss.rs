//! The head and the loss over supervised tokens only, in chunks: cross-entropy of the next token or of a class, or what a classifier
//! of several classes or of numbers has in its place.
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
    /// The logits `[tokens, rows of the head]` in float32, where they were asked for.
    pub(super) logits: Option<Tensor>,
    /// The gradient of all sums × `scale` with respect to the hidden states given; `None` when it was not asked for.
    pub(super) hidden_gradient: Option<Tensor>,
}

/// The head.
pub(super) struct Head<'a> {
    /// `[vocabulary, hidden size]`, or `[labels, hidden size]`.
    pub(super) weight: &'a Tensor,
    /// What is added to logits, where the head has a bias.
    pub(super) bias: Option<&'a Tensor>,
    /// What logits are capped at: l becomes c · tanh(l / c).
    pub(super) softcap: Option<f64>,
    /// The share of a label's weight that all classes have evenly.
    pub(super) smoothing: f64,
}

/// Which gradients are asked for.
pub(super) struct HeadGradients {
    /// The accumulated gradient of the head to add to; none for a frozen head.
    pub(super) weight: Option<Tensor>,
    /// The same of its bias.
    pub(super) bias: Option<Tensor>,
    /// Whether that of the hidden states is.
    pub(super) hidden: bool,
    /// What both are multiplied by.
    pub(super) scale: f64,
}

/// What logits are compared with, and how.
pub(super) enum Told {
    /// The class of the target's id: cross-entropy.
    Class,
    /// For each class whether it is one, `[tokens, labels]` in float32: binary cross-entropy, in the mean over classes; a hit has them all
    /// right.
    Flags(Tensor),
    /// Numbers `[tokens, labels]` in float32: the squared error, in the mean over them; nothing is a hit.
    Numbers(Tensor),
}

/// What to predict.
pub(super) struct Targets {
    /// Ids of tokens or classes `[tokens]`.
    pub(super) ids: Tensor,
    /// What is told of each token.
    pub(super) told: Told,
    /// How many sources of rows there are.
    pub(super) sources: i64,
    /// The source of each token `[tokens]`; none where there is one.
    pub(super) of_source: Option<Tensor>,
}

/// The loss of `hidden` `[tokens, hidden size]` under the head for `targets`, summed by source, and the gradients that are asked
/// for. `keeps_logits` asks for the logits, where no gradients are.
pub(super) fn head_loss(
    hidden: &Tensor,
    head: &Head<'_>,
    targets: &Targets,
    gradients: Option<&HeadGradients>,
    keeps_logits: bool,
) -> Result<HeadLoss, TrainError> {
    let Head { weight, bias, softcap, smoothing } = *head;
    let tokens = hidden.size()[0];
    let mut kept = Vec::new();
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
        if let Some(bias) = bias {
            let _added = logits.shallow_clone().f_add_(bias)?;
        }
        let slopes = softcap.map(|softcap| cap(&logits, softcap, gradients.is_some())).transpose()?.flatten();
        let scale = gradients.map(|gradients| gradients.scale);
        if keeps_logits {
            kept.push(logits.f_to_kind(Kind::Float)?);
        }
        let losses = match &targets.told {
            Told::Class => Kernels::default().cross_entropy(&logits, &target, scale, smoothing)?,
            Told::Flags(flags) => against_flags(&logits, &flags.f_narrow(0, begin, length)?, scale)?,
            Told::Numbers(numbers) => against_numbers(&logits, &numbers.f_narrow(0, begin, length)?, scale)?,
        };
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
        if let Some(bias_gradient) = gradients.and_then(|gradients| gradients.bias.as_ref()) {
            add(bias_gradient, &logits.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Float)?)?;
        }
        begin += length;
    }
    let logits = keeps_logits.then(|| match kept.is_empty() {
        true => Tensor::f_zeros([0, weight.size()[0]], (Kind::Float, weight.device())),
        false => Tensor::f_cat(&kept, 0),
    });
    Ok(HeadLoss { sums, logits: logits.transpose()?, hidden_gradient })
}

/// Losses and hits of `logits` `[tokens, labels]` against flags, float64 `[2, tokens]`. With a `scale` the gradient of the losses ×
/// `scale` takes the logits' place.
fn against_flags(logits: &Tensor, flags: &Tensor, scale: Option<f64>) -> Result<Tensor, TrainError> {
    let wide = logits.f_to_kind(Kind::Float)?;
    let losses = wide.f_binary_cross_entropy_with_logits::<Tensor>(flags, None, None, tch::Reduction::None)?;
    let right = wide.f_gt(0.0)?.f_eq_tensor(&flags.f_gt(0.5)?)?.f_all_dim(1, false)?;
    let slopes = wide.f_sigmoid()?.f_sub(flags)?;
    mean_over_labels(logits, &losses, &slopes, scale, &right.f_to_kind(Kind::Double)?)
}

/// The same against numbers.
fn against_numbers(logits: &Tensor, numbers: &Tensor, scale: Option<f64>) -> Result<Tensor, TrainError> {
    let error = logits.f_to_kind(Kind::Float)?.f_sub(numbers)?;
    let hits = Tensor::f_zeros([numbers.size()[0]], (Kind::Double, logits.device()))?;
    mean_over_labels(logits, &error.f_square()?, &error.f_mul_scalar(2.0)?, scale, &hits)
}

/// Losses in the mean over labels with the hits; their slopes, computed in float32, × `scale` take the logits' place.
fn mean_over_labels(
    logits: &Tensor,
    losses: &Tensor,
    slopes: &Tensor,
    scale: Option<f64>,
    hits: &Tensor,
) -> Result<Tensor, TrainError> {
    if let Some(scale) = scale {
        logits.shallow_clone().f_copy_(&slopes.f_mul_scalar(scale / losses.size()[1] as f64)?)?;
    }
    let losses = losses.f_mean_dim([1i64].as_slice(), false, Kind::Double)?;
    Ok(Tensor::f_stack(&[&losses, hits], 0)?)
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

    fn head(weight: &Tensor) -> Head<'_> {
        Head { weight, bias: None, softcap: None, smoothing: 0.0 }
    }

    /// Against libtorch's own losses and autograd.
    #[test]
    fn classifiers_have_the_losses_and_gradients_of_libtorch() {
        let _alone = crate::torch::generator_of_this_test(5);
        let options = (Kind::Float, Device::Cpu);
        let (rows, width, labels, scale) = (CHUNK + 9, 8, 3, 1.0 / 7.0);
        let flags = Tensor::randint(2, [rows, labels], options);
        let numbers = Tensor::randn([rows, labels], options);
        for (of_numbers, values) in [(false, flags), (true, numbers)] {
            let hidden = Tensor::randn([rows, width], options).set_requires_grad(true);
            let weight = Tensor::randn([labels, width], options).set_requires_grad(true);
            let bias = Tensor::randn([labels], options).set_requires_grad(true);
            let logits = hidden.linear(&weight, Some(&bias));
            let expected = match of_numbers {
                true => logits.mse_loss(&values, Reduction::None),
                false => logits.binary_cross_entropy_with_logits::<Tensor>(&values, None, None, Reduction::None),
            };
            let expected = expected.mean_dim([1i64].as_slice(), false, Kind::Float).sum(Kind::Float);
            (&expected * scale).backward();
            let [of_weight, of_bias] = [weight.zeros_like(), bias.zeros_like()].map(|sum| sum.detach());
            let loss = tch::no_grad(|| {
                let ids = Tensor::zeros([rows], (Kind::Int64, Device::Cpu));
                let told = values.shallow_clone();
                let told = if of_numbers { Told::Numbers(told) } else { Told::Flags(told) };
                let targets = Targets { ids, told, sources: 1, of_source: None };
                let (weight_sum, bias_sum) = (Some(of_weight.shallow_clone()), Some(of_bias.shallow_clone()));
                let gradients = HeadGradients { weight: weight_sum, bias: bias_sum, hidden: true, scale };
                let head = Head { bias: Some(&bias), ..head(&weight) };
                let kept = head_loss(&hidden, &head, &targets, None, true).unwrap();
                assert!(kept.logits.unwrap().allclose(&logits, 1e-5, 1e-5, false), "of numbers: {of_numbers}");
                head_loss(&hidden, &head, &targets, Some(&gradients), false).unwrap()
            });
            let (sum, hits) = (loss.sums.double_value(&[0, 0]), loss.sums.double_value(&[1, 0]));
            assert!((sum - expected.double_value(&[])).abs() < 1e-4 * sum, "of numbers: {of_numbers}");
            let right = logits.gt(0.0).eq_tensor(&values.gt(0.5)).all_dim(1, false).sum(Kind::Double);
            let right = if of_numbers { 0.0 } else { right.double_value(&[]) };
            assert_eq!(hits, right, "of numbers: {of_numbers}");
            assert!(of_weight.allclose(&weight.grad(), 1e-4, 1e-5, false), "of numbers: {of_numbers}");
            assert!(of_bias.allclose(&bias.grad(), 1e-4, 1e-5, false), "of numbers: {of_numbers}");
            assert!(
                loss.hidden_gradient.unwrap().allclose(&hidden.grad(), 1e-4, 1e-6, false),
                "of numbers: {of_numbers}"
            );
        }
    }

    #[test]
    fn loss_and_gradients_equal_autograds() {
        let _alone = crate::torch::generator_of_this_test(3);
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
            let targets = Targets { ids: targets.shallow_clone(), told: Told::Class, sources: 1, of_source: None };
            let weight_sum = Some(weight_gradient.shallow_clone());
            let gradients = HeadGradients { weight: weight_sum, bias: None, hidden: true, scale };
            let loss = head_loss(&hidden, &head(&weight), &targets, Some(&gradients), false).unwrap();
            (loss, weight_gradient)
        });
        let sum = loss.sums.double_value(&[0, 0]);
        assert!((sum - expected.double_value(&[])).abs() < 1e-3 * sum);
        assert!(weight_gradient.allclose(&weight.grad(), 1e-4, 1e-5, false));
        assert!(loss.hidden_gradient.unwrap().allclose(&hidden.grad(), 1e-4, 1e-6, false));
    }

    #[test]
    fn each_source_has_the_loss_of_its_own_tokens() {
        let _alone = crate::torch::generator_of_this_test(4);
        let options = (Kind::Float, Device::Cpu);
        let (tokens, width, vocabulary) = (CHUNK + 88, 8, 20);
        let (hidden, weight) = (Tensor::randn([tokens, width], options), Tensor::randn([vocabulary, width], options));
        // The last token's loss is no number.
        let _infinite = hidden.get(tokens - 1).fill_(f64::INFINITY);
        let ids = Tensor::randint(vocabulary, [tokens], (Kind::Int64, Device::Cpu));
        let of_source = Tensor::arange(tokens, (Kind::Int64, Device::Cpu)).remainder(3);
        let losses =
            hidden.matmul(&weight.transpose(0, 1)).cross_entropy_loss::<Tensor>(&ids, None, Reduction::None, -100, 0.0);
        let targets = Targets { ids, told: Told::Class, sources: 3, of_source: Some(of_source.shallow_clone()) };
        let sums = tch::no_grad(|| head_loss(&hidden, &head(&weight), &targets, None, false)).unwrap().sums;
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
