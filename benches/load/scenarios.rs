//! All scenarios, in one list: which data they need, what they do, and with
//! how many clients. A suite starts fresh servers; its steps run in order,
//! each scenario in rounds in which the targets take turns.
//!
//! The number after the last slash of a name is that of the clients; where
//! there is none it is said below. Clients share connections as
//! [`crate::target::connections`] says.

mod cluster;

use serde::Serialize;

use crate::catch_up;
use crate::compaction;
use crate::elections;
use crate::fairness::{self, Neighbour};
use crate::keys::short;
use crate::leases::{self, LeaseWork};
use crate::lists::{self, List};
use crate::measure::{Sample, Timing};
use crate::options::{Mode, Options};
use crate::points::{self, Point};
use crate::restarts::{self, Stop};
use crate::sizes::Sizes;
use crate::target::Target;
use crate::watches::{self, Fan};

/// Servers with one data set, and what is done with them.
pub struct Suite {
    pub name: &'static str,
    /// Of how many members each server is a cluster.
    pub members: usize,
    pub keys: usize,
    pub steps: Vec<Step>,
}

pub enum Step {
    /// Puts every key so many times more. It is measured as it goes.
    Load {
        name: String,
        times: usize,
        headline: Headline,
    },
    Measure(Scenario),
}

/// What a scenario is about, and is drawn by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Headline {
    /// Operations a second, or how soon one is done.
    Rate,
    P99,
    Memory,
    /// It only prepares others.
    None,
}

