//! How many requests and payload bytes may be held at once: of one connection, and of the server.
//!
//! - A read claims its bytes before they are asked for, a write as they arrive: first a little, then at most
//!   [`GROWTH`] times what came. So what a peer only announces costs nobody anything. They are given back when nothing of
//!   the request is kept any more: a write when the device has answered, a read when the peer has taken the reply.
//! - Each connection owns a small reserve outside the server's budget. Peers that take no replies, or a device
//!   that answers nobody, may exhaust the budget; small requests of all others still go on.
//! - Payloads that have begun could hold all of the budget, and each wait for the rest of it. One at a time therefore may
//!   take its rest beyond the budget: whatever the others do, one after the other comes to its end.
//! - The most ever held is `server_bytes_max + request_bytes_max + connections_max * connection_reserve_bytes`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::Limits;

/// How many times what has arrived of a payload may be claimed for it.
pub(crate) const GROWTH: u32 = 8;
/// Of a payload that has begun, what is claimed first; less if it, or the reserve of a connection, is less.
const FIRST_BYTES: u32 = 128 << 10;
/// A reserve below this is none for payloads.
const FIRST_BYTES_MIN: u32 = 4 << 10;

/// The payload bytes of all connections.
#[derive(Debug)]
pub(crate) struct ServerBudget {
    bytes: Arc<Semaphore>,
    /// The one payload that may go beyond them.
    beyond: Arc<Semaphore>,
    bytes_max: usize,
    waiting: AtomicUsize,
}

impl ServerBudget {
    pub(crate) fn new(limits: &Limits) -> Self {
        let bytes_max = limits
            .server_bytes_max
            .max(connection_bytes(limits))
            .min(Semaphore::MAX_PERMITS);
        Self {
            bytes: Arc::new(Semaphore::new(bytes_max)),
            beyond: Arc::new(Semaphore::new(1)),
            bytes_max,
            waiting: AtomicUsize::new(0),
        }
    }

    pub(crate) fn bytes_held(&self) -> usize {
        self.bytes_max - self.bytes.available_permits().min(self.bytes_max)
    }

    /// Takes `bytes`, and counts the wait for them here and in `own`.
    async fn take(&self, bytes: u32, own: &AtomicUsize) -> OwnedSemaphorePermit {
        if let Ok(permit) = Arc::clone(&self.bytes).try_acquire_many_owned(bytes) {
            return permit;
        }
        let _waiting = (Waiting::new(&self.waiting), Waiting::new(own));
        take(&self.bytes, bytes).await
    }
}

/// The requests and payload bytes of one connection.
#[derive(Debug)]
pub(crate) struct ConnectionBudget {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    reserve_bytes: usize,
    server: Arc<ServerBudget>,
    /// The part of this connection in `server.waiting`.
    waiting: AtomicUsize,
}

/// What one request holds. Dropping it gives all of it back.
#[derive(Debug)]
pub(crate) struct Claim {
    _request: OwnedSemaphorePermit,
    bytes: Option<HeldBytes>,
    /// Of a payload that grew.
    more: Vec<HeldBytes>,
}

#[derive(Debug)]
struct HeldBytes {
    _own: OwnedSemaphorePermit,
    _shared: Option<OwnedSemaphorePermit>,
    source: Source,
}

/// Whose memory a request uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Reserve,
    Server,
    /// That which the server has beyond its budget. Whoever has it needs no more of anything else.
    Beyond,
}

impl Claim {
    /// Gives back the bytes and keeps the place among the requests, which the reply still takes.
    pub(crate) fn release_bytes(&mut self) {
        self.bytes = None;
        self.more.clear();
    }

    /// Whether giving this back would help another connection.
    pub(crate) fn holds_server_bytes(&self) -> bool {
        self.held().any(|held| held.source == Source::Server)
    }

    pub(crate) fn holds_bytes(&self) -> bool {
        self.held().next().is_some()
    }

