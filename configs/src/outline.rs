//! A job as far as it is decided: what `launch config` shows and writes. Neither model nor data need be there, nor be
//! named.

use crate::error::ConfigError;
use crate::registry::{DefaultValue, key};
use crate::resolve::{Inputs, hosts_written, resolve_job};
use crate::resolved::Resolved;
use crate::settings::missing;
use crate::topology::Topology;
use crate::written::Written;
use serde_yaml::Value;

/// Stands in for a path that nobody named yet.
const PLACEHOLDER: &str = "-";
/// Keys that may be named later: they say where things lie, and nothing else follows from them.
const LATER: [&str; 6] =
    ["model_name_or_path", "dataset", "eval_dataset", "ewc_dataset", "output_dir", "offload_optimizer_nvme_path"];

/// What a configuration amounts to.
#[derive(Debug, Clone)]
pub struct Outline {
    /// Everything decided; `-` stands for what is missing.
    pub resolved: Resolved,
    /// Where this `launch` stands among the hosts.
    pub topology: Topology,
    /// The keys of the hosts as they were written.
    pub hosts: Vec<Written>,
    /// Keys that have to be set and are not.
    pub missing: Vec<&'static str>,
}

/// Decides what can be decided. Paths that have to be named and are not are no error here: they are in
/// [`Outline::missing`].
///
/// # Errors
/// As [`crate::resolve`], but for those paths.
pub fn outline(inputs: &Inputs) -> Result<Outline, ConfigError> {
    let mut inputs = inputs.clone();
    let mut missing = Vec::new();
    loop {
        match resolve_job(&inputs) {
            Ok((resolved, topology)) => {
                let hosts = hosts_written(&inputs)?;
                return Ok(Outline { resolved, topology, hosts, missing });
            }
            Err(ConfigError::Missing { keys, hint }) => {
                let later = LATER.into_iter().filter(|key| keys.split(", ").any(|named| named == *key));
                let absent: Vec<&'static str> = later.filter(|key| !missing.contains(key)).collect();
                if absent.is_empty() {
                    return Err(ConfigError::Missing { keys, hint });
                }
                stand_in(&mut inputs, &absent);
                missing.extend(absent);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Names something for these keys.
pub(crate) fn stand_in(inputs: &mut Inputs, keys: &[&'static str]) {
    // A flag that takes a file's value back says nothing more.
    inputs.flags.retain(|(name, _)| !keys.iter().any(|key| crate::registry::same_name(key, name)));
    inputs.flags.extend(keys.iter().map(|key| ((*key).to_owned(), PLACEHOLDER.to_owned())));
}

impl Outline {
    /// Everything decided in the words of a file, in the order of `--help`, the hosts among it. What is missing is null.
    pub fn written(&self) -> Vec<Written> {
        let mut all = self.resolved.written();
        let defaults = crate::KEYS.iter().filter(|key| key.group == crate::Group::Hosts);
        let unset = defaults.filter(|key| !self.hosts.iter().any(|written| written.key == key.name));
        let unset = unset.map(|key| {
            let value = match key.default {
                DefaultValue::Text(text) => Value::from(text),
                _ => Value::Null,
            };
            let (section, key) = (key.section, key.name);
            Written { section, key, value, source: crate::written::DEFAULT.to_owned(), field: String::new() }
        });
        all.extend(self.hosts.iter().cloned().chain(unset));
        all.sort_by_key(|written| crate::Group::ALL.iter().position(|group| *group == written.group()));
        for written in all.iter_mut().filter(|written| self.missing.contains(&written.key)) {
            written.value = Value::Null;
            written.source = "missing".to_owned();
        }
        all
    }

    /// The error that a run would end with for what is missing, if anything is.
    ///
    /// # Errors
    /// [`ConfigError::Missing`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let absent: Vec<_> = self.missing.iter().filter_map(|name| key(name)).collect();
        if absent.is_empty() { Ok(()) } else { Err(missing(&absent)) }
    }
}
