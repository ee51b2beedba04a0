//! Why a certificate is not taken, in words for whoever runs the server.
//!
//! The library says of many certificates no more than the name of an error.
//! [`explain`] looks at the certificates themselves and says what is wrong
//! with them where that can be told; where not, the library's words stand.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, Error, OtherError};
use thiserror::Error;
use x509_cert::der::asn1::UintRef;
use x509_cert::der::{Decode, Reader, SliceReader};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, SubjectAltName};
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::{Certificate, Version};

/// RSA keys below this are no longer taken for secure (NIST SP 800-131A has
/// ruled them out since 2014), and the cryptographic library has no code for
/// them that TLS 1.3 could use.
const MIN_RSA_BITS: usize = 2048;

/// Subjects and names in a text are cut off here: they come from outside.
const MAX_NAME_CHARS: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("the certificate of {subject} is revoked, serial number {serial}")]
    Revoked { subject: String, serial: String },
    #[error("the certificate of {subject} has none of the allowed names")]
    NotAllowed { subject: String },
    /// In Go's words, which etcd logs.
    #[error("x509: certificate is valid for {}, not {remote}", names.join(", "))]
    Address { names: Vec<String>, remote: String },
    /// As etcd logs it.
    #[error(
        "tls: {remote:?} does not match any of DNSNames [{}]{failure}",
        quoted(names)
    )]
    Name {
        names: Vec<String>,
        remote: String,
        /// Why a name could not be looked up: empty, or in brackets.
        failure: String,
    },
    #[error("the certificate of {subject} {problem}")]
    Unusable { subject: String, problem: String },
}

fn quoted(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    names.join(" ")
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        CertificateError::Other(OtherError(Arc::new(refusal))).into()
    }
}

impl Refusal {
    /// What a failed handshake was refused for, if it was for one of these.
    pub(super) fn behind(error: &std::io::Error) -> Option<Refusal> {
        let error = error.get_ref()?.downcast_ref::<Error>()?;
        match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                inner.downcast_ref::<Refusal>().cloned()
            }
            _ => None,
        }
    }
}

/// The subject of a certificate for a text.
pub(super) fn subject(certificate: &Certificate) -> String {
    let signed = &certificate.tbs_certificate;
    let subject = signed.subject.to_string();
    match subject.is_empty() {
        false => format!("{:?}", cut(&subject)),
        true => format!("serial number {}", serial(signed.serial_number.as_bytes())),
    }
}

pub(super) fn cut(name: &str) -> String {
    name.chars().take(MAX_NAME_CHARS).collect()
}

/// As `openssl x509 -serial` writes it.
pub(super) fn serial(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// A better error for a chain that the library has refused with `error`.
pub(super) fn explain(
    error: Error,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Error {
    let is_unclear = match &error {
        Error::InvalidCertificate(error) => !matches!(
            error,
            CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. }
                | CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. }
                | CertificateError::InvalidPurpose
                | CertificateError::InvalidPurposeContext { .. }
        ),
        _ => false,
    };
    if !is_unclear {
        return error;
    }
    let chain = std::iter::once(end_entity).chain(intermediates).enumerate();
    for (position, der) in chain {
        let Ok(certificate) = Certificate::from_der(der) else {
            continue;
        };
        let problem = match position {
            0 => leaf_problem(&certificate).or_else(|| problem(&certificate)),
            _ => issuer_problem(&certificate).or_else(|| problem(&certificate)),
        };
        if let Some(problem) = problem {
            let subject = subject(&certificate);
            return Refusal::Unusable { subject, problem }.into();
        }
    }
    error
}

/// Refuses a key that could verify nothing, before it is tried in vain.
pub(super) fn check_key(end_entity: &CertificateDer<'_>) -> Result<(), Refusal> {
    let Ok(certificate) = Certificate::from_der(end_entity) else {
        // The library says so better.
        return Ok(());
    };
    match key_problem(&certificate.tbs_certificate.subject_public_key_info) {
        Some(problem) => Err(Refusal::Unusable {
            subject: subject(&certificate),
            problem,
        }),
        None => Ok(()),
    }
}

