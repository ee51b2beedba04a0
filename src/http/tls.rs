//! TLS of the ports, and of connections to other members' ports ([`client`]).
//!
//! All files are read again for every handshake, so that certificates,
//! authorities and revocations are replaced by replacing files (LIM-9; etcd's
//! `client/pkg/transport/listener.go`). A handshake costs far more than
//! reading four small files does; for the same reason sessions are not
//! resumed, which would keep alive what a file has taken back.
//!
//! A file that is bad fails the handshakes while it is bad, and a start.

mod client;
mod common_name;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    NoServerSessionStorage, ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme, SupportedProtocolVersion, version,
};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use client::{ClientTls, KeyPair};
use common_name::common_names;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The server's chain, its own certificate first, in PEM.
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// There if clients must show a certificate.
    pub client_auth: Option<ClientAuth>,
    pub min_version: Version,
    /// Not below `min_version`.
    pub max_version: Version,
    /// Suites of TLS 1.2 to offer, by IANA's names; empty: all.
    pub cipher_suites: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientAuth {
    pub ca_file: PathBuf,
    /// Revoked certificates.
    pub crl_file: Option<PathBuf>,
    /// Names of which a certificate must have one; empty: any certificate of
    /// the authorities will do.
    pub allowed_hostnames: Vec<String>,
    /// Common names of which a certificate must have one; empty: any.
    pub allowed_common_names: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Tls12,
    Tls13,
}

