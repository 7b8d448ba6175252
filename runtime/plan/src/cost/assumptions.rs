//! Everything that a prediction assumes, each with a name, a unit and a default; no formula has a number of its own.

use serde::Serialize;
use zerofold_configs::{ElementType, Gpu, nearest};

/// The values that an assumption may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Above 0.
    Positive,
    /// 0 or more.
    NotNegative,
    /// Above 0, at most 1.
    Share,
}

impl Range {
    fn holds(self, value: f64) -> bool {
        let sign = if self == Range::NotNegative { value >= 0.0 } else { value > 0.0 };
        value.is_finite() && sign && (self != Range::Share || value <= 1.0)
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Range::Positive => "a number above 0",
            Range::NotNegative => "a number of 0 or more",
            Range::Share => "a number above 0, at most 1",
        }
    }
}

/// An assumption with its value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Assumed {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    /// What the value counts.
    pub unit: &'static str,
    /// What it is.
    pub about: &'static str,
}

/// Why an assumption cannot be set.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AssumptionError {
    /// There is none of this name.
    #[error("no assumption is called {name}\nhint: {hint}")]
    Unknown {
        /// The name.
        name: String,
        /// The nearest one, or where they are listed.
        hint: String,
    },
    /// Its value cannot be.
    #[error("{name} is {value}, which is not allowed: it must be {allowed}\nhint: it counts {unit}: {about}")]
    Value {
        /// The name.
        name: &'static str,
        /// The value.
        value: f64,
        /// The range in words.
        allowed: &'static str,
        /// What it counts.
        unit: &'static str,
        /// What it is.
        about: &'static str,
    },
}

