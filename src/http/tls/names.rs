//! Names of which a certificate must have one besides being good
//! (`--client-cert-allowed-hostname`, `--peer-cert-allowed-cn`).

use rustls::Error;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Tag, Tagged};

use super::refusal::{self, Refusal};

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// Strings whose bytes are UTF-8 or a part of it.
const TEXTS: [Tag; 3] = [Tag::Utf8String, Tag::PrintableString, Tag::Ia5String];

/// Which certificates are let in, of those that are good.
#[derive(Debug)]
pub(super) struct AllowedNames {
    /// Empty: any.
    hosts: Vec<ServerName<'static>>,
    common_names: Vec<String>,
    /// A list of names of which none can be one lets nobody in.
    has_hosts: bool,
}

impl AllowedNames {
    pub(super) fn new(hosts: &[String], common_names: &[String]) -> AllowedNames {
        let names = hosts.iter().cloned();
        AllowedNames {
            hosts: names
                .filter_map(|name| ServerName::try_from(name).ok())
                .collect(),
            common_names: common_names.to_vec(),
            has_hosts: !hosts.is_empty(),
        }
    }

    pub(super) fn check(&self, end_entity: &CertificateDer<'_>) -> Result<(), Error> {
        if !self.has_hosts && self.common_names.is_empty() {
            return Ok(());
        }
        let certificate =
            Certificate::from_der(end_entity).map_err(|_| rustls::CertificateError::BadEncoding)?;
        if self.has_host(end_entity) && self.has_common_name(&certificate) {
            return Ok(());
        }
        Err(Refusal::NotAllowed {
            subject: refusal::subject(&certificate),
        }
        .into())
    }

    fn has_host(&self, end_entity: &CertificateDer<'_>) -> bool {
        if !self.has_hosts {
            return true;
        }
        // What the library cannot read has no names.
        let Ok(certificate) = ParsedCertificate::try_from(end_entity) else {
            return false;
        };
        let mut hosts = self.hosts.iter();
        hosts.any(|name| verify_server_name(&certificate, name).is_ok())
    }

    fn has_common_name(&self, certificate: &Certificate) -> bool {
        if self.common_names.is_empty() {
            return true;
        }
        let subject = certificate.tbs_certificate.subject.0.iter();
        let mut attributes = subject.flat_map(|attributes| attributes.0.iter());
        attributes.any(|attribute| {
            let is_text = TEXTS.contains(&attribute.value.tag());
            let shown = attribute.value.value();
            let mut allowed = self.common_names.iter();
            attribute.oid == COMMON_NAME && is_text && allowed.any(|name| name.as_bytes() == shown)
        })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    #[test]
    fn common_names_are_found_and_garbage_has_none() {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        let subject = &mut params.distinguished_name;
        subject.push(DnType::OrganizationName, "no name");
        subject.push(DnType::CommonName, "member one");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let der = certificate.der();
        let is_allowed = |hosts: &[&str], names: &[&str], der: &CertificateDer<'_>| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let (hosts, names): (Vec<String>, Vec<String>) = (owned(hosts), owned(names));
            AllowedNames::new(&hosts, &names).check(der).is_ok()
        };
        assert!(is_allowed(&[], &[], der));
        assert!(is_allowed(&[], &["another", "member one"], der));
        assert!(!is_allowed(&[], &["no name"], der));
        assert!(is_allowed(&["a.example"], &["member one"], der));
        assert!(!is_allowed(&["b.example"], &["member one"], der));
        assert!(!is_allowed(&["no name at all"], &[], der));
        for end in 0..der.len() {
            let cut = CertificateDer::from(&der[..end]);
            assert!(!is_allowed(&[], &["member one"], &cut), "{end}");
        }
        for byte in 0..der.len() {
            let mut broken = der.to_vec();
            broken[byte] ^= 0xff;
            is_allowed(&["a.example"], &["member one"], &broken.into());
        }
    }
}
