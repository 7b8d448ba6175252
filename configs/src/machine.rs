//! What `launch doctor` and `launch bench` ask of a worker, and what it answers: JSON on its standard output.

use crate::types::{Backend, DeviceKind, ElementType};
use serde::{Deserialize, Serialize};

/// Something, or why there is none. The last line of an error tells what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<T> {
    /// There it is.
    Value(T),
    /// What went wrong.
    Error(String),
}

impl<T, E: std::fmt::Display> From<Result<T, E>> for Answer<T> {
    fn from(result: Result<T, E>) -> Self {
        match result {
            Ok(value) => Answer::Value(value),
            Err(error) => Answer::Error(error.to_string()),
        }
    }
}

/// What a worker knows of itself, of libtorch and of the GPUs: the answer of `worker doctor`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerFacts {
    /// The version of libtorch, such as `2.13.0`.
    pub libtorch: String,
    /// The version of CUDA that libtorch was built with, such as `13.0`; none without CUDA.
    pub libtorch_cuda: Option<String>,
    /// The processor's instructions that libtorch uses, such as `AVX512`.
    pub processor: String,
    /// The driver and its GPUs.
    pub driver: Answer<DriverFacts>,
    /// NCCL.
    pub nccl: Answer<NcclFacts>,
    /// Errors that stop every job on GPUs, besides a driver or an NCCL that is missing.
    pub obstacles: Vec<String>,
    /// Which attention libtorch takes, by device and type.
    pub attention: Vec<AttentionChoice>,
}

/// What the driver tells of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverFacts {
    /// The newest CUDA that it supports, such as `13.0`.
    pub cuda: String,
    /// The visible GPUs in CUDA's order.
    pub devices: Vec<GpuFacts>,
}

/// What the driver tells of a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuFacts {
    /// Its place among the visible GPUs.
    pub index: usize,
    /// The product's name.
    pub name: String,
    /// Where it sits on the PCI bus.
    pub bus_id: String,
    /// Its compute capability, such as `9.0`.
    pub capability: String,
    /// Bytes of its memory.
    pub total_memory: u64,
    /// Bytes of its memory that are free.
    pub free_memory: Answer<u64>,
    /// The visible GPUs whose memory it can read directly.
    pub peers: Vec<usize>,
    /// Why it cannot compute in bfloat16; none when it can.
    pub without_bfloat16: Option<String>,
    /// Why libtorch cannot use it at all; none when it can.
    pub unusable: Option<String>,
}

/// What NCCL tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NcclFacts {
    /// Its version, such as `2.29.7`.
    pub version: String,
    /// Why no id can be had under which ranks meet; none when one can.
    pub without_id: Option<String>,
    /// Why a communicator of one rank cannot be made; none when it can.
    pub without_communicator: Option<String>,
}

/// Which of its kernels libtorch takes for causal attention.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttentionChoice {
    /// Where.
    pub device: DeviceKind,
    /// In which type.
    pub dtype: ElementType,
    /// `flash`, `efficient`, `cudnn`, `math` (no fused kernel), or what libtorch said.
    pub kernel: String,
}

/// What `launch` asks of the ranks of `worker bench`. How many they are, the environment says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BenchRequest {
    /// What is measured.
    pub device: DeviceKind,
    /// Fewer repetitions, smaller sizes.
    pub quick: bool,
}

/// What the ranks of a machine reach, all of them busy at the same time: the answer of `worker bench`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// What was measured.
    pub device: DeviceKind,
    /// What carried the collectives.
    pub backend: Backend,
    /// How many ranks.
    pub ranks: u32,
    /// Threads of each rank.
    pub threads: u32,
    /// Matrix products.
    pub products: Vec<ProductRate>,
    /// Copies within the memory of the device.
    pub copy: CopyRate,
    /// Collectives; none with one rank.
    pub collectives: Vec<CollectiveRate>,
}

/// How fast matrices are multiplied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProductRate {
    /// The type of all three matrices.
    pub dtype: ElementType,
    /// The sizes: (rows × inner) times (inner × columns).
    pub shape: [i64; 3],
    /// Floating-point operations per second of the slowest rank, two for each multiplication with its addition.
    pub flops_per_rank: f64,
    /// Of all ranks together.
    pub flops: f64,
}

/// How fast memory is copied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopyRate {
    /// Bytes that each rank copied at once.
    pub bytes: u64,
    /// Bytes read and written per second by all ranks together: twice the bytes copied.
    pub bytes_per_second: f64,
}

/// How fast a collective is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CollectiveRate {
    /// What carried it.
    pub backend: Backend,
    /// `all_gather` or `reduce_scatter`.
    pub collective: String,
    /// Bytes of the full buffer, in float32.
    pub bytes: u64,
    /// The median over the repetitions, each as long as its slowest rank took.
    pub seconds: f64,
    /// Bytes of the full buffer per second.
    pub bytes_per_second: f64,
    /// How often it was done.
    pub repetitions: u32,
}
