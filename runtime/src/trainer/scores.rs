//! How well a classifier tells held-out rows apart: accuracy, F1, Matthews' and Pearson's coefficients, as scikit-learn and SciPy
//! define them. Ranks add up counts and sums, which are joined before anything is divided.

use super::TrainError;
use tch::{Kind, Tensor};
use zerofold_configs::ProblemType;
use zerofold_data::Batch;
use zerofold_plan::Head;

/// Counts and sums over rows: of one class of several how often each was told in place of each (`true × labels + told`); of several
/// classes rows, rows that are all right, and for each class hits, false alarms and misses; of numbers rows, and for each Σx, Σy, Σx²,
/// Σy², Σxy of told x and true y.
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
            ProblemType::SingleLabel => labels * labels,
            ProblemType::MultiLabel => 2 + 3 * labels,
            ProblemType::Regression => 1 + 5 * labels,
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
                    self.sums[class as usize * self.labels + (1..self.labels).fold(0, larger)] += 1.0;
                }
                ProblemType::MultiLabel => self.add_several(told, &batch.values[row * self.labels..][..self.labels]),
                ProblemType::Regression => self.add_numbers(told, &batch.values[row * self.labels..][..self.labels]),
            }
        }
        Ok(())
    }

    fn add_several(&mut self, told: &[f32], truth: &[f32]) {
        let (told, truth) = (told.iter().map(|logit| *logit > 0.0), truth.iter().map(|value| *value > 0.5));
        let mut right = true;
        for (class, pair) in told.zip(truth).enumerate() {
            right &= pair.0 == pair.1;
            match pair {
                (true, true) => self.sums[2 + 3 * class] += 1.0,
                (true, false) => self.sums[2 + 3 * class + 1] += 1.0,
                (false, true) => self.sums[2 + 3 * class + 2] += 1.0,
                (false, false) => {}
            }
        }
        self.sums[0] += 1.0;
        self.sums[1] += f64::from(u8::from(right));
    }

    fn add_numbers(&mut self, told: &[f32], truth: &[f32]) {
        self.sums[0] += 1.0;
        for (label, (&x, &y)) in told.iter().zip(truth).enumerate() {
            let (x, y) = (f64::from(x), f64::from(y));
            let sums = &mut self.sums[1 + 5 * label..][..5];
            sums.iter_mut().zip([x, y, x * x, y * y, x * y]).for_each(|(sum, value)| *sum += value);
        }
    }

    /// What this rank has to tell the others.
    pub(super) fn sums(&self) -> &[f64] {
        &self.sums
    }

    /// The figures of all ranks, by their names, from what each told. A figure that is not defined is left out.
    pub(super) fn figures<'a>(&self, ranks: impl Iterator<Item = &'a [f64]>) -> Vec<(&'static str, f64)> {
        let mut all = vec![0.0; self.sums.len()];
        ranks.for_each(|rank| all.iter_mut().zip(rank).for_each(|(sum, own)| *sum += own));
        let figures = match self.problem {
            ProblemType::SingleLabel => of_confusion(&all, self.labels),
            ProblemType::MultiLabel => {
                let total = |which: usize| all[2..].iter().skip(which).step_by(3).sum::<f64>();
                vec![("accuracy", all[1] / all[0]), ("f1", f1(total(0), total(1), total(2)))]
            }
            ProblemType::Regression => {
                let of_label = |label: usize| pearson(all[0], &all[1 + 5 * label..][..5]);
                let error: f64 = (0..self.labels).map(|label| squared_error(&all[1 + 5 * label..][..5])).sum();
                let mean = (0..self.labels).map(of_label).sum::<f64>() / self.labels as f64;
                vec![("mse", error / all[0] / self.labels as f64), ("pearson", mean)]
            }
        };
        figures.into_iter().filter(|(_, value)| value.is_finite()).collect()
    }
}

/// 2 hits / (2 hits + false alarms + misses); 0 where there are none of them.
fn f1(hits: f64, alarms: f64, misses: f64) -> f64 {
    let all = 2.0 * hits + alarms + misses;
    if all > 0.0 { 2.0 * hits / all } else { 0.0 }
}

/// Accuracy; F1 of the class 1 where there are two, else the mean over classes that occur or were told; Matthews' coefficient for any number
/// of classes (Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004).
fn of_confusion(counts: &[f64], labels: usize) -> Vec<(&'static str, f64)> {
    let truth = |class: usize| counts[class * labels..][..labels].iter().sum::<f64>();
    let told = |class: usize| counts.iter().skip(class).step_by(labels).sum::<f64>();
    let hits = |class: usize| counts[class * labels + class];
    let of_class = |class: usize| f1(hits(class), told(class) - hits(class), truth(class) - hits(class));
    let (rows, right) = (counts.iter().sum::<f64>(), (0..labels).map(hits).sum::<f64>());
    let f1 = match labels {
        2 => of_class(1),
        _ => {
            let there: Vec<usize> = (0..labels).filter(|&class| truth(class) + told(class) > 0.0).collect();
            there.iter().map(|&class| of_class(class)).sum::<f64>() / there.len() as f64
        }
    };
    let sum = |of: &dyn Fn(usize) -> f64| (0..labels).map(of).sum::<f64>();
    let both = sum(&|class| truth(class) * told(class));
    let (of_truth, of_told) = (sum(&|class| truth(class).powi(2)), sum(&|class| told(class).powi(2)));
    let spread = ((rows * rows - of_truth) * (rows * rows - of_told)).sqrt();
    let matthews = if spread > 0.0 { (right * rows - both) / spread } else { 0.0 };
    vec![("accuracy", right / rows), ("f1", f1), ("matthews_correlation", matthews)]
}

/// Pearson's coefficient from sums over so many rows.
fn pearson(rows: f64, sums: &[f64]) -> f64 {
    let [x, y, xx, yy, xy] = [0, 1, 2, 3, 4].map(|index| sums[index]);
    (rows * xy - x * y) / ((rows * xx - x * x).sqrt() * (rows * yy - y * y).sqrt())
}

/// Σ(x − y)².
fn squared_error(sums: &[f64]) -> f64 {
    sums[2] - 2.0 * sums[4] + sums[3]
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_data::TokenizedDataset;

    /// Figures of rows that two ranks have, against scikit-learn 1.9 and SciPy 1.16 (`scripts/fixtures/classifiers.py`).
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
}
