//! The two bidirectional streams, watch and keep-alive, as a script drives
//! them. Sending and receiving are apart: a command sends, `expect` receives.
//!
//! ```text
//! w create KEY [END] [revision= prev_kv progress_notify filters= id= fragment]
//! w cancel ID | w progress | w empty        one message each
//! w expect N [sort]      prints the next N responses (sorted by watch id)
//! w expect N count       only says how many of which kind they were
//! w expect-progress      asks every 100 ms until a progress response comes
//! w gather N             receives until N events have come or a watcher is
//!                        canceled; prints a summary (gather.rs)
//! w silence              prints what comes until 400 ms are quiet
//! w halfclose            ends the sending side
//! w end                  receives until the server ends the stream
//! k send ID | k expect N | k silence | k halfclose | k end
//! ```
//!
//! A task reads the stream into a queue without waiting for the script, unless
//! the stream was opened `slow`: then it reads a response only when the script
//! does, and the connection's flow control holds the rest at the server.

use std::time::Duration;

use stele::proto::client::etcdserverpb::lease_client::LeaseClient;
use stele::proto::client::etcdserverpb::watch_client::WatchClient;
use stele::proto::client::etcdserverpb::{
    LeaseKeepAliveRequest, LeaseKeepAliveResponse, WatchCancelRequest, WatchProgressRequest,
    WatchRequest, WatchResponse, watch_request::RequestUnion,
};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::gather::Gathered;
use crate::requests;
use crate::script::Mistake;
use crate::show::{self, Names};
use crate::words::Word;

/// A response that does not come within this time is reported as missing.
const PATIENCE: Duration = Duration::from_secs(15);
/// As long a pause is taken for the end of what the server has to say.
const SILENCE: Duration = Duration::from_millis(400);
/// How many requests may wait to be sent: more than any script sends at once.
const REQUESTS: usize = 4096;
/// How many responses may lie unread: more than any script causes.
const RESPONSES: usize = 1 << 20;

/// One stream: requests go in, responses are taken when the script asks.
pub(crate) struct Stream<Q, A> {
    requests: Option<mpsc::Sender<Q>>,
    responses: mpsc::Receiver<Result<A, Status>>,
    reader: AbortHandle,
}

impl<Q, A> Drop for Stream<Q, A> {
    /// A client that goes away; a reader left alone would keep the stream open.
    fn drop(&mut self) {
        self.reader.abort();
    }
}

pub(crate) enum AnyStream {
    Watch(Stream<WatchRequest, WatchResponse>),
    KeepAlive(Stream<LeaseKeepAliveRequest, LeaseKeepAliveResponse>),
}

/// What came when a response was waited for.
enum Next<A> {
    Response(A),
    End(Result<(), Status>),
    Nothing,
}

impl<Q: Send + 'static, A: Send + 'static> Stream<Q, A> {
    /// Starts `call`, which sends what comes out of `requests`. A server may
    /// answer nothing at all before the first request, so nobody waits for it.
    fn start<F>(requests: mpsc::Sender<Q>, call: F, is_slow: bool) -> Stream<Q, A>
    where
        F: Future<Output = Result<Response<Streaming<A>>, Status>> + Send + 'static,
    {
        let (incoming, responses) = mpsc::channel(if is_slow { 1 } else { RESPONSES });
        let reader = tokio::spawn(async move {
            if let Err(status) = forward(call, &incoming).await {
                // The script may have dropped the stream; then nobody asks.
                let _ = incoming.send(Err(status)).await;
            }
        });
        Stream {
            requests: Some(requests),
            responses,
            reader: reader.abort_handle(),
        }
    }

    async fn send(&self, request: Q) -> Result<(), Mistake> {
        let requests = self
            .requests
            .as_ref()
            .ok_or_else(|| Mistake::new("the stream is half-closed"))?;
        requests
            .send(request)
            .await
            .map_err(|_| Mistake::new("the stream has ended; nothing can be sent"))
    }

