//! What was measured, and how it is printed.

use std::fmt::Write as _;
use std::time::Duration;

use mainstay_node::demo::disk::{Difference, DiskCounts};
use mainstay_node::demo::faults::FaultKind;
use mainstay_node::demo::ledger::LedgerProof;
use mainstay_replication::LeaseConfig;
use mainstay_types::NodeId;
use serde::{Serialize, Serializer};

/// After the lease, for everything else.
const AFTER_LEASE: Duration = Duration::from_millis(500);

/// One fault.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Fault {
    pub(crate) victim: NodeId,
    /// Longest gap of the log client.
    #[serde(rename = "log_us", serialize_with = "micros")]
    pub(crate) log: Duration,
    /// Longest gap of the NBD client.
    #[serde(rename = "nbd_us", serialize_with = "micros")]
    pub(crate) nbd: Duration,
    /// Until both volumes were seen to be served again.
    #[serde(rename = "promoted_us", serialize_with = "micros")]
    pub(crate) promoted: Duration,
    /// Longest gap of the log client while the victim came back.
    #[serde(rename = "log_rejoin_us", serialize_with = "micros")]
    pub(crate) log_rejoin: Duration,
    /// Longest gap of the NBD client while the victim came back.
    #[serde(rename = "nbd_rejoin_us", serialize_with = "micros")]
    pub(crate) nbd_rejoin: Duration,
}

/// One client over all faults.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Client {
    pub(crate) name: &'static str,
    #[serde(rename = "median_us", serialize_with = "micros")]
    pub(crate) median: Duration,
    #[serde(rename = "worst_us", serialize_with = "micros")]
    pub(crate) worst: Duration,
    #[serde(rename = "median_target_us", serialize_with = "maybe_micros")]
    pub(crate) median_target: Option<Duration>,
    #[serde(rename = "worst_target_us", serialize_with = "micros")]
    pub(crate) worst_target: Duration,
    /// Both targets are met.
    pub(crate) met: bool,
}

/// One kind of fault.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) kind: FaultKind,
    pub(crate) clients: [Client; 2],
    pub(crate) faults: Vec<Fault>,
    pub(crate) ledger: LedgerProof,
    pub(crate) disk_requests: DiskCounts,
    pub(crate) disk_differences: Vec<(NodeId, Difference)>,
}

impl Measured {
    /// Whether every acknowledged write is there, once.
    pub(crate) fn nothing_lost(&self) -> bool {
        let same = |(_, difference): &(NodeId, Difference)| difference.blocks == 0;
        self.ledger.holds() && self.disk_differences.iter().all(same)
    }
}

impl Client {
    pub(crate) fn new(
        name: &'static str,
        kind: FaultKind,
        gaps: impl Iterator<Item = Duration>,
    ) -> Self {
        let mut sorted: Vec<Duration> = gaps.collect();
        sorted.sort_unstable();
        let (median, worst) = (median(&sorted), sorted.last().copied().unwrap_or_default());
        let (median_target, worst_target) = targets(kind);
        let met = median_target.is_none_or(|target| median <= target) && worst <= worst_target;
        Self {
            name,
            median,
            worst,
            median_target,
            worst_target,
            met,
        }
    }
}

fn targets(kind: FaultKind) -> (Option<Duration>, Duration) {
    match kind {
        FaultKind::Process => (Some(Duration::from_millis(150)), Duration::from_millis(500)),
        FaultKind::Machine | FaultKind::Freeze => {
            (None, LeaseConfig::default().lease + AFTER_LEASE)
        }
    }
}

/// Of an even count, the mean of the middle two.
fn median(sorted: &[Duration]) -> Duration {
    let middle = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    if sorted.len().is_multiple_of(2) {
        (at(middle.saturating_sub(1)) + at(middle)) / 2
    } else {
        at(middle)
    }
}

/// What was read back after one kind of fault.
pub(crate) fn details(measured: &Measured) -> String {
    let (ledger, disk) = (&measured.ledger, &measured.disk_requests);
    let mut out = String::new();
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!(
        "\n{}: {} faults ({})",
        measured.kind,
        measured.faults.len(),
        measured.kind.signal()
    ));
    line(format!(
        "  log: {} appends acknowledged, {} records: {} lost, {} twice, {} misplaced, {} foreign, {} disordered, balances {}",
        ledger.acknowledged,
        ledger.records,
        ledger.lost,
        ledger.twice,
        ledger.misplaced,
        ledger.foreign,
        ledger.disordered,
        if ledger.balances_wrong == 0 {
            "right"
        } else {
            "WRONG"
        },
    ));
    for fault in &ledger.faults {
        line(format!("    {fault}"));
    }
    line(format!(
        "  nbd: {} writes, {} zeroes, {} trims acknowledged; {} blocks read back under load",
        disk.writes, disk.zeroes, disk.trims, disk.blocks_read
    ));
    for (node, difference) in &measured.disk_differences {
        line(match difference.first {
            None => format!("    on node {node}: equal to the model"),
            Some(at) => format!(
                "    on node {node}: {} blocks DIFFER, the first at {at}",
                difference.blocks
            ),
        });
    }
    out
}

/// One line for each kind of fault and client.
pub(crate) fn summary(measured: &[Measured]) -> String {
    let mut out = format!(
        "\n{:<9} {:<6} {:>6} {:>10} {:>10} {:>10} {:>10}  result\n",
        "fault", "client", "faults", "median ms", "target", "worst ms", "target"
    );
    for one in measured {
        for client in &one.clients {
            let target = client
                .median_target
                .map_or_else(|| "-".to_owned(), |target| ms(target).to_string());
            let result = match (one.nothing_lost(), client.met) {
                (true, true) => "met",
                (true, false) => "MISSED",
                (false, _) => "WRITES LOST",
            };
            writeln!(
                out,
                "{:<9} {:<6} {:>6} {:>10} {target:>10} {:>10} {:>10}  {result}",
                one.kind.name(),
                client.name,
                one.faults.len(),
                ms(client.median),
                ms(client.worst),
                ms(client.worst_target),
            )
            .expect("a String takes everything");
        }
    }
    out
}

/// Whole milliseconds, rounded up: a missed target must not look met.
pub(crate) fn ms(span: Duration) -> u128 {
    span.as_micros().div_ceil(1000)
}

fn micros<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(span.as_micros()).unwrap_or(u64::MAX))
}

#[expect(clippy::ref_option, reason = "serde calls it with a reference")]
fn maybe_micros<S: Serializer>(span: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match span {
        Some(span) => micros(span, to),
        None => to.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_worst_are_compared_with_the_targets_of_the_fault() {
        let client = |kind, gaps: &[u64]| {
            Client::new(
                "log",
                kind,
                gaps.iter().map(|ms| Duration::from_millis(*ms)),
            )
        };
        let good = client(FaultKind::Process, &[100, 150, 500]);
        assert_eq!(
            (ms(good.median), ms(good.worst), good.met),
            (150, 500, true)
        );
        assert!(!client(FaultKind::Process, &[100, 151, 160]).met);
        assert!(!client(FaultKind::Process, &[1, 2, 501]).met);
        assert_eq!(ms(client(FaultKind::Freeze, &[900, 1000]).median), 950);
        assert!(client(FaultKind::Machine, &[1300]).met);
        assert!(!client(FaultKind::Machine, &[1301]).met);
    }
}
