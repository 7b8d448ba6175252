//! Which rows are used when, and on which rank. Pure: no clock, no communication. Where rows are packed, what is called a row
//! here is a pack.
//!
//! The order of an epoch depends on the seed, the epoch and the number of rows alone (grouped by length, on these and the
//! rows of a step too). Step `k` takes the next
//! `world size × per-device batch × accumulation` rows of it, micro-batch `a` of rank `r` the slice `a·N + r` of these.
//! So the rows of a step are the same for every number of ranks with the same global batch, and every row is used
//! once in an epoch. A run that goes on with another global batch takes the rows that come next. Where sources are mixed, an
//! epoch has as many rows of each as its [`Mixture`] says.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::mixing::{Mixing, Mixture};
use crate::packing::Packing;

/// Grouped by length, rows are sorted within so many steps of them, fewer where there would be less than
/// [`LEAST_GROUPS`] such groups. As transformers' `LengthGroupedSampler`.
const GROUPED_STEPS: u64 = 50;
/// See [`GROUPED_STEPS`].
const LEAST_GROUPS: u64 = 4;

/// In which order an epoch goes through the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// A new seeded permutation for each epoch.
    #[default]
    Random,
    /// The order of the file, in every epoch.
    Sequential,
    /// As [`Sampling::Random`], then sorted by length within some tens of steps, so that rows of a micro-batch are alike; the
    /// longest of all comes first.
    GroupByLength,
}

/// What a [`StepPlan`] goes through: the rows of a data set, or its packs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Items {
    /// How many there are.
    pub count: usize,
    /// The tokens of each; needed to group them by length alone.
    pub lengths: Option<Arc<[u32]>>,
    /// What packs are made by; none for rows.
    pub packing: Option<Packing>,
    /// How many are of each source, one source after the other.
    pub sources: Vec<usize>,
}

impl Items {
    /// So many rows of one source, of which no length is known.
    pub fn rows(count: usize) -> Items {
        Items { count, lengths: None, packing: None, sources: vec![count] }
    }
}

/// The numbers a [`StepPlan`] is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct StepPlanOptions {
    /// What is gone through.
    pub items: Items,
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
    /// How much of each source an epoch takes; none for all of it.
    pub mixing: Option<Mixing>,
}

/// A place in the data: which rows come next. A run goes on exactly from a checkpoint when its plan has the same cursor at
/// that step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Rows of the data set, or packs.
    pub rows: usize,
    /// What packs are made by, where rows are packed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packing: Option<Packing>,
    /// Packs of each source, where rows of several are packed: packs have rows of one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<usize>,
    /// The epoch, from 0.
    pub epoch: u64,
    /// Rows of this epoch that were used; less than it has.
    pub row: u64,
    /// Rows of a full optimizer step.
    pub global_batch: u64,
    /// What the order of the rows is made from.
    pub row_seed: u64,
    /// The order of an epoch.
    pub sampling: Sampling,
    /// Grouped by length: the rows among which this epoch's were sorted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u64>,
    /// What an epoch takes of each source, where it is not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixture: Option<Mixture>,
}

/// No run comes so far: a number in a file that is higher was never counted.
const MAX_EPOCH: u64 = 1 << 53;

/// The rows of every step, micro-batch and rank of a run.
#[derive(Debug)]
pub struct StepPlan {
    options: StepPlanOptions,
    /// What an epoch takes of each source, where it is not all of it.
    mixture: Option<Mixture>,
    /// The first step of this plan, and its place: 0 but for a run that goes on with another global batch.
    first: Place,
    /// Grouped by length: the rows among which those of the first epoch are sorted, where a run went on inside of it.
    first_group: Option<u64>,
    total_steps: u64,
    /// The order of one epoch, the last one asked for: what a plan keeps does not grow with the number of epochs.
    current: Mutex<Option<(u64, Arc<Vec<u32>>)>>,
}

/// Where a step begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Place {
    step: u64,
    epoch: u64,
    /// Less than all rows.
    row: u64,
}

impl StepPlan {
    /// Checks the numbers and counts the steps: `max_steps` when positive, else epochs × steps of an epoch, rounded up.
    ///
    /// # Errors
    /// [`DataError::Plan`] when a number that must be positive is not, or there are more than 2³² − 1 rows; as
    /// [`Mixture::new`].
    pub fn new(options: StepPlanOptions) -> Result<StepPlan, DataError> {
        let StepPlanOptions { world_size, per_device_batch, accumulation, epochs, max_steps, .. } = options;
        let rows = options.items.count;
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
        let lengths = options.items.lengths.as_ref().map(|lengths| lengths.len());
        if options.sampling == Sampling::GroupByLength && lengths != Some(rows) {
            let message = format!("{rows} rows are to be grouped by the lengths of {}", lengths.unwrap_or(0));
            return fault(message, "each row has one length");
        }
        let mixing = options.mixing.as_ref();
        let mixture = mixing.map(|mixing| Mixture::new(&options.items.sources, mixing)).transpose()?;
        let (first, current) = (Place::default(), Mutex::new(None));
        let mut plan = StepPlan { options, mixture, first, first_group: None, total_steps: 0, current };
        plan.total_steps = plan.count_steps();
        Ok(plan)
    }

