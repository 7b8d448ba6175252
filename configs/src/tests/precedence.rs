//! Flags go before `--set`, `--set` before the file, the file before the defaults; each value says where it came from.

use super::{TRAINING, pairs, with_flags};
use crate::{
    Backend, DefaultValue, Group, Inputs, KEYS, Kind, Precision, ReshardAfterForward, Section, flag_names, key,
    nearest, resolve,
};

fn file(accelerate: &str, more: &str) -> String {
    format!("{accelerate}{TRAINING}{more}")
}

#[test]
fn the_highest_place_wins_and_is_remembered() {
    let text = file("", "  learning_rate: 1e-3\n");
    let set = ["learning_rate=2e-3"];
    let dotted = ["training.learning_rate=2e-3"];
    let flag = [("learning-rate", "3e-3")];
    let none: [(&str, &str); 0] = [];
    let table = [
        (TRAINING, &none[..], &[][..], 2e-5, "default"),
        (&text, &none, &[], 1e-3, "job.yaml:5"),
        (&text, &none, &set, 2e-3, "--set learning_rate"),
        (&text, &none, &dotted, 2e-3, "--set training.learning_rate"),
        (&text, &flag, &set, 3e-3, "flag --learning-rate"),
        (&text, &[("learning_rate", "null")], &[], 2e-5, "default"),
        (&text, &[("learning_rate", "4"), ("learning_rate", "5")], &[], 5.0, "flag --learning_rate"),
    ];
    for (text, flags, set, value, place) in table {
        let job = with_flags(text, flags, set).unwrap();
        assert_eq!((job.training.learning_rate, job.provenance["learning_rate"].as_str()), (value, place));
    }
}

#[test]
fn every_decision_has_a_place() {
    let job = with_flags(TRAINING, &[], &[]).unwrap();
    let fields = serde_json::to_value(&job).unwrap();
    // Whether a model is exported, and from which checkpoint its weights come, is the command's to say.
    let parts =
        ["training", "sharding", "sharding_as_written", "provenance", "notes", "export_model", "initial_checkpoint"];
    let decided = fields.as_object().unwrap().keys().filter(|key| !parts.contains(&key.as_str()));
    let inside = |part: &str| fields[part].as_object().unwrap().keys();
    for key in decided.chain(inside("training")).chain(inside("sharding")) {
        assert!(job.provenance.contains_key(key), "{key}");
    }
    assert_eq!(job.provenance["dataset"], "job.yaml:3");
}

#[test]
fn nproc_goes_before_the_file_without_a_conflict() {
    let text = file("distributed_type: MULTI_CPU\nnum_processes: 8\n", "");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("job.yaml");
    std::fs::write(&path, text).unwrap();
    let inputs = Inputs { config: Some(path.display().to_string()), nproc: Some(3), ..Inputs::default() };
    let job = resolve(&inputs).unwrap();
    assert_eq!((job.num_processes, job.provenance["num_processes"].as_str()), (3, "flag --nproc"));
    let job = resolve(&Inputs { nproc: None, ..inputs.clone() }).unwrap();
    assert_eq!(job.num_processes, 8);
    let both = Inputs { flags: pairs(&[("num_processes", "2")]), ..inputs.clone() };
    let error = resolve(&both).unwrap_err().to_string();
    assert!(error.contains("flag --nproc") && error.contains("flag --num_processes"), "{error}");
    let zero = resolve(&Inputs { nproc: Some(0), ..inputs }).unwrap_err().to_string();
    assert!(zero.contains("flag --nproc: num_processes is 0") && zero.contains("1 or more"), "{zero}");
}

#[test]
fn the_number_of_processes_follows_the_devices_when_nobody_sets_it() {
    let flags = pairs(&[("model_name_or_path", "m"), ("dataset", "d"), ("output_dir", "o")]);
    for (devices, expected) in [(0, 1), (4, 4)] {
        let job = resolve(&Inputs { flags: flags.clone(), devices, ..Inputs::default() }).unwrap();
        assert_eq!(job.num_processes, expected);
    }
    let unset = with_flags(&file("distributed_type: MULTI_CPU\nnum_processes: -1\n", ""), &[], &[]).unwrap();
    assert_eq!(unset.num_processes, 1);
    let one = with_flags(&file("distributed_type: 'NO'\n", ""), &[("num_processes", "2")], &[]).unwrap();
    assert_eq!((one.num_processes, one.backend), (2, Backend::Shm), "a flag goes before the file's NO");
}

