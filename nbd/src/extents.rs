//! From what a device tells of a range to what a client is told. Pure.

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::ReplyStyle;
use crate::export::{Allocation, BlockError, Change, Extent};
use crate::protocol::state;

/// Memory of one extent, as the device answers it and as it is sent.
pub(crate) const EXTENT_BYTES: u32 = 32;

/// What there is to say of a range, as the bits of its context.
pub(crate) trait Flags: Copy {
    fn flags(self) -> u32;
}

/// Bits for states.
pub(crate) fn flagged<State: Flags>(told: Vec<Extent<State>>) -> Vec<Extent<u32>> {
    let one = |Extent { len, state }: Extent<State>| Extent {
        len,
        state: state.flags(),
    };
    told.into_iter().map(one).collect()
}

/// Makes `told` fit a request of `len` bytes: neighbours of one state become one, nothing lies beyond the request,
/// and there are at most `most` of them.
///
/// # Errors
///
/// The device told nothing, an empty extent, or a length that is no multiple of the smallest block `unit`.
pub(crate) fn shaped<State: PartialEq>(
    told: Vec<Extent<State>>,
    len: u64,
    unit: u32,
    most: usize,
) -> Result<Vec<Extent<State>>, BlockError> {
    let mut shaped: Vec<Extent<State>> = Vec::new();
    let mut left = len;
    for Extent { len, state } in told {
        if len == 0 || !len.is_multiple_of(u64::from(unit)) {
            tracing::error!(len, unit, "a device told an impossible extent");
            return Err(BlockError::Io);
        }
        let len = len.min(left);
        if len == 0 {
            break;
        }
        left -= len;
        if !append(&mut shaped, Extent { len, state }, most) {
            break;
        }
    }
    if shaped.is_empty() {
        tracing::error!("a device told nothing of a range");
        return Err(BlockError::Io);
    }
    Ok(shaped)
}

/// Adds `extent`, as part of the last one if that has the same state. Says whether there was room among `most`.
pub(crate) fn append<State: PartialEq>(
    extents: &mut Vec<Extent<State>>,
    extent: Extent<State>,
    most: usize,
) -> bool {
    if let Some(last) = extents.last_mut()
        && last.state == extent.state
    {
        last.len += extent.len;
        return true;
    }
    let room = extents.len() < most;
    if room {
        extents.push(extent);
    }
    room
}

/// The descriptors of a status chunk. Without extended headers no request, and so no extent, reaches 4 GiB.
pub(crate) fn descriptors(style: ReplyStyle, extents: &[Extent<u32>]) -> Bytes {
    let mut out = BytesMut::new();
    for extent in extents {
        let flags = extent.state;
        if style == ReplyStyle::Extended {
            out.put_u64(extent.len);
            out.put_u64(u64::from(flags));
        } else {
            out.put_u32(u32::try_from(extent.len).unwrap_or(u32::MAX));
            out.put_u32(flags);
        }
    }
    out.freeze()
}

impl Flags for Allocation {
    fn flags(self) -> u32 {
        match self {
            Self::Data => 0,
            Self::Zeroes => state::ZERO,
            Self::Hole => state::HOLE | state::ZERO,
        }
    }
}

impl Flags for Change {
    fn flags(self) -> u32 {
        match self {
            Self::Unchanged => 0,
            Self::Changed => state::CHANGED,
        }
    }
}

#[cfg(test)]
mod tests {
    use Allocation::{Data, Hole, Zeroes};

    use super::*;

    fn extents(of: &[(u64, Allocation)]) -> Vec<Extent> {
        let one = |&(len, state)| Extent { len, state };
        of.iter().map(one).collect()
    }

    #[test]
    fn neighbours_are_joined_and_the_end_is_cut() {
        let cases: [(&[_], usize, &[_]); 6] = [
            (&[(4, Data)], 9, &[(4, Data)]),
            (&[(100, Hole)], 9, &[(20, Hole)]),
            (
                &[(4, Data), (4, Data), (4, Zeroes)],
                9,
                &[(8, Data), (4, Zeroes)],
            ),
            (
                &[(4, Data), (4, Hole), (4, Data)],
                2,
                &[(4, Data), (4, Hole)],
            ),
            (&[(4, Data), (4, Data), (4, Hole)], 1, &[(8, Data)]),
            (&[(20, Data), (4, Hole)], 9, &[(20, Data)]),
        ];
        for (told, most, expected) in cases {
            let shaped = shaped(extents(told), 20, 4, most);
            assert_eq!(shaped, Ok(extents(expected)), "{told:?}");
        }
    }

    #[test]
    fn what_no_device_may_tell_is_an_error() {
        for told in [&[][..], &[(0, Data)], &[(4, Data), (6, Hole)]] {
            assert_eq!(shaped(extents(told), 20, 4, 9), Err(BlockError::Io));
        }
    }

    #[test]
    fn descriptors_have_the_documented_bytes() {
        let extents = flagged(extents(&[(0x0102, Hole), (3, Zeroes), (4, Data)]));
        assert_eq!(
            &descriptors(ReplyStyle::Structured, &extents)[..],
            b"\0\0\x01\x02\0\0\0\x03\0\0\0\x03\0\0\0\x02\0\0\0\x04\0\0\0\0"
        );
        assert_eq!(
            &descriptors(ReplyStyle::Extended, &extents[..1])[..],
            b"\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x03"
        );
        let changes = [(1, Change::Changed), (2, Change::Unchanged)];
        let changes = changes.map(|(len, state)| Extent { len, state });
        assert_eq!(
            &descriptors(ReplyStyle::Structured, &flagged(changes.to_vec()))[..],
            b"\0\0\0\x01\0\0\0\x01\0\0\0\x02\0\0\0\0"
        );
    }
}
