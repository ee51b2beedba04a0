//! Versions of TLS and cipher suites, under the names that Go gives them.

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{SupportedCipherSuite, SupportedProtocolVersion, version};

use super::{TlsError, Version};

pub(super) fn versions(min: Version, max: Version) -> &'static [&'static SupportedProtocolVersion] {
    static ONLY_12: [&SupportedProtocolVersion; 1] = [&version::TLS12];
    static ONLY_13: [&SupportedProtocolVersion; 1] = [&version::TLS13];
    static BOTH: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
    match (min, max) {
        (Version::Tls12, Version::Tls12) => &ONLY_12,
        (Version::Tls12, Version::Tls13) => &BOTH,
        (Version::Tls13, _) => &ONLY_13,
    }
}

pub(super) fn provider(
    cipher_suites: &[String],
    versions: &[&SupportedProtocolVersion],
) -> Result<CryptoProvider, TlsError> {
    let mut provider = aws_lc_rs::default_provider();
    if !cipher_suites.is_empty() {
        // The list is about TLS 1.2 only, as in Go. Suites on it that the
        // library does not have are the weak ones; they are not missed
        // as long as one remains.
        provider.cipher_suites.retain(|suite| {
            suite.tls13().is_some() || cipher_suites.iter().any(|name| is_named(suite, name))
        });
        let is_usable = |suite: &SupportedCipherSuite| versions.contains(&suite.version());
        if !provider.cipher_suites.iter().any(is_usable) {
            return Err(TlsError::NoCipherSuite);
        }
    }
    Ok(provider)
}

/// Whether Go knows a cipher suite of this name. An unknown one is a mistake
/// that must not pass, a known one that cannot be offered is harmless.
pub fn is_cipher_suite(name: &str) -> bool {
    WEAK_SUITES.contains(&name)
        || aws_lc_rs::ALL_CIPHER_SUITES
            .iter()
            .any(|suite| is_named(suite, name))
}

/// Go also knows two suites by names without their hash, and writes the names
/// of TLS 1.3 without the version.
fn is_named(suite: &SupportedCipherSuite, name: &str) -> bool {
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