#[test]
fn another_key_for_the_same_thing_overrides_from_a_higher_place() {
    let text = file(
        "distributed_type: DEEPSPEED\nmixed_precision: bf16\ndeepspeed_config:\n  zero_stage: 3\n  gradient_clipping: 0.5\n",
        "  warmup_ratio: 0.1\n",
    );
    let job = with_flags(&text, &[], &[]).unwrap();
    assert_eq!((job.max_grad_norm, job.provenance["max_grad_norm"].as_str()), (0.5, "job.yaml:5"));
    assert_eq!(job.provenance["stage"], "job.yaml:4");
    let flags = [("bf16", "false"), ("max_grad_norm", "2"), ("zero_stage", "1"), ("warmup_steps", "3")];
    let job = with_flags(&text, &flags, &[]).unwrap();
    assert_eq!((job.mixed_precision, job.max_grad_norm, job.sharding.stage.number()), (Precision::No, 2.0, 1));
    assert_eq!(job.provenance["mixed_precision"], "flag --bf16");
    assert_eq!(job.training.warmup_steps_of(100), 3);
    let job = with_flags(&text, &[("warmup_ratio", "0.2")], &["warmup_steps=3"]).unwrap();
    assert_eq!(job.training.warmup_steps_of(100), 20);
}

#[test]
fn auto_is_what_the_training_section_says() {
    let text = file(
        "distributed_type: DEEPSPEED\ndeepspeed_config:\n  gradient_accumulation_steps: auto\n  gradient_clipping: auto\n",
        "  gradient_accumulation_steps: 4\n",
    );
    let job = with_flags(&text, &[], &[]).unwrap();
    assert_eq!((job.gradient_accumulation_steps, job.max_grad_norm), (4, 1.0));
    assert_eq!(job.provenance["gradient_accumulation_steps"], "job.yaml:9");
    assert_eq!(job.global_batch(), 32);
}

#[test]
fn a_stage_by_flag_needs_no_file_and_overrides_one() {
    let required = [("model_name_or_path", "m"), ("dataset", "d"), ("output_dir", "o"), ("zero_stage", "3")];
    let job = resolve(&Inputs { flags: pairs(&required), ..Inputs::default() }).unwrap();
    assert_eq!((job.sharding.stage.number(), job.provenance["stage"].as_str()), (3, "flag --zero_stage"));
    let fsdp = file("distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\n", "");
    assert_eq!(with_flags(&fsdp, &[("zero_stage", "1")], &[]).unwrap().sharding.stage.number(), 1);
    let job = with_flags(&fsdp, &[("distributed_type", "MULTI_CPU")], &[]).unwrap();
    assert_eq!(job.sharding.stage.number(), 0);
    assert!(job.notes[0].contains("fsdp_version: 2 (job.yaml:3) has no effect"), "{:?}", job.notes);
    let job = with_flags(&fsdp, &[], &["fsdp_config.reshard_after_forward=false"]).unwrap();
    assert_eq!(job.sharding.reshard_after_forward, ReshardAfterForward::Always(false));
}

#[test]
fn the_registry_is_sound() {
    for known in KEYS {
        assert_eq!(KEYS.iter().filter(|other| other.name == known.name).count(), 1, "{} is declared once", known.name);
        assert!(!known.help.is_empty() && !known.help.contains('\n') && known.help.len() <= 90, "{}", known.help);
        assert!(Group::ALL.contains(&known.group));
        if let (DefaultValue::Text(text), Kind::Choice(names)) = (known.default, known.kind) {
            assert!(names.contains(&text), "{}", known.name);
        }
        if let DefaultValue::SameAs(other) = known.default {
            assert!(key(other).is_some_and(|other| matches!(other.default, DefaultValue::Text(_))), "{}", known.name);
        }
    }
    let learning_rate = key("learning-rate").unwrap();
    assert_eq!((learning_rate.section, learning_rate.default.to_string()), (Section::Training, "2e-5".to_owned()));
    for (section, table) in crate::known::TABLES {
        for known in *table {
            let twins = table.iter().filter(|other| other.name == known.name).count();
            let declared = KEYS.iter().any(|key| key.section == *section && key.name == known.name);
            assert!(twins == 1 && !declared, "{} is declared once", known.name);
        }
    }
    let names = flag_names();
    assert!(
        names.contains(&"fsdp_sharding_strategy") && names.contains(&"packing") && !names.contains(&"dynamo_config")
    );
    assert_eq!(names.len(), names.iter().collect::<std::collections::HashSet<_>>().len());
}

#[test]
fn nearest_names() {
    let names = ["learning_rate", "lr_scheduler_type", "eval_steps", "save_steps", "seed"];
    for (written, expected) in [
        ("learning_rte", Some("learning_rate")),
        ("Learning-Rate", Some("learning_rate")),
        ("eval_step", Some("eval_steps")),
        ("sead", Some("seed")),
        ("completely_else", None),
        ("", None),
    ] {
        assert_eq!(nearest(written, names), expected, "{written}");
    }
}
