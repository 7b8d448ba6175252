//! The gather buffers of stage 3: the only place where full parameters exist.
//!
//! Units that come and go share [`PASSING`] buffers; a unit that stays from its first use to its last has one of its own,
//! and so has every unit when parameters are kept between forward and backward. A released unit's values stay where they
//! are until the buffer is needed, so the units that forward used last need no second gather when backward begins.

use super::ShardError;
use crate::comm::{Collectives, CommError, Pending};
use std::ops::Range;
use tch::{Kind, Tensor};

/// Buffers that units which come and go share: one for the unit at work, one for the next, which is on its way.
const PASSING: usize = 2;

/// What is in a buffer.
enum State {
    /// Nothing of use.
    Empty,
    /// The unit is on its way.
    Gathering(usize, Pending),
    /// The unit was released, and its values are still right.
    Released(usize),
    /// The unit is in use.
    InUse(usize),
}

impl State {
    fn unit(&self) -> Option<usize> {
        match self {
            State::Empty => None,
            State::Gathering(unit, _) | State::Released(unit) | State::InUse(unit) => Some(*unit),
        }
    }
}

struct Buffer {
    tensor: Tensor,
    state: State,
    /// When it was filled or taken last, to reuse the oldest.
    touched: u64,
}

/// Sizes of buffers for units given as (elements, whether it has one of its own), and which of them each unit may use: the
/// first ones, at most `shared`, are for all units without one of their own. Units of no elements need none.
pub(super) fn shared_and_own(units: &[(usize, bool)], shared: usize) -> (Vec<usize>, Vec<Range<usize>>) {
    let sharing = || units.iter().filter(|(numel, own)| !own && *numel > 0).map(|(numel, _)| *numel);
    let shared = shared.min(sharing().count());
    let mut sizes = vec![sharing().max().unwrap_or(0); shared];
    let mut candidates = Vec::with_capacity(units.len());
    for &(numel, own) in units {
        let own = own && numel > 0;
        if own {
            sizes.push(numel);
        }
        candidates.push(if own { sizes.len() - 1..sizes.len() } else { 0..shared });
    }
    (sizes, candidates)
}

/// Gather buffers and what is in them.
pub(super) struct GatherBuffers {
    buffers: Vec<Buffer>,
    /// The buffers that each unit may use.
    candidates: Vec<Range<usize>>,
    clock: u64,
}

impl GatherBuffers {
    /// No buffers at all: stages 0 to 2.
    pub(super) fn none() -> Self {
        GatherBuffers { buffers: Vec::new(), candidates: Vec::new(), clock: 0 }
    }

    /// Buffers of an element type that `comm` gathers into, for units given as (elements, whether it has a buffer of its own).
    pub(super) fn new(units: &[(usize, bool)], kind: Kind, comm: &dyn Collectives) -> Result<Self, ShardError> {
        let (sizes, candidates) = shared_and_own(units, PASSING);
        let buffers = sizes
            .into_iter()
            .map(|numel| {
                let tensor = comm.allocate(numel as i64, kind)?;
                Ok(Buffer { tensor, state: State::Empty, touched: 0 })
            })
            .collect::<Result<_, ShardError>>()?;
        Ok(GatherBuffers { buffers, candidates, clock: 0 })
    }

    fn holding(&self, unit: usize) -> Option<usize> {
        self.candidates[unit].clone().find(|&index| self.buffers[index].state.unit() == Some(unit))
    }

    fn touch(&mut self, index: usize, state: State) {
        self.clock += 1;
        self.buffers[index].touched = self.clock;
        self.buffers[index].state = state;
    }

    /// True when the unit's values are there or on their way.
    pub(super) fn has(&self, unit: usize) -> bool {
        self.holding(unit).is_some()
    }

    /// True when the unit is in use.
    pub(super) fn in_use(&self, unit: usize) -> bool {
        self.holding(unit).is_some_and(|index| matches!(self.buffers[index].state, State::InUse(_)))
    }

    /// The buffer that the unit could be gathered into now: the free one that was used longest ago.
    pub(super) fn free(&self, unit: usize) -> Option<usize> {
        let free = |index: &usize| matches!(self.buffers[*index].state, State::Empty | State::Released(_));
        self.candidates[unit].clone().filter(free).min_by_key(|&index| self.buffers[index].touched)
    }

