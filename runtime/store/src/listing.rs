//! Which steps are in a store.

use std::collections::BTreeMap;
use std::path::Path as FilePath;

use futures_util::TryStreamExt;
use object_store::ObjectStore;
use object_store::path::Path;
use zerofold_checkpoint::publish::{MANIFEST_FILE, step_of};

use crate::error::{Result, StoreError};

/// What a step's manifest is called after it was set aside, with a number of its own behind it.
pub(crate) const REPLACED_MARK: &str = "manifest.json.replaced-";

/// A step of which something is in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredStep {
    /// The step.
    pub step: u64,
    /// The objects under its name: what is called how, with how many bytes.
    pub objects: BTreeMap<String, u64>,
}

impl StoredStep {
    /// Whether it has a manifest. Without one it is no checkpoint.
    pub fn is_published(&self) -> bool {
        self.objects.contains_key(MANIFEST_FILE)
    }

    /// Bytes of all objects.
    pub fn bytes(&self) -> u64 {
        self.objects.values().copied().fold(0, u64::saturating_add)
    }

    /// Whether it had a manifest, which was set aside.
    pub(crate) fn was_replaced(&self) -> bool {
        self.objects.keys().any(|name| name.starts_with(REPLACED_MARK))
    }

    /// The highest generation that an object's name tells.
    pub(crate) fn generation(&self) -> u64 {
        let generation = |name: &String| {
            let (rest, number) = name.strip_suffix(".safetensors")?.rsplit_once(".g")?;
            rest.starts_with("rank-").then(|| number.parse().ok())?
        };
        self.objects.keys().filter_map(generation).max().unwrap_or(0)
    }
}

/// The steps under `prefix`, oldest first, published or not. What is called otherwise is nobody's business here.
pub(crate) async fn steps(objects: &dyn ObjectStore, prefix: &Path, url: &str) -> Result<Vec<StoredStep>> {
    let under = (!prefix.as_ref().is_empty()).then_some(prefix);
    let mut steps: BTreeMap<u64, StoredStep> = BTreeMap::new();
    let mut listed = objects.list(under);
    while let Some(object) = listed.try_next().await.map_err(|error| StoreError::request("list", url, &error))? {
        let Some(parts) = object.location.prefix_match(prefix) else { continue };
        let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
        let [folder, name] = &parts[..] else { continue };
        let Some(step) = step_of(FilePath::new(folder)) else { continue };
        let stored = steps.entry(step).or_insert_with(|| StoredStep { step, objects: BTreeMap::new() });
        stored.objects.insert(name.clone(), object.size);
    }
    Ok(steps.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn only_names_of_steps_count() {
        let objects = InMemory::new();
        for (name, bytes) in [
            ("runs/a/step-00000020/manifest.json", 2),
            ("runs/a/step-00000020/rank-00000-of-00001.g3.safetensors", 5),
            ("runs/a/step-00000100/rank-00000-of-00001.g12.safetensors", 5),
            ("runs/a/step-00000100/rank-x.safetensors", 5),
            ("runs/a/step-00000007/manifest.json.replaced-1", 5),
            ("runs/a/step-20/manifest.json", 1),
            ("runs/a/step-00000030/deeper/manifest.json", 1),
            ("runs/a/notes.txt", 1),
            ("runs/ab/step-00000040/manifest.json", 1),
        ] {
            objects.put(&Path::from(name), vec![0; bytes].into()).await.unwrap();
        }
        let found = steps(&objects, &Path::from("runs/a"), "s3://b/runs/a").await.unwrap();
        let told: Vec<_> = found
            .iter()
            .map(|it| (it.step, it.is_published(), it.bytes(), it.generation(), it.was_replaced()))
            .collect();
        assert_eq!(told, [(7, false, 5, 0, true), (20, true, 7, 3, false), (100, false, 10, 12, false)]);
    }
}
