//! The files that users have.

use super::{TRAINING, resolved, with_flags};
use crate::{Backend, Inputs, PRESETS, Precision, Resolved, ScheduleShape, Stage, StateDictType, Strategy, resolve};

/// What every file of TRL's kind has at the top level.
const COMMON: &str = "compute_environment: LOCAL_MACHINE\ndebug: false\ndowncast_bf16: 'no'\nmachine_rank: 0\n\
    main_training_function: main\nmixed_precision: 'bf16'\nnum_machines: 1\nnum_processes: 8\nrdzv_backend: static\n\
    same_network: true\ntpu_env: []\ntpu_use_cluster: false\ntpu_use_sudo: false\nuse_cpu: false\n";

const FSDP1: &str = "distributed_type: FSDP\nenable_cpu_affinity: false\nfsdp_config:\n  \
    fsdp_activation_checkpointing: false\n  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n  \
    fsdp_backward_prefetch: BACKWARD_PRE\n  fsdp_cpu_ram_efficient_loading: true\n  fsdp_forward_prefetch: true\n  \
    fsdp_offload_params: false\n  fsdp_reshard_after_forward: FULL_SHARD\n  fsdp_state_dict_type: FULL_STATE_DICT\n  \
    fsdp_sync_module_states: true\n  fsdp_use_orig_params: true\n  fsdp_version: 1\n";

const FSDP2: &str = "distributed_type: FSDP\nenable_cpu_affinity: false\nfsdp_config:\n  \
    fsdp_activation_checkpointing: false\n  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n  \
    fsdp_cpu_ram_efficient_loading: true\n  fsdp_offload_params: false\n  fsdp_reshard_after_forward: true\n  \
    fsdp_state_dict_type: FULL_STATE_DICT\n  fsdp_version: 2\n";

fn deepspeed(stage: u8, accumulation: &str) -> String {
    format!(
        "distributed_type: DEEPSPEED\ndeepspeed_config:\n  deepspeed_multinode_launcher: standard\n  \
        gradient_accumulation_steps: {accumulation}\n  offload_optimizer_device: none\n  offload_param_device: none\n  \
        zero3_init_flag: true\n  zero3_save_16bit_model: true\n  zero_stage: {stage}\n"
    )
}

#[test]
fn trl_files_resolve_to_their_stage() {
    let table = [
        ("zero1", deepspeed(1, "1"), 8, 1),
        ("zero2", deepspeed(2, "auto"), 8, 2),
        ("zero3", deepspeed(3, "auto"), 8, 3),
        ("fsdp1", FSDP1.to_owned(), 8, 3),
        ("fsdp2", FSDP2.to_owned(), 8, 3),
        ("multi_gpu", "distributed_type: MULTI_GPU\ngpu_ids: all\n".to_owned(), 8, 0),
        ("multi_cpu", "distributed_type: MULTI_CPU\nmpirun_config:\n  mpirun_ccl: '1'\n".to_owned(), 8, 0),
        ("single_gpu", "distributed_type: \"NO\"\ngpu_ids: all\n".to_owned(), 1, 0),
    ];
    for (name, text, processes, stage) in table {
        let job = resolved(&format!("{COMMON}{text}"), "").unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((job.num_processes, job.sharding.stage.number()), (processes, stage), "{name}");
        assert_eq!(job.mixed_precision, Precision::Bf16, "{name}");
        assert_eq!(job.backend, if processes == 1 { Backend::Single } else { Backend::Shm }, "{name}");
        assert_eq!(job.gradient_accumulation_steps, 1, "{name}");
        assert!(job.gradient_checkpointing, "{name}: false in fsdp_config leaves the trainer's default");
    }
}

