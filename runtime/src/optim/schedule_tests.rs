use super::*;
use serde_json::Value;
use zerofold_configs::{Inputs, resolve};

fn fixture(name: &str) -> Vec<Value> {
    let path = format!("{}/../tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let Value::Array(cases) = fixture["schedules"].take() else { panic!("no schedules in {name}") };
    cases
}

/// The schedule of a job with these flags, or why it is refused.
fn of_flags(flags: &[(&str, &str)], total_steps: u64) -> Result<Schedule, String> {
    let required = [("model_name_or_path", "m"), ("dataset", "d"), ("output_dir", "o"), ("eval_dataset", "e")];
    let required = required.into_iter().chain([("eval_strategy", "steps")]).collect::<Vec<_>>();
    let flags = required.iter().chain(flags).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let training = resolve(&Inputs { flags, ..Inputs::default() }).map_err(|error| error.to_string())?.training;
    Ok(Schedule {
        shape: training.lr_scheduler_type,
        peak: training.learning_rate,
        warmup_steps: training.warmup_steps_of(total_steps),
        warmup: training.warmup_type,
        total_steps,
    })
}

/// Rates as transformers' `get_scheduler` gives them, from the flags that a user would write.
#[test]
fn every_schedule_equals_that_of_transformers() {
    let cases = fixture("schedules.json");
    assert!(cases.len() >= 35, "{} cases", cases.len());
    let mut names = std::collections::BTreeSet::new();
    for case in &cases {
        let word = |key: &str| case[key].as_str().map_or_else(|| case[key].to_string(), str::to_owned);
        let keys = ["name", "kwargs", "learning_rate", "warmup_steps"].map(word);
        let [name, kwargs, learning_rate, warmup_steps] = keys.each_ref().map(String::as_str);
        let flags = [
            ("lr_scheduler_type", name),
            ("lr_scheduler_kwargs", kwargs),
            ("learning_rate", learning_rate),
            ("warmup_steps", warmup_steps),
        ];
        let schedule =
            of_flags(&flags, case["total_steps"].as_u64().unwrap()).unwrap_or_else(|error| panic!("{error}"));
        assert_rates(&schedule, case, "rates");
        names.insert(name.to_owned());
    }
    assert_eq!(names.len(), 10, "{names:?}");
}

/// Multipliers as DeepSpeed's schedules give them, step for step.
#[test]
fn a_logarithmic_warm_up_equals_that_of_deepspeed() {
    let cases = fixture("deepspeed_schedules.json");
    assert!(cases.len() >= 8, "{} cases", cases.len());
    for case in &cases {
        let shape = match case["name"].as_str().unwrap() {
            "WarmupLR" => ScheduleShape::ConstantWithWarmup,
            "WarmupDecayLR" => ScheduleShape::Linear,
            other => panic!("a schedule that is not compared: {other}"),
        };
        let steps = |key: &str| case[key].as_u64().unwrap();
        let (warmup_steps, total_steps) = (steps("warmup_num_steps"), steps("total_num_steps"));
        assert_rates(
            &Schedule { shape, peak: 1.0, warmup_steps, warmup: WarmupType::Log, total_steps },
            case,
            "multipliers",
        );
    }
    let shape = ScheduleShape::Linear;
    let none = Schedule { shape, peak: 1.0, warmup_steps: 0, warmup: WarmupType::Log, total_steps: 4 };
    assert_eq!([0, 1, 2, 3, 4].map(|finished| none.rate(finished).unwrap()), [1.0, 0.75, 0.5, 0.25, 0.0]);
}

#[track_caller]
fn assert_rates(schedule: &Schedule, case: &Value, rates: &str) {
    let rates = case[rates].as_array().unwrap();
    assert!(rates.len() >= 20, "{case}");
    for (finished, expected) in rates.iter().enumerate() {
        let (ours, theirs) = (schedule.rate(finished as u64).unwrap(), expected.as_f64().unwrap());
        // Where a cosine ends at 0, rounding is all that is left of it.
        let allowed = 1e-12 * theirs.abs() + 1e-16 * schedule.peak;
        assert!((ours - theirs).abs() <= allowed, "{case}\n{finished} steps finished: {ours} instead of {theirs}");
    }
}

/// Every value that is accepted, from the least to the largest, in every place, makes rates that are numbers from 0 on.
#[test]
fn no_accepted_value_makes_a_rate_that_is_none() {
    let table: [(&str, &[&str]); 11] = [
        ("linear", &[]),
        ("cosine", &["num_cycles"]),
        ("cosine_with_restarts", &["num_cycles"]),
        ("cosine_with_min_lr", &["num_cycles", "min_lr", "min_lr_rate"]),
        ("cosine_warmup_with_min_lr", &["num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"]),
        ("polynomial", &["lr_end", "power"]),
        ("constant", &[]),
        ("constant_with_warmup", &[]),
        ("inverse_sqrt", &["timescale"]),
        (
            "warmup_stable_decay",
            &["num_stable_steps", "num_decay_steps", "warmup_type", "decay_type", "min_lr_ratio", "num_cycles"],
        ),
        (
            "reduce_lr_on_plateau",
            &["mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps"],
        ),
    ];
    let values =
        ["0", "-1", "1", "3", "0.3", "1e-300", "1e300", "18446744073709551615", "linear", "cosine", "1-sqrt", "null"];
    let (mut accepted, mut refused) = (0, 0);
    for (name, parameters) in table {
        // One parameter at its ends, the others at their defaults or at what they need.
        let mut given = vec!["null".to_owned()];
        for parameter in parameters {
            for value in values {
                given.push(format!("{{{parameter}: {value}}}"));
                given.push(format!("{{{parameter}: {value}, min_lr_rate: 0.5}}"));
                given.push(format!("{{{parameter}: {value}, num_decay_steps: 5}}"));
                for curve in ["linear", "cosine", "1-sqrt"] {
                    let curves = format!("warmup_type: {curve}, decay_type: {curve}");
                    given.push(format!("{{{parameter}: {value}, num_decay_steps: 5, {curves}}}"));
                }
            }
        }
        for kwargs in &given {
            for (rate, warmup) in
                [("1", "0"), ("1e-7", "1"), ("0", "3"), ("1e300", "7"), ("2e-5", "20"), ("1e-300", "1e15")]
            {
                let flags = [
                    ("lr_scheduler_type", name),
                    ("lr_scheduler_kwargs", kwargs.as_str()),
                    ("learning_rate", rate),
                    ("warmup_steps", warmup),
                ];
                for total in [1, 2, 7, 20] {
                    match of_flags(&flags, total) {
                        Ok(schedule) => {
                            accepted += 1;
                            let fault = (0..total).find_map(|finished| schedule.rate(finished).err());
                            assert!(fault.is_none(), "{flags:?}, {total} steps: {}", fault.unwrap());
                        }
                        Err(_) => refused += 1,
                    }
                }
            }
        }
    }
    assert!(accepted > 3000 && refused > 1000, "{accepted} accepted, {refused} refused");
}

#[test]
fn a_rate_that_is_none_is_an_error() {
    let shape = ScheduleShape::Polynomial { lr_end: 0.0, power: f64::NAN };
    let schedule = Schedule { shape, peak: 1.0, warmup_steps: 2, warmup: WarmupType::Linear, total_steps: 5 };
    assert_eq!(schedule.rate(1).unwrap(), 0.5);
    let told = schedule.rate(3).unwrap_err().to_string();
    assert!(told.contains("the learning rate of step 4 is NaN by the schedule polynomial"), "{told}");
    let below = Schedule { peak: -1.0, ..schedule };
    assert!(below.rate(1).unwrap_err().to_string().contains("step 2 is -0.5"));
}
