//! Errors, one enum per family. Three answers to a mutation are kept apart everywhere: committed, refused (it had no effect
//! and will have none) and unknown (it may have an effect, now or later).

use std::time::Duration;

use mainstay_types::{Lineage, Lsn, NameError, SessionId};

use crate::OpId;

/// No node of the cluster was reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The configuration names no endpoint.
    #[error("no endpoint given")]
    NoEndpoint,
    /// An endpoint is not `host:port`.
    #[error("endpoint {endpoint:?} is not host:port")]
    BadEndpoint {
        /// As configured.
        endpoint: String,
    },
    /// None answered in time.
    #[error("none of {endpoints:?} answered within {waited:?}")]
    Unreachable {
        /// All that were asked.
        endpoints: Vec<String>,
        /// For how long.
        waited: Duration,
    },
}

impl ConnectError {
    /// Whether the same call may succeed later.
    ///
    /// # Example
    /// ```
    /// use mainstay_client::ConnectError;
    ///
    /// assert!(!ConnectError::NoEndpoint.is_retryable());
    /// ```
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// A reason that the cluster gives for not doing something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such volume, or it was deleted.
    #[error("no such volume")]
    NoSuchVolume,
    /// The volume has another history than the one that this handle or tail began in: a forced promotion gave up what it had not, or
    /// the volume was deleted and created anew. Positions, points and outcomes of the old history say nothing in the new one, so nothing
    /// of the handle goes on. Open a new handle, compare what you keep with what is there, and begin a tail at a position that you
    /// choose.
    #[error(
        "the volume's history was replaced by {lineage}: a forced promotion, or deleted and created anew; open a new handle, and \
         start a tail again from a position of your choice"
    )]
    HistoryReplaced {
        /// The history that the volume has now.
        lineage: Lineage,
    },
    /// A log volume was used as a block volume, or the reverse.
    #[error("the volume is of the other kind")]
    WrongKind,
    /// Another process goes on with this session.
    #[error("another stream of this session, of generation {current}, has the floor")]
    Fenced {
        /// The generation in force.
        current: u64,
    },
    /// Somebody else is attached, or has taken over.
    #[error("attached by {name:?} (session {session})")]
    AttachedElsewhere {
        /// The holder, as it named itself.
        name: String,
        /// The holder's session.
        session: SessionId,
    },
    /// The attachment of this handle is over: somebody took the volume over, or it was let go. Open the volume again.
    #[error("the attachment of this handle has ended")]
    AttachmentEnded,
    /// A block volume is written only by who is attached.
    #[error("not attached")]
    NotAttached,
    /// The handle was opened for reading.
    #[error("opened read-only")]
    ReadOnly,
    /// The range ends beyond the volume.
    #[error("beyond the end of the volume at {size_bytes} bytes")]
    OutOfRange {
        /// The volume's size.
        size_bytes: u64,
    },
    /// More payload than one request may carry.
    #[error("more than {bytes_max} bytes in one request")]
    TooLarge {
        /// The bound, inclusive.
        bytes_max: u64,
    },
    /// A writer with a newer token has taken the log over. This handle appends nothing more; what it sent before is settled as ever.
    #[error(
        "a writer with token {current} has taken the log over: those with an older token or none append nothing more"
    )]
    FencedToken {
        /// The newest token.
        current: u64,
    },
    /// The node that was asked does not know that so much is committed.
    #[error("behind: committed is known up to {commit} there")]
    Behind {
        /// What it knows.
        commit: Lsn,
    },
    /// The copy that was asked cannot tell a root or a proof of the log's Merkle tree: it has none, or still computes it.
    #[error("no tree: {message}")]
    TreeUnavailable {
        /// Why.
        message: String,
    },
    /// More records than one batch may hold: append them as several.
    #[error("more than {records_max} records in one batch")]
    TooManyRecords {
        /// The bound, inclusive.
        records_max: u32,
    },
    /// A batch without records: there is nothing to append, and nothing to name.
    #[error("a batch without records")]
    EmptyBatch,
    /// The members' disks are full.
    #[error("no space left")]
    NoSpace,
    /// The session has expired.
    #[error("the session has expired")]
    UnknownSession,
    /// The position was trimmed.
    #[error("trimmed; the first entry held is {first}")]
    Trimmed {
        /// First entry still held.
        first: Lsn,
    },
    /// Too much at once, here or at the primary.
    #[error("overloaded")]
    Overloaded,
    /// The conditional append did not meet its position.
    #[error("the record would get position {next}")]
    UnexpectedPosition {
        /// What it would have got.
        next: Lsn,
    },
    /// Refused once before, for a reason that is forgotten.
    #[error("refused before")]
    RefusedBefore,
    /// Settled, so long ago that its result is no longer kept. Never given for a mutation: see [`UnknownCause::Forgotten`].
    #[error("settled, but the result is no longer kept")]
    ResultForgotten,
    /// The data cannot be read where the primary is.
    #[error("unreadable on the primary")]
    Unreadable,
    /// The server does not offer it.
    #[error("not offered by this server")]
    Unsupported,
    /// The server calls the request senseless: client and server do not fit.
    #[error("bad request: {message}")]
    BadRequest {
        /// The server's words.
        message: String,
    },
    /// This process stood still, so that what the handle held may have been sent elsewhere since. The handle forwards nothing more.
    #[error("this process stood still for too long to go on with what it held")]
    StoodStill,
    /// No primary served the volume until a request of a forwarding handle was too old to be sent. The handle is over.
    #[error("no primary served the volume in time")]
    NotServed,
    /// The handle was closed.
    #[error("the handle is closed")]
    Closed,
}

