//! What to be warned of before a training begins: settings that are allowed and seldom meant.

use crate::freezing::Freeze;
use crate::resolved::Resolved;
use crate::schedule::ScheduleShape;
use crate::training::Training;
use crate::types::Strategy;

/// The highest rate of full fine-tuning that is usual: ten to a hundred times below that of training from scratch.
const USUAL_RATE: f64 = 5e-5;
/// A rate so many times the usual one is far above it.
const FAR: f64 = 10.0;
/// Fewer rows than this are a small data set.
const SMALL: u64 = 1000;

/// Warnings that the configuration alone gives cause for: no warm-up, and a learning rate far above the usual one that
/// nothing watches.
pub fn cautions(config: &Resolved) -> Vec<String> {
    let training = &config.training;
    let rate = training.learning_rate;
    let place = |key: &str| config.provenance.get(key).map_or("default", String::as_str);
    let mut warnings = Vec::new();
    let warms = training.warmup_steps > 0.0 || training.warmup_ratio > 0.0;
    let without = |usual: &str| {
        let (schedule, place) = (training.lr_scheduler_type, place("lr_scheduler_type"));
        format!(
            "lr_scheduler_type is {schedule} ({place}), which has no warm-up: the first steps are taken at the full rate of \
             {rate}{usual}"
        )
    };
    if training.lr_scheduler_type == ScheduleShape::Constant {
        warnings.push(without("; constant_with_warmup with warmup_ratio 0.06 to 0.1 is usual"));
    } else if matches!(training.lr_scheduler_type, ScheduleShape::ReduceLrOnPlateau(_)) {
        warnings.push(without(""));
    } else if !warms {
        warnings.push(format!(
            "there is no warm-up: the first steps are taken at the full rate of {rate}; 6 to 10 % of the steps are usual: \
             --warmup_ratio 0.06"
        ));
    }
    warnings.extend(phases(training));
    if training.eval_dataset.is_some() && training.eval_strategy == Strategy::No && !training.eval_on_start {
        warnings.push(format!(
            "eval_dataset ({}) is never evaluated: eval_strategy is no; --eval_strategy epoch evaluates after each epoch",
            place("eval_dataset")
        ));
    }
    // A head that is trained alone takes higher ones.
    let whole = training.freeze != Some(Freeze::AllButHead);
    if whole && rate > FAR * USUAL_RATE && training.eval_strategy == Strategy::No {
        warnings.push(format!(
            "learning_rate is {rate} ({}), far above the 1e-5 to 5e-5 of full fine-tuning, and nothing is evaluated on the \
             way: give held-out data (--eval_dataset PATH --eval_strategy steps), or a lower rate",
            place("learning_rate")
        ));
    }
    warnings
}

/// The warning for a warm-up that takes all of `total` steps.
pub fn endless_warmup(training: &Training, total: u64) -> Option<String> {
    let warmup = training.warmup_steps_of(total);
    (total > 1 && warmup >= total && training.lr_scheduler_type != ScheduleShape::Constant).then(|| {
        format!(
            "the warm-up takes {warmup} steps, and the run has {total}: the learning rate rises to the end and never reaches \
             {}; warmup_ratio 0.06 to 0.1 is usual",
            training.learning_rate
        )
    })
}

/// What is seldom meant of the phases of warmup_stable_decay, where the number of steps is known.
fn phases(training: &Training) -> Option<String> {
    let ScheduleShape::WarmupStableDecay { num_stable_steps, num_decay_steps, .. } = training.lr_scheduler_type else {
        return None;
    };
    let total = u64::try_from(training.max_steps).ok()?;
    let warmup = training.warmup_steps_of(total);
    let phases = warmup.saturating_add(num_decay_steps).saturating_add(num_stable_steps.unwrap_or(0));
    match num_stable_steps {
        None if phases > total => Some(format!(
            "the warm-up of {warmup} steps and num_decay_steps {num_decay_steps} are more than max_steps {total}: the rate \
             falls at once from the end of the warm-up into the middle of the decay"
        )),
        Some(stable) if phases < total => Some(format!(
            "warm-up {warmup}, num_stable_steps {stable} and num_decay_steps {num_decay_steps} are {phases} of the {total} \
             steps of max_steps: the others have the lowest rate of the decay"
        )),
        _ => None,
    }
}

