//! Members that talk over loopback, over socket files, with certificates, and
//! with somebody between them who is up to no good.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{Entry, Snapshot, SnapshotMetadata};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair as RcgenKey,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::super::drive::Event;
use super::super::{Events, inbox};
use super::*;
use crate::http::listener::{self, Listener, Services, SocketOptions};
use crate::http::tls::{self, ClientAuth, KeyPair, Trust, Version};
use crate::proto::etcdserverpb::{
    HashKvResponse, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, Member,
};
use crate::proto::peer::peer_client::PeerClient;
use crate::proto::peer::{PingRequest, RaftFrame, RaftMessage, VersionResponse};

const CLUSTER: u64 = 0xc1;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers with its own id.
struct Calls {
    member_id: u64,
}

#[tonic::async_trait]
impl PeerCalls for Calls {
    async fn lease_keep_alive(&self, id: i64) -> Result<i64, Status> {
        match id {
            0 => Err(Status::not_found("etcdserver: requested lease not found")),
            id => Ok(id + 1),
        }
    }

    async fn lease_time_to_live(
        &self,
        request: LeaseTimeToLiveRequest,
    ) -> Result<LeaseTimeToLiveResponse, Status> {
        Ok(LeaseTimeToLiveResponse {
            id: request.id,
            ..LeaseTimeToLiveResponse::default()
        })
    }

    async fn member_promote(&self, id: u64) -> Result<Vec<Member>, Status> {
        Ok(vec![Member {
            id,
            ..Member::default()
        }])
    }

    async fn hash_kv(&self, revision: i64) -> Result<HashKvResponse, Status> {
        Ok(HashKvResponse {
            hash: self.member_id as u32,
            hash_revision: revision,
            ..HashKvResponse::default()
        })
    }

    fn members(&self) -> (u64, Vec<Member>) {
        let member = Member {
            id: self.member_id,
            ..Member::default()
        };
        (CLUSTER, vec![member])
    }

    fn version(&self) -> VersionResponse {
        VersionResponse {
            server: "3.7.3".to_owned(),
            cluster: "3.7.0".to_owned(),
        }
    }
}

/// A member as far as the network sees it.
struct Endpoint {
    transport: PeerTransport,
    events: Events,
    url: String,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

/// What an endpoint is made of; tests change what they are about.
struct Setup {
    settings: Settings,
    listen: String,
    server_tls: Option<tls::Settings>,
}

fn setup(id: u64) -> Setup {
    Setup {
        settings: Settings {
            cluster_id: CLUSTER,
            member_id: id,
            peer_urls: Vec::new(),
            election_timeout: Duration::from_secs(2),
            tls: None,
            local_address: None,
        },
        listen: "http://127.0.0.1:0".to_owned(),
        server_tls: None,
    }
}

impl Setup {
    fn start(mut self) -> Endpoint {
        let (socket, url) = bind(&self.listen);
        self.settings.peer_urls = vec![url.clone()];
        let (inbox, events) = inbox();
        let transport = PeerTransport::new(self.settings, inbox, None);
        let shutdown = CancellationToken::new();
        let serving = serve(&transport.peers(), socket, self.server_tls, &shutdown);
        Endpoint {
            transport,
            events,
            url,
            shutdown,
            serving,
        }
    }
}

fn bind(url: &str) -> (Listener, String) {
    let url: Url = url.parse().unwrap();
    let socket = Listener::bind(&url, &SocketOptions::default()).unwrap();
    let url = match socket.local_addr() {
        Some(address) if url.scheme().is_tls() => format!("https://localhost:{}", address.port()),
        Some(address) => format!("http://{address}"),
        None => url.to_string(),
    };
    (socket, url)
}

fn serve(
    peers: &Peers,
    socket: Listener,
    tls: Option<tls::Settings>,
    shutdown: &CancellationToken,
) -> JoinHandle<()> {
    let member_id = peers.group.local.settings.member_id;
    let grpc = peers.routes(Arc::new(Calls { member_id }), None);
    tokio::spawn(listener::serve(
        vec![socket],
        Services::One(grpc.into_axum_router()),
        tls,
        listener::Settings::for_peers(Duration::from_secs(2)),
        shutdown.clone(),
    ))
}

impl Endpoint {
    fn id(&self) -> u64 {
        self.transport.group.local.settings.member_id
    }

