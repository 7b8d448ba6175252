//! How far the parameters of two checkpoints or model folders are apart.

use crate::dtype::{Dtype, decode_f32, encode_f32};
use crate::error::Result;
use crate::weights::Weights;
use serde::Serialize;
use std::collections::BTreeSet;

/// Elements of each side that are in memory at a time.
const CHUNK: u64 = 1 << 18;

/// A parameter, or a moment of it, on both sides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The parameter.
    pub name: String,
    /// Which of [`STATES`](crate::STATES); `master` also stands for the tensor of a model folder.
    pub state: String,
    /// Its shape in the first; `None` where the first has none.
    pub left: Option<Vec<u64>>,
    /// Its shape in the second; `None` where the second has none.
    pub right: Option<Vec<u64>>,
    /// How far apart they are, where the shapes are the same.
    pub distance: Option<Distance>,
}

impl Difference {
    /// Whether both have it, bit for bit the same as float32.
    pub fn is_equal(&self) -> bool {
        self.distance.as_ref().is_some_and(|distance| distance.differing == 0)
    }
}

/// How far two tensors of one shape are apart. Sums are float64; a number that is not finite on either side makes them NaN
/// or infinite, unless it is the same on both.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distance {
    /// Elements of the tensor.
    pub elements: u64,
    /// Elements that are not the same, bit for bit, as float32.
    pub differing: u64,
    /// The L2 norm of the difference.
    pub norm: f64,
    /// The L2 norm of the first.
    pub norm_left: f64,
    /// The largest absolute difference of two elements.
    pub largest: f64,
    /// Where the largest is, counted in row-major order.
    pub largest_at: u64,
    /// The type of the narrower side, if it is the wider side rounded to that type.
    pub rounded: Option<Dtype>,
}

impl Distance {
    /// The norm of the difference in terms of the first's norm; none where that is 0.
    pub fn relative(&self) -> Option<f64> {
        (self.norm_left > 0.0).then(|| self.norm / self.norm_left)
    }
}

/// Compares everything that the two have, sorted by name; `told` hears of each as it is done. Moments are compared where both
/// have them.
pub fn differences(left: &Weights, right: &Weights, mut told: impl FnMut(Difference)) -> Result<()> {
    let [of_left, of_right] = [left, right].map(|side| side.names().into_iter().collect::<BTreeSet<_>>());
    let states = if left.states().len() < right.states().len() { left.states() } else { right.states() };
    for name in of_left.union(&of_right) {
        let describe =
            |side: &Weights, names: &BTreeSet<&str>| names.contains(name).then(|| side.describe(name)).transpose();
        let (one, other) = (describe(left, &of_left)?, describe(right, &of_right)?);
        for state in states {
            let distance = match (&one, &other) {
                (Some((shape, one)), Some((same, other))) if shape == same => {
                    let pair = Pair { left, right, name, state };
                    Some(pair.distance(shape.iter().product(), Rounding::between(*one, *other))?)
                }
                _ => None,
            };
            let shape = |side: &Option<(Vec<u64>, Dtype)>| side.as_ref().map(|(shape, _)| shape.clone());
            let (left, right) = (shape(&one), shape(&other));
            told(Difference { name: (*name).to_owned(), state: (*state).to_owned(), left, right, distance });
        }
    }
    Ok(())
}

/// A tensor on both sides.
struct Pair<'a> {
    left: &'a Weights,
    right: &'a Weights,
    name: &'a str,
    state: &'a str,
}

impl Pair<'_> {
    fn distance(&self, elements: u64, rounding: Option<Rounding>) -> Result<Distance> {
        let mut sums = Sums { rounding, ..Sums::default() };
        let room = CHUNK.min(elements) as usize;
        let (mut left, mut right) = (vec![0.0; room], vec![0.0; room]);
        let mut begin = 0;
        while begin < elements {
            let end = elements.min(begin + CHUNK);
            let (left, right) = (&mut left[..(end - begin) as usize], &mut right[..(end - begin) as usize]);
            self.left.read(self.name, self.state, begin..end, left)?;
            self.right.read(self.name, self.state, begin..end, right)?;
            sums.add(begin, left, right);
            begin = end;
        }
        Ok(Distance {
            elements,
            differing: sums.differing,
            norm: sums.squares.sqrt(),
            norm_left: sums.squares_left.sqrt(),
            largest: sums.largest,
            largest_at: sums.largest_at,
            rounded: sums.rounding.map(|rounding| rounding.dtype),
        })
    }
}

