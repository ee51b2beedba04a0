//! TLS of connections that this member opens to others.
//!
//! As for the ports, all files are read again for each handshake. The other
//! side is always checked against the given authorities and the host of the
//! URL that was dialed; lists of names narrow that further, as etcd's
//! `--peer-cert-allowed-cn` and `--peer-cert-allowed-hostname` do on both
//! sides (etcd client/pkg/transport/listener.go, `baseConfig`).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{
    AllowedNames, TlsError, Version, authorities, certificates, private_key, provider, versions,
};

/// How this member dials a port that speaks TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTls {
    /// Shown to the other side if it asks.
    pub key_pair: Option<KeyPair>,
    /// Who may have signed the certificate of the other side.
    pub ca_file: PathBuf,
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
        let roots = Arc::new(authorities(&self.ca_file)?);
        let inner = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
        let inner = inner.build()?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NamedServers {
                inner,
                allowed: AllowedNames::new(&self.allowed_hostnames, &self.allowed_common_names),
            }));
        let mut config = match &self.key_pair {
            Some(pair) => builder.with_client_auth_cert(
                certificates(&pair.cert_file)?,
                private_key(&pair.key_file)?,
            )?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would keep alive what a file has taken back.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }
}

/// Trusts servers whose certificate is good, and has one of some names.
#[derive(Debug)]
struct NamedServers {
    inner: Arc<WebPkiServerVerifier>,
    allowed: Option<AllowedNames>,
}

impl ServerCertVerifier for NamedServers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        if let Some(allowed) = &self.allowed {
            allowed.check(end_entity)?;
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