impl Refusal {
    /// Whether the same request, made anew, may succeed without anything else being done.
    ///
    /// # Example
    /// ```
    /// use mainstay_client::Refusal;
    ///
    /// assert!(Refusal::Overloaded.is_retryable());
    /// assert!(!Refusal::NoSuchVolume.is_retryable());
    /// ```
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Overloaded | Self::Unreadable | Self::Behind { .. }
        )
    }
}

/// A volume was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The name cannot name a volume.
    #[error(transparent)]
    Name(NameError),
    /// The primary refused.
    #[error("{0}")]
    Refused(Refusal),
    /// No primary was found that serves.
    #[error("no primary serves the volume after {waited:?}: {last}")]
    NoPrimary {
        /// For how long it was looked for.
        waited: Duration,
        /// How the last try ended.
        last: String,
    },
}

impl OpenError {
    /// Whether the same call may succeed later without anything else being done.
    ///
    /// # Example
    /// ```
    /// use mainstay_client::{OpenError, Refusal};
    ///
    /// assert!(!OpenError::Refused(Refusal::WrongKind).is_retryable());
    /// ```
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Name(_) => false,
            Self::Refused(refusal) => refusal.is_retryable(),
            Self::NoPrimary { .. } => true,
        }
    }
}

/// Why nobody can say yet what became of a mutation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownCause {
    /// No answer in time. The request stays queued: `outcome` of the same handle waits for it.
    #[error("no answer within {waited:?}")]
    Deadline {
        /// The deadline.
        waited: Duration,
    },
    /// It was settled, and the cluster does not remember how: it was committed, or refused, as a conditional append may be. What the volume
    /// holds tells.
    #[error("settled, committed or refused, but the result is no longer kept")]
    Forgotten,
    /// The session ended while the request was on its way.
    #[error("session ended: {0}")]
    SessionEnded(Refusal),
    /// The handle was closed, or its runtime stopped.
    #[error("handle closed")]
    Closed,
}

