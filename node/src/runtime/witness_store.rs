//! A witness's durable records, in redb: a few hundred bytes a volume, one durable transaction for each batch.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay_replication::message::Ballot;
use mainstay_replication::{SetState, WitnessRecord};
use mainstay_storage::engine::is_no_space;
use mainstay_types::{ClusterId, Epoch, Instance, NodeId, Register, VolumeId};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};

use super::store_marks::StoreMark;
use super::witness_sets::StoredSet;

const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
const FACTS: TableDefinition<'_, &str, u64> = TableDefinition::new("facts");

const SETS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("sets");

/// The one row of `sets`.
const SET: &str = "set";

/// Version of the JSON in `records` and `sets`.
const VERSION: u16 = 1;

/// One write, in order.
#[derive(Debug)]
pub enum Write {
    /// Of one volume.
    Record(VolumeId, WitnessRecord),
    /// Of the witnesses; every record goes first if the flag is set.
    Set(Box<SetState>, bool),
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database.
    #[error("witness store: {0}")]
    Database(String),
    /// No room. Nothing was stored, and the same may be stored later.
    #[error("witness store: no space left")]
    NoSpace,
    /// A record does not decode.
    #[error("witness store: record of volume {volume} is damaged: {why}")]
    Record {
        /// Which.
        volume: VolumeId,
        /// What is wrong.
        why: String,
    },
    /// It belongs to another witness.
    #[error(
        "this witness store belongs to node {found_node} of cluster {found_cluster}, this is node {node} of cluster \
         {cluster}: give this node its own directory"
    )]
    OtherNode {
        /// Found.
        found_cluster: ClusterId,
        /// Found.
        found_node: u64,
        /// Ours.
        cluster: ClusterId,
        /// Ours.
        node: NodeId,
    },
}

#[derive(Serialize, Deserialize)]
struct StoredState {
    version: u16,
    set: StoredSet,
    store: u64,
    promised: (u64, Instance),
    accepted: Option<((u64, Instance), StoredSet)>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u16,
    promised: (u64, Instance),
    accepted: Option<((u64, Instance), Register)>,
    fenced: Epoch,
}

/// The open store.
#[derive(Debug)]
pub struct WitnessStore {
    path: PathBuf,
    cluster: ClusterId,
    node: NodeId,
    /// None after it ran out of room: what such a database wrote last is not known to be on the disk.
    database: Option<Database>,
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(error) if is_no_space(&error) => StoreError::NoSpace,
        error => StoreError::Database(error.to_string()),
    }
}

impl WitnessStore {
    /// Opens or makes the store at `path`.
    ///
    /// # Errors
    /// It belongs to another node, is damaged, or in use.
    pub fn open(path: &Path, cluster: ClusterId, node: NodeId) -> Result<Self, StoreError> {
        let database = Database::create(path).map_err(failed)?;
        claim(&database, cluster, node)?;
        Ok(Self {
            path: path.to_owned(),
            cluster,
            node,
            database: Some(database),
        })
    }

    fn database(&self) -> Result<&Database, StoreError> {
        self.database.as_ref().ok_or(StoreError::NoSpace)
    }

    /// Counts one start more, durably, and says which store this is.
    ///
    /// # Errors
    /// The database's.
    pub fn begin(&self, instance: Instance) -> Result<StoreMark, StoreError> {
        let before = mark(self.database()?)?;
        let next = StoreMark::after(before, instance);
        save_mark(self.database()?, next)?;
        Ok(next)
    }

    /// The longest lease that was ever configured, `present_ms` among them; durable on return (M2).
    ///
    /// # Errors
    /// The database's.
    pub fn longest_lease_ms(&self, present_ms: u64) -> Result<u64, StoreError> {
        let write = self.database()?.begin_write().map_err(failed)?;
        let longest = {
            let mut facts = write.open_table(FACTS).map_err(failed)?;
            let before = facts
                .get("lease_longest_ms")
                .map_err(failed)?
                .map_or(0, |value| value.value());
            let longest = before.max(present_ms);
            facts.insert("lease_longest_ms", longest).map_err(failed)?;
            longest
        };
        write.commit().map_err(failed)?;
        Ok(longest)
    }

    /// Every record.
    ///
    /// # Errors
    /// The database's, or a record does not decode.
    pub fn load(&self) -> Result<BTreeMap<VolumeId, WitnessRecord>, StoreError> {
        let read = self.database()?.begin_read().map_err(failed)?;
        let table = read.open_table(RECORDS).map_err(failed)?;
        let mut records = BTreeMap::new();
        for row in table.iter().map_err(failed)? {
            let (volume, bytes) = row.map_err(failed)?;
            let volume = VolumeId(volume.value());
            records.insert(volume, decode(volume, bytes.value())?);
        }
        Ok(records)
    }

