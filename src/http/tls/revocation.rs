//! Certificates that were taken back (`--client-crl-file`, `--peer-crl-file`).
//!
//! A file holds one list in DER, the form etcd reads, or any number in PEM. As
//! in etcd (client/pkg/transport/listener_tls.go, `checkCRL`) every certificate
//! that was shown is looked up by its serial number, who wrote the list is not
//! verified, and a list that is out of date still counts: whoever can replace
//! the file is trusted, and a list can only turn away. With several lists in a
//! file, which etcd cannot read, a certificate is looked up in those of its own
//! issuer, because serial numbers of different authorities may be equal.
//!
//! A file that holds no list, or something else besides, is an error.

use std::collections::HashSet;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::der::Decode;
use x509_cert::name::Name;

use super::TlsError;
use super::refusal::{self, Refusal};

#[derive(Debug)]
pub(super) struct Revoked {
    lists: Vec<List>,
}

#[derive(Debug)]
struct List {
    issuer: Name,
    /// Without leading zeros.
    serials: HashSet<Vec<u8>>,
}

impl Revoked {
    pub(super) fn read(path: &Path) -> Result<Revoked, TlsError> {
        let bytes = std::fs::read(path).map_err(|source| TlsError::File {
            path: path.to_owned(),
            source: rustls::pki_types::pem::Error::Io(source),
        })?;
        parse(&bytes).map_err(|problem| TlsError::RevocationList {
            path: path.to_owned(),
            problem,
        })
    }

    /// Refuses a chain with a revoked certificate.
    pub(super) fn check<'a>(
        &self,
        chain: impl Iterator<Item = &'a CertificateDer<'a>>,
    ) -> Result<(), rustls::Error> {
        for der in chain {
            let Ok(certificate) = Certificate::from_der(der) else {
                return Err(rustls::CertificateError::BadEncoding.into());
            };
            let signed = &certificate.tbs_certificate;
            let serial = without_zeros(signed.serial_number.as_bytes());
            let is_only = self.lists.len() == 1;
            let mut lists = self.lists.iter();
            if lists.any(|list| {
                (is_only || list.issuer == signed.issuer) && list.serials.contains(serial)
            }) {
                return Err(Refusal::Revoked {
                    subject: refusal::subject(&certificate),
                    serial: refusal::serial(serial),
                }
                .into());
            }
        }
        Ok(())
    }
}

fn parse(bytes: &[u8]) -> Result<Revoked, String> {
    if bytes.is_empty() {
        return Err("the file is empty".to_owned());
    }
    let not_der = match list(bytes) {
        Ok(list) => return Ok(Revoked { lists: vec![list] }),
        Err(problem) => problem,
    };
    let mut lists = Vec::new();
    for section in CertificateRevocationListDer::pem_slice_iter(bytes) {
        let section = section.map_err(|error| format!("as PEM: {error}"))?;
        lists.push(list(&section).map_err(|problem| format!("as PEM: {problem}"))?);
    }
    if lists.is_empty() {
        return Err(format!("as PEM: no section X509 CRL; as DER: {not_der}"));
    }
    Ok(Revoked { lists })
}

fn list(der: &[u8]) -> Result<List, String> {
    let list = CertificateList::from_der(der).map_err(|error| error.to_string())?;
    let list = list.tbs_cert_list;
    let revoked = list.revoked_certificates.unwrap_or_default().into_iter();
    Ok(List {
        issuer: list.issuer,
        serials: revoked
            .map(|revoked| without_zeros(revoked.serial_number.as_bytes()).to_vec())
            .collect(),
    })
}

fn without_zeros(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}
