//! The keys of a DeepSpeed JSON, each by its whole path. The names are DeepSpeed's.

use crate::known::Role::{NoEffect, NotBuilt, Used};
use crate::known::{Known, Role, ZERO, known};
use crate::registry::{Section, nearest};

const NO: &[&str] = &["false", "none", "", "auto"];
const OFF: &[&str] = &["off"];
const ANY: &[&str] = &["*"];
const ZERO_ONLY: &[&str] = &["0", "auto"];
const SILENT: Role = NoEffect("");
const METRICS: Role = NoEffect("metrics go to output_dir/metrics.jsonl, every step; see report_to");
const ADDED: Role = NoEffect("gradients are added up in a wide enough type and divided once");
const RECOMPUTED: Role = NoEffect("gradient_checkpointing says what is recomputed");
const ONE_LOSS_SCALE: Role =
    NotBuilt("the loss scale begins at 2^16 and is halved and doubled by itself: leave it out");
const REMOVE: Role = NotBuilt("remove the key");

/// Every key but those under `zero_optimization` that [`ZERO`] has. The neutral value `off` stands for an object with
/// `"enabled": false`.
pub(crate) const KEYS: &[Known] = &[
    known("train_batch_size", &[], Used),
    known("train_micro_batch_size_per_gpu", &[], Used),
    known("gradient_accumulation_steps", &[], Used),
    known("gradient_clipping", &[], Used),
    known("gradient_allreduce_op", &["mean", "avg", "none", ""], NotBuilt("gradients are always the mean: use mean")),
    known("prescale_gradients", NO, ADDED),
    known("gradient_predivide_factor", &["1"], ADDED),
    known("communication_data_type", &[], Used),
    known("data_types.grad_accum_dtype", &[], Used),
    known("sparse_gradients", NO, NoEffect("gradients of embeddings are dense, with the same values")),
    known("disable_allgather", NO, NoEffect("parameters are always gathered by an all-gather")),
    known("steps_per_print", ANY, SILENT),
    known("wall_clock_breakdown", NO, NoEffect("use the flag --profile for where the time goes")),
    known("memory_breakdown", NO, NoEffect("the final report has the memory of each rank")),
    known("dump_state", ANY, SILENT),
    known("timers", ANY, SILENT),
    known("graph_harvesting", ANY, SILENT),
    known("use_node_local_storage", NO, NotBuilt("checkpoints lie on storage that every host sees: use false")),
    known("dataloader_drop_last", NO, NotBuilt("every row is used once per epoch: use false")),
    known("seq_parallel_communication_data_type", ANY, SILENT),
    known("zero_allow_untested_optimizer", ANY, SILENT),
    known("zero_force_ds_cpu_optimizer", ANY, SILENT),
    // Precision
    known("bf16.enabled", &[], Used),
    known("bf16.bf16_master_weights_and_grads", &[], Used),
    known("bf16.bf16_optimizer_states", &[], Used),
    known("bf16.immediate_grad_update", ANY, SILENT),
    known("bf16.check_grad_overflow", ANY, SILENT),
    known("bf16.auto_cast", ANY, SILENT),
    known("bf16.loss_scale", &["1", "0"], REMOVE),
    known("fp16.enabled", &[], Used),
    known("fp16.auto_cast", ANY, SILENT),
    known("fp16.fp16_master_weights_and_grads", NO, NotBuilt("float16 needs float32 masters: use false")),
    known("fp16.consecutive_hysteresis", NO, ONE_LOSS_SCALE),
    known("fp16.loss_scale", ZERO_ONLY, ONE_LOSS_SCALE),
    known("fp16.initial_scale_power", &["16"], ONE_LOSS_SCALE),
    known("fp16.loss_scale_window", &["1000"], ONE_LOSS_SCALE),
    known("fp16.hysteresis", &["2"], ONE_LOSS_SCALE),
    known("fp16.min_loss_scale", &["1"], ONE_LOSS_SCALE),
    known("fp16.opt_level", ANY, SILENT),
    known("amp", OFF, NotBuilt("use bf16 or fp16")),
    known("torch_autocast", OFF, NotBuilt("use bf16 or fp16")),
    // The optimizer and its schedule
    known("optimizer.type", &[], Used),
    known("optimizer.legacy_fusion", ANY, SILENT),
    known("optimizer.params.lr", &[], Used),
    known("optimizer.params.betas", &[], Used),
    known("optimizer.params.eps", &[], Used),
    known("optimizer.params.weight_decay", &[], Used),
    known("optimizer.params.adam_w_mode", &[], Used),
    known("optimizer.params.torch_adam", ANY, SILENT),
    known("optimizer.params.fused", ANY, SILENT),
    known("optimizer.params.foreach", ANY, SILENT),
    known("optimizer.params.fp32_optimizer_states", ANY, SILENT),
    known("optimizer.params.bias_correction", &["true"], NotBuilt("moments are always corrected: use true")),
    known("optimizer.params.amsgrad", NO, NotBuilt("use amsgrad: false")),
    known("scheduler.type", &[], Used),
    known("scheduler.params.warmup_min_lr", ZERO_ONLY, NotBuilt("the warm-up begins at 0")),
    known("scheduler.params.warmup_max_lr", &[], Used),
    known("scheduler.params.warmup_num_steps", &[], Used),
    known("scheduler.params.warmup_type", &[], Used),
    known("scheduler.params.total_num_steps", &[], Used),
    known("scheduler.params.warmup_min_ratio", ZERO_ONLY, NotBuilt("the warm-up begins at 0")),
    known("scheduler.params.cos_min_ratio", &[], Used),
    known("scheduler.params.last_batch_iteration", &["-1"], NotBuilt("use the flag --resume")),
    // Sharding; what is the same under a name of `deepspeed_config` stands in `ZERO`
    known("zero_optimization.stage", &[], Used),
    known("zero_optimization.offload_optimizer.device", &[], Used),
    known("zero_optimization.offload_optimizer.nvme_path", &[], Used),
    known("zero_optimization.offload_optimizer.pin_memory", ANY, SILENT),
    known("zero_optimization.offload_optimizer.buffer_count", ANY, SILENT),
    known("zero_optimization.offload_optimizer.buffer_size", ANY, SILENT),
    known("zero_optimization.offload_optimizer.pipeline", ANY, SILENT),
    known("zero_optimization.offload_optimizer.pipeline_read", ANY, SILENT),
    known("zero_optimization.offload_optimizer.pipeline_write", ANY, SILENT),
    known("zero_optimization.offload_optimizer.fast_init", ANY, SILENT),
    known(
        "zero_optimization.offload_optimizer.ratio",
        &["1"],
        NotBuilt("the optimizer's state is offloaded as a whole: use 1"),
    ),
    known("zero_optimization.offload_optimizer.super_offload", NO, NoEffect("it is for one kind of processor")),
    known("zero_optimization.offload_optimizer.cpuadam_cores_perc", ANY, SILENT),
    known("zero_optimization.offload_param.device", &[], Used),
    known("zero_optimization.offload_param.nvme_path", &[], Used),
    known("zero_optimization.offload_param.pin_memory", ANY, SILENT),
    known("zero_optimization.offload_param.buffer_count", ANY, SILENT),
    known("zero_optimization.offload_param.buffer_size", ANY, SILENT),
    known("zero_optimization.offload_param.max_in_cpu", ANY, SILENT),
    known("zero_optimization.offload_param.pipeline_read", ANY, SILENT),
    known("zero_optimization.cpu_offload", &[], Used),
    known("zero_optimization.cpu_offload_param", &[], Used),
    known("zero_optimization.cpu_offload_params", &[], Used),
    known("zero_optimization.cpu_offload_use_pin_memory", ANY, SILENT),
    known("zero_optimization.stage3_gather_fp16_weights_on_model_save", ANY, SILENT),
    known("zero_optimization.stage3_module_granularity_threshold", ANY, SILENT),
    known("zero_optimization.stage3_use_all_reduce_for_fetch_params", ANY, SILENT),
    known("zero_optimization.stage3_allgather_sequential", ANY, SILENT),
    known("zero_optimization.stage3_partition_stream_chunk_size", ANY, SILENT),
    known("zero_optimization.use_multi_rank_bucket_allreduce", ANY, SILENT),
    known("zero_optimization.legacy_stage1", ANY, SILENT),
    known("zero_optimization.memory_efficient_linear", ANY, SILENT),
    known("zero_optimization.override_module_apply", ANY, SILENT),
    known("zero_optimization.pipeline_loading_checkpoint", ANY, SILENT),
    known("zero_optimization.log_trace_cache_warnings", ANY, SILENT),
    known("zero_optimization.enable_sanity_checks", ANY, SILENT),
    known("zero_optimization.save_muon_momentum_buffer_in_memory", ANY, SILENT),
    known("zero_optimization.leaf_module", ANY, SILENT),
    known("zero_optimization.zero_quantized_nontrainable_weights", NO, NotBuilt("all parameters are trained")),
    known("zero_optimization.zeropp_loco_param", &["none", ""], NotBuilt("gradients are not quantised: remove it")),
    known("zero_optimization.mics_shard_size", &["-1"], NotBuilt("use HYBRID_SHARD, or dp_replicate_size")),
    known("zero_optimization.mics_hierarchical_params_gather", NO, REMOVE),
    known("zero_optimization.zenflow", &["none", ""], REMOVE),
    // What is recomputed, and what else DeepSpeed can do
    known("activation_checkpointing.partition_activations", NO, RECOMPUTED),
    known("activation_checkpointing.cpu_checkpointing", NO, RECOMPUTED),
    known("activation_checkpointing.contiguous_memory_optimization", ANY, SILENT),
    known("activation_checkpointing.synchronize_checkpoint_boundary", ANY, SILENT),
    known("activation_checkpointing.number_checkpoints", &["none", ""], RECOMPUTED),
    known("activation_checkpointing.profile", ANY, SILENT),
    known("checkpoint.tag_validation", ANY, SILENT),
    known("checkpoint.load_universal", ANY, SILENT),
    known("checkpoint.use_node_local_storage", NO, NotBuilt("checkpoints lie on storage that every host sees")),
    known("checkpoint.parallel_write", ANY, SILENT),
    known("checkpoint.writer", ANY, SILENT),
    known("aio", ANY, SILENT),
    known("comms_logger", OFF, NoEffect("use the flag --profile for what is sent when")),
    known("flops_profiler", OFF, NoEffect("use the flag --profile, or launch compare")),
    known("tensorboard", OFF, METRICS),
    known("wandb", OFF, METRICS),
    known("csv_monitor", OFF, METRICS),
    known("comet", OFF, METRICS),
    known("autotuning", OFF, NotBuilt("use launch plan and launch compare")),
    known("elasticity", OFF, NotBuilt("use --nnodes MIN:MAX")),
    known("compile", OFF, NoEffect("nothing is compiled")),
    known("nebula", OFF, NotBuilt("use checkpoint_store")),
    known("hybrid_engine", OFF, REMOVE),
    known("data_efficiency", OFF, REMOVE),
    known("curriculum_learning", OFF, REMOVE),
    known("progressive_layer_drop", OFF, REMOVE),
    known("eigenvalue", OFF, REMOVE),
    known("compression_training", OFF, REMOVE),
    known("sparse_attention", &["none", ""], REMOVE),
    known("weight_quantization", OFF, REMOVE),
    known("tensor_parallel", OFF, NotBuilt("only data parallelism is built so far")),
    known("pipeline", OFF, NotBuilt("only data parallelism is built so far")),
    known("sequence_parallel_size", &["1"], NotBuilt("only data parallelism is built so far: use 1")),
];

