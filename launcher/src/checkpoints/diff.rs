//! The command `diff`.

use std::path::{Path, PathBuf};

use serde_json::json;
use zerofold_checkpoint::{Difference, STATES, Weights, differences};

use super::place::Place;
use super::print_json;
use super::remote::{Remote, Temporary};
use crate::columns;
use crate::error::LaunchError;
use crate::format;
use crate::terminal::Terminal;

/// How many tensors are listed unless told otherwise.
pub(crate) const DEFAULT_TOP: usize = 10;
/// The exit code when something differs, as diff(1) has it.
const DIFFERENT: u8 = 1;

/// What the command line asks of `diff`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffOptions {
    /// The first: a checkpoint, a run or a model folder.
    pub left: PathBuf,
    /// The second.
    pub right: PathBuf,
    /// How many of the tensors that differ most are listed.
    pub top: usize,
    /// Print JSON, with every tensor.
    pub json: bool,
}

/// Compares two checkpoints or model folders tensor by tensor. Returns the exit code: 0 when all are equal, 1 when not.
pub fn diff(options: &DiffOptions, terminal: &Terminal) -> Result<u8, LaunchError> {
    let (left, right) = (Side::open(&options.left)?, Side::open(&options.right)?);
    let mut all = Vec::new();
    differences(&left.weights, &right.weights, |difference| all.push(difference))?;
    let total = Total::of(&all);
    if options.json {
        let side = |side: &Side| json!({"path": side.shown, "step": side.step()});
        let tensors = all.iter().map(|difference| {
            let mut tensor = json!(difference);
            tensor["equal"] = difference.is_equal().into();
            tensor["relative"] = json!(difference.distance.as_ref().and_then(|distance| distance.relative()));
            tensor
        });
        let answer = json!({
            "a": side(&left),
            "b": side(&right),
            "equal": total.equal == all.len(),
            "tensors_compared": all.len(),
            "tensors_equal": total.equal,
            "norm": total.norm,
            "norm_left": total.norm_left,
            "rounded": total.rounded,
            "tensors": tensors.collect::<Vec<_>>(),
        });
        print_json(&answer, terminal);
    } else {
        for (name, side) in [("A", &left), ("B", &right)] {
            let step = side.step().map_or("a model folder".to_owned(), |step| format!("step {step}"));
            terminal.result(&format!("{name}  {} ({step})", side.shown.display()));
        }
        lines(&all, &total, options.top).iter().for_each(|line| terminal.result(line));
    }
    Ok(if total.equal == all.len() { 0 } else { DIFFERENT })
}

/// One of the two.
struct Side {
    weights: Weights,
    /// What it is called.
    shown: PathBuf,
    /// Where it lies for now, if it is from a store.
    _temporary: Option<Temporary>,
}

impl Side {
    fn open(path: &Path) -> Result<Side, LaunchError> {
        let Some(remote) = Remote::of(path)? else {
            let weights = Place::open(path)?;
            return Ok(Side { shown: weights.directory().to_owned(), weights, _temporary: None });
        };
        let (found, temporary) = remote.fetch()?;
        let shown = remote.store.step_url(found.manifest.step).into();
        Ok(Side { weights: Weights::of_checkpoint(&found.directory)?, shown, _temporary: Some(temporary) })
    }

    fn step(&self) -> Option<u64> {
        match &self.weights {
            Weights::Checkpoint { manifest, .. } => Some(manifest.step),
            Weights::Model(_) => None,
        }
    }
}

/// All tensors together.
struct Total {
    equal: usize,
    /// Norms over all parameters that both have in one shape, moments left out.
    norm: f64,
    norm_left: f64,
    /// The type that one side is rounded to, if that is all that differs.
    rounded: Option<&'static str>,
}

impl Total {
    fn of(all: &[Difference]) -> Self {
        let parameters = || all.iter().filter(|difference| difference.state == STATES[0]);
        let distances = || parameters().filter_map(|difference| difference.distance.as_ref());
        let rounded = distances().next().and_then(|distance| distance.rounded);
        let all_rounded = parameters().all(|difference| {
            difference
                .distance
                .as_ref()
                .is_some_and(|distance| distance.rounded.is_some() && distance.rounded == rounded)
        });
        Total {
            equal: all.iter().filter(|difference| difference.is_equal()).count(),
            norm: distances().map(|distance| distance.norm.powi(2)).sum::<f64>().sqrt(),
            norm_left: distances().map(|distance| distance.norm_left.powi(2)).sum::<f64>().sqrt(),
            rounded: rounded.filter(|_| all_rounded).map(|dtype| dtype.config_name()),
        }
    }
}

