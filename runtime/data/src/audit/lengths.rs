//! How long rows are, and what a limit cuts off.

use rayon::prelude::*;
use serde::Serialize;

/// In what lengths are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthUnit {
    /// Tokens, before anything is cut.
    Tokens,
    /// Words, where there is no tokenizer.
    Words,
}

/// The lengths of all rows that could be read and encoded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lengths {
    /// In what they are counted.
    pub unit: LengthUnit,
    /// Rows that have a length.
    pub rows: u64,
    /// Of all rows together.
    pub total: u64,
    /// Half of the rows are at most so long; the others likewise. Nearest-rank percentiles: lengths that rows have.
    pub half: u64,
    /// 90 % of the rows are at most so long.
    pub percent_90: u64,
    /// 99 % of the rows are at most so long.
    pub percent_99: u64,
    /// The longest row's.
    pub longest: u64,
    /// How many rows are how long, without gaps; from the shortest to the longest.
    pub histogram: Vec<LengthBar>,
}

/// Rows whose lengths are between a power of two and the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LengthBar {
    /// The least length.
    pub from: u64,
    /// The greatest length.
    pub to: u64,
    /// How many rows.
    pub rows: u64,
}

/// What `max_length` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Truncation {
    /// The limit, in tokens.
    pub max_length: u32,
    /// Rows that are longer.
    pub rows: u64,
    /// Tokens beyond it.
    pub tokens: u64,
    /// Of these, tokens that would be learned.
    pub supervised_tokens: u64,
}

impl Lengths {
    pub(super) fn of(unit: LengthUnit, mut lengths: Vec<u32>) -> Lengths {
        lengths.par_sort_unstable();
        let count = lengths.len();
        // The nearest rank: the least length that so many per cent of the rows do not exceed.
        let percentile = |percent: usize| {
            let rank = (count * percent).div_ceil(100).max(1);
            lengths.get(rank - 1).map_or(0, |&length| u64::from(length))
        };
        let bin = |length: u32| (u32::BITS - length.leading_zeros()) as usize;
        let mut bins = [0u64; 33];
        lengths.iter().for_each(|&length| bins[bin(length)] += 1);
        let ends = lengths.first().zip(lengths.last());
        let occupied = ends.map_or(0..0, |(&first, &last)| bin(first)..bin(last) + 1);
        let bar = |bin: usize| match bin {
            0 => LengthBar { from: 0, to: 0, rows: bins[0] },
            _ => LengthBar { from: 1 << (bin - 1), to: (1 << bin) - 1, rows: bins[bin] },
        };
        Lengths {
            unit,
            rows: count as u64,
            total: lengths.iter().map(|&length| u64::from(length)).sum(),
            half: percentile(50),
            percent_90: percentile(90),
            percent_99: percentile(99),
            longest: percentile(100),
            histogram: occupied.map(bar).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_lengths_that_rows_have() {
        let lengths = Lengths::of(LengthUnit::Tokens, (1..=200).rev().collect());
        let told = (lengths.half, lengths.percent_90, lengths.percent_99, lengths.longest);
        assert_eq!((lengths.rows, lengths.total, told), (200, 20_100, (100, 180, 198, 200)));
        let one = Lengths::of(LengthUnit::Words, vec![7]);
        assert_eq!((one.half, one.percent_99, one.longest), (7, 7, 7));
        let none = Lengths::of(LengthUnit::Words, Vec::new());
        assert_eq!((none.rows, none.half, none.longest, none.histogram.len()), (0, 0, 0, 0));
    }

    #[test]
    fn bars_go_from_power_to_power() {
        let bars = Lengths::of(LengthUnit::Tokens, vec![5, 4, 7, 8, 40, 0, u32::MAX]).histogram;
        let rows = |from: u64| bars.iter().find(|bar| bar.from == from).map(|bar| (bar.to, bar.rows));
        assert_eq!([rows(0), rows(4), rows(8)], [Some((0, 1)), Some((7, 3)), Some((15, 1))]);
        assert_eq!([rows(16), rows(32), rows(1 << 31)], [Some((31, 0)), Some((63, 1)), Some((u64::from(u32::MAX), 1))]);
        assert_eq!(bars.len(), 33);
        let bars = Lengths::of(LengthUnit::Tokens, vec![100, 20]).histogram;
        assert_eq!(bars.iter().map(|bar| (bar.from, bar.rows)).collect::<Vec<_>>(), [(16, 1), (32, 0), (64, 1)]);
    }
}
