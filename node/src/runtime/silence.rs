//! How long nothing was heard of a forwarder's stream (H11).
//!
//! A ping goes out now and then, and comes back in line with the forwarder's requests. What arrives behind the answer to a ping was
//! sent after the ping was. So a request that is taken within the limit after the newest ping *that was answered before it* is no
//! older on this stream than the limit: neither a network that delivers late nor a process that stood still can bring one that is.

use std::collections::VecDeque;
use std::time::Duration;

use mainstay_types::MonoTime;

/// Pings without an answer that are remembered: those of four times the limit. An answer to an older one makes nothing younger than the
/// limit.
const PINGS_MAX: usize = 16;

/// Looks that find nothing in the stream before it ends. With one alone, the answers might wait for the room that the look before made.
const LOOKS: u32 = 2;

/// One stream's silence.
#[derive(Debug)]
pub(super) struct Silence {
    limit: Duration,
    /// When the newest ping that was answered was sent, or the stream began: everything that arrives was sent later.
    since: MonoTime,
    /// Pings without an answer, and when each was sent; both rise.
    pings: VecDeque<(u64, MonoTime)>,
    next: u64,
    /// Looks in a row that found nothing.
    looks: u32,
}

impl Silence {
    pub(super) fn new(limit: Duration, now: MonoTime) -> Self {
        Self {
            limit,
            since: now,
            pings: VecDeque::new(),
            next: 1,
            looks: 0,
        }
    }

    /// Time from one ping to the next.
    pub(super) fn ping_every(&self) -> Duration {
        (self.limit / 4).max(Duration::from_millis(1))
    }

    /// A ping is about to be sent: its number.
    pub(super) fn ping(&mut self, now: MonoTime) -> u64 {
        let number = self.next;
        self.next += 1;
        if self.pings.len() == PINGS_MAX {
            self.pings.pop_front();
        }
        self.pings.push_back((number, now));
        number
    }

    /// A ping was answered, and so are all before it. A number that was never sent changes nothing.
    pub(super) fn pong(&mut self, number: u64) {
        if !self.pings.iter().any(|(sent, _)| *sent == number) {
            return;
        }
        while let Some((sent, at)) = self.pings.pop_front_if(|(sent, _)| *sent <= number) {
            if sent == number {
                self.since = at;
            }
        }
    }

    /// All that had arrived was read, and the silence is over its limit. Says whether that was so for long enough to end the stream.
    pub(super) fn nothing_there(&mut self) -> bool {
        self.looks += 1;
        self.looks >= LOOKS
    }

    /// The stream was not read to its end.
    pub(super) fn something_there(&mut self) {
        self.looks = 0;
    }

    /// No mutation that arrives now is taken.
    pub(super) fn is_over(&self, now: MonoTime) -> bool {
        now.since(self.since) >= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> MonoTime {
        MonoTime(ms * 1_000_000)
    }

    #[test]
    fn a_stream_is_as_old_as_the_newest_ping_that_was_answered() {
        let mut silence = Silence::new(Duration::from_millis(100), at(1000));
        assert!(!silence.is_over(at(1099)));
        assert!(silence.is_over(at(1100)));
        let first = silence.ping(at(1025));
        let second = silence.ping(at(1050));
        // The answer may come late: what counts is when the question went.
        silence.pong(first);
        assert!(!silence.is_over(at(1124)));
        assert!(silence.is_over(at(1125)));
        silence.pong(second);
        assert!(!silence.is_over(at(1149)));
        assert!(silence.is_over(at(1150)));
    }

    #[test]
    fn answers_to_nothing_change_nothing() {
        let mut silence = Silence::new(Duration::from_millis(100), at(0));
        let ping = silence.ping(at(50));
        silence.pong(ping + 1);
        silence.pong(0);
        assert!(silence.is_over(at(100)));
        silence.pong(ping);
        silence.pong(ping);
        assert!(!silence.is_over(at(149)));
        assert!(silence.is_over(at(150)));
    }
}
