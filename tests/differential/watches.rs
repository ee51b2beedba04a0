//! Watch streams to both servers, and what must be equal about them.
//!
//! Answers to creates and cancels are awaited and compared at once. Events
//! come when they come; each side files them per watcher and checks what one
//! server alone must keep (order, whole revisions, promises of progress). At a
//! sync point both sides are asked for progress until they promise to have
//! sent everything, and then the sequences must be equal.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use stele::proto::client::etcdserverpb::watch_request::RequestUnion;
use stele::proto::client::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use stele::proto::client::mvccpb::Event;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::generate::FAR_STREAM;
use crate::outcome::mask_header;
use crate::support::client::Clients;

const PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait for an answer to a progress request before asking again:
/// etcd drops the request while a watcher is behind (WAT-41).
const PROGRESS_RETRY: Duration = Duration::from_millis(20);

/// The watch id that stands for all watchers of a stream.
const ALL_WATCHERS: i64 = -1;

/// The streams of one seed, each as a pair.
pub struct Watches {
    streams: Vec<Pair>,
    pub events_compared: u64,
    pub watchers_created: u64,
}

impl Watches {
    pub fn open(reference: &Clients, subject: &Clients) -> Watches {
        let pair = |index| Pair {
            reference: Stream::open(reference),
            subject: Stream::open(subject),
            watchers: BTreeMap::new(),
            retired: HashSet::new(),
            is_far: index == FAR_STREAM,
        };
        let streams = (0..=FAR_STREAM).map(pair).collect();
        Watches {
            streams,
            events_compared: 0,
            watchers_created: 0,
        }
    }

    /// Creates a watcher on both sides; the answers must be equal.
    pub async fn create(
        &mut self,
        stream: usize,
        mut create: WatchCreateRequest,
        compacted: i64,
        revision: i64,
    ) -> Result<(), String> {
        let pair = &mut self.streams[stream];
        // etcd keeps the id of a watcher that compaction has ended until it is
        // cancelled as well (WAT-36); the next free id would differ.
        pair.end_compacted().await?;
        if pair.retired.contains(&create.watch_id) {
            create.watch_id = 0;
        }
        let start_revision = create.start_revision;
        let answer = pair.ask(RequestUnion::CreateRequest(create)).await?;
        if !answer.canceled {
            let is_compacted =
                start_revision > 0 && start_revision < compacted && start_revision <= revision;
            pair.watchers.insert(
                answer.watch_id,
                Watcher {
                    start_revision,
                    is_compacted,
                },
            );
            self.watchers_created += 1;
        }
        Ok(())
    }

    /// Cancels a watcher on both sides. Without a sync before, one side may
    /// have sent more events than the other; then the id is not used again,
    /// because etcd would hand what is still in its queue to the next watcher
    /// of that id.
    pub async fn cancel(
        &mut self,
        stream: usize,
        choice: usize,
        is_synced: bool,
    ) -> Result<(), String> {
        let pair = &mut self.streams[stream];
        let live: Vec<i64> = pair
            .watchers
            .iter()
            .filter(|(_, watcher)| !watcher.is_compacted)
            .map(|(id, _)| *id)
            .collect();
        // One choice more than there are watchers: an unknown id, which is not
        // answered (WAT-15).
        let Some(&watch_id) = live.get(choice % (live.len() + 1)) else {
            return pair.send(cancel_request(1 << 40)).await;
        };
        pair.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }))
            .await?;
        pair.watchers.remove(&watch_id);
        if !is_synced {
            pair.retired.insert(watch_id);
        }
        let reference = pair.reference.forget(watch_id);
        let subject = pair.subject.forget(watch_id);
        let common = reference.len().min(subject.len());
        self.events_compared += common as u64;
        compare_events(watch_id, &reference[..common], &subject[..common])
    }

    /// The largest start revision that a sync has to wait for.
    pub fn furthest_start(&self) -> i64 {
        let near = self.streams.iter().filter(|pair| !pair.is_far);
        let starts = near.flat_map(|pair| pair.watchers.values().map(|w| w.start_revision));
        starts.max().unwrap_or(0)
    }

    /// Waits until both sides have sent every event up to `revision`, and
    /// compares them. It must be newer than all watchers, or a promise from
    /// before they existed would be taken for theirs.
    pub async fn sync(&mut self, revision: i64) -> Result<(), String> {
        for (index, pair) in self.streams.iter_mut().enumerate() {
            let compared = pair.sync(revision).await;
            self.events_compared += compared.map_err(|text| format!("stream {index}: {text}"))?;
        }
        Ok(())
    }
}

