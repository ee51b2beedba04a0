//! What is measured of clusters: the same loads as of single servers, with
//! clients that are spread over the members, and elections. Both sides have the
//! time-outs they have by default, and sync their logs.

use super::{Suite, Work, load, scenario};
use crate::keys::short;
use crate::points::Point;
use crate::sizes::Sizes;

pub fn suite(sizes: Sizes) -> Suite {
    let get = |is_serializable| Point::Get { is_serializable };
    let put = Point::Put { value_bytes: 256 };
    let point = |name: &str, point, clients| {
        scenario(
            format!("cluster-{name}/{clients}"),
            Work::Point(point),
            clients,
        )
    };
    let kills = sizes.kills;
    Suite {
        name: "clusters of three",
        members: 3,
        keys: sizes.points,
        steps: vec![
            load(format!("cluster-load-{}", short(sizes.points)), 1),
            point("get", get(false), 1),
            point("get", get(false), 64),
            point("get", get(false), 1000),
            point("get-serializable", get(true), 64),
            point("get-serializable", get(true), 1000),
            point("put-256B", put, 1),
            point("put-256B", put, 64),
            point("put-256B", put, 1000),
            point("mix-80-20", Point::Mix, 64),
            scenario(
                format!("cluster-leader-killed-{kills}-times"),
                Work::Election { kills },
                1,
            )
            .once(),
        ],
    }
}
