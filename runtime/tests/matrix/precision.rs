//! 16-bit compute against FSDP2's own mixed precision on the same work, and float16's loss scale.

use crate::Tally;
use crate::common::{STAGES, Spec, json};
use crate::workers::{Curve, Task, Workers};
use zerofold_configs::{ElementType, Stage};

/// The root mean square and the largest of the losses' relative deviations from float64.
fn deviation(spec: &Spec, curve: &Curve) -> (f64, f64) {
    let expected = spec.expected();
    let steps = expected["steps"].as_array().unwrap();
    let theirs = steps.iter().map(|step| step["loss"].as_f64().unwrap());
    let relative: Vec<f64> =
        curve.losses().zip(theirs).map(|(ours, theirs)| ((ours - theirs) / theirs).abs()).collect();
    let mean_square = relative.iter().map(|value| value * value).sum::<f64>() / relative.len() as f64;
    (mean_square.sqrt(), relative.iter().copied().fold(0.0, f64::max))
}

pub(crate) fn check(workers: &mut Workers, tally: &mut Tally) {
    for model in ["odd-llama", "odd-llama-tied"] {
        for compute in [ElementType::Bfloat16, ElementType::Float16] {
            check_type(model, compute, workers, tally);
        }
        check_narrow_gradients(model, workers, tally);
        check_pure_bfloat16(model, workers, tally);
    }
    check_overflow(workers, tally);
}

fn check_type(model: &str, compute: ElementType, workers: &mut Workers, tally: &mut Tally) {
    let mut first: Option<Curve> = None;
    for stage in STAGES {
        let spec = Spec { compute, ..Spec::new("matrix", model, "clipped", stage, 2, 1) };
        let fsdp2 =
            json(&format!("matrix/{model}-fsdp2.json"))["types"][compute.name()]["loss_relative_deviation"].clone();
        let theirs = (fsdp2["root_mean_square"].as_f64().unwrap(), fsdp2["largest"].as_f64().unwrap());
        let result = workers.run(&Task { spec: spec.clone(), late: None }).and_then(|curve| {
            let ours = deviation(&spec, &curve);
            let words = format!(
                "deviation from float64 {:.1e}, at most {:.1e} (FSDP2 {:.1e}, {:.1e})",
                ours.0, ours.1, theirs.0, theirs.1
            );
            if first.get_or_insert_with(|| curve.clone()).bits != curve.bits {
                return Err("bits differ from stage 0".to_owned());
            }
            if ours.0 <= theirs.0 && curve.skipped.is_empty() { Ok(words) } else { Err(words) }
        });
        tally.check(&format!("{model} in {compute}, stage {stage}"), result);
    }
}

/// Gradients that travel in 16 bits: further from float64, yet the same at every stage.
fn check_narrow_gradients(model: &str, workers: &mut Workers, tally: &mut Tally) {
    let bfloat16 = ElementType::Bfloat16;
    let variants = [("reduced", bfloat16, ElementType::Float32), ("reduced and accumulated", bfloat16, bfloat16)];
    for (name, reduce, accumulate) in variants {
        check_same_bits(&format!("{model}, gradients {name} in bfloat16"), workers, tally, |stage| Spec {
            compute: bfloat16,
            reduce,
            accumulate,
            ..Spec::new("matrix", model, "clipped", stage, 2, 1)
        });
    }
}

fn check_pure_bfloat16(model: &str, workers: &mut Workers, tally: &mut Tally) {
    let bfloat16 = ElementType::Bfloat16;
    check_same_bits(&format!("{model} in pure bfloat16"), workers, tally, |stage| Spec {
        compute: bfloat16,
        master: bfloat16,
        reduce: bfloat16,
        accumulate: bfloat16,
        ..Spec::new("matrix", model, "clipped", stage, 2, 1)
    });
}

/// The same bits at every stage, and a curve that follows float64 to a few percent.
fn check_same_bits(name: &str, workers: &mut Workers, tally: &mut Tally, spec: impl Fn(Stage) -> Spec) {
    let mut first: Option<Curve> = None;
    for stage in STAGES {
        let spec = spec(stage);
        let result = workers.run(&Task { spec: spec.clone(), late: None }).and_then(|curve| {
            let (_, largest) = deviation(&spec, &curve);
            if first.get_or_insert_with(|| curve.clone()).bits != curve.bits {
                return Err("bits differ from stage 0".to_owned());
            }
            let words = format!("at most {largest:.1e} from float64");
            if largest < 0.05 { Ok(words) } else { Err(words) }
        });
        tally.check(&format!("{name}, stage {stage}"), result);
    }
}

/// A loss scale that is far too large: steps are skipped on every rank while it falls, then training goes on.
fn check_overflow(workers: &mut Workers, tally: &mut Tally) {
    let mut first: Option<Curve> = None;
    for stage in STAGES {
        let spec = Spec {
            compute: ElementType::Float16,
            loss_scale: Some(2f64.powi(20)),
            ..Spec::new("matrix", "odd-llama", "clipped", stage, 2, 1)
        };
        let result = workers.run(&Task { spec, late: None }).and_then(|curve| {
            let words = format!("skipped {:?}, scales {:?}", curve.skipped, &curve.loss_scales[..8]);
            let skipped = curve.skipped.len();
            // The first overflow uses up the hysteresis, every later one halves the scale.
            let falls = curve.skipped.starts_with(&[1, 2])
                && curve.loss_scales[..3] == [2f64.powi(20), 2f64.powi(20), 2f64.powi(19)];
            let last = curve.loss_scales.last() == Some(&2f64.powi(20 - (skipped as i32 - 1)));
            let norms = curve.grad_norms().enumerate();
            let goes_on = norms.filter(|(_, norm)| norm.is_finite()).count() == curve.bits.len() - skipped
                && curve.losses().last().unwrap() < 0.8 * curve.losses().next().unwrap();
            if first.get_or_insert_with(|| curve.clone()).bits != curve.bits {
                return Err("bits differ from stage 0".to_owned());
            }
            if falls && last && goes_on { Ok(words) } else { Err(words) }
        });
        tally.check(&format!("overflow in float16, stage {stage}"), result);
    }
}
