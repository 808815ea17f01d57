//! Time as an argument. A simulator cannot build a `std::time::Instant`, so the core counts in this type.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// Nanoseconds of one node's clock that counts suspended time (`CLOCK_BOOTTIME`). Comparable on one node only.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MonoTime(pub u64);

impl MonoTime {
    /// The clock's origin.
    pub const ZERO: Self = Self(0);
    /// Later than every deadline.
    pub const MAX: Self = Self(u64::MAX);

    /// Time passed since `earlier`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The last multiple of `step`, counted from the clock's origin, that is not later; the time itself if `step` is zero.
    /// What happens regularly at such times happens together, and wakes a node once.
    #[must_use]
    pub fn on_grid(self, step: Duration) -> Self {
        let step = u64::try_from(step.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0 - self.0.checked_rem(step).unwrap_or(0))
    }
}

impl Add<Duration> for MonoTime {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub<Duration> for MonoTime {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl fmt::Debug for MonoTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:06}s",
            self.0 / 1_000_000_000,
            self.0 % 1_000_000_000 / 1_000
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_on_the_grid_are_multiples_that_are_not_later() {
        let step = Duration::from_nanos(100);
        for (time, on_grid) in [(0, 0), (99, 0), (100, 100), (101, 100), (250, 200)] {
            assert_eq!(MonoTime(time).on_grid(step), MonoTime(on_grid));
        }
        assert_eq!(MonoTime(7).on_grid(Duration::ZERO), MonoTime(7));
        assert_eq!(MonoTime(7).on_grid(Duration::MAX), MonoTime::ZERO);
    }
}
