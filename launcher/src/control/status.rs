//! The service by which a job is watched: it reads, and changes nothing.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use zerofold_proto::v1::{StatusReply, StatusRequest, status_server};

use crate::watch::Board;

/// The service.
#[derive(Clone)]
pub(super) struct StatusService(pub(super) Arc<Board>);

#[tonic::async_trait]
impl status_server::Status for StatusService {
    async fn get(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(self.0.status()))
    }
}
