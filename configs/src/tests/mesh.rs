//! Copies of what is sharded, and the groups inside a copy.

use super::{TRAINING, resolved, says, with_flags};
use crate::{ReshardAfterForward, Resolved, Stage};

/// A file of `kind` over 8 processes with these entries in `fsdp_config` and `parallelism_config`.
fn file(kind: &str, fsdp: &str, parallelism: &str) -> String {
    let section = |name: &str, entries: &str| match entries {
        "" => String::new(),
        entries => format!("{name}: {{{entries}}}\n"),
    };
    let (fsdp, parallelism) = (section("fsdp_config", fsdp), section("parallelism_config", parallelism));
    format!("distributed_type: {kind}\nnum_processes: 8\n{fsdp}{parallelism}")
}

fn job(fsdp: &str, parallelism: &str) -> Resolved {
    let text = file("FSDP", fsdp, parallelism);
    resolved(&text, "").unwrap_or_else(|error| panic!("{text}{error}"))
}

fn refusal(text: &str) -> String {
    match resolved(text, "") {
        Ok(job) => panic!("{text}is {:?}", job.sharding),
        Err(message) => message,
    }
}

#[test]
fn copies_come_from_the_parallelism_section() {
    let table = [
        ("", "", 1),
        ("", "dp_replicate_size: 1, dp_shard_size: 1", 1),
        ("", "dp_replicate_size: 1, dp_shard_size: 8", 1),
        ("", "dp_shard_size: 8", 1),
        ("", "dp_replicate_size: 2", 2),
        ("", "dp_replicate_size: 2, dp_shard_size: 1", 2),
        ("", "dp_replicate_size: '2', dp_shard_size: 4", 2),
        ("fsdp_version: 2", "parallelism_config_dp_replicate_size: 4, parallelism_config_dp_shard_size: 2", 4),
        ("fsdp_version: 2, fsdp_reshard_after_forward: false", "dp_replicate_size: 2", 2),
        ("fsdp_version: 2, fsdp_sharding_strategy: FULL_SHARD", "dp_replicate_size: 2", 2),
        ("fsdp_sharding_strategy: HYBRID_SHARD", "dp_replicate_size: 2", 2),
        ("fsdp_sharding_strategy: HYBRID_SHARD_ZERO2", "dp_replicate_size: 4, dp_shard_size: 2", 4),
    ];
    for (fsdp, parallelism, copies) in table {
        let job = job(fsdp, parallelism);
        assert_eq!((job.sharding.replicas, job.sharding.stage), (copies, Stage::Three), "{fsdp} {parallelism}");
        assert!(job.notes.is_empty(), "{:?}", job.notes);
        let line = if fsdp.is_empty() { "job.yaml:3" } else { "job.yaml:4" };
        assert_eq!(job.provenance["replicas"], if copies > 1 { line } else { "default" });
    }
    let zero2 = job("fsdp_sharding_strategy: HYBRID_SHARD_ZERO2", "dp_replicate_size: 2").sharding;
    assert_eq!(zero2.reshard_after_forward, ReshardAfterForward::Always(false));
}

#[test]
fn hybrid_on_one_machine_is_one_copy_and_says_so() {
    for (name, one) in [("HYBRID_SHARD", "FULL_SHARD"), ("HYBRID_SHARD_ZERO2", "SHARD_GRAD_OP")] {
        for parallelism in ["", "dp_shard_size: 8"] {
            let job = job(&format!("fsdp_sharding_strategy: {name}"), parallelism);
            assert_eq!((job.sharding.replicas, job.sharding.stage), (1, Stage::Three));
            let note = format!(
                "fsdp_config.fsdp_sharding_strategy: {name} (job.yaml:3) is {one} on one machine: one copy, sharded over \
                 all 8 processes; set parallelism_config_dp_replicate_size to have more copies"
            );
            assert_eq!(job.notes, [note]);
        }
    }
}

#[test]
fn the_equation_is_shown_with_its_values() {
    let refused = |parallelism: &str| refusal(&file("FSDP", "fsdp_version: 2", parallelism));
    let message = refused("dp_replicate_size: 2, dp_shard_size: 3");
    let expected = "job.yaml:4:41: parallelism_config.parallelism_config_dp_replicate_size is 2, which is not allowed: \
        dp_replicate_size × dp_shard_size must be num_processes, but 2 × 3 = 6, and num_processes is 8 (job.yaml:2)\nhint: parallelism_config_dp_shard_size may be left out: it follows from the other two";
    assert_eq!(message, expected);
    says(
        &refused("dp_replicate_size: 3"),
        &["but 3 does not divide 8, and num_processes is 8", "hint: use a number that divides 8"],
    );
    says(
        &refused("dp_shard_size: 4"),
        &["dp_shard_size is 4", "1 × 4 = 4", "set parallelism_config_dp_replicate_size to 2"],
    );
    says(&refused("dp_replicate_size: 4294967295, dp_shard_size: 4294967295"), &["= 18446744065119617025"]);
    says(&refused("dp_replicate_size: 0"), &["1 or more"]);
    says(&refused("dp_shard_size: -1"), &["1 or more"]);
    let text = file("FSDP", "", "dp_replicate_size: 2, dp_shard_size: 4") + TRAINING;
    let fewer = with_flags(&text, &[("num_processes", "2")], &[]).unwrap_err();
    says(&fewer, &["2 × 4 = 8, and num_processes is 2 (flag --num_processes)"]);
}

