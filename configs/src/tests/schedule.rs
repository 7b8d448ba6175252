//! Schedules and what they take.

use super::{TRAINING, pairs, resolved, says, with_flags};
use crate::types::{Curve, PlateauMode, ThresholdMode};
use crate::{
    Form, Inputs, Minimum, PlateauRule, Resolved, ScheduleShape, Scheduler, cautions, compose, outline, resolve,
};

/// The shape that these lines of `training:` make.
fn shape(lines: &str) -> ScheduleShape {
    resolved("", lines).unwrap_or_else(|error| panic!("{lines}{error}")).training.lr_scheduler_type
}

/// A schedule and its parameters as flags.
fn flags(name: &str, kwargs: &str) -> Result<Resolved, String> {
    let evaluated = [("eval_strategy", "epoch"), ("eval_dataset", "e")];
    with_flags(
        TRAINING,
        &[&evaluated[..], &[("lr_scheduler_type", name), ("lr_scheduler_kwargs", kwargs)]].concat(),
        &[],
    )
}

#[test]
fn parameters_come_as_a_mapping_or_as_text() {
    let restarts = ScheduleShape::CosineWithRestarts { num_cycles: 2 };
    assert_eq!(shape("  lr_scheduler_type: cosine_with_restarts\n  lr_scheduler_kwargs: {num_cycles: 2}\n"), restarts);
    assert_eq!(
        shape("  lr_scheduler_type: cosine_with_restarts\n  lr_scheduler_kwargs:\n    num_cycles: '2'\n"),
        restarts
    );
    for text in ["{num_cycles: 2}", "{\"num_cycles\": 2}", " {\"num_cycles\":2}"] {
        assert_eq!(flags("cosine_with_restarts", text).unwrap().training.lr_scheduler_type, restarts, "{text}");
    }
    for text in ["null", "none", "", "{}", "{num_cycles: null}"] {
        let shape = flags("cosine", text).unwrap().training.lr_scheduler_type;
        assert_eq!(shape, ScheduleShape::Cosine { num_cycles: 0.5 }, "{text}");
    }
    // PyYAML's text for a number, as TRL's files have it.
    let lines = "  lr_scheduler_type: polynomial\n  lr_scheduler_kwargs: {lr_end: 1e-9, power: 2}\n";
    assert_eq!(shape(lines), ScheduleShape::Polynomial { lr_end: 1e-9, power: 2.0 });
    let stable = "{num_decay_steps: 100, decay_type: 1-sqrt, min_lr_ratio: 0.1}";
    let expected = ScheduleShape::WarmupStableDecay {
        num_stable_steps: None,
        num_decay_steps: 100,
        warmup_type: Curve::Linear,
        decay_type: Curve::OneMinusSqrt,
        min_lr_ratio: 0.1,
        num_cycles: 0.5,
    };
    assert_eq!(flags("warmup_stable_decay", stable).unwrap().training.lr_scheduler_type, expected);
    let minimum = shape("  lr_scheduler_type: cosine_with_min_lr\n  lr_scheduler_kwargs: {min_lr: 1e-6}\n");
    assert_eq!(minimum, ScheduleShape::CosineWithMinLr { num_cycles: 0.5, minimum: Minimum::Rate(1e-6) });
}

