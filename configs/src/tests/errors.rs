//! What is refused, and what is said then.

use super::{TRAINING, pairs, resolved, says, with_flags};
use crate::{Inputs, resolve};

#[test]
fn unknown_keys_are_named_with_their_line_and_a_way_out() {
    let cases = [
        ("mixed_precison: bf16\n", "", "job.yaml:1:1: unknown key mixed_precison\nhint: did you mean mixed_precision?"),
        (
            "learning_rate: 1\n",
            "",
            "job.yaml:1:1: unknown key learning_rate\nhint: learning_rate belongs in the section training:",
        ),
        (
            "zero_optimization:\n  stage: 3\n",
            "",
            "job.yaml:1:1: unknown key zero_optimization\nhint: zero_optimization is a key of a DeepSpeed JSON",
        ),
        ("zero_stage: 3\n", "", "hint: zero_stage belongs in the section deepspeed_config:"),
        (
            "",
            "  learning_rte: 1\n",
            "job.yaml:5:3: unknown key learning_rte in training\nhint: did you mean learning_rate?",
        ),
        (
            "",
            "  cutoff_len: 1\n",
            "job.yaml:5:3: unknown key cutoff_len in training\nhint: it is called max_length here",
        ),
        ("", "  num_processes: 1\n", "hint: num_processes belongs at the top level of the file"),
        ("", "  qqqqqqqqqqqq: 1\n", "hint: launch train --help lists every key"),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stge: 3\n",
            "",
            "job.yaml:3:3: unknown key zero_stge in deepspeed_config\nhint: did you mean zero_stage?",
        ),
        ("fsdp_config:\n  sharding_stratgy: X\n", "", "in fsdp_config\nhint: did you mean fsdp_sharding_strategy?"),
        ("parallelism_config: {tp_sise: 1}\n", "", "job.yaml:1:22: unknown key tp_sise in parallelism_config"),
    ];
    for (accelerate, more, expected) in cases {
        says(&resolved(accelerate, more).unwrap_err(), &[expected]);
    }
    let flag = with_flags(TRAINING, &[("learning-rte", "1")], &[]).unwrap_err();
    assert_eq!(flag, "flag --learning-rte: unknown key learning-rte\nhint: did you mean --learning_rate?");
    let set = with_flags(TRAINING, &[], &["trainng.seed=1"]).unwrap_err();
    assert_eq!(set, "--set trainng.seed: unknown key trainng.seed\nhint: did you mean training.seed?");
    says(&with_flags(TRAINING, &[], &["seed"]).unwrap_err(), &["--set seed: expected key=value"]);
}

#[test]
fn nothing_is_suggested_that_is_not_near_or_not_built() {
    let hint = |message: String| message.lines().last().unwrap_or_default().to_owned();
    let deepspeed = |entry: &str| format!("distributed_type: DEEPSPEED\ndeepspeed_config:\n  {entry}\n");
    let list = "hint: launch train --help lists every key";
    for (text, expected) in [
        ("trainnig:\n  seed: 1\n", "hint: did you mean training?"),
        ("fsdp_confg: {}\n", "hint: did you mean fsdp_config?"),
        ("deepspeed_confg: {}\n", "hint: did you mean deepspeed_config?"),
        ("paralelism_config: {}\n", "hint: did you mean parallelism_config?"),
        ("zzzzzz: 1\n", list),
        ("pakcing: true\n", "hint: did you mean training.packing?"),
        ("adafactr: true\n", list),
        ("zero_stge: 3\n", "hint: did you mean deepspeed_config.zero_stage?"),
        (&deepspeed("overlap_com: true"), "hint: did you mean overlap_comm?"),
        (&deepspeed("whatever: 1"), list),
        ("fsdp_config:\n  fspd_sharding_strategy: X\n", "hint: did you mean fsdp_sharding_strategy?"),
        ("parallelism_config:\n  tp_sise: 1\n", list),
        ("parallelism_config:\n  paralelism_config_tp_size: 1\n", list),
        ("parallelism_config:\n  dp_replicat_size: 1\n", "hint: did you mean parallelism_config_dp_replicate_size?"),
    ] {
        assert_eq!(hint(resolved(text, "").unwrap_err()), expected, "{text}");
    }
    for (set, expected) in [
        ("training.foo=1", list),
        ("foo=1", list),
        ("trainnig.seed=1", "hint: did you mean training.seed?"),
        ("trainnig.foo=1", "hint: did you mean the section training?"),
        ("deepspeed_confg.zero_stage=1", "hint: did you mean deepspeed_config.zero_stage?"),
        ("nowhere.seeed=1", "hint: did you mean training.seed?"),
    ] {
        assert_eq!(hint(with_flags(TRAINING, &[], &[set]).unwrap_err()), expected, "{set}");
    }
    assert_eq!(hint(with_flags(TRAINING, &[("zzzzzz", "1")], &[]).unwrap_err()), list);
}

