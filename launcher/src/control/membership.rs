//! Who belongs to the job: joins, heartbeats and leaves, checked against the rank, world size and generation that `launch`
//! started. Pure: time comes in as an argument.

use std::time::Instant;

use thiserror::Error;
use zerofold_proto::v1::{Doing, HeartbeatRequest, JoinRequest, LeaveRequest, StateBytes};

/// Why a worker's call was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MembershipError {
    /// The rank is not below the world size.
    #[error("rank {rank} does not exist in a job of {world_size} processes (ranks 0 to {})", world_size - 1)]
    NoSuchRank {
        /// As sent.
        rank: u32,
        /// Of this job.
        world_size: u32,
    },
    /// The worker believes in another world size.
    #[error(
        "rank {rank} was started for {theirs} processes, this job has {ours}\nhint: WORLD_SIZE is set by launch; do not set it yourself"
    )]
    WorldSize {
        /// The worker.
        rank: u32,
        /// What it sent.
        theirs: u32,
        /// What the job has.
        ours: u32,
    },
    /// The worker belongs to another generation of the job.
    #[error("rank {rank} belongs to generation {theirs} of the job, which is now at generation {ours}")]
    Generation {
        /// The worker.
        rank: u32,
        /// What it sent.
        theirs: u64,
        /// What the job has.
        ours: u64,
    },
    /// Worker and launcher are of different builds.
    #[error(
        "rank {rank} runs version {theirs} of the worker, launch is version {ours}\nhint: build both from the same source, and see whether ZEROFOLD_WORKER points at an old one"
    )]
    Version {
        /// The worker.
        rank: u32,
        /// Its version.
        theirs: String,
        /// Launch's version.
        ours: String,
    },
    /// Two processes claim one rank.
    #[error("rank {rank} has already joined, as process {first_pid}; process {second_pid} cannot be it too")]
    Duplicate {
        /// The rank.
        rank: u32,
        /// Who joined first.
        first_pid: u32,
        /// Who was refused.
        second_pid: u32,
    },
    /// A call other than Join came first.
    #[error("rank {rank} has not joined")]
    NotJoined {
        /// The rank.
        rank: u32,
    },
    /// A rank that is done does more.
    #[error("rank {rank} has left the job")]
    Left {
        /// The rank.
        rank: u32,
    },
}

/// What a rank told on leaving.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Left {
    /// Optimizer steps finished.
    pub step: u64,
    /// It left because it was asked to stop.
    pub stopped: bool,
    /// Where rank 0 wrote the model; empty when it did not.
    pub model_directory: String,
    /// The step whose model it is.
    pub model_step: u64,
    /// Persistent bytes, as held.
    pub state: StateBytes,
}

/// What is known of one rank.
#[derive(Clone, Debug, Default)]
pub struct Member {
    /// The worker's process, as it said itself.
    pub pid: u32,
    /// What it calls itself when it joins.
    pub nonce: u64,
    /// When it joined.
    pub joined: Option<Instant>,
    /// When it was last heard from.
    pub heard: Option<Instant>,
    /// What it was doing then.
    pub doing: Doing,
    /// Optimizer steps it had finished; 0 until it has finished one in this membership.
    pub step: u64,
    /// Resident bytes.
    pub memory_bytes: u64,
    /// Most resident bytes so far.
    pub peak_memory_bytes: u64,
    /// Set once it left.
    pub left: Option<Left>,
}

/// The ranks of one generation.
#[derive(Clone, Debug)]
pub struct Membership {
    generation: u64,
    version: String,
    members: Vec<Member>,
}

impl Membership {
    /// A job of `world_size` ranks, none of which has joined; workers must be of `version`.
    pub fn new(world_size: u32, generation: u64, version: impl Into<String>) -> Self {
        Membership { generation, version: version.into(), members: vec![Member::default(); world_size as usize] }
    }

    /// All ranks, by rank.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// How many ranks there are.
    pub fn world_size(&self) -> u32 {
        self.members.len() as u32
    }

    /// Begins another membership of the job, of `world_size` ranks; calls of earlier ones are refused from now on.
    pub fn begin(&mut self, generation: u64, world_size: u32) {
        self.generation = generation;
        self.members = vec![Member::default(); world_size as usize];
    }

    /// Which membership of the job this is.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Checks that a call comes from a rank of this generation.
    pub fn check(&self, rank: u32, generation: u64) -> Result<(), MembershipError> {
        let world_size = self.world_size();
        if rank >= world_size {
            return Err(MembershipError::NoSuchRank { rank, world_size });
        }
        if generation != self.generation {
            return Err(MembershipError::Generation { rank, theirs: generation, ours: self.generation });
        }
        Ok(())
    }

