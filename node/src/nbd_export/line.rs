//! The line of one connection's changes.
//!
//! The order of changes is the order of the calls. A change for which the client library has room is put in line by the call
//! itself. When there is no room, it goes to a queue, and so does every change after it until the queue is empty; a task
//! puts them in line as room comes. What waits there is bounded by the connection's own limits.
//!
//! A change has its age from the call on (H11): what waited in the queue for longer than the park timeout is refused, and was never
//! sent. When the peer is gone, nothing more is put in line.
//!
//! A change larger than one request goes in pieces, made one after the other: a zeroing of terabytes holds no more memory
//! than one of a gigabyte.

use std::collections::VecDeque;
use std::iter::Peekable;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mainstay_client::{Committed, Refusal, WriteError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::change::{Change, Pieces};
use super::errors::Failure;

/// Pieces of trims and zeroings that take several, between being put in line and their commit: of one connection.
const PIECES_IN_LINE_MAX: usize = 64;

/// Where changes are put in line.
pub(super) trait Target: Send + Sync + 'static {
    /// A change in line.
    type Pending: Future<Output = Result<Committed, WriteError>> + Send + Unpin + 'static;

    /// Puts a change in line. One that finds no room is refused as overloaded.
    fn put(&self, change: &Change) -> Result<Self::Pending, WriteError>;

    /// Waits for room for so many bytes.
    fn ready(&self, payload_bytes: usize) -> impl Future<Output = ()> + Send;
}

/// One piece between being put in line and its commit.
#[derive(Debug)]
struct InLine<Pending> {
    pending: Pending,
    _place: Option<OwnedSemaphorePermit>,
}

type Sent<T> = VecDeque<InLine<<T as Target>::Pending>>;

/// A change whose room is not there yet.
struct Waiting<T: Target> {
    pieces: Peekable<Pieces>,
    is_long_range: bool,
    /// When it came.
    since: Instant,
    /// What is in line of it.
    sent: Sent<T>,
    /// Gets what is in line when there is no more to put there, and why there is none if something is missing.
    in_line: oneshot::Sender<(Sent<T>, Result<(), Failure>)>,
}

/// Puts changes in line in the order of the calls. Each change is to be polled on until it has ended: it may have what later ones wait
/// for.
pub(super) struct Line<T: Target> {
    places: Arc<Places<T>>,
    queue: mpsc::UnboundedSender<Waiting<T>>,
    payload_bytes_max: u32,
    /// Changes handed to the queue and not in line yet. While there is one, every later change has to follow it; the lock is
    /// held while a change is put in line or queued, so that both orders are one.
    queued: Arc<Mutex<usize>>,
    /// Whether the peer is gone.
    gone: watch::Sender<bool>,
}

impl<T: Target> std::fmt::Debug for Line<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line")
            .field("queued", &self.queued)
            .field("gone", &self.gone)
            .finish_non_exhaustive()
    }
}

impl<T: Target> Line<T> {
    /// A line, and what has to run for it. That ends when the line is dropped and what was queued is in line or refused.
    pub(super) fn new(
        target: T,
        payload_bytes_max: u32,
        park_timeout: Duration,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, waiting) = mpsc::unbounded_channel();
        let queued = Arc::new(Mutex::new(0));
        let places = Arc::new(Places {
            target,
            park_timeout,
            pieces: Arc::new(Semaphore::new(PIECES_IN_LINE_MAX)),
            pieces_done: AtomicU64::new(0),
        });
        let (gone, abandoned) = watch::channel(false);
        let runner = run(Arc::clone(&places), waiting, Arc::clone(&queued), abandoned);
        let line = Self {
            places,
            queue,
            payload_bytes_max,
            queued,
            gone,
        };
        (line, runner)
    }

    /// Puts a change in line, now or when there is room. The answer comes when nothing of it is on its way any more.
    pub(super) fn change(
        &self,
        change: Change,
    ) -> impl Future<Output = Result<(), Failure>> + Send + 'static {
        let since = Instant::now();
        let is_long_range = change.is_long_range();
        let mut pieces = change.pieces(self.payload_bytes_max).peekable();
        let mut sent = VecDeque::new();
        let mut queued = self.queued.lock().unwrap_or_else(PoisonError::into_inner);
        if *queued == 0 {
            // Those that find room are in line; the first that does not takes the rest along into the queue.
            while let Some(piece) = pieces.peek()
                && let Some(in_line) = self.places.try_put(piece, is_long_range)
            {
                sent.push_back(in_line);
                pieces.next();
            }
        }
        let rest = if pieces.peek().is_none() {
            Err(sent)
        } else {
            let (in_line, later) = oneshot::channel();
            *queued += 1;
            // The task lives as long as this line.
            let _sent = self.queue.send(Waiting {
                pieces,
                is_long_range,
                since,
                sent,
                in_line,
            });
            Ok(later)
        };
        drop(queued);
        let places = Arc::clone(&self.places);
        async move {
            let (sent, put) = match rest {
                Err(sent) => (sent, Ok(())),
                Ok(later) => later
                    .await
                    .unwrap_or_else(|_| (VecDeque::new(), Err(Failure::Gone))),
            };
            places.all_committed(sent).await.and(put)
        }
    }

    /// The peer is gone: what is not in line yet never will be.
    pub(super) fn abandon(&self) {
        self.gone.send_replace(true);
    }

    /// Pieces that were committed so far.
    pub(super) fn pieces_done(&self) -> u64 {
        self.places.pieces_done.load(Ordering::Relaxed)
    }
}