    fn held(&self) -> impl Iterator<Item = &HeldBytes> {
        self.bytes.iter().chain(&self.more)
    }
}

impl ConnectionBudget {
    pub(crate) fn new(limits: &Limits, server: Arc<ServerBudget>) -> Self {
        let requests = limits
            .connection_requests_max
            .clamp(1, Semaphore::MAX_PERMITS);
        let reserve_bytes = limits.connection_reserve_bytes.min(Semaphore::MAX_PERMITS);
        Self {
            requests: Arc::new(Semaphore::new(requests)),
            bytes: Arc::new(Semaphore::new(connection_bytes(limits))),
            reserve: Arc::new(Semaphore::new(reserve_bytes)),
            reserve_bytes,
            server,
            waiting: AtomicUsize::new(0),
        }
    }

    /// Whether a connection other than this one waits for memory of the server.
    pub(crate) fn others_wait(&self) -> bool {
        self.server.waiting.load(Ordering::Relaxed) > self.waiting.load(Ordering::Relaxed)
    }

    /// Waits for a place among the requests.
    pub(crate) async fn request(&self) -> Claim {
        Claim {
            _request: take(&self.requests, 1).await,
            bytes: None,
            more: Vec::new(),
        }
    }

    /// Waits until `bytes` may be held. `bytes` is at most `request_bytes_max`.
    pub(crate) async fn add_bytes(&self, claim: &mut Claim, bytes: u32) {
        let own = take(&self.bytes, bytes).await;
        let (shared, source) = if bytes as usize <= self.reserve_bytes {
            tokio::select! {
                biased;
                permit = take(&self.reserve, bytes) => (permit, Source::Reserve),
                permit = self.server.take(bytes, &self.waiting) => (permit, Source::Server),
            }
        } else {
            (self.server.take(bytes, &self.waiting).await, Source::Server)
        };
        claim.bytes = Some(HeldBytes {
            _own: own,
            _shared: Some(shared),
            source,
        });
    }

    /// Up to where a payload of `len` bytes may be read next, when `arrived` of it are there.
    pub(crate) fn payload_step(&self, arrived: u32, len: u32) -> u32 {
        let reserve = u32::try_from(self.reserve_bytes).unwrap_or(u32::MAX);
        let first = reserve.clamp(FIRST_BYTES_MIN, FIRST_BYTES);
        arrived.saturating_mul(GROWTH).max(first).min(len)
    }

    /// Waits until `bytes` more of a payload may be held, part of which is there and held already.
    pub(crate) async fn grow(&self, claim: &mut Claim, bytes: u32) {
        let own = take(&self.bytes, bytes).await;
        let (shared, source) = if claim.held().any(|held| held.source == Source::Beyond) {
            (None, Source::Beyond)
        } else {
            tokio::select! {
                biased;
                permit = self.server.take(bytes, &self.waiting) => (Some(permit), Source::Server),
                permit = take(&self.server.beyond, 1) => (Some(permit), Source::Beyond),
            }
        };
        claim.more.push(HeldBytes {
            _own: own,
            _shared: shared,
            source,
        });
    }
}

/// Counts a connection that waits, also when the wait is cancelled.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The bytes of a connection: one request of the largest size must always fit.
fn connection_bytes(limits: &Limits) -> usize {
    limits
        .connection_bytes_max
        .max(limits.request_bytes_max as usize)
        .min(Semaphore::MAX_PERMITS)
}

