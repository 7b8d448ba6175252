//! What `launch` does on a host that is not host 0: it starts workers when it is told to, and tells how they end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use zerofold_configs::{Resolved, Topology};
use zerofold_proto::hosts::from_agent::Kind;
use zerofold_proto::hosts::to_agent::Kind as Told;
use zerofold_proto::hosts::{Exited, Hello, NotStarted, Pulse, RankState, Start, Started, StopAsked, exited};

use super::attend::{Attendance, FromHost0};
use super::{address, difference, nccl_interface, token_of_job};
use crate::control::Contact;
use crate::environment as env;
use crate::error::{EXIT_FAILED, LaunchError};
use crate::event::{Event, StopSignal};
use crate::hub::{self, Extent};
use crate::supervise::verdict::is_repetition;
use crate::supervise::{Ending, Exit, Fleet, Worker};
use crate::terminal::Terminal;
use crate::worker_command::{JobEnvironment, LocalRanks, find_worker, sharing};
use crate::{format, initial_model, job, logs, signals};

/// The pause between two tries to reach host 0.
const RETRY: Duration = Duration::from_secs(1);
/// How often the coordinator hears of the ranks.
const PULSE: Duration = Duration::from_secs(1);
/// How long workers have from SIGTERM to SIGKILL when the coordinator is lost.
const TERMINATE: Duration = Duration::from_secs(5);
/// How long somebody else may have this node rank: longer than it takes to notice that a host is gone.
const TAKEN: Duration = Duration::from_secs(30);

/// What the main thread hears of.
#[derive(Debug)]
pub(super) enum Happening {
    /// From a try to attend.
    Host0(u64, FromHost0),
    /// From a worker, or from the system.
    Here(Event),
}

/// What this launch is and has.
struct Agent {
    topology: Topology,
    config: Resolved,
    worker: PathBuf,
    contact: Contact,
    interface: Option<String>,
    terminal: Arc<Terminal>,
    happenings: Sender<Happening>,
    events: Sender<Event>,
    /// Who runs now.
    ranks: Option<Ranks>,
    /// The first stop that somebody asked for.
    stop: Option<(Instant, StopSignal)>,
}

/// The workers of one membership.
struct Ranks {
    generation: u64,
    first: u32,
    workers: Vec<Worker>,
    ended: Vec<bool>,
}

impl Ranks {
    fn running(&self) -> bool {
        self.ended.iter().any(|ended| !ended)
    }
}

/// How a try to belong to the job ended.
enum Outcome {
    /// The job is over: this is the exit code.
    Over(u8),
    /// Host 0 cannot be reached.
    Gone(String),
    /// Somebody else has this node rank.
    Taken(String),
    /// A signal, while there was no job to stop.
    Stopped(StopSignal),
}

/// Runs as an agent until the job is over; returns the exit code. Must be called on the main thread, which workers die with.
///
/// # Errors
/// What this host lacks, or why it is refused.
pub(crate) fn run(topology: Topology, config: Resolved, terminal: Arc<Terminal>) -> Result<u8, LaunchError> {
    let configuration = difference::told(&config).to_string();
    let token = token_of_job(&topology)?;
    let endpoint = topology.endpoint.clone().unwrap_or_else(|| unreachable!("an agent has somebody to meet"));
    let towards = address::towards(&endpoint);
    let interface = address::interface(topology.interface.as_deref(), towards)?;
    let mut config = initial_model::settle(config)?;
    hub::bring(&mut config, None, Extent::Whole, &terminal)?;
    let _model = job::check(&config)?;
    let worker = find_worker()?;
    let tls = topology.tls && !address::is_loopback(&endpoint.host);
    if !topology.tls {
        terminal.complain(super::NO_TLS);
    }
    let contact = Contact { host: endpoint.host, port: endpoint.port, token, tls };
    let (happenings, happened) = mpsc::channel();
    let (events, received) = mpsc::channel();
    signals::listen(events.clone()).map_err(LaunchError::system("listen for signals"))?;
    forward(received, happenings.clone());
    let hello = hello(&topology, configuration);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(LaunchError::system("start a thread"))?;
    let mut agent =
        Agent { topology, config, worker, contact, interface, terminal, happenings, events, ranks: None, stop: None };
    agent.attend_until_over(&runtime, &hello, &happened)
}

