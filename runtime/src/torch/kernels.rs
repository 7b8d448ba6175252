//! What a model is made of: matrix products, attention, and what lies between them, in single passes over memory, in float32
//! whatever the type, rounded once.

use super::{ShimError, checked, ffi, handle};
use std::ffi::{c_int, c_void};
use tch::{Device, Kind, Tensor};

/// In which order the elements of queries, keys and values lie in memory, once they are parted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum HeadLayout {
    /// All heads of a position one after the other. Query `[B, heads, T, D]`, key and value `[B, key_heads, T, D]` are views.
    ByPosition = 0,
    /// All positions of a head one after the other, so the same are contiguous.
    ByHead = 1,
    /// For each key head all positions, each with the query heads that share it: query `[B, key_heads, T, heads / key_heads,
    /// D]`, contiguous; key and value as by head.
    Grouped = 2,
}

/// What a gate goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// x · sigmoid(x).
    Silu,
    /// GELU by its approximation with tanh.
    GeluTanh,
}

/// The kernels of the shim. On the CPU they are loops of ours, elsewhere libtorch's operations; both save the same tensors
/// for backward and differ in rounding alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernels {
    plain: bool,
}

impl Kernels {
    /// libtorch's operations on the CPU too.
    pub fn plain() -> Self {
        Kernels { plain: true }
    }

    fn flag(self) -> c_int {
        c_int::from(self.plain)
    }

    /// RMSNorm (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019): `x / sqrt(mean(x²) + epsilon) · (weight +
    /// offset)` for `x` `[…, H]` and `weight` `[H]` of one type. Saved: `x`, and a float32 number for each row.
    ///
    /// # Errors
    /// Shapes or types that do not fit, and what libtorch says.
    pub fn rms_norm(self, x: &Tensor, weight: &Tensor, epsilon: f64, offset: f64) -> Result<Tensor, ShimError> {
        // SAFETY: the handles are live tensors; the result is a new one.
        owned(|result| unsafe { ffi::zf_rms_norm(handle(x), handle(weight), epsilon, offset, self.flag(), result) })
    }

    /// Gated linear units (Shazeer, "GLU Variants Improve Transformer", 2020): `gate(gate) · up` for `gate_up` `[…, 2 I]`,
    /// gates first: `[…, I]`. Saved: `gate_up`.
    ///
    /// # Errors
    /// An odd width, and what libtorch says.
    pub fn gated(self, gate_up: &Tensor, gate: Gate) -> Result<Tensor, ShimError> {
        let gelu = c_int::from(gate == Gate::GeluTanh);
        // SAFETY: the handle is a live tensor; the result is a new one.
        owned(|result| unsafe { ffi::zf_gated(handle(gate_up), gelu, self.flag(), result) })
    }

    /// Rotary position embedding (Su et al., "RoFormer", 2021), with the halves of a head as pairs, as Llama has them.
    /// Parts `projected` `[B, T, (heads + 2 key_heads) D]` into query `[B, heads, T, D]`, key and value `[B, key_heads, T, D]`
    /// and turns the first two by `cosines` and `sines`, float32 `[T, R / 2]`: of each head the first R elements turn, at most
    /// all D. Saved: the tables.
    ///
    /// `layout` tells how the parts lie. Libtorch's operations know the first two.
    ///
    /// # Errors
    /// Shapes or types that do not fit, and what libtorch says.
    pub fn rotary(
        self,
        projected: &Tensor,
        (cosines, sines): (&Tensor, &Tensor),
        (heads, key_heads): (i64, i64),
        layout: HeadLayout,
    ) -> Result<[Tensor; 3], ShimError> {
        let mut results = [std::ptr::null_mut::<c_void>(); 3];
        // SAFETY: the handles are live tensors, and there is room for three results.
        checked(unsafe {
            ffi::zf_rotary(
                handle(projected),
                handle(cosines),
                handle(sines),
                heads,
                key_heads,
                layout as c_int,
                self.flag(),
                results.as_mut_ptr(),
            )
        })?;
        // SAFETY: each is an at::Tensor made by `new` that nobody else owns.
        Ok(results.map(|result| unsafe { Tensor::from_ptr(result.cast()) }))
    }

