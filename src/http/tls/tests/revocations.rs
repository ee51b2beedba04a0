//! Lists of revoked certificates, as files.

use std::path::Path;

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};

use super::*;

/// An authority that may sign lists, with a name of its own.
fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
    let authority = Authority { issuer, dir };
    authority.renew_server();
    authority
}

impl Authority {
    fn revoke(&self, serials: &[u64]) -> rcgen::CertificateRevocationList {
        let now = std::time::SystemTime::now();
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(3600)).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap()
    }

    fn client_with_serial(&self, serial: u64, trusted: &Authority) -> TlsConnector {
        let mut params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let own = own(vec![certificate.der().clone()], &key);
        client(trusted.issuer.der(), Some(own), Version::Tls13)
    }

    /// A server with the list in `crl.file`.
    fn with_list(&self, list: &[u8]) -> Settings {
        std::fs::write(self.file("crl.file"), list).unwrap();
        let mut settings = self.settings(Some(&[]));
        settings.client_auth.as_mut().unwrap().crl_file = Some(self.file("crl.file"));
        settings
    }
}

#[tokio::test]
async fn revoked_clients_are_kept_out_by_lists_in_der_and_pem() {
    let authority = authority("one");
    let (good, bad) = (
        authority.client_with_serial(0x1001, &authority),
        authority.client_with_serial(0x80_2002, &authority),
    );
    let list = authority.revoke(&[1, 0x80_2002]);
    let pem = list.pem().unwrap();
    for bytes in [list.der().to_vec(), pem.clone().into_bytes()] {
        let address = serve(authority.with_list(&bytes));
        assert!(ask(&good, address).await.is_ok());
        assert!(ask(&bad, address).await.is_err());
    }
}

#[tokio::test]
async fn a_list_is_read_again_and_a_bad_one_keeps_everybody_out() {
    let authority = authority("one");
    let client = authority.client_with_serial(7, &authority);
    let none = authority.revoke(&[]);
    let address = serve(authority.with_list(none.der()));
    assert!(ask(&client, address).await.is_ok());
    let replace = |bytes: &[u8]| std::fs::write(authority.file("crl.file"), bytes).unwrap();
    replace(authority.revoke(&[7]).der());
    assert!(ask(&client, address).await.is_err(), "revoked");
    replace(none.der());
    assert!(ask(&client, address).await.is_ok(), "and not any more");
    replace(b"");
    assert!(ask(&client, address).await.is_err(), "no list at all");
    std::fs::remove_file(authority.file("crl.file")).unwrap();
    assert!(ask(&client, address).await.is_err(), "not even a file");
}

#[test]
fn what_is_no_list_fails_the_start() {
    let authority = authority("one");
    let list = authority.revoke(&[7]);
    authority.with_list(list.der()).check().unwrap();
    let mut longer = list.der().to_vec();
    longer.push(0);
    let pem = list.pem().unwrap();
    let broken = pem.replace(
        "-----BEGIN X509 CRL-----\n",
        "-----BEGIN X509 CRL-----\nAAAA\n",
    );
    let with_broken = format!("{pem}{broken}");
    let certificate = authority.issuer.pem();
    let bad: [&[u8]; 7] = [
        b"",
        b"garbage",
        &list.der()[..list.der().len() - 1],
        &longer,
        certificate.as_bytes(),
        broken.as_bytes(),
        with_broken.as_bytes(),
    ];
    for bytes in bad {
        let error = authority.with_list(bytes).check().unwrap_err().to_string();
        let text = String::from_utf8_lossy(bytes);
        assert!(
            error.starts_with("no list of revoked certificates in "),
            "{text}: {error}"
        );
        assert!(error.contains("crl.file"), "{error}");
    }
}

/// Each certificate that is shown is looked up, as in etcd.
#[tokio::test]
async fn a_revoked_authority_in_between_keeps_its_clients_out() {
    let root = authority("root");
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.serial_number = Some(SerialNumber::from(50));
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "between");
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &root.issuer).unwrap();
    let between = rcgen::Issuer::from_params(&params, &key);
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["client".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&leaf_key, &between).unwrap();
    let chain = vec![leaf.der().clone(), certificate.der().clone()];
    let client = client(
        root.issuer.der(),
        Some(own(chain, &leaf_key)),
        Version::Tls13,
    );
    let address = serve(root.with_list(root.revoke(&[51]).der()));
    assert!(ask(&client, address).await.is_ok());
    let address = serve(root.with_list(root.revoke(&[50]).der()));
    assert!(ask(&client, address).await.is_err());
}

/// etcd reads one list only, and looks every serial number up in it. Several
/// of different authorities are about their own certificates each.
#[tokio::test]
async fn several_lists_are_about_their_own_authorities() {
    let (one, two) = (authority("one"), authority("two"));
    let both = format!("{}{}", one.issuer.pem(), two.issuer.pem());
    std::fs::write(one.file("ca.pem"), both).unwrap();
    let clients = [&one, &two].map(|issuer| issuer.client_with_serial(9, &one));
    let is_let_in = async |list: &[u8]| {
        let address = serve(one.with_list(list));
        let [of_one, of_two] = &clients;
        (
            ask(of_one, address).await.is_ok(),
            ask(of_two, address).await.is_ok(),
        )
    };
    let lists = [one.revoke(&[8]), two.revoke(&[9])].map(|list| list.pem().unwrap());
    assert_eq!(is_let_in(lists.concat().as_bytes()).await, (true, false));
    assert_eq!(is_let_in(two.revoke(&[9]).der()).await, (false, false));
}

/// And certificates of version 1 are looked up as well.
#[tokio::test]
async fn lists_of_openssl_are_read() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls");
    let server = authority("server");
    let mut settings = server.settings(Some(&[]));
    *settings.client_auth.as_mut().unwrap() = ClientAuth {
        ca_file: data.join("ca.pem"),
        crl_file: Some(data.join("revoked.der")),
        allowed_hostnames: Vec::new(),
        allowed_common_names: Vec::new(),
    };
    let address = serve(settings);
    for (kind, is_let_in) in [("version-1-rsa", false), ("version-1-p256", true)] {
        let key = std::fs::read_to_string(data.join(format!("{kind}.key"))).unwrap();
        let certificate = CertificateDer::from_pem_file(data.join(format!("{kind}.pem")));
        let own = own(
            vec![certificate.unwrap()],
            &KeyPair::from_pem(&key).unwrap(),
        );
        let client = client(server.issuer.der(), Some(own), Version::Tls13);
        assert_eq!(ask(&client, address).await.is_ok(), is_let_in, "{kind}");
    }
}
