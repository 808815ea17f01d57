//! Identifiers. Random ones are 64 bits wide and printed as sixteen hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseIdError(String);

impl fmt::Display for ParseIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not sixteen hexadecimal digits", self.0)
    }
}

impl std::error::Error for ParseIdError {}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:016x})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                if text.len() != 16 {
                    return Err(ParseIdError(text.to_owned()));
                }
                u64::from_str_radix(text, 16).map(Self).map_err(|_| ParseIdError(text.to_owned()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

random_id! {
    /// One cluster. Messages between clusters are refused.
    ClusterId
}
random_id! {
    /// One volume name of a cluster: a hash of the name, so that two creations of one name meet in one register.
    VolumeId
}
random_id! {
    /// One history of a volume. Made at creation; only a forced promotion starts a new one.
    Lineage
}
random_id! {
    /// Made when a member's copy is formatted. A blank or restored disk is a different member.
    Incarnation
}
random_id! {
    /// Made at each start of a process. An epoch belongs to one instance.
    Instance
}
random_id! {
    /// One value of a register; two values never share one. Zero names the absent value.
    RegisterId
}
random_id! {
    /// One client session, chosen by the client at random.
    SessionId
}

/// One `mainstay` process with its data directory, as numbered in the configuration; from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_print_and_parse_the_same_text() {
        let id = Instance(0x00ab);
        assert_eq!(id.to_string(), "00000000000000ab");
        assert_eq!("00000000000000ab".parse::<Instance>(), Ok(id));
        assert!("ab".parse::<Instance>().is_err());
    }
}
