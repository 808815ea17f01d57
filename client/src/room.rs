//! Bounds what one handle keeps in flight, by count and by bytes.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Room for requests. Waiters are served in the order in which they asked.
#[derive(Debug)]
pub(crate) struct Room {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    bytes_max: u32,
}

/// The room that one request takes, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    _request: OwnedSemaphorePermit,
    _bytes: OwnedSemaphorePermit,
}

impl Room {
    pub(crate) fn new(requests_max: usize, bytes_max: usize) -> Self {
        let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX).max(1);
        Self {
            requests: Arc::new(Semaphore::new(
                requests_max.clamp(1, Semaphore::MAX_PERMITS),
            )),
            bytes: Arc::new(Semaphore::new(bytes_max as usize)),
            bytes_max,
        }
    }

    /// A payload above the whole bound takes all of it, and so passes alone.
    fn weight(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes_max)
    }

    pub(crate) async fn acquire(&self, bytes: usize) -> Permit {
        let held = "the semaphore is never closed";
        let request = Arc::clone(&self.requests)
            .acquire_owned()
            .await
            .expect(held);
        let weight = self.weight(bytes);
        let bytes = Arc::clone(&self.bytes)
            .acquire_many_owned(weight)
            .await
            .expect(held);
        Permit {
            _request: request,
            _bytes: bytes,
        }
    }

    pub(crate) fn try_acquire(&self, bytes: usize) -> Option<Permit> {
        let request = Arc::clone(&self.requests).try_acquire_owned().ok()?;
        let weight = self.weight(bytes);
        let bytes = Arc::clone(&self.bytes)
            .try_acquire_many_owned(weight)
            .ok()?;
        Some(Permit {
            _request: request,
            _bytes: bytes,
        })
    }
}
