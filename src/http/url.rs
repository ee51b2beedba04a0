//! The URLs that options name: where to listen and what to advertise.
//!
//! Much less than a URL in general: a scheme, a host and a port, or a path of
//! a socket file. The text is kept as given, because member ids are computed
//! from it and clients get it back.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheme {
    Http,
    Https,
    Unix,
    Unixs,
}

impl Scheme {
    pub fn is_tls(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Unixs)
    }

    pub fn is_unix(self) -> bool {
        matches!(self, Scheme::Unix | Scheme::Unixs)
    }
}

/// A checked URL. For `http` and `https` there is always a port, and nothing
/// after it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Url {
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UrlError {
    #[error("URL scheme must be http, https, unix, or unixs: {0}")]
    Scheme(String),
    #[error("URL does not have the form scheme://host:port: {0}")]
    NoPort(String),
    #[error("URL must not have anything after the port: {0}")]
    Path(String),
    #[error("URL names no socket file: {0}")]
    NoFile(String),
    #[error("URL to listen on must have an IP address or localhost as its host: {0}")]
    NotBindable(String),
    #[error("URL to advertise has no host: {0}")]
    NoHost(String),
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Url, UrlError> {
        let text = text.trim();
        let (scheme, rest) = split_scheme(text).ok_or_else(|| UrlError::Scheme(text.to_owned()))?;
        if scheme.is_unix() {
            if rest.is_empty() {
                return Err(UrlError::NoFile(text.to_owned()));
            }
            return Ok(Url {
                text: text.to_owned(),
            });
        }
        if rest.contains(['/', '?', '#']) {
            return Err(UrlError::Path(text.to_owned()));
        }
        match split_port(rest) {
            // An address with colons is in brackets, or it is no address.
            Some((host, _)) if !host.contains(':') || bracketed(host).is_some() => Ok(Url {
                text: text.to_owned(),
            }),
            _ => Err(UrlError::NoPort(text.to_owned())),
        }
    }
}

impl Url {
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn scheme(&self) -> Scheme {
        self.parts().0
    }

    /// The host without brackets, and the port. None for a socket file.
    pub fn host_and_port(&self) -> Option<(&str, u16)> {
        let (scheme, rest) = self.parts();
        if scheme.is_unix() {
            return None;
        }
        let (host, port) = split_port(rest).expect("a checked URL has a port");
        Some((bracketed(host).unwrap_or(host), port))
    }

    /// The socket file. etcd's tests write `unix://localhost:name`, so what
    /// follows the slashes is the path, whatever it looks like.
    pub fn socket_file(&self) -> Option<PathBuf> {
        let (scheme, rest) = self.parts();
        scheme.is_unix().then(|| PathBuf::from(rest))
    }

    /// Refuses what cannot be listened on: a name other than localhost could
    /// resolve to anything, and to something else tomorrow.
    pub fn check_bindable(&self) -> Result<(), UrlError> {
        match self.host_and_port() {
            Some((host, _)) if host != "localhost" && host.parse::<IpAddr>().is_err() => {
                Err(UrlError::NotBindable(self.text.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Refuses what nobody could dial.
    pub fn check_advertisable(&self) -> Result<(), UrlError> {
        match self.host_and_port() {
            Some(("", _)) => Err(UrlError::NoHost(self.text.clone())),
            _ => Ok(()),
        }
    }

    fn parts(&self) -> (Scheme, &str) {
        split_scheme(&self.text).expect("a checked URL has a scheme")
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn split_scheme(text: &str) -> Option<(Scheme, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let scheme = match scheme {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        "unix" => Scheme::Unix,
        "unixs" => Scheme::Unixs,
        _ => return None,
    };
    Some((scheme, rest))
}

fn split_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    Some((host, port.parse().ok()?))
}

fn bracketed(host: &str) -> Option<&str> {
    host.strip_prefix('[')?.strip_suffix(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_urls_or_say_why_not() {
        let error = |text: &str| text.parse::<Url>().unwrap_err();
        assert_eq!(
            error("localhost:2379"),
            UrlError::Scheme("localhost:2379".into())
        );
        assert_eq!(error("tcp://a:1"), UrlError::Scheme("tcp://a:1".into()));
        assert_eq!(error("http://a"), UrlError::NoPort("http://a".into()));
        assert_eq!(error("http://a:x"), UrlError::NoPort("http://a:x".into()));
        assert_eq!(
            error("http://::1:80"),
            UrlError::NoPort("http://::1:80".into())
        );
        assert_eq!(error("http://a:1/b"), UrlError::Path("http://a:1/b".into()));
        assert_eq!(error("unix://"), UrlError::NoFile("unix://".into()));

        let url: Url = " https://[::1]:2379".parse().unwrap();
        assert_eq!(url.as_str(), "https://[::1]:2379");
        assert_eq!(url.scheme(), Scheme::Https);
        assert_eq!(url.host_and_port(), Some(("::1", 2379)));
        assert_eq!(url.socket_file(), None);

        let url: Url = "unix:///run/stele.sock".parse().unwrap();
        assert_eq!(url.socket_file(), Some(PathBuf::from("/run/stele.sock")));
        assert_eq!(url.host_and_port(), None);
    }

    #[test]
    fn only_addresses_and_localhost_are_listened_on() {
        let is_bindable = |text: &str| text.parse::<Url>().unwrap().check_bindable().is_ok();
        assert!(is_bindable("http://localhost:1"));
        assert!(is_bindable("http://0.0.0.0:1"));
        assert!(is_bindable("http://[::]:1"));
        assert!(is_bindable("unix://localhost:m1"));
        assert!(!is_bindable("http://example.com:1"));
        assert!(!is_bindable("http://:1"));
        assert!(
            "http://:1"
                .parse::<Url>()
                .unwrap()
                .check_advertisable()
                .is_err()
        );
    }
}
