//! Deliberate protocol mistakes, so that the simulator can prove that it finds them.
//!
//! Without the feature `mistakes` the set is always empty and every question is a constant `false`.

/// One mistake. Each names the rule it breaks; `docs/protocol.md` tells the order of events that makes it fatal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Mistake {
    /// C1: a restarted primary goes on in its own epoch.
    RestartedPrimaryGoesOn,
    /// C2: a reconfiguration is proposed before the new quorum holds what was committed.
    NoSyncPoint,
    /// C3: a promotion drops the members that did not answer.
    PromotionDropsSilent,
    /// C4: an acknowledgement is sent after the seal.
    AckAfterSeal,
    /// C5: a damaged log counts as one that lacks the entries.
    DamageCountsAsSight,
    /// C6: acknowledgements and commit points hold for unverified suffixes.
    UnverifiedSuffix,
    /// H1: the register is read without write-back and compared by version.
    RegisterByNumber,
    /// H4: an orphaned fence or seal is nobody's business.
    OrphansIgnored,
    /// H7: a release names the node, not the instance.
    ReleaseByNode,
    /// H8: grants name no epoch, and fences wait only for grants of the fenced epoch.
    GrantsWithoutNames,
    /// M2: a restarted witness fences at once.
    NoQuietTime,
    /// M7: a start order is followed whatever was sealed since.
    StartUnchecked,
    /// An entry is acknowledged when it is written, not when it is durable.
    AckBeforeSync,
    /// The longest log is chosen, whatever its last epoch.
    ChoiceByLsnAlone,
    /// A seal is answered before it is durable.
    SealNotDurable,
    /// The holder counts its lease from the receipt of the grant.
    LeaseFromReceipt,
    /// While a change is pending, only the old rule decides what is committed.
    NoJointRule,
    /// A late append cuts everything behind it.
    TruncateBelowCommit,
    /// A copy is known by its node alone.
    IncarnationIgnored,
    /// A witness answers a ballot before it is durable.
    VoteNotDurable,
    /// A read is served after the lease has ended.
    ReadAfterLease,
    /// Inherited entries are committed without an entry of the own epoch.
    CommitInherited,
    /// The survivor acknowledges alone before the register says that it may.
    AckAloneBeforeShrink,
    /// H10: another witness set is put in force in one step.
    WitnessesInOneStep,
    /// R8: a newcomer among the witnesses takes over nothing from the old set.
    NewcomersBlank,
    /// R9.4: readers are shown a log up to its commit point, which may lie within a batch.
    HalfBatchShown,
    /// R9.4: what is left of a batch that was cut short is shown.
    TornBatchShown,
    /// R9.5: the primary takes records of a writer whose token is older.
    OldTokenTaken,
    /// R9.5: an older writer hears of a newer token before that is committed.
    TokenToldEarly,
    /// H5: what a trim covers is released although a registered member may lack it.
    ReleaseUnheld,
    /// R9.9: the primary trims what the log's policy keeps.
    KeptTrimmed,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Self; 31] = [
        Self::RestartedPrimaryGoesOn,
        Self::NoSyncPoint,
        Self::PromotionDropsSilent,
        Self::AckAfterSeal,
        Self::DamageCountsAsSight,
        Self::UnverifiedSuffix,
        Self::RegisterByNumber,
        Self::OrphansIgnored,
        Self::ReleaseByNode,
        Self::GrantsWithoutNames,
        Self::NoQuietTime,
        Self::StartUnchecked,
        Self::AckBeforeSync,
        Self::ChoiceByLsnAlone,
        Self::SealNotDurable,
        Self::LeaseFromReceipt,
        Self::NoJointRule,
        Self::TruncateBelowCommit,
        Self::IncarnationIgnored,
        Self::VoteNotDurable,
        Self::ReadAfterLease,
        Self::CommitInherited,
        Self::AckAloneBeforeShrink,
        Self::WitnessesInOneStep,
        Self::NewcomersBlank,
        Self::HalfBatchShown,
        Self::TornBatchShown,
        Self::OldTokenTaken,
        Self::TokenToldEarly,
        Self::ReleaseUnheld,
        Self::KeptTrimmed,
    ];
}

/// The mistakes switched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mistakes {
    #[cfg(feature = "mistakes")]
    bits: u32,
}

impl Mistakes {
    /// None: what every real node runs.
    pub const NONE: Self = Self {
        #[cfg(feature = "mistakes")]
        bits: 0,
    };

    /// Exactly this one.
    #[cfg(feature = "mistakes")]
    #[must_use]
    pub fn only(mistake: Mistake) -> Self {
        Self {
            bits: 1 << mistake as u8,
        }
    }

    /// Whether `mistake` is switched on.
    #[cfg(feature = "mistakes")]
    #[must_use]
    pub fn has(self, mistake: Mistake) -> bool {
        self.bits & (1 << mistake as u8) != 0
    }

    /// Whether `mistake` is switched on: never.
    #[cfg(not(feature = "mistakes"))]
    #[must_use]
    pub const fn has(self, _mistake: Mistake) -> bool {
        false
    }
}
