//! Where the parameters of a model lie in a checkpoint: end to end in *units*, as the job that saved it gathered them.
//!
//! The files hold ranges of units; with this they are ranges of parameters, which every other layout has as well.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What is kept of every parameter: its float32 master, and AdamW's first and second moment.
pub const STATES: [&str; 3] = ["master", "exp_avg", "exp_avg_sq"];

/// What a checkpoint has of every parameter beside [`STATES`], if the job estimated it: the Fisher information.
pub const FISHER: &str = "fisher";

/// A parameter's place in its unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedParameter {
    /// Its name in the model's files.
    pub name: String,
    /// Its shape in the model's files.
    pub shape: Vec<u64>,
    /// Its first element in the unit.
    pub begin: u64,
}

impl SavedParameter {
    /// How many elements it has; none for a shape that no memory could hold.
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1, |product: u64, &size| product.checked_mul(size))
    }

    fn end(&self) -> Option<u64> {
        self.begin.checked_add(self.elements()?)
    }
}

/// Parameters that lie end to end, with gaps where runs are padded. Each of [`STATES`] is stored of it, as `NAME/STATE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedUnit {
    /// Its name.
    pub name: String,
    /// Its elements, padding included.
    pub length: u64,
    /// Its parameters.
    pub parameters: Vec<SavedParameter>,
}

impl SavedUnit {
    /// Elements of its parameters, padding left out.
    pub fn elements(&self) -> u64 {
        self.parameters.iter().filter_map(SavedParameter::elements).fold(0, u64::saturating_add)
    }

    /// The name under which a state of it is stored.
    pub fn whole(&self, state: &str) -> String {
        format!("{}/{state}", self.name)
    }
}

/// What ranks compare to know that they have the same units: a BLAKE3 hash, 64 hexadecimal digits.
pub fn digest_units(units: &[SavedUnit]) -> String {
    let mut hasher = blake3::Hasher::new();
    for unit in units {
        hasher.update(format!("unit {:?} {}\n", unit.name, unit.length).as_bytes());
        for SavedParameter { name, shape, begin } in &unit.parameters {
            hasher.update(format!("{name:?} {shape:?} {begin}\n").as_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// Names stand once, and parameters lie in their unit without touching each other.
pub(crate) fn check_units(units: &[SavedUnit]) -> Result<(), String> {
    let (mut names, mut parameters) = (BTreeSet::new(), BTreeSet::new());
    for unit in units {
        if !names.insert(&unit.name) {
            return Err(format!("the unit {:?} is given twice", unit.name));
        }
        let mut places = Vec::with_capacity(unit.parameters.len());
        for parameter in &unit.parameters {
            if !parameters.insert(&parameter.name) {
                return Err(format!("the parameter {:?} is given twice", parameter.name));
            }
            let Some(end) = parameter.end().filter(|&end| end <= unit.length) else {
                let SavedParameter { name, shape, begin } = parameter;
                let (unit, length) = (&unit.name, unit.length);
                return Err(format!("{name} of shape {shape:?} does not fit at {begin} of {unit}, which has {length}"));
            };
            places.push((parameter.begin, end, &parameter.name));
        }
        places.sort_unstable();
        if let Some(pair) = places.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            return Err(format!("{} and {} lie on the same elements of {}", pair[0].2, pair[1].2, unit.name));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn parameter(name: &str, shape: &[u64], begin: u64) -> SavedParameter {
        SavedParameter { name: name.into(), shape: shape.to_vec(), begin }
    }

    pub(crate) fn unit(name: &str, length: u64, parameters: Vec<SavedParameter>) -> SavedUnit {
        SavedUnit { name: name.into(), length, parameters }
    }

    #[test]
    fn units_that_cannot_be_are_told() {
        let good = || vec![unit("a", 8, vec![parameter("x", &[2, 2], 4), parameter("y", &[3], 0)])];
        check_units(&good()).unwrap();
        type Change = fn(&mut Vec<SavedUnit>);
        let changes: [(&str, Change); 5] = [
            ("the unit \"a\" is given twice", |units| units.push(unit("a", 1, vec![]))),
            ("the parameter \"x\" is given twice", |units| units.push(unit("b", 1, vec![parameter("x", &[1], 0)]))),
            ("x of shape [2, 2] does not fit at 5 of a, which has 8", |units| units[0].parameters[0].begin = 5),
            ("y and x lie on the same elements of a", |units| units[0].parameters[1].begin = 2),
            ("does not fit", |units| units[0].parameters[0].shape = vec![u64::MAX, 2]),
        ];
        for (expected, change) in changes {
            let mut units = good();
            change(&mut units);
            let told = check_units(&units).unwrap_err();
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn the_digest_tells_units_apart() {
        let units = |begin| vec![unit("a", 8, vec![parameter("x", &[2, 2], begin)])];
        assert_eq!(digest_units(&units(0)), digest_units(&units(0)));
        assert_ne!(digest_units(&units(0)), digest_units(&units(1)));
    }
}
