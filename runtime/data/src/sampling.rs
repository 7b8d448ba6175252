//! Which rows are used when, and on which rank. Pure: no clock, no communication.
//!
//! The order of an epoch depends on the seed, the epoch and the number of rows alone. Step `k` takes the next
//! `world size × per-device batch × accumulation` rows of it, micro-batch `a` of rank `r` the slice `a·N + r` of these.
//! So the rows of a step are the same for every number of ranks with the same global batch, and every row is used
//! once in an epoch.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// In which order an epoch goes through the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sampling {
    /// A new seeded permutation for each epoch.
    #[default]
    Random,
    /// The order of the file, in every epoch.
    Sequential,
}

/// The numbers a [`StepPlan`] is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct StepPlanOptions {
    /// Rows of the data set.
    pub rows: usize,
    /// Number of ranks, N.
    pub world_size: u32,
    /// Rows of one rank in one micro-batch, B.
    pub per_device_batch: u32,
    /// Micro-batches of one optimizer step, A.
    pub accumulation: u32,
    /// How often to go through the data; used when `max_steps` is not positive.
    pub epochs: f64,
    /// Number of optimizer steps when positive; wins over `epochs`.
    pub max_steps: i64,
    /// The run's seed.
    pub seed: u64,
    /// Seed of the order of rows where it is to differ from `seed`.
    pub data_seed: Option<u64>,
    /// Order of an epoch.
    pub sampling: Sampling,
}

/// A place in the data: which rows come next. A run goes on exactly from a checkpoint when its plan has the same cursor at
/// that step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Rows of the data set.
    pub rows: usize,
    /// Rows gone through, counted over epochs as if each step were full.
    pub rows_finished: u64,
    /// Rows of a full optimizer step.
    pub global_batch: u64,
    /// What the order of the rows is made from.
    pub row_seed: u64,
    /// The order of an epoch.
    pub sampling: Sampling,
}

/// The rows of every step, micro-batch and rank of a run.
#[derive(Debug)]
pub struct StepPlan {
    options: StepPlanOptions,
    total_steps: u64,
    /// The order of one epoch, the last one asked for: what a plan keeps does not grow with the number of epochs.
    current: Mutex<Option<(u64, Arc<Vec<u32>>)>>,
}

impl StepPlan {
    /// Checks the numbers and counts the steps: `max_steps` when positive, else epochs × steps of an epoch, rounded up.
    ///
    /// # Errors
    /// [`DataError::Plan`] when a number that must be positive is not, or there are more than 2³² − 1 rows.
    pub fn new(options: StepPlanOptions) -> Result<StepPlan, DataError> {
        let StepPlanOptions { rows, world_size, per_device_batch, accumulation, epochs, max_steps, .. } = options;
        let fault = |message: String, hint: &str| Err(DataError::Plan { message, hint: hint.into() });
        if rows == 0 || u32::try_from(rows).is_err() {
            return fault(format!("a plan for {rows} rows"), "a data set has between 1 and 4294967295 rows");
        }
        if world_size == 0 || per_device_batch == 0 || accumulation == 0 {
            let numbers = format!("{world_size} processes × {per_device_batch} rows × {accumulation} micro-batches");
            return fault(format!("a global batch of {numbers}"), "each of the three must be at least 1");
        }
        if max_steps <= 0 && !(epochs > 0.0 && epochs.is_finite()) {
            let message = format!("num_train_epochs {epochs} and max_steps {max_steps} leave nothing to do");
            return fault(message, "give a positive num_train_epochs or a positive max_steps");
        }
        let mut plan = StepPlan { options, total_steps: 0, current: Mutex::new(None) };
        plan.total_steps = match u64::try_from(max_steps) {
            Ok(steps) if steps > 0 => steps,
            _ => (epochs * plan.steps_per_epoch() as f64).ceil() as u64,
        };
        Ok(plan)
    }

    /// Optimizer steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Optimizer steps of one epoch; the last may be short.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.options.rows as u64).div_ceil(self.global_batch())
    }

    /// Rows of a full optimizer step: world size × per-device batch × accumulation.
    pub fn global_batch(&self) -> u64 {
        let StepPlanOptions { world_size, per_device_batch, accumulation, .. } = self.options;
        u64::from(world_size) * u64::from(per_device_batch) * u64::from(accumulation)
    }

    /// The epoch that step `step` (from 0) belongs to, from 0.
    pub fn epoch_at(&self, step: u64) -> u64 {
        step / self.steps_per_epoch()
    }

    /// Epochs done after `steps` steps, as a fraction: what logs show.
    pub fn epochs_after(&self, steps: u64) -> f64 {
        steps as f64 / self.steps_per_epoch() as f64
    }

    /// The place in the data after `steps` steps.
    pub fn cursor(&self, steps: u64) -> Cursor {
        Cursor {
            rows: self.options.rows,
            rows_finished: steps * self.global_batch(),
            global_batch: self.global_batch(),
            row_seed: self.options.data_seed.unwrap_or(self.options.seed),
            sampling: self.options.sampling,
        }
    }

    /// All rows of step `step` (from 0), in global order; short in the last step of an epoch.
    pub fn rows_of_step(&self, step: u64) -> Vec<u32> {
        let (epoch, range) = self.step_range(step);
        self.order(epoch)[range].to_vec()
    }

    /// The rows of micro-batch `micro_batch` of rank `rank` in step `step`, all counted from 0: the slice
    /// `(micro_batch · N + rank)` of the step's rows. In the last step of an epoch slices may be short or empty.
    pub fn rows_of(&self, step: u64, micro_batch: u32, rank: u32) -> Vec<u32> {
        let (epoch, range) = self.step_range(step);
        let slice = u64::from(micro_batch) * u64::from(self.options.world_size) + u64::from(rank);
        let size = u64::from(self.options.per_device_batch);
        let bound = |slice: u64| (range.start as u64 + slice * size).min(range.end as u64) as usize;
        self.order(epoch)[bound(slice)..bound(slice + 1)].to_vec()
    }

    fn step_range(&self, step: u64) -> (u64, Range<usize>) {
        let epoch = self.epoch_at(step);
        let start = (step - epoch * self.steps_per_epoch()) * self.global_batch();
        let end = (start + self.global_batch()).min(self.options.rows as u64);
        (epoch, start as usize..end as usize)
    }

    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some((known, order)) if *known == epoch => Arc::clone(order),
            _ => {
                let mut order: Vec<u32> = (0..self.options.rows as u32).collect();
                if self.options.sampling == Sampling::Random {
                    shuffle(&mut order, self.options.data_seed.unwrap_or(self.options.seed), epoch);
                }
                let order = Arc::new(order);
                *current = Some((epoch, Arc::clone(&order)));
                order
            }
        }
    }
}

/// Fisher-Yates from the end, on the ChaCha8 stream number `epoch` of the key that the seed spells. Written out here so
/// that the order of a run never changes with a library.
fn shuffle(order: &mut [u32], seed: u64, epoch: u64) {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut generator = ChaCha8Rng::from_seed(key);
    generator.set_stream(epoch);
    for last in (1..order.len()).rev() {
        order.swap(last, below(&mut generator, last as u64 + 1) as usize);
    }
}

/// A number in `0..bound`, every one as likely: words in the incomplete last stretch of the range are drawn again.
fn below(generator: &mut ChaCha8Rng, bound: u64) -> u64 {
    let limit = u64::MAX - u64::MAX % bound;
    loop {
        let word = generator.next_u64();
        if word < limit {
            return word % bound;
        }
    }
}

#[cfg(test)]
#[path = "sampling_tests.rs"]
mod tests;