/// Whether a certificate says that it is an authority's.
pub(super) fn is_authority(certificate: &Certificate) -> bool {
    let constraints = certificate.tbs_certificate.get::<BasicConstraints>();
    matches!(constraints, Ok(Some((_, constraints))) if constraints.ca)
}

fn leaf_problem(certificate: &Certificate) -> Option<String> {
    is_authority(certificate).then(|| {
        "is that of a certificate authority (CA:TRUE), which can be nobody's own unless it \
         is trusted itself"
            .to_owned()
    })
}

fn issuer_problem(certificate: &Certificate) -> Option<String> {
    if certificate.tbs_certificate.version != Version::V3 {
        let text = "is of X.509 version 1 and stands between another and its authority; only \
                    one that an authority that is trusted has signed itself may be";
        return Some(text.to_owned());
    }
    (!is_authority(certificate)).then(|| {
        "has signed another without being that of a certificate authority (CA:TRUE)".to_owned()
    })
}

fn problem(certificate: &Certificate) -> Option<String> {
    key_problem(&certificate.tbs_certificate.subject_public_key_info)
        .or_else(|| signature_problem(&certificate.signature_algorithm))
}

/// What is wrong with a key, if it is known to be.
pub(super) fn key_problem(key: &SubjectPublicKeyInfoOwned) -> Option<String> {
    const RSA: &str = "1.2.840.113549.1.1.1";
    if key.algorithm.oid.to_string() != RSA {
        return None;
    }
    let bits = modulus_bits(key.subject_public_key.raw_bytes())?;
    (bits < MIN_RSA_BITS).then(|| {
        format!(
            "has an RSA key of {bits} bits, which is not secure; at least {MIN_RSA_BITS} are needed"
        )
    })
}

/// The size of an RSA key (RFC 8017, section A.1.1).
fn modulus_bits(key: &[u8]) -> Option<usize> {
    let mut reader = SliceReader::new(key).ok()?;
    let bits = reader.sequence(|reader| {
        let modulus = UintRef::decode(reader)?;
        UintRef::decode(reader)?; // exponent
        let bytes = modulus.as_bytes();
        let unused = bytes
            .first()
            .map_or(0, |byte| byte.leading_zeros() as usize);
        Ok(8 * bytes.len() - unused)
    });
    bits.ok()
}

fn signature_problem(algorithm: &AlgorithmIdentifierOwned) -> Option<String> {
    /// Algorithms that were given up, by their object identifiers.
    const BROKEN: [(&str, &str); 5] = [
        ("1.2.840.113549.1.1.2", "MD2"),
        ("1.2.840.113549.1.1.4", "MD5"),
        ("1.2.840.113549.1.1.5", "SHA-1"),
        ("1.2.840.10045.4.1", "SHA-1"),
        ("1.3.14.3.2.29", "SHA-1"),
    ];
    let oid = algorithm.oid.to_string();
    let (_, hash) = BROKEN.iter().find(|(broken, _)| *broken == oid)?;
    Some(format!(
        "is signed over {hash}, which can be forged; sign it with SHA-256"
    ))
}

/// The names of a certificate that an address can be compared with.
pub(super) fn alternative_names(certificate: &Certificate) -> (Vec<IpAddr>, Vec<String>) {
    let mut addresses = Vec::new();
    let mut hosts = Vec::new();
    let names = certificate.tbs_certificate.get::<SubjectAltName>();
    let names = names.ok().flatten().map(|(_, SubjectAltName(names))| names);
    for name in names.into_iter().flatten() {
        match name {
            GeneralName::DnsName(host) => hosts.push(host.to_string()),
            GeneralName::IpAddress(bytes) => {
                let bytes = bytes.as_bytes();
                let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
                let sixteen = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
                addresses.extend(four.or_else(|_| sixteen()));
            }
            _ => {}
        }
    }
    (addresses, hosts)
}
