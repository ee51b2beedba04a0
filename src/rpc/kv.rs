//! The KV service: reads through a barrier from a view, writes through the
//! log.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use prost::encoding::encoded_len_varint;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::pages::{End, Pages};
use super::quota::{self, Quota};
use super::timing::{Kind, Timer};
use super::{header, run_blocking, status, validate};
use crate::consensus::Consensus;
use crate::machine::txn;
use crate::mvcc::{RangeResult, Store};
use crate::proto::codec::MAX_MESSAGE_BYTES;
use crate::proto::etcdserverpb::kv_server::Kv;
use crate::proto::etcdserverpb::request_op::Request as Op;
use crate::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};

/// Ranges that return at most this many keys are read where they arrive: a
/// millisecond at worst when cached. Larger ones go to the pool for blocking
/// work, whose detour costs some ten microseconds.
const SHORT_RANGE_KEYS: i64 = 1000;

/// Keys of a page of a long range: some milliseconds of reading.
const PAGE_KEYS: i64 = 4096;

/// What the pages of a long range tend to if its values are large, so that
/// between two of them it can be given up.
const PAGE_BYTES: usize = 64 << 20;

/// Keys of the first chunk of a stream (RST-5).
const FIRST_CHUNK_KEYS: i64 = 10;

/// A view of the store keeps old data from being removed. A client that has
/// not taken a chunk for so long no longer holds one.
const VIEW_IDLE: Duration = Duration::from_secs(10);

/// How often a physical compaction looks whether it is done. The last removal
/// is seen at most this late, beside the removal's own time.
const COMPACTION_POLL: Duration = Duration::from_millis(5);

#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// LIM-1; also sets the size that RangeStream's chunks tend to (RST-5).
    pub(super) max_request_bytes: usize,
    /// TXN-20.
    pub(super) max_txn_ops: usize,
}

pub(super) struct Service {
    consensus: Consensus,
    store: Store,
    header: header::Source,
    quota: Arc<Quota>,
    limits: Limits,
}

impl Service {
    pub(super) fn new(
        consensus: Consensus,
        store: Store,
        header: header::Source,
        quota: Arc<Quota>,
        limits: Limits,
    ) -> Service {
        Service {
            consensus,
            store,
            header,
            quota,
            limits,
        }
    }
}

#[tonic::async_trait]
impl Kv for Service {
    type RangeStreamStream = ReceiverStream<Result<RangeStreamResponse, Status>>;

    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        if !request.serializable && self.consensus.status().is_learner {
            return Err(status::NOT_SUPPORTED_FOR_LEARNER.into());
        }
        validate::range(&request)?;
        let timer = Timer::request(Kind::Range);
        if !request.serializable {
            self.consensus.read_barrier().await?;
        }
        let result = read_range(&self.store, request).await?;
        timer.succeed();
        Ok(Response::new(RangeResponse {
            header: self.header.header(result.revision),
            kvs: result.kvs,
            more: result.more,
            count: result.count,
        }))
    }

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let request = request.into_inner();
        validate::range_stream(&request)?;
        if !request.serializable {
            self.consensus.read_barrier().await?;
        }
        let pages = Pages::open(self.store.clone(), request)?;
        // One chunk waits while the next is read.
        let (sender, receiver) = mpsc::channel(1);
        let stream = ChunkStream {
            header: self.header.clone(),
            target_bytes: self.limits.max_request_bytes,
            sender,
        };
        tokio::spawn(stream.send_all(pages));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let request = request.into_inner();
        self.quota.admit(quota::put_cost(&request)).await?;
        validate::put(&request)?;
        let timer = Timer::request(Kind::Put);
        let mut reply = self.consensus.propose(request).await?;
        timer.succeed();
        self.header.fill(&mut reply.header, self.store.revision());
        Ok(Response::new(reply))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        validate::delete_range(&request)?;
        let timer = Timer::request(Kind::DeleteRange);
        let mut reply = self.consensus.propose(request).await?;
        timer.succeed();
        self.header.fill(&mut reply.header, self.store.revision());
        Ok(Response::new(reply))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let request = request.into_inner();
        self.quota.admit(quota::txn_cost(&request)).await?;
        validate::txn(&request, self.limits.max_txn_ops)?;
        let mut reply = if txn::is_read_only(&request) {
            let timer = Timer::request(Kind::ReadonlyTxn);
            if !txn::is_serializable(&request) {
                self.consensus.read_barrier().await?;
            }
            let reply = read_txn(&self.store, request).await?;
            timer.succeed();
            reply
        } else {
            let timer = Timer::request(Kind::Txn);
            let reply = self.consensus.propose(request).await?;
            timer.succeed();
            reply
        };
        self.header.fill(&mut reply.header, self.store.revision());
        Ok(Response::new(reply))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let request = request.into_inner();
        let timer = Timer::request(Kind::Compaction);
        let mut reply = self.consensus.propose(request).await?;
        timer.succeed();
        if request.physical {
            removal(&self.consensus, &self.store, request.revision).await?;
        }
        self.header.fill(&mut reply.header, self.store.revision());
        Ok(Response::new(reply))
    }
}

