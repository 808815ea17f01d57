//! Full copies: where they begin, and the log that is kept for them.
//!
//! A learner goes on from its copy's beginning, so the log stays from there, not only until the copy was sent but until the learner has
//! caught up once: under heavy writes it would need the next copy otherwise, for ever. What is kept for a learner is bounded,
//! as it could fill the disk.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use mainstay_storage::LogEnd;
use mainstay_types::{Lsn, MonoTime, NodeId, VolumeKind};

use super::Volume;
use crate::event::Now;

/// A learner that acknowledges nothing for so long is not waited for.
const STALLED_AFTER: Duration = Duration::from_secs(60);

/// What is kept for one learner.
#[derive(Debug)]
struct Pin {
    from: Lsn,
    /// Since when, once the copy was sent, the learner is where it is.
    fed: Option<MonoTime>,
}

/// What is kept for all of them.
#[derive(Debug, Default)]
pub(crate) struct Pins(BTreeMap<NodeId, Pin>);

impl Pins {
    /// The first entry that one of them needs.
    pub(crate) fn first(&self) -> Option<Lsn> {
        self.0.values().map(|pin| pin.from).min()
    }
}

impl Volume {
    /// Where a full copy for `to` begins that is made from now on: the last entry applied, and the session table at it. The log
    /// is kept from there until the copy breaks off, or has been sent and the learner has caught up.
    pub fn copy_begins(&mut self, to: NodeId) -> Option<(LogEnd, Bytes)> {
        let at = self.tail.end_at(self.applied)?;
        self.pin(to, at.point.lsn.next());
        Some((at, self.sessions.encode()))
    }

    /// The same for a log, all of which is fed to the copy: the last entry applied, and a session table that says that it is so far
    /// ahead of the log's beginning.
    pub fn log_copy_begins(&mut self, to: NodeId) -> (Lsn, Bytes) {
        self.pin(to, self.member.log().base().lsn.next());
        let mut sessions = self.sessions.clone();
        sessions.ahead_until = self.applied;
        (self.applied, sessions.encode())
    }

    fn pin(&mut self, to: NodeId, from: Lsn) {
        let pin = Pin { from, fed: None };
        self.pins.0.insert(to, pin);
    }

    /// A log that was copied whole holds everything up to the state that it was given, durably.
    #[must_use]
    pub fn copy_is_whole(&self) -> bool {
        self.applied >= self.copied_until && self.member.durable() >= self.copied_until
    }

    pub(super) fn copy_sent(&mut self, now: Now, node: NodeId, base: Lsn) {
        if let Some(pin) = self.pins.0.get_mut(&node) {
            pin.fed = Some(now.mono);
        }
        self.member.copy_sent(node, base);
    }

    pub(super) fn copy_broke_off(&mut self, node: NodeId) {
        self.pins.0.remove(&node);
    }

    /// More log than this is not kept for anybody: another full copy takes less.
    pub(super) fn copy_bytes(&self) -> u64 {
        match self.spec.kind {
            VolumeKind::Block { size_bytes } => size_bytes.max(self.config.log_keep_bytes),
            // Nothing but what is trimmed goes.
            VolumeKind::Log => u64::MAX,
        }
    }

    /// Keeps no more log for learners than they need.
    pub(super) fn follow_pins(&mut self, now: Now) {
        if self.pins.0.is_empty() {
            return;
        }
        let bytes_max = self.copy_bytes();
        let (member, logged) = (&self.member, &self.logged);
        self.pins.0.retain(|node, pin| {
            let (Some(acked), true) = (member.acked(*node), member.acting_epoch().is_some()) else {
                return false;
            };
            if logged.behind(pin.from.prev()) > bytes_max {
                // Another copy takes less.
                return false;
            }
            let Some(since) = &mut pin.fed else {
                return true;
            };
            if acked.next() > pin.from {
                (pin.from, *since) = (acked.next(), now.mono);
            }
            acked < member.commit() && now.mono < *since + STALLED_AFTER
        });
    }
}
