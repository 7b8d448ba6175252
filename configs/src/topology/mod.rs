//! Which hosts a job runs on, how they meet, and which of its ranks this `launch` has: out of flags, the file, torchrun's
//! environment and the scheduler's. Pure: the environment comes in as a map.
//!
//! One `launch` runs per node, or per task where Slurm starts several tasks on a node. Node 0 is the coordinator. What is
//! written in a higher place holds (flags, `--set`, torchrun's environment, the file); two values in one place must agree,
//! and so must a written one and what Slurm says.

mod endpoint;
mod hostlist;
mod rendezvous;
mod slurm;
mod sources;
#[cfg(test)]
mod tests;

use crate::error::ConfigError;
use crate::known::no_effect;
use crate::registry::Section;
use crate::resolve::Inputs;
use crate::resolved::Resolved;
use crate::settings::{Layer, Opinion, Reader, Setting, Settings, agree};
use serde_yaml::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub use endpoint::{DEFAULT_PORT, Endpoint};
pub use rendezvous::RendezvousTimes;
use slurm::Slurm;
pub(crate) use sources::add_environment;
pub use sources::{ENVIRONMENT, STATIC_RUN_ID};

/// How many launches a job has: nodes, or tasks where Slurm starts several on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nodes {
    /// It starts with so many.
    pub min: u32,
    /// It takes no more.
    pub max: u32,
}

/// Who started this `launch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartedBy {
    /// A person, or something that says all by flags or torchrun's variables.
    Hand,
    /// A step of Slurm's with several tasks.
    Slurm,
    /// An indexed job of Kubernetes.
    Kubernetes,
}

/// Where this `launch` stands in its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// How many launches there are.
    pub nodes: Nodes,
    /// Which of them this is; 0 is the coordinator.
    pub node_rank: u32,
    /// Where the coordinator is met; none for a job of one launch.
    pub endpoint: Option<Endpoint>,
    /// What tells this job's launches from those of others.
    pub run_id: String,
    /// Ranks that this launch runs.
    pub ranks: u32,
    /// The first of them among those of its host, which other launches may share.
    pub local_rank: u32,
    /// Ranks of its host, of all launches there.
    pub local_ranks: u32,
    /// How long hosts are waited for.
    pub times: RendezvousTimes,
    /// The interface that collectives use, by name or address; none for that by which the coordinator is reached.
    pub interface: Option<String>,
    /// The file that holds the job's token.
    pub token_file: Option<PathBuf>,
    /// Whether what is said across hosts is encrypted, and the coordinator proves who it is.
    pub tls: bool,
    /// Who started it.
    pub started_by: StartedBy,
}

impl Topology {
    /// Whether the job has this launch alone.
    pub fn is_alone(&self) -> bool {
        self.nodes.max == 1
    }

    /// Whether this launch coordinates the job.
    pub fn is_coordinator(&self) -> bool {
        self.node_rank == 0
    }
}

/// The topology as far as it does not depend on the number of ranks, and what goes with it.
pub(crate) struct Settled {
    pub(crate) topology: Topology,
    /// Each launch is one rank, being one of several tasks on its node.
    pub(crate) one_rank_each: bool,
    pub(crate) notes: Vec<String>,
}

impl Settled {
    /// The hosts of the whole job, as far as that is known before they meet.
    pub(crate) fn hosts(&self) -> u32 {
        match self.one_rank_each {
            true => self.topology.nodes.max / self.topology.local_ranks.max(1),
            false => self.topology.nodes.max,
        }
    }
}