    /// Whether [`attention`] is for tensors of this type on this device.
    pub fn attends(self, kind: Kind, device: Device) -> bool {
        !self.plain && device == Device::Cpu && matches!(kind, Kind::Float | Kind::BFloat16)
    }

    /// Of `logits` `[rows, classes]` for `targets` `[rows]` (int64): float64 `[2, rows]`, the cross-entropies, and 1 where the
    /// target has the largest logit. `smoothing` of each label's weight is shared out evenly among all classes (Szegedy et al.,
    /// "Rethinking the Inception Architecture for Computer Vision", 2016). With a `scale` the logits become the gradient of the
    /// losses' sum × `scale`, in their own memory. No graph.
    ///
    /// # Errors
    /// Shapes or types that do not fit, a target that is no class, and what libtorch says.
    pub fn cross_entropy(
        self,
        logits: &Tensor,
        targets: &Tensor,
        scale: Option<f64>,
        smoothing: f64,
    ) -> Result<Tensor, ShimError> {
        let (gradient, scale) = (c_int::from(scale.is_some()), scale.unwrap_or(0.0));
        // SAFETY: the handles are live tensors; the result is a new one.
        owned(|result| unsafe {
            ffi::zf_cross_entropy(handle(logits), handle(targets), gradient, scale, smoothing, self.flag(), result)
        })
    }
}

/// What [`attention`] does with its scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionRule {
    /// They are multiplied by this.
    pub scale: f64,
    /// Then capped: s becomes c · tanh(s / c).
    pub softcap: Option<f64>,
    /// A position sees so many positions, itself included; none for all.
    pub window: Option<i64>,
    /// And none after it.
    pub causal: bool,
}

/// Attention on the CPU (Dao, "FlashAttention-2", 2023) for `query` `[B, groups, T, sharing, D]`, `key` and `value` `[B, groups,
/// T, D]`, all contiguous and of one type, which are [`HeadLayout::Grouped`]: `[B, T, groups · sharing · D]`. Saved: these four, and a
/// float32 number for each position and query head.
///
/// Attention is within each row; with `lengths`, which are T together, within documents of these lengths, end to end in the one
/// row.
///
/// # Errors
/// Shapes, types or lengths that do not fit, a window without causal attention, and what libtorch says.
pub fn attention(
    [query, key, value]: &[Tensor; 3],
    lengths: &[i64],
    rule: &AttentionRule,
) -> Result<Tensor, ShimError> {
    let (softcap, window) = (rule.softcap.unwrap_or(0.0), rule.window.unwrap_or(0));
    // SAFETY: the handles are live tensors, the count is that of the lengths; the result is a new tensor.
    owned(|result| unsafe {
        ffi::zf_attention(
            handle(query),
            handle(key),
            handle(value),
            lengths.as_ptr(),
            lengths.len(),
            rule.scale,
            softcap,
            window,
            c_int::from(rule.causal),
            result,
        )
    })
}

/// The linear layer without bias: `x · weightᵀ` for `x` `[…, I]` and `weight` `[O, I]` of one type: `[…, O]`. Saved: both.
///
/// # Errors
/// Shapes or types that do not fit, and what libtorch says.
pub fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor, ShimError> {
    // SAFETY: the handles are live tensors; the result is a new one.
    owned(|result| unsafe { ffi::zf_linear(handle(x), handle(weight), 0, result) })
}

/// The same with the weight the other way round: `x · weight` for `weight` `[I, O]`.
///
/// # Errors
/// As [`linear`].
pub fn linear_transposed(x: &Tensor, weight: &Tensor) -> Result<Tensor, ShimError> {
    // SAFETY: the handles are live tensors; the result is a new one.
    owned(|result| unsafe { ffi::zf_linear(handle(x), handle(weight), 1, result) })
}

