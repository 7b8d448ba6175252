use std::collections::BTreeMap;

use super::*;

fn mixture(sources: &[usize], weights: &[f64], stopping: Stopping) -> Mixture {
    Mixture::new(sources, &Mixing { shares: Shares::Weights(weights.to_vec()), stopping }).unwrap()
}

/// Sizes of sources, their weights, the end of an epoch, and what it takes.
type Case = (&'static [usize], &'static [f64], Stopping, &'static [u32]);

#[test]
fn an_epoch_ends_with_the_first_source_or_with_all() {
    let table: [Case; 7] = [
        (&[1000, 1_000_000], &[0.9, 0.1], Stopping::FirstExhausted, &[1000, 111]),
        (&[1000, 50], &[0.9, 0.1], Stopping::FirstExhausted, &[450, 50]),
        (&[1000, 50], &[0.9, 0.1], Stopping::AllExhausted, &[1000, 111]),
        (&[10, 10, 10], &[1.0, 1.0, 1.0], Stopping::FirstExhausted, &[10, 10, 10]),
        // Only what weights are to each other counts.
        (&[1000, 50], &[90.0, 10.0], Stopping::FirstExhausted, &[450, 50]),
        // At least one of each.
        (&[10, 10], &[1000.0, 1.0], Stopping::FirstExhausted, &[10, 1]),
        (&[10, 3], &[1.0, 1.0], Stopping::AllExhausted, &[10, 10]),
    ];
    for (sources, weights, stopping, taken) in table {
        let mixture = mixture(sources, weights, stopping);
        assert_eq!(mixture.taken(), taken, "{sources:?} {weights:?} {stopping:?}");
        assert_eq!(mixture.length(), taken.iter().map(|&taken| u64::from(taken)).sum::<u64>());
    }
}

#[test]
fn a_temperature_makes_sources_more_alike() {
    let taken = |temperature| {
        let mixing = Mixing { shares: Shares::Temperature(temperature), stopping: Stopping::AllExhausted };
        Mixture::new(&[900, 100], &mixing).unwrap().taken().to_vec()
    };
    // Shares by hand: 900^(1/T) to 100^(1/T) is 9, 3 and nearly 1.
    assert_eq!(taken(1.0), [900, 100]);
    assert_eq!(taken(2.0), [900, 300]);
    assert_eq!(taken(1e9), [900, 900]);
}

#[test]
fn what_cannot_be_mixed_is_refused() {
    let fault = |sources: &[usize], weights: &[f64], stopping| {
        let mixing = Mixing { shares: Shares::Weights(weights.to_vec()), stopping };
        Mixture::new(sources, &mixing).unwrap_err().to_string()
    };
    assert!(fault(&[3, 0], &[1.0, 1.0], Stopping::FirstExhausted).contains("source 2 of 2"));
    for weights in [&[1.0][..], &[1.0, 0.0], &[1.0, -1.0], &[1.0, f64::NAN], &[1.0, f64::INFINITY]] {
        assert!(fault(&[3, 3], weights, Stopping::FirstExhausted).contains("of 2 sources"), "{weights:?}");
    }
    assert!(fault(&[10, 10], &[1.0, 1e-3], Stopping::AllExhausted).contains("an epoch of 10010 items"));
    let cold = Mixing { shares: Shares::Temperature(1e-3), stopping: Stopping::FirstExhausted };
    let told = Mixture::new(&[1000, 10], &cold).unwrap_err().to_string();
    assert!(told.contains("mixing_temperature 0.001") && told.contains("hint: raise it"), "{told}");
}

#[test]
fn a_permutation_has_every_number_once_and_mixes_them() {
    for size in [1, 2, 3, 4, 5, 16, 17, 1000, 1025] {
        let permutation = Permutation::new(size, 7, 1);
        let mut numbers: Vec<u32> = (0..size).map(|place| permutation.at(place)).collect();
        if size >= 1000 {
            // Of a random one, one number in all stays where it is, and the mean step is a third of the size.
            let stays = numbers.iter().enumerate().filter(|(place, number)| *place as u32 == **number).count();
            let steps = numbers.windows(2).map(|pair| f64::from(pair[0].abs_diff(pair[1]))).sum::<f64>();
            let mean = steps / f64::from(size - 1) / f64::from(size);
            assert!(stays < 8 && (0.30..0.37).contains(&mean), "{size}: {stays} stay, mean step {mean}");
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..size).collect::<Vec<_>>());
    }
    let order = |seed, source| (0..100).map(|place| Permutation::new(100, seed, source).at(place)).collect::<Vec<_>>();
    assert!(order(1, 0) != order(2, 0) && order(1, 0) != order(1, 1));
    let large = Permutation::new(u32::MAX, 3, 0);
    assert!((0..1000).all(|place| large.at(place) < u32::MAX));
}

