//! Which connections stay when there are more than may be. Pure.
//!
//! A connection is a stranger until a rank of the job has spoken on it. Strangers make room: the one that came first goes when a
//! new one comes, so sockets that somebody holds open keep no worker out. Members never make room.

use std::collections::{BTreeMap, HashSet};

/// The connections there are, by number.
pub(crate) struct Admission<E> {
    limit: usize,
    next: u64,
    members: HashSet<u64>,
    /// What to do to end each, the oldest first.
    strangers: BTreeMap<u64, E>,
}

/// What becomes of a new connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admitted<E> {
    /// It stays, under this number.
    Stays(u64),
    /// It stays, under this number, and this other one is to be ended.
    InPlaceOf(u64, E),
    /// There is no room: all are members.
    Refused,
}

impl<E> Admission<E> {
    pub(crate) fn new(limit: usize) -> Self {
        Admission { limit, next: 0, members: HashSet::new(), strangers: BTreeMap::new() }
    }

    /// From now on there may be so many. Those that are there stay.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// A connection came; `end` ends it.
    pub(crate) fn arrived(&mut self, end: E) -> Admitted<E> {
        let full = self.count() >= self.limit;
        let oldest = if full { self.strangers.pop_first() } else { None };
        if full && oldest.is_none() {
            return Admitted::Refused;
        }
        let number = self.next;
        self.next += 1;
        self.strangers.insert(number, end);
        match oldest {
            Some((_, oldest)) => Admitted::InPlaceOf(number, oldest),
            None => Admitted::Stays(number),
        }
    }

    /// A rank of the job spoke on it. True when it was a stranger until now, and has not been ended meanwhile.
    pub(crate) fn is_member(&mut self, number: u64) -> bool {
        self.strangers.remove(&number).is_some() && self.members.insert(number)
    }

    /// It is closed.
    pub(crate) fn closed(&mut self, number: u64) {
        self.strangers.remove(&number);
        self.members.remove(&number);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.members.len() + self.strangers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stranger_makes_room_and_members_never_do() {
        let mut admission = Admission::new(2);
        assert_eq!(admission.arrived("a"), Admitted::Stays(0));
        assert_eq!(admission.arrived("b"), Admitted::Stays(1));
        assert!(admission.is_member(0));
        assert!(!admission.is_member(0), "it is one already");
        assert_eq!(admission.arrived("c"), Admitted::InPlaceOf(2, "b"));
        assert!(!admission.is_member(1), "b was ended before it spoke");
        admission.closed(1);
        assert_eq!(admission.count(), 2);
        assert!(admission.is_member(2));
        assert_eq!(admission.arrived("d"), Admitted::Refused);
        admission.closed(0);
        assert_eq!(admission.arrived("e"), Admitted::Stays(3));
        admission.closed(3);
        admission.closed(2);
        assert_eq!(admission.count(), 0);
    }
}
