//! How far a volume's state is applied: one small file, replaced atomically.
//!
//! Rules: the file is written under another name, synced, renamed, and its directory synced, so that a crash leaves
//! the old record or the new one. For a log volume this is all of its state but the log.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use mainstay_types::{Epoch, Lineage, LogPoint, Lsn};

use crate::codec::{crc, is_zero, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::engine::{AlignedBuf, Caching, Disk, DiskFile, OpenMode, PAGE_BYTES, is_no_descriptor};
use crate::format::LogEnd;
use crate::recovery::scan::read_content;

/// What a checkpoint says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Checkpoint {
    /// Last entry applied, with its CRC, so that a log can begin right after it.
    pub applied: LogEnd,
    /// The image is being replaced from another member and must not be used.
    pub rebuilding: bool,
    /// The caller's own state at `applied`, such as the session table.
    pub blob: Bytes,
}

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointFileError {
    /// There is none.
    #[error("{path} does not exist")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It does not verify.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// Written by another version of this program.
    #[error("{path}: format version {found}, this program reads {expected}")]
    Version {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: u16,
        /// Ours.
        expected: u16,
    },
    /// It belongs to another volume.
    #[error("{path} belongs to lineage {found}, expected {expected}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: Lineage,
        /// Ours.
        expected: Lineage,
    },
    /// There was no descriptor for the file that is to replace it. Nothing was written: the old one is there.
    #[error("checkpoint {path}")]
    NoDescriptor {
        /// The file.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
    /// The disk refused.
    #[error("checkpoint {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
}

/// The checkpoint file of one volume.
#[derive(Debug)]
pub struct CheckpointFile<D: Disk> {
    disk: D,
    dir: PathBuf,
    lineage: Lineage,
}

const MAGIC: u64 = u64::from_le_bytes(*b"MSCHKPNT");
const VERSION: u16 = 1;

pub(crate) const HEADER_BYTES: usize = 64;
const MAGIC_AT: usize = 0;
const CRC: usize = 8;
const VERSION_AT: usize = 12;
const FLAGS: usize = 14;
const LINEAGE: usize = 16;
const APPLIED_EPOCH: usize = 24;
const APPLIED_LSN: usize = 32;
const APPLIED_CRC: usize = 40;
const BLOB_CRC: usize = 44;
const BLOB_LEN: usize = 48;
const RESERVED: usize = 56;
/// Documented fields, in order.
#[cfg(test)]
pub(crate) const LAYOUT: [(&str, usize); 12] = [
    ("magic", MAGIC_AT),
    ("crc", CRC),
    ("version", VERSION_AT),
    ("flags", FLAGS),
    ("lineage", LINEAGE),
    ("applied_epoch", APPLIED_EPOCH),
    ("applied_lsn", APPLIED_LSN),
    ("applied_crc", APPLIED_CRC),
    ("blob_crc", BLOB_CRC),
    ("blob_len", BLOB_LEN),
    ("reserved", RESERVED),
    ("blob", HEADER_BYTES),
];

const _: () = assert!(RESERVED + 8 == HEADER_BYTES);

const FLAG_REBUILDING: u16 = 1;

/// Largest blob: 64 MiB.
pub const BLOB_BYTES_MAX: usize = 64 << 20;

/// A checkpoint record that does not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordError {
    Damaged(&'static str),
    Version(u16),
    Foreign(Lineage),
}

/// The record's bytes, without padding.
pub(crate) fn encode(lineage: Lineage, checkpoint: &Checkpoint) -> Vec<u8> {
    let mut out = vec![0; HEADER_BYTES];
    put_u64(&mut out, MAGIC_AT, MAGIC);
    put_u16(&mut out, VERSION_AT, VERSION);
    put_u16(
        &mut out,
        FLAGS,
        if checkpoint.rebuilding {
            FLAG_REBUILDING
        } else {
            0
        },
    );
    put_u64(&mut out, LINEAGE, lineage.0);
    put_u64(&mut out, APPLIED_EPOCH, checkpoint.applied.point.epoch.0);
    put_u64(&mut out, APPLIED_LSN, checkpoint.applied.point.lsn.0);
    put_u32(&mut out, APPLIED_CRC, checkpoint.applied.crc);
    put_u32(&mut out, BLOB_CRC, crc(&checkpoint.blob));
    put_u64(&mut out, BLOB_LEN, checkpoint.blob.len() as u64);
    let header_crc = crc(&out[VERSION_AT..HEADER_BYTES]);
    put_u32(&mut out, CRC, header_crc);
    out.extend_from_slice(&checkpoint.blob);
    out
}

pub(crate) fn decode(lineage: Lineage, bytes: &Bytes) -> Result<Checkpoint, RecordError> {
    if bytes.len() < HEADER_BYTES || u64_at(bytes, MAGIC_AT) != MAGIC {
        return Err(RecordError::Damaged("no checkpoint header"));
    }
    if u32_at(bytes, CRC) != crc(&bytes[VERSION_AT..HEADER_BYTES]) {
        return Err(RecordError::Damaged("header crc"));
    }
    if u16_at(bytes, VERSION_AT) != VERSION {
        return Err(RecordError::Version(u16_at(bytes, VERSION_AT)));
    }
    let found = Lineage(u64_at(bytes, LINEAGE));
    if found != lineage {
        return Err(RecordError::Foreign(found));
    }
    let end = usize::try_from(u64_at(bytes, BLOB_LEN))
        .ok()
        .and_then(|len| len.checked_add(HEADER_BYTES));
    let Some(end) = end.filter(|end| *end <= bytes.len()) else {
        return Err(RecordError::Damaged("blob is cut short"));
    };
    let blob = bytes.slice(HEADER_BYTES..end);
    if crc(&blob) != u32_at(bytes, BLOB_CRC) {
        return Err(RecordError::Damaged("blob crc"));
    }
    if !is_zero(&bytes[end..]) {
        return Err(RecordError::Damaged("padding"));
    }
    Ok(Checkpoint {
        applied: LogEnd {
            point: LogPoint {
                epoch: Epoch(u64_at(bytes, APPLIED_EPOCH)),
                lsn: Lsn(u64_at(bytes, APPLIED_LSN)),
            },
            crc: u32_at(bytes, APPLIED_CRC),
        },
        rebuilding: u16_at(bytes, FLAGS) & FLAG_REBUILDING != 0,
        blob,
    })
}