    /// The plan of a run that goes on after `step` steps with the row that `cursor` names. With the global batch that the
    /// cursor was made with nothing changes; with another one, the steps to come take that many rows each and go through
    /// what is left of `epochs`, unless `max_steps` counts them.
    ///
    /// # Errors
    /// A cursor of other data, another seed or another order.
    pub fn resumed(mut self, step: u64, cursor: &Cursor) -> Result<StepPlan, DataError> {
        let here = self.cursor(step);
        let Cursor { rows, packing, ref sources, epoch, row, global_batch: _, row_seed, sampling, group, ref mixture } =
            *cursor;
        let beyond = row >= self.rows() || epoch > MAX_EPOCH;
        let same = (rows, packing, row_seed, sampling) == (here.rows, here.packing, here.row_seed, here.sampling);
        if !same
            || (sources, mixture) != (&here.sources, &here.mixture)
            || beyond
            || group.is_some() != here.group.is_some()
            || group == Some(0)
        {
            return Err(DataError::Plan {
                message: format!("the run was in {cursor:?}, and would go on in {here:?}"),
                hint: "go on with the data, weights, seed and order that the checkpoint was saved with".into(),
            });
        }
        if *cursor != here {
            self.first = Place { step, epoch, row };
            // What is left of an epoch comes in the order in which it began.
            self.first_group = group.filter(|_| row > 0);
            self.current = Mutex::new(None);
            self.total_steps = self.count_steps();
        }
        Ok(self)
    }

    fn count_steps(&self) -> u64 {
        let StepPlanOptions { epochs, max_steps, .. } = self.options;
        if let Ok(steps) = u64::try_from(max_steps)
            && steps > 0
        {
            return steps;
        }
        let Place { step, epoch, row } = self.first;
        let per_epoch = self.steps_per_epoch() as f64;
        if row == 0 {
            return step + ((epochs - epoch as f64).max(0.0) * per_epoch).ceil() as u64;
        }
        let after_this = epochs - (epoch + 1) as f64;
        if after_this >= 0.0 {
            return step + self.steps_of_first_epoch() + (after_this * per_epoch).ceil() as u64;
        }
        // It ends in the epoch it begins in, where a whole epoch in steps of this size would.
        let end = ((epochs - epoch as f64).max(0.0) * per_epoch).ceil() as u64 * self.global_batch();
        step + end.min(self.rows()).saturating_sub(row).div_ceil(self.global_batch())
    }

    /// Rows of an epoch.
    fn rows(&self) -> u64 {
        self.mixture.as_ref().map_or(self.options.items.count as u64, Mixture::length)
    }

    /// What an epoch takes of each source, where it is not all of it.
    pub fn mixture(&self) -> Option<&Mixture> {
        self.mixture.as_ref()
    }

    /// Steps from where this plan begins to the end of that epoch.
    fn steps_of_first_epoch(&self) -> u64 {
        (self.rows() - self.first.row).div_ceil(self.global_batch())
    }

    /// The first step that this plan knows: 0, or where a run went on with another global batch.
    pub fn first_step(&self) -> u64 {
        self.first.step
    }

    /// Where step `step` begins. Steps before the first are taken for it.
    fn place(&self, step: u64) -> Place {
        let (done, in_first) = (step.saturating_sub(self.first.step), self.steps_of_first_epoch());
        if done < in_first {
            return Place { step, epoch: self.first.epoch, row: self.first.row + done * self.global_batch() };
        }
        let (later, per_epoch) = (done - in_first, self.steps_per_epoch());
        let epoch = self.first.epoch + 1 + later / per_epoch;
        Place { step, epoch, row: later % per_epoch * self.global_batch() }
    }

    /// Optimizer steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// Optimizer steps of one epoch; the last may be short.
    pub fn steps_per_epoch(&self) -> u64 {
        self.rows().div_ceil(self.global_batch())
    }

    /// Rows of a full optimizer step: world size × per-device batch × accumulation.
    pub fn global_batch(&self) -> u64 {
        let StepPlanOptions { world_size, per_device_batch, accumulation, .. } = self.options;
        u64::from(world_size) * u64::from(per_device_batch) * u64::from(accumulation)
    }