/// The warning for the case in which a model forgets most: a high rate, few rows, and one source of data alone, all
/// three together, and nothing else against it. `rows` are those of all sources of training data together.
pub fn forgetting(training: &Training, rows: u64) -> Option<String> {
    let learning_rate = training.learning_rate;
    // A frozen model forgets nothing.
    let held = training.keeps_pretrained() || training.freeze == Some(Freeze::AllButHead);
    (learning_rate > USUAL_RATE && rows < SMALL && training.dataset.sources().len() < 2 && !held).then(|| {
        format!(
            "learning_rate is {learning_rate}, above the 1e-5 to 5e-5 of full fine-tuning, and all {rows} rows are of one \
             source: the model may forget what it knew; lower the rate, add rows, or mix in a share of general data"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Inputs, resolve};

    fn resolved(flags: &[(&str, &str)]) -> Resolved {
        let required = [("model_name_or_path", "m"), ("dataset", "d"), ("output_dir", "o")];
        let missing = |(name, _): &&(&str, &str)| !flags.iter().any(|(other, _)| other == name);
        let all = required.iter().filter(missing).chain(flags);
        let flags = all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        resolve(&Inputs { flags, ..Inputs::default() }).unwrap()
    }

    fn warnings(flags: &[(&str, &str)]) -> Vec<String> {
        cautions(&resolved(flags))
    }

    #[test]
    fn a_missing_warm_up_and_a_high_rate_that_nothing_watches_are_told() {
        let warm = ("warmup_ratio", "0.06");
        assert_eq!(warnings(&[warm]), Vec::<String>::new());
        assert_eq!(warnings(&[("warmup_steps", "10")]), Vec::<String>::new());
        assert_eq!(warnings(&[warm, ("learning_rate", "5e-4")]), Vec::<String>::new());
        let told = warnings(&[]);
        assert!(told.len() == 1 && told[0].contains("no warm-up") && told[0].contains("0.00002"), "{told:?}");
        let told = warnings(&[warm, ("lr_scheduler_type", "constant")]);
        assert!(told.len() == 1 && told[0].contains("constant (flag --lr_scheduler_type)"), "{told:?}");
        let high = [warm, ("learning_rate", "6e-4")];
        let told = warnings(&high);
        assert!(told.len() == 1 && told[0].contains("learning_rate is 0.0006 (flag --learning_rate)"), "{told:?}");
        let watched = [high[0], high[1], ("eval_strategy", "steps"), ("eval_dataset", "e")];
        assert_eq!(warnings(&watched), Vec::<String>::new());
    }

    #[test]
    fn forgetting_takes_all_three_and_nothing_against_it() {
        let of = |flags: &[(&str, &str)], rows| forgetting(&resolved(flags).training, rows);
        let high = ("learning_rate", "1e-4");
        let told = of(&[high], 999).unwrap();
        assert!(told.contains("0.0001") && told.contains("999 rows"), "{told}");
        assert_eq!(of(&[("learning_rate", "5e-5")], 999), None);
        assert_eq!(of(&[high], 1000), None);
        for against in [
            ("dataset", "[{path: a}, {path: b}]"),
            ("freeze", "all_but_head"),
            ("l2_toward_pretrained", "0.1"),
            ("mixout_probability", "0.5"),
        ] {
            assert_eq!(of(&[high, against], 999), None, "{against:?}");
        }
    }

    #[test]
    fn held_out_rows_that_nobody_looks_at_and_a_warm_up_without_end_are_told() {
        let warm = ("warmup_ratio", "0.06");
        let told = warnings(&[warm, ("eval_dataset", "e")]);
        assert!(
            told.len() == 1 && told[0].contains("eval_dataset (flag --eval_dataset) is never evaluated"),
            "{told:?}"
        );
        assert_eq!(warnings(&[warm, ("eval_dataset", "e"), ("eval_on_start", "true")]), Vec::<String>::new());
        assert_eq!(warnings(&[warm, ("learning_rate", "1e-2"), ("freeze", "all_but_head")]), Vec::<String>::new());
        let training = resolved(&[("warmup_steps", "20")]).training;
        let told = endless_warmup(&training, 10).unwrap();
        assert!(told.contains("takes 20 steps, and the run has 10"), "{told}");
        assert_eq!(endless_warmup(&training, 21), None);
    }
}
