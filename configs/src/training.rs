//! The table of keys: each is declared once, here, with its type, default, range, group and help. The struct
//! [`Training`], the registry [`KEYS`] and the reading of values are all made from it.

use crate::data::{ColumnMapping, Dataset};
use crate::error::ConfigError;
use crate::freezing::{Freeze, GroupRules};
use crate::profile::ProfileSteps;
use crate::registry::{Allowed, DefaultValue, Group, Key, Section};
use crate::schedule::{ScheduleShape, SchedulerKwargs};
use crate::settings::Reader;
use crate::sharding::BackwardPrefetch;
use crate::store_url::StoreUrl;
use crate::types::{
    Backend, BestMetric, ElementType, FsdpStrategy, NonFinite, OffloadDevice, PackingStrategy, Precision, ProblemType,
    Reporter, Sampling, StateDictType, StateType, StoppingStrategy, Strategy, UnfreezingStart, WarmupType, WrapPolicy,
};
use crate::value::FromValue;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

macro_rules! default_value {
    (required) => {
        DefaultValue::Required
    };
    (unset) => {
        DefaultValue::Unset
    };
    ((same_as $other:ident)) => {
        DefaultValue::SameAs(stringify!($other))
    };
    ((computed $words:literal)) => {
        DefaultValue::Computed($words)
    };
    ($text:literal) => {
        DefaultValue::Text($text)
    };
}