#[test]
fn as_many_copies_as_processes_are_plain_data_parallel() {
    for fsdp in ["", "fsdp_sharding_strategy: HYBRID_SHARD", "fsdp_version: 2, fsdp_reshard_after_forward: false"] {
        let job = job(fsdp, "dp_replicate_size: 8");
        assert_eq!(job.sharding, crate::Sharding::of(Stage::Zero), "{fsdp}");
        assert_eq!(job.notes.len(), 1, "{:?}", job.notes);
        says(
            &job.notes[0],
            &["dp_replicate_size: 8 (job.yaml:", "is one copy for each of the 8 processes: nothing is"],
        );
        assert!(job.provenance["stage"].starts_with("job.yaml:"));
        says(&job.sharding_as_written.unwrap(), &["parallelism_config_dp_replicate_size: 8"]);
    }
    let no_shard = job("fsdp_sharding_strategy: NO_SHARD", "dp_replicate_size: 8, dp_shard_size: 1");
    assert_eq!((no_shard.sharding.stage, no_shard.notes.len()), (Stage::Zero, 0));
    let multi = resolved(&file("MULTI_CPU", "", "dp_replicate_size: 8"), "").unwrap();
    assert_eq!((multi.sharding.stage, multi.sharding.replicas, multi.notes.len()), (Stage::Zero, 1, 0));
}

#[test]
fn copies_that_contradict_what_is_sharded_are_refused() {
    let table = [
        (
            file("FSDP", "fsdp_sharding_strategy: FULL_SHARD", "dp_replicate_size: 2"),
            "FULL_SHARD means one copy: write HYBRID_SHARD in its place, or remove parallelism_config_dp_replicate_size",
        ),
        (
            file("FSDP", "fsdp_reshard_after_forward: SHARD_GRAD_OP", "dp_replicate_size: 2"),
            "SHARD_GRAD_OP means one copy: write HYBRID_SHARD_ZERO2 in its place, or remove parallelism_config_dp_rep",
        ),
        (file("FSDP", "fsdp_sharding_strategy: NO_SHARD", "dp_replicate_size: 2"), "use HYBRID_SHARD"),
        (file("FSDP", "fsdp_sharding_strategy: FULL_SHARD", "dp_replicate_size: 8"), "leave nothing to shard"),
        (file("MULTI_CPU", "", "dp_replicate_size: 2"), "with distributed_type: FSDP"),
        (file("MULTI_CPU", "", "dp_shard_size: 8"), "with distributed_type: FSDP"),
        (file("DEEPSPEED", "", "dp_replicate_size: 2"), "with distributed_type: FSDP"),
        (file("DEEPSPEED", "", "dp_replicate_size: 8"), "with distributed_type: FSDP"),
    ];
    for (text, hint) in table {
        says(&refusal(&text), &["(job.yaml:", " disagree\nhint: ", hint]);
    }
    let accepted = file("DEEPSPEED", "", "dp_shard_size: 8");
    assert_eq!(resolved(&accepted, "").unwrap().sharding.replicas, 1);
}

