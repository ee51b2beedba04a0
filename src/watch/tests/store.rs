//! The hub over a real store: events with their previous values, read back
//! from the log after compactions too.

use std::collections::BTreeMap;

use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use super::*;
use crate::mvcc::{Store, Writer};
use crate::proto::client::mvccpb;
use crate::storage::{self, Engine};

/// A store with its writer, and what its watchers should see.
struct Written {
    hub: Arc<Hub>,
    writer: Writer,
    store: Store,
    live: BTreeMap<Vec<u8>, mvccpb::KeyValue>,
    /// By revision, with every previous value.
    events: BTreeMap<i64, Vec<mvccpb::Event>>,
    applied: u64,
    _dir: TempDir,
}

impl Written {
    fn new(settings: Settings) -> Written {
        let dir = TempDir::new().unwrap();
        let engine = Engine::open(dir.path(), &storage::Settings::default()).unwrap();
        let (store, writer) = Store::open(Arc::new(engine)).unwrap();
        let hub = Arc::new(Hub::without_thread(store.clone(), settings));
        Written {
            hub,
            writer,
            store,
            live: BTreeMap::new(),
            events: BTreeMap::new(),
            applied: 0,
            _dir: dir,
        }
    }

    /// One revision: deletes, then puts, of distinct keys.
    fn change(&mut self, deletes: &[&str], puts: &[&str]) {
        let revision = self.writer.revision() + 1;
        let mut events = Vec::new();
        let mut staged = self.writer.begin();
        for key in deletes {
            staged.delete_range(key.as_bytes(), b"").unwrap();
            if let Some(prev) = self.live.remove(key.as_bytes()) {
                events.push(mvccpb::Event {
                    r#type: mvccpb::event::EventType::Delete as i32,
                    kv: Some(mvccpb::KeyValue {
                        key: prev.key.clone(),
                        mod_revision: revision,
                        ..mvccpb::KeyValue::default()
                    }),
                    prev_kv: Some(prev),
                });
            }
        }
        for key in puts {
            let key = Bytes::copy_from_slice(key.as_bytes());
            let value = Bytes::from(format!("value {revision}"));
            staged.put(key.clone(), value.clone(), 0).unwrap();
            let prev_kv = self.live.get(&key[..]).cloned();
            let kv = mvccpb::KeyValue {
                create_revision: prev_kv
                    .as_ref()
                    .map_or(revision, |prev| prev.create_revision),
                version: prev_kv.as_ref().map_or(1, |prev| prev.version + 1),
                mod_revision: revision,
                key: key.clone(),
                value,
                lease: 0,
            };
            self.live.insert(key.to_vec(), kv.clone());
            events.push(mvccpb::Event {
                r#type: mvccpb::event::EventType::Put as i32,
                kv: Some(kv),
                prev_kv,
            });
        }
        staged.finish();
        if !events.is_empty() {
            self.events.insert(revision, events);
        }
    }

    fn commit(&mut self) {
        self.applied += 1;
        let revisions = self.writer.commit(self.applied, 1).unwrap();
        self.hub.publish(&revisions);
    }

    fn compact(&mut self, revision: i64) {
        self.commit();
        self.writer.compact(revision).unwrap();
        self.commit();
        while self.writer.compaction_step(100).unwrap() {}
    }

    /// All keys' events from `from` on, as they should be read now.
    fn expected(&self, from: i64) -> Vec<mvccpb::Event> {
        let compacted = self.store.compacted_revision();
        let mut expected = Vec::new();
        for (revision, events) in self.events.range(from..) {
            for event in events {
                let mut event = event.clone();
                event.prev_kv = event.prev_kv.filter(|_| *revision > compacted);
                expected.push(event);
            }
        }
        expected
    }
}