fn lines(all: &[Difference], total: &Total, top: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let count = |number: usize| format::count(number as u64);
    let tensors = format::plural(all.len() as u64, "tensor");
    if total.equal == all.len() {
        let values: u64 = all.iter().filter_map(|difference| difference.distance.as_ref()).map(|it| it.elements).sum();
        return vec![format!("equal: {tensors}, {}", format::plural(values, "value"))];
    }
    let mut apart: Vec<_> = all
        .iter()
        .filter(|difference| !difference.is_equal())
        .filter_map(|difference| Some((difference, difference.distance.as_ref()?)))
        .collect();
    // NaN and what is nothing in the first come before all others.
    let key = |relative: Option<f64>| relative.filter(|relative| !relative.is_nan()).unwrap_or(f64::INFINITY);
    apart.sort_by(|one, other| key(other.1.relative()).total_cmp(&key(one.1.relative())));
    if top > 0 && !apart.is_empty() {
        let head = ["tensor", "differ", "of", "|A - B|", "of |A|", "largest"].map(str::to_owned).to_vec();
        let rows = apart.iter().take(top).map(|(difference, distance)| {
            let name = match difference.state.as_str() {
                state if state == STATES[0] => difference.name.clone(),
                state => format!("{} {state}", difference.name),
            };
            let relative = distance.relative().map_or("-".to_owned(), number);
            let [differing, elements] = [distance.differing, distance.elements].map(format::count);
            vec![name, differing, elements, number(distance.norm), relative, number(distance.largest)]
        });
        lines.push(String::new());
        lines.extend(columns::aligned(&[vec![head], rows.collect()].concat()));
        if apart.len() > top {
            lines.push(format!("and {} more (--top N, --json)", count(apart.len() - top)));
        }
        lines.push(String::new());
    }
    for difference in all.iter().filter(|difference| difference.distance.is_none()) {
        let Difference { name, state, left, right, .. } = difference;
        if state == STATES[0] {
            lines.push(match (left, right) {
                (Some(_), None) => format!("only in A: {name}"),
                (None, _) => format!("only in B: {name}"),
                (Some(left), Some(right)) => format!("{name} has the shape {left:?} in A and {right:?} in B"),
            });
        }
    }
    let mut summary = format!("{} of {tensors} differ", count(all.len() - total.equal));
    if total.norm_left > 0.0 {
        let relative = number(total.norm / total.norm_left);
        summary += &format!("; |A - B| of all parameters is {}, {relative} of |A|", number(total.norm));
    }
    if let Some(dtype) = total.rounded {
        summary += &format!("; one is the other rounded to {dtype}");
    }
    lines.push(summary);
    lines
}

fn number(value: f64) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.2e}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_checkpoint::Distance;

    fn difference(name: &str, state: &str, norm: f64, norm_left: f64) -> Difference {
        let differing = u64::from(norm != 0.0);
        let distance =
            Distance { elements: 4, differing, norm, norm_left, largest: norm, largest_at: 0, rounded: None };
        let shape = Some(vec![4]);
        Difference {
            name: name.into(),
            state: state.into(),
            left: shape.clone(),
            right: shape,
            distance: Some(distance),
        }
    }

    #[test]
    fn the_farthest_come_first_and_what_one_lacks_is_told() {
        let mut alone = difference("b", "master", 0.0, 1.0);
        (alone.right, alone.distance) = (None, None);
        let all = [
            difference("a", "master", 3.0, 100.0),
            alone,
            difference("c", "master", 4.0, 10.0),
            difference("c", "exp_avg", f64::NAN, 1.0),
            difference("d", "master", 0.0, 1.0),
        ];
        let total = Total::of(&all);
        let told = lines(&all, &total, 2);
        assert_eq!(told[0], "");
        assert!(told[2].starts_with("c exp_avg  ") && told[2].contains("NaN"), "{}", told[2]);
        assert!(told[3].starts_with("c  ") && told[3].contains("4.00e0  4.00e-1"), "{}", told[3]);
        assert_eq!(
            told[4..],
            [
                "and 1 more (--top N, --json)",
                "",
                "only in A: b",
                "4 of 5 tensors differ; |A - B| of all parameters is 5.00e0, 4.97e-2 of |A|",
            ]
        );
        assert_eq!(lines(&all, &total, 0).len(), 2);
        let same = [difference("d", "master", 0.0, 1.0)];
        assert_eq!(lines(&same, &Total::of(&same), 2), ["equal: 1 tensor, 4 values"]);
    }
}
