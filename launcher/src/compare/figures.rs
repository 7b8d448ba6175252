//! What a comparison found: the object that `--json` prints, the table and the page are made from.

use serde::Serialize;
use zerofold_configs::{DeviceKind, ElementType, Rates, ReshardAfterForward, Resolved};
use zerofold_plan::{ModelConfig, RESERVE, usable};
use zerofold_proto::v1::StepRecord;

use super::choice::{Candidate, Choice, choose};
use super::series::Configuration;
use crate::format::median;
use crate::hub;
use crate::memory::machine_memory;
use crate::metrics::rate;
use crate::plan::{Measured, parameters};
use crate::worker_command::threads_per_rank;

/// Why figures are doubtful, and what to do.
const BUSY: &str = "something else kept the machine busy; measure again when it is quiet";
/// Rounds that differ by more than this factor say little.
const DOUBTFUL: f64 = 1.25;

/// What one run measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Round {
    tokens_per_second: f64,
    step_seconds: f64,
    exposed_seconds: f64,
    sent_bytes: u64,
    peak_bytes: u64,
    process_peak_bytes: u64,
}

impl Round {
    /// The steps of a run, and what its ranks told at the end. `None` without steps.
    pub(super) fn of(steps: &[StepRecord], measured: Measured, process_peak_bytes: u64) -> Option<Round> {
        let count = steps.len() as f64;
        let seconds: f64 = steps.iter().map(|step| step.seconds).sum();
        (!steps.is_empty()).then(|| Round {
            tokens_per_second: rate(steps.iter().map(|step| step.tokens).sum(), seconds),
            step_seconds: seconds / count,
            exposed_seconds: steps.iter().map(|step| step.communication_seconds).sum::<f64>() / count,
            sent_bytes: measured.sent_bytes_per_step,
            peak_bytes: measured.live_peak,
            process_peak_bytes,
        })
    }

    pub(super) fn tokens_per_second(&self) -> f64 {
        self.tokens_per_second
    }
}

/// The machine that was measured on.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Machine {
    pub(super) processor: String,
    pub(super) usable_cores: usize,
    pub(super) memory_bytes: Option<u64>,
    pub(super) device: DeviceKind,
    pub(super) ranks: u32,
    pub(super) threads_per_rank: usize,
}

impl Machine {
    /// This machine, and the ranks of a job on it.
    pub(super) fn of(config: &Resolved) -> Machine {
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Machine {
            processor: name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned()),
            usable_cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: machine_memory(),
            device: config.device,
            ranks: config.num_processes,
            threads_per_rank: threads_per_rank(config.num_processes),
        }
    }
}

/// The model, and how it is trained in every configuration.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) parameters: u64,
    pub(super) compute_dtype: ElementType,
    pub(super) per_device_train_batch_size_rows: u32,
    pub(super) longest_row_tokens: usize,
    pub(super) gradient_checkpointing: bool,
}

impl Model {
    /// `longest` tokens are in the longest row.
    pub(super) fn of(config: &Resolved, model: &ModelConfig, longest: usize) -> Model {
        Model {
            name: hub::shown(config),
            parameters: parameters(model, config.sharding.units),
            compute_dtype: config.element_types().compute,
            per_device_train_batch_size_rows: config.training.per_device_train_batch_size,
            longest_row_tokens: longest,
            gradient_checkpointing: config.gradient_checkpointing,
        }
    }
}

/// How it was measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Method {
    pub(super) began: String,
    pub(super) rounds: u32,
    pub(super) measured_steps_per_round: u32,
    pub(super) warm_up_steps_per_round: usize,
    pub(super) seconds: f64,
}

/// What the machine reaches at best, and what a rank may have.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ceilings {
    /// Matrix products in the compute type, all ranks busy; none where they cannot be measured in it.
    pub(super) gemm_flops_per_second_all_ranks: Option<f64>,
    /// Memory read and written, all ranks busy.
    pub(super) memory_bytes_per_second_all_ranks: f64,
    /// None where it is not known.
    pub(super) usable_bytes_per_rank: Option<u64>,
    /// The share of a rank's memory that is kept free.
    pub(super) reserve_share: f64,
}

impl Ceilings {
    /// `memory` is what a rank may have, before anything is kept free.
    pub(super) fn of(rates: &Rates, dtype: ElementType, memory: Option<u64>) -> Ceilings {
        let products = rates.products.iter().filter(|product| product.dtype == dtype);
        Ceilings {
            gemm_flops_per_second_all_ranks: products.map(|product| product.flops).max_by(f64::total_cmp),
            memory_bytes_per_second_all_ranks: rates.copy.bytes_per_second,
            usable_bytes_per_rank: memory.map(usable),
            reserve_share: RESERVE,
        }
    }
}