/// Adds `--nproc` and torchrun's `PET_NPROC_PER_NODE`, which count the ranks of one host, as what they make of
/// `num_processes`.
pub(crate) fn add_ranks_per_node(
    settings: &mut Settings,
    inputs: &Inputs,
    settled: &Settled,
) -> Result<(), ConfigError> {
    let launches = settled.topology.nodes.max;
    let flag = inputs.nproc.map(|ranks| {
        let (section, place) = (Section::Top, "flag --nproc".to_owned());
        let (value, layer) = (ranks.into(), Layer::Flag);
        (ranks, Setting { section, key: "nproc", value, layer, place, original: None, column: None })
    });
    let variable = sources::ranks_per_node(&inputs.environment)?;
    for (ranks, said) in variable.into_iter().chain(flag) {
        if settled.one_rank_each && ranks != 1 {
            let tasks = told("SLURM_STEP_TASKS_PER_NODE", settled.topology.local_ranks, BY_SLURM);
            let hint = "with several tasks on a node each is one rank: leave it out, or use srun --ntasks-per-node=1";
            return Err(said.conflict(&tasks, hint));
        }
        let place = match launches {
            1 => said.place.clone(),
            hosts => format!("{} on each of {hosts} hosts", said.place),
        };
        let value = Value::from(ranks.saturating_mul(launches));
        let all = Setting { key: "num_processes", value, place, ..said };
        let other = settings.in_layer(Section::Top, "num_processes", all.layer);
        if let Some(other) =
            other.filter(|other| crate::value::number(&other.value) != crate::value::number(&all.value))
        {
            return Err(all.conflict(other, "pass one of the two"));
        }
        settings.add(all);
    }
    Ok(())
}

/// Shares the ranks of the job out among its launches.
pub(crate) fn with_ranks(settled: Settled, inputs: &Inputs, resolved: &Resolved) -> Result<Topology, ConfigError> {
    let Settled { mut topology, one_rank_each, .. } = settled;
    if inputs.joined.is_some() {
        // Hosts that have met have told how many ranks each of them runs.
        return Ok(topology);
    }
    let (all, launches) = (resolved.num_processes, topology.nodes.max);
    let place = resolved.provenance.get("num_processes").cloned().unwrap_or_default();
    let uneven = |allowed: String, hint: &str| ConfigError::InvalidValue {
        key: "num_processes".to_owned(),
        value: all.to_string(),
        place,
        allowed,
        hint: format!("\nhint: {hint}"),
    };
    if one_rank_each {
        if all != launches {
            let allowed = format!("Slurm runs {launches} tasks, each of which is one rank");
            return Err(uneven(allowed, "leave num_processes out, or start as many tasks"));
        }
        return Ok(topology);
    }
    if all % launches != 0 {
        let allowed = format!("it counts the processes of all {launches} hosts together, which share them out evenly");
        return Err(uneven(allowed, "use a multiple of the hosts, or --nproc with the processes of one host"));
    }
    topology.ranks = all / launches;
    topology.local_ranks = topology.ranks;
    Ok(topology)
}

/// Settles all but the number of ranks.
pub(crate) fn settle(settings: &Settings, environment: &BTreeMap<String, String>) -> Result<Settled, ConfigError> {
    let reader = Reader::new(settings);
    let slurm = Slurm::read(environment).map_err(|(name, value, problem)| ConfigError::InvalidValue {
        key: name,
        value,
        place: "the environment of a Slurm step".to_owned(),
        allowed: problem,
        hint: "\nhint: start launch with srun, or unset SLURM_STEP_ID to run without Slurm".to_owned(),
    })?;
    // A step of one task says nothing about others: several such steps may well be one job.
    let slurm = slurm.filter(|slurm| slurm.tasks > 1);
    let one_rank_each = slurm.as_ref().is_some_and(|slurm| !slurm.one_task_per_node());
    let nodes = nodes(&reader, slurm.as_ref())?;
    let (node_rank, started_by) = node_rank(&reader, nodes, slurm.as_ref(), environment)?;
    let mut notes = Vec::new();
    let endpoint = meeting_point(&reader, nodes, slurm.as_ref(), &mut notes)?;
    let run_id = reader.opinion::<String>("rdzv_id")?.map(|held| held.value).filter(|id| !id.is_empty());
    let run_id = run_id.or_else(|| slurm.as_ref().map(|slurm| slurm.job.clone()).filter(|job| !job.is_empty()));
    let topology = Topology {
        nodes,
        node_rank,
        endpoint,
        run_id: run_id.unwrap_or_else(|| STATIC_RUN_ID.to_owned()),
        ranks: 1,
        local_rank: slurm.as_ref().filter(|_| one_rank_each).map_or(0, |slurm| slurm.local_task),
        local_ranks: slurm.as_ref().filter(|_| one_rank_each).map_or(1, |slurm| slurm.local_tasks),
        times: rendezvous::times(&reader, &mut notes)?,
        interface: reader.opinion("interface")?.map(|held| held.value),
        token_file: reader.opinion("token_file")?.map(|held| held.value),
        tls: !reader.opinion("no_tls")?.is_some_and(|held| held.value),
        started_by,
    };
    Ok(Settled { topology, one_rank_each, notes })
}