fn decoded(responses: &[Response]) -> Vec<mvccpb::Event> {
    let decode = |event: &Bytes| mvccpb::Event::decode(event.clone()).unwrap();
    let events = |response: &Response| match &response.body {
        Body::Events { events, .. } => events.iter().map(decode).collect(),
        _ => Vec::new(),
    };
    responses.iter().flat_map(events).collect()
}

/// VEC-6.
#[test]
fn a_key_s_whole_life_comes_in_one_response() {
    let mut written = Written::new(Settings {
        ring_revisions: 1,
        ..tiny()
    });
    for (deletes, puts) in [
        (&[][..], &["a"][..]),
        (&[], &["a"]),
        (&[], &["a"]),
        (&[], &["b"]),
        (&["a"], &[]),
        (&[], &["a"]),
    ] {
        written.change(deletes, puts);
        written.commit();
    }
    let (handle, mut responses) = written.hub.open_stream();
    handle.create(CreateRequest {
        prev_kv: true,
        ..watch("a", 1)
    });
    catch_up(&written.hub);
    let responses = all(&mut responses);
    assert_eq!(responses.len(), 2);
    assert_eq!(responses[1].revision, 7);
    let brief: Vec<(i32, i64, Option<i64>)> = decoded(&responses)
        .into_iter()
        .map(|event| {
            let prev = event.prev_kv.map(|prev| prev.mod_revision);
            (event.r#type, event.kv.unwrap().mod_revision, prev)
        })
        .collect();
    assert_eq!(
        brief,
        [
            (0, 2, None),
            (0, 3, Some(2)),
            (0, 4, Some(3)),
            (1, 6, Some(4)),
            (0, 7, None)
        ]
    );
}

/// VEC-11.
#[test]
fn the_compacted_revision_itself_can_be_watched() {
    let mut written = Written::new(Settings {
        ring_revisions: 1,
        ..tiny()
    });
    for _ in 0..6 {
        written.change(&[], &["a"]);
    }
    written.change(&["a"], &[]);
    written.change(&[], &["c"]);
    written.compact(8);
    let (handle, mut responses) = written.hub.open_stream();
    handle.create(CreateRequest {
        prev_kv: true,
        ..watch("a", 8)
    });
    handle.create(watch("a", 7));
    catch_up(&written.hub);
    let responses = all(&mut responses);
    let mut expected = written.expected(8);
    expected.truncate(1);
    assert_eq!(decoded(&responses), expected);
    assert_eq!(
        responses[2].body,
        Body::Compacted {
            compact_revision: 8
        },
        "the older one is told first"
    );
}

/// Every start revision sees the same past, through the ring and the log,
/// before and after compactions.
#[test]
fn any_start_sees_all_that_followed() {
    let mut rng = StdRng::seed_from_u64(7);
    let keys = ["a", "aa", "b", "c", "d"];
    let mut written = Written::new(Settings {
        ring_revisions: 20,
        ..Settings::default()
    });
    for round in 0..40 {
        for _ in 0..rng.random_range(1..30) {
            let (deletes, puts): (Vec<&str>, Vec<&str>) = keys
                .iter()
                .filter(|_| rng.random_bool(0.4))
                .partition(|key| key.len() % 2 == 0);
            written.change(&deletes, &puts);
            if rng.random_bool(0.3) {
                written.commit();
            }
        }
        written.commit();
        let compacted = written.store.compacted_revision();
        let revision = written.store.revision();
        if round % 5 == 4 {
            written.compact(rng.random_range(compacted.max(1) + 1..=revision));
        }
        let compacted = written.store.compacted_revision();
        let (handle, mut responses) = written.hub.open_stream();
        for _ in 0..5 {
            let from = rng.random_range(compacted.max(1)..=revision + 1);
            handle.create(CreateRequest {
                prev_kv: true,
                ..watch_all(from)
            });
            catch_up(&written.hub);
            let got = all(&mut responses);
            assert_eq!(
                decoded(&got),
                written.expected(from),
                "from {from}, compacted {compacted}"
            );
        }
    }
}
