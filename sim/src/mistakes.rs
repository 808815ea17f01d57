//! Which seed catches which planted mistake: the proof that the simulator finds bugs.

use mainstay_replication::Mistake;

/// A seed at which each mistake is caught, and which passes without it.
///
/// Those that are missing here are listed in `docs/simulator.md`.
pub const CAUGHT: &[(Mistake, u64)] = &[
    (Mistake::RestartedPrimaryGoesOn, 2),
    (Mistake::NoSyncPoint, 1_044),
    (Mistake::AckAfterSeal, 0),
    (Mistake::UnverifiedSuffix, 2),
    (Mistake::RegisterByNumber, 11),
    (Mistake::NoQuietTime, 1_017),
    (Mistake::StartUnchecked, 0),
    (Mistake::AckBeforeSync, 0),
    (Mistake::ChoiceByLsnAlone, 1_037),
    (Mistake::SealNotDurable, 0),
    (Mistake::NoJointRule, 1_035),
    (Mistake::TruncateBelowCommit, 1_006),
    (Mistake::VoteNotDurable, 1_001),
    (Mistake::ReadAfterLease, 1_008),
    (Mistake::CommitInherited, 1_004),
    (Mistake::AckAloneBeforeShrink, 1_011),
];
