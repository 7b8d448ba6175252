//! The choices: small enums whose written form is the one that users already know.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One enum of named values: the names are its serde form, its [`std::fmt::Display`], and what a configuration accepts.
macro_rules! choice {
    ($(#[doc = $doc:literal])+ $vis:vis $name:ident { $($(#[doc = $variant_doc:literal])+ $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        $vis enum $name {
            $($(#[doc = $variant_doc])+ #[serde(rename = $text)] $variant),+
        }

        impl $name {
            /// The values in their written form.
            $vis const NAMES: &'static [&'static str] = &[$($text),+];

            /// The written form.
            $vis fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// Reads the written form; capitals do not matter.
            $vis fn from_name(text: &str) -> Option<Self> {
                $(if text.eq_ignore_ascii_case($text) { return Some(Self::$variant); })+
                None
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(self.name())
            }
        }
    };
}
pub(crate) use choice;

choice! {
    /// What a job computes on.
    pub DeviceKind {
        /// Processors.
        Cpu = "cpu",
        /// NVIDIA GPUs, one for each process.
        Cuda = "cuda",
    }
}

/// Where optimizer state lies: masters and moments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offload {
    /// On the device that computes.
    No,
    /// In host memory, beside a GPU.
    HostMemory,
    /// In memory-mapped files in this folder.
    Files(PathBuf),
}

choice! {
    /// What gradual unfreezing begins with.
    pub UnfreezingStart {
        /// The head and the top layer.
        TopLayer = "top_layer",
        /// The head alone.
        Head = "head",
    }
}

choice! {
    /// What a classifier tells of a sequence, by transformers' names.
    pub ProblemType {
        /// One class of several: cross-entropy.
        SingleLabel = "single_label_classification",
        /// For each class whether it is one: binary cross-entropy.
        MultiLabel = "multi_label_classification",
        /// Numbers: squared error.
        Regression = "regression",
    }
}

choice! {
    /// What evaluations are judged by: the names in metrics.jsonl, without `eval_`.
    pub BestMetric {
        /// The held-out loss.
        Loss = "loss",
        /// The share of tokens that were right, of a language model.
        MeanTokenAccuracy = "mean_token_accuracy",
        /// The share of rows that were right, of a classifier.
        Accuracy = "accuracy",
        /// Its F1.
        F1 = "f1",
        /// Its Matthews coefficient.
        MatthewsCorrelation = "matthews_correlation",
        /// The mean squared error of a regression.
        Mse = "mse",
        /// Its Pearson coefficient.
        Pearson = "pearson",
    }
}

#[expect(clippy::derivable_impls, reason = "choices are made by a macro that marks none of them")]
impl Default for BestMetric {
    fn default() -> Self {
        BestMetric::Loss
    }
}

impl BestMetric {
    /// Whether the larger is the better.
    pub fn greater_is_better(self) -> bool {
        !matches!(self, BestMetric::Loss | BestMetric::Mse)
    }
}

choice! {
    /// What carries the collectives.
    pub Backend {
        /// NCCL between NVIDIA GPUs.
        Nccl = "nccl",
        /// Gloo over TCP: several processes.
        Gloo = "gloo",
        /// Shared memory between the processes of a host, Gloo between hosts.
        Shm = "shm",
        /// No communication: one process.
        Single = "single",
    }
}

choice! {
    /// The type that parameters and activations are computed in.
    pub Precision {
        /// The masters' own type: float32 throughout, or bfloat16 with `master_dtype: bfloat16`.
        No = "no",
        /// bfloat16 compute.
        Bf16 = "bf16",
        /// float16 compute with float32 masters and dynamic loss scaling.
        Fp16 = "fp16",
    }
}

choice! {
    /// How the learning rate changes over the optimizer steps, after the warm-up.
    pub Scheduler {
        /// Falls in a straight line to 0 at the last step.
        Linear = "linear",
        /// Falls along half a cosine to 0 at the last step.
        Cosine = "cosine",
        /// Falls along half a cosine several times, each time from the highest rate.
        CosineWithRestarts = "cosine_with_restarts",
        /// Falls along half a cosine to a rate above 0.
        CosineWithMinLr = "cosine_with_min_lr",
        /// The same, one step earlier, after a warm-up that does not begin at 0.
        CosineWarmupWithMinLr = "cosine_warmup_with_min_lr",
        /// Falls with a power of what is left of the steps.
        Polynomial = "polynomial",
        /// Stays, and has no warm-up.
        Constant = "constant",
        /// Stays after the warm-up.
        ConstantWithWarmup = "constant_with_warmup",
        /// Falls with the square root of the steps, without an end.
        InverseSqrt = "inverse_sqrt",
        /// Stays after the warm-up, and falls in the last steps.
        WarmupStableDecay = "warmup_stable_decay",
        /// Falls whenever the held-out loss has not become lower for long enough, and has no warm-up.
        ReduceLrOnPlateau = "reduce_lr_on_plateau",
    }
}

impl Scheduler {
    /// Every one.
    pub(crate) const ALL: [Scheduler; 11] = [
        Scheduler::Linear,
        Scheduler::Cosine,
        Scheduler::CosineWithRestarts,
        Scheduler::CosineWithMinLr,
        Scheduler::CosineWarmupWithMinLr,
        Scheduler::Polynomial,
        Scheduler::Constant,
        Scheduler::ConstantWithWarmup,
        Scheduler::InverseSqrt,
        Scheduler::WarmupStableDecay,
        Scheduler::ReduceLrOnPlateau,
    ];
}

