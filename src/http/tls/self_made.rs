//! Certificates that the server makes for itself (`--auto-tls`,
//! `--peer-auto-tls`).
//!
//! They keep out whoever listens in; they prove nothing, so nobody who trusts
//! them is safe from someone in between. Made as etcd makes them
//! (client/pkg/transport/listener.go, `SelfCert`): at the same place, for the
//! hosts that are listened on, once: what is there is used as long as it is
//! there, also when it has expired. Two things differ: the key is on the curve
//! P-256, which every client can verify (BoringSSL and with it gRPC's C core
//! refuse etcd's P-521); and the files appear whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use thiserror::Error;
use tracing::warn;

/// A year, as etcd counts it.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// A certificate and its key that are to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfMade {
    pub directory: PathBuf,
    /// Addresses and names the certificate is for.
    pub hosts: Vec<String>,
    pub validity_years: u32,
}

#[derive(Debug, Error)]
pub enum SelfMadeError {
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

impl SelfMade {
    /// The longest that a certificate may be made for: a date must have four
    /// digits of year (RFC 5280, section 4.1.2.5).
    pub const MAX_VALIDITY_YEARS: u32 = 1000;

    pub fn cert_file(&self) -> PathBuf {
        self.directory.join("cert.pem")
    }

    pub fn key_file(&self) -> PathBuf {
        self.directory.join("key.pem")
    }

    /// Makes the files unless both are there.
    pub fn make_if_missing(&self) -> Result<(), SelfMadeError> {
        let (cert_file, key_file) = (self.cert_file(), self.key_file());
        if cert_file.exists() && key_file.exists() {
            return Ok(());
        }
        let not_after = SystemTime::now() + self.validity_years * YEAR;
        let (certificate, key) = self.make(not_after)?;
        let written = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            // One of another pair would be worse than none.
            .and_then(|()| remove(&cert_file))
            .and_then(|()| remove(&key_file))
            .and_then(|()| write(&key_file, &key, 0o600))
            .and_then(|()| write(&cert_file, &certificate, 0o644));
        written.map_err(|source| SelfMadeError::Write {
            path: self.directory.clone(),
            source,
        })?;
        warn!(
            file = %cert_file.display(),
            years = self.validity_years,
            "made a certificate; it is not renewed, and nobody else vouches for it"
        );
        Ok(())
    }

    /// A certificate and its key, in PEM.
    fn make(&self, not_after: SystemTime) -> Result<(String, String), rcgen::Error> {
        let mut params = CertificateParams::new(self.hosts.clone())?;
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "etcd");
        params.not_before = SystemTime::now().into();
        params.not_after = not_after.into();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::CrlSign,
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Written aside and renamed, so that a half-written file never counts.
fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let new = path.with_extension("new");
    remove(&new)?;
    let mut options = OpenOptions::new();
    let mut file: File = options.create_new(true).write(true).mode(mode).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use x509_cert::Certificate;
    use x509_cert::der::Decode;
    use x509_cert::ext::pkix::KeyUsage;

    use super::super::anchored::Purpose;
    use super::super::refusal::{alternative_names, is_authority};
    use super::*;

    #[test]
    fn a_pair_is_made_once_as_etcd_makes_it() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = ["127.0.0.1", "::1", "localhost"].map(str::to_owned);
        let made = SelfMade {
            directory: dir.path().join("fixtures/client"),
            hosts: hosts.to_vec(),
            validity_years: 3,
        };
        made.make_if_missing().unwrap();
        let der = CertificateDer::from_pem_file(made.cert_file()).unwrap();
        let certificate = Certificate::from_der(&der).unwrap();
        let own = &certificate.tbs_certificate;
        assert_eq!(own.subject.to_string(), "O=etcd");
        assert!(is_authority(&certificate));
        let usage = own.get::<KeyUsage>().unwrap().unwrap().1;
        assert!(usage.digital_signature() && usage.key_encipherment() && usage.crl_sign());
        assert!(!usage.key_cert_sign());
        assert!(Purpose::Server.is_of(&certificate) && !Purpose::Client.is_of(&certificate));
        let (addresses, names) = alternative_names(&certificate);
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(
            (addresses, names),
            (
                vec!["127.0.0.1".into(), "::1".into()],
                vec!["localhost".to_owned()]
            )
        );
        let validity = &own.validity;
        let (from, to) = (&validity.not_before, &validity.not_after);
        let seconds = to.to_unix_duration() - from.to_unix_duration();
        assert!((3 * 365 * 86400 - 5..=3 * 365 * 86400).contains(&seconds.as_secs()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&made.key_file()), 0o600);
        assert_eq!(mode(&made.directory), 0o700);

        let read = || fs::read(made.cert_file()).unwrap();
        let first = read();
        made.make_if_missing().unwrap();
        assert_eq!(read(), first, "used again");
        fs::remove_file(made.key_file()).unwrap();
        made.make_if_missing().unwrap();
        assert_ne!(read(), first, "made anew, both");
    }

    #[test]
    fn the_longest_validity_can_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let made = SelfMade {
            directory: dir.path().to_owned(),
            hosts: vec!["localhost".to_owned()],
            validity_years: SelfMade::MAX_VALIDITY_YEARS,
        };
        made.make_if_missing().unwrap();
    }
}