struct Watcher {
    start_revision: i64,
    /// Whether it began below the compacted revision, so that it is ended.
    is_compacted: bool,
}

/// The same stream to both servers.
struct Pair {
    reference: Stream,
    subject: Stream,
    watchers: BTreeMap<i64, Watcher>,
    /// Ids that are free and must not be used again.
    retired: HashSet<i64>,
    is_far: bool,
}

impl Pair {
    async fn send(&mut self, union: RequestUnion) -> Result<(), String> {
        self.reference.send(union.clone()).await?;
        self.subject.send(union).await
    }

    /// Sends a create or cancel to both sides; their answers must be equal.
    async fn ask(&mut self, union: RequestUnion) -> Result<WatchResponse, String> {
        self.send(union.clone()).await?;
        let sides = tokio::join!(self.reference.next_answer(), self.subject.next_answer());
        let reference = sides
            .0
            .map_err(|text| format!("reference, {union:?}: {text}"))?;
        let subject = sides
            .1
            .map_err(|text| format!("subject, {union:?}: {text}"))?;
        if reference != subject {
            return Err(format!(
                "{union:?}\n  reference: {reference:?}\n  subject:   {subject:?}"
            ));
        }
        Ok(reference)
    }

    async fn sync(&mut self, revision: i64) -> Result<u64, String> {
        self.end_compacted().await?;
        if !self.is_far && !self.watchers.is_empty() {
            let sides = tokio::join!(
                self.reference.wait_for_progress(revision),
                self.subject.wait_for_progress(revision)
            );
            sides.0.map_err(|text| format!("reference: {text}"))?;
            sides.1.map_err(|text| format!("subject: {text}"))?;
        }
        self.reference
            .take_arrived()
            .map_err(|text| format!("reference: {text}"))?;
        self.subject
            .take_arrived()
            .map_err(|text| format!("subject: {text}"))?;
        let mut compared = 0;
        for &watch_id in self.watchers.keys() {
            let reference = self.reference.take_events(watch_id);
            let subject = self.subject.take_events(watch_id);
            compare_events(watch_id, &reference, &subject)?;
            compared += reference.len() as u64;
        }
        Ok(compared)
    }

    /// Waits for the end of each watcher that began below the compacted
    /// revision (WAT-34), and cancels it so that etcd forgets it too.
    async fn end_compacted(&mut self) -> Result<(), String> {
        let ended = self
            .watchers
            .iter()
            .filter(|(_, watcher)| watcher.is_compacted);
        let ended: Vec<i64> = ended.map(|(id, _)| *id).collect();
        for watch_id in ended {
            let sides = tokio::join!(
                self.reference.wait_for_end(watch_id),
                self.subject.wait_for_end(watch_id)
            );
            let reference = sides.0.map_err(|text| format!("reference: {text}"))?;
            let subject = sides.1.map_err(|text| format!("subject: {text}"))?;
            if reference != subject {
                return Err(format!(
                    "watcher {watch_id} ended\n  reference: {reference:?}\n  subject:   {subject:?}"
                ));
            }
            self.subject.forgotten.insert(watch_id);
            self.send(cancel_request(watch_id)).await?;
            let answer = self.reference.next_answer().await;
            answer.map_err(|text| format!("reference, second cancel: {text}"))?;
            for (side, stream) in [
                ("reference", &mut self.reference),
                ("subject", &mut self.subject),
            ] {
                let events = stream.forget(watch_id);
                if !events.is_empty() {
                    return Err(format!(
                        "{side}: events for ended watcher {watch_id}: {events:?}"
                    ));
                }
            }
            self.watchers.remove(&watch_id);
        }
        Ok(())
    }
}

