//! Asking a launch that is at work for its status.

use std::time::Duration;

use tonic::transport::Endpoint;
use zerofold_proto::v1::status_client::StatusClient;
use zerofold_proto::v1::{StatusReply, StatusRequest};

use super::control_file::Told;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The status, or why there is none.
pub(super) fn ask(told: &Told) -> Result<StatusReply, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", told.address);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = async {
        let endpoint = Endpoint::from_shared(format!("http://{}", told.address)).map_err(|error| failed(&error))?;
        let channel = endpoint.connect_timeout(PATIENCE).timeout(PATIENCE).connect().await;
        let mut client = StatusClient::new(channel.map_err(|error| failed(&source(&error)))?);
        let reply = client.get(StatusRequest {}).await;
        reply.map(tonic::Response::into_inner).map_err(|status| failed(&status.message()))
    };
    runtime.map_err(|error| error.to_string())?.block_on(asked)
}

/// The innermost cause, which says what happened.
fn source(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
