//! One script's conversation with one server: the commands that are a single
//! call, and those that concern the server or the script itself. Streams are
//! in `streams`, requests are made in `requests`, answers printed by `show`.
//!
//! ```text
//! get put del txn        see requests.rs
//! rangestream            as get; prints the merged answer; lines below it run
//!                        once the first message has come
//! compact REV [physical]          hashkv [REV]           hash
//! grant TTL [id=]   revoke ID   ttl ID [keys]   leases
//! status   alarm ...   members [linearizable]   defragment
//! call /service/Method            an empty message to any method
//! open NAME watch [slow] | open NAME keepalive | close NAME
//! metadata NAME=VALUE ...         goes with the next call or opened stream
//! for NAME FROM TO                the lines below, repeated; prints the last round
//! await-gone KEY                  until a get finds nothing
//! await-compacted REV             until a get at this revision is refused
//! metric NAME VALUE               until /metrics shows it
//! http PATH                       a plain GET
//! sleep MILLISECONDS              restart [kill]
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use stele::proto::client::etcdserverpb::cluster_client::ClusterClient;
use stele::proto::client::etcdserverpb::kv_client::KvClient;
use stele::proto::client::etcdserverpb::lease_client::LeaseClient;
use stele::proto::client::etcdserverpb::maintenance_client::MaintenanceClient;
use stele::proto::client::etcdserverpb::{
    CompactionRequest, DefragmentRequest, HashKvRequest, HashRequest, LeaseGrantRequest,
    LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, MemberListRequest,
    RangeRequest, RangeResponse, ResponseHeader, StatusRequest,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::requests::{self, Wanted};
use crate::script::{Line, Mistake};
use crate::server::Server;
use crate::show::{self, Names};
use crate::streams::{self, AnyStream};
use crate::words::{self, Arguments, Word};

/// A call that takes longer is an error, so that a script cannot hang.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Session {
    server: Server,
    channel: Channel,
    names: Names,
    streams: BTreeMap<String, AnyStream>,
    metadata: MetadataMap,
    last_hash: Option<u32>,
}

/// What a call came to: lines to print, or the status that is printed.
type Answer = Result<Vec<String>, Status>;

impl Session {
    pub(crate) fn new(server: Server) -> Session {
        let mut names = Names::default();
        names.meet(server.cluster());
        Session {
            channel: server.channel(),
            server,
            names,
            streams: BTreeMap::new(),
            metadata: MetadataMap::new(),
            last_hash: None,
        }
    }

    pub(crate) async fn has_kept_role(&self) -> bool {
        self.server.has_kept_role().await
    }

    pub(crate) async fn members_agree(&self) -> Result<(), String> {
        self.server.members_agree().await
    }

    /// Ends the server; returns what it has complained of in its log.
    pub(crate) async fn stop(mut self) -> Result<Vec<String>, String> {
        self.streams.clear();
        self.server.stop(true).await?;
        Ok(self.server.complaints())
    }

    /// Runs one command and returns what it prints.
    pub(crate) async fn run(&mut self, line: &Line) -> Result<Vec<String>, Mistake> {
        if let Some(round) = line.unrolled()? {
            return self.repeat(&round, line.children.len()).await;
        }
        let line = &line.replaced(&|text| self.names.replaced(text));
        let words = words::split(&line.text)?;
        let verb = words[0].text()?.to_owned();
        if let Some(stream) = self.streams.get_mut(&verb) {
            return stream.run(&verb, &words[1..], &mut self.names).await;
        }
        if let Some(answer) = self.local(&verb, &words[1..]).await? {
            return Ok(answer);
        }
        let mut answer = self.key_value(&verb, &words[1..], line).await?;
        if answer.is_none() {
            answer = self.lease(&verb, &words[1..]).await?;
        }
        if answer.is_none() {
            answer = self.hashes(&verb, &words[1..]).await?;
        }
        if answer.is_none() {
            answer = self.maintenance(&verb, &words[1..]).await?;
        }
        match answer {
            Some(Ok(lines)) => Ok(lines),
            Some(Err(status)) => Ok(vec![show::error(&status)]),
            None => Err(Mistake::new(format!("no such command: {verb}"))),
        }
    }

    /// Prints the last round of a loop, and every error of the earlier ones.
    async fn repeat(
        &mut self,
        lines: &[Line],
        lines_per_round: usize,
    ) -> Result<Vec<String>, Mistake> {
        let mut printed = Vec::new();
        for (position, line) in lines.iter().enumerate() {
            let is_last_round = position + lines_per_round >= lines.len();
            let output = Box::pin(self.run(line)).await?;
            printed.extend(
                output
                    .into_iter()
                    .filter(|text| is_last_round || text.starts_with("error")),
            );
        }
        Ok(printed)
    }

