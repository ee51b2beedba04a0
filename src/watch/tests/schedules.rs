//! Random schedules of writers, readers, creations, compactions: every response
//! is checked against the whole history.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// A client that checks every response against the script's whole history.
struct Client {
    handle: StreamHandle,
    responses: Responses,
    script: Scripted,
    /// Creations that were not answered yet.
    pending: VecDeque<CreateRequest>,
    watchers: BTreeMap<i64, Watched>,
    /// Ids that were ever asked to be cancelled.
    cancelled: BTreeSet<i64>,
    /// The revision of the last progress of the whole stream.
    progress: i64,
    received: usize,
}

struct Watched {
    request: CreateRequest,
    /// Every wanted event below this revision was received.
    next: i64,
}

impl Watched {
    fn wants(&self, event: &Event) -> bool {
        let CreateRequest {
            key,
            range_end,
            filters,
            ..
        } = &self.request;
        let in_range = match &range_end[..] {
            b"" => event.key == key,
            b"\0" => event.key >= key,
            end => event.key >= key && *event.key < *end,
        };
        in_range
            && match event.kind {
                EventKind::Put => !filters.no_put,
                EventKind::Delete => !filters.no_delete,
            }
    }

    /// What should have been received from `next` up to `revision`.
    fn owed<'a>(
        &self,
        script: &'a Script,
        revision: i64,
    ) -> impl Iterator<Item = (i64, &'a Event)> {
        let from = (self.next - FIRST).max(0) as usize;
        let to = (revision + 1 - FIRST).max(from as i64) as usize;
        script.log[from.min(script.log.len())..to.min(script.log.len())]
            .iter()
            .flat_map(|revision| {
                revision
                    .events
                    .iter()
                    .map(|event| (revision.revision, event))
            })
            .filter(|(_, event)| self.wants(event))
            .collect::<Vec<_>>()
            .into_iter()
    }
}

impl Client {
    fn new(hub: &Hub, script: &Scripted) -> Client {
        let (handle, responses) = hub.open_stream();
        Client {
            handle,
            responses,
            script: script.clone(),
            pending: VecDeque::new(),
            watchers: BTreeMap::new(),
            cancelled: BTreeSet::new(),
            progress: 0,
            received: 0,
        }
    }

    fn create(&mut self, request: CreateRequest) {
        self.pending.push_back(request.clone());
        self.handle.create(request);
    }

    fn cancel(&mut self, id: i64) {
        self.cancelled.insert(id);
        self.handle.cancel(id);
    }

    /// Receives at most `limit` responses. False when none was there.
    fn receive(&mut self, limit: usize) -> bool {
        let before = self.received;
        while self.received < before + limit
            && let Some(response) = next(&mut self.responses)
        {
            self.received += 1;
            self.check(response);
        }
        self.received > before
    }

    fn check(&mut self, response: Response) {
        let Response {
            watch_id,
            revision,
            body,
        } = response;
        let script = self.script.0.lock();
        match body {
            Body::Created => {
                let request = self.pending.pop_front().expect("an answer to a creation");
                let next = if request.start_revision == 0 {
                    revision + 1
                } else {
                    request.start_revision
                };
                let watched = Watched { request, next };
                let previous = self.watchers.insert(watch_id, watched);
                assert!(previous.is_none(), "id {watch_id} given twice");
            }
            Body::Refused(_) => {
                self.pending.pop_front().expect("an answer to a creation");
            }
            Body::Events { events, .. } => {
                let watched = self
                    .watchers
                    .get_mut(&watch_id)
                    .expect("events of a live watcher");
                let last = text(&events)
                    .last()
                    .unwrap()
                    .split('/')
                    .next()
                    .unwrap()
                    .parse()
                    .unwrap();
                let owed: Vec<_> = watched.owed(&script, last).collect();
                assert_eq!(
                    events.len(),
                    owed.len(),
                    "{watch_id}: {:?} {owed:?}",
                    text(&events)
                );
                for (got, (main, event)) in events.iter().zip(owed) {
                    let may_lack_prev = main <= script.compacted || !watched.request.prev_kv;
                    let is_right = *got == event.with_prev() && watched.request.prev_kv
                        || *got == event.without_prev() && may_lack_prev;
                    assert!(is_right, "{watch_id}: {got:?} for {event:?}");
                }
                assert!(
                    revision >= last,
                    "header {revision} before its event {last}"
                );
                watched.next = last + 1;
            }
            Body::Canceled => {
                assert!(self.watchers.remove(&watch_id).is_some());
                assert!(self.cancelled.contains(&watch_id));
            }
            Body::Compacted { compact_revision } => {
                let watched = self.watchers.remove(&watch_id).expect("a live watcher");
                assert_eq!(revision, 0);
                assert!(watched.next < compact_revision && compact_revision <= script.compacted);
            }
            Body::Progress => {
                let is_of_all = watch_id == NO_WATCHER;
                for (id, watched) in &mut self.watchers {
                    if !is_of_all && *id != watch_id {
                        continue;
                    }
                    let missing: Vec<_> = watched.owed(&script, revision).collect();
                    assert!(
                        missing.is_empty(),
                        "progress {revision} ahead for {id}, first of {:?}",
                        missing.first()
                    );
                    assert!(watched.request.start_revision <= revision);
                    watched.next = watched.next.max(revision + 1);
                }
                if is_of_all {
                    self.progress = revision;
                }
            }
        }
    }

