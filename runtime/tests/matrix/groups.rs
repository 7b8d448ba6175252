//! A group of layouts of the same training: what they have to agree on.

use crate::Tally;
use crate::common::{STAGES, Spec};
use crate::delay::POINTS;
use crate::workers::{Curve, Task, Wire, Workers};
use serde_json::Value;
use std::time::Instant;
use zerofold_configs::{BackwardPrefetch, ReshardAfterForward, Sharding, Stage, UnitPolicy};

/// How far losses and norms may be from float64, as a multiple of PyTorch's own float32.
const TOLERANCE: f64 = 4.0;

/// Everything but the layout.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    ranks: usize,
    accumulation: u32,
    model: &'static str,
    curve: &'static str,
}

/// A layout, and whether its bits must be those of the plain stage.
struct Layout {
    name: String,
    sharding: Sharding,
    plain: bool,
}

impl Group {
    /// All groups of a number of ranks.
    pub(crate) fn all(ranks: usize) -> Vec<Group> {
        let mut groups = Vec::new();
        for accumulation in [1, 3] {
            for model in ["odd-llama", "odd-llama-tied"] {
                for curve in ["clipped", "unclipped"] {
                    groups.push(Group { ranks, accumulation, model, curve });
                }
            }
        }
        groups
    }

    /// One of them, by the seed; neighbouring seeds and ranks give different ones.
    pub(crate) fn sampled(groups: Vec<Group>, seed: u64) -> Group {
        let index = (seed.wrapping_mul(5).wrapping_add(3 * groups[0].ranks as u64)) as usize % groups.len();
        groups[index].clone()
    }

    fn name(&self, wire: Wire) -> String {
        let Group { ranks, accumulation, model, curve } = self;
        let wire = match wire {
            Wire::Gloo => "",
            Wire::Shm => " over shm",
            Wire::NcclStandIn => " over nccl",
            Wire::Gpu => " on a GPU",
        };
        format!("{ranks} ranks{wire}, accumulation {accumulation}, {model}, {curve}")
    }

    fn layouts(&self) -> Vec<Layout> {
        let mut layouts: Vec<Layout> = STAGES
            .map(|stage| Layout { name: format!("stage {stage}"), sharding: Sharding::of(stage), plain: true })
            .into();
        let three = Sharding::of(Stage::Three);
        let mut add = |name: String, sharding: Sharding, plain: bool| layouts.push(Layout { name, sharding, plain });
        let kept = ReshardAfterForward::Always(false);
        add("kept after forward".to_owned(), Sharding { reshard_after_forward: kept, ..three }, true);
        for prefetch in [BackwardPrefetch::Post, BackwardPrefetch::None] {
            add(prefetch.to_string(), Sharding { backward_prefetch: prefetch, ..three }, true);
        }
        let units = [UnitPolicy::BlockHalves, UnitPolicy::MinParameters(9000), UnitPolicy::Whole];
        for units in units {
            add(format!("units {units:?}"), Sharding { units, ..three }, false);
        }
        let divisors = (2..self.ranks as u32).filter(|divisor| (self.ranks as u32).is_multiple_of(*divisor));
        for divisor in divisors {
            let group = ReshardAfterForward::Group(divisor);
            add(format!("resharded to {divisor}"), Sharding { reshard_after_forward: group, ..three }, true);
            add(format!("hybrid of {divisor} copies"), Sharding { replicas: divisor, ..three }, false);
            let hybrid = Sharding { replicas: divisor, reshard_after_forward: kept, ..three };
            add(format!("hybrid of {divisor} copies, kept"), hybrid, false);
        }
        layouts
    }

    fn spec(&self, sharding: Sharding) -> Spec {
        let Group { ranks, accumulation, model, curve } = self;
        Spec { sharding, ..Spec::new("matrix", model, curve, Stage::Zero, *ranks, *accumulation) }
    }

