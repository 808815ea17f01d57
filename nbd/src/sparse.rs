//! Cutting the bytes of a read into data and holes. Pure.
//!
//! What counts is what the bytes are, not where they were stored: a block of zeroes is not worth sending, whether it was
//! ever written or not. Looking costs next to nothing, because a block of data ends it at its first bytes.

use std::ops::Range;

use bytes::Bytes;

/// Blocks are judged whole, at these boundaries of the export.
const UNIT: usize = 4096;
/// Shorter runs of zeroes travel as data: a chunk of its own costs more, and bounds the number of chunks.
const HOLE_BYTES_MIN: usize = 32 << 10;

/// A part of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    /// So many zeroes.
    Hole(usize),
}

/// How an answer may be cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fragments {
    /// Into any number of pieces.
    Any,
    /// One piece, a hole only if all of it is zeroes (`NBD_CMD_FLAG_DF`).
    One,
}

/// The pieces of `data`, read at `offset`, in their order: the first one, and those after it. They share its buffer. One that
/// is alone, as most are, takes no memory.
pub(crate) fn pieces(offset: u64, mut data: Bytes, fragments: Fragments) -> (Piece, Vec<Piece>) {
    if is_zero(&data) {
        return (Piece::Hole(data.len()), Vec::new());
    }
    let holes = match fragments {
        Fragments::Any => holes(offset, &data),
        Fragments::One => Vec::new(),
    };
    if holes.is_empty() {
        return (Piece::Data(data), Vec::new());
    }
    let mut pieces = Vec::with_capacity(2 * holes.len() + 1);
    let mut done = 0;
    for hole in holes {
        if hole.start > done {
            pieces.push(Piece::Data(data.split_to(hole.start - done)));
        }
        pieces.push(Piece::Hole(data.split_to(hole.len()).len()));
        done = hole.end;
    }
    if !data.is_empty() {
        pieces.push(Piece::Data(data));
    }
    let first = pieces.remove(0);
    (first, pieces)
}

/// Runs of zeroes that are worth a chunk of their own.
fn holes(offset: u64, data: &[u8]) -> Vec<Range<usize>> {
    let mut holes = Vec::new();
    // Zeroes from here to `at`.
    let mut start = 0;
    let mut at = 0;
    let mut step = UNIT - usize::try_from(offset % UNIT as u64).unwrap_or(0);
    while at < data.len() {
        let end = data.len().min(at + step);
        if !is_zero(&data[at..end]) {
            if at - start >= HOLE_BYTES_MIN {
                holes.push(start..at);
            }
            start = end;
        }
        at = end;
        step = UNIT;
    }
    if data.len() - start >= HOLE_BYTES_MIN {
        holes.push(start..data.len());
    }
    holes
}

/// Stops at the first part that is not zero, so that data costs next to nothing.
fn is_zero(data: &[u8]) -> bool {
    data.chunks(512)
        .all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(offset: u64, data: Bytes, fragments: Fragments) -> Vec<Piece> {
        let (first, more) = super::pieces(offset, data, fragments);
        std::iter::once(first).chain(more).collect()
    }

    /// Lengths of the pieces; negative for holes.
    fn shape(pieces: &[Piece]) -> Vec<i64> {
        let one = |piece: &Piece| match piece {
            Piece::Data(data) => i64::try_from(data.len()).expect("small"),
            Piece::Hole(len) => -i64::try_from(*len).expect("small"),
        };
        pieces.iter().map(one).collect()
    }

    #[test]
    fn zeroes_are_found_at_any_length() {
        for len in [1, 511, 512, 513, 4096] {
            let mut data = vec![0; len];
            assert!(is_zero(&data), "{len}");
            for place in [0, len / 2, len - 1] {
                data[place] = 1;
                assert!(!is_zero(&data), "{place} of {len}");
                data[place] = 0;
            }
        }
    }

    #[test]
    fn holes_begin_and_end_at_blocks_and_are_not_short() {
        let mut data = vec![0; 200_000];
        data[100] = 1;
        data[50_000] = 2;
        data[70_000] = 3;
        let shape = |offset, fragments| {
            let pieces = pieces(offset, Bytes::from(data.clone()), fragments);
            let whole: Vec<u8> = pieces
                .iter()
                .flat_map(|piece| match piece {
                    Piece::Data(data) => data.to_vec(),
                    Piece::Hole(len) => vec![0; *len],
                })
                .collect();
            assert!(whole == data, "the pieces are the whole");
            shape(&pieces)
        };
        // From 4096 to 49152, and from 73728 on; between 53248 and 69632 it is too short.
        let expected = [4096, -45_056, 24_576, -126_272];
        assert_eq!(shape(0, Fragments::Any), expected);
        // The same bytes a thousand further: blocks begin at 3096.
        let expected = [3096, -45_056, 24_576, -127_272];
        assert_eq!(shape(1000, Fragments::Any), expected);
        assert_eq!(shape(0, Fragments::One), [200_000]);
    }

    #[test]
    fn nothing_but_zeroes_is_one_hole_however_it_may_be_cut() {
        for fragments in [Fragments::Any, Fragments::One] {
            let pieces = pieces(7, Bytes::from(vec![0; 5000]), fragments);
            assert_eq!(shape(&pieces), [-5000]);
        }
    }

    #[test]
    fn the_number_of_pieces_is_bounded() {
        let mut data = vec![0; 4 << 20];
        for block in data.chunks_mut(2 * UNIT) {
            block[0] = 1;
        }
        let pieces = pieces(0, Bytes::from(data), Fragments::Any);
        assert_eq!(pieces.len(), 1);
    }
}
