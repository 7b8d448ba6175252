//! `rdzv_conf`: how long hosts are waited for, in torchrun's words.

use crate::error::ConfigError;
use crate::known::no_effect;
use crate::registry::{Section, nearest};
use crate::settings::Reader;
use std::time::Duration;

/// How long hosts are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RendezvousTimes {
    /// For the fewest hosts that a job starts with.
    pub join: Duration,
    /// For further ones, from the last that came.
    pub last_call: Duration,
}

impl Default for RendezvousTimes {
    fn default() -> Self {
        RendezvousTimes { join: Duration::from_secs(600), last_call: Duration::from_secs(30) }
    }
}

/// What torchrun's own rendezvous has and ours does without.
const NO_EFFECT: [&str; 8] = [
    "timeout",
    "read_timeout",
    "close_timeout",
    "heartbeat_timeout",
    "keep_alive_interval",
    "keep_alive_max_attempt",
    "is_host",
    "use_libuv",
];

pub(super) fn times(reader: &Reader<'_>, notes: &mut Vec<String>) -> Result<RendezvousTimes, ConfigError> {
    let mut times = RendezvousTimes::default();
    let Some(setting) = reader.settings.find(Section::Top, "rdzv_conf") else { return Ok(times) };
    let text = crate::value::text(&setting.value).unwrap_or_default();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let wrong = |allowed: &str, hint: Option<String>| setting.not_allowed(allowed, hint);
        const FORM: &str = "it must be like join_timeout=600,last_call_timeout=30, in seconds";
        let (name, value) = part.split_once('=').ok_or_else(|| wrong(FORM, None))?;
        let name = name.trim().replace('-', "_");
        let known = match name.as_str() {
            "join_timeout" => &mut times.join,
            "last_call_timeout" => &mut times.last_call,
            name if NO_EFFECT.contains(&name) => {
                notes.push(no_effect(
                    setting,
                    &format!("{name} is torchrun's own; join_timeout and last_call_timeout count"),
                ));
                continue;
            }
            name => {
                let near = nearest(name, ["join_timeout", "last_call_timeout"]);
                return Err(wrong(FORM, near.map(|near| format!("{name} is unknown; did you mean {near}?"))));
            }
        };
        let seconds = value.trim().parse::<f64>().ok().filter(|seconds| (0.0..=1e7).contains(seconds));
        *known = Duration::from_secs_f64(seconds.ok_or_else(|| wrong(FORM, None))?);
    }
    Ok(times)
}