fn hello(topology: &Topology, configuration: String) -> Hello {
    let random = zerofold_trust::Token::generate().map(|token| token.expose()[..16].to_owned());
    Hello {
        node_rank: topology.node_rank,
        host: address::host_name(),
        ranks: topology.ranks,
        local_rank: topology.local_rank,
        local_ranks: topology.local_ranks,
        run_id: topology.run_id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        configuration,
        nodes_min: topology.nodes.min,
        nodes_max: topology.nodes.max,
        instance: random.unwrap_or_else(|_| std::process::id().to_string()),
    }
}

/// Lets what happens here and what host 0 says come to one place.
fn forward(received: Receiver<Event>, happenings: Sender<Happening>) {
    std::thread::spawn(move || {
        for event in received {
            if happenings.send(Happening::Here(event)).is_err() {
                return;
            }
        }
    });
}

impl Agent {
    fn attend_until_over(
        &mut self,
        runtime: &tokio::runtime::Runtime,
        hello: &Hello,
        happened: &Receiver<Happening>,
    ) -> Result<u8, LaunchError> {
        let patience = self.topology.times.join;
        let place = self.contact.to_string();
        let mut since = Instant::now();
        let mut said = String::new();
        for attempt in 1.. {
            let began = Instant::now();
            let (contact, mark) = (self.contact.clone(), (attempt, self.happenings.clone()));
            let attendance = Attendance::begin(runtime.handle(), contact, hello.clone(), mark);
            let (outcome, welcome) = self.belong(&attendance, attempt, happened)?;
            drop(attendance);
            if welcome {
                since = Instant::now();
                said.clear();
            }
            let (reason, patience) = match outcome {
                Outcome::Over(code) => return Ok(code),
                Outcome::Stopped(signal) => return Ok(signal.exit_code()),
                Outcome::Gone(reason) => (format!("host 0 at {place}: {reason}"), patience),
                Outcome::Taken(reason) => (reason, patience.min(TAKEN)),
            };
            self.end_workers(happened);
            if since.elapsed() >= patience {
                let waited = format::duration(patience);
                let (reason, hint) = match reason.split_once("\nhint: ") {
                    Some((reason, hint)) => (reason, hint),
                    None => (
                        reason.as_str(),
                        "is host 0 up, and its port open? --rdzv-conf join_timeout=SECONDS waits longer",
                    ),
                };
                let message = format!("could not join the job within {waited}: {reason}");
                return Err(LaunchError::Hosts { message, hint: hint.to_owned() });
            }
            if reason != said {
                let left = format::duration(patience.saturating_sub(since.elapsed()));
                let first = reason.split("\nhint: ").next().unwrap_or_default();
                self.terminal.complain(&format!("{first}; trying for {left} more"));
                said = reason;
            }
            if let Some(signal) = pause(RETRY.saturating_sub(began.elapsed()), happened) {
                return Ok(signal.exit_code());
            }
        }
        unreachable!("tries are not counted that far")
    }

