//! How well a classifier tells held-out rows apart: accuracy, F1, Matthews' and Pearson's coefficients, as scikit-learn and SciPy
//! define them. Ranks add up counts and sums, which are joined before anything is divided.

use super::TrainError;
use tch::{Kind, Tensor};
use zerofold_configs::ProblemType;
use zerofold_data::Batch;
use zerofold_plan::Head;

/// Counts and sums over rows: rows, rows that are all right, and for each class how often it was told rightly, told, and true; of numbers rows,
/// and for each the means of told x and true y, Σ(x − x̄)², Σ(y − ȳ)², Σ(x − x̄)(y − ȳ) and Σ(x − y)², from which nothing that is constant seems to vary.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scores {
    problem: ProblemType,
    labels: usize,
    sums: Vec<f64>,
}

impl Scores {
    /// Nothing yet; none where the model is no classifier.
    pub(super) fn of(head: Head) -> Option<Scores> {
        let Head::Classes { labels, problem } = head else { return None };
        let count = match problem {
            ProblemType::SingleLabel | ProblemType::MultiLabel => 2 + 3 * labels,
            ProblemType::Regression => 1 + NUMBERS * labels,
        };
        Some(Scores { problem, labels, sums: vec![0.0; count] })
    }

    /// Adds the rows of a batch, of which the model told these logits `[rows, labels]`.
    pub(super) fn add(&mut self, logits: &Tensor, batch: &Batch) -> Result<(), TrainError> {
        let told = Vec::<f32>::try_from(&logits.f_to_kind(Kind::Float)?.f_contiguous()?.f_view(-1)?)?;
        let classes = batch.labels.iter().filter(|&&label| label >= 0);
        for (row, (told, &class)) in told.chunks_exact(self.labels.max(1)).zip(classes).enumerate() {
            match self.problem {
                ProblemType::SingleLabel => {
                    // The first of those that are alike, as argmax has it; what is no number is never the largest.
                    let larger = |best: usize, at: usize| if told[at] > told[best] { at } else { best };
                    let (told, truth) = ((1..self.labels).fold(0, larger), class as usize);
                    self.add_class(told, told == truth, true, truth == told);
                    if told != truth {
                        self.add_class(truth, false, false, true);
                    }
                    self.add_row(told == truth);
                }
                ProblemType::MultiLabel => self.add_several(told, &batch.values[row * self.labels..][..self.labels]),
                ProblemType::Regression => self.add_numbers(told, &batch.values[row * self.labels..][..self.labels]),
            }
        }
        Ok(())
    }

    fn add_row(&mut self, right: bool) {
        self.sums[0] += 1.0;
        self.sums[1] += f64::from(u8::from(right));
    }

    /// Counts a class that was told or true.
    fn add_class(&mut self, class: usize, right: bool, told: bool, truth: bool) {
        let counts = &mut self.sums[2 + 3 * class..][..3];
        counts.iter_mut().zip([right, told, truth]).for_each(|(count, is)| *count += f64::from(u8::from(is)));
    }

    fn add_several(&mut self, told: &[f32], truth: &[f32]) {
        let pairs = told.iter().map(|logit| *logit > 0.0).zip(truth.iter().map(|value| *value > 0.5));
        let mut right = true;
        for (class, (told, truth)) in pairs.enumerate() {
            right &= told == truth;
            self.add_class(class, told && truth, told, truth);
        }
        self.add_row(right);
    }

    fn add_numbers(&mut self, told: &[f32], truth: &[f32]) {
        for (label, (&x, &y)) in told.iter().zip(truth).enumerate() {
            let (x, y) = (f64::from(x), f64::from(y));
            let one = [x, y, 0.0, 0.0, 0.0, (x - y).powi(2)];
            let rows = self.sums[0];
            join(rows, &mut self.sums[1 + NUMBERS * label..][..NUMBERS], 1.0, &one);
        }
        self.sums[0] += 1.0;
    }

    /// What this rank has to tell the others.
    pub(super) fn sums(&self) -> &[f64] {
        &self.sums
    }

    /// The figures of all ranks, by their names, from what each told. A figure that is not defined is left out.
    pub(super) fn figures<'a>(&self, ranks: impl Iterator<Item = &'a [f64]>) -> Vec<(&'static str, f64)> {
        let mut all = vec![0.0; self.sums.len()];
        for rank in ranks {
            if self.problem == ProblemType::Regression {
                let (before, rows) = (all[0], rank[0]);
                let numbers = all[1..].chunks_exact_mut(NUMBERS).zip(rank[1..].chunks_exact(NUMBERS));
                numbers.for_each(|(sums, own)| join(before, sums, rows, own));
                all[0] += rows;
            } else {
                all.iter_mut().zip(rank).for_each(|(sum, own)| *sum += own);
            }
        }
        let (rows, counts) = (all[0], all[1..].to_vec());
        let figures = match self.problem {
            ProblemType::SingleLabel => of_classes(rows, &counts),
            ProblemType::MultiLabel => {
                let total = |which: usize| counts[1..].iter().skip(which).step_by(3).sum::<f64>();
                vec![("accuracy", counts[0] / rows), ("f1", f1(total(0), total(1), total(2)))]
            }
            ProblemType::Regression => {
                let mean =
                    |of: &dyn Fn(&[f64]) -> f64| counts.chunks_exact(NUMBERS).map(of).sum::<f64>() / self.labels as f64;
                let pearson = mean(&|sums| sums[4] / (sums[2].sqrt() * sums[3].sqrt()));
                vec![("mse", mean(&|sums| sums[5] / rows)), ("pearson", pearson)]
            }
        };
        figures.into_iter().filter(|(_, value)| value.is_finite()).collect()
    }
}

