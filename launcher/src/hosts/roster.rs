//! The agents that belong to the job now, and who may become one. Pure: time and addresses come in as arguments.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use serde_json::Value;
use thiserror::Error;
use zerofold_configs::Nodes;
use zerofold_proto::hosts::Hello;

use super::difference::difference;

/// The most ranks that one host may say it runs.
const MOST_RANKS: u32 = 4096;

/// What every agent must agree on with the coordinator.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    /// The name of host 0.
    pub(super) host: String,
    pub(super) run_id: String,
    pub(super) version: String,
    pub(super) nodes: Nodes,
    /// What was resolved, without what is a machine's own.
    pub(super) configuration: Value,
}

/// An agent that belongs to the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Guest {
    pub(super) node_rank: u32,
    pub(super) host: String,
    /// The host's name for messages: with its node rank where another host has the same name.
    pub(super) name: String,
    pub(super) address: IpAddr,
    pub(super) ranks: u32,
    pub(super) local_rank: u32,
    pub(super) local_ranks: u32,
    pub(super) instance: String,
    pub(super) session: u64,
    pub(super) joined: Instant,
}

/// Why an agent is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum Refusal {
    #[error("it runs version {theirs} of launch, host 0 runs {ours}\nhint: build both from the same source")]
    Version { theirs: String, ours: String },
    #[error("it belongs to run {theirs:?}, this is {ours:?}\nhint: give the same --rdzv-id on every host")]
    Run { theirs: String, ours: String },
    #[error("it was started for {theirs} hosts, host 0 for {ours}\nhint: give the same --nnodes on every host")]
    Nodes { theirs: String, ours: String },
    #[error("its node rank is {node_rank}: hosts are numbered from 1 to {}, and 0 is the coordinator", most - 1)]
    NodeRank { node_rank: u32, most: u32 },
    #[error("it says that it runs {0} ranks, and a host has from 1 to {MOST_RANKS}")]
    Ranks(u32),
    #[error("its configuration is not JSON: {0}")]
    NotJson(String),
    #[error("it was given another configuration: {0}\nhint: give the same file and flags on every host")]
    Configuration(String),
    #[error(
        "node rank {node_rank} is taken by host {host} ({address}), which is alive\nhint: give each host a --node-rank of its own"
    )]
    Taken { node_rank: u32, host: String, address: IpAddr },
}

impl Refusal {
    /// In a word, for the log.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Refusal::Version { .. } => "another version",
            Refusal::Run { .. } => "another run",
            Refusal::Nodes { .. } => "another number of hosts",
            Refusal::NodeRank { .. } | Refusal::Ranks(_) => "impossible numbers",
            Refusal::NotJson(_) | Refusal::Configuration(_) => "another configuration",
            Refusal::Taken { .. } => "a node rank that is taken",
        }
    }
}

/// The agents that belong to the job.
#[derive(Debug)]
pub(super) struct Roster {
    expected: Expected,
    guests: BTreeMap<u32, Guest>,
    sessions: u64,
}

impl Roster {
    pub(super) fn new(expected: Expected) -> Roster {
        Roster { expected, guests: BTreeMap::new(), sessions: 0 }
    }

    /// The agents, by node rank.
    pub(super) fn guests(&self) -> impl Iterator<Item = &Guest> {
        self.guests.values()
    }

    pub(super) fn guest(&self, session: u64) -> Option<&Guest> {
        self.guests().find(|guest| guest.session == session)
    }