pub struct Scenario {
    pub name: String,
    pub work: Work,
    pub clients: usize,
    /// Whether the server that stores nothing can take part.
    pub has_limit: bool,
    pub headline: Headline,
    /// Measured once only: it uses up what it measures, or takes long.
    pub is_once: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Work {
    Point(Point),
    List(List),
    Watch(Fan),
    CatchUp { events: usize },
    Compaction { versions: usize },
    Lease(LeaseWork),
    Beside(Neighbour),
    Restart(Stop),
    Election { kills: usize },
}

pub fn suites(options: &Options) -> Vec<Suite> {
    let sizes = Sizes::of(options.mode);
    if options.is_cluster {
        return vec![cluster::suite(sizes)];
    }
    match options.mode {
        Mode::Full | Mode::Quick => vec![
            points(sizes),
            small_lists(sizes),
            watches(sizes),
            leases(sizes),
            large_lists(sizes),
        ],
        Mode::Scale => vec![scale(sizes)],
    }
}

fn points(sizes: Sizes) -> Suite {
    let get = |is_serializable| Point::Get { is_serializable };
    let put = |value_bytes| Point::Put { value_bytes };
    let point = |name: &str, point, clients| {
        scenario(format!("{name}/{clients}"), Work::Point(point), clients).with_limit()
    };
    Suite {
        name: "single keys",
        members: 1,
        keys: sizes.points,
        steps: vec![
            load(format!("load-single-{}", short(sizes.points)), 1),
            point("get", get(false), 1),
            point("get", get(false), 64),
            point("get", get(false), 1000),
            point("get-serializable", get(true), 64),
            point("put-256B", put(256), 1),
            point("put-256B", put(256), 64),
            point("put-256B", put(256), 1000),
            point("get-then-txn", Point::Update, 64),
            point("mix-80-20", Point::Mix, 64),
            point("put-4KB", put(4096), 1),
            point("put-4KB", put(4096), 64),
            point("put-4KB", put(4096), 1000),
            scenario("list-500-of-4KB/8".to_owned(), Work::List(List::Page), 8),
            point("get-4KB", get(false), 64),
        ],
    }
}

/// Few keys with more and more history, and in the end what is done to that.
fn small_lists(sizes: Sizes) -> Suite {
    let keys = short(sizes.small);
    let history = short(sizes.history);
    let list = |name: String| scenario(name, Work::List(List::Page), 8);
    let mut steps = vec![
        load(format!("load-small-{keys}"), 1),
        list(format!("list-500-of-{keys}/8")).with_limit(),
    ];
    let mut before = 1;
    for &versions in sizes.versions {
        steps.push(load(
            format!("load-small-{keys}-to-{versions}-versions"),
            versions - before,
        ));
        steps.push(list(format!(
            "list-500-of-{keys}-with-{versions}-versions/8"
        )));
        before = versions;
    }
    let catch_up = Work::CatchUp {
        events: sizes.history,
    };
    let put = Work::Point(Point::Put { value_bytes: 256 });
    let compaction = Work::Compaction {
        versions: sizes.history,
    };
    steps.extend([
        // Clients that put meanwhile.
        scenario(format!("watch-catch-up-{history}/4"), catch_up, 4),
        scenario("put-256B-before-compaction/8".to_owned(), put, 8),
        scenario(
            format!("put-256B-while-compacting-{history}/8"),
            compaction,
            8,
        )
        .by_p99()
        .once(),
    ]);
    Suite {
        name: "small lists and history",
        members: 1,
        keys: sizes.small,
        steps,
    }
}

fn watches(sizes: Sizes) -> Suite {
    // Here the clients are those that put.
    let watch = |name: String, fan| scenario(name, Work::Watch(fan), 16).with_limit();
    let mut steps = Vec::new();
    for &watchers in sizes.watchers {
        steps.push(watch(
            format!("watch-fan-out-{}", short(watchers)),
            Fan::OnePrefix { watchers },
        ));
    }
    steps.push(watch(
        format!("watch-each-of-{}", short(sizes.watched_keys)),
        Fan::EachKey,
    ));
    Suite {
        name: "watches",
        members: 1,
        keys: sizes.watched_keys,
        steps,
    }
}

fn leases(sizes: Sizes) -> Suite {
    let lease = |name: String, work| scenario(name, Work::Lease(work), 64);
    let keep_alive = LeaseWork::KeepAlive {
        leases: sizes.leases,
    };
    let expiry = LeaseWork::Expiry {
        leases: sizes.expiring,
    };
    Suite {
        name: "leases",
        members: 1,
        keys: sizes.expiring,
        steps: vec![
            lease(
                format!("lease-keep-alive-of-{}/64", short(sizes.leases)),
                keep_alive,
            )
            .with_limit(),
            lease("lease-grant/64".to_owned(), LeaseWork::Grant).with_limit(),
            lease(format!("lease-expiry-{}", short(sizes.expiring)), expiry).once(),
        ],
    }
}

fn large_lists(sizes: Sizes) -> Suite {
    let keys = short(sizes.large);
    let list = |name, list, clients| scenario(name, Work::List(list), clients);
    let beside = |name, neighbour| {
        scenario(name, Work::Beside(neighbour), 1)
            .with_limit()
            .by_p99()
    };
    let writers = Neighbour::Writes { writers: 1000 };
    let mut steps = vec![
        load_large(&keys),
        list(format!("list-500-of-{keys}/8"), List::Page, 8).with_limit(),
        list(format!("count-{keys}/1"), List::Count, 1).with_limit(),
        list(format!("list-all-{keys}/1"), List::Whole, 1).with_limit(),
        list(format!("stream-all-{keys}/1"), List::Stream, 1).with_limit(),
        beside(format!("get-beside-lists-of-{keys}/1"), Neighbour::Lists),
        beside("get-beside-1000-writers/1".to_owned(), writers),
        list(format!("pages-pinned-of-{keys}/8"), List::PinnedPages, 8),
    ];
    steps.extend(restarts(&keys));
    Suite {
        name: "large lists",
        members: 1,
        keys: sizes.large,
        steps,
    }
}

/// What shows whether a server stays what it is when the data do not fit in
/// memory any more. Whole lists would show the client's memory.
fn scale(sizes: Sizes) -> Suite {
    let keys = short(sizes.large);
    let list = |name, list, clients| scenario(name, Work::List(list), clients);
    let point = |name: &str, point| scenario(name.to_owned(), Work::Point(point), 64);
    let get = Point::Get {
        is_serializable: false,
    };
    let mut steps = vec![
        load_large(&keys),
        point(&format!("get-of-{keys}/64"), get),
        point(
            &format!("put-256B-of-{keys}/64"),
            Point::Put { value_bytes: 256 },
        ),
        list(format!("list-500-of-{keys}/8"), List::Page, 8),
        list(format!("count-{keys}/1"), List::Count, 1),
    ];
    steps.extend(restarts(&keys));
    Suite {
        name: "scale",
        members: 1,
        keys: sizes.large,
        steps,
    }
}

fn restarts(keys: &str) -> [Step; 2] {
    [
        scenario(
            format!("restart-clean-{keys}"),
            Work::Restart(Stop::Clean),
            1,
        ),
        scenario(
            format!("restart-killed-{keys}"),
            Work::Restart(Stop::Kill),
            64,
        ),
    ]
}

fn load(name: String, times: usize) -> Step {
    Step::Load {
        name,
        times,
        headline: Headline::None,
    }
}

/// The memory that data of this size take.
fn load_large(keys: &str) -> Step {
    Step::Load {
        name: format!("load-{keys}"),
        times: 1,
        headline: Headline::Memory,
    }
}

fn scenario(name: String, work: Work, clients: usize) -> Step {
    Step::Measure(Scenario {
        name,
        work,
        clients,
        has_limit: false,
        headline: Headline::Rate,
        is_once: false,
    })
}

impl Step {
    fn with_limit(mut self) -> Step {
        if let Step::Measure(scenario) = &mut self {
            scenario.has_limit = true;
        }
        self
    }

    fn by_p99(mut self) -> Step {
        if let Step::Measure(scenario) = &mut self {
            scenario.headline = Headline::P99;
        }
        self
    }

    fn once(mut self) -> Step {
        if let Step::Measure(scenario) = &mut self {
            scenario.is_once = true;
        }
        self
    }

    pub fn name(&self) -> &str {
        match self {
            Step::Load { name, .. } => name,
            Step::Measure(scenario) => &scenario.name,
        }
    }
}

impl Scenario {
    /// One round on one target.
    pub async fn run(&self, target: &mut Target, timing: Timing) -> Sample {
        let clients = self.clients;
        match self.work {
            Work::Point(point) => points::run(target, point, clients, timing).await,
            Work::List(list) => lists::run(target, list, clients, timing).await,
            Work::Watch(fan) => watches::run(target, fan, clients, timing).await,
            Work::CatchUp { events } => catch_up::run(target, events, clients).await,
            Work::Compaction { versions } => {
                compaction::run(target, versions, clients, timing).await
            }
            Work::Lease(work) => leases::run(target, work, clients, timing).await,
            Work::Beside(neighbour) => fairness::run(target, neighbour, clients, timing).await,
            Work::Restart(stop) => restarts::run(target, stop, clients).await,
            Work::Election { kills } => elections::run(target, kills).await,
        }
    }
}