#[test]
fn minimal_files_resolve_to_their_stage() {
    let fsdp = |entries: &str| format!("distributed_type: FSDP\nnum_processes: 2\nfsdp_config: {{{entries}}}\n");
    let table = [
        ("distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config: {zero_stage: '3'}\n".to_owned(), 3),
        ("distributed_type: DEEPSPEED\nnum_processes: 2\n".to_owned(), 2),
        ("distributed_type: DEEPSPEED\nfsdp_config: {}\nmegatron_lm_config: {}\ndynamo_backend: 'NO'\n".to_owned(), 2),
        (fsdp(""), 3),
    ];
    for (text, stage) in table {
        let job = resolved(&text, "").unwrap_or_else(|error| panic!("{text}{error}"));
        assert_eq!(job.sharding.stage.number(), stage, "{text}");
    }
}

#[test]
fn what_has_no_effect_is_told_once_and_only_where_it_was_set() {
    let notes = |text: &str, more: &str| resolved(text, more).unwrap().notes;
    assert_eq!(notes("distributed_type: MULTI_CPU\n", "  packing: false\n  report_to: none\n"), Vec::<String>::new());
    let told = notes(&format!("{COMMON}{FSDP1}"), "  run_name: mine\n");
    assert_eq!(
        told,
        ["training.run_name: mine (job.yaml:33) has no effect: metrics go to output_dir/metrics.jsonl, every step"]
    );
    let deepspeed = |entries: &str| format!("distributed_type: DEEPSPEED\ndeepspeed_config:\n{entries}");
    let as_it_is = "  overlap_comm: true\n  contiguous_gradients: true\n  reduce_bucket_size: auto\n";
    assert_eq!(notes(&deepspeed(&format!("  zero_stage: 2\n{as_it_is}")), ""), Vec::<String>::new());
    let of_no_effect = "  zero_stage: 3\n  overlap_comm: false\n  reduce_bucket_size: 5e8\n  sub_group_size: 1e9\n  \
        stage3_param_persistence_threshold: 1e5\n  stage3_max_live_parameters: 1e9\n";
    let told = notes(&deepspeed(of_no_effect), "");
    assert!(told.len() == 5 && told.iter().all(|note| note.contains(") has no effect: ")), "{told:?}");
    assert!(told[0].starts_with("deepspeed_config.overlap_comm: false (job.yaml:4)"), "{told:?}");
    let told = notes("distributed_type: 'NO'\nnum_processes: 8\n", "");
    assert_eq!(told, ["num_processes: 8 (job.yaml:2) has no effect: distributed_type: NO is one process"]);
    let told = notes("distributed_type: MULTI_CPU\n", "  max_steps: 5\n  num_train_epochs: 2\n  eval_steps: 5\n");
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("num_train_epochs: 2 (job.yaml:7)") && told[0].contains("(job.yaml:6)"), "{told:?}");
    assert!(told[1].contains("eval_steps: 5 (job.yaml:8)") && told[1].contains("the default"), "{told:?}");
}

#[test]
fn both_yaml_dialects_mean_the_same() {
    for no in ["NO", "'NO'", "no", "false", "No"] {
        let job =
            resolved(&format!("distributed_type: {no}\nmixed_precision: {no}\ndowncast_bf16: {no}\n"), "").unwrap();
        assert_eq!((job.num_processes, job.mixed_precision), (1, Precision::No), "{no}");
        let job = resolved("", &format!("  eval_strategy: {no}\n  save_strategy: {no}\n  bf16: {no}\n")).unwrap();
        assert_eq!((job.training.eval_strategy, job.training.save_strategy), (Strategy::No, Strategy::No), "{no}");
    }
    for number in ["1e-5", "'1e-5'", "1.0e-5", "0.00001"] {
        let job =
            resolved("num_processes: '4'\ndistributed_type: MULTI_CPU\n", &format!("  learning_rate: {number}\n"));
        let job = job.unwrap();
        assert_eq!((job.training.learning_rate, job.num_processes), (1e-5, 4), "{number}");
    }
}