#[test]
fn what_a_schedule_does_not_take_is_told_with_what_it_takes() {
    let lines = "  lr_scheduler_type: cosine\n  lr_scheduler_kwargs: {num_cycels: 1}\n";
    let expected = "job.yaml:6:24: unknown key num_cycels in lr_scheduler_kwargs of cosine\nhint: did you mean num_cycles? \
                    cosine takes num_cycles";
    assert_eq!(resolved("", lines).unwrap_err(), expected);
    let table: [(&str, &str, &[&str]); 19] = [
        ("polynomial", "{num_cycles: 1}", &["num_cycles is of cosine, ", "polynomial takes lr_end, power"]),
        ("linear", "{power: 2}", &["power is of polynomial; linear takes none: remove lr_scheduler_kwargs"]),
        ("cosine", "{zzzzzz: 2}", &["hint: cosine takes num_cycles"]),
        ("cosine", "num_cycles", &["it must be a mapping as {NAME: VALUE}"]),
        ("cosine", "{num_cycles", &["it must be a mapping as {NAME: VALUE}"]),
        ("cosine", "{num_cycles: 0}", &["lr_scheduler_kwargs.num_cycles is 0", "a number, more than 0"]),
        ("cosine_with_restarts", "{num_cycles: 1.5}", &["num_cycles is 1.5", "a whole number, 1 or more"]),
        ("cosine_with_min_lr", "{min_lr_rate: 1.1}", &["min_lr_rate is 1.1", "from 0 to 1"]),
        ("inverse_sqrt", "{timescale: 0}", &["timescale is 0", "a whole number, 1 or more"]),
        ("polynomial", "{power: -1}", &["power is -1", "more than 0"]),
        ("warmup_stable_decay", "{num_decay_steps: -1}", &["num_decay_steps is -1", "0 or more"]),
        ("warmup_stable_decay", "{num_decay_steps: 5, decay_type: cosin}", &["linear, cosine, 1-sqrt", "mean cosine?"]),
        ("polynomial", "{lr_end: 2e-5}", &["lr_end is 0.00002", "below learning_rate, which is 0.00002 (default)"]),
        ("cosine_with_min_lr", "{min_lr: 1}", &["min_lr is 1", "at most learning_rate"]),
        ("reduce_lr_on_plateau", "{min_lr: 1}", &["min_lr is 1", "at most learning_rate"]),
        ("reduce_lr_on_plateau", "{factor: 1}", &["factor is 1", "from 0 up to but not including 1"]),
        ("reduce_lr_on_plateau", "{mode: least}", &["mode is least", "min, max"]),
        ("reduce_lr_on_plateau", "{patience: 1.5}", &["patience is 1.5", "a whole number, 0 or more"]),
        ("reduce_lr_on_plateau", "{power: 1}", &["power is of polynomial", "takes mode, factor, patience, threshold,"]),
    ];
    for (name, kwargs, parts) in table {
        let message = flags(name, kwargs).unwrap_err();
        says(&message, parts);
        says(&message, &["flag --lr_scheduler_kwargs: "]);
    }
    says(&flags("greedy", "{}").unwrap_err(), &["greedy is not built yet"]);
}

#[test]
fn what_a_schedule_needs_is_asked_for() {
    let absent = |name: &str| resolved("", &format!("  lr_scheduler_type: {name}\n")).unwrap_err();
    says(
        &absent("warmup_stable_decay"),
        &["not set: num_decay_steps of lr_scheduler_kwargs", "'{num_decay_steps: 100}'"],
    );
    for name in ["cosine_with_min_lr", "cosine_warmup_with_min_lr"] {
        says(&absent(name), &["not set: min_lr or min_lr_rate of lr_scheduler_kwargs", name]);
    }
    let both = flags("cosine_with_min_lr", "{min_lr: 1e-6, min_lr_rate: 0.1}").unwrap_err();
    says(&both, &["lr_scheduler_kwargs.min_lr: 1e-6", "lr_scheduler_kwargs.min_lr_rate: 0.1", "keep one"]);
    let low = with_flags(TRAINING, &[("lr_scheduler_type", "polynomial"), ("learning_rate", "1e-7")], &[]).unwrap_err();
    says(&low, &["whose default 1e-7 is not below learning_rate 0.0000001 (flag --learning_rate)", "'{lr_end: 0}'"]);
    for (name, kwargs) in
        [("cosine_warmup_with_min_lr", "{min_lr: 0}"), ("warmup_stable_decay", "{num_decay_steps: 1}")]
    {
        let given = [("lr_scheduler_type", name), ("lr_scheduler_kwargs", kwargs), ("warmup_type", "log")];
        says(&with_flags(TRAINING, &given, &[]).unwrap_err(), &["warmup_type is log", "has a warm-up of its own"]);
    }
}

#[test]
fn parameters_of_a_schedule_that_a_flag_replaces_are_left_behind_with_a_note() {
    let text = format!("{TRAINING}  lr_scheduler_type: polynomial\n  lr_scheduler_kwargs: {{power: 2}}\n");
    let job = with_flags(&text, &[("lr_scheduler_type", "linear")], &[]).unwrap();
    assert_eq!(job.training.lr_scheduler_type, ScheduleShape::Linear);
    says(
        &job.notes.join("\n"),
        &["lr_scheduler_kwargs: {\"power\":2} (job.yaml:6) has no effect", "flag --lr_scheduler_type"],
    );
    let job = with_flags(&text, &[("lr_scheduler_type", "polynomial")], &[]).unwrap();
    assert_eq!(job.training.lr_scheduler_type, ScheduleShape::Polynomial { lr_end: 1e-7, power: 2.0 });
    // The file's own are never dropped.
    says(
        &with_flags(&text, &[], &["lr_scheduler_kwargs={timescale: 3}"]).unwrap_err(),
        &["timescale is of inverse_sqrt"],
    );
}

