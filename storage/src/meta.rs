//! A member's few durable facts: who it is, what it sealed, whether it is to be trusted.
//!
//! Rules: both slots carry every update before it counts, so rot in one never takes back a seal; `sealed`,
//! `boot_counter` and `commit` never fall; identity never changes.

use std::io;
use std::path::{Path, PathBuf};

use mainstay_types::{
    ClusterId, Epoch, Incarnation, Lineage, Lsn, NodeId, VolumeId, VolumeKind, VolumeSpec,
};

use crate::codec::{crc, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::engine::{AlignedBuf, Caching, Disk, DiskFile, OpenMode, PAGE, PAGE_BYTES, is_no_space};

/// The facts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetaFacts {
    /// Cluster of the copy. Never changes.
    pub cluster: ClusterId,
    /// Node of the copy. Never changes.
    pub node: NodeId,
    /// Volume of the copy. Never changes.
    pub volume: VolumeId,
    /// What the volume is. Never changes.
    pub spec: VolumeSpec,
    /// Which formatting of the copy. Never changes.
    pub incarnation: Incarnation,
    /// Lineage that the log's entries are seeded with: the volume's first. Never changes.
    pub log_lineage: Lineage,
    /// Lineage that the copy follows now.
    pub lineage: Lineage,
    /// Raised by one at each open.
    pub boot_counter: u64,
    /// Refuses every request of an epoch below. Never falls.
    pub sealed: Epoch,
    /// The copy is being replaced.
    pub rebuilding: bool,
    /// Why the copy is not to be trusted; at most 1024 bytes are kept.
    pub damaged: Option<String>,
    /// A commit point that this member knew, at or below its own durable end. Never falls.
    pub commit: Lsn,
}

/// Why the facts could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// There is no such file: the copy was never completely created.
    #[error("{path} does not exist")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The copy was created before.
    #[error("{path} already exists")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Neither slot verifies.
    #[error("{path}: both slots are damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
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
    /// The directory of another node or cluster.
    #[error(
        "{path} belongs to node {found_node} of cluster {found_cluster}, this is node {node} of cluster {cluster}"
    )]
    OtherNode {
        /// The file.
        path: PathBuf,
        /// In the file.
        found_cluster: ClusterId,
        /// In the file.
        found_node: NodeId,
        /// Ours.
        cluster: ClusterId,
        /// Ours.
        node: NodeId,
    },
    /// No room. The facts are what they were; the same change may be tried again.
    #[error("no space for {path}")]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
    /// A write or sync failed, now or earlier: finished for this process.
    #[error("{path} is finished for this process")]
    Poisoned {
        /// The file.
        path: PathBuf,
    },
    /// The disk refused.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
}

/// The open facts of one copy.
#[derive(Debug)]
pub struct Meta<D: Disk> {
    file: D::File,
    path: PathBuf,
    facts: MetaFacts,
    generation: u64,
    /// The slot to be written last: the one that is surely intact. The other may be torn by a write that was refused.
    intact_slot: u64,
    poisoned: bool,
}

const MAGIC: u64 = u64::from_le_bytes(*b"MSVOLMET");
const VERSION: u16 = 1;
const DAMAGED_BYTES_MAX: usize = 1024;

const MAGIC_AT: usize = 0;
const CRC: usize = 8;
const VERSION_AT: usize = 12;
const KIND: usize = 14;
const FLAGS: usize = 15;
const GENERATION: usize = 16;
const CLUSTER: usize = 24;
const VOLUME: usize = 32;
const INCARNATION: usize = 40;
const LOG_LINEAGE: usize = 48;
const LINEAGE: usize = 56;
const BOOT_COUNTER: usize = 64;
const SEALED: usize = 72;
const COMMIT: usize = 80;
const SIZE_BYTES: usize = 88;
const NODE: usize = 96;
const NAME_LEN: usize = 100;
const DAMAGED_LEN: usize = 102;
const NAME: usize = 104;
const NAME_BYTES_MAX: usize = 64;
const DAMAGED: usize = NAME + NAME_BYTES_MAX;
const _: () = assert!(DAMAGED + DAMAGED_BYTES_MAX <= PAGE_BYTES);

