//! One peer: the connection to it, and the task that keeps it.
//!
//! The task dials the peer's URLs in turn, with growing pauses, asks whether
//! the peer would talk to this member (a ping with the handshake), and then
//! holds one call open for each lane. While there is no connection messages
//! are dropped rather than kept: raft repeats what still matters, and an old
//! message helps nobody. What was on its way when a connection broke is never
//! sent again, so nothing arrives twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use prost::Message as _;
use raft::eraftpb::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tracing::{debug, error, info, warn};

use super::lane::{self, is_bulk, lane};
use super::{Local, handshake};
use crate::http::Url;
use crate::http::dial::{Connection, Link};
use crate::metrics;
use crate::proto::peer::peer_client::PeerClient;
use crate::proto::peer::{PingRequest, RaftFrame};

/// Sends requests to a peer; each carries the handshake.
pub type PeerLink = Link<Body>;

/// Pauses between rounds of dialing: short, because a member that restarts
/// should be back before an election, and doubled up to half a second, because
/// a refused connection costs next to nothing.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// Between attempts to reach a cluster that has removed this member.
const REMOVED_PAUSE: Duration = Duration::from_secs(5);

/// How often the round trip is measured.
const PING_PERIOD: Duration = Duration::from_secs(3);

/// Clocks further apart than this are worth a warning, as in etcd: leases
/// survive it, but people who compare logs do not.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(1);

/// How often raft is told that messages to a peer are dropped. It stops
/// sending appends at once, until it hears from the peer.
const REPORT_PERIOD: Duration = Duration::from_millis(100);

/// Shared by the task, whoever sends, and the handles.
pub(super) struct Remote {
    pub(super) id: u64,
    fast: lane::Sender,
    bulk: lane::Sender,
    urls: watch::Sender<Vec<Url>>,
    live: RwLock<Option<Live>>,
    last_report: Mutex<Option<Instant>>,
    /// 0: never measured.
    round_trip_nanos: AtomicU64,
    closing: CancellationToken,
    metrics: Metrics,
}

/// A connection over which the peer has agreed to talk.
struct Live {
    link: PeerLink,
    since: Instant,
}

struct Metrics {
    active: prometheus::IntGauge,
    known: prometheus::IntGauge,
    disconnected: prometheus::IntCounter,
    sent_bytes: prometheus::IntCounter,
    sent_failures: prometheus::IntCounter,
    round_trip: prometheus::Histogram,
}

impl Metrics {
    fn new(local: u64, remote: u64) -> Metrics {
        let (local, remote) = (format!("{local:x}"), format!("{remote:x}"));
        let pair = [local.as_str(), remote.as_str()];
        let to = [remote.as_str()];
        Metrics {
            active: metrics::NETWORK_ACTIVE_PEERS.with_label_values(&pair),
            known: metrics::NETWORK_KNOWN_PEERS.with_label_values(&pair),
            disconnected: metrics::NETWORK_DISCONNECTED_PEERS_TOTAL.with_label_values(&pair),
            sent_bytes: metrics::NETWORK_PEER_SENT_BYTES_TOTAL.with_label_values(&to),
            sent_failures: metrics::NETWORK_PEER_SENT_FAILURES_TOTAL.with_label_values(&to),
            round_trip: metrics::NETWORK_PEER_ROUND_TRIP_TIME_SECONDS.with_label_values(&to),
        }
    }
}

impl Remote {
    /// Begins to dial a peer.
    pub(super) fn open(local: &Arc<Local>, id: u64, urls: Vec<Url>) -> Arc<Remote> {
        let (fast, fast_queue) = lane();
        let (bulk, bulk_queue) = lane();
        let (urls, changes) = watch::channel(urls);
        let remote = Arc::new(Remote {
            id,
            fast,
            bulk,
            urls,
            live: RwLock::new(None),
            last_report: Mutex::new(None),
            round_trip_nanos: AtomicU64::new(0),
            closing: local.closing.child_token(),
            metrics: Metrics::new(local.settings.member_id, id),
        });
        remote.metrics.known.set(1);
        let task = Task {
            local: local.clone(),
            remote: remote.clone(),
            fast: fast_queue,
            bulk: bulk_queue,
            urls: changes,
            said: String::new(),
        };
        local.runtime.spawn(task.run());
        remote
    }

    /// Connects anew unless the URL in use stays among them.
    pub(super) fn set_urls(&self, urls: Vec<Url>) {
        self.urls.send_if_modified(|current| {
            let is_new = *current != urls;
            *current = urls;
            is_new
        });
    }

    /// Ends the connection, and the task.
    pub(super) fn close(&self) {
        self.closing.cancel();
        self.metrics.known.set(0);
    }

