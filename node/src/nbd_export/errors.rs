//! What a volume's errors are to an NBD client, and who else hears of them.

use std::sync::Arc;
use std::time::Duration;

use mainstay_client::{ReadError, Refusal, UnknownCause, WriteError};
use mainstay_nbd::{BlockError, Ended};
use tokio::time::Instant;

use super::overdue::OverdueCount;

/// Translates the errors of one volume.
#[derive(Debug, Clone)]
pub(super) struct Errors {
    volume: Arc<str>,
    overdue: Arc<OverdueCount>,
    /// How long a request waits for a primary.
    park_timeout: Duration,
}

/// Translates those of one request.
#[derive(Debug, Clone)]
pub(super) struct RequestErrors {
    of: Errors,
    since: Instant,
}

impl Errors {
    pub(super) fn new(volume: &str, overdue: &Arc<OverdueCount>, park_timeout: Duration) -> Self {
        Self {
            volume: volume.into(),
            overdue: Arc::clone(overdue),
            park_timeout,
        }
    }

    /// For a request that came just now.
    pub(super) fn of_request(&self) -> RequestErrors {
        RequestErrors {
            of: self.clone(),
            since: Instant::now(),
        }
    }
}

impl RequestErrors {
    /// Nobody served the volume in time.
    fn overdue(&self) -> BlockError {
        self.of.overdue.add(&self.of.volume);
        BlockError::Io
    }

    /// What became of a change; never resolves where the client is told nothing.
    pub(super) async fn failed(&self, failure: Failure) -> BlockError {
        match failure {
            Failure::NoRoom => self.overdue(),
            Failure::Ended(error) => self.write(&error).await,
            Failure::Gone => BlockError::ShuttingDown,
        }
    }

    async fn write(&self, error: &WriteError) -> BlockError {
        match error {
            WriteError::Refused(refusal)
            | WriteError::Unknown {
                cause:
                    UnknownCause::SessionEnded(
                        refusal @ (Refusal::StoodStill
                        | Refusal::NotServed
                        | Refusal::HistoryReplaced { .. }),
                    ),
                ..
            } => self.refused(refusal).await,
            WriteError::Unknown {
                cause: UnknownCause::Deadline { .. },
                ..
            }
            | WriteError::NoRoom { .. } => self.overdue(),
            // The peer has gone, and nobody hears this.
            WriteError::Unknown {
                cause: UnknownCause::SessionEnded(Refusal::Closed),
                ..
            } => BlockError::ShuttingDown,
            WriteError::Unknown { .. } => {
                tracing::warn!(%error, "an NBD write ends in EIO");
                BlockError::Io
            }
        }
    }

    /// What became of a question; never resolves where the client is told nothing.
    pub(super) async fn read(&self, error: &ReadError) -> BlockError {
        match error {
            ReadError::Refused(refusal) => self.refused(refusal).await,
            ReadError::Deadline { .. } => self.overdue(),
            ReadError::Misfit => {
                tracing::warn!(%error, "an NBD request ends in EIO");
                BlockError::Io
            }
        }
    }

    async fn refused(&self, refusal: &Refusal) -> BlockError {
        match refusal {
            // The connection is cut without an answer: see `ended`.
            Refusal::StoodStill => std::future::pending().await,
            // Another request waited for so long that all of the session ended. This one has not, and may be sent again.
            Refusal::NotServed if self.since.elapsed() < self.of.park_timeout => {
                std::future::pending().await
            }
            Refusal::NotServed => self.overdue(),
            other => refused(other),
        }
    }
}

/// Why a change was not made, or nobody knows whether it was.
#[derive(Debug)]
pub(super) enum Failure {
    /// It found no place in line in time.
    NoRoom,
    /// It was in line.
    Ended(WriteError),
    /// The device went away first.
    Gone,
}

/// How long the answers to those that waited too long may take to leave.
const LAST_REPLIES: Duration = Duration::from_millis(500);

