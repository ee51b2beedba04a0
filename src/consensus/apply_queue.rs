//! The way of what is committed to the applier.
//!
//! Owns the decision which thread applies a batch. The apply thread takes what
//! the drive loop sends, in order, while the next group of commands is being
//! synced. A single client's commands leave nothing to be done meanwhile, and
//! waking a thread takes as long as applying one: such a command the drive loop
//! applies itself, provided that the apply thread is idle.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};

use super::apply::{Applier, ApplyFailure, Batch, Work};
use super::queue::{Receiver, Sender, TryRecvError, bounded};
use super::trim::Applied;
use crate::machine::Machine;

/// Batches waiting for the apply thread; how much they may hold together is
/// bounded by the proposer's permits and, after a start, by the log's length.
const CAPACITY: usize = 256;

/// The two ends of a queue that leads to `applier`.
pub(super) fn apply_queue(applier: Applier) -> (ToApply, ApplyLoop) {
    let (sender, receiver) = bounded(CAPACITY);
    let end = Arc::new(End {
        applier: Mutex::new(applier),
        under_way: AtomicUsize::new(0),
    });
    let to_apply = ToApply {
        batches: sender,
        end: end.clone(),
    };
    let apply_loop = ApplyLoop {
        batches: receiver,
        end,
    };
    (to_apply, apply_loop)
}

/// Where the queue leads to.
struct End {
    applier: Mutex<Applier>,
    /// Batches sent and not applied yet.
    under_way: AtomicUsize,
}

/// The drive loop's end.
pub(super) struct ToApply {
    batches: Sender<Batch>,
    end: Arc<End>,
}

impl ToApply {
    pub(super) fn is_full(&self) -> bool {
        self.batches.is_full()
    }

    /// Leaves a batch to the apply thread.
    pub(super) fn send(&self, batch: Batch) {
        self.end.under_way.fetch_add(1, Ordering::Relaxed);
        // The apply thread ends only when it has failed, which the loop sees.
        let _ = self.batches.send(batch);
    }

    /// Applies `work` in this thread; gives it back when the apply thread has
    /// something to do, which comes first. There is one sender, so nothing can
    /// get between.
    pub(super) fn apply_here(&self, work: Work) -> Result<(), Work> {
        if self.end.under_way.load(Ordering::Acquire) > 0 {
            return Err(work);
        }
        let Some(mut applier) = self.end.applier.try_lock() else {
            return Err(work);
        };
        if applier.has_background_work() {
            return Err(work);
        }
        let batch = Batch {
            work,
            install: None,
        };
        if let Err(failure) = applier.apply_group([batch]) {
            applier.fail(failure);
        }
        Ok(())
    }
}

/// The apply thread's end.
pub(super) struct ApplyLoop {
    batches: Receiver<Batch>,
    end: Arc<End>,
}

impl ApplyLoop {
    /// Runs until the drive loop ends or applying fails. Answers what has been
    /// applied.
    pub(super) fn run(self) -> Applied {
        let outcome = self.apply_all();
        let mut applier = self.end.applier.lock();
        if let Err(failure) = outcome {
            applier.fail(failure);
        }
        applier.machine().applied()
    }

    fn apply_all(&self) -> Result<(), ApplyFailure> {
        while let Some(batch) = self.next_batch()? {
            self.apply_queued(batch)?;
        }
        Ok(())
    }

    /// Waits for a batch; meanwhile the machine works in the background.
    /// `None` when there will be no more.
    fn next_batch(&self) -> Result<Option<Batch>, ApplyFailure> {
        while self.end.applier.lock().has_background_work() {
            match self.batches.try_recv() {
                Ok(batch) => return Ok(Some(batch)),
                Err(TryRecvError::Disconnected) => return Ok(None),
                Err(TryRecvError::Empty) => self.end.applier.lock().work_in_background()?,
            }
        }
        Ok(self.batches.recv().ok())
    }

    /// Applies a batch and what is queued behind it, as one write.
    fn apply_queued(&self, first: Batch) -> Result<(), ApplyFailure> {
        let mut taken = 0;
        let batches = std::iter::once(first).chain(self.batches.try_iter());
        let batches = batches.inspect(|_| taken += 1);
        self.end.applier.lock().apply_group(batches)?;
        self.end.under_way.fetch_sub(taken, Ordering::Release);
        Ok(())
    }

    /// Does what can be done without waiting; a failure closes the latch.
    pub(super) fn step(&self) {
        let outcome = match self.batches.try_recv() {
            Ok(batch) => self.apply_queued(batch),
            Err(_) => {
                let mut applier = self.end.applier.lock();
                match applier.has_background_work() {
                    true => applier.work_in_background(),
                    false => Ok(()),
                }
            }
        };
        if let Err(failure) = outcome {
            self.end.applier.lock().fail(failure);
        }
    }

    pub(super) fn has_work(&self) -> bool {
        self.end.applier.lock().has_background_work() || !self.batches.is_empty()
    }

    pub(super) fn machine(&self) -> MappedMutexGuard<'_, Machine> {
        MutexGuard::map(self.end.applier.lock(), Applier::machine)
    }
}
