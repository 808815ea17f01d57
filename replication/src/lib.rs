//! Decides: who is primary, what is committed, what may be acknowledged. No I/O, no clock.
//!
//! Three state machines, all driven the same way: `handle` one event with the time it happened, drain the outputs,
//! call again at the deadline.
//!
//! * [`Member`]: one copy of one volume on a data node.
//! * [`Beats`]: a data node's leases, from its heartbeats to the witnesses.
//! * [`Witness`]: registers, grants, fences, and the promotions that it drives.
//!
//! The rules R1 to R7 named in comments are those of `docs/protocol.md`; so are the traps C1 to C7, H1 to H12 and M1
//! to M9.

#![forbid(unsafe_code)]

mod beats;
mod config;
mod fate;
mod handover;
mod health;
mod journal;
mod member;
pub mod message;
mod mistakes;
mod primary;
mod progress;
pub mod quorum;
mod readiness;
mod reads;
mod reconfig;
mod register;
mod replica;
mod rng;
mod runs;
mod seal;
mod witness;
mod witness_set;

pub use beats::{BeatOutput, Beats};
pub use config::{HoldDownConfig, LeaseConfig, MemberConfig};
pub use fate::{CopyFate, CopyNames, fate_of_copy};
pub use journal::{Durable, OpId};
pub use member::{Input, LogWrite, Member, MemberStart, Output, Role};
pub use mistakes::{Mistake, Mistakes};
pub use primary::{AppendPlan, PeerStatus};
pub use register::{Round, Value};
pub use rng::Rng;
pub use runs::EpochRuns;
pub use witness::{
    Certificate, ChangeRefused, ChangeRequest, ExternalFence, ExternalFenceResult, ForceRefused,
    ForceRequest, ForceResult, Loss, SetState, Witness, WitnessEvent, WitnessInput, WitnessOutput,
    WitnessRecord, WitnessStart,
};
pub use witness_set::{SetTag, Voter, WitnessSet};
