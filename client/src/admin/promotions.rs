//! Plain descriptions of promotions: asked for, made, with their proof, or refused. All serialize.

use mainstay_types::{Epoch, Incarnation, Instance, Lineage, LogPoint, Lsn, NodeId};
use serde::Serialize;

/// A promotion to ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Promote {
    /// Which volume.
    pub volume: String,
    /// To whom; `None`: whoever is best.
    pub to: Option<NodeId>,
    /// Without the answers that prove that nothing acknowledged is lost.
    pub force: bool,
    /// Needed with `force`; without it the refusal says what would be lost.
    pub accept_data_loss: bool,
    /// Nodes stated to be off, and to stay off.
    pub declared_off: Vec<NodeId>,
    /// With `force`: full copies below which nothing is acknowledged from now on; zero leaves it as it was.
    pub min_copies: u32,
    /// For the event log.
    pub reason: String,
}

/// A promotion that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Promoted {
    /// The new epoch.
    pub epoch: Epoch,
    /// The new primary.
    pub primary: NodeId,
    /// The proof.
    pub certificate: Option<Certificate>,
}

/// Proof of one promotion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// The epoch fenced.
    pub epoch_before: Epoch,
    /// The new one.
    pub epoch_after: Epoch,
    /// In force afterwards.
    pub lineage: Lineage,
    /// By an operator, without proof.
    pub forced: bool,
    /// What began it.
    pub reason: String,
    /// Who was primary.
    pub primary_before: NodeId,
    /// Who is.
    pub primary_after: NodeId,
    /// Its process.
    pub instance_after: Instance,
    /// The witness that drove it.
    pub driven_by: NodeId,
    /// What the witnesses answered.
    pub fences: Vec<FenceAnswer>,
    /// What the members answered.
    pub seals: Vec<SealReport>,
    /// Answers needed to see everything committed.
    pub sight_needed: u32,
    /// End of the log chosen.
    pub cut: LogPoint,
    /// The command and how it ended; empty if none is configured.
    pub external_fence: String,
    /// When.
    pub began_unix_ms: u64,
    /// How long.
    pub took_ms: u64,
    /// Nothing acknowledged was lost.
    pub nothing_lost: bool,
    /// Forced: first entry in doubt.
    pub doubt_from: Option<Lsn>,
    /// Forced: last one; `None` is open-ended.
    pub doubt_to: Option<Lsn>,
    /// Members afterwards.
    pub members_after: Vec<NodeId>,
    /// Ack quorum afterwards.
    pub ack_quorum_after: u32,
}

/// A witness's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FenceAnswer {
    /// Who.
    pub witness: NodeId,
    /// It grants no more leases for the old epoch.
    pub fenced: bool,
    /// Answered after.
    pub after_ms: u64,
}

/// A member's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SealReport {
    /// Who.
    pub node: NodeId,
    /// Which copy.
    pub incarnation: Incarnation,
    /// In a word.
    pub answer: String,
    /// End of its log.
    pub last: LogPoint,
    /// Answered after.
    pub after_ms: u64,
}

/// Why a promotion was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum PromoteRefused {
    /// The node is primary already.
    #[error("already the primary")]
    AlreadyPrimary,
    /// No copy there that may become primary.
    #[error("no member there that may become primary")]
    NotAMember,
    /// Durable to less than is committed.
    #[error("durable to {have}, commit point is {need}")]
    Behind {
        /// What it has.
        have: Lsn,
        /// What is needed.
        need: Lsn,
    },
    /// Damaged, rebuilding or in doubt.
    #[error("the copy there is not intact")]
    NotIntact,
    /// Too few witnesses answer.
    #[error("{votes} of {needed} witnesses")]
    NoWitnessQuorum {
        /// Answers.
        votes: u32,
        /// Answers needed.
        needed: u32,
    },
    /// Too few members answer.
    #[error("{answers} of {needed} members; {missing:?} could complete it")]
    NoSight {
        /// Answers.
        answers: u32,
        /// Answers needed.
        needed: u32,
        /// Members that could complete it.
        missing: Vec<NodeId>,
    },
    /// An earlier epoch's lease has not ended.
    #[error("epoch {epoch} still holds a lease for {remaining_ms} ms")]
    LeaseHeld {
        /// Of this epoch.
        epoch: Epoch,
        /// For this much longer.
        remaining_ms: u64,
    },
    /// Too many promotions lately.
    #[error("held down for {remaining_ms} ms after too many promotions")]
    HoldDown {
        /// For this much longer.
        remaining_ms: u64,
    },
    /// The configured command did not succeed.
    #[error("external fence: {output}")]
    ExternalFenceFailed {
        /// What it printed.
        output: String,
    },
    /// Forced, and data loss not accepted or not every other copy fenced: what it would cost.
    #[error("{message}")]
    WouldLose {
        /// The server's words.
        message: String,
        /// First entry in doubt.
        from: Lsn,
        /// Last one, if anybody knows it.
        to: Option<Lsn>,
        /// Members neither sealed nor declared off.
        not_fenced: Vec<NodeId>,
    },
    /// Another promotion came first.
    #[error("node {primary} was promoted to epoch {epoch} meanwhile")]
    Raced {
        /// The new epoch.
        epoch: Epoch,
        /// The new primary.
        primary: NodeId,
    },
    /// A reason of a later release.
    #[error("{message}")]
    Other {
        /// The server's words.
        message: String,
    },
}

impl Promote {
    /// A planned switchover, to whoever is best.
    ///
    /// # Example
    /// ```
    /// use mainstay_client::report::Promote;
    /// use mainstay_types::NodeId;
    ///
    /// let mut planned = Promote::planned("ledger");
    /// planned.to = Some(NodeId(2));
    /// assert!(!planned.force);
    /// ```
    #[must_use]
    pub fn planned(volume: impl Into<String>) -> Self {
        Self {
            volume: volume.into(),
            to: None,
            force: false,
            accept_data_loss: false,
            declared_off: Vec::new(),
            min_copies: 0,
            reason: String::new(),
        }
    }
}
