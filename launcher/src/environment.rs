//! The one registry of environment variables: those `launch` reads, and those it sets for its workers.

/// Read: the program that runs as worker; without it, `worker` beside `launch`.
pub const WORKER: &str = "ZEROFOLD_WORKER";
/// Read: which log messages of `launch` itself are shown, such as `debug`.
pub const LOG: &str = "ZEROFOLD_LOG";
/// Read, and set for workers: the form of messages, `text` or `json`; `--log-format` goes before it.
pub const LOG_FORMAT: &str = "ZEROFOLD_LOG_FORMAT";
/// Read: the folder in which tokenised data are kept, in `datasets`; without it, `zerofold` in the user's folder of caches.
pub const CACHE: &str = "ZEROFOLD_CACHE";
/// Read: for how many seconds a request to a store that fails is tried again; without it, 180 while a run goes on and 15 at
/// its start.
pub const STORE_PATIENCE: &str = "ZEROFOLD_STORE_PATIENCE";

/// Read: with any value, nothing is printed in colour (<https://no-color.org>).
pub const NO_COLOR: &str = "NO_COLOR";

/// Read: how often a failed job is begun again, where no flag says so; torchrun's name.
pub const MAX_RESTARTS: &str = "PET_MAX_RESTARTS";

/// Read: the address of the Hugging Face hub; without it, the public one.
pub const HF_ENDPOINT: &str = "HF_ENDPOINT";
/// Read: the token that the hub knows its user by.
pub const HF_TOKEN: &str = "HF_TOKEN";
/// Read: the older name of the same.
pub const HUGGING_FACE_HUB_TOKEN: &str = "HUGGING_FACE_HUB_TOKEN";
/// Read: the file that keeps the token; without it, `token` in the folder of `HF_HOME`.
pub const HF_TOKEN_PATH: &str = "HF_TOKEN_PATH";
/// Read: the folder of everything of the hub; without it, `huggingface` in the user's folder of caches.
pub const HF_HOME: &str = "HF_HOME";
/// Read: the folder of downloaded models; without it, `hub` in the folder of `HF_HOME`.
pub const HF_HUB_CACHE: &str = "HF_HUB_CACHE";
/// Read: the older name of the same.
pub const HUGGINGFACE_HUB_CACHE: &str = "HUGGINGFACE_HUB_CACHE";
/// Read: the user's folder of caches; without it, `.cache` in the user's folder.
pub const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";
/// Read: with 1, the hub is not asked, and what was downloaded before is used.
pub const HF_HUB_OFFLINE: &str = "HF_HUB_OFFLINE";
/// Read: the same, in the words of transformers.
pub const TRANSFORMERS_OFFLINE: &str = "TRANSFORMERS_OFFLINE";
/// Read: the same for data alone, in the words of datasets.
pub const HF_DATASETS_OFFLINE: &str = "HF_DATASETS_OFFLINE";

/// Set: the rank, from 0.
pub const RANK: &str = "RANK";
/// Set: the rank on this host.
pub const LOCAL_RANK: &str = "LOCAL_RANK";
/// Set: how many ranks the job has.
pub const WORLD_SIZE: &str = "WORLD_SIZE";
/// Set: how many of them run on this host.
pub const LOCAL_WORLD_SIZE: &str = "LOCAL_WORLD_SIZE";
/// Set: the host of the control plane.
pub const MASTER_ADDR: &str = "MASTER_ADDR";
/// Set: the port of the control plane.
pub const MASTER_PORT: &str = "MASTER_PORT";
/// Set unless the user has: threads of one rank.
pub const OMP_NUM_THREADS: &str = "OMP_NUM_THREADS";
/// Matrix products that libtorch and oneDNN keep compiled, one for each shape seen. Their own default, 1024, lets a bfloat16
/// rank with rows of many lengths grow by hundreds of megabytes; the shapes of a few steps are enough.
pub const KERNEL_CACHES: [(&str, &str); 2] = [("LRU_CACHE_CAPACITY", "64"), ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")];
/// Set with `gpu_ids`: the GPUs that a worker sees.
pub const CUDA_VISIBLE_DEVICES: &str = "CUDA_VISIBLE_DEVICES";
/// Set on GPUs unless the user has: libtorch's allocator grows the pieces it has in place of taking new ones, so that rows
/// of many lengths leave no gaps.
pub const CUDA_ALLOCATOR: (&str, &str) = ("PYTORCH_ALLOC_CONF", "expandable_segments:True");
/// Read: the older name of the same setting.
pub const CUDA_ALLOCATOR_OLD_NAME: &str = "PYTORCH_CUDA_ALLOC_CONF";
/// Set: the address of the control plane, as a URL.
pub const CONTROL: &str = "ZEROFOLD_CONTROL";
/// Read and set: the token that all processes of the job share. Nothing shows it.
pub const TOKEN: &str = "ZEROFOLD_TOKEN";
/// Set: the name or address of the interface that collectives use.
pub const INTERFACE: &str = "ZEROFOLD_INTERFACE";
/// Set: the path of `config.resolved.yaml`.
pub const CONFIG: &str = "ZEROFOLD_CONFIG";
/// Set: the membership of the job.
pub const GENERATION: &str = "ZEROFOLD_GENERATION";
/// Set: what a worker must find in the folder of checkpoints, to know that it is the one that `launch` sees.
pub const STORAGE: &str = "ZEROFOLD_STORAGE";
/// Set: for how many seconds `launch` waits for ranks; collectives wait a little longer.
pub const TIMEOUT: &str = "ZEROFOLD_TIMEOUT";
/// Set when resuming: the folder of the step to go on from.
pub const RESUME: &str = "ZEROFOLD_RESUME";
