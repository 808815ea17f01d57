//! Reading a log directory: which segment files there are, and their bytes as far as the medium gives them back.

use std::io;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use mainstay_types::Lsn;

use crate::codec::is_zero;
use crate::engine::{
    AlignedBuf, Caching, Disk, DiskFile, OpenMode, PAGE, PAGE_BYTES, TRANSFER_BYTES,
};
use crate::format::{FrameHeader, LogEnd, SegmentHeader, SegmentHeaderError};
use crate::wal::{OpenError, WalConfig};

/// Bytes of a file, and the pages that could not be read.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) bytes: Bytes,
    bad_pages: Vec<u64>,
}

impl Content {
    pub(crate) fn readable(&self, range: Range<usize>) -> bool {
        let (first, last) = (range.start / PAGE_BYTES, range.end.div_ceil(PAGE_BYTES));
        !self
            .bad_pages
            .iter()
            .any(|page| (first as u64..last as u64).contains(page))
    }
}

/// Reads up to `len` bytes of `path`; pages with an `EIO` of their own are zeroes and noted.
pub(crate) async fn read_content<D: Disk>(disk: &D, path: &Path, len: u64) -> io::Result<Content> {
    let file = disk.open(path, OpenMode::Read, Caching::Buffered).await?;
    let len = usize::try_from(file.len().await?.min(len)).map_err(io::Error::other)?;
    let mut out = Vec::with_capacity(len);
    let mut bad_pages = Vec::new();
    let mut step = TRANSFER_BYTES;
    let mut buf = AlignedBuf::zeroed(TRANSFER_BYTES);
    while out.len() < len {
        let part = step.min(len - out.len());
        buf.set_len(part);
        let (result, back) = file.read_at(buf, out.len() as u64).await;
        buf = back;
        match result {
            Ok(0) => break,
            Ok(count) => out.extend_from_slice(&buf[..count]),
            Err(error) if error.raw_os_error() == Some(libc::EIO) && step == TRANSFER_BYTES => {
                step = PAGE_BYTES;
                continue;
            }
            Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                bad_pages.push(out.len() as u64 / PAGE);
                out.resize(out.len() + part, 0);
            }
            Err(error) => return Err(error),
        }
        if out.len().is_multiple_of(TRANSFER_BYTES) {
            step = TRANSFER_BYTES;
        }
    }
    Ok(Content {
        bytes: out.into(),
        bad_pages,
    })
}

/// A segment file with something in it.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) seq: u64,
    pub(crate) name: String,
    pub(crate) header: HeadState,
}

#[derive(Debug)]
pub(crate) enum HeadState {
    Intact(SegmentHeader),
    /// The header does not read back; its first LSN where the first frame still tells.
    Damaged(Option<Lsn>),
}

impl Head {
    pub(crate) fn prev(&self) -> Option<LogEnd> {
        match &self.header {
            HeadState::Intact(header) => Some(header.prev),
            HeadState::Damaged(_) => None,
        }
    }
}

/// What is in a log directory.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    /// Segments in use, by number.
    pub(crate) heads: Vec<Head>,
    /// Zero-filled segments that were never used: number and length.
    pub(crate) spares: Vec<(u64, u64)>,
    /// Names of unfinished files.
    pub(crate) temporary: Vec<String>,
}

/// Name of the segment file `seq`.
pub(crate) fn segment_name(seq: u64) -> String {
    format!("wal-{seq:016x}")
}

fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("wal-")?;
    if digits.len() != 16 || digits.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// Reads the headers of all segments in `dir`.
pub(crate) async fn read_directory<D: Disk>(
    disk: &D,
    dir: &Path,
    config: &WalConfig,
) -> Result<Directory, OpenError> {
    let io = |source| OpenError::Io {
        path: dir.to_owned(),
        source,
    };
    let names = match disk.list(dir).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(io)?,
    };
    let mut found = Directory::default();
    for name in names {
        if name.starts_with("wal-") && name.ends_with(".tmp") {
            found.temporary.push(name);
        } else if let Some(seq) = parse_name(&name) {
            read_head(disk, dir, config, seq, name, &mut found).await?;
        }
    }
    found.heads.sort_by_key(|head| head.seq);
    Ok(found)
}

async fn read_head<D: Disk>(
    disk: &D,
    dir: &Path,
    config: &WalConfig,
    seq: u64,
    name: String,
    found: &mut Directory,
) -> Result<(), OpenError> {
    let io = |source| OpenError::Io {
        path: dir.to_owned(),
        source,
    };
    let path = dir.join(&name);
    let first = read_content(disk, &path, PAGE).await.map_err(io)?;
    let readable = first.readable(0..PAGE_BYTES);
    let header = match SegmentHeader::decode(&first.bytes) {
        Ok(header) => {
            check_identity(config, seq, &name, &header)?;
            HeadState::Intact(header)
        }
        Err(SegmentHeaderError::Version { found, expected }) => {
            return Err(OpenError::Version {
                file: name,
                found,
                expected,
            });
        }
        Err(SegmentHeaderError::Zero | SegmentHeaderError::Damaged) => {
            let all = read_content(disk, &path, u64::MAX).await.map_err(io)?;
            let intact = readable && all.readable(0..all.bytes.len());
            if intact && !all.bytes.is_empty() && is_zero(&all.bytes) {
                found.spares.push((seq, all.bytes.len() as u64));
                return Ok(());
            }
            HeadState::Damaged(first_lsn_of_frames(config, seq, &all))
        }
    };
    found.heads.push(Head { seq, name, header });
    Ok(())
}

/// What the first frame of a segment says about the segment's beginning.
fn first_lsn_of_frames(config: &WalConfig, seq: u64, content: &Content) -> Option<Lsn> {
    let frame = FrameHeader::decode(content.bytes.get(PAGE_BYTES..)?).ok()?;
    (frame.segment_seq == seq && frame.lineage == config.lineage).then_some(frame.first_lsn)
}

fn check_identity(
    config: &WalConfig,
    seq: u64,
    name: &str,
    header: &SegmentHeader,
) -> Result<(), OpenError> {
    let foreign = |what, found: String, expected: String| OpenError::Foreign {
        file: name.to_owned(),
        what,
        found,
        expected,
    };
    if header.lineage != config.lineage {
        return Err(foreign(
            "lineage",
            header.lineage.to_string(),
            config.lineage.to_string(),
        ));
    }
    if header.incarnation != config.incarnation {
        return Err(foreign(
            "incarnation",
            header.incarnation.to_string(),
            config.incarnation.to_string(),
        ));
    }
    if header.seq != seq {
        return Err(foreign("segment", header.seq.to_string(), seq.to_string()));
    }
    Ok(())
}