    async fn next(&mut self, patience: Duration) -> Next<A> {
        match timeout(patience, self.responses.recv()).await {
            Err(_) => Next::Nothing,
            Ok(None) => Next::End(Ok(())),
            Ok(Some(Ok(response))) => Next::Response(response),
            Ok(Some(Err(status))) => Next::End(Err(status)),
        }
    }
}

async fn forward<A>(
    call: impl Future<Output = Result<Response<Streaming<A>>, Status>>,
    incoming: &mpsc::Sender<Result<A, Status>>,
) -> Result<(), Status> {
    let mut stream = call.await?.into_inner();
    while let Some(response) = stream.message().await? {
        if incoming.send(Ok(response)).await.is_err() {
            break;
        }
    }
    Ok(())
}

pub(crate) fn watch(channel: Channel, metadata: MetadataMap, is_slow: bool) -> AnyStream {
    let (requests, outgoing) = mpsc::channel(REQUESTS);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    *request.metadata_mut() = metadata;
    let mut client = WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let call = async move { client.watch(request).await };
    AnyStream::Watch(Stream::start(requests, call, is_slow))
}

pub(crate) fn keep_alive(channel: Channel, metadata: MetadataMap) -> AnyStream {
    let (requests, outgoing) = mpsc::channel(REQUESTS);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    *request.metadata_mut() = metadata;
    let mut client = LeaseClient::new(channel);
    let call = async move { client.lease_keep_alive(request).await };
    AnyStream::KeepAlive(Stream::start(requests, call, false))
}

impl AnyStream {
    /// Runs one command; `name` is what the stream is called in the output.
    pub(crate) async fn run(
        &mut self,
        name: &str,
        words: &[Word],
        names: &mut Names,
    ) -> Result<Vec<String>, Mistake> {
        let verb = words
            .first()
            .ok_or_else(|| Mistake::new("what shall the stream do?"))?
            .text()?;
        let words = &words[1..];
        let lines = match self {
            AnyStream::Watch(stream) => match verb {
                "create" => {
                    stream
                        .request(RequestUnion::CreateRequest(requests::watch(words)?))
                        .await?
                }
                "cancel" => {
                    let watch_id = argument(words)?;
                    stream
                        .request(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }))
                        .await?
                }
                "progress" => {
                    stream
                        .request(RequestUnion::ProgressRequest(WatchProgressRequest {}))
                        .await?
                }
                "empty" => {
                    stream
                        .send(WatchRequest {
                            request_union: None,
                        })
                        .await?;
                    Vec::new()
                }
                "expect-progress" => stream.ask_for_progress(names).await?,
                "gather" => stream.gather(argument(words)?, names).await,
                _ => stream.receive(verb, words, names, Names::watch).await?,
            },
            AnyStream::KeepAlive(stream) => match verb {
                "send" => {
                    stream
                        .send(LeaseKeepAliveRequest {
                            id: argument(words)?,
                        })
                        .await?;
                    Vec::new()
                }
                _ => stream.receive(verb, words, names, shown_keep_alive).await?,
            },
        };
        Ok(lines
            .into_iter()
            .map(|line| format!("{name} {line}"))
            .collect())
    }
}

impl<Q: Send + 'static, A: Ordered + Send + 'static> Stream<Q, A> {
    /// The commands that only receive.
    async fn receive(
        &mut self,
        verb: &str,
        words: &[Word],
        names: &mut Names,
        show: fn(&mut Names, &A) -> Vec<String>,
    ) -> Result<Vec<String>, Mistake> {
        let (most, patience) = match verb {
            "expect" => (argument(&words[..1.min(words.len())])?, PATIENCE),
            "silence" => (i64::MAX, SILENCE),
            "end" => (i64::MAX, PATIENCE),
            "halfclose" => {
                self.requests = None;
                return Ok(Vec::new());
            }
            other => {
                return Err(Mistake::new(format!(
                    "no such command of a stream: {other}"
                )));
            }
        };
        let (mut received, mut lines, mut ending) = (Vec::new(), Vec::new(), None);
        for _ in 0..most {
            match self.next(patience).await {
                Next::Response(response) => received.push(response),
                Next::End(Ok(())) => ending = Some("end".to_owned()),
                Next::End(Err(status)) => {
                    ending = Some(format!("end with {}", show::error(&status)));
                }
                Next::Nothing if verb == "silence" => ending = Some("silence".to_owned()),
                Next::Nothing => ending = Some("no response came".to_owned()),
            }
            if ending.is_some() {
                break;
            }
        }
        match words.get(1).map(Word::text).transpose()? {
            Some("sort") => received.sort_by_key(A::order),
            Some("count") => return Ok(A::counts(&received)),
            _ => {}
        }
        for response in &received {
            lines.extend(show(names, response));
        }
        lines.extend(ending);
        Ok(lines)
    }
}