/// What is planned for a configuration. Bytes are those of one rank.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Planned {
    pub(super) peak_bytes_per_rank: u64,
    pub(super) sent_bytes_per_step: u64,
    /// On average over the measured steps, all ranks.
    pub(super) model_flops_per_step: f64,
    /// Whether the peak is within what a rank may use.
    pub(super) fits: bool,
}

/// What was measured of a configuration: medians over the rounds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    pub(super) tokens_per_second: f64,
    pub(super) tokens_per_second_lowest: f64,
    pub(super) tokens_per_second_highest: f64,
    pub(super) tokens_per_second_by_round: Vec<f64>,
    pub(super) step_seconds: f64,
    pub(super) model_flops_per_second: f64,
    /// None where the rate is not known.
    pub(super) share_of_gemm_rate: Option<f64>,
    /// In tensors, of the rank that had most.
    pub(super) peak_bytes_per_rank: u64,
    /// Of the process with program and libraries, of the rank that had most.
    pub(super) process_peak_bytes_per_rank: u64,
    /// By rank 0.
    pub(super) sent_bytes_per_step: u64,
    /// That rank 0 waited in collectives.
    pub(super) exposed_communication_seconds_per_step: f64,
    pub(super) exposed_communication_share_of_step: f64,
}

impl Figures {
    /// `None` without rounds.
    fn of(rounds: &[Round], planned: &Planned, ceilings: &Ceilings) -> Option<Figures> {
        let all = |of: fn(&Round) -> f64| -> Vec<f64> { rounds.iter().map(of).collect() };
        let tokens = all(|round| round.tokens_per_second);
        let step_seconds = median(&all(|round| round.step_seconds))?;
        let flops = planned.model_flops_per_step / step_seconds;
        let largest = |of: fn(&Round) -> u64| rounds.iter().map(of).max().unwrap_or(0);
        Some(Figures {
            tokens_per_second: median(&tokens)?,
            tokens_per_second_lowest: tokens.iter().copied().fold(f64::INFINITY, f64::min),
            tokens_per_second_highest: tokens.iter().copied().fold(0.0, f64::max),
            tokens_per_second_by_round: tokens,
            step_seconds,
            model_flops_per_second: flops,
            share_of_gemm_rate: ceilings.gemm_flops_per_second_all_ranks.map(|rate| flops / rate),
            peak_bytes_per_rank: largest(|round| round.peak_bytes),
            process_peak_bytes_per_rank: largest(|round| round.process_peak_bytes),
            sent_bytes_per_step: largest(|round| round.sent_bytes),
            exposed_communication_seconds_per_step: median(&all(|round| round.exposed_seconds))?,
            exposed_communication_share_of_step: median(&all(|round| round.exposed_seconds / round.step_seconds))?,
        })
    }
}

/// A configuration with all that is known of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    #[serde(flatten)]
    pub(super) configuration: Configuration,
    /// What becomes of gathered parameters after forward; only stage 3 has any.
    pub(super) reshard_after_forward: ReshardAfterForward,
    pub(super) replicas: u32,
    pub(super) rows_per_step: u64,
    pub(super) planned: Planned,
    /// None where it was left out because it does not fit.
    pub(super) measured: Option<Figures>,
}

impl Row {
    /// Adds what was measured.
    pub(super) fn with(self, rounds: &[Round], ceilings: &Ceilings) -> Row {
        Row { measured: Figures::of(rounds, &self.planned, ceilings), ..self }
    }

    fn candidate(&self) -> Option<Candidate> {
        let figures = self.measured.as_ref()?;
        Some(Candidate {
            configuration: self.configuration,
            lowest: figures.tokens_per_second_lowest,
            median: figures.tokens_per_second,
            highest: figures.tokens_per_second_highest,
            peak_bytes: figures.peak_bytes_per_rank,
        })
    }
}

/// Everything that a comparison found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Comparison {
    pub(super) machine: Machine,
    pub(super) model: Model,
    pub(super) method: Method,
    pub(super) ceilings: Ceilings,
    pub(super) rows: Vec<Row>,
    /// One for each accumulation, since another one is another batch: which to take of them is no question of speed.
    pub(super) choices: Vec<Choice>,
    /// What makes the figures doubtful.
    pub(super) warnings: Vec<String>,
}

/// Tells of a machine that was busy with something else. None for figures that can be trusted.
pub(super) fn warnings(rows: &[Row]) -> Vec<String> {
    let measured = || rows.iter().filter_map(|row| Some((row.configuration, row.measured.as_ref()?)));
    let spread = |it: &Figures| it.tokens_per_second_highest / it.tokens_per_second_lowest;
    let widest = measured().map(|(name, it)| (name, spread(it))).max_by(|(_, one), (_, other)| one.total_cmp(other));
    let apart = widest.filter(|(_, factor)| *factor > DOUBTFUL).map(|(name, factor)| {
        format!("the rounds of {name} differ by a factor of {factor:.2}: {BUSY}, or over more rounds (--rounds)")
    });
    let above = measured().any(|(_, it)| it.share_of_gemm_rate.is_some_and(|share| share > 1.0));
    let above = above.then(|| format!("more than the whole GEMM rate was used, so that was measured too low: {BUSY}"));
    apart.into_iter().chain(above).collect()
}

