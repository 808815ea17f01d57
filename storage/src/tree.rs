//! The nodes of a log's Merkle tree: one file beside the log, to which they are appended as they are completed.
//!
//! Nodes lie at the places that [`Node::place`] gives them, 32 bytes each, behind two pages of *marks*. A mark says how many positions
//! the tree covered when it was synced, and what its peaks were; the newer one that verifies counts, and they are written in turn, so
//! that a crash leaves one of them. What lies behind the mark may be anything, and is written again: the log has it.
//!
//! A node that was never written reads as zeroes, and counts as not kept. Nodes have no checksums of their own: whoever serves them
//! checks that they lead to the root that the mark's peaks have.

use std::io;
use std::path::{Path, PathBuf};

use mainstay_types::Lineage;
use mainstay_types::merkle::{Node, Peaks, TreeHash};

use crate::codec::{crc, is_zero, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::engine::{AlignedBuf, Caching, Disk, DiskFile, OpenMode, PAGE, PAGE_BYTES};

const MAGIC: u64 = u64::from_le_bytes(*b"MSTREE\0\0");
const VERSION: u16 = 1;

const MAGIC_AT: usize = 0;
const CRC: usize = 8;
const VERSION_AT: usize = 12;
const PEAKS_LEN: usize = 14;
const LINEAGE: usize = 16;
const SERIAL: usize = 24;
const SIZE: usize = 32;
const PEAKS: usize = 40;
/// Documented fields, in order.
#[cfg(test)]
pub(crate) const LAYOUT: [(&str, usize); 8] = [
    ("magic", MAGIC_AT),
    ("crc", CRC),
    ("version", VERSION_AT),
    ("peaks_len", PEAKS_LEN),
    ("lineage", LINEAGE),
    ("serial", SERIAL),
    ("size", SIZE),
    ("peaks", PEAKS),
];

/// Bytes of one node.
pub const NODE_BYTES: usize = 32;

/// Where the nodes begin.
const NODES: u64 = 2 * PAGE;

const _: () = assert!(PEAKS + 64 * NODE_BYTES <= PAGE_BYTES);

/// Why a tree's file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TreeFileError {
    /// Neither mark verifies.
    #[error("{path} has no mark that verifies")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Written by another version of this program.
    #[error("{path}: format version {found}, this program reads {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: u16,
    },
    /// The disk refused.
    #[error("tree {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
    /// The disk failed to take what was written since the last mark out of memory. A sync that succeeds later says nothing of it: the
    /// kernel takes pages whose write-back failed for clean.
    #[error("tree {path}: nothing is known of what was written behind its mark")]
    Unsynced {
        /// The file.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
}

/// What a page of the file says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    serial: u64,
    peaks: Peaks,
}

impl Mark {
    fn encode(&self, lineage: Lineage) -> Vec<u8> {
        let mut out = vec![0; PAGE_BYTES];
        let hashes = self.peaks.hashes();
        let count = u16::try_from(hashes.len()).expect("at most 64 bits are set");
        put_u64(&mut out, MAGIC_AT, MAGIC);
        put_u16(&mut out, VERSION_AT, VERSION);
        put_u16(&mut out, PEAKS_LEN, count);
        put_u64(&mut out, LINEAGE, lineage.0);
        put_u64(&mut out, SERIAL, self.serial);
        put_u64(&mut out, SIZE, self.peaks.size());
        for (slot, hash) in out[PEAKS..].chunks_exact_mut(NODE_BYTES).zip(hashes) {
            slot.copy_from_slice(&hash.0);
        }
        let sum = crc(&out[VERSION_AT..]);
        put_u32(&mut out, CRC, sum);
        out
    }

