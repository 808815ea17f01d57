//! A tree over a real log on a simulated disk.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use mainstay_storage::engine::SimDisk;
use mainstay_storage::engine::sim::{Fault, OpKind};
use mainstay_storage::format::{encode_unstamped, entry_bytes, stamp};
use mainstay_storage::{EntryKind, LogEnd, Wal, WalConfig};
use mainstay_types::merkle::Leaf;
use mainstay_types::{Epoch, Incarnation, LogPoint, SessionId};

use super::*;
use crate::batch::FLAG_MORE;

const LINEAGE: Lineage = Lineage(7);
const DIR: &str = "/v";

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}

/// What an entry is, and what the tree must show of it.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Record,
    /// Of a batch of this number, with more to come.
    More(u64),
    /// Of a batch of this number, the last one.
    Last(u64),
    Epoch,
}

/// A log that is written entry by entry, and what its readers are shown.
struct Rig {
    disk: SimDisk,
    wal: Wal<SimDisk>,
    end: LogEnd,
    entries: Vec<EntryRef>,
}

impl Rig {
    fn new() -> Self {
        Self::with_seed(3)
    }

    fn with_seed(seed: u64) -> Self {
        let disk = SimDisk::immediate(seed);
        let dir = Path::new(DIR);
        block_on(disk.create_dir_all(dir)).expect("directory");
        let wal = block_on(Self::wal(&disk));
        Self {
            disk,
            wal,
            end: LogEnd::ZERO,
            entries: Vec::new(),
        }
    }

    async fn wal(disk: &SimDisk) -> Wal<SimDisk> {
        let config = WalConfig {
            segment_bytes: 64 << 10,
            ..WalConfig::new(LINEAGE, Incarnation(1))
        };
        let dir = Path::new(DIR);
        Wal::create(disk.clone(), dir, config, LogEnd::ZERO)
            .await
            .expect("log");
        Wal::open(disk.clone(), dir, config).await.expect("log").0
    }

    fn append(&mut self, kinds: &[Kind]) {
        for kind in kinds {
            let lsn = self.end.point.lsn.next();
            let (seq, more) = match kind {
                Kind::More(seq) => (*seq, true),
                Kind::Last(seq) => (*seq, false),
                Kind::Record | Kind::Epoch => (1_000_000 + lsn.0, false),
            };
            let entry_kind = match kind {
                Kind::Epoch => EntryKind::EpochStart,
                _ => EntryKind::Record,
            };
            let data = payload(lsn);
            let time = lsn.0 * 1000 + 7;
            let mut entry = encode_unstamped(entry_kind, SessionId(9), 1, seq, time, &data);
            entry[33] = if more { FLAG_MORE } else { 0 };
            assert_eq!(entry.len(), entry_bytes(data.len()));
            let crc = stamp(&mut entry, LINEAGE, Epoch(1), lsn, self.end.crc);
            let point = LogPoint {
                epoch: Epoch(1),
                lsn,
            };
            self.end = LogEnd { point, crc };
            let bytes: Bytes = entry.freeze();
            let stored = block_on(self.wal.append(std::slice::from_ref(&bytes), Lsn::ZERO));
            assert_eq!(stored.expect("append").point().lsn, lsn);
            let entries = EntryIter::new(LINEAGE, bytes).map(|entry| entry.expect("own"));
            self.entries.extend(entries);
        }
    }

    fn open(&self) -> Result<Tree<SimDisk>, TreeError> {
        let index = self.wal.index();
        block_on(Tree::open(
            self.disk.clone(),
            Path::new(DIR),
            index,
            LINEAGE,
        ))
    }

    fn end(&self) -> Lsn {
        self.end.point.lsn
    }

    /// Flips a byte of the stored nodes.
    fn damage(&self, place: u64) {
        let node = TreeHash::of_leaf(b"rot");
        let open = block_on(TreeFile::open(&self.disk, Path::new(DIR), LINEAGE)).expect("open");
        block_on(open.expect("a file").write(place, &[node])).expect("write");
    }
}

fn payload(lsn: Lsn) -> Vec<u8> {
    format!("record {lsn}").into_bytes()
}

