//! The control plane's key-value store as [`Store`].

use crate::comm::Store;
use std::time::Duration;
use tonic::Status;
use tonic::transport::Channel;
use zerofold_proto::v1::control_client::ControlClient;
use zerofold_proto::v1::{
    StoreAddRequest, StoreCheckRequest, StoreDeleteRequest, StoreGetRequest, StoreSetRequest, StoreWaitRequest,
};

/// Added to a call's own limit before it is given up on this side, so that the server's answer, which names the missing
/// key, arrives first.
const GRACE: Duration = Duration::from_secs(10);

/// The store of the job, reached over gRPC. May be called from any thread that is not the control thread itself.
#[derive(Clone)]
pub struct ControlStore {
    client: ControlClient<Channel>,
    handle: tokio::runtime::Handle,
}

impl ControlStore {
    pub(super) fn new(client: ControlClient<Channel>, handle: tokio::runtime::Handle) -> Self {
        ControlStore { client, handle }
    }

    fn call<T>(
        &self,
        limit: Duration,
        future: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> Result<T, String> {
        match self.handle.block_on(async { tokio::time::timeout(limit + GRACE, future).await }) {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(status.message().to_string()),
            Err(_) => Err(format!("launch did not answer within {:?}", limit + GRACE)),
        }
    }
}

impl Store for ControlStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        let request = StoreSetRequest { key: key.to_string(), value: value.to_vec() };
        self.call(GRACE, self.client.clone().store_set(request)).map(|_| ())
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
        let request = StoreGetRequest { key: key.to_string(), timeout_ms: timeout.as_millis() as u64 };
        self.call(timeout, self.client.clone().store_get(request)).map(|reply| reply.value)
    }

    fn wait(&self, keys: &[String], timeout: Duration) -> Result<(), String> {
        let request = StoreWaitRequest { keys: keys.to_vec(), timeout_ms: timeout.as_millis() as u64 };
        self.call(timeout, self.client.clone().store_wait(request)).map(|_| ())
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        let request = StoreAddRequest { key: key.to_string(), amount };
        self.call(GRACE, self.client.clone().store_add(request)).map(|reply| reply.value)
    }

    fn check(&self, keys: &[String]) -> Result<bool, String> {
        let request = StoreCheckRequest { keys: keys.to_vec() };
        self.call(GRACE, self.client.clone().store_check(request)).map(|reply| reply.present)
    }

    fn remove(&self, key: &str) -> Result<bool, String> {
        let request = StoreDeleteRequest { key: key.to_string() };
        self.call(GRACE, self.client.clone().store_delete(request)).map(|reply| reply.deleted)
    }
}
