//! NBD codec and export over a small block-device trait.
//!
//! - [`protocol`] holds the numbers of the specification, [`codec`] turns bytes into messages and back. Both are
//!   free of I/O, and every decoder is total: bytes from outside give errors, never panics.
//! - [`BlockDevice`] and [`Exports`] are what the server asks of its host.
//! - [`Server`] accepts connections, bounds what they may cost ([`Limits`]) and runs each of them in one task.
//! - [`Tls`] says for each listener whether `NBD_OPT_STARTTLS` is refused, granted or demanded.
//! - [`memory`] is a device made of memory, for tests and examples.
//!
//! This crate does not know what a volume, a primary or a commit point is. `docs/nbd.md` lists what the NBD
//! specification demands, what is done here and which test shows it.

#![forbid(unsafe_code)]

mod admission;
mod budget;
pub mod codec;
mod connection;
mod ending;
mod export;
mod extents;
mod handshake;
mod input;
mod limits;
pub mod memory;
mod meta;
pub mod protocol;
mod replies;
mod requests;
mod server;
mod sparse;
mod tls;
mod transport;

pub use connection::{ConnectionEnd, ConnectionError};
pub use export::{
    Access, Allocation, BlockDevice, BlockError, Change, ChangePoint, Ended, ExportInfo, Exports,
    Extent, Holes, InvalidExport, MultiConn, OpenError,
};
pub use limits::Limits;
pub use server::{Server, ServerStats};
pub use tls::{Tls, TlsError, TlsFiles, TlsIdentity};