/// A setting that was not written but told by a scheduler.
fn told(key: &'static str, value: impl Into<Value>, place: &str) -> Setting {
    let (section, value, place) = (Section::Top, value.into(), place.to_owned());
    Setting { section, key, value, layer: Layer::Environment, place, original: None, column: None }
}

const BY_SLURM: &str = "the environment of a Slurm step";

/// `nnodes`, else `num_machines`, else what Slurm says, else 1.
fn nodes(reader: &Reader<'_>, slurm: Option<&Slurm>) -> Result<Nodes, ConfigError> {
    let range = reader
        .settings
        .find(Section::Top, "nnodes")
        .map(|setting| Ok::<_, ConfigError>(Opinion { value: parse_nodes(setting)?, setting }));
    let machines = reader.settings.find(Section::Top, "num_machines").map(|setting| {
        let count: u32 = setting.read(Reader::key("node_rank"))?;
        // Accelerate writes 0 where nobody said.
        Ok::<_, ConfigError>((count > 0).then_some(Opinion { value: Nodes { min: count, max: count }, setting }))
    });
    let held = agree([range.transpose()?, machines.transpose()?.flatten()])?;
    let Some(slurm) = slurm else {
        return Ok(held.map_or(Nodes { min: 1, max: 1 }, |held| held.value));
    };
    let each_a_node = slurm.one_task_per_node();
    if let Some(held) = &held {
        let elastic = held.value.min != held.value.max;
        // What Accelerate writes for one machine is no claim about the allocation.
        let silent = held.value.max == 1 && held.setting.layer == Layer::File;
        if !silent && (held.value.max != slurm.nodes || (elastic && !each_a_node)) {
            let steps = told("SLURM_STEP_NUM_NODES", slurm.nodes, BY_SLURM);
            let hint = match elastic && !each_a_node {
                true => "MIN:MAX needs one task per node: srun --ntasks-per-node=1",
                false => "inside a step of Slurm this follows from srun: leave it out, or ask srun for as many nodes",
            };
            return Err(held.setting.conflict(&steps, hint));
        }
        if !silent && each_a_node {
            return Ok(held.value);
        }
    }
    Ok(Nodes { min: slurm.tasks, max: slurm.tasks })
}

/// `2`, or `1:4`.
fn parse_nodes(setting: &Setting) -> Result<Nodes, ConfigError> {
    let text = crate::value::text(&setting.value).unwrap_or_default();
    let (min, max) = text.split_once(':').unwrap_or((&text, &text));
    let parse = |text: &str| text.trim().parse::<u32>().ok().filter(|count| *count > 0);
    match (parse(min), parse(max)) {
        (Some(min), Some(max)) if min <= max => Ok(Nodes { min, max }),
        _ => {
            let hint = "--nnodes 2 for two hosts, --nnodes 1:4 for as many of four as there are".to_owned();
            Err(setting.not_allowed("it must be a number of hosts, or MIN:MAX", Some(hint)))
        }
    }
}

