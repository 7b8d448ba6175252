//! Numbers as people read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `1.5 GiB`, `312 MiB`, `17 bytes`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} bytes");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!(
        "{value:.*} {}",
        if value < 10.0 {
            2
        } else if value < 100.0 {
            1
        } else {
            0
        },
        UNITS[unit]
    )
}

/// `0.8 s`, `41 s`, `3 min 05 s`, `2 h 07 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// `rank 3`, `ranks 0, 2 and 3`, `62 ranks (0, 1, 2, …)`.
pub fn ranks(ranks: &[u32]) -> String {
    let words: Vec<String> = ranks.iter().map(u32::to_string).collect();
    match &words[..] {
        [] => "no rank".to_owned(),
        [one] => format!("rank {one}"),
        [first @ .., last] if words.len() <= 8 => format!("ranks {} and {last}", first.join(", ")),
        many => format!("{} ranks ({}, …)", many.len(), many[..3].join(", ")),
    }
}

/// `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `6.738 billion parameters`, `134.5 million parameters`, `162,240 parameters`.
pub fn parameters(number: u64) -> String {
    match number {
        1_000_000_000.. => format!("{:.3} billion parameters", number as f64 / 1e9),
        1_000_000.. => format!("{:.1} million parameters", number as f64 / 1e6),
        _ => plural(number, "parameter"),
    }
}

/// A rate or another figure that is only rounded for reading: whole above 10.
pub fn figure(number: f64) -> String {
    if number.is_finite() && number >= 10.0 { count(number.round() as u64) } else { format!("{number:.2}") }
}

/// The ends of a range of figures: `360 to 371`.
pub fn spread(lowest: f64, highest: f64) -> String {
    format!("{} to {}", figure(lowest), figure(highest))
}

/// Floating-point operations per second: `850 GFLOP/s`, `1.20 TFLOP/s`.
pub fn operations(rate: f64) -> String {
    match rate {
        1e12.. => format!("{} TFLOP/s", figure(rate / 1e12)),
        _ => format!("{} GFLOP/s", figure(rate / 1e9)),
    }
}

/// A time in seconds since 1970: `2026-11-24 06:29:33 UTC`.
pub fn date(seconds: u64) -> String {
    let Some(libc::tm { tm_year, tm_mon, tm_mday, tm_hour, tm_min, tm_sec, .. }) = utc(seconds) else {
        return format!("{seconds} s after 1970");
    };
    format!("{}-{:02}-{tm_mday:02} {tm_hour:02}:{tm_min:02}:{tm_sec:02} UTC", tm_year + 1900, tm_mon + 1)
}

/// A time in the name of a folder, in UTC: `Nov24_06-29-33`.
pub fn stamp(time: SystemTime) -> String {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let Some(libc::tm { tm_mon, tm_mday, tm_hour, tm_min, tm_sec, .. }) = utc(seconds) else {
        return seconds.to_string();
    };
    let month = usize::try_from(tm_mon).ok().and_then(|month| MONTHS.get(month)).unwrap_or(&"");
    format!("{month}{tm_mday:02}_{tm_hour:02}-{tm_min:02}-{tm_sec:02}")
}

fn utc(seconds: u64) -> Option<libc::tm> {
    let time = libc::time_t::try_from(seconds).ok()?;
    // SAFETY: all zeros is a valid value of this plain C struct.
    let mut parts: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call.
    let known = unsafe { !libc::gmtime_r(&time, &mut parts).is_null() };
    known.then_some(parts)
}

/// The middle value; `None` without values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// What the singular or the plural of a word is for this number: `1 row`, `2 rows`.
pub fn plural(number: u64, word: &str) -> String {
    format!("{} {word}{}", count(number), if number == 1 { "" } else { "s" })
}

/// Rows, or packs where rows are packed: `2 rows`, `1 pack`.
pub fn items(number: u64, packed: bool) -> String {
    plural(number, if packed { "pack" } else { "row" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(bytes(17), "17 bytes");
        assert_eq!(bytes(1023 * 1024), "1.00 MiB");
        assert_eq!(bytes(3 << 29), "1.50 GiB");
        assert_eq!(bytes(312 << 20), "312 MiB");
        assert_eq!(duration(Duration::from_millis(840)), "0.8 s");
        assert_eq!(duration(Duration::from_secs(185)), "3 min 05 s");
        assert_eq!(duration(Duration::from_secs(7620)), "2 h 07 min");
        assert_eq!([count(7), count(1234), count(1_234_567)], ["7", "1,234", "1,234,567"]);
        assert_eq!([figure(3.456), figure(1234.6), figure(f64::NAN)], ["3.46", "1,235", "NaN"]);
        assert_eq!(date(1_795_501_773), "2026-11-24 06:29:33 UTC");
        assert_eq!(stamp(UNIX_EPOCH + Duration::from_secs(1_795_501_773)), "Nov24_06-29-33");
        assert_eq!(parameters(6_738_415_616), "6.738 billion parameters");
        assert_eq!(parameters(134_515_008), "134.5 million parameters");
        assert_eq!(parameters(162_240), "162,240 parameters");
        assert_eq!([plural(1, "row"), plural(1200, "row")], ["1 row", "1,200 rows"]);
        assert_eq!([items(2, false), items(1, true)], ["2 rows", "1 pack"]);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
    }
}