    /// Commands that are no calls.
    async fn local(&mut self, verb: &str, words: &[Word]) -> Result<Option<Vec<String>>, Mistake> {
        let mut given = Arguments::new(words, &["kill", "slow"]);
        let mut printed = Vec::new();
        match verb {
            "open" => {
                let name = given.need("name")?.text()?.to_owned();
                let kind = given.need("watch or keepalive")?;
                let metadata = std::mem::take(&mut self.metadata);
                // Connections of their own: a stream that is not read must not
                // hold up the calls beside it.
                let channel = self.server.channel();
                let stream = match kind.text()? {
                    "watch" => streams::watch(channel, metadata, given.flag("slow")),
                    "keepalive" => streams::keep_alive(channel, metadata),
                    other => return Err(Mistake::new(format!("no such stream: {other}"))),
                };
                self.streams.insert(name, stream);
            }
            "close" => {
                let name = given.need("name")?;
                self.streams
                    .remove(name.text()?)
                    .ok_or_else(|| Mistake::new("no such stream"))?;
            }
            "metadata" => return self.set_metadata(words).map(Some),
            "sleep" => {
                let milliseconds = given.need("milliseconds")?.number()?;
                tokio::time::sleep(Duration::from_millis(milliseconds.cast_unsigned())).await;
            }
            "restart" => {
                self.streams.clear();
                let outcome = self.server.restart(given.flag("kill")).await;
                outcome.map_err(|text| Mistake::new(format!("restart: {text}")))?;
                self.channel = self.server.channel();
                self.names.meet(self.server.cluster());
            }
            "await-gone" => printed.push(self.await_gone(given.need("key")?).await),
            "await-compacted" => {
                let revision = given.need("revision")?.number()?;
                printed.push(self.await_compacted(revision).await);
            }
            "metric" => {
                let (name, value) = (given.need("name")?, given.need("value")?);
                printed.push(self.await_metric(name.text()?, value.text()?).await?);
            }
            "http" => printed = self.get_http(given.need("path")?.text()?).await?,
            _ => return Ok(None),
        }
        given.done()?;
        Ok(Some(printed))
    }

    fn set_metadata(&mut self, words: &[Word]) -> Result<Vec<String>, Mistake> {
        for word in words {
            let at = word.bytes.iter().position(|&b| b == b'=');
            let at = at.ok_or_else(|| Mistake::new("metadata is given as NAME=VALUE"))?;
            let name = MetadataKey::<Ascii>::from_bytes(&word.bytes[..at]);
            let value = MetadataValue::try_from(&word.bytes[at + 1..]);
            match (name, value) {
                (Ok(name), Ok(value)) => self.metadata.insert(name, value),
                _ => return Err(Mistake::new("no such metadata can be sent")),
            };
        }
        Ok(Vec::new())
    }

