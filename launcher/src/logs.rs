//! The form of what `launch` prints while it trains: lines for a person, or one JSON object a line for a collector of logs.
//!
//! Objects have `timestamp`, `level`, `message`, `generation` and `step` (optimizer steps finished), and those that a worker
//! wrote its `rank`; what more a message has are fields of their own. Workers write objects themselves, and what they know
//! nothing of is added here.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use serde_json::{Map, Value};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::environment as env;
use crate::error::LaunchError;

/// The form of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for a person.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// The forms as they are written.
    pub const NAMES: [&str; 2] = ["text", "json"];

    /// The written form.
    pub fn name(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }

    /// Reads the written form.
    pub fn from_name(name: &str) -> Option<LogFormat> {
        [LogFormat::Text, LogFormat::Json].into_iter().find(|format| format.name() == name)
    }

    /// What was typed, else what the environment says, else text.
    ///
    /// # Errors
    /// The environment names another form.
    pub fn of(typed: Option<LogFormat>) -> Result<LogFormat, LaunchError> {
        let said = std::env::var_os(env::LOG_FORMAT).filter(|said| !said.is_empty());
        let (None, Some(said)) = (typed, said) else { return Ok(typed.unwrap_or_default()) };
        said.to_str().and_then(LogFormat::from_name).ok_or_else(|| {
            let message = format!("{} is {}, which is no form of messages", env::LOG_FORMAT, said.to_string_lossy());
            LaunchError::usage(message, "text are lines for a person, json one object a line")
        })
    }
}

/// Where the job is, for messages of threads that do not know it.
static STEP: AtomicU64 = AtomicU64::new(0);
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// So many optimizer steps are finished.
pub fn at_step(step: u64) {
    STEP.store(step, Ordering::Relaxed);
}

/// This membership of the job works.
pub fn at_generation(generation: u64) {
    GENERATION.store(generation, Ordering::Relaxed);
}

/// Prints the messages of `launch` itself on standard error from now on.
pub fn begin(format: LogFormat) {
    // What is wrong with a certificate is told once, by the error that it leads to.
    let filter =
        EnvFilter::try_from_env(env::LOG).unwrap_or_else(|_| EnvFilter::new("warn,rustls_platform_verifier=off"));
    let lines = tracing_subscriber::fmt().with_ansi(false).with_target(false);
    match format {
        LogFormat::Text => lines.without_time().with_env_filter(filter).with_writer(std::io::stderr).init(),
        LogFormat::Json => lines.json().flatten_event(true).with_env_filter(filter).with_writer(|| Objects).init(),
    }
}

/// Adds to each object where the job is.
struct Objects;

impl Write for Objects {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        writeln!(std::io::stderr().lock(), "{}", object(text.trim_end(), None).0)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A line as an object on one line, and its message. A line that is such an object already keeps its fields; any other is the
/// message, and its first word may tell the level.
pub fn object(line: &str, rank: Option<u32>) -> (String, String) {
    let written = Some(line).filter(|line| line.starts_with('{'));
    let written = written.and_then(|line| serde_json::from_str::<Map<String, Value>>(line).ok());
    let written = written.filter(|fields| fields.get("message").is_some_and(Value::is_string));
    let mut fields = written.unwrap_or_else(|| {
        let (level, message) = level(line);
        [("level".to_owned(), Value::from(level)), ("message".to_owned(), Value::from(message))].into_iter().collect()
    });
    let mut whole = Map::new();
    let time = fields.shift_remove("timestamp").unwrap_or_else(|| Value::from(timestamp()));
    whole.insert("timestamp".to_owned(), time);
    for name in ["level", "message"] {
        if let Some(value) = fields.shift_remove(name) {
            whole.insert(name.to_owned(), value);
        }
    }
    if let Some(rank) = rank {
        whole.insert("rank".to_owned(), Value::from(rank));
    }
    for (name, number) in [("generation", &GENERATION), ("step", &STEP)] {
        whole.insert(name.to_owned(), Value::from(number.load(Ordering::Relaxed)));
    }
    for (name, value) in fields {
        // What a message says of itself goes before where the job is.
        whole.insert(name, value);
    }
    let message = whole.get("message").and_then(Value::as_str).unwrap_or_default().to_owned();
    (Value::Object(whole).to_string(), message)
}

/// The level that a line's first word tells, and the rest.
fn level(line: &str) -> (&'static str, &str) {
    for (word, level) in [("error: ", "ERROR"), ("warning: ", "WARN"), ("note: ", "INFO")] {
        if let Some(message) = line.strip_prefix(word) {
            return (level, message);
        }
    }
    ("INFO", line)
}

/// Now, as the messages of `tracing` have it: `2026-11-24T06:29:33.123456Z`.
fn timestamp() -> String {
    let mut text = String::new();
    match tracing_subscriber::fmt::time::SystemTime.format_time(&mut Writer::new(&mut text)) {
        Ok(()) => text,
        Err(_) => format!("{:?}", SystemTime::now()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_becomes_one_object() {
        let read = |line: &str, rank| {
            let (text, message) = object(line, rank);
            assert!(!text.contains('\n'), "{text}");
            (serde_json::from_str::<Value>(&text).unwrap(), message)
        };
        let (plain, message) = read("error: no room\nhint: \"free\" some", None);
        assert_eq!((plain["level"].as_str(), message.as_str()), (Some("ERROR"), "no room\nhint: \"free\" some"));
        assert!(plain["timestamp"].as_str().unwrap().ends_with('Z') && plain.get("rank").is_none(), "{plain}");
        assert!(plain["generation"].is_u64() && plain["step"].is_u64(), "{plain}");
        assert_eq!(read("warning: slow", Some(1)).0["level"], "WARN");
        let (own, message) = read(r#"{"timestamp":"t","level":"DEBUG","message":"m","step":7,"bytes":3}"#, Some(2));
        assert_eq!(message, "m");
        assert_eq!(
            (&own["timestamp"], &own["level"], &own["rank"], &own["bytes"], &own["step"]),
            (&"t".into(), &"DEBUG".into(), &2.into(), &3.into(), &7.into())
        );
        // What only looks like an object, or is one of something else, is a message.
        for line in ["{not json", "{\"loss\":1}", "[1]", "", "{\"message\":7}"] {
            let (object, message) = read(line, Some(0));
            assert_eq!((object["message"].as_str(), message.as_str()), (Some(line), line));
        }
    }

    #[test]
    fn forms_are_known_by_name() {
        for name in LogFormat::NAMES {
            assert_eq!(LogFormat::from_name(name).map(LogFormat::name), Some(name));
        }
        assert_eq!(LogFormat::from_name("yaml"), None);
        assert_eq!(LogFormat::of(Some(LogFormat::Json)).unwrap(), LogFormat::Json);
    }
}