fn cancel_request(watch_id: i64) -> RequestUnion {
    RequestUnion::CancelRequest(WatchCancelRequest { watch_id })
}

fn compare_events(watch_id: i64, reference: &[Event], subject: &[Event]) -> Result<(), String> {
    if reference == subject {
        return Ok(());
    }
    let same = reference
        .iter()
        .zip(subject)
        .take_while(|(left, right)| left == right)
        .count();
    Err(format!(
        "watcher {watch_id}: {} and {} events, different from number {same} on\
         \n  before:    {:?}\n  reference: {:?}\n  subject:   {:?}",
        reference.len(),
        subject.len(),
        same.checked_sub(1).and_then(|before| reference.get(before)),
        reference[same..].iter().take(3).collect::<Vec<_>>(),
        subject[same..].iter().take(3).collect::<Vec<_>>(),
    ))
}

/// One stream to one server.
struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    responses: mpsc::Receiver<Result<WatchResponse, Status>>,
    filed: Filed,
    /// Watchers that compaction has ended and that were cancelled since. Only
    /// etcd answers that cancel, so an answer is of no interest.
    forgotten: HashSet<i64>,
}

/// What has arrived and was not asked for.
#[derive(Default)]
struct Filed {
    watchers: BTreeMap<i64, Arrived>,
    /// The responses with which compaction has ended watchers.
    ends: BTreeMap<i64, WatchResponse>,
    /// The newest revision up to which progress was promised to all watchers
    /// that the stream had when it was written.
    promised: i64,
}

#[derive(Default)]
struct Arrived {
    /// The store's revision when the watcher was created. Progress up to this
    /// revision may have been promised before there was this watcher.
    created_at: i64,
    /// All its events up to here are promised to be sent.
    promised: i64,
    events: Vec<Event>,
    newest_revision: i64,
    /// Whether the last response was a fragment with more to come.
    is_fragment_open: bool,
}

impl Stream {
    fn open(clients: &Clients) -> Stream {
        const QUEUE: usize = 64;
        let (requests, queued) = mpsc::channel(QUEUE);
        // All that may arrive between two looks at the stream; beyond, the
        // server waits.
        const ARRIVED: usize = 1 << 16;
        let (arrived, responses) = mpsc::channel(ARRIVED);
        let mut client = clients.watch.clone();
        // The call returns with the first response only, hence the task.
        tokio::spawn(async move {
            let mut stream = match client.watch(ReceiverStream::new(queued)).await {
                Ok(response) => response.into_inner(),
                Err(status) => return drop(arrived.send(Err(status)).await),
            };
            while let Some(result) = stream.message().await.transpose() {
                let is_end = result.is_err();
                if arrived.send(result).await.is_err() || is_end {
                    break;
                }
            }
        });
        Stream {
            requests,
            responses,
            filed: Filed::default(),
            forgotten: HashSet::new(),
        }
    }

    async fn send(&mut self, union: RequestUnion) -> Result<(), String> {
        let request = WatchRequest {
            request_union: Some(union),
        };
        self.requests
            .send(request)
            .await
            .map_err(|_| "the stream has ended".to_owned())
    }