/// The root over positions of which the readers see those that `shown` says.
fn expected(shown: &[bool]) -> TreeRoot {
    let mut peaks = Peaks::default();
    for (number, shown) in (1..).zip(shown) {
        let lsn = Lsn(number);
        let data = payload(lsn);
        let leaf = if *shown {
            Leaf::Record {
                lsn,
                timestamp_us: number,
                data: &data,
            }
        } else {
            Leaf::Blank { lsn }
        };
        peaks.push(leaf.hash(), |_| {});
    }
    peaks.root()
}

fn ask(tree: &Tree<SimDisk>, size: u64, proof: ProofWanted) -> Result<TreeAnswer, TreeError> {
    let question = TreeQuestion {
        size: Some(size),
        proof,
    };
    block_on(tree.answer(&question, Lsn(tree.size())))
}

fn caught_up(tree: &mut Tree<SimDisk>, through: Lsn) -> CaughtUp {
    loop {
        let step = block_on(tree.catch_up(through)).expect("read");
        if step != CaughtUp::Partly {
            return step;
        }
    }
}

#[test]
fn a_batch_is_a_part_of_the_tree_once_it_is_decided() {
    let mut rig = Rig::new();
    let mut tree = rig.open().expect("a tree");
    let steps: [(&[Kind], &[bool]); 5] = [
        (&[Kind::Epoch, Kind::Record], &[false, true]),
        (&[Kind::More(1), Kind::More(1)], &[false, true]),
        (&[Kind::Last(1)], &[false, true, true, true, true]),
        (&[Kind::More(2)], &[false, true, true, true, true]),
        (
            &[Kind::Epoch, Kind::Record],
            &[false, true, true, true, true, false, false, true],
        ),
    ];
    for (kinds, shown) in steps {
        rig.append(kinds);
        assert!(tree.take(&rig.entries));
        assert_eq!(tree.taken(), rig.end());
        assert_eq!(tree.root(), expected(shown));
    }
}

#[test]
fn a_tree_does_not_depend_on_how_its_entries_came() {
    let mut rig = Rig::new();
    rig.append(&[Kind::Epoch, Kind::More(4), Kind::Last(4), Kind::More(5)]);
    rig.append(&[Kind::Epoch]);
    rig.append(&[Kind::Record; 60]);
    let mut live = rig.open().expect("a tree");
    assert!(!live.take(&rig.entries[1..]), "one is missing in front");
    for entry in &rig.entries {
        assert!(live.take(std::slice::from_ref(entry)));
    }
    let mut late = rig.open().expect("a tree");
    let beyond = Lsn(rig.end().0 + 5);
    assert_eq!(caught_up(&mut late, beyond), CaughtUp::AsFarAsDurable);
    assert_eq!(late.root(), live.root());
    // From the middle of the log, with what was marked before.
    block_on(live.mark(Lsn(3))).expect("mark");
    let mut again = rig.open().expect("a tree");
    assert_eq!((again.size(), again.marked()), (3, 3));
    assert_eq!(caught_up(&mut again, rig.end()), CaughtUp::Whole);
    assert_eq!(again.root(), live.root());
}