#[derive(Default)]
struct Sums {
    differing: u64,
    squares: f64,
    squares_left: f64,
    largest: f64,
    largest_at: u64,
    /// `None` as soon as it is none.
    rounding: Option<Rounding>,
}

impl Sums {
    fn add(&mut self, begin: u64, left: &[f32], right: &[f32]) {
        for (element, (&one, &other)) in (begin..).zip(left.iter().zip(right)) {
            self.squares_left += f64::from(one) * f64::from(one);
            // The same infinity on both sides is no difference, though inf - inf is NaN.
            if one.to_bits() == other.to_bits() {
                continue;
            }
            let difference = (f64::from(one) - f64::from(other)).abs();
            self.differing += 1;
            self.squares += difference * difference;
            // Once it is NaN it stays so, and tells where the first one was.
            if !self.largest.is_nan() && (difference.is_nan() || difference > self.largest) {
                (self.largest, self.largest_at) = (difference, element);
            }
        }
        self.rounding = self.rounding.take().filter(|rounding| rounding.holds(left, right));
    }
}

/// That one side is the other, rounded.
struct Rounding {
    dtype: Dtype,
    /// Whether it is the first that is rounded.
    of_left: bool,
}

impl Rounding {
    fn between(left: Dtype, right: Dtype) -> Option<Self> {
        match (left, right) {
            (Dtype::F32, dtype) if dtype != Dtype::F32 => Some(Rounding { dtype, of_left: false }),
            (dtype, Dtype::F32) if dtype != Dtype::F32 => Some(Rounding { dtype, of_left: true }),
            _ => None,
        }
    }

    fn holds(&self, left: &[f32], right: &[f32]) -> bool {
        let (rounded, exact) = if self.of_left { (left, right) } else { (right, left) };
        let expected = round(exact, self.dtype);
        expected.iter().zip(rounded).all(|(one, other)| one.to_bits() == other.to_bits())
    }
}