#[test]
fn values_out_of_range_say_what_is_allowed() {
    let table = [
        ("learning_rate", "-1", "it must be a number, 0 or more"),
        ("learning_rate", ".nan", "it must be a number"),
        ("learning_rate", "fast", "it must be a number"),
        ("adam_beta1", "1", "from 0 up to but not including 1"),
        ("adam_beta2", "-0.1", "from 0 up to but not including 1"),
        ("adam_epsilon", "0", "more than 0"),
        ("num_train_epochs", "0", "more than 0"),
        ("max_steps", "0", "1 or more, or -1 for not set"),
        ("max_steps", "2.5", "a whole number"),
        ("per_device_train_batch_size", "0", "a whole number, 1 or more"),
        ("per_device_train_batch_size", "auto", "a whole number, 1 or more"),
        ("gradient_accumulation_steps", "auto", "a whole number, 1 or more"),
        ("max_length", "1", "2 or more"),
        ("seed", "-1", "0 or more"),
        ("warmup_ratio", "1.5", "from 0 to 1"),
        ("warmup_steps", "1.5", "a whole number of steps, or a share below 1"),
        ("weight_decay", "-0.1", "0 or more"),
        ("max_grad_norm", "-1", "0 or more"),
        ("assistant_only_loss", "maybe", "true or false"),
        ("lr_scheduler_type", "cosin", "warmup_stable_decay, reduce_lr_on_plateau\nhint: did you mean cosine?"),
        ("dataset", "{a: b}", "it must be a path or a pattern, a list of them, or a list of sources {path: "),
        ("column_mapping", "messages", "it must be pairs as HERE=THERE"),
        ("backend", "glo", "did you mean gloo?"),
        ("profile", "8..5", "profile is 8..5, which is not allowed: it must be steps as FIRST..LAST, from 1 on"),
        ("profile", "x", "profile is x, which is not allowed"),
        ("profile", "0..3", "5..8 is the steps 5, 6, 7 and 8"),
        ("profile", "1..101", "at most 100"),
        ("profile", "5", "it must be steps as FIRST..LAST"),
    ];
    for (key, value, allowed) in table {
        let text = format!(
            "{}  {key}: {value}\n",
            TRAINING.replace("  dataset: d.jsonl\n", if key == "dataset" { "" } else { "  dataset: d\n" })
        );
        let message = with_flags(&text, &[], &[]).unwrap_err();
        says(&message, &[&format!("training.{key} is "), allowed, "job.yaml:"]);
    }
    let port = with_flags(TRAINING, &[("main_process_port", "65536")], &[]).unwrap_err();
    says(&port, &["flag --main_process_port: main_process_port is 65536", "from 0 to 65535"]);
    says(&resolved("distributed_type: DEEPSPED\n", "").unwrap_err(), &["did you mean DEEPSPEED?", "job.yaml:1"]);
    let stage = "distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stage: 4\n";
    says(&resolved(stage, "").unwrap_err(), &["job.yaml:3:15: deepspeed_config.zero_stage is 4", "from 0 to 3"]);
}

