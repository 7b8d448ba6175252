//! FSDP's words and DeepSpeed's: stages, resharding, units, prefetch, offloading.

use super::{TRAINING, resolved, says, with_flags};
use crate::{BackwardPrefetch, Inputs, Offload, ReshardAfterForward, Resolved, Sharding, Stage, UnitPolicy, resolve};
use ReshardAfterForward::{Always, Group};

/// A file of type FSDP over 8 processes with these entries in `fsdp_config`.
fn fsdp(entries: &str) -> String {
    format!("distributed_type: FSDP\nnum_processes: 8\nfsdp_config: {{{entries}}}\n")
}

fn deepspeed(entries: &str) -> String {
    format!("distributed_type: DEEPSPEED\nnum_processes: 8\ndeepspeed_config: {{{entries}}}\n")
}

fn job(text: &str) -> Resolved {
    resolved(text, "").unwrap_or_else(|error| panic!("{text}{error}"))
}

fn refusal(text: &str) -> String {
    match resolved(text, "") {
        Ok(job) => panic!("{text}is {:?}", job.sharding),
        Err(message) => message,
    }
}

#[test]
fn strategies_of_both_versions() {
    let table = [
        ("", 3, Always(true)),
        ("fsdp_version: 1", 3, Always(true)),
        ("fsdp_sharding_strategy: FULL_SHARD", 3, Always(true)),
        ("fsdp_sharding_strategy: 1", 3, Always(true)),
        // Not DeepSpeed's stage 2: parameters are shards between steps.
        ("fsdp_sharding_strategy: SHARD_GRAD_OP", 3, Always(false)),
        ("fsdp_sharding_strategy: '2'", 3, Always(false)),
        ("sharding_strategy: Shard_Grad_Op", 3, Always(false)),
        ("fsdp_sharding_strategy: NO_SHARD", 0, Always(true)),
        ("fsdp_sharding_strategy: 3", 0, Always(true)),
        ("fsdp_sharding_strategy: hybrid_shard", 3, Always(true)),
        ("fsdp_sharding_strategy: 4", 3, Always(true)),
        ("fsdp_sharding_strategy: HYBRID_SHARD_ZERO2", 3, Always(false)),
        ("fsdp_sharding_strategy: 5", 3, Always(false)),
        // The key that Accelerate's wizard writes for version 1 counts, though Accelerate itself goes past it.
        ("fsdp_reshard_after_forward: SHARD_GRAD_OP", 3, Always(false)),
        ("fsdp_version: 1, fsdp_reshard_after_forward: HYBRID_SHARD_ZERO2", 3, Always(false)),
        ("fsdp_sharding_strategy: NO_SHARD, fsdp_reshard_after_forward: NO_SHARD", 0, Always(true)),
        ("fsdp_version: 2", 3, Always(true)),
        ("fsdp_version: 2, fsdp_reshard_after_forward: true", 3, Always(true)),
        ("fsdp_version: '2', fsdp_reshard_after_forward: 'false'", 3, Always(false)),
        ("fsdp_version: 2, fsdp_reshard_after_forward: 4", 3, Group(4)),
        ("fsdp_version: 2, fsdp_reshard_after_forward: '2'", 3, Group(2)),
        ("fsdp_version: 2, fsdp_reshard_after_forward: 2, fsdp_sharding_strategy: FULL_SHARD", 3, Group(2)),
        ("fsdp_version: 2, fsdp_reshard_after_forward: true, fsdp_sharding_strategy: FULL_SHARD", 3, Always(true)),
        ("fsdp_version: 2, fsdp_reshard_after_forward: no, fsdp_sharding_strategy: SHARD_GRAD_OP", 3, Always(false)),
        ("fsdp_version: 2, fsdp_sharding_strategy: FULL_SHARD", 3, Always(true)),
        // true and false are version 2's, whether it says so or not.
        ("fsdp_reshard_after_forward: false", 3, Always(false)),
    ];
    for (entries, stage, reshard) in table {
        let sharding = job(&fsdp(entries)).sharding;
        let expected = Sharding { reshard_after_forward: reshard, ..Sharding::of(Stage::try_from(stage).unwrap()) };
        assert_eq!(sharding, expected, "{entries}");
    }
    for stage in 0..4 {
        let sharding = job(&deepspeed(&format!("zero_stage: {stage}"))).sharding;
        assert_eq!(sharding, Sharding::of(Stage::try_from(stage).unwrap()));
    }
    let notes = job(&fsdp("fsdp_sharding_strategy: SHARD_GRAD_OP")).notes;
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn strategies_that_cannot_be_say_why() {
    let table: [(&str, &[&str]); 12] = [
        ("fsdp_sharding_strategy: FUL_SHARD", &["is FUL_SHARD", "one of FULL_SHARD, ", "did you mean FULL_SHARD?"]),
        ("fsdp_sharding_strategy: 6", &["is 6", "HYBRID_SHARD_ZERO2"]),
        ("fsdp_sharding_strategy: true", &["is true"]),
        ("fsdp_version: 3", &["it must be 1 or 2"]),
        // A number could be a strategy of version 1 or a group of version 2.
        (
            "fsdp_reshard_after_forward: 2",
            &["with fsdp_version: 1 it must be one of FULL_SHARD", "fsdp_version: 2 takes true or false, or the size"],
        ),
        ("fsdp_version: 1, fsdp_reshard_after_forward: true", &["hint: fsdp_version: 2 takes true or false"]),
        (
            "fsdp_version: 2, fsdp_reshard_after_forward: FULL_SHARD",
            &["true, false, or the size", "FULL_SHARD is true"],
        ),
        ("fsdp_version: 2, fsdp_reshard_after_forward: 1.5", &["true, false, or the size"]),
        ("fsdp_version: 2, fsdp_sharding_strategy: SHARD_GRAD_OP", &["no meaning", "fsdp_reshard_after_forward alone"]),
        (
            "fsdp_version: 2, fsdp_reshard_after_forward: true, fsdp_sharding_strategy: SHARD_GRAD_OP",
            &["fsdp_sharding_strategy: SHARD_GRAD_OP (job.yaml:3:90) and", "disagree", "after_forward alone"],
        ),
        ("fsdp_version: 2, fsdp_reshard_after_forward: 4, fsdp_sharding_strategy: NO_SHARD", &["disagree"]),
        ("fsdp_sharding_strategy: FULL_SHARD, fsdp_reshard_after_forward: HYBRID_SHARD", &["disagree"]),
    ];
    for (entries, parts) in table {
        says(&refusal(&fsdp(entries)), parts);
    }
}

#[test]
fn a_higher_place_decides_what_is_sharded() {
    let zero3 = |flags: &[(&str, &str)]| with_flags(&format!("{}{TRAINING}", deepspeed("zero_stage: 3")), flags, &[]);
    let kept = zero3(&[("fsdp_reshard_after_forward", "false")]).unwrap();
    assert_eq!((kept.sharding.stage, kept.sharding.reshard_after_forward), (Stage::Three, Always(false)));
    assert_eq!(kept.provenance["stage"], "flag --fsdp_reshard_after_forward");
    assert_eq!(kept.provenance["reshard_after_forward"], "flag --fsdp_reshard_after_forward");
    let group = zero3(&[("fsdp_version", "2"), ("fsdp_reshard_after_forward", "2")]).unwrap();
    assert_eq!(group.sharding.reshard_after_forward, Group(2));
    let both = zero3(&[("zero_stage", "3"), ("fsdp_sharding_strategy", "SHARD_GRAD_OP")]).unwrap();
    assert_eq!(both.sharding.reshard_after_forward, Always(false));
    let error = zero3(&[("zero_stage", "2"), ("fsdp_sharding_strategy", "SHARD_GRAD_OP")]).unwrap_err();
    says(&error, &["(flag --zero_stage)", "(flag --fsdp_sharding_strategy)", "fsdp_sharding_strategy is ZeRO stage 3"]);
    let units = zero3(&[("fsdp_auto_wrap_policy", "no_wrap"), ("fsdp_backward_prefetch", "2")]).unwrap();
    assert_eq!((units.sharding.units, units.sharding.stage), (UnitPolicy::Whole, Stage::Three));
    assert_eq!(units.sharding.backward_prefetch, BackwardPrefetch::Post);
    assert!(units.notes.is_empty(), "{:?}", units.notes);

    let file = format!("{}{TRAINING}", fsdp("fsdp_version: 2, fsdp_reshard_after_forward: false"));
    let stage = with_flags(&file, &[("zero_stage", "3")], &[]).unwrap();
    assert_eq!(stage.sharding, Sharding::of(Stage::Three), "zero_stage decides alone");
    assert_eq!(stage.provenance["reshard_after_forward"], "default");
    says(&with_flags(&file, &[("fsdp_sharding_strategy", "FULL_SHARD")], &[]).unwrap_err(), &["disagree"]);
    let older = format!("{}{TRAINING}", fsdp("fsdp_version: 2, fsdp_sharding_strategy: SHARD_GRAD_OP"));
    let newer = with_flags(&older, &[("fsdp_reshard_after_forward", "true")], &[]).unwrap();
    assert_eq!(newer.sharding.reshard_after_forward, Always(true), "a leftover in a lower place says nothing");

    // Without distributed_type, flags of either kind count.
    let strategy = with_flags(TRAINING, &[("fsdp_sharding_strategy", "SHARD_GRAD_OP")], &[]).unwrap();
    assert_eq!((strategy.sharding.stage, strategy.sharding.reshard_after_forward), (Stage::Three, Always(false)));
    says(
        &refusal("fsdp_config: {fsdp_version: 2, fsdp_reshard_after_forward: true}\n"),
        &["not set: distributed_type"],
    );
    let ignored = with_flags(&file, &[("distributed_type", "DEEPSPEED")], &[]).unwrap();
    assert_eq!(ignored.sharding, Sharding::of(Stage::Two));
    assert!(ignored.notes.iter().any(|note| note.contains("has no effect: distributed_type: DEEPSPEED")));
}

#[test]
fn units_follow_the_policy_and_the_classes() {
    use UnitPolicy::{BlockHalves, Blocks, MinParameters, Whole};
    let classes = "fsdp_transformer_layer_cls_to_wrap";
    let llama = ["LlamaDecoderLayer"];
    let halves = ["LlamaMLP", "LlamaAttention"];
    let none: [&str; 0] = [];
    let table: [(String, UnitPolicy, &[&str]); 17] = [
        (String::new(), Blocks, &none),
        ("fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP".into(), Blocks, &none),
        ("auto_wrap_policy: transformer_based_wrap, transformer_layer_cls_to_wrap: ''".into(), Blocks, &none),
        (format!("{classes}: LlamaDecoderLayer"), Blocks, &llama),
        (format!("{classes}: [LlamaDecoderLayer]"), Blocks, &llama),
        (format!("{classes}: ' LlamaMLP, LlamaAttention '"), BlockHalves, &halves),
        (format!("{classes}: [LlamaMLP, LlamaAttention]"), BlockHalves, &halves),
        (
            format!("{classes}: 'MistralDecoderLayer,MistralAttention,MistralMLP'"),
            BlockHalves,
            &["MistralDecoderLayer", "MistralAttention", "MistralMLP"],
        ),
        (format!("{classes}: []"), Blocks, &none),
        ("fsdp_auto_wrap_policy: SIZE_BASED_WRAP".into(), MinParameters(100_000_000), &none),
        ("fsdp_auto_wrap_policy: SIZE_BASED_WRAP, fsdp_min_num_params: 1e8".into(), MinParameters(100_000_000), &none),
        ("fsdp_auto_wrap_policy: size_based_wrap, fsdp_min_num_params: '2e3'".into(), MinParameters(2000), &none),
        ("fsdp_auto_wrap_policy: SIZE_BASED_WRAP, min_num_params: 12345".into(), MinParameters(12345), &none),
        ("fsdp_auto_wrap_policy: SIZE_BASED_WRAP, fsdp_min_num_params: 0".into(), Whole, &none),
        ("fsdp_auto_wrap_policy: NO_WRAP".into(), Whole, &none),
        (format!("fsdp_auto_wrap_policy: NO_WRAP, {classes}: LlamaDecoderLayer"), Whole, &none),
        ("fsdp_min_num_params: 5".into(), Blocks, &none),
    ];
    for (entries, units, names) in &table {
        let job = job(&fsdp(entries));
        assert_eq!(job.sharding.units, *units, "{entries}");
        assert_eq!(job.layer_classes, *names, "{entries}");
    }
    assert_eq!(job(&deepspeed("zero_stage: 3")).sharding.units, Blocks);
    let places = |entries: &str| {
        let job = job(&format!("distributed_type: FSDP\nfsdp_config:\n{entries}"));
        (job.provenance["units"].clone(), job.provenance["layer_classes"].clone())
    };
    let policy = "  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n";
    assert_eq!(places(policy), ("job.yaml:3".into(), "default".into()));
    let named = format!("{policy}  {classes}: LlamaDecoderLayer\n");
    assert_eq!(places(&named), ("job.yaml:4".into(), "job.yaml:4".into()));
    assert_eq!(places("  fsdp_auto_wrap_policy: NO_WRAP\n"), ("job.yaml:3".into(), "default".into()));
}

#[test]
fn units_that_cannot_be_say_why_and_keys_of_another_policy_are_told() {
    let classes = |names: &str| refusal(&fsdp(&format!("fsdp_transformer_layer_cls_to_wrap: {names}")));
    let hint =
        "hint: name the model's class of layers (LlamaDecoderLayer, GPT2Block), or of attention and MLP together";
    says(&classes("LlamaAttention"), &["the attention is a unit of its own only where the MLP is one too", hint]);
    says(&classes("'LlamaDecoderLayer,LlamaMLP'"), &["the MLP is a unit of its own only where the attention", hint]);
    says(&classes("'LlamaDecoderLayer,LlamaRMSNorm'"), &["LlamaRMSNorm is neither", hint]);
    says(&classes("llamadecoderlayer"), &["llamadecoderlayer is neither", hint]);
    says(&classes("Embedding"), &["Embedding is neither", hint]);
    says(&classes("'LlamaMLP,,LlamaAttention'"), &["names of classes with commas", hint]);
    says(&classes("5"), &["names of classes with commas", hint]);
    says(&classes("[[LlamaMLP]]"), &["names of classes with commas", hint]);
    says(&refusal(&fsdp("fsdp_auto_wrap_policy: SIZE_BASED")), &["one of TRANSFORMER_BASED_WRAP, SIZE_BASED_WRAP"]);
    let least = |value: &str| refusal(&fsdp(&format!("auto_wrap_policy: SIZE_BASED_WRAP, min_num_params: {value}")));
    says(&least("-1"), &["fsdp_min_num_params is -1", "0 or more"]);
    says(&least("many"), &["a whole number, 0 or more"]);

    let notes = |entries: &str| job(&fsdp(entries)).notes;
    let table = [
        (
            "fsdp_auto_wrap_policy: SIZE_BASED_WRAP, fsdp_min_num_params: 0",
            "fsdp_config.fsdp_min_num_params: 0 (job.yaml:3) makes one unit of the whole model",
        ),
        (
            "fsdp_auto_wrap_policy: NO_WRAP, fsdp_transformer_layer_cls_to_wrap: X",
            "fsdp_config.fsdp_transformer_layer_cls_to_wrap: X (job.yaml:3) has no effect: \
             fsdp_config.fsdp_auto_wrap_policy: NO_WRAP (job.yaml:3)",
        ),
        (
            "fsdp_min_num_params: 5",
            "fsdp_config.fsdp_min_num_params: 5 (job.yaml:3) has no effect: it is for fsdp_auto_wrap_policy: \
             SIZE_BASED_WRAP",
        ),
    ];
    for (entries, note) in table {
        assert_eq!(notes(entries), [note]);
    }
    assert!(notes("fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP, fsdp_min_num_params: 0").is_empty());
}

#[test]
fn prefetch_has_two_names_and_one_meaning() {
    use BackwardPrefetch::{None, Post, Pre};
    let table = [
        ("", Pre),
        ("fsdp_backward_prefetch: BACKWARD_PRE", Pre),
        ("fsdp_backward_prefetch: 1", Pre),
        ("backward_prefetch: backward_post", Post),
        ("fsdp_backward_prefetch: '2'", Post),
        ("fsdp_backward_prefetch: NO_PREFETCH", None),
        ("fsdp_backward_prefetch_policy: BACKWARD_POST", Post),
        ("fsdp_backward_prefetch: 2, fsdp_backward_prefetch_policy: BACKWARD_POST", Post),
        ("fsdp_backward_prefetch: null", Pre),
        ("fsdp_version: 2, fsdp_backward_prefetch: BACKWARD_PRE", Pre),
    ];
    for (entries, prefetch) in table {
        let job = job(&fsdp(entries));
        assert_eq!(job.sharding.backward_prefetch, prefetch, "{entries}");
        assert!(job.notes.is_empty(), "{entries}: {:?}", job.notes);
    }
    let other = job(&fsdp("fsdp_version: 2, fsdp_backward_prefetch: NO_PREFETCH"));
    assert_eq!((other.sharding.backward_prefetch, other.notes.len()), (Pre, 1));
    says(&other.notes[0], &["NO_PREFETCH (job.yaml:3) has no effect: with fsdp_version: 2", "(BACKWARD_PRE)"]);
    assert_eq!(other.provenance["backward_prefetch"], "default");
    let two = "fsdp_backward_prefetch: BACKWARD_PRE, fsdp_backward_prefetch_policy: NO_PREFETCH";
    says(&refusal(&fsdp(two)), &["fsdp_backward_prefetch: BACKWARD_PRE", "_policy: NO_PREFETCH", "disagree"]);
    says(&refusal(&fsdp("fsdp_backward_prefetch: 3")), &["one of BACKWARD_PRE, BACKWARD_POST, NO_PREFETCH"]);
    for value in ["true", "false"] {
        assert!(
            job(&fsdp(&format!("fsdp_forward_prefetch: {value}"))).notes.is_empty(),
            "forward gathers ahead anyway"
        );
    }
}

#[test]
fn optimizer_state_goes_into_files_where_it_is_sharded() {
    let nvme = "offload_optimizer_device: nvme, offload_optimizer_nvme_path: /mnt/fast";
    for stage in 1..4 {
        let job = job(&deepspeed(&format!("zero_stage: {stage}, {nvme}")));
        assert_eq!(job.offload_optimizer, Offload::Files("/mnt/fast".into()), "stage {stage}");
        assert_eq!(job.provenance["offload_optimizer"], "job.yaml:3");
        assert!(job.notes.is_empty(), "{:?}", job.notes);
    }
    for device in ["none", "''", "null", "None"] {
        let job = job(&deepspeed(&format!("zero_stage: 3, offload_optimizer_device: {device}")));
        assert_eq!((job.offload_optimizer, job.notes.len()), (Offload::No, 0), "{device}");
    }
    let cpu = job(&deepspeed("zero_stage: 0, offload_optimizer_device: cpu"));
    assert_eq!(cpu.offload_optimizer, Offload::No);
    says(&cpu.notes[0], &["_device: cpu (job.yaml:3) has no effect: it is in host memory already"]);
    let path = job(&deepspeed("zero_stage: 3, offload_optimizer_nvme_path: /mnt/fast"));
    says(&path.notes[0], &["nvme_path: /mnt/fast (job.yaml:3) has no effect: offload_optimizer_device is not nvme"]);

    let missing = refusal(&deepspeed("zero_stage: 3, offload_optimizer_device: nvme"));
    let hint = "not set: offload_optimizer_nvme_path\nhint: offload_optimizer_device is nvme (job.yaml:3): pass \
        --offload_optimizer_nvme_path FOLDER, or set deepspeed_config.offload_optimizer_nvme_path, to a folder on a \
        fast disk";
    assert_eq!(missing, hint);
    let whole = refusal(&deepspeed(&format!("zero_stage: 0, {nvme}")));
    says(&whole, &["zero_stage: 0 (job.yaml:3:32) disagree", "only optimizer state that is sharded", "--zero_stage 1"]);
    says(&refusal(&deepspeed("offload_optimizer_device: disk")), &["one of none, cpu, nvme"]);
    let without = refusal(&deepspeed("zero_stage: 3, offload_param_device: nvme"));
    says(&without, &["is not built yet\nhint: parameters lie where the optimizer's state does"]);
    says(&refusal(&deepspeed("zero_stage: 2, offload_param_device: cpu")), &["only parameters that are sharded"]);
    let both = job(&deepspeed(&format!("zero_stage: 3, offload_param_device: nvme, {nvme}")));
    assert_eq!(both.offload_optimizer, Offload::Files("/mnt/fast".into()));

    let flags = [("offload_optimizer_device", "nvme"), ("offload_optimizer_nvme_path", "scratch")];
    let by_flag = with_flags(&format!("{}{TRAINING}", fsdp("")), &flags, &[]).unwrap();
    assert_eq!(by_flag.offload_optimizer, Offload::Files("scratch".into()));
    assert_eq!(by_flag.provenance["offload_optimizer"], "flag --offload_optimizer_nvme_path");
    says(
        &with_flags(TRAINING, &flags, &[]).unwrap_err(),
        &["needs ZeRO stage 1 or more, and no stage is set\nhint: pass --zero_stage 1 or more"],
    );
    let off = with_flags(
        &format!("{}{TRAINING}", deepspeed(&format!("zero_stage: 3, {nvme}"))),
        &[("offload_optimizer_device", "none")],
        &[],
    );
    assert_eq!(off.unwrap().offload_optimizer, Offload::No);
}

#[test]
fn every_kind_of_sharding_survives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.resolved.yaml");
    let nvme = "zero_stage: 1, offload_optimizer_device: nvme, offload_optimizer_nvme_path: 'a: b'";
    let files = [
        fsdp("fsdp_version: 2, fsdp_reshard_after_forward: 4"),
        fsdp("fsdp_sharding_strategy: SHARD_GRAD_OP, auto_wrap_policy: SIZE_BASED_WRAP, min_num_params: 5"),
        fsdp("fsdp_transformer_layer_cls_to_wrap: 'LlamaMLP,LlamaAttention', fsdp_backward_prefetch: NO_PREFETCH"),
        fsdp("fsdp_auto_wrap_policy: NO_WRAP") + "parallelism_config: {dp_replicate_size: 2}\n",
        deepspeed(nvme),
    ];
    for text in files {
        let more = "  master_dtype: bfloat16\n  gradient_checkpointing_every: 2\n  nonfinite_gradients: skip\n";
        let job = resolved(&text, more).unwrap();
        job.write(&path).unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(Resolved::read(&path).unwrap(), job, "{written}");
    }
    let preset = resolve(&Inputs { config: Some("zero3.yaml".to_owned()), ..Inputs::default() }).unwrap();
    preset.write(&path).unwrap();
    let written = std::fs::read_to_string(&path).unwrap();
    let expected = "sharding:\n  stage: 3\n  reshard_after_forward: true\n  replicas: 1\n  units: blocks\n  \
        backward_prefetch: BACKWARD_PRE\n";
    says(&written, &[expected, "master_dtype: float32\n"]);
}
