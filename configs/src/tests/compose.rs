//! Files for other programs, and what they cannot say.

use super::{pairs, says};
use crate::resolve::resolve_file;
use crate::{Composed, ElementType, Form, Inputs, Outline, WarmupType, compose, outline, resolve};
use serde_json::json;

/// Flags and their values.
type Flags<'a> = &'a [(&'a str, &'a str)];

const BASE: [(&str, &str); 3] = [("model_name_or_path", "m"), ("dataset", "d.jsonl"), ("output_dir", "out")];

fn composed(form: Form, devices: u32, flags: &[(&str, &str)]) -> (Outline, Composed) {
    let inputs = Inputs { flags: pairs(&[&BASE[..], flags].concat()), devices, ..Inputs::default() };
    let outline = outline(&inputs).unwrap();
    let composed = compose(&outline, form, &inputs).unwrap();
    (outline, composed)
}

/// Settings that were left out.
fn left_out(composed: &Composed) -> Vec<&str> {
    let ours = ["training.model_name_or_path: m", "training.dataset: d.jsonl", "training.output_dir: out"];
    composed.left_out.iter().map(|left| left.setting.as_str()).filter(|setting| !ours.contains(setting)).collect()
}

#[test]
fn accelerate_files_mean_the_same_job() {
    let fsdp = [("fsdp_version", "2"), ("fsdp_reshard_after_forward", "false")];
    let table: [(u32, Flags<'_>, &str); 9] = [
        (0, &[("num_processes", "2")], "MULTI_CPU"),
        (0, &[("num_processes", "1"), ("bf16", "true")], "NO"),
        (8, &[], "MULTI_GPU"),
        (8, &[("zero_stage", "2"), ("gradient_accumulation_steps", "4"), ("max_grad_norm", "0.5")], "DEEPSPEED"),
        (8, &[("zero_stage", "3"), ("offload_optimizer_device", "cpu"), ("fp16", "true")], "DEEPSPEED"),
        (8, &fsdp, "FSDP"),
        (8, &[("distributed_type", "FSDP"), ("parallelism_config_dp_replicate_size", "2")], "FSDP"),
        (8, &[("fsdp_sharding_strategy", "SHARD_GRAD_OP"), ("fsdp_backward_prefetch", "NO_PREFETCH")], "FSDP"),
        (
            0,
            &[
                ("fsdp_sharding_strategy", "FULL_SHARD"),
                ("fsdp_auto_wrap_policy", "SIZE_BASED_WRAP"),
                ("use_cpu", "true"),
            ],
            "FSDP",
        ),
    ];
    for (devices, flags, distributed_type) in table {
        let (outline, composed) = composed(Form::Accelerate, devices, flags);
        assert_eq!(left_out(&composed), Vec::<&str>::new(), "{flags:?}");
        let text = &composed.text;
        says(text, &[&format!("distributed_type: {}", distributed_type.replace("NO", "'NO'"))]);
        assert!(!text.contains("training:"), "{text}");
        let machine = Inputs { devices, flags: pairs(&BASE), ..Inputs::default() };
        let (read, _) =
            resolve_file(Some(("a.yaml", text)), &machine).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(
            (read.sharding, read.num_processes, read.device, read.mixed_precision),
            (
                outline.resolved.sharding,
                outline.resolved.num_processes,
                outline.resolved.device,
                outline.resolved.mixed_precision
            ),
            "{text}"
        );
        assert_eq!(read.offload_optimizer, outline.resolved.offload_optimizer, "{text}");
        assert_eq!(read.gradient_checkpointing, outline.resolved.gradient_checkpointing, "{text}");
        let shared = |job: &crate::Resolved| (job.gradient_accumulation_steps, job.max_grad_norm);
        assert_eq!(shared(&read), shared(&outline.resolved), "{text}");
    }
}

#[test]
fn what_accelerate_has_no_words_for_is_told() {
    let flags =
        [("learning_rate", "1e-4"), ("zero_stage", "3"), ("fsdp_version", "2"), ("fsdp_reshard_after_forward", "4")];
    let (_, told) = composed(Form::Accelerate, 8, &flags);
    assert_eq!(left_out(&told), ["fsdp_config.fsdp_reshard_after_forward: 4", "training.learning_rate: 0.0001"]);
    says(&told.left_out[0].to_string(), &["left out: fsdp_config.", ": 4, because Accelerate takes true or false"]);
    let hosts = [("nnodes", "1:4"), ("node_rank", "2"), ("rdzv_endpoint", "node0:29500"), ("rdzv_id", "job")];
    let (_, told) = composed(Form::Accelerate, 0, &[&hosts[..], &[("num_processes", "4")]].concat());
    says(
        &told.text,
        &["num_machines: 4\n", "machine_rank: 2\n", "main_process_ip: node0\n", "main_process_port: 29500\n"],
    );
    assert_eq!(left_out(&told), ["nnodes: 1:4", "rdzv_id: job"]);
    let (_, told) = composed(Form::Accelerate, 8, &[("gradient_accumulation_steps", "4")]);
    assert_eq!(left_out(&told), ["training.gradient_accumulation_steps: 4"], "data parallel files have no key for it");
}

#[test]
fn deepspeed_has_its_own_words() {
    let flags = [
        ("zero_stage", "3"),
        ("num_processes", "8"),
        ("offload_optimizer_device", "nvme"),
        ("offload_optimizer_nvme_path", "/mnt/fast"),
        ("per_device_train_batch_size", "2"),
        ("gradient_accumulation_steps", "8"),
        ("max_grad_norm", "0.3"),
        ("bf16", "true"),
        ("reduce_dtype", "bfloat16"),
        ("learning_rate", "1e-4"),
        ("adam_beta2", "0.95"),
        ("weight_decay", "0.1"),
        ("max_steps", "100"),
        ("warmup_ratio", "0.03"),
        ("seed", "7"),
    ];
    let (_, told) = composed(Form::DeepSpeed, 8, &flags);
    let nvme = json!({"device": "nvme", "nvme_path": "/mnt/fast", "pin_memory": true});
    let expected = json!({
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 8,
        "gradient_clipping": 0.3,
        "steps_per_print": 10,
        "bf16": {"enabled": true},
        "communication_data_type": "bf16",
        "zero_optimization": {
            "stage": 3,
            "offload_param": nvme,
            "offload_optimizer": nvme,
            "stage3_gather_16bit_weights_on_model_save": true,
        },
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 1e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
        },
        "scheduler": {
            "type": "WarmupDecayLR",
            "params": {
                "warmup_num_steps": 3,
                "warmup_type": "linear",
                "warmup_min_lr": 0.0,
                "warmup_max_lr": 1e-4,
                "total_num_steps": 100,
            },
        },
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&told.text).unwrap(), expected);
    assert_eq!(left_out(&told), ["training.max_steps: 100", "num_processes: 8", "training.seed: 7"].sorted_as(&told));
    let (_, told) =
        composed(Form::DeepSpeed, 8, &[("zero_stage", "1"), ("warmup_ratio", "0.03"), ("num_train_epochs", "2")]);
    assert!(!told.text.contains("scheduler"), "{}", told.text);
    assert!(
        told.left_out
            .iter()
            .any(|left| left.setting == "training.warmup_ratio: 0.03" && left.reason.contains("max_steps"))
    );
    let (_, told) = composed(Form::DeepSpeed, 8, &[("fsdp_sharding_strategy", "SHARD_GRAD_OP")]);
    assert_eq!(left_out(&told), ["fsdp_config.fsdp_sharding_strategy: SHARD_GRAD_OP"]);
}

