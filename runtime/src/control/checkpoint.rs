//! What a save tells `launch`.

use super::{ControlError, Identity, call_on};
use std::time::Duration;
use zerofold_proto::v1::CheckpointPart;
use zerofold_proto::v1::control_client::ControlClient;
use zerofold_trust::Wire;

/// Tells of parts of checkpoints, from any thread that is not the control thread itself.
#[derive(Clone)]
pub struct CheckpointClient {
    client: ControlClient<Wire>,
    handle: tokio::runtime::Handle,
    identity: Identity,
}

impl CheckpointClient {
    pub(super) fn new(client: ControlClient<Wire>, handle: tokio::runtime::Handle, identity: Identity) -> Self {
        CheckpointClient { client, handle, identity }
    }

    /// Tells that this rank's part of a checkpoint lies on disk, or why it does not, and waits for what comes of the whole, at
    /// most `deadline`: nothing when it was committed, else the reason.
    ///
    /// # Errors
    /// When `launch` does not answer, or the job is at its end.
    pub fn written(
        &self,
        step: u64,
        directory: &str,
        part: Result<Vec<u8>, String>,
        deadline: Duration,
    ) -> Result<Option<String>, ControlError> {
        let (part, failure) = match part {
            Ok(part) => (part, String::new()),
            Err(failure) => (Vec::new(), failure),
        };
        let Identity { rank, generation, .. } = self.identity;
        let request = CheckpointPart { rank, generation, step, directory: directory.to_owned(), part, failure };
        let mut client = self.client.clone();
        let call = async move { client.checkpoint_written(request).await };
        let outcome = call_on(&self.handle, "checkpoint", deadline, call)?.into_inner();
        Ok((!outcome.failure.is_empty()).then_some(outcome.failure))
    }
}
