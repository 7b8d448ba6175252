//! How the ranks are laid out: how many copies there are of everything that is sharded (hybrid sharding), and the
//! groups in which parameters stay after the forward pass.

use crate::accelerate::{Asked, Distributed, DistributedType};
use crate::error::ConfigError;
use crate::fsdp::Strategy;
use crate::known::no_effect;
use crate::registry::Section;
use crate::settings::{Opinion, Reader, Setting};
use crate::sharding::{ReshardAfterForward, Stage};

const REPLICATE: &str = "parallelism_config_dp_replicate_size";
const SHARD: &str = "parallelism_config_dp_shard_size";

/// The ranks of a job, and the hosts that share them out evenly.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ranks {
    pub all: u32,
    pub hosts: u32,
}

/// The ranks as copies × shards.
struct Mesh<'a> {
    copies: u32,
    /// Ranks of one copy.
    ranks: u32,
    /// What said so.
    told: &'a Setting,
}

/// Settles the number of copies, and the stage where every rank has a whole one. Checks the group size of
/// `fsdp_reshard_after_forward` against the ranks of one copy.
pub(crate) fn lay_out<'a>(
    reader: &mut Reader<'a>,
    distributed: &DistributedType<'a>,
    asked: &mut Asked<'a>,
    Ranks { all: num_processes, hosts }: Ranks,
) -> Result<u32, ConfigError> {
    let replicate = size(reader, REPLICATE)?;
    let shard = size(reader, SHARD)?;
    let copies = match replicate.as_ref().or(shard.as_ref()).map(|opinion| opinion.setting) {
        Some(told) if !below(told, distributed) => {
            let place = reader.provenance.get("num_processes").cloned().unwrap_or_default();
            let mesh = divide(replicate.as_ref(), shard.as_ref(), told, num_processes, &place)?;
            check_type(&mesh, distributed)?;
            copies_of(reader, &mesh, asked)?
        }
        told => {
            if let (Some(told), Some(by)) = (told, distributed.setting()) {
                reader.notes.push(no_effect(told, &format!("{} ({})", by.equation(), by.place)));
            }
            // FSDP shards a hybrid's parameters inside each host and keeps copies across them.
            let across = hosts > 1 && num_processes > hosts && num_processes.is_multiple_of(hosts);
            match (asked.strategy.hybrid, asked.strategy.stage) {
                (Some(true), Stage::Three) if told.is_none() && across => hosts,
                _ => 1,
            }
        }
    };
    if let (Some(true), Some(setting), 1, Stage::Three) =
        (asked.strategy.hybrid, asked.setting, copies, asked.strategy.stage)
    {
        let one = match asked.strategy.reshard {
            ReshardAfterForward::Always(false) => "SHARD_GRAD_OP",
            _ => "FULL_SHARD",
        };
        let place = if hosts == 1 { "on one machine" } else { "with one process on each host" };
        reader.notes.push(format!(
            "{} ({}) is {one} {place}: one copy, sharded over all {num_processes} processes; set \
             parallelism_config_dp_replicate_size to have more copies",
            setting.equation(),
            setting.place
        ));
    }
    let place = replicate.filter(|_| copies > 1).map_or("default", |replicate| replicate.setting.place.as_str());
    reader.provenance.insert("replicas".to_owned(), place.to_owned());
    check_group(asked, num_processes / copies)?;
    Ok(copies)
}

/// A size above 1, which is what the keys say when nobody means anything by them.
fn size<'a>(reader: &Reader<'a>, key: &str) -> Result<Option<Opinion<'a, u32>>, ConfigError> {
    let Some(setting) = reader.settings.find(Section::Parallelism, key) else { return Ok(None) };
    let value: u32 = setting.read(Reader::key(key))?;
    Ok((value > 1).then_some(Opinion { value, setting }))
}

/// Whether a higher place says that FSDP is not used at all.
fn below(told: &Setting, distributed: &DistributedType<'_>) -> bool {
    distributed.kind() != Some(Distributed::Fsdp) && distributed.setting().is_some_and(|by| told.layer < by.layer)
}

/// Copies × shards = processes; the one that is not set follows from the other.
fn divide<'a>(
    replicate: Option<&Opinion<'_, u32>>,
    shard: Option<&Opinion<'_, u32>>,
    told: &'a Setting,
    num_processes: u32,
    place: &str,
) -> Result<Mesh<'a>, ConfigError> {
    let copies = replicate.map_or(1, |opinion| opinion.value);
    let ranks = match shard {
        Some(shard) => Some(shard.value),
        None => num_processes.is_multiple_of(copies).then(|| num_processes / copies),
    };
    if let Some(ranks) = ranks
        && u64::from(copies) * u64::from(ranks) == u64::from(num_processes)
    {
        return Ok(Mesh { copies, ranks, told });
    }
    let equation = match ranks {
        Some(ranks) => format!("{copies} × {ranks} = {}", u64::from(copies) * u64::from(ranks)),
        None => format!("{copies} does not divide {num_processes}"),
    };
    let allowed = format!(
        "dp_replicate_size × dp_shard_size must be num_processes, but {equation}, and num_processes is {num_processes} \
         ({place})"
    );
    let hint = match shard {
        Some(shard) if num_processes.is_multiple_of(shard.value) => {
            format!("set {REPLICATE} to {}, or remove {SHARD}", num_processes / shard.value)
        }
        None => format!("use a number that divides {num_processes}"),
        Some(_) => format!("{SHARD} may be left out: it follows from the other two"),
    };
    Err(told.not_allowed(allowed, Some(hint)))
}

