//! The options about TLS, made into the settings of the listeners.
//!
//! Certificates that the server is to make for itself (`--auto-tls`,
//! `--peer-auto-tls`) are named by the files they will be in; making them is
//! left to the node. Who has them asks nobody else for certificates, as in
//! etcd (server/embed/config.go, `ClientSelfCert`).

use std::path::Path;

use super::source::Values;
use super::{ConfigError, Listen, flags, invalid, path};
use crate::http::Url;
use crate::http::tls::{
    ClientAuth, ClientTls, KeyPair, SelfMade, Settings, Trust, Version, is_cipher_suite,
};

/// Below the data directory, as in etcd.
const SELF_MADE_DIRECTORY: &str = "fixtures";

/// TLS of the listeners that speak it. Options of TLS without such a listener
/// get a notice, because whoever gave them may believe to be protected.
pub(super) fn settings(
    values: &Values,
    listen: &Listen,
    self_made: &SelfMades,
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

    const TLS_FLAGS: [&str; 7] = [
        "cert-file",
        "key-file",
        "auto-tls",
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
        if let Some(unused) = moved(values, &TLS_FLAGS) {
            notices.push(format!(
                "TLS is off, since no URL to listen on is https or unixs; unused: {unused}"
            ));
        }
        return Ok(None);
    };
    if let Some(made) = &self_made.client {
        note_unasked(values, "auto-tls", &TLS_FLAGS[3..], notices);
        return Ok(Some(Settings {
            cert_file: made.cert_file(),
            key_file: made.key_file(),
            client_auth: None,
            checks_origin: false,
            min_version,
            max_version,
            cipher_suites,
        }));
    }
    let (Some(cert_file), Some(key_file)) = (path(values, "cert-file"), path(values, "key-file"))
    else {
        return invalid(format!(
            "{url} needs --cert-file and --key-file, or --auto-tls"
        ));
    };
    Ok(Some(Settings {
        cert_file,
        key_file,
        client_auth: client_auth(values)?,
        checks_origin: false,
        min_version,
        max_version,
        cipher_suites,
    }))
}

/// The options among `names` that were given another value than their default.
fn moved(values: &Values, names: &[&str]) -> Option<String> {
    let is_moved = |name: &&&str| flags::find(name).is_some_and(|flag| values.is_moved(flag));
    let moved: Vec<&str> = names.iter().filter(is_moved).copied().collect();
    (!moved.is_empty()).then(|| format!("--{}", moved.join(", --")))
}

/// Says which demands on the other side a self-made certificate takes away.
fn note_unasked(values: &Values, flag: &str, demands: &[&str], notices: &mut Vec<String>) {
    if let Some(unused) = moved(values, demands) {
        notices.push(format!(
            "--{flag} asks nobody for a certificate and trusts everybody; unused: {unused}"
        ));
    }
}

/// The certificates that the server is to make for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SelfMades {
    /// Of the client port.
    pub client: Option<SelfMade>,
    /// Of the peer port, and for dialing.
    pub peer: Option<SelfMade>,
}

/// Which certificates are to be made. Those that were given come first.
pub(super) fn self_made(
    values: &Values,
    listen: &Listen,
    data_dir: &Path,
    notices: &mut Vec<String>,
) -> Result<SelfMades, ConfigError> {
    let mut of = |flag: &str, given: [&str; 2], name: &str, urls: Vec<&Url>| {
        if !values.is_on(flag) {
            return Ok(None);
        }
        if let Some(given) = moved(values, &given) {
            notices.push(format!("--{flag} is ignored, since {given} is given"));
            return Ok(None);
        }
        Ok(Some(SelfMade {
            directory: data_dir.join(SELF_MADE_DIRECTORY).join(name),
            hosts: hosts(&urls),
            validity_years: validity_years(values)?,
        }))
    };
    let client_urls = listen.client.iter().chain(&listen.client_http).collect();
    Ok(SelfMades {
        client: of("auto-tls", ["cert-file", "key-file"], "client", client_urls)?,
        peer: of(
            "peer-auto-tls",
            ["peer-cert-file", "peer-key-file"],
            "peer",
            listen.peer.iter().collect(),
        )?,
    })
}

