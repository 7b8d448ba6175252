//! A decided job said again: as a file of ours, and by the `config.resolved.yaml` of its run.

use super::pairs;
use crate::resolve::resolve_file;
use crate::{Form, Inputs, Resolved, compose, outline};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Flags that a job may have. Those of one line are alternatives, or belong together.
const FLAGS: &[&[&[(&str, &str)]]] = &[
    &[&[("zero_stage", "0")], &[("zero_stage", "1")], &[("zero_stage", "2")], &[("zero_stage", "3")]],
    &[
        &[("fsdp_sharding_strategy", "FULL_SHARD")],
        &[("fsdp_sharding_strategy", "SHARD_GRAD_OP")],
        &[("fsdp_sharding_strategy", "NO_SHARD")],
        &[("fsdp_sharding_strategy", "HYBRID_SHARD"), ("parallelism_config_dp_replicate_size", "2")],
        &[("fsdp_sharding_strategy", "HYBRID_SHARD_ZERO2"), ("parallelism_config_dp_replicate_size", "2")],
        &[("fsdp_version", "2"), ("fsdp_reshard_after_forward", "false")],
        &[("fsdp_version", "2"), ("fsdp_reshard_after_forward", "2")],
    ],
    &[&[("distributed_type", "FSDP")], &[("distributed_type", "DEEPSPEED")], &[("distributed_type", "MULTI_CPU")]],
    &[&[("num_processes", "1")], &[("num_processes", "2")], &[("num_processes", "8")]],
    &[
        &[("fsdp_auto_wrap_policy", "NO_WRAP")],
        &[("fsdp_auto_wrap_policy", "SIZE_BASED_WRAP"), ("fsdp_min_num_params", "5000")],
        &[("fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer")],
        &[("fsdp_transformer_layer_cls_to_wrap", "LlamaAttention,LlamaMLP")],
    ],
    &[&[("fsdp_backward_prefetch", "NO_PREFETCH")], &[("fsdp_backward_prefetch", "BACKWARD_PRE")]],
    &[&[("fsdp_state_dict_type", "FULL_STATE_DICT")], &[("fsdp_state_dict_type", "LOCAL_STATE_DICT")]],
    &[
        &[("offload_optimizer_device", "cpu")],
        &[("offload_optimizer_device", "nvme"), ("offload_optimizer_nvme_path", "/mnt/fast disk")],
        &[("fsdp_offload_params", "true")],
    ],
    &[&[("bf16", "true")], &[("fp16", "true")], &[("mixed_precision", "no")], &[("master_dtype", "bfloat16")]],
    &[&[("reduce_dtype", "bfloat16")], &[("grad_accum_dtype", "float32")]],
    &[&[("backend", "gloo")], &[("backend", "shm")]],
    &[&[("use_cpu", "true")], &[("gpu_ids", "0,1")], &[("tf32", "true")], &[("share_gpus", "true")]],
    &[&[("learning_rate", "1e-7")], &[("learning_rate", "0.5")]],
    &[&[("warmup_steps", "7")], &[("warmup_ratio", "0.1")], &[("warmup_steps", "0.05")]],
    &[&[("max_steps", "40")], &[("num_train_epochs", "0.25")]],
    &[&[("lr_scheduler_type", "cosine")], &[("adam_beta2", "0.95"), ("adam_epsilon", "1e-6")]],
    &[
        &[("lr_scheduler_type", "cosine_with_min_lr"), ("lr_scheduler_kwargs", "{min_lr: 1e-8, num_cycles: 1}")],
        &[("lr_scheduler_type", "inverse_sqrt")],
        &[
            ("lr_scheduler_type", "warmup_stable_decay"),
            (
                "lr_scheduler_kwargs",
                "{num_decay_steps: 7, decay_type: 1-sqrt, min_lr_ratio: 0.25, num_stable_steps: 12}",
            ),
        ],
    ],
    &[&[("max_grad_norm", "0")], &[("max_grad_norm", "0.3")]],
    &[&[("gradient_accumulation_steps", "16")], &[("per_device_train_batch_size", "1")]],
    &[&[("gradient_checkpointing", "false")], &[("gradient_checkpointing_every", "2")]],
    &[
        &[("eval_strategy", "epoch"), ("eval_dataset", "no")],
        &[("eval_strategy", "steps"), ("eval_steps", "5"), ("eval_dataset", "held out.jsonl")],
    ],
    &[&[("save_strategy", "no")], &[("save_total_limit", "3"), ("save_keep_every", "100")], &[("save_steps", "7")]],
    &[&[("report_to", "tensorboard"), ("logging_dir", "events")], &[("report_to", "none")]],
    &[&[("metrics_port", "0")], &[("main_process_port", "29501")], &[("profile", "5..8")]],
    &[&[("seed", "18446744073709551615")], &[("data_seed", "7")], &[("logging_steps", "3")]],
    &[&[("checkpoint_store", "s3://bucket/runs/first")], &[("save_dtype", "bfloat16")]],
    &[&[("assistant_only_loss", "false")], &[("max_length", "4096")]],
    &[
        &[("packing", "true"), ("packing_strategy", "bfd_split")],
        &[("packing", "true"), ("eval_packing", "false")],
        &[("eval_packing", "true")],
        &[("padding_free", "true")],
    ],
    &[&[("train_sampling_strategy", "sequential")], &[("group_by_length", "true")]],
];

