//! What must always hold, checked after every event against a model that sees every process at once.
//!
//! | # | property | file | rules of the protocol |
//! | --- | --- | --- | --- |
//! | 1 | durability: what is committed is on a quorum, and in every later primary's log | `durability.rs` | R4, R6.4, R6.5 |
//! | 2 | one history: no two members hold different entries committed at one LSN | `history.rs` | R3.2, R4 |
//! | 3 | one primary an epoch; register values form one chain | `register.rs` | R2, R5, R6.7 |
//! | 4 | fencing: nothing of an older epoch newly commits behind the cut of a newer one | `fencing.rs` | R6.3, R6.5 |
//! | 5 | linearizable: each operation at one point between its call and its answer, once | `linearizable.rs` | R7.4, R9 |
//! | 6 | no phantom: what is read is committed, and was written by somebody | `phantom.rs` | R4, R9.1 |
//! | 7 | monotonic: seal, commit point, register version never fall | `monotonic.rs` | R1, M8 |
//! | 8 | damage is not absence: what was durable is held, or reported lost | `damage.rs` | R6.3, C5, H12 |
//! | 9 | liveness: once faults stop, writes resume and all copies become equal | `liveness.rs` | R6.1, H4 |
//! | 10 | attachments: nothing of a session commits once its attachment is over | `attachments.rs` | R9.3 |
//! | 11 | batches: all or none, side by side, never shown in part | `batches.rs` | R9.4 |
//! | 12 | tokens: no record of an older writer commits behind a newer one's token | `tokens.rs` | R9.5 |
//! | 13 | trims: nothing is shown below the trim point, nothing given back that a registered copy never held | `trims.rs` | R9.7, H5 |
//!
//! An entry is known by its position, its epoch and its header CRC; that CRC covers the CRC of the entry before it,
//! so that equal entries at one LSN mean equal logs up to there.

mod attachments;
mod batches;
mod copy;
pub mod damage;
mod durability;
mod fencing;
mod history;
pub mod linearizable;
pub mod liveness;
pub mod monotonic;
mod phantom;
mod register;
mod tokens;
mod trims;

use std::collections::BTreeMap;
use std::fmt;

use mainstay_replication::Member;
use mainstay_storage::EntryKind;
use mainstay_storage::format::EntryRef;
use mainstay_types::{Epoch, Incarnation, LogPoint, Lsn, NodeId, SessionId, VolumeKind};

pub use copy::{Copy, CopyLog};
pub use linearizable::{Called, LogRead, Ops};
pub use register::Chain;

/// Which property.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Property {
    /// 1
    Durability,
    /// 2
    OneHistory,
    /// 3
    OnePrimary,
    /// 4
    Fencing,
    /// 5
    Linearizable,
    /// 6
    NoPhantom,
    /// 7
    Monotonic,
    /// 8
    DamageIsNotAbsence,
    /// 9
    Liveness,
    /// 10
    Attachments,
    /// 11
    Batches,
    /// 12
    Tokens,
    /// 13
    Trims,
    /// An assertion of the code under test, or a state that it says cannot be.
    Assertion,
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Durability => "1 durability",
            Self::OneHistory => "2 one history",
            Self::OnePrimary => "3 one primary an epoch, one register chain",
            Self::Fencing => "4 fencing",
            Self::Linearizable => "5 linearizability",
            Self::NoPhantom => "6 no phantom",
            Self::Monotonic => "7 monotonic",
            Self::DamageIsNotAbsence => "8 damage is not absence",
            Self::Liveness => "9 liveness",
            Self::Attachments => "10 attachments",
            Self::Batches => "11 batches",
            Self::Tokens => "12 tokens",
            Self::Trims => "13 trims",
            Self::Assertion => "assertion in the code under test",
        })
    }
}

/// A property that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub property: Property,
    /// What was seen.
    pub text: String,
}

/// The outcome of a check.
pub type Check = Result<(), Violation>;

/// A failed check.
pub(crate) fn broken<T>(property: Property, text: String) -> Result<T, Violation> {
    Err(Violation { property, text })
}

/// What is remembered of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryInfo {
    /// Its name.
    pub point: LogPoint,
    /// Its fingerprint in the chain.
    pub crc: u32,
    /// Its kind.
    pub kind: EntryKind,
    /// Of its kind.
    pub flags: u8,
    /// Whose it is.
    pub session: SessionId,
    /// Of the connection.
    pub generation: u32,
    /// Of the session.
    pub seq: u64,
    /// Offset or timestamp.
    pub arg: u64,
    /// Bytes of payload.
    pub len: u32,
    /// First eight bytes of the payload.
    pub tag: u64,
}

impl EntryInfo {
    /// Of an entry read or written somewhere.
    #[must_use]
    pub fn of(entry: &EntryRef) -> Self {
        let header = &entry.header;
        let payload = entry.payload();
        let tag = payload
            .get(..8)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_le_bytes);
        Self {
            point: header.point,
            crc: header.header_crc,
            kind: header.kind,
            flags: header.flags,
            session: header.session,
            generation: header.generation,
            seq: header.seq,
            arg: header.arg,
            len: header.payload_len,
            tag,
        }
    }

    /// The same entry of the same history.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        (self.point, self.crc) == (other.point, other.crc)
    }
}

/// A copy by name.
pub type CopyKey = (NodeId, Incarnation);

/// All that is known of one volume, by somebody who sees every process at once.
#[derive(Debug)]
pub struct Oracle {
    /// What was committed, from LSN 1, and the epoch whose primary committed it first.
    pub canon: Vec<(EntryInfo, Epoch)>,
    /// Every copy there ever was.
    pub copies: BTreeMap<CopyKey, Copy>,
    /// Decided register values.
    pub chain: Chain,
    /// What clients did.
    pub ops: Ops,
    pub(crate) starts: fencing::Starts,
}

impl Oracle {
    /// Nothing has happened.
    #[must_use]
    pub fn new(kind: VolumeKind) -> Self {
        Self {
            canon: Vec::new(),
            copies: BTreeMap::new(),
            chain: Chain::new(),
            ops: Ops::new(kind),
            starts: fencing::Starts::default(),
        }
    }

    /// The entry committed at `lsn`.
    #[must_use]
    pub fn committed(&self, lsn: Lsn) -> Option<&EntryInfo> {
        let at = usize::try_from(lsn.0.checked_sub(1)?).ok()?;
        self.canon.get(at).map(|(info, _)| info)
    }

    /// Last LSN committed by anybody.
    #[must_use]
    pub fn last_committed(&self) -> Lsn {
        Lsn(self.canon.len() as u64)
    }

    /// After every event of a copy's process.
    ///
    /// # Errors
    /// What does not hold.
    pub fn after_event(&mut self, key: CopyKey, member: &Member) -> Check {
        self.check_monotonic(key, member)?;
        self.check_start(key, member)?;
        self.check_commits(key, member)?;
        if let (Some(copy), Some(epoch)) = (self.copies.get_mut(&key), member.acting_epoch()) {
            copy.acted = Some(epoch);
        }
        Ok(())
    }
}

/// An entry for tests of properties.
#[cfg(test)]
fn entry(lsn: u64, kind: EntryKind, session: u64) -> EntryInfo {
    EntryInfo {
        point: LogPoint {
            epoch: Epoch(1),
            lsn: Lsn(lsn),
        },
        crc: 0,
        kind,
        flags: 0,
        session: SessionId(session),
        generation: 1,
        seq: 1,
        arg: 0,
        len: 0,
        tag: 0,
    }
}
