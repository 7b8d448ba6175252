//! Reading one value. YAML files meant for PyYAML (YAML 1.1) quote what it would misread and leave as text what it
//! cannot read (`1e-5`), so a number may come as text, and a choice called `no` as a boolean.

use crate::profile::ProfileSteps;
use crate::registry::Kind;
use crate::sharding::BackwardPrefetch;
use crate::store_url::StoreUrl;
use crate::types::{
    Backend, BestMetric, Curve, ElementType, FsdpStrategy, NonFinite, OffloadDevice, PackingStrategy, PlateauMode,
    Precision, ProblemType, Reporter, Sampling, Scheduler, StateDictType, StateType, StoppingStrategy, Strategy,
    ThresholdMode, UnfreezingStart, WarmupType, WrapPolicy,
};
use serde_yaml::Value;
use std::path::PathBuf;

/// A type that a configuration value can have.
pub(crate) trait FromValue: Sized {
    /// What kind of value it is, for help and messages.
    const KIND: Kind;
    /// The value, or `None` when it is not of this type.
    fn from_value(value: &Value) -> Option<Self>;
    /// What is wrong with a value that is not of this type, where more can be said than what it must be.
    fn hint(_value: &Value) -> Option<String> {
        None
    }
    /// Whether the value says that there is none, where there may be none.
    fn is_nothing(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::String(text) => ["null", "none", "~", ""].contains(&text.trim().to_ascii_lowercase().as_str()),
            _ => false,
        }
    }
}

/// The value as a finite number: a YAML number, or text that spells one.
pub(crate) fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => plain_number(text)?.parse().ok()?,
        _ => return None,
    };
    number.is_finite().then_some(number)
}

/// `text` without the underscores between digits that YAML 1.1 allows; `None` when it does not look like a number
/// (Rust would also read `inf` and `nan`).
fn plain_number(text: &str) -> Option<String> {
    let text = text.trim();
    let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-._eE".contains(&byte));
    (numeric && text.bytes().any(|byte| byte.is_ascii_digit()) && !text.starts_with('_') && !text.ends_with('_'))
        .then(|| text.replace('_', ""))
}

/// The value as a whole number; `1e3` and `8.0` are whole.
fn whole(value: &Value) -> Option<i128> {
    match value {
        Value::Number(number) if number.is_u64() => number.as_u64().map(i128::from),
        Value::Number(number) if number.is_i64() => number.as_i64().map(i128::from),
        _ => {
            let exact = value.as_str().and_then(plain_number).and_then(|text| text.parse().ok());
            let rounded = || number(value).filter(|number| number.fract() == 0.0 && number.abs() < 9.0e15);
            exact.or_else(|| rounded().map(|number| number as i128))
        }
    }
}

/// Characters of a key or value that a message quotes.
const MOST_QUOTED: usize = 200;

/// `text`, cut where it is too long for a message.
pub(crate) fn quoted(text: &str) -> String {
    match text.char_indices().nth(MOST_QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The value as YAML would be written on one line, for messages.
pub(crate) fn written(value: &Value) -> String {
    quoted(&whole_written(value))
}

fn whole_written(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(switch) => switch.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        Value::String(text) => text.clone(),
        other => serde_json::to_string(other).unwrap_or_else(|_| "a nested value".to_owned()),
    }
}

/// The value as text, when it is a scalar.
pub(crate) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Bool(_) | Value::Number(_) => Some(whole_written(value)),
        _ => None,
    }
}

impl FromValue for bool {
    const KIND: Kind = Kind::Switch;

    fn from_value(value: &Value) -> Option<Self> {
        match text(value)?.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Some(true),
            "false" | "no" | "off" | "0" => Some(false),
            _ => None,
        }
    }
}

impl FromValue for f64 {
    const KIND: Kind = Kind::Number;

    fn from_value(value: &Value) -> Option<Self> {
        number(value)
    }
}

macro_rules! whole_numbers {
    ($($type:ty),+) => {$(
        impl FromValue for $type {
            const KIND: Kind = Kind::Integer;

            fn from_value(value: &Value) -> Option<Self> {
                whole(value)?.try_into().ok()
            }
        }
    )+};
}
whole_numbers!(u8, u16, u32, u64, i64);

impl FromValue for PathBuf {
    const KIND: Kind = Kind::Path;

    fn from_value(value: &Value) -> Option<Self> {
        text(value).filter(|text| !text.is_empty()).map(PathBuf::from)
    }
}

impl FromValue for String {
    const KIND: Kind = Kind::Text;

    fn from_value(value: &Value) -> Option<Self> {
        text(value).filter(|text| !text.is_empty())
    }
}

impl FromValue for ProfileSteps {
    const KIND: Kind = Kind::Steps;

    fn from_value(value: &Value) -> Option<Self> {
        ProfileSteps::parse(value.as_str()?)
    }
}

impl FromValue for StoreUrl {
    const KIND: Kind = Kind::Store;

    fn from_value(value: &Value) -> Option<Self> {
        StoreUrl::parse(value.as_str()?)
    }
}

/// By name, or a list of names; `all` are all that there are.
impl FromValue for Reporter {
    const KIND: Kind = Kind::Choice(&["none", "tensorboard", "all"]);

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) if text.trim().eq_ignore_ascii_case("all") => Some(Reporter::Tensorboard),
            Value::String(text) => Self::from_name(text.trim()),
            Value::Sequence(names) => {
                let mut named = names.iter().filter(|name| !Self::is_nothing(name)).map(Self::from_value);
                let first = named.next()??;
                named.all(|other| other == Some(first)).then_some(first)
            }
            _ => None,
        }
    }

    fn is_nothing(value: &Value) -> bool {
        match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => {
                ["null", "none", "no", "false", "~", ""].contains(&text.trim().to_lowercase().as_str())
            }
            Value::Sequence(names) => names.iter().all(Self::is_nothing),
            _ => false,
        }
    }
}