choice! {
    /// How a rate rises or falls in a phase of warmup_stable_decay.
    pub Curve {
        /// In a straight line.
        Linear = "linear",
        /// Along half a cosine.
        Cosine = "cosine",
        /// As 1 less the square root of what is done: steep at first in a decay, at last in a warm-up.
        OneMinusSqrt = "1-sqrt",
    }
}

choice! {
    /// Which losses are better, to reduce_lr_on_plateau.
    pub PlateauMode {
        /// Lower ones.
        Min = "min",
        /// Higher ones.
        Max = "max",
    }
}

choice! {
    /// What the threshold of reduce_lr_on_plateau is.
    pub ThresholdMode {
        /// A share of the best loss.
        Relative = "rel",
        /// A difference from it.
        Absolute = "abs",
    }
}

choice! {
    /// How the learning rate rises in the warm-up.
    pub WarmupType {
        /// In a straight line, as in transformers.
        Linear = "linear",
        /// As the logarithm of the step, steep at first: DeepSpeed's default.
        Log = "log",
    }
}

choice! {
    /// When something is done during training.
    pub Strategy {
        /// Never.
        No = "no",
        /// Each so many optimizer steps.
        Steps = "steps",
        /// At the end of each epoch.
        Epoch = "epoch",
    }
}

choice! {
    /// The order in which rows are drawn.
    pub Sampling {
        /// A seeded permutation per epoch, the same for every number of processes.
        Random = "random",
        /// The order of the file.
        Sequential = "sequential",
        /// As random, with rows of like length brought together.
        GroupByLength = "group_by_length",
    }
}

choice! {
    /// How rows are put into packs; the names are TRL's.
    pub PackingStrategy {
        /// Best fit decreasing; rows stay whole, and longer ones are cut at the end.
        Bfd = "bfd",
        /// The same, with longer rows cut into pieces first.
        BfdSplit = "bfd_split",
        /// All rows end to end, cut wherever a pack is full.
        Wrapped = "wrapped",
    }
}

choice! {
    /// When an epoch of mixed sources ends; the names are those of `datasets.interleave_datasets`.
    pub StoppingStrategy {
        /// When the first source is used up.
        FirstExhausted = "first_exhausted",
        /// When each source was used up; smaller ones come several times.
        AllExhausted = "all_exhausted",
    }
}

choice! {
    /// An element type: of an exported model's files, of gradients on the wire, of masters.
    pub ElementType {
        /// 4 bytes an element.
        Float32 = "float32",
        /// 2 bytes an element, float32's range.
        Bfloat16 = "bfloat16",
        /// 2 bytes an element, IEEE half precision.
        Float16 = "float16",
    }
}

impl ElementType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            ElementType::Float32 => 4,
            ElementType::Bfloat16 | ElementType::Float16 => 2,
        }
    }
}

choice! {
    /// What is done when a step's gradients are NaN or infinite. With float16's dynamic loss scale, overflows that a
    /// smaller scale can mend are always skipped.
    pub NonFinite {
        /// The run ends, after the step, unit, parameter and row were found and told.
        Stop = "stop",
        /// The step is not taken, and the log says so.
        Skip = "skip",
    }
}

choice! {
    /// The element types that masters, moments and accumulated gradients can have.
    pub(crate) StateType {
        /// 4 bytes an element.
        Float32 = "float32",
        /// 2 bytes an element, float32's range.
        Bfloat16 = "bfloat16",
    }
}

impl From<StateType> for ElementType {
    fn from(state: StateType) -> Self {
        match state {
            StateType::Float32 => ElementType::Float32,
            StateType::Bfloat16 => ElementType::Bfloat16,
        }
    }
}

choice! {
    /// Where metrics go, beside metrics.jsonl.
    pub Reporter {
        /// TensorBoard's event files.
        Tensorboard = "tensorboard",
    }
}

choice! {
    /// FSDP's names for what is sharded. Version 1 also has them as numbers, from 1 on in this order.
    pub(crate) FsdpStrategy {
        /// Everything, and parameters are released after each use.
        FullShard = "FULL_SHARD",
        /// Everything, and parameters are kept from forward to backward.
        ShardGradOp = "SHARD_GRAD_OP",
        /// Nothing.
        NoShard = "NO_SHARD",
        /// As FULL_SHARD inside each copy.
        HybridShard = "HYBRID_SHARD",
        /// As SHARD_GRAD_OP inside each copy.
        HybridShardZero2 = "HYBRID_SHARD_ZERO2",
    }
}

choice! {
    /// FSDP's names for what a save writes. Version 1 also has them as numbers, from 1 on in this order.
    pub StateDictType {
        /// Shards, and the whole model beside them.
        Full = "FULL_STATE_DICT",
        /// As SHARDED_STATE_DICT; only version 1 has it.
        Local = "LOCAL_STATE_DICT",
        /// Shards.
        Sharded = "SHARDED_STATE_DICT",
    }
}

choice! {
    /// FSDP's names for how the model is cut into units.
    pub(crate) WrapPolicy {
        /// By class: decoder blocks, or their halves.
        TransformerBased = "TRANSFORMER_BASED_WRAP",
        /// By number of parameters.
        SizeBased = "SIZE_BASED_WRAP",
        /// Not at all.
        NoWrap = "NO_WRAP",
    }
}

choice! {
    /// Where DeepSpeed puts what it offloads.
    pub(crate) OffloadDevice {
        /// Nowhere.
        None = "none",
        /// Host memory.
        Cpu = "cpu",
        /// Files.
        Nvme = "nvme",
    }
}
