//! Sizes as people write them: `80GiB`, `80GB`, `80G`, `81559MiB`, `24e9`.

use crate::error::LaunchError;

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SizeError {
    text: String,
    problem: String,
    hint: String,
}

impl SizeError {
    /// The error of a command line with this text after the option `name`.
    pub fn of_option(self, name: &str) -> LaunchError {
        let SizeError { text, problem, hint } = self;
        LaunchError::usage(format!("--{name}: `{text}` is no size: {problem}"), hint)
    }
}

/// What sizes look like.
const EXAMPLES: &str = "write a number and a unit, such as 80GiB (1024³ bytes), 80GB (1000³ bytes) or 80G (as GiB)";

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

/// The most that a number without a unit can mean in GiB; more are MiB, as nvidia-smi tells them.
const MOST_GIBIBYTES: f64 = 1024.0;

/// Reads a size in bytes; capitals and a blank before the unit do not matter.
///
/// # Errors
/// No number, a negative one, an unknown unit, or less than 1 MiB (a unit was forgotten).
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let fail = |problem: &str, hint: &str| {
        let (problem, hint) = (problem.to_owned(), hint.to_owned());
        Err(SizeError { text: text.to_owned(), problem, hint })
    };
    let trimmed = text.trim().to_ascii_lowercase();
    let unit_begin = trimmed.trim_end_matches(|letter: char| letter.is_ascii_alphabetic()).len();
    let (number, unit) = (trimmed[..unit_begin].trim(), &trimmed[unit_begin..]);
    if number.is_empty() {
        return fail("it has no number", EXAMPLES);
    }
    let Ok(value) = number.parse::<f64>() else {
        return fail(&format!("`{number}` is no number"), EXAMPLES);
    };
    let Some((_, bytes)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return fail(&format!("`{unit}` is no unit"), EXAMPLES);
    };
    if value < 0.0 {
        let meant = format!("did you mean {}?", text.trim().trim_start_matches('-'));
        return fail("it is negative", if unit.is_empty() { EXAMPLES } else { &meant });
    }
    let bytes = value * bytes;
    let least = 1048576.0;
    if unit.is_empty() && value > 0.0 && bytes < least {
        let meant = if value <= MOST_GIBIBYTES { "GiB" } else { "MiB" };
        return fail("without a unit it is bytes, and less than 1 MiB", &format!("did you mean {number}{meant}?"));
    }
    if !bytes.is_finite() || bytes < least || bytes > (1u64 << 60) as f64 {
        return fail("it is not between 1 MiB and 1 EiB", EXAMPLES);
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
        for (text, problem, hint) in [
            ("80", "without a unit it is bytes, and less than 1 MiB", "did you mean 80GiB?"),
            ("0.5", "without a unit", "did you mean 0.5GiB?"),
            ("81559", "without a unit", "did you mean 81559MiB?"),
            ("0", "not between 1 MiB", "such as 80GiB"),
            ("0GiB", "not between 1 MiB", "such as 80GiB"),
            ("512KiB", "not between 1 MiB", "such as 80GiB"),
            ("GiB", "it has no number", "such as 80GiB"),
            ("eighty", "it has no number", "such as 80GiB"),
            ("8x0GiB", "`8x0` is no number", "such as 80GiB"),
            ("80Gi", "`gi` is no unit", "such as 80GiB"),
            ("-5GiB", "it is negative", "did you mean 5GiB?"),
            ("-5", "it is negative", "such as 80GiB"),
            ("infinity", "no number", "such as 80GiB"),
        ] {
            let message = parse_size(text).unwrap_err().of_option("gpu-memory").to_string();
            let (first, last) = message.split_once("\nhint: ").unwrap();
            assert!(first.starts_with(&format!("--gpu-memory: `{text}` is no size: ")), "{message}");
            assert!(first.contains(problem) && last.contains(hint), "{text}: {message}");
        }
    }
}