/// Writes `left · right` to `result`: `[M, K]` and `[K, N]`, in any order of elements, and `[M, N]`, all of one type. No graph.
///
/// # Errors
/// Shapes or types that do not fit, and what libtorch says.
pub fn multiply(result: &Tensor, left: &Tensor, right: &Tensor) -> Result<(), ShimError> {
    // SAFETY: the handles are live tensors.
    checked(unsafe { ffi::zf_multiply(handle(result), handle(left), handle(right)) })
}

/// `to += from`, whatever the types, in float32 and rounded once; on the CPU without a cast copy of either.
///
/// # Errors
/// Sizes that differ, and what libtorch says.
pub fn add(to: &Tensor, from: &Tensor) -> Result<(), ShimError> {
    // SAFETY: both handles are live tensors.
    checked(unsafe { ffi::zf_add(handle(to), handle(from)) })
}

/// `table[ids[i]] += rows[i]` for each i: `table` `[V, H]`, `ids` `[n]` (int64), `rows` `[n, H]`, in an order that gives the
/// same bits every time.
///
/// # Errors
/// Shapes that do not fit, on the CPU an id beyond the table, and what libtorch says.
pub fn add_rows(table: &Tensor, ids: &Tensor, rows: &Tensor) -> Result<(), ShimError> {
    // SAFETY: the handles are live tensors.
    checked(unsafe { ffi::zf_add_rows(handle(table), handle(ids), handle(rows)) })
}

