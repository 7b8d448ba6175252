//! The keys of TrainingArguments, SFTConfig and TRL's script and model arguments that are known but not in the
//! registry, the names that changed, and the choices that are not built.

use crate::known::Role::{NoEffect, NotBuilt, Used};
use crate::known::{Known, Role, known};
use crate::value::text;
use serde_yaml::Value;

const NO: &[&str] = &["false", "no", "off", "none", ""];
const NONE: &[&str] = &["none", ""];
const YES: &[&str] = &["true"];
const ZERO: &[&str] = &["0", "none", "false"];
const ANY: &[&str] = &["*"];
const REMOVE: Role = NotBuilt("remove the key, or set it to its default");
const NO_PEFT: Role = NotBuilt("all parameters are trained: remove the key");
const NO_LORA: Role = NoEffect("there are no adapters: all parameters are trained");
const NO_HUB: Role = NotBuilt("the model stays in output_dir/model: remove the key");
const METRICS: Role = NoEffect("metrics go to output_dir/metrics.jsonl, every step");
const LOADER: Role = NoEffect("the data is tokenised once, before the training");
const DDP: Role = NoEffect("it is an option of PyTorch's DDP");
const CUDA: Role = NoEffect("memory that libtorch keeps is used again by the next step");
const STREAMED: Role = NoEffect(
    "data are always read row by row and tokenised into a file that is mapped, so they may be larger than memory",
);
const RESUME: Role = NotBuilt("use the flag --resume");
const ATTENTION: Role =
    NoEffect("the kernel of attention is chosen by device and type: flash attention on GPUs, our own on the CPU");
const NO_EFFECT_SILENT: Role = NoEffect("");