    /// Belongs to the job for as long as the connection holds; tells too whether it was let in at all.
    fn belong(
        &mut self,
        attendance: &Attendance,
        attempt: u64,
        happened: &Receiver<Happening>,
    ) -> Result<(Outcome, bool), LaunchError> {
        let mut welcome = false;
        let mut next_pulse = Instant::now() + PULSE;
        loop {
            let now = Instant::now();
            if now >= next_pulse {
                next_pulse = now + PULSE;
                if welcome {
                    attendance.say(Kind::Pulse(self.pulse()));
                }
            }
            let happening = match happened.recv_timeout(next_pulse.saturating_duration_since(now)) {
                Ok(happening) => happening,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => continue,
            };
            match happening {
                Happening::Host0(of, what) if of == attempt => match what {
                    FromHost0::Welcome => {
                        welcome = true;
                        let ranks = format::plural(u64::from(self.topology.ranks), "rank");
                        let node = self.topology.node_rank;
                        let place = &self.contact;
                        self.terminal.say(&format!(
                            "host {node}: offered {ranks} to host 0 at {place}, which says when they start"
                        ));
                    }
                    FromHost0::Told(Told::Start(start)) => self.start(attendance, &start),
                    FromHost0::Told(Told::Signal(signal)) => {
                        let its = self.ranks.as_ref().filter(|ranks| ranks.generation == signal.generation);
                        its.iter().for_each(|ranks| ranks.workers.signal(signal.number));
                    }
                    FromHost0::Told(Told::End(end)) => {
                        self.end_workers(happened);
                        let code = u8::try_from(end.code).unwrap_or(EXIT_FAILED);
                        match code {
                            0 => self.terminal.say(&end.reason),
                            _ => self.terminal.complain(&end.reason),
                        }
                        return Ok((Outcome::Over(code), welcome));
                    }
                    FromHost0::Told(Told::Welcome(_) | Told::Pulse(_)) => {}
                    FromHost0::Gone(reason) => return Ok((Outcome::Gone(reason), welcome)),
                    FromHost0::Taken(reason) => return Ok((Outcome::Taken(reason), welcome)),
                    FromHost0::Refused(reason) => return Err(refused(&reason)),
                },
                // A try that is over.
                Happening::Host0(..) => {}
                Happening::Here(Event::Exited { rank, exit }) => self.exited(Some(attendance), rank, exit),
                Happening::Here(Event::Signal(signal)) => {
                    if !welcome {
                        return Ok((Outcome::Stopped(signal), welcome));
                    }
                    let now = Instant::now();
                    if is_repetition(self.stop, now, signal) {
                        continue;
                    }
                    let first = self.stop.replace((now, signal)).is_none();
                    let number = if signal == StopSignal::Interrupt { libc::SIGINT } else { libc::SIGTERM };
                    attendance.say(Kind::StopAsked(StopAsked { signal: number }));
                    let how = if first { "after its step (again to stop at once)" } else { "at once" };
                    self.terminal.complain(&format!("{}: host 0 is asked to stop the job {how}", signal.name()));
                }
                Happening::Here(_) => {}
            }
        }
    }

    fn pulse(&self) -> Pulse {
        let Some(ranks) = &self.ranks else { return Pulse::default() };
        let running = (0..ranks.workers.len()).filter(|index| !ranks.ended[*index]);
        let state = |index: usize| RankState {
            rank: ranks.first + index as u32,
            generation: ranks.generation,
            last_line: ranks.workers[index].last_line().unwrap_or_default(),
            state: ranks.workers[index].state().unwrap_or_default().to_owned(),
        };
        Pulse { ranks: running.map(state).collect() }
    }

    fn start(&mut self, attendance: &Attendance, start: &Start) {
        let generation = start.generation;
        logs::at_generation(generation);
        match self.spawn(start) {
            Ok(workers) => {
                let pids = workers.iter().map(Worker::pid).collect();
                let ended = vec![false; workers.len()];
                let ranks = match start.first_rank..start.first_rank + ended.len() as u32 {
                    range if range.len() == 1 => format!("rank {}", range.start),
                    range => format!("ranks {} to {}", range.start, range.end - 1),
                };
                let (node, all) = (self.topology.node_rank, start.world_size);
                self.terminal.say(&format!("host {node}: {ranks} of {all} started, generation {generation}"));
                self.ranks = Some(Ranks { generation, first: start.first_rank, workers, ended });
                attendance.say(Kind::Started(Started { generation, pids }));
            }
            Err(error) => {
                self.terminal.complain(&format!("error: {error}"));
                attendance.say(Kind::NotStarted(NotStarted { generation, reason: error.to_string() }));
            }
        }
    }

