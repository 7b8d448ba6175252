//! The part of a rank's segment that holds tensors: handed out block by block, and taken back.

use super::error::ShmError;
use super::segment::{HUGE_PAGE, Segment, TENSORS};
use crate::torch::{self, ShimError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tch::{Kind, Tensor};

/// Blocks begin at multiples of this, as libtorch's own tensors do.
const ALIGNMENT: usize = 64;

/// A rank's own segment, and what of it is free.
pub(super) struct Arena {
    segment: Segment,
    /// Lengths of free ranges by where they begin; no two of them touch.
    free: Mutex<BTreeMap<usize, usize>>,
}

/// A range of the segment that somebody uses. libtorch's count of live bytes includes it.
pub(super) struct Block {
    arena: Arc<Arena>,
    offset: usize,
    length: usize,
    bytes: usize,
}

impl Arena {
    /// All of a segment's tensors are free.
    pub(super) fn new(segment: Segment) -> Self {
        let free = Mutex::new(BTreeMap::from([(TENSORS, segment.length() - TENSORS)]));
        Arena { segment, free }
    }

    /// The segment.
    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// The first free range of `bytes` bytes, so that pages which were touched before are used again.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Result<Block, ShmError> {
        let length = bytes.max(1).next_multiple_of(ALIGNMENT);
        // Large ones may lie on large pages.
        let alignment = if length >= HUGE_PAGE { HUGE_PAGE } else { ALIGNMENT };
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let found = free.iter().find_map(|(&begin, &room)| {
            let offset = begin.next_multiple_of(alignment);
            (offset + length <= begin + room).then_some((begin, room, offset))
        });
        let Some((begin, room, offset)) = found else {
            return Err(ShmError::Full { bytes, size: self.segment.length() });
        };
        free.remove(&begin);
        let after = offset + length;
        for (begin, room) in [(begin, offset - begin), (after, begin + room - after)] {
            if room > 0 {
                free.insert(begin, room);
            }
        }
        drop(free);
        crate::metrics::has_shared(after as u64);
        torch::count_bytes(bytes as i64);
        Ok(Block { arena: self.clone(), offset, length, bytes })
    }

    fn give_back(&self, offset: usize, length: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut begin, mut end) = (offset, offset + length);
        if let Some((&before, &room)) = free.range(..offset).next_back()
            && before + room == offset
        {
            free.remove(&before);
            begin = before;
        }
        if let Some(room) = free.remove(&end) {
            end += room;
        }
        free.insert(begin, end - begin);
    }
}

impl Block {
    /// Where it lies in the segment.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// Where it lies in this process.
    pub(super) fn pointer(&self) -> *mut u8 {
        self.arena.segment.at(self.offset)
    }

    /// A flat tensor over it, which gives it back when the last view of it is gone. Its content is what was there.
    pub(super) fn into_tensor(self, numel: usize, kind: Kind) -> Result<Tensor, ShimError> {
        assert!(numel * kind.elt_size_in_bytes() <= self.length, "the block was taken for this tensor");
        // SAFETY: the block has room for the tensor, is aligned for every type, stays mapped as long as the block lives, and
        // nobody else is given it.
        unsafe { torch::tensor_over(self.pointer().cast(), numel, kind, self) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.arena.give_back(self.offset, self.length);
        torch::count_bytes(-(self.bytes as i64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena() -> Arc<Arena> {
        let (segment, _file) = Segment::create(TENSORS + 64 * HUGE_PAGE).unwrap();
        Arc::new(Arena::new(segment))
    }

    #[test]
    fn blocks_do_not_overlap_and_come_back() {
        let arena = arena();
        let sizes = [1, 64, 65, 0, HUGE_PAGE, 3 * HUGE_PAGE + 5, 4096];
        for round in 0..3 {
            let blocks: Vec<Block> = sizes.iter().map(|&bytes| arena.take(bytes).unwrap()).collect();
            for (index, one) in blocks.iter().enumerate() {
                assert!(one.offset >= TENSORS && one.offset % ALIGNMENT == 0 && one.length >= sizes[index].max(1));
                let apart = |other: &Block| {
                    other.offset >= one.offset + one.length || one.offset >= other.offset + other.length
                };
                assert!(blocks[index + 1..].iter().all(apart));
            }
            // In another order each time.
            let mut blocks: Vec<Option<Block>> = blocks.into_iter().map(Some).collect();
            (0..sizes.len()).for_each(|index| drop(blocks[(index * 3 + round) % sizes.len()].take()));
            let free = arena.free.lock().unwrap();
            assert_eq!(*free, BTreeMap::from([(TENSORS, 64 * HUGE_PAGE)]), "round {round}");
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error_that_says_so() {
        let arena = arena();
        let error = arena.take(65 * HUGE_PAGE).err().unwrap();
        assert!(error.to_string().contains("no room for"), "{error}");
    }

    #[test]
    fn a_tensor_keeps_its_memory_alive_and_gives_it_back() {
        let arena = arena();
        let bytes = 4 * 1000;
        let view = {
            let tensor = arena.take(bytes).unwrap().into_tensor(1000, Kind::Float).unwrap();
            assert!(arena.segment().offset_of(tensor.data_ptr(), bytes).is_some());
            tensor.narrow(0, 10, 20)
        };
        assert_eq!(arena.free.lock().unwrap().values().sum::<usize>(), 64 * HUGE_PAGE - bytes.next_multiple_of(64));
        drop(view);
        assert_eq!(arena.free.lock().unwrap().len(), 1);
        let late = arena.take(bytes).unwrap().into_tensor(1000, Kind::Float).unwrap();
        drop(arena);
        assert_eq!(late.sum(Kind::Float).double_value(&[]), 0.0);
    }
}
