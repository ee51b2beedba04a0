//! The options that make a member of an empty data directory: the first one of
//! a cluster, one of several that make it together, or one that joins.
//!
//! They mean something only while the directory is empty (CLU-14), so they are
//! looked at when it turns out to be: [`Initial::start`]. Nothing here talks to
//! anyone. What has to be asked of other members is asked by `node`, and judged
//! here ([`Joining::settle`], [`Bootstrap::check_not_started`]). Refusals read
//! as etcd's (`config/config.go`, `membership/cluster.go`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::source::Values;
use super::value::split_list;
use super::{ConfigError, Feature, advertised, ids, invalid};
use crate::http::Url;

/// The `initial-*` options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initial {
    /// `name=url,...`; none: this member alone.
    cluster: Option<String>,
    cluster_token: String,
    peer_urls: Vec<Url>,
    joins_existing: bool,
}

/// How a member begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    New(Bootstrap),
    Existing(Joining),
}

/// A new cluster, as each of its members computes it from its own options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootstrap {
    pub cluster_id: u64,
    /// This member, one of `members`.
    pub member_id: u64,
    /// Ordered by name.
    pub members: Vec<Known>,
}

/// A member that has been added to a cluster and starts for the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joining {
    name: String,
    /// URLs of all members by name, this one's too.
    members: BTreeMap<String, Vec<Url>>,
}

/// What is known of a member before it has started, or what others say of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    pub id: u64,
    /// Empty if it has never started.
    pub name: String,
    pub peer_urls: Vec<String>,
    /// Empty if it has never started.
    pub client_urls: Vec<String>,
}

impl Initial {
    pub(super) fn from_values(values: &Values) -> Result<Initial, ConfigError> {
        Ok(Initial {
            cluster: Some(values.text("initial-cluster")).filter(|text| !text.is_empty()),
            cluster_token: values.text("initial-cluster-token"),
            peer_urls: advertised(values, "initial-advertise-peer-urls")?,
            joins_existing: values.text("initial-cluster-state") == "existing",
        })
    }

    /// The URLs by which this member's options say that peers reach it.
    pub fn peer_urls(&self) -> &[Url] {
        &self.peer_urls
    }

    /// How the member `name` begins with an empty data directory.
    pub fn start(&self, name: &str) -> Result<Start, ConfigError> {
        let members = self.members(name)?;
        let Some(own_urls) = members.get(name) else {
            return invalid(format!(
                "couldn't find local name {name:?} in the initial cluster configuration"
            ));
        };
        self.check_unique(&members)?;
        if self.joins_existing {
            return Ok(Start::Existing(Joining {
                name: name.to_owned(),
                members,
            }));
        }
        self.check_own(name, own_urls)?;
        let known = |(name, urls): (&String, &Vec<Url>)| Known {
            id: ids::member_id(urls, &self.cluster_token),
            name: name.clone(),
            peer_urls: texts(urls),
            client_urls: Vec::new(),
        };
        let members: Vec<Known> = members.iter().map(known).collect();
        let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
        Ok(Start::New(Bootstrap {
            cluster_id: ids::cluster_id(&ids),
            member_id: ids::member_id(&self.peer_urls, &self.cluster_token),
            members,
        }))
    }

    /// All members' URLs by name, each list in order.
    fn members(&self, name: &str) -> Result<BTreeMap<String, Vec<Url>>, ConfigError> {
        let Some(cluster) = &self.cluster else {
            return Ok(BTreeMap::from([(name.to_owned(), self.peer_urls.clone())]));
        };
        let mut members: BTreeMap<String, Vec<Url>> = BTreeMap::new();
        for item in split_list(cluster) {
            let Some((member, url)) = item.split_once('=') else {
                return invalid(format!("--initial-cluster: {item:?} is not name=url"));
            };
            match url.parse::<Url>() {
                Ok(url) => members.entry(member.to_owned()).or_default().push(url),
                Err(error) => {
                    return invalid(format!("error setting up initial cluster: {error}"));
                }
            }
        }
        for urls in members.values_mut() {
            urls.sort();
        }
        Ok(members)
    }

    /// Two members cannot be reached by one URL.
    fn check_unique(&self, members: &BTreeMap<String, Vec<Url>>) -> Result<(), ConfigError> {
        let mut urls: Vec<&Url> = members.values().flatten().collect();
        urls.sort();
        if urls.windows(2).any(|pair| pair[0] == pair[1]) {
            let cluster = self.cluster.as_deref().unwrap_or_default();
            return invalid(format!("initial cluster {cluster} has duplicate url"));
        }
        Ok(())
    }

    /// The list must hold this member under the URLs that it advertises: ids
    /// are computed from them, so the others would know it by another id.
    fn check_own(&self, name: &str, urls: &[Url]) -> Result<(), ConfigError> {
        let mut advertised = self.peer_urls.clone();
        advertised.sort();
        if urls == advertised {
            return Ok(());
        }
        let pairs = urls.iter().map(|url| format!("{name}={url}"));
        invalid(format!(
            "--initial-cluster has {} but missing from --initial-advertise-peer-urls={}",
            pairs.collect::<Vec<_>>().join(","),
            texts(&advertised).join(",")
        ))
    }
}