#[test]
fn every_proof_that_is_served_verifies() {
    let mut rig = Rig::new();
    rig.append(&[Kind::Record; 37]);
    let mut tree = rig.open().expect("a tree");
    assert!(tree.take(&rig.entries[..20]));
    block_on(tree.mark(Lsn(20))).expect("mark");
    assert!(tree.take(&rig.entries[20..]));
    for size in 0..=37 {
        let root = ask(&tree, size, ProofWanted::None).expect("a root").root;
        let shown = vec![true; usize::try_from(size).expect("small")];
        assert_eq!(root, expected(&shown));
        for old_size in 0..=size {
            let wanted = ProofWanted::Consistency(old_size);
            let path = ask(&tree, size, wanted).expect("a proof").path;
            let old = ask(&tree, old_size, ProofWanted::None)
                .expect("a root")
                .root;
            let proof = ConsistencyProof {
                old_size,
                new_size: size,
                path,
            };
            assert_eq!(proof.verify(&old, &root), Ok(()));
        }
        for lsn in 1..=size {
            let wanted = ProofWanted::Inclusion(Lsn(lsn));
            let path = ask(&tree, size, wanted).expect("a proof").path;
            let lsn = Lsn(lsn);
            let leaf = Leaf::Record {
                lsn,
                timestamp_us: lsn.0,
                data: &payload(lsn),
            };
            let proof = InclusionProof { lsn, size, path };
            assert_eq!(proof.verify(&leaf, &root), Ok(()));
        }
    }
    let outside = ask(&tree, 5, ProofWanted::Inclusion(Lsn(6)));
    assert!(matches!(outside, Err(TreeError::Outside { .. })));
    let outside = ask(&tree, 5, ProofWanted::Inclusion(Lsn(0)));
    assert!(matches!(outside, Err(TreeError::Outside { .. })));
    let outside = ask(&tree, 5, ProofWanted::Consistency(6));
    assert!(matches!(outside, Err(TreeError::Outside { .. })));
    let beyond = ask(&tree, 38, ProofWanted::None);
    assert!(matches!(beyond, Err(TreeError::Beyond { .. })));
}

#[test]
fn rotten_nodes_are_never_served_and_are_computed_again_from_the_log() {
    let mut rig = Rig::new();
    rig.append(&[Kind::Record; 37]);
    let mut tree = rig.open().expect("a tree");
    assert!(tree.take(&rig.entries));
    block_on(tree.mark(Lsn(37))).expect("mark");
    let leaf = Node { level: 0, index: 4 };
    let inner = Node { level: 2, index: 1 };
    for rotten in [leaf, inner] {
        rig.damage(rotten.place());
        let wanted = ProofWanted::Inclusion(Lsn(if rotten.level == 0 { 5 } else { 1 }));
        let served = ask(&tree, 37, wanted);
        assert!(matches!(served, Err(TreeError::Damaged)));
        block_on(tree.repair()).expect("the log has all of it");
        assert!(ask(&tree, 37, wanted).is_ok());
    }
}

/// A failed sync drops what it did not write, and the next one succeeds: a mark behind it would speak of nodes that a crash takes away.
#[test]
fn what_a_failed_sync_may_have_lost_is_written_again_before_the_next_mark() {
    for kind in [OpKind::WriteOut, OpKind::Sync] {
        for seed in 0..8 {
            let mut rig = Rig::with_seed(seed);
            rig.append(&[Kind::Record; 300]);
            let mut tree = rig.open().expect("a tree");
            assert!(tree.take(&rig.entries[..100]));
            block_on(tree.mark(Lsn(100))).expect("mark");
            assert!(tree.take(&rig.entries[100..]));
            rig.disk.fail_nth(kind, 1, Fault::Eio);
            let failed = block_on(tree.mark(rig.end()));
            assert!(matches!(
                failed,
                Err(TreeError::File(TreeFileError::Unsynced { .. }))
            ));
            assert_eq!((tree.marked(), tree.taken()), (100, Lsn(100)));
            assert_eq!(caught_up(&mut tree, rig.end()), CaughtUp::Whole);
            block_on(tree.mark(rig.end())).expect("mark");
            drop(tree);
            rig.disk.crash();
            let tree = rig.open().expect("a tree");
            assert_eq!(tree.marked(), 300);
            for lsn in 1..=300 {
                let served = ask(&tree, 300, ProofWanted::Inclusion(Lsn(lsn)));
                assert!(served.is_ok(), "{lsn} is lost: {kind:?}, seed {seed}");
            }
        }
    }
}