#[test]
fn flags_lay_out_the_ranks_too() {
    let replicate = ("parallelism_config_dp_replicate_size", "2");
    let text = |kind: &str, more: &str| file(kind, "", "") + more + TRAINING;
    let zero3 = text("DEEPSPEED", "deepspeed_config: {zero_stage: 3}\n");
    let job = with_flags(&zero3, &[replicate], &[]).unwrap();
    assert_eq!((job.sharding.replicas, job.sharding.stage, job.notes.len()), (2, Stage::Three, 0));
    assert_eq!(job.provenance["replicas"], "flag --parallelism_config_dp_replicate_size");
    let short = with_flags(&zero3, &[("dp-replicate-size", "4")], &[]).unwrap();
    assert_eq!(short.sharding.replicas, 4);
    for stage in ["0", "1", "2"] {
        let error = with_flags(&zero3, &[replicate, ("zero_stage", stage)], &[]).unwrap_err();
        says(&error, &["(flag --zero_stage)", "copies need parameters that are sharded"]);
    }
    says(&with_flags(&text("MULTI_CPU", ""), &[replicate], &[]).unwrap_err(), &["MULTI_CPU", "zero_stage: 3"]);
    let bare = with_flags(TRAINING, &[replicate, ("num_processes", "4")], &[]).unwrap_err();
    let expected = "flag --parallelism_config_dp_replicate_size: \
        parallelism_config.parallelism_config_dp_replicate_size: 2 needs ZeRO stage 3, and no stage is set\nhint: copies need";
    says(&bare, &[expected, "zero_stage: 3"]);
    let full = file("FSDP", "fsdp_sharding_strategy: FULL_SHARD", "") + TRAINING;
    assert_eq!(with_flags(&full, &[replicate], &[]).unwrap().sharding.replicas, 2, "the flag is above FULL_SHARD");

    let hybrid = file("FSDP", "", "dp_replicate_size: 2") + TRAINING;
    for (flags, stage) in [
        (("fsdp_sharding_strategy", "FULL_SHARD"), 3),
        (("zero_stage", "2"), 2),
        (("zero_stage", "0"), 0),
        (("distributed_type", "MULTI_CPU"), 0),
    ] {
        let job = with_flags(&hybrid, &[flags], &[]).unwrap();
        assert_eq!((job.sharding.replicas, job.sharding.stage.number()), (1, stage), "{flags:?}");
        assert_eq!(job.notes.len(), 1, "{:?}", job.notes);
        says(&job.notes[0], &["dp_replicate_size: 2 (job.yaml:3) has no effect: ", flags.1]);
    }
    assert_eq!(with_flags(&hybrid, &[("zero_stage", "3")], &[]).unwrap().sharding.replicas, 2);
    let unsharded = with_flags(&text("MULTI_CPU", ""), &[("dp_shard_size", "8")], &[]).unwrap();
    says(&unsharded.notes[0], &["has no effect: nothing is sharded at stage 0"]);
}

#[test]
fn a_stage_by_flag_stands_over_every_strategy_of_a_file() {
    let files = [
        ("fsdp_sharding_strategy: FULL_SHARD", ""),
        ("fsdp_sharding_strategy: SHARD_GRAD_OP", ""),
        ("fsdp_sharding_strategy: NO_SHARD", ""),
        ("fsdp_sharding_strategy: HYBRID_SHARD", "dp_replicate_size: 2"),
        ("fsdp_version: 2, fsdp_reshard_after_forward: false", "dp_replicate_size: 2"),
        ("fsdp_version: 2, fsdp_reshard_after_forward: 4", ""),
    ];
    for (fsdp, parallelism) in files {
        let text = file("FSDP", fsdp, parallelism) + TRAINING;
        let as_written = with_flags(&text, &[], &[]).unwrap().sharding_as_written.unwrap();
        assert!(fsdp.ends_with(as_written.strip_prefix("fsdp_config.").unwrap()), "{as_written}");
        for stage in 0..4 {
            let flags = [("zero_stage", stage.to_string())];
            let flags = flags.each_ref().map(|(name, value)| (*name, value.as_str()));
            let job = with_flags(&text, &flags, &[]).unwrap_or_else(|error| panic!("{text}{error}"));
            assert_eq!(job.sharding.stage.number(), stage, "{text}");
            assert_eq!(job.sharding.reshard_after_forward, ReshardAfterForward::Always(true), "{text}");
            assert_eq!(job.sharding_as_written, Some(format!("deepspeed_config.zero_stage: {stage}")));
        }
    }
    assert_eq!(with_flags(TRAINING, &[], &[]).unwrap().sharding_as_written, None);
}

#[test]
fn a_group_is_a_true_part_of_a_copy() {
    let with = |group: &str, parallelism: &str| {
        let fsdp = format!("fsdp_version: 2, fsdp_reshard_after_forward: {group}");
        resolved(&file("FSDP", &fsdp, parallelism), "").map(|job| job.sharding.reshard_after_forward)
    };
    for group in [2, 4] {
        assert_eq!(with(&group.to_string(), ""), Ok(ReshardAfterForward::Group(group)));
    }
    assert_eq!(with("2", "dp_replicate_size: 2"), Ok(ReshardAfterForward::Group(2)));
    let refused = [
        ("1", "", "divides the 8 ranks of one copy", "hint: a group of one rank keeps everything: that is false"),
        ("8", "", "more than 1 and less than 8", "that is true"),
        ("3", "", "divides the 8 ranks", "hint: it can be 2, 4"),
        ("0", "", "divides the 8 ranks", "hint: it can be 2, 4"),
        ("16", "", "divides the 8 ranks", "hint: it can be 2, 4"),
        ("4", "dp_replicate_size: 2", "the 4 ranks of one copy", "that is true"),
        ("4", "dp_replicate_size: 4", "the 2 ranks of one copy", "hint: no group lies between 1 and 2"),
    ];
    for (group, parallelism, allowed, hint) in refused {
        says(&with(group, parallelism).unwrap_err(), &["fsdp_reshard_after_forward is ", allowed, hint]);
    }
}