#[test]
fn defaults_are_those_of_sft() {
    let job = with_flags(TRAINING, &[], &[]).unwrap();
    assert_eq!((job.num_processes, job.backend, job.sharding.stage), (1, Backend::Single, Stage::Zero));
    assert_eq!((job.max_grad_norm, job.gradient_accumulation_steps, job.gradient_checkpointing), (1.0, 1, true));
    let training = &job.training;
    assert_eq!((training.learning_rate, training.lr_scheduler_type), (2e-5, ScheduleShape::Linear));
    assert_eq!((training.per_device_train_batch_size, training.num_train_epochs, training.max_steps), (8, 3.0, -1));
    assert_eq!((training.adam_beta1, training.adam_beta2, training.adam_epsilon), (0.9, 0.999, 1e-8));
    assert_eq!((training.logging_steps, training.eval_steps, training.save_steps), (10, 10, 500));
    assert_eq!((training.seed, training.data_seed, training.row_seed()), (42, None, 42));
    assert_eq!((training.max_length, training.assistant_only_loss, training.save_dtype), (1024, true, None));
    assert!(job.notes.is_empty(), "{:?}", job.notes);
    let logging = with_flags(TRAINING, &[("logging_steps", "3")], &[]).unwrap();
    assert_eq!(logging.training.eval_steps, 3, "eval_steps follows logging_steps");
}

#[test]
fn warm_up_is_steps_or_a_share_rounded_up() {
    let table = [("warmup_steps", "7", 7), ("warmup_steps", "0.05", 6), ("warmup_ratio", "0.1", 11), ("seed", "1", 0)];
    for (key, value, expected) in table {
        let job = with_flags(TRAINING, &[(key, value)], &[]).unwrap();
        assert_eq!(job.training.warmup_steps_of(101), expected, "{key} {value}");
    }
}

#[test]
fn presets_resolve_by_name_without_a_word() {
    let stages = [("ddp.yaml", 0), ("zero1.yaml", 1), ("zero2.yaml", 2), ("zero3.yaml", 3)];
    assert_eq!(PRESETS.len(), stages.len() + 2, "the recipes have a test of their own");
    for (name, stage) in stages {
        let job = resolve(&Inputs { config: Some(name.to_owned()), ..Inputs::default() }).unwrap();
        assert_eq!((job.sharding.stage.number(), job.num_processes), (stage, 2), "{name}");
        assert_eq!(job.notes, Vec::<String>::new(), "{name}");
        assert_eq!(job.training.output_dir, std::path::Path::new("runs").join(name.trim_end_matches(".yaml")));
        let line = job.provenance["learning_rate"].strip_prefix(&format!("{name}:")).unwrap().parse::<usize>().unwrap();
        let text = PRESETS.iter().find(|preset| preset.name == name).unwrap().text;
        assert!(text.lines().nth(line - 1).unwrap().contains("learning_rate: "), "{name}:{line}");
    }
    assert!(resolve(&Inputs { config: Some("zero2".to_owned()), ..Inputs::default() }).is_ok());
}