#[test]
fn a_log_that_was_trimmed_repairs_what_it_holds_and_keeps_the_rest() {
    let mut rig = Rig::new();
    while rig.wal.index().segment_count() < 3 {
        rig.append(&[Kind::Record; 50]);
    }
    let mut tree = rig.open().expect("a tree");
    assert!(tree.take(&rig.entries));
    block_on(tree.mark(rig.end())).expect("mark");
    block_on(rig.wal.recycle_below(rig.end())).expect("recycle");
    let first = rig.wal.index().first_lsn();
    assert!(first > Lsn(10), "{first}");
    let size = tree.size();
    let old = ProofWanted::Consistency(7);
    assert!(
        ask(&tree, size, old).is_ok(),
        "hashes outlive their records"
    );
    let held = Node {
        level: 0,
        index: first.0 + 2,
    };
    rig.damage(held.place());
    let wanted = ProofWanted::Inclusion(Lsn(held.index + 1));
    assert!(matches!(ask(&tree, size, wanted), Err(TreeError::Damaged)));
    block_on(tree.repair()).expect("the log holds it");
    assert!(ask(&tree, size, wanted).is_ok());
    // What is damaged in front of the log cannot be computed again, and is not made worse.
    let gone = Node { level: 0, index: 2 };
    rig.damage(gone.place());
    let wanted = ProofWanted::Inclusion(Lsn(3));
    assert!(matches!(ask(&tree, size, wanted), Err(TreeError::Damaged)));
    block_on(tree.repair()).expect("nothing of what the log holds is damaged");
    assert!(matches!(ask(&tree, size, wanted), Err(TreeError::Damaged)));
    assert!(ask(&tree, size, old).is_ok());
}

#[test]
fn a_copy_from_before_trees_builds_one_or_says_that_it_cannot() {
    let mut rig = Rig::new();
    while rig.wal.index().segment_count() < 3 {
        rig.append(&[Kind::Record; 50]);
    }
    let mut tree = rig
        .open()
        .expect("the log reaches back to its first position");
    assert_eq!(caught_up(&mut tree, rig.end()), CaughtUp::Whole);
    let shown = vec![true; rig.entries.len()];
    assert_eq!(tree.root(), expected(&shown));
    // Its nodes were never marked: after a crash it is as a copy without a tree.
    block_on(rig.wal.recycle_below(rig.end())).expect("recycle");
    assert!(matches!(rig.open(), Err(TreeError::Absent(_))));
    block_on(rig.disk.remove(&Path::new(DIR).join("tree"))).expect("remove");
    assert!(matches!(rig.open(), Err(TreeError::Absent(_))));
}

#[test]
fn a_received_tree_is_checked_node_by_node() {
    let mut rig = Rig::new();
    rig.append(&[Kind::Record; 37]);
    let mut tree = rig.open().expect("a tree");
    assert!(tree.take(&rig.entries));
    block_on(tree.mark(Lsn(37))).expect("mark");
    let to = Path::new("/copy");
    let pieces = |bytes: &Bytes| -> Vec<Bytes> {
        let cut = bytes.len() / 64 * 32;
        vec![bytes.slice(..cut), bytes.slice(cut..)]
    };
    let import = |bytes: &Bytes, base: u64| {
        block_on(rig.disk.create_dir_all(to)).expect("directory");
        let mut import = block_on(TreeImport::begin(&rig.disk, to, LINEAGE)).expect("begin");
        for piece in pieces(bytes) {
            block_on(import.take(&piece)).expect("take");
        }
        block_on(import.finish(Lsn(base))).expect("finish")
    };
    for base in [1, 2, 7, 30, 37] {
        let file = block_on(TreeFile::open(&rig.disk, Path::new(DIR), LINEAGE)).expect("open");
        let exported = block_on(export_nodes(&file.expect("a file"), Lsn(base), 0));
        let (bytes, next) = exported.expect("read").expect("nodes");
        assert_eq!(next, Node::count(base));
        assert!(import(&bytes, base));
        let received = block_on(TreeFile::open(&rig.disk, to, LINEAGE)).expect("open");
        let root = received.expect("a file").marked().root();
        let kept = ask(&tree, base, ProofWanted::None).expect("a root").root;
        assert_eq!(root, kept);
        assert!(!import(&bytes, base + 1));
        assert!(!import(&bytes.slice(1..), base));
        if base > 1 {
            // The second leaf: the node above it does not fit any more.
            let mut bad = bytes.to_vec();
            bad[40] ^= 1;
            assert!(!import(&bad.into(), base));
        }
    }
}