impl Stream<WatchRequest, WatchResponse> {
    async fn request(&mut self, request: RequestUnion) -> Result<Vec<String>, Mistake> {
        self.send(WatchRequest {
            request_union: Some(request),
        })
        .await?;
        Ok(Vec::new())
    }

    /// A server drops progress requests while watchers are behind, so clients
    /// ask again; what comes meanwhile is printed as well.
    async fn ask_for_progress(&mut self, names: &mut Names) -> Result<Vec<String>, Mistake> {
        for _ in 0..100 {
            self.request(RequestUnion::ProgressRequest(WatchProgressRequest {}))
                .await?;
            match self.next(Duration::from_millis(100)).await {
                Next::Response(response) => return Ok(names.watch(&response)),
                Next::End(_) => return Ok(vec!["end".to_owned()]),
                Next::Nothing => {}
            }
        }
        Ok(vec!["no response came".to_owned()])
    }

    /// Receives until `wanted` events have come or a watcher has been canceled,
    /// and says what must hold however the events were spread over responses.
    async fn gather(&mut self, wanted: i64, names: &mut Names) -> Vec<String> {
        let mut gathered = Gathered::default();
        let (mut lines, mut is_over) = (Vec::new(), false);
        while gathered.events() < wanted && !is_over {
            match self.next(PATIENCE).await {
                Next::Response(response) if gathered.takes(&response) => {}
                Next::Response(response) => {
                    lines.extend(names.watch(&response));
                    is_over = response.canceled;
                }
                Next::End(outcome) => {
                    lines.push(format!("end {outcome:?}"));
                    is_over = true;
                }
                Next::Nothing => {
                    lines.push(format!("only {} events came", gathered.events()));
                    is_over = true;
                }
            }
        }
        gathered.summary(is_over).into_iter().chain(lines).collect()
    }
}

/// Responses that are wanted otherwise than one by one as they came.
pub(crate) trait Ordered: Sized {
    /// What to sort responses by whose order among each other is open.
    fn order(&self) -> (i64, i64);

    /// How many there are, for hundreds of them.
    fn counts(all: &[Self]) -> Vec<String> {
        vec![format!("{} responses", all.len())]
    }
}

impl Ordered for WatchResponse {
    fn order(&self) -> (i64, i64) {
        (
            self.watch_id,
            self.header.as_ref().map_or(0, |header| header.revision),
        )
    }

    fn counts(all: &[WatchResponse]) -> Vec<String> {
        let created = all.iter().filter(|response| response.created).count();
        let canceled = all.iter().filter(|response| response.canceled).count();
        let events: usize = all.iter().map(|response| response.events.len()).sum();
        let text = format!(
            "{} responses: {created} created, {canceled} canceled, {events} events",
            all.len()
        );
        vec![text]
    }
}

impl Ordered for LeaseKeepAliveResponse {
    fn order(&self) -> (i64, i64) {
        (self.id, self.ttl)
    }
}

fn shown_keep_alive(names: &mut Names, response: &LeaseKeepAliveResponse) -> Vec<String> {
    let header = names.header(response.header.as_ref());
    vec![format!(
        "{header} id={} ttl={}",
        names.lease(response.id),
        response.ttl
    )]
}

fn argument(words: &[Word]) -> Result<i64, Mistake> {
    match words {
        [word] => word.number(),
        _ => Err(Mistake::new("this command takes one number")),
    }
}