macro_rules! assumptions {
    ($($(#[doc = $about:literal])+ $name:ident: $unit:literal, $range:ident = $default:expr;)*) => {
        /// What is assumed. Set by name, so that a command line can do it.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct Assumptions {
            $($(#[doc = $about])+ pub $name: f64,)*
        }

        impl Assumptions {
            /// What is assumed of a GPU that computes in this type, and everything else by default.
            pub fn of(gpu: &Gpu, compute: ElementType) -> Assumptions {
                Assumptions { $($name: $default,)* }.on(gpu, compute)
            }

            /// All of them, in the order in which they are told.
            pub fn list(&self) -> Vec<Assumed> {
                vec![$(Assumed {
                    name: stringify!($name),
                    value: self.$name,
                    unit: $unit,
                    about: concat!($($about),+).trim_ascii(),
                },)*]
            }

            /// Sets one by its name; `-` counts as `_`.
            ///
            /// # Errors
            /// No such name, a value out of its range.
            pub fn set(&mut self, name: &str, value: f64) -> Result<(), AssumptionError> {
                let (range, field) = match name.replace('-', "_").as_str() {
                    $(stringify!($name) => (Range::$range, &mut self.$name),)*
                    _ => return Err(self.unknown(name)),
                };
                if range.holds(value) {
                    *field = value;
                    return Ok(());
                }
                let listed = self.list().into_iter().find(|assumed| assumed.name == name.replace('-', "_"));
                let (name, unit, about) = listed.map_or(("", "", ""), |it| (it.name, it.unit, it.about));
                Err(AssumptionError::Value { name, value, allowed: range.words(), unit, about })
            }
        }
    };
}

assumptions! {
    /// dense operations of a GPU in the compute type
    peak_flops: "FLOP/s", Positive = 0.0;
    /// share of the peak that matrix products reach
    product_efficiency: "share", Share = 0.0;
    /// share of the peak that fused attention reaches
    attention_efficiency: "share", Share = 0.0;
    /// memory of a GPU
    memory: "bytes", Positive = 0.0;
    /// what a GPU's memory gives or takes
    memory_bandwidth: "bytes/s", Positive = 0.0;
    /// between GPUs of a host, one direction
    link_bandwidth: "bytes/s", Positive = 0.0;
    /// between hosts, of a whole host, one direction
    host_bandwidth: "bytes/s", Positive = 0.0;
    /// share of these speeds that a step as a whole reaches; a measured run sets it
    compute_efficiency: "share", Positive = 0.78;
    /// share of the memory's bandwidth that a pass reaches
    memory_efficiency: "share", Share = 0.9;
    /// share of a link's bandwidth that collectives reach
    network_efficiency: "share", Share = 0.8;
    /// share of the communication behind computing that slows it down all the same
    overlap_cost: "share", NotNegative = 0.0;
    /// read and written for each hidden value by a block's norms and residuals, forward
    hidden_bytes: "bytes", NotNegative = 84.0;
    /// read and written for each query and key value by the rotary embedding, forward
    rotary_bytes: "bytes", NotNegative = 20.0;
    /// read and written for each value of the MLP's width by SwiGLU, forward
    swiglu_bytes: "bytes", NotNegative = 10.0;
    /// read and written for each logit by the loss, both ways
    logit_bytes: "bytes", NotNegative = 28.0;
    /// memory passes of backward, as a multiple of forward's
    backward_passes: "times", NotNegative = 2.0;
    /// attention's operations in backward, as a multiple of forward's
    backward_attention: "times", NotNegative = 2.5;
    /// kernels of a block's forward
    kernels_per_block: "kernels", NotNegative = 50.0;
    /// least time between the starts of two kernels
    kernel_seconds: "s", NotNegative = 5e-6;
    /// before a collective sends anything
    collective_seconds: "s", NotNegative = 8.4e-6;
    /// of a step of a ring inside a host
    link_step_seconds: "s", NotNegative = 3.4e-6;
    /// of a step of a ring from host to host
    host_step_seconds: "s", NotNegative = 9.6e-6;
    /// between a GPU and its host's memory, with an offloaded optimizer
    offload_bandwidth: "bytes/s", Positive = 25e9;
    /// of a host's memory, which an offloaded optimizer of all its GPUs shares
    host_memory_bandwidth: "bytes/s", Positive = 200e9;
    /// from the start of the GPUs' rent to the first step
    start_seconds: "s", NotNegative = 60.0;
    /// of making the data, beside the GPUs
    preparation_cost: "$", NotNegative = 0.0;
    /// of a request's prompt to the tuned model
    tuned_tokens: "tokens", NotNegative = 200.0;
    /// of an answer
    answer_tokens: "tokens", NotNegative = 200.0;
    /// of a million tokens that are read by the prompted model
    prompted_input_price: "$/million", NotNegative = 0.5;
    /// of a million tokens that are written by it
    prompted_output_price: "$/million", NotNegative = 1.5;
    /// of a million tokens that are read by the tuned model
    tuned_input_price: "$/million", NotNegative = 0.5;
    /// of a million tokens that are written by it
    tuned_output_price: "$/million", NotNegative = 1.5;
}

impl Assumptions {
    /// The same on another GPU.
    fn on(self, gpu: &Gpu, compute: ElementType) -> Assumptions {
        Assumptions {
            peak_flops: if compute == ElementType::Float32 { gpu.float32_flops } else { gpu.bf16_flops },
            product_efficiency: gpu.product_efficiency,
            attention_efficiency: gpu.attention_efficiency,
            memory: gpu.memory,
            memory_bandwidth: gpu.memory_bandwidth,
            link_bandwidth: gpu.link_bandwidth,
            host_bandwidth: gpu.host_bandwidth,
            ..self
        }
    }

    /// Seconds in which a GPU reads and writes so many bytes.
    pub(super) fn pass(&self, bytes: f64) -> f64 {
        bytes / (self.memory_bandwidth * self.memory_efficiency)
    }

    fn unknown(&self, name: &str) -> AssumptionError {
        let names: Vec<&str> = self.list().iter().map(|assumed| assumed.name).collect();
        let hint = match nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("there are {}", names.join(", ")),
        };
        AssumptionError::Unknown { name: name.to_owned(), hint }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_configs::Hardware;

    fn h100() -> Assumptions {
        Assumptions::of(Hardware::shipped().unwrap().gpu("h100").unwrap(), ElementType::Bfloat16)
    }

    #[test]
    fn every_assumption_is_told_with_a_value_that_it_could_be_set_to() {
        let mut assumed = h100();
        for it in h100().list() {
            assert!(!it.about.is_empty() && !it.unit.is_empty(), "{it:?}");
            assumed.set(it.name, it.value).unwrap();
        }
        assert_eq!(assumed, h100());
        assert_eq!(assumed.peak_flops, 989e12);
        let float32 = Assumptions::of(Hardware::shipped().unwrap().gpu("h100").unwrap(), ElementType::Float32);
        assert_eq!(float32.peak_flops, 67e12);
    }

    #[test]
    fn wrong_names_and_values_are_told() {
        let mut assumed = h100();
        assumed.set("host-bandwidth", 50e9).unwrap();
        assert_eq!(assumed.host_bandwidth, 50e9);
        for (name, value, expected) in [
            ("host_bandwith", 1.0, "no assumption is called host_bandwith\nhint: did you mean host_bandwidth?"),
            ("weather", 1.0, "hint: there are peak_flops, "),
            (
                "overlap_cost",
                -1.0,
                "overlap_cost is -1, which is not allowed: it must be a number of 0 or more\nhint: it counts share: ",
            ),
            ("memory_efficiency", 1.5, "it must be a number above 0, at most 1"),
            ("peak_flops", 0.0, "it must be a number above 0\n"),
            ("kernel_seconds", f64::NAN, "kernel_seconds is NaN"),
        ] {
            let told = assumed.set(name, value).unwrap_err().to_string();
            assert!(told.contains(expected), "{told}");
        }
    }
}
