//! The gather buffers of stage 3: the only place where full parameters exist.
//!
//! Units that come and go share [`PASSING`] buffers. The unit with tied weights, which is used first and last, has one of
//! its own. A released unit's bytes stay where they are until the buffer is needed, so the units that forward used last
//! need no second gather when backward begins with them.

use super::ShardError;
use tch::{Device, Kind, Tensor};

/// Buffers that units which come and go share.
const PASSING: usize = 2;

struct Buffer {
    tensor: Tensor,
    /// The unit whose full parameters lie here.
    holds: Option<usize>,
    in_use: bool,
    /// When it was acquired last, to reuse the oldest.
    acquired: u64,
}

/// Where a unit is to be gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// The buffer's index.
    pub(super) buffer: usize,
    /// True when the unit's full parameters already lie there.
    pub(super) filled: bool,
}

/// Gather buffers and what they hold.
pub(super) struct GatherBuffers {
    /// [`PASSING`] shared ones, then the one of the unit that stays.
    buffers: Vec<Buffer>,
    clock: u64,
}

impl GatherBuffers {
    /// Buffers for passing units of at most `passing` elements and a staying one of `staying`; 0 for none.
    pub(super) fn new(passing: i64, staying: i64, kind: Kind) -> Result<Self, ShardError> {
        let mut sizes = vec![passing; PASSING];
        sizes.push(staying);
        let buffers = sizes
            .into_iter()
            .map(|numel| {
                let tensor = Tensor::f_zeros([numel], (kind, Device::Cpu))?;
                Ok(Buffer { tensor, holds: None, in_use: false, acquired: 0 })
            })
            .collect::<Result<_, ShardError>>()?;
        Ok(GatherBuffers { buffers, clock: 0 })
    }

    /// A buffer for `unit`: the one that still holds it, else the free one that was used longest ago; `None` when all
    /// are in use.
    pub(super) fn acquire(&mut self, unit: usize, stays: bool) -> Option<Slot> {
        let candidates = if stays { PASSING..PASSING + 1 } else { 0..PASSING };
        let held = candidates.clone().find(|&index| self.buffers[index].holds == Some(unit));
        let index = held.or_else(|| {
            candidates.filter(|&index| !self.buffers[index].in_use).min_by_key(|&index| self.buffers[index].acquired)
        })?;
        self.clock += 1;
        let buffer = &mut self.buffers[index];
        buffer.holds = Some(unit);
        buffer.in_use = true;
        buffer.acquired = self.clock;
        Some(Slot { buffer: index, filled: held.is_some() })
    }

    /// Lets `unit`'s buffer be used again.
    pub(super) fn release(&mut self, unit: usize) {
        for buffer in self.buffers.iter_mut().filter(|buffer| buffer.holds == Some(unit)) {
            buffer.in_use = false;
        }
    }

    /// Forgets everything gathered: the masters changed.
    pub(super) fn forget(&mut self) {
        for buffer in &mut self.buffers {
            buffer.holds = None;
            buffer.in_use = false;
        }
    }

    /// A buffer's storage.
    pub(super) fn tensor(&self, index: usize) -> &Tensor {
        &self.buffers[index].tensor
    }

    /// Bytes of all buffers.
    pub(super) fn bytes(&self) -> usize {
        self.buffers.iter().map(|buffer| buffer.tensor.numel() * buffer.tensor.kind().elt_size_in_bytes()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_released_units_need_no_second_gather() {
        let mut buffers = GatherBuffers::new(8, 8, Kind::Float).unwrap();
        for unit in 1..5 {
            assert!(!buffers.acquire(unit, false).unwrap().filled);
            buffers.release(unit);
        }
        assert!(buffers.acquire(4, false).unwrap().filled);
        buffers.release(4);
        assert!(buffers.acquire(3, false).unwrap().filled);
        buffers.release(3);
        assert!(!buffers.acquire(2, false).unwrap().filled);
        buffers.forget();
        assert!(!buffers.acquire(3, false).unwrap().filled);
    }

    #[test]
    fn buffers_in_use_are_not_handed_out() {
        let mut buffers = GatherBuffers::new(8, 8, Kind::Float).unwrap();
        let first = buffers.acquire(1, false).unwrap();
        let second = buffers.acquire(2, false).unwrap();
        assert_ne!(first.buffer, second.buffer);
        assert_eq!(buffers.acquire(3, false), None);
        assert!(buffers.acquire(0, true).is_some());
        buffers.release(1);
        assert_eq!(buffers.acquire(3, false).unwrap().buffer, first.buffer);
    }
}