    /// Lets a worker in.
    pub fn join(&mut self, now: Instant, request: &JoinRequest) -> Result<(), MembershipError> {
        let rank = request.rank;
        self.check(rank, request.generation)?;
        if request.world_size != self.world_size() {
            return Err(MembershipError::WorldSize { rank, theirs: request.world_size, ours: self.world_size() });
        }
        if request.version != self.version {
            let (theirs, ours) = (request.version.clone(), self.version.clone());
            return Err(MembershipError::Version { rank, theirs, ours });
        }
        let member = &mut self.members[rank as usize];
        // Who did not hear the answer asks again.
        if member.joined.is_some() && request.nonce != 0 && member.nonce == request.nonce && member.left.is_none() {
            return Ok(());
        }
        if member.joined.is_some() {
            return Err(MembershipError::Duplicate { rank, first_pid: member.pid, second_pid: request.pid });
        }
        *member =
            Member { pid: request.pid, nonce: request.nonce, joined: Some(now), heard: Some(now), ..Member::default() };
        Ok(())
    }

    /// Notes a heartbeat.
    pub fn heartbeat(&mut self, now: Instant, request: &HeartbeatRequest) -> Result<(), MembershipError> {
        let member = self.joined(request.rank, request.generation)?;
        member.heard = Some(now);
        member.doing = request.doing.clone().unwrap_or_default();
        // A beat sent before a step's report may arrive after it.
        member.step = member.step.max(request.step);
        member.memory_bytes = request.memory_bytes;
        member.peak_memory_bytes = member.peak_memory_bytes.max(request.peak_memory_bytes);
        Ok(())
    }

    /// Notes that a rank is done.
    pub fn leave(&mut self, now: Instant, request: &LeaveRequest) -> Result<(), MembershipError> {
        let member = self.joined(request.rank, request.generation)?;
        member.heard = Some(now);
        member.left = Some(Left {
            step: request.step,
            stopped: request.stopped,
            model_directory: request.model_directory.clone(),
            model_step: request.model_step,
            state: request.state.unwrap_or_default(),
        });
        Ok(())
    }

    /// Checks that a call comes from a rank of this generation that has joined.
    pub fn check_joined(&self, rank: u32, generation: u64) -> Result<&Member, MembershipError> {
        self.check(rank, generation)?;
        let member = &self.members[rank as usize];
        if member.joined.is_some() { Ok(member) } else { Err(MembershipError::NotJoined { rank }) }
    }

    /// The same of one that is not yet done either.
    pub fn check_at_work(&self, rank: u32, generation: u64) -> Result<(), MembershipError> {
        match self.check_joined(rank, generation)?.left {
            Some(_) => Err(MembershipError::Left { rank }),
            None => Ok(()),
        }
    }

    fn joined(&mut self, rank: u32, generation: u64) -> Result<&mut Member, MembershipError> {
        self.check_joined(rank, generation)?;
        Ok(&mut self.members[rank as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(rank: u32) -> JoinRequest {
        JoinRequest { rank, world_size: 2, generation: 1, pid: 100 + rank, version: "1.0".into(), nonce: 0 }
    }

    #[test]
    fn every_misfit_is_refused_by_its_own_reason() {
        let now = Instant::now();
        let mut membership = Membership::new(2, 1, "1.0");
        membership.join(now, &join(0)).unwrap();
        let cases = [
            (JoinRequest { rank: 2, ..join(1) }, "rank 2 does not exist"),
            (JoinRequest { generation: 2, ..join(1) }, "generation 2"),
            (JoinRequest { world_size: 3, ..join(1) }, "started for 3 processes"),
            (JoinRequest { version: "0.9".into(), ..join(1) }, "version 0.9"),
            (JoinRequest { pid: 7, ..join(0) }, "process 100; process 7"),
        ];
        for (request, expected) in cases {
            let message = membership.join(now, &request).unwrap_err().to_string();
            assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        }
        assert!(membership.members()[1].joined.is_none());
    }

    #[test]
    fn who_did_not_hear_the_answer_may_join_again() {
        let now = Instant::now();
        let mut membership = Membership::new(2, 1, "1.0");
        membership.join(now, &JoinRequest { nonce: 7, ..join(0) }).unwrap();
        membership.join(now, &JoinRequest { nonce: 7, ..join(0) }).unwrap();
        let other = membership.join(now, &JoinRequest { nonce: 8, ..join(0) });
        assert!(matches!(other, Err(MembershipError::Duplicate { rank: 0, .. })), "{other:?}");
        membership.leave(now, &LeaveRequest { rank: 0, generation: 1, ..Default::default() }).unwrap();
        assert!(membership.join(now, &JoinRequest { nonce: 7, ..join(0) }).is_err());
    }

    #[test]
    fn a_heartbeat_needs_a_join_and_never_goes_back() {
        let now = Instant::now();
        let mut membership = Membership::new(2, 1, "1.0");
        let beat = HeartbeatRequest { rank: 1, generation: 1, step: 5, peak_memory_bytes: 90, ..Default::default() };
        assert_eq!(membership.heartbeat(now, &beat), Err(MembershipError::NotJoined { rank: 1 }));
        membership.join(now, &join(1)).unwrap();
        membership.heartbeat(now, &beat).unwrap();
        let late = HeartbeatRequest { step: 4, peak_memory_bytes: 80, memory_bytes: 70, ..beat };
        membership.heartbeat(now, &late).unwrap();
        let member = &membership.members()[1];
        assert_eq!((member.step, member.peak_memory_bytes, member.memory_bytes), (5, 90, 70));
    }
}
