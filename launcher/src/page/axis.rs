//! Axes that end at round numbers, and the words beside them.

/// About so many parts an axis has.
const PARTS: f64 = 4.0;
const MEBIBYTE: f64 = (1u64 << 20) as f64;
const GIBIBYTE: f64 = (1u64 << 30) as f64;

/// The unit for amounts up to `most` bytes, and its name.
pub(crate) fn unit(most: f64) -> (f64, &'static str) {
    if most >= GIBIBYTE { (GIBIBYTE, "GiB") } else { (MEBIBYTE, "MiB") }
}

/// An amount on an axis, with as many digits as it needs.
pub(crate) fn amount(tick: f64) -> String {
    let text = format!("{tick:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// An axis from 0 that reaches `most`, with ticks at round numbers.
pub(crate) fn axis(most: f64, label: impl Fn(f64) -> String) -> (f64, Vec<(f64, String)>) {
    let most = if most.is_finite() && most > 0.0 { most } else { 1.0 };
    let step = round_step(most / PARTS);
    let count = (most / step).ceil();
    let ticks = (0..=count as u32).map(|index| f64::from(index) * step);
    (count * step, ticks.map(|tick| (tick, label(tick))).collect())
}

/// An axis between two round numbers.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// What it tells, with the unit.
    pub(crate) name: String,
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// Places on it and their labels.
    pub(crate) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis that all finite values lie on; `from_zero` begins it at 0.
    pub(crate) fn over(
        values: impl IntoIterator<Item = f64>,
        from_zero: bool,
        name: &str,
        label: impl Fn(f64) -> String,
    ) -> Axis {
        let finite = values.into_iter().filter(|value| value.is_finite());
        let (low, high) =
            finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (0.0, 1.0) } else { (low, high) };
        let low = if from_zero { low.min(0.0) } else { low };
        // Curves that are flat need some room too.
        let room = if high > low { 0.0 } else { (low.abs() * 0.05).max(1e-9) };
        let (low, high) = (if from_zero { low } else { low - room }, high + room);
        let step = round_step((high - low) / PARTS);
        let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
        let count = (last - first).clamp(1.0, 20.0) as u32;
        // Adding 0 makes +0 of −0.
        let ticks = (0..=count).map(|index| (first + f64::from(index)) * step + 0.0);
        Axis {
            name: name.to_owned(),
            from: first * step,
            to: (first + f64::from(count)) * step,
            ticks: ticks.map(|tick| (tick, label(tick))).collect(),
        }
    }

    /// The same for what is counted, such as steps: it ends where the values do, and has a tick at each of them only if there
    /// is room.
    pub(crate) fn along(values: impl IntoIterator<Item = f64>, name: &str, label: impl Fn(f64) -> String) -> Axis {
        let finite = values.into_iter().filter(|value| value.is_finite());
        let (low, high) =
            finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low > high { (0.0, 1.0) } else { (low.min(0.0), high) };
        let high = if high > low { high } else { low + 1.0 };
        let step = round_step((high - low) / 6.0);
        let count = ((high - low) / step + 1e-9).floor().clamp(0.0, 20.0) as u32;
        let first = (low / step).ceil();
        let ticks = (0..=count).map(|index| (first + f64::from(index)) * step).filter(|tick| *tick <= high);
        Axis { name: name.to_owned(), from: low, to: high, ticks: ticks.map(|tick| (tick, label(tick))).collect() }
    }

    /// Where a value lies, from 0 to 1.
    pub(crate) fn share(&self, value: f64) -> f64 {
        ((value - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }
}

/// The round number, 1, 2 or 5 times a power of ten, that is at least as large.
fn round_step(rough: f64) -> f64 {
    let rough = if rough.is_finite() && rough > 0.0 { rough } else { 1.0 };
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|step| *step >= rough * 0.999_999)
        .unwrap_or(rough)
}

/// A number as short as it can be told from its neighbours on an axis: `0.25`, `2e-5`, `12k`.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        1e9.. => format!("{}G", amount(value / 1e9)),
        1e6.. => format!("{}M", amount(value / 1e6)),
        1e4.. => format!("{}k", amount(value / 1e3)),
        1e-4.. => format!("{value:.6}").trim_end_matches('0').trim_end_matches('.').to_owned(),
        _ => {
            let text = format!("{value:.2e}");
            let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
            format!(
                "{}e{power}",
                if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits }
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_a_round_number_beyond_the_bars() {
        let of = |most: f64| {
            let (end, ticks) = axis(most, amount);
            (end, ticks.into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(of(371.0), (400.0, "0 100 200 300 400".to_owned()));
        assert_eq!(of(2.46), (3.0, "0 1 2 3".to_owned()));
        assert_eq!(of(0.73), (0.8, "0 0.2 0.4 0.6 0.8".to_owned()));
        assert_eq!(of(20.0), (20.0, "0 5 10 15 20".to_owned()));
        for nothing in [0.0, f64::NAN, f64::INFINITY] {
            assert_eq!(of(nothing).0, 1.0);
        }
    }

    #[test]
    fn an_axis_of_curves_spans_them() {
        let of = |values: &[f64], from_zero| {
            let axis = Axis::over(values.iter().copied(), from_zero, "x", short);
            axis.ticks.into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(&[1.21, 2.9, f64::NAN], false), "1 1.5 2 2.5 3");
        assert_eq!(of(&[3.0, 371.0], true), "0 100 200 300 400");
        assert_eq!(of(&[0.0, 2e-5], false), "0 5e-6 1e-5 1.5e-5 2e-5");
        assert_eq!(of(&[], false), "0 0.5 1");
        assert_eq!(of(&[-1.0, 1.0], false), "-1 -0.5 0 0.5 1");
        let flat = Axis::over([2.0, 2.0], false, "x", short);
        assert!(flat.from < 2.0 && flat.to > 2.0 && flat.share(2.0) > 0.2, "{flat:?}");
        for odd in [[1e300, -1e300], [1e-300, 2e-300], [5.0, 5.0 + 1e-12]] {
            let axis = Axis::over(odd, false, "x", short);
            assert!(axis.ticks.len() <= 21 && axis.share(odd[0]).is_finite(), "{odd:?} {axis:?}");
        }
        let steps = Axis::along([1.0, 40.0], "step", short);
        assert_eq!((steps.from, steps.to), (0.0, 40.0));
        assert_eq!(steps.ticks.iter().map(|(tick, _)| *tick).collect::<Vec<_>>(), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(Axis::along([], "step", short).to, 1.0);
        assert_eq!(
            ["1234", "12k", "2.5M", "-0.25"],
            [1234.0, 12e3, 2.5e6, -0.25].map(short).map(|text| text.leak() as &str)
        );
    }
}
