//! What the demo does while the load runs: which primary it kills and freezes, and when it brings it back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::future::try_join_all;
use mainstay_types::{Epoch, LogPoint, NodeId};
use serde::Serialize;
use tokio::time::sleep;

use super::cluster::{DISK, LEDGER, Serving, Stage};
use super::disk::DiskLoad;
use super::faults::FaultKind;
use super::ledger::LedgerLoad;
use super::narrator::{Kind, Narrator};
use super::summary::ms;

/// The NBD client is connected to this node, which is never a victim: the node forwards, and parks what waits.
pub(super) const GATEWAY: NodeId = NodeId(3);
/// Where a volume goes that is on the gateway when its primary shall be lost.
const ELSEWHERE: NodeId = NodeId(1);
/// A promotion that takes longer has failed.
const PROMOTED_WITHIN: Duration = Duration::from_secs(20);
/// A thawed process that wanted to serve would have done so by then.
const WATCH_THAWED: Duration = Duration::from_millis(1500);

/// One fault and what followed.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Round {
    pub(super) kind: FaultKind,
    pub(super) victim: NodeId,
    pub(super) promotions: Vec<Promotion>,
    /// Longest gap of the log client, if its volume was hit.
    pub(super) ledger_gap_ms: Option<u128>,
    /// Longest gap of the NBD client, if its volume was hit.
    pub(super) disk_gap_ms: Option<u128>,
}

/// One volume's new primary.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Promotion {
    pub(super) volume: &'static str,
    pub(super) epoch_before: Epoch,
    pub(super) epoch: Epoch,
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    /// When the new one was seen to serve.
    #[serde(skip)]
    pub(super) seen: Instant,
    pub(super) after_ms: u128,
    /// End of the log that the promotion chose.
    pub(super) cut: LogPoint,
    /// For a frozen primary: whether it was seen to serve its old epoch after it was thawed.
    pub(super) served_after_thaw: bool,
}

/// The running demo.
pub(super) struct Show<'a> {
    pub(super) stage: &'a Stage,
    pub(super) ledger: &'a LedgerLoad,
    pub(super) disk: &'a DiskLoad,
    pub(super) narrator: Narrator,
    /// Time between two steps.
    pub(super) pause: Duration,
}

