//! Connections: the Unix socket for the daemon's owner, TLS for everybody else.

use super::access::{Peer, Place};
use crate::app::App;
use crate::config::Config;
use crate::{StartError, util};
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::fs::Mode;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{self, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

/// More connections than this wait. Those over the network have places of their own: nobody there can keep the owner out.
const CONNECTIONS_MAX: usize = 512;
/// A client has this long for its handshake, and for the head of each request.
const HEAD_PATIENCE: Duration = Duration::from_secs(20);

/// Where clients come in.
pub(crate) struct Listeners {
    unix: UnixListener,
    tls: Option<(TcpListener, TlsAcceptor)>,
}

/// Begins to listen.
pub(crate) async fn bind(config: &Config) -> Result<Listeners, StartError> {
    let path = config.paths.socket();
    let cannot = |e: io::Error| StartError::new(format!("the socket {path:?} cannot be made")).with_source(e);
    // The daemon's lock is held: whatever lies there is of a daemon that is gone.
    let _ = std::fs::remove_file(&path);
    let unix = UnixListener::bind(&path).map_err(cannot)?;
    rustix::fs::chmod(&path, Mode::RUSR | Mode::WUSR).map_err(|e| cannot(e.into()))?;
    let tls = match config.listen {
        None => None,
        Some(address) => {
            let listener = TcpListener::bind(address).await.map_err(|e| {
                StartError::new(format!("the daemon cannot listen at {address}")).with_source(e)
            })?;
            log::info!("listening at {}", listener.local_addr().map_or(address, |address| address));
            Some((listener, acceptor(config)?))
        }
    };
    Ok(Listeners { unix, tls })
}

/// TLS with the certificate in the data folder; a self-signed one is made if there is none.
fn acceptor(config: &Config) -> Result<TlsAcceptor, StartError> {
    let (certificate, key) = (config.paths.certificate(), config.paths.key());
    let bad = |what: &str, e: Box<dyn std::error::Error + Send + Sync>| {
        StartError::new(format!("the {what} for TLS cannot be used")).with_source(e)
    };
    if !certificate.exists() && !key.exists() {
        let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let names = vec![name, "localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).map_err(|e| bad("certificate", e.into()))?;
        write_private(&key, &made.signing_key.serialize_pem()).map_err(|e| bad("key", e.into()))?;
        write_private(&certificate, &made.cert.pem()).map_err(|e| bad("certificate", e.into()))?;
    }
    let chain = CertificateDer::pem_file_iter(&certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| bad("certificate", e.into()))?;
    let key = PrivateKeyDer::from_pem_file(&key).map_err(|e| bad("key", e.into()))?;
    if let Some(first) = chain.first() {
        log::info!("the certificate's fingerprint is sha256:{}", util::hex(&util::digest(first)));
    }
    let tls = ServerConfig::builder()
        .with_client_cert_verifier(Arc::new(AnyCertificate::new()))
        .with_single_cert(chain, key)
        .map_err(|e| bad("certificate", e.into()))?;
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

/// Takes any certificate of a client: who it stands for, the records say. That the client has its key is checked.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl AnyCertificate {
    fn new() -> AnyCertificate {
        AnyCertificate(ring::default_provider().signature_verification_algorithms)
    }
}

impl ClientCertVerifier for AnyCertificate {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

/// Serves clients for ever.
pub(crate) async fn serve(listeners: Listeners, app: Arc<App>) {
    let router = super::router(app);
    let places = || Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let local = serve_unix(listeners.unix, router.clone(), places());
    match listeners.tls {
        None => local.await,
        Some((listener, acceptor)) => {
            tokio::join!(local, serve_tls(listener, acceptor, router, places()));
        }
    }
}

async fn serve_unix(listener: UnixListener, router: Router, places: Arc<Semaphore>) {
    let owner = rustix::process::geteuid().as_raw();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let owned = stream.peer_cred().is_ok_and(|peer| peer.uid() == owner || peer.uid() == 0);
                let peer = if owned { Peer::Owner } else { Peer::Stranger };
                let router = router.clone();
                tokio::spawn(async move {
                    serve_connection(stream, router, peer, place).await;
                });
            }
            Err(e) => accept_failed(&e).await,
        }
    }
}

async fn serve_tls(listener: TcpListener, acceptor: TlsAcceptor, router: Router, places: Arc<Semaphore>) {
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                let (router, acceptor) = (router.clone(), acceptor.clone());
                tokio::spawn(async move {
                    if let Ok(Ok(stream)) = tokio::time::timeout(HEAD_PATIENCE, acceptor.accept(stream)).await
                    {
                        let certificate =
                            stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                        let peer = certificate.map_or(Peer::Stranger, |it| Peer::Certificate(it.to_vec()));
                        serve_connection(stream, router, peer, place).await;
                    }
                });
            }
            Err(e) => accept_failed(&e).await,
        }
    }
}

/// Out of descriptors, most likely: some will be free again.
async fn accept_failed(error: &io::Error) {
    log::warn!("a connection cannot be taken: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Serves one client until either side ends the connection. The connection has its `place` as long as it lasts, and
/// as long as work for it is under way.
pub(super) async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    peer: Peer,
    place: OwnedSemaphorePermit,
) {
    let router = router.layer(axum::Extension(peer)).layer(axum::Extension(Place(Arc::new(place))));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades();
    // A client that goes away in the middle is its own matter.
    let _ = connection.await;
}
