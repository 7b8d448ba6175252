//! Several hosts: one `launch` per node. That of node 0, the coordinator, does all that `launch` does on one host; the others
//! are agents, which start workers when they are told to, and tell how these end.
//!
//! ```text
//! coordinator: service ─ registry (roster) ─ Event ─→ main thread: gathering → fleet → supervise
//! agent:       attend (its connection) ─→ main thread: workers, signals
//! ```
//!
//! Contract:
//! 1. An agent whose stream ends, or that sends no pulse for ten seconds, is lost: its ranks count as ended at that moment, and
//!    nothing that it says later about them is heard. An agent that loses its coordinator ends its workers, and tries to join
//!    again as long as the first time.
//! 2. A membership begins with all hosts, or after the last call with enough of them; ranks are numbered host by host, by node
//!    rank, the coordinator's first.
//! 3. Nobody takes part who was given another configuration, another run id, another version, or a node rank that is taken.
//! 4. When the job ends every agent is told its exit code and why, and leaves with the same code.

mod address;
pub(crate) mod agent;
mod attend;
mod difference;
mod fleet;
mod gathering;
mod registry;
mod roster;
mod service;
mod token;

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use tonic::service::Routes;
use zerofold_configs::{DeviceKind, Inputs, Joined, Resolved, Topology, Training, resolve};
use zerofold_proto::hosts::Start;
use zerofold_proto::hosts::hosts_server::HostsServer;
use zerofold_trust::{Refusals, Token};

use crate::control::Listen;
use crate::error::LaunchError;
use crate::event::{Event, StopSignal};
use crate::format;
use crate::supervise::{Place, Worker};
use crate::terminal::Terminal;
use crate::watch::Board;
use crate::worker_command::{LocalRanks, sharing};
use fleet::HostsFleet;
use gathering::Gathering;
use registry::Registry;
use roster::{Expected, Guest};
pub(crate) use service::HostsService;

pub use token::make as make_token;
pub(crate) use token::{of_job as token_of_job, read as read_token};

/// What is said where encryption was switched off by name.
pub(crate) const NO_TLS: &str =
    "warning: no_tls: what the hosts say to each other is not encrypted, and host 0 proves to nobody who it is";

/// How long an agent may take to start its workers.
const START: Duration = Duration::from_secs(60);

/// The coordinator's side of a job on several hosts. Dropped, it tells the agents that the job failed.
pub(crate) struct Hosts {
    registry: Arc<Registry>,
    topology: Topology,
    inputs: Inputs,
    /// Node ranks in the order of their ranks, with how many each runs.
    places: Vec<(Guest, Range<u32>)>,
}

/// Why a gathering ended without a membership.
pub(crate) enum NotGathered {
    /// A signal asked for a stop.
    Stopped(StopSignal),
    /// Too few hosts came, or their number does not fit the job.
    Failed(LaunchError),
}

impl Hosts {
    /// The coordinator of this job, where it has several launches; what serves its agents goes into the control plane. `config` is
    /// what was resolved, before anything was looked up on this host.
    pub(crate) fn of(
        topology: &Topology,
        inputs: &Inputs,
        config: &Resolved,
        events: &Sender<Event>,
    ) -> Option<(Hosts, HostsService)> {
        if topology.is_alone() {
            return None;
        }
        let expected = Expected {
            host: address::host_name(),
            run_id: topology.run_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nodes: topology.nodes,
            configuration: difference::told(config),
        };
        let registry = Arc::new(Registry::new(expected, events.clone()));
        let service = HostsService { registry: registry.clone(), refusals: Refusals::default() };
        Some((Hosts { registry, topology: topology.clone(), inputs: inputs.clone(), places: Vec::new() }, service))
    }

    /// Where the coordinator of this job listens.
    ///
    /// # Errors
    /// Its endpoint cannot be looked up.
    pub(crate) fn listen(topology: &Topology, token: Token) -> Result<Option<Listen>, LaunchError> {
        let Some(endpoint) = &topology.endpoint else { return Ok(None) };
        let address = address::listen(endpoint)?;
        // Looked for again once the other hosts are there; what is wrong with it is told before anything waits.
        let _named = address::interface(topology.interface.as_deref(), None)?;
        // What stays on this host is read by nobody else.
        let tls = topology.tls && !address::is_loopback(&endpoint.host);
        Ok(Some(Listen { address, token, tls }))
    }

