//! What can be configured: as written, then resolved.
//!
//! A job is described in three places: a file (YAML in Accelerate's own form with one section of ours, `training:`; flat YAML as
//! TRL has it; a DeepSpeed JSON), `--set key=value`, and one flag per key. [`resolve`] puts them together (flags, then `--set`, then the file, then
//! the defaults) into a [`Resolved`], in which everything is decided and which remembers where each value came from. It
//! is written to the run folder as `config.resolved.yaml` and is the only configuration that a worker reads.
//!
//! ```text
//! YAML file ──source───────┐
//! DeepSpeed JSON ─deepspeed┤
//! --set, flags ────────────┴─> settings ──accelerate, fsdp, mesh, units, precision, training──> Resolved
//!                                                                          ──> config.resolved.yaml
//! ```
//!
//! An [`outline`] is the same without the paths that only a run needs; [`compose`] writes it as a file again, ours or
//! another program's.
//!
//! An unknown key is an error that offers a right name where one is near; a key that would change the result but is not built
//! is an error that says so; a known key without effect here that somebody may count on is told in
//! [`Resolved::notes`]. Keys that mean nothing here (options of TPUs, of a progress bar) are taken without a word.

mod accelerate;
mod cautions;
mod compose;
mod data;
mod deepspeed;
mod device;
mod document;
mod error;
mod flat;
mod forgetting;
mod freezing;
mod fsdp;
mod generate;
mod hardware;
mod hub;
mod known;
mod known_training;
mod machine;
mod mesh;
mod mixing;
mod offload;
mod outline;
mod packing;
mod precision;
mod presets;
mod profile;
mod registry;
mod resolve;
mod resolved;
mod schedule;
mod schema;
mod settings;
mod sharding;
mod source;
mod store_url;
mod suggestion;
mod topology;
mod training;
mod types;
mod unfreezing;
mod units;
mod value;
mod written;

#[cfg(test)]
mod tests;

pub use cautions::{cautions, endless_warmup, forgetting};
pub use compose::{Composed, Form, LeftOut, compose};
pub use data::{ColumnMapping, DataNames, DataSource, Dataset};
pub use error::ConfigError;
pub use freezing::{Freeze, GroupRule, GroupRules, NamePatterns};
pub use generate::{ComputeDtype, GenerateRequest};
pub use hardware::{Gpu, Hardware, PriceRange};
pub use hub::{HubData, HubName, has_ending, is_repository_name};
pub use machine::{
    Answer, AttentionChoice, BenchRequest, CollectiveRate, CopyRate, DriverFacts, GpuFacts, NcclFacts, ProductRate,
    Rates, WorkerFacts,
};
pub use outline::{Outline, outline};
pub use presets::{PRESETS, Preset};
pub use profile::ProfileSteps;
pub use registry::{Allowed, DefaultValue, Group, Key, Kind, Section, flag_names, key, nearest, other_keys};
pub use resolve::{Inputs, Joined, resolve, resolve_job};
pub use resolved::{HubModel, Resolved};
pub use schedule::{Minimum, PlateauRule, ScheduleShape};
pub use schema::schema;
pub use sharding::{BackwardPrefetch, ElementTypes, ReshardAfterForward, Sharding, Stage, UnitPolicy};
pub use store_url::StoreUrl;
pub use topology::{DEFAULT_PORT, ENVIRONMENT, Endpoint, Nodes, RendezvousTimes, STATIC_RUN_ID, StartedBy, Topology};
pub use training::{KEYS, Training};
pub use types::{
    Backend, BestMetric, Curve, DeviceKind, ElementType, NonFinite, Offload, PackingStrategy, PlateauMode, Precision,
    ProblemType, Reporter, Sampling, Scheduler, StateDictType, StoppingStrategy, Strategy, ThresholdMode,
    UnfreezingStart, WarmupType,
};
pub use written::Written;
