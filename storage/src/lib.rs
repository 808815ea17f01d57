//! Makes bytes durable: record format, segments, recovery, the I/O engines.
//!
//! How the parts fit. [`mod@format`] lays out bytes and touches no file. [`engine`] moves aligned buffers to and from
//! files behind one contract with three homes: io_uring, plain system calls, and a simulated disk. [`wal`] appends
//! frames of entries to segments and reads them back; [`recovery`] turns what is found on disk into a trusted log end.
//! [`image`] keeps a block volume's content behind the log, [`checkpoint`] says how far it got. [`meta`] holds a
//! member's few durable facts. [`mod@tree`] keeps the hashes that a log's proofs are made of. [`identity`] guards a node's data directory.
//!
//! Rules that hold across the crate:
//!
//! - A durable byte is never rewritten by a later append; a cut starts a new segment instead.
//! - Damage is not absence: what was durable and no longer reads back is reported, never skipped.
//! - After a failed write or sync an object is finished for this process. Nothing retries a sync.
//! - No byte from a disk or a peer makes this crate panic.
//! - Dropping a future of this crate before it is done leaves its object unusable, as a crash would: open it again.

mod codec;

pub mod checkpoint;
pub mod engine;
pub mod format;
pub mod identity;
pub mod image;
pub mod meta;
pub mod recovery;
pub mod tree;
pub mod wal;

#[cfg(test)]
mod testing;

pub use checkpoint::{Checkpoint, CheckpointFile, CheckpointFileError};
pub use engine::{AlignedBuf, Caching, Disk, DiskFile, Engine, OpenMode, RealDisk};
pub use format::{EntryHeader, EntryKind, LogEnd};
pub use image::{Image, ImageConfig};
pub use meta::{Meta, MetaFacts};
pub use recovery::{Damage, Doubt, RecoveredLog};
pub use tree::{TreeFile, TreeFileError};
pub use wal::{Durable, Wal, WalConfig, WalIndex, WalReader};
