//! Which clients are let in by their certificates.
//!
//! A certificate must be good (signed by an authority, in its period, for
//! clients), not revoked, and have one of the allowed names if there are some.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, ProtocolVersion, RootCertStore,
    SignatureScheme,
};

use super::anchored::{Purpose, is_anchor};
use super::names::AllowedNames;
use super::refusal::{check_key, explain};
use super::revocation::Revoked;
use super::{TlsError, authorities, certificates, version1};

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

impl ClientAuth {
    /// Reads the files.
    pub(super) fn verifier(
        &self,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let authorities_der = certificates(&self.ca_file)?;
        let roots: RootCertStore = authorities(&self.ca_file, &authorities_der)?;
        let inner =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        Ok(Arc::new(Clients {
            inner: inner.build()?,
            authorities: authorities_der,
            algorithms: provider.signature_verification_algorithms,
            revoked: self.crl_file.as_deref().map(Revoked::read).transpose()?,
            allowed: AllowedNames::new(&self.allowed_hostnames, &self.allowed_common_names),
        }))
    }
}

#[derive(Debug)]
struct Clients {
    inner: Arc<dyn ClientCertVerifier>,
    authorities: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
    revoked: Option<Revoked>,
    allowed: AllowedNames,
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check_key(end_entity)?;
        if let Some(old) = version1::parse(end_entity) {
            version1::verify(&old, &self.authorities, &self.algorithms, now)?;
        } else {
            let inner = &self.inner;
            let verified = inner.verify_client_cert(end_entity, intermediates, now);
            if let Err(error) = verified
                && !is_anchor(end_entity, &self.authorities, Purpose::Client, now)
            {
                return Err(explain(error, end_entity, intermediates));
            }
        }
        if let Some(revoked) = &self.revoked {
            revoked.check(std::iter::once(end_entity).chain(intermediates))?;
        }
        self.allowed.check(end_entity)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let inner = &self.inner;
        match version1::parse(certificate) {
            None => inner.verify_tls12_signature(message, certificate, signature),
            Some(old) => version1::verify_handshake(
                ProtocolVersion::TLSv1_2,
                message,
                &old,
                signature,
                &self.algorithms,
            ),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let inner = &self.inner;
        match version1::parse(certificate) {
            None => inner.verify_tls13_signature(message, certificate, signature),
            Some(old) => version1::verify_handshake(
                ProtocolVersion::TLSv1_3,
                message,
                &old,
                signature,
                &self.algorithms,
            ),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
