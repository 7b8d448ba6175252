//! Measures one control plane under many simulated workers: `scripts/bench-control`. Its exit code is 1 when it takes longer
//! than [`MEMBERSHIP_GOAL`] until all have joined.
//!
//! The control plane is this process; the workers, each with a connection of its own, are tasks of a second process, so that
//! CPU time and memory are the control plane's alone.

#[path = "../tests/simulated/mod.rs"]
mod simulated;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use simulated::{Meeting, Simulated};
use tokio::task::JoinSet;
use tonic::Status;
use zerofold_launcher::control::{ControlOptions, ControlPlane};
use zerofold_launcher::event::Event;
use zerofold_launcher::supervise::hang;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// All have joined within this.
const MEMBERSHIP_GOAL: Duration = Duration::from_secs(3);
/// How long anything may take before it counts as stuck.
const LIMIT: Duration = Duration::from_secs(600);

#[derive(Parser)]
#[command(about = "How the control plane does with many workers")]
struct Options {
    /// Simulated workers
    #[arg(long, default_value_t = 4096)]
    workers: u32,
    /// Seconds of heartbeats, one a second from each worker
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Bytes of a worker's part of a checkpoint
    #[arg(long, default_value_t = 16384)]
    part: usize,
    /// How the workers meet through the store
    #[arg(long, value_enum, default_values_t = [How::Id, How::All])]
    meet: Vec<How>,
    /// This process is the workers, of the control plane at this address
    #[arg(long, hide = true)]
    clients: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum How {
    /// one id for all, as NCCL
    Id,
    /// each gets every address, one by one, as Gloo
    Each,
    /// each gets every address in one call, as shared memory
    All,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            How::Id => "id",
            How::Each => "each",
            How::All => "all",
        }
    }

    fn meeting(self) -> Meeting {
        match self {
            How::Id => Meeting::Id,
            How::Each => Meeting::Each,
            How::All => Meeting::All,
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    raise_file_limit();
    match &options.clients {
        Some(address) => be_workers(address, &options),
        None => measure(&options),
    }
}

// The control plane's side.

fn measure(options: &Options) -> Result<()> {
    let (events, received) = mpsc::channel();
    let publish = |_: &std::path::Path, parts: std::result::Result<Vec<Vec<u8>>, String>| {
        parts.map(|parts| format!("manifest of {} parts", parts.len()))
    };
    let plane = ControlOptions::new(simulated::listen(), options.workers, 1, Arc::new(publish));
    let control = ControlPlane::start(plane, events)?;
    let over = AtomicBool::new(false);
    let (beats, joined, counts) = std::thread::scope(|scope| {
        let (watched, end) = (&control, &over);
        let watcher = scope.spawn(move || watch(watched, received, end));
        let ordered = order_all(options, &control);
        over.store(true, Ordering::Release);
        let counts = watcher.join().map_err(|_| "the watching thread panicked")?;
        ordered.map(|(beats, joined)| (beats, joined, counts))
    })?;

    let per_second = |time: Duration| 100.0 * time.as_secs_f64() / f64::from(options.seconds);
    println!(
        "a second of heartbeats takes {:.1} % of one core to answer and {:.1} % to watch",
        per_second(beats.control),
        per_second(beats.watching)
    );
    let left = control.look(|members| members.iter().filter(|member| member.left.is_some()).count());
    let Counts { joined: told, steps, checkpoints } = counts;
    if (left, told, steps, checkpoints) != (options.workers as usize, options.workers, options.seconds, 1) {
        return Err(format!("{left} left, {told} joined, {steps} steps, {checkpoints} checkpoints").into());
    }
    let time = joined.time;
    if time > MEMBERSHIP_GOAL {
        return Err(format!("full membership took {time:.2?}, more than the goal of {MEMBERSHIP_GOAL:?}").into());
    }
    println!("full membership in {time:.2?}; the goal is {MEMBERSHIP_GOAL:?}");
    Ok(())
}

/// What the workers are told, in turn. Returns what heartbeats and joining took.
fn order_all(options: &Options, control: &ControlPlane) -> Result<(Measured, Measured)> {
    let mut workers = Workers::start(options, &control.contact().url())?;
    println!("{} workers, each with a connection of its own, on {} cores", options.workers, cores());
    println!("{:<24} {:>9} {:>11} {:>11} {:>10} {:>8}  answers", "", "time", "CPU", "watching", "memory", "threads");
    println!("{:<24} {:>9} {:>11} {:>11} {:>10} {:>8}", "before", "", "", "", mib(memory()), threads());
    let joined = step(&mut workers, "join", "all have joined")?;
    for how in &options.meet {
        let label = format!("all have met ({})", how.name());
        step(&mut workers, &format!("meet {}", how.name()), &label)?;
    }
    let label = format!("heartbeats, {} s", options.seconds);
    let beats = step(&mut workers, &format!("beat {}", options.seconds), &label)?;
    step(&mut workers, "save", "a checkpoint")?;
    step(&mut workers, "leave", "all have left")?;
    workers.end()?;
    Ok((beats, joined))
}

#[derive(Default)]
struct Counts {
    joined: u32,
    steps: u32,
    checkpoints: u32,
}

/// What supervision does with each event, and twice a second.
fn watch(control: &ControlPlane, received: mpsc::Receiver<Event>, over: &AtomicBool) -> Counts {
    let (mut counts, began, mut said) = (Counts::default(), Instant::now(), String::new());
    loop {
        match received.recv_timeout(Duration::from_millis(500)) {
            Ok(Event::Joined { .. }) => counts.joined += 1,
            Ok(Event::Steps(steps)) => counts.steps += steps.len() as u32,
            Ok(Event::Checkpoint { .. }) => counts.checkpoints += 1,
            Ok(_) => {}
            Err(_) if over.load(Ordering::Acquire) => return counts,
            Err(_) => {}
        }
        let found = control.look(|members| hang::diagnose(Instant::now(), began, members));
        // Said once for each rank that is looked at, as supervision does.
        let words = found.map(|hang| hang.words).unwrap_or_default();
        let begins = |words: &str| words.split(',').next().unwrap_or_default().to_owned();
        if !words.is_empty() && begins(&words) != begins(&said) {
            println!("held up: {words}");
        }
        said = words;
    }
}

struct Measured {
    time: Duration,
    /// CPU time of the control plane's thread.
    control: Duration,
    /// CPU time of the rest.
    watching: Duration,
}

/// Lets the workers do something, and prints what it took.
fn step(workers: &mut Workers, order: &str, label: &str) -> Result<Measured> {
    let (began, control, all) = (Instant::now(), control_time(), cpu_time());
    let answers = workers.order(order)?;
    let (time, control, all) = (began.elapsed(), control_time() - control, cpu_time() - all);
    let measured = Measured { time, control, watching: all.saturating_sub(control) };
    let Measured { time, control, watching } = measured;
    println!(
        "{label:<24} {:>9} {:>11} {:>11} {:>10} {:>8}  {answers}",
        seconds(time),
        seconds(control),
        seconds(watching),
        mib(memory()),
        threads()
    );
    Ok(measured)
}

/// The other process.
struct Workers {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Workers {
    fn start(options: &Options, address: &str) -> Result<Workers> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--clients", address, "--workers", &options.workers.to_string()]);
        command.args(["--part", &options.part.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = child.stdin.take().ok_or("no standard input")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no standard output")?);
        let mut workers = Workers { child, orders, answers };
        workers.answer()?;
        Ok(workers)
    }

    fn order(&mut self, order: &str) -> Result<String> {
        writeln!(self.orders, "{order}")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line)? {
            0 => Err(format!("the workers ended: {}", self.child.wait()?).into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    fn end(self) -> Result<()> {
        let Workers { mut child, orders, .. } = self;
        drop(orders);
        let status = child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the workers ended: {status}").into()) }
    }
}

// The workers' side.

/// What all workers do at once.
#[derive(Clone, Copy)]
enum Act {
    Meet(Meeting),
    Beat(u64),
    Save(usize),
    Leave,
}

impl Act {
    fn parse(order: &str, part: usize) -> Result<Act> {
        Ok(match order.split_once(' ').unwrap_or((order, "")) {
            ("meet", how) => Act::Meet(How::from_str(how, false)?.meeting()),
            ("beat", seconds) => Act::Beat(seconds.parse()?),
            ("save", _) => Act::Save(part),
            ("leave", _) => Act::Leave,
            _ => return Err(format!("no order {order}").into()),
        })
    }
}

/// What a worker did, each time with how long it took.
type Done = std::result::Result<(Simulated, Vec<Duration>), Status>;

fn be_workers(address: &str, options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let count = options.workers;
    let mut workers: Vec<Simulated> = Vec::new();
    println!("ready");
    for order in std::io::stdin().lines() {
        let order = order?;
        let set: Vec<_> = std::mem::take(&mut workers);
        let times = runtime.block_on(async {
            let set: JoinSet<Done> = match order.as_str() {
                "join" => (0..count).map(|rank| join(address.to_owned(), rank, count)).collect(),
                order => {
                    let act = Act::parse(order, options.part)?;
                    set.into_iter().map(|worker| perform(worker, count, act)).collect()
                }
            };
            together(set, &mut workers).await
        })?;
        println!("{}", spread(times));
    }
    Ok(())
}

/// Waits for all; the workers come back into `workers`.
async fn together(mut set: JoinSet<Done>, workers: &mut Vec<Simulated>) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    while let Some(done) = tokio::time::timeout(LIMIT, set.join_next()).await? {
        let (worker, mut took) = done??;
        times.append(&mut took);
        workers.push(worker);
    }
    Ok(times)
}

async fn join(address: String, rank: u32, count: u32) -> Done {
    let began = Instant::now();
    let mut worker = Simulated::connect(&address, rank, count).await?;
    worker.join().await?;
    Ok((worker, vec![began.elapsed()]))
}

async fn perform(mut worker: Simulated, count: u32, act: Act) -> Done {
    let began = Instant::now();
    match act {
        Act::Beat(seconds) => return beats(worker, count, seconds).await,
        Act::Meet(how) => worker.meet(how, LIMIT).await?,
        Act::Save(bytes) => worker.save(1, bytes).await.map(|_| ())?,
        Act::Leave => worker.leave(1).await?,
    }
    Ok((worker, vec![began.elapsed()]))
}

/// A heartbeat a second, not all at the same time.
async fn beats(mut worker: Simulated, count: u32, seconds: u64) -> Done {
    let offset = Duration::from_secs(1).mul_f64(f64::from(worker.rank) / f64::from(count));
    let mut clock = tokio::time::interval_at(tokio::time::Instant::now() + offset, Duration::from_secs(1));
    let mut times = Vec::new();
    for second in 1..=seconds {
        clock.tick().await;
        times.push(worker.beat(second).await?);
    }
    Ok((worker, times))
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    format!("median {:.2} ms, 99 % {:.2} ms, longest {:.2} ms", at(0.5), at(0.99), at(1.0))
}

// The system's figures of this process.

fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointers are valid for the calls.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
    }
}

fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time of the thread that serves.
fn control_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let read = |task: &std::fs::DirEntry, file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
    let mut control = tasks.filter(|task| read(task, "comm").trim() == "control");
    let told = control.next().map(|task| read(&task, "schedstat")).unwrap_or_default();
    Duration::from_nanos(told.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default())
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

fn memory() -> u64 {
    status("VmRSS:")
}

fn threads() -> u64 {
    status("Threads:")
}

fn mib(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
