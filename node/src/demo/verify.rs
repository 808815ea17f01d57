//! The proof at the end: reads everything back, on every member, and compares it with what the clients know.

use mainstay_types::NodeId;

use super::cluster::{DISK, LEDGER, Stage};
use super::disk::DiskModel;
use super::faults::FaultKind;
use super::ledger::{LedgerModel, prove};
use super::narrator::{Kind, Narrator};
use super::script::Round;
use super::summary::Check;

/// What is known when the load has ended.
pub(super) struct Known<'a> {
    pub(super) stage: &'a Stage,
    pub(super) ledger: &'a LedgerModel,
    pub(super) disk: &'a DiskModel,
    pub(super) rounds: &'a [Round],
    pub(super) narrator: Narrator,
}

impl Known<'_> {
    /// Every check, each told when it is done. An error is a check that does not hold.
    pub(super) async fn verify(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        for volume in [LEDGER, DISK] {
            checks.push(self.told(self.level(volume).await));
        }
        for node in self.stage.data_nodes() {
            checks.push(self.told(self.ledger_on(node).await));
            checks.push(self.told(self.disk_on(node).await));
        }
        for round in self.rounds {
            if round.kind == FaultKind::Freeze {
                checks.push(self.told(self.fenced(round).await));
            }
        }
        checks
    }

    fn told(&self, check: anyhow::Result<Check>) -> Check {
        let check = check.unwrap_or_else(|error| Check::new(false, format!("{error:#}")));
        let kind = if check.holds { Kind::Good } else { Kind::Bad };
        self.narrator.say(kind, &check.text);
        check
    }

    /// All members are durable and committed up to the same position.
    async fn level(&self, volume: &str) -> anyhow::Result<Check> {
        let status = self.stage.wait_level(volume).await?;
        Ok(Check::new(
            true,
            format!(
                "{volume}: {} members in step, all committed up to {}",
                status.members.len(),
                status.commit_lsn
            ),
        ))
    }

    /// The whole log, served by `node` from its own copy.
    async fn ledger_on(&self, node: NodeId) -> anyhow::Result<Check> {
        self.stage.move_primary(LEDGER, node).await?;
        let proof = prove(&self.stage.client, LEDGER, self.ledger).await?;
        let text = if proof.holds() {
            format!(
                "ledger on node {node}: {} acknowledged transfers, each there once and in its place; balances add up to 0",
                proof.acknowledged
            )
        } else {
            format!("ledger on node {node}: {proof:?}")
        };
        Ok(Check::new(proof.holds(), text))
    }

    /// The whole disk, through the NBD export of `node`, which is then also the primary and reads its own image.
    async fn disk_on(&self, node: NodeId) -> anyhow::Result<Check> {
        self.stage.move_primary(DISK, node).await?;
        let address = self.stage.nbd(node)?;
        let difference = self.disk.compare(&address, DISK).await?;
        let text = match difference.first {
            None => format!(
                "disk on node {node}: all {} MiB are byte for byte as written",
                self.disk.size_bytes() >> 20
            ),
            Some(at) => format!(
                "disk on node {node}: {} blocks differ, the first at byte {at}",
                difference.blocks
            ),
        };
        Ok(Check::new(difference.first.is_none(), text))
    }

    /// The thawed primary's epoch is over, it served nothing more, and it is a member like any other.
    async fn fenced(&self, round: &Round) -> anyhow::Result<Check> {
        let node = round.victim;
        let mut faults = Vec::new();
        for promotion in &round.promotions {
            let (volume, epoch) = (promotion.volume, promotion.epoch);
            let view = self.stage.own_view(node, volume).await?;
            let own = view.members.first();
            let sealed = own.map_or(0, |own| own.sealed_epoch);
            if sealed < epoch.0 {
                faults.push(format!("its copy of {volume} is sealed at {sealed} only"));
            }
            if promotion.served_after_thaw {
                faults.push(format!("it said that it serves {volume} after the thaw"));
            }
            let late = self.acknowledged_late(round, volume);
            if late > 0 {
                faults.push(format!("{late} transfers of its epoch acknowledged late"));
            }
        }
        let epochs: Vec<String> = round
            .promotions
            .iter()
            .map(|p| format!("epoch {} of {} is over", p.epoch_before, p.volume))
            .collect();
        let text = if faults.is_empty() {
            format!(
                "node {node}, thawed: {}, it acknowledged nothing more in it, and is a member again",
                epochs.join(" and ")
            )
        } else {
            format!("node {node}, thawed: {}", faults.join("; "))
        };
        Ok(Check::new(faults.is_empty(), text))
    }

    /// Transfers that were submitted after the promotion, and acknowledged at a position of the old epoch. Those that were
    /// in flight before it may well be there: the new primary inherits them.
    fn acknowledged_late(&self, round: &Round, volume: &str) -> usize {
        let promotion = round.promotions.iter().find(|p| p.volume == LEDGER);
        let Some(promotion) = promotion.filter(|_| volume == LEDGER) else {
            return 0;
        };
        let transfers = self.ledger.submitted.iter().zip(&self.ledger.submitted_at);
        let late = transfers.filter(|(transfer, submitted)| {
            let acknowledged = self.ledger.acknowledged.get(&transfer.number);
            **submitted > promotion.seen
                && acknowledged.is_some_and(|committed| committed.lsn <= promotion.cut.lsn)
        });
        late.count()
    }
}
