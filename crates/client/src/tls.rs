//! TLS to a daemon elsewhere, whose certificate is known by its fingerprint.

use crate::Error;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
};

/// A daemon on another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Where it listens: `HOST:PORT`.
    pub address: String,
    /// The fingerprint of its certificate: `sha256:` and 64 digits.
    pub fingerprint: String,
    /// A certificate by which the caller is known, with its key: files in PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Connects to daemons of which this one is known.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) address: String,
    name: ServerName<'static>,
    connector: TlsConnector,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Tls {
    pub(crate) fn new(remote: &Remote) -> Result<Tls, Error> {
        let pinned = Pinned::new(Some(remote.fingerprint.to_ascii_lowercase()));
        Tls::with(&remote.address, pinned, remote.identity.as_ref())
    }

    fn with(address: &str, pinned: Arc<Pinned>, identity: Option<&(PathBuf, PathBuf)>) -> Result<Tls, Error> {
        let unusable = |what: &str, e: &dyn std::error::Error| {
            Error::bad_remote(format!("the {what} for {address} cannot be used"), e)
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable("TLS", &e))?
            .dangerous()
            // Not by authorities but by its fingerprint, which the person has seen.
            .with_custom_certificate_verifier(pinned);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = CertificateDer::pem_file_iter(certificate)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .map_err(|e| unusable("certificate", &e))?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(|e| unusable("key", &e))?;
                builder.with_client_auth_cert(chain, key).map_err(|e| unusable("certificate", &e))?
            }
        };
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|e| unusable("name", &e))?;
        Ok(Tls { address: address.into(), name, connector: TlsConnector::from(Arc::new(config)) })
    }

    pub(crate) async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&self.address).await?;
        let _ = stream.set_nodelay(true);
        self.connector.connect(self.name.clone(), stream).await
    }
}

/// The fingerprint of the certificate that a daemon shows: to be compared with what the daemon's log says before it
/// is trusted.
///
/// # Errors
/// When nobody answers there by TLS.
pub async fn fingerprint_of(address: &str) -> Result<String, Error> {
    let pinned = Pinned::new(None);
    let tls = Tls::with(address, pinned.clone(), None)?;
    let connected = tls.connect().await;
    let seen = pinned.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match (connected, seen) {
        (Ok(_), Some(seen)) => Ok(seen),
        (Err(error), _) => Err(Error::unreachable(&crate::connection::Target::Tls(tls), error)),
        (Ok(_), None) => Err(Error::malformed("TLS without a certificate")),
    }
}

/// Trusts the one certificate with a fingerprint; without one, any, which it remembers.
#[derive(Debug)]
struct Pinned {
    fingerprint: Option<String>,
    seen: Mutex<Option<String>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn new(fingerprint: Option<String>) -> Arc<Pinned> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        Arc::new(Pinned { fingerprint, seen: Mutex::default(), algorithms })
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let digits = Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let shown = format!("sha256:{digits}");
        let good = self.fingerprint.as_ref().is_none_or(|pinned| *pinned == shown);
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        match good {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
