//! What a volume's errors are to an NBD client, and who else hears of them.

use std::sync::Arc;

use mainstay_client::{ReadError, Refusal, UnknownCause, WriteError};
use mainstay_nbd::{BlockError, Ended};

use super::overdue::OverdueCount;

/// Translates the errors of one volume.
#[derive(Debug, Clone)]
pub(super) struct Errors {
    volume: Arc<str>,
    overdue: Arc<OverdueCount>,
}

impl Errors {
    pub(super) fn new(volume: &str, overdue: &Arc<OverdueCount>) -> Self {
        Self {
            volume: volume.into(),
            overdue: Arc::clone(overdue),
        }
    }

    /// Nobody served the volume in time.
    fn overdue(&self) -> BlockError {
        self.overdue.add(&self.volume);
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
                    UnknownCause::SessionEnded(refusal @ (Refusal::StoodStill | Refusal::NotServed)),
                ..
            } => self.refused(refusal).await,
            WriteError::Unknown {
                cause: UnknownCause::Deadline { .. },
                ..
            }
            | WriteError::NoRoom { .. } => self.overdue(),
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

/// How an NBD connection ends whose session ended for `refusal`; `None`: it goes on, and every request is told why.
pub(super) fn ended(refusal: &Refusal) -> Option<Ended> {
    match refusal {
        // What its client sent may have been sent to another node since. An error would be taken for a broken disk.
        Refusal::StoodStill => Some(Ended::Cut),
        // Its requests got `EIO`. On a new connection the client can go on when there is a primary again.
        Refusal::NotServed => Some(Ended::Finished),
        _ => None,
    }
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
        Refusal::Closed => BlockError::ShuttingDown,
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
}