    fn check_complete(&self) {
        let script = self.script.0.lock();
        assert!(self.pending.is_empty());
        for (id, watched) in &self.watchers {
            let missing: Vec<_> = watched.owed(&script, i64::MAX - 1).collect();
            assert!(
                missing.is_empty(),
                "{id} lacks {:?} and so on",
                missing.first()
            );
        }
    }
}

fn random_key(rng: &mut StdRng) -> &'static str {
    ["a", "aa", "ab", "b", "c", "d"][rng.random_range(0..6)]
}

fn random_commit(rng: &mut StdRng, script: &Scripted) {
    let mut changes: Vec<(&str, EventKind)> = Vec::new();
    for _ in 0..rng.random_range(1..4) {
        let kind = if rng.random_bool(0.7) {
            EventKind::Put
        } else {
            EventKind::Delete
        };
        let key = random_key(rng);
        if !changes.iter().any(|(taken, _)| *taken == key) {
            changes.push((key, kind));
        }
    }
    script.commit(&changes);
}

fn random_request(rng: &mut StdRng, revision: i64) -> CreateRequest {
    let key = random_key(rng);
    CreateRequest {
        key: if rng.random_bool(0.1) {
            Bytes::from_static(b"\0")
        } else {
            key.into()
        },
        range_end: ["", "", "b", "\0", "d"][rng.random_range(0..5)].into(),
        start_revision: match rng.random_range(0..4) {
            0 => 0,
            1 => revision + rng.random_range(-3..4),
            _ => rng.random_range(0..=revision),
        },
        progress_notify: rng.random(),
        filters: Filters {
            no_put: rng.random_bool(0.1),
            no_delete: rng.random_bool(0.1),
        },
        prev_kv: rng.random(),
        // Not -1, which etcd takes too, but whose progress looks like that of
        // the whole stream.
        watch_id: [0, 0, 0, 0, 0, 0, -2, rng.random_range(1..9)][rng.random_range(0..8)],
        fragment: rng.random(),
    }
}

fn random_step(
    rng: &mut StdRng,
    hub: &Arc<Hub>,
    script: &Scripted,
    sweep: &mut Sweep,
    clients: &mut [Client],
) {
    let chosen = rng.random_range(0..clients.len());
    let client = &mut clients[chosen];
    match rng.random_range(0..100) {
        0..25 => random_commit(rng, script),
        25..45 => script.publish(hub),
        45..60 => {
            sweep.turn(hub.shared());
        }
        60..70 => {
            client.receive(rng.random_range(1..8));
        }
        70..80 => client.create(random_request(rng, script.revision())),
        80..84 => client.cancel(rng.random_range(-3..9)),
        84..90 => client.handle.progress(),
        90..93 => client.handle.tick(),
        93..94 => {
            let revision = rng.random_range(0..=script.revision());
            let compacted = script.compacted_revision();
            script.compact(compacted.max(revision));
        }
        94..95 => *client = Client::new(hub, script),
        // Something happens while the catch-up thread reads history.
        _ => {
            let (hub, inner) = (Arc::clone(hub), script.clone());
            let mut rng = StdRng::seed_from_u64(rng.random());
            script.0.lock().interrupt = Some(Box::new(move || {
                for _ in 0..rng.random_range(0..8) {
                    random_commit(&mut rng, &inner);
                }
                inner.publish(&hub);
                if rng.random_bool(0.1) {
                    let compacted = inner.compacted_revision();
                    inner.compact(compacted.max(inner.revision() - rng.random_range(0..5)));
                }
            }));
        }
    }
}

