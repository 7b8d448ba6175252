//! What can be found in a row.

use serde::{Serialize, Serializer};

/// Something that is told of rows, by the name that `--drop` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// The row cannot be read: broken JSON, no columns to learn from, another kind of row than the first.
    Unreadable,
    /// The chat template or the tokenizer refuses the row, or its mask cannot be told.
    Refused,
    /// A training row that is held out too, to the letter.
    Leaks,
    /// A training row that is nearly a held-out one.
    NearLeaks,
    /// An answer ends without an end-of-turn token that is learned.
    Unended,
    /// No token is supervised, before or after the cut to `max_length`.
    Unsupervised,
    /// Every token is supervised, where a part should not be.
    AllSupervised,
    /// Longer than `max_length`.
    Truncated,
    /// Nothing is asked, answered or written.
    Empty,
    /// Roles in an order that chat templates do not expect, or an end without an answer.
    RoleOrder,
    /// The row stands before, to the letter.
    Duplicates,
    /// Nearly the row stands before.
    NearDuplicates,
    /// What is asked was asked before.
    DuplicateInstructions,
    /// What is asked is answered otherwise in another row.
    Conflicts,
    /// Answers of fewer words than [`super::SHORT_WORDS`].
    Short,
    /// No word of the answers occurs in what was asked.
    Unrelated,
}

impl FindingKind {
    /// All of them, in the order in which they are told: what stops or spoils a training first.
    pub const ALL: [FindingKind; 16] = [
        FindingKind::Unreadable,
        FindingKind::Refused,
        FindingKind::Leaks,
        FindingKind::NearLeaks,
        FindingKind::Unended,
        FindingKind::Unsupervised,
        FindingKind::AllSupervised,
        FindingKind::Truncated,
        FindingKind::Empty,
        FindingKind::RoleOrder,
        FindingKind::Duplicates,
        FindingKind::NearDuplicates,
        FindingKind::DuplicateInstructions,
        FindingKind::Conflicts,
        FindingKind::Short,
        FindingKind::Unrelated,
    ];

    /// Its name in reports and for `--drop`.
    pub fn name(self) -> &'static str {
        match self {
            FindingKind::Unreadable => "unreadable",
            FindingKind::Refused => "refused",
            FindingKind::Leaks => "leaks",
            FindingKind::NearLeaks => "near-leaks",
            FindingKind::Unended => "unended",
            FindingKind::Unsupervised => "unsupervised",
            FindingKind::AllSupervised => "all-supervised",
            FindingKind::Truncated => "truncated",
            FindingKind::Empty => "empty",
            FindingKind::RoleOrder => "role-order",
            FindingKind::Duplicates => "duplicates",
            FindingKind::NearDuplicates => "near-duplicates",
            FindingKind::DuplicateInstructions => "duplicate-instructions",
            FindingKind::Conflicts => "conflicts",
            FindingKind::Short => "short",
            FindingKind::Unrelated => "unrelated",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<FindingKind> {
        FindingKind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether it stops a training, or spoils what it tells of itself. The others are for a person to judge.
    pub fn is_fault(self) -> bool {
        matches!(self, FindingKind::Unreadable | FindingKind::Refused | FindingKind::Leaks | FindingKind::NearLeaks)
    }

    /// Whether only tokens tell.
    pub(super) fn needs_tokens(self) -> bool {
        matches!(self, FindingKind::Unsupervised | FindingKind::AllSupervised | FindingKind::Truncated)
    }

    /// Whether only a model's template and tokenizer tell.
    pub fn needs_model(self) -> bool {
        matches!(self, FindingKind::Refused | FindingKind::Unended)
    }

    /// Whether it is told of rows that answer something.
    pub(super) fn needs_answers(self) -> bool {
        matches!(
            self,
            FindingKind::DuplicateInstructions | FindingKind::Conflicts | FindingKind::Short | FindingKind::Unrelated
        )
    }

    /// Whether it is told by comparing with held-out data.
    pub fn needs_held_out(self) -> bool {
        matches!(self, FindingKind::Leaks | FindingKind::NearLeaks)
    }
}

impl Serialize for FindingKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A set of kinds, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Kinds(u16);

impl Kinds {
    pub(super) fn add(&mut self, kind: FindingKind) {
        self.0 |= 1 << kind as u16;
    }

    pub(super) fn has(self, kind: FindingKind) -> bool {
        self.0 & (1 << kind as u16) != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_and_bits_of_their_own() {
        let mut all = Kinds::default();
        for kind in FindingKind::ALL {
            assert_eq!(FindingKind::from_name(kind.name()), Some(kind));
            assert!(!all.has(kind), "{kind:?}");
            all.add(kind);
            assert!(all.has(kind) && !all.is_empty());
        }
        assert_eq!(FindingKind::from_name("dupes"), None);
    }
}
