//! What every call has to pass before its body is read.

use crate::Token;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// What the proof is derived for.
const PURPOSE: &str = "zerofold 2026-11 control plane call";
/// Addresses that are remembered as told of; further ones are refused without a word.
const REMEMBERED: usize = 1024;

/// Those who were refused: each address and reason is logged once.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<Mutex<HashSet<(IpAddr, &'static str)>>>);

impl Refusals {
    /// Logs that `peer` was refused because of `reason`, unless it was said before.
    pub fn tell(&self, peer: Option<IpAddr>, kind: &'static str, reason: &str) {
        let peer = peer.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < REMEMBERED && told.insert((peer, kind)) {
            tracing::warn!("refused {peer}: {reason} (further attempts from there are refused without a word)");
        }
    }
}

/// Lets calls with the right proof pass.
#[derive(Clone, Debug)]
pub struct Gate {
    proof: blake3::Hash,
    refusals: Refusals,
}

impl Gate {
    /// The gate of the job with this token.
    pub fn new(token: &Token, refusals: Refusals) -> Gate {
        Gate { proof: Gate::proof(token), refusals }
    }

    /// What a caller shows: it follows from the token, which does not follow from it.
    pub(crate) fn proof(token: &Token) -> blake3::Hash {
        blake3::Hash::from_bytes(token.derive(PURPOSE))
    }

    fn admits(&self, header: Option<&[u8]>) -> bool {
        let shown = header.and_then(|header| header.strip_prefix(b"Bearer "));
        let shown = shown.and_then(|digits| blake3::Hash::from_hex(digits).ok());
        // Comparing hashes takes the same time wherever they differ.
        shown.is_some_and(|shown| shown == self.proof)
    }
}

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let header = request.metadata().get("authorization").map(|value| value.as_bytes());
        if self.admits(header) {
            return Ok(request);
        }
        let kind = if header.is_some() { "it has another token" } else { "it has no token" };
        self.refusals.tell(request.remote_addr().map(|peer| peer.ip()), kind, kind);
        Err(Status::unauthenticated(
            "the token is not this job's\nhint: give the same ZEROFOLD_TOKEN or --token-file on every host",
        ))
    }
}
