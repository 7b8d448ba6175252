//! Small messages for every call but one.

use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;

/// The one call whose messages may be large.
const LARGE: &str = "/CheckpointWritten";

/// Two forms of one service, which differ in the largest message that they read.
#[derive(Clone)]
pub(crate) struct BySize<S> {
    pub(crate) small: S,
    pub(crate) large: S,
}

impl<S: NamedService> NamedService for BySize<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for BySize<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        match self.small.poll_ready(context) {
            Poll::Ready(Ok(())) => self.large.poll_ready(context),
            other => other,
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        match request.uri().path().ends_with(LARGE) {
            true => self.large.call(request),
            false => self.small.call(request),
        }
    }
}
