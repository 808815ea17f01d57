//! Times and bounds. The core has no clock: these are compared with the time that each call brings.

use std::time::Duration;

use crate::mistakes::Mistakes;

/// Of one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberConfig {
    /// A primary with nothing to send sends an empty append this often.
    pub heartbeat: Duration,
    /// The commit point travels alone after this long, if no entry carried it.
    pub commit_delay: Duration,
    /// Entries that were not answered for this long are sent again.
    pub retransmit: Duration,
    /// A member that was silent for this long is dropped from the register.
    pub drop_after: Duration,
    /// A write that waits for the disk, an entry that waits for its commit, or a silence of the primary is overdue after
    /// this long.
    pub overdue_after: Duration,
    /// Bytes sent to one copy ahead of its answers.
    pub in_flight_bytes_max: u64,
    /// A planned switchover that has not drained by then is called off.
    pub handover_timeout: Duration,
    /// A register round without a result starts over after this long.
    pub round_retry: Duration,
    /// Reads are served after a quorum has confirmed the epoch, never on the word of the lease alone: for machines whose
    /// clocks may stand still, as those of a guest that is paused unawares (H9).
    pub confirm_reads: bool,
    /// A new primary serves only after `Input::Ready`, for which it asks with `Output::AwaitReady`.
    pub await_ready: bool,
    /// Deliberate mistakes, for the simulator.
    pub mistakes: Mistakes,
}

impl Default for MemberConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            commit_delay: Duration::from_millis(5),
            retransmit: Duration::from_millis(300),
            drop_after: Duration::from_secs(3),
            overdue_after: Duration::from_millis(1000),
            in_flight_bytes_max: 8 << 20,
            handover_timeout: Duration::from_secs(3),
            round_retry: Duration::from_millis(100),
            confirm_reads: false,
            await_ready: false,
            mistakes: Mistakes::NONE,
        }
    }
}

/// Of leases, the same on every node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseConfig {
    /// How long a witness's grant runs, counted by the witness from its answer.
    pub lease: Duration,
    /// The longest lease that was ever configured: what a restarted witness waits out.
    pub lease_longest: Duration,
    /// Time between two beats.
    pub beat: Duration,
    /// Bound on how much one clock's rate differs from true time, in parts per million.
    pub rate_error_ppm: u32,
    /// A commit path that is overdue by this much costs the lease, if other members could do better.
    pub unwell_after: Duration,
    /// A witness starts a promotion this much later than the one ranked before it.
    pub stagger: Duration,
    /// How long a promotion waits for answers that it could do without.
    pub grace: Duration,
    /// What got no answer is asked again after this long.
    pub retry: Duration,
    /// An attempt that has not ended by then starts over.
    pub attempt: Duration,
    /// How promotions on suspicion are spaced.
    pub hold_down: HoldDownConfig,
    /// How long the external fence may run; `None` if there is none. The same on every witness.
    pub external_fence: Option<Duration>,
    /// Deliberate mistakes, for the simulator.
    pub mistakes: Mistakes,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            lease: Duration::from_millis(800),
            lease_longest: Duration::from_millis(800),
            beat: Duration::from_millis(100),
            rate_error_ppm: 10_000,
            unwell_after: Duration::from_millis(1000),
            stagger: Duration::from_millis(150),
            grace: Duration::from_millis(40),
            retry: Duration::from_millis(50),
            attempt: Duration::from_millis(1500),
            hold_down: HoldDownConfig::default(),
            external_fence: None,
            mistakes: Mistakes::NONE,
        }
    }
}

/// Spacing of promotions that follow from suspicion alone. The replacement of a primary that is proved to have stopped
/// is never delayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldDownConfig {
    /// So many within `window` wait for nothing.
    pub free: u32,
    /// Older ones are forgotten.
    pub window: Duration,
    /// The first wait, counted from the promotion before; each further one is twice as long.
    pub first: Duration,
    /// No wait is longer.
    pub longest: Duration,
}

impl Default for HoldDownConfig {
    fn default() -> Self {
        Self {
            free: 3,
            window: Duration::from_secs(60),
            first: Duration::from_secs(1),
            longest: Duration::from_secs(30),
        }
    }
}

impl LeaseConfig {
    /// What the holder may count on of a grant that runs `granted` at the witness: h <= L (1 - r) / (1 + r), from the
    /// moment it sent the beat.
    #[must_use]
    pub fn held(&self, granted: Duration) -> Duration {
        let million = 1_000_000_u128;
        let rate = u128::from(self.rate_error_ppm).min(million);
        let nanos = granted.as_nanos() * (million - rate) / (million + rate);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}