/// Resolves when an NBD connection is to end because its session ended for `refusal`; never, if it goes on, and every request is told why.
pub(super) async fn ended(refusal: &Refusal) -> Ended {
    match refusal {
        // What its client sent may have been sent to another node since. An error would be taken for a broken disk.
        Refusal::StoodStill => {}
        // What waited too long got `EIO`. With the rest the client can go on, on a new connection, when there is a primary again.
        Refusal::NotServed => tokio::time::sleep(LAST_REPLIES).await,
        // The client may be sure of nothing that it knows of the volume. Every request is answered with an error, and only a connection
        // that knows nothing yet gets the volume as it is now.
        Refusal::HistoryReplaced { .. } => return Ended::Finished,
        _ => std::future::pending().await,
    }
    Ended::Cut
}

fn refused(refusal: &Refusal) -> BlockError {
    match refusal {
        Refusal::NoSpace => BlockError::NoSpace,
        // Somebody took the volume over, or it was deleted: nothing that this client sends matters any more.
        Refusal::Fenced { .. }
        | Refusal::AttachedElsewhere { .. }
        | Refusal::AttachmentEnded
        | Refusal::NotAttached
        | Refusal::ReadOnly
        | Refusal::UnknownSession => BlockError::NotPermitted,
        Refusal::OutOfRange { .. } | Refusal::BadRequest { .. } => BlockError::Invalid,
        Refusal::TooLarge { .. } => BlockError::TooLarge,
        Refusal::Unsupported => BlockError::NotSupported,
        Refusal::Closed | Refusal::HistoryReplaced { .. } => BlockError::ShuttingDown,
        other => {
            tracing::warn!(refusal = %other, "an NBD request ends in EIO");
            BlockError::Io
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_the_error_that_an_nbd_client_understands() {
        assert_eq!(refused(&Refusal::NoSpace), BlockError::NoSpace);
        assert_eq!(refused(&Refusal::NotAttached), BlockError::NotPermitted);
        let beyond = Refusal::OutOfRange { size_bytes: 1 };
        assert_eq!(refused(&beyond), BlockError::Invalid);
        assert_eq!(refused(&Refusal::Unreadable), BlockError::Io);
    }

    /// The volume was deleted and created anew, with a write of its client on the way: that is told an error, and the connection ends.
    #[tokio::test]
    async fn a_replaced_history_ends_the_connection_with_answers() {
        let lineage = mainstay_types::Lineage(7);
        let refusal = Refusal::HistoryReplaced { lineage };
        let overdue = OverdueCount::new(Duration::from_secs(60), Arc::new(|_| {}));
        let errors = Errors::new("disk", &overdue, Duration::from_secs(60)).of_request();
        let op = mainstay_client::OpId {
            session: mainstay_types::SessionId(1),
            seq: 1,
        };
        let cause = UnknownCause::SessionEnded(refusal.clone());
        let sent = WriteError::Unknown { op, cause };
        assert_eq!(errors.write(&sent).await, BlockError::ShuttingDown);
        let unsent = WriteError::Refused(refusal.clone());
        assert_eq!(errors.write(&unsent).await, BlockError::ShuttingDown);
        assert_eq!(ended(&refusal).await, Ended::Finished);
    }

    /// A session ends with the first request that waited too long. Those behind it have not.
    #[tokio::test(start_paused = true)]
    async fn only_what_waited_for_so_long_ends_in_an_error() {
        let patience = Duration::from_secs(60);
        let overdue = OverdueCount::new(patience, Arc::new(|_| {}));
        let errors = Errors::new("disk", &overdue, patience);
        let early = errors.of_request();
        tokio::time::sleep(Duration::from_secs(59)).await;
        let late = errors.of_request();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let over = ReadError::Refused(Refusal::NotServed);
        assert_eq!(early.read(&over).await, BlockError::Io);
        let told = tokio::time::timeout(Duration::from_secs(9), late.read(&over)).await;
        assert!(told.is_err(), "cut without an answer: {told:?}");
        assert_eq!(ended(&Refusal::NotServed).await, Ended::Cut);
    }
}
