//! How a client of the control plane connects and shows its proof.

use crate::authority::{Authority, TrustError};
use crate::{Gate, Token};
use std::error::Error;
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// What [`reason`] says of a server that has another token.
pub const OTHER_TOKEN: &str = "it does not have this job's token";

/// What [`reason`] says of a server that speaks without TLS.
pub const NO_TLS: &str = "it does not speak TLS";

/// A connection whose calls carry the proof.
pub type Wire = InterceptedService<Channel, Bearer>;

/// Puts the proof into each call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Bearer {
    /// The proof that follows from `token`.
    pub fn of(token: &Token) -> Bearer {
        let proof = format!("Bearer {}", Gate::proof(token).to_hex());
        // Hexadecimal digits are always valid there.
        let mut value = MetadataValue::try_from(proof).unwrap_or_else(|_| MetadataValue::from_static(""));
        value.set_sensitive(true);
        Bearer(value)
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Where `address` is reached: `http://…` as it is, `https://…` with TLS of the token's authority.
///
/// # Errors
/// The address is none, or TLS cannot be set up; in words.
pub fn endpoint(address: &str, token: &Token, patience: Duration) -> Result<Endpoint, String> {
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| reason(&error))?;
    let endpoint = endpoint.connect_timeout(patience).tcp_nodelay(true);
    if !address.starts_with("https://") {
        return Ok(endpoint);
    }
    let authority = Authority::of(token).map_err(|error: TrustError| error.to_string())?;
    endpoint.tls_config(authority.client().timeout(patience)).map_err(|error| reason(&error))
}

/// The connection of calls that carry the proof.
pub fn wire(channel: Channel, token: &Token) -> Wire {
    InterceptedService::new(channel, Bearer::of(token))
}

/// Connects to `address` now, waiting at most `patience`.
///
/// # Errors
/// Why not, in words.
pub async fn connect(address: &str, token: &Token, patience: Duration) -> Result<Wire, String> {
    let endpoint = endpoint(address, token, patience)?;
    let connected = tokio::time::timeout(patience, endpoint.connect()).await;
    let channel = connected.map_err(|_| format!("no answer within {} s", patience.as_secs()))?;
    Ok(wire(channel.map_err(|error| reason(&error))?, token))
}

/// How rustls calls bytes that are no TLS.
pub(crate) const WRONG_RECORD: &str = "InvalidContentType";

/// What lies at the bottom of a failed connection, in words.
pub fn reason(error: &(dyn Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let words = deepest.to_string();
    if words.contains("UnknownIssuer") || words.contains("BadSignature") {
        return format!("{OTHER_TOKEN} (its certificate is of another authority)");
    }
    // What came in place of a TLS record is the answer of a server that took ours for a broken beginning of HTTP/2.
    match words.contains(WRONG_RECORD) {
        true => NO_TLS.to_owned(),
        false => words,
    }
}
