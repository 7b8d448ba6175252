//! How much of the model is trained, and from when, in words.

use zerofold_configs::{Resolved, Strategy, UnfreezingStart};
use zerofold_plan::{LeafSpec, ModelConfig, ModelUnits};

use crate::format;

/// Lines for the start of a run and for a plan; none where all of the model is trained from the start. `last` is the epoch of the last
/// step and the steps before it, where they are known.
pub(crate) fn lines(config: &Resolved, model: &ModelConfig, last: Option<(u64, u64)>) -> Vec<String> {
    let mut cut = ModelUnits::new(model, config.sharding.units);
    // What does not fit was refused before.
    if cut.group(&config.training).is_err() {
        return Vec::new();
    }
    let count = |openings: Option<u32>| {
        let leaves = cut.units.iter().flat_map(|unit| &unit.leaves);
        let counted = leaves.filter(|leaf| openings.is_none_or(|openings| leaf.group.is_trained(openings)));
        counted.map(|leaf| LeafSpec::numel(leaf) as u64).sum::<u64>()
    };
    let openings = last.map(|(epoch, steps)| config.training.openings(epoch, steps));
    let (start, end, all) = (count(Some(0)), count(Some(openings.unwrap_or(u32::MAX))), count(None));
    if start == all {
        return Vec::new();
    }
    let of = |some: u64| format!("{} ({:.1} %)", format::count(some), 100.0 * some as f64 / all as f64);
    let training = &config.training;
    let mut lines = vec![match training.gradual_unfreezing {
        Strategy::No => format!("train  {} of {}", of(start), format::plural(all, "parameter")),
        _ => format!("train  {} at first, {} at last, of {}", of(start), of(end), format::plural(all, "parameter")),
    }];
    let first = match training.gradual_unfreezing_start {
        UnfreezingStart::TopLayer => "the head and the top layer",
        UnfreezingStart::Head => "the head",
    };
    let often = match (training.gradual_unfreezing, training.gradual_unfreezing_steps) {
        (Strategy::Epoch, _) => Some("epoch".to_owned()),
        (Strategy::Steps, Some(steps)) => Some(format::plural(u64::from(steps), "step")),
        _ => None,
    };
    if end < count(Some(u32::MAX)) {
        let times = match openings {
            Some(0) | None => "no layer opens before the run ends".to_owned(),
            Some(openings) => format!("the run ends after {}", format::plural(u64::from(openings), "opening")),
        };
        lines.push(format!("       warning: {times}: what lies lower is never trained"));
    }
    lines.extend(often.map(|often| format!("       first {first}, every {often} the next lower layer")));
    let head = cut.segments.last().and_then(|head| cut.units[head.unit].leaves.get(head.leaves.start));
    if model.ties_head() && head.is_some_and(|leaf| leaf.group.is_trained(0)) {
        lines.push("       the head is the embedding too (tied), so backward goes through all layers to it".to_owned());
    }
    lines
}