#[test]
fn every_schedule_is_written_as_it_is_read() {
    for name in Scheduler::NAMES {
        let kwargs = match *name {
            "cosine" => "{num_cycles: 1.5}",
            "cosine_with_min_lr" => "{min_lr: 1e-6}",
            "cosine_warmup_with_min_lr" => "{min_lr_rate: 0.0, warmup_lr_rate: 0.1}",
            "reduce_lr_on_plateau" => "{cooldown: 3}",
            "warmup_stable_decay" => "{num_decay_steps: 0, num_stable_steps: 3, warmup_type: 1-sqrt}",
            _ => "null",
        };
        let shape = flags(name, kwargs).unwrap().training.lr_scheduler_type;
        let yaml = serde_yaml::to_string(&shape).unwrap();
        assert_eq!(serde_yaml::from_str::<ScheduleShape>(&yaml).unwrap(), shape, "{yaml}");
        let json = serde_json::to_string(&shape).unwrap();
        assert_eq!(serde_json::from_str::<ScheduleShape>(&json).unwrap(), shape, "{json}");
        assert_eq!(yaml.trim() == *name, kwargs == "null", "{yaml}");
    }
    let broken = serde_json::from_str::<ScheduleShape>(r#"{"name": "cosine", "parameters": {"power": 2}}"#);
    says(&broken.unwrap_err().to_string(), &["unknown key power"]);
}

#[test]
fn a_deepspeed_json_has_the_end_of_the_cosine() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ds.json");
    let of = |parameters: &str, more: &[(&str, &str)]| {
        let scheduler = format!(r#"{{"type": "WarmupCosineLR", "params": {{"total_num_steps": "auto"{parameters}}}}}"#);
        std::fs::write(&path, format!(r#"{{"zero_optimization": {{"stage": 1}}, "scheduler": {scheduler}}}"#)).unwrap();
        let flags = [("model_name_or_path", "m"), ("dataset", "d"), ("output_dir", "o"), ("max_steps", "100")];
        let flags = pairs(&[&flags, more].concat());
        Inputs { config: Some(path.display().to_string()), flags, ..Inputs::default() }
    };
    let shape = |parameters: &str, more: &[(&str, &str)]| {
        resolve(&of(parameters, more)).map(|job| job.training.lr_scheduler_type).map_err(|error| error.to_string())
    };
    let ends = |share: f64| ScheduleShape::CosineWithMinLr { num_cycles: 0.5, minimum: Minimum::Share(share) };
    assert_eq!(shape("", &[]), Ok(ends(1e-4)), "DeepSpeed's default");
    assert_eq!(shape(r#", "cos_min_ratio": 0.1"#, &[]), Ok(ends(0.1)));
    assert_eq!(shape(r#", "cos_min_ratio": 0"#, &[]), Ok(ScheduleShape::Cosine { num_cycles: 0.5 }));
    assert_eq!(shape("", &[("lr_scheduler_type", "linear")]), Ok(ScheduleShape::Linear));
    says(&shape(r#", "cos_min_ratio": 2"#, &[]).unwrap_err(), &["cos_min_ratio is 2", "from 0 to 1"]);
    says(&shape(r#", "cos_min_ratio": "auto""#, &[]).unwrap_err(), &["cos_min_ratio is auto", "from 0 to 1"]);
    for (scheduler, expected) in [
        (
            r#""type": "WarmupDecayLR", "params": {"total_num_steps": 9, "cos_min_ratio": 0.1}"#,
            "scheduler.type is WarmupDecayLR",
        ),
        (r#""type": "WarmupLR", "params": {"cos_min_ratio": 1}"#, "scheduler.type is WarmupLR"),
        (r#""params": {"cos_min_ratio": 0.1}"#, "scheduler.type names none"),
    ] {
        let inputs = of("", &[]);
        std::fs::write(&path, format!(r#"{{"zero_optimization": {{"stage": 1}}, "scheduler": {{{scheduler}}}}}"#))
            .unwrap();
        says(
            &resolve(&inputs).unwrap_err().to_string(),
            &["cos_min_ratio", expected, "only WarmupCosineLR ends at a share"],
        );
    }
    // And back.
    let inputs = of(r#", "cos_min_ratio": 0.1, "warmup_num_steps": 10"#, &[]);
    let composed = compose(&outline(&inputs).unwrap(), Form::DeepSpeed, &inputs).unwrap();
    let json: serde_json::Value = serde_json::from_str(&composed.text).unwrap();
    let scheduler = (&json["scheduler"]["type"], &json["scheduler"]["params"]["cos_min_ratio"]);
    assert_eq!(scheduler, (&"WarmupCosineLR".into(), &0.1.into()), "{}", composed.text);
    let inputs =
        of("", &[("lr_scheduler_type", "warmup_stable_decay"), ("lr_scheduler_kwargs", "{num_decay_steps: 9}")]);
    let composed = compose(&outline(&inputs).unwrap(), Form::DeepSpeed, &inputs).unwrap();
    assert!(!composed.text.contains("scheduler"), "{}", composed.text);
    let told = composed.left_out.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    says(&told, &[r#"lr_scheduler_kwargs: {"num_decay_steps":9}, because DeepSpeed has no schedule of this shape"#]);
}

#[test]
fn phases_that_do_not_fill_the_steps_are_warned_of() {
    let warned = |kwargs: &str| {
        let flags =
            [("lr_scheduler_type", "warmup_stable_decay"), ("lr_scheduler_kwargs", kwargs), ("warmup_steps", "5")];
        cautions(&with_flags(TRAINING, &[&flags[..], &[("max_steps", "50")]].concat(), &[]).unwrap()).join("\n")
    };
    assert_eq!(warned("{num_decay_steps: 45}"), "");
    says(&warned("{num_decay_steps: 46}"), &["warm-up of 5 steps and num_decay_steps 46 are more than max_steps 50"]);
    says(&warned("{num_decay_steps: 10, num_stable_steps: 30}"), &["are 45 of the 50 steps"]);
    assert_eq!(warned("{num_decay_steps: 10, num_stable_steps: 1000}"), "", "a run whose decay is to branch off");
}

#[test]
fn a_plateau_has_pytorchs_defaults_and_needs_evaluations() {
    let plain = flags("reduce_lr_on_plateau", "null").unwrap();
    let rule = PlateauRule::default();
    assert_eq!(plain.training.lr_scheduler_type, ScheduleShape::ReduceLrOnPlateau(rule));
    let given =
        "{mode: min, factor: 0.5, patience: 0, threshold: 0.1, threshold_mode: abs, cooldown: 2, min_lr: 1e-6, eps: 0}";
    let job = flags("reduce_lr_on_plateau", given).unwrap();
    let (mode, threshold_mode) = (PlateauMode::Min, ThresholdMode::Absolute);
    let expected = PlateauRule {
        mode,
        factor: 0.5,
        patience: 0,
        threshold: 0.1,
        threshold_mode,
        cooldown: 2,
        min_lr: 1e-6,
        eps: 0.0,
    };
    let shape = job.training.lr_scheduler_type;
    assert_eq!(shape, ScheduleShape::ReduceLrOnPlateau(expected));
    let yaml = serde_yaml::to_string(&shape).unwrap();
    assert_eq!(serde_yaml::from_str::<ScheduleShape>(&yaml).unwrap(), shape, "{yaml}");

    // Which way is better is no choice.
    let refused = flags("reduce_lr_on_plateau", "{mode: max}").unwrap_err();
    says(&refused, &["mode", "metric_for_best_model is loss", "leave mode out, or set it to min"]);
    let lines = "  lr_scheduler_type: reduce_lr_on_plateau\n  eval_strategy: epoch\n  eval_dataset: e\n  metric_for_best_model: f1\n";
    let ScheduleShape::ReduceLrOnPlateau(rule) = resolved("", lines).unwrap().training.lr_scheduler_type else {
        panic!()
    };
    assert_eq!(rule.mode, PlateauMode::Max);

    let told = resolved("", "  lr_scheduler_type: reduce_lr_on_plateau\n").unwrap_err();
    says(
        &told,
        &["job.yaml:5:", "eval_strategy is no, so there is no held-out loss", "hint: set eval_strategy to steps"],
    );
    let warm =
        "  lr_scheduler_type: reduce_lr_on_plateau\n  eval_strategy: epoch\n  eval_dataset: e\n  warmup_ratio: 0.1\n";
    let job = resolved("", warm).unwrap();
    says(
        &job.notes.join("\n"),
        &["warmup_ratio: 0.1 (job.yaml:8) has no effect", "reduce_lr_on_plateau has no warm-up"],
    );
    says(&cautions(&job).join("\n"), &["lr_scheduler_type is reduce_lr_on_plateau (job.yaml:5), which has no warm-up"]);
}