/// Without what only tells where values came from.
fn decided(mut job: Resolved) -> Resolved {
    job.provenance.clear();
    job.notes.clear();
    job.sharding_as_written = None;
    job
}

fn inputs(chosen: &[(usize, usize)], devices: u32) -> Inputs {
    let mut flags = vec![("model_name_or_path", "owner/model"), ("dataset", "it's a: #file"), ("output_dir", "out")];
    for (line, which) in chosen {
        flags.extend(FLAGS[*line][which % FLAGS[*line].len()]);
    }
    Inputs { flags: pairs(&flags), devices, ..Inputs::default() }
}

/// What a file of ours cannot hold: words of FSDP beside stages that only DeepSpeed has, files beside FSDP.
fn unsayable(setting: &str) -> bool {
    ["fsdp_config.", "parallelism_config.", "deepspeed_config.offload_"].iter().any(|known| setting.starts_with(known))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_file_made_of_flags_means_what_the_flags_mean(
        lines in proptest::sample::subsequence((0..FLAGS.len()).collect::<Vec<_>>(), 0..9),
        which in proptest::collection::vec(0usize..84, 9),
        devices in prop_oneof![Just(0u32), Just(8)],
    ) {
        let chosen: Vec<(usize, usize)> = lines.into_iter().zip(which).collect();
        let inputs = inputs(&chosen, devices);
        let Ok(outline) = outline(&inputs) else { return Ok(()) };
        let flags = &inputs.flags;
        let composed = compose(&outline, Form::Zerofold, &inputs);
        let composed = composed.unwrap_or_else(|error| panic!("{flags:?}: {error}"));
        let machine = Inputs { devices, ..Inputs::default() };
        let (read, _) = resolve_file(Some(("file.yaml", &composed.text)), &machine).unwrap();
        if composed.left_out.is_empty() {
            prop_assert_eq!(decided(read), decided(outline.resolved.clone()), "{:?}\n{}", flags, composed.text);
        } else {
            let reasons = composed.left_out.iter().map(ToString::to_string).collect::<Vec<_>>();
            let stage = outline.resolved.sharding.stage.number();
            let files = matches!(outline.resolved.offload_optimizer, crate::Offload::Files(_));
            prop_assert!(stage == 1 || stage == 2 || files, "{flags:?}: {reasons:?}");
            prop_assert!(composed.left_out.iter().all(|left| unsayable(&left.setting)), "{flags:?}: {reasons:?}");
        }

        let text = serde_yaml::to_string(&outline.resolved).unwrap();
        let again = resolve_file(Some(("config.resolved.yaml", &text)), &machine);
        let (again, _) = again.unwrap_or_else(|error| panic!("{flags:?}: {error}\n{text}"));
        prop_assert_eq!(decided(again), decided(outline.resolved), "{:?}\n{}", flags, text);
    }
}

#[test]
fn enough_of_the_flags_are_jobs() {
    let single = (0..FLAGS.len()).flat_map(|line| (0..FLAGS[line].len()).map(move |which| vec![(line, which)]));
    let (jobs, refused): (Vec<_>, Vec<_>) =
        single.map(|chosen| (outline(&inputs(&chosen, 8)).is_ok(), chosen)).partition(|(ok, _)| *ok);
    assert!(jobs.len() > 50 && refused.len() < 15, "{} jobs, refused {refused:?}", jobs.len());
}

