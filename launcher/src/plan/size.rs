//! Sizes as people write them: `80GiB`, `80GB`, `80G`, `81559MiB`, `24e9`.

use thiserror::Error;

/// Why a text is no size.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "`{text}` is no size: {problem}; write a number and a unit, such as 80GiB (1024³ bytes), 80GB (1000³ bytes) or 80G (as GiB)"
)]
pub struct SizeError {
    text: String,
    problem: String,
}

/// The units by their names in small letters: a bare letter counts as nvidia-smi and free count, in powers of 1024.
const UNITS: [(&str, f64); 14] = [
    ("", 1.0),
    ("b", 1.0),
    ("k", 1024.0),
    ("kb", 1e3),
    ("kib", 1024.0),
    ("m", 1048576.0),
    ("mb", 1e6),
    ("mib", 1048576.0),
    ("g", 1073741824.0),
    ("gb", 1e9),
    ("gib", 1073741824.0),
    ("t", 1099511627776.0),
    ("tb", 1e12),
    ("tib", 1099511627776.0),
];

/// Reads a size in bytes; capitals and a blank before the unit do not matter.
///
/// # Errors
/// No number, an unknown unit, or less than 1 MiB (a unit was forgotten).
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let fail = |problem: String| SizeError { text: text.to_owned(), problem };
    let trimmed = text.trim().to_ascii_lowercase();
    let unit_begin = trimmed.trim_end_matches(|letter: char| letter.is_ascii_alphabetic()).len();
    let (number, unit) = (trimmed[..unit_begin].trim(), &trimmed[unit_begin..]);
    let number: f64 = number.parse().map_err(|_| match number {
        "" => fail("it has no number".to_owned()),
        number => fail(format!("`{number}` is no number")),
    })?;
    let Some((_, bytes)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err(fail(format!("`{unit}` is no unit")));
    };
    let bytes = number * bytes;
    if !bytes.is_finite() || bytes < 1048576.0 || bytes > (1u64 << 60) as f64 {
        return Err(fail("it is not between 1 MiB and 1 EiB".to_owned()));
    }
    Ok(bytes.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        let gibibyte = 1 << 30;
        for (text, expected) in [
            ("80GiB", 80 * gibibyte),
            ("80gib", 80 * gibibyte),
            ("80G", 80 * gibibyte),
            (" 80 GiB ", 80 * gibibyte),
            ("80GB", 80_000_000_000),
            ("1.5TiB", 1536 * gibibyte),
            ("81559MiB", 81559 << 20),
            ("24000000000", 24_000_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_told() {
        for (text, part) in [
            ("80", "1 MiB"),
            ("GiB", "it has no number"),
            ("eighty", "it has no number"),
            ("8x0GiB", "`8x0` is no number"),
            ("80Gi", "`gi` is no unit"),
            ("-80GiB", "1 MiB"),
            ("infinity", "no number"),
        ] {
            let message = parse_size(text).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains("such as 80GiB"), "{text}: {message}");
        }
    }
}
