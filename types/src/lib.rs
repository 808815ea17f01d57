//! Ids, positions and time shared by everyone: `Epoch`, `Lsn`, `NodeId`, `MonoTime`.
//!
//! Nothing here decides anything. A type belongs here when at least two crates that do not know
//! each other must mean the same thing by it; everything else stays where it is used.

#![forbid(unsafe_code)]

mod ids;
pub mod merkle;
mod position;
mod register;
mod time;
mod volume;
mod zone;

pub use ids::{
    ClusterId, Incarnation, Instance, Lineage, NodeId, ParseIdError, RegisterId, SessionId,
    VolumeId,
};
pub use position::{Epoch, LogPoint, Lsn};
pub use register::{Member, MemberKind, PrimaryId, Register};
pub use time::MonoTime;
pub use volume::{AckRule, BLOCK_BYTES, NameError, Policy, VolumeKind, VolumeName, VolumeSpec};
pub use zone::{Zone, ZoneError};
