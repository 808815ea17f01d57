//! Changes of a volume, and the pieces in which they reach it.

use bytes::Bytes;

/// Longest range of one trim or zeroing; more goes in pieces.
pub(super) const RANGE_BYTES_MAX: u64 = 64 << 20;

/// The same for zeroes that are to be written: whoever else writes waits behind those in line, for as long as the disk takes.
const WRITTEN_BYTES_MAX: u64 = 4 << 20;

fn range_bytes_max(keep: bool) -> u64 {
    if keep {
        WRITTEN_BYTES_MAX
    } else {
        RANGE_BYTES_MAX
    }
}

/// A change of the volume.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Write { offset: u64, data: Bytes },
    Trim { offset: u64, len: u64 },
    Zeroes { offset: u64, len: u64, keep: bool },
}

impl Change {
    pub(super) fn payload_bytes(&self) -> usize {
        match self {
            Self::Write { data, .. } => data.len(),
            Self::Trim { .. } | Self::Zeroes { .. } => 0,
        }
    }

    /// Whether it is a range without a payload that takes several requests.
    pub(super) fn is_long_range(&self) -> bool {
        match self {
            Self::Write { .. } => false,
            Self::Trim { len, .. } => *len > RANGE_BYTES_MAX,
            Self::Zeroes { len, keep, .. } => *len > range_bytes_max(*keep),
        }
    }

    /// The same change in pieces that each fit one request.
    pub(super) fn pieces(self, payload_bytes_max: u32) -> Pieces {
        Pieces {
            rest: Some(self),
            payload_bytes_max,
        }
    }

    /// Splits off what fits one request, and leaves the rest.
    fn split(self, payload_bytes_max: u32) -> (Self, Option<Self>) {
        match self {
            Self::Write { offset, mut data } if data.len() > payload_bytes_max as usize => {
                let first = data.split_to(payload_bytes_max as usize);
                let rest = Self::Write {
                    offset: offset + u64::from(payload_bytes_max),
                    data,
                };
                let data = first;
                (Self::Write { offset, data }, Some(rest))
            }
            Self::Trim { offset, len } if len > RANGE_BYTES_MAX => {
                let part = |offset, len| Self::Trim { offset, len };
                let rest = part(offset + RANGE_BYTES_MAX, len - RANGE_BYTES_MAX);
                (part(offset, RANGE_BYTES_MAX), Some(rest))
            }
            Self::Zeroes { offset, len, keep } if len > range_bytes_max(keep) => {
                let part = |offset, len| Self::Zeroes { offset, len, keep };
                let most = range_bytes_max(keep);
                (part(offset, most), Some(part(offset + most, len - most)))
            }
            whole => (whole, None),
        }
    }
}

/// What is left of a change, piece by piece.
#[derive(Debug)]
pub(super) struct Pieces {
    rest: Option<Change>,
    payload_bytes_max: u32,
}

impl Iterator for Pieces {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        let (piece, rest) = self.rest.take()?.split(self.payload_bytes_max);
        self.rest = rest;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(pieces: Pieces) -> Vec<(u64, u64)> {
        let one = |piece| match piece {
            Change::Write { offset, data } => (offset, data.len() as u64),
            Change::Trim { offset, len } | Change::Zeroes { offset, len, .. } => (offset, len),
        };
        pieces.map(one).collect()
    }

    #[test]
    fn writes_are_split_at_the_payload_limit() {
        let pieces = |len: usize| {
            let data = Bytes::from(vec![0; len]);
            shape(Change::Write { offset: 7, data }.pieces(4))
        };
        assert_eq!(pieces(4), [(7, 4)]);
        assert_eq!(pieces(5), [(7, 4), (11, 1)]);
        assert_eq!(pieces(8), [(7, 4), (11, 4)]);
    }

    #[test]
    fn ranges_are_split_and_cover_everything_once() {
        for len in [1, RANGE_BYTES_MAX, RANGE_BYTES_MAX + 1, u64::from(u32::MAX)] {
            let offset = 512;
            let zeroes = |keep| Change::Zeroes { offset, len, keep };
            let trim = Change::Trim { offset, len };
            for (change, most) in [
                (trim, RANGE_BYTES_MAX),
                (zeroes(false), RANGE_BYTES_MAX),
                (zeroes(true), WRITTEN_BYTES_MAX),
            ] {
                let mut at = 512;
                for (offset, piece) in shape(change.pieces(1)) {
                    assert_eq!(offset, at);
                    assert!(piece > 0 && piece <= most);
                    at += piece;
                }
                assert_eq!(at, 512 + len);
            }
        }
    }
}
