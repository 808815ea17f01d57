//! What the server needs of whoever keeps the bytes: a block device and a set of named exports.
//!
//! Rules that hold across this file:
//!
//! - One [`Exports::open`] belongs to one NBD connection. The device it answers is dropped when the connection
//!   ends, so an implementation may tie a client session or an exclusive attachment to it.
//! - The *call* of a [`BlockDevice`] method fixes the order of the request among those of this handle, not the
//!   first poll of the future. The server calls in the order in which requests arrive.
//! - The server checks range, alignment, length and access before it calls; the device may rely on
//!   `offset + len <= size_bytes`, on `len > 0` and on multiples of the minimum block size.
//! - Dropping a future abandons the *answer*. Whether the change happens is then unknown, never undone.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

/// A block device behind one NBD connection.
pub trait BlockDevice: Send + Sync + 'static {
    /// What the device is. Asked once, when the connection opens it; a later resize needs a new connection.
    fn info(&self) -> ExportInfo;

    /// Reads exactly `len` bytes at `offset`. Any other number of bytes is answered to the peer as an I/O error.
    fn read(&self, offset: u64, len: u32) -> BoxFuture<'static, Result<Bytes, BlockError>>;

    /// Writes `data` at `offset`. `Ok` means durable and committed, so that FUA and FLUSH cost nothing more.
    ///
    /// `data` is the only handle on its buffer, filled straight from the socket: `data.try_into_mut()` succeeds.
    fn write(&self, offset: u64, data: Bytes) -> BoxFuture<'static, Result<(), BlockError>>;

    /// Hints that the content of the range is no longer needed. What it reads as afterwards is unspecified.
    ///
    /// `len` may be the whole device, and memory for it must not grow with it.
    fn trim(&self, offset: u64, len: u64) -> BoxFuture<'static, Result<(), BlockError>>;

    /// Makes the range read as zeroes. `Ok` means durable and committed. `len` as in [`trim`](Self::trim).
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        holes: Holes,
    ) -> BoxFuture<'static, Result<(), BlockError>>;

    /// Whether zeroes over this range take less time than a write of as many bytes (`NBD_CMD_FLAG_FAST_ZERO`).
    ///
    /// Answers at once, and "no" when in doubt: the peer then writes the zeroes itself and has lost nothing.
    fn zeroes_are_fast(&self, offset: u64, len: u64, holes: Holes) -> bool {
        let _unknown = (offset, len, holes);
        false
    }

    /// Tells what is stored in the range (`base:allocation`): consecutive extents from `offset` on, at least one and at
    /// most `extents_max`, each a multiple of the minimum block. They may end before the range, and beyond it.
    ///
    /// What it says holds at some moment between call and answer. The default takes everything for data, which is always
    /// allowed.
    fn allocation(
        &self,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Extent>, BlockError>> {
        let _all_alike = (offset, extents_max);
        let state = Allocation::Data;
        Box::pin(std::future::ready(Ok(vec![Extent { len, state }])))
    }

    /// Tells which parts of the range changed behind `since` (`mainstay:changed-since/`): extents as [`allocation`](Self::allocation)
    /// has them. Writes, trims and zeroes are changes, whatever was there before. In doubt everything has changed, which the default
    /// says.
    ///
    /// Only called with points that [`Exports::change_point`] had told or passed by.
    fn changed_since(
        &self,
        since: ChangePoint,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Extent<Change>>, BlockError>> {
        let _all_alike = (since, offset, extents_max);
        let state = Change::Changed;
        Box::pin(std::future::ready(Ok(vec![Extent { len, state }])))
    }

    /// Resolves when this handle is of no use to its connection any more; says how that ends. Never by default.
    ///
    /// Polled beside the requests, for as long as the connection lasts.
    fn ended(&self) -> BoxFuture<'static, Ended> {
        Box::pin(std::future::pending())
    }

    /// The peer is gone without a goodbye, and may have sent to another server what it sent here. No call follows; changes that have
    /// not begun may be refused, and are never to begin later. May be called more than once. By default nothing is done.
    fn peer_gone(&self) {}

    /// A number that changes whenever a part of a request in flight is done. Requests that have many parts are waited for behind a
    /// goodbye for as long as it changes ([`Limits::goodbye_timeout`](crate::Limits::goodbye_timeout)). Zero by default.
    fn progress(&self) -> u64 {
        0
    }

    /// Makes every write that was answered before this call durable, on whichever connection it arrived.
    fn flush(&self) -> BoxFuture<'static, Result<(), BlockError>>;
}

