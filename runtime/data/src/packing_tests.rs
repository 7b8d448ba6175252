//! Packings worked out by hand with TRL's algorithm, and the properties of any packing.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::*;

const STRATEGIES: [PackingStrategy; 3] = [PackingStrategy::Bfd, PackingStrategy::BfdSplit, PackingStrategy::Wrapped];

/// Rows of these lengths whose tokens are numbered from 1 on; all of them are learned.
fn rows(lengths: &[u32]) -> TokenizedDataset {
    let mut dataset = TokenizedDataset::new();
    let mut next = 1;
    for (row, &length) in lengths.iter().enumerate() {
        let ids: Vec<u32> = (next..next + length).collect();
        dataset.push(row as u64 + 1, &ids, &ids.iter().map(|&id| id as i32).collect::<Vec<_>>());
        next += length;
    }
    dataset
}

fn packs(dataset: &TokenizedDataset, strategy: PackingStrategy, max_length: u32) -> Packs {
    Packs::new(dataset, Packing { strategy, max_length }).unwrap()
}

/// The ids of each piece of each pack.
fn tokens(dataset: &TokenizedDataset, packs: &Packs) -> Vec<Vec<Vec<u32>>> {
    let pieces = |pack: usize| packs.pieces(pack).iter().map(|piece| piece.of(dataset).0.to_vec()).collect();
    (0..packs.count()).map(pieces).collect()
}

/// The lengths of the rows, the tokens of a pack, the strategy, and the ids of each piece of each pack.
type Case = (&'static [u32], u32, PackingStrategy, &'static [&'static [&'static [u32]]]);

/// What each strategy makes of them: the examples of TRL's documentation
/// and tests, and a tie. (TRL attends across documents in `wrapped`; where it cuts is the same.)
#[test]
fn small_cases_are_packed_as_trl_does() {
    use PackingStrategy::{Bfd, BfdSplit, Wrapped};
    let table: [Case; 9] = [
        (&[3, 4, 1], 4, Bfd, &[&[&[4, 5, 6, 7]], &[&[1, 2, 3], &[8]]]),
        (&[5, 2, 3, 1], 4, Bfd, &[&[&[1, 2, 3, 4]], &[&[8, 9, 10], &[11]], &[&[6, 7]]]),
        (&[5, 2, 3, 1], 4, BfdSplit, &[&[&[1, 2, 3, 4]], &[&[8, 9, 10], &[5]], &[&[6, 7], &[11]]]),
        (&[5, 2, 4, 1], 4, BfdSplit, &[&[&[1, 2, 3, 4]], &[&[8, 9, 10, 11]], &[&[6, 7], &[5], &[12]]]),
        (&[5, 1, 4, 3], 5, BfdSplit, &[&[&[1, 2, 3, 4, 5]], &[&[7, 8, 9, 10], &[6]], &[&[11, 12, 13]]]),
        (
            &[6, 3, 3, 4],
            4,
            BfdSplit,
            &[&[&[1, 2, 3, 4]], &[&[13, 14, 15, 16]], &[&[7, 8, 9]], &[&[10, 11, 12]], &[&[5, 6]]],
        ),
        // 5, 4 and 3 open a pack each; the room left is 1, 2 and 3. The first 2 fits best behind the 4, the second behind the
        // 3, which leaves 1 as behind the 5: that pack was at 1 first.
        (
            &[2, 3, 1, 4, 2, 5],
            6,
            Bfd,
            &[&[&[13, 14, 15, 16, 17], &[6]], &[&[7, 8, 9, 10], &[1, 2]], &[&[3, 4, 5], &[11, 12]]],
        ),
        (&[3, 4, 2], 4, Wrapped, &[&[&[1, 2, 3], &[4]], &[&[5, 6, 7], &[8]]]),
        (&[9, 3], 5, Wrapped, &[&[&[1, 2, 3, 4, 5]], &[&[6, 7, 8, 9], &[10]], &[&[11, 12]]]),
    ];
    for (lengths, max_length, strategy, expected) in table {
        let dataset = rows(lengths);
        let found = tokens(&dataset, &packs(&dataset, strategy, max_length));
        // A last pack of one token has nothing to learn.
        assert_eq!(found, expected, "{lengths:?} in packs of {max_length} by {strategy:?}");
    }
}

