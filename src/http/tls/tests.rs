//! Handshakes with certificates made for the occasion, or, of kinds that no
//! library makes any more, from `tests/data/tls`.

mod clients;
mod dialing;
mod revocations;

use std::time::Duration;

use axum::Router;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SignatureAlgorithm,
};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::super::listener::{self, Listener, Services, SocketOptions};
use super::super::tests::{connection_settings, http1};
use super::*;

/// An authority, and a folder with the files of a server.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: TempDir,
}

impl Authority {
    fn new() -> Authority {
        Authority::with_keys(&rcgen::PKCS_ECDSA_P256_SHA256)
    }

    fn with_keys(algorithm: &'static SignatureAlgorithm) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate_for(algorithm).unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { issuer, dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A certificate with keys like the authority's own.
    fn certificate(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate_for(self.issuer.key().algorithm()).unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// Gives the server another certificate, in the same files.
    fn renew_server(&self) -> CertificateDer<'static> {
        let (certificate, key) = self.certificate("localhost");
        std::fs::write(self.dir.path().join("server.pem"), certificate.pem()).unwrap();
        std::fs::write(self.dir.path().join("server.key"), key.serialize_pem()).unwrap();
        certificate.der().clone()
    }

    fn settings(&self, client_auth: Option<&[&str]>) -> Settings {
        Settings {
            cert_file: self.dir.path().join("server.pem"),
            key_file: self.dir.path().join("server.key"),
            client_auth: client_auth.map(|names| ClientAuth {
                ca_file: self.dir.path().join("ca.pem"),
                crl_file: None,
                allowed_hostnames: names.iter().map(|name| (*name).to_owned()).collect(),
                allowed_common_names: Vec::new(),
            }),
            checks_origin: false,
            min_version: Version::Tls12,
            max_version: Version::Tls13,
            cipher_suites: Vec::new(),
        }
    }

    /// A client with a certificate for `name`, or without one.
    fn client(&self, name: Option<&str>) -> TlsConnector {
        let own = name.map(|name| {
            let (certificate, key) = self.certificate(name);
            own(vec![certificate.der().clone()], &key)
        });
        client(self.issuer.der(), own, Version::Tls13)
    }
}

/// What a client shows.
fn own(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> CertifiedKey {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = aws_lc_rs::default_provider()
        .key_provider
        .load_private_key(key);
    CertifiedKey::new(chain, key.unwrap())
}

/// A client of a server below `authority`, of one version of TLS.
fn client(
    authority: &CertificateDer<'static>,
    own: Option<CertifiedKey>,
    version: Version,
) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions(version, version))
        .unwrap()
        .with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
    };
    TlsConnector::from(Arc::new(config))
}

/// Serves on a port of the kernel's choice until the end of the test.
fn serve(settings: Settings) -> std::net::SocketAddr {
    let url = "https://127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(&url, &SocketOptions::default()).unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(|| async { "served" });
    tokio::spawn(listener::serve(
        vec![listener],
        Services::One(router),
        Some(settings),
        connection_settings(),
        CancellationToken::new(),
    ));
    address
}

/// The answer, and the certificate the server has shown.
async fn ask(
    client: &TlsConnector,
    address: std::net::SocketAddr,
) -> io::Result<(String, CertificateDer<'static>)> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = client.connect(name, stream).await?;
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0]
        .clone()
        .into_owned();
    let ask = http1(&mut stream, "/", "");
    let answer = tokio::time::timeout(Duration::from_secs(10), ask).await??;
    Ok((answer, shown))
}

#[tokio::test]
async fn certificates_are_read_again_for_each_handshake() {
    let authority = Authority::new();
    let first = authority.renew_server();
    let address = serve(authority.settings(None));
    let client = authority.client(None);
    let (answer, shown) = ask(&client, address).await.unwrap();
    assert!(answer.ends_with("served"), "{answer}");
    assert_eq!(shown, first);

    let second = authority.renew_server();
    assert_ne!(first, second);
    assert_eq!(ask(&client, address).await.unwrap().1, second);

    let cert_file = authority.dir.path().join("server.pem");
    std::fs::write(cert_file, "no certificate").unwrap();
    assert!(
        ask(&client, address).await.is_err(),
        "a bad file fails handshakes"
    );
    let third = authority.renew_server();
    assert_eq!(
        ask(&client, address).await.unwrap().1,
        third,
        "a good one heals them"
    );
}

