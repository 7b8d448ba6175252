use std::collections::BTreeMap;

use super::*;

fn mixture(sources: &[usize], weights: &[f64], stopping: Stopping) -> Mixture {
    Mixture::new(sources, &Mixing { shares: Shares::Weights(weights.to_vec()), stopping }).unwrap()
}

#[test]
fn an_epoch_ends_with_the_first_source_or_with_all() {
    let table: [(&[usize], &[f64], Stopping, &[u32]); 7] = [
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
    assert!(fault(&[10, 10], &[1.0, 1e-12], Stopping::AllExhausted).contains("an epoch of"));
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