/// The tensor that a shim function makes.
fn owned(make: impl FnOnce(*mut *mut c_void) -> c_int) -> Result<Tensor, ShimError> {
    let mut result = std::ptr::null_mut();
    checked(make(&mut result))?;
    // SAFETY: after success the result is an at::Tensor made by `new` that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(result.cast()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::autograd_grad;

    const TYPES: [Kind; 3] = [Kind::Float, Kind::BFloat16, Kind::Half];

    /// Numbers about 0 that look random and are the same on every call: tests run side by side on one generator.
    fn scattered(shape: &[i64], kind: Kind) -> Tensor {
        let count = shape.iter().product::<i64>();
        let angles = Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + 0.5;
        ((angles.sin() * 43758.5453).frac() * 2.0).reshape(shape).to_kind(kind)
    }

    /// Outputs of `compute`, and the gradients of `inputs` for random seeds, in float64.
    fn with_gradients(inputs: &[Tensor], compute: &dyn Fn(&[Tensor]) -> Vec<Tensor>) -> Vec<Tensor> {
        let before: Vec<Tensor> = inputs.iter().map(Tensor::copy).collect();
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.detach().set_requires_grad(true)).collect();
        let outputs = compute(&inputs);
        let seeds: Vec<Tensor> =
            outputs.iter().map(|output| scattered(&output.size(), Kind::BFloat16).to_kind(output.kind())).collect();
        let kept_seeds: Vec<Tensor> = seeds.iter().map(Tensor::copy).collect();
        let references = |tensors: &'_ [Tensor]| tensors.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
        let (all_outputs, all_inputs) = (references(&outputs), references(&inputs));
        let gradients = autograd_grad(
            &all_outputs.iter().collect::<Vec<_>>(),
            &seeds.iter().collect::<Vec<_>>(),
            &all_inputs.iter().collect::<Vec<_>>(),
        );
        let gradients = gradients.unwrap().into_iter().flatten();
        let unchanged = |now: &[Tensor], then: &[Tensor]| now.iter().zip(then).all(|(now, then)| now.equal(then));
        assert!(unchanged(&inputs, &before) && unchanged(&seeds, &kept_seeds), "what was handed in was written into");
        outputs.into_iter().chain(gradients).map(|tensor| tensor.detach().to_kind(Kind::Double)).collect()
    }

    /// Both forms against the same computation out of libtorch's operations and autograd in float64.
    fn compare(
        name: &str,
        inputs: &dyn Fn(Kind) -> Vec<Tensor>,
        ours: &dyn Fn(Kernels, &[Tensor]) -> Vec<Tensor>,
        exact: &dyn Fn(&[Tensor]) -> Vec<Tensor>,
    ) {
        for kind in TYPES {
            let inputs = inputs(kind);
            let wide: Vec<Tensor> = inputs.iter().map(|input| input.to_kind(Kind::Double)).collect();
            let expected = with_gradients(&wide, exact);
            // Half a unit in the last place, with room for sums of float32.
            let rounding = match kind {
                Kind::Float => 2e-6,
                Kind::BFloat16 => 1.0 / 256.0 + 1e-5,
                _ => 1.0 / 2048.0 + 1e-5,
            };
            for kernels in [Kernels::default(), Kernels::plain()] {
                let found = with_gradients(&inputs, &|inputs| ours(kernels, inputs));
                assert_eq!(found.len(), expected.len());
                for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert_eq!(found.size(), expected.size());
                    // Small results of large terms are as exact as the terms.
                    let scale = expected.abs().clamp_min(0.05 * expected.abs().max().double_value(&[]));
                    let error = ((found - expected) / scale).abs().max().double_value(&[]);
                    // The plain form casts in between.
                    let bound = if kernels.plain { 8.0 * rounding } else { rounding };
                    assert!(error <= bound, "{name} in {kind:?}, {kernels:?}, result {index}: off by {error:.2e}");
                }
            }
        }
    }

    #[test]
    fn rms_norm_is_rounded_once() {
        compare(
            "rms_norm",
            &|kind| vec![scattered(&[3, 7, 83], kind), scattered(&[83], kind)],
            &|kernels, inputs| vec![kernels.rms_norm(&inputs[0], &inputs[1], 1e-5, 0.0).unwrap()],
            &|inputs| {
                let mean_square = inputs[0].square().mean_dim(&[-1i64][..], true, None);
                vec![&inputs[0] * (mean_square + 1e-5).rsqrt() * &inputs[1]]
            },
        );
    }

    #[test]
    fn swiglu_is_rounded_once() {
        compare(
            "swiglu",
            &|kind| vec![scattered(&[3, 5, 2 * 77], kind) * 4.0],
            &|kernels, inputs| vec![kernels.gated(&inputs[0], Gate::Silu).unwrap()],
            &|inputs| {
                let parts = inputs[0].chunk(2, -1);
                vec![parts[0].silu() * &parts[1]]
            },
        );
    }

    #[test]
    fn rotary_is_rounded_once() {
        let (rows, length, heads, key_heads, width) = (2, 9, 6, 3, 22);
        let angles = Tensor::arange(length * width / 2, (Kind::Float, Device::Cpu)).reshape([length, width / 2]) * 0.37;
        let (cosines, sines) = (angles.cos(), angles.sin());
        let turn = |heads: &Tensor| {
            let halves = heads.chunk(2, -1);
            let (cos, sin) = (cosines.to_kind(Kind::Double).unsqueeze(1), sines.to_kind(Kind::Double).unsqueeze(1));
            let turned = [&halves[0] * &cos - &halves[1] * &sin, &halves[1] * &cos + &halves[0] * &sin];
            Tensor::cat(&turned, -1).transpose(1, 2)
        };
        for layout in [HeadLayout::ByPosition, HeadLayout::ByHead] {
            compare(
                "rotary",
                &|kind| vec![scattered(&[rows, length, (heads + 2 * key_heads) * width], kind)],
                &|kernels, inputs| {
                    kernels.rotary(&inputs[0], (&cosines, &sines), (heads, key_heads), layout).unwrap().into()
                },
                &|inputs| {
                    let apart = inputs[0].reshape([rows, length, heads + 2 * key_heads, width]);
                    let parts = apart.split_with_sizes([heads, key_heads, key_heads], 2);
                    vec![turn(&parts[0]), turn(&parts[1]), parts[2].transpose(1, 2)]
                },
            );
        }
    }

    #[test]
    fn grouped_queries_are_the_same_in_another_order() {
        let (rows, length, heads, key_heads, width) = (2, 9, 6, 3, 22);
        let angles = Tensor::arange(length * width / 2, (Kind::Float, Device::Cpu)).reshape([length, width / 2]) * 0.37;
        let (cosines, sines) = (angles.cos(), angles.sin());
        let projected = scattered(&[rows, length, (heads + 2 * key_heads) * width], Kind::Float);
        let turned = |layout| {
            let kernels = Kernels::default();
            let results = |inputs: &[Tensor]| -> Vec<Tensor> {
                let parts = kernels.rotary(&inputs[0], (&cosines, &sines), (heads, key_heads), layout).unwrap();
                let [query, key, value] = parts;
                let query = match layout {
                    HeadLayout::Grouped => query.transpose(2, 3).reshape([rows, heads, length, width]),
                    _ => query,
                };
                vec![query, key, value]
            };
            with_gradients(std::slice::from_ref(&projected), &results)
        };
        let (grouped, by_head) = (turned(HeadLayout::Grouped), turned(HeadLayout::ByHead));
        assert_eq!(grouped.len(), 4);
        assert!(grouped.iter().zip(&by_head).all(|(one, other)| one.equal(other)));
    }

    #[test]
    fn cross_entropy_leaves_the_gradient_where_the_logits_were() {
        let _alone = crate::torch::generator_of_this_test(9);
        // More classes than one short sum has.
        let (rows, classes, scale) = (6, 2100, 0.25);
        for kind in TYPES {
            let logits = scattered(&[rows, classes], kind) * 5.0;
            let targets = Tensor::randint(classes, [rows], (Kind::Int64, Device::Cpu));
            // One target is the largest.
            let largest = logits.argmax(-1, false);
            targets.narrow(0, 2, 1).copy_(&largest.narrow(0, 2, 1));
            let hits = largest.eq_tensor(&targets).to_kind(Kind::Double);
            let wide = logits.to_kind(Kind::Double).set_requires_grad(true);
            let seed = Tensor::full([rows], scale, (Kind::Double, Device::Cpu));
            for (kernels, smoothing) in [Kernels::default(), Kernels::plain()].map(|it| [(it, 0.0), (it, 0.1)]).concat()
            {
                let expected = wide.cross_entropy_loss::<Tensor>(&targets, None, tch::Reduction::None, -100, smoothing);
                let gradient = autograd_grad(&[&expected], &[&seed], &[&wide]).unwrap().remove(0).unwrap();
                let in_place = logits.copy();
                let kept = kernels.cross_entropy(&in_place, &targets, None, smoothing).unwrap();
                assert!(in_place.equal(&logits), "without a scale the logits stay");
                let found = kernels.cross_entropy(&in_place, &targets, Some(scale), smoothing).unwrap();
                assert!(found.equal(&kept));
                assert!(found.get(0).allclose(&expected, 1e-6, 1e-6, false), "{kind:?} {kernels:?}");
                assert!(found.get(1).equal(&hits), "{kind:?} {kernels:?}");
                let relative = if kind == Kind::Float { 1e-4 } else { 1.0 / 256.0 };
                let found = in_place.to_kind(Kind::Double);
                assert!(found.allclose(&gradient, relative, 1e-7, false), "{kind:?} {kernels:?}");
            }
        }
    }

    /// Large enough for several threads, whose parts must come together.
    #[test]
    fn threads_share_the_work_and_give_the_same_every_time() {
        tch::set_num_threads(3);
        let (rows, width) = (3000, 96);
        let (x, weight) = (scattered(&[rows, width], Kind::Float), scattered(&[width], Kind::Float) + 1.0);
        let norm =
            |kernels: Kernels, inputs: &[Tensor]| vec![kernels.rms_norm(&inputs[0], &inputs[1], 1e-5, 0.0).unwrap()];
        let inputs = [x, weight];
        let first = with_gradients(&inputs, &|inputs| norm(Kernels::default(), inputs));
        let again = with_gradients(&inputs, &|inputs| norm(Kernels::default(), inputs));
        let plain = with_gradients(&inputs, &|inputs| norm(Kernels::plain(), inputs));
        assert_eq!(first.len(), 3);
        for ((first, again), plain) in first.iter().zip(&again).zip(&plain) {
            assert!(first.equal(again));
            assert!(first.allclose(plain, 1e-5, 1e-4, false));
        }
        let (table, gradient) =
            (Tensor::zeros([50, width], (Kind::Float, Device::Cpu)), scattered(&[rows, width], Kind::BFloat16));
        let ids = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(50);
        let expected = table.index_add(0, &ids, &gradient.to_kind(Kind::Float));
        add_rows(&table, &ids, &gradient).unwrap();
        assert!(table.equal(&expected));
    }

    /// What processors without this one's instructions compute.
    #[test]
    fn lesser_instructions_pass_the_same_tests() {
        for capability in ["avx2", "default"] {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["torch::kernels::tests::", "--skip", "lesser_instructions"])
                .env("ATEN_CPU_CAPABILITY", capability)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && !text.contains(" 0 passed"), "{capability}: {text}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let options = (Kind::Float, Device::Cpu);
        for kind in TYPES {
            let (weight, target) =
                (Tensor::ones([64], options).to_kind(kind), Tensor::zeros([1], (Kind::Int64, Device::Cpu)));
            for value in [f64::NAN, f64::INFINITY] {
                let x = Tensor::ones([1, 64], options);
                let _set = x.narrow(1, 37, 1).fill_(value);
                let x = x.to_kind(kind);
                let kernels = Kernels::default();
                let normed = kernels.rms_norm(&x, &weight, 1e-5, 0.0).unwrap();
                let gated = kernels.gated(&x, Gate::Silu).unwrap();
                for (name, result) in [("rms_norm", normed), ("swiglu", gated)] {
                    assert_eq!(result.isfinite().all().int64_value(&[]), 0, "{name} hides {value} in {kind:?}");
                }
                let loss = kernels.cross_entropy(&x.copy(), &target, Some(1.0), 0.0).unwrap();
                assert!(!loss.double_value(&[0, 0]).is_finite(), "cross_entropy hides {value} in {kind:?}");
            }
        }
    }

    #[test]
    fn gradients_are_added_in_float32() {
        let _alone = crate::torch::generator_of_this_test(10);
        for kind in TYPES {
            let (to, from) =
                (scattered(&[33, 40], Kind::Float).transpose(0, 1).contiguous(), scattered(&[40, 33], kind));
            let expected = &to + from.to_kind(Kind::Float);
            add(&to, &from).unwrap();
            assert!(to.equal(&expected), "{kind:?}");
            let expected = (from.to_kind(Kind::Float) + &to).to_kind(kind);
            add(&from, &to).unwrap();
            assert!(from.equal(&expected), "{kind:?}");
            let table = Tensor::zeros([10, 33], (Kind::Float, Device::Cpu));
            let ids = Tensor::randint(10, [40], (Kind::Int64, Device::Cpu));
            let expected = table.index_add(0, &ids, &from.to_kind(Kind::Float));
            add_rows(&table, &ids, &from).unwrap();
            assert!(table.equal(&expected), "{kind:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let options = (Kind::Float, Device::Cpu);
        let kernels = Kernels::default();
        let x = Tensor::ones([4, 8], options);
        assert!(kernels.rms_norm(&x, &Tensor::ones([7], options), 1e-5, 0.0).is_err());
        assert!(kernels.gated(&Tensor::ones([4, 7], options), Gate::Silu).is_err());
        let targets = Tensor::from_slice(&[0i64, 1, 8, 2]);
        let error = kernels.cross_entropy(&x, &targets, None, 0.0).unwrap_err();
        assert!(error.to_string().contains("8 is not one of 0 to 7"), "{error}");
        assert!(add(&x, &Tensor::ones([5], options)).is_err());
        let error = add_rows(&x, &Tensor::from_slice(&[4i64]), &Tensor::ones([1, 8], options)).unwrap_err();
        assert!(error.to_string().contains("4 is not one of 0 to 3"), "{error}");
    }
}
