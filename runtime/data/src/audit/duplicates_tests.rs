//! What is told of rows that are equal, or that answer the same.

use super::super::said::{Identity, Words};
use super::*;
use crate::rows::Row;
use crate::source::Unit;

/// Prompts and their completions.
fn told(kind: FindingKind, training: &[(&str, &str)], held_out: &[(&str, &str)]) -> Vec<(u32, u32)> {
    let mut rows = Rows::default();
    rows.begin_file("t.jsonl".into(), Unit::Line);
    for (index, (prompt, completion)) in training.iter().chain(held_out).enumerate() {
        if index == training.len() {
            rows.begin_held_out();
        }
        let row = Row::Completion { prompt: (*prompt).into(), completion: (*completion).into() };
        rows.push(index as u64 + 1, Some(Identity::of(&row, &Words::of(&row)))).unwrap();
    }
    let links = compare(&mut rows);
    let marked: Vec<u32> = (0..rows.count()).filter(|&row| rows.marks(row).has(kind)).collect();
    let told: Vec<(u32, u32)> =
        links.iter().filter(|link| link.kind == kind).map(|link| (link.row, link.other)).collect();
    assert_eq!(told.iter().map(|(row, _)| *row).collect::<Vec<_>>(), marked, "each row is told of once, in order");
    told
}

const QUESTION: &str = "Is it so?";
const SIXTY_WORDS: &str = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen \
    seventeen eighteen nineteen twenty a b c d e f g h i j k l m n o p q r s t u v w x y z red orange yellow green blue indigo \
    violet black white grey pink brown cyan magenta";

/// Whatever the order, each of the rows has one that contradicts it.
#[test]
fn all_rows_of_a_conflict_are_told() {
    let [yes, again, no] = ["Yes", "yes", "No"].map(|answer| (QUESTION, answer));
    assert_eq!(told(FindingKind::Conflicts, &[yes, again, no], &[]), [(0, 2), (1, 2), (2, 0)]);
    assert_eq!(told(FindingKind::Conflicts, &[yes, no, again], &[]), [(0, 1), (1, 0), (2, 1)]);
    assert_eq!(told(FindingKind::Conflicts, &[no, yes, again], &[]), [(0, 1), (1, 0), (2, 0)]);
    assert_eq!(told(FindingKind::Conflicts, &[yes, again], &[no]), [], "what is held out is compared for leaks alone");
}

/// Else a copy without the rows that are told of would have their duplicates.
#[test]
fn duplicates_are_what_their_first_row_is() {
    let [yes, no] = ["Yes", "No"].map(|answer| (QUESTION, answer));
    assert_eq!(told(FindingKind::Conflicts, &[yes, yes, no], &[]), [(0, 2), (1, 2), (2, 0)]);
    assert_eq!(told(FindingKind::DuplicateInstructions, &[yes, yes, no, no], &[]), [(2, 0), (3, 0)]);
    let near = format!("{SIXTY_WORDS} more");
    let [first, near] = [SIXTY_WORDS, &near].map(|answer| ("Count.", answer));
    assert_eq!(told(FindingKind::NearDuplicates, &[first, near, near, first], &[]), [(1, 0), (2, 0)]);
    assert_eq!(told(FindingKind::NearLeaks, &[near, near], &[first]), [(0, 2), (1, 2)]);
    assert_eq!(told(FindingKind::Leaks, &[near, near], &[near]), [(0, 2), (1, 2)]);
}
