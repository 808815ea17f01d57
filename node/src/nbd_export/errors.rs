//! What a volume's errors are to an NBD client, and who else hears of them.

use std::sync::Arc;

use mainstay_client::{ReadError, Refusal, UnknownCause, WriteError};
use mainstay_nbd::BlockError;

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
    pub(super) fn overdue(&self) -> BlockError {
        self.overdue.add(&self.volume);
        BlockError::Io
    }

    pub(super) fn write(&self, error: &WriteError) -> BlockError {
        match error {
            WriteError::Refused(refusal) => refused(refusal),
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

    pub(super) fn read(&self, error: &ReadError) -> BlockError {
        match error {
            ReadError::Refused(refusal) => refused(refusal),
            ReadError::Deadline { .. } => self.overdue(),
            ReadError::Misfit => {
                tracing::warn!(%error, "an NBD request ends in EIO");
                BlockError::Io
            }
        }
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