/// 10,000 rows, most of them short, as chats are.
#[test]
fn no_token_is_lost_or_doubled_and_no_pack_too_long() {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    for max_length in [64, 100, 1024] {
        let lengths: Vec<u32> = (0..10_000)
            .map(|_| {
                let longest = [20, 90, 400, 3000][(random.next_u32() % 4) as usize];
                2 + random.next_u32() % longest
            })
            .collect();
        let dataset = rows(&lengths);
        for strategy in STRATEGIES {
            let name = format!("{strategy:?}, packs of {max_length}");
            let packs = packs(&dataset, strategy, max_length);
            assert_eq!(packs, self::packs(&dataset, strategy, max_length), "{name}: packed twice");
            // How often each token came.
            let mut seen = vec![0u8; dataset.tokens()];
            let mut total = 0;
            for pack in 0..packs.count() {
                let length: u32 = packs.pieces(pack).iter().map(|piece| piece.length).sum();
                assert!((1..=max_length).contains(&length), "{name}: pack {pack} has {length} tokens");
                for piece in packs.pieces(pack) {
                    assert!(piece.first + piece.length <= lengths[piece.row as usize], "{name}: {piece:?}");
                    piece.of(&dataset).0.iter().for_each(|&id| seen[id as usize - 1] += 1);
                    total += u64::from(piece.length);
                }
            }
            assert_eq!(packs.tokens(), total, "{name}");
            // A single token at the end of all rows is a pack in which nothing is learned.
            let alone = strategy == PackingStrategy::Wrapped && dataset.tokens() % max_length as usize == 1;
            let mut wrong = 0;
            for row in 0..dataset.rows() {
                // Rows longer than a pack are cut before, where they are to stay whole.
                let cut = if strategy == PackingStrategy::Bfd { max_length as usize } else { usize::MAX };
                let ids = dataset.row(row).0.iter().enumerate();
                wrong += ids.filter(|&(at, &id)| seen[id as usize - 1] != u8::from(at < cut)).count();
            }
            assert_eq!(wrong, usize::from(alone), "{name}: tokens are lost or doubled");
            assert_eq!(packs.left_out(), usize::from(alone), "{name}: all of it is learned");
            let full = total as f64 / (packs.count() as f64 * f64::from(max_length));
            assert!(full > 0.98, "{name}: only {full:.3} full");
        }
    }
}

#[test]
fn packs_without_anything_to_learn_are_left_out() {
    let mut dataset = TokenizedDataset::new();
    // The answer is in the last piece of 4.
    let labels = [&[IGNORED; 9][..], &[10]].concat();
    dataset.push(1, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], &labels);
    dataset.push(2, &[11, 12, 13, 14], &[IGNORED, 12, 13, 14]);
    let split = packs(&dataset, PackingStrategy::BfdSplit, 4);
    assert_eq!(tokens(&dataset, &split), [vec![vec![11, 12, 13, 14]], vec![vec![9, 10]]]);
    assert_eq!(split.left_out(), 2);
    let wrapped = packs(&dataset, PackingStrategy::Wrapped, 4);
    assert_eq!(tokens(&dataset, &wrapped), [vec![vec![9, 10], vec![11, 12]], vec![vec![13, 14]]]);
    assert_eq!(wrapped.left_out(), 2);
}

#[test]
fn packs_that_cannot_be_are_refused() {
    let dataset = rows(&[3, 4]);
    let error = |dataset: &TokenizedDataset, strategy, max_length| {
        Packs::new(dataset, Packing { strategy, max_length }).unwrap_err().to_string()
    };
    assert!(error(&dataset, PackingStrategy::Bfd, 0).contains("packs of 0 tokens"));
    let nothing = error(&dataset, PackingStrategy::Wrapped, 1);
    assert!(nothing.contains("nothing in 7 packs of 1 tokens is supervised\nhint: "), "{nothing}");
}

/// Rows of several sources.
fn of_sources(lengths: &[u32], sources: &[usize]) -> TokenizedDataset {
    TokenizedDataset { sources: sources.to_vec(), ..rows(lengths) }
}

#[test]
fn a_pack_has_rows_of_one_source() {
    for strategy in STRATEGIES {
        // Together they would fill two packs of 4.
        let dataset = of_sources(&[3, 1, 1, 3], &[1, 3]);
        let packs = packs(&dataset, strategy, 4);
        assert_eq!(packs.sources().iter().sum::<usize>(), packs.count());
        let source = |pack: usize| usize::from(pack >= packs.sources()[0]);
        for pack in 0..packs.count() {
            let of_pack = packs.pieces(pack);
            assert!(
                of_pack.iter().all(|piece| usize::from(piece.row >= 1) == source(pack)),
                "{strategy:?}: {of_pack:?}"
            );
        }
        // Wrapped, the last token is alone in a pack, where nothing predicts it.
        let expected = if strategy == PackingStrategy::Wrapped { ([1, 1], 7) } else { ([1, 2], 8) };
        assert_eq!((packs.sources(), packs.tokens()), (&expected.0[..], expected.1), "{strategy:?}");
    }
}

#[test]
fn a_source_may_have_no_pack() {
    // Nothing of the second row's pieces but the last is learned, and of the first source nothing at all.
    let mut dataset = TokenizedDataset::new();
    dataset.push(1, &[1, 2, 3, 4, 5], &[-100, -100, -100, -100, 5]);
    dataset.push(2, &[6, 7], &[6, 7]);
    dataset.sources = vec![1, 1];
    let packs = packs(&dataset, PackingStrategy::Bfd, 4);
    // The whole row counts as learned only where it is whole.
    assert_eq!((packs.sources(), packs.left_out()), (&[0, 1][..], 1));
}
