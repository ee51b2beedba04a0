//! The options about TLS, made into the settings of the listeners.

use super::source::Values;
use super::{ConfigError, Listen, flags, invalid, path};
use crate::http::tls::{ClientAuth, ClientTls, KeyPair, Settings, Version, is_cipher_suite};

/// TLS of the listeners that speak it. Options of TLS without such a listener
/// get a notice, because whoever gave them may believe to be protected.
pub(super) fn settings(
    values: &Values,
    listen: &Listen,
    notices: &mut Vec<String>,
) -> Result<Option<Settings>, ConfigError> {
    let (min_version, max_version) = versions(values)?;
    let cipher_suites = values.list("cipher-suites");
    if let Some(name) = cipher_suites.iter().find(|name| !is_cipher_suite(name)) {
        return invalid(format!("--cipher-suites: unknown cipher suite {name:?}"));
    }
    if !cipher_suites.is_empty() && min_version == Version::Tls13 {
        return invalid("--cipher-suites are for TLS 1.2, which --tls-min-version rules out");
    }

    const TLS_FLAGS: [&str; 6] = [
        "cert-file",
        "key-file",
        "client-cert-auth",
        "trusted-ca-file",
        "client-crl-file",
        "client-cert-allowed-hostname",
    ];
    let mut urls = listen
        .client
        .iter()
        .chain(&listen.client_http)
        .chain(&listen.metrics);
    let Some(url) = urls.find(|url| url.scheme().is_tls()) else {
        let is_moved = |name: &&&str| flags::find(name).is_some_and(|flag| values.is_moved(flag));
        let moved: Vec<&str> = TLS_FLAGS.iter().filter(is_moved).copied().collect();
        if !moved.is_empty() {
            notices.push(format!(
                "TLS is off, since no URL to listen on is https or unixs; unused: --{}",
                moved.join(", --")
            ));
        }
        return Ok(None);
    };
    let (Some(cert_file), Some(key_file)) = (path(values, "cert-file"), path(values, "key-file"))
    else {
        return invalid(format!("{url} needs --cert-file and --key-file"));
    };
    Ok(Some(Settings {
        cert_file,
        key_file,
        client_auth: client_auth(values)?,
        min_version,
        max_version,
        cipher_suites,
    }))
}

/// TLS between members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerTls {
    /// Of the peer port. There if one of its URLs speaks it.
    pub listen: Option<Settings>,
    /// For dialing others.
    pub dial: Option<ClientTls>,
}

/// TLS of the peer port and of the connections to other members. One pair of
/// files serves both, unless there is one for dialing of its own.
pub(super) fn peer_settings(values: &Values, listen: &Listen) -> Result<PeerTls, ConfigError> {
    let (min_version, max_version) = versions(values)?;
    let cipher_suites = values.list("cipher-suites");
    let allowed_common_names = values.list("peer-cert-allowed-cn");
    let allowed_hostnames = values.list("peer-cert-allowed-hostname");
    let ca_file = path(values, "peer-trusted-ca-file");
    let key_pair = |cert: &str, key: &str| match (path(values, cert), path(values, key)) {
        (Some(cert_file), Some(key_file)) => Ok(Some(KeyPair {
            cert_file,
            key_file,
        })),
        (None, None) => Ok(None),
        _ => invalid(format!("--{cert} and --{key} must be given together")),
    };
    let own = key_pair("peer-cert-file", "peer-key-file")?;
    let for_dialing = key_pair("peer-client-cert-file", "peer-client-key-file")?;
    if values.is_on("peer-client-cert-auth") && ca_file.is_none() {
        return invalid("--peer-client-cert-auth needs --peer-trusted-ca-file");
    }
    let url = listen.peer.iter().find(|url| url.scheme().is_tls());
    let of_port = match (url, &own) {
        (None, _) => None,
        (Some(url), None) => {
            return invalid(format!("{url} needs --peer-cert-file and --peer-key-file"));
        }
        (Some(_), Some(pair)) => Some(Settings {
            cert_file: pair.cert_file.clone(),
            key_file: pair.key_file.clone(),
            client_auth: ca_file.clone().map(|ca_file| ClientAuth {
                ca_file,
                crl_file: path(values, "peer-crl-file"),
                allowed_hostnames: allowed_hostnames.clone(),
                allowed_common_names: allowed_common_names.clone(),
            }),
            min_version,
            max_version,
            cipher_suites: cipher_suites.clone(),
        }),
    };
    let dial = ca_file.map(|ca_file| ClientTls {
        key_pair: for_dialing.or(own),
        ca_file,
        allowed_hostnames,
        allowed_common_names,
        min_version,
        max_version,
        cipher_suites,
    });
    Ok(PeerTls {
        listen: of_port,
        dial,
    })
}

fn versions(values: &Values) -> Result<(Version, Version), ConfigError> {
    let version = |name: &str, if_empty: Version| match values.text(name).as_str() {
        "TLS1.2" => Ok(Version::Tls12),
        "TLS1.3" => Ok(Version::Tls13),
        "" => Ok(if_empty),
        other => invalid(format!("--{name} is {other:?}, must be TLS1.2 or TLS1.3")),
    };
    let min = version("tls-min-version", Version::Tls12)?;
    let max = version("tls-max-version", Version::Tls13)?;
    if min > max {
        return invalid("--tls-min-version is above --tls-max-version");
    }
    Ok((min, max))
}

/// Certificates of clients are demanded when asked for, and also when their
/// authorities are named.
fn client_auth(values: &Values) -> Result<Option<ClientAuth>, ConfigError> {
    let crl_file = path(values, "client-crl-file");
    let allowed_hostnames = values.list("client-cert-allowed-hostname");
    match path(values, "trusted-ca-file") {
        Some(ca_file) => Ok(Some(ClientAuth {
            ca_file,
            crl_file,
            allowed_hostnames,
            allowed_common_names: Vec::new(),
        })),
        // etcd would trust every authority of the system then, which nobody
        // can want of a database.
        None if values.is_on("client-cert-auth") => {
            invalid("--client-cert-auth needs --trusted-ca-file")
        }
        None if crl_file.is_some() || !allowed_hostnames.is_empty() => {
            invalid("--client-crl-file and --client-cert-allowed-hostname need --trusted-ca-file")
        }
        None => Ok(None),
    }
}
