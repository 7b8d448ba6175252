//! Which parameters are trained, at which rate and from when: the types of `freeze` and `parameter_groups`.

use std::fmt;

use glob::Pattern;
use serde::{Deserialize, Serialize};
use serde_yaml::Value;

use crate::registry::{Kind, nearest};
use crate::value::{FromValue, number, text, written};

/// The word of `freeze` for everything below the head.
const ALL_BUT_HEAD: &str = "all_but_head";

/// Patterns on the names that parameters have in the model's files; `*` stands for any letters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct NamePatterns(Vec<Pattern>);

impl NamePatterns {
    /// Whether any is one of this name.
    pub fn any(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }

    /// The first pattern that is of none of these names, as it was written.
    pub fn unused(&self, names: &[&str]) -> Option<&str> {
        let unused = self.0.iter().find(|pattern| !names.iter().any(|name| pattern.matches(name)));
        unused.map(Pattern::as_str)
    }

    fn read(value: &Value) -> Result<Self, String> {
        let words = |value: &Value| {
            let words = text(value).filter(|text| !text.is_empty());
            words.ok_or_else(|| format!("{} is no pattern", written(value)))
        };
        let as_list = |text: &str| serde_yaml::from_str::<Value>(text).ok().filter(Value::is_sequence);
        // A flag has a list as text; another pattern may begin with a bracket too.
        if let Some(list) = value.as_str().filter(|text| text.trim_start().starts_with('[')).and_then(as_list) {
            return NamePatterns::read(&list);
        }
        let patterns: Vec<String> = match value {
            Value::Sequence(patterns) => patterns.iter().map(words).collect::<Result<_, _>>()?,
            // Or several with commas between them.
            _ => words(value)?.split(',').map(|pattern| pattern.trim().to_owned()).collect(),
        };
        NamePatterns::try_from(patterns)
    }
}

impl TryFrom<Vec<String>> for NamePatterns {
    type Error = String;

    fn try_from(patterns: Vec<String>) -> Result<Self, String> {
        if patterns.is_empty() || patterns.iter().any(String::is_empty) {
            return Err("a pattern is empty".to_owned());
        }
        let pattern =
            |pattern: &String| Pattern::new(pattern).map_err(|error| format!("{pattern} is no pattern: {}", error.msg));
        patterns.iter().map(pattern).collect::<Result<_, _>>().map(NamePatterns)
    }
}

impl From<NamePatterns> for Vec<String> {
    fn from(NamePatterns(patterns): NamePatterns) -> Self {
        patterns.iter().map(|pattern| pattern.as_str().to_owned()).collect()
    }
}

impl fmt::Display for NamePatterns {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0.iter().map(Pattern::as_str).collect::<Vec<_>>().join(", "))
    }
}

/// Which parameters are not trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "WrittenFreeze", into = "WrittenFreeze")]
pub enum Freeze {
    /// All but the head: feature extraction.
    AllButHead,
    /// Those of these names.
    Named(NamePatterns),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenFreeze {
    Word(String),
    Named(NamePatterns),
}

impl TryFrom<WrittenFreeze> for Freeze {
    type Error = String;

    fn try_from(written: WrittenFreeze) -> Result<Self, String> {
        match written {
            WrittenFreeze::Word(word) if word == ALL_BUT_HEAD => Ok(Freeze::AllButHead),
            WrittenFreeze::Word(word) => NamePatterns::try_from(vec![word]).map(Freeze::Named),
            WrittenFreeze::Named(patterns) => Ok(Freeze::Named(patterns)),
        }
    }
}

impl From<Freeze> for WrittenFreeze {
    fn from(freeze: Freeze) -> Self {
        match freeze {
            Freeze::AllButHead => WrittenFreeze::Word(ALL_BUT_HEAD.to_owned()),
            Freeze::Named(patterns) => WrittenFreeze::Named(patterns),
        }
    }
}

impl Freeze {
    /// What it has to be, to follow "it must be".
    pub const WORDS: &'static str = "all_but_head, or patterns of the files' parameter names such as model.layers.0.*, with commas between them or as a list";

    fn read(value: &Value) -> Result<Self, String> {
        match value.as_str().map(str::trim) {
            Some(word) if word.eq_ignore_ascii_case(ALL_BUT_HEAD) => Ok(Freeze::AllButHead),
            Some(word) if nearest(word, [ALL_BUT_HEAD]).is_some() => Err(format!("did you mean {ALL_BUT_HEAD}?")),
            _ => NamePatterns::read(value).map(Freeze::Named),
        }
    }
}

impl FromValue for Freeze {
    const KIND: Kind = Kind::Freeze;