/// Documented fields, in order.
#[cfg(test)]
pub(crate) const LAYOUT: [(&str, usize); 20] = [
    ("magic", MAGIC_AT),
    ("crc", CRC),
    ("version", VERSION_AT),
    ("kind", KIND),
    ("flags", FLAGS),
    ("generation", GENERATION),
    ("cluster", CLUSTER),
    ("volume", VOLUME),
    ("incarnation", INCARNATION),
    ("log_lineage", LOG_LINEAGE),
    ("lineage", LINEAGE),
    ("boot_counter", BOOT_COUNTER),
    ("sealed", SEALED),
    ("commit", COMMIT),
    ("size_bytes", SIZE_BYTES),
    ("node", NODE),
    ("name_len", NAME_LEN),
    ("damaged_len", DAMAGED_LEN),
    ("name", NAME),
    ("damaged", DAMAGED),
];

const KIND_LOG: u8 = 1;
const KIND_BLOCK: u8 = 2;
const FLAG_REBUILDING: u8 = 1;
const FLAG_DAMAGED: u8 = 2;

enum SlotError {
    Damaged,
    Version(u16),
}

/// Writes the facts to one page of zeroes.
fn encode(facts: &MetaFacts, generation: u64, out: &mut [u8]) {
    let name = facts.spec.name.as_str().as_bytes();
    let damaged = facts.damaged.as_deref().unwrap_or_default().as_bytes();
    let (kind, size_bytes) = match facts.spec.kind {
        VolumeKind::Log => (KIND_LOG, 0),
        VolumeKind::Block { size_bytes } => (KIND_BLOCK, size_bytes),
    };
    let rebuilding = if facts.rebuilding { FLAG_REBUILDING } else { 0 };
    let has_damage = if facts.damaged.is_some() {
        FLAG_DAMAGED
    } else {
        0
    };
    put_u64(out, MAGIC_AT, MAGIC);
    put_u16(out, VERSION_AT, VERSION);
    out[KIND] = kind;
    out[FLAGS] = rebuilding | has_damage;
    put_u64(out, GENERATION, generation);
    put_u64(out, CLUSTER, facts.cluster.0);
    put_u64(out, VOLUME, facts.volume.0);
    put_u64(out, INCARNATION, facts.incarnation.0);
    put_u64(out, LOG_LINEAGE, facts.log_lineage.0);
    put_u64(out, LINEAGE, facts.lineage.0);
    put_u64(out, BOOT_COUNTER, facts.boot_counter);
    put_u64(out, SEALED, facts.sealed.0);
    put_u64(out, COMMIT, facts.commit.0);
    put_u64(out, SIZE_BYTES, size_bytes);
    put_u32(out, NODE, facts.node.0);
    put_u16(
        out,
        NAME_LEN,
        u16::try_from(name.len()).expect("a volume name has at most 64 bytes"),
    );
    put_u16(
        out,
        DAMAGED_LEN,
        u16::try_from(damaged.len()).expect("cut to DAMAGED_BYTES_MAX"),
    );
    out[NAME..NAME + name.len()].copy_from_slice(name);
    out[DAMAGED..DAMAGED + damaged.len()].copy_from_slice(damaged);
    let crc = crc(&out[VERSION_AT..PAGE_BYTES]);
    put_u32(out, CRC, crc);
}