/// Keys whose value is that of one of ours, in the same words.
pub(super) const SAME: &[(&str, Section, &str)] = &[
    ("train_micro_batch_size_per_gpu", Section::Training, "per_device_train_batch_size"),
    ("gradient_accumulation_steps", Section::Training, "gradient_accumulation_steps"),
    ("gradient_clipping", Section::Training, "max_grad_norm"),
    ("bf16.enabled", Section::Training, "bf16"),
    ("fp16.enabled", Section::Training, "fp16"),
    ("optimizer.params.lr", Section::Training, "learning_rate"),
    ("optimizer.params.eps", Section::Training, "adam_epsilon"),
    ("optimizer.params.weight_decay", Section::Training, "weight_decay"),
    ("scheduler.params.warmup_max_lr", Section::Training, "learning_rate"),
    ("scheduler.params.warmup_num_steps", Section::Training, "warmup_steps"),
    ("scheduler.params.warmup_type", Section::Training, "warmup_type"),
    ("zero_optimization.stage", Section::DeepSpeed, "zero_stage"),
    ("zero_optimization.offload_optimizer.device", Section::DeepSpeed, "offload_optimizer_device"),
    ("zero_optimization.offload_optimizer.nvme_path", Section::DeepSpeed, "offload_optimizer_nvme_path"),
    ("zero_optimization.offload_param.device", Section::DeepSpeed, "offload_param_device"),
    ("zero_optimization.offload_param.nvme_path", Section::DeepSpeed, "offload_param_nvme_path"),
];

