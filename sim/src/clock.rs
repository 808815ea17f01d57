//! A process's own clock: offset and rate differ from true time; the rate only within the bound that leases allow.
//!
//! It counts suspended time: a paused process finds, when it goes on, that its clock has moved with true time.

use mainstay_types::MonoTime;

/// A clock that runs at its own rate.
#[derive(Debug, Clone)]
pub struct Clock {
    true_base: u64,
    local_base: u64,
    /// Parts per million faster than true time.
    ppm: i64,
    /// Nanoseconds that its wall clock differs; jumps.
    pub wall_offset_ns: i64,
}

const MILLION: i128 = 1_000_000;

impl Clock {
    /// A clock that reads `local_base` at true time zero.
    #[must_use]
    pub fn new(local_base: u64, ppm: i64) -> Self {
        Self {
            true_base: 0,
            local_base,
            ppm,
            wall_offset_ns: 0,
        }
    }

    /// What it reads at true time `now`.
    #[must_use]
    pub fn read(&self, now: u64) -> MonoTime {
        let passed = i128::from(now - self.true_base) * (MILLION + i128::from(self.ppm)) / MILLION;
        MonoTime(self.local_base + u64::try_from(passed).expect("rates are positive"))
    }

    /// The wall clock: what records are stamped with.
    #[must_use]
    pub fn wall(&self, now: u64) -> u64 {
        let base = 1_700_000_000_000_000_000_u64;
        (base + now).saturating_add_signed(self.wall_offset_ns)
    }

    /// The first true time at which it reads at least `local`.
    #[must_use]
    pub fn when(&self, local: MonoTime) -> u64 {
        if local == MonoTime::MAX {
            return u64::MAX;
        }
        let ahead = i128::from(local.0.saturating_sub(self.local_base));
        let rate = MILLION + i128::from(self.ppm);
        let passed = (ahead * MILLION + rate - 1) / rate;
        self.true_base + u64::try_from(passed).expect("within the simulation's reach")
    }

    /// From true time `now` on it runs at another rate.
    pub fn change_rate(&mut self, now: u64, ppm: i64) {
        self.local_base = self.read(now).0;
        self.true_base = now;
        self.ppm = ppm;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_met_when_the_clock_says_so_and_not_before() {
        for ppm in [-10_000, -3, 0, 7, 10_000] {
            let mut clock = Clock::new(500, ppm);
            clock.change_rate(1_234_567, ppm / 2);
            for local in [2_000_000_u64, 999_999_937, 5_000_000_001] {
                let at = clock.when(MonoTime(local));
                assert!(clock.read(at).0 >= local, "{ppm} {local}");
                assert!(clock.read(at - 1).0 < local, "{ppm} {local}");
            }
        }
    }
}
