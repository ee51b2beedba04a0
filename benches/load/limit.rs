//! The limit: a tonic server on the same generated traits, runtime and
//! allocator as stele, that stores nothing. What it cannot do faster, nobody
//! can over this transport.
//!
//! It is this binary once more, started with [`ARGUMENT`] and the flags that
//! the other servers get. A read answers with records of fixed content (a
//! single key is echoed, so that its client can check it like any other), a
//! write with a header, a watch with the events of puts.

mod watches;

use std::net::SocketAddr;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use prost::Message as _;
use stele::proto::etcdserverpb::kv_server::{Kv, KvServer};
use stele::proto::etcdserverpb::lease_server::{Lease, LeaseServer};
use stele::proto::etcdserverpb::request_op::Request as Operation;
use stele::proto::etcdserverpb::response_op::Response as Outcome;
use stele::proto::etcdserverpb::watch_server::WatchServer;
use stele::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse,
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RangeStreamResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest,
    TxnResponse,
};
use stele::proto::mvccpb::KeyValue;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use self::watches::Watches;
use crate::keys::KeySpace;

/// Makes this binary the limit.
pub const ARGUMENT: &str = "--serve-nothing";
/// How many keys it pretends to hold, and of which size.
pub const KEYS: &str = "--keys=";
pub const VALUE_BYTES: &str = "--value-bytes=";

/// Records in one piece of a streamed range, as stele sends it.
const STREAMED_KEYS: usize = 1_000;

/// Serves until it is killed.
pub fn serve() -> ExitCode {
    let value = |name: &str| {
        std::env::args()
            .find_map(|argument| argument.strip_prefix(name).map(str::to_owned))
            .unwrap_or_else(|| panic!("{name} is missing"))
    };
    let url = value("--listen-client-urls=");
    let address: SocketAddr = url
        .strip_prefix("http://")
        .and_then(|address| address.parse().ok())
        .unwrap_or_else(|| panic!("{url} is not of the form http://address:port"));
    let number = |name: &str| -> usize { value(name).parse().expect("a number") };
    let content = Arc::new(Content::new(number(KEYS), number(VALUE_BYTES)));

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("the runtime starts");
    let server = Server::builder()
        .tcp_nodelay(true)
        .add_service(KvServer::new(Nothing(Arc::clone(&content))))
        .add_service(LeaseServer::new(Nothing(Arc::clone(&content))))
        .add_service(WatchServer::new(Nothing(content)));
    match runtime.block_on(server.serve(address)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With the reason, which names an address in use.
            eprintln!("{error}: {:?}", std::error::Error::source(&error));
            ExitCode::FAILURE
        }
    }
}

/// The answers, made beforehand.
struct Content {
    keys: usize,
    /// A whole record, for lists.
    record: Bytes,
    /// The fields of a record after its key.
    after_key: Bytes,
    revision: AtomicI64,
    watches: Watches,
}

impl Content {
    fn new(keys: usize, value_bytes: usize) -> Content {
        let without_key = KeyValue {
            create_revision: 2,
            mod_revision: 3,
            version: 1,
            value: crate::keys::random_value(&mut rand::SeedableRng::seed_from_u64(1), value_bytes),
            ..KeyValue::default()
        };
        let record = KeyValue {
            key: KeySpace::new(crate::load::PREFIX, 1).key(0),
            ..without_key.clone()
        };
        Content {
            keys,
            record: record.encode_to_vec().into(),
            after_key: without_key.encode_to_vec().into(),
            revision: AtomicI64::new(3),
            watches: Watches::default(),
        }
    }

    fn header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            cluster_id: 1,
            member_id: 1,
            revision: self.revision.load(Ordering::Relaxed),
            raft_term: 2,
        })
    }

    fn range(&self, request: &RangeRequest) -> RangeResponse {
        let header = self.header();
        if request.range_end.is_empty() {
            let mut record = Vec::with_capacity(2 + request.key.len() + self.after_key.len());
            prost::encoding::bytes::encode(1, &request.key, &mut record);
            record.extend_from_slice(&self.after_key);
            return RangeResponse {
                header,
                kvs: vec![record.into()],
                more: false,
                count: 1,
            };
        }
        let limit = usize::try_from(request.limit).unwrap_or_default();
        let listed = match limit {
            _ if request.count_only => 0,
            0 => self.keys,
            limit => limit.min(self.keys),
        };
        RangeResponse {
            header,
            kvs: vec![self.record.clone(); listed],
            more: !request.count_only && listed < self.keys,
            count: i64::try_from(self.keys).expect("a count of keys"),
        }
    }

    fn put(&self, request: &PutRequest) -> PutResponse {
        let revision = self.revision.fetch_add(1, Ordering::Relaxed) + 1;
        self.watches.send(request, revision, self.header());
        PutResponse {
            header: self.header(),
            ..PutResponse::default()
        }
    }

    fn operation(&self, operation: &RequestOp) -> Result<ResponseOp, Status> {
        let response = match &operation.request {
            Some(Operation::RequestRange(range)) => Outcome::ResponseRange(self.range(range)),
            Some(Operation::RequestPut(put)) => Outcome::ResponsePut(self.put(put)),
            _ => return Err(absent("this operation")),
        };
        Ok(ResponseOp {
            response: Some(response),
        })
    }
}

/// The services over it.
struct Nothing(Arc<Content>);

fn absent(what: &str) -> Status {
    Status::unimplemented(format!("the limit does without {what}"))
}

type Answers<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

#[tonic::async_trait]
impl Kv for Nothing {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        Ok(Response::new(self.0.range(request.get_ref())))
    }

    type RangeStreamStream = Answers<RangeStreamResponse>;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let mut whole = self.0.range(request.get_ref());
        let records = std::mem::take(&mut whole.kvs);
        let pieces: Vec<RangeResponse> = records
            .chunks(STREAMED_KEYS)
            .map(|records| RangeResponse {
                kvs: records.to_vec(),
                ..RangeResponse::default()
            })
            .chain([whole])
            .collect();
        let pieces = pieces.into_iter().map(|piece| {
            Ok(RangeStreamResponse {
                range_response: Some(piece),
            })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces))))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Ok(Response::new(self.0.put(request.get_ref())))
    }

    async fn delete_range(
        &self,
        _: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        Err(absent("deletes"))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let operations = request.get_ref().success.iter();
        let responses = operations.map(|operation| self.0.operation(operation));
        Ok(Response::new(TxnResponse {
            responses: responses.collect::<Result<_, _>>()?,
            header: self.0.header(),
            succeeded: true,
        }))
    }

    async fn compact(
        &self,
        _: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        Err(absent("compaction"))
    }
}

#[tonic::async_trait]
impl Lease for Nothing {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        Ok(Response::new(LeaseGrantResponse {
            header: self.0.header(),
            id: self.0.revision.fetch_add(1, Ordering::Relaxed),
            ttl: request.get_ref().ttl,
            error: String::new(),
        }))
    }

    async fn lease_revoke(
        &self,
        _: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        Err(absent("revoking"))
    }

    type LeaseKeepAliveStream = Answers<LeaseKeepAliveResponse>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let content = Arc::clone(&self.0);
        let answers = request.into_inner().map(move |request| {
            Ok(LeaseKeepAliveResponse {
                header: content.header(),
                id: request?.id,
                ttl: 1,
            })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        _: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        Err(absent("times to live"))
    }

    async fn lease_leases(
        &self,
        _: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        Err(absent("a list of leases"))
    }
}
