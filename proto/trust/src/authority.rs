//! The certificate authority that follows from a token.

use crate::Token;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use std::sync::Arc;
use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ServerConfig, version};
use tonic::transport::{Certificate, ClientTlsConfig};

/// What the authority's key is derived for.
const PURPOSE: &str = "zerofold 2026-11 control plane certificate authority key";
/// The name in the coordinator's certificate. Where it is reached says nothing: the authority's signature does.
const NAME: &str = "coordinator.zerofold.internal";
/// What stands before the 32 bytes of an Ed25519 key in PKCS #8 (RFC 8410).
const PKCS8_ED25519: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum TrustError {
    /// A certificate could not be made.
    #[error("the coordinator's certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS refuses it.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
}

/// The certificate authority of a job: the same wherever the token is.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    /// The authority that follows from `token`.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub fn of(token: &Token) -> Result<Authority, TrustError> {
        let key = [&PKCS8_ED25519[..], &token.derive(PURPOSE)].concat();
        let key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(key))?;
        let mut params = params("zerofold job")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // Equal wherever it is made.
        params.serial_number = Some(SerialNumber::from(1u64));
        let certificate = params.self_signed(&key)?.pem();
        Ok(Authority { issuer: Issuer::new(params, key), certificate })
    }

    /// What a server needs to prove that it has the token: a certificate for a key of its own.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub fn acceptor(&self) -> Result<TlsAcceptor, TrustError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let mut params = params(NAME)?;
        params.subject_alt_names = vec![rcgen::SanType::DnsName(NAME.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&version::TLS13])?
            .with_no_client_auth();
        let mut config = config.with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Every worker says what it has to say over one connection.
        config.send_tls13_tickets = 0;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// What a client needs to trust servers of this authority, and no other.
    pub fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.certificate)).domain_name(NAME)
    }
}

/// A certificate that no clock makes invalid: hosts whose clocks are wrong must be able to meet.
fn params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(1971, 1, 1);
    params.not_after = date_time_ymd(4000, 1, 1);
    Ok(params)
}
