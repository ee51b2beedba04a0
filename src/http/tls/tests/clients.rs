//! Which clients are let in, and what the others are told in the log.

use std::path::Path;

use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;

use super::*;

/// What becomes of a client at a server, from the server's side: the words of
/// the refusal.
async fn refusal(settings: Settings, client: &TlsConnector, from: &str) -> Option<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let remote = from.parse().unwrap();
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        Arc::new(settings).accept(stream, Some(remote)).await
    };
    let dialing = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        client.connect(name, stream).await
    };
    let (served, _dialed) = tokio::join!(serving, dialing);
    served.err().map(|error| error.to_string())
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/tls")
        .join(name)
}

fn certificate_of(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(data(name)).unwrap()
}

/// A server that takes clients of an authority in `tests/data/tls`.
fn settings_for(server: &Authority, ca_file: &str) -> Settings {
    server.renew_server();
    let mut settings = server.settings(Some(&[]));
    settings.client_auth.as_mut().unwrap().ca_file = data(ca_file);
    settings
}

/// A client that shows a chain and has a key from `tests/data/tls`.
fn client_of(server: &Authority, chain: &[&str], key: &str, version: Version) -> TlsConnector {
    let key = KeyPair::from_pem(&std::fs::read_to_string(data(key)).unwrap()).unwrap();
    let chain = chain.iter().map(|name| certificate_of(name)).collect();
    client(server.issuer.der(), Some(own(chain, &key)), version)
}

#[tokio::test]
async fn certificates_of_version_1_are_let_in_below_their_authority() {
    let server = Authority::new();
    for version in [Version::Tls12, Version::Tls13] {
        for kind in ["version-1-rsa", "version-1-p256"] {
            let (cert, key) = (format!("{kind}.pem"), format!("{kind}.key"));
            let client = client_of(&server, &[&cert], &key, version);
            let settings = settings_for(&server, "ca.pem");
            assert_eq!(
                refusal(settings, &client, "127.0.0.1").await,
                None,
                "{kind}"
            );
            // Whoever shows it must have its key.
            let other = KeyPair::generate().unwrap();
            let thief = own(vec![certificate_of(&cert)], &other);
            let thief = super::client(server.issuer.der(), Some(thief), version);
            let settings = settings_for(&server, "ca.pem");
            assert!(
                refusal(settings, &thief, "127.0.0.1").await.is_some(),
                "{kind}"
            );
        }
    }
    let mut named = settings_for(&server, "ca.pem");
    let auth = named.client_auth.as_mut().unwrap();
    auth.allowed_common_names = vec!["version-1-p256".to_owned()];
    let client = |kind: &str| {
        let (cert, key) = (format!("{kind}.pem"), format!("{kind}.key"));
        client_of(&server, &[&cert], &key, Version::Tls13)
    };
    let p256 = client("version-1-p256");
    assert_eq!(refusal(named.clone(), &p256, "127.0.0.1").await, None);
    assert_eq!(
        refusal(named, &client("version-1-rsa"), "127.0.0.1")
            .await
            .unwrap(),
        r#"the certificate of "CN=version-1-rsa" has none of the allowed names"#
    );
}

#[tokio::test]
async fn certificates_of_version_1_are_refused_otherwise() {
    let server = Authority::new();
    let key = "version-1-p256.key";
    let good = client_of(&server, &["version-1-p256.pem"], key, Version::Tls13);
    let refused = refusal(
        settings_for(&server, "ca-of-servers.pem"),
        &good,
        "127.0.0.1",
    )
    .await;
    assert!(refused.unwrap().contains("may not sign for clients"));
    let own_authority = {
        server.renew_server();
        server.settings(Some(&[]))
    };
    let refused = refusal(own_authority, &good, "127.0.0.1").await.unwrap();
    assert!(refused.contains("UnknownIssuer"), "{refused}");

    let expired = client_of(&server, &["version-1-expired.pem"], key, Version::Tls13);
    let refused = refusal(settings_for(&server, "ca.pem"), &expired, "127.0.0.1").await;
    assert!(refused.unwrap().contains("Expired"));

    let mut forged = certificate_of("version-1-p256.pem").to_vec();
    *forged.last_mut().unwrap() ^= 1;
    let pair = KeyPair::from_pem(&std::fs::read_to_string(data(key)).unwrap()).unwrap();
    let forged = own(vec![forged.into()], &pair);
    let forged = client(server.issuer.der(), Some(forged), Version::Tls13);
    let refused = refusal(settings_for(&server, "ca.pem"), &forged, "127.0.0.1").await;
    assert!(
        refused
            .unwrap()
            .contains("a signature that is not its authority's")
    );

    let chain = ["below-version-1.pem", "version-1-rsa.pem"];
    let below = client_of(&server, &chain, "below-version-1.key", Version::Tls13);
    let refused = refusal(settings_for(&server, "ca.pem"), &below, "127.0.0.1")
        .await
        .unwrap();
    assert!(
        refused.starts_with(
            r#"the certificate of "CN=version-1-rsa" is of X.509 version 1 and stands between"#
        ),
        "{refused}"
    );
}