/// Known keys of the section `training:` beside the registry.
pub(crate) const TRAINING: &[Known] = &[
    known("ddp_backend", &[], Used),
    // Data
    known("truncation_mode", &["keep_start"], REMOVE),
    known("pad_token", NONE, NoEffect("padding is masked by position, whatever its token")),
    known("dataset_num_proc", ANY, NO_EFFECT_SILENT),
    known("dataset_batch_size", ANY, NO_EFFECT_SILENT),
    known("dataset_kwargs", NO, REMOVE),
    known("dataset_streaming", NO, STREAMED),
    known("streaming", NO, STREAMED),
    known("test_split_size", NONE, NotBuilt("eval_dataset is the path of the held-out data")),
    known("shuffle_dataset", NO, NotBuilt("use train_sampling_strategy: random")),
    known("group_by_length", &[], Used),
    known("length_column_name", ANY, NO_EFFECT_SILENT),
    known("pad_to_multiple_of", ZERO, NoEffect("padding does not change the loss")),
    known("remove_unused_columns", ANY, NO_EFFECT_SILENT),
    known("ignore_data_skip", NO, NotBuilt("a resumed run goes on with the rows it had not seen")),
    known("dataloader_num_workers", ZERO, LOADER),
    known("dataloader_prefetch_factor", NONE, LOADER),
    known("dataloader_pin_memory", ANY, NO_EFFECT_SILENT),
    known("dataloader_persistent_workers", NO, LOADER),
    known("dataloader_multiprocessing_context", ANY, NO_EFFECT_SILENT),
    known("dataloader_in_order", ANY, NO_EFFECT_SILENT),
    known("label_names", ANY, NO_EFFECT_SILENT),
    known("dataloader_drop_last", NO, NotBuilt("every row is used once per epoch: use false")),
    // Loss and optimizer
    known("loss_type", &["nll", "chunked_nll"], REMOVE),
    known("neftune_noise_alpha", ZERO, REMOVE),
    known("average_tokens_across_devices", YES, NotBuilt("the loss is always the mean over all supervised tokens")),
    known("optim", &["adamw_torch_fused", "adamw_torch", "adamw_hf"], NotBuilt("use adamw_torch_fused")),
    known("optim_args", NONE, REMOVE),
    known("optim_target_modules", NONE, REMOVE),
    known("adafactor", NO, NotBuilt("use optim: adamw_torch_fused")),
    known("auto_find_batch_size", NO, NotBuilt("set per_device_train_batch_size")),
    known("gradient_checkpointing_kwargs", ANY, NO_EFFECT_SILENT),
    known("activation_offloading", NO, REMOVE),
    known("use_liger_kernel", NO, REMOVE),
    known("liger_kernel_config", NONE, REMOVE),
    known("torch_compile", NO, NotBuilt("nothing is compiled so far: use false")),
    known("torch_compile_backend", NONE, NotBuilt("nothing is compiled so far: remove the key")),
    known("torch_compile_mode", NONE, NotBuilt("nothing is compiled so far: remove the key")),
    known("jit_mode_eval", NO, REMOVE),
    known("full_determinism", ANY, NO_EFFECT_SILENT),
    known("torch_empty_cache_steps", ZERO, CUDA),
    known("half_precision_backend", ANY, NO_EFFECT_SILENT),
    known("fp16_opt_level", ANY, NO_EFFECT_SILENT),
    known("bf16_full_eval", NO, REMOVE),
    known("fp16_full_eval", NO, REMOVE),
    // Evaluation, saving, logging
    known("do_train", YES, NotBuilt("launch train always trains")),
    known("do_eval", ANY, NO_EFFECT_SILENT),
    known("do_predict", NO, NotBuilt("use launch generate")),
    known("eval_delay", ZERO, REMOVE),
    known("eval_accumulation_steps", ANY, NO_EFFECT_SILENT),
    known("eval_do_concat_batches", ANY, NO_EFFECT_SILENT),
    known("prediction_loss_only", ANY, NO_EFFECT_SILENT),
    known("batch_eval_metrics", NO, REMOVE),
    known("eval_use_gather_object", ANY, NO_EFFECT_SILENT),
    known("include_for_metrics", ANY, NO_EFFECT_SILENT),
    known("save_only_model", NO, REMOVE),
    known("save_safetensors", YES, NotBuilt("files are always safetensors: use true")),
    known("save_on_each_node", NO, REMOVE),
    known("enable_jit_checkpoint", NO, REMOVE),
    known("resume_from_checkpoint", NO, RESUME),
    known("restore_callback_states_from_checkpoint", NO, REMOVE),
    known("overwrite_output_dir", NO, NotBuilt("a run folder is never overwritten: name a new output_dir")),
    known("logging_strategy", &["steps"], METRICS),
    known("logging_first_step", ANY, NO_EFFECT_SILENT),
    known("logging_nan_inf_filter", ANY, NO_EFFECT_SILENT),
    known("run_name", NONE, METRICS),
    known("project", NONE, METRICS),
    known("trackio_space_id", NONE, METRICS),
    known("trackio_bucket_id", NONE, METRICS),
    known("trackio_static_space_id", NONE, METRICS),
    known("disable_tqdm", ANY, NO_EFFECT_SILENT),
    known("log_level", ANY, NO_EFFECT_SILENT),
    known("log_level_replica", ANY, NO_EFFECT_SILENT),
    known("log_on_each_node", ANY, NO_EFFECT_SILENT),
    known("include_tokens_per_second", ANY, NO_EFFECT_SILENT),
    known("include_num_input_tokens_seen", ANY, NO_EFFECT_SILENT),
    known("skip_memory_metrics", ANY, NO_EFFECT_SILENT),
    known("push_to_hub", NO, NO_HUB),
    known("hub_model_id", NONE, NO_HUB),
    known("hub_strategy", ANY, NO_EFFECT_SILENT),
    known("hub_token", ANY, NO_EFFECT_SILENT),
    known("hub_private_repo", ANY, NO_EFFECT_SILENT),
    known("hub_always_push", NO, NO_HUB),
    known("hub_revision", NONE, NO_HUB),
    // Processes
    known("use_cpu", &[], Used),
    known("no_cuda", &[], Used),
    known("local_rank", ANY, NO_EFFECT_SILENT),
    known("ddp_timeout", &["1800"], NoEffect("use the flag --timeout")),
    known("ddp_find_unused_parameters", NO, DDP),
    known("ddp_bucket_cap_mb", NONE, DDP),
    known("ddp_broadcast_buffers", ANY, NO_EFFECT_SILENT),
    known("fsdp", NO, NotBuilt("use distributed_type: FSDP with fsdp_config at the top level")),
    known("fsdp_config", NO, NotBuilt("use distributed_type: FSDP with fsdp_config at the top level")),
    known("deepspeed", &[], Used),
    known("parallelism_config", NO, NotBuilt("write parallelism_config at the top level of an Accelerate file")),
    known("accelerate_config", NONE, NotBuilt("use --config FILE for an Accelerate file, or --zero_stage N")),
    known("env", NONE, NotBuilt("set these variables in the environment that launch is started in")),
    known("ddp_static_graph", ANY, NO_EFFECT_SILENT),
    known("debug", NO, NoEffect("the buffers of every collective are always checked")),
    known("accelerator_config", NO, REMOVE),
    // The model
    known("dtype", &[], Used),
    known("attn_implementation", &["sdpa", "none", ""], ATTENTION),
    known("use_cache", ANY, NO_EFFECT_SILENT),
    known("ignore_bias_buffers", ANY, NO_EFFECT_SILENT),
    known("router_aux_loss_coef", ANY, NO_EFFECT_SILENT),
    known("trust_remote_code", NO, NoEffect("no code of a model folder is ever run")),
    known("model_init_kwargs", NONE, REMOVE),
    known("use_peft", NO, NO_PEFT),
    known("lora_r", NONE, NO_LORA),
    known("lora_alpha", NONE, NO_LORA),
    known("lora_dropout", NONE, NO_LORA),
    known("lora_target_modules", NONE, NO_LORA),
    known("lora_target_parameters", NONE, NO_LORA),
    known("lora_modules_to_save", NONE, NO_LORA),
    known("lora_task_type", ANY, NO_EFFECT_SILENT),
    known("use_rslora", NO, NO_LORA),
    known("use_dora", NO, NO_LORA),
    known("bnb_4bit_quant_type", ANY, NO_EFFECT_SILENT),
    known("use_bnb_nested_quant", ANY, NO_EFFECT_SILENT),
    known("bnb_4bit_quant_storage", ANY, NO_EFFECT_SILENT),
    known("load_in_8bit", NO, NO_PEFT),
    known("load_in_4bit", NO, NO_PEFT),
];