#[test]
fn recipes_resolve_by_name_without_a_word() {
    for (name, evaluates) in [("sft-basic.yaml", false), ("sft-recipe", true)] {
        let flags = super::pairs(&[("model_name_or_path", "SmolLM2"), ("dataset", "chats.jsonl"), ("output_dir", "o")]);
        let job =
            resolve(&Inputs { config: Some(name.to_owned()), flags, nproc: Some(2), ..Inputs::default() }).unwrap();
        assert_eq!((job.num_processes, job.gradient_accumulation_steps, job.global_batch()), (2, 8, 32), "{name}");
        assert_eq!((job.mixed_precision, job.gradient_checkpointing), (Precision::Bf16, true), "{name}");
        assert_eq!((job.training.learning_rate, job.training.max_length), (2e-5, 4096), "{name}");
        assert_eq!(job.training.warmup_steps_of(100), 10, "{name}");
        assert_eq!(job.training.dataset.to_string(), "chats.jsonl", "{name}");
        assert_eq!(job.training.load_best_model_at_end, evaluates, "{name}");
        assert_eq!(job.notes, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn a_resolved_configuration_survives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.resolved.yaml");
    let flags = [
        ("learning_rate", "1e-7"),
        ("seed", "18446744073709551615"),
        ("data_seed", "7"),
        ("eval_dataset", "no"),
        ("dataset", "[{path: [a, b], weight: 0.5, label: x}, {path: c, weight: 2, column_mapping: {text: body}}]"),
        ("column_mapping", "messages=dialogue"),
        ("save_dtype", "bfloat16"),
        ("main_process_port", "29501"),
        ("output_dir", "a b: #c"),
        ("run_name", "mine"),
        ("report_to", "tensorboard"),
        ("logging_dir", "events"),
        ("metrics_port", "0"),
    ];
    let job = with_flags(TRAINING, &flags, &[]).unwrap();
    assert_eq!(job.main_process_port, Some(29501));
    assert_eq!(job.notes.len(), 1);
    job.write(&path).unwrap();
    assert_eq!(Resolved::read(&path).unwrap(), job);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("stage: 0\n") && text.contains("learning_rate: flag --learning_rate\n"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside the file");

    // What an earlier version wrote, which had fewer keys.
    let without = |line: &&str| {
        !["  stopping_strategy:", "  report_to:", "  eval_packing:", "  adam_epsilon:"]
            .iter()
            .any(|key| line.starts_with(key))
    };
    let earlier: String = text.lines().filter(without).map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, earlier).unwrap();
    let mut expected = job.clone();
    expected.training.report_to = None;
    assert_eq!(Resolved::read(&path).unwrap().training, expected.training);
    let no_data: String =
        text.lines().filter(|line| !line.starts_with("  seed: ")).map(|line| format!("{line}\n")).collect();
    std::fs::write(&path, no_data.replace("  output_dir:", "  output_dri:")).unwrap();
    assert!(Resolved::read(&path).is_err(), "what must be set has no default");

    std::fs::write(&path, text.replace("stage: 0", "stage: 4")).unwrap();
    let error = Resolved::read(&path).unwrap_err().to_string();
    assert!(error.contains("config.resolved.yaml") && error.contains("4 is no ZeRO stage"), "{error}");
    let error = job.write(&folder.path().join("absent/file.yaml")).unwrap_err().to_string();
    assert!(error.contains("cannot write") && error.contains("absent/file.yaml"), "{error}");
}

#[test]
fn a_state_dict_type_says_what_a_save_writes() {
    let job = |version: &str, entry: &str| {
        let text =
            format!("distributed_type: FSDP\nnum_processes: 2\nfsdp_config:\n  fsdp_version: {version}\n{entry}");
        resolved(&text, "").map(|job| (job.state_dict_type, job.notes)).map_err(|error| error.to_string())
    };
    for (written, expected) in [
        ("FULL_STATE_DICT", StateDictType::Full),
        ("1", StateDictType::Full),
        ("local_state_dict", StateDictType::Local),
        ("SHARDED_STATE_DICT", StateDictType::Sharded),
        ("3", StateDictType::Sharded),
    ] {
        let told = job("1", &format!("  fsdp_state_dict_type: {written}\n"));
        assert_eq!(told, Ok((expected, Vec::new())), "{written}");
    }
    assert_eq!(job("2", "").unwrap().0, StateDictType::Sharded);
    let told = job("2", "  fsdp_state_dict_type: LOCAL_STATE_DICT\n").unwrap_err();
    assert!(told.contains("with fsdp_version: 2 it must be FULL_STATE_DICT or SHARDED_STATE_DICT"), "{told}");
    let told = job("1", "  fsdp_state_dict_type: FUL_STATE_DICT\n").unwrap_err();
    assert!(told.contains("did you mean FULL_STATE_DICT"), "{told}");
}