fn decode(page: &[u8]) -> Result<(u64, MetaFacts), SlotError> {
    if page.len() < PAGE_BYTES || u64_at(page, MAGIC_AT) != MAGIC {
        return Err(SlotError::Damaged);
    }
    if u32_at(page, CRC) != crc(&page[VERSION_AT..PAGE_BYTES]) {
        return Err(SlotError::Damaged);
    }
    if u16_at(page, VERSION_AT) != VERSION {
        return Err(SlotError::Version(u16_at(page, VERSION_AT)));
    }
    let text = |at: usize, len: usize| std::str::from_utf8(page.get(at..at + len)?).ok();
    let name = text(NAME, usize::from(u16_at(page, NAME_LEN)));
    let damaged = text(DAMAGED, usize::from(u16_at(page, DAMAGED_LEN)));
    let (Some(name), Some(damaged)) = (name, damaged) else {
        return Err(SlotError::Damaged);
    };
    let kind = match page[KIND] {
        KIND_LOG => VolumeKind::Log,
        KIND_BLOCK => VolumeKind::Block {
            size_bytes: u64_at(page, SIZE_BYTES),
        },
        _ => return Err(SlotError::Damaged),
    };
    let facts = MetaFacts {
        cluster: ClusterId(u64_at(page, CLUSTER)),
        node: NodeId(u32_at(page, NODE)),
        volume: VolumeId(u64_at(page, VOLUME)),
        spec: VolumeSpec {
            name: name.parse().map_err(|_| SlotError::Damaged)?,
            kind,
        },
        incarnation: Incarnation(u64_at(page, INCARNATION)),
        log_lineage: Lineage(u64_at(page, LOG_LINEAGE)),
        lineage: Lineage(u64_at(page, LINEAGE)),
        boot_counter: u64_at(page, BOOT_COUNTER),
        sealed: Epoch(u64_at(page, SEALED)),
        rebuilding: page[FLAGS] & FLAG_REBUILDING != 0,
        damaged: (page[FLAGS] & FLAG_DAMAGED != 0).then(|| damaged.to_owned()),
        commit: Lsn(u64_at(page, COMMIT)),
    };
    Ok((u64_at(page, GENERATION), facts))
}

impl<D: Disk> Meta<D> {
    /// Writes the facts of a new copy, durable on return. Do this last of a creation: a copy without facts was never
    /// completely created.
    ///
    /// # Errors
    /// [`MetaError`]; remove what is there and create again.
    pub async fn create(disk: D, dir: &Path, facts: MetaFacts) -> Result<Self, MetaError> {
        let path = dir.join("meta");
        let io = |source| MetaError::Io {
            path: path.clone(),
            source,
        };
        disk.create_dir_all(dir).await.map_err(io)?;
        if disk.exists(&path).await.map_err(io)? {
            return Err(MetaError::Exists { path });
        }
        let temporary = dir.join("meta.tmp");
        if disk.exists(&temporary).await.map_err(io)? {
            disk.remove(&temporary).await.map_err(io)?;
        }
        let file = disk
            .open(&temporary, OpenMode::CreateNew, Caching::Buffered)
            .await
            .map_err(io)?;
        let mut meta = Self {
            file,
            path: path.clone(),
            facts: trimmed(facts),
            generation: 0,
            intact_slot: 1,
            poisoned: false,
        };
        meta.write().await?;
        disk.rename(&temporary, &path).await.map_err(io)?;
        disk.sync_dir(dir).await.map_err(io)?;
        Ok(meta)
    }

