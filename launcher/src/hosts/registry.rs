//! What the service and the coordinator's main thread share: who is there, what was said to whom, and what the agents' ranks
//! are doing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Range;
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use zerofold_proto::hosts::to_agent::Kind;
use zerofold_proto::hosts::{End, Exited, Hello, Pulse, Start, ToAgent, exited};

use super::roster::{Expected, Guest, Refusal, Roster};
use crate::event::{Event, StopSignal};
use crate::supervise::{Ending, Exit};

/// How long the last word may take to reach the agents.
const LAST_WORD: Duration = Duration::from_secs(3);

/// Where messages to an agent go.
pub(super) type Outbox = UnboundedSender<ToAgent>;

/// The agents' part of one membership.
#[derive(Debug, Default)]
struct Membership {
    generation: u64,
    /// Which ranks run under which session.
    ranks: BTreeMap<u64, Range<u32>>,
    /// What came of the start: the processes, or why there are none.
    started: BTreeMap<u64, Result<Vec<u32>, String>>,
    /// Ranks whose end was told.
    ended: BTreeSet<u32>,
    /// Last line and state by rank.
    states: HashMap<u32, (String, String)>,
}

#[derive(Debug)]
struct Inner {
    roster: Roster,
    outboxes: HashMap<u64, Outbox>,
    membership: Membership,
    /// By which address agents reach this host.
    own_address: Option<IpAddr>,
    ending: bool,
}

/// What is shared.
#[derive(Debug)]
pub(super) struct Registry {
    inner: Mutex<Inner>,
    changed: Condvar,
    events: Mutex<Sender<Event>>,
}

