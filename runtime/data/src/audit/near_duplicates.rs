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

impl Pairs {
    fn append(mut self, mut other: Pairs) -> Pairs {
        self.within.append(&mut other.within);
        self.across.append(&mut other.across);
        self
    }

    /// Sorted; each pair within once, and of each training row the first held-out one: several bands find the same.
    fn distinct(mut self) -> Pairs {
        self.within.par_sort_unstable();
        self.within.dedup();
        self.across.par_sort_unstable();
        self.across.dedup_by_key(|&mut (row, _)| row);
        self
    }
}

/// Rows that are nearly an earlier one, and training rows that are nearly a held-out one. Rows that are marked as duplicates
/// are left out.
///
/// Memory beside that of the rows: 20 bytes a row for one band at a time, and 8 for each pair, of which a row has one in most
/// data and one for each band at most.
pub(super) fn compare(rows: &Rows) -> Vec<Link> {
    let compared = |&row: &u32| *rows.sketch(row) != Sketch::NONE && !rows.marks(row).has(FindingKind::Duplicates);
    let compared: Vec<u32> = (0..rows.count()).into_par_iter().filter(compared).collect();
    let mut all = Pairs::default();
    for band in 0..BANDS {
        let mut keyed: Vec<(u64, u32)> = compared.par_iter().map(|&row| (rows.sketch(row).band(band), row)).collect();
        keyed.par_sort_unstable();
        let groups = keyed.par_chunk_by(|(left, _), (right, _)| left == right).filter(|group| group.len() > 1);
        let found = groups.map(|group| pairs(rows, group)).reduce(Pairs::default, Pairs::append);
        all = all.append(found).distinct();
    }
    let near_leak = |(row, other)| Link { kind: FindingKind::NearLeaks, row, other };
    let mut links = first_ones(&all.within);
    links.extend(all.across.into_iter().map(near_leak));
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
    unlike(rows, training, &mut pairs.within);
    let unlike_held_out = unlike(rows, held_out, &mut pairs.within);
    // Those that are like an earlier one come last: a training row may be like these alone.
    let others = held_out.iter().map(|(_, row)| row).filter(|row| unlike_held_out.binary_search(row).is_err());
    let held_out: Vec<u32> = unlike_held_out.iter().chain(others).copied().take(COMPARED).collect();
    let compared = training.iter().map(|&(_, row)| row).filter(|&row| !rows.marks(row).has(FindingKind::Leaks));
    let leaks = compared.filter_map(|row| Some((row, *held_out.iter().find(|&&other| alike(rows, row, other))?)));
    pairs.across.extend(leaks);
    pairs
}

/// The rows that are like none of these before them, [`COMPARED`] at most; each of the others is paired with the first that it
/// is like.
fn unlike(rows: &Rows, part: &[(u64, u32)], pairs: &mut Vec<(u32, u32)>) -> Vec<u32> {
    let mut unlike: Vec<u32> = Vec::new();
    for &(_, row) in part {
        match unlike.iter().find(|&&other| alike(rows, row, other)) {
            Some(&other) => pairs.push((row, other)),
            None if unlike.len() < COMPARED => unlike.push(row),
            None => {}
        }
    }
    unlike
}

/// Of rows that are alike the first stays, and a row goes that is paired with one that stays. (One that is paired only with
/// rows that go does stay, though it may be like one that stays.)
fn first_ones(pairs: &[(u32, u32)]) -> Vec<Link> {
    let mut links: Vec<Link> = Vec::new();
    for group in pairs.chunk_by(|(left, _), (right, _)| left == right) {
        let goes = |other: u32| links.binary_search_by_key(&other, |link| link.row).is_ok();
        if let Some(&(row, other)) = group.iter().find(|&&(_, other)| !goes(other)) {
            links.push(Link { kind: FindingKind::NearDuplicates, row, other });
        }
    }
    links
}

#[cfg(test)]
#[path = "near_duplicates_tests.rs"]
mod tests;