#[derive(Debug, Error)]
pub enum TlsError {
    #[error("cannot read {}: {source}", path.display())]
    File {
        path: PathBuf,
        source: rustls::pki_types::pem::Error,
    },
    #[error("no certificate in {}", .0.display())]
    NoCertificate(PathBuf),
    #[error("bad certificate authority in {}: {source}", path.display())]
    Authority {
        path: PathBuf,
        source: rustls::Error,
    },
    #[error("cannot check certificates: {0}")]
    Verifier(#[from] VerifierBuilderError),
    #[error("none of the cipher suites of --cipher-suites can be offered")]
    NoCipherSuite,
    #[error(transparent)]
    Config(#[from] rustls::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Settings {
    /// Reads the files once, so that a start fails on a bad one.
    pub fn check(&self) -> Result<(), TlsError> {
        self.server_config().map(drop)
    }

    /// Takes a connection through its handshake.
    pub(super) async fn accept<S>(self: Arc<Settings>, stream: S) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let read = tokio::task::spawn_blocking(move || self.server_config());
        let config = read.await.map_err(io::Error::other)??;
        Ok(TlsAcceptor::from(Arc::new(config)).accept(stream).await?)
    }

    fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let versions = versions(self.min_version, self.max_version);
        let provider = Arc::new(provider(&self.cipher_suites, versions)?);
        let key = private_key(&self.key_file)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?;
        let builder = match &self.client_auth {
            Some(auth) => builder.with_client_cert_verifier(auth.verifier(&provider)?),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(certificates(&self.cert_file)?, key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

fn versions(min: Version, max: Version) -> &'static [&'static SupportedProtocolVersion] {
    static ONLY_12: [&SupportedProtocolVersion; 1] = [&version::TLS12];
    static ONLY_13: [&SupportedProtocolVersion; 1] = [&version::TLS13];
    static BOTH: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
    match (min, max) {
        (Version::Tls12, Version::Tls12) => &ONLY_12,
        (Version::Tls12, Version::Tls13) => &BOTH,
        (Version::Tls13, _) => &ONLY_13,
    }
}

fn provider(
    cipher_suites: &[String],
    versions: &[&SupportedProtocolVersion],
) -> Result<CryptoProvider, TlsError> {
    let mut provider = ring::default_provider();
    if !cipher_suites.is_empty() {
        // The list is about TLS 1.2 only, as in Go. Suites on it that the
        // library does not have are the weak ones; they are not missed
        // as long as one remains.
        provider.cipher_suites.retain(|suite| {
            suite.tls13().is_some() || cipher_suites.iter().any(|name| is_named(suite, name))
        });
        let is_usable = |suite: &rustls::SupportedCipherSuite| versions.contains(&suite.version());
        if !provider.cipher_suites.iter().any(is_usable) {
            return Err(TlsError::NoCipherSuite);
        }
    }
    Ok(provider)
}

impl ClientAuth {
    fn verifier(
        &self,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let roots = Arc::new(authorities(&self.ca_file)?);
        let mut builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
        if let Some(path) = &self.crl_file {
            let lists = CertificateRevocationListDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(unreadable(path))?;
            // A list of one authority says nothing about others' certificates.
            builder = builder
                .with_crls(lists)
                .only_check_end_entity_revocation()
                .allow_unknown_revocation_status();
        }
        let inner = builder.build()?;
        let allowed = AllowedNames::new(&self.allowed_hostnames, &self.allowed_common_names);
        Ok(match allowed {
            Some(allowed) => Arc::new(NamedClients { inner, allowed }),
            None => inner,
        })
    }
}

/// Which certificates are let in, of those that are good.
#[derive(Debug)]
struct AllowedNames {
    /// Empty: any.
    hosts: Vec<ServerName<'static>>,
    common_names: Vec<String>,
    /// A list of names of which none can be one lets nobody in.
    has_hosts: bool,
}

impl AllowedNames {
    /// None if all are allowed.
    fn new(hosts: &[String], common_names: &[String]) -> Option<AllowedNames> {
        let names = hosts.iter().cloned();
        let allowed = AllowedNames {
            hosts: names
                .filter_map(|name| ServerName::try_from(name).ok())
                .collect(),
            common_names: common_names.to_vec(),
            has_hosts: !hosts.is_empty(),
        };
        (allowed.has_hosts || !common_names.is_empty()).then_some(allowed)
    }

    fn check(&self, end_entity: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let mut hosts = self.hosts.iter();
        let has_host =
            !self.has_hosts || hosts.any(|name| verify_server_name(&certificate, name).is_ok());
        let has_common_name = self.common_names.is_empty()
            || common_names(end_entity).iter().any(|shown| {
                let mut allowed = self.common_names.iter();
                allowed.any(|name| name.as_bytes() == *shown)
            });
        if has_host && has_common_name {
            return Ok(());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| TlsError::Authority {
                path: path.to_owned(),
                source,
            })?;
    }
    Ok(roots)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(unreadable(path))
}

fn unreadable(path: &Path) -> impl FnOnce(rustls::pki_types::pem::Error) -> TlsError + '_ {
    move |source| TlsError::File {
        path: path.to_owned(),
        source,
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(unreadable(path))?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate(path.to_owned()));
    }
    Ok(certificates)
}

/// Lets clients in whose certificate is good and has one of some names
/// (`--client-cert-allowed-hostname`, `--peer-cert-allowed-cn`).
#[derive(Debug)]
struct NamedClients {
    inner: Arc<dyn ClientCertVerifier>,
    allowed: AllowedNames,
}

impl ClientCertVerifier for NamedClients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now)?;
        self.allowed.check(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Whether Go knows a cipher suite of this name. An unknown one is a mistake
/// that must not pass, a known one that cannot be offered is harmless.
pub fn is_cipher_suite(name: &str) -> bool {
    WEAK_SUITES.contains(&name)
        || ring::ALL_CIPHER_SUITES
            .iter()
            .any(|suite| is_named(suite, name))
}

/// Go also knows two suites by names without their hash, and writes the names
/// of TLS 1.3 without the version.
fn is_named(suite: &rustls::SupportedCipherSuite, name: &str) -> bool {
    let own_name = suite
        .suite()
        .as_str()
        .unwrap_or_default()
        .replace("TLS13_", "TLS_");
    own_name == name
        || (name.ends_with("_POLY1305") && own_name.strip_suffix("_SHA256") == Some(name))
}

/// Suites of TLS 1.2 that Go has and rustls leaves out for their weakness.
const WEAK_SUITES: &[&str] = &[
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

#[cfg(test)]
mod tests;
