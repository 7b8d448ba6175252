//! What a resolved configuration says of packs, batches and steps: the same to `launch` and to every rank.

use zerofold_configs::{Resolved, StoppingStrategy, Training};

use crate::collator::Batching;
use crate::mixing::{Mixing, Shares, Stopping};
use crate::packing::{Packing, PackingStrategy};
use crate::sampling::{Items, Sampling, StepPlanOptions};

impl Batching {
    /// How rows come together; `packing` is that of the training rows, or of the held-out ones.
    pub fn of(training: &Training, packing: bool) -> Batching {
        match (packing, training.padding_free) {
            (true, _) => Batching::Packed(Packing { strategy: strategy(training), max_length: training.max_length }),
            (false, true) => Batching::PaddingFree,
            (false, false) => Batching::Padded,
        }
    }

    /// The length that rows are cut to when they are tokenised; none where packing cuts them into pieces.
    pub fn longest_row(training: &Training, packing: bool) -> Option<u32> {
        (!packing || !strategy(training).cuts_rows()).then_some(training.max_length)
    }
}

fn strategy(training: &Training) -> PackingStrategy {
    match training.packing_strategy {
        zerofold_configs::PackingStrategy::Bfd => PackingStrategy::Bfd,
        zerofold_configs::PackingStrategy::BfdSplit => PackingStrategy::BfdSplit,
        zerofold_configs::PackingStrategy::Wrapped => PackingStrategy::Wrapped,
    }
}

impl Sampling {
    /// The order of an epoch.
    pub fn of(training: &Training) -> Sampling {
        match training.train_sampling_strategy {
            zerofold_configs::Sampling::Random => Sampling::Random,
            zerofold_configs::Sampling::Sequential => Sampling::Sequential,
            zerofold_configs::Sampling::GroupByLength => Sampling::GroupByLength,
        }
    }
}

impl Mixing {
    /// How the sources are mixed; none where an epoch has all of each.
    pub fn of(training: &Training) -> Option<Mixing> {
        let several = training.dataset.sources().len() > 1;
        let weights = training.dataset.weights().map(Shares::Weights);
        let shares = weights.or(training.mixing_temperature.map(Shares::Temperature)).filter(|_| several)?;
        let stopping = match training.stopping_strategy {
            StoppingStrategy::FirstExhausted => Stopping::FirstExhausted,
            StoppingStrategy::AllExhausted => Stopping::AllExhausted,
        };
        Some(Mixing { shares, stopping })
    }
}

impl StepPlanOptions {
    /// The steps of a job over these items.
    pub fn of(config: &Resolved, items: Items) -> StepPlanOptions {
        let training = &config.training;
        StepPlanOptions {
            items,
            world_size: config.num_processes,
            per_device_batch: training.per_device_train_batch_size,
            accumulation: config.gradient_accumulation_steps,
            epochs: training.num_train_epochs,
            max_steps: training.max_steps,
            seed: training.seed,
            data_seed: training.data_seed,
            sampling: Sampling::of(training),
            mixing: Mixing::of(training),
        }
    }
}
