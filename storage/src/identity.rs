//! Whose data directory this is, and that only one process uses it. Real file systems only.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use mainstay_types::{ClusterId, NodeId};

use crate::engine::is_no_space;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process uses it.
    #[error(
        "{path} is in use by process {holder}; stop that process first, or give this node a directory of its own"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// What the holder wrote: its process id.
        holder: String,
    },
    /// It belongs to another node.
    #[error(
        "{path} belongs to node {found_node} of cluster {found_cluster}, this is node {node} of cluster {cluster}; nothing \
         was changed: name this node's own directory as node.data_dir"
    )]
    OtherNode {
        /// The directory.
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
    /// The identity file is not one.
    #[error(
        "{path} is not an identity file; nothing was changed: put the file back, or move the directory away and start with an empty one"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{path}")]
    Io {
        /// The path.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
}

/// Holds a data directory for this process until dropped.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { path, source }
}

impl DataDirLock {
    /// Makes the directory if it is missing and locks it. Does not wait. The lock ends with the process, however it
    /// ends.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] names the process that holds it.
    pub fn acquire(dir: &Path) -> Result<Self, DataDirError> {
        fs::create_dir_all(dir).map_err(io_error(dir))?;
        let path = dir.join("lock");
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_error(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let read = file.take(32).read_to_string(&mut holder);
                let known = read.is_ok() && !holder.trim().is_empty();
                return Err(DataDirError::InUse {
                    path: dir.to_owned(),
                    holder: if known {
                        holder.trim().to_owned()
                    } else {
                        "unknown".to_owned()
                    },
                });
            }
            Err(TryLockError::Error(source)) => return Err(DataDirError::Io { path, source }),
        }
        sign_lock(&mut file).map_err(io_error(&path))?;
        Ok(Self { _file: file })
    }
}

/// Writes into a lock file who holds it. In place, as a full disk has no other block for it; where it has none at all the file says
/// nobody: the lock counts, and this is for people.
///
/// # Errors
/// The file system's, but for a lack of room.
pub fn sign_lock(file: &mut File) -> io::Result<()> {
    let line = format!("{}\n", std::process::id());
    let signed = file
        .rewind()
        .and_then(|()| file.write_all(line.as_bytes()))
        .and_then(|()| file.set_len(line.len() as u64));
    match signed {
        // Rather nobody than the holder before.
        Err(error) if is_no_space(&error) => {
            let _as_it_is = file.set_len(0);
            Ok(())
        }
        signed => signed,
    }
}

/// Whose data directory it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeIdentity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Its node.
    pub node: NodeId,
}

impl NodeIdentity {
    /// Writes the identity at the first start, durable on return; compares it at later ones.
    ///
    /// # Errors
    /// [`DataDirError::OtherNode`] for a directory of another node or cluster, which is left as it is.
    pub fn claim(
        dir: &Path,
        _: &DataDirLock,
        cluster: ClusterId,
        node: NodeId,
    ) -> Result<Self, DataDirError> {
        let path = dir.join("identity");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::write(dir, &path, cluster, node).map_err(io_error(&path))?;
                return Ok(Self { cluster, node });
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(DataDirError::Damaged { path });
            }
            Err(source) => return Err(DataDirError::Io { path, source }),
        };
        let Some(found) = Self::parse(&text) else {
            return Err(DataDirError::Damaged { path });
        };
        if found != (Self { cluster, node }) {
            return Err(DataDirError::OtherNode {
                path: dir.to_owned(),
                found_cluster: found.cluster,
                found_node: found.node,
                cluster,
                node,
            });
        }
        Ok(found)
    }

    fn line(cluster: ClusterId, node: NodeId) -> String {
        format!("mainstay-identity 1 cluster {cluster} node {node}")
    }

    fn write(dir: &Path, path: &Path, cluster: ClusterId, node: NodeId) -> io::Result<()> {
        let temporary = dir.join("identity.tmp");
        let line = Self::line(cluster, node);
        let crc = crate::codec::crc(line.as_bytes());
        let mut file = File::create(&temporary)?;
        writeln!(file, "{line} crc {crc:08x}")?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    }

    fn parse(text: &str) -> Option<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        let [
            "mainstay-identity",
            "1",
            "cluster",
            cluster,
            "node",
            node,
            "crc",
            crc,
        ] = words[..]
        else {
            return None;
        };
        let found = Self {
            cluster: cluster.parse().ok()?,
            node: NodeId(node.parse().ok()?),
        };
        let expected = crate::codec::crc(Self::line(found.cluster, found.node).as_bytes());
        (u32::from_str_radix(crc, 16) == Ok(expected)).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_holder_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let lock = DataDirLock::acquire(dir.path()).expect("free");
        let refused = DataDirLock::acquire(dir.path())
            .expect_err("held")
            .to_string();
        assert!(
            refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
        drop(lock);
        DataDirLock::acquire(dir.path()).expect("free again");
    }

    /// The file was emptied first, which gave its block away, and could not be written then: nothing started on a full disk.
    #[test]
    fn a_lock_holds_where_there_is_no_room_to_say_whose_it_is() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("lock");
        fs::write(&path, "12345678901 and more\n").expect("written");
        drop(DataDirLock::acquire(dir.path()).expect("free"));
        let signed = fs::read_to_string(&path).expect("read");
        assert_eq!(signed, format!("{}\n", std::process::id()));
        let mut options = OpenOptions::new();
        let full = options.read(true).write(true).open("/dev/full");
        let mut full = full.expect("opens");
        sign_lock(&mut full).expect("held all the same");
    }

    #[test]
    fn directory_of_another_node_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let lock = DataDirLock::acquire(dir.path()).expect("free");
        let claim = |cluster, node| {
            NodeIdentity::claim(dir.path(), &lock, ClusterId(cluster), NodeId(node))
        };
        claim(7, 1).expect("first start");
        claim(7, 1).expect("later start");
        assert!(matches!(
            claim(7, 2),
            Err(DataDirError::OtherNode {
                found_node: NodeId(1),
                ..
            })
        ));
        assert!(matches!(
            claim(8, 1),
            Err(DataDirError::OtherNode {
                found_cluster: ClusterId(7),
                ..
            })
        ));
        let path = dir.path().join("identity");
        let text = fs::read_to_string(&path)
            .expect("written")
            .replace("node 1", "node 2");
        fs::write(&path, text).expect("write");
        assert!(matches!(claim(7, 2), Err(DataDirError::Damaged { .. })));
    }
}
