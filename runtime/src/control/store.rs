//! The control plane's key-value store as [`Store`].

use crate::comm::Store;
use std::time::Duration;
use tonic::Status;
use zerofold_proto::v1::control_client::ControlClient;
use zerofold_proto::v1::{
    StoreAddRequest, StoreCheckRequest, StoreDeleteRequest, StoreGetAllRequest, StoreGetRequest, StoreSetRequest,
    StoreWaitRequest,
};
use zerofold_trust::Wire;

/// Added to a call's own limit before it is given up on this side, so that the server's answer, which names the missing
/// key, arrives first.
const GRACE: Duration = Duration::from_secs(10);

/// The store of one membership of the job, reached over gRPC: another membership has keys of its own, so that nobody meets
/// those who are gone. May be called from any thread that is not the control thread itself.
#[derive(Clone)]
pub struct ControlStore {
    client: ControlClient<Wire>,
    handle: tokio::runtime::Handle,
    generation: u64,
}

impl ControlStore {
    pub(super) fn new(client: ControlClient<Wire>, handle: tokio::runtime::Handle, generation: u64) -> Self {
        ControlStore { client, handle, generation }
    }

    fn key(&self, key: &str) -> String {
        format!("{}/{key}", self.generation)
    }

    fn keys(&self, keys: &[String]) -> Vec<String> {
        keys.iter().map(|key| self.key(key)).collect()
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
        let request = StoreSetRequest { key: self.key(key), value: value.to_vec() };
        self.call(GRACE, self.client.clone().store_set(request)).map(|_| ())
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
        let request = StoreGetRequest { key: self.key(key), timeout_ms: timeout.as_millis() as u64 };
        self.call(timeout, self.client.clone().store_get(request)).map(|reply| reply.value)
    }

    /// In one call: one for each key would be as many calls as there are pairs of ranks.
    fn get_all(&self, keys: &[String], timeout: Duration) -> Result<Vec<Vec<u8>>, String> {
        let request = StoreGetAllRequest { keys: self.keys(keys), timeout_ms: timeout.as_millis() as u64 };
        self.call(timeout, self.client.clone().store_get_all(request)).map(|reply| reply.values)
    }

    fn wait(&self, keys: &[String], timeout: Duration) -> Result<(), String> {
        let request = StoreWaitRequest { keys: self.keys(keys), timeout_ms: timeout.as_millis() as u64 };
        self.call(timeout, self.client.clone().store_wait(request)).map(|_| ())
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        let request = StoreAddRequest { key: self.key(key), amount };
        self.call(GRACE, self.client.clone().store_add(request)).map(|reply| reply.value)
    }

    fn check(&self, keys: &[String]) -> Result<bool, String> {
        let request = StoreCheckRequest { keys: self.keys(keys) };
        self.call(GRACE, self.client.clone().store_check(request)).map(|reply| reply.present)
    }

    fn remove(&self, key: &str) -> Result<bool, String> {
        let request = StoreDeleteRequest { key: self.key(key) };
        self.call(GRACE, self.client.clone().store_delete(request)).map(|reply| reply.deleted)
    }
}
