//! Hashes of leaves and of nodes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::lanes::Lanes;
use crate::Lsn;

/// Domain separation of RFC 6962, section 2.1: no leaf can pass for a node.
const LEAF: u8 = 0;
pub(super) const NODE: u8 = 1;

/// First byte of a leaf's content.
const BLANK: u8 = 0;
const RECORD: u8 = 1;

/// A SHA-256 hash in a tree. As text: 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct TreeHash(pub [u8; 32]);

impl TreeHash {
    /// Of a leaf with this content.
    #[must_use]
    pub fn of_leaf(content: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update([LEAF]);
        hash.update(content);
        Self(hash.finalize().into())
    }

    /// Of the node above two others.
    #[must_use]
    pub fn of_node(left: &Self, right: &Self) -> Self {
        let mut bytes = [NODE; 65];
        bytes[1..33].copy_from_slice(&left.0);
        bytes[33..].copy_from_slice(&right.0);
        Self(Sha256::digest(bytes).into())
    }

    /// The root of a tree without leaves.
    #[must_use]
    pub fn of_nothing() -> Self {
        Self(Sha256::digest([]).into())
    }

    /// From the 32 bytes of a hash; `None` for any other number of them.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for TreeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TreeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is no hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashError;

impl fmt::Display for HashError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tree hash is 64 hexadecimal digits")
    }
}

impl std::error::Error for HashError {}

impl FromStr for TreeHash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(HashError);
        }
        let value = |digit: u8| char::from(digit).to_digit(16).ok_or(HashError);
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            let both = value(pair[0])? << 4 | value(pair[1])?;
            *byte = u8::try_from(both).map_err(|_| HashError)?;
        }
        Ok(Self(hash))
    }
}

impl TryFrom<String> for TreeHash {
    type Error = HashError;

    fn try_from(text: String) -> Result<Self, HashError> {
        text.parse()
    }
}

impl From<TreeHash> for String {
    fn from(hash: TreeHash) -> Self {
        hash.to_string()
    }
}

/// What a reader of a log is shown at one position.
///
/// As the content of a leaf, with integers in big-endian order: `1`, the position, the time in microseconds since 1970 and the record's
/// bytes; or `0` and the position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaf<'a> {
    /// A record.
    Record {
        /// Its position.
        lsn: Lsn,
        /// Its time, as readers are told it.
        timestamp_us: u64,
        /// Its bytes.
        data: &'a [u8],
    },
    /// Nothing: bookkeeping of the volume, or a record of a batch that was cut short.
    Blank {
        /// The position.
        lsn: Lsn,
    },
}

impl Leaf<'_> {
    /// Its position.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        match self {
            Self::Record { lsn, .. } | Self::Blank { lsn } => *lsn,
        }
    }

    /// Its hash in the tree. Of many, [`LeafHashes`] takes less time.
    #[must_use]
    pub fn hash(&self) -> TreeHash {
        let mut one = LeafHashes::default();
        one.add(self);
        one.finish()[0]
    }
}

/// Hashes of many leaves, which take turns in the processor.
#[derive(Debug, Default)]
pub struct LeafHashes(Lanes);

impl LeafHashes {
    /// Adds a leaf.
    pub fn add(&mut self, leaf: &Leaf<'_>) {
        match leaf {
            Leaf::Record {
                lsn,
                timestamp_us,
                data,
            } => {
                let mut head = [RECORD; 18];
                head[0] = LEAF;
                head[2..10].copy_from_slice(&lsn.0.to_be_bytes());
                head[10..].copy_from_slice(&timestamp_us.to_be_bytes());
                self.0.add(&[&head, data]);
            }
            Leaf::Blank { lsn } => {
                self.0.add(&[&[LEAF, BLANK], &lsn.0.to_be_bytes()]);
            }
        }
    }

    /// Those of all leaves, in the order in which they were added.
    #[must_use]
    pub fn finish(self) -> Vec<TreeHash> {
        self.0.finish()
    }
}
