//! Certificates that stand in the file of authorities themselves.
//!
//! `openssl req -x509` makes a certificate that is its own authority, and two
//! members, or a server and its clients, may simply trust each other's. The
//! library takes no authority's certificate for somebody's own; here, as in etcd
//! (Go's crypto/x509), one that the operator has named is taken, in its period
//! and for its purpose. Nothing is signed by anybody else then, so there is no
//! chain to verify; that its owner has the key, the handshake shows as ever.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::ExtendedKeyUsage;
use x509_cert::time::Validity;

/// For what a certificate is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Client,
    Server,
}

impl Purpose {
    /// Whether a certificate is for this. One that does not say is for
    /// anything.
    pub(super) fn is_of(self, certificate: &Certificate) -> bool {
        /// RFC 5280, section 4.2.1.12.
        const ANY: &str = "2.5.29.37.0";
        let own = match self {
            Purpose::Client => "1.3.6.1.5.5.7.3.2",
            Purpose::Server => "1.3.6.1.5.5.7.3.1",
        };
        match certificate.tbs_certificate.get::<ExtendedKeyUsage>() {
            Ok(Some((_, ExtendedKeyUsage(usages)))) => {
                let mut usages = usages.iter().map(ToString::to_string);
                usages.any(|usage| usage == own || usage == ANY)
            }
            Ok(None) => true,
            Err(_) => false,
        }
    }
}

/// Whether one of `authorities` is the certificate itself, and it is good now.
pub(super) fn is_anchor(
    certificate: &CertificateDer<'_>,
    authorities: &[CertificateDer<'_>],
    purpose: Purpose,
    now: UnixTime,
) -> bool {
    if !authorities.iter().any(|authority| authority == certificate) {
        return false;
    }
    // The library reads it: nothing critical is in it that would be passed by.
    if ParsedCertificate::try_from(certificate).is_err() {
        return false;
    }
    let Ok(parsed) = Certificate::from_der(certificate) else {
        return false;
    };
    purpose.is_of(&parsed) && is_valid_at(&parsed.tbs_certificate.validity, now)
}

pub(super) fn is_valid_at(validity: &Validity, now: UnixTime) -> bool {
    let now = Duration::from_secs(now.as_secs());
    (validity.not_before.to_unix_duration()..=validity.not_after.to_unix_duration()).contains(&now)
}
