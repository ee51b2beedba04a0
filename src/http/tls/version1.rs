//! Certificates of X.509 versions 1 and 2, which are what a bare
//! `openssl x509 -req` makes and what the TLS library does not read.
//!
//! They have no extensions: no names but a subject, no purpose, no constraints.
//! A client's own may be of that kind if one of the configured authorities has
//! signed it itself (as in etcd, that is in Go's crypto/x509). One on the way
//! to an authority may not: it could not say that it is an authority.
//!
//! Checked here: period, issuer, the authority's right to sign for clients, the
//! signature. How signatures are verified, and by which algorithms, is the
//! library's: an authority's key is given to it as a raw public key.

use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, ProtocolVersion};
use webpki::RawPublicKeyEntity;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode, SliceReader};
use x509_cert::ext::pkix::{KeyUsage, NameConstraints};
use x509_cert::{Certificate, Version};

use super::anchored::{Purpose, is_valid_at};
use super::refusal::{self, Refusal};

/// Reads a certificate if it is an old one.
pub(super) fn parse(der: &CertificateDer<'_>) -> Option<Certificate> {
    let certificate = Certificate::from_der(der).ok()?;
    let signed = &certificate.tbs_certificate;
    let is_old = signed.version != Version::V3 && signed.extensions.is_none();
    is_old.then_some(certificate)
}

/// Verifies that one of `authorities` has signed it for now.
pub(super) fn verify(
    certificate: &Certificate,
    authorities: &[CertificateDer<'_>],
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Result<(), Error> {
    let signed = &certificate.tbs_certificate;
    if !is_valid_at(&signed.validity, now) {
        let seconds = Duration::from_secs(now.as_secs());
        return Err(
            match seconds < signed.validity.not_before.to_unix_duration() {
                true => CertificateError::NotValidYet.into(),
                false => CertificateError::Expired.into(),
            },
        );
    }
    let mut problem = None;
    for der in authorities {
        let Ok(authority) = Certificate::from_der(der) else {
            continue;
        };
        if authority.tbs_certificate.subject != signed.issuer {
            continue;
        }
        if !may_sign(&authority, now) {
            problem = Some("is signed by an authority that may not sign for clients, or not now");
            continue;
        }
        if has_signed(&authority, certificate, algorithms) {
            return Ok(());
        }
        problem = Some("has a signature that is not its authority's, or of an unknown kind");
    }
    match problem {
        None => Err(CertificateError::UnknownIssuer.into()),
        Some(problem) => Err(Refusal::Unusable {
            subject: refusal::subject(certificate),
            problem: problem.to_owned(),
        }
        .into()),
    }
}

/// Whether an authority may sign certificates of clients. What it says of
/// names cannot be held against a certificate that has none, so it must say
/// nothing of them.
fn may_sign(authority: &Certificate, now: UnixTime) -> bool {
    let own = &authority.tbs_certificate;
    let is_authority = match own.version {
        Version::V3 => refusal::is_authority(authority),
        // Those cannot say so; the operator has.
        _ => true,
    };
    let signs = match own.get::<KeyUsage>() {
        Ok(Some((_, usage))) => usage.key_cert_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    let is_unconstrained = matches!(own.get::<NameConstraints>(), Ok(None));
    is_authority
        && signs
        && is_unconstrained
        && Purpose::Client.is_of(authority)
        && is_valid_at(&own.validity, now)
}

fn has_signed(
    authority: &Certificate,
    certificate: &Certificate,
    algorithms: &WebPkiSupportedAlgorithms,
) -> bool {
    let signed = &certificate.tbs_certificate;
    if certificate.signature_algorithm != signed.signature {
        return false;
    }
    let key = authority.tbs_certificate.subject_public_key_info.to_der();
    let (Ok(key), Ok(message)) = (key, signed.to_der()) else {
        return false;
    };
    let key = SubjectPublicKeyInfoDer::from(key);
    let Ok(key) = RawPublicKeyEntity::try_from(&key) else {
        return false;
    };
    let Some(signature) = certificate.signature.as_bytes() else {
        return false;
    };
    // Of several with one identifier (curves, parameters of PSS) at most one
    // fits the key and the signature.
    let mut candidates = algorithms.all.iter().filter(|algorithm| {
        let identifier = algorithm.signature_alg_id();
        let first = SliceReader::new(&identifier)
            .and_then(|mut reader| ObjectIdentifier::decode(&mut reader));
        first == Ok(certificate.signature_algorithm.oid)
    });
    candidates.any(|algorithm| {
        key.verify_signature(*algorithm, &message, signature)
            .is_ok()
    })
}

/// Verifies what the owner of an old certificate has signed in a handshake.
pub(super) fn verify_handshake(
    version: ProtocolVersion,
    message: &[u8],
    certificate: &Certificate,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let spki = certificate.tbs_certificate.subject_public_key_info.to_der();
    let spki = SubjectPublicKeyInfoDer::from(spki.map_err(|_| CertificateError::BadEncoding)?);
    if version == ProtocolVersion::TLSv1_3 {
        return verify_tls13_signature_with_raw_key(message, &spki, signature, algorithms);
    }
    let key = RawPublicKeyEntity::try_from(&spki).map_err(|_| CertificateError::BadEncoding)?;
    let mut mapping = algorithms.mapping.iter();
    let Some((_, candidates)) = mapping.find(|(scheme, _)| *scheme == signature.scheme) else {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    };
    // TLS 1.2 leaves the curve open: at most one candidate has that of the key.
    let mut candidates = candidates.iter();
    let is_valid = candidates.any(|algorithm| {
        key.verify_signature(*algorithm, message, signature.signature())
            .is_ok()
    });
    match is_valid {
        true => Ok(HandshakeSignatureValid::assertion()),
        false => Err(CertificateError::BadSignature.into()),
    }
}
