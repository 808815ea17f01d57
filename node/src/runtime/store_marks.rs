//! What each node keeps its promises in, as this node has seen it: one that got an older copy back has forgotten promises and
//! acknowledged entries, and must not speak under its old name (trap M1, rule R8).
//!
//! A mark is a random id, the number of starts, and the process that counted the last one. Witness stores and data directories have one each; both travel in every
//! `Hello`, and whoever hears them keeps them durably before the link carries anything. A lower count, or the same one of another
//! process, closes the link in both directions: to this node the other one is silent from then on. So does another id of a witness, whose votes go by its
//! number. A data directory with another id is a blank one: its copies have new incarnations, and those count for nothing.
//! The first mark is believed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use mainstay_storage::engine::is_no_space;
use mainstay_types::{Instance, NodeId};
use serde::{Deserialize, Serialize};

use crate::files::write_json_durably;

const FILE: &str = "stores-seen.json";
const OWN: &str = "store-mark.json";

/// A store at one start of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreMark {
    /// Drawn at random when the store was made; not zero.
    pub id: u64,
    /// How often it was opened; zero if there was no room to count this time, which proves nothing.
    pub boots: u64,
    /// The process that opened it.
    pub instance: Instance,
}

impl StoreMark {
    /// Of the next start, by `instance`.
    #[must_use]
    pub fn after(before: Option<Self>, instance: Instance) -> Self {
        Self {
            id: before.map_or_else(|| rand::random_range(1..=u64::MAX), |mark| mark.id),
            boots: before.map_or(0, |mark| mark.boots) + 1,
            instance,
        }
    }

    /// Whether a process that says `self` cannot be a later one than, or the same as, one that said `known`.
    fn is_older(&self, known: &Self) -> bool {
        let again = self.boots == known.boots && self.instance != known.instance;
        self.boots != 0 && (self.boots < known.boots || again)
    }
}

/// What a node says of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeMarks {
    /// The store that it votes from, if it is a witness.
    pub witness: Option<StoreMark>,
    /// The directory that it keeps copies in, if it holds data.
    pub data: Option<StoreMark>,
    /// The name of the voter that `witness` was seen for (`docs/protocol.md`, R8). Kept, not sent.
    #[serde(default)]
    pub voter: u64,
}

/// Why a node is not listened to.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// A witness's store was replaced.
    #[error(
        "witness {node} votes from another store than before: a new one has forgotten what it promised. Give it its old \
         store back; if that is lost, remove it with `mainstay witness remove {node}`, start it with the role \
         \"standby-witness\" and an empty store, and add it again"
    )]
    OtherStore {
        /// The witness.
        node: NodeId,
    },
    /// A witness's store is an older copy.
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
    /// A data directory is an older copy.
    #[error(
        "node {node} runs on an older copy of its data directory ({found} starts, {known} are known): it lacks what it \
         acknowledged since. Give it its newest directory back, or an empty one: it is then filled from the other copies"
    )]
    OlderData {
        /// The node.
        node: NodeId,
        /// Its count.
        found: u64,
        /// The greatest count that this node has seen.
        known: u64,
    },
    /// This node cannot keep a mark, and so must not act on it.
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
    known: Mutex<BTreeMap<NodeId, NodeMarks>>,
}

impl StoreMarks {
    /// Those that a node kept in `dir`.
    ///
    /// # Errors
    /// The file does not read.
    pub fn open(dir: &Path) -> Result<Self, MarkError> {
        let path = dir.join(FILE);
        let known = read(&path)?.unwrap_or_default();
        Ok(Self {
            path,
            known: Mutex::new(known),
        })
    }

