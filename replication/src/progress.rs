//! What the primary knows about one other copy: how far it is, and how far it was sent.

use std::collections::VecDeque;
use std::time::Duration;

use mainstay_types::{Incarnation, Instance, Lsn, MonoTime};

use crate::message::{Ack, CopyId, RefuseReason};

/// How entries are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feed {
    /// The common prefix is not known: one empty append at a time, until one matches.
    Probing,
    /// Entries flow ahead of the answers, within the window.
    Streaming,
    /// Beyond the start of the primary's log: only a full copy helps.
    NeedsCopy,
}

/// One other copy.
///
/// Invariants: `acked < next_send`; while streaming, `in_flight` holds the ends of the appends sent and not yet
/// acknowledged, rising, all above `acked`.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Which formatting answered last; none before the first answer.
    pub(crate) incarnation: Option<Incarnation>,
    pub(crate) instance: Option<Instance>,
    /// Durable there and equal to our log, by its own acknowledgement.
    pub(crate) acked: Lsn,
    /// First position not yet sent.
    pub(crate) next_send: Lsn,
    pub(crate) feed: Feed,
    in_flight: VecDeque<(Lsn, u64)>,
    in_flight_bytes: u64,
    /// Most appends that may be on their way: one after a mismatch, and one more for each that is acknowledged.
    window: usize,
    /// Commit point of the last append sent.
    pub(crate) commit_sent: Lsn,
    pub(crate) last_sent: MonoTime,
    pub(crate) last_heard: MonoTime,
    /// When the oldest unanswered append was sent, or the last answer moved it.
    pub(crate) waiting_since: Option<MonoTime>,
    pub(crate) rebuilding: bool,
    pub(crate) refused: Option<RefuseReason>,
    /// The last empty append has not been answered.
    pub(crate) probe_out: bool,
    /// When a mismatch last started the feed over.
    restarted: Option<MonoTime>,
}

impl Progress {
    pub(crate) fn new(now: MonoTime, next_send: Lsn) -> Self {
        Self {
            incarnation: None,
            instance: None,
            acked: Lsn::ZERO,
            next_send,
            feed: Feed::Probing,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            window: usize::MAX,
            commit_sent: Lsn::ZERO,
            last_sent: MonoTime::ZERO,
            last_heard: now,
            waiting_since: None,
            rebuilding: false,
            refused: None,
            probe_out: false,
            restarted: None,
        }
    }

    /// A copy does not hold what an append builds upon: the feed starts over from `next_send`. False if this is no
    /// news.
    ///
    /// One append that is lost or overtaken makes every other one on its way mismatch. If each such answer started the
    /// feed over, each would send the whole window again, and the answers to that would do the same: on a network that
    /// reorders, messages would multiply without end.
    pub(crate) fn mismatched(
        &mut self,
        now: MonoTime,
        next_send: Lsn,
        retransmit: Duration,
    ) -> bool {
        let stale = match self.feed {
            // The answer to the probe that is out decides; a probe that is lost is sent again with the heartbeat. One that
            // points above the probe answers an earlier one, most likely: only if such answers go on coming does the copy's log
            // begin above the probe, and cannot tell what was below.
            Feed::Probing => {
                self.probe_out
                    && next_send >= self.next_send
                    && (next_send == self.next_send
                        || self.restarted.is_some_and(|at| now < at + retransmit))
            }
            // What is on its way is given some time first.
            Feed::Streaming => {
                !self.in_flight.is_empty()
                    && self.restarted.is_some_and(|at| now < at + retransmit / 10)
            }
            Feed::NeedsCopy => false,
        };
        if !stale {
            self.restarted = Some(now);
            self.window = 1;
            self.become_probing(next_send);
        }
        !stale
    }

    /// Whether the copy has not answered several heartbeats.
    pub(crate) fn is_silent(&self, now: MonoTime, heartbeat: Duration) -> bool {
        now >= self.last_heard + 5 * heartbeat
    }

    /// Notes who answers. Another process, or another copy, vouches for nothing that the one before acknowledged.
    pub(crate) fn heard(&mut self, now: MonoTime, copy: CopyId, instance: Instance) {
        self.last_heard = now;
        self.refused = None;
        if self.incarnation != Some(copy.incarnation) || self.instance != Some(instance) {
            self.incarnation = Some(copy.incarnation);
            self.instance = Some(instance);
            self.acked = Lsn::ZERO;
            self.rebuilding = false;
            self.become_probing(self.next_send);
        }
    }

    pub(crate) fn handle_ack(&mut self, now: MonoTime, ack: Ack) {
        self.rebuilding = ack.rebuilding;
        self.probe_out = false;
        if ack.lsn > self.acked {
            self.acked = ack.lsn;
            self.waiting_since = Some(now);
        }
        while self
            .in_flight
            .front()
            .is_some_and(|(last, _)| *last <= self.acked)
        {
            let (_, bytes) = self.in_flight.pop_front().expect("front was just seen");
            self.in_flight_bytes -= bytes;
            self.window = self.window.saturating_add(1);
        }
        if self.in_flight.is_empty() {
            self.waiting_since = None;
        }
        if self.feed != Feed::Streaming {
            self.feed = Feed::Streaming;
            self.next_send = self.acked.next();
        }
        self.next_send = self.next_send.max(self.acked.next());
    }

