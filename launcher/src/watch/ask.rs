//! Asking a launch that is at work for its status.

use std::path::Path;
use std::time::Duration;

use zerofold_proto::v1::status_client::StatusClient;
use zerofold_proto::v1::{StatusReply, StatusRequest};
use zerofold_trust::{Token, connect};

use super::control_file::Told;
use crate::environment as env;
use crate::hosts::read_token;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The status, or why there is none.
pub(super) fn ask(told: &Told, token_file: Option<&Path>) -> Result<StatusReply, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", told.address);
    let token = token(told, token_file).map_err(|error| failed(&error))?;
    let url = format!("{}://{}", if told.tls { "https" } else { "http" }, told.address);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = async {
        let wire = connect(&url, &token, PATIENCE).await.map_err(|error| failed(&error))?;
        let mut request = tonic::Request::new(StatusRequest {});
        request.set_timeout(PATIENCE);
        let reply = StatusClient::new(wire).get(request).await;
        reply.map(tonic::Response::into_inner).map_err(|status| failed(&status.message()))
    };
    runtime.map_err(|error| error.to_string())?.block_on(asked)
}

/// What the job asks its callers for: told beside the address where it is on one host, else the user's own.
fn token(told: &Told, file: Option<&Path>) -> Result<Token, String> {
    if let (None, Some(file)) = (&told.token, file) {
        return read_token(file).map_err(|error| error.to_string());
    }
    let own = std::env::var(env::TOKEN).ok();
    let how = || format!("the job runs on several hosts: give its token by --token-file FILE or {}", env::TOKEN);
    let text = told.token.clone().or(own).ok_or_else(how)?;
    Token::parse(&text).map_err(|error| format!("its token: {error}"))
}
