//! What a volume is asked to be: its name, kind and policy.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{NodeId, VolumeId};

/// Bytes of one block of a block volume: the unit of its checksums and of its size.
pub const BLOCK_BYTES: u32 = 4096;

/// What a volume holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum VolumeKind {
    /// An append log.
    Log,
    /// A block device.
    Block {
        /// Its size, a multiple of [`BLOCK_BYTES`].
        size_bytes: u64,
    },
}

/// How many durable copies commit an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AckRule {
    /// More than half of the members. Default for three or more copies.
    Majority,
    /// Every member. Default for two copies.
    All,
}

impl AckRule {
    /// The ack quorum k over `members` members.
    #[must_use]
    pub fn quorum(self, members: usize) -> usize {
        match self {
            Self::Majority => members / 2 + 1,
            Self::All => members,
        }
    }
}

/// What the operator asked for. Part of the register.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// Chooses the ack quorum from the number of members.
    pub ack: AckRule,
    /// Full copies below which the membership never shrinks.
    pub min_copies: u32,
    /// The nodes that should hold a copy; the first one made the volume.
    pub placement: Vec<NodeId>,
    /// Among copies that are equally good as primary, these first, in this order. May be empty.
    #[serde(default)]
    pub prefer: Vec<NodeId>,
    /// Block volumes: several hosts may attach at a time, and agree among themselves who writes where.
    #[serde(default)]
    pub shared: bool,
}

impl Policy {
    /// No more nodes may be preferred.
    pub const PREFERRED_MAX: usize = 16;

    /// The defaults for copies on `placement`.
    ///
    /// Two copies: both must have an entry, and the survivor may go on alone once the register says so. Three
    /// or more: a majority, and never fewer than two copies.
    #[must_use]
    pub fn for_placement(placement: Vec<NodeId>) -> Self {
        let copies = placement.len();
        Self {
            ack: if copies <= 2 {
                AckRule::All
            } else {
                AckRule::Majority
            },
            min_copies: if copies <= 2 { 1 } else { 2 },
            placement,
            prefer: Vec::new(),
            shared: false,
        }
    }
}

/// A volume's name: 1 to 64 of `a-z`, `0-9`, `-`, `_` and `.`, beginning with a letter or a digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

/// A text that cannot name a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameError(String);

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "volume name {:?} is not 1 to 64 of a-z, 0-9, `-`, `_` and `.`, beginning with a letter or a digit",
            self.0
        )
    }
}

impl std::error::Error for NameError {}

impl VolumeName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id under which the witnesses keep this name: FNV-1a, 64 bits, of its bytes.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in self.0.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        VolumeId(hash)
    }
}

impl FromStr for VolumeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let first = text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let rest = text.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')
        });
        if first && rest && text.len() <= 64 {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for VolumeName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was asked for at creation; never changes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Its name.
    pub name: VolumeName,
    /// What it holds.
    pub kind: VolumeKind,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_escape_a_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "-a", "A", "a\0", "ü", &"a".repeat(65)] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?}");
        }
        for good in ["a", "0", "ledger-1.main_x"] {
            assert_eq!(
                good.parse::<VolumeName>().map(|n| n.to_string()).as_deref(),
                Ok(good)
            );
        }
    }

    #[test]
    fn two_copies_need_both_and_three_need_two() {
        assert_eq!(
            Policy::for_placement(vec![NodeId(1), NodeId(2)])
                .ack
                .quorum(2),
            2
        );
        assert_eq!(AckRule::Majority.quorum(3), 2);
        assert_eq!(AckRule::Majority.quorum(4), 3);
        assert_eq!(AckRule::All.quorum(1), 1);
    }
}