/// 2 hits / (told + true), which is 2 hits / (2 hits + false alarms + misses); 0 where there are none of them.
fn f1(hits: f64, told: f64, truth: f64) -> f64 {
    if told + truth > 0.0 { 2.0 * hits / (told + truth) } else { 0.0 }
}

/// Accuracy; F1 of the class 1 where there are two, else the mean over classes that occur or were told; Matthews' coefficient for any number
/// of classes (Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004).
fn of_classes(rows: f64, counts: &[f64]) -> Vec<(&'static str, f64)> {
    let (right, classes) = (counts[0], || counts[1..].chunks_exact(3));
    let of_class = |counts: &[f64]| f1(counts[0], counts[1], counts[2]);
    let f1 = match classes().len() {
        2 => classes().nth(1).map_or(f64::NAN, of_class),
        _ => {
            let there = || classes().filter(|counts| counts[1] + counts[2] > 0.0);
            there().map(of_class).sum::<f64>() / there().count() as f64
        }
    };
    let sum = |of: fn(&[f64]) -> f64| classes().map(of).sum::<f64>();
    let both = sum(|counts| counts[1] * counts[2]);
    let spread = (rows * rows - sum(|counts| counts[1].powi(2))) * (rows * rows - sum(|counts| counts[2].powi(2)));
    let matthews = if spread > 0.0 { (right * rows - both) / spread.sqrt() } else { 0.0 };
    vec![("accuracy", right / rows), ("f1", f1), ("matthews_correlation", matthews)]
}

/// Of each number a classifier tells.
const NUMBERS: usize = 6;

/// Adds means and sums over `rows` rows to those over `before` rows (Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for
/// Computing Sample Variances", 1979).
fn join(before: f64, sums: &mut [f64], rows: f64, own: &[f64]) {
    if rows == 0.0 {
        return;
    }
    let all = before + rows;
    let (x, y) = (own[0] - sums[0], own[1] - sums[1]);
    let shared = before * rows / all;
    let moved = [
        x * rows / all,
        y * rows / all,
        own[2] + x * x * shared,
        own[3] + y * y * shared,
        own[4] + x * y * shared,
        own[5],
    ];
    sums.iter_mut().zip(moved).for_each(|(sum, more)| *sum += more);
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_data::TokenizedDataset;

    /// Figures of rows that two ranks have, against scikit-learn 1.9 and SciPy 1.17 (`scripts/fixtures/classifiers.py`).
    #[test]
    fn figures_are_those_of_scikit_learn() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/classifiers/scores.json");
        let cases: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for case in cases.as_array().unwrap() {
            let numbers = |key: &str| -> Vec<f32> {
                case[key].as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
            };
            let problem = ProblemType::from_name(case["problem_type"].as_str().unwrap()).unwrap();
            let labels = case["labels"].as_u64().unwrap() as usize;
            let (logits, truth) = (numbers("logits"), numbers("truth"));
            let rows = logits.len() / labels;
            let ranks: Vec<Scores> = [0..rows / 3, rows / 3..rows]
                .into_iter()
                .map(|part| {
                    let mut batch = Batch::collate(&TokenizedDataset::new(), &[], 0).unwrap();
                    let mut scores = Scores::of(Head::Classes { labels, problem }).unwrap();
                    match problem {
                        ProblemType::SingleLabel => {
                            batch.labels = truth[part.clone()].iter().map(|&class| class as i64).collect();
                        }
                        _ => {
                            batch.labels = vec![0; part.len()];
                            batch.values = truth[part.start * labels..part.end * labels].to_vec();
                        }
                    }
                    let own = &logits[part.start * labels..part.end * labels];
                    scores.add(&Tensor::from_slice(own).view([part.len() as i64, labels as i64]), &batch).unwrap();
                    scores
                })
                .collect();
            let found = ranks[0].figures(ranks.iter().map(Scores::sums));
            let expected = case["expected"].as_object().unwrap();
            assert_eq!(found.len(), expected.len(), "{found:?} and {expected:?}");
            for (name, value) in found {
                let expected = expected[name].as_f64().unwrap();
                assert!(
                    (value - expected).abs() < 1e-6 * expected.abs().max(1.0),
                    "{problem}, {name}: {value}, expected {expected}"
                );
            }
        }
    }

    #[test]
    fn what_is_constant_has_no_correlation() {
        let mut scores = Scores::of(Head::Classes { labels: 1, problem: ProblemType::Regression }).unwrap();
        for _ in 0..1000 {
            scores.add_numbers(&[0.1], &[0.7]);
        }
        let names: Vec<&str> = scores.figures([scores.sums()].into_iter()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["mse"]);
    }
}