const UNDER_ZERO: &str = "zero_optimization.";

/// The key of this path; `bfloat16` is an old name of `bf16`.
pub(super) fn find(path: &str) -> Option<&'static Known> {
    let renamed = path.strip_prefix("bfloat16.").map(|rest| format!("bf16.{rest}"));
    let path = renamed.as_deref().unwrap_or(path);
    let zero = path.strip_prefix(UNDER_ZERO).and_then(|name| ZERO.iter().find(|known| known.name == name));
    KEYS.iter().find(|known| known.name == path).or(zero)
}

/// Whether keys stand under this path.
pub(super) fn is_branch(path: &str) -> bool {
    path == "bfloat16"
        || KEYS.iter().any(|known| known.name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// Whether a key stands at the top level of a DeepSpeed JSON.
pub(crate) fn is_known(key: &str) -> bool {
    find(key).is_some() || is_branch(key)
}

/// Every whole path.
pub(crate) fn paths() -> impl Iterator<Item = String> {
    let zero = ZERO.iter().map(|known| format!("{UNDER_ZERO}{}", known.name));
    KEYS.iter().map(|known| known.name.to_owned()).chain(zero)
}

/// What to say of a key that nobody knows: the right name beside it, else the path of one that ends so.
pub(super) fn suggestion(outer: &str, name: &str) -> String {
    let prefix = if outer.is_empty() { String::new() } else { format!("{outer}.") };
    let all: Vec<String> = paths().collect();
    let beside = all.iter().filter_map(|path| path.strip_prefix(&prefix)?.split('.').next());
    if let Some(near) = nearest(name, beside) {
        return format!("did you mean {near}?");
    }
    let last = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    match all.iter().find(|path| last(path) == name) {
        Some(path) => format!("did you mean {path}?"),
        None => "remove the key: DeepSpeed has none of this name there".to_owned(),
    }
}
