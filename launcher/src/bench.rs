//! The command `bench`: what this machine's ranks reach, all of them busy at the same time. `doctor` shows the same.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use zerofold_configs::{BenchRequest, DeviceKind, Rates};

use crate::checkpoint_publisher::publish_parts;
use crate::columns::left_aligned;
use crate::control::{ControlError, ControlOptions, ControlPlane, Listen};
use crate::error::LaunchError;
use crate::event::Event;
use crate::terminal::Terminal;
use crate::worker_command::{FIRST_GENERATION, JobEnvironment, LocalRanks, find_worker};
use crate::{errand, format, gpus};

/// Nothing takes nearly as long; NCCL on many GPUs needs the most, to start.
const LIMIT: Duration = Duration::from_secs(300);
/// Ranks on a machine without GPUs, unless the command line says otherwise: the fewest that communicate.
const RANKS_ON_CPU: u32 = 2;

/// What the command line asks of `bench`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchOptions {
    /// What to measure; none for GPUs where there are any.
    pub device: Option<DeviceKind>,
    /// How many ranks; none for one for each GPU, two on a CPU.
    pub nproc: Option<u32>,
    /// Fewer repetitions, smaller sizes.
    pub quick: bool,
    /// Print JSON.
    pub json: bool,
}

impl BenchOptions {
    /// The device and the number of ranks that are meant.
    pub(crate) fn job(&self) -> (DeviceKind, u32) {
        let gpus = gpus::count();
        let device = self.device.unwrap_or(if gpus > 0 { DeviceKind::Cuda } else { DeviceKind::Cpu });
        let ranks = match device {
            DeviceKind::Cuda => gpus.max(1),
            DeviceKind::Cpu => RANKS_ON_CPU,
        };
        (device, self.nproc.unwrap_or(ranks))
    }
}

/// Measures and prints; returns the exit code.
///
/// # Errors
/// There is no worker, or a rank failed.
pub fn bench(options: &BenchOptions, terminal: &Terminal) -> Result<u8, LaunchError> {
    let (device, ranks) = options.job();
    let rates = measure(&BenchRequest { device, quick: options.quick }, ranks, None)?;
    if options.json {
        terminal.result(&serde_json::to_string_pretty(&rates).unwrap_or_default());
        return Ok(0);
    }
    terminal.result(&title(&rates));
    let rows: Vec<Vec<String>> = rows(&rates).into_iter().map(|(what, value)| vec![what, value]).collect();
    left_aligned(&rows).iter().for_each(|line| terminal.result(line));
    Ok(0)
}

/// Lets `ranks` workers measure, on all GPUs or on these. To be called on the main thread, which they die with.
///
/// # Errors
/// There is no worker, or a rank failed.
pub(crate) fn measure(request: &BenchRequest, ranks: u32, gpu_ids: Option<&[u32]>) -> Result<Rates, LaunchError> {
    let worker = find_worker()?;
    let (events, received) = mpsc::channel();
    let listen = Listen::loopback(None).map_err(ControlError::from)?;
    let publish = Arc::new(|directory: &Path, parts| publish_parts(None, directory, parts));
    let options = ControlOptions::new(listen, ranks, FIRST_GENERATION, publish);
    let control = ControlPlane::start(options, events)?;
    let environment = JobEnvironment {
        worker: &worker,
        world_size: ranks,
        device: request.device,
        gpu_ids,
        control: control.contact(),
        local: LocalRanks::all(ranks),
        interface: None,
        generation: FIRST_GENERATION,
        config: None,
        resume: None,
        timeout: LIMIT,
    };
    let request = serde_json::to_string(request).unwrap_or_default();
    let command = |rank| -> Command {
        let mut command = environment.command("bench", rank);
        command.arg(&request);
        command
    };
    let answers = errand::run((0..ranks).map(command).collect(), LIMIT);
    let answers = answers.map_err(|error| failure(&cause(&received).unwrap_or(error)))?;
    // Rank 0 speaks for all.
    let answer = answers.first().map_or("", String::as_str);
    serde_json::from_str(answer).map_err(|error| failure(&format!("{} answers otherwise: {error}", worker.display())))
}

/// What a rank told before it ended, one that was not a victim of another's failure first.
fn cause(received: &mpsc::Receiver<Event>) -> Option<String> {
    let failed: Vec<(bool, String)> = received
        .try_iter()
        .filter_map(|event| match event {
            Event::Failed { rank, message, consequence } => Some((consequence, format!("rank {rank}: {message}"))),
            _ => None,
        })
        .collect();
    let first = failed.iter().find(|(consequence, _)| !consequence).or(failed.first());
    first.map(|(_, message)| message.clone())
}

