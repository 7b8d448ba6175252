//! What an audit tells.

use serde::Serialize;

use super::kind::FindingKind;
use super::lengths::{Lengths, Truncation};
use crate::report::{Loss, RowKind, Segment};

/// Rows of a finding that are named.
const EXAMPLES: usize = 5;
/// So many of these may have the same reason.
const ALIKE: usize = 3;

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AuditReport {
    /// In the training data.
    pub training: DataAudit,
    /// In the held-out data, where there are some.
    pub held_out: Option<DataAudit>,
}

impl AuditReport {
    /// Whether something was found that stops or spoils a training.
    pub fn has_faults(&self) -> bool {
        let audits = [Some(&self.training), self.held_out.as_ref()].into_iter().flatten();
        audits.flat_map(|audit| &audit.findings).any(|finding| finding.fault && finding.rows > 0)
    }
}

/// What was found in one data set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataAudit {
    /// The data set, as it was written.
    pub source: String,
    /// How many files it has.
    pub files: usize,
    /// Its rows, those that cannot be read among them.
    pub rows: u64,
    /// Rows of which nothing is found.
    pub rows_without_finding: u64,
    /// Columns that nothing is made of.
    pub unused_columns: Vec<String>,
    /// What its rows are to the model; none without one.
    pub kind: Option<RowKind>,
    /// What the loss is taken on; none without a model.
    pub loss: Option<Loss>,
    /// How long its rows are.
    pub lengths: Lengths,
    /// What is cut off; none where there are no tokens.
    pub truncation: Option<Truncation>,
    /// Tokens that a loss is taken on, after the cut; none where there are no tokens.
    pub supervised_tokens: Option<u64>,
    /// Everything that was looked for, found or not, in the order of [`FindingKind::ALL`].
    pub findings: Vec<Finding>,
    /// What was not looked for: without a model, without held-out data, or in rows that are no answers.
    pub not_checked: Vec<FindingKind>,
    /// The first row that a model would learn from, cut where supervision begins and ends; empty without tokens.
    pub example: Vec<Segment>,
}

/// Something that was looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub kind: FindingKind,
    /// Whether it stops or spoils a training.
    pub fault: bool,
    /// How many rows.
    pub rows: u64,
    /// A few of these.
    pub examples: Vec<Example>,
}

/// A row of a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Example {
    /// Where it stands: `file:line`, `file[element]` or `file: row N`.
    pub place: String,
    /// Why.
    pub reason: String,
}

/// Counts rows by kind, and keeps a few of each.
#[derive(Default)]
pub(super) struct Tally {
    kinds: [(u64, Vec<Example>); FindingKind::ALL.len()],
}

impl Tally {
    /// Counts one more. The first rows are kept, and then those with another reason, so that a rare one is seen beside
    /// a frequent one.
    pub(super) fn add(&mut self, kind: FindingKind, place: impl FnOnce() -> String, reason: impl FnOnce() -> String) {
        let (count, examples) = &mut self.kinds[kind as usize];
        *count += 1;
        if examples.len() < EXAMPLES {
            let reason = reason();
            if examples.len() < ALIKE || !examples.iter().any(|example| example.reason == reason) {
                examples.push(Example { place: place(), reason });
            }
        }
    }

    /// The findings of these kinds.
    pub(super) fn into_findings(mut self, checked: &[FindingKind]) -> Vec<Finding> {
        let finding = |&kind: &FindingKind| {
            let (rows, examples) = std::mem::take(&mut self.kinds[kind as usize]);
            Finding { kind, fault: kind.is_fault(), rows, examples }
        };
        checked.iter().map(finding).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rare_reason_is_kept_beside_a_frequent_one() {
        let mut tally = Tally::default();
        for row in 0..100 {
            let reason = if row == 70 { "rare" } else { "frequent" };
            tally.add(FindingKind::Refused, || format!("a:{row}"), || reason.to_owned());
        }
        let [finding] = tally.into_findings(&[FindingKind::Refused]).try_into().unwrap();
        assert_eq!((finding.rows, finding.fault), (100, true));
        let places: Vec<&str> = finding.examples.iter().map(|example| example.place.as_str()).collect();
        assert_eq!(places, ["a:0", "a:1", "a:2", "a:70"]);
    }
}