    /// Starts over from `next_send`, with one empty append at a time.
    pub(crate) fn become_probing(&mut self, next_send: Lsn) {
        self.feed = Feed::Probing;
        self.next_send = next_send.max(self.acked.next());
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.waiting_since = None;
        self.probe_out = false;
    }

    /// Notes that entries up to `last` were sent in `bytes` bytes; `last` below `next_send` sent none.
    pub(crate) fn sent(&mut self, now: MonoTime, last: Lsn, bytes: u64, commit: Lsn) {
        self.last_sent = now;
        self.commit_sent = commit;
        if last >= self.next_send {
            self.next_send = last.next();
            self.in_flight.push_back((last, bytes));
            self.in_flight_bytes += bytes;
            self.waiting_since.get_or_insert(now);
        } else {
            self.probe_out = true;
        }
    }

    pub(crate) fn has_room(&self, bytes_max: u64) -> bool {
        self.in_flight_bytes < bytes_max && self.in_flight.len() < self.window
    }

    #[cfg(test)]
    pub(crate) fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }
}

#[cfg(test)]
mod tests {
    use mainstay_types::{Epoch, NodeId};

    use super::*;

    fn ack(lsn: u64) -> Ack {
        Ack {
            epoch: Epoch(1),
            instance: Instance(1),
            lsn: Lsn(lsn),
            rebuilding: false,
        }
    }

    fn copy(incarnation: u64) -> CopyId {
        CopyId {
            node: NodeId(2),
            incarnation: Incarnation(incarnation),
        }
    }

    #[test]
    fn answers_free_the_window() {
        let mut p = Progress::new(MonoTime(0), Lsn(1));
        p.heard(MonoTime(1), copy(1), Instance(7));
        p.handle_ack(MonoTime(1), ack(0));
        assert_eq!(p.feed, Feed::Streaming);
        p.sent(MonoTime(2), Lsn(3), 300, Lsn(0));
        p.sent(MonoTime(2), Lsn(5), 200, Lsn(0));
        assert!(!p.has_room(500));
        p.handle_ack(MonoTime(3), ack(4));
        assert_eq!(
            (p.in_flight_bytes(), p.acked, p.next_send),
            (200, Lsn(4), Lsn(6))
        );
    }

    #[test]
    fn a_window_of_mismatches_starts_the_feed_over_once() {
        let retransmit = Duration::from_nanos(1_000);
        let mut p = Progress::new(MonoTime(0), Lsn(1));
        p.heard(MonoTime(1), copy(1), Instance(7));
        p.handle_ack(MonoTime(1), ack(0));
        for lsn in 1..10 {
            p.sent(MonoTime(2), Lsn(lsn), 10, Lsn(0));
        }
        // The first was lost: the others find nothing to build upon.
        assert!(p.mismatched(MonoTime(3), Lsn(1), retransmit));
        p.sent(MonoTime(3), Lsn(0), 0, Lsn(0));
        assert!(!p.mismatched(MonoTime(4), Lsn(1), retransmit));
        p.handle_ack(MonoTime(5), ack(0));
        p.sent(MonoTime(5), Lsn(9), 90, Lsn(0));
        assert!(
            !p.has_room(1_000),
            "one at a time, until one is acknowledged"
        );
        assert!(!p.mismatched(MonoTime(6), Lsn(1), retransmit));
        assert_eq!((p.feed, p.next_send), (Feed::Streaming, Lsn(10)));
        // What lies below the probe that is out is news.
        p.become_probing(Lsn(8));
        p.sent(MonoTime(7), Lsn(7), 0, Lsn(0));
        assert!(p.mismatched(MonoTime(8), Lsn(4), retransmit));
        assert_eq!((p.feed, p.next_send), (Feed::Probing, Lsn(4)));
    }

    /// The primary, after a broken link, begins at its own log's start; the copy's log begins above that, and has no entry
    /// to compare. It says where it ends, again and again.
    #[test]
    fn a_probe_below_the_start_of_the_copys_log_moves_up() {
        let retransmit = Duration::from_nanos(1_000);
        let mut p = Progress::new(MonoTime(0), Lsn(1));
        p.heard(MonoTime(1), copy(1), Instance(7));
        assert!(p.mismatched(MonoTime(2), Lsn(151), retransmit));
        p.sent(MonoTime(2), Lsn(150), 0, Lsn(0));
        // Late answers to earlier probes change nothing.
        assert!(!p.mismatched(MonoTime(500), Lsn(382), retransmit));
        assert!(!p.mismatched(MonoTime(900), Lsn(382), retransmit));
        assert!(p.mismatched(MonoTime(1_100), Lsn(382), retransmit));
        assert_eq!((p.feed, p.next_send), (Feed::Probing, Lsn(382)));
        // And then down again, if that was wrong.
        p.sent(MonoTime(1_100), Lsn(381), 0, Lsn(0));
        assert!(p.mismatched(MonoTime(1_200), Lsn(376), retransmit));
    }

    #[test]
    fn a_restarted_member_must_vouch_again() {
        let mut p = Progress::new(MonoTime(0), Lsn(1));
        p.heard(MonoTime(1), copy(1), Instance(7));
        p.handle_ack(MonoTime(1), ack(9));
        p.heard(MonoTime(2), copy(1), Instance(8));
        assert_eq!((p.acked, p.feed), (Lsn(0), Feed::Probing));
        p.handle_ack(MonoTime(2), ack(6));
        assert_eq!((p.acked, p.next_send), (Lsn(6), Lsn(7)));
    }
}