    pub(super) fn send(&self, local: &Local, message: Message) {
        let lane = match is_bulk(&message) {
            true => &self.bulk,
            false => &self.fast,
        };
        if self.live.read().is_some() && lane.push(message) {
            return;
        }
        self.metrics.sent_failures.inc();
        let now = Instant::now();
        let mut last_report = self.last_report.lock();
        if last_report.is_none_or(|last| now - last >= REPORT_PERIOD) {
            *last_report = Some(now);
            local.inbox.unreachable(self.id);
        }
    }

    pub(super) fn connected_since(&self) -> Option<Instant> {
        self.live.read().as_ref().map(|live| live.since)
    }

    /// # Errors
    /// `Unavailable` while there is no connection.
    pub(super) fn client(&self) -> Result<PeerClient<PeerLink>, Status> {
        let live = self.live.read();
        let live = live
            .as_ref()
            .ok_or_else(|| Status::unavailable(format!("no connection to member {:x}", self.id)))?;
        Ok(PeerClient::new(live.link.clone()))
    }

    /// A connection of its own, for what would hold up everything else.
    pub(super) async fn separate_client(
        &self,
        local: &Local,
    ) -> Result<PeerClient<PeerLink>, Status> {
        let urls = self.urls.borrow().clone();
        let mut failure = Status::unavailable(format!("no URL of member {:x}", self.id));
        for url in urls {
            let headers = handshake::headers(&local.settings, self.id);
            match local.dialer.dial(&url, headers).await {
                Ok((link, connection)) => {
                    // Ends when the last clone of the link is gone.
                    tokio::spawn(connection);
                    return Ok(PeerClient::new(link));
                }
                Err(error) => failure = Status::unavailable(error.to_string()),
            }
        }
        Err(failure)
    }

    pub(super) fn round_trip(&self) -> Option<Duration> {
        match self.round_trip_nanos.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }
}

/// What keeps the connection.
struct Task {
    local: Arc<Local>,
    remote: Arc<Remote>,
    fast: lane::Receiver,
    bulk: lane::Receiver,
    urls: watch::Receiver<Vec<Url>>,
    /// The last failure that was logged: the next equal one is not.
    said: String,
}

/// Why there is no connection, or none any more.
enum Ended {
    /// In words for the log.
    Failed(String),
    /// The peer says that this member is none any more.
    Removed,
    /// The peer's URLs have changed.
    Moved,
}

impl From<Status> for Ended {
    fn from(status: Status) -> Ended {
        if handshake::is_removal(&status) {
            return Ended::Removed;
        }
        Ended::Failed(format!("{:?}: {}", status.code(), status.message()))
    }
}

impl Task {
    async fn run(mut self) {
        let closing = self.remote.closing.clone();
        tokio::select! {
            () = closing.cancelled() => {}
            () = self.keep_connected() => {}
        }
        self.disconnected();
    }

    async fn keep_connected(&mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let urls = self.urls.borrow_and_update().clone();
            let mut has_talked = false;
            for url in &urls {
                let began = Instant::now();
                let ended = self.talk(url).await;
                let was_live = self.disconnected();
                has_talked |= was_live && began.elapsed() > LAST_PAUSE;
                match ended {
                    Ended::Moved => break,
                    Ended::Failed(reason) => self.say(url, reason),
                    Ended::Removed => {
                        self.say_removed(url);
                        tokio::time::sleep(REMOVED_PAUSE).await;
                    }
                }
            }
            if has_talked {
                pause = FIRST_PAUSE;
            }
            // Members that restart together should not dial together.
            let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
            tokio::select! {
                () = tokio::time::sleep(jittered) => {}
                changed = self.urls.changed() => if changed.is_err() { return },
            }
            pause = (2 * pause).min(LAST_PAUSE);
        }
    }

    /// Whether there was a connection to forget.
    fn disconnected(&mut self) -> bool {
        let was_live = self.remote.live.write().take().is_some();
        if was_live {
            self.remote.metrics.active.dec();
            self.remote.metrics.disconnected.inc();
            self.fast.clear();
            self.bulk.clear();
            self.local.inbox.unreachable(self.remote.id);
        }
        was_live
    }

    /// A connection from its first to its last byte.
    async fn talk(&mut self, url: &Url) -> Ended {
        let headers = handshake::headers(&self.local.settings, self.remote.id);
        let (link, connection) = match self.local.dialer.dial(url, headers).await {
            Ok(dialed) => dialed,
            Err(error) => return Ended::Failed(error.to_string()),
        };
        let mut connection = Broken(connection);
        let mut client = PeerClient::new(link.clone());
        let limit = 2 * self.local.settings.election_timeout;
        tokio::select! {
            ended = connection.ended() => return ended,
            result = ping(&mut client, &self.remote, limit) => if let Err(status) = result {
                return status.into();
            },
        }
        let member = format!("{:x}", self.remote.id);
        info!(member, %url, "connected to a member");
        self.said.clear();
        self.remote.metrics.active.inc();
        *self.remote.live.write() = Some(Live {
            link: link.clone(),
            since: Instant::now(),
        });
        let ended = tokio::select! {
            ended = connection.ended() => ended,
            status = send_lane(&link, &mut self.fast, &self.remote) => status.into(),
            status = send_lane(&link, &mut self.bulk, &self.remote) => status.into(),
            status = keep_pinging(&mut client, &self.remote, limit) => status.into(),
            () = left(&mut self.urls, url) => Ended::Moved,
        };
        if let Ended::Failed(reason) = &ended {
            warn!(member, %url, reason, "lost the connection to a member");
            self.said.clone_from(reason);
        }
        ended
    }

    /// Logs why a peer cannot be reached, once for each reason.
    fn say(&mut self, url: &Url, reason: String) {
        if self.said != reason {
            let member = format!("{:x}", self.remote.id);
            warn!(member, %url, reason, "cannot talk to a member");
            self.said = reason;
        }
    }

    fn say_removed(&mut self, url: &Url) {
        let removed = &self.local.removed;
        if !removed.is_cancelled() {
            let member = format!("{:x}", self.remote.id);
            error!(member, %url, "this member has been removed from the cluster, says another");
            removed.cancel();
        }
        self.local.inbox.removed();
    }
}