/// Returns when everything superseded at `revision` is removed (CMP-6).
async fn removal(consensus: &Consensus, store: &Store, revision: i64) -> Result<(), Status> {
    while store.compaction_finished_revision() < revision {
        if consensus.has_failed() {
            return Err(status::STOPPED.into());
        }
        tokio::time::sleep(COMPACTION_POLL).await;
    }
    Ok(())
}

async fn read_range(store: &Store, request: RangeRequest) -> Result<RangeResult, Status> {
    let timer = Timer::range();
    let result = if is_short(&request) {
        store.range(&request).map_err(Status::from)
    } else if request.revision <= 0 && is_in_key_order(&request) {
        read_pages(store.clone(), request, MAX_MESSAGE_BYTES).await
    } else {
        let store = store.clone();
        run_blocking(move || Ok(store.range(&request)?)).await
    };
    if result.is_ok() {
        timer.succeed();
    }
    result
}

/// Whether a range touches few keys, as far as the request tells. At an old
/// revision even the count of a short range may take reading the whole range.
fn is_short(request: &RangeRequest) -> bool {
    let is_bounded = (1..=SHORT_RANGE_KEYS).contains(&request.limit) && is_in_key_order(request);
    let is_now = request.revision <= 0;
    request.range_end.is_empty() || (is_now && (is_bounded || request.count_only))
}

/// Whether the answer is a stretch of the keys as they lie: neither sorted nor
/// filtered.
fn is_in_key_order(request: &RangeRequest) -> bool {
    request.sort_order == 0
        && request.sort_target == 0
        && request.min_mod_revision == 0
        && request.max_mod_revision == 0
        && request.min_create_revision == 0
        && request.max_create_revision == 0
}

/// A long range of the present, put together from pages. Not of the past:
/// there each page would count the rest of the range, which is not cheap.
///
/// What no message can hold is refused as soon as that is seen, not when
/// gigabytes are there to be sent.
async fn read_pages(
    store: Store,
    request: RangeRequest,
    max_bytes: usize,
) -> Result<RangeResult, Status> {
    let mut pages = Pages::open(store, request)?;
    let revision = pages.store_revision();
    let (mut kvs, mut bytes) = (Vec::new(), 0);
    let mut page_keys = SHORT_RANGE_KEYS;
    loop {
        let (rest, page) = pages.read(page_keys).await?;
        pages = rest;
        bytes += page.kvs.iter().map(field_bytes).sum::<usize>();
        if bytes > max_bytes {
            return Err(status::too_large(bytes));
        }
        if kvs.is_empty() {
            kvs = page.kvs;
        } else {
            kvs.extend(page.kvs);
        }
        if let Some(End { more, count }) = page.end {
            return Ok(RangeResult {
                kvs,
                more,
                count,
                revision,
            });
        }
        page_keys = next_page_keys(kvs.len(), bytes);
    }
}

/// By the size of what has been read.
fn next_page_keys(keys: usize, bytes: usize) -> i64 {
    let fitting = PAGE_BYTES / (bytes / keys.max(1)).max(1);
    (fitting as i64).clamp(1, PAGE_KEYS)
}

/// What a record takes in a response: a tag, its length, itself.
fn field_bytes(record: &Bytes) -> usize {
    1 + encoded_len_varint(record.len() as u64) + record.len()
}

async fn read_txn(store: &Store, request: TxnRequest) -> Result<TxnResponse, Status> {
    let ops = || request.success.iter().chain(&request.failure);
    let is_short = request
        .compare
        .iter()
        .all(|compare| compare.range_end.is_empty())
        && ops().all(|op| matches!(&op.request, Some(Op::RequestRange(range)) if is_short(range)));
    let view = store.view()?;
    if is_short {
        return Ok(txn::read_only(&view, &request)?);
    }
    run_blocking(move || Ok(txn::read_only(&view, &request)?)).await
}

/// The sending side of one RangeStream.
struct ChunkStream {
    header: header::Source,
    /// Chunks grow while smaller than half of this, and shrink when larger
    /// than twice this (RST-5).
    target_bytes: usize,
    sender: mpsc::Sender<Result<RangeStreamResponse, Status>>,
}

impl ChunkStream {
    async fn send_all(self, pages: Pages) {
        if let Err(status) = self.send_chunks(pages).await {
            // Fails when the client is gone, and then nobody is to be told.
            let _ = self.sender.send(Err(status)).await;
        }
    }

    async fn send_chunks(&self, mut pages: Pages) -> Result<(), Status> {
        let store_revision = pages.store_revision();
        let mut max_keys = FIRST_CHUNK_KEYS;
        loop {
            let (rest, page) = pages.read(max_keys).await?;
            pages = rest;
            let mut chunk = RangeResponse {
                kvs: page.kvs,
                ..RangeResponse::default()
            };
            let chunk_bytes = chunk.encoded_len();
            if let Some(End { more, count }) = page.end {
                chunk.header = self.header.header(store_revision);
                chunk.more = more;
                chunk.count = count;
            }
            let response = RangeStreamResponse {
                range_response: Some(chunk),
            };
            let is_delivered = self.send(response, &mut pages).await;
            if page.end.is_some() || !is_delivered {
                return Ok(());
            }
            if pages.is_compacted() {
                return Err(status::COMPACTED.into());
            }
            max_keys = next_chunk_keys(max_keys, chunk_bytes, self.target_bytes);
        }
    }