    /// `Err` with the version of another program; `Ok(None)` if it does not verify.
    fn decode(lineage: Lineage, page: &[u8]) -> Result<Option<Self>, u16> {
        let whole = page.len() == PAGE_BYTES && u64_at(page, MAGIC_AT) == MAGIC;
        if !whole || u32_at(page, CRC) != crc(&page[VERSION_AT..]) {
            return Ok(None);
        }
        if u16_at(page, VERSION_AT) != VERSION {
            return Err(u16_at(page, VERSION_AT));
        }
        if u64_at(page, LINEAGE) != lineage.0 {
            return Ok(None);
        }
        let count = usize::from(u16_at(page, PEAKS_LEN)).min(64);
        let slots = page[PEAKS..].chunks_exact(NODE_BYTES).take(count);
        let hashes = slots.filter_map(TreeHash::from_bytes).collect();
        let peaks = Peaks::new(u64_at(page, SIZE), hashes);
        let serial = u64_at(page, SERIAL);
        Ok(peaks.map(|peaks| Self { serial, peaks }))
    }
}

/// The file of one log's tree. Stays on its thread.
#[derive(Debug)]
pub struct TreeFile<D: Disk> {
    file: D::File,
    path: PathBuf,
    lineage: Lineage,
    mark: Mark,
}

impl<D: Disk> TreeFile<D> {
    fn path_in(dir: &Path) -> PathBuf {
        dir.join("tree")
    }

    /// Makes the file of an empty tree in `dir`, in the place of whatever is there. Durable on return.
    ///
    /// # Errors
    /// The disk's.
    pub async fn create(disk: &D, dir: &Path, lineage: Lineage) -> Result<Self, TreeFileError> {
        let path = Self::path_in(dir);
        let mark = Mark {
            serial: 0,
            peaks: Peaks::default(),
        };
        let made = async {
            if disk.exists(&path).await? {
                disk.remove(&path).await?;
            }
            let file = disk
                .open(&path, OpenMode::CreateNew, Caching::Buffered)
                .await?;
            let page = AlignedBuf::padded_from(&mark.encode(lineage));
            file.write_durable(page, 0).await.0?;
            disk.sync_dir(dir).await?;
            Ok(file)
        };
        match made.await {
            Ok(file) => Ok(Self {
                file,
                path,
                lineage,
                mark,
            }),
            Err(source) => Err(TreeFileError::Io { path, source }),
        }
    }

    /// Opens the file in `dir`; `None` if there is none.
    ///
    /// # Errors
    /// [`TreeFileError`]; `Damaged` means that the tree has to be made anew.
    pub async fn open(
        disk: &D,
        dir: &Path,
        lineage: Lineage,
    ) -> Result<Option<Self>, TreeFileError> {
        let path = Self::path_in(dir);
        let io = |source| TreeFileError::Io {
            path: path.clone(),
            source,
        };
        if !disk.exists(&path).await.map_err(io)? {
            return Ok(None);
        }
        let file = disk
            .open(&path, OpenMode::Write, Caching::Buffered)
            .await
            .map_err(io)?;
        let mut newest: Option<Mark> = None;
        for page in 0..2 {
            let bytes = read_bytes::<D>(&file, page * PAGE, PAGE_BYTES).await;
            // A page that does not read back is as one that does not verify.
            let decoded = Mark::decode(lineage, &bytes.unwrap_or_default());
            let mark = decoded.map_err(|found| TreeFileError::Version {
                path: path.clone(),
                found,
            })?;
            newest = newest
                .into_iter()
                .chain(mark)
                .max_by_key(|mark| mark.serial);
        }
        let Some(mark) = newest else {
            return Err(TreeFileError::Damaged { path });
        };
        if mark.serial == 0 {
            // Whoever made it may not have come to the end of that: a loss of power could take the file away, with marks of later.
            disk.sync_dir(dir).await.map_err(io)?;
        }
        Ok(Some(Self {
            file,
            path,
            lineage,
            mark,
        }))
    }

    /// The tree that was synced last.
    #[must_use]
    pub fn marked(&self) -> &Peaks {
        &self.mark.peaks
    }

    fn io(&self, source: io::Error) -> TreeFileError {
        TreeFileError::Io {
            path: self.path.clone(),
            source,
        }
    }

