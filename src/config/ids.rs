//! The ids of a bootstrap's members and of its cluster. They are computed from
//! the options, so that members that start apart agree on them, and they are
//! etcd's to the bit: clients and dashboards know a default server by its id
//! (CLU-4, CLU-5; etcd's `membership/member.go`, `membership/cluster.go`).

use sha1::{Digest, Sha1};

use crate::http::Url;

/// Id of a member with these peer URLs in a cluster with this token.
pub(super) fn member_id(peer_urls: &[Url], cluster_token: &str) -> u64 {
    let mut urls: Vec<&str> = peer_urls.iter().map(Url::as_str).collect();
    urls.sort_unstable();
    first_bytes(&(urls.concat() + cluster_token).into_bytes())
}

/// Id of a cluster of these members.
pub(super) fn cluster_id(member_ids: &[u64]) -> u64 {
    let mut ids = member_ids.to_vec();
    ids.sort_unstable();
    first_bytes(
        &ids.iter()
            .flat_map(|id| id.to_be_bytes())
            .collect::<Vec<u8>>(),
    )
}

/// The first eight bytes of the digest, as a number.
fn first_bytes(input: &[u8]) -> u64 {
    let digest = Sha1::digest(input);
    u64::from_be_bytes(std::array::from_fn(|position| digest[position]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(peer_url: &str) -> (u64, u64) {
        let member = member_id(&[peer_url.parse().unwrap()], "etcd-cluster");
        (member, cluster_id(&[member]))
    }

    #[test]
    fn ids_are_those_of_etcd() {
        // CLU-5
        assert_eq!(
            ids("http://localhost:2380"),
            (0x8e9e_05c5_2164_694d, 0xcdf8_1819_4e3a_8c32)
        );
        // VEC-12
        let expected = (3_319_814_642_761_637_952, 324_952_591_200_643_719);
        assert_eq!(ids("http://127.0.0.1:23800"), expected);
    }

    #[test]
    fn the_order_of_urls_does_not_matter() {
        let urls: Vec<Url> = ["http://b:1", "http://a:1"]
            .map(|url| url.parse().unwrap())
            .into();
        let mut reversed = urls.clone();
        reversed.reverse();
        assert_eq!(member_id(&urls, "t"), member_id(&reversed, "t"));
        assert_eq!(cluster_id(&[1, 2]), cluster_id(&[2, 1]));
    }
}