    /// Hands over one chunk, false when the client is gone. While it waits
    /// for long, `pages` is made to hold nothing.
    async fn send(&self, response: RangeStreamResponse, pages: &mut Pages) -> bool {
        let permit = match tokio::time::timeout(VIEW_IDLE, self.sender.reserve()).await {
            Ok(permit) => permit,
            Err(_) => {
                pages.unpin();
                self.sender.reserve().await
            }
        };
        permit.map(|permit| permit.send(Ok(response))).is_ok()
    }
}

/// RST-5. The number is bounded because a chunk of that many keys would be
/// larger than any target even if each took a byte.
fn next_chunk_keys(keys: i64, chunk_bytes: usize, target_bytes: usize) -> i64 {
    if chunk_bytes < target_bytes / 2 {
        (keys * 2).min(target_bytes.try_into().unwrap_or(i64::MAX / 2))
    } else if chunk_bytes > target_bytes.saturating_mul(2) {
        (keys / 2).max(1)
    } else {
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mvcc::Writer;
    use crate::storage::{Engine, Settings};

    /// A store of that many small keys under `k`.
    fn filled_store(keys: i64) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path(), &Settings::default()).unwrap();
        let (store, mut writer): (Store, Writer) = Store::open(Arc::new(engine)).unwrap();
        let mut staged = writer.begin();
        for key in 0..keys {
            let key = format!("k{key:05}");
            staged.put(key.into(), "value".into(), 0).unwrap();
        }
        staged.finish();
        writer.commit(1, 1).unwrap();
        (dir, store)
    }

    /// RST-5, RST-11.
    #[test]
    fn chunks_follow_their_size() {
        assert_eq!(next_chunk_keys(10, 400, 1000), 20);
        assert_eq!(next_chunk_keys(10, 500, 1000), 10);
        assert_eq!(next_chunk_keys(10, 2000, 1000), 10);
        assert_eq!(next_chunk_keys(10, 2001, 1000), 5);
        assert_eq!(next_chunk_keys(1, 2001, 1000), 1);
        assert_eq!(next_chunk_keys(800, 0, 1000), 1000);
        assert_eq!(next_chunk_keys(10, 100, usize::MAX), 20);
    }

    #[test]
    fn pages_follow_their_size() {
        assert_eq!(next_page_keys(0, 0), PAGE_KEYS);
        assert_eq!(next_page_keys(1000, 300_000), PAGE_KEYS);
        assert_eq!(next_page_keys(1000, 1000 << 20), 64);
        assert_eq!(next_page_keys(2, 1 << 30), 1);
    }

    /// LIM-4.
    #[tokio::test]
    async fn a_range_that_no_message_can_hold_is_given_up() {
        let (_dir, store) = filled_store(3000);
        let whole = RangeRequest {
            key: "k".into(),
            range_end: "l".into(),
            ..RangeRequest::default()
        };
        let read = read_pages(store.clone(), whole.clone(), usize::MAX).await;
        let response = RangeResponse {
            kvs: read.unwrap().kvs,
            ..RangeResponse::default()
        };
        assert_eq!(response.kvs.len(), 3000);
        let bytes = response.encoded_len();
        let read = read_pages(store.clone(), whole.clone(), bytes).await;
        assert_eq!(read.unwrap().kvs.len(), 3000);
        let refused = read_pages(store.clone(), whole.clone(), bytes - 1).await;
        assert_eq!(
            refused.unwrap_err().message(),
            status::too_large(bytes).message()
        );
        // Already after the first page.
        let refused = read_pages(store, whole, 100).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        let text = refused.message();
        let size: usize = text
            .strip_prefix("grpc: trying to send message larger than max (")
            .and_then(|rest| rest.strip_suffix(" vs. 2147483647)"))
            .unwrap_or_else(|| panic!("{text}"))
            .parse()
            .unwrap();
        assert!(size < bytes / 2, "{size} of {bytes}");
    }

    #[test]
    fn short_ranges_are_those_that_say_so() {
        let range = |range_end: &'static str, limit, sort_target| RangeRequest {
            key: "a".into(),
            range_end: range_end.into(),
            limit,
            sort_target,
            ..RangeRequest::default()
        };
        assert!(is_short(&range("", 0, 4)));
        assert!(is_short(&range("b", 500, 0)));
        let mut count = range("b", 0, 0);
        count.count_only = true;
        assert!(is_short(&count));
        count.revision = 5;
        assert!(!is_short(&count));
        assert!(!is_short(&range("b", 0, 0)));
        assert!(!is_short(&range("b", 5, 4)));
        assert!(!is_short(&range("b", 1_000_000, 0)));
    }
}