/// Until nothing moves any more.
fn run_dry(hub: &Arc<Hub>, script: &Scripted, sweep: &mut Sweep, clients: &mut [Client]) {
    script.0.lock().interrupt = None;
    script.publish(hub);
    loop {
        let mut is_moving = sweep.turn(hub.shared());
        for client in &mut *clients {
            is_moving |= client.receive(usize::MAX / 2);
        }
        if !is_moving {
            return;
        }
    }
}

#[test]
fn random_schedules_keep_every_promise() {
    for seed in 0..300 {
        // Shown when the test fails.
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let script = Scripted::new();
        let hub = hub(&script, tiny());
        let mut sweep = Sweep::default();
        let mut clients: Vec<_> = (0..3).map(|_| Client::new(&hub, &script)).collect();
        for _ in 0..rng.random_range(50..800) {
            random_step(&mut rng, &hub, &script, &mut sweep, &mut clients);
        }
        run_dry(&hub, &script, &mut sweep, &mut clients);
        let watchers: usize = clients.iter().map(|client| client.watchers.len()).sum();
        clients.iter().for_each(Client::check_complete);
        assert_eq!(hub.shared().state.lock().counts(), (watchers, 0, 3));
        for client in &mut clients {
            let received = client.received;
            let revision = script.revision();
            let is_waiting = client
                .watchers
                .values()
                .any(|watched| watched.request.start_revision > revision);
            client.handle.progress();
            client.receive(usize::MAX / 2);
            let is_due = !client.watchers.is_empty() && !is_waiting;
            assert_eq!(client.received - received, usize::from(is_due));
        }
        drop(clients);
        assert_eq!(hub.shared().state.lock().counts(), (0, 0, 0));
    }
}

/// The same promises with the real thread, a writer that does not wait, and
/// readers of different speeds.
#[test]
fn threads_keep_every_promise() {
    const REVISIONS: i64 = 20_000;
    const WATCHERS: usize = 20;
    let script = Scripted::new();
    let settings = Settings {
        queue_responses: 64,
        ring_revisions: 256,
        ..Settings::default()
    };
    let hub = Hub::new(script.clone(), settings);
    let writer = {
        let (hub, script) = (Arc::clone(&hub), script.clone());
        thread::spawn(move || {
            let mut rng = StdRng::seed_from_u64(1);
            while script.revision() < REVISIONS {
                for _ in 0..rng.random_range(1..20) {
                    random_commit(&mut rng, &script);
                }
                script.publish(&hub);
                if rng.random_bool(0.1) {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        })
    };
    let read = |number: u64| {
        let mut client = Client::new(&hub, &script);
        let script = script.clone();
        move || {
            let mut rng = StdRng::seed_from_u64(number);
            let mut asked = 0;
            let started = Instant::now();
            while script.revision() < REVISIONS || client.progress < script.revision() {
                assert!(
                    started.elapsed() < Duration::from_secs(60),
                    "progress must come"
                );
                if asked < WATCHERS && rng.random_bool(0.1) {
                    let request = random_request(&mut rng, (script.revision() - 3).max(0));
                    client.create(request);
                    asked += 1;
                }
                client.handle.progress();
                client.receive(rng.random_range(1..50));
                if number.is_multiple_of(2) || asked == WATCHERS {
                    thread::sleep(Duration::from_micros(rng.random_range(0..1000)));
                }
            }
            client
        }
    };
    let readers: Vec<_> = (0..4).map(|number| thread::spawn(read(number))).collect();
    writer.join().unwrap();
    let clients: Vec<Client> = readers
        .into_iter()
        .map(|reader| reader.join().unwrap())
        .collect();
    clients.iter().for_each(Client::check_complete);
    assert_eq!(hub.shared().state.lock().counts().1, 0);
    drop(clients);
    assert_eq!(hub.shared().state.lock().counts(), (0, 0, 0));
}