    /// The next answer to a create or a cancel, filing everything else.
    async fn next_answer(&mut self) -> Result<WatchResponse, String> {
        let wait = async {
            loop {
                let response = self.next_response().await?;
                if let Some(answer) = self.file(response)? {
                    return Ok(answer);
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .map_err(|_| "no answer".to_owned())?
    }

    async fn wait_for_end(&mut self, watch_id: i64) -> Result<WatchResponse, String> {
        let wait = async {
            loop {
                if let Some(end) = self.filed.ends.remove(&watch_id) {
                    return Ok(end);
                }
                let response = self.next_response().await?;
                self.file_unasked(response)?;
            }
        };
        let text = || format!("watcher {watch_id} starts below the compacted revision and lives");
        tokio::time::timeout(PATIENCE, wait)
            .await
            .map_err(|_| text())?
    }

    async fn wait_for_progress(&mut self, revision: i64) -> Result<(), String> {
        let wait = async {
            while self.filed.promised < revision {
                self.send(RequestUnion::ProgressRequest(WatchProgressRequest {}))
                    .await?;
                let next = tokio::time::timeout(PROGRESS_RETRY, self.next_response());
                if let Ok(response) = next.await {
                    self.file_unasked(response?)?;
                }
                // Whatever else has arrived, before asking once more.
                self.take_arrived()?;
            }
            Ok(())
        };
        let text = || format!("no progress up to revision {revision}");
        tokio::time::timeout(PATIENCE, wait)
            .await
            .map_err(|_| text())?
    }

    async fn next_response(&mut self) -> Result<WatchResponse, String> {
        match self.responses.recv().await {
            Some(Ok(response)) => Ok(response),
            Some(Err(status)) => Err(format!("the stream has ended: {status:?}")),
            None => Err("the stream has ended".to_owned()),
        }
    }

    fn take_arrived(&mut self) -> Result<(), String> {
        while let Ok(result) = self.responses.try_recv() {
            let response = result.map_err(|status| format!("the stream has ended: {status:?}"))?;
            self.file_unasked(response)?;
        }
        Ok(())
    }

    fn file_unasked(&mut self, response: WatchResponse) -> Result<(), String> {
        match self.file(response)? {
            None => Ok(()),
            Some(answer) => Err(format!("an answer to nothing: {answer:?}")),
        }
    }

    /// Files a response, or returns it when it answers a create or a cancel.
    fn file(&mut self, mut response: WatchResponse) -> Result<Option<WatchResponse>, String> {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        mask_header(&mut response.header);
        if response.created {
            if !response.canceled {
                let arrived = Arrived {
                    created_at: revision,
                    ..Arrived::default()
                };
                self.filed.watchers.insert(response.watch_id, arrived);
                self.forgotten.remove(&response.watch_id);
            }
            return Ok(Some(response));
        }
        if response.canceled {
            if response.compact_revision != 0 {
                self.filed.ends.insert(response.watch_id, response);
                return Ok(None);
            }
            if self.forgotten.remove(&response.watch_id) {
                return Ok(None);
            }
            return Ok(Some(response));
        }
        if response.events.is_empty() {
            if response.watch_id != ALL_WATCHERS {
                return Err(format!("a response without content: {response:?}"));
            }
            self.filed.file_progress(revision);
            return Ok(None);
        }
        self.filed.file_events(response, revision).map(|()| None)
    }

    fn take_events(&mut self, watch_id: i64) -> Vec<Event> {
        let arrived = self.filed.watchers.get_mut(&watch_id);
        arrived
            .map(|arrived| std::mem::take(&mut arrived.events))
            .unwrap_or_default()
    }

    fn forget(&mut self, watch_id: i64) -> Vec<Event> {
        self.filed
            .watchers
            .remove(&watch_id)
            .unwrap_or_default()
            .events
    }
}

impl Filed {
    fn file_progress(&mut self, revision: i64) {
        self.promised = self.promised.max(revision);
        for arrived in self.watchers.values_mut() {
            if arrived.created_at < revision {
                arrived.promised = arrived.promised.max(revision);
            }
        }
    }

    /// Files events, after checking what does not depend on the other side:
    /// ascending revisions (WAT-21), none split over responses (WAT-22), none
    /// at or below what progress has promised (WAT-38), and a header that is
    /// not older than what it heads (WAT-24, WAT-25).
    fn file_events(&mut self, response: WatchResponse, header: i64) -> Result<(), String> {
        let id = response.watch_id;
        let is_fragment_open = response.fragment;
        let Some(arrived) = self.watchers.get_mut(&id) else {
            return Err(format!("events for watcher {id}, which does not exist"));
        };
        let mut may_continue = arrived.is_fragment_open;
        for event in response.events {
            let Some(kv) = &event.kv else {
                return Err(format!("watcher {id}: an event without kv"));
            };
            let (revision, newest) = (kv.mod_revision, arrived.newest_revision);
            if revision < newest || (revision == newest && !may_continue) {
                return Err(format!("watcher {id}: revision {revision} after {newest}"));
            }
            if revision <= arrived.promised {
                let promised = arrived.promised;
                return Err(format!(
                    "watcher {id}: revision {revision} after progress {promised}"
                ));
            }
            if revision > header {
                return Err(format!(
                    "watcher {id}: revision {revision} under header {header}"
                ));
            }
            may_continue = true;
            arrived.newest_revision = revision;
            arrived.events.push(event);
        }
        arrived.is_fragment_open = is_fragment_open;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use stele::proto::client::mvccpb::KeyValue;

    use super::*;

    fn event(key: &'static str, mod_revision: i64) -> Event {
        let kv = KeyValue {
            key: key.into(),
            mod_revision,
            ..KeyValue::default()
        };
        Event {
            kv: Some(kv),
            ..Event::default()
        }
    }

    fn response(events: Vec<Event>, fragment: bool) -> WatchResponse {
        WatchResponse {
            watch_id: 1,
            events,
            fragment,
            ..WatchResponse::default()
        }
    }

    #[test]
    fn planted_differences_in_events_are_found() {
        let right = vec![event("a", 2), event("b", 3), event("a", 4)];
        assert_eq!(compare_events(1, &right, &right), Ok(()));
        let mut with_previous = right.clone();
        with_previous[2].prev_kv = Some(KeyValue::default());
        let mut deleted = right.clone();
        deleted[0].r#type = 1;
        for wrong in [
            right[..2].to_vec(),
            right[1..].to_vec(),
            vec![right[0].clone(), right[2].clone(), right[1].clone()],
            [&right[..], &right[2..]].concat(),
            with_previous,
            deleted,
        ] {
            assert!(compare_events(1, &right, &wrong).is_err());
            assert!(compare_events(1, &wrong, &right).is_err());
        }
    }

    #[test]
    fn a_side_that_breaks_the_rules_alone_is_found() {
        let check = |responses: &[(Vec<Event>, bool)], promised: i64, header: i64| {
            let mut filed = Filed::default();
            let id = response(Vec::new(), false).watch_id;
            filed.watchers.insert(id, Arrived::default());
            filed.file_progress(promised);
            responses.iter().try_for_each(|(events, fragment)| {
                filed.file_events(response(events.clone(), *fragment), header)
            })
        };
        let (two, three) = (vec![event("a", 2), event("b", 2)], vec![event("a", 3)]);
        let second_half = vec![event("c", 2)];
        let whole = (two.clone(), false);
        assert!(check(&[whole.clone(), (three.clone(), false)], 1, 3).is_ok());
        // Backwards, twice, split, after its promise, before its time.
        assert!(check(&[(three.clone(), false), whole.clone()], 1, 3).is_err());
        assert!(check(&[whole.clone(), whole.clone()], 1, 3).is_err());
        assert!(check(&[whole.clone(), (second_half.clone(), false)], 1, 3).is_err());
        assert!(check(&[(two, true), (second_half, false)], 1, 3).is_ok());
        assert!(check(&[(three.clone(), false)], 3, 3).is_err());
        assert!(check(&[(three, false)], 1, 2).is_err());
    }
}
