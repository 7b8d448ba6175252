//! 16-bit compute against FSDP2's own mixed precision on the same work, and float16's loss scale.

use crate::Tally;
use crate::common::{STAGES, Spec, json};
use crate::workers::{Curve, Task, Workers};
use serde_json::Value;
use zerofold_configs::{ElementType, Stage};

/// FSDP2's own curves by offset (the row that a run begins with), and float64's.
fn fsdp2(model: &str) -> Value {
    json(&format!("matrix/{model}-fsdp2.json"))
}

/// The losses' relative deviations from float64.
fn deviations(float64: &Value, curve: &Curve) -> Vec<f64> {
    let theirs = float64.as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap());
    curve.losses().zip(theirs).map(|(ours, theirs)| ((ours - theirs) / theirs).abs()).collect()
}

fn mean_square(deviations: &[f64]) -> f64 {
    deviations.iter().map(|value| value * value).sum::<f64>() / deviations.len() as f64
}

/// Every so many of the fixture's runs are done in a sample; the whole matrix does all of them.
const SAMPLED: usize = 10;

/// By how many standard errors ours may be further from float64 before it is no longer chance. One run's deviation scatters
/// by 10 to 26 %, so that only many runs tell two implementations apart.
const CHANCE: f64 = 3.0;

/// And never further than this multiple, however few the runs.
const FURTHEST: f64 = 1.1;

pub(crate) fn check(full: bool, workers: &mut Workers, tally: &mut Tally) {
    for model in ["odd-llama", "odd-llama-tied"] {
        for compute in [ElementType::Bfloat16, ElementType::Float16] {
            check_type(model, compute, full, workers, tally);
        }
        check_narrow_gradients(model, workers, tally);
        check_pure_bfloat16(model, workers, tally);
    }
    check_overflow(workers, tally);
}

/// Over many runs, no further from float64 than FSDP2; and the same bits at every stage.
fn check_type(model: &str, compute: ElementType, full: bool, workers: &mut Workers, tally: &mut Tally) {
    let fixture = fsdp2(model);
    let mut pairs = Vec::new();
    for run in fixture["offsets"].as_array().unwrap().iter().step_by(if full { 1 } else { SAMPLED }) {
        let offset = run["offset"].as_u64().unwrap() as usize;
        // Where FSDP2 itself skipped a step that overflowed, there is nothing to compare with.
        let Some(theirs) = run[compute.name()]["root_mean_square"].as_f64() else { continue };
        let mut first: Option<Curve> = None;
        // The first run is done at every stage.
        for stage in if offset == 0 { &STAGES[..] } else { &STAGES[3..] } {
            let spec = Spec { compute, offset, ..Spec::new("matrix", model, "clipped", *stage, 2, 1) };
            let result = workers.run(&Task::Train { spec, late: None }).and_then(|curve| {
                let ours = mean_square(&deviations(&run["float64"], &curve));
                let words = format!("{:.2e} from float64, FSDP2 {theirs:.2e}", ours.sqrt());
                if first.is_none() {
                    pairs.push((ours, theirs * theirs));
                }
                match first.get_or_insert_with(|| curve.clone()).bits == curve.bits && curve.skipped.is_empty() {
                    true => Ok(words),
                    false => {
                        Err(format!("{words}; bits differ from stage 0, or steps were skipped {:?}", curve.skipped))
                    }
                }
            });
            tally.check(&format!("{model} in {compute}, from row {offset}, stage {stage}"), result);
        }
    }
    tally.check(&format!("{model} in {compute} is no further from float64 than FSDP2"), no_further(&pairs));
}

/// Whether the mean square of ours is at most theirs, but for chance; pairs are (ours, theirs) of the same run.
fn no_further(pairs: &[(f64, f64)]) -> Result<String, String> {
    let count = pairs.len() as f64;
    let mean = |of: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / count;
    let (ours, theirs) = (mean(&|pair| pair.0), mean(&|pair| pair.1));
    let further = ours - theirs;
    let variance = mean(&|pair| (pair.0 - pair.1 - further).powi(2)) * count / (count - 1.0);
    let standard_error = (variance / count).sqrt();
    let words = format!(
        "{:.2e} from float64 over {} runs, FSDP2 {:.2e}: ratio {:.3}, {:+.1} standard errors",
        ours.sqrt(),
        pairs.len(),
        theirs.sqrt(),
        (ours / theirs).sqrt(),
        further / standard_error
    );
    let within = further <= CHANCE * standard_error && ours <= FURTHEST * FURTHEST * theirs;
    if within { Ok(words) } else { Err(words) }
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
        let float64 = fsdp2(&spec.model)["offsets"][0]["float64"].clone();
        let result = workers.run(&Task::Train { spec: spec.clone(), late: None }).and_then(|curve| {
            let largest = deviations(&float64, &curve).into_iter().fold(0.0, f64::max);
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
        let result = workers.run(&Task::Train { spec, late: None }).and_then(|curve| {
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