    fn request<T>(&mut self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = std::mem::take(&mut self.metadata);
        request.set_timeout(CALL_TIMEOUT);
        request
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    async fn key_value(
        &mut self,
        verb: &str,
        words: &[Word],
        line: &Line,
    ) -> Result<Option<Answer>, Mistake> {
        let mut kv = self.kv();
        Ok(Some(match verb {
            "get" => {
                let (message, wanted) = requests::range(words)?;
                let answer = kv.range(self.request(message)).await;
                answer.map(|response| {
                    let response = response.into_inner();
                    let header = self.names.header(response.header.as_ref());
                    show::range(&header, &response, &self.names, wanted.brief)
                })
            }
            "put" => {
                let answer = kv.put(self.request(requests::put(words)?)).await;
                answer.map(|response| {
                    let response = response.into_inner();
                    let header = self.names.header(response.header.as_ref());
                    show::put(&header, &response, &self.names)
                })
            }
            "del" => {
                let answer = kv
                    .delete_range(self.request(requests::delete(words)?))
                    .await;
                answer.map(|response| {
                    let response = response.into_inner();
                    let header = self.names.header(response.header.as_ref());
                    show::delete(&header, &response, &self.names)
                })
            }
            "txn" => {
                let answer = kv.txn(self.request(requests::txn(&line.children)?)).await;
                answer.map(|response| {
                    let response = response.into_inner();
                    let header = self.names.header(response.header.as_ref());
                    show::txn(&header, &response, &self.names)
                })
            }
            "rangestream" => {
                let (message, wanted) = requests::range(words)?;
                return self
                    .range_stream(message, wanted, &line.children)
                    .await
                    .map(Some);
            }
            "compact" => {
                let mut given = Arguments::new(words, &["physical"]);
                let message = CompactionRequest {
                    revision: given.need("revision")?.number()?,
                    physical: given.flag("physical"),
                };
                given.done()?;
                let answer = kv.compact(self.request(message)).await;
                answer
                    .map(|response| vec![self.names.header(response.into_inner().header.as_ref())])
            }
            _ => return Ok(None),
        }))
    }

    /// Merges the messages as a client would, and checks that only the last
    /// one carries more than pairs. `meanwhile` runs after the first message.
    async fn range_stream(
        &mut self,
        message: RangeRequest,
        wanted: Wanted,
        meanwhile: &[Line],
    ) -> Result<Answer, Mistake> {
        let mut stream = match self.kv().range_stream(self.request(message)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        let (mut merged, mut messages, mut lines) = (RangeResponse::default(), 0, Vec::new());
        loop {
            let part = match stream.message().await {
                Ok(None) => break,
                Ok(Some(part)) => part.range_response.unwrap_or_default(),
                Err(status) => {
                    lines.push(show::error(&status));
                    return Ok(Ok(lines));
                }
            };
            if merged.header.is_some() || merged.more || merged.count != 0 {
                lines.push("FAULT: header, more or count before the last message".to_owned());
            }
            (merged.header, merged.more, merged.count) = (part.header, part.more, part.count);
            merged.kvs.extend(part.kvs);
            messages += 1;
            for line in meanwhile
                .iter()
                .take(if messages == 1 { meanwhile.len() } else { 0 })
            {
                let printed = Box::pin(self.run(line)).await?;
                lines.extend(
                    printed
                        .into_iter()
                        .map(|text| format!("  meanwhile {text}")),
                );
            }
        }
        let header = self.names.header(merged.header.as_ref());
        lines.extend(show::range(&header, &merged, &self.names, wanted.brief));
        match messages {
            _ if !wanted.parts => {}
            1 => lines.push("  in one message".to_owned()),
            _ => lines.push("  in several messages".to_owned()),
        }
        Ok(Ok(lines))
    }

    async fn lease(&mut self, verb: &str, words: &[Word]) -> Result<Option<Answer>, Mistake> {
        let mut given = Arguments::new(words, &["id", "keys"]);
        let mut client = LeaseClient::new(self.channel.clone());
        let answer = match verb {
            "grant" => {
                let (ttl, id) = (given.need("ttl")?.number()?, given.number("id")?);
                let answer = client
                    .lease_grant(self.request(LeaseGrantRequest { ttl, id }))
                    .await;
                answer.map(|response| {
                    let response = response.into_inner();
                    if id == 0 {
                        self.names.name_lease(response.id);
                    }
                    let header = self.names.header(response.header.as_ref());
                    let mut text = format!(
                        "{header} id={} ttl={}",
                        self.names.lease(response.id),
                        response.ttl
                    );
                    if id == 0 && response.id <= 0 {
                        text.push_str(" FAULT: not a positive ID");
                    }
                    if !response.error.is_empty() {
                        text.push_str(&format!(" error={}", response.error));
                    }
                    vec![text]
                })
            }
            "revoke" => {
                let id = given.need("id")?.number()?;
                let answer = client
                    .lease_revoke(self.request(LeaseRevokeRequest { id }))
                    .await;
                answer
                    .map(|response| vec![self.names.header(response.into_inner().header.as_ref())])
            }
            "ttl" => {
                let (id, keys) = (given.need("id")?.number()?, given.flag("keys"));
                let message = LeaseTimeToLiveRequest { id, keys };
                let answer = client.lease_time_to_live(self.request(message)).await;
                answer.map(|response| {
                    let response = response.into_inner();
                    let header = self.names.header(response.header.as_ref());
                    show::time_to_live(&header, &response, &self.names)
                })
            }
            "leases" => {
                let answer = client
                    .lease_leases(self.request(LeaseLeasesRequest {}))
                    .await;
                answer.map(|response| {
                    let response = response.into_inner();
                    let mut text = self.names.header(response.header.as_ref());
                    for lease in &response.leases {
                        text.push_str(&format!(" {}", self.names.lease(lease.id)));
                    }
                    vec![text]
                })
            }
            _ => return Ok(None),
        };
        given.done()?;
        Ok(Some(answer))
    }

    async fn hashes(&mut self, verb: &str, words: &[Word]) -> Result<Option<Answer>, Mistake> {
        let mut client = MaintenanceClient::new(self.channel.clone());
        Ok(Some(match verb {
            "hashkv" => {
                let revision = words.first().map_or(Ok(0), Word::number)?;
                let answer = client
                    .hash_kv(self.request(HashKvRequest { revision }))
                    .await;
                answer.map(|response| {
                    let response = response.into_inner();
                    let header = self.names.header(response.header.as_ref());
                    vec![format!(
                        "{header} hash={} compact_revision={} hash_revision={}",
                        response.hash, response.compact_revision, response.hash_revision
                    )]
                })
            }
            "hash" => {
                let answer = client.hash(self.request(HashRequest {})).await;
                answer.map(|response| {
                    let response = response.into_inner();
                    let before = self.last_hash.replace(response.hash);
                    let compared = match before {
                        None => "first",
                        Some(before) if before == response.hash => "same as before",
                        Some(_) => "not as before",
                    };
                    vec![format!(
                        "{} hash: {compared}",
                        self.names.header(response.header.as_ref())
                    )]
                })
            }
            _ => return Ok(None),
        }))
    }

    async fn maintenance(&mut self, verb: &str, words: &[Word]) -> Result<Option<Answer>, Mistake> {
        let mut client = MaintenanceClient::new(self.channel.clone());
        let first = words.first();
        Ok(Some(match verb {
            "status" => {
                let answer = client.status(self.request(StatusRequest {})).await;
                answer.map(|response| self.names.status(&response.into_inner()))
            }
            "alarm" => {
                self.learn_member_id().await;
                let message = requests::alarm(words, self.names.member_id)?;
                let answer = client.alarm(self.request(message)).await;
                answer.map(|response| {
                    let response = response.into_inner();
                    // etcd lists them in the order of a hash map, which is none.
                    let mut alarms: Vec<_> = response
                        .alarms
                        .iter()
                        .map(|alarm| self.names.alarm(alarm))
                        .collect();
                    alarms.sort();
                    alarms.insert(0, self.names.header(response.header.as_ref()));
                    alarms
                })
            }
            "defragment" => {
                let answer = client.defragment(self.request(DefragmentRequest {})).await;
                answer.map(|response| vec![header_or_none(response.into_inner().header)])
            }
            "members" => {
                let linearizable = first.is_some_and(|word| &word.bytes[..] == b"linearizable");
                let mut client = ClusterClient::new(self.channel.clone());
                let answer = client
                    .member_list(self.request(MemberListRequest { linearizable }))
                    .await;
                answer.map(|response| {
                    let response = response.into_inner();
                    let mut lines = vec![self.names.header(response.header.as_ref())];
                    lines.extend(self.names.members(&response.members));
                    lines
                })
            }
            "call" => {
                let path = first
                    .ok_or_else(|| Mistake::new("call what?"))?
                    .text()?
                    .to_owned();
                self.call(path).await
            }
            _ => return Ok(None),
        }))
    }

    /// The member's own ID, for commands that name it before any answer did.
    async fn learn_member_id(&mut self) {
        if self.names.member_id == 0 {
            let request = RangeRequest {
                key: "probe".into(),
                ..RangeRequest::default()
            };
            if let Ok(response) = self.kv().range(request).await {
                self.names.header(response.into_inner().header.as_ref());
            }
        }
    }

    async fn call(&mut self, path: String) -> Answer {
        let path = path.parse().map_err(|_| Status::internal("not a path"))?;
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client
            .ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let request = self.request(());
        client
            .unary(request, path, codec)
            .await
            .map(|_| vec!["ok".to_owned()])
    }

    async fn await_gone(&mut self, key: Word) -> String {
        let request = RangeRequest {
            key: key.bytes,
            ..RangeRequest::default()
        };
        for _ in 0..300 {
            match self.kv().range(request.clone()).await {
                Ok(response) if response.get_ref().kvs.is_empty() => return "gone".to_owned(),
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(status) => return show::error(&status),
            }
        }
        "still there".to_owned()
    }

    async fn await_compacted(&mut self, revision: i64) -> String {
        let request = RangeRequest {
            key: "probe".into(),
            revision,
            ..RangeRequest::default()
        };
        for _ in 0..300 {
            match self.kv().range(request.clone()).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(status) => return show::error(&status),
            }
        }
        "still there".to_owned()
    }

    async fn await_metric(&mut self, name: &str, value: &str) -> Result<String, Mistake> {
        let mut shown = String::new();
        for _ in 0..100 {
            let lines = self.get_http("/metrics").await?;
            let found = lines
                .iter()
                .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(' '));
            shown = found.unwrap_or("missing").to_owned();
            if shown == value {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(format!("{name} {shown}"))
    }

    /// Status code and body of a plain HTTP/1.1 GET.
    async fn get_http(&mut self, path: &str) -> Result<Vec<String>, Mistake> {
        let address = self.server.address();
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(&address).await?;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = exchange
            .await
            .map_err(|error| Mistake::new(format!("http: {error}")))?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let mut lines = vec![
            head.split_whitespace()
                .nth(1)
                .unwrap_or("no status")
                .to_owned(),
        ];
        lines.extend(
            body.lines()
                .filter(|line| !line.trim().is_empty())
                .map(|line| format!("  {line}")),
        );
        Ok(lines)
    }
}

/// The header of an answer that on etcd has none.
fn header_or_none(header: Option<ResponseHeader>) -> String {
    match header {
        None => "no-header".to_owned(),
        Some(header) => format!("{header:?}"),
    }
}