impl<D: Disk> CheckpointFile<D> {
    /// Names the file in `dir`; touches nothing.
    pub fn new(disk: D, dir: &Path, lineage: Lineage) -> Self {
        Self {
            disk,
            dir: dir.to_owned(),
            lineage,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("checkpoint")
    }

    fn io_error(&self, source: io::Error) -> CheckpointFileError {
        CheckpointFileError::Io {
            path: self.path(),
            source,
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`CheckpointFileError`]; `Damaged` means that the state it speaks of must be fetched from another member.
    pub async fn load(&self) -> Result<Checkpoint, CheckpointFileError> {
        let path = self.path();
        let limit = (HEADER_BYTES + BLOB_BYTES_MAX + PAGE_BYTES) as u64;
        let content = match read_content(&self.disk, &path, limit).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CheckpointFileError::Missing { path });
            }
            other => other.map_err(|source| self.io_error(source))?,
        };
        if !content.readable(0..content.bytes.len()) {
            return Err(CheckpointFileError::Damaged {
                path,
                what: "the medium reports an error",
            });
        }
        decode(self.lineage, &content.bytes).map_err(|error| match error {
            RecordError::Damaged(what) => CheckpointFileError::Damaged { path, what },
            RecordError::Version(found) => CheckpointFileError::Version {
                path,
                found,
                expected: VERSION,
            },
            RecordError::Foreign(found) => CheckpointFileError::Foreign {
                path,
                found,
                expected: self.lineage,
            },
        })
    }

    /// Replaces it, durable on return; a crash or a dropped call leaves the old one or the new one.
    ///
    /// # Errors
    /// [`CheckpointFileError::NoDescriptor`], and `Io`, after which the old one or the new one is there.
    pub async fn store(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointFileError> {
        let file = match self.begin(checkpoint).await {
            // Only here: without one for the directory that is synced last, the new record may be there.
            Err(source) if is_no_descriptor(&source) => {
                let path = self.path();
                return Err(CheckpointFileError::NoDescriptor { path, source });
            }
            file => file.map_err(|source| self.io_error(source))?,
        };
        self.replace(file, checkpoint)
            .await
            .map_err(|source| self.io_error(source))
    }

    fn temporary(&self) -> PathBuf {
        self.dir.join("checkpoint.tmp")
    }

    /// The file that is to replace it, still empty.
    async fn begin(&self, checkpoint: &Checkpoint) -> io::Result<D::File> {
        if checkpoint.blob.len() > BLOB_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "checkpoint blob above 64 MiB",
            ));
        }
        let temporary = self.temporary();
        if self.disk.exists(&temporary).await? {
            self.disk.remove(&temporary).await?;
        }
        self.disk
            .open(&temporary, OpenMode::CreateNew, Caching::Buffered)
            .await
    }

    async fn replace(&self, file: D::File, checkpoint: &Checkpoint) -> io::Result<()> {
        let record = encode(self.lineage, checkpoint);
        file.write_durable(AlignedBuf::padded_from(&record), 0)
            .await
            .0?;
        drop(file);
        self.disk.rename(&self.temporary(), &self.path()).await?;
        self.disk.sync_dir(&self.dir).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::SimDisk;
    use crate::testing::{block_on, crash_points, golden};

    fn sample(lsn: u64) -> Checkpoint {
        Checkpoint {
            applied: LogEnd {
                point: LogPoint {
                    epoch: Epoch(2),
                    lsn: Lsn(lsn),
                },
                crc: 0x77,
            },
            rebuilding: true,
            blob: Bytes::from_static(b"sessions"),
        }
    }

    #[test]
    fn record_bytes_are_golden_and_every_flipped_bit_is_seen() {
        let bytes = encode(Lineage(5), &sample(9));
        golden("checkpoint", &bytes);
        assert_eq!(decode(Lineage(5), &bytes.clone().into()), Ok(sample(9)));
        assert_eq!(
            decode(Lineage(6), &bytes.clone().into()),
            Err(RecordError::Foreign(Lineage(5)))
        );
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(Lineage(5), &bad.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_crash_leaves_the_old_record_or_the_new_one() {
        let dir = Path::new("/v");
        let file = |disk: &SimDisk| CheckpointFile::new(disk.clone(), dir, Lineage(5));
        for seed in 0..8 {
            crash_points(
                seed,
                |disk| {
                    use crate::engine::Disk as _;
                    block_on(disk.create_dir_all(dir)).expect("create");
                    block_on(file(disk).store(&sample(1))).expect("store");
                },
                |disk, done| async move {
                    for lsn in 2..5 {
                        CheckpointFile::new(disk.clone(), dir, Lineage(5))
                            .store(&sample(lsn))
                            .await
                            .expect("store");
                        done.set(lsn);
                    }
                },
                |disk, done: u64| {
                    let found = block_on(file(&disk).load())
                        .expect("one of them")
                        .applied
                        .point
                        .lsn
                        .0;
                    assert!(
                        found >= done && found <= done.max(1) + 1,
                        "{found} after {done}"
                    );
                },
            );
        }
    }
}
