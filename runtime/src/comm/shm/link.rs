//! The connection of one rank to all others, which all of its axes share: turns, and what is kept until others have read.

use super::arena::{Arena, Block};
use super::connect::{Own, Peer};
use super::control::{Control, Deal, INLINE, SLOTS};
use super::error::ShmError;
use super::reduce::Instructions;
use super::waiting::{Patience, Wait};
use crate::comm::ledger::Ledger;
use crate::comm::{ALL_GATHER, CommError, REDUCE_SCATTER};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use tch::Tensor;

/// A turn that this rank took last in its slot.
struct Taken {
    turn: u64,
    ranks: Rc<[usize]>,
    /// It was not waited for yet.
    open: bool,
}

/// A copy of an input that others may still read.
struct Retired {
    turn: u64,
    ranks: Rc<[usize]>,
    _block: Block,
}

/// Where a rank's input of a turn lies.
pub(super) enum Input {
    /// In the slot itself.
    Inline,
    /// In shared memory already: others read the tensor.
    InPlace(usize),
    /// In a copy.
    Copied(Block),
}

/// A turn that this rank began.
pub(super) struct Turn {
    link: Rc<Link>,
    call: &'static str,
    /// The collective's number, as the control plane counts.
    sequence: u64,
    number: u64,
    ranks: Rc<[usize]>,
    /// None once it is finished.
    input: Option<Input>,
    /// What others read, or this rank writes.
    tensors: Vec<Tensor>,
}

/// One rank's side of it.
pub(super) struct Link {
    own: Own,
    peers: Vec<Option<Peer>>,
    patience: Patience,
    pub(super) ledger: Rc<Ledger>,
    pub(super) instructions: Instructions,
    /// Turns that a collective has.
    turns: usize,
    taken: RefCell<Vec<Option<Taken>>>,
    retired: RefCell<VecDeque<Retired>>,
    /// Inputs of collectives that were given up: others may still read them.
    given_up: RefCell<Vec<(Input, Vec<Tensor>)>>,
}

impl Link {
    pub(super) fn new(
        (own, peers): (Own, Vec<Option<Peer>>),
        patience: Patience,
        turns: usize,
        ledger: Rc<Ledger>,
    ) -> Self {
        Link {
            own,
            peers,
            patience,
            ledger,
            instructions: Instructions::best(),
            turns,
            taken: RefCell::new((0..SLOTS).map(|_| None).collect()),
            retired: RefCell::default(),
            given_up: RefCell::default(),
        }
    }

    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.own.0
    }

    fn control(&self) -> &Control {
        self.own.0.segment().control()
    }

    /// The offset of `bytes` bytes at `pointer` where others see them.
    pub(super) fn shared(&self, pointer: *const u8, bytes: usize) -> Option<usize> {
        self.own.0.segment().offset_of(pointer.cast(), bytes)
    }

    /// Takes a turn of the collective with that sequence number; its slot may be written.
    pub(super) fn take_turn(
        self: &Rc<Self>,
        call: &'static str,
        (sequence, index): (u64, usize),
        ranks: &Rc<[usize]>,
    ) -> Result<Turn, CommError> {
        let number = sequence * self.turns as u64 + index as u64;
        let mut taken = self.taken.borrow_mut();
        let slot = &mut taken[(number % SLOTS as u64) as usize];
        if let Some(Taken { turn, ranks, open }) = slot {
            if *open || *turn > number {
                return Err(CommError::SharedMemory { call, source: ShmError::TooMany(SLOTS / self.turns) });
            }
            let wait = Wait { call, sequence, peers: &self.peers, ranks };
            let _blocked = self.ledger.activity().block_in(sequence);
            ranks.iter().try_for_each(|&peer| self.patience.wait_for(&wait, peer, |other| other.has_read(*turn)))?;
        }
        *slot = Some(Taken { turn: number, ranks: ranks.clone(), open: true });
        let (link, ranks) = (self.clone(), ranks.clone());
        Ok(Turn { link, call, sequence, number, ranks, input: None, tensors: Vec::new() })
    }

    /// Room for a copy of an input. Copies that everybody has read make room first.
    pub(super) fn take_room(&self, call: &'static str, bytes: usize) -> Result<Block, CommError> {
        let mut retired = self.retired.borrow_mut();
        while let Some(oldest) = retired.front()
            && self.all_have_read(oldest.turn, &oldest.ranks)
        {
            retired.pop_front();
        }
        drop(retired);
        self.arena().take(bytes).map_err(|source| CommError::SharedMemory { call, source })
    }

    /// How many copies were made since this was asked last.
    #[cfg(test)]
    pub(super) fn retired_copies(&self) -> usize {
        std::mem::take(&mut *self.retired.borrow_mut()).len()
    }

    fn all_have_read(&self, turn: u64, ranks: &[usize]) -> bool {
        let has_read = |peer: &Peer| peer.segment.control().has_read(turn);
        ranks.iter().all(|&rank| self.peers[rank].as_ref().is_none_or(has_read))
    }
}