    /// The epoch that step `step` (from 0) belongs to, from 0.
    pub fn epoch_at(&self, step: u64) -> u64 {
        self.place(step).epoch
    }

    /// True when an epoch ends with the last of `steps` steps.
    pub fn ends_epoch(&self, steps: u64) -> bool {
        steps > self.first.step && self.place(steps).row == 0
    }

    /// Rows gone through in `steps` steps, over all epochs.
    pub fn rows_after(&self, steps: u64) -> u64 {
        let Place { epoch, row, .. } = self.place(steps);
        epoch * self.rows() + row
    }

    /// Epochs done after `steps` steps, as a fraction: what logs show. Steps of an epoch count alike, short ones too.
    pub fn epochs_after(&self, steps: u64) -> f64 {
        let Place { step, epoch, row } = self.first;
        let done = steps.saturating_sub(step);
        let (in_first, per_epoch) = (self.steps_of_first_epoch(), self.steps_per_epoch() as f64);
        if row == 0 {
            return epoch as f64 + done as f64 / per_epoch;
        }
        let gone = row as f64 / self.rows() as f64;
        match done.checked_sub(in_first) {
            Some(later) => (epoch + 1) as f64 + later as f64 / per_epoch,
            None => epoch as f64 + gone + (1.0 - gone) * done as f64 / in_first as f64,
        }
    }

    /// The place in the data after `steps` steps.
    pub fn cursor(&self, steps: u64) -> Cursor {
        let Place { epoch, row, .. } = self.place(steps);
        Cursor {
            rows: self.options.items.count,
            packing: self.options.items.packing,
            sources: self.packed_sources(),
            epoch,
            row,
            global_batch: self.global_batch(),
            row_seed: self.options.data_seed.unwrap_or(self.options.seed),
            sampling: self.options.sampling,
            group: (self.options.sampling == Sampling::GroupByLength).then(|| self.group(epoch)),
            mixture: self.mixture.clone(),
        }
    }

    fn packed_sources(&self) -> Vec<usize> {
        let Items { packing, sources, .. } = &self.options.items;
        if packing.is_some() && sources.len() > 1 { sources.clone() } else { Vec::new() }
    }

    /// Grouped by length: the rows among which those of an epoch are sorted.
    fn group(&self, epoch: u64) -> u64 {
        let batch = self.global_batch();
        let steps = (self.rows() / batch.saturating_mul(LEAST_GROUPS)).clamp(1, GROUPED_STEPS);
        self.first_group.filter(|_| epoch == self.first.epoch).unwrap_or(steps.saturating_mul(batch))
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
        let Place { epoch, row, .. } = self.place(step);
        let end = (row + self.global_batch()).min(self.rows());
        (epoch, row as usize..end as usize)
    }

    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some((known, order)) if *known == epoch => Arc::clone(order),
            _ => {
                let seed = self.options.data_seed.unwrap_or(self.options.seed);
                let seed = (self.options.sampling != Sampling::Sequential).then_some(seed);
                let mut order = match &self.mixture {
                    Some(mixture) => mixture.epoch(epoch, seed),
                    None => (0..self.rows() as u32).collect(),
                };
                if let (None, Some(seed)) = (&self.mixture, seed) {
                    shuffle(&mut order, seed, epoch);
                }
                if let (Sampling::GroupByLength, Some(lengths)) = (self.options.sampling, &self.options.items.lengths) {
                    group_by_length(&mut order, lengths, usize::try_from(self.group(epoch)).unwrap_or(usize::MAX));
                }
                let order = Arc::new(order);
                *current = Some((epoch, Arc::clone(&order)));
                order
            }
        }
    }
}

/// Sorts each `group` rows by their lengths, the longest first, and then puts the longest of all to the beginning, in exchange
/// for the row there: memory that does not suffice shows at once.
fn group_by_length(order: &mut [u32], lengths: &[u32], group: usize) {
    let length = |row: u32| lengths[row as usize];
    for rows in order.chunks_mut(group) {
        rows.sort_by_key(|&row| Reverse(length(row)));
    }
    // Of equally long ones that of the first group.
    let longest = (0..order.len()).step_by(group).min_by_key(|&place| Reverse(length(order[place])));
    order.swap(0, longest.unwrap_or(0));
}

/// Fisher-Yates from the end, on the ChaCha8 stream number `epoch` of the key that the seed spells. Written out here so
/// that the order of a run never changes with a library.
pub(crate) fn shuffle(order: &mut [u32], seed: u64, epoch: u64) {
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