    /// Judges what a node says of its stores, and keeps it, durably on return. Blocks on the disk if it is news. `voter` is the
    /// name under which the witness set has that node: a mark belongs to it. What a node votes from that has no vote is of no
    /// interest, and one that was removed and came back is another voter.
    ///
    /// # Errors
    /// The node must not be listened to; or the marks could not be kept.
    pub fn check(
        &self,
        node: NodeId,
        found: NodeMarks,
        voter: Option<u64>,
    ) -> Result<(), MarkError> {
        let mut known = self.known.lock().expect("no panic while the lock is held");
        let before = known.get(&node).copied().unwrap_or_default();
        let known_voter = before.witness.filter(|_| voter == Some(before.voter));
        let found_voter = found.witness.filter(|_| voter.is_some());
        if let (Some(before), Some(found)) = (known_voter, found_voter) {
            check_witness(node, before, found)?;
        }
        if let (Some(before), Some(found)) = (before.data, found.data) {
            check_data(node, before, found)?;
        }
        // A node that is no witness for a while stays known as the one that it was.
        let after = NodeMarks {
            witness: newer(known_voter, found_voter).or(before.witness),
            voter: found_voter.and(voter).unwrap_or(before.voter),
            data: newer(before.data, found.data),
        };
        if after == before {
            return Ok(());
        }
        let mut next = known.clone();
        next.insert(node, after);
        write(&self.path, &next)?;
        *known = next;
        Ok(())
    }
}

fn newer(before: Option<StoreMark>, found: Option<StoreMark>) -> Option<StoreMark> {
    let counted = found.filter(|found| found.boots != 0 || before.is_none());
    counted.or(before)
}

fn check_witness(node: NodeId, before: StoreMark, found: StoreMark) -> Result<(), MarkError> {
    if before.id != found.id {
        return Err(MarkError::OtherStore { node });
    }
    if found.is_older(&before) {
        let (found, known) = (found.boots, before.boots);
        return Err(MarkError::OlderStore { node, found, known });
    }
    Ok(())
}

fn check_data(node: NodeId, before: StoreMark, found: StoreMark) -> Result<(), MarkError> {
    if before.id == found.id && found.is_older(&before) {
        let (found, known) = (found.boots, before.boots);
        return Err(MarkError::OlderData { node, found, known });
    }
    Ok(())
}

/// Counts one start more of the data directory `dir`, durably on return, and says which it is.
///
/// # Errors
/// The file does not read, or cannot be written.
pub fn begin_data(dir: &Path, instance: Instance) -> Result<StoreMark, MarkError> {
    let path = dir.join(OWN);
    let before: Option<StoreMark> = read(&path)?;
    let next = StoreMark::after(before, instance);
    match (write_json_durably(&path, &next), before) {
        (Ok(()), _) => Ok(next),
        (Err(error), Some(_)) if is_no_space(&error) => Ok(StoreMark { boots: 0, ..next }),
        (Err(error), _) => Err(file_error(&path, &error)),
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, MarkError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file_error(path, &error)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        let why = format!(
            "{error}. It tells stores from older copies of them; remove it only if none was replaced or restored"
        );
        MarkError::File {
            path: path.display().to_string(),
            why,
        }
    })
}

fn write<T: Serialize>(path: &Path, content: &T) -> Result<(), MarkError> {
    write_json_durably(path, content).map_err(|error| file_error(path, &error))
}

