//! From a bucket and the environment to a client.
//!
//! Credentials, region and endpoint are read as S3 tools read them from the environment: `AWS_ACCESS_KEY_ID`,
//! `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL` (`AWS_ENDPOINT_URL_S3` goes before it), and
//! what containers and instances of a cloud are given.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};

use crate::error::{Result, StoreError};

/// One try of a request, answer included: a part of 8 MiB over a slow line.
const ONE_TRY: &str = "120s";
/// Tries are further and further apart, at most so far.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A client, and where its server is.
pub(crate) struct Connection {
    /// The client.
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// For messages.
    pub(crate) endpoint: String,
}

/// Makes a client; nothing is sent yet. What fails for a reason that may pass (no connection, an error of the server) is tried
/// again for `patience`.
pub(crate) fn connect(bucket: &str, url: &str, patience: Duration) -> Result<Connection> {
    let builder = AmazonS3Builder::from_env();
    let value = |key: AmazonS3ConfigKey| builder.get_config_value(&key).filter(|value| !value.is_empty());
    let endpoint = value(AmazonS3ConfigKey::S3Endpoint).or(value(AmazonS3ConfigKey::Endpoint));
    let setup = |reason: String| StoreError::Setup {
        url: url.to_owned(),
        reason,
        hint: "AWS_ENDPOINT_URL is where the store is, as http://HOST:PORT or https://HOST; AWS_ACCESS_KEY_ID and \
               AWS_SECRET_ACCESS_KEY are who asks",
    };
    if let Some(endpoint) = endpoint.as_deref().filter(|endpoint| !is_endpoint(endpoint)) {
        return Err(setup(format!("AWS_ENDPOINT_URL is {endpoint}, which is no such place")));
    }
    let plain_http = endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let pauses =
        BackoffConfig { init_backoff: Duration::from_millis(200), max_backoff: LONGEST_PAUSE, ..Default::default() };
    let mut builder = builder
        .with_bucket_name(bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // Not every server knows how to delete many at once.
        .with_disable_bulk_delete(true)
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), ONE_TRY)
        // The time alone bounds the tries.
        .with_retry(RetryConfig { backoff: pauses, max_retries: 10_000, retry_timeout: patience });
    if plain_http {
        builder = builder.with_allow_http(true);
    }
    let objects = builder.build().map_err(|error| setup(error.to_string()))?;
    Ok(Connection { objects: Arc::new(objects), endpoint: endpoint.unwrap_or("Amazon S3".to_owned()) })
}

/// Whether the environment says who asks. Where it does not, a cloud's machine is asked for its own credentials, whose failures
/// read as if they were the store's.
pub(crate) fn has_credentials() -> bool {
    let given = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let names = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    names.iter().any(given)
}

/// `http://HOST` or `https://HOST`, perhaps with a port and a path: what is none would be met in the middle of a request.
fn is_endpoint(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else { return false };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let plain =
        |text: &str, others: &[u8]| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || others.contains(&byte));
    let is_name = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !name.is_empty() && plain(name, b".-_"),
    };
    is_name && port.is_none_or(|port| port.parse::<u16>().is_ok()) && plain(path, b"/.-_~")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_servers() {
        for text in ["http://127.0.0.1:9000", "https://s3.example.com", "https://s3.example.com/", "http://[::1]:9000"]
        {
            assert!(is_endpoint(text), "{text}");
        }
        for text in
            ["s3.example.com", "http://", "ftp://host", "http://host:port", "http://a b", "https://[::1", "http://a?b"]
        {
            assert!(!is_endpoint(text), "{text}");
        }
    }
}