    /// Runs every layout of the group, with and without recomputation, and checks what must be equal.
    pub(crate) fn check(&self, full: bool, workers: &mut Workers, tally: &mut Tally) {
        let mut plain: Vec<(Stage, Curve)> = Vec::new();
        let group_name = self.name(workers.wire);
        for layout in self.layouts() {
            let mut kept: Option<Curve> = None;
            for recompute_every in [None, Some(1), Some(2)] {
                // What is recomputed does not depend on how parameters are gathered: in a sample the stages stand for all.
                let stands_for_all = layout.sharding == Sharding::of(layout.sharding.stage);
                if recompute_every == Some(2) && layout.sharding != Sharding::of(Stage::Three)
                    || recompute_every.is_some() && !stands_for_all && !full
                {
                    continue;
                }
                let spec = Spec { recompute_every, ..self.spec(layout.sharding) };
                let name = format!("{group_name}, {}, recomputing {recompute_every:?}", layout.name);
                let began = Instant::now();
                let result = workers.run(&Task::Train { spec: spec.clone(), late: None }).and_then(|curve| {
                    let words =
                        format!("{}, {:.1} s", compare(&spec.expected(), &curve)?, began.elapsed().as_secs_f64());
                    let kept = kept.get_or_insert_with(|| curve.clone());
                    if kept.bits != curve.bits {
                        return Err("recomputing changed a bit".to_owned());
                    }
                    Ok(words)
                });
                tally.check(&name, result);
            }
            if let (true, Some(curve)) = (layout.plain, kept) {
                // Stages 0 and 1 accumulate before they reduce, 2 and 3 after: with one micro-batch it is the same.
                let pair = |stage: Stage| self.accumulation > 1 && stage.shards_gradients();
                let stage = layout.sharding.stage;
                if let Some((other, twin)) = plain.iter().find(|(other, _)| pair(*other) == pair(stage)) {
                    let equal = twin.bits == curve.bits;
                    let name = format!("{group_name}, {} has the bits of stage {other}", layout.name);
                    tally.check(&name, if equal { Ok(String::new()) } else { Err("they differ".to_owned()) });
                }
                plain.push((stage, curve));
            }
        }
    }
}

/// The largest relative deviations of losses and norms from the expected curve, which must be within the tolerance.
fn compare(expected: &Value, curve: &Curve) -> Result<String, String> {
    let steps = expected["steps"].as_array().unwrap();
    if curve.bits.len() != steps.len() || !curve.skipped.is_empty() {
        return Err(format!("{} steps, skipped {:?}", curve.bits.len(), curve.skipped));
    }
    let largest = |ours: &mut dyn Iterator<Item = f64>, key: &str| {
        let theirs = steps.iter().map(|step| step[key].as_f64().unwrap());
        ours.zip(theirs).map(|(ours, theirs)| ((ours - theirs) / theirs).abs()).fold(0.0, f64::max)
    };
    let pytorch = |key: &str| expected["float32"]["largest_relative_deviation"][key].as_f64().unwrap();
    let (loss, norm) = (largest(&mut curve.losses(), "loss"), largest(&mut curve.grad_norms(), "grad_norm"));
    let words = format!(
        "loss {loss:.1e} (PyTorch {:.1e}), gradient norm {norm:.1e} (PyTorch {:.1e})",
        pytorch("loss"),
        pytorch("grad_norm")
    );
    let within = loss <= TOLERANCE * pytorch("loss") && norm <= TOLERANCE * pytorch("grad_norm");
    if within { Ok(words) } else { Err(words) }
}

/// Gloo's bits, in every layout of the group: shared memory adds in the same order, and two ranks' sums, which NCCL must have
/// too, do not depend on it.
pub(crate) fn check_same_as_gloo(group: &Group, gloo: &mut Workers, other: &mut Workers, tally: &mut Tally) {
    for layout in group.layouts() {
        let task = Task::Train { spec: group.spec(layout.sharding), late: None };
        let result = gloo.run(&task).and_then(|over_gloo| {
            let over_other = other.run(&task)?;
            if over_gloo.bits == over_other.bits { Ok(String::new()) } else { Err("bits differ".to_owned()) }
        });
        tally.check(&format!("{}, {} has the bits of gloo", group.name(other.wire), layout.name), result);
    }
}