impl Bootstrap {
    /// URLs of the other members.
    pub fn other_urls(&self) -> Vec<String> {
        let others = self.members.iter();
        let others = others.filter(|member| member.id != self.member_id);
        others.flat_map(|member| member.peer_urls.clone()).collect()
    }

    /// Refuses to begin as a member of another cluster than those that answer
    /// (etcd would run, and be ignored by them), and to begin anew as one that
    /// they know to have started.
    pub fn check_not_started(&self, cluster_id: u64, members: &[Known]) -> Result<(), ConfigError> {
        if cluster_id != self.cluster_id {
            return invalid(format!(
                "cluster ID mismatch: --initial-cluster and --initial-cluster-token make the \
                 cluster {:x}, but the members found at its URLs are of the cluster {cluster_id:x}",
                self.cluster_id
            ));
        }
        let own = members.iter().find(|member| member.id == self.member_id);
        own.map_or(Ok(()), Known::check_not_started)
    }
}

impl Known {
    /// Refuses a member that has lost its data, and with them the votes it gave
    /// and the entries it acknowledged. It must be removed and added again.
    fn check_not_started(&self) -> Result<(), ConfigError> {
        if self.client_urls.is_empty() {
            return Ok(());
        }
        invalid(format!(
            "member {:x} has already been bootstrapped",
            self.id
        ))
    }
}

impl Joining {
    /// URLs of the other members: whom to ask.
    pub fn other_urls(&self) -> Vec<String> {
        let others = self.members.iter().filter(|(name, _)| **name != self.name);
        others.flat_map(|(_, urls)| texts(urls)).collect()
    }

    /// This member's id among the members that the cluster says it has. They
    /// must be the ones of the options, each under the same URLs. One that has
    /// started before is refused (etcd fails at the first message of the leader).
    pub fn settle(&self, existing: &[Known]) -> Result<u64, ConfigError> {
        let refuse = |reason: String| {
            let ids: Vec<String> = existing
                .iter()
                .map(|known| known.peer_urls.join(","))
                .collect();
            invalid(format!(
                "error validating peerURLs [{}]: {reason}",
                ids.join(" ")
            ))
        };
        if existing.len() != self.members.len() {
            return refuse("member count is unequal".to_owned());
        }
        let mut own_id = None;
        for known in existing {
            let mut urls = known.peer_urls.clone();
            urls.sort();
            let mut members = self.members.iter();
            let Some((name, _)) = members.find(|(_, own)| texts(own) == urls) else {
                return refuse(format!(
                    "PeerURLs: no match found for existing member ({:x}, {:?})",
                    known.id, known.peer_urls
                ));
            };
            if *name == self.name {
                known.check_not_started()?;
                own_id = Some(known.id);
            }
        }
        match own_id {
            Some(id) => Ok(id),
            // As many members as in the options, all matched, and no URL is
            // there twice: so one of them is this one.
            None => refuse(format!("none of the members is {:?}", self.name)),
        }
    }
}

fn texts(urls: &[Url]) -> Vec<String> {
    urls.iter().map(ToString::to_string).collect()
}