    /// Takes an agent in, under a session of its own. What is left of its own earlier session is returned: it came back before its
    /// loss was noticed.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        hello: Hello,
        address: IpAddr,
    ) -> Result<(u64, Option<Guest>), Refusal> {
        let expected = &self.expected;
        if hello.version != expected.version {
            return Err(Refusal::Version { theirs: short(&hello.version), ours: expected.version.clone() });
        }
        if hello.run_id != expected.run_id {
            return Err(Refusal::Run { theirs: short(&hello.run_id), ours: expected.run_id.clone() });
        }
        let nodes = expected.nodes;
        if (hello.nodes_min, hello.nodes_max) != (nodes.min, nodes.max) {
            let words = |min, max| if min == max { format!("{max}") } else { format!("{min}:{max}") };
            let (theirs, ours) = (words(hello.nodes_min, hello.nodes_max), words(nodes.min, nodes.max));
            return Err(Refusal::Nodes { theirs, ours });
        }
        if hello.node_rank == 0 || hello.node_rank >= nodes.max {
            return Err(Refusal::NodeRank { node_rank: hello.node_rank, most: nodes.max });
        }
        if !(1..=MOST_RANKS).contains(&hello.ranks) {
            return Err(Refusal::Ranks(hello.ranks));
        }
        let theirs = serde_json::from_str(&hello.configuration).map_err(|error| Refusal::NotJson(error.to_string()))?;
        if let Some(words) = difference(&expected.configuration, &theirs) {
            return Err(Refusal::Configuration(words));
        }
        if let Some(other) = self.guests.get(&hello.node_rank).filter(|other| other.instance != hello.instance) {
            let (node_rank, host, address) = (other.node_rank, other.name.clone(), other.address);
            return Err(Refusal::Taken { node_rank, host, address });
        }
        self.sessions += 1;
        let host = short(&hello.host);
        let guest = Guest {
            node_rank: hello.node_rank,
            name: self.told_apart(&host, hello.node_rank),
            host,
            address,
            ranks: hello.ranks,
            local_rank: hello.local_rank,
            local_ranks: hello.local_ranks,
            instance: hello.instance,
            session: self.sessions,
            joined: now,
        };
        Ok((self.sessions, self.guests.insert(guest.node_rank, guest)))
    }

    fn told_apart(&self, host: &str, node_rank: u32) -> String {
        let others = self.guests().filter(|guest| guest.node_rank != node_rank).map(|guest| guest.host.as_str());
        match others.chain([self.expected.host.as_str()]).any(|other| other == host) {
            true => format!("{host} (node {node_rank})"),
            false => host.to_owned(),
        }
    }

    /// Strikes an agent off.
    pub(super) fn remove(&mut self, session: u64) -> Option<Guest> {
        let node_rank = self.guest(session)?.node_rank;
        self.guests.remove(&node_rank)
    }
}

/// What somebody else wrote, fit for a message.
fn short(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(node_rank: u32, instance: &str) -> Hello {
        Hello {
            node_rank,
            host: format!("host-{node_rank}"),
            ranks: 2,
            local_rank: 0,
            local_ranks: 2,
            run_id: "run".into(),
            version: "1".into(),
            configuration: r#"{"a": 1, "notes": "x"}"#.into(),
            nodes_min: 2,
            nodes_max: 3,
            instance: instance.into(),
        }
    }

    fn roster() -> Roster {
        let configuration = serde_json::json!({"a": 1});
        let nodes = Nodes { min: 2, max: 3 };
        Roster::new(Expected { host: "host-0".into(), run_id: "run".into(), version: "1".into(), nodes, configuration })
    }

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn misfits_are_refused_by_their_own_reason() {
        let now = Instant::now();
        let mut roster = roster();
        roster.admit(now, hello(1, "first"), ADDRESS).unwrap();
        let table = [
            (Hello { version: "2".into(), ..hello(2, "") }, "version 2"),
            (Hello { run_id: "other\u{1b}".into(), ..hello(2, "") }, "run \"other\", this is \"run\""),
            (Hello { nodes_min: 3, ..hello(2, "") }, "for 3 hosts, host 0 for 2:3"),
            (hello(0, ""), "node rank is 0"),
            (hello(3, ""), "numbered from 1 to 2"),
            (Hello { ranks: 0, ..hello(2, "") }, "0 ranks"),
            (Hello { ranks: u32::MAX, ..hello(2, "") }, "4294967295 ranks"),
            (Hello { configuration: "{".into(), ..hello(2, "") }, "not JSON"),
            (Hello { configuration: r#"{"a": 2}"#.into(), ..hello(2, "") }, "a is 1 on host 0 and 2 there"),
            (hello(1, "second"), "taken by host host-1 (127.0.0.1)"),
        ];
        for (hello, part) in table {
            let refusal = roster.admit(now, hello, ADDRESS).unwrap_err().to_string();
            assert!(refusal.contains(part), "{part} is not in {refusal}");
        }
        assert_eq!(roster.guests().count(), 1);
    }

    #[test]
    fn hosts_of_one_name_are_told_apart() {
        let now = Instant::now();
        let mut roster = roster();
        roster.admit(now, Hello { host: "host-0".into(), ..hello(1, "first") }, ADDRESS).unwrap();
        roster.admit(now, hello(2, "second"), ADDRESS).unwrap();
        let names: Vec<&str> = roster.guests().map(|guest| guest.name.as_str()).collect();
        assert_eq!(names, ["host-0 (node 1)", "host-2"]);
    }

    #[test]
    fn an_agent_may_come_back_and_its_place_is_free_when_it_is_gone() {
        let now = Instant::now();
        let mut roster = roster();
        let (first, _) = roster.admit(now, hello(1, "first"), ADDRESS).unwrap();
        let (again, before) = roster.admit(now, hello(1, "first"), ADDRESS).unwrap();
        assert_eq!(before.map(|guest| guest.session), Some(first));
        assert_eq!(roster.remove(first), None, "that session is over");
        assert!(roster.remove(again).is_some());
        assert!(roster.admit(now, hello(1, "second"), ADDRESS).is_ok());
    }
}