macro_rules! choices {
    ($($type:ty),+) => {$(
        impl FromValue for $type {
            const KIND: Kind = Kind::Choice(<$type>::NAMES);

            fn from_value(value: &Value) -> Option<Self> {
                match value {
                    Value::Bool(false) => Self::from_name("no"),
                    Value::String(text) => Self::from_name(text.trim()),
                    _ => None,
                }
            }
        }
    )+};
}
choices!(
    Backend,
    Curve,
    PlateauMode,
    ThresholdMode,
    Precision,
    Scheduler,
    Strategy,
    Sampling,
    PackingStrategy,
    StoppingStrategy,
    ElementType,
    StateType,
    NonFinite,
    WrapPolicy,
    OffloadDevice,
    UnfreezingStart,
    ProblemType,
    WarmupType
);

/// With transformers' `eval_` before it or without.
impl FromValue for BestMetric {
    const KIND: Kind = Kind::Choice(BestMetric::NAMES);

    fn from_value(value: &Value) -> Option<Self> {
        let name = value.as_str()?.trim();
        Self::from_name(name.strip_prefix("eval_").unwrap_or(name))
    }
}

macro_rules! numbered_choices {
    ($($type:ty: $($number:literal $variant:ident),+;)+) => {$(
        /// By name, or by the number that FSDP gives it.
        impl FromValue for $type {
            const KIND: Kind = Kind::Choice(<$type>::NAMES);

            fn from_value(value: &Value) -> Option<Self> {
                match whole(value) {
                    $(Some($number) => Some(Self::$variant),)+
                    Some(_) => None,
                    None => Self::from_name(value.as_str()?.trim()),
                }
            }
        }
    )+};
}
numbered_choices! {
    FsdpStrategy: 1 FullShard, 2 ShardGradOp, 3 NoShard, 4 HybridShard, 5 HybridShardZero2;
    BackwardPrefetch: 1 Pre, 2 Post;
    StateDictType: 1 Full, 2 Local, 3 Sharded;
}

impl<T: FromValue> FromValue for Option<T> {
    const KIND: Kind = T::KIND;

    fn from_value(value: &Value) -> Option<Self> {
        if T::is_nothing(value) { Some(None) } else { T::from_value(value).map(Some) }
    }

    fn hint(value: &Value) -> Option<String> {
        T::hint(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn numbers_come_as_numbers_or_as_text() {
        for text in ["1e-5", "1.0e-5", "0.00001", "'1e-5'", "\"0.00001\"", "'  1e-5 '"] {
            assert_eq!(f64::from_value(&yaml(text)), Some(1e-5), "{text}");
        }
        for text in ["8", "8.0", "'8'", "8e0", "'8.0'"] {
            assert_eq!(u32::from_value(&yaml(text)), Some(8), "{text}");
        }
        assert_eq!(u32::from_value(&yaml("1_000")), Some(1000));
        assert_eq!(u64::from_value(&yaml("18446744073709551615")), Some(u64::MAX));
        for text in ["8.5", "-1", "eight", "true", "[8]", "null", "''", ".inf", "_8", "4294967296"] {
            assert_eq!(u32::from_value(&yaml(text)), None, "{text}");
        }
        for text in [".nan", ".inf", "'inf'", "'nan'", "infinity", "1e999"] {
            assert_eq!(f64::from_value(&yaml(text)), None, "{text}");
        }
    }

    #[test]
    fn switches_and_choices_survive_both_yaml_dialects() {
        for text in ["true", "True", "'true'", "yes", "on", "1"] {
            assert_eq!(bool::from_value(&yaml(text)), Some(true), "{text}");
        }
        for text in ["false", "'False'", "no", "off", "0"] {
            assert_eq!(bool::from_value(&yaml(text)), Some(false), "{text}");
        }
        assert_eq!(bool::from_value(&yaml("2")), None);
        for text in ["no", "'no'", "NO", "false"] {
            assert_eq!(Precision::from_value(&yaml(text)), Some(Precision::No), "{text}");
            assert_eq!(Strategy::from_value(&yaml(text)), Some(Strategy::No), "{text}");
        }
        assert_eq!(Scheduler::from_value(&yaml("false")), None);
        assert_eq!(Precision::from_value(&yaml("true")), None);
    }

    #[test]
    fn reporters_are_a_name_or_a_list() {
        let read = |text: &str| Option::<Reporter>::from_value(&yaml(text));
        for text in ["none", "[]", "[none]", "no", "false", "null", "''"] {
            assert_eq!(read(text), Some(None), "{text}");
        }
        for text in ["tensorboard", "all", "[tensorboard]", "[none, TensorBoard]", "[tensorboard, all]"] {
            assert_eq!(read(text), Some(Some(Reporter::Tensorboard)), "{text}");
        }
        for text in ["wandb", "[tensorboard, wandb]", "[wandb]", "7", "true", "{}"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn nothing_is_a_value_of_what_may_be_absent() {
        for text in ["null", "~", "", "'none'", "None"] {
            assert_eq!(Option::<u64>::from_value(&yaml(text)), Some(None), "{text}");
        }
        assert_eq!(Option::<u64>::from_value(&yaml("7")), Some(Some(7)));
        assert_eq!(Option::<u64>::from_value(&yaml("x")), None);
        assert_eq!(PathBuf::from_value(&yaml("2024")), Some(PathBuf::from("2024")));
        assert_eq!(PathBuf::from_value(&yaml("''")), None);
    }
}