macro_rules! mutation_error {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        pub enum $name {
            /// It had no effect and will have none.
            #[error("{0}")]
            Refused(Refusal),
            /// It may have taken effect, or still take it. `outcome(op)` settles it.
            #[error("outcome of {op} unknown: {cause}")]
            Unknown {
                /// Names the mutation.
                op: OpId,
                /// Why nobody knows.
                cause: UnknownCause,
            },
            /// There was no room for it in flight until the deadline: it was never sent.
            #[error("no room in flight within {waited:?}")]
            NoRoom {
                /// The deadline.
                waited: Duration,
            },
        }

        impl $name {
            /// Whether making the request anew is safe and may succeed. Never so for `Unknown`: settle it first.
            ///
            /// # Example
            /// ```
            #[doc = concat!("use mainstay_client::{", stringify!($name), ", Refusal};")]
            ///
            #[doc = concat!("assert!(", stringify!($name), "::NoRoom { waited: std::time::Duration::ZERO }.is_retryable());")]
            #[doc = concat!("assert!(!", stringify!($name), "::Refused(Refusal::NoSuchVolume).is_retryable());")]
            /// ```
            #[must_use]
            pub fn is_retryable(&self) -> bool {
                match self {
                    Self::Refused(refusal) => refusal.is_retryable(),
                    Self::Unknown { .. } => false,
                    Self::NoRoom { .. } => true,
                }
            }

            /// The mutation whose outcome is unknown.
            ///
            /// # Example
            /// ```
            #[doc = concat!("use mainstay_client::{", stringify!($name), ", Refusal};")]
            ///
            #[doc = concat!("let error = ", stringify!($name), "::Refused(Refusal::NoSpace);")]
            /// assert_eq!(error.unknown_op(), None); // known: it had no effect
            /// ```
            #[must_use]
            pub fn unknown_op(&self) -> Option<OpId> {
                match self {
                    Self::Unknown { op, .. } => Some(*op),
                    Self::Refused(_) | Self::NoRoom { .. } => None,
                }
            }
        }
    };
}

mutation_error! {
    /// An append, or a trim of a log, was not acknowledged.
    AppendError
}
mutation_error! {
    /// A change of a block volume was not acknowledged.
    WriteError
}

/// A read, or another request without effect, was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Refused.
    #[error("{0}")]
    Refused(Refusal),
    /// No answer in time.
    #[error("no answer within {waited:?}")]
    Deadline {
        /// The deadline.
        waited: Duration,
    },
    /// The primary's answer does not fit the question.
    #[error("the server's answer does not fit the question")]
    Misfit,
}

impl ReadError {
    /// Whether the same read may succeed later. Reads have no effect, so repeating one is always safe.
    ///
    /// # Example
    /// ```
    /// use mainstay_client::{ReadError, Refusal};
    ///
    /// assert!(!ReadError::Refused(Refusal::NoSuchVolume).is_retryable());
    /// ```
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.is_retryable(),
            Self::Deadline { .. } => true,
            Self::Misfit => false,
        }
    }
}

/// The outcome of a mutation could not be settled.
#[derive(Debug, thiserror::Error)]
pub enum OutcomeError {
    /// The operation is of another session than the handle.
    #[error("operation {op} is not of this handle's session")]
    OtherSession {
        /// What was asked.
        op: OpId,
    },
    /// The cluster refused to say.
    #[error("{0}")]
    Refused(Refusal),
    /// The volume cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Not settled in time.
    #[error("not settled within {waited:?}")]
    Deadline {
        /// The deadline.
        waited: Duration,
    },
}

impl OutcomeError {
    /// Whether asking again may settle it.
    ///
    /// # Example
    /// ```
    /// use mainstay_client::{OutcomeError, Refusal};
    ///
    /// assert!(!OutcomeError::Refused(Refusal::UnknownSession).is_retryable());
    /// ```
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::OtherSession { .. } => false,
            Self::Refused(refusal) => refusal.is_retryable(),
            Self::Open(error) => error.is_retryable(),
            Self::Deadline { .. } => true,
        }
    }
}

/// An operator's request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No such volume.
    #[error("{message}")]
    NotFound {
        /// The server's words.
        message: String,
    },
    /// A volume of that name and another specification exists.
    #[error("{message}")]
    Exists {
        /// The server's words.
        message: String,
    },
    /// The request makes no sense, or cannot be carried out in the present state.
    #[error("{message}")]
    Invalid {
        /// The server's words.
        message: String,
    },
    /// No node could carry it out until the deadline.
    #[error("{message}")]
    Unavailable {
        /// How the last try ended.
        message: String,
    },
    /// The answer was lost: it may have been carried out.
    #[error("outcome unknown: {message}")]
    Unknown {
        /// How the answer was lost.
        message: String,
    },
    /// A promotion was refused.
    #[error("{0}")]
    PromoteRefused(Box<crate::report::PromoteRefused>),
}

impl AdminError {
    /// Whether the same request may succeed later and is safe to make again.
    ///
    /// # Example
    /// ```
    /// use mainstay_client::AdminError;
    ///
    /// let message = "no node answered".to_owned();
    /// assert!(AdminError::Unavailable { message: message.clone() }.is_retryable());
    /// assert!(!AdminError::Unknown { message }.is_retryable());
    /// ```
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