#[test]
fn what_is_not_built_is_never_dropped() {
    let fsdp = |entry: &str| format!("distributed_type: FSDP\nfsdp_config:\n  {entry}\n");
    let deepspeed = |entry: &str| format!("distributed_type: DEEPSPEED\ndeepspeed_config:\n  {entry}\n");
    let files = [
        "distributed_type: MULTI_CPU\nmixed_precision: fp8\n".to_owned(),
        "distributed_type: MULTI_CPU\ndynamo_config: {dynamo_backend: INDUCTOR}\n".to_owned(),
        "distributed_type: MULTI_CPU\ndynamo_backend: inductor\n".to_owned(),
        "distributed_type: MULTI_CPU\ncompute_environment: AMAZON_SAGEMAKER\n".to_owned(),
        "distributed_type: MULTI_CPU\nmpirun_config: {mpirun_hostfile: hosts}\n".to_owned(),
        "distributed_type: MULTI_NPU\n".to_owned(),
        "distributed_type: XLA\n".to_owned(),
        "distributed_type: MEGATRON_LM\n".to_owned(),
        "distributed_type: MULTI_CPU\nparallelism_config:\n  parallelism_config_tp_size: 2\n".to_owned(),
        deepspeed("zero_stage: 3\n  offload_param_device: nvme"),
        deepspeed("deepspeed_hostfile: hosts"),
        fsdp("fsdp_ignored_modules: .*norm"),
    ];
    for text in files {
        says(&resolved(&text, "").unwrap_err(), &["is not built yet\nhint: ", "job.yaml:"]);
    }
    let training = [
        "packing_strategy: bfd-requeue",
        "neftune_noise_alpha: 5",
        "optim: adafactor",
        "use_peft: true",
        "lr_scheduler_type: greedy",
        "backend: mpi",
        "ddp_backend: mpi",
        "save_strategy: best",
        "report_to: wandb",
        "report_to: [tensorboard, mlflow]",
        "max_length: null",
    ];
    for entry in training {
        says(
            &resolved("", &format!("  {entry}\n")).unwrap_err(),
            &["job.yaml:5:", ": training.", "is not built yet\nhint: "],
        );
    }
    let neutral = "  packing: false\n  fp16: false\n  neftune_noise_alpha: null\n  label_smoothing_factor: 0.0\n  \
        optim: adamw_torch_fused\n  save_total_limit: null\n  fsdp: ''\n  report_to: []\n  load_best_model_at_end: False\n";
    assert_eq!(resolved("", neutral).unwrap().notes, Vec::<String>::new());
}

#[test]
fn training_ends_early_by_evaluations_alone() {
    let refused = resolved("", "  early_stopping_patience: 3\n").unwrap_err();
    says(
        &refused,
        &["job.yaml:5:", "early_stopping_patience is 3", "eval_strategy is no", "set eval_strategy to steps"],
    );
    let evaluated = "  eval_strategy: epoch\n  eval_dataset: e.jsonl\n";
    let job =
        resolved("", &format!("{evaluated}  early_stopping_patience: 3\n  early_stopping_threshold: 0.01\n")).unwrap();
    assert_eq!((job.training.early_stopping_patience, job.training.early_stopping_threshold), (Some(3), 0.01));
    let notes = resolved("", &format!("{evaluated}  early_stopping_threshold: 0.01\n")).unwrap().notes;
    says(&notes.join("\n"), &["early_stopping_threshold", "without early_stopping_patience"]);
    let judged = |lines: &str| resolved("", &format!("{evaluated}{lines}"));
    let by = judged("  metric_for_best_model: eval_f1\n  greater_is_better: true\n").unwrap().training;
    assert_eq!((by.metric_for_best_model, by.greater_is_better), (crate::BestMetric::F1, Some(true)));
    let refused = judged("  metric_for_best_model: mse\n  greater_is_better: true\n").unwrap_err();
    says(&refused, &["metric_for_best_model is mse, of which less is better", "leave greater_is_better out"]);
    for wrong in ["early_stopping_patience: 0", "early_stopping_threshold: -1", "label_smoothing_factor: 1.5"] {
        says(&resolved("", &format!("{evaluated}  {wrong}\n")).unwrap_err(), &[wrong.split(':').next().unwrap()]);
    }
}