#[test]
fn no_row_comes_twice_in_an_epoch_that_does_not_use_up_its_source() {
    // 7 of 10 rows: every other epoch goes over the end.
    let mixture = mixture(&[10, 7], &[1.0, 1.0], Stopping::FirstExhausted);
    assert_eq!(mixture.taken(), [7, 7]);
    for (epoch, seed) in (0..20).flat_map(|epoch| [(epoch, None), (epoch, Some(5)), (epoch, Some(6))]) {
        let mut order = mixture.epoch(epoch, seed);
        order.sort_unstable();
        let all = order.len();
        order.dedup();
        assert_eq!(order.len(), all, "epoch {epoch} of seed {seed:?}");
    }
}

#[test]
fn sources_are_gone_through_evenly_over_the_epochs() {
    let mixture = mixture(&[7, 40], &[1.0, 0.5], Stopping::FirstExhausted);
    assert_eq!(mixture.taken(), [7, 4]);
    for seed in [None, Some(1), Some(2)] {
        let mut seen: BTreeMap<u32, usize> = BTreeMap::new();
        for epoch in 0..10 {
            let order = mixture.epoch(epoch, seed);
            assert_eq!(order.len(), 11);
            assert_eq!(order.iter().filter(|&&item| item < 7).count(), 7, "each epoch has the small source once");
            order.into_iter().for_each(|item| *seen.entry(item).or_default() += 1);
        }
        assert_eq!(seen.len(), 47, "ten epochs have all of the large source");
        assert!((7..47).all(|item| seen[&item] == 1) && (0..7).all(|item| seen[&item] == 10), "{seen:?}");
    }
}

#[test]
fn a_small_source_comes_as_often_as_any_other_of_its_rows() {
    let mixture = mixture(&[3, 20], &[0.5, 0.5], Stopping::AllExhausted);
    let mut seen = [0; 3];
    for epoch in 0..3 {
        for item in mixture.epoch(epoch, Some(9)) {
            if item < 3 {
                seen[item as usize] += 1;
            }
        }
    }
    assert_eq!(seen, [20, 20, 20]);
}

#[test]
fn the_order_follows_from_seed_and_epoch() {
    let mixture = mixture(&[50, 50], &[1.0, 1.0], Stopping::FirstExhausted);
    assert_eq!(mixture.epoch(3, Some(7)), mixture.epoch(3, Some(7)));
    assert_ne!(mixture.epoch(3, Some(7)), mixture.epoch(4, Some(7)));
    assert_ne!(mixture.epoch(3, Some(7)), mixture.epoch(3, Some(8)));
}

#[test]
fn in_sequence_each_source_keeps_its_order_and_its_share_of_every_beginning() {
    let mixture = mixture(&[8, 100], &[2.0, 1.0], Stopping::FirstExhausted);
    assert_eq!(mixture.taken(), [8, 4]);
    assert_eq!(mixture.epoch(0, None), [0, 8, 1, 2, 9, 3, 4, 10, 5, 6, 11, 7]);
    assert_eq!(mixture.epoch(1, None), [0, 12, 1, 2, 13, 3, 4, 14, 5, 6, 15, 7]);
}