    fn peer(&self) -> Peer {
        Peer {
            id: self.id(),
            urls: vec![self.url.clone()],
        }
    }

    fn send(&mut self, message: Message) {
        self.transport.send(vec![message]);
    }

    /// The next message; what else happens meanwhile is passed over.
    async fn receive(&self) -> Message {
        within("a message", || match self.events.receiver.try_recv() {
            Ok(Event::Received(received)) => Some(received.take()),
            _ => None,
        })
        .await
    }

    async fn told_unreachable(&self, id: u64) {
        within("word that a peer is unreachable", || {
            match self.events.receiver.try_recv() {
                Ok(Event::Unreachable(unreachable)) => (unreachable == id).then_some(()),
                _ => None,
            }
        })
        .await;
    }

    async fn connected(&self, id: u64) {
        let peers = self.transport.peers();
        within("a connection", || peers.is_connected(id)).await;
    }

    async fn disconnected(&self, id: u64) {
        let peers = self.transport.peers();
        let is_gone = || peers.is_connected(id).is_none().then_some(());
        within("the end of a connection", is_gone).await;
    }
}

async fn within<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(result) = check() {
            return result;
        }
        assert!(Instant::now() < deadline, "no {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Two members that know each other; the first is connected to the second.
async fn pair() -> (Endpoint, Endpoint) {
    let (mut one, mut two) = (setup(1).start(), setup(2).start());
    one.transport.set_peers(&[two.peer()]);
    two.transport.set_peers(&[one.peer()]);
    one.connected(2).await;
    two.connected(1).await;
    (one, two)
}

fn message(kind: MessageType, from: u64, to: u64, index: u64) -> Message {
    Message {
        msg_type: kind,
        from,
        to,
        index,
        term: 2,
        ..Message::default()
    }
}

/// An append of one entry of so many bytes.
fn append(from: u64, to: u64, index: u64, bytes: usize) -> Message {
    let mut message = message(MessageType::MsgAppend, from, to, index);
    let entry = Entry {
        index: index + 1,
        term: 2,
        data: vec![index as u8; bytes].into(),
        ..Entry::default()
    };
    message.set_entries(vec![entry].into());
    message
}

#[tokio::test]
async fn messages_of_a_lane_arrive_once_and_in_order() {
    let (mut one, two) = pair().await;
    // Together less than the inbox holds.
    for index in 0..2000 {
        let beat = message(MessageType::MsgHeartbeat, 1, 2, index);
        one.transport.send(vec![append(1, 2, index, 100), beat]);
    }
    let mut next = [0, 0];
    for _ in 0..4000 {
        let message = two.receive().await;
        let lane = usize::from(message.msg_type == MessageType::MsgHeartbeat);
        assert_eq!(message.index, next[lane], "{:?}", message.msg_type);
        next[lane] += 1;
    }
    assert_eq!(next, [2000, 2000]);
    assert!(one.transport.peers().round_trip(2).is_some());
}

#[tokio::test]
async fn a_message_larger_than_any_frame_arrives_whole() {
    let (mut one, two) = pair().await;
    for (index, bytes) in [(1, 10), (2, 9 << 20), (3, WHOLE), (4, 10)] {
        one.send(append(1, 2, index, bytes));
    }
    for (index, bytes) in [(1, 10), (2, 9 << 20), (3, WHOLE), (4, 10)] {
        let received = two.receive().await;
        assert_eq!(received, append(1, 2, index, bytes), "of {bytes} bytes");
    }
}

fn of_kind(kind: MessageType, mut message: Message) -> Message {
    message.msg_type = kind;
    message
}

/// A leader that has moved on hears through others what was meant for it.
#[tokio::test]
async fn what_a_member_passes_on_for_another_is_heard() {
    let (mut one, mut two) = pair().await;
    let three = setup(3).start();
    two.transport.set_peers(&[one.peer(), three.peer()]);
    for (index, kind) in [MessageType::MsgPropose, MessageType::MsgReadIndex]
        .into_iter()
        .enumerate()
    {
        one.send(of_kind(kind, append(3, 2, index as u64, 10)));
        let heard = two.receive().await;
        assert_eq!((heard.msg_type, heard.from), (kind, 3));
    }
    // Nobody knows 4: it is not heard, and the connection stays.
    one.send(of_kind(MessageType::MsgPropose, append(4, 2, 7, 10)));
    one.send(of_kind(MessageType::MsgPropose, append(3, 2, 8, 10)));
    assert_eq!(two.receive().await.index, 8);
    // What only the member itself can say, nobody says for it.
    one.send(message(MessageType::MsgAppendResponse, 3, 2, 9));
    one.told_unreachable(2).await;
}

/// Just a frame's worth.
const WHOLE: usize = (2 << 20) - 100;

#[tokio::test]
async fn a_member_that_was_away_is_found_again() {
    let (mut one, two) = pair().await;
    let (address, old) = (two.url.clone(), two.events);
    two.transport.peers().close();
    two.shutdown.cancel();
    two.serving.await.unwrap();
    one.told_unreachable(2).await;
    one.disconnected(2).await;
    one.send(append(1, 2, 1, 10));
    one.told_unreachable(2).await;

    let mut two = setup(2);
    two.listen = address;
    let two = two.start();
    one.connected(2).await;
    one.send(append(1, 2, 2, 10));
    assert_eq!(two.receive().await.index, 2, "what was dropped is not sent");
    assert!(
        old.receiver
            .try_iter()
            .all(|e| !matches!(e, Event::Received(_)))
    );
}

#[tokio::test]
async fn another_cluster_and_another_member_are_refused() {
    let two = setup(2).start();
    let mut foreign = setup(1);
    foreign.settings.cluster_id = 0xc2;
    let mut foreign = foreign.start();
    foreign.transport.set_peers(&[two.peer()]);
    let refusal = refusal(&foreign, &two.url, 2).await;
    assert_eq!(
        refusal.message(),
        "the caller is of cluster c2, this member of cluster c1"
    );

    let mut mistaken = setup(1).start();
    let urls = vec![two.url.clone()];
    mistaken.transport.set_peers(&[Peer { id: 3, urls }]);
    let refusal = self::refusal(&mistaken, &two.url, 3).await;
    assert_eq!(
        refusal.message(),
        "the call is for member 3, this is member 2"
    );

    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(foreign.transport.peers().is_connected(2), None);
    assert_eq!(mistaken.transport.peers().is_connected(3), None);
    foreign.send(append(1, 2, 1, 10));
    mistaken.send(append(1, 3, 1, 10));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(two.events.receiver.is_empty());
}

/// What a call of `from` to the member `to`, believed at `url`, comes to.
async fn refusal(from: &Endpoint, url: &str, to: u64) -> Status {
    let local = &from.transport.group.local;
    let headers = handshake::headers(&local.settings, to);
    let (link, connection) = local
        .dialer
        .dial(&url.parse().unwrap(), headers)
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut client: PeerClient<PeerLink> = PeerClient::new(link);
    let frames = tokio_stream::iter([RaftFrame::default()]);
    let raft = client.raft(frames).await.unwrap_err();
    let ping = client.ping(PingRequest {}).await.unwrap_err();
    assert_eq!(raft.code(), Code::FailedPrecondition);
    assert_eq!(raft.message(), ping.message());
    ping
}

#[tokio::test]
async fn a_removed_member_is_told_so() {
    let (mut one, mut two) = pair().await;
    let peers = one.transport.peers();
    two.transport.set_peers(&[]);
    // It learns of it as soon as it says something.
    let removed = peers.removed();
    tokio::pin!(removed);
    let deadline = Instant::now() + PATIENCE;
    while tokio::time::timeout(Duration::from_millis(50), &mut removed)
        .await
        .is_err()
    {
        one.send(message(MessageType::MsgRequestPreVote, 1, 2, 1));
        assert!(Instant::now() < deadline, "never told");
    }
    let told = refusal(&one, &two.url, 2).await;
    assert_eq!(told.message(), "member 1 has been removed from the cluster");
}

#[tokio::test]
async fn a_leader_that_is_not_known_yet_is_heard_and_answered() {
    let (mut one, mut behind) = (setup(1).start(), setup(2).start());
    behind.transport.set_peers(&[]);
    one.transport.set_peers(&[behind.peer()]);
    one.connected(2).await;
    one.send(append(1, 2, 1, 10));
    assert_eq!(behind.receive().await.index, 1);
    behind.connected(1).await;
    behind.send(message(MessageType::MsgAppendResponse, 2, 1, 2));
    assert_eq!(one.receive().await.msg_type, MessageType::MsgAppendResponse);
}

#[tokio::test]
async fn a_peer_that_does_not_read_costs_bounded_memory() {
    let (mut one, two) = (setup(1), setup(2).start());
    // So that the connection is not given up meanwhile.
    one.settings.election_timeout = Duration::from_secs(600);
    let mut one = one.start();
    let proxy = Proxy::start(&two.url).await;
    one.transport.set_peers(&[proxy.peer(2)]);
    one.connected(2).await;
    proxy.is_stalled.store(true, Ordering::Relaxed);

    let failures = || {
        crate::metrics::NETWORK_PEER_SENT_FAILURES_TOTAL
            .with_label_values(&["2"])
            .get()
    };
    let before = failures();
    let mut taken = 0;
    for index in 0..200 {
        let failed = failures();
        one.send(append(1, 2, index, 1 << 20));
        taken += usize::from(failures() == failed);
        tokio::task::yield_now().await;
    }
    // The lane's 64, and what sockets and frames hold.
    assert!((60..=80).contains(&taken), "{taken} MB were taken");
    assert!(failures() > before + 100);
    one.told_unreachable(2).await;
    // The other lane is open still.
    let failed = failures();
    for index in 0..1000 {
        one.send(message(MessageType::MsgHeartbeat, 1, 2, index));
    }
    assert_eq!(failures(), failed);

    proxy.is_stalled.store(false, Ordering::Relaxed);
    for _ in 0..taken + 1000 {
        two.receive().await;
    }
}

#[tokio::test]
async fn a_heartbeat_overtakes_appends() {
    let (mut one, two) = pair().await;
    let bulk = 60;
    for index in 0..bulk {
        one.send(append(1, 2, index, 1 << 20));
    }
    one.send(message(MessageType::MsgHeartbeat, 1, 2, 0));
    let mut appends_before = 0;
    while two.receive().await.msg_type == MessageType::MsgAppend {
        appends_before += 1;
    }
    assert!(appends_before < bulk / 2, "behind {appends_before} MB");
}

#[tokio::test]
async fn a_silent_partition_is_noticed() {
    let (mut one, two) = (setup(1), setup(2).start());
    one.settings.election_timeout = Duration::from_millis(400);
    let mut one = one.start();
    let proxy = Proxy::start(&two.url).await;
    one.transport.set_peers(&[proxy.peer(2)]);
    one.connected(2).await;
    let began = Instant::now();
    proxy.is_stalled.store(true, Ordering::Relaxed);
    one.disconnected(2).await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    one.told_unreachable(2).await;
    proxy.is_stalled.store(false, Ordering::Relaxed);
    one.connected(2).await;
}

#[tokio::test]
async fn a_peer_that_moves_is_followed() {
    let (mut one, two) = pair().await;
    let (socket, url) = bind("http://127.0.0.1:0");
    serve(&two.transport.peers(), socket, None, &two.shutdown);
    let remote = one.transport.group.remote(2).unwrap();
    let since = remote.connected_since();
    let urls = vec![url.clone(), two.url.clone()];
    one.transport.set_peers(&[Peer { id: 2, urls }]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(remote.connected_since(), since, "the URL in use has stayed");

    let urls = vec![url];
    one.transport.set_peers(&[Peer { id: 2, urls }]);
    within("a new connection", || {
        (remote.connected_since() > since).then_some(())
    })
    .await;
    one.send(append(1, 2, 1, 10));
    assert_eq!(two.receive().await.index, 1);
}

#[tokio::test]
async fn calls_reach_the_leader_and_their_statuses_come_back() {
    let (one, _two) = pair().await;
    let peers = one.transport.peers();
    assert_eq!(peers.lease_keep_alive(2, 6).await.unwrap(), 7);
    let refused = peers.lease_keep_alive(2, 0).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(refused.message(), "etcdserver: requested lease not found");
    let request = LeaseTimeToLiveRequest { id: 9, keys: true };
    assert_eq!(peers.lease_time_to_live(2, request).await.unwrap().id, 9);
    assert_eq!(peers.member_promote(2, 5).await.unwrap()[0].id, 5);
    assert_eq!(peers.hash_kv(2, 4).await.unwrap().hash, 2);
    assert_eq!(peers.version(2).await.unwrap().server, "3.7.3");
    let nobody = peers.lease_keep_alive(3, 6).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unavailable);
    assert!(peers.snapshot_client(2).await.is_ok());
    assert!(peers.snapshot_client(3).await.is_err());
}

#[tokio::test]
async fn a_call_whose_connection_breaks_says_that_the_peer_is_out_of_reach() {
    let (mut one, two) = (setup(1), setup(2).start());
    one.settings.election_timeout = Duration::from_millis(400);
    let mut one = one.start();
    let proxy = Proxy::start(&two.url).await;
    one.transport.set_peers(&[proxy.peer(2)]);
    one.connected(2).await;
    let peers = one.transport.peers();
    proxy.is_stalled.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        let broken = tokio::time::timeout(PATIENCE, peers.version(2)).await;
        let broken = broken.unwrap().unwrap_err();
        assert_eq!(broken.code(), Code::Unavailable, "{broken}");
    }
}

#[tokio::test]
async fn whoever_joins_asks_one_url_after_the_other() {
    let two = setup(2).start();
    let nobody = "http://127.0.0.1:1".to_owned();
    let urls = ["no url".to_owned(), nobody.clone(), two.url.clone()];
    let (cluster_id, members) = members_of(&urls, None, None).await.unwrap();
    assert_eq!((cluster_id, members[0].id), (CLUSTER, 2));
    let failure = members_of(&[nobody], None, None).await.unwrap_err();
    assert!(failure.contains("http://127.0.0.1:1"), "{failure}");
}

#[tokio::test]
async fn socket_files_are_dialed_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| format!("unix://{}", dir.path().join(name).display());
    let (mut one, mut two) = (setup(1), setup(2));
    one.listen = path("one");
    two.listen = path("two");
    let (mut one, two) = (one.start(), two.start());
    one.transport.set_peers(&[two.peer()]);
    one.connected(2).await;
    one.send(append(1, 2, 1, 10));
    assert_eq!(two.receive().await.index, 1);
}

