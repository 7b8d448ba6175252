//! Whether a store can do what is asked of it, tried with a small object before anything else begins.

use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode};

use crate::error::{Result, StoreError};

/// Creates an object at `place`, reads it back, sees that it cannot be created a second time, and deletes it.
///
/// # Errors
/// Any of these is refused, or the store writes over what is there.
pub(crate) async fn probe(objects: &dyn ObjectStore, place: &Path, url: &str, endpoint: &str) -> Result<()> {
    let content = format!("Whether this store can be written to. Safe to delete. {place}\n").into_bytes();
    let create = |content: Vec<u8>| objects.put_opts(place, content.into(), PutMode::Create.into());
    match create(content.clone()).await {
        Ok(_) => {}
        // A try whose answer was lost may have written it.
        Err(Error::AlreadyExists { .. }) => {}
        Err(error) => return Err(StoreError::request("write to", url, &error)),
    }
    let looked = look(objects, place, url, endpoint, &content).await;
    let second = create(content).await;
    let deleted = objects.delete(place).await;
    looked?;
    match second {
        Err(Error::AlreadyExists { .. }) => {}
        Ok(_) | Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
            return Err(StoreError::NoConditionalPut { url: url.to_owned(), endpoint: endpoint.to_owned() });
        }
        Err(error) if error.to_string().contains("NotImplemented") => {
            return Err(StoreError::NoConditionalPut { url: url.to_owned(), endpoint: endpoint.to_owned() });
        }
        Err(error) => return Err(StoreError::request("write to", url, &error)),
    }
    match deleted {
        Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(StoreError::request("delete from", url, &error)),
    }
}

async fn look(objects: &dyn ObjectStore, place: &Path, url: &str, endpoint: &str, content: &[u8]) -> Result<()> {
    let failed = |error| StoreError::request("read from", url, &error);
    let found = objects.get(place).await.map_err(failed)?.bytes().await.map_err(failed)?;
    if found.as_ref() != content {
        return Err(StoreError::ReadBack { url: url.to_owned(), endpoint: endpoint.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::TryStreamExt;
    use object_store::memory::InMemory;

    #[tokio::test]
    async fn a_store_that_can_do_it_is_left_as_it_was() {
        let objects = InMemory::new();
        probe(&objects, &Path::from("p/probe"), "s3://b/p", "memory").await.unwrap();
        assert!(objects.list(None).try_next().await.unwrap().is_none());
    }
}