    fn spawn(&self, start: &Start) -> Result<Vec<Worker>, LaunchError> {
        let logs = Path::new(&start.logs);
        if !logs.is_dir() {
            return Err(LaunchError::Hosts {
                message: format!("{} is not there on host {}", logs.display(), address::host_name()),
                hint: "output_dir must be on storage that all hosts see, under the same path".to_owned(),
            });
        }
        let local = LocalRanks {
            first: start.first_rank,
            count: self.topology.ranks,
            local_rank: self.topology.local_rank,
            on_host: self.topology.local_ranks,
            on_machine: sharing(self.topology.local_ranks, start.ranks_on_machine),
        };
        let resume = Some(Path::new(&start.resume)).filter(|path| !path.as_os_str().is_empty());
        let environment = JobEnvironment {
            worker: &self.worker,
            world_size: start.world_size,
            device: self.config.device,
            gpu_ids: self.config.gpu_ids.as_deref(),
            control: &self.contact,
            local,
            interface: self.interface.as_deref(),
            generation: start.generation,
            config: Some(Path::new(&start.configuration)),
            resume,
            timeout: Duration::from_secs(start.timeout_seconds),
        };
        let spawn = |rank| {
            let mut command = environment.command("train", rank);
            command.env(env::STORAGE, &start.storage);
            command.env(env::LOG_FORMAT, self.terminal.format().name());
            command.envs(nccl_interface(self.config.device, self.interface.as_deref()));
            let log = logs.join(format!("rank-{rank}.log"));
            Worker::spawn(rank, &mut command, &log, self.terminal.clone(), self.events.clone())
        };
        Ok(local.ranks().map(spawn).collect::<Result<Vec<_>, _>>()?)
    }

    fn exited(&mut self, attendance: Option<&Attendance>, rank: u32, exit: Exit) {
        let Some(ranks) = &mut self.ranks else { return };
        let Some(index) = rank.checked_sub(ranks.first).filter(|index| (*index as usize) < ranks.workers.len()) else {
            return;
        };
        ranks.workers.reap(index);
        ranks.ended[index as usize] = true;
        let ending = match exit.ending {
            Ending::Code(code) => Some(exited::Ending::Code(code)),
            Ending::Signal(signal) => Some(exited::Ending::Signal(signal)),
            Ending::Unknown => None,
        };
        let generation = ranks.generation;
        if let Some(attendance) = attendance {
            attendance.say(Kind::Exited(Exited { generation, rank, ending, last_lines: exit.last_lines }));
        }
    }

    /// Ends what still runs, and waits for its end.
    fn end_workers(&mut self, happened: &Receiver<Happening>) {
        let Some(ranks) = &self.ranks else { return };
        ranks.workers.signal(libc::SIGTERM);
        ranks.workers.signal(libc::SIGCONT);
        let mut until = Instant::now() + TERMINATE;
        let mut killed = false;
        while self.ranks.as_ref().is_some_and(Ranks::running) {
            let left = until.saturating_duration_since(Instant::now());
            match happened.recv_timeout(left) {
                Ok(Happening::Here(Event::Exited { rank, exit })) => self.exited(None, rank, exit),
                Ok(_) => {}
                Err(_) if killed => break,
                Err(_) => {
                    killed = true;
                    until = Instant::now() + TERMINATE;
                    self.ranks.iter().for_each(|ranks| ranks.workers.signal(libc::SIGKILL));
                }
            }
        }
        self.ranks = None;
    }
}

fn refused(reason: &str) -> LaunchError {
    let (message, hint) = reason.split_once("\nhint: ").unwrap_or((reason, "host 0 tells more"));
    LaunchError::usage(format!("host 0 refuses this one: {message}"), hint)
}

/// Waits; a signal ends it.
fn pause(time: Duration, happened: &Receiver<Happening>) -> Option<StopSignal> {
    let until = Instant::now() + time;
    loop {
        match happened.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Happening::Here(Event::Signal(signal))) => return Some(signal),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}
