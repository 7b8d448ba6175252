//! Which parameter an element of a checkpoint's file belongs to, and which files a parameter lies in.

use crate::manifest::{FileEntry, Manifest, TensorRange};
use crate::units::{FISHER, STATES, SavedParameter, SavedUnit};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The places of a manifest's parameters.
#[derive(Debug)]
pub struct Places<'a> {
    /// Each stored whole, such as `layer 3/master`: the unit, and which state of it.
    wholes: BTreeMap<String, (&'a SavedUnit, &'static str)>,
    /// The pieces of each whole, and the files that they lie in.
    pieces: BTreeMap<&'a str, Vec<(Range<u64>, &'a str)>>,
}

/// An element of a parameter's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The parameter; `None` in the padding between parameters.
    pub parameter: Option<&'a SavedParameter>,
    /// The unit.
    pub unit: &'a SavedUnit,
    /// Which of [`STATES`], or [`FISHER`].
    pub state: &'static str,
    /// The element, counted in the parameter, in padding from the unit's first.
    pub element: u64,
}

impl<'a> Places<'a> {
    /// The places of a manifest that was assembled or read.
    pub fn of(manifest: &'a Manifest) -> Self {
        let states = || STATES.into_iter().chain([FISHER]);
        let unit = |unit: &'a SavedUnit| states().map(move |state| (unit.whole(state), (unit, state)));
        let mut pieces = BTreeMap::<&str, Vec<_>>::new();
        for file in &manifest.files {
            for TensorRange { whole, begin, end, .. } in &file.tensors {
                pieces.entry(whole).or_default().push((*begin..*end, file.name.as_str()));
            }
        }
        Places { wholes: manifest.units.iter().flat_map(unit).collect(), pieces }
    }

    /// The parameters some of whose elements lie in these ranges, in the order of the manifest.
    pub fn parameters_in(&self, ranges: impl IntoIterator<Item = &'a TensorRange>) -> Vec<&'a str> {
        let (mut told, mut parameters) = (BTreeSet::new(), Vec::new());
        for range in ranges {
            let Some((unit, _)) = self.wholes.get(&range.whole) else { continue };
            for parameter in &unit.parameters {
                let overlaps = overlap(&elements(parameter), &(range.begin..range.end));
                if overlaps && told.insert(&parameter.name) {
                    parameters.push(parameter.name.as_str());
                }
            }
        }
        parameters
    }

    /// The parameters some of whose elements lie in a file.
    pub fn parameters_in_file(&self, file: &'a FileEntry) -> Vec<&'a str> {
        self.parameters_in(&file.tensors)
    }

    /// The files that a parameter of a unit lies in.
    pub fn files_of(&self, unit: &SavedUnit, parameter: &SavedParameter) -> Vec<&'a str> {
        let mut files = BTreeSet::new();
        for state in STATES {
            let pieces = self.pieces.get(unit.whole(state).as_str()).into_iter().flatten();
            files.extend(pieces.filter(|(piece, _)| overlap(&elements(parameter), piece)).map(|(_, file)| *file));
        }
        files.into_iter().collect()
    }

    /// What an element of a stored range is.
    pub fn find(&self, range: &TensorRange, element: u64) -> Option<Place<'a>> {
        let &(unit, state) = self.wholes.get(&range.whole)?;
        let element = range.begin.checked_add(element)?;
        let parameter = unit.parameters.iter().find(|parameter| elements(parameter).contains(&element));
        let element = parameter.map_or(element, |parameter| element - parameter.begin);
        Some(Place { parameter, unit, state, element })
    }
}

fn elements(parameter: &SavedParameter) -> Range<u64> {
    parameter.begin..parameter.begin.saturating_add(parameter.elements().unwrap_or(0))
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start.max(other.start) < one.end.min(other.end)
}

/// Where element `element` of a tensor stands, in words: `element 7 ([1, 3])`.
pub fn element_words(element: u64, shape: &[u64]) -> String {
    let (mut rest, mut index) = (element, vec![0; shape.len()]);
    for (place, &size) in index.iter_mut().zip(shape).rev() {
        (*place, rest) = (rest % size.max(1), rest / size.max(1));
    }
    match shape.len() {
        0 | 1 => format!("element {element}"),
        _ => format!("element {element} ({index:?})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::part;

    /// Two ranks of four elements: `bias` is element 0, `weight` 1 to 6, the last is padding.
    #[test]
    fn files_and_parameters_lead_to_each_other() {
        let manifest = Manifest::assemble(vec![part(0, 2), part(1, 2)]).unwrap();
        let places = Places::of(&manifest);
        assert_eq!(places.parameters_in_file(&manifest.files[0]), ["bias", "weight"]);
        assert_eq!(places.parameters_in_file(&manifest.files[1]), ["weight"]);
        let unit = &manifest.units[0];
        assert_eq!(places.files_of(unit, &unit.parameters[0]), ["rank-00000-of-00002.g1.safetensors"]);
        assert_eq!(places.files_of(unit, &unit.parameters[1]).len(), 2);
        let find = |file: usize, tensor: usize, element| {
            let place = places.find(&manifest.files[file].tensors[tensor], element).unwrap();
            (place.parameter.map(|parameter| parameter.name.as_str()), place.state, place.element)
        };
        assert_eq!(find(0, 0, 0), (Some("bias"), "master", 0));
        assert_eq!(find(1, 2, 0), (Some("weight"), "exp_avg_sq", 3));
        assert_eq!(find(1, 1, 3), (None, "exp_avg", 7));
    }

    #[test]
    fn neighbours_do_not_overlap() {
        assert!(overlap(&(0..5), &(4..8)) && overlap(&(5..6), &(4..8)));
        assert!(!overlap(&(0..4), &(4..8)) && !overlap(&(8..9), &(4..8)) && !overlap(&(5..5), &(4..8)));
    }

    #[test]
    fn elements_are_told_by_row_and_column() {
        assert_eq!(element_words(7, &[2, 4]), "element 7 ([1, 3])");
        assert_eq!(element_words(7, &[8]), "element 7");
        assert_eq!(element_words(0, &[]), "element 0");
    }
}
