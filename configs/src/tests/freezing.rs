//! What is trained, at which rate and from when.

use super::{TRAINING, resolved, says, with_flags};
use crate::{Freeze, GroupRules, Strategy, Training, UnfreezingStart};

fn training(lines: &str) -> Training {
    resolved("", lines).unwrap_or_else(|error| panic!("{lines}{error}")).training
}

/// What was read says again what was written.
fn again(training: &Training) -> Training {
    serde_yaml::from_str(&serde_yaml::to_string(training).unwrap()).unwrap()
}

#[test]
fn patterns_come_as_a_list_or_with_commas() {
    let list = training("  freeze: [model.embed_tokens.*, 'model.layers.0.*']\n");
    let Some(Freeze::Named(patterns)) = &list.freeze else { panic!("{:?}", list.freeze) };
    assert!(patterns.any("model.layers.0.mlp.up_proj.weight") && patterns.any("model.embed_tokens.weight"));
    assert!(!patterns.any("model.layers.10.mlp.up_proj.weight"));
    assert_eq!(patterns.unused(&["model.embed_tokens.weight"]), Some("model.layers.0.*"));
    let flag = with_flags(TRAINING, &[("freeze", "model.embed_tokens.*, model.layers.0.*")], &[]).unwrap();
    assert_eq!(flag.training, list);
    let as_list = with_flags(TRAINING, &[("freeze", "[model.embed_tokens.*, 'model.layers.0.*']")], &[]).unwrap();
    assert_eq!(as_list.training.freeze, flag.training.freeze);
    let bracket = with_flags(TRAINING, &[("freeze", "[ab]*.weight, model.*")], &[]).unwrap().training.freeze;
    assert!(matches!(bracket, Some(Freeze::Named(patterns)) if patterns.any("b.weight") && patterns.any("model.x")));
    assert_eq!(training("  freeze: all_but_head\n").freeze, Some(Freeze::AllButHead));
    assert_eq!(training("  freeze: none\n").freeze, None);
    for training in [list, training("  freeze: all_but_head\n"), training("")] {
        assert_eq!(again(&training), training);
    }
}

#[test]
fn groups_come_as_a_list_or_as_text() {
    let lines = "  parameter_groups:\n  - {pattern: lm_head.*, learning_rate: '1e-3', weight_decay: 0}\n  - patterns: [a, b]\n    freeze: yes\n";
    let file = training(lines);
    let text = "[{pattern: lm_head.*, learning_rate: 1e-3, weight_decay: 0}, {\"patterns\": [\"a\", \"b\"], \"freeze\": true}]";
    let flag = with_flags(TRAINING, &[("parameter_groups", text)], &[]).unwrap().training;
    assert_eq!(flag.parameter_groups, file.parameter_groups);
    let rules = file.parameter_groups.as_ref().map(GroupRules::rules).unwrap();
    assert_eq!((rules[0].learning_rate, rules[0].weight_decay, rules[0].freeze), (Some(1e-3), Some(0.0), false));
    assert!(rules[1].freeze && rules[1].patterns.any("b"));
    assert_eq!(again(&file), file);
}

#[test]
fn what_is_wrong_with_a_group_is_told() {
    for (groups, part) in [
        ("[{learning_rate: 1}]", "group 1 has no pattern"),
        ("[{pattern: a, freeze: true}, {pattern: b}]", "group 2 says nothing of its parameters"),
        ("[{pattern: a, learning_rate: 1, learning_rate_factor: 1}]", "keep one"),
        ("[{pattern: a, freeze: true, weight_decay: 1}]", "is frozen"),
        ("[{pattern: a, learning_rat: 1}]", "did you mean learning_rate?"),
        ("[{pattern: a, learning_rate: -1}]", "learning_rate of group 1 is -1: it must be a number, 0 or more"),
        ("[{pattern: a, freeze: maybe}]", "true or false"),
        ("[{pattern: '***', freeze: true}]", "is no pattern"),
        ("[7]", "group 1 is 7"),
        ("{pattern: a}", "it must be a list of groups"),
        ("[]", "it must be a list of groups"),
    ] {
        let message = resolved("", &format!("  parameter_groups: {groups}\n")).unwrap_err();
        says(&message, &["job.yaml:5", "parameter_groups", part]);
    }
    for (freeze, part) in
        [("al_but_head", "did you mean all_but_head?"), ("'a,,b'", "a pattern is empty"), ("[[a]]", "no pattern")]
    {
        says(&resolved("", &format!("  freeze: {freeze}\n")).unwrap_err(), &["job.yaml:5", part]);
    }
}

#[test]
fn openings_come_by_epoch_or_by_steps() {
    let openings = |lines: &str| {
        let training = training(lines);
        [(0, 0), (0, 9), (1, 10), (3, 35)].map(|(epoch, steps)| training.openings(epoch, steps))
    };
    assert_eq!(openings(""), [0; 4]);
    assert_eq!(openings("  gradual_unfreezing: epoch\n"), [0, 0, 1, 3]);
    assert_eq!(openings("  gradual_unfreezing: steps\n  gradual_unfreezing_steps: 5\n"), [0, 1, 2, 7]);
    let of = training("  gradual_unfreezing: epoch\n  gradual_unfreezing_start: head\n");
    assert_eq!((of.gradual_unfreezing, of.gradual_unfreezing_start), (Strategy::Epoch, UnfreezingStart::Head));
}

#[test]
fn what_does_not_go_together_is_told() {
    for (lines, parts) in [
        ("  gradual_unfreezing: steps\n", ["gradual_unfreezing_steps", "the steps between two openings"]),
        ("  gradual_unfreezing: epoch\n  freeze: all_but_head\n", ["disagree", "begins with the head by itself"]),
        ("  layer_wise_learning_rate_decay: 0\n", ["more than 0", "freeze says that"]),
        ("  layer_wise_learning_rate_decay: 1.1\n", ["is 1.1", "from 0 to 1"]),
        ("  l2_toward_pretrained: -1\n", ["is -1", "0 or more"]),
        ("  mixout_probability: 1\n", ["is 1", "mixout_probability"]),
        ("  ewc_lambda: 5\n", ["not set: ewc_dataset", "pass --ewc_dataset PATH"]),
        ("  ewc_lambda: 5\n  ewc_dataset: [{path: a, weight: 1}]\n", ["ewc_dataset", "leave out the weights"]),
        ("  ewc_lambda: 5\n  ewc_dataset: a\n  ewc_samples: 0\n", ["ewc_samples", "1 or more"]),
        (
            "  learning_rate: 0\n  parameter_groups: [{pattern: a, learning_rate: 1}]\n",
            ["learning_rate is 0", "highest"],
        ),
    ] {
        says(&resolved("", lines).unwrap_err(), &parts);
    }
    for (lines, key) in [
        ("  gradual_unfreezing_steps: 5\n", "gradual_unfreezing_steps"),
        ("  gradual_unfreezing: epoch\n  gradual_unfreezing_steps: 5\n", "gradual_unfreezing_steps"),
        ("  gradual_unfreezing_start: head\n", "gradual_unfreezing_start"),
        ("  gradual_unfreezing_embeddings: true\n", "gradual_unfreezing_embeddings"),
        ("  ewc_dataset: a\n", "ewc_dataset"),
        ("  ewc_lambda: 0\n  ewc_samples: 7\n", "ewc_samples"),
    ] {
        let notes = resolved("", lines).unwrap().notes;
        assert!(notes.len() == 1 && notes[0].contains(key) && notes[0].contains("no effect"), "{lines}{notes:?}");
    }
}