#[tokio::test]
async fn keys_on_p521_will_do_everywhere() {
    let authority = Authority::with_keys(&rcgen::PKCS_ECDSA_P521_SHA512);
    authority.renew_server();
    for version in [Version::Tls12, Version::Tls13] {
        let (certificate, key) = authority.certificate("anybody");
        let own = own(vec![certificate.der().clone()], &key);
        let client = client(authority.issuer.der(), Some(own), version);
        let settings = authority.settings(Some(&[]));
        assert_eq!(refusal(settings, &client, "127.0.0.1").await, None);
    }
}

#[tokio::test]
async fn short_keys_are_refused_in_words() {
    let server = Authority::new();
    // The library has no use for the key itself; that comes later.
    let client = own(
        vec![certificate_of("rsa-1024.pem")],
        &KeyPair::generate().unwrap(),
    );
    let client = super::client(server.issuer.der(), Some(client), Version::Tls13);
    assert_eq!(
        refusal(settings_for(&server, "ca.pem"), &client, "127.0.0.1")
            .await
            .unwrap(),
        "the certificate of \"CN=rsa-1024\" has an RSA key of 1024 bits, which is not secure; at \
         least 2048 are needed"
    );
    let mut settings = settings_for(&server, "ca.pem");
    settings.cert_file = data("rsa-1024.pem");
    settings.key_file = data("rsa-1024.key");
    let error = settings.check().unwrap_err().to_string();
    assert!(error.contains("rsa-1024.key"), "{error}");
    assert!(
        error.contains("its certificate has an RSA key of 1024 bits"),
        "{error}"
    );
}

#[tokio::test]
async fn a_key_of_another_certificate_is_named() {
    let authority = Authority::new();
    authority.renew_server();
    let other = KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(authority.file("server.key"), other).unwrap();
    let error = authority.settings(None).check().unwrap_err().to_string();
    assert!(error.starts_with("the key in "), "{error}");
    assert!(
        error.contains("is not that of the certificate in"),
        "{error}"
    );
}

#[tokio::test]
async fn an_authority_is_nobody_unless_it_is_trusted_itself() {
    let authority = Authority::new();
    authority.renew_server();
    let client = |of: &Authority| {
        let own = own(vec![of.issuer.der().clone()], of.issuer.key());
        client(authority.issuer.der(), Some(own), Version::Tls13)
    };
    let settings = || authority.settings(Some(&[]));
    assert_eq!(
        refusal(settings(), &client(&authority), "127.0.0.1").await,
        None
    );
    let stranger = refusal(settings(), &client(&Authority::new()), "127.0.0.1").await;
    let stranger = stranger.unwrap();
    assert!(
        stranger.contains("certificate authority (CA:TRUE)"),
        "{stranger}"
    );
}

#[tokio::test]
async fn a_certificate_is_compared_with_where_it_comes_from() {
    let authority = Authority::new();
    authority.renew_server();
    let client = authority.client(Some("192.0.2.1"));
    let mut settings = authority.settings(Some(&[]));
    assert_eq!(
        refusal(settings.clone(), &client, "192.0.2.2").await,
        None,
        "not asked for"
    );
    settings.checks_origin = true;
    assert_eq!(refusal(settings.clone(), &client, "192.0.2.1").await, None);
    assert_eq!(
        refusal(settings.clone(), &client, "192.0.2.2")
            .await
            .unwrap(),
        "x509: certificate is valid for 192.0.2.1, not 192.0.2.2"
    );

    let address = serve(settings);
    let here = authority.client(Some("127.0.0.1"));
    assert!(ask(&here, address).await.is_ok());
    assert!(ask(&client, address).await.is_err());
}