/// `node_rank` or `machine_rank`, Kubernetes' index, or Slurm's task.
fn node_rank(
    reader: &Reader<'_>,
    nodes: Nodes,
    slurm: Option<&Slurm>,
    environment: &BTreeMap<String, String>,
) -> Result<(u32, StartedBy), ConfigError> {
    let key = Reader::key("node_rank");
    let index = environment.get("JOB_COMPLETION_INDEX").filter(|_| nodes.max > 1 && slurm.is_none());
    let index = index.map(|index| told("node_rank", index.as_str(), "JOB_COMPLETION_INDEX in the environment"));
    let index = index.as_ref().map(|setting| Ok::<_, ConfigError>(Opinion { value: setting.read(key)?, setting }));
    let index = index.transpose()?;
    let started_by = if index.is_some() { StartedBy::Kubernetes } else { StartedBy::Hand };
    let named: Option<Opinion<'_, u32>> = reader.opinion("node_rank")?;
    let machine = reader.opinion_of::<u32>(Section::Top, "machine_rank", key)?;
    let held = agree([named, machine, index])?;
    if let Some(slurm) = slurm {
        let task = told("SLURM_PROCID", slurm.task, BY_SLURM);
        return match held {
            // A file is the same on all nodes, so it cannot mean this one.
            Some(held) if held.setting.layer > Layer::File && held.value != slurm.task => {
                Err(held.setting.conflict(&task, "inside a step of Slurm this follows from srun: leave it out"))
            }
            _ => Ok((slurm.task, StartedBy::Slurm)),
        };
    }
    match held {
        Some(held) if held.value >= nodes.max => {
            let hint = match nodes.max {
                1 => "say how many hosts there are: --nnodes N".to_owned(),
                max => format!("number the hosts from 0 to {}", max - 1),
            };
            let allowed = format!("it must be below the number of hosts, {}", nodes.max);
            Err(held.setting.not_allowed(allowed, Some(hint)))
        }
        Some(held) => Ok((held.value, started_by)),
        None if nodes.max == 1 => Ok((0, started_by)),
        None => Err(ConfigError::Missing {
            keys: "node_rank".to_owned(),
            hint: format!(
                "a job of {} hosts needs to know which one this is: pass --node-rank N, from 0 to {}; host 0 coordinates",
                nodes.max,
                nodes.max - 1
            ),
        }),
    }
}

/// Where the coordinator is met.
fn meeting_point(
    reader: &Reader<'_>,
    nodes: Nodes,
    slurm: Option<&Slurm>,
    notes: &mut Vec<String>,
) -> Result<Option<Endpoint>, ConfigError> {
    let mut hosts = Vec::new();
    let mut ports = vec![
        reader.opinion_of::<u16>(Section::Top, "master_port", Reader::key("master_port"))?,
        reader.opinion::<u16>("main_process_port")?,
    ];
    for key in ["rdzv_endpoint", "master_addr", "main_process_ip"] {
        let Some(setting) = reader.settings.find(Section::Top, key) else { continue };
        let text = crate::value::text(&setting.value).unwrap_or_default();
        if text.is_empty() {
            continue;
        }
        let (host, port) = endpoint::parse(&text).map_err(|form| setting.not_allowed(form, None))?;
        hosts.push(Some(Opinion { value: host, setting }));
        ports.push(port.map(|value| Opinion { value, setting }));
    }
    ports.iter_mut().for_each(|port| *port = port.take().filter(|port| port.value != 0));
    let (host, port) = (agree(hosts)?, agree(ports)?);
    if nodes.max == 1 {
        let local = |host: &str| matches!(host, "localhost" | "127.0.0.1" | "::1");
        if let Some(host) = host.filter(|host| !local(&host.value)) {
            notes.push(no_effect(host.setting, "the job runs on this host alone"));
        }
        return Ok(None);
    }
    let default_port = slurm.map_or(DEFAULT_PORT, |slurm| slurm.port);
    let default_host = slurm.map(|slurm| match slurm.nodes {
        1 => "127.0.0.1".to_owned(),
        _ => slurm.first_host.clone(),
    });
    let host = host.map(|host| host.value).or(default_host).filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| ConfigError::Missing {
        keys: "rdzv_endpoint".to_owned(),
        hint: format!(
            "a job of {} hosts needs a place to meet: pass --rdzv-endpoint HOST:PORT on each, with a name or address of host \
             0 (or --master-addr; main_process_ip in the file)",
            nodes.max
        ),
    })?;
    Ok(Some(Endpoint { host, port: port.map_or(default_port, |port| port.value) }))
}