    fn unsynced(&self, source: io::Error) -> TreeFileError {
        TreeFileError::Unsynced {
            path: self.path.clone(),
            source,
        }
    }

    /// Writes nodes side by side, the first at place `first`. Durable once a mark was written behind it.
    ///
    /// They go out of memory at once: what waited for the mark would be megabytes, behind which all writes of the log wait.
    ///
    /// # Errors
    /// The disk's. After `Io` it may be tried again: the same nodes, to the same place. After `Unsynced` all nodes behind the mark have to
    /// be written again.
    pub async fn write(&self, first: u64, nodes: &[TreeHash]) -> Result<(), TreeFileError> {
        let mut buf = AlignedBuf::zeroed(nodes.len() * NODE_BYTES);
        for (slot, node) in buf.chunks_exact_mut(NODE_BYTES).zip(nodes) {
            slot.copy_from_slice(&node.0);
        }
        buf.set_len(nodes.len() * NODE_BYTES);
        let at = NODES + first * NODE_BYTES as u64;
        let len = buf.len() as u64;
        let written = self.file.write_at(buf, at).await.0;
        written.map_err(|source| self.io(source))?;
        let out = self.file.write_out(at, len).await;
        out.map_err(|source| self.unsynced(source))
    }

    /// Reads up to `count` nodes side by side from place `first` on; fewer at the end of the file. One that was never written is `None`.
    ///
    /// # Errors
    /// The disk's.
    pub async fn read(
        &self,
        first: u64,
        count: usize,
    ) -> Result<Vec<Option<TreeHash>>, TreeFileError> {
        let at = NODES + first * NODE_BYTES as u64;
        let bytes = read_bytes::<D>(&self.file, at, count * NODE_BYTES)
            .await
            .map_err(|source| self.io(source))?;
        let node = |slot: &[u8]| TreeHash::from_bytes(slot).filter(|_| !is_zero(slot));
        Ok(bytes.chunks_exact(NODE_BYTES).map(node).collect())
    }

    /// Reads one node; `None` if it is not kept.
    ///
    /// # Errors
    /// The disk's.
    pub async fn node(&self, node: Node) -> Result<Option<TreeHash>, TreeFileError> {
        let read = self.read(node.place(), 1).await?;
        Ok(read.first().copied().flatten())
    }

    /// Makes everything written durable, then the statement that the tree is this one.
    ///
    /// # Errors
    /// `Unsynced`; the mark before it, or this one, counts. All nodes behind the mark have to be written again.
    pub async fn mark(&mut self, peaks: &Peaks) -> Result<(), TreeFileError> {
        let mark = Mark {
            serial: self.mark.serial + 1,
            peaks: peaks.clone(),
        };
        let page = AlignedBuf::padded_from(&mark.encode(self.lineage));
        let at = mark.serial % 2 * PAGE;
        let marked = async {
            self.file.sync().await?;
            self.file.write_durable(page, at).await.0
        };
        marked.await.map_err(|source| self.unsynced(source))?;
        self.mark = mark;
        Ok(())
    }
}

