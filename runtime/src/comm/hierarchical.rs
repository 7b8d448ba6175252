//! Several hosts on the CPU: shared memory inside each, Gloo between them.
//!
//! Every host has as many ranks as any other, in a row; a rank's *place* is its number on its host. Between hosts only ranks of
//! the same place talk, so a host sends each byte to another host once, where a flat exchange would send it to each rank
//! there. Both kinds of messages come from and go to the tensors themselves:
//!
//! - an all-gather first fetches the shards of this place on all hosts, straight to where they belong in the full tensor; then
//!   the ranks of the host give each other what they have of each host's part;
//! - a reduce-scatter first sums each host's part over the ranks of this host, each rank its place's shard of it; then these
//!   sums are sent to the hosts that they are for, and added up there.
//!
//! So sums are taken within a host in rank order, and then host by host: the same bits on every rank and every time, but not
//! those of a flat exchange.
//!
//! What goes on after the first step is begun by whoever waits, so all ranks wait for all collectives in the same order.

use super::gloo::Gloo;
use super::shm::Shm;
use super::{
    ALL_GATHER, Activity, Collectives, CommError, Pending, REDUCE_SCATTER, Traffic, all_reduce_by_groups, bytes_of,
    check_pair, cut,
};
use crate::metrics::{Timeline, Track};
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// A group of ranks on several hosts, host by host: all of a job, or an axis of its mesh.
pub struct Hierarchical {
    /// All ranks of the group.
    world: Gloo,
    /// Those of them on this host.
    inner: Shm,
    /// Those that have this rank's place on their host.
    across: Gloo,
}

/// A full tensor as hosts and places see it.
struct Parts {
    /// Each host's part.
    hosts: Vec<Tensor>,
    /// What this rank's place has of each host's part.
    places: Vec<Tensor>,
}

/// How many ranks each host has, given the host of each rank.
///
/// # Errors
/// Hosts that do not have equally many, each in a row, and how they differ.
pub(super) fn ranks_per_host<T: PartialEq>(hosts: &[T]) -> Result<usize, &'static str> {
    let rows: Vec<&[T]> = hosts.chunk_by(T::eq).collect();
    let count = rows.first().map_or(0, |row| row.len());
    if rows.iter().enumerate().any(|(index, row)| rows[..index].iter().any(|before| before[0] == row[0])) {
        return Err("the ranks of a host are not in a row");
    }
    if rows.iter().any(|row| row.len() != count) {
        return Err("not every host has as many ranks as the others");
    }
    Ok(count)
}

impl Hierarchical {
    /// Out of a connection between all ranks of the group and one between those of them on this host, which are in a row and as
    /// many on every host.
    pub(super) fn new(world: Gloo, inner: Shm) -> Result<Self, CommError> {
        let places: Vec<usize> = (inner.rank()..world.world_size()).step_by(inner.world_size()).collect();
        Ok(Hierarchical { across: world.part(&places)?, world, inner })
    }

    fn parts(&self, full: &Tensor) -> Result<Parts, CommError> {
        let shards = cut(full, self.world_size())?;
        let places = shards.into_iter().skip(self.inner.rank()).step_by(self.inner.world_size());
        Ok(Parts { hosts: cut(full, self.across.world_size())?, places: places.collect() })
    }
}

impl Collectives for Hierarchical {
    fn rank(&self) -> usize {
        self.world.rank()
    }

    fn world_size(&self) -> usize {
        self.world.world_size()
    }

    /// Shared memory where the ranks are on one host; another hierarchy where they are several of each of several hosts, host
    /// by host; else Gloo.
    fn axis(&self, ranks: &[usize]) -> Result<Rc<dyn Collectives>, CommError> {
        let world = self.world.part(ranks)?;
        let (count, host) = (self.inner.world_size(), self.across.rank());
        let hosts: Vec<usize> = ranks.iter().map(|rank| rank / count).collect();
        let here: Vec<usize> = ranks.iter().filter(|&rank| rank / count == host).map(|rank| rank % count).collect();
        if here.len() == ranks.len() {
            return Ok(Rc::new(self.inner.part(&here)?));
        }
        Ok(match ranks_per_host(&hosts) {
            Ok(1) | Err(_) => Rc::new(world),
            Ok(_) => Rc::new(Hierarchical::new(world, self.inner.part(&here)?)?),
        })
    }

    fn start_all_gather_into(&self, full: &Tensor, shard: &Tensor) -> Result<Pending, CommError> {
        check_pair(ALL_GATHER, full, shard, self.world_size(), Device::Cpu)?;
        let collective = self.world.ledger().begin(Track::Gathers, bytes_of(full));
        let (sequence, host) = (collective.sequence(), self.across.rank());
        let Parts { hosts, places } = self.parts(full)?;
        // This puts the shard into its place, from where it is sent.
        let inside = self.inner.gather((sequence, host), &hosts[host], shard)?;
        let between = self.across.gather(sequence, &places)?;
        let inner = self.inner.clone();
        let rest = Pending::new(move || {
            inside.wait()?;
            between.wait()?;
            let others = (0..hosts.len()).filter(|&other| other != host);
            let gather = |other| inner.gather((sequence, other), &hosts[other], &places[other]);
            others.map(gather).collect::<Result<Vec<_>, _>>()?.into_iter().try_for_each(Pending::wait)
        });
        Ok(collective.after(rest))
    }

    fn start_reduce_scatter_into(&self, shard: &Tensor, full: &Tensor) -> Result<Pending, CommError> {
        check_pair(REDUCE_SCATTER, full, shard, self.world_size(), Device::Cpu)?;
        let collective = self.world.ledger().begin(Track::Reductions, bytes_of(full));
        let sequence = collective.sequence();
        let Parts { hosts, places } = self.parts(full)?;
        // The hosts' sums go where this rank's addends are, unless those are narrower.
        let sums = match full.kind() == shard.kind() {
            true => places,
            false => cut(&self.inner.scratch((shard.numel() * hosts.len()) as i64, shard.kind())?, hosts.len())?,
        };
        let reduce = |(host, sum)| self.inner.reduce((sequence, host), sum, &hosts[host]);
        let inside = sums.iter().enumerate().map(reduce).collect::<Result<Vec<_>, _>>()?;
        let (across, shard) = (self.across.clone(), shard.shallow_clone());
        let rest = Pending::new(move || {
            inside.into_iter().try_for_each(Pending::wait)?;
            across.reduce(sequence, &shard, sums)?.wait()
        });
        Ok(collective.after(rest))
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<(), CommError> {
        all_reduce_by_groups(self, tensor, self.inner.world_size())
    }

    fn allocate(&self, numel: i64, kind: Kind) -> Result<Tensor, CommError> {
        self.inner.allocate(numel, kind)
    }

    fn scratch(&self, numel: i64, kind: Kind) -> Result<Tensor, CommError> {
        self.inner.scratch(numel, kind)
    }

    fn traffic(&self) -> Traffic {
        self.world.traffic()
    }

    fn timeline(&self) -> &Timeline {
        self.world.timeline()
    }

    fn activity(&self) -> &Activity {
        self.world.activity()
    }
}

#[cfg(test)]
mod tests;