/// What to choose of the rows of each accumulation.
pub(super) fn choices(rows: &[Row], ceilings: &Ceilings) -> Vec<Choice> {
    let mut accumulations: Vec<u32> = Vec::new();
    for row in rows {
        if !accumulations.contains(&row.configuration.accumulation) {
            accumulations.push(row.configuration.accumulation);
        }
    }
    let of = |accumulation: u32| -> Option<Choice> {
        let rows = rows.iter().filter(|row| row.configuration.accumulation == accumulation);
        choose(&rows.filter_map(Row::candidate).collect::<Vec<_>>(), ceilings.usable_bytes_per_rank)
    };
    accumulations.into_iter().filter_map(of).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use zerofold_configs::{Backend, Stage};

    const CEILINGS: Ceilings = Ceilings {
        gemm_flops_per_second_all_ranks: Some(100e9),
        memory_bytes_per_second_all_ranks: 1e9,
        usable_bytes_per_rank: Some(1000),
        reserve_share: RESERVE,
    };

    fn round(seconds: f64) -> Round {
        let step = |seconds| StepRecord { tokens: 300, seconds, communication_seconds: 0.5, ..StepRecord::default() };
        let measured = Measured { live_peak: 900, sent_bytes_per_step: 70, ..Measured::default() };
        Round::of(&[step(seconds - 0.5), step(seconds + 0.5)], measured, 4000).unwrap()
    }

    /// A row that needs so many bytes.
    pub(in crate::compare) fn planned(peak_bytes_per_rank: u64, fits: bool) -> Row {
        let planned = Planned { peak_bytes_per_rank, sent_bytes_per_step: 70, model_flops_per_step: 60e9, fits };
        Row {
            configuration: Configuration { stage: Stage::One, backend: Backend::Gloo, accumulation: 1 },
            reshard_after_forward: ReshardAfterForward::Always(true),
            replicas: 1,
            rows_per_step: 8,
            planned,
            measured: None,
        }
    }

    fn row(accumulation: u32, rounds: &[Round]) -> Row {
        let row = planned(910, true);
        let configuration = Configuration { accumulation, ..row.configuration };
        Row { configuration, ..row }.with(rounds, &CEILINGS)
    }

    #[test]
    fn figures_are_medians_over_rounds() {
        let figures = row(1, &[round(2.0), round(4.0), round(3.0)]).measured.unwrap();
        assert_eq!(figures.tokens_per_second_by_round, [150.0, 75.0, 100.0]);
        assert_eq!((figures.tokens_per_second_lowest, figures.tokens_per_second_highest), (75.0, 150.0));
        assert_eq!((figures.tokens_per_second, figures.step_seconds), (100.0, 3.0));
        assert_eq!((figures.model_flops_per_second, figures.share_of_gemm_rate), (20e9, Some(0.2)));
        assert_eq!(figures.exposed_communication_seconds_per_step, 0.5);
        assert!((figures.exposed_communication_share_of_step - 0.5 / 3.0).abs() < 1e-12);
        let bytes = (figures.peak_bytes_per_rank, figures.process_peak_bytes_per_rank, figures.sent_bytes_per_step);
        assert_eq!(bytes, (900, 4000, 70));
        assert!(row(1, &[]).measured.is_none() && Round::of(&[], Measured::default(), 0).is_none());
    }

    #[test]
    fn each_accumulation_has_a_choice() {
        let rows = [row(4, &[round(2.0)]), row(1, &[round(3.0)]), row(2, &[])];
        let accumulations =
            choices(&rows, &CEILINGS).iter().map(|it| it.configuration.accumulation).collect::<Vec<_>>();
        assert_eq!(accumulations, [4, 1]);
    }

    #[test]
    fn a_busy_machine_is_told_of() {
        assert_eq!(warnings(&[row(1, &[round(2.0), round(2.2)]), row(2, &[])]), Vec::<String>::new());
        let apart = warnings(&[row(1, &[round(2.0), round(2.2)]), row(4, &[round(2.0), round(3.0)])]);
        assert!(apart[0].starts_with("the rounds of stage 1 over gloo, accumulation 4 differ by a factor of 1.50: "));
        let above = warnings(&[row(1, &[round(0.55)])]);
        assert!(above[0].starts_with("more than the whole GEMM rate was used"), "{above:?}");
    }
}