/// A rank that is late by 100 ms at any point of every step changes no bit.
pub(crate) fn check_delays(workers: &mut Workers, tally: &mut Tally) {
    for stage in STAGES {
        let group = Group { ranks: 3, accumulation: 1, model: "odd-llama", curve: "clipped" };
        let spec = Spec { steps: Some(4), ..group.spec(Sharding::of(stage)) };
        let on_time = workers.run(&Task::Train { spec: spec.clone(), late: None });
        for point in POINTS {
            let result = on_time.clone().and_then(|on_time| {
                let late = workers.run(&Task::Train { spec: spec.clone(), late: Some((1, point)) })?;
                // Below stage 3 forward gathers nothing itself; what it waits for was started before.
                let gathers = point != crate::delay::Point::BeforeGather || stage.shards_parameters();
                if gathers && late.delays < 4 {
                    return Err(format!("only {} delays in 4 steps", late.delays));
                }
                if late.bits == on_time.bits {
                    Ok(format!("{} delays", late.delays))
                } else {
                    Err("bits differ".into())
                }
            });
            tally.check(&format!("stage {stage}, rank 1 late {point:?}"), result);
        }
    }
}

/// Some parameters are frozen, whole units and parts of units: PyTorch's curve at every stage, and the same bits.
pub(crate) fn check_frozen(workers: &mut Workers, tally: &mut Tally) {
    for model in ["odd-llama", "odd-llama-tied"] {
        let mut first: Option<Curve> = None;
        for stage in STAGES {
            let spec = Spec::new("matrix", model, "frozen", stage, 3, 1);
            let result = workers.run(&Task::Train { spec: spec.clone(), late: None }).and_then(|curve| {
                let words = compare(&spec.expected(), &curve)?;
                let equal = first.get_or_insert_with(|| curve.clone()).bits == curve.bits;
                if equal { Ok(words) } else { Err("bits differ from stage 0".to_owned()) }
            });
            tally.check(&format!("{model}, partly frozen, stage {stage}"), result);
        }
    }
}

/// Dropout follows from step, micro-batch, rank and segment alone: the same at every stage and when recomputed. Of attention
/// weights alone, and of everything that GPT-2 drops.
pub(crate) fn check_dropout(workers: &mut Workers, tally: &mut Tally) {
    let llama = Spec { steps: Some(10), ..Spec::new("matrix", "odd-llama", "clipped", Stage::Zero, 3, 1) };
    let gpt2 = Spec::new("families", "gpt2", "batch_8", Stage::Zero, 3, 1);
    let of_llama = Spec { attention_dropout: 0.2, ..llama.clone() };
    let of_gpt2 = Spec { attention_dropout: 0.1, other_dropout: 0.1, ..gpt2.clone() };
    for (without, with) in [(llama, of_llama), (gpt2, of_gpt2)] {
        let mut run = |spec: Spec| workers.run(&Task::Train { spec, late: None });
        let (without, expected) = (run(without), run(with.clone()));
        for stage in STAGES {
            for recompute_every in [None, Some(1), Some(2)] {
                let spec = Spec { sharding: Sharding::of(stage), recompute_every, ..with.clone() };
                let result = run(spec).and_then(|curve| match (&expected, &without) {
                    (Ok(expected), Ok(without)) if expected.bits == curve.bits && without.bits != curve.bits => {
                        Ok(String::new())
                    }
                    (Ok(_), Ok(_)) => Err("bits differ, or nothing was dropped".to_owned()),
                    (Err(error), _) | (_, Err(error)) => Err(error.clone()),
                });
                let model = &with.model;
                tally.check(&format!("dropout of {model} at stage {stage}, recomputing {recompute_every:?}"), result);
            }
        }
    }
}
