//! Which store each witness votes from, as this node has seen it: a witness that lost its store, or got an older copy of it
//! back, has forgotten promises and must not vote under its old number (trap M1, rule R8).
//!
//! A mark is the random id of a store and the number of its starts. It travels in every `Hello`, and whoever hears it keeps it
//! durably before the link carries anything. Another id, or a lower count, closes the link in both directions: to this node
//! that witness is silent from then on. The first mark of a witness is believed.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use mainstay_types::NodeId;
use serde::{Deserialize, Serialize};

const FILE: &str = "witness-stores.json";

/// A store at one start of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMark {
    /// Drawn at random when the store was made; not zero.
    pub id: u64,
    /// How often it was opened.
    pub boots: u64,
}

/// Why a witness is not listened to.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// Its store was replaced.
    #[error(
        "witness {node} votes from another store than before: a new one has forgotten what it promised. Give it its old \
         store back; if that is lost, keep the witness off: the others go on without it as long as they are a majority"
    )]
    OtherStore {
        /// The witness.
        node: NodeId,
    },
    /// Its store is an older copy.
    #[error(
        "witness {node} votes from an older copy of its store ({found} starts, {known} are known): it has forgotten what it \
         promised since. Give it its newest store back, or keep it off"
    )]
    OlderStore {
        /// The witness.
        node: NodeId,
        /// Its count.
        found: u64,
        /// The greatest count that this node has seen.
        known: u64,
    },
    /// This node cannot keep the mark, and so must not act on it.
    #[error("{path}: {why}")]
    File {
        /// Which file.
        path: String,
        /// What happened.
        why: String,
    },
}

/// The marks known here.
#[derive(Debug)]
pub struct StoreMarks {
    path: PathBuf,
    known: Mutex<BTreeMap<NodeId, StoreMark>>,
}

impl StoreMarks {
    /// Those that a node kept in `dir`.
    ///
    /// # Errors
    /// The file does not read.
    pub fn open(dir: &Path) -> Result<Self, MarkError> {
        let path = dir.join(FILE);
        let known = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let why = format!(
                    "{error}. It says which store each witness votes from; remove it only if none was replaced or restored"
                );
                MarkError::File {
                    path: path.display().to_string(),
                    why,
                }
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(file_error(&path, &error)),
        };
        Ok(Self {
            path,
            known: Mutex::new(known),
        })
    }

    /// Judges what a witness says of its store, and keeps it, durably on return. Blocks on the disk if it is news.
    ///
    /// # Errors
    /// The witness must not be listened to; or the mark could not be kept.
    pub fn check(&self, node: NodeId, found: StoreMark) -> Result<(), MarkError> {
        let mut known = self.known.lock().expect("no panic while the lock is held");
        match known.get(&node) {
            Some(before) if before.id != found.id => return Err(MarkError::OtherStore { node }),
            Some(before) if before.boots > found.boots => {
                return Err(MarkError::OlderStore {
                    node,
                    found: found.boots,
                    known: before.boots,
                });
            }
            Some(before) if *before == found => return Ok(()),
            _ => {}
        }
        let mut next = known.clone();
        next.insert(node, found);
        store(&self.path, &next).map_err(|error| file_error(&self.path, &error))?;
        *known = next;
        Ok(())
    }
}

fn file_error(path: &Path, error: &std::io::Error) -> MarkError {
    MarkError::File {
        path: path.display().to_string(),
        why: error.to_string(),
    }
}

/// Replaces the file: a crash leaves the old one or the new one.
fn store(path: &Path, known: &BTreeMap<NodeId, StoreMark>) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    let aside = path.with_extension("new");
    let mut file = std::fs::File::create(&aside)?;
    file.write_all(&serde_json::to_vec(known)?)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_that_forgot_is_told_from_one_that_restarted() {
        let dir = tempfile::tempdir().expect("a directory");
        let (w, mark) = (NodeId(101), |id, boots| StoreMark { id, boots });
        {
            let marks = StoreMarks::open(dir.path()).expect("opens");
            marks.check(w, mark(7, 3)).expect("the first is believed");
            marks.check(w, mark(7, 3)).expect("the same process again");
            marks.check(w, mark(7, 5)).expect("restarted");
            marks.check(NodeId(102), mark(8, 1)).expect("another one");
        }
        let marks = StoreMarks::open(dir.path()).expect("opens");
        let older = marks.check(w, mark(7, 4));
        assert!(
            matches!(
                older,
                Err(MarkError::OlderStore {
                    found: 4,
                    known: 5,
                    ..
                })
            ),
            "{older:?}"
        );
        let other = marks.check(w, mark(9, 9));
        assert!(
            matches!(other, Err(MarkError::OtherStore { .. })),
            "{other:?}"
        );
        marks
            .check(w, mark(7, 6))
            .expect("the right one is still welcome");
    }

    #[test]
    fn a_mark_that_cannot_be_kept_is_not_acted_upon() {
        let dir = tempfile::tempdir().expect("a directory");
        let marks = StoreMarks::open(&dir.path().join("gone")).expect("nothing is known");
        let mark = StoreMark { id: 1, boots: 1 };
        for _ in 0..2 {
            let kept = marks.check(NodeId(101), mark);
            assert!(matches!(kept, Err(MarkError::File { .. })), "{kept:?}");
        }
        std::fs::write(dir.path().join(FILE), b"{nonsense").expect("written");
        let error = StoreMarks::open(dir.path()).expect_err("does not read");
        assert!(error.to_string().contains("remove it only if"), "{error}");
    }
}