fn file_error(path: &Path, error: &std::io::Error) -> MarkError {
    MarkError::File {
        path: path.display().to_string(),
        why: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(id: u64, boots: u64) -> StoreMark {
        let instance = Instance(100 + boots);
        StoreMark {
            id,
            boots,
            instance,
        }
    }

    fn witness(id: u64, boots: u64) -> NodeMarks {
        NodeMarks {
            witness: Some(mark(id, boots)),
            ..NodeMarks::default()
        }
    }

    fn data(id: u64, boots: u64) -> NodeMarks {
        NodeMarks {
            data: Some(mark(id, boots)),
            ..NodeMarks::default()
        }
    }

    #[test]
    fn a_witness_that_forgot_is_told_from_one_that_restarted() {
        let dir = tempfile::tempdir().expect("a directory");
        let w = NodeId(101);
        {
            let marks = StoreMarks::open(dir.path()).expect("opens");
            marks
                .check(w, witness(7, 3), Some(0))
                .expect("the first is believed");
            marks
                .check(w, witness(7, 3), Some(0))
                .expect("the same process");
            marks.check(w, witness(7, 5), Some(0)).expect("restarted");
            marks
                .check(NodeId(102), witness(8, 1), Some(0))
                .expect("another");
        }
        let marks = StoreMarks::open(dir.path()).expect("opens");
        let older = marks.check(w, witness(7, 4), Some(0));
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
        marks
            .check(w, NodeMarks::default(), Some(0))
            .expect("no witness");
        let other = marks.check(w, witness(9, 9), Some(0));
        assert!(
            matches!(other, Err(MarkError::OtherStore { .. })),
            "{other:?}"
        );
        marks
            .check(w, witness(7, 6), Some(0))
            .expect("still welcome");
    }

    #[test]
    fn an_older_data_directory_is_refused_and_a_blank_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let (marks, n) = (StoreMarks::open(dir.path()).expect("opens"), NodeId(1));
        let first = begin_data(dir.path(), Instance(1)).expect("counted");
        let second = begin_data(dir.path(), Instance(2)).expect("counted");
        assert_eq!((second.id, second.boots), (first.id, first.boots + 1));
        marks
            .check(n, data(first.id, 5), Some(0))
            .expect("believed");
        let older = marks.check(n, data(first.id, 4), Some(0));
        assert!(
            matches!(
                older,
                Err(MarkError::OlderData {
                    found: 4,
                    known: 5,
                    ..
                })
            ),
            "{older:?}"
        );
        // Put back once, it counts to the same number again: another process does.
        let again = NodeMarks {
            data: Some(StoreMark {
                instance: Instance(9),
                ..mark(first.id, 5)
            }),
            ..NodeMarks::default()
        };
        let again = marks.check(n, again, Some(0));
        assert!(
            matches!(again, Err(MarkError::OlderData { .. })),
            "{again:?}"
        );
        marks
            .check(n, data(first.id, 0), Some(0))
            .expect("had no room to count");
        let older = marks.check(n, data(first.id, 4), Some(0));
        assert!(
            matches!(older, Err(MarkError::OlderData { .. })),
            "{older:?}"
        );
        marks
            .check(n, data(first.id ^ 1, 1), Some(0))
            .expect("a blank one");
    }

    #[test]
    fn a_mark_belongs_to_the_voter_that_the_set_names() {
        let dir = tempfile::tempdir().expect("a directory");
        let (marks, w) = (StoreMarks::open(dir.path()).expect("opens"), NodeId(101));
        marks.check(w, witness(7, 3), Some(0)).expect("believed");
        // Removed; whatever it says now binds nobody.
        marks.check(w, witness(8, 1), None).expect("has no vote");
        let back = marks.check(w, witness(8, 1), Some(0));
        assert!(
            matches!(back, Err(MarkError::OtherStore { .. })),
            "{back:?}"
        );
        marks
            .check(w, witness(9, 1), Some(55))
            .expect("another voter");
        let other = marks.check(w, witness(8, 2), Some(55));
        assert!(
            matches!(other, Err(MarkError::OtherStore { .. })),
            "{other:?}"
        );
        marks.check(w, witness(9, 2), Some(55)).expect("restarted");
    }

    #[test]
    fn a_mark_that_cannot_be_kept_is_not_acted_upon() {
        let dir = tempfile::tempdir().expect("a directory");
        let marks = StoreMarks::open(&dir.path().join("gone")).expect("nothing is known");
        for _ in 0..2 {
            let kept = marks.check(NodeId(101), witness(1, 1), Some(0));
            assert!(matches!(kept, Err(MarkError::File { .. })), "{kept:?}");
        }
        std::fs::write(dir.path().join(FILE), b"{nonsense").expect("written");
        let error = StoreMarks::open(dir.path()).expect_err("does not read");
        assert!(error.to_string().contains("remove it only if"), "{error}");
    }
}