    fn from_value(value: &Value) -> Option<Self> {
        Freeze::read(value).ok()
    }

    fn hint(value: &Value) -> Option<String> {
        Freeze::read(value).err()
    }
}

/// One entry of `parameter_groups`: what is said of the parameters that its patterns name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRule {
    /// Which parameters.
    pub patterns: NamePatterns,
    /// Their highest learning rate, in place of the job's; the schedule is the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// What their learning rate is multiplied by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate_factor: Option<f64>,
    /// Their weight decay, of biases and norm weights too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Do not train them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub freeze: bool,
}

/// The keys of a [`GroupRule`]; `pattern` is the same as `patterns`.
const RULE_KEYS: [&str; 6] = ["pattern", "patterns", "learning_rate", "learning_rate_factor", "weight_decay", "freeze"];

/// The entries of `parameter_groups`. A parameter is of the first that names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupRules(Vec<GroupRule>);

impl GroupRules {
    /// What it has to be, to follow "it must be".
    pub const WORDS: &'static str = "a list of groups {pattern: …, learning_rate: … or learning_rate_factor: …, \
                                     weight_decay: …, freeze: true}";

    /// The entries, in their order.
    pub fn rules(&self) -> &[GroupRule] {
        &self.0
    }

    fn read(value: &Value) -> Result<Self, String> {
        match value {
            Value::Sequence(rules) if !rules.is_empty() => {
                let rules = rules.iter().enumerate().map(|(index, rule)| read_rule(index + 1, rule));
                rules.collect::<Result<_, _>>().map(GroupRules)
            }
            // A flag has it as text.
            Value::String(text) if text.trim_start().starts_with('[') => match serde_yaml::from_str::<Value>(text) {
                Ok(value) if value.is_sequence() => GroupRules::read(&value),
                _ => Err("the text is no list of {pattern: …, learning_rate: …}".to_owned()),
            },
            _ => Err(String::new()),
        }
    }
}

/// One entry of a list, the `place`th.
fn read_rule(place: usize, value: &Value) -> Result<GroupRule, String> {
    let Value::Mapping(pairs) = value else {
        return Err(format!("group {place} is {}: write it as {{pattern: …, learning_rate: …}}", written(value)));
    };
    let (mut patterns, mut rate, mut factor, mut decay, mut freeze) = (None, None, None, None, false);
    for (key, value) in pairs.iter().filter(|(_, value)| !value.is_null()) {
        let key = key.as_str().unwrap_or_default();
        let wrong = |allowed: &str| format!("{key} of group {place} is {}: it must be {allowed}", written(value));
        let not_negative = || number(value).filter(|it| *it >= 0.0).ok_or_else(|| wrong("a number, 0 or more"));
        match key {
            "pattern" | "patterns" if patterns.is_some() => {
                return Err(format!("group {place} has both pattern and patterns: keep one"));
            }
            "pattern" | "patterns" => {
                let read = NamePatterns::read(value).map_err(|why| format!("{key} of group {place}: {why}"));
                patterns = Some(read?);
            }
            "learning_rate" => rate = Some(not_negative()?),
            "learning_rate_factor" => factor = Some(not_negative()?),
            "weight_decay" => decay = Some(not_negative()?),
            "freeze" => freeze = bool::from_value(value).ok_or_else(|| wrong("true or false"))?,
            _ => {
                let meant = nearest(key, RULE_KEYS).map(|near| format!("did you mean {near}? ")).unwrap_or_default();
                let known = RULE_KEYS.join(", ");
                return Err(format!("group {place} has an unknown key {key}: {meant}it has {known}"));
            }
        }
    }
    let Some(patterns) = patterns else { return Err(format!("group {place} has no pattern")) };
    if rate.is_some() && factor.is_some() {
        return Err(format!("group {place} has both learning_rate and learning_rate_factor: keep one"));
    }
    let trained = [rate, factor, decay].iter().any(Option::is_some);
    match (freeze, trained) {
        (true, true) => Err(format!("group {place} is frozen, so it has neither rate nor weight decay")),
        (false, false) => {
            Err(format!("group {place} says nothing of its parameters: give a rate, weight_decay or freeze"))
        }
        _ => Ok(GroupRule { patterns, learning_rate: rate, learning_rate_factor: factor, weight_decay: decay, freeze }),
    }
}

impl FromValue for GroupRules {
    const KIND: Kind = Kind::Groups;

    fn from_value(value: &Value) -> Option<Self> {
        GroupRules::read(value).ok()
    }

    fn hint(value: &Value) -> Option<String> {
        GroupRules::read(value).err().filter(|fault| !fault.is_empty())
    }
}
