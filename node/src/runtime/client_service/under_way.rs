//! What one stream has under way: how much of it there may be, and which flushes it holds up.

use std::collections::{BTreeMap, VecDeque};

use crate::runtime::places::Places;

/// Operations of one stream under way, flushes included; more wait in the stream.
const OPERATIONS_MAX: usize = 8192;

/// Memory for one operation until it is answered.
#[derive(Debug)]
enum Held {
    /// Payload, and the place among the stream's mutations.
    Mutation { place: u64, bytes: u64 },
    /// Of the answer.
    Read { bytes: u64 },
}

/// See the top of this file.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    /// Without an answer; flushes have their own list.
    operations: usize,
    /// Those that hold memory, by tag.
    held: BTreeMap<u64, Held>,
    mutation_bytes: u64,
    read_bytes: u64,
    places: Places,
    /// Tags of flushes that wait for every mutation before a place.
    flushes: VecDeque<(u64, u64)>,
}

impl UnderWay {
    /// Whether nothing more is taken from the stream until some of it is done. One operation is, however large.
    pub(super) fn is_full(&self, bytes_max: u64) -> bool {
        let bytes = self.mutation_bytes + self.read_bytes;
        self.operations + self.flushes.len() >= OPERATIONS_MAX
            || (bytes >= bytes_max && self.operations > 0)
    }

    /// Payload of the mutations without an answer.
    pub(super) fn mutation_bytes(&self) -> u64 {
        self.mutation_bytes
    }

    /// Takes an operation that holds next to nothing.
    pub(super) fn take(&mut self) {
        self.operations += 1;
    }

    pub(super) fn take_mutation(&mut self, tag: u64, bytes: u64) {
        let place = self.places.take();
        self.mutation_bytes += bytes;
        self.hold(tag, Held::Mutation { place, bytes });
    }

    pub(super) fn take_read(&mut self, tag: u64, bytes: u64) {
        self.read_bytes += bytes;
        self.hold(tag, Held::Read { bytes });
    }

    pub(super) fn take_flush(&mut self, tag: u64) {
        self.flushes.push_back((tag, self.places.next()));
    }

    /// The operation with this tag is answered.
    pub(super) fn answered(&mut self, tag: u64) {
        self.operations = self.operations.saturating_sub(1);
        if let Some(held) = self.held.remove(&tag) {
            self.release(&held);
            if let Held::Mutation { place, .. } = held {
                self.places.settle(place);
            }
        }
    }

    /// The next flush that waits for nothing any more.
    pub(super) fn next_flushed(&mut self) -> Option<u64> {
        let settled = self.places.settled_before();
        let done = |(_, before): &mut (u64, u64)| *before <= settled;
        self.flushes.pop_front_if(done).map(|(tag, _)| tag)
    }

    fn hold(&mut self, tag: u64, held: Held) {
        self.operations += 1;
        // A client that uses a tag twice at a time cannot tell the answers apart, and is not told of flushes behind the first.
        if let Some(before) = self.held.insert(tag, held) {
            self.release(&before);
        }
    }

    fn release(&mut self, held: &Held) {
        match held {
            Held::Mutation { bytes, .. } => self.mutation_bytes -= bytes,
            Held::Read { bytes } => self.read_bytes -= bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn reads_and_mutations_share_the_memory_of_a_stream() {
        let mut under_way = UnderWay::default();
        under_way.take_mutation(1, 16 * MIB);
        assert!(!under_way.is_full(32 * MIB));
        under_way.take_read(2, 16 * MIB);
        assert!(under_way.is_full(32 * MIB));
        under_way.answered(1);
        assert!(!under_way.is_full(32 * MIB));
        under_way.answered(2);
        // One that is larger than all that may be held is taken alone.
        assert!(!under_way.is_full(0));
        under_way.take_read(3, MIB);
        assert!(under_way.is_full(0));
    }

    #[test]
    fn many_small_operations_fill_a_stream_flushes_too() {
        let mut under_way = UnderWay::default();
        under_way.take_mutation(0, 1);
        for tag in 1..OPERATIONS_MAX as u64 {
            assert!(!under_way.is_full(MIB));
            match tag % 2 {
                0 => under_way.take(),
                _ => under_way.take_flush(tag),
            }
        }
        assert!(under_way.is_full(MIB));
        assert_eq!(under_way.next_flushed(), None);
        under_way.answered(0);
        assert_eq!(under_way.next_flushed(), Some(1));
        assert!(!under_way.is_full(MIB));
    }

    #[test]
    fn a_tag_that_is_used_twice_leaves_no_bytes_behind() {
        let mut under_way = UnderWay::default();
        under_way.take_read(7, MIB);
        under_way.take_mutation(7, MIB);
        under_way.answered(7);
        under_way.answered(7);
        assert_eq!((under_way.mutation_bytes, under_way.read_bytes), (0, 0));
    }
}
