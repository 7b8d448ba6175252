//! Deleting what need not stay. A step's manifest goes first, so that it is no checkpoint any more before anything is missing.

use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode};
use zerofold_checkpoint::publish::MANIFEST_FILE;
use zerofold_checkpoint::retention::plan_deletion;
use zerofold_checkpoint::{Retention, fault};

use crate::error::{Result, StoreError};
use crate::listing::{REPLACED_MARK, StoredStep};

/// Which steps may go once `committed` is in the store: published ones that need not stay, and older ones without a manifest,
/// which are what an upload that was killed has left.
pub(crate) fn plan(steps: &[StoredStep], committed: u64, keep: Option<Retention>) -> Vec<u64> {
    let states: Vec<(u64, bool)> = steps.iter().map(|stored| (stored.step, stored.is_published())).collect();
    let mut plan = keep.map(|keep| plan_deletion(&states, keep)).unwrap_or_default();
    // What was just committed stays, though older than what another run put there.
    plan.retain(|step| *step != committed);
    let leftover = |stored: &&StoredStep| !stored.is_published() && !stored.was_replaced() && stored.step < committed;
    plan.extend(steps.iter().filter(leftover).map(|stored| stored.step));
    plan
}

/// Deletes all objects of a step; `place` gives where one is, and its URL.
pub(crate) async fn delete(
    objects: &dyn ObjectStore,
    stored: &StoredStep,
    place: impl Fn(&str) -> (Path, String),
) -> Result<()> {
    if stored.is_published() {
        delete_object(objects, &place(MANIFEST_FILE)).await?;
        fault::reach(fault::DELETING_STORED);
    }
    for name in stored.objects.keys().filter(|name| *name != MANIFEST_FILE) {
        delete_object(objects, &place(name)).await?;
    }
    Ok(())
}

/// Makes a step no checkpoint any more, and keeps all of it: its manifest gets another name.
pub(crate) async fn set_aside(
    objects: &dyn ObjectStore,
    manifest: Vec<u8>,
    place: impl Fn(&str) -> (Path, String),
) -> Result<String> {
    let hash = blake3::hash(&manifest).to_hex();
    let (aside, url) = place(&format!("{REPLACED_MARK}{}", &hash[..16]));
    match objects.put_opts(&aside, manifest.into(), PutMode::Create.into()).await {
        // The name is made of the content.
        Ok(_) | Err(Error::AlreadyExists { .. }) => {}
        Err(error) => return Err(StoreError::request("write", &url, &error)),
    }
    delete_object(objects, &place(MANIFEST_FILE)).await?;
    Ok(url)
}

async fn delete_object(objects: &dyn ObjectStore, (place, url): &(Path, String)) -> Result<()> {
    match objects.delete(place).await {
        Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(StoreError::request("delete", url, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_keeps_the_newest_and_clears_what_was_killed() {
        let stored = |step, names: &[&str]| StoredStep {
            step,
            objects: names.iter().map(|name| ((*name).to_owned(), 1)).collect(),
        };
        let steps = [
            stored(1, &["a"]),
            stored(2, &["a", MANIFEST_FILE]),
            stored(3, &["a", "manifest.json.replaced-1"]),
            stored(4, &["a", MANIFEST_FILE]),
            stored(5, &["a"]),
            stored(6, &["a", MANIFEST_FILE]),
            stored(7, &["a"]),
        ];
        let newest = |newest| Some(Retention { newest, every: None, best: None });
        assert_eq!(plan(&steps, 6, None), [1, 5]);
        assert_eq!(plan(&steps, 6, newest(1)), [2, 4, 1, 5]);
        assert_eq!(plan(&steps, 6, newest(2)), [2, 1, 5]);
        assert_eq!(plan(&steps, 6, Some(Retention { newest: 1, every: Some(4), best: Some(2) })), [1, 5]);
        assert_eq!(plan(&steps, 4, newest(1)), [2, 1], "6 is not ours to judge, and 4 was just put there");
    }
}
