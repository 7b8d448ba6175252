//! Which data are looked at together: a source of training data, and what it must not have rows of.

use zerofold_configs::{ColumnMapping, DataSource, Dataset, Outline};
use zerofold_data::Sources;

use super::DataOptions;
use crate::error::LaunchError;
use crate::hub::{self, DataUse};
use crate::terminal::Terminal;

/// A source of training data, and the held-out data that it must not have rows of.
pub(super) struct Pair {
    /// What the source is called.
    pub(super) label: String,
    /// Its files, and how their columns are called.
    pub(super) training: (Sources, Option<ColumnMapping>),
    /// The same of held-out data.
    pub(super) held_out: Option<(Sources, Option<ColumnMapping>)>,
}

/// Each source of training data with the held-out one of the same label, or the only held-out one. Those of the hub are brought.
pub(super) fn pairs(options: &DataOptions, outline: &Outline, terminal: &Terminal) -> Result<Vec<Pair>, LaunchError> {
    let training = &outline.resolved.training;
    let missing = |key: &str| outline.missing.contains(&key);
    let held_out = training.eval_dataset.as_ref().filter(|_| !missing("eval_dataset"));
    let mut config = outline.resolved.clone();
    if !options.data.is_empty() {
        config.training.dataset = Dataset::of_names(options.data.clone());
    }
    let find = |source: &DataSource, which| -> Result<(Sources, Option<ColumnMapping>), LaunchError> {
        Ok((hub::sources_of(source, &config, which, terminal)?, source.column_mapping.clone()))
    };
    if options.data.is_empty() && missing("dataset") {
        let hint = "pass --data FILE, or --config FILE that names a dataset";
        return Err(LaunchError::usage("data check needs data", hint));
    }
    let data = &config.training.dataset;
    let mut unread = held_out.map(Dataset::labels).unwrap_or_default();
    let mut pairs = Vec::new();
    for (source, label) in data.sources().iter().zip(data.labels()) {
        let own = held_out.and_then(|held_out| match held_out.sources() {
            [only] => Some(only),
            several => held_out.labels().iter().position(|other| *other == label).map(|index| &several[index]),
        });
        match (held_out, own) {
            (Some(held_out), None) => terminal.tell(&format!(
                "note: leaks of {label} are not looked for: no held-out source is called so (there are {})",
                held_out.labels().join(", ")
            )),
            (Some(held_out), Some(_)) if held_out.sources().len() > 1 => unread.retain(|other| *other != label),
            _ => unread.clear(),
        }
        pairs.push(Pair {
            training: find(source, DataUse::Training)?,
            held_out: own.map(|own| find(own, DataUse::HeldOut)).transpose()?,
            label,
        });
    }
    if !unread.is_empty() {
        let unread = unread.join(", ");
        terminal.tell(&format!("note: not looked at: held-out data of {unread}, of which there is no training source"));
    }
    Ok(pairs)
}
