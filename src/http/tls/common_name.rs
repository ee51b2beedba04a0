//! The common names in a certificate's subject (`--peer-cert-allowed-cn`).
//!
//! TLS libraries of today look at alternative names only, and crates that read
//! whole certificates bring a dozen others. This reader walks the few DER
//! elements on the way (RFC 5280, section 4.1), of certificates whose chain
//! has been checked; what it does not understand has no common name.

/// Tags of DER (X.690, section 8).
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const VERSION: u8 = 0xa0;

/// Strings whose bytes are UTF-8 or a part of it: UTF8String,
/// PrintableString, IA5String.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];

/// 2.5.4.3, id-at-commonName.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

pub(super) fn common_names(certificate: &[u8]) -> Vec<&[u8]> {
    let mut names = Vec::new();
    let Some(mut attributes) = subject(certificate) else {
        return names;
    };
    while let Some(mut set) = attributes.next_of(SET) {
        while let Some(mut attribute) = set.next_of(SEQUENCE) {
            let is_common_name = attribute
                .next_of(OBJECT_IDENTIFIER)
                .is_some_and(|name| name.0 == COMMON_NAME);
            if is_common_name
                && let Some((tag, value)) = attribute.next()
                && TEXTS.contains(&tag)
            {
                names.push(value.0);
            }
        }
    }
    names
}

fn subject(certificate: &[u8]) -> Option<Elements<'_>> {
    let mut signed = Elements(certificate).next_of(SEQUENCE)?.next_of(SEQUENCE)?;
    let (tag, _) = signed.next()?;
    if tag == VERSION {
        signed.next()?; // serial number
    }
    signed.next_of(SEQUENCE)?; // algorithm of the signature
    signed.next_of(SEQUENCE)?; // issuer
    signed.next_of(SEQUENCE)?; // validity
    signed.next_of(SEQUENCE)
}

/// Elements that follow each other.
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    /// The next element's tag and content.
    fn next(&mut self) -> Option<(u8, Elements<'a>)> {
        let (&[tag, length], rest) = self.0.split_first_chunk()?;
        let (length, rest) = if length < 0x80 {
            (usize::from(length), rest)
        } else {
            // The length's own length; certificates need no more than four.
            let (bytes, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
            if bytes.len() > 4 {
                return None;
            }
            let length = bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            (length, rest)
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, Elements(content)))
    }

    /// The next element, if it is of this kind.
    fn next_of(&mut self, wanted: u8) -> Option<Elements<'a>> {
        let (tag, content) = self.next()?;
        (tag == wanted).then_some(content)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    #[test]
    fn common_names_are_found_and_garbage_has_none() {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        let subject = &mut params.distinguished_name;
        subject.push(DnType::OrganizationName, "no name");
        subject.push(DnType::CommonName, "member one");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        assert_eq!(common_names(certificate.der()), [b"member one"]);
        for end in 0..certificate.der().len() {
            assert!(common_names(&certificate.der()[..end]).is_empty());
        }
        for byte in 0..certificate.der().len() {
            let mut broken = certificate.der().to_vec();
            broken[byte] ^= 0xff;
            common_names(&broken);
        }
    }
}