/// Puts queued changes in line as room comes.
async fn run<T: Target>(
    places: Arc<Places<T>>,
    mut waiting: mpsc::UnboundedReceiver<Waiting<T>>,
    queued: Arc<Mutex<usize>>,
    mut abandoned: watch::Receiver<bool>,
) {
    while let Some(change) = waiting.recv().await {
        let Waiting {
            pieces,
            is_long_range,
            since,
            mut sent,
            mut in_line,
        } = change;
        let put = tokio::select! {
            biased;
            // Also when the line is dropped.
            _ = abandoned.wait_for(|gone| *gone) => Err(Failure::Gone),
            () = in_line.closed() => Err(Failure::Gone),
            put = places.put_all(pieces, is_long_range, since, &mut sent) => put,
        };
        let _nobody_waits = in_line.send((sent, put));
        *queued.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}

/// The places in the line.
struct Places<T> {
    target: T,
    park_timeout: Duration,
    /// Of long ranges.
    pieces: Arc<Semaphore>,
    pieces_done: AtomicU64,
}

impl<T: Target> Places<T> {
    /// Puts a piece in line if there is room right now. Those that are refused otherwise are put again, which then tells why.
    fn try_put(&self, piece: &Change, is_long_range: bool) -> Option<InLine<T::Pending>> {
        let place = match is_long_range {
            true => Some(Arc::clone(&self.pieces).try_acquire_owned().ok()?),
            false => None,
        };
        let pending = self.target.put(piece).ok()?;
        Some(InLine {
            pending,
            _place: place,
        })
    }

    /// Puts all pieces in line, and into `sent` those whose commit is still to be waited for, which are few. When this is dropped,
    /// what is in line is in `sent`.
    async fn put_all(
        &self,
        pieces: Peekable<Pieces>,
        is_long_range: bool,
        since: Instant,
        sent: &mut Sent<T>,
    ) -> Result<(), Failure> {
        // Of a long range that has begun, each piece has the time to itself.
        let mut has_begun = is_long_range && !sent.is_empty();
        for piece in pieces {
            let place = match is_long_range {
                true => Some(self.place(sent).await?),
                false => None,
            };
            let since = if has_begun { Instant::now() } else { since };
            let pending = self.put_one(&piece, since + self.park_timeout).await?;
            sent.push_back(InLine {
                pending,
                _place: place,
            });
            has_begun = is_long_range;
        }
        Ok(())
    }

    /// A place for a piece, which earlier ones of `sent` may have to give back first.
    async fn place(&self, sent: &mut Sent<T>) -> Result<OwnedSemaphorePermit, Failure> {
        loop {
            let pieces = Arc::clone(&self.pieces);
            if let Ok(place) = Arc::clone(&pieces).try_acquire_owned() {
                return Ok(place);
            }
            let Some(oldest) = sent.front_mut() else {
                // No semaphore of a line is ever closed.
                return pieces.acquire_owned().await.map_err(|_| Failure::Gone);
            };
            let ended = self.committed(&mut oldest.pending).await;
            sent.pop_front();
            ended?;
        }
    }

    async fn put_one(&self, piece: &Change, deadline: Instant) -> Result<T::Pending, Failure> {
        while Instant::now() < deadline {
            match self.target.put(piece) {
                Ok(pending) => return Ok(pending),
                Err(WriteError::Refused(Refusal::Overloaded)) => {
                    let _late =
                        timeout_at(deadline, self.target.ready(piece.payload_bytes())).await;
                }
                Err(error) => return Err(Failure::Ended(error)),
            }
        }
        Err(Failure::NoRoom)
    }

    async fn committed(&self, pending: &mut T::Pending) -> Result<(), Failure> {
        pending.await.map_err(Failure::Ended)?;
        self.pieces_done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Waits for all of them, also when one fails: nobody is told of an end while there is more on its way.
    async fn all_committed(&self, sent: Sent<T>) -> Result<(), Failure> {
        let mut all = Ok(());
        for mut piece in sent {
            all = all.and(self.committed(&mut piece.pending).await);
        }
        all
    }
}

#[cfg(test)]
mod tests;
