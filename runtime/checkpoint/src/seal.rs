//! The seal of a manifest: a hash of what it tells.
//!
//! The files' hashes stand in the manifest; what else it tells (where parameters lie, the place in the data) nothing else
//! vouches for. A number that was changed there may make a manifest that could be, of a checkpoint that never was.

use crate::manifest::Manifest;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;

impl Manifest {
    /// The same with its seal, as it is published.
    pub fn sealed(&self) -> Manifest {
        Manifest { seal: Some(self.hash()), ..self.clone() }
    }

    /// The seal, if there is one, is that of this manifest; else what happened to it.
    pub fn check_seal(&self) -> Result<(), String> {
        let Some(seal) = &self.seal else { return Ok(()) };
        let hash = self.hash();
        match *seal == hash {
            true => Ok(()),
            false => Err(format!("was changed after it was published: its seal is {seal}, and should be {hash}")),
        }
    }

    /// The BLAKE3 hash of the compact JSON of a list of all fields but the seal, in their order.
    fn hash(&self) -> String {
        let Manifest { format_version, step, generation, world_size, stage, units, state, job, files, seal: _ } = self;
        let mut hasher = blake3::Hasher::new();
        let job = job.as_ref().map(|job| (Sorted(&job.configuration), &job.chat_template, &job.data));
        let fields = (format_version, step, generation, world_size, stage, units, Sorted(state), job, files);
        // Writing to a hasher never fails, and nor do these types.
        let _ = serde_json::to_writer(&mut hasher, &fields);
        hasher.finalize().to_hex().to_string()
    }
}

/// JSON with the keys of its objects sorted: programs may keep them in the order in which they came, or not.
struct Sorted<'a>(&'a Value);

impl Serialize for Sorted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(map) => {
                let sorted: BTreeMap<&String, &Value> = map.iter().collect();
                let mut target = serializer.serialize_map(Some(sorted.len()))?;
                sorted.into_iter().try_for_each(|(key, value)| target.serialize_entry(key, &Sorted(value)))?;
                target.end()
            }
            Value::Array(list) => {
                let mut target = serializer.serialize_seq(Some(list.len()))?;
                list.iter().try_for_each(|value| target.serialize_element(&Sorted(value)))?;
                target.end()
            }
            other => other.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::JobRecord;
    use crate::manifest::tests::part;
    use serde_json::json;

    #[test]
    fn a_seal_is_broken_by_whatever_changes() {
        let manifest = Manifest::assemble(vec![part(0, 2), part(1, 2)]).unwrap();
        manifest.check_seal().unwrap();
        let job = JobRecord { configuration: json!({"seed": 42}), chat_template: None, data: None };
        let sealed = Manifest { job: Some(job), ..manifest }.sealed();
        sealed.check_seal().unwrap();
        // Written and read, it holds: numbers come back bit for bit.
        let back: Manifest = serde_json::from_str(&serde_json::to_string_pretty(&sealed).unwrap()).unwrap();
        back.check_seal().unwrap();
        assert_eq!(back, sealed);
        type Change = fn(&mut Manifest);
        let changes: [Change; 11] = [
            |manifest| manifest.format_version = 3,
            |manifest| manifest.step = 21,
            |manifest| manifest.generation = 2,
            |manifest| manifest.world_size = 3,
            |manifest| manifest.stage = 0,
            |manifest| manifest.units[0].parameters[0].shape = vec![1, 1],
            |manifest| manifest.state["row"] = json!(481),
            |manifest| manifest.job = None,
            |manifest| manifest.job.iter_mut().for_each(|job| job.configuration = json!({"seed": 43})),
            |manifest| manifest.files.swap(0, 1),
            |manifest| manifest.seal = Some("0".repeat(64)),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut changed = sealed.clone();
            change(&mut changed);
            let told = changed.check_seal().unwrap_err();
            assert!(told.contains("was changed after it was published: its seal is "), "{number}: {told}");
        }
    }

    #[test]
    fn the_order_of_keys_does_not_matter_and_that_of_lists_does() {
        let text = |text: &str| {
            let value: Value = serde_json::from_str(text).unwrap();
            serde_json::to_string(&Sorted(&value)).unwrap()
        };
        assert_eq!(text(r#"{"b": [{"d": 1, "c": 0.5}], "a": null}"#), r#"{"a":null,"b":[{"c":0.5,"d":1}]}"#);
        assert_ne!(text("[1, 2]"), text("[2, 1]"));
    }
}