    /// Opens the facts and raises the boot counter, durable on return. Heals a slot that does not verify.
    ///
    /// # Errors
    /// [`MetaError`]; `OtherNode` for a directory of another node or cluster, which is left as it is.
    pub async fn open(
        disk: D,
        dir: &Path,
        cluster: ClusterId,
        node: NodeId,
    ) -> Result<Self, MetaError> {
        let path = dir.join("meta");
        let file = match disk.open(&path, OpenMode::Write, Caching::Buffered).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(MetaError::Missing { path });
            }
            Err(source) => return Err(MetaError::Io { path, source }),
            Ok(file) => file,
        };
        let mut best: Option<(u64, MetaFacts, u64)> = None;
        let mut version = None;
        for slot in 0..2 {
            let (result, mut page) = file
                .read_at(AlignedBuf::zeroed(PAGE_BYTES), slot * PAGE)
                .await;
            // A slot that the medium does not give back is a damaged slot.
            page.set_len(result.unwrap_or(0));
            match decode(&page) {
                Ok((generation, facts))
                    if best.as_ref().is_none_or(|found| found.0 < generation) =>
                {
                    best = Some((generation, facts, slot));
                }
                Ok(_) | Err(SlotError::Damaged) => {}
                Err(SlotError::Version(found)) => version = Some(found),
            }
        }
        if let Some(found) = version {
            return Err(MetaError::Version {
                path,
                found,
                expected: VERSION,
            });
        }
        let Some((generation, facts, intact_slot)) = best else {
            return Err(MetaError::Damaged { path });
        };
        if (facts.cluster, facts.node) != (cluster, node) {
            return Err(MetaError::OtherNode {
                path,
                found_cluster: facts.cluster,
                found_node: facts.node,
                cluster,
                node,
            });
        }
        let mut meta = Self {
            file,
            path,
            facts,
            generation,
            intact_slot,
            poisoned: false,
        };
        meta.update(|facts| facts.boot_counter += 1).await?;
        Ok(meta)
    }

    /// The facts.
    #[must_use]
    pub fn facts(&self) -> &MetaFacts {
        &self.facts
    }

    /// Changes the facts, durable on return; two syncs. Dropped half way, or after an error other than `NoSpace`, the
    /// change is unknown and the object is finished for this process.
    ///
    /// # Errors
    /// [`MetaError::NoSpace`], [`MetaError::Poisoned`] and [`MetaError::Io`].
    ///
    /// # Panics
    /// If the change lets `sealed`, `boot_counter` or `commit` fall, or changes what never changes.
    pub async fn update(&mut self, change: impl FnOnce(&mut MetaFacts)) -> Result<(), MetaError> {
        if self.poisoned {
            return Err(MetaError::Poisoned {
                path: self.path.clone(),
            });
        }
        let mut next = self.facts.clone();
        change(&mut next);
        check_step(&self.facts, &next);
        let before = std::mem::replace(&mut self.facts, trimmed(next));
        let written = self.write().await;
        if let Err(MetaError::NoSpace { .. }) = &written {
            self.facts = before;
        }
        written
    }

    /// Writes both slots, the intact one last: at every moment one of them is whole.
    async fn write(&mut self) -> Result<(), MetaError> {
        self.poisoned = true;
        self.generation += 1;
        let last = self.intact_slot;
        for slot in [1 - last, last] {
            let mut page = AlignedBuf::zeroed(PAGE_BYTES);
            encode(&self.facts, self.generation, &mut page);
            let (result, _) = self.file.write_durable(page, slot * PAGE).await;
            let path = self.path.clone();
            match result {
                // After a refusal half way this is the slot to be spared: the other may be torn.
                Ok(()) => self.intact_slot = slot,
                Err(source) if is_no_space(&source) => {
                    // Both pages are written anew by the next try, so nothing hangs on a sync that failed.
                    self.poisoned = false;
                    return Err(MetaError::NoSpace { path, source });
                }
                Err(source) => return Err(MetaError::Io { path, source }),
            }
        }
        self.poisoned = false;
        Ok(())
    }
}

fn trimmed(mut facts: MetaFacts) -> MetaFacts {
    if let Some(text) = &mut facts.damaged {
        let end = (0..=DAMAGED_BYTES_MAX)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text.truncate(end);
    }
    facts
}

fn check_step(old: &MetaFacts, new: &MetaFacts) {
    assert!(
        old.sealed <= new.sealed,
        "sealed fell from {} to {}",
        old.sealed,
        new.sealed
    );
    assert!(
        old.commit <= new.commit,
        "commit fell from {} to {}",
        old.commit,
        new.commit
    );
    assert!(
        old.boot_counter <= new.boot_counter,
        "boot counter fell from {} to {}",
        old.boot_counter,
        new.boot_counter
    );
    let fixed = |facts: &MetaFacts| {
        (
            facts.cluster,
            facts.node,
            facts.volume,
            facts.incarnation,
            facts.log_lineage,
        )
    };
    assert!(
        fixed(old) == fixed(new),
        "identity changed from {:?} to {:?}",
        fixed(old),
        fixed(new)
    );
    assert!(
        old.spec == new.spec,
        "spec changed from {:?} to {:?}",
        old.spec,
        new.spec
    );
}

#[cfg(test)]
mod tests;
