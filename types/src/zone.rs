//! Where a node stands: a room, a rack, a site.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of a zone: 1 to 64 of letters, digits, `-`, `_` and `.`. Two nodes stand together if theirs are equal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone(String);

/// A text that cannot name a zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneError(String);

impl fmt::Display for ZoneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "zone {:?} is not 1 to 64 of letters, digits, `-`, `_` and `.`; leave the key out if nodes all stand together",
            self.0
        )
    }
}

impl std::error::Error for ZoneError {}

impl Zone {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Zone {
    type Err = ZoneError;

    fn from_str(text: &str) -> Result<Self, ZoneError> {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if (1..=64).contains(&text.len()) && text.bytes().all(good) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ZoneError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Zone {
    type Error = ZoneError;

    fn try_from(text: String) -> Result<Self, ZoneError> {
        text.parse()
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.0
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_short_plain_words() {
        for bad in ["", "a b", "ü", "a\0", &"a".repeat(65)] {
            assert!(bad.parse::<Zone>().is_err(), "{bad:?}");
        }
        for good in ["a", "Site-1.rack_2", &"a".repeat(64)] {
            assert_eq!(
                good.parse::<Zone>().map(|z| z.to_string()),
                Ok(good.to_owned())
            );
        }
    }
}
