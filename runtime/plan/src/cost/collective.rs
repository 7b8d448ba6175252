//! How long a collective takes: rings, as NCCL has them, inside hosts and across.

use super::Assumptions;
use crate::layout::Mesh;
use serde::Serialize;
use std::ops::{Add, Mul};

/// The time of collectives, or of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Wire {
    /// Seconds that the links inside a host would take alone.
    pub inside_hosts: f64,
    /// Seconds that the network between hosts would take alone.
    pub across_hosts: f64,
    /// Seconds of starting, and of the ring's steps.
    pub latency: f64,
    /// Seconds altogether: both kinds of links work at once, so the slower one counts, after the latency.
    pub seconds: f64,
}

impl Wire {
    fn of(inside_hosts: f64, across_hosts: f64, latency: f64) -> Wire {
        Wire { inside_hosts, across_hosts, latency, seconds: inside_hosts.max(across_hosts) + latency }
    }
}

impl Add for Wire {
    type Output = Wire;

    fn add(self, other: Wire) -> Wire {
        Wire {
            inside_hosts: self.inside_hosts + other.inside_hosts,
            across_hosts: self.across_hosts + other.across_hosts,
            latency: self.latency + other.latency,
            seconds: self.seconds + other.seconds,
        }
    }
}

impl Mul<f64> for Wire {
    type Output = Wire;

    fn mul(self, factor: f64) -> Wire {
        Wire {
            inside_hosts: self.inside_hosts * factor,
            across_hosts: self.across_hosts * factor,
            latency: self.latency * factor,
            seconds: self.seconds * factor,
        }
    }
}

impl std::iter::Sum for Wire {
    fn sum<I: Iterator<Item = Wire>>(wires: I) -> Wire {
        wires.fold(Wire::default(), Add::add)
    }
}

/// Ranks that communicate, and how they lie on hosts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Group {
    /// How many they are.
    pub(super) ranks: usize,
    /// On how many hosts.
    pub(super) hosts: usize,
    /// How many such groups send through each host's network at once.
    pub(super) sharing: usize,
}

impl Group {
    /// The ranks of one copy, which are neighbours.
    pub(super) fn shards(mesh: Mesh, gpus_per_host: usize) -> Group {
        Group::neighbours(mesh.shards, gpus_per_host)
    }

    /// So many neighbours. Where groups are smaller than a host they do not leave it.
    pub(super) fn neighbours(ranks: usize, gpus_per_host: usize) -> Group {
        Group { ranks, hosts: ranks.div_ceil(gpus_per_host), sharing: 1 }
    }

    /// The ranks with the same shard, one of each copy: as many groups as a copy has ranks on a host.
    pub(super) fn replicas(mesh: Mesh, gpus_per_host: usize) -> Group {
        let copy_on_host = mesh.shards.min(gpus_per_host);
        let copies_on_host = (gpus_per_host / mesh.shards).max(1);
        Group { ranks: mesh.replicas, hosts: mesh.replicas.div_ceil(copies_on_host), sharing: copy_on_host }
    }

    /// A gather or a reduce-scatter of so many bytes, all ranks' parts together. Each rank sends and receives all parts but
    /// one; so does each host, for every group that it has a part in.
    pub(super) fn collective(&self, bytes: f64, assumed: &Assumptions) -> Wire {
        let Group { ranks, hosts, sharing } = *self;
        if ranks < 2 {
            return Wire::default();
        }
        let all_but_one = |parts: usize| bytes * (parts - 1) as f64 / parts as f64;
        let inside = if ranks > hosts { all_but_one(ranks) / assumed.link_bandwidth } else { 0.0 };
        let across = sharing as f64 * all_but_one(hosts) / assumed.host_bandwidth;
        let steps = (ranks - hosts) as f64 * assumed.link_step_seconds + (hosts - 1) as f64 * assumed.host_step_seconds;
        Wire::of(
            inside / assumed.network_efficiency,
            across / assumed.network_efficiency,
            assumed.collective_seconds + steps,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_configs::{ElementType, Hardware};

    fn assumed() -> Assumptions {
        let gpu = Hardware::shipped().unwrap().gpu("h100").unwrap().clone();
        let none = [("collective_seconds", 0.0), ("link_step_seconds", 0.0), ("host_step_seconds", 0.0)];
        let mut assumed = Assumptions::of(&gpu, ElementType::Bfloat16);
        for (name, value) in none.into_iter().chain([("network_efficiency", 1.0)]) {
            assumed.set(name, value).unwrap();
        }
        assumed
    }

    /// By hand: 450 GB/s of links, 400 GB/s of network.
    #[test]
    fn rings_send_all_parts_but_one() {
        let assumed = assumed();
        let one_host = Group::neighbours(8, 8).collective(450e9, &assumed);
        assert_eq!((one_host.inside_hosts, one_host.across_hosts, one_host.seconds), (0.875, 0.0, 0.875));
        let four = Group::neighbours(32, 8).collective(400e9, &assumed);
        assert_eq!(four.across_hosts, 0.75);
        assert!((four.inside_hosts - 400.0 / 450.0 * 31.0 / 32.0).abs() < 1e-12, "{}", four.inside_hosts);
        assert_eq!(four.seconds, four.inside_hosts, "the slower of the two");
        assert_eq!(Group::neighbours(1, 8).collective(1e9, &assumed), Wire::default());
    }

    /// Copies on hosts: each of the eight ranks of a host sends its shard through the same network.
    #[test]
    fn copies_share_the_network_of_their_hosts() {
        let assumed = assumed();
        let mesh = |replicas, shards| Mesh { replicas, shards };
        let group = Group::replicas(mesh(4, 8), 8);
        assert_eq!(group, Group { ranks: 4, hosts: 4, sharing: 8 });
        let wire = group.collective(10e9, &assumed);
        assert_eq!((wire.inside_hosts, wire.across_hosts), (0.0, 8.0 * 7.5e9 / 400e9));
        // Two copies on each host: their ranks' parts meet inside before they leave.
        assert_eq!(Group::replicas(mesh(4, 4), 8), Group { ranks: 4, hosts: 2, sharing: 4 });
        // A copy over two hosts.
        assert_eq!(Group::replicas(mesh(2, 16), 8), Group { ranks: 2, hosts: 2, sharing: 8 });
        // Copies of one rank are plain data parallelism.
        assert_eq!(Group::replicas(mesh(16, 1), 8), Group { ranks: 16, hosts: 2, sharing: 1 });
    }

    /// NCCL's own estimate of a ring, src/graph/tuning.cc: a base, and a latency for each step inside and across hosts.
    #[test]
    fn latency_grows_with_the_ring() {
        let gpu = Hardware::shipped().unwrap().gpu("h100").unwrap().clone();
        let assumed = Assumptions::of(&gpu, ElementType::Bfloat16);
        let latency = Group::neighbours(128, 8).collective(0.0, &assumed).latency;
        assert!((latency - (8.4e-6 + 112.0 * 3.4e-6 + 15.0 * 9.6e-6)).abs() < 1e-12, "{latency}");
    }
}
