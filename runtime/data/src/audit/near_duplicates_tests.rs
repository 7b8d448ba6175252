//! Pairs whose similarity is counted by hand, and what stays of rows that are alike.

use super::super::said::{Identity, Words};
use super::*;
use crate::rows::Row;
use crate::source::Unit;

fn rows(training: &[String], held_out: &[String]) -> Rows {
    let mut rows = Rows::default();
    rows.begin_file("t.jsonl".into(), Unit::Line);
    let add = |rows: &mut Rows, texts: &[String]| {
        for (index, text) in texts.iter().enumerate() {
            let row = Row::Text(text.clone());
            rows.push(index as u64 + 1, Some(Identity::of(&row, &Words::of(&row)))).unwrap();
        }
    };
    add(&mut rows, training);
    rows.begin_held_out();
    rows.begin_file("h.jsonl".into(), Unit::Line);
    add(&mut rows, held_out);
    rows
}

/// `count` words of their own, all different.
fn words(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|index| format!("{name}{index}")).collect()
}

fn found(training: &[String], held_out: &[String]) -> Vec<(FindingKind, u32, u32)> {
    compare(&rows(training, held_out)).into_iter().map(|link| (link.kind, link.row, link.other)).collect()
}

/// A text of 60 different words has 58 shingles of three. Another word at the end changes one of them: 57 are in common, and
/// 59 are in either, so J = 57/59 = 0.966. Six other words, each more than two from the next and from the ends, change 18: 40
/// are in common, 76 in either, J = 40/76 = 0.526.
#[test]
fn a_pair_above_the_threshold_is_found_and_one_below_is_not() {
    let base = words("word", 60);
    let mut above = base.clone();
    above[59] = "other".into();
    let mut below = base.clone();
    for (index, place) in [5, 15, 25, 35, 45, 55].into_iter().enumerate() {
        below[place] = format!("other{index}");
    }
    let [base, above, below] = [base, above, below].map(|words| words.join(" "));
    let estimate = |left: &str, right: &str| {
        let rows = rows(&[left.to_owned(), right.to_owned()], &[]);
        rows.sketch(0).similarity(rows.sketch(1))
    };
    // Four standard deviations of the estimate.
    assert!((estimate(&base, &above) - 57.0 / 59.0).abs() < 4.0 * 0.016, "{}", estimate(&base, &above));
    assert!((estimate(&base, &below) - 40.0 / 76.0).abs() < 4.0 * 0.044, "{}", estimate(&base, &below));
    let near = FindingKind::NearDuplicates;
    assert_eq!(found(&[base.clone(), above.clone()], &[]), [(near, 1, 0)]);
    assert_eq!(found(&[base.clone(), below.clone()], &[]), []);
    // Case, punctuation and white space are no words.
    let same_words = format!("  {}!\n", base.to_uppercase().replace(' ', ",  "));
    assert_eq!(found(&[same_words, below, base], &[]), [(near, 2, 0)]);
}

#[test]
fn near_duplicates_across_the_two_data_sets_are_leaks() {
    let text = words("word", 60).join(" ");
    let (first, second) = (format!("{text} first"), format!("{text} second"));
    let unlike = words("unlike", 60).join(" ");
    let leaks = found(&[unlike.clone(), first], &[second.clone(), unlike]);
    assert_eq!(leaks, [(FindingKind::NearLeaks, 0, 3), (FindingKind::NearLeaks, 1, 2)]);
    assert_eq!(found(&[], &[second.clone(), second]), [(FindingKind::NearDuplicates, 1, 0)]);
}

/// However many training rows are nearly one held-out row, each is a leak.
#[test]
fn all_of_many_training_rows_are_leaks() {
    let text = words("word", 60).join(" ");
    let training: Vec<String> = (0..4 * COMPARED).map(|row| format!("{text} {row}")).collect();
    let rows = rows(&training, &[format!("{text} held out")]);
    let leaks = compare(&rows).into_iter().filter(|link| link.kind == FindingKind::NearLeaks);
    let told: Vec<(u32, u32)> = leaks.map(|link| (link.row, link.other)).collect();
    let all = 0..training.len() as u32;
    assert_eq!(told, all.map(|row| (row, training.len() as u32)).collect::<Vec<_>>());
}

/// Texts of 100, 116 and 135 words, each the beginning of the next: 98 of 114 shingles are in common, 114 of 133, and of the first
/// and the last 98 of 133, J = 0.860, 0.857 and 0.737. Of many such triples all leaks are found that comparing each pair finds.
#[test]
fn a_leak_may_be_like_a_later_one_of_held_out_rows_that_are_alike() {
    let triples: Vec<[String; 3]> = (0..600)
        .map(|triple| {
            let all = words(&format!("of{triple}word"), 135);
            [100, 116, 135].map(|count| all[..count].join(" "))
        })
        .collect();
    let training: Vec<String> = triples.iter().map(|[.., last]| last.clone()).collect();
    let held_out: Vec<String> = triples.iter().flat_map(|[first, second, _]| [first.clone(), second.clone()]).collect();
    let rows = rows(&training, &held_out);
    let count = training.len() as u32;
    let candidates = |left, right| (0..BANDS).any(|band| rows.sketch(left).band(band) == rows.sketch(right).band(band));
    let leaks =
        |&row: &u32| (0..2).map(|of| count + 2 * row + of).any(|of| candidates(row, of) && alike(&rows, row, of));
    let expected: Vec<u32> = (0..count).filter(leaks).collect();
    let links = compare(&rows).into_iter().filter(|link| link.kind == FindingKind::NearLeaks);
    assert_eq!(links.map(|link| link.row).collect::<Vec<_>>(), expected);
    assert!(expected.len() > 540, "{}", expected.len());
}

/// A text goes over into another, word by word: each is like the next few and unlike the last. Whatever goes is like one
/// that stays.
#[test]
fn what_goes_is_like_a_row_that_stays() {
    let texts: Vec<String> = (0..40)
        .map(|step| {
            let old = words("old", 80).into_iter().take(80 - 2 * step);
            let new = words("new", 80).into_iter().skip(80 - 2 * step);
            old.chain(new).collect::<Vec<_>>().join(" ")
        })
        .collect();
    let rows = rows(&texts, &[]);
    let links = compare(&rows);
    let gone: Vec<u32> = links.iter().map(|link| link.row).collect();
    assert!(gone.len() >= 20 && gone.len() <= 38, "{gone:?}");
    assert!(gone.windows(2).all(|pair| pair[0] < pair[1]), "each once, in order: {gone:?}");
    for link in &links {
        assert!(!gone.contains(&link.other) && link.other < link.row, "{link:?}");
        assert!(rows.sketch(link.row).similarity(rows.sketch(link.other)) >= NEARLY_THE_SAME, "{link:?}");
    }
}

/// Rows without words are not alike.
#[test]
fn rows_without_words_are_left_out() {
    assert_eq!(found(&["🙂".into(), "!".into(), String::new()], &["?".into()]), []);
}