    /// Notes that the unit is on its way into a free buffer.
    pub(super) fn started(&mut self, index: usize, unit: usize, pending: Pending) {
        self.touch(index, State::Gathering(unit, pending));
    }

    /// Waits for the unit, which [`GatherBuffers::has`], and takes it into use.
    pub(super) fn take(&mut self, unit: usize) -> Result<Option<&Tensor>, CommError> {
        let Some(index) = self.holding(unit) else { return Ok(None) };
        if let State::Gathering(_, pending) = std::mem::replace(&mut self.buffers[index].state, State::Empty) {
            pending.wait()?;
        }
        self.touch(index, State::InUse(unit));
        Ok(Some(&self.buffers[index].tensor))
    }

    /// Lets the unit's buffer be used again; its values stay until then.
    pub(super) fn release(&mut self, unit: usize) {
        if let Some(index) = self.holding(unit)
            && matches!(self.buffers[index].state, State::InUse(_))
        {
            self.buffers[index].state = State::Released(unit);
        }
    }

    /// Forgets everything gathered: the masters changed. What is on its way is waited for.
    pub(super) fn forget(&mut self) -> Result<(), CommError> {
        for buffer in &mut self.buffers {
            if let State::Gathering(_, pending) = std::mem::replace(&mut buffer.state, State::Empty) {
                pending.wait()?;
            }
        }
        Ok(())
    }

    /// The storage of all buffers.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.buffers.iter().map(|buffer| &buffer.tensor)
    }

    /// A buffer's storage.
    pub(super) fn tensor(&self, index: usize) -> &Tensor {
        &self.buffers[index].tensor
    }

    /// Bytes of all buffers.
    pub(super) fn bytes(&self) -> usize {
        self.tensors().map(|tensor| tensor.numel() * tensor.kind().elt_size_in_bytes()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::Single;
    use tch::Device;

    fn buffers(units: &[(usize, bool)], kind: Kind) -> GatherBuffers {
        GatherBuffers::new(units, kind, &Single::new(Device::Cpu).unwrap()).unwrap()
    }

    fn gather(buffers: &mut GatherBuffers, unit: usize) -> bool {
        let had = buffers.has(unit);
        if !had {
            let index = buffers.free(unit).expect("a free buffer");
            buffers.started(index, unit, Pending::done());
        }
        buffers.take(unit).unwrap().expect("it was started");
        had
    }

    #[test]
    fn the_last_released_units_need_no_second_gather() {
        let mut buffers = buffers(&[(8, false); 5], Kind::Float);
        for unit in 1..5 {
            assert!(!gather(&mut buffers, unit));
            buffers.release(unit);
        }
        for (unit, had) in [(4, true), (3, true), (2, false)] {
            assert_eq!(gather(&mut buffers, unit), had);
            buffers.release(unit);
        }
        buffers.forget().unwrap();
        assert!(!gather(&mut buffers, 3));
    }

    #[test]
    fn buffers_in_use_or_on_their_way_are_not_handed_out() {
        let units = [(8, true), (8, false), (8, false), (8, false)];
        let mut buffers = buffers(&units, Kind::Float);
        gather(&mut buffers, 1);
        let next = buffers.free(2).unwrap();
        buffers.started(next, 2, Pending::done());
        assert!(buffers.has(2) && !buffers.in_use(2));
        assert_eq!(buffers.free(3), None);
        assert!(buffers.free(0).is_some(), "a buffer of its own");
        buffers.release(1);
        assert!(buffers.free(3).is_some_and(|free| free != next));
    }

    #[test]
    fn units_with_buffers_of_their_own_stay() {
        let mut buffers = buffers(&[(8, true), (16, true), (24, true)], Kind::BFloat16);
        assert_eq!(buffers.bytes(), 2 * (8 + 16 + 24));
        for unit in 0..3 {
            gather(&mut buffers, unit);
            buffers.release(unit);
        }
        assert!((0..3).all(|unit| gather(&mut buffers, unit)));
    }
}
