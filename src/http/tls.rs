//! TLS of the ports, and of connections to other members' ports ([`client`]).
//!
//! All files are read again for every handshake, so that certificates,
//! authorities and revocations are replaced by replacing files (LIM-9; etcd's
//! `client/pkg/transport/listener.go`). A handshake costs far more than
//! reading four small files does; for the same reason sessions are not
//! resumed, which would keep alive what a file has taken back.
//!
//! A file that is bad fails the handshakes while it is bad, and a start.
//!
//! | file | owns |
//! |---|---|
//! | `clients` | which clients are let in: authorities, revocation, names |
//! | `anchored` | certificates that are in the file of authorities themselves |
//! | `version1` | certificates that the library does not read |
//! | `revocation` | lists of revoked certificates |
//! | `names` | names that a certificate must have |
//! | `origin` | whether a certificate is that of the address it comes from |
//! | `refusal` | why a certificate is not taken, in words |
//! | `client` | the dialing side |
//! | `self_made` | certificates that the server makes for itself |
//! | `suites` | versions and cipher suites |

mod anchored;
mod client;
mod clients;
mod names;
mod origin;
mod refusal;
mod revocation;
mod self_made;
mod suites;
mod version1;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

pub use client::{ClientTls, KeyPair, Trust};
pub use clients::ClientAuth;
use refusal::Refusal;
pub use self_made::{SelfMade, SelfMadeError};
pub use suites::is_cipher_suite;
use suites::{provider, versions};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The server's chain, its own certificate first, in PEM.
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// There if clients must show a certificate.
    pub client_auth: Option<ClientAuth>,
    /// Whether a client's certificate must be that of the address it comes
    /// from, if it names addresses or hosts.
    pub checks_origin: bool,
    pub min_version: Version,
    /// Not below `min_version`.
    pub max_version: Version,
    /// Suites of TLS 1.2 to offer, by IANA's names; empty: all.
    pub cipher_suites: Vec<String>,
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
    #[error("no list of revoked certificates in {}: {problem}", path.display())]
    RevocationList { path: PathBuf, problem: String },
    #[error("cannot use the key in {}: {problem}", path.display())]
    Key { path: PathBuf, problem: String },
    #[error(
        "the key in {} is not that of the certificate in {}",
        key_file.display(),
        cert_file.display()
    )]
    OtherKey {
        cert_file: PathBuf,
        key_file: PathBuf,
    },
    #[error("cannot check certificates: {0}")]
    Verifier(#[from] VerifierBuilderError),
    #[error("none of the cipher suites of --cipher-suites can be offered")]
    NoCipherSuite,
    #[error(transparent)]
    Refused(Refusal),
    #[error(transparent)]
    Config(#[from] rustls::Error),
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> TlsError {
        match Refusal::behind(&error) {
            Some(refusal) => TlsError::Refused(refusal),
            None => TlsError::Io(error),
        }
    }
}

impl Settings {
    /// Reads the files once, so that a start fails on a bad one.
    pub fn check(&self) -> Result<(), TlsError> {
        self.server_config().map(drop)
    }

    /// Takes a connection through its handshake. `remote` is where it comes
    /// from, if that is an address.
    pub(super) async fn accept<S>(
        self: Arc<Settings>,
        stream: S,
        remote: Option<IpAddr>,
    ) -> Result<TlsStream<S>, TlsError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let checked = remote.filter(|_| self.checks_origin);
        let read = tokio::task::spawn_blocking(move || self.server_config());
        let config = read.await.map_err(io::Error::other)??;
        let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
        let shown = stream.get_ref().1.peer_certificates();
        if let (Some(remote), Some([end_entity, ..])) = (checked, shown) {
            origin::check(end_entity, remote).await?;
        }
        Ok(stream)
    }

    fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let versions = versions(self.min_version, self.max_version);
        let provider = Arc::new(provider(&self.cipher_suites, versions)?);
        let own = certified_key(&self.cert_file, &self.key_file, &provider)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)?;
        let builder = match &self.client_auth {
            Some(auth) => builder.with_client_cert_verifier(auth.verifier(&provider)?),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(own));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// The authorities that were read from `path`, as the library wants them.
fn authorities(
    path: &Path,
    certificates: &[CertificateDer<'static>],
) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate.clone())
            .map_err(|source| TlsError::Authority {
                path: path.to_owned(),
                source,
            })?;
    }
    Ok(roots)
}

/// A chain to show, and its key. Of which version the certificate is does not
/// matter here: the other side decides what it takes.
fn certified_key(
    cert_file: &Path,
    key_file: &Path,
    provider: &CryptoProvider,
) -> Result<SingleCertAndKey, TlsError> {
    let der = PrivateKeyDer::from_pem_file(key_file).map_err(unreadable(key_file))?;
    let chain = certificates(cert_file)?;
    let unusable = |problem: String| TlsError::Key {
        path: key_file.to_owned(),
        problem,
    };
    // Keys and certificates that are not understood here are left to the library.
    let certificate = Certificate::from_der(&chain[0]).ok();
    let own_key = certificate.map(|own| own.tbs_certificate.subject_public_key_info);
    let key = provider.key_provider.load_private_key(der);
    let key = key.map_err(|error| {
        let problem = own_key.as_ref().and_then(refusal::key_problem);
        unusable(match problem {
            Some(problem) => format!("its certificate {problem}"),
            None => error.to_string(),
        })
    })?;
    let wanted = own_key.and_then(|key| key.to_der().ok());
    if let (Some(wanted), Some(public)) = (wanted, key.public_key())
        && *public != *wanted
    {
        return Err(TlsError::OtherKey {
            cert_file: cert_file.to_owned(),
            key_file: key_file.to_owned(),
        });
    }
    Ok(CertifiedKey::new(chain, key).into())
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

#[cfg(test)]
mod tests;