    /// What is known of the witnesses; none in a store that never heard of any.
    ///
    /// # Errors
    /// The database's, or it does not decode.
    pub fn state(&self) -> Result<Option<SetState>, StoreError> {
        let lease_ms = self.longest_lease_ms(0)?;
        let read = self.database()?.begin_read().map_err(failed)?;
        let table = read.open_table(SETS).map_err(failed)?;
        let row = table.get(SET).map_err(failed)?;
        row.map(|bytes| decode_state(bytes.value(), lease_ms))
            .transpose()
    }

    /// Stores writes, in order; durable on return.
    ///
    /// # Errors
    /// The database's: nothing of it may be answered for. After `NoSpace` the same call may succeed later.
    pub fn save(&mut self, writes: &[Write]) -> Result<(), StoreError> {
        if self.database.is_none() {
            self.write_anew()?;
        }
        let saved = save(self.database()?, writes);
        if let Err(StoreError::NoSpace) = &saved {
            self.database = None;
        }
        saved
    }

    /// Puts a new file with the same content in the place of the one that ran out of room. A write of that one failed, so
    /// that what reads back from memory may not be on the disk; of the new one every byte is written and synced.
    fn write_anew(&mut self) -> Result<(), StoreError> {
        let io = |error: std::io::Error| failed(redb::StorageError::Io(error));
        let old = Self::open(&self.path, self.cluster, self.node)?;
        let records = old.load()?.into_iter();
        let mut writes: Vec<Write> = records
            .map(|(v, record)| Write::Record(v, record))
            .collect();
        writes.extend(old.state()?.map(|state| Write::Set(Box::new(state), false)));
        let lease_ms = old.longest_lease_ms(0)?;
        let mark = mark(old.database()?)?;
        drop(old);
        let aside = self.path.with_extension("new");
        if aside.exists() {
            std::fs::remove_file(&aside).map_err(io)?;
        }
        let new = Self::open(&aside, self.cluster, self.node)?;
        new.longest_lease_ms(lease_ms)?;
        if let Some(mark) = mark {
            save_mark(new.database()?, mark)?;
        }
        save(new.database()?, &writes)?;
        std::fs::rename(&aside, &self.path).map_err(io)?;
        let dir = self.path.parent().unwrap_or_else(|| Path::new("."));
        std::fs::File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io)?;
        self.database = new.database;
        Ok(())
    }
}

/// Makes the store this node's; refuses another's.
fn claim(database: &Database, cluster: ClusterId, node: NodeId) -> Result<(), StoreError> {
    let write = database.begin_write().map_err(failed)?;
    {
        let mut facts = write.open_table(FACTS).map_err(failed)?;
        write.open_table(RECORDS).map_err(failed)?;
        write.open_table(SETS).map_err(failed)?;
        let found_cluster = facts
            .get("cluster")
            .map_err(failed)?
            .map(|value| value.value());
        let found_node = facts
            .get("node")
            .map_err(failed)?
            .map(|value| value.value());
        match (found_cluster, found_node) {
            (Some(c), Some(n)) if c != cluster.0 || n != u64::from(node.0) => {
                return Err(StoreError::OtherNode {
                    found_cluster: ClusterId(c),
                    found_node: n,
                    cluster,
                    node,
                });
            }
            // Its own: nothing to write, so that a full disk does not keep it from being read.
            (Some(_), Some(_)) => return Ok(()),
            _ => {
                facts.insert("cluster", cluster.0).map_err(failed)?;
                facts.insert("node", u64::from(node.0)).map_err(failed)?;
            }
        }
    }
    write.commit().map_err(failed)
}

/// Which store this is; none before its first start.
fn mark(database: &Database) -> Result<Option<StoreMark>, StoreError> {
    let read = database.begin_read().map_err(failed)?;
    let facts = read.open_table(FACTS).map_err(failed)?;
    let fact = |name| {
        let found = facts.get(name).map_err(failed)?;
        Ok::<_, StoreError>(found.map(|value| value.value()))
    };
    let id = fact("store")?;
    let boots = fact("boots")?.unwrap_or(0);
    let instance = Instance(fact("opened_by")?.unwrap_or(0));
    Ok(id.map(|id| StoreMark {
        id,
        boots,
        instance,
    }))
}

fn save_mark(database: &Database, mark: StoreMark) -> Result<(), StoreError> {
    let write = database.begin_write().map_err(failed)?;
    {
        let mut facts = write.open_table(FACTS).map_err(failed)?;
        facts.insert("store", mark.id).map_err(failed)?;
        facts.insert("boots", mark.boots).map_err(failed)?;
        facts.insert("opened_by", mark.instance.0).map_err(failed)?;
    }
    write.commit().map_err(failed)
}

