//! From what a device answered to the parts of a reply. Pure.

use bytes::Bytes;

use super::parts::{Part, Parts};
use crate::codec::{Last, ReplyStyle, ReplyTo};
use crate::export::{BlockError, Extent};
use crate::extents;
use crate::requests::{Refusal, StatusQuery};
use crate::sparse::{self, Fragments, Piece};

pub(super) fn read_reply(
    to: ReplyTo,
    offset: u64,
    len: u32,
    fragments: Fragments,
    answer: Result<Bytes, BlockError>,
) -> Parts {
    match answer {
        Err(error) => failure(to, true, error.into()),
        Ok(data) if data.len() != len as usize => {
            let found = data.len();
            tracing::error!(offset, len, found, "a device read another length");
            failure(to, true, BlockError::Io.into())
        }
        Ok(data) if to.style == ReplyStyle::Simple => Parts::one(to.done(), data),
        Ok(data) => {
            let (first, more) = sparse::pieces(offset, data, fragments);
            sparse_reply(to, offset, first, more)
        }
    }
}

fn sparse_reply(to: ReplyTo, offset: u64, first: Piece, more: Vec<Piece>) -> Parts {
    let mut at = offset;
    let mut chunk = |last, piece| {
        // No piece is longer than the read, whose length has 32 bits.
        let length = |len| u32::try_from(len).unwrap_or(u32::MAX);
        let (head, body, len) = match piece {
            Piece::Hole(len) => (to.hole(last, at, length(len)), Bytes::new(), len),
            Piece::Data(data) => {
                let len = data.len();
                (to.data(last, at, length(len)), data, len)
            }
        };
        at += len as u64;
        Part::new(head, body)
    };
    let count = more.len();
    let last = |number| if number == count { Last::Yes } else { Last::No };
    Parts {
        first: chunk(last(0), first),
        more: (1..)
            .zip(more)
            .map(|(number, piece)| chunk(last(number), piece))
            .collect::<Vec<_>>()
            .into_iter(),
    }
}

/// One chunk for each context, of what `answer` has for it.
pub(super) fn status_reply(
    to: ReplyTo,
    query: &StatusQuery,
    unit: u32,
    answer: Result<Vec<Vec<Extent<u32>>>, BlockError>,
) -> Parts {
    let most = query.extents_max as usize;
    let shaped = |told| extents::shaped(told, query.len, unit, most);
    let all = answer.and_then(|told| told.into_iter().map(shaped).collect::<Result<Vec<_>, _>>());
    let all = match all {
        Ok(all) => all,
        Err(error) => return failure(to, true, error.into()),
    };
    let count = query.contexts.len();
    let of_contexts = query.contexts.iter().zip(&all);
    let chunks = (1..).zip(of_contexts).map(|(number, (selected, extents))| {
        let last = if number == count { Last::Yes } else { Last::No };
        let extents_told = u32::try_from(extents.len()).unwrap_or(u32::MAX);
        Part::new(
            to.status(last, selected.id, extents_told),
            extents::descriptors(to.style, extents),
        )
    });
    Parts::of(chunks.collect(), to)
}

/// An error, with text where the style has chunks. Where simple replies are allowed beside them, only commands
/// whose replies have chunks get one.
pub(super) fn failure(to: ReplyTo, in_chunk: bool, refusal: Refusal) -> Parts {
    let Refusal { errno, message } = refusal;
    match (to.style, u16::try_from(message.len())) {
        (ReplyStyle::Simple, _) => Parts::one(to.failed(errno), Bytes::new()),
        (ReplyStyle::Structured, _) if !in_chunk => Parts::one(to.failed(errno), Bytes::new()),
        (ReplyStyle::Structured | ReplyStyle::Extended, Ok(bytes)) => {
            let text = Bytes::from_static(message.as_bytes());
            Parts::one(to.error(errno, bytes), text)
        }
        (ReplyStyle::Structured | ReplyStyle::Extended, Err(_)) => {
            Parts::one(to.error(errno, 0), Bytes::new())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Errno;

    #[test]
    fn a_read_of_another_length_is_an_io_error() {
        let to = ReplyTo {
            style: ReplyStyle::Simple,
            cookie: 1,
            offset: 0,
        };
        let short = Ok(Bytes::from_static(b"abc"));
        let parts = read_reply(to, 0, 4, Fragments::Any, short);
        assert_eq!(parts.first.head, to.failed(Errno::Io));
        assert!(parts.are_heads_only() && parts.more.as_slice().is_empty());
    }
}