/// Lines of the form `/// help` `name: Type = default, allowed, Group;`. Those under `training` become fields of
/// [`Training`]; those under a section in brackets are read by name, because other keys have a say in them too.
macro_rules! keys {
    (
        training { $($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:tt, $allowed:expr, $group:ident;)+ }
        $([$section:ident] {
            $($(#[doc = $job_doc:literal])+ $job_name:ident: $job_type:ty = $job_default:tt, $job_allowed:expr, $job_group:ident;)+
        })+
    ) => {
        /// The section `training:`, decided. Names and meanings are those of `TrainingArguments` and `SFTConfig`.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Training {
            $($(#[doc = $doc])+ pub $name: $type,)+
        }

        impl Training {
            /// The keys that are fields.
            pub(crate) const FIELDS: &[&str] = &[$(stringify!($name)),+];

            pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, ConfigError> {
                Ok(Self { $($name: reader.read(stringify!($name))?,)+ })
            }
        }

        /// Every key that has a flag and a line in `--help`.
        pub const KEYS: &[Key] = &[
            $(Key {
                name: stringify!($name),
                section: Section::Training,
                kind: <$type as FromValue>::KIND,
                default: default_value!($default),
                allowed: $allowed,
                group: Group::$group,
                help: concat!($($doc),+).trim_ascii(),
            },)+
            $($(Key {
                name: stringify!($job_name),
                section: Section::$section,
                kind: <$job_type as FromValue>::KIND,
                default: default_value!($job_default),
                allowed: $job_allowed,
                group: Group::$job_group,
                help: concat!($($job_doc),+).trim_ascii(),
            },)+)+
        ];
    };
}

const POSITIVE: Allowed = Allowed::AtLeast(1.0);
const NOT_NEGATIVE: Allowed = Allowed::AtLeast(0.0);

keys! {
    training {
        /// The model to start from: a Hugging Face folder, the hub's id owner/name, or a checkpoint
        model_name_or_path: PathBuf = required, Allowed::Any, Files;
        /// Of a model of the hub: the branch, tag or commit
        model_revision: String = "main", Allowed::Any, Files;
        /// The training data: files, folders, patterns (docs/data.md), or the hub's owner/name
        dataset: Dataset = required, Allowed::Any, Files;
        /// The held-out data, of the same form; of the hub's data the test split if none is named
        eval_dataset: Option<Dataset> = unset, Allowed::Any, Files;
        /// Of data of the hub: the configuration
        dataset_config: Option<String> = (computed "the only one, or the default one"), Allowed::Any, Files;
        /// Of data of the hub: the split that is trained on
        dataset_train_split: String = "train", Allowed::Any, Files;
        /// Of data of the hub: the split that is held out
        dataset_test_split: String = "test", Allowed::Any, Files;
        /// The run folder: metrics, logs, checkpoints and the finished model
        output_dir: PathBuf = required, Allowed::Any, Files;
        /// Rows of one micro-batch on each process
        per_device_train_batch_size: u32 = "8", POSITIVE, Batches;
        /// Rows of one batch on each process when evaluating
        per_device_eval_batch_size: u32 = "8", POSITIVE, Batches;
        /// Times through the training data; may be a fraction
        num_train_epochs: f64 = "3", Allowed::Above(0.0), Batches;
        /// Optimizer steps to train for, whatever the epochs; -1 leaves it to them
        max_steps: i64 = "-1", Allowed::MinusOneOrAtLeast(1.0), Batches;
        /// The highest learning rate
        learning_rate: f64 = "2e-5", NOT_NEGATIVE, Optimizer;
        /// How the learning rate goes on after the warm-up
        lr_scheduler_type: ScheduleShape = "linear", Allowed::Any, Optimizer;
        /// Optimizer steps of warm-up; a number below 1 is a share of all steps
        warmup_steps: f64 = "0", NOT_NEGATIVE, Optimizer;
        /// Share of all steps that warms up, in place of warmup_steps
        warmup_ratio: f64 = "0", Allowed::Between(0.0, 1.0), Optimizer;
        /// How the learning rate rises in the warm-up: log is DeepSpeed's default
        warmup_type: WarmupType = "linear", Allowed::Any, Optimizer;
        /// AdamW's weight decay; biases and norm weights are not decayed
        weight_decay: f64 = "0", NOT_NEGATIVE, Optimizer;
        /// AdamW's decay rate of the first moment
        adam_beta1: f64 = "0.9", Allowed::HalfOpen(0.0, 1.0), Optimizer;
        /// AdamW's decay rate of the second moment
        adam_beta2: f64 = "0.999", Allowed::HalfOpen(0.0, 1.0), Optimizer;
        /// AdamW's epsilon
        adam_epsilon: f64 = "1e-8", Allowed::Above(0.0), Optimizer;
        /// What is not trained: patterns of parameter names, or all_but_head (docs/methods.md)
        freeze: Option<Freeze> = unset, Allowed::Any, Optimizer;
        /// Rates, weight decay and freezing by parameter names (docs/methods.md)
        parameter_groups: Option<GroupRules> = unset, Allowed::Any, Optimizer;
        /// Each layer's learning rate is this share of the next higher one's
        layer_wise_learning_rate_decay: f64 = "1", Allowed::Between(0.0, 1.0), Optimizer;
        /// When the next lower layer begins to be trained; no trains all from the start
        gradual_unfreezing: Strategy = "no", Allowed::Any, Optimizer;
        /// With gradual_unfreezing steps: optimizer steps between two openings
        gradual_unfreezing_steps: Option<u32> = unset, POSITIVE, Optimizer;
        /// With gradual_unfreezing: begin with the head and the top layer, or the head alone
        gradual_unfreezing_start: UnfreezingStart = "top_layer", Allowed::Any, Optimizer;
        /// With gradual_unfreezing: the embeddings open after the lowest layer
        gradual_unfreezing_embeddings: bool = "false", Allowed::Any, Optimizer;
        /// Adds so many times the squared distance from the model's own weights to the loss
        l2_toward_pretrained: f64 = "0", NOT_NEGATIVE, Optimizer;
        /// Elastic weight consolidation: the weight of the distance by Fisher information
        ewc_lambda: f64 = "0", NOT_NEGATIVE, Optimizer;
        /// With ewc_lambda: the data whose knowledge is to stay, of the form of dataset
        ewc_dataset: Option<Dataset> = unset, Allowed::Any, Optimizer;
        /// With ewc_lambda: rows of ewc_dataset that the Fisher information is estimated on
        ewc_samples: u32 = "200", POSITIVE, Optimizer;
        /// Mixout: the share of weights that are the model's own ones, drawn anew each step
        mixout_probability: f64 = "0", Allowed::HalfOpen(0.0, 1.0), Optimizer;
        /// Optimizer steps between two log lines; metrics.jsonl has every step
        logging_steps: u32 = "10", POSITIVE, Reports;
        /// Record a timeline of these optimizer steps in output_dir/profile.json
        profile: Option<ProfileSteps> = unset, Allowed::Any, Reports;
        /// Also write the metrics of every step for this program
        report_to: Option<Reporter> = "none", Allowed::Any, Reports;
        /// With report_to tensorboard: the folder of its event files
        logging_dir: Option<PathBuf> = (computed "output_dir/runs/DATE_HOST"), Allowed::Any, Reports;
        /// Serve Prometheus metrics on this port of 127.0.0.1; 0 takes any free one
        metrics_port: Option<u16> = unset, Allowed::Between(0.0, 65535.0), Reports;
        /// When the held-out loss is measured during training
        eval_strategy: Strategy = "no", Allowed::Any, Reports;
        /// Also measure the held-out loss before the first step
        eval_on_start: bool = "false", Allowed::Any, Reports;
        /// Optimizer steps between two evaluations, with eval_strategy steps
        eval_steps: u32 = (same_as logging_steps), POSITIVE, Reports;
        /// When a checkpoint to resume from is saved
        save_strategy: Strategy = "steps", Allowed::Any, Reports;
        /// Optimizer steps between two checkpoints, with save_strategy steps
        save_steps: u32 = "500", POSITIVE, Reports;
        /// Keep so many of the newest checkpoints; 0 keeps all
        save_total_limit: Option<u32> = unset, NOT_NEGATIVE, Reports;
        /// With save_total_limit: also keep those of steps that this number divides
        save_keep_every: Option<u32> = unset, POSITIVE, Reports;
        /// Also put each checkpoint into this store, and resume from it: s3://BUCKET/PREFIX
        checkpoint_store: Option<StoreUrl> = unset, Allowed::Any, Reports;
        /// What evaluations are judged by: the held-out loss, or another figure of them
        metric_for_best_model: BestMetric = "loss", Allowed::Any, Reports;
        /// Whether more of it is better; another value than the right one is refused
        greater_is_better: Option<bool> = (computed "by metric_for_best_model"), Allowed::Any, Reports;
        /// Export the model of the checkpoint with the best evaluation
        load_best_model_at_end: bool = "false", Allowed::Any, Reports;
        /// End training after so many evaluations in a row none of which is better
        early_stopping_patience: Option<u32> = unset, POSITIVE, Reports;
        /// With early_stopping_patience: an evaluation is better if it is so by more than this
        early_stopping_threshold: f64 = "0", NOT_NEGATIVE, Reports;
        /// The share of each label's weight that all tokens have evenly
        label_smoothing_factor: f64 = "0", Allowed::Between(0.0, 1.0), Optimizer;
        /// The seed of everything random
        seed: u64 = "42", NOT_NEGATIVE, Data;
        /// A seed of its own for the order of the rows
        data_seed: Option<u64> = (computed "the value of seed"), NOT_NEGATIVE, Data;
        /// The order of the rows
        train_sampling_strategy: Sampling = "random", Allowed::Any, Data;
        /// Tokens of a row, or of a pack; what is longer is cut at the end
        max_length: u32 = "1024", Allowed::AtLeast(2.0), Data;
        /// Put rows end to end into packs of max_length tokens; batch sizes then count packs
        packing: bool = "false", Allowed::Any, Data;
        /// How rows are packed: best fit, best fit of rows in pieces, or cut where a pack is full
        packing_strategy: PackingStrategy = "bfd", Allowed::Any, Data;
        /// Also pack the held-out rows
        eval_packing: bool = (same_as packing), Allowed::Any, Data;
        /// Put the rows of a micro-batch end to end in place of padding them; packs always are
        padding_free: bool = "false", Allowed::Any, Data;
        /// Of several sources without weights: shares by size to the power of 1 / this
        mixing_temperature: Option<f64> = unset, Allowed::Above(0.0), Data;
        /// Of mixed sources: an epoch ends when the first, or when each was used up
        stopping_strategy: StoppingStrategy = "first_exhausted", Allowed::Any, Data;
        /// Loss on the assistant's tokens only, for rows that are conversations
        assistant_only_loss: bool = "true", Allowed::Any, Data;
        /// The chat template: a .jinja file, a model that has one, or a built-in one's name
        chat_template_path: Option<PathBuf> = (computed "the model's own"), Allowed::Any, Data;
        /// The token that ends a turn
        eos_token: Option<String> = (computed "the tokenizer's own"), Allowed::Any, Data;
        /// Loss on the completion only, for rows with `prompt` and `completion`
        completion_only_loss: Option<bool> = (computed "true for such rows"), Allowed::Any, Data;
        /// Train a classifier of sequences (docs/classification.md): what it tells of a row's `label`
        problem_type: Option<ProblemType> = (computed "that of the model, if it is a classifier"), Allowed::Any, Data;
        /// Of a classifier: how many classes, or numbers, it tells
        num_labels: Option<u32> = (computed "those of the model, or of the data"), POSITIVE, Data;
        /// The column of plain text
        dataset_text_field: Option<String> = "text", Allowed::Any, Data;
        /// Columns called otherwise in the data; only those named are used
        column_mapping: Option<ColumnMapping> = unset, Allowed::Any, Data;
        /// The type of the exported model's files
        save_dtype: Option<ElementType> = (computed "the type of the model's own files"), Allowed::Any, Reports;
    }
    [Training] {
        /// Micro-batches per optimizer step
        gradient_accumulation_steps: u32 = "1", POSITIVE, Batches;
        /// What the schedule takes beside the warm-up, as {num_cycles: 2} (docs/schedules.md)
        lr_scheduler_kwargs: Option<SchedulerKwargs> = unset, Allowed::Any, Optimizer;
        /// Gradients are scaled down to this global norm; 0 switches it off
        max_grad_norm: f64 = "1", NOT_NEGATIVE, Optimizer;
        /// Recompute activations in the backward pass: less memory, more time
        gradient_checkpointing: bool = "true", Allowed::Any, Job;
        /// With gradient_checkpointing: recompute one decoder block in so many; 1 recomputes all
        gradient_checkpointing_every: u32 = "1", POSITIVE, Job;
        /// The same as mixed_precision bf16
        bf16: bool = (computed "by mixed_precision"), Allowed::Any, Job;
        /// The same as mixed_precision fp16
        fp16: bool = (computed "by mixed_precision"), Allowed::Any, Job;
        /// Type of masters and optimizer state; bfloat16 (pure bf16) is smaller and less exact
        master_dtype: StateType = "float32", Allowed::Any, Job;
        /// Type in which gradients travel between processes
        reduce_dtype: ElementType = (computed "the type of master_dtype"), Allowed::Any, Job;
        /// Type in which gradients are added up over micro-batches
        grad_accum_dtype: StateType = (computed "the type of master_dtype"), Allowed::Any, Job;
        /// When gradients are NaN or infinite: end the run and say where, or skip the step
        nonfinite_gradients: NonFinite = "stop", Allowed::Any, Optimizer;
        /// The collectives: nccl on GPUs, shm or gloo on the CPU, single for one process
        backend: Backend = (computed "nccl, shm on the CPU, single for one process"), Allowed::Any, Job;
        /// Round the factors of float32 matrix products to TF32: faster on GPUs, less exact
        tf32: bool = "false", Allowed::Any, Job;
        /// Use a GPU even while another job computes on it
        share_gpus: bool = "false", Allowed::Any, Job;
    }
    [Top] {
        /// Compute type: no (that of the masters), bf16, or fp16 with dynamic loss scaling
        mixed_precision: Precision = "no", Allowed::Any, Job;
        /// Processes of the job on all hosts together; --nproc counts those of one
        num_processes: u32 = (computed "by the file, or 1"), Allowed::MinusOneOrAtLeast(1.0), Job;
        /// Train on the CPU, even where there are GPUs
        use_cpu: bool = (computed "true where there is no GPU"), Allowed::Any, Job;
        /// Port of the control plane
        main_process_port: Option<u16> = (computed "any free port"), Allowed::Between(0.0, 65535.0), Job;
        /// Hosts of the job, each with one launch; MIN:MAX goes on with fewer when some are gone
        nnodes: String = "1", Allowed::Any, Hosts;
        /// Which of them this is, from 0; host 0 coordinates
        node_rank: u32 = (computed "by the scheduler, or 0"), NOT_NEGATIVE, Hosts;
        /// HOST:PORT of host 0, the same on all
        rdzv_endpoint: String = (computed "by the scheduler"), Allowed::Any, Hosts;
        /// A name of the job: launches of another are refused
        rdzv_id: String = (computed "by the scheduler, or default"), Allowed::Any, Hosts;
        /// Seconds that hosts are waited for
        rdzv_conf: String = "join_timeout=600,last_call_timeout=30", Allowed::Any, Hosts;
        /// The HOST of rdzv_endpoint
        master_addr: String = unset, Allowed::Any, Hosts;
        /// The PORT of rdzv_endpoint
        master_port: Option<u16> = (computed "29400"), Allowed::Between(0.0, 65535.0), Hosts;
        /// Name or address of the network interface that collectives use on this host
        interface: String = (computed "the one that reaches host 0"), Allowed::Any, Hosts;
        /// File with the token that all launches of the job share, if not in ZEROFOLD_TOKEN
        token_file: PathBuf = unset, Allowed::Any, Hosts;
        /// Do not encrypt what launches and workers of several hosts say to each other
        no_tls: bool = "false", Allowed::Any, Hosts;
    }
    [DeepSpeed] {
        /// What is sharded: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters
        zero_stage: u8 = (computed "by the file, or 0"), Allowed::Between(0.0, 3.0), Job;
        /// Where optimizer state lies: cpu is host memory, nvme files; needs stage 1 or more
        offload_optimizer_device: Option<OffloadDevice> = "none", Allowed::Any, Job;
        /// The folder of these files
        offload_optimizer_nvme_path: Option<PathBuf> = unset, Allowed::Any, Job;
    }
    [Fsdp] {
        /// What is sharded, in FSDP's words
        fsdp_sharding_strategy: FsdpStrategy = (computed "FULL_SHARD with distributed_type FSDP"), Allowed::Any, Job;
        /// Release parameters after the forward pass: true, false, or a group's size (fsdp_version 2)
        fsdp_reshard_after_forward: bool = (computed "true at stage 3"), Allowed::Any, Job;
        /// Parameters, gradients and optimizer state in host memory, beside a GPU
        fsdp_offload_params: bool = "false", Allowed::Any, Job;
        /// How the model is cut into units: by decoder block, by size, or not at all
        fsdp_auto_wrap_policy: WrapPolicy = "TRANSFORMER_BASED_WRAP", Allowed::Any, Job;
        /// Parameters of a unit, at least, with SIZE_BASED_WRAP
        fsdp_min_num_params: u64 = "1e8", NOT_NEGATIVE, Job;
        /// When the backward pass of stage 3 gathers the next unit
        fsdp_backward_prefetch: BackwardPrefetch = "BACKWARD_PRE", Allowed::Any, Job;
        /// What a save writes: shards, or with FULL_STATE_DICT the whole model beside them too
        fsdp_state_dict_type: StateDictType = "SHARDED_STATE_DICT", Allowed::Any, Job;
    }
    [Parallelism] {
        /// Hybrid sharding: copies of everything sharded, each over its share of the processes
        parallelism_config_dp_replicate_size: u32 = "1", POSITIVE, Job;
        /// Processes of one copy
        parallelism_config_dp_shard_size: u32 = (computed "num_processes / copies"), POSITIVE, Job;
    }
}

impl Training {
    /// Optimizer steps of warm-up when the training has `total_steps`: `warmup_steps`, a share of the total when it is
    /// below 1, else `warmup_ratio` of the total; shares are rounded up.
    pub fn warmup_steps_of(&self, total_steps: u64) -> u64 {
        if self.warmup_steps >= 1.0 {
            return self.warmup_steps as u64;
        }
        let share = if self.warmup_steps > 0.0 { self.warmup_steps } else { self.warmup_ratio };
        (share * total_steps as f64).ceil() as u64
    }

    /// The seed of the order of the rows: `data_seed`, else `seed`.
    pub fn row_seed(&self) -> u64 {
        self.data_seed.unwrap_or(self.seed)
    }
}
