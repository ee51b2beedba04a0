//! Bodies that no encoder makes, and requests of borderline size.

use bytes::Bytes;
use prost::Message;
use rand::Rng;
use rand::seq::IndexedRandom;
use stele::proto::client::etcdserverpb::{
    DeleteRangeRequest, HashKvRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest,
    TxnRequest, WatchCreateRequest,
};

use super::txn::may_crash_etcd;
use super::{Generator, Step};
use crate::request::{Damage, Request};

/// Field 100 in every wire type, a group among them.
const UNKNOWN_FIELDS: [&[u8]; 5] = [
    b"\xa0\x06\x01",
    b"\xa1\x06\x01\x02\x03\x04\x05\x06\x07\x08",
    b"\xa2\x06\x02xy",
    b"\xa3\x06\x08\x01\xa4\x06",
    b"\xa5\x06\x01\x02\x03\x04",
];

/// Field 0, wire types 6 and 7, a group that does not begin, one that does not
/// end, one that ends as another, a length beyond the end.
const WRONG_TAGS: [&[u8]; 7] = [
    b"\x00\x01",
    b"\xa6\x06\x01",
    b"\xa7\x06\x01",
    b"\xa4\x06",
    b"\xa3\x06",
    b"\xa3\x06\xac\x06",
    b"\xa2\x06\x7f12",
];

/// The longest legal varint, one too long, one padded, one cut short.
const VARINTS: [&[u8]; 4] = [
    b"\xa0\x06\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xa0\x06\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xa0\x06\x85\x80\x80\x00",
    b"\xa0\x06\xff",
];

/// For a range: sort_order beyond 32 bits, sort_target of -1, and keys_only as
/// a number that is neither 0 nor 1.
const ODD_RANGE_FIELDS: [&[u8]; 4] = [
    b"\x28\x81\x80\x80\x80\x10",
    b"\x30\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x40\x02",
    b"\x40\x80\x80\x80\x80\x80\x20",
];

impl Generator {
    /// A damaged body, or nothing when the damage gave a request that must not
    /// be sent.
    pub(super) fn malformed(&mut self) -> Option<Request> {
        let (base, body, damage) = if self.random.random_bool(0.25) {
            (self.read_to_damage(), self.garbage(), Damage::Garbage)
        } else {
            let base = self.request_to_damage();
            let body = self.damaged(&base);
            (base, body, Damage::Structured)
        };
        let body = Bytes::from(body);
        let meaning = Box::new(decoded(&base, &body).unwrap_or(base));
        let is_allowed = match &*meaning {
            Request::Txn(txn) => !may_crash_etcd(txn),
            Request::HashKv(request) => self.model.is_hash_stable(request.revision),
            Request::RangeStream(request) => !super::is_unsteady_stream(request),
            _ => true,
        };
        is_allowed.then_some(Request::Malformed {
            meaning,
            body,
            damage,
        })
    }

    fn request_to_damage(&mut self) -> Request {
        match self.random.random_range(0..7) {
            0..3 => self.read_to_damage(),
            3 | 4 => Request::Put(self.put()),
            5 => Request::DeleteRange(self.delete_range()),
            _ => Request::Txn(self.txn()),
        }
    }

    fn read_to_damage(&mut self) -> Request {
        match self.random.random_range(0..6) {
            0..3 => Request::Range(self.range()),
            3 => Request::RangeStream(self.range_stream()),
            4 => Request::HashKv(HashKvRequest { revision: 0 }),
            _ => Request::LeaseTimeToLive(LeaseTimeToLiveRequest { id: 1, keys: true }),
        }
    }

    fn garbage(&mut self) -> Vec<u8> {
        let length = self.random.random_range(1..40);
        // Small bytes are more often the tag of a field than large ones.
        let highest = if self.random.random_bool(0.5) {
            0x7f
        } else {
            0xff
        };
        (0..length)
            .map(|_| self.random.random_range(0..=highest))
            .collect()
    }

    fn damaged(&mut self, base: &Request) -> Vec<u8> {
        let mut body = base.body().to_vec();
        let table: &[&[u8]] = match self.random.random_range(0..8) {
            0 | 1 => {
                body.truncate(self.random.random_range(0..=body.len()));
                return body;
            }
            // Two messages end to end are one: the later scalar wins, lists
            // are joined.
            2 | 3 => {
                let other = self.another(base);
                body.extend_from_slice(&other.body());
                return body;
            }
            4 => &UNKNOWN_FIELDS,
            5 => &WRONG_TAGS,
            6 => &VARINTS,
            _ if matches!(base, Request::Range(_) | Request::RangeStream(_)) => &ODD_RANGE_FIELDS,
            _ => &UNKNOWN_FIELDS,
        };
        body.extend_from_slice(table.choose(&mut self.random).expect("not empty"));
        body
    }