/// A connection that is watched for its end.
struct Broken(Connection);

impl Broken {
    async fn ended(&mut self) -> Ended {
        Ended::Failed(match (&mut self.0).await {
            Ok(()) => "the other side has closed the connection".to_owned(),
            Err(error) => match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            },
        })
    }
}

/// Resolves when a peer is no longer reached at `url`.
async fn left(urls: &mut watch::Receiver<Vec<Url>>, url: &Url) {
    // The sender outlives the task, so waiting does not fail.
    let _ = urls.wait_for(|urls| !urls.contains(url)).await;
}

/// Holds a lane's call open and feeds it; answers why it has ended.
async fn send_lane(link: &PeerLink, queue: &mut lane::Receiver, remote: &Remote) -> Status {
    // One frame that is being sent, one that waits for it.
    let (frames, stream) = mpsc::channel::<RaftFrame>(1);
    let mut client = PeerClient::new(link.clone());
    let feed = async {
        while let Some(next) = queue.next().await {
            for frame in next {
                let bytes = frame.encoded_len() as u64;
                if frames.send(frame).await.is_err() {
                    // The call has ended, and its result says why.
                    return std::future::pending().await;
                }
                remote.metrics.sent_bytes.inc_by(bytes);
            }
        }
        Status::cancelled("the peer is closed")
    };
    tokio::select! {
        result = client.raft(ReceiverStream::new(stream)) => match result {
            Ok(_) => Status::unavailable("the other side has ended the call"),
            Err(status) => status,
        },
        status = feed => status,
    }
}

async fn keep_pinging(
    client: &mut PeerClient<PeerLink>,
    remote: &Remote,
    limit: Duration,
) -> Status {
    loop {
        tokio::time::sleep(PING_PERIOD).await;
        match ping(client, remote, limit).await {
            // Slow is not gone: that the pings of HTTP/2 find out.
            Err(status) if status.code() != Code::DeadlineExceeded => return status,
            _ => {}
        }
    }
}

/// Asks whether the peer would talk, and measures how long that takes.
async fn ping(
    client: &mut PeerClient<PeerLink>,
    remote: &Remote,
    limit: Duration,
) -> Result<(), Status> {
    let began = Instant::now();
    let answer = tokio::time::timeout(limit, client.ping(PingRequest {})).await;
    let answer = answer.map_err(|_| Status::deadline_exceeded("no answer to a ping"))??;
    let spent = began.elapsed();
    remote.metrics.round_trip.observe(spent.as_secs_f64());
    let nanos = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
    remote
        .round_trip_nanos
        .store(nanos.max(1), Ordering::Relaxed);
    let theirs = Duration::from_nanos(answer.get_ref().unix_nanos.try_into().unwrap_or(0));
    let ours = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let difference = ours.abs_diff(theirs);
    if difference > MAX_CLOCK_DIFFERENCE + spent {
        let member = format!("{:x}", remote.id);
        warn!(member, ?difference, "the clocks of two members differ");
    }
    debug!(member = remote.id, ?spent, "pinged a member");
    Ok(())
}
