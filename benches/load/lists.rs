//! Ranges over many keys: lists with a limit, pages at a pinned revision,
//! counts, and a whole data set at once, as one answer or as a stream.

use std::sync::Arc;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use stele::proto::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};

use crate::keys::{KeySpace, random_value};
use crate::load::{BATCH, all_of};
use crate::measure::{Client, Sample, Timing, closed_loop, repeat};
use crate::target::{Kind, Target};
use crate::wire::{Wire, is_record, next, revision};

/// How many keys a list with a limit asks for: Kubernetes' page size.
pub const PAGE: usize = 500;

#[derive(Clone, Copy, Debug)]
pub enum List {
    /// [`PAGE`] keys from a random one on, with the exact count of the rest.
    Page,
    /// Page after page of a revision that is no longer the current one.
    PinnedPages,
    Count,
    /// All keys in one answer.
    Whole,
    /// All keys as a stream.
    Stream,
}

pub async fn run(target: &Target, list: List, clients: usize, timing: Timing) -> Sample {
    let pinned = match list {
        List::PinnedPages => pin(target).await,
        _ => 0,
    };
    let space = Arc::new(target.keys.clone());
    let client = |(number, wire)| {
        let mut random = StdRng::seed_from_u64(number as u64);
        ListClient {
            wire,
            list,
            kind: target.kind,
            value_bytes: target.value_bytes,
            next: random.random_range(0..space.len()),
            space: Arc::clone(&space),
            pinned,
            random,
        }
    };
    let clients = target.wires(clients).into_iter().enumerate();
    let mut clients: Vec<ListClient> = clients.map(client).collect();
    match list {
        List::Whole | List::Stream => {
            // Whole data sets take as long as they take.
            let client = clients.pop().expect("there is a client");
            repeat(client, WHOLE_COUNT, target.processes()).await
        }
        List::Page | List::PinnedPages | List::Count => {
            closed_loop(clients, timing, target.processes()).await
        }
    }
}

/// How often a client lists a whole data set in a round.
const WHOLE_COUNT: usize = 2;

/// Changes a tenth of the keys, which puts the revision before that into the
/// past. Every target is left alike, whoever comes first.
async fn pin(target: &Target) -> i64 {
    let mut wire = target.wire();
    let mut random = StdRng::seed_from_u64(7);
    let space = &target.keys;
    let probe = RangeRequest {
        key: space.key(0),
        ..RangeRequest::default()
    };
    let pinned = revision(wire.range(probe).await.header.as_ref());
    for batch in 0..space.len() / 10 / BATCH {
        // A transaction may not put a key twice: one key of each ten.
        let puts = (0..BATCH).map(|number| PutRequest {
            key: space.key((batch * BATCH + number) * 10 + random.random_range(0..10)),
            value: random_value(&mut random, target.value_bytes),
            ..PutRequest::default()
        });
        let puts: Vec<PutRequest> = puts.collect();
        let answer = wire.txn(all_of(puts.into_iter())).await;
        assert!(answer.succeeded, "a transaction of puts did not put");
    }
    pinned
}

struct ListClient {
    wire: Wire,
    list: List,
    kind: Kind,
    space: Arc<KeySpace>,
    value_bytes: usize,
    /// Where the next pinned page begins.
    next: usize,
    pinned: i64,
    random: StdRng,
}

impl Client for ListClient {
    async fn operation(&mut self) {
        match self.list {
            List::Page => {
                let first = self.random.random_range(0..self.space.len());
                self.page(first, 0).await;
            }
            List::PinnedPages => {
                let first = self.next;
                let listed = self.page(first, self.pinned).await;
                self.next = (first + listed) % self.space.len();
            }
            List::Count => self.count().await,
            List::Whole => self.whole().await,
            List::Stream => self.stream().await,
        }
    }
}

impl ListClient {
    /// Lists from key `first` on and returns how many keys came.
    async fn page(&mut self, first: usize, revision: i64) -> usize {
        let request = RangeRequest {
            limit: i64::try_from(PAGE).expect("a limit"),
            revision,
            ..self.all_from(self.space.key(first))
        };
        let answer = self.wire.range(request).await;
        self.check_page(first, &answer);
        answer.kvs.len()
    }

    fn check_page(&self, first: usize, answer: &RangeResponse) {
        if !self.kind.stores() {
            assert_eq!(answer.kvs.len(), PAGE, "the limit answers with whole pages");
            return;
        }
        let left = self.space.len() - first;
        let expected = left.min(PAGE);
        assert_eq!(answer.kvs.len(), expected, "keys in a list");
        assert_eq!(usize::try_from(answer.count), Ok(left), "count of a list");
        assert_eq!(answer.more, left > PAGE, "more of a list");
        for (record, number) in [(0, first), (expected - 1, first + expected - 1)] {
            let key = self.space.key(number);
            assert!(
                is_record(&answer.kvs[record], &key, self.value_bytes),
                "key {number} in its place of a list"
            );
        }
    }

    async fn count(&mut self) {
        let request = RangeRequest {
            count_only: true,
            ..self.all_from(self.space.prefix())
        };
        let answer = self.wire.range(request).await;
        assert_eq!(usize::try_from(answer.count), Ok(self.space.len()));
        assert!(answer.kvs.is_empty(), "a count lists nothing");
    }

    async fn whole(&mut self) {
        let answer = self.wire.range(self.all_from(self.space.prefix())).await;
        assert_eq!(answer.kvs.len(), self.space.len(), "keys in a list");
    }

    async fn stream(&mut self) {
        let request = self.all_from(self.space.prefix());
        let mut pieces = self.wire.range_stream(request).await;
        let mut listed = 0;
        loop {
            let piece = next(&mut pieces).await;
            let piece = piece.range_response.expect("a piece holds a range");
            listed += piece.kvs.len();
            // The header comes with the last piece.
            if piece.header.is_some() {
                break;
            }
        }
        assert_eq!(listed, self.space.len(), "keys in a stream");
        let end = pieces.message().await;
        assert!(matches!(end, Ok(None)), "the stream ends after its header");
    }

    fn all_from(&self, key: Bytes) -> RangeRequest {
        RangeRequest {
            key,
            range_end: self.space.end(),
            ..RangeRequest::default()
        }
    }
}
