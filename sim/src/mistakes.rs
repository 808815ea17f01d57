//! Which seed catches which planted mistake: the proof that the simulator finds bugs.

use mainstay_replication::Mistake;

/// A seed at which each mistake is caught, and which passes without it.
pub const CAUGHT: [(Mistake, u64); Mistake::ALL.len()] = [
    (Mistake::RestartedPrimaryGoesOn, 2),
    (Mistake::NoSyncPoint, 1_302),
    (Mistake::PromotionDropsSilent, 1_009),
    (Mistake::AckAfterSeal, 0),
    (Mistake::DamageCountsAsSight, 1_019),
    (Mistake::UnverifiedSuffix, 2),
    (Mistake::RegisterByNumber, 14),
    (Mistake::OrphansIgnored, 1_593),
    (Mistake::ReleaseByNode, 1_025),
    (Mistake::GrantsWithoutNames, 1_035),
    (Mistake::NoQuietTime, 1_200),
    (Mistake::StartUnchecked, 0),
    (Mistake::AckBeforeSync, 0),
    (Mistake::ChoiceByLsnAlone, 1_160),
    (Mistake::SealNotDurable, 0),
    (Mistake::LeaseFromReceipt, 1_056),
    (Mistake::NoJointRule, 1_004),
    (Mistake::TruncateBelowCommit, 1_018),
    (Mistake::IncarnationIgnored, 1_019),
    (Mistake::VoteNotDurable, 1_002),
    (Mistake::ReadAfterLease, 1_012),
    (Mistake::CommitInherited, 1_016),
    (Mistake::AckAloneBeforeShrink, 1_004),
    (Mistake::WitnessesInOneStep, 1_017),
    (Mistake::NewcomersBlank, 1_637),
    (Mistake::HalfBatchShown, 0),
    (Mistake::TornBatchShown, 2),
    (Mistake::OldTokenTaken, 4),
    (Mistake::TokenToldEarly, 4),
    (Mistake::ReleaseUnheld, 48),
    (Mistake::KeptTrimmed, 0),
];
