//! The choices: small enums whose written form is the one that users already know.

use serde::{Deserialize, Serialize};

/// One enum of named values: the names are its serde form, its [`std::fmt::Display`], and what a configuration accepts.
macro_rules! choice {
    ($(#[doc = $doc:literal])+ $name:ident { $($(#[doc = $variant_doc:literal])+ $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[doc = $variant_doc])+ #[serde(rename = $text)] $variant),+
        }

        impl $name {
            /// The values in their written form.
            pub const NAMES: &'static [&'static str] = &[$($text),+];

            /// The written form.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// Reads the written form; capitals do not matter.
            pub fn from_name(text: &str) -> Option<Self> {
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
    /// What carries the collectives.
    Backend {
        /// Gloo over TCP: several processes.
        Gloo = "gloo",
        /// No communication: one process.
        Single = "single",
    }
}

choice! {
    /// The type that parameters and activations are computed in. The optimizer's masters are always float32.
    Precision {
        /// float32 throughout.
        No = "no",
        /// bfloat16 compute with float32 masters.
        Bf16 = "bf16",
    }
}

choice! {
    /// How the learning rate changes over the optimizer steps, after the warm-up.
    Scheduler {
        /// Falls in a straight line to 0 at the last step.
        Linear = "linear",
        /// Falls along half a cosine to 0 at the last step.
        Cosine = "cosine",
        /// Stays, and has no warm-up.
        Constant = "constant",
        /// Stays after the warm-up.
        ConstantWithWarmup = "constant_with_warmup",
    }
}

choice! {
    /// When something is done during training.
    Strategy {
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
    Sampling {
        /// A seeded permutation per epoch, the same for every number of processes.
        Random = "random",
        /// The order of the file.
        Sequential = "sequential",
    }
}

choice! {
    /// The element type of an exported model's files.
    SaveDtype {
        /// 4 bytes an element.
        Float32 = "float32",
        /// 2 bytes an element, float32's range.
        Bfloat16 = "bfloat16",
        /// 2 bytes an element, IEEE half precision.
        Float16 = "float16",
    }
}

/// The ZeRO stage: what each rank holds only a shard of. Written as a number, 0 to 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Stage {
    /// Nothing is sharded: data parallel, as DDP.
    Zero = 0,
    /// The optimizer's state is sharded.
    One = 1,
    /// The optimizer's state and the gradients are sharded.
    Two = 2,
    /// The optimizer's state, the gradients and the parameters are sharded.
    Three = 3,
}

impl Stage {
    /// The stage as a number, 0 to 3.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Masters and moments exist once over all ranks: stage 1 and up.
    pub fn shards_optimizer(self) -> bool {
        self >= Self::One
    }

    /// Gradients are reduced as each unit finishes and kept as shards: stage 2 and up.
    pub fn shards_gradients(self) -> bool {
        self >= Self::Two
    }

    /// Parameters are kept as shards and gathered unit by unit: stage 3.
    pub fn shards_parameters(self) -> bool {
        self >= Self::Three
    }
}

impl From<Stage> for u8 {
    fn from(stage: Stage) -> u8 {
        stage.number()
    }
}

impl TryFrom<u8> for Stage {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        match number {
            0 => Ok(Self::Zero),
            1 => Ok(Self::One),
            2 => Ok(Self::Two),
            3 => Ok(Self::Three),
            other => Err(format!("{other} is no ZeRO stage (0, 1, 2 or 3)")),
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.number())
    }
}