#[tokio::test]
async fn a_snapshot_nobody_sends_has_failed() {
    let (mut one, _two) = pair().await;
    one.send(message(MessageType::MsgSnapshot, 1, 2, 0));
    within("the end of a snapshot", || {
        match one.events.receiver.try_recv() {
            Ok(Event::SnapshotSent { id: 2, ok: false }) => Some(()),
            _ => None,
        }
    })
    .await;
}

/// Passes bytes on, or holds them back in the direction of the server.
struct Proxy {
    url: String,
    is_stalled: Arc<AtomicBool>,
}

impl Proxy {
    async fn start(to: &str) -> Proxy {
        let to: SocketAddr = to.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let is_stalled = Arc::new(AtomicBool::new(false));
        let stalled = is_stalled.clone();
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let to = TcpStream::connect(to).await.unwrap();
                let (read_from, mut write_from) = from.into_split();
                let (mut read_to, write_to) = to.into_split();
                let stalled = stalled.clone();
                tokio::spawn(pass_on(read_from, write_to, stalled));
                tokio::spawn(async move {
                    let _ = tokio::io::copy(&mut read_to, &mut write_from).await;
                });
            }
        });
        Proxy { url, is_stalled }
    }

    fn peer(&self, id: u64) -> Peer {
        let urls = vec![self.url.clone()];
        Peer { id, urls }
    }
}