/// With the gate `SetMemberLocalAddr`: the first address by which others reach
/// this member, so that they see its connections come from there (etcd
/// server/embed/config.go, `InferLocalAddr`).
pub(super) fn local_address(
    features: &[Feature],
    initial: &Initial,
    notices: &mut Vec<String>,
) -> Option<IpAddr> {
    const GATE: &str = "SetMemberLocalAddr";
    let mut gates = features.iter();
    if !gates.any(|feature| feature.name == GATE && feature.is_on) {
        return None;
    }
    let urls = initial.peer_urls().iter();
    let mut addresses = urls.filter_map(|url| url.host_and_port()?.0.parse::<IpAddr>().ok());
    let address = addresses.find(|address| !address.is_loopback() && !address.is_unspecified());
    if address.is_none() {
        notices.push(format!(
            "feature gate {GATE} has no effect: no URL of --initial-advertise-peer-urls has an \
             address that is not of this machine alone"
        ));
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Request, read};

    /// Values of a real cluster of three (etcd 3.7.1).
    const THREE: &str =
        "n1=http://127.0.0.1:21180,n2=http://127.0.0.1:21280,n3=http://127.0.0.1:21380";

    fn start(name: &str, args: &str) -> Result<Start, String> {
        let args = format!("--name {name} {args}");
        let args = args.split_whitespace().map(str::to_owned);
        match read(args, []).map_err(|error| error.to_string())? {
            Request::Serve(config) => config
                .initial
                .start(&config.name)
                .map_err(|error| error.to_string()),
            other => panic!("{other:?}"),
        }
    }

    fn bootstrap(name: &str, args: &str) -> Bootstrap {
        match start(name, args) {
            Ok(Start::New(bootstrap)) => bootstrap,
            other => panic!("{other:?}"),
        }
    }

    fn joining(args: &str) -> Joining {
        let args = format!("--initial-cluster-state existing {args}");
        match start("n3", &args) {
            Ok(Start::Existing(joining)) => joining,
            other => panic!("{other:?}"),
        }
    }

    fn known(id: u64, url: &str) -> Known {
        Known {
            id,
            peer_urls: vec![url.to_owned()],
            ..Known::default()
        }
    }

    #[test]
    fn members_that_start_apart_agree() {
        let own = |port: u16| {
            format!(
                "--initial-advertise-peer-urls http://127.0.0.1:{port} --initial-cluster {THREE}"
            )
        };
        let first = bootstrap("n1", &own(21180));
        let third = bootstrap("n3", &own(21380));
        assert_eq!(first.members, third.members);
        assert_eq!(first.cluster_id, third.cluster_id);
        assert_eq!(first.member_id, first.members[0].id);
        assert_eq!(third.member_id, third.members[2].id);
        assert_eq!(
            third.other_urls(),
            ["http://127.0.0.1:21180", "http://127.0.0.1:21280"]
        );
        let ids: Vec<u64> = first.members.iter().map(|member| member.id).collect();
        // etcd's, recorded.
        let expected = [
            0xd59c_5266_14b4_a24c,
            0x2b6f_cb77_33b2_03e1,
            0x69b3_8ac7_138d_e88d,
        ];
        assert_eq!(
            (first.cluster_id, ids),
            (18_265_337_375_712_758_114, expected.into())
        );
        let other = bootstrap("n1", &format!("{} --initial-cluster-token t", own(21180)));
        assert_ne!(other.cluster_id, first.cluster_id);
    }

    #[test]
    fn a_list_that_is_not_this_members_is_refused() {
        let refusal = |name: &str, args: &str| start(name, args).unwrap_err();
        assert_eq!(
            refusal("n9", &format!("--initial-cluster {THREE}")),
            "couldn't find local name \"n9\" in the initial cluster configuration"
        );
        assert_eq!(
            refusal(
                "n1",
                &format!(
                    "--initial-advertise-peer-urls http://127.0.0.1:21999 --initial-cluster {THREE}"
                )
            ),
            "--initial-cluster has n1=http://127.0.0.1:21180 but missing from \
             --initial-advertise-peer-urls=http://127.0.0.1:21999"
        );
        assert_eq!(
            refusal("n1", "--initial-cluster n1=http://a:1,n2=http://a:1"),
            "initial cluster n1=http://a:1,n2=http://a:1 has duplicate url"
        );
        assert_eq!(
            refusal("n1", "--initial-cluster n1=127.0.0.1"),
            "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: 127.0.0.1"
        );
        assert_eq!(
            refusal("n1", "--initial-cluster n1"),
            "--initial-cluster: \"n1\" is not name=url"
        );
    }

    #[test]
    fn who_joins_finds_its_id_by_its_urls() {
        let joining = joining(&format!("--initial-cluster {THREE}"));
        let urls = [21280, 21380, 21180].map(|port| format!("http://127.0.0.1:{port}"));
        let existing = [known(7, &urls[0]), known(8, &urls[1]), known(9, &urls[2])];
        assert_eq!(joining.settle(&existing), Ok(8));
        assert_eq!(joining.other_urls().len(), 2);
        let refusal = |existing: &[Known]| joining.settle(existing).unwrap_err().to_string();
        assert_eq!(
            refusal(&existing[..2]),
            "error validating peerURLs [http://127.0.0.1:21280 http://127.0.0.1:21380]: \
             member count is unequal"
        );
        let other = [
            known(7, &urls[0]),
            known(8, &urls[1]),
            known(9, "http://b:1"),
        ];
        assert!(
            refusal(&other)
                .ends_with("PeerURLs: no match found for existing member (9, [\"http://b:1\"])")
        );
    }

    #[test]
    fn a_member_that_has_lost_its_data_does_not_begin_anew() {
        let args = format!(
            "--initial-advertise-peer-urls http://127.0.0.1:21180 --initial-cluster {THREE}"
        );
        let bootstrap = bootstrap("n1", &args);
        let mut members = bootstrap.members.clone();
        assert_eq!(
            bootstrap.check_not_started(bootstrap.cluster_id, &members),
            Ok(())
        );
        members[0]
            .client_urls
            .push("http://127.0.0.1:2379".to_owned());
        let refusal = bootstrap.check_not_started(1, &members);
        let refusal = refusal.unwrap_err().to_string();
        assert!(refusal.starts_with("cluster ID mismatch: "), "{refusal}");
        assert!(refusal.ends_with(" of the cluster 1"), "{refusal}");
        let refusal = bootstrap.check_not_started(bootstrap.cluster_id, &members);
        assert!(
            refusal
                .unwrap_err()
                .to_string()
                .ends_with("has already been bootstrapped")
        );
    }
}