#[test]
fn two_written_values_that_disagree_name_both_places() {
    let deepspeed = "distributed_type: DEEPSPEED\ndeepspeed_config:\n";
    let plain = |entry: &str| format!("distributed_type: MULTI_CPU\n{entry}\n");
    let fsdp = |entries: &str| format!("distributed_type: FSDP\nfsdp_config:\n{entries}");
    let strategies = "  fsdp_sharding_strategy: FULL_SHARD\n  fsdp_reshard_after_forward: SHARD_GRAD_OP\n";
    let table = [
        (
            plain("mixed_precision: 'no'"),
            "  bf16: true\n",
            ["mixed_precision: no (job.yaml:2:18)", "training.bf16: true (job.yaml:7:9)"],
        ),
        (
            plain("mixed_precision: bf16"),
            "  bf16: no\n",
            ["mixed_precision: bf16 (job.yaml:2:18)", "training.bf16: no (job.yaml:7:9)"],
        ),
        (
            format!("{deepspeed}  gradient_accumulation_steps: 2\n"),
            "  gradient_accumulation_steps: 4\n",
            ["training.gradient_accumulation_steps: 4 (job.yaml:8:32)", "_accumulation_steps: 2 (job.yaml:3:32)"],
        ),
        (
            format!("{deepspeed}  gradient_clipping: 1.0\n"),
            "  max_grad_norm: 0.5\n",
            ["training.max_grad_norm: 0.5 (job.yaml:8:18)", "deepspeed_config.gradient_clipping: 1.0 (job.yaml:3:22)"],
        ),
        (
            plain("deepspeed_config:\n  zero_stage: 3"),
            "",
            ["distributed_type: MULTI_CPU (job.yaml:1:19)", "deepspeed_config.zero_stage: 3 (job.yaml:3:15)"],
        ),
        (
            fsdp(strategies),
            "",
            ["fsdp_sharding_strategy: FULL_SHARD (job.yaml:3:27)", "after_forward: SHARD_GRAD_OP (job.yaml:4:31)"],
        ),
        (
            fsdp("  fsdp_activation_checkpointing: true\n"),
            "  gradient_checkpointing: false\n",
            ["training.gradient_checkpointing: false (job.yaml:8:27)", "_checkpointing: true (job.yaml:3:34)"],
        ),
        (
            String::new(),
            "  warmup_steps: 5\n  warmup_ratio: 0.1\n",
            ["warmup_steps: 5 (job.yaml:5:17)", "warmup_ratio: 0.1 (job.yaml:6:17)"],
        ),
    ];
    for (accelerate, more, places) in table {
        says(&resolved(&accelerate, more).unwrap_err(), &[places[0], places[1], " disagree\nhint: "]);
    }
    let spellings = "distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 1\n  version: 2\n";
    says(&resolved(spellings, "").unwrap_err(), &["(job.yaml:3:17)", "(job.yaml:4:12)", "version is another spelling"]);
    let agreeing = format!("{deepspeed}  gradient_accumulation_steps: 4\n  gradient_clipping: 1\n");
    let more = "  gradient_accumulation_steps: '4'\n  max_grad_norm: 1.0\n";
    assert_eq!(resolved(&agreeing, more).unwrap().gradient_accumulation_steps, 4);
    let flags = [("mixed_precision", "bf16"), ("bf16", "false")];
    says(&with_flags(TRAINING, &flags, &[]).unwrap_err(), &["(flag --mixed_precision)", "(flag --bf16)"]);
    let version = "distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 1\n  fsdp_reshard_after_forward: true\n";
    says(&resolved(version, "").unwrap_err(), &["hint: fsdp_version: 2 takes true or false"]);
    let version = "distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\n  fsdp_sharding_strategy: SHARD_GRAD_OP\n";
    says(&resolved(version, "").unwrap_err(), &["fsdp_reshard_after_forward alone"]);
}