fn save(database: &Database, writes: &[Write]) -> Result<(), StoreError> {
    let json = |error: serde_json::Error| StoreError::Database(error.to_string());
    let write = database.begin_write().map_err(failed)?;
    for one in writes {
        match one {
            Write::Record(volume, record) => {
                let bytes = serde_json::to_vec(&encode(record)).map_err(json)?;
                let mut table = write.open_table(RECORDS).map_err(failed)?;
                table.insert(volume.0, bytes.as_slice()).map_err(failed)?;
            }
            Write::Set(state, wipe) => {
                if *wipe {
                    write.delete_table(RECORDS).map_err(failed)?;
                    write.open_table(RECORDS).map_err(failed)?;
                }
                let bytes = serde_json::to_vec(&encode_state(state)).map_err(json)?;
                let mut table = write.open_table(SETS).map_err(failed)?;
                table.insert(SET, bytes.as_slice()).map_err(failed)?;
                let lease_ms = u64::try_from(state.lease_longest.as_millis()).unwrap_or(u64::MAX);
                let mut facts = write.open_table(FACTS).map_err(failed)?;
                facts.insert("lease_longest_ms", lease_ms).map_err(failed)?;
            }
        }
    }
    write.commit().map_err(failed)
}

fn encode_state(state: &SetState) -> StoredState {
    let ballot = |ballot: Ballot| (ballot.counter, ballot.proposer);
    StoredState {
        version: VERSION,
        set: StoredSet::from(&state.set),
        store: state.store,
        promised: ballot(state.promised),
        accepted: state
            .accepted
            .as_ref()
            .map(|(at, set)| (ballot(*at), StoredSet::from(&**set))),
    }
}

fn decode_state(bytes: &[u8], lease_ms: u64) -> Result<SetState, StoreError> {
    let bad =
        |why: String| StoreError::Database(format!("who the witnesses are does not read: {why}"));
    let stored: StoredState =
        serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
    if stored.version != VERSION {
        return Err(bad(format!(
            "version {}, this program reads {VERSION}",
            stored.version
        )));
    }
    let ballot = |(counter, proposer)| Ballot { counter, proposer };
    Ok(SetState {
        set: stored.set.into(),
        store: stored.store,
        promised: ballot(stored.promised),
        accepted: stored
            .accepted
            .map(|(at, set)| (ballot(at), Box::new(set.into()))),
        lease_longest: Duration::from_millis(lease_ms),
    })
}

fn encode(record: &WitnessRecord) -> Stored {
    let ballot = |ballot: Ballot| (ballot.counter, ballot.proposer);
    Stored {
        version: VERSION,
        promised: ballot(record.promised),
        accepted: record
            .accepted
            .as_ref()
            .map(|(b, register)| (ballot(*b), (**register).clone())),
        fenced: record.fenced,
    }
}

fn decode(volume: VolumeId, bytes: &[u8]) -> Result<WitnessRecord, StoreError> {
    let bad = |why: String| StoreError::Record { volume, why };
    let stored: Stored = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
    if stored.version != VERSION {
        return Err(bad(format!(
            "version {}, this program reads {VERSION}",
            stored.version
        )));
    }
    let ballot = |(counter, proposer)| Ballot { counter, proposer };
    Ok(WitnessRecord {
        promised: ballot(stored.promised),
        accepted: stored
            .accepted
            .map(|(b, register)| (ballot(b), Box::new(register))),
        fenced: stored.fenced,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn votes_survive_a_restart_and_another_node_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("witness.redb");
        let record = WitnessRecord {
            promised: Ballot {
                counter: 7,
                proposer: Instance(3),
            },
            accepted: None,
            fenced: Epoch(2),
        };
        let first;
        {
            let mut store = WitnessStore::open(&path, ClusterId(1), NodeId(101)).expect("opens");
            store
                .save(&[Write::Record(VolumeId(5), record.clone())])
                .expect("saves");
            assert_eq!(store.longest_lease_ms(800).expect("stored"), 800);
            first = store.begin(Instance(1)).expect("counted");
        }
        {
            let store = WitnessStore::open(&path, ClusterId(1), NodeId(101)).expect("opens");
            assert_eq!(
                store.load().expect("loads").get(&VolumeId(5)),
                Some(&record)
            );
            assert_eq!(store.longest_lease_ms(500).expect("stored"), 800);
            let second = store.begin(Instance(2)).expect("counted");
            assert_eq!((second.id, second.boots), (first.id, first.boots + 1));
        }
        let other = WitnessStore::open(&path, ClusterId(1), NodeId(102));
        assert!(matches!(other, Err(StoreError::OtherNode { .. })));
    }
}
