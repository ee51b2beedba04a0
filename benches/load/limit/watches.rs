//! The limit's watches: who hears of which key, and no history. An event is
//! encoded once and sent to every stream that has a watcher for it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use stele::proto::etcdserverpb::watch_request::RequestUnion;
use stele::proto::etcdserverpb::watch_server::Watch;
use stele::proto::etcdserverpb::{PutRequest, ResponseHeader, WatchRequest, WatchResponse};
use stele::proto::mvccpb::{Event, KeyValue};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::Nothing;

/// Responses waiting in one stream. The load has at most a few puts on their
/// way at a time, so a full queue means that an event would be lost.
const STREAM_QUEUE: usize = 1 << 14;

#[derive(Default)]
pub(super) struct Watches {
    by_key: Mutex<Watchers>,
}

#[derive(Default)]
struct Watchers {
    single: HashMap<Bytes, Vec<Watcher>>,
    ranges: Vec<(Bytes, Bytes, Watcher)>,
}

struct Watcher {
    id: i64,
    stream: mpsc::Sender<Result<WatchResponse, Status>>,
}

impl Watches {
    /// Tells the watchers of one put.
    pub(super) fn send(&self, put: &PutRequest, revision: i64, header: Option<ResponseHeader>) {
        let mut watchers = self.by_key.lock();
        let Watchers { single, ranges } = &mut *watchers;
        if single.is_empty() && ranges.is_empty() {
            return;
        }
        let event: Bytes = Event {
            kv: Some(KeyValue {
                key: put.key.clone(),
                value: put.value.clone(),
                create_revision: revision,
                mod_revision: revision,
                version: 1,
                lease: 0,
            }),
            ..Event::default()
        }
        .encode_to_vec()
        .into();
        // A stream that is gone takes its watchers along.
        let deliver = |watcher: &Watcher| {
            let response = WatchResponse {
                header,
                watch_id: watcher.id,
                events: vec![event.clone()],
                ..WatchResponse::default()
            };
            match watcher.stream.try_send(Ok(response)) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => panic!("a watch queue is full"),
            }
        };
        if let Some(watchers) = single.get_mut(&put.key) {
            watchers.retain(deliver);
        }
        ranges
            .retain(|(key, end, watcher)| !(*key <= put.key && put.key < *end) || deliver(watcher));
    }

    fn add(&self, key: Bytes, end: Bytes, watcher: Watcher) {
        let mut watchers = self.by_key.lock();
        if end.is_empty() {
            watchers.single.entry(key).or_default().push(watcher);
        } else {
            watchers.ranges.push((key, end, watcher));
        }
    }
}

#[tonic::async_trait]
impl Watch for Nothing {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let content = Arc::clone(&self.0);
        let mut requests = request.into_inner();
        let (stream, responses) = mpsc::channel(STREAM_QUEUE);
        tokio::spawn(async move {
            let mut id = 0;
            while let Some(Ok(request)) = requests.next().await {
                let Some(RequestUnion::CreateRequest(create)) = request.request_union else {
                    continue;
                };
                if create.watch_id != 0 {
                    id = create.watch_id;
                }
                let created = WatchResponse {
                    header: content.header(),
                    watch_id: id,
                    created: true,
                    ..WatchResponse::default()
                };
                let watcher = Watcher {
                    id,
                    stream: stream.clone(),
                };
                content.watches.add(create.key, create.range_end, watcher);
                if stream.send(Ok(created)).await.is_err() {
                    return;
                }
                id += 1;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}
