//! Runs one volume: the replication core over the store, with no socket, no clock and no runtime.
//!
//! [`Volume`] is a state machine like the core it contains: `handle` one event, drain the actions, call again at the
//! deadline. The driver carries out the actions: writes to the log in order, applies to the image, messages, replies.
//! The node and the simulator are two drivers of this same code; what is decided is decided here or in the core.
//!
//! Rules that hold across it:
//! * A client's write is answered when its entry is committed, and only then.
//! * The state (session table, image) is a function of the committed prefix of the log alone.
//! * Of an atomic batch, all is visible or nothing (`batch.rs`).
//! * A checkpoint never passes the commit point, nor the durable end of this copy's own log.

#![forbid(unsafe_code)]

mod attach;
mod batch;
mod clients;
pub mod disk_reads;
mod event;
mod gather;
mod memory;
mod mutations;
mod pages;
mod reads;
mod retention;
mod sessions;
pub mod store;
mod tail;
mod tokens;
pub mod tree;
mod trims;
mod volume;

pub use attach::{ATTACHMENT_NAME_BYTES_MAX, check_opening};
pub use batch::{BATCH_RECORDS_MAX, FLAG_MORE, Voids};
pub use event::{
    Action, Attachment, ClientOp, ConnId, Event, Now, OpResult, Outcome, Refusal, Token, WalJob,
    WalWrite,
};
pub use memory::WriteGate;
pub use pages::{Direction, Page, PageLimits, Stretch};
pub use retention::{Retention, RetentionChange};
pub use sessions::{BlobError, RESULTS_KEPT, Sessions};
pub use volume::{Volume, VolumeConfig, VolumeStart};

#[cfg(test)]
mod tests;
