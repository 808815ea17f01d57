//! Which of the full copies that are being received may take the place of what is here: one a volume, that of the newest primary.
//!
//! A primary that was replaced goes on sending what it began. Were two copies written at the same time in one place, or adopted one after the
//! other as they end, a half of one could pass for a whole, or an old one take the place of a newer: so each has a directory of its own, and
//! one that a newer primary's has superseded is never adopted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use mainstay_types::{Epoch, Incarnation, VolumeId};

/// The copy of each volume that may be adopted, with the epoch of the primary that sends it.
pub(super) type Incoming = Arc<Mutex<BTreeMap<VolumeId, (Epoch, Incarnation)>>>;

/// One copy while it is received.
#[derive(Debug)]
pub(super) struct Receiving {
    all: Incoming,
    volume: VolumeId,
    incarnation: Incarnation,
}

impl Receiving {
    /// Begins one that is to be `incarnation`, and supersedes those before; `None` if a newer primary sends one.
    #[must_use]
    pub(super) fn begin(
        all: &Incoming,
        volume: VolumeId,
        epoch: Epoch,
        incarnation: Incarnation,
    ) -> Option<Self> {
        let mut present = all.lock().expect("no panic while the lock is held");
        if present
            .get(&volume)
            .is_some_and(|(newer, _)| *newer > epoch)
        {
            return None;
        }
        present.insert(volume, (epoch, incarnation));
        Some(Self {
            all: all.clone(),
            volume,
            incarnation,
        })
    }

    /// Whether none has superseded it.
    #[must_use]
    pub(super) fn is_current(&self) -> bool {
        let present = self.all.lock().expect("no panic while the lock is held");
        present
            .get(&self.volume)
            .is_some_and(|(_, incarnation)| *incarnation == self.incarnation)
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let mut present = self.all.lock().expect("no panic while the lock is held");
        let own = |(_, incarnation): &(Epoch, Incarnation)| *incarnation == self.incarnation;
        if present.get(&self.volume).is_some_and(own) {
            present.remove(&self.volume);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order of events: the primary of epoch 1 sends a copy, and is replaced; the primary of epoch 2 sends another; the first one
    /// ends.
    #[test]
    fn the_newest_primary_s_copy_is_the_one_that_counts() {
        let all = Incoming::default();
        let volume = VolumeId(1);
        let begin = |epoch, id| Receiving::begin(&all, volume, Epoch(epoch), Incarnation(id));
        let first = begin(1, 11).expect("alone");
        assert!(first.is_current());
        let second = begin(2, 12).expect("newer");
        assert!(!first.is_current() && second.is_current());
        assert!(begin(1, 13).is_none(), "an older primary's is refused");
        drop(first);
        assert!(second.is_current(), "the end of another changes nothing");
        // The same primary begins anew before the end of its first one is noticed.
        let third = begin(2, 14).expect("as new");
        assert!(!second.is_current() && third.is_current());
        drop((second, third));
        assert!(begin(1, 15).is_some_and(|alone| alone.is_current()));
    }
}
