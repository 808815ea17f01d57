//! The end of the demo: one table for people, one object for programs.

use std::time::Duration;

use serde::Serialize;

use super::disk::DiskCounts;
use super::narrator::{Kind, Narrator};
use super::script::Round;

/// Something that must hold.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Check {
    pub(super) holds: bool,
    /// What was found.
    pub(super) text: String,
}

impl Check {
    pub(super) fn new(holds: bool, text: String) -> Self {
        Self { holds, text }
    }
}

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) seed: u64,
    pub(super) seconds: f64,
    /// Transfers acknowledged.
    pub(super) transfers: u64,
    pub(super) disk: DiskCounts,
    pub(super) rounds: Vec<Round>,
    pub(super) checks: Vec<Check>,
    /// Every check holds.
    pub(super) holds: bool,
}

impl Summary {
    pub(super) fn print(&self, narrator: Narrator) {
        let line = |text: String| narrator.line(&text);
        let disk = &self.disk;
        line(String::new());
        line(format!("  transfers acknowledged  {}", self.transfers));
        line(format!(
            "  disk writes             {} ({} with FUA), {} zeroings, {} trims, {} flushes; {} MiB",
            disk.writes,
            disk.fua,
            disk.zeroes,
            disk.trims,
            disk.flushes,
            disk.bytes >> 20
        ));
        line(format!(
            "  blocks read back        {} under load, all as acknowledged",
            disk.blocks_read
        ));
        let promotions: usize = self.rounds.iter().map(|r| r.promotions.len()).sum();
        line(format!("  promotions              {promotions}"));
        line(String::new());
        line(format!(
            "  {:<34} {:>5}  {:>14}  {:>14}",
            "fault", "node", "log gap", "NBD gap"
        ));
        for round in &self.rounds {
            let gap =
                |gap: Option<u128>| gap.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
            line(format!(
                "  {:<34} {:>5}  {:>14}  {:>14}",
                round.kind.signal(),
                round.victim.to_string(),
                gap(round.ledger_gap_ms),
                gap(round.disk_gap_ms)
            ));
        }
        line(String::new());
        for check in &self.checks {
            let (kind, word) = if check.holds {
                (Kind::Good, "holds ")
            } else {
                (Kind::Bad, "BROKEN")
            };
            line(format!(
                "  {}  {}",
                narrator.painted(kind, word),
                check.text
            ));
        }
        line(String::new());
        let (kind, text) = if self.holds {
            (
                Kind::Good,
                "No acknowledged write was lost, none was applied twice.",
            )
        } else {
            (Kind::Bad, "NOT everything holds; see above.")
        };
        line(narrator.painted(kind, text));
    }
}

/// Whole milliseconds, rounded up.
pub(super) fn ms(span: Duration) -> u128 {
    span.as_micros().div_ceil(1000)
}
