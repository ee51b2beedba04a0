//! Reads that must see all that was acknowledged before them.
//!
//! All readers that are there when a round begins share it: the leader is
//! asked for its commit index, with a context of its own, and once a majority
//! has confirmed that it still leads, whoever has applied up to that index may
//! answer. Who comes later waits for the next round (GEN-14).
//!
//! A context is never used twice, not by a retry and not after a restart:
//! raft would take the confirmation of the first use for the second's
//! (etcd-io/raft #397).

/// Bytes of a context: member, run, number of the request.
const CONTEXT_BYTES: usize = 24;

/// The readers of one member.
pub(super) struct Reads<R> {
    member_id: u64,
    /// Differs from all runs of this member before.
    run: u64,
    /// The number in the last context.
    last_request: u64,
    /// Those who have come since the round began.
    waiting: Vec<R>,
    round: Option<Round<R>>,
}

/// Readers, and what has been asked for them.
struct Round<R> {
    readers: Vec<R>,
    /// Any answer from this request on will do: all were sent after the
    /// readers had come.
    first_request: u64,
    asked_at_tick: u64,
    /// Leader and term that were asked first.
    asked: (u64, u64),
}

impl<R> Reads<R> {
    pub(super) fn new(member_id: u64, run: u64) -> Reads<R> {
        Reads {
            member_id,
            run,
            last_request: 0,
            waiting: Vec::new(),
            round: None,
        }
    }

    pub(super) fn add(&mut self, readers: Vec<R>) {
        if self.waiting.is_empty() {
            self.waiting = readers;
        } else {
            self.waiting.extend(readers);
        }
    }

    /// Whether a round could begin.
    pub(super) fn is_due(&self) -> bool {
        self.round.is_none() && !self.waiting.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.round.is_none() && self.waiting.is_empty()
    }

    /// Begins a round; answers its first context.
    pub(super) fn begin(&mut self, leader: u64, term: u64, tick: u64) -> Vec<u8> {
        let context = self.next_context();
        self.round = Some(Round {
            readers: std::mem::take(&mut self.waiting),
            first_request: self.last_request,
            asked_at_tick: tick,
            asked: (leader, term),
        });
        context
    }

    /// Gives up on readers that have gone. A context to ask with again when
    /// the round has waited for that many ticks.
    pub(super) fn retry(
        &mut self,
        tick: u64,
        after_ticks: u64,
        is_gone: impl Fn(&R) -> bool,
    ) -> Option<Vec<u8>> {
        self.waiting.retain(|reader| !is_gone(reader));
        let round = self.round.as_mut()?;
        if tick < round.asked_at_tick + after_ticks {
            return None;
        }
        round.readers.retain(|reader| !is_gone(reader));
        if round.readers.is_empty() {
            self.round = None;
            return None;
        }
        round.asked_at_tick = tick;
        Some(self.next_context())
    }

    /// The readers that an answer with this context lets go on.
    pub(super) fn answered(&mut self, context: &[u8]) -> Option<Vec<R>> {
        let request = self.request_of(context)?;
        self.round
            .take_if(|round| request >= round.first_request)
            .map(|round| round.readers)
    }

    /// The readers whose round another leader has ended.
    pub(super) fn leader_changed(&mut self, leader: u64, term: u64) -> Vec<R> {
        let ended = self
            .round
            .take_if(|round| leader != 0 && round.asked != (leader, term));
        ended.map_or_else(Vec::new, |round| round.readers)
    }

    fn next_context(&mut self) -> Vec<u8> {
        self.last_request += 1;
        let words = [self.member_id, self.run, self.last_request];
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    /// The number in a context, if it is of this run.
    fn request_of(&self, context: &[u8]) -> Option<u64> {
        let context: &[u8; CONTEXT_BYTES] = context.try_into().ok()?;
        let word = |at: usize| {
            let bytes = context[at..at + 8].try_into();
            u64::from_be_bytes(bytes.expect("a slice of 8 bytes"))
        };
        ((word(0), word(8)) == (self.member_id, self.run)).then(|| word(16))
    }
}