/// The hosts of `urls`, each once. A socket file is dialed as localhost.
fn hosts(urls: &[&Url]) -> Vec<String> {
    let mut hosts: Vec<String> = Vec::new();
    for url in urls {
        let host = url.host_and_port().map_or("localhost", |(host, _)| host);
        if !hosts.iter().any(|known| known == host) {
            hosts.push(host.to_owned());
        }
    }
    hosts
}

fn validity_years(values: &Values) -> Result<u32, ConfigError> {
    let years = match values.uint("self-signed-cert-validity") {
        // In a file it is as if it were not there, as in etcd.
        0 if values.is_from_file() => 1,
        years => years,
    };
    match u32::try_from(years) {
        Ok(years) if (1..=SelfMade::MAX_VALIDITY_YEARS).contains(&years) => Ok(years),
        _ => invalid(format!(
            "--self-signed-cert-validity is {years}, must be from 1 to {} years",
            SelfMade::MAX_VALIDITY_YEARS
        )),
    }
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
pub(super) fn peer_settings(
    values: &Values,
    listen: &Listen,
    self_made: &SelfMades,
    notices: &mut Vec<String>,
) -> Result<PeerTls, ConfigError> {
    let (min_version, max_version) = versions(values)?;
    let cipher_suites = values.list("cipher-suites");
    let url = listen.peer.iter().find(|url| url.scheme().is_tls());
    let port = |pair: &KeyPair, client_auth| Settings {
        cert_file: pair.cert_file.clone(),
        key_file: pair.key_file.clone(),
        client_auth,
        checks_origin: !values.is_on("peer-skip-client-san-verification"),
        min_version,
        max_version,
        cipher_suites: cipher_suites.clone(),
    };
    let dial = |key_pair, trust| ClientTls {
        key_pair,
        trust,
        allowed_hostnames: values.list("peer-cert-allowed-hostname"),
        allowed_common_names: values.list("peer-cert-allowed-cn"),
        min_version,
        max_version,
        cipher_suites: cipher_suites.clone(),
    };
    if let Some(made) = &self_made.peer {
        const DEMANDS: [&str; 7] = [
            "peer-client-cert-file",
            "peer-client-key-file",
            "peer-client-cert-auth",
            "peer-trusted-ca-file",
            "peer-crl-file",
            "peer-cert-allowed-cn",
            "peer-cert-allowed-hostname",
        ];
        note_unasked(values, "peer-auto-tls", &DEMANDS, notices);
        let pair = KeyPair {
            cert_file: made.cert_file(),
            key_file: made.key_file(),
        };
        return Ok(PeerTls {
            listen: url.map(|_| port(&pair, None)),
            dial: Some(dial(Some(pair), Trust::Anybody)),
        });
    }
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
    if path(values, "peer-crl-file").is_some() && ca_file.is_none() {
        return invalid("--peer-crl-file needs --peer-trusted-ca-file");
    }
    let of_port = match (url, &own) {
        (None, _) => None,
        (Some(url), None) => {
            return invalid(format!(
                "{url} needs --peer-cert-file and --peer-key-file, or --peer-auto-tls"
            ));
        }
        (Some(_), Some(pair)) => {
            let client_auth = ca_file.clone().map(|ca_file| ClientAuth {
                ca_file,
                crl_file: path(values, "peer-crl-file"),
                allowed_hostnames: values.list("peer-cert-allowed-hostname"),
                allowed_common_names: values.list("peer-cert-allowed-cn"),
            });
            Some(port(pair, client_auth))
        }
    };
    let key_pair = for_dialing.or(own);
    Ok(PeerTls {
        listen: of_port,
        dial: ca_file.map(|ca_file| dial(key_pair, Trust::Authorities(ca_file))),
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