/// Names that the trainers once had, or have beside the right one, for exactly the same: they are read, with a note.
pub(crate) const FORMER: &[(&str, &str)] = &[
    ("max_seq_length", "max_length"),
    ("evaluation_strategy", "eval_strategy"),
    ("dataset_name", "dataset"),
    ("datasets", "dataset"),
    ("per_gpu_train_batch_size", "per_device_train_batch_size"),
    ("per_gpu_eval_batch_size", "per_device_eval_batch_size"),
    ("torch_dtype", "dtype"),
    ("use_liger", "use_liger_kernel"),
    ("fp16_backend", "half_precision_backend"),
    ("xpu_backend", "ddp_backend"),
    ("push_to_hub_model_id", "hub_model_id"),
    ("push_to_hub_token", "hub_token"),
    ("activation_checkpointing", "gradient_checkpointing"),
    ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
];

/// The name here of a former one; `-` counts as `_`.
pub(crate) fn former(name: &str) -> Option<&'static str> {
    FORMER.iter().find(|(old, _)| crate::registry::same_name(old, name)).map(|(_, new)| *new)
}

/// Names that are right elsewhere, with the name here.
pub(crate) const RENAMED: &[(&str, &str)] = &[
    ("max_seq_len", "max_length"),
    ("cutoff_len", "max_length"),
    ("train_dataset", "dataset"),
    ("train_file", "dataset"),
    ("dataset_path", "dataset"),
    ("eval_file", "eval_dataset"),
    ("validation_file", "eval_dataset"),
    ("model", "model_name_or_path"),
    ("model_name", "model_name_or_path"),
    ("model_path", "model_name_or_path"),
    ("base_model", "model_name_or_path"),
    ("lr", "learning_rate"),
    ("batch_size", "per_device_train_batch_size"),
    ("lr_scheduler", "lr_scheduler_type"),
    ("epochs", "num_train_epochs"),
    ("num_epochs", "num_train_epochs"),
    ("train_batch_size", "per_device_train_batch_size"),
    ("train_micro_batch_size_per_gpu", "per_device_train_batch_size"),
    ("micro_batch_size", "per_device_train_batch_size"),
    ("output", "output_dir"),
    ("output_path", "output_dir"),
    ("stage", "zero_stage"),
    ("beta1", "adam_beta1"),
    ("beta2", "adam_beta2"),
    ("precision", "mixed_precision"),
];

/// Choices that users know and that are not built: key, names, and what to use instead.
const UNBUILT: &[(&[&str], &[&str], &str)] = &[
    (
        &["lr_scheduler_type"],
        &["greedy"],
        "use a schedule that follows the steps, such as cosine, or reduce_lr_on_plateau",
    ),
    (&["mixed_precision"], &["fp8"], "use bf16, fp16 or no"),
    (
        &["backend", "ddp_backend"],
        &["mpi", "ccl", "hccl", "cncl"],
        "use nccl on GPUs, shm or gloo on the CPU, or single for one process",
    ),
    (
        &["report_to"],
        &[
            "azure_ml",
            "clearml",
            "codecarbon",
            "comet_ml",
            "dagshub",
            "dvclive",
            "flyte",
            "mlflow",
            "neptune",
            "swanlab",
            "trackio",
            "wandb",
        ],
        "use tensorboard or none; output_dir/metrics.jsonl has every step, and `launch report` draws it",
    ),
    (&["save_strategy"], &["best"], "use steps, epoch or no"),
    (&["packing_strategy"], &["bfd-requeue"], "it is called bfd_split"),
];

/// What to use instead, when `value` is a choice of `key` that users know and that is not built.
pub(crate) fn unbuilt_choice(key: &str, value: &Value) -> Option<&'static str> {
    if let Value::Sequence(values) = value {
        return values.iter().find_map(|value| unbuilt_choice(key, value));
    }
    let value = text(value)?.to_lowercase();
    let found = UNBUILT.iter().find(|(keys, names, _)| keys.contains(&key) && names.contains(&value.as_str()));
    found.map(|(_, _, hint)| *hint)
}
