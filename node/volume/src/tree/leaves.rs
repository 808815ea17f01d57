//! From entries to leaves: what a reader is shown at each position.
//!
//! What becomes of a batch is a function of the entries behind it alone (`batch.rs`), so leaves can be made from any entry on, also
//! from the middle of a batch whose beginning was given back.

use mainstay_storage::EntryKind;
use mainstay_storage::format::{EntryHeader, EntryRef};
use mainstay_types::merkle::{Leaf, LeafHashes, TreeHash};
use mainstay_types::{Lsn, SessionId};

use crate::batch::FLAG_MORE;

/// Entries whose leaves are not decided: the records of a batch that is not whole yet.
#[derive(Debug, Default)]
pub(super) struct Leaves {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    session: SessionId,
    generation: u32,
    seq: u64,
    first: Lsn,
    /// The leaves, if the batch becomes whole.
    hashes: Vec<TreeHash>,
}

impl Open {
    fn goes_on_with(&self, header: &EntryHeader) -> bool {
        header.kind == EntryKind::Record
            && (self.session, self.generation, self.seq)
                == (header.session, header.generation, header.seq)
    }
}

impl Leaves {
    /// Takes the next committed entries, and gives every leaf that is decided now, in the order of positions, to `decided`.
    pub(super) fn take(&mut self, entries: &[EntryRef], mut decided: impl FnMut(TreeHash)) {
        let mut hashes = LeafHashes::default();
        for entry in entries {
            add_leaf_of(entry, &mut hashes);
        }
        for (entry, leaf) in entries.iter().zip(hashes.finish()) {
            self.take_one(entry, leaf, &mut decided);
        }
    }

    fn take_one(&mut self, entry: &EntryRef, leaf: TreeHash, mut decided: impl FnMut(TreeHash)) {
        let header = &entry.header;
        let open = match self.open.take() {
            Some(open) if !open.goes_on_with(header) => {
                // Cut short: its records are shown to nobody.
                for (at, _) in (0..).zip(&open.hashes) {
                    let lsn = Lsn(open.first.0 + at);
                    decided(Leaf::Blank { lsn }.hash());
                }
                None
            }
            open => open,
        };
        if header.kind == EntryKind::Record && header.flags & FLAG_MORE != 0 {
            let mut open = open.unwrap_or_else(|| Open {
                session: header.session,
                generation: header.generation,
                seq: header.seq,
                first: header.point.lsn,
                hashes: Vec::new(),
            });
            open.hashes.push(leaf);
            self.open = Some(open);
            return;
        }
        let held = open.map(|open| open.hashes).unwrap_or_default();
        held.into_iter().for_each(&mut decided);
        decided(leaf);
    }
}

fn add_leaf_of(entry: &EntryRef, hashes: &mut LeafHashes) {
    let header = &entry.header;
    let lsn = header.point.lsn;
    match header.kind {
        EntryKind::Record => hashes.add(&Leaf::Record {
            lsn,
            timestamp_us: header.arg / 1000,
            data: &entry.payload(),
        }),
        _ => hashes.add(&Leaf::Blank { lsn }),
    }
}
