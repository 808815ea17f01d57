//! The gaps that one client saw: for how long, at most, nothing was acknowledged.
//!
//! Only spans of at least `SPAN_MIN` between two acknowledgements are kept, so that a long load stays small.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shorter spans are no gaps.
const SPAN_MIN: Duration = Duration::from_millis(1);

/// Acknowledgements of one client as they come. Any thread may ask while they do.
#[derive(Debug)]
pub struct Gaps {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    last: Instant,
    acknowledged: u64,
    /// In order, not overlapping.
    spans: Vec<(Instant, Instant)>,
}

impl Default for Gaps {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner {
                last: Instant::now(),
                acknowledged: 0,
                spans: Vec::new(),
            }),
        }
    }
}

impl Gaps {
    /// Something was acknowledged now.
    pub fn acknowledged(&self) {
        self.acknowledged_at(Instant::now());
    }

    fn acknowledged_at(&self, now: Instant) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.acknowledged += 1;
        let last = std::mem::replace(&mut inner.last, now);
        if now.duration_since(last) >= SPAN_MIN {
            inner.spans.push((last, now));
        }
    }

    /// How much was acknowledged so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.acknowledged
    }

    /// The longest gap that lies in the window at least in part; one that has not ended counts up to now.
    #[must_use]
    pub fn longest(&self, from: Instant, to: Instant) -> Duration {
        self.longest_at(Instant::now(), from, to)
    }

    fn longest_at(&self, now: Instant, from: Instant, to: Instant) -> Duration {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let open = (inner.last, now);
        let spans = inner.spans.iter().copied().chain([open]);
        let touching = spans.filter(|(begins, ends)| *begins < to && *ends > from);
        let lengths = touching.map(|(begins, ends)| ends.saturating_duration_since(begins));
        lengths.max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_around_a_moment_is_found_also_while_it_lasts() {
        let gaps = Gaps::default();
        let start = gaps.inner.lock().expect("not poisoned").last;
        let at = |ms| start + Duration::from_millis(ms);
        for ms in [10, 12, 90, 91, 300] {
            gaps.acknowledged_at(at(ms));
        }
        assert_eq!(gaps.count(), 5);
        let longest = |now, from, to| gaps.longest_at(at(now), at(from), at(to)).as_millis();
        assert_eq!(longest(301, 50, 80), 78, "begun before, ended after");
        assert_eq!(longest(301, 13, 200), 209);
        assert_eq!(longest(301, 0, 11), 10);
        assert_eq!(longest(900, 310, 320), 600, "nothing since 300");
    }
}
