//! Whether a certificate is that of the address it comes from.
//!
//! A peer's certificate may name addresses and hosts, and a thief of it sits
//! somewhere else. As etcd does it (client/pkg/transport/listener_tls.go,
//! `checkCertSAN`): a certificate without such names may come from anywhere;
//! one of its addresses must be the remote one; failing that, the name of the
//! remote address must be one of its hosts, or one of its hosts must resolve to
//! the remote address. Names with a star are compared with the former only,
//! and a star stands for any number of labels.
//!
//! Looking up is the system's business (`/etc/hosts`, DNS), takes its time, and
//! is bounded by the limit of a handshake.

use std::net::IpAddr;

use rustls::CertificateError;
use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use super::TlsError;
use super::refusal::{self, Refusal};

/// Names that are quoted in a refusal.
const MAX_NAMES: usize = 20;

pub(super) async fn check(
    certificate: &CertificateDer<'_>,
    remote: IpAddr,
) -> Result<(), TlsError> {
    let certificate = Certificate::from_der(certificate)
        .map_err(|_| TlsError::Config(CertificateError::BadEncoding.into()))?;
    let (addresses, hosts) = refusal::alternative_names(&certificate);
    let remote = remote.to_canonical();
    if addresses.is_empty() && hosts.is_empty() {
        return Ok(());
    }
    if addresses
        .iter()
        .any(|address| address.to_canonical() == remote)
    {
        return Ok(());
    }
    if hosts.is_empty() {
        let names = addresses.iter().take(MAX_NAMES);
        return Err(TlsError::Refused(Refusal::Address {
            names: names.map(ToString::to_string).collect(),
            remote: remote.to_string(),
        }));
    }
    let Err(failure) = is_one_of(remote, &hosts).await else {
        return Ok(());
    };
    let names = hosts.iter().take(MAX_NAMES);
    Err(TlsError::Refused(Refusal::Name {
        names: names.map(|name| refusal::cut(name)).collect(),
        remote: remote.to_string(),
        failure: failure.map(|text| format!(" ({text})")).unwrap_or_default(),
    }))
}

/// Whether an address has one of these names. If not, why a name could not be
/// looked up.
async fn is_one_of(remote: IpAddr, hosts: &[String]) -> Result<(), Option<String>> {
    let mut failure = None;
    let reverse = tokio::task::spawn_blocking(move || dns_lookup::lookup_addr(&remote));
    match reverse.await {
        Ok(Ok(name)) if hosts.iter().any(|host| is_name(host, &name)) => return Ok(()),
        Ok(Ok(_)) => {}
        Ok(Err(error)) => failure = Some(format!("lookup {remote}: {error}")),
        Err(error) => failure = Some(error.to_string()),
    }
    for host in hosts.iter().filter(|host| !host.starts_with("*.")) {
        match tokio::net::lookup_host((host.as_str(), 0)).await {
            Ok(mut found) => {
                if found.any(|found| found.ip().to_canonical() == remote) {
                    return Ok(());
                }
            }
            Err(error) => failure = Some(format!("lookup {}: {error}", refusal::cut(host))),
        }
    }
    Err(failure)
}

/// Whether the name of an address, as it was looked up, is `host`.
fn is_name(host: &str, name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    match host.strip_prefix('*') {
        Some(suffix) if suffix.starts_with('.') => name.ends_with(suffix),
        _ => name == host,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn a_star_stands_for_any_labels() {
        assert!(is_name("a.example", "a.example."));
        assert!(is_name("*.example", "a.example"));
        assert!(is_name("*.example", "b.a.example."));
        assert!(!is_name("*.example", "example"));
        assert!(!is_name("*.example", "a.example.org"));
        assert!(!is_name("a.example", "b.a.example"));
    }

    async fn refusal(names: &[&str], remote: &str) -> Option<String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let checked = check(certificate.der(), remote.parse().unwrap()).await;
        checked.err().map(|error| error.to_string())
    }

    #[tokio::test]
    async fn addresses_are_compared() {
        assert_eq!(refusal(&[], "192.0.2.1").await, None, "no names");
        assert_eq!(refusal(&["192.0.2.1"], "192.0.2.1").await, None);
        assert_eq!(refusal(&["192.0.2.1"], "::ffff:192.0.2.1").await, None);
        assert_eq!(refusal(&["2001:db8::1"], "2001:db8::1").await, None);
        assert_eq!(
            refusal(&["192.0.2.1", "192.0.2.2"], "192.0.2.3")
                .await
                .unwrap(),
            "x509: certificate is valid for 192.0.2.1, 192.0.2.2, not 192.0.2.3"
        );
    }

    #[tokio::test]
    async fn names_are_looked_up_both_ways() {
        assert_eq!(refusal(&["localhost"], "127.0.0.1").await, None);
        let both = ["192.0.2.1", "localhost"];
        assert_eq!(refusal(&both, "127.0.0.1").await, None);
        let other = refusal(&["localhost"], "192.0.2.1").await.unwrap();
        let start = r#"tls: "192.0.2.1" does not match any of DNSNames ["localhost"]"#;
        assert!(other.starts_with(start), "{other}");
        assert!(refusal(&["*.invalid"], "127.0.0.1").await.is_some());
    }
}