#[test]
fn what_is_missing_names_flag_and_key() {
    let message = resolve(&Inputs::default()).unwrap_err().to_string();
    let expected = "not set: model_name_or_path, dataset, output_dir\nhint: pass --model_name_or_path PATH --dataset PATH \
        --output_dir PATH, or set training.model_name_or_path, training.dataset, training.output_dir in the \
        configuration file; --config zero3.yaml is a preset that has all of them";
    assert_eq!(message, expected);
    let message = with_flags(TRAINING, &[("dataset", "null")], &[]).unwrap_err();
    assert!(message.starts_with("not set: dataset\n") && !message.contains("preset"), "{message}");
    says(&resolved("num_processes: 2\n", "").unwrap_err(), &["not set: distributed_type", "job.yaml"]);
    let stage = "deepspeed_config:\n  zero_stage: 3\n";
    says(&resolved(stage, "").unwrap_err(), &["not set: distributed_type"]);
    let evaluation = resolved("", "  eval_on_start: true\n").unwrap_err();
    says(&evaluation, &["not set: eval_dataset", "eval_on_start is true (job.yaml:5)"]);
    assert!(resolved("", "  eval_on_start: true\n  eval_dataset: e\n").unwrap().training.eval_on_start);
    let evaluation = resolved("", "  eval_strategy: epoch\n").unwrap_err();
    says(&evaluation, &["not set: eval_dataset", "eval_strategy is epoch (job.yaml:5)", "--eval_dataset PATH"]);
    let single = with_flags(TRAINING, &[("num_processes", "2"), ("backend", "single")], &[]).unwrap_err();
    says(&single, &["flag --backend: training.backend is single", "hint: use shm"]);
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let named =
        |name: &str| resolve(&Inputs { config: Some(name.to_owned()), ..Inputs::default() }).unwrap_err().to_string();
    says(&named("zero4.yaml"), &["no configuration named zero4.yaml", "did you mean zero", "ddp.yaml"]);
    says(&named("."), &["cannot read .", "folder"]);
    let broken = with_flags("training:\n  seed: [1\n", &[], &[]).unwrap_err();
    says(&broken, &["job.yaml:3:1 cannot be understood: while parsing a flow sequence"]);
    for (text, expected) in [
        ("a: 1\na: 2\n", "job.yaml:2:1: a is set a second time; the first is in line 1\nhint: keep one of the two"),
        (
            "seed: 1\ntraining:\n  seed: 1\n  dataset: d\n  seed: 2\n",
            "job.yaml:5:3: training.seed is set a second time; the first is in line 3\nhint: keep one of the two",
        ),
        ("{a: 1, a: 2}\n", "job.yaml:1:8: a is set a second time"),
    ] {
        says(&with_flags(text, &[], &[]).unwrap_err(), &[expected]);
    }
    says(&with_flags("- a\n", &[], &[]).unwrap_err(), &["job.yaml:1:", " cannot be understood: expected `key: value`"]);
    says(&with_flags("training: 5\n", &[], &[]).unwrap_err(), &["training is 5", "job.yaml:1:11"]);
    let flags = pairs(&[("model_name_or_path", "m"), ("dataset", "d"), ("output_dir", "o")]);
    let flags: Vec<(&str, &str)> = flags.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert!(with_flags("", &flags, &[]).is_ok(), "an empty file is a file without keys");
}

#[test]
fn bytes_that_are_no_configuration_never_panic() {
    let base = format!("distributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\nnum_processes: 2\n{TRAINING}");
    for end in 0..base.len() {
        let _ = with_flags(&base[..end], &[], &[]);
    }
    for value in ["[]", "{}", "{a: {b: 1}}", "!tag x", "0x10", "1e400", "-9223372036854775808", "'\\0'", "&a [*a]", "~"]
    {
        for key in crate::flag_names() {
            for section in ["", "training:\n  ", "deepspeed_config:\n  ", "fsdp_config:\n  "] {
                let _ = crate::source::add_file(&mut Default::default(), "f", &format!("{section}{key}: {value}\n"));
            }
            let inputs =
                Inputs { flags: pairs(&[(key, value)]), config: Some("zero3.yaml".into()), ..Inputs::default() };
            let _ = resolve(&inputs);
        }
    }
}