fn failure(message: &str) -> LaunchError {
    let (message, hint) = match message.split_once("\nhint: ") {
        Some((message, hint)) => (message, hint),
        None => (message, "`launch doctor` checks what a job needs; ZEROFOLD_LOG=debug tells more"),
    };
    LaunchError::Worker { message: format!("cannot measure: {message}"), hint: hint.to_owned() }
}

/// What was measured on what.
pub(crate) fn title(rates: &Rates) -> String {
    let ranks = format::plural(u64::from(rates.ranks), "rank");
    match rates.device {
        DeviceKind::Cuda => format!("{ranks} on GPUs, {}", rates.backend),
        DeviceKind::Cpu => {
            format!("{ranks} of {}, {}", format::plural(u64::from(rates.threads), "thread"), rates.backend)
        }
    }
}

/// What was measured, and how much.
pub(crate) fn rows(rates: &Rates) -> Vec<(String, String)> {
    let bytes = |rate: f64| format!("{} GB/s", format::figure(rate / 1e9));
    let products = rates.products.iter().map(|product| {
        let [rows, inner, columns] = product.shape;
        let (each, all) = (format::operations(product.flops_per_rank), format::operations(product.flops));
        (format!("{} products", product.dtype), format!("{each} a rank, {all} in all ({rows} × {inner} × {columns})"))
    });
    let copy = ("memory copy".to_owned(), format!("{} read and written, in all", bytes(rates.copy.bytes_per_second)));
    let collectives = rates.collectives.iter().map(|it| {
        let value = format!("{:.2} ms, {}", it.seconds * 1e3, bytes(it.bytes_per_second));
        (format!("{} {}, {}", it.collective, format::bytes(it.bytes), it.backend), value)
    });
    products.chain([copy]).chain(collectives).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use zerofold_configs::{Backend, CollectiveRate, CopyRate, ElementType, ProductRate};

    /// What a machine might reach: 100 GFLOP/s a rank in float32, so many in bfloat16, and so many GB/s.
    pub(crate) fn rates(bfloat16: f64, gigabytes: f64) -> Rates {
        let product = |dtype, gflops: f64| ProductRate {
            dtype,
            shape: [2048, 576, 1536],
            flops_per_rank: gflops * 1e9,
            flops: gflops * 2e9,
        };
        Rates {
            device: DeviceKind::Cpu,
            backend: Backend::Gloo,
            ranks: 2,
            threads: 1,
            products: vec![product(ElementType::Float32, 100.0), product(ElementType::Bfloat16, bfloat16)],
            copy: CopyRate { bytes: 1 << 26, bytes_per_second: 12.3e9 },
            collectives: vec![CollectiveRate {
                backend: Backend::Gloo,
                collective: "all_gather".to_owned(),
                bytes: 16 << 20,
                seconds: (16 << 20) as f64 / gigabytes / 1e9,
                bytes_per_second: gigabytes * 1e9,
                repetitions: 10,
            }],
        }
    }

    #[test]
    fn rates_read_well() {
        let rates = rates(600.0, 2.0);
        assert_eq!(title(&rates), "2 ranks of 1 thread, gloo");
        let expected = [
            ("float32 products", "100 GFLOP/s a rank, 200 GFLOP/s in all (2048 × 576 × 1536)"),
            ("bfloat16 products", "600 GFLOP/s a rank, 1.20 TFLOP/s in all (2048 × 576 × 1536)"),
            ("memory copy", "12 GB/s read and written, in all"),
            ("all_gather 16.0 MiB, gloo", "8.39 ms, 2.00 GB/s"),
        ];
        assert_eq!(rows(&rates), expected.map(|(what, value)| (what.to_owned(), value.to_owned())));
    }

    #[test]
    fn the_cause_is_told_and_not_its_consequence() {
        let (sender, received) = mpsc::channel();
        assert_eq!(cause(&received), None);
        for (rank, message, consequence) in [(1, "a peer went away", true), (0, "no memory", false)] {
            sender.send(Event::Failed { rank, message: message.to_owned(), consequence }).unwrap();
        }
        assert_eq!(cause(&received).as_deref(), Some("rank 0: no memory"));
        let error = failure("rank 0: no NCCL\nhint: install it").to_string();
        assert_eq!(error, "cannot measure: rank 0: no NCCL\nhint: install it");
    }
}