#[test]
fn a_run_is_repeated_by_its_resolved_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.resolved.yaml");
    let flags = [("output_dir", "first"), ("learning_rate", "1e-7"), ("max_steps", "7")];
    let preset = Inputs { config: Some("zero3.yaml".to_owned()), flags: pairs(&flags), ..Inputs::default() };
    let first = outline(&preset).unwrap().resolved;
    first.write(&path).unwrap();
    let again = |flags: &[(&str, &str)]| {
        let config = Some(path.display().to_string());
        outline(&Inputs { config, flags: pairs(flags), ..Inputs::default() }).unwrap().resolved
    };
    let second = again(&[("output_dir", "second")]);
    let expected = Resolved {
        training: crate::Training { output_dir: "second".into(), ..first.training.clone() },
        ..first.clone()
    };
    assert_eq!(decided(second.clone()), decided(expected));
    assert_eq!(second.notes, Vec::<String>::new());
    assert_eq!(second.provenance["output_dir"], "flag --output_dir");
    let text = std::fs::read_to_string(&path).unwrap();
    for (key, line) in
        [("learning_rate", "learning_rate: "), ("stage", "stage: "), ("mixed_precision", "mixed_precision: ")]
    {
        let place = second.provenance[key].strip_prefix(&format!("{}:", path.display())).unwrap();
        let found = text.lines().nth(place.parse::<usize>().unwrap() - 1).unwrap();
        assert!(found.trim_start().starts_with(line), "{key}: {place}: {found}");
    }
    // What followed from the number of processes follows from the new one.
    let one = again(&[("num_processes", "1")]);
    assert_eq!((one.num_processes, one.backend), (1, crate::Backend::Single));
    assert_eq!(again(&[("zero_stage", "1")]).sharding.stage.number(), 1);

    std::fs::write(&path, text.replace("learning_rate: 1e-7", "learning_rate: fast")).unwrap();
    let config = Some(path.display().to_string());
    let error = crate::resolve(&Inputs { config, ..Inputs::default() }).unwrap_err().to_string();
    assert!(error.contains("does not fit this version"), "{error}");
}

#[test]
fn a_model_of_the_hub_and_a_warm_start_keep_their_names() {
    let mut job = outline(&inputs(&[], 0)).unwrap().resolved;
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let model = crate::HubModel { id: "owner/model".into(), revision: "main".into(), commit: commit.into() };
    job.training.model_name_or_path = "/cache/models--owner--model/snapshots/0123".into();
    job.hub_model = Some(model);
    let again = |job: &Resolved| {
        let text = serde_yaml::to_string(job).unwrap();
        resolve_file(Some(("c.yaml", &text)), &Inputs::default()).unwrap().0.training
    };
    let training = again(&job);
    assert_eq!(
        (training.model_name_or_path.to_str().unwrap(), training.model_revision.as_str()),
        ("owner/model", commit)
    );
    job.initial_checkpoint = Some("/runs/a/checkpoints/step-00000007".into());
    job.hub_model = None;
    assert_eq!(again(&job).model_name_or_path, std::path::Path::new("/runs/a/checkpoints/step-00000007"));
}

#[test]
fn hosts_stand_in_a_file_of_ours() {
    let flags = [("nnodes", "2"), ("node_rank", "1"), ("rdzv_endpoint", "node0:29400"), ("num_processes", "4")];
    let mut inputs = inputs(&[], 0);
    inputs.flags.extend(pairs(&flags));
    let outline = outline(&inputs).unwrap();
    let composed = compose(&outline, Form::Zerofold, &inputs).unwrap();
    assert_eq!(composed.left_out, []);
    let (_, topology) = resolve_file(Some(("f", &composed.text)), &Inputs::default()).unwrap();
    assert_eq!(topology, outline.topology);
    // What the environment says is said again.
    let environment =
        BTreeMap::from([("PET_NNODES".to_owned(), "2".to_owned()), ("PET_NODE_RANK".to_owned(), "0".into())]);
    inputs.environment = environment;
    assert_eq!(compose(&super::super::outline(&inputs).unwrap(), Form::Zerofold, &inputs).unwrap().left_out, []);
}

#[test]
fn data_of_the_hub_keep_their_names_and_commits() {
    let mut inputs = inputs(&[], 0);
    inputs.flags.extend(pairs(&[("dataset", "owner/data"), ("eval_strategy", "steps"), ("dataset_config", "en")]));
    let mut job = outline(&inputs).unwrap().resolved;
    let eval =
        |training: &crate::Training| training.eval_dataset.as_ref().map(|data| data.sources()[0].path.names().to_vec());
    assert_eq!(eval(&job.training), Some(vec!["owner/data".to_owned()]), "the test split of what is trained on");
    assert_eq!(job.provenance["eval_dataset"], "derived from dataset");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let data = |split: &str| crate::HubData {
        id: "owner/data".into(),
        revision: "main".into(),
        commit: commit.into(),
        config: "en".into(),
        split: split.into(),
    };
    job.hub_data = vec![data("train"), data("test")];
    let text = serde_yaml::to_string(&job).unwrap();
    let training = resolve_file(Some(("c.yaml", &text)), &Inputs::default()).unwrap().0.training;
    assert_eq!(training.dataset.sources()[0].path.names(), [format!("owner/data@{commit}")]);
    assert_eq!(eval(&training), Some(vec![format!("owner/data@{commit}")]));
    assert_eq!(training.dataset_config.as_deref(), Some("en"));
}
