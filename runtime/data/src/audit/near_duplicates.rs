//! Rows that are nearly the same: candidates by the bands of their sketches, judged by the whole sketches.

use rayon::prelude::*;

use super::NEARLY_THE_SAME;
use super::duplicates::Link;
use super::kind::FindingKind;
use super::rows::Rows;
use super::sketch::{BANDS, Sketch};

/// A row is compared with at most so many others that have the same band: where many rows of one make are alike by less than
/// the threshold, comparing all would take for ever.
const COMPARED: usize = 128;

/// What a band finds.
#[derive(Default)]
struct Pairs {
    /// A row and an earlier one, both of the training data or both held out.
    within: Vec<(u32, u32)>,
    /// A training row and a held-out one.
    across: Vec<(u32, u32)>,
}

/// Rows that are nearly an earlier one, and training rows that are nearly a held-out one. Rows that are marked as duplicates
/// are left out.
///
/// Memory beside that of the rows is one band's at a time: 16 bytes a row.
pub(super) fn compare(rows: &Rows) -> Vec<Link> {
    let compared = |&row: &u32| *rows.sketch(row) != Sketch::NONE && !rows.marks(row).has(FindingKind::Duplicates);
    let compared: Vec<u32> = (0..rows.count()).into_par_iter().filter(compared).collect();
    let mut all = Pairs::default();
    for band in 0..BANDS {
        let mut keyed: Vec<(u64, u32)> = compared.par_iter().map(|&row| (rows.sketch(row).band(band), row)).collect();
        keyed.par_sort_unstable();
        let groups = keyed.par_chunk_by(|(left, _), (right, _)| left == right).filter(|group| group.len() > 1);
        let found = groups.map(|group| pairs(rows, group)).reduce(Pairs::default, |mut left, mut right| {
            left.within.append(&mut right.within);
            left.across.append(&mut right.across);
            left
        });
        all.within.extend(found.within);
        all.across.extend(found.across);
    }
    let mut links = first_ones(all.within);
    links.extend(leaks(rows, all.across));
    links
}

fn alike(rows: &Rows, left: u32, right: u32) -> bool {
    rows.sketch(left).similarity(rows.sketch(right)) >= NEARLY_THE_SAME
}

/// The pairs of a group of rows with the same band, which come in their order.
fn pairs(rows: &Rows, group: &[(u64, u32)]) -> Pairs {
    let from = rows.held_out_from();
    let (training, held_out) = group.split_at(group.partition_point(|&(_, row)| row < from));
    let mut pairs = Pairs::default();
    for part in [training, held_out] {
        // Those that are like none before them.
        let mut first: Vec<u32> = Vec::new();
        for &(_, row) in part {
            match first.iter().find(|&&other| alike(rows, row, other)) {
                Some(&other) => pairs.within.push((row, other)),
                None if first.len() < COMPARED => first.push(row),
                None => {}
            }
        }
    }
    for &(_, held_out) in held_out {
        let near = training.iter().take(COMPARED).filter(|&&(_, row)| alike(rows, row, held_out));
        pairs.across.extend(near.map(|&(_, row)| (row, held_out)));
    }
    pairs
}

/// Of rows that are alike the first stays, and whatever is like a row that stays does not. (What is only like a row that
/// goes does stay.)
fn first_ones(mut pairs: Vec<(u32, u32)>) -> Vec<Link> {
    pairs.par_sort_unstable();
    pairs.dedup();
    let mut links: Vec<Link> = Vec::new();
    for group in pairs.chunk_by(|(left, _), (right, _)| left == right) {
        let goes = |other: u32| links.binary_search_by_key(&other, |link| link.row).is_ok();
        if let Some(&(row, other)) = group.iter().find(|&&(_, other)| !goes(other)) {
            links.push(Link { kind: FindingKind::NearDuplicates, row, other });
        }
    }
    links
}

/// The first held-out row of each training row, unless that is held out to the letter.
fn leaks(rows: &Rows, mut pairs: Vec<(u32, u32)>) -> Vec<Link> {
    pairs.par_sort_unstable();
    pairs.dedup_by_key(|&mut (row, _)| row);
    pairs.retain(|&(row, _)| !rows.marks(row).has(FindingKind::Leaks));
    pairs.into_iter().map(|(row, other)| Link { kind: FindingKind::NearLeaks, row, other }).collect()
}

#[cfg(test)]
#[path = "near_duplicates_tests.rs"]
mod tests;