async fn read_bytes<D: Disk>(file: &D::File, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buf = AlignedBuf::zeroed(len);
    buf.set_len(len);
    let (read, buf) = file.read_at(buf, at).await;
    Ok(buf[..read?].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::SimDisk;
    use crate::testing::{block_on, crash_points, golden};

    const LINEAGE: Lineage = Lineage(5);

    fn grown(size: u64) -> (Peaks, Vec<TreeHash>) {
        let (mut peaks, mut nodes) = (Peaks::default(), Vec::new());
        for leaf in 0..size {
            let leaf = TreeHash::of_leaf(&leaf.to_be_bytes());
            peaks.push(leaf, |node| nodes.push(*node));
        }
        (peaks, nodes)
    }

    #[test]
    fn mark_bytes_are_golden_and_every_flipped_bit_is_seen() {
        let peaks = grown(11).0;
        let mark = Mark { serial: 3, peaks };
        let bytes = mark.encode(LINEAGE);
        golden("tree-mark", &bytes);
        assert_eq!(Mark::decode(LINEAGE, &bytes), Ok(Some(mark)));
        assert_eq!(Mark::decode(Lineage(6), &bytes), Ok(None));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Mark::decode(LINEAGE, &bad), Ok(None), "bit {bit}");
        }
        assert_eq!(Mark::decode(LINEAGE, &bytes[1..]), Ok(None));
    }

    #[test]
    fn a_crash_leaves_a_marked_tree_with_all_its_nodes() {
        let dir = Path::new("/v");
        for seed in 0..4 {
            crash_points(
                seed,
                |disk| {
                    use crate::engine::Disk as _;
                    block_on(disk.create_dir_all(dir)).expect("create");
                    block_on(TreeFile::create(disk, dir, LINEAGE)).expect("create");
                },
                |disk, done| async move {
                    let open = TreeFile::open(&disk, dir, LINEAGE).await.expect("open");
                    let mut tree = open.expect("it is there");
                    for size in [3, 8, 21] {
                        let from = Node::count(tree.marked().size());
                        let (peaks, nodes) = grown(size);
                        let at = usize::try_from(from).expect("small");
                        tree.write(from, &nodes[at..]).await.expect("write");
                        tree.mark(&peaks).await.expect("mark");
                        done.set(size);
                    }
                },
                |disk, done: u64| {
                    let open = block_on(TreeFile::open(&disk, dir, LINEAGE)).expect("open");
                    let tree = open.expect("it is there");
                    let size = tree.marked().size();
                    assert!(size >= done, "{size} after {done}");
                    let (peaks, nodes) = grown(size);
                    assert_eq!(tree.marked(), &peaks);
                    let kept = block_on(tree.read(0, nodes.len())).expect("read");
                    assert_eq!(kept, nodes.into_iter().map(Some).collect::<Vec<_>>());
                },
            );
        }
    }

    #[test]
    fn what_was_never_written_is_not_kept() {
        let disk = SimDisk::immediate(1);
        let dir = Path::new("/v");
        block_on(disk.create_dir_all(dir)).expect("create");
        let none = block_on(TreeFile::open(&disk, dir, LINEAGE)).expect("open");
        assert!(none.is_none());
        let tree = block_on(TreeFile::create(&disk, dir, LINEAGE)).expect("create");
        let hash = TreeHash::of_leaf(b"node");
        block_on(tree.write(4, &[hash])).expect("write");
        let read = block_on(tree.read(3, 5)).expect("read");
        assert_eq!(read, [None, Some(hash)]);
    }

    /// The order of events: there was no descriptor for the directory when the file was made, it was opened later, and its first mark let
    /// the log give entries back. A loss of power took the file away.
    #[test]
    fn a_file_that_was_not_made_to_its_end_outlives_a_loss_of_power_once_it_is_open() {
        use crate::engine::Disk as _;
        use crate::engine::sim::{Fault, OpKind};
        let (disk, dir) = (SimDisk::immediate(1), Path::new("/v"));
        block_on(disk.create_dir_all(dir)).expect("directory");
        disk.fail_nth(OpKind::SyncDir, 1, Fault::NoDescriptor);
        let made = block_on(TreeFile::create(&disk, dir, LINEAGE));
        assert!(matches!(made, Err(TreeFileError::Io { .. })));
        let opened = block_on(TreeFile::open(&disk, dir, LINEAGE)).expect("it opens");
        let (peaks, nodes) = grown(5);
        let mut file = opened.expect("a file");
        block_on(file.write(0, &nodes)).expect("written");
        block_on(file.mark(&peaks)).expect("marked");
        disk.crash();
        let opened = block_on(TreeFile::open(&disk, dir, LINEAGE)).expect("it opens");
        assert_eq!(opened.map(|file| file.marked().size()), Some(5));
    }
}
