//! A reply on its way to a peer that takes it at its own pace.

use std::vec;

use bytes::{Buf, Bytes};

use crate::budget::Claim;
use crate::codec::{ReplyHead, ReplyTo};

/// A finished reply and how much of it the peer has taken.
pub(super) struct Reply {
    pub(super) parts: Parts,
    pub(super) claim: Claim,
}

impl Reply {
    pub(super) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().flat_map(Part::slices)
    }

    /// Notes that up to `written` more bytes were taken, and says how many of them belong to this reply.
    pub(super) fn advance(&mut self, written: usize) -> usize {
        let mut taken = self.parts.first.advance(written);
        while self.parts.first.is_written()
            && let Some(next) = self.parts.more.next()
        {
            self.parts.first = next;
            taken += self.parts.first.advance(written - taken);
        }
        taken
    }

    pub(super) fn is_written(&self) -> bool {
        self.parts.first.is_written() && self.parts.more.as_slice().is_empty()
    }
}

/// One part or more, in their order. One takes no memory of its own.
pub(super) struct Parts {
    pub(super) first: Part,
    pub(super) more: vec::IntoIter<Part>,
}

impl Parts {
    pub(super) fn one(head: ReplyHead, body: Bytes) -> Self {
        Self {
            first: Part::new(head, body),
            more: Vec::new().into_iter(),
        }
    }

    /// Nothing at all is success.
    pub(super) fn of(parts: Vec<Part>, to: ReplyTo) -> Self {
        let mut more = parts.into_iter();
        match more.next() {
            Some(first) => Self { first, more },
            None => Self::one(to.done(), Bytes::new()),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.first).chain(self.more.as_slice())
    }

    /// Whether no payload of a request is held any more.
    pub(super) fn are_heads_only(&self) -> bool {
        self.iter().all(|part| part.body.is_empty())
    }
}

/// A head, its body, and how much of both the peer has taken.
pub(super) struct Part {
    pub(super) head: ReplyHead,
    head_written: usize,
    body: Bytes,
}

impl Part {
    pub(super) fn new(head: ReplyHead, body: Bytes) -> Self {
        Self {
            head,
            head_written: 0,
            body,
        }
    }

    pub(super) fn slices(&self) -> [&[u8]; 2] {
        let head = self.head.as_bytes();
        [head.get(self.head_written..).unwrap_or(&[]), &self.body]
    }

    fn advance(&mut self, written: usize) -> usize {
        let of_head = written.min(self.head.as_bytes().len() - self.head_written);
        self.head_written += of_head;
        let of_body = (written - of_head).min(self.body.len());
        self.body.advance(of_body);
        of_head + of_body
    }

    fn is_written(&self) -> bool {
        self.head_written == self.head.as_bytes().len() && self.body.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt;

    use super::super::form::read_reply;
    use super::*;
    use crate::budget::{ConnectionBudget, ServerBudget};
    use crate::codec::ReplyStyle;
    use crate::limits::Limits;
    use crate::sparse::Fragments;

    #[test]
    fn parts_are_taken_in_order_at_any_pace() {
        let to = ReplyTo {
            style: ReplyStyle::Extended,
            cookie: 1,
            offset: 0,
        };
        let mut data = vec![0; 100_000];
        data[0] = 1;
        data[99_999] = 2;
        for pace in [1, 7, 1000, 1 << 20] {
            let limits = Limits::default();
            let server = Arc::new(ServerBudget::new(&limits));
            let budget = ConnectionBudget::new(&limits, server);
            let claim = budget.request().now_or_never().expect("a place");
            let answer = Ok(Bytes::from(data.clone()));
            let parts = read_reply(to, 0, 100_000, Fragments::Any, answer);
            let whole: Vec<u8> = parts
                .iter()
                .flat_map(Part::slices)
                .flatten()
                .copied()
                .collect();
            let mut reply = Reply { parts, claim };
            let mut taken = Vec::new();
            while !reply.is_written() {
                let next: Vec<u8> = reply.parts().flatten().copied().take(pace).collect();
                assert_eq!(reply.advance(next.len()), next.len());
                taken.extend(next);
            }
            assert!(taken == whole, "pace {pace}");
            assert_eq!(reply.advance(5), 0);
        }
    }
}
