//! Which seed catches which planted mistake: the proof that the simulator finds bugs.

use mainstay_replication::Mistake;

/// A seed at which each mistake is caught, and which passes without it.
pub const CAUGHT: [(Mistake, u64); Mistake::ALL.len()] = [
    (Mistake::RestartedPrimaryGoesOn, 2),
    (Mistake::NoSyncPoint, 1_044),
    (Mistake::PromotionDropsSilent, 1_009),
    (Mistake::AckAfterSeal, 0),
    (Mistake::DamageCountsAsSight, 1_019),
    (Mistake::UnverifiedSuffix, 12),
    (Mistake::RegisterByNumber, 17),
    (Mistake::OrphansIgnored, 1_846),
    (Mistake::ReleaseByNode, 1_135),
    (Mistake::GrantsWithoutNames, 1_374),
    (Mistake::NoQuietTime, 1_002),
    (Mistake::StartUnchecked, 6),
    (Mistake::AckBeforeSync, 0),
    (Mistake::ChoiceByLsnAlone, 1_039),
    (Mistake::SealNotDurable, 0),
    (Mistake::LeaseFromReceipt, 1_056),
    (Mistake::NoJointRule, 1_004),
    (Mistake::TruncateBelowCommit, 1_018),
    (Mistake::IncarnationIgnored, 1_019),
    (Mistake::VoteNotDurable, 1_002),
    (Mistake::ReadAfterLease, 1_023),
    (Mistake::CommitInherited, 1_005),
    (Mistake::AckAloneBeforeShrink, 1_004),
    (Mistake::WitnessesInOneStep, 1_077),
    (Mistake::NewcomersBlank, 1_017),
    (Mistake::HalfBatchShown, 0),
    (Mistake::TornBatchShown, 12),
    (Mistake::OldTokenTaken, 4),
    (Mistake::TokenToldEarly, 4),
    (Mistake::ReleaseUnheld, 0),
    (Mistake::KeptTrimmed, 0),
];
