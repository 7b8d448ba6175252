//! Rows that are the same, instructions that are, and answers that then are not.

use std::collections::HashMap;

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
    let near = near_duplicates::compare(rows);
    let instructions = same_instructions(rows);
    let leaks = leaks_of_duplicates(rows, &links, &near);
    for found in [near, instructions, leaks] {
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
            let mut part = part.iter().copied().filter(|&row| !rows.marks(row).has(FindingKind::Duplicates));
            let Some(first) = part.next() else { continue };
            let mut contradicts_first = None;
            for row in part {
                links.push(Link { kind: FindingKind::DuplicateInstructions, row, other: first });
                if rows.answer(row) != rows.answer(first) {
                    contradicts_first.get_or_insert(row);
                    links.push(Link { kind: FindingKind::Conflicts, row, other: first });
                } else if let Some(other) = contradicts_first {
                    links.push(Link { kind: FindingKind::Conflicts, row, other });
                }
            }
            if let Some(other) = contradicts_first {
                links.push(Link { kind: FindingKind::Conflicts, row: first, other });
            }
        }
    })
}

/// Only the first of equal rows is compared for being nearly held out; the others are what it is.
fn leaks_of_duplicates(rows: &Rows, same: &[Link], near: &[Link]) -> Vec<Link> {
    let leaks = near.iter().filter(|link| link.kind == FindingKind::NearLeaks);
    let leaks: HashMap<u32, u32> = leaks.map(|link| (link.row, link.other)).collect();
    let from = rows.held_out_from();
    let duplicates = same.iter().filter(|link| link.kind == FindingKind::Duplicates && link.row < from);
    let of_first = |link: &Link| {
        let other = *leaks.get(&link.other)?;
        Some(Link { kind: FindingKind::NearLeaks, row: link.row, other })
    };
    duplicates.filter_map(of_first).collect()
}
