//! Which optimizer steps a timeline is recorded of.

use serde::{Deserialize, Serialize};

/// Steps that one timeline may hold: what it records grows with them, and a viewer reads it whole.
const MOST: u64 = 100;

/// Optimizer steps of which a timeline is recorded, both ends included. They are counted from 1 as in `metrics.jsonl`, in
/// a resumed run too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProfileSteps {
    first: u64,
    last: u64,
}

impl ProfileSteps {
    /// What a range has to be, to follow "it must be".
    pub(crate) const WORDS: &'static str =
        "steps as FIRST..LAST, from 1 on and at most 100: 5..8 is the steps 5, 6, 7 and 8";

    /// Reads `5..8`, or `steps 5..8`; none for what is no such range.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let range = text.strip_prefix("steps ").unwrap_or(text);
        let (first, last) = range.split_once("..")?;
        let number = |digits: &str| {
            let digits = digits.trim();
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().ok())?
        };
        let (first, last) = (number(first)?, number(last)?);
        (first >= 1 && first <= last && last - first < MOST).then_some(ProfileSteps { first, last })
    }

    /// The first step, from 1.
    pub fn first(self) -> u64 {
        self.first
    }

    /// The last step.
    pub fn last(self) -> u64 {
        self.last
    }
}

impl std::fmt::Display for ProfileSteps {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}..{}", self.first, self.last)
    }
}

impl From<ProfileSteps> for String {
    fn from(steps: ProfileSteps) -> Self {
        steps.to_string()
    }
}

impl TryFrom<String> for ProfileSteps {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        ProfileSteps::parse(&text).ok_or_else(|| format!("{text} must be {}", ProfileSteps::WORDS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_both_ends_and_at_most_a_hundred_steps() {
        for text in ["5..8", " 5..8 ", "steps 5..8", "steps  5 .. 8"] {
            assert_eq!(ProfileSteps::parse(text), Some(ProfileSteps { first: 5, last: 8 }), "{text}");
        }
        assert_eq!(ProfileSteps::parse("7..7").map(|steps| steps.to_string()), Some("7..7".to_owned()));
        assert!(ProfileSteps::parse("1..100").is_some());
        let wrong = [
            "8..5",
            "x",
            "0..3",
            "1..101",
            "5",
            "5..",
            "..8",
            "5...8",
            "5..=8",
            "-1..3",
            "+1..3",
            "1..2..3",
            "steps",
            "",
            "5-8",
            "1..99999999999999999999",
            "step 5..8",
            "1.5..3",
        ];
        for text in wrong {
            assert_eq!(ProfileSteps::parse(text), None, "{text}");
        }
    }

    #[test]
    fn it_is_written_as_it_is_read() {
        let steps = ProfileSteps::parse("5..8").unwrap();
        let text = serde_yaml::to_string(&steps).unwrap();
        assert_eq!(text.trim(), "5..8");
        assert_eq!(serde_yaml::from_str::<ProfileSteps>(&text).unwrap(), steps);
        assert!(serde_yaml::from_str::<ProfileSteps>("8..5").unwrap_err().to_string().contains("5..8"));
    }
}
