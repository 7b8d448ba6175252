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
    let rough = most / PARTS;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|digit| digit * power).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let count = (most / step).ceil();
    let ticks = (0..=count as u32).map(|index| f64::from(index) * step);
    (count * step, ticks.map(|tick| (tick, label(tick))).collect())
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
}