    /// Another request of the same kind.
    fn another(&mut self, base: &Request) -> Request {
        match base {
            Request::Range(_) => Request::Range(self.range()),
            Request::RangeStream(_) => Request::RangeStream(self.range_stream()),
            Request::Put(_) => Request::Put(self.put()),
            Request::DeleteRange(_) => Request::DeleteRange(self.delete_range()),
            Request::Txn(_) => Request::Txn(self.txn()),
            other => other.clone(),
        }
    }

    /// A put about as large as is allowed (LIM-1, LIM-2), then the removal of
    /// the key, so that what follows stays quick. The internal form of a
    /// request holds numbers that differ from server to server, hence the gap
    /// of 64 bytes between sizes that pass and sizes that do not.
    pub(super) fn giant(&mut self) -> Vec<Step> {
        const SIZES: [usize; 7] = [
            1_000_000, 1_572_700, 1_572_864, 1_600_000, 2_097_000, 2_097_152, 2_400_000,
        ];
        let key = self.keys.some_key(&mut self.random);
        let size = *SIZES.choose(&mut self.random).expect("not empty");
        let value = Bytes::from(vec![b'g'; size]);
        let put = PutRequest {
            key: key.clone(),
            value: value.clone(),
            ..PutRequest::default()
        };
        let delete = DeleteRangeRequest {
            key: key.clone(),
            ..DeleteRangeRequest::default()
        };
        let first = match self.random.random_range(0..4) {
            // Reads are bounded only as messages.
            0 => Request::Range(RangeRequest {
                key: value,
                ..RangeRequest::default()
            }),
            1 => Request::RangeStream(RangeRequest {
                key: value,
                ..RangeRequest::default()
            }),
            _ => Request::Put(put),
        };
        vec![
            Step::Request(first),
            Step::Request(Request::DeleteRange(delete)),
        ]
    }
}

impl Generator {
    /// A delete whose event response, with the previous values, is larger than
    /// one request may be, for watchers with and without fragments (WAT-31).
    pub(super) fn giant_events(&mut self) -> Vec<Step> {
        const SIZE: usize = 700_000;
        let prefix = || (Bytes::from_static(b"giant/"), Bytes::from_static(b"giant0"));
        let mut steps = Vec::new();
        for fragment in [true, false] {
            let (key, range_end) = prefix();
            let create = WatchCreateRequest {
                key,
                range_end,
                prev_kv: true,
                fragment,
                ..<_>::default()
            };
            steps.push(Step::Watch { stream: 0, create });
        }
        for index in 0..self.random.random_range(2..6) {
            let key = Bytes::from(format!("giant/{index}"));
            let value = Bytes::from(vec![b'g'; self.random.random_range(SIZE..2 * SIZE)]);
            let put = PutRequest {
                key,
                value,
                ..PutRequest::default()
            };
            steps.push(Step::Request(Request::Put(put)));
        }
        let (key, range_end) = prefix();
        let delete = DeleteRangeRequest {
            key,
            range_end,
            prev_kv: false,
        };
        steps.push(Step::Request(Request::DeleteRange(delete)));
        steps.push(Step::SyncWatches);
        steps
    }
}

/// What our own decoder makes of a body sent as a request like `base`.
fn decoded(base: &Request, body: &[u8]) -> Option<Request> {
    Some(match base {
        Request::Range(_) => Request::Range(RangeRequest::decode(body).ok()?),
        Request::RangeStream(_) => Request::RangeStream(RangeRequest::decode(body).ok()?),
        Request::Put(_) => Request::Put(PutRequest::decode(body).ok()?),
        Request::DeleteRange(_) => Request::DeleteRange(DeleteRangeRequest::decode(body).ok()?),
        Request::Txn(_) => Request::Txn(TxnRequest::decode(body).ok()?),
        Request::HashKv(_) => Request::HashKv(HashKvRequest::decode(body).ok()?),
        Request::LeaseTimeToLive(_) => {
            Request::LeaseTimeToLive(LeaseTimeToLiveRequest::decode(body).ok()?)
        }
        _ => return None,
    })
}
