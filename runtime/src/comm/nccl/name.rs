//! Lists of ranks as short names.

/// A name that no other list of ranks has. Ranks in a row, or at the same distance, are told by the first of them, their distance
/// and their number: written out, those of a large job would be longer than a key of the store may be.
pub(super) fn short(ranks: &[usize]) -> String {
    let mut parts = Vec::new();
    let mut rest = ranks;
    while let [first, others @ ..] = rest {
        let distance = |pair: &[usize]| pair[1] as i64 - pair[0] as i64;
        let step = rest.windows(2).next().map_or(1, distance);
        let count = 1 + rest.windows(2).take_while(|pair| distance(pair) == step).count();
        rest = if count > 2 { &rest[count..] } else { others };
        parts.push(if count > 2 { format!("{first}+{step}x{count}") } else { first.to_string() });
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_groups_have_short_names_and_different_groups_different_ones() {
        let cases = [
            ((0..4096).collect(), "0+1x4096"),
            ((5..4096).step_by(8).collect(), "5+8x512"),
            (vec![0, 1], "0,1"),
            (vec![3], "3"),
            (vec![], ""),
            (vec![0, 1, 2, 3, 8, 9, 10, 11, 13], "0+1x4,8+1x4,13"),
            (vec![2, 1, 0, 5, 4], "2+-1x3,5,4"),
            (vec![0, 2, 3, 4], "0,2+1x3"),
        ];
        for (ranks, expected) in cases {
            assert_eq!(short(&ranks), expected, "{ranks:?}");
        }
    }
}
