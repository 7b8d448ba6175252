//! Where two launches of one job were given different configurations. A job trained from two of them would be silently
//! wrong.

use serde_json::{Map, Value};
use zerofold_configs::Resolved;

/// What may differ, since it is about the machine or about where values came from. How many processes there are is told by
/// each host for itself.
const OWN: [&str; 10] = [
    "gpu_ids",
    "main_process_port",
    "num_processes",
    "provenance",
    "notes",
    "hub_model",
    "hub_data",
    "initial_checkpoint",
    "chat_template",
    "template_date",
];
/// More are only counted.
const SHOWN: usize = 8;

/// A configuration as it is sent to the coordinator.
pub(super) fn told(config: &Resolved) -> Value {
    let mut value = serde_json::to_value(config).unwrap_or_default();
    if let Some(keys) = value.as_object_mut() {
        keys.retain(|key, _| !OWN.contains(&key.as_str()));
    }
    value
}

/// The keys that differ, with both values, in words; none where the two say the same.
pub(super) fn difference(ours: &Value, theirs: &Value) -> Option<String> {
    let mut found = Vec::new();
    compare("", ours, theirs, &mut found);
    if found.is_empty() {
        return None;
    }
    let more = found.len().saturating_sub(SHOWN);
    found.truncate(SHOWN);
    if more > 0 {
        found.push(format!("and {more} more"));
    }
    Some(found.join("; "))
}

fn compare(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    if let (Value::Object(ours), Value::Object(theirs)) = (ours, theirs) {
        for key in keys(ours, theirs) {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            if !(path == *key && OWN.contains(&key.as_str())) {
                let value = |of: &Map<String, Value>| of.get(key).cloned().unwrap_or(Value::Null);
                compare(&path, &value(ours), &value(theirs), found);
            }
        }
    } else if ours != theirs {
        found.push(format!("{path} is {ours} on host 0 and {theirs} there"));
    }
}

fn keys<'a>(ours: &'a Map<String, Value>, theirs: &'a Map<String, Value>) -> Vec<&'a String> {
    ours.keys().chain(theirs.keys().filter(|key| !ours.contains_key(*key))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerofold_configs::{Inputs, resolve};

    fn config(flags: &[(&str, &str)], nproc: u32) -> Resolved {
        let flags = flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        resolve(&Inputs { config: Some("zero3.yaml".to_owned()), flags, nproc: Some(nproc), ..Inputs::default() })
            .unwrap()
    }

    #[test]
    fn what_trains_must_be_the_same_and_what_is_the_machines_own_may_differ() {
        let ours = told(&config(&[], 2));
        assert_eq!(difference(&ours, &told(&config(&[("main_process_port", "7")], 4))), None);
        let theirs = told(&config(&[("learning_rate", "1"), ("output_dir", "x")], 2));
        let words = difference(&ours, &theirs).unwrap();
        let expected =
            ["training.learning_rate is ", " on host 0 and 1.0 there", "training.output_dir is \"", "and \"x\" there"];
        expected.iter().for_each(|part| assert!(words.contains(part), "{part} is not in {words}"));
        let other: Value = serde_json::json!({"notes": ["x"], "unknown": 1});
        assert!(difference(&ours, &other).unwrap().contains("more"), "absent keys differ too");
    }
}
