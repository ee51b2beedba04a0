//! TLS of connections that this member opens to others.
//!
//! As for the ports, all files are read again for each handshake. The other
//! side is checked against the given authorities and the host of the URL that
//! was dialed; lists of names narrow that further, as etcd's
//! `--peer-cert-allowed-cn` and `--peer-cert-allowed-hostname` do on both
//! sides (etcd client/pkg/transport/listener.go, `baseConfig`). Only members
//! with certificates of their own making (`--peer-auto-tls`) trust anybody.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::anchored::{Purpose, is_anchor};
use super::names::AllowedNames;
use super::refusal::{check_key, explain};
use super::{TlsError, Version, authorities, certificates, certified_key, provider, versions};

/// How this member dials a port that speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// Shown to the other side if it asks.
    pub key_pair: Option<KeyPair>,
    pub trust: Trust,
    /// Names of which that certificate must have one besides the host that is
    /// dialed; empty: any.
    pub allowed_hostnames: Vec<String>,
    pub allowed_common_names: Vec<String>,
    pub min_version: Version,
    /// Not below `min_version`.
    pub max_version: Version,
    /// Suites of TLS 1.2 to offer, by IANA's names; empty: all.
    pub cipher_suites: Vec<String>,
}

/// Which certificates of the other side are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// What the authorities in this file have signed for the host that is
    /// dialed.
    Authorities(PathBuf),
    /// All: who listens in is kept out, who stands in between is not.
    Anybody,
}

/// Files in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The chain, its own certificate first.
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

impl ClientTls {
    /// Reads the files once, so that a start fails on a bad one.
    pub fn check(&self) -> Result<(), TlsError> {
        self.client_config().map(drop)
    }

    /// Takes a connection to `host` through its handshake.
    pub(in crate::http) async fn connect<S>(
        self: Arc<ClientTls>,
        host: &str,
        stream: S,
    ) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let read = tokio::task::spawn_blocking(move || self.client_config());
        let config = read.await.map_err(io::Error::other)??;
        let connector = TlsConnector::from(Arc::new(config));
        Ok(connector.connect(name, stream).await?)
    }

    fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let versions = versions(self.min_version, self.max_version);
        let provider = Arc::new(provider(&self.cipher_suites, versions)?);
        let verifier: Arc<dyn ServerCertVerifier> = match &self.trust {
            Trust::Authorities(path) => Arc::new(self.named_servers(path, &provider)?),
            Trust::Anybody => Arc::new(AnyServer {
                algorithms: provider.signature_verification_algorithms,
            }),
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &self.key_pair {
            Some(pair) => {
                let own = certified_key(&pair.cert_file, &pair.key_file, &provider)?;
                builder.with_client_cert_resolver(Arc::new(own))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would keep alive what a file has taken back.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }

    fn named_servers(
        &self,
        ca_file: &Path,
        provider: &Arc<CryptoProvider>,
    ) -> Result<NamedServers, TlsError> {
        let trusted = certificates(ca_file)?;
        let roots = Arc::new(authorities(ca_file, &trusted)?);
        let inner = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider));
        Ok(NamedServers {
            inner: inner.build()?,
            authorities: trusted,
            allowed: AllowedNames::new(&self.allowed_hostnames, &self.allowed_common_names),
        })
    }
}

/// Trusts servers whose certificate is good, and has one of some names.
#[derive(Debug)]
struct NamedServers {
    inner: Arc<WebPkiServerVerifier>,
    authorities: Vec<CertificateDer<'static>>,
    allowed: AllowedNames,
}

impl ServerCertVerifier for NamedServers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        check_key(end_entity)?;
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        if let Err(error) = verified {
            if !is_anchor(end_entity, &self.authorities, Purpose::Server, now) {
                return Err(explain(error, end_entity, intermediates));
            }
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        }
        self.allowed.check(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Trusts whoever has the key of the certificate it shows.
#[derive(Debug)]
struct AnyServer {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