impl Registry {
    pub(super) fn new(expected: Expected, events: Sender<Event>) -> Registry {
        let inner = Inner {
            roster: Roster::new(expected),
            outboxes: HashMap::new(),
            membership: Membership::default(),
            own_address: None,
            ending: false,
        };
        Registry { inner: Mutex::new(inner), changed: Condvar::new(), events: Mutex::new(events) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // What it guards is valid between any two statements.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: Event) {
        // Nobody listens any more once the job is over.
        let _ = self.events.lock().unwrap_or_else(PoisonError::into_inner).send(event);
    }

    // What the service does.

    /// Takes an agent in; returns its session.
    pub(super) fn admit(
        &self,
        hello: Hello,
        (peer, own): (IpAddr, Option<IpAddr>),
        outbox: Outbox,
    ) -> Result<u64, Refusal> {
        let mut inner = self.inner();
        let (session, before) = inner.roster.admit(Instant::now(), hello, peer)?;
        inner.own_address = inner.own_address.or(own);
        inner.outboxes.insert(session, outbox);
        if let Some(before) = before {
            self.write_off(&mut inner, &before, "came back after its connection was lost");
        }
        drop(inner);
        self.changed.notify_all();
        self.tell(Event::HostsChanged);
        Ok(session)
    }

    /// An agent is gone: what ran there counts as ended.
    pub(super) fn lost(&self, session: u64, how: &str) {
        let mut inner = self.inner();
        let guest = inner.roster.remove(session);
        if let Some(guest) = guest {
            self.write_off(&mut inner, &guest, how);
        }
        drop(inner);
        self.changed.notify_all();
        self.tell(Event::HostsChanged);
    }

    fn write_off(&self, inner: &mut Inner, guest: &Guest, how: &str) {
        inner.outboxes.remove(&guest.session);
        if inner.ending {
            return;
        }
        let ranks = inner.membership.ranks.remove(&guest.session).unwrap_or_default();
        let running: Vec<u32> = ranks.filter(|rank| inner.membership.ended.insert(*rank)).collect();
        self.tell(Event::HostLost { host: guest.name.clone(), ranks: running, how: how.to_owned() });
    }

    pub(super) fn started(&self, session: u64, generation: u64, outcome: Result<Vec<u32>, String>) {
        let mut inner = self.inner();
        if inner.membership.generation == generation && inner.membership.ranks.contains_key(&session) {
            inner.membership.started.insert(session, outcome);
            self.changed.notify_all();
        }
    }

    /// A worker's process ended; words of an earlier membership are dropped.
    pub(super) fn exited(&self, session: u64, exited: Exited) {
        let mut inner = self.inner();
        let membership = &mut inner.membership;
        let its_own = membership.ranks.get(&session).is_some_and(|ranks| ranks.contains(&exited.rank));
        if membership.generation != exited.generation || !its_own || !membership.ended.insert(exited.rank) {
            return;
        }
        let ending = match exited.ending {
            Some(exited::Ending::Code(code)) => Ending::Code(code),
            Some(exited::Ending::Signal(signal)) => Ending::Signal(signal),
            None => Ending::Unknown,
        };
        self.tell(Event::Exited { rank: exited.rank, exit: Exit { ending, last_lines: exited.last_lines } });
    }

    pub(super) fn pulse(&self, session: u64, pulse: Pulse) {
        let mut inner = self.inner();
        let membership = &mut inner.membership;
        let Some(ranks) = membership.ranks.get(&session).cloned() else { return };
        for state in pulse.ranks {
            if state.generation == membership.generation && ranks.contains(&state.rank) {
                membership.states.insert(state.rank, (state.last_line, state.state));
            }
        }
    }

    /// Somebody asked an agent to stop: the first time it is the whole job that stops after its step, later at once.
    pub(super) fn stop_asked(&self, session: u64, signal: i32, again: bool) {
        let signal = if signal == libc::SIGINT { StopSignal::Interrupt } else { StopSignal::Terminate };
        match again {
            true => self.tell(Event::Signal(signal)),
            false => {
                let host = self.inner().roster.guest(session).map(|guest| guest.name.clone()).unwrap_or_default();
                self.tell(Event::StopAskedByHost { host, signal });
            }
        }
    }

    // What the main thread does.

    /// The agents that are there, by node rank.
    pub(super) fn guests(&self) -> Vec<Guest> {
        self.inner().roster.guests().cloned().collect()
    }

    /// By which address agents reach this host.
    pub(super) fn own_address(&self) -> Option<IpAddr> {
        self.inner().own_address
    }

    /// Begins the agents' part of a membership: `starts` has what each is told, by session.
    pub(super) fn begin(&self, generation: u64, starts: Vec<(u64, Range<u32>, Start)>) {
        let mut inner = self.inner();
        let ranks = starts.iter().map(|(session, ranks, _)| (*session, ranks.clone())).collect();
        inner.membership = Membership { generation, ranks, ..Membership::default() };
        for (session, _, start) in starts {
            let sent = inner.outboxes.get(&session).map(|outbox| outbox.send(message(Kind::Start(start))));
            if !matches!(sent, Some(Ok(()))) {
                tracing::debug!(session, "an agent went before it could be told to start");
            }
        }
        // Who went between the gathering and now is noticed as anybody later is.
        let gone: Vec<u64> =
            inner.membership.ranks.keys().filter(|session| inner.roster.guest(**session).is_none()).copied().collect();
        for session in gone {
            let ranks = inner.membership.ranks.remove(&session).unwrap_or_default();
            inner.membership.ended.extend(ranks.clone());
            let (host, how) = ("a host".to_owned(), "went before its ranks were started".to_owned());
            self.tell(Event::HostLost { host, ranks: ranks.collect(), how });
        }
    }

    /// Waits until each agent of the membership has started its ranks, or is gone: their processes by rank.
    ///
    /// # Errors
    /// The host that could not, and why.
    pub(super) fn wait_started(&self, patience: Duration) -> Result<BTreeMap<u32, u32>, (String, String)> {
        let deadline = Instant::now() + patience;
        let mut inner = self.inner();
        loop {
            let Membership { ranks, started, .. } = &inner.membership;
            for (session, outcome) in started {
                if let Err(reason) = outcome {
                    let host = inner.roster.guest(*session).map_or_else(String::new, |guest| guest.name.clone());
                    return Err((host, reason.clone()));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if ranks.keys().all(|session| started.contains_key(session)) || left.is_zero() {
                let mut pids = BTreeMap::new();
                for (session, ranks) in ranks {
                    if let Some(Ok(started)) = started.get(session) {
                        pids.extend(ranks.clone().zip(started.iter().copied()));
                    }
                }
                return Ok(pids);
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends a signal to the agents' processes.
    pub(super) fn signal(&self, number: i32) {
        let inner = self.inner();
        let generation = inner.membership.generation;
        for session in inner.membership.ranks.keys() {
            if let Some(outbox) = inner.outboxes.get(session) {
                let signal = zerofold_proto::hosts::Signal { generation, number };
                let _ = outbox.send(message(Kind::Signal(signal)));
            }
        }
    }

    /// The last line and the state of a rank, as its agent told them last.
    pub(super) fn state(&self, rank: u32) -> Option<(String, String)> {
        self.inner().membership.states.get(&rank).cloned()
    }

    /// Tells all agents that the job is over, and waits a little until they have heard it.
    pub(super) fn end(&self, code: u8, reason: &str) {
        let mut inner = self.inner();
        if std::mem::replace(&mut inner.ending, true) {
            return;
        }
        for outbox in inner.outboxes.values() {
            let _ = outbox.send(message(Kind::End(End { code: code.into(), reason: reason.to_owned() })));
        }
        let deadline = Instant::now() + LAST_WORD;
        while inner.roster.guests().next().is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

pub(super) fn message(kind: Kind) -> ToAgent {
    ToAgent { kind: Some(kind) }
}