#[tokio::test]
async fn clients_must_show_a_certificate_of_the_authority() {
    let authority = Authority::new();
    authority.renew_server();
    let address = serve(authority.settings(Some(&[])));
    assert!(ask(&authority.client(None), address).await.is_err());
    assert!(
        ask(&authority.client(Some("anybody")), address)
            .await
            .is_ok()
    );

    let address = serve(authority.settings(Some(&["admin.example"])));
    assert!(
        ask(&authority.client(Some("anybody")), address)
            .await
            .is_err()
    );
    assert!(
        ask(&authority.client(Some("admin.example")), address)
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn plaintext_on_a_tls_port_gets_nothing() {
    let authority = Authority::new();
    authority.renew_server();
    let address = serve(authority.settings(None));
    let stream = TcpStream::connect(address).await.unwrap();
    let answer = http1(stream, "/", "").await;
    assert!(!answer.unwrap_or_default().contains("HTTP/1.1 200"));
    assert!(
        ask(&authority.client(None), address).await.is_ok(),
        "others are served"
    );
}

#[tokio::test]
async fn one_port_serves_with_and_without_tls() {
    let authority = Authority::new();
    authority.renew_server();
    let urls = ["http://127.0.0.1:0", "https://127.0.0.1:0"].map(|url| url.parse().unwrap());
    let listeners = Listener::bind_all(&urls, &SocketOptions::default()).unwrap();
    assert_eq!(listeners.len(), 1);
    let address = listeners[0].local_addr().unwrap();
    let router = Router::new().fallback(|| async { "served" });
    tokio::spawn(listener::serve(
        listeners,
        Services::One(router),
        Some(authority.settings(None)),
        connection_settings(),
        CancellationToken::new(),
    ));
    // One that says nothing keeps nobody waiting.
    let _silent = TcpStream::connect(address).await.unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let answer = http1(stream, "/", "").await.unwrap();
    assert!(answer.ends_with("served"), "{answer}");
    let (answer, _) = ask(&authority.client(None), address).await.unwrap();
    assert!(answer.ends_with("served"), "{answer}");
}

#[test]
fn bad_files_fail_the_start() {
    let authority = Authority::new();
    let settings = authority.settings(Some(&[]));
    let error = settings.check().unwrap_err().to_string();
    assert!(error.contains("server.key"), "{error}");
    authority.renew_server();
    settings.check().unwrap();
    std::fs::write(authority.dir.path().join("ca.pem"), "").unwrap();
    let error = settings.check().unwrap_err().to_string();
    assert!(error.starts_with("no certificate in "), "{error}");
}

#[test]
fn cipher_suites_have_the_names_of_go() {
    for name in [
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        "TLS_AES_128_GCM_SHA256",
        "TLS_RSA_WITH_AES_256_CBC_SHA",
    ] {
        assert!(is_cipher_suite(name), "{name}");
    }
    assert!(!is_cipher_suite("TLS_FANCY"));

    let authority = Authority::new();
    authority.renew_server();
    let mut settings = authority.settings(None);
    settings.cipher_suites = vec!["TLS_RSA_WITH_AES_256_CBC_SHA".to_owned()];
    settings.check().expect("TLS 1.3 is still there");
    settings.max_version = Version::Tls12;
    assert!(matches!(settings.check(), Err(TlsError::NoCipherSuite)));
    settings
        .cipher_suites
        .push("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".to_owned());
    settings.check().unwrap();
}

/// The end of an answer lies in the TLS library while the socket is full, and
/// nothing is written after it that would push it out.
#[tokio::test]
async fn a_slow_reader_gets_the_end_of_an_answer() {
    const BODY_BYTES: usize = 8 << 20;
    let authority = Authority::new();
    authority.renew_server();
    let url = "https://127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(&url, &SocketOptions::default()).unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(|| async { vec![b'x'; BODY_BYTES] });
    tokio::spawn(listener::serve(
        vec![listener],
        Services::One(router),
        Some(authority.settings(None)),
        connection_settings(),
        CancellationToken::new(),
    ));
    let client = authority.client(None);
    for _ in 0..3 {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = client.connect(name, stream).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        stream.write_all(request).await.unwrap();
        // Until the server's socket is full.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut answer = vec![0; BODY_BYTES];
        let reading = stream.read_exact(&mut answer);
        tokio::time::timeout(Duration::from_secs(20), reading)
            .await
            .expect("all of it comes")
            .unwrap();
    }
}