/// How a connection ends whose device has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Nothing more is read; requests in flight are finished and answered.
    Finished,
    /// At once, without an answer to anything: the client shall try elsewhere, and not take an error for a broken disk.
    Cut,
}

/// A range in one state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent<State = Allocation> {
    /// Its length in bytes, not zero.
    pub len: u64,
    /// What is there.
    pub state: State,
}

/// What became of a range since a [`ChangePoint`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It reads as it did at that point.
    Unchanged,
    /// It was written, trimmed or zeroed, or nobody knows.
    Changed,
}

/// A place between two changes of a device. Written as `LSN@HISTORY`: a decimal number, and 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangePoint {
    /// Which history `lsn` counts in. A number of one says nothing in another.
    pub history: u64,
    /// The last change before it, as changes are numbered in the order in which they take effect.
    pub lsn: u64,
}

impl fmt::Display for ChangePoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:016x}", self.lsn, self.history)
    }
}

/// What a device stores for a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocation {
    /// Something, or nobody knows.
    Data,
    /// Space is taken, and all of it reads as zeroes.
    Zeroes,
    /// Nothing: it reads as zeroes, and a write may find no space.
    Hole,
}

/// Whether zeroes may be represented by not storing anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holes {
    /// The range may become unallocated.
    Allowed,
    /// The client asked that later writes to the range cannot fail for want of space (`NO_HOLE`).
    Forbidden,
}

/// The set of devices that a server offers.
pub trait Exports: Send + Sync + 'static {
    /// The names a client may see. Also decides the default export: the only one, if there is exactly one.
    ///
    /// # Errors
    /// They cannot be told now: an empty list would say that there are none.
    fn list(&self) -> BoxFuture<'static, Result<Vec<String>, OpenError>>;

    /// Opens `name` for one connection of `peer`.
    ///
    /// The name comes from the peer: it is UTF-8 without NUL and at most 4096 bytes long, nothing more is promised.
    fn open(
        &self,
        name: &str,
        peer: SocketAddr,
    ) -> BoxFuture<'static, Result<Arc<dyn BlockDevice>, OpenError>>;

    /// Describes `name` for a client that only asks (`NBD_OPT_INFO`).
    ///
    /// The default opens the device and drops it. Override it where opening takes an exclusive attachment.
    fn describe(
        &self,
        name: &str,
        peer: SocketAddr,
    ) -> BoxFuture<'static, Result<ExportInfo, OpenError>> {
        let opening = self.open(name, peer);
        Box::pin(async move { Ok(opening.await?.info()) })
    }

    /// Where the history of `name` stands: what is read afterwards holds every change before that point. With it, clients are offered
    /// the changes since. By default a device has no history.
    fn change_point(
        &self,
        name: &str,
        peer: SocketAddr,
    ) -> BoxFuture<'static, Result<Option<ChangePoint>, OpenError>> {
        let _unknown = (name, peer);
        Box::pin(std::future::ready(Ok(None)))
    }
}

/// What a client learns of an export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportInfo {
    /// The canonical name, which answers `NBD_INFO_NAME`. At most 4096 bytes.
    pub name: String,
    /// Text for people. At most 4096 bytes; empty for none.
    pub description: String,
    /// Size of the device. A multiple of `block_bytes_min`.
    pub size_bytes: u64,
    /// Whether writes may be tried.
    pub access: Access,
    /// Smallest unit of offset and length: a power of two, 1 to 65536.
    pub block_bytes_min: u32,
    /// Unit of good performance: a power of two, at least 512 and `block_bytes_min`.
    pub block_bytes_preferred: u32,
    /// Largest read or write: a multiple of `block_bytes_min`, at least `block_bytes_preferred`. The server's
    /// own limit applies too.
    pub block_bytes_max: u32,
    /// Whether a flush on one connection covers writes answered on another, even one to another server.
    pub multi_conn: MultiConn,
}

/// Whether an export may be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Every command is allowed.
    ReadWrite,
    /// Write, trim and write-zeroes are answered `EPERM`.
    ReadOnly,
}