impl Turn {
    /// Where a small input is written before it is posted.
    pub(super) fn inline(&self) -> *mut u8 {
        self.link.control().inline(self.number)
    }

    /// Posts this rank's input of so many bytes. The tensors are those that others read and this rank writes.
    pub(super) fn post(&mut self, input: Input, bytes: usize, tensors: Vec<Tensor>) {
        let offset = match &input {
            Input::Inline => 0,
            Input::InPlace(offset) => *offset,
            Input::Copied(block) => block.offset(),
        };
        self.input = Some(input);
        self.tensors = tensors;
        self.link.control().post(self.number, offset, self.deal(bytes));
    }

    fn deal(&self, bytes: usize) -> Deal {
        Deal { reduces: self.call == REDUCE_SCATTER, bytes }
    }

    /// Waits for the input of a rank; `bytes` says how long it is, and so where it lies.
    pub(super) fn input_of(&self, rank: usize, bytes: usize) -> Result<*const u8, CommError> {
        let number = self.number;
        self.link.patience.wait_for(&self.wait(), rank, |other| other.has_posted(number))?;
        let segment = match &self.link.peers[rank] {
            Some(peer) => &peer.segment,
            None => self.link.own.0.segment(),
        };
        let control = segment.control();
        let (own, theirs) = (self.deal(bytes), control.deal(number));
        if own != theirs {
            return Err(CommError::Mismatch {
                call: self.call,
                sequence: self.sequence,
                bytes,
                peer: self.link.peers[rank].as_ref().map_or(rank, |peer| peer.rank),
                their_call: if theirs.reduces { REDUCE_SCATTER } else { ALL_GATHER },
                their_bytes: theirs.bytes,
            });
        }
        Ok(match bytes <= INLINE {
            true => control.inline(number),
            false => segment.at(control.offset(number)),
        })
    }

    fn wait(&self) -> Wait<'_> {
        Wait { call: self.call, sequence: self.sequence, peers: &self.link.peers, ranks: &self.ranks }
    }

    /// This rank has read all inputs. Waits until its own tensors may be touched, if others read them in place.
    pub(super) fn finish(mut self) -> Result<(), CommError> {
        self.link.control().mark_read(self.number);
        if let Some(Input::InPlace(_)) = &self.input {
            let number = self.number;
            for &peer in self.ranks.iter() {
                self.link.patience.wait_for(&self.wait(), peer, |other| other.has_read(number))?;
            }
        }
        if let Some(Input::Copied(block)) = self.input.take() {
            let (turn, ranks) = (self.number, self.ranks.clone());
            self.link.retired.borrow_mut().push_back(Retired { turn, ranks, _block: block });
        }
        self.input = None;
        if let Some(taken) = &mut self.link.taken.borrow_mut()[(self.number % SLOTS as u64) as usize] {
            taken.open = false;
        }
        Ok(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(input) = self.input.take() {
            self.link.given_up.borrow_mut().push((input, std::mem::take(&mut self.tensors)));
        }
    }
}