impl Show<'_> {
    /// All faults, one after another.
    pub(super) async fn run(&self) -> anyhow::Result<Vec<Round>> {
        let mut rounds = Vec::new();
        sleep(self.pause).await;
        let first = self.movable_primary(LEDGER).await?;
        rounds.push(self.round(FaultKind::Process, first).await?);
        let hit_both = rounds[0].promotions.len() == 2;
        if !hit_both {
            let second = self.movable_primary(DISK).await?;
            rounds.push(self.round(FaultKind::Process, second).await?);
        }
        let next = self.movable_primary(LEDGER).await?;
        rounds.push(self.round(FaultKind::Freeze, next).await?);
        Ok(rounds)
    }

    /// The primary of `volume`, which is moved away first if it is on the gateway.
    async fn movable_primary(&self, volume: &str) -> anyhow::Result<NodeId> {
        let serving = self.serving(volume).await?;
        if serving.node != GATEWAY {
            return Ok(serving.node);
        }
        self.narrator.say(
            Kind::Note,
            format!(
                "{volume}: planned switchover away from node {GATEWAY}, which the NBD client needs"
            ),
        );
        let moved = self.stage.move_primary(volume, ELSEWHERE).await?;
        self.narrator.say(Kind::Primary, told(volume, moved));
        sleep(self.pause / 2).await;
        Ok(moved.node)
    }

    async fn serving(&self, volume: &str) -> anyhow::Result<Serving> {
        let limit = PROMOTED_WITHIN;
        self.stage.wait_serving(volume, Epoch::ZERO, limit).await
    }

    async fn round(&self, kind: FaultKind, victim: NodeId) -> anyhow::Result<Round> {
        let mut hit = Vec::new();
        for volume in [LEDGER, DISK] {
            let serving = self.serving(volume).await?;
            if serving.node == victim {
                hit.push((volume, serving));
            }
        }
        let volumes: Vec<&str> = hit.iter().map(|(volume, _)| *volume).collect();
        let signal = kind.signal();
        let struck = self.stage.strike(kind, victim).await?;
        self.narrator.say(
            Kind::Fault,
            format!(
                "{signal} of node {victim}, primary of {}",
                volumes.join(" and ")
            ),
        );
        let hit = hit.into_iter();
        let promotions = hit.map(|(volume, before)| self.promotion(volume, before, struck));
        let promotions = try_join_all(promotions).await?;
        sleep(self.pause).await;
        let recovered = Instant::now();
        let hits = |volume| volumes.contains(&volume);
        let (ledger, disk) = (self.ledger.gaps(), self.disk.gaps());
        let round = Round {
            kind,
            victim,
            ledger_gap_ms: hits(LEDGER).then(|| ms(ledger.longest(struck, recovered))),
            disk_gap_ms: hits(DISK).then(|| ms(disk.longest(struck, recovered))),
            promotions,
        };
        self.tell_gaps(&round);
        self.bring_back(round).await
    }

    async fn promotion(
        &self,
        volume: &'static str,
        before: Serving,
        struck: Instant,
    ) -> anyhow::Result<Promotion> {
        let limit = PROMOTED_WITHIN;
        let now = self.stage.wait_serving(volume, before.epoch, limit).await?;
        let seen = Instant::now();
        let after = seen.duration_since(struck);
        self.narrator.say(
            Kind::Primary,
            format!("{}, {} ms after the fault", told(volume, now), ms(after)),
        );
        let cut = self.stage.client.admin().show_volume(volume).await?.cut;
        Ok(Promotion {
            volume,
            epoch_before: before.epoch,
            epoch: now.epoch,
            from: before.node,
            to: now.node,
            seen,
            after_ms: ms(after),
            cut,
            served_after_thaw: false,
        })
    }

    fn tell_gaps(&self, round: &Round) {
        let gap = |name, gap: Option<u128>| gap.map(|ms| format!("{name} {ms} ms"));
        let gaps = [
            gap("log client", round.ledger_gap_ms),
            gap("NBD client", round.disk_gap_ms),
        ];
        let gaps: Vec<String> = gaps.into_iter().flatten().collect();
        self.narrator
            .say(Kind::Note, format!("longest gap: {}", gaps.join(", ")));
    }

    async fn bring_back(&self, mut round: Round) -> anyhow::Result<Round> {
        let victim = round.victim;
        self.stage.recover(round.kind, victim).await?;
        let how = match round.kind {
            FaultKind::Freeze => "SIGCONT: the old primary goes on where it was",
            FaultKind::Process | FaultKind::Machine => "started again",
        };
        self.narrator
            .say(Kind::Fault, format!("node {victim} {how}"));
        if round.kind == FaultKind::Freeze {
            self.watch_thawed(&mut round).await;
        }
        for volume in [LEDGER, DISK] {
            self.check_load()?;
            self.stage.wait_whole(volume).await?;
        }
        self.narrator.say(
            Kind::Note,
            format!("node {victim} is a member of both volumes again"),
        );
        sleep(self.pause).await;
        Ok(round)
    }

    /// Asks the thawed node itself, again and again, whether it serves its old epoch.
    async fn watch_thawed(&self, round: &mut Round) {
        let until = Instant::now() + WATCH_THAWED;
        while Instant::now() < until {
            for promotion in &mut round.promotions {
                let says = self.stage.says_it_serves(round.victim, promotion.volume);
                let old = says.await.is_some_and(|says| says.epoch < promotion.epoch);
                promotion.served_after_thaw |= old;
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// A load that ended by itself has met an error, which is told when it is stopped.
    fn check_load(&self) -> anyhow::Result<()> {
        if self.ledger.has_ended() || self.disk.has_ended() {
            bail!("a client ended by itself");
        }
        Ok(())
    }

    /// Says how far the load is, again and again. Does not end by itself.
    pub(super) async fn progress(&self) {
        let every = Duration::from_secs(2);
        let (mut ledger_before, mut disk_before) = (0, 0);
        loop {
            sleep(every).await;
            let (ledger, disk) = (self.ledger.gaps().count(), self.disk.gaps().count());
            let rate = |now: u64, before: u64| (now - before) / every.as_secs();
            self.narrator.say(
                Kind::Progress,
                format!(
                    "{ledger:>7} transfers ({:>4}/s), {disk:>6} disk writes ({:>4}/s)",
                    rate(ledger, ledger_before),
                    rate(disk, disk_before)
                ),
            );
            (ledger_before, disk_before) = (ledger, disk);
        }
    }
}

/// Who serves a volume, in words.
pub(super) fn told(volume: &str, serving: Serving) -> String {
    format!("{volume}: node {} in epoch {}", serving.node, serving.epoch)
}

/// Who serves both volumes, in words.
pub(super) async fn primaries(stage: &Stage) -> anyhow::Result<String> {
    let mut out = Vec::new();
    for volume in [LEDGER, DISK] {
        let serving = stage.serving(volume).await;
        out.push(told(volume, serving.context("nobody serves")?));
    }
    Ok(out.join("; "))
}
