//! The dialing side.

use super::*;

fn dialing(trust: Trust) -> Arc<ClientTls> {
    Arc::new(ClientTls {
        key_pair: None,
        trust,
        allowed_hostnames: Vec::new(),
        allowed_common_names: Vec::new(),
        min_version: Version::Tls12,
        max_version: Version::Tls13,
        cipher_suites: Vec::new(),
    })
}

/// Whether a server with these settings is trusted under a name.
async fn is_trusted(server: &Settings, tls: &Arc<ClientTls>, name: &str) -> bool {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        Arc::new(server.clone()).accept(stream, None).await
    };
    let dialing = async {
        let stream = TcpStream::connect(address).await.unwrap();
        Arc::clone(tls).connect(name, stream).await
    };
    let (_served, dialed) = tokio::join!(serving, dialing);
    dialed.is_ok()
}

#[tokio::test]
async fn a_self_made_certificate_is_good_for_who_trusts_it_or_anybody() {
    let dir = tempfile::tempdir().unwrap();
    let made = SelfMade {
        directory: dir.path().join("fixtures/peer"),
        hosts: vec!["localhost".to_owned()],
        validity_years: 1,
    };
    made.make_if_missing().unwrap();
    let stranger = Authority::new();
    stranger.renew_server();
    let mut server = stranger.settings(None);
    let trusting = dialing(Trust::Authorities(made.cert_file()));
    let careless = dialing(Trust::Anybody);
    assert!(!is_trusted(&server, &trusting, "localhost").await);
    assert!(is_trusted(&server, &careless, "any.example").await);
    server.cert_file = made.cert_file();
    server.key_file = made.key_file();
    assert!(is_trusted(&server, &trusting, "localhost").await);
    assert!(!is_trusted(&server, &trusting, "any.example").await);
    server.max_version = Version::Tls12;
    assert!(is_trusted(&server, &careless, "any.example").await);
}

#[tokio::test]
async fn who_trusts_anybody_still_wants_the_key() {
    let authority = Authority::new();
    let certificate = authority.renew_server();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let thief = own(vec![certificate], &KeyPair::generate().unwrap());
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(thief)));
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        TlsAcceptor::from(Arc::new(config)).accept(stream).await
    };
    let dialing = async {
        let stream = TcpStream::connect(address).await.unwrap();
        dialing(Trust::Anybody).connect("localhost", stream).await
    };
    let (_served, dialed) = tokio::join!(serving, dialing);
    assert!(dialed.is_err());
}
