//! Opening a store, for a run or to look at it.

use std::time::Duration;

use zerofold_configs::StoreUrl;
use zerofold_store::CheckpointStore;

use crate::environment;
use crate::error::LaunchError;

/// How long a request that fails for a reason that may pass is tried again while a run goes on.
const PATIENCE: Duration = Duration::from_secs(180);
/// The same at the start, and for commands that a person waits for.
const PATIENCE_AT_THE_START: Duration = Duration::from_secs(15);

/// The store of a run, once it is proven that it can be written and refuses to write over what is there.
pub(crate) fn for_run(url: &StoreUrl) -> Result<CheckpointStore, LaunchError> {
    // What is wrong from the start is told soon; later on a store may be away for minutes.
    to_look_at(url)?.prove_writable()?;
    Ok(CheckpointStore::open(url.bucket(), url.prefix(), patience(PATIENCE))?)
}

/// A store that is only read.
pub(crate) fn to_look_at(url: &StoreUrl) -> Result<CheckpointStore, LaunchError> {
    Ok(CheckpointStore::open(url.bucket(), url.prefix(), patience(PATIENCE_AT_THE_START))?)
}

fn patience(usual: Duration) -> Duration {
    let seconds = std::env::var(environment::STORE_PATIENCE).ok().and_then(|text| text.parse().ok());
    seconds.map_or(usual, Duration::from_secs)
}