/// The values, rounded to a type.
pub(crate) fn round(values: &[f32], dtype: Dtype) -> Vec<f32> {
    let (mut bytes, mut rounded) = (Vec::new(), vec![0.0; values.len()]);
    encode_f32(values, dtype, &mut bytes);
    decode_f32(&bytes, dtype, &mut rounded);
    rounded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::TensorEntry;
    use crate::model_files::SINGLE_FILE;
    use crate::publish::tests::save;
    use crate::writer::SafetensorsWriter;
    use std::collections::BTreeMap;

    fn model(tensors: &[(&str, Dtype, &[f32])]) -> (tempfile::TempDir, Weights) {
        let folder = tempfile::tempdir().unwrap();
        let entries: Vec<_> =
            tensors.iter().map(|(name, dtype, values)| TensorEntry::new(*name, *dtype, [values.len()])).collect();
        let path = folder.path().join(SINGLE_FILE);
        let mut writer = SafetensorsWriter::create(&path, &entries, &BTreeMap::new()).unwrap();
        tensors.iter().for_each(|(name, _, values)| writer.write_f32(name, 0, values).unwrap());
        writer.finish().unwrap();
        let weights = Weights::of_model(folder.path()).unwrap();
        (folder, weights)
    }

    fn compare(left: &Weights, right: &Weights) -> Vec<Difference> {
        let mut all = Vec::new();
        differences(left, right, |difference| all.push(difference)).unwrap();
        all
    }

    #[test]
    fn norms_and_the_largest_difference_are_those_of_the_values() {
        let (_left, left) = model(&[("a", Dtype::F32, &[3.0, 4.0, 0.0]), ("same", Dtype::F32, &[f32::INFINITY])]);
        let (_right, right) = model(&[("a", Dtype::F32, &[3.0, 1.0, -4.0]), ("same", Dtype::F32, &[f32::INFINITY])]);
        let all = compare(&left, &right);
        let expected = Distance {
            elements: 3,
            differing: 2,
            norm: 5.0,
            norm_left: 5.0,
            largest: 4.0,
            largest_at: 2,
            rounded: None,
        };
        assert_eq!((all[0].distance.as_ref(), all[0].is_equal()), (Some(&expected), false));
        assert_eq!(expected.relative(), Some(1.0));
        assert!(all[1].is_equal(), "{:?}", all[1]);
        let mirrored = compare(&right, &left)[0].distance.clone().unwrap();
        assert_eq!((mirrored.norm, mirrored.norm_left), (5.0, 26f64.sqrt()));
    }

    #[test]
    fn chunks_are_added_up_and_a_nan_is_not_lost_in_them() {
        let length = 2 * CHUNK as usize + 5;
        let mut values = vec![1.0; length];
        let (_left, left) = model(&[("a", Dtype::F32, &values)]);
        values.iter_mut().for_each(|value| *value = 1.5);
        let (_right, right) = model(&[("a", Dtype::F32, &values)]);
        let distance = compare(&left, &right)[0].distance.clone().unwrap();
        assert_eq!((distance.differing, distance.elements), (length as u64, length as u64));
        assert!((distance.norm - 0.5 * (length as f64).sqrt()).abs() < 1e-9, "{distance:?}");
        values[CHUNK as usize + 3] = f32::NAN;
        let (_broken, broken) = model(&[("a", Dtype::F32, &values)]);
        let distance = compare(&left, &broken)[0].distance.clone().unwrap();
        assert!(distance.norm.is_nan() && distance.largest.is_nan());
        assert_eq!(distance.largest_at, CHUNK + 3);
    }

    #[test]
    fn what_only_one_has_and_other_shapes_are_told() {
        let (_left, left) = model(&[("a", Dtype::F32, &[1.0]), ("b", Dtype::F32, &[1.0, 2.0])]);
        let (_right, right) = model(&[("b", Dtype::F32, &[1.0]), ("c", Dtype::F32, &[1.0])]);
        let told: Vec<_> = compare(&left, &right)
            .into_iter()
            .map(|it| (it.name.clone(), it.left.clone(), it.right.clone(), it.is_equal()))
            .collect();
        let expected = [
            ("a".to_string(), Some(vec![1]), None, false),
            ("b".to_string(), Some(vec![2]), Some(vec![1]), false),
            ("c".to_string(), None, Some(vec![1]), false),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_side_that_is_the_other_rounded_is_told() {
        let exact = [1.0 / 3.0, 1000.1, -2.0];
        let (_left, left) = model(&[("a", Dtype::F32, &exact)]);
        for dtype in [Dtype::BF16, Dtype::F16] {
            let (_right, right) = model(&[("a", dtype, &exact)]);
            for distance in [&compare(&left, &right)[0], &compare(&right, &left)[0]] {
                let distance = distance.distance.as_ref().unwrap();
                assert_eq!((distance.rounded, distance.differing), (Some(dtype), 2));
            }
            let (_other, other) = model(&[("a", dtype, &[1.0 / 3.0, 1000.1, -2.1])]);
            assert_eq!(compare(&left, &other)[0].distance.as_ref().unwrap().rounded, None);
        }
    }

    #[test]
    fn moments_are_compared_between_checkpoints_alone() {
        let folder = tempfile::tempdir().unwrap();
        let open = |step| Weights::of_checkpoint(&save(folder.path(), step)).unwrap();
        let (earlier, later) = (open(20), open(21));
        let all = compare(&earlier, &later);
        let told: Vec<_> = all.iter().map(|it| format!("{}/{}", it.name, it.state)).collect();
        assert_eq!(told[..3], ["bias/master", "bias/exp_avg", "bias/exp_avg_sq"]);
        assert_eq!((all.len(), all[3].distance.as_ref().unwrap().norm), (6, 6f64.sqrt()));
        assert!(compare(&earlier, &earlier).iter().all(Difference::is_equal));
        let (_model, model) = model(&[("bias", Dtype::F32, &[20.0])]);
        let told = compare(&earlier, &model);
        assert_eq!((told.len(), told[0].is_equal(), told[1].right.clone()), (2, true, None));
    }
}