/// Shards and copies of them are FSDP's to lay out; every process a whole copy is plain data parallel training.
fn check_type(mesh: &Mesh<'_>, distributed: &DistributedType<'_>) -> Result<(), ConfigError> {
    let Some(by) = distributed.setting().filter(|by| by.layer == mesh.told.layer) else { return Ok(()) };
    let fits = match distributed.kind() {
        None | Some(Distributed::Fsdp) => true,
        Some(Distributed::DeepSpeed) => mesh.copies == 1,
        Some(Distributed::No | Distributed::MultiCpu | Distributed::MultiGpu) => mesh.ranks == 1,
    };
    match fits {
        true => Ok(()),
        false => Err(by.conflict(mesh.told, "shards and copies of them are laid out with distributed_type: FSDP")),
    }
}

/// The number of copies, where what is sharded leaves room for them.
fn copies_of<'a>(reader: &mut Reader<'a>, mesh: &Mesh<'a>, asked: &mut Asked<'a>) -> Result<u32, ConfigError> {
    let &Mesh { copies, ranks, told } = mesh;
    let strategy = asked.strategy;
    if copies == 1 {
        if strategy.stage == Stage::Zero && ranks > 1 {
            reader.notes.push(no_effect(told, "nothing is sharded at stage 0"));
        }
        return Ok(1);
    }
    let whole = ranks == 1;
    let fits = match whole {
        true => strategy.stage == Stage::Zero,
        false => strategy.stage == Stage::Three && strategy.hybrid != Some(false),
    };
    if fits {
        return Ok(if whole { 1 } else { copies });
    }
    let hint = copies_hint(whole, &strategy);
    let Some(by) = asked.setting else {
        return Err(told.needs_stage(Stage::Three, hint));
    };
    // HYBRID_SHARD, distributed_type: FSDP alone and version 2's key do not say over how many ranks a copy lies.
    let settled = strategy.hybrid == Some(false) || by.section == Section::DeepSpeed;
    if by.layer > told.layer {
        reader.notes.push(no_effect(told, &format!("{} ({})", by.equation(), by.place)));
        return Ok(1);
    }
    if (by.layer == told.layer && settled) || (!whole && strategy.stage != Stage::Three) {
        return Err(by.conflict(told, hint));
    }
    if !whole {
        return Ok(copies);
    }
    reader.notes.push(format!(
        "{} ({}) is one copy for each of the {copies} processes: nothing is sharded, as in stage 0",
        told.equation(),
        told.place
    ));
    asked.strategy = Strategy::of(Stage::Zero);
    asked.setting = Some(told);
    reader.provenance.insert("stage".to_owned(), told.place.clone());
    Ok(1)
}

/// What to do where copies do not go with what is sharded.
fn copies_hint(whole: bool, strategy: &Strategy) -> String {
    // FULL_SHARD and SHARD_GRAD_OP mean one copy.
    let one_copy = strategy.stage == Stage::Three && strategy.hybrid == Some(false);
    match (whole, strategy.reshard) {
        (true, _) => "as many copies as processes leave nothing to shard: remove one of the two".to_owned(),
        (false, ReshardAfterForward::Always(false)) if one_copy => {
            format!("SHARD_GRAD_OP means one copy: write HYBRID_SHARD_ZERO2 in its place, or remove {REPLICATE}")
        }
        _ if one_copy => format!("FULL_SHARD means one copy: write HYBRID_SHARD in its place, or remove {REPLICATE}"),
        _ => "copies need parameters that are sharded, each copy over some of the processes: use HYBRID_SHARD, \
              HYBRID_SHARD_ZERO2 or zero_stage: 3"
            .to_owned(),
    }
}

/// A group must be a true part of a copy's ranks: 1 and all of them are `false` and `true` under other names.
fn check_group(asked: &Asked<'_>, ranks: u32) -> Result<(), ConfigError> {
    let (ReshardAfterForward::Group(group), Some(setting)) = (asked.strategy.reshard, asked.setting) else {
        return Ok(());
    };
    if group > 1 && group < ranks && ranks.is_multiple_of(group) {
        return Ok(());
    }
    let sizes: Vec<String> =
        (2..ranks).filter(|size| ranks.is_multiple_of(*size)).map(|size| size.to_string()).collect();
    let allowed = format!(
        "it must be true, false, or the size of a group that divides the {ranks} ranks of one copy, more than 1 and \
         less than {ranks}"
    );
    let hint = match (group, sizes.as_slice()) {
        (1, _) => "a group of one rank keeps everything: that is false".to_owned(),
        (group, _) if group == ranks => {
            "a group of all ranks keeps nothing more than the shards: that is true".to_owned()
        }
        (_, []) => format!("no group lies between 1 and {ranks}: use true or false"),
        (_, sizes) => format!("it can be {}", sizes.join(", ")),
    };
    Err(setting.not_allowed(allowed, Some(hint)))
}
