//! Several sources of rows.

use super::{resolved, says, with_flags};
use crate::types::StoppingStrategy;

/// Model and output, then these lines of `training:`.
fn job(lines: &str) -> Result<crate::Resolved, String> {
    with_flags(&format!("training:\n  model_name_or_path: m\n  output_dir: out\n{lines}"), &[], &[])
}

const TWO: &str =
    "  dataset:\n    - {path: chats.jsonl, weight: 0.9}\n    - {path: general/, weight: 0.1, label: wiki}\n";

#[test]
fn sources_are_read_with_their_weights() {
    let training = job(TWO).unwrap().training;
    assert_eq!(training.dataset.weights(), Some(vec![0.9, 0.1]));
    assert_eq!(training.dataset.labels(), ["chats", "wiki"]);
    assert_eq!((training.mixing_temperature, training.stopping_strategy), (None, StoppingStrategy::FirstExhausted));
    // TRL's name for it.
    let theirs =
        job("  datasets: [{path: a}, {path: b}]\n  mixing_temperature: 2\n  stopping_strategy: all_exhausted\n");
    let theirs = theirs.unwrap();
    says(&theirs.notes.join("\n"), &["datasets", "dataset"]);
    assert_eq!((theirs.training.dataset.weights(), theirs.training.mixing_temperature), (None, Some(2.0)));
    assert_eq!(theirs.training.stopping_strategy, StoppingStrategy::AllExhausted);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let table: [(&str, &[&str]); 5] = [
        (
            "  dataset: [{path: a, weight: 1}, {path: b, wieght: 1}]\n",
            &["job.yaml:4", "source 2 has an unknown key wieght: did you mean weight?"],
        ),
        (
            &format!("{TWO}  mixing_temperature: 2\n"),
            &["mixing_temperature", "the sources of dataset have weights (job.yaml:4)"],
        ),
        (&format!("{TWO}  eval_dataset: [{{path: a, weight: 1}}]\n"), &["eval_dataset", "leave out the weights"]),
        (&format!("{TWO}  mixing_temperature: 0\n"), &["mixing_temperature is 0", "more than 0"]),
        (&format!("{TWO}  stopping_strategy: all\n"), &["first_exhausted, all_exhausted"]),
    ];
    for (lines, told) in table {
        says(&job(lines).unwrap_err(), told);
    }
}

#[test]
fn what_has_no_effect_is_told() {
    let notes = |more: &str| resolved("", more).unwrap().notes.join("\n");
    says(&notes("  mixing_temperature: 2\n"), &["mixing_temperature", "dataset has one source"]);
    let alone = job("  dataset: [{path: a, weight: 3}]\n").unwrap().notes.join("\n");
    says(&alone, &["dataset (job.yaml:4): the weight has no effect"]);
    says(&notes("  stopping_strategy: all_exhausted\n"), &["stopping_strategy", "an epoch has every row once"]);
}