async fn take(semaphore: &Arc<Semaphore>, count: u32) -> OwnedSemaphorePermit {
    Arc::clone(semaphore)
        .acquire_many_owned(count)
        .await
        .expect("no semaphore of a budget is ever closed")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn limits() -> Limits {
        Limits {
            request_bytes_max: 100,
            connection_bytes_max: 100,
            server_bytes_max: 100,
            connection_reserve_bytes: 10,
            ..Limits::default()
        }
    }

    #[test]
    fn small_requests_go_on_when_the_server_budget_is_gone() {
        let server = Arc::new(ServerBudget::new(&limits()));
        let greedy = ConnectionBudget::new(&limits(), Arc::clone(&server));
        let modest = ConnectionBudget::new(&limits(), Arc::clone(&server));
        let mut all = greedy.request().now_or_never().expect("a place");
        assert!(greedy.add_bytes(&mut all, 100).now_or_never().is_some());
        assert_eq!(server.bytes_held(), 100);

        let mut small = modest.request().now_or_never().expect("a place");
        assert!(modest.add_bytes(&mut small, 10).now_or_never().is_some());
        let mut large = modest.request().now_or_never().expect("a place");
        {
            let mut waiting = Box::pin(modest.add_bytes(&mut large, 11));
            assert!(waiting.as_mut().now_or_never().is_none());
            assert!(greedy.others_wait() && !modest.others_wait());
            all.release_bytes();
            assert!(waiting.now_or_never().is_some());
        }
        assert!(!greedy.others_wait());
        drop(large);
        assert_eq!(server.bytes_held(), 0);
    }

    #[test]
    fn one_payload_at_a_time_comes_to_its_end_beyond_the_budget() {
        let server = Arc::new(ServerBudget::new(&limits()));
        let begun = || {
            let budget = ConnectionBudget::new(&limits(), Arc::clone(&server));
            let mut claim = budget.request().now_or_never().expect("a place");
            assert!(budget.add_bytes(&mut claim, 50).now_or_never().is_some());
            (budget, claim)
        };
        let ((first, mut one), (second, mut two)) = (begun(), begun());
        assert_eq!(server.bytes_held(), 100);
        assert!(first.grow(&mut one, 20).now_or_never().is_some());
        {
            let mut waiting = Box::pin(second.grow(&mut two, 50));
            assert!(waiting.as_mut().now_or_never().is_none());
            // Who is beyond it goes on there.
            assert!(first.grow(&mut one, 30).now_or_never().is_some());
            one.release_bytes();
            assert!(waiting.now_or_never().is_some());
        }
        assert_eq!(server.bytes_held(), 100);
        two.release_bytes();
        assert_eq!(server.bytes_held(), 0);
        assert_eq!(server.beyond.available_permits(), 1);
    }

    #[test]
    fn what_is_claimed_for_a_payload_is_in_proportion_to_what_came() {
        let steps = |reserve, len| {
            let limits = Limits {
                connection_reserve_bytes: reserve,
                ..Limits::default()
            };
            let budget = ConnectionBudget::new(&limits, Arc::new(ServerBudget::new(&limits)));
            let next = |arrived: &u32| (*arrived < len).then(|| budget.payload_step(*arrived, len));
            std::iter::successors(Some(0), next)
                .skip(1)
                .collect::<Vec<_>>()
        };
        const KIB: u32 = 1 << 10;
        const MIB: u32 = 1 << 20;
        let reserve = 128 << 10;
        assert_eq!(steps(reserve, 4 * KIB), [4 * KIB]);
        assert_eq!(steps(reserve, 128 * KIB), [128 * KIB]);
        assert_eq!(steps(reserve, MIB), [128 * KIB, MIB]);
        let all = [128 * KIB, MIB, 8 * MIB, 32 * MIB];
        assert_eq!(steps(reserve, 32 * MIB), all);
        assert_eq!(steps(usize::MAX, 32 * MIB), all);
        assert_eq!(steps(0, 40 * KIB), [4 * KIB, 32 * KIB, 40 * KIB]);
    }

    #[test]
    fn limits_below_one_request_are_raised() {
        let limits = Limits {
            connection_bytes_max: 0,
            server_bytes_max: 0,
            connection_requests_max: 0,
            ..limits()
        };
        let budget = ConnectionBudget::new(&limits, Arc::new(ServerBudget::new(&limits)));
        let mut claim = budget.request().now_or_never().expect("a place");
        assert!(budget.add_bytes(&mut claim, 100).now_or_never().is_some());
    }
}