/// Whether a client may spread requests over several connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MultiConn {
    /// Flush and FUA take effect on all connections to the export (`NBD_FLAG_CAN_MULTI_CONN`).
    Coherent,
    /// No such promise.
    Unsupported,
}

/// Why an export description cannot be advertised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidExport {
    /// The smallest block is not a power of two of 1 to 65536.
    #[error("minimum block of {0} bytes is not a power of two of 1 to 65536")]
    MinimumBlock(u32),
    /// The preferred block is not a power of two, or too small.
    #[error("preferred block of {0} bytes is not a power of two of at least 512 and the minimum")]
    PreferredBlock(u32),
    /// The largest block is below the preferred one, or no multiple of the smallest.
    #[error(
        "maximum block of {0} bytes is below the preferred block or no multiple of the minimum"
    )]
    MaximumBlock(u32),
    /// The size is no multiple of the smallest block.
    #[error("size of {0} bytes is no multiple of the minimum block")]
    Size(u64),
    /// The name or the description is longer than the protocol allows.
    #[error("text of {0} bytes is longer than 4096")]
    Text(usize),
}

impl ExportInfo {
    /// Checks what the protocol demands, and lowers the largest block to `request_bytes_max`.
    ///
    /// # Errors
    ///
    /// Names the first field that cannot be advertised.
    pub fn bounded(mut self, request_bytes_max: u32) -> Result<Self, InvalidExport> {
        let (min, preferred) = (self.block_bytes_min, self.block_bytes_preferred);
        if !min.is_power_of_two() || min > 65_536 {
            return Err(InvalidExport::MinimumBlock(min));
        }
        if !preferred.is_power_of_two() || preferred < min.max(512) {
            return Err(InvalidExport::PreferredBlock(preferred));
        }
        // `min` is a power of two, so the mask rounds down to its multiple.
        self.block_bytes_max = self.block_bytes_max.min(request_bytes_max) & !(min - 1);
        if self.block_bytes_max < preferred {
            return Err(InvalidExport::MaximumBlock(self.block_bytes_max));
        }
        if !self.size_bytes.is_multiple_of(u64::from(min)) {
            return Err(InvalidExport::Size(self.size_bytes));
        }
        let text = self.name.len().max(self.description.len());
        if text > crate::protocol::STRING_BYTES_MAX {
            return Err(InvalidExport::Text(text));
        }
        Ok(self)
    }
}

/// Why a device refused or could not do what was asked. The NBD error of each is in its documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The medium or the cluster could not do it (`EIO`).
    #[error("input/output error")]
    Io,
    /// The request makes no sense to the device (`EINVAL`).
    #[error("invalid request")]
    Invalid,
    /// No space is left (`ENOSPC`).
    #[error("no space left")]
    NoSpace,
    /// This client may not do it: read-only, or fenced by a takeover (`EPERM`).
    #[error("not permitted")]
    NotPermitted,
    /// The device is going away (`ESHUTDOWN`).
    #[error("shutting down")]
    ShuttingDown,
    /// The request is too large to be answered in one piece (`EOVERFLOW`).
    #[error("value too large")]
    TooLarge,
    /// The device cannot do this kind of request (`EINVAL`: the specification keeps `ENOTSUP` for zeroes that are not fast).
    #[error("not supported")]
    NotSupported,
    /// Memory is exhausted (`ENOMEM`). The specification asks servers to avoid it.
    #[error("out of memory")]
    OutOfMemory,
}

/// Why an export could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No export has this name (`NBD_REP_ERR_UNKNOWN`).
    #[error("no such export")]
    Unknown,
    /// It exists, and this client may not have it now, such as when another holds it (`NBD_REP_ERR_POLICY`).
    #[error("refused: {reason}")]
    Refused {
        /// Text for the person at the client.
        reason: String,
    },
    /// It exists and cannot be served at this moment, such as without a primary (`NBD_REP_ERR_POLICY`).
    #[error("unavailable: {reason}")]
    Unavailable {
        /// Text for the person at the client.
        reason: String,
    },
    /// The server is going away (`NBD_REP_ERR_SHUTDOWN`).
    #[error("shutting down")]
    ShuttingDown,
}