    /// Waits for the hosts of the next membership; returns the configuration for as many ranks as they run.
    pub(crate) fn gather(
        &mut self,
        config: &Resolved,
        received: &Receiver<Event>,
        (terminal, board): (&Terminal, &Board),
        other: &mut dyn FnMut(Event),
    ) -> Result<Resolved, NotGathered> {
        let (nodes, times) = (self.topology.nodes, self.topology.times);
        let began = Instant::now();
        let (mut known, mut said) = (Vec::new(), None);
        loop {
            let now = Instant::now();
            let guests = self.registry.guests();
            for guest in guests.iter().filter(|guest| !known.contains(&guest.session)) {
                terminal.say(&format!(
                    "host {} ({}, {}): {}",
                    guest.node_rank,
                    guest.host,
                    guest.address,
                    format::plural(u64::from(guest.ranks), "rank")
                ));
            }
            known = guests.iter().map(|guest| guest.session).collect();
            let last = guests.iter().map(|guest| guest.joined).max().unwrap_or(began);
            let here = guests.len() as u32 + 1;
            let until = match gathering::decide(now, began, (here, last), nodes, &times) {
                Gathering::Begin => return self.settle(config, guests).map_err(NotGathered::Failed),
                Gathering::TooFew => return Err(NotGathered::Failed(self.too_few(&guests))),
                Gathering::Wait(until) => until,
            };
            if said.is_none_or(|(count, at): (u32, Instant)| count != here || now >= at + gathering::REMINDER) {
                let endpoint = self.topology.endpoint.as_ref().map(ToString::to_string).unwrap_or_default();
                let left = format::duration(until.saturating_duration_since(now));
                let needed = if here < nodes.min { nodes.min } else { nodes.max };
                board.wait_for(&format!("hosts, {here} of {needed} are here"));
                terminal
                    .say(&format!("{here} of {needed} hosts are here; waiting up to {left} for others at {endpoint}"));
                said = Some((here, now));
            }
            match received.recv_timeout(until.saturating_duration_since(now).min(gathering::REMINDER)) {
                Ok(Event::Signal(signal)) => return Err(NotGathered::Stopped(signal)),
                Ok(Event::StopAskedByHost { host, signal }) => {
                    terminal.complain(&format!("host {host} was asked to stop by {}", signal.name()));
                    return Err(NotGathered::Stopped(signal));
                }
                Ok(event) => other(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(gathering::REMINDER),
            }
        }
    }

    /// Does what takes long before anything runs. A signal ends this launch at once meanwhile, as it would on one host, where
    /// nothing listens for it yet; the other hosts are told first, and `leave` is called.
    pub(crate) fn unless_stopped<T: Send>(
        &self,
        received: &Receiver<Event>,
        terminal: &Terminal,
        leave: impl FnOnce(),
        work: impl FnOnce() -> T + Send,
    ) -> T {
        /// How soon it is noticed that the work is done.
        const LOOK: Duration = Duration::from_millis(20);
        std::thread::scope(|scope| {
            let working = scope.spawn(work);
            while !working.is_finished() {
                let (signal, host) = match received.recv_timeout(LOOK) {
                    Ok(Event::Signal(signal)) => (signal, None),
                    Ok(Event::StopAskedByHost { host, signal }) => (signal, Some(host)),
                    // Who comes and goes is looked at when ranks are started.
                    _ => continue,
                };
                let at = host.map(|host| format!(" at host {host}")).unwrap_or_default();
                let reason = format!("the job was stopped by {}{at} before it began", signal.name());
                terminal.complain(&reason);
                self.end(signal.exit_code(), &reason);
                leave();
                std::process::exit(signal.exit_code().into());
            }
            working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn too_few(&self, guests: &[Guest]) -> LaunchError {
        let waited = format::duration(self.topology.times.join);
        let mut names = vec![format!("0 ({})", address::host_name())];
        names.extend(guests.iter().map(|guest| format!("{} ({})", guest.node_rank, guest.host)));
        LaunchError::Hosts {
            message: format!(
                "{} of at least {} hosts came within {waited}: {}",
                names.len(),
                self.topology.nodes.min,
                names.join(", ")
            ),
            hint: "start launch on the others with the same --rdzv-endpoint; --rdzv-conf join_timeout=SECONDS waits longer"
                .to_owned(),
        }
    }

    /// Numbers the ranks of those who are there.
    fn settle(&mut self, config: &Resolved, guests: Vec<Guest>) -> Result<Resolved, LaunchError> {
        let mut next = self.topology.ranks;
        // Of several launches on one host only the first counts as the host.
        let hosts = 1 + guests.iter().filter(|guest| guest.local_rank == 0).count() as u32;
        self.places.clear();
        for guest in guests {
            let ranks = next..next + guest.ranks;
            next = ranks.end;
            self.places.push((guest, ranks));
        }
        let resolved = resolve(&Inputs { joined: Some(Joined { hosts, ranks: next }), ..self.inputs.clone() })?;
        // A DeepSpeed JSON's train_batch_size is shared out among those that are there.
        let per_device_train_batch_size = resolved.training.per_device_train_batch_size;
        // What was looked up since the configuration was resolved first is no matter of how many there are.
        Ok(Resolved {
            training: Training { per_device_train_batch_size, ..config.training.clone() },
            export_model: config.export_model,
            hub_model: config.hub_model.clone(),
            hub_data: config.hub_data.clone(),
            initial_checkpoint: config.initial_checkpoint.clone(),
            chat_template: config.chat_template.clone(),
            template_date: config.template_date.clone(),
            notes: config.notes.clone(),
            ..resolved
        })
    }

    /// The ranks that this host runs itself.
    pub(crate) fn own_ranks(&self) -> LocalRanks {
        let Topology { ranks, local_rank, local_ranks, .. } = self.topology;
        let shared = self.registry.own_address().map_or(0, |own| self.ranks_on(&address::host_name(), own));
        LocalRanks {
            first: 0,
            count: ranks,
            local_rank,
            on_host: local_ranks,
            on_machine: sharing(local_ranks, shared),
        }
    }

    /// Ranks on the machine with this name and address, of all launches there: what is started twice on one machine, to try
    /// several hosts out, shares its processors.
    fn ranks_on(&self, host: &str, address: IpAddr) -> u32 {
        let is_own = address::host_name() == host && self.registry.own_address() == Some(address);
        let own = if is_own { self.topology.ranks } else { 0 };
        let guests = self.places.iter().filter(|(guest, _)| guest.host == host && guest.address == address);
        own + guests.map(|(guest, _)| guest.ranks).sum::<u32>()
    }

    /// The interface that collectives use on this host.
    ///
    /// # Errors
    /// One was named that this host does not have.
    pub(crate) fn interface(&self) -> Result<Option<String>, LaunchError> {
        address::interface(self.topology.interface.as_deref(), self.registry.own_address())
    }

    /// Starts the agents' ranks as `start` says, together with `spawn` those of this host.
    ///
    /// # Errors
    /// A host cannot start its ranks.
    pub(crate) fn start(
        &self,
        start: &Start,
        spawn: impl FnOnce() -> Result<Vec<Worker>, LaunchError>,
    ) -> Result<HostsFleet, LaunchError> {
        let starts = self.places.iter().map(|(guest, ranks)| {
            let ranks_on_machine = self.ranks_on(&guest.host, guest.address);
            (guest.session, ranks.clone(), Start { first_rank: ranks.start, ranks_on_machine, ..start.clone() })
        });
        self.registry.begin(start.generation, starts.collect());
        // Whatever happens from here on, what the agents started is ended when this is dropped.
        let mut fleet = HostsFleet { local: Vec::new(), registry: self.registry.clone(), places: Vec::new() };
        fleet.local = spawn()?;
        let pids = self.registry.wait_started(START).map_err(|(host, reason)| LaunchError::Hosts {
            message: format!("host {host} cannot start its ranks: {}", first_part(&reason)),
            hint: hint_of(&reason),
        })?;
        let own = address::host_name();
        let mut places: Vec<Place> =
            fleet.local.iter().map(|worker| Place { pid: worker.pid(), host: own.clone() }).collect();
        for (guest, ranks) in &self.places {
            let place = |rank| Place { pid: pids.get(&rank).copied().unwrap_or_default(), host: guest.name.clone() };
            places.extend(ranks.clone().map(place));
        }
        fleet.places = places;
        Ok(fleet)
    }

    /// Tells the agents how the job ended.
    pub(crate) fn end(&self, code: u8, reason: &str) {
        self.registry.end(code, reason);
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.registry.end(crate::error::EXIT_FAILED, "the coordinator ended with an error; host 0 tells which");
    }
}

impl HostsService {
    /// The routes of the agents' service.
    pub(crate) fn routes(self, routes: Routes) -> Routes {
        routes.add_service(HostsServer::new(self).max_decoding_message_size(service::MAX_MESSAGE_BYTES))
    }
}

/// What a worker of this host needs in its environment so that NCCL uses the same interface.
pub(crate) fn nccl_interface(device: DeviceKind, interface: Option<&str>) -> Option<(&'static str, String)> {
    const NAME: &str = "NCCL_SOCKET_IFNAME";
    if device != DeviceKind::Cuda || std::env::var_os(NAME).is_some() {
        return None;
    }
    // `=` asks for exactly this name; NCCL would take it for the beginning of one otherwise.
    Some((NAME, format!("={}", address::name_of(interface?)?)))
}

fn first_part(text: &str) -> &str {
    text.split("\nhint: ").next().unwrap_or_default()
}

fn hint_of(text: &str) -> String {
    let hint = text.split_once("\nhint: ").map(|(_, hint)| hint);
    hint.unwrap_or("its own terminal may tell more").to_owned()
}