async fn pass_on(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    is_stalled: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer).await {
            Ok(length) if length > 0 => {
                while is_stalled.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                if to.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

#[tokio::test]
async fn bytes_that_are_no_calls_hurt_nobody() {
    let (mut one, two) = pair().await;
    let address = two.url.strip_prefix("http://").unwrap();
    for length in [1, 100, 10_000] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let noise: Vec<u8> = (0..length).map(|_| rand::random()).collect();
        let _ = stream.write_all(&noise).await;
    }
    // Whole calls with messages that no member sends.
    for wire in [
        RaftMessage {
            msg_type: 99,
            ..wire::to_wire(append(1, 2, 1, 1))
        },
        wire::to_wire(message(MessageType::MsgHup, 1, 2, 0)),
        wire::to_wire(message(MessageType::MsgPropose, 1, 2, 0)),
        wire::to_wire(message(MessageType::MsgSnapshot, 1, 2, 0)),
        wire::to_wire(append(3, 2, 1, 1)),
        wire::to_wire(append(1, 3, 1, 1)),
    ] {
        let frame = RaftFrame {
            messages: vec![wire],
            ..RaftFrame::default()
        };
        let mut client = one.transport.peers().snapshot_client(2).await.unwrap();
        let status = client.raft(tokio_stream::iter([frame])).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    one.send(append(1, 2, 7, 10));
    assert_eq!(two.receive().await.index, 7, "the others are served");
}

#[test]
fn the_wire_is_the_encoding_of_the_library() {
    let mut full = append(1, 2, 3, 100);
    full.log_term = 4;
    full.commit = 5;
    full.commit_term = 6;
    full.reject = true;
    full.reject_hint = 7;
    full.request_snapshot = 8;
    full.context = vec![9].into();
    full.deprecated_priority = 10;
    full.priority = 11;
    let mut metadata = SnapshotMetadata {
        index: 13,
        term: 14,
        ..SnapshotMetadata::default()
    };
    metadata.mut_conf_state().voters = vec![1, 2];
    metadata.mut_conf_state().learners = vec![3];
    metadata.mut_conf_state().voters_outgoing = vec![4];
    metadata.mut_conf_state().learners_next = vec![5];
    metadata.mut_conf_state().auto_leave = true;
    let mut snapshot = Snapshot {
        data: vec![12].into(),
        ..Snapshot::default()
    };
    snapshot.set_metadata(metadata);
    full.set_snapshot(snapshot);
    for original in [full, Message::default(), append(1, 2, 3, 0)] {
        let bytes = original.write_to_bytes().unwrap();
        let decoded = RaftMessage::decode(&*bytes).unwrap();
        assert_eq!(decoded, wire::to_wire(original.clone()));
        if original.term > 0 {
            assert_eq!(wire::from_wire(decoded.clone()).unwrap(), original);
        }
        let back = Message::parse_from_bytes(&decoded.encode_to_vec()).unwrap();
        assert_eq!(back, original);
    }
}

#[test]
fn garbage_is_refused_and_never_panics() {
    let gap = Message {
        index: 5,
        ..append(1, 2, 1, 1)
    };
    let refused = wire::from_wire(wire::to_wire(gap));
    assert_eq!(refused, Err(wire::Garbage::Gap(2)));
    let last = append(1, 2, u64::MAX - 1, 1);
    assert!(wire::from_wire(wire::to_wire(last.clone())).is_ok());
    let mut beyond = wire::to_wire(last);
    beyond.index = u64::MAX;
    assert!(wire::from_wire(beyond).is_err());

    let whole = wire::to_wire(append(1, 2, 3, 50)).encode_to_vec();
    for at in 0..whole.len() {
        for mask in [0x01, 0x80, 0xff] {
            let mut broken = whole.clone();
            broken[at] ^= mask;
            if let Ok(message) = RaftMessage::decode(&*broken) {
                let _ = wire::from_wire(message);
            }
            let _ = RaftMessage::decode(&broken[..at]);
        }
    }

    let piece = |bytes: &[u8], rest| RaftFrame {
        piece: bytes.to_vec().into(),
        piece_rest: rest,
        ..RaftFrame::default()
    };
    let taken = |frames: Vec<RaftFrame>| {
        let mut pieces = lane::Pieces::default();
        let mut messages = Vec::new();
        for frame in frames {
            messages.extend(pieces.take(frame).map_err(|bad| bad.to_string())?);
        }
        Ok::<_, String>(messages)
    };
    let (start, end) = whole.split_at(20);
    let rest = end.len() as u64;
    assert_eq!(
        taken(vec![piece(start, rest), piece(end, 0)])
            .unwrap()
            .len(),
        1
    );
    assert!(taken(vec![piece(start, rest), piece(end, 1)]).is_err());
    assert!(taken(vec![piece(start, rest), RaftFrame::default()]).is_err());
    assert!(taken(vec![piece(start, u64::MAX)]).is_err());
    assert!(taken(vec![piece(&[0xff; 9], 0)]).is_err());
}

/// An authority, and a folder with what it has signed.
struct Authority {
    issuer: CertifiedIssuer<'static, RcgenKey>,
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = RcgenKey::generate().unwrap();
        let issuer = CertifiedIssuer::self_signed(params, key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { issuer, dir }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// A pair of files whose certificate has this common name.
    fn sign(&self, common_name: &str) -> KeyPair {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, common_name);
        let key = RcgenKey::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let pair = KeyPair {
            cert_file: self.file(&format!("{common_name}.pem")),
            key_file: self.file(&format!("{common_name}.key")),
        };
        std::fs::write(&pair.cert_file, certificate.pem()).unwrap();
        std::fs::write(&pair.key_file, key.serialize_pem()).unwrap();
        pair
    }

    fn server(&self, pair: KeyPair, common_names: &[&str]) -> tls::Settings {
        tls::Settings {
            cert_file: pair.cert_file,
            key_file: pair.key_file,
            client_auth: Some(ClientAuth {
                ca_file: self.file("ca.pem"),
                crl_file: None,
                allowed_hostnames: Vec::new(),
                allowed_common_names: common_names.iter().map(|n| (*n).to_owned()).collect(),
            }),
            checks_origin: true,
            min_version: Version::Tls12,
            max_version: Version::Tls13,
            cipher_suites: Vec::new(),
        }
    }
}

fn client_tls(ca_file: &Path, key_pair: Option<KeyPair>, common_names: &[&str]) -> ClientTls {
    ClientTls {
        key_pair,
        trust: Trust::Authorities(ca_file.to_owned()),
        allowed_hostnames: Vec::new(),
        allowed_common_names: common_names.iter().map(|n| (*n).to_owned()).collect(),
        min_version: Version::Tls12,
        max_version: Version::Tls13,
        cipher_suites: Vec::new(),
    }
}

#[tokio::test]
async fn certificates_decide_who_is_a_member() {
    let authority = Authority::new();
    let ca = authority.file("ca.pem");
    let stranger = Authority::new();
    let mut two = setup(2);
    two.listen = "https://127.0.0.1:0".to_owned();
    two.server_tls = Some(authority.server(authority.sign("member"), &["member"]));
    let two = two.start();

    for (tls, is_let_in) in [
        (None, false),
        (Some(client_tls(&ca, None, &[])), false),
        (
            Some(client_tls(&ca, Some(stranger.sign("member")), &[])),
            false,
        ),
        (
            Some(client_tls(&ca, Some(authority.sign("other")), &[])),
            false,
        ),
        (
            Some(client_tls(
                &stranger.file("ca.pem"),
                Some(authority.sign("member")),
                &[],
            )),
            false,
        ),
        (
            Some(client_tls(&ca, Some(authority.sign("member")), &["other"])),
            false,
        ),
        (
            Some(client_tls(&ca, Some(authority.sign("member")), &["member"])),
            true,
        ),
    ] {
        let mut one = setup(1);
        one.settings.tls = tls.clone();
        let mut one = one.start();
        one.transport.set_peers(&[two.peer()]);
        if is_let_in {
            one.connected(2).await;
            one.send(append(1, 2, 1, 3 << 20));
            assert_eq!(two.receive().await.index, 1);
            assert!(
                members_of(std::slice::from_ref(&two.url), tls.as_ref(), None)
                    .await
                    .is_ok()
            );
        } else {
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(one.transport.peers().is_connected(2), None, "{tls:?}");
            assert!(
                members_of(std::slice::from_ref(&two.url), tls.as_ref(), None)
                    .await
                    .is_err()
            );
        }
        one.transport.peers().close();
    }
}
