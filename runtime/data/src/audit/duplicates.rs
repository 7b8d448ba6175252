//! Rows that are the same, instructions that are, and answers that then are not.

use rayon::prelude::*;

use super::kind::FindingKind;
use super::near_duplicates;
use super::rows::Rows;
use super::said::NONE;

/// A finding that is about two rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Link {
    pub(super) kind: FindingKind,
    /// The row that it is told of.
    pub(super) row: u32,
    /// The row that it is compared with.
    pub(super) other: u32,
}

/// Compares all rows with each other, and marks them. The links are sorted by kind, then by row.
pub(super) fn compare(rows: &mut Rows) -> Vec<Link> {
    let mut links = same_contents(rows);
    mark(rows, &links);
    let mut of_first = near_duplicates::compare(rows);
    of_first.extend(same_instructions(rows));
    let of_duplicates = inherited(&links, &mut of_first);
    for found in [of_first, of_duplicates] {
        mark(rows, &found);
        links.extend(found);
    }
    links.par_sort_unstable();
    links
}

fn mark(rows: &mut Rows, links: &[Link]) {
    links.iter().for_each(|link| rows.mark(link.row, link.kind));
}

/// Calls `look` with the rows of each key that several rows have, in their order, and puts together what it finds.
fn in_groups<F>(keys: &[u128], look: F) -> Vec<Link>
where
    F: Fn(&[u32], &mut Vec<Link>) + Sync,
{
    let known = keys.par_iter().zip(0u32..keys.len() as u32).filter(|(key, _)| **key != NONE);
    let mut keyed: Vec<(u128, u32)> = known.map(|(&key, row)| (key, row)).collect();
    keyed.par_sort_unstable();
    let groups = keyed.par_chunk_by(|(left, _), (right, _)| left == right).filter(|group| group.len() > 1);
    let links = groups.flat_map_iter(|group| {
        let rows: Vec<u32> = group.iter().map(|&(_, row)| row).collect();
        let mut links = Vec::new();
        look(&rows, &mut links);
        links
    });
    links.collect()
}

/// Rows with the same content: the first of the training data and of the held-out data each stays, and training rows are
/// leaks where there is one of each.
fn same_contents(rows: &Rows) -> Vec<Link> {
    let from = rows.held_out_from();
    in_groups(rows.contents(), |group, links| {
        let (training, held_out) = group.split_at(group.partition_point(|&row| row < from));
        for part in [training, held_out] {
            if let [first, later @ ..] = part {
                links.extend(later.iter().map(|&row| Link { kind: FindingKind::Duplicates, row, other: *first }));
            }
        }
        if let Some(&other) = held_out.first() {
            links.extend(training.iter().map(|&row| Link { kind: FindingKind::Leaks, row, other }));
        }
    })
}

/// Rows with the same instruction, among those that are no duplicates: all but the first ask what was asked; where words of
/// answers differ, all are in conflict.
fn same_instructions(rows: &Rows) -> Vec<Link> {
    let from = rows.held_out_from();
    in_groups(rows.instructions(), |group, links| {
        let (training, held_out) = group.split_at(group.partition_point(|&row| row < from));
        for part in [training, held_out] {
            let part = part.iter().copied().filter(|&row| !rows.marks(row).has(FindingKind::Duplicates));
            let part: Vec<u32> = part.collect();
            let [first, later @ ..] = &part[..] else { continue };
            let asked_before = |&row: &u32| Link { kind: FindingKind::DuplicateInstructions, row, other: *first };
            links.extend(later.iter().map(asked_before));
            let contradicts_first = |row: u32| rows.answer(row) != rows.answer(*first);
            let Some(&contradiction) = later.iter().find(|&&row| contradicts_first(row)) else { continue };
            let other = |row| if contradicts_first(row) { *first } else { contradiction };
            links.extend(part.iter().map(|&row| Link { kind: FindingKind::Conflicts, row, other: other(row) }));
        }
    })
}

/// Of equal rows only the first is compared further; the others are what it is, or one would be left when it is dropped.
fn inherited(same: &[Link], of_first: &mut [Link]) -> Vec<Link> {
    of_first.par_sort_unstable_by_key(|link| link.row);
    let of = |first: u32| {
        let begin = of_first.partition_point(|link| link.row < first);
        of_first[begin..].iter().take_while(move |link| link.row == first)
    };
    let duplicates = same.iter().filter(|link| link.kind == FindingKind::Duplicates);
    duplicates.flat_map(|duplicate| of(duplicate.other).map(|link| Link { row: duplicate.row, ..*link })).collect()
}

#[cfg(test)]
#[path = "duplicates_tests.rs"]
mod tests;
