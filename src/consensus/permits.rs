//! Who may have a command under way, and who may wait for that.
//!
//! A command takes permits by its size, so that number and bytes of those under
//! way are bounded together. Who finds none left waits, in order. Those who wait
//! hold their decoded requests, so they are bounded in the same way, by far
//! more: enough for every load that a member works off within the request
//! timeout. Beyond that clients are told to slow down (LIM-7), as etcd tells them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::ProposeError;

/// 8192 commands, 64 MB.
pub(super) const PERMITS: u32 = 8192;

/// 65,536 commands, 512 MB.
const WAITING_PERMITS: u32 = 8 * PERMITS;

const BYTES_PER_PERMIT: usize = 8 << 10;

pub(super) struct Permits {
    under_way: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Permits {
    pub(super) fn new() -> Permits {
        Permits {
            under_way: Arc::new(Semaphore::new(PERMITS as usize)),
            waiting: Semaphore::new(WAITING_PERMITS as usize),
        }
    }

    /// For a command of so many bytes; its permits return when the result is
    /// dropped.
    ///
    /// # Errors
    /// `TooManyRequests` when too much is waiting already.
    pub(super) async fn acquire(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ProposeError> {
        let needed = u32::try_from(bytes.div_ceil(BYTES_PER_PERMIT)).unwrap_or(PERMITS);
        let needed = needed.clamp(1, PERMITS);
        // Nobody is overtaken: while some wait, none are left.
        match self.under_way.clone().try_acquire_many_owned(needed) {
            Ok(permit) => return Ok(permit),
            Err(TryAcquireError::Closed) => return Err(ProposeError::Stopped),
            Err(TryAcquireError::NoPermits) => {}
        }
        let place = self.waiting.try_acquire_many(needed);
        let _place = place.map_err(|_| ProposeError::TooManyRequests)?;
        let permit = self.under_way.clone().acquire_many_owned(needed).await;
        permit.map_err(|_| ProposeError::Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE_BYTES: usize = BYTES_PER_PERMIT * (PERMITS as usize / 2);

    #[tokio::test]
    async fn some_wait_in_order_and_the_rest_is_refused() {
        let permits = Arc::new(Permits::new());
        let first = permits.acquire(LARGE_BYTES).await.unwrap();
        let second = permits.acquire(LARGE_BYTES).await.unwrap();
        let places = WAITING_PERMITS / (PERMITS / 2);
        let waiting: Vec<_> = (0..places)
            .map(|_| {
                let permits = permits.clone();
                tokio::spawn(async move { permits.acquire(LARGE_BYTES).await.map(drop) })
            })
            .collect();
        // The tasks run while this one yields.
        while permits.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = permits.acquire(LARGE_BYTES).await;
        assert!(matches!(refused, Err(ProposeError::TooManyRequests)));
        drop((first, second));
        for waiter in waiting {
            waiter.await.unwrap().unwrap();
        }
        drop(permits.acquire(1).await.unwrap());
    }

    #[tokio::test]
    async fn a_command_larger_than_all_permits_takes_all() {
        let permits = Permits::new();
        let all = permits.acquire(usize::MAX).await.unwrap();
        assert_eq!(all.num_permits(), PERMITS as usize);
    }
}