#[test]
fn pure_bfloat16_and_a_logarithmic_warm_up_come_back_out_of_a_deepspeed_json() {
    let flags = [
        ("zero_stage", "1"),
        ("master_dtype", "bfloat16"),
        ("lr_scheduler_type", "constant_with_warmup"),
        ("warmup_steps", "5"),
        ("warmup_type", "log"),
    ];
    let (_, told) = composed(Form::DeepSpeed, 1, &flags);
    assert_eq!(left_out(&told), [] as [&str; 0]);
    let json: serde_json::Value = serde_json::from_str(&told.text).unwrap();
    let expected = json!({"enabled": true, "bf16_master_weights_and_grads": true, "bf16_optimizer_states": true});
    assert_eq!(json["bf16"], expected);
    assert_eq!(json["scheduler"]["params"]["warmup_type"], "log");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ds.json");
    std::fs::write(&path, &told.text).unwrap();
    let config = Some(path.display().to_string());
    let flags = [("model_name_or_path", "m"), ("dataset", "d"), ("output_dir", "o")];
    let again = resolve(&Inputs { config, flags: pairs(&flags), ..Inputs::default() }).unwrap();
    assert_eq!((again.master_dtype, again.element_types().compute), (ElementType::Bfloat16, ElementType::Bfloat16));
    assert_eq!((again.training.warmup_type, again.training.warmup_steps), (WarmupType::Log, 5.0));
}

/// Expected settings in the order in which they are told, which is that of `--help`.
trait SortedAs {
    fn sorted_as(self, told: &Composed) -> Vec<&'static str>;
}

impl<const N: usize> SortedAs for [&'static str; N] {
    fn sorted_as(self, told: &Composed) -> Vec<&'static str> {
        let mut expected = self.to_vec();
        expected.sort_by_key(|setting| told.left_out.iter().position(|left| left.setting == *setting));
        expected
    }
}

#[test]
fn a_file_of_ours_shows_what_is_set_and_what_could_be() {
    let inputs =
        Inputs { flags: pairs(&[("zero_stage", "3"), ("bf16", "true"), ("dataset", "d.jsonl")]), ..Inputs::default() };
    let outline = outline(&inputs).unwrap();
    assert_eq!(outline.missing, ["model_name_or_path", "output_dir"]);
    says(&outline.check().unwrap_err().to_string(), &["not set: model_name_or_path, output_dir", "--output_dir PATH"]);
    let text = compose(&outline, Form::Zerofold, &inputs).unwrap().text;
    for line in [
        "distributed_type: DEEPSPEED",
        "deepspeed_config:",
        "  zero_stage: 3  # What is sharded: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters",
        "mixed_precision: bf16  # Compute type: no (that of the masters), bf16, or fp16 with dynamic loss scaling",
        "  # model_name_or_path: PATH  # The model to start from: a Hugging Face folder, the hub's id owner/name, or a \
         checkpoint [required]",
        "  dataset: d.jsonl  # The training data: files, folders, patterns (docs/data.md), or the hub's owner/name",
        "  # learning_rate: 2e-5  # The highest learning rate",
        "  # Optimizer and schedule",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
    }
    assert!(!text.contains("adam_beta1"), "{text}");
}
