//! `mainstay explain`: the certificates of a volume's promotions, in words.
//!
//! The witness that drove a promotion keeps its certificate, so every node is asked.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::{bail, ensure};
use mainstay_client::report::{Certificate, Event, SealReport};
use mainstay_types::{Epoch, NodeId};

use super::{connect, events, print_json_line, text};

/// Which promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// Of this volume.
    pub volume: String,
    /// To this epoch; the newest if `None`.
    pub epoch: Option<Epoch>,
    /// All that are remembered.
    pub all: bool,
    /// Print JSON.
    pub json: bool,
}

/// Prints what is known.
///
/// # Errors
/// No node answers, or none remembers such a promotion.
pub async fn run(args: &Args, endpoints: Vec<String>, out: &mut impl Write) -> anyhow::Result<()> {
    let admin = connect(endpoints).await?.admin();
    let nodes = admin.status().await?.nodes;
    let volume = Some(args.volume.clone());
    let asks = nodes
        .iter()
        .map(|node| events::past(&admin, &node.address, &volume));
    let mut silent: Vec<NodeId> = Vec::new();
    let mut found: Vec<(Event, Certificate)> = Vec::new();
    for (node, past) in nodes.iter().zip(futures_util::future::join_all(asks).await) {
        match past {
            Ok((_, events)) => found.extend(events.into_iter().filter_map(with_certificate)),
            Err(_) => silent.push(node.node),
        }
    }
    found.sort_by_key(|(_, certificate)| certificate.epoch_after);
    match args.epoch {
        Some(epoch) => found.retain(|(_, certificate)| certificate.epoch_after == epoch),
        None if !args.all => drop(found.drain(..found.len().saturating_sub(1))),
        None => {}
    }
    if found.is_empty() {
        nothing(args, &silent)?;
    }
    for (event, certificate) in &found {
        if args.json {
            print_json_line(out, event)?;
        } else {
            write!(out, "{}", told(&args.volume, event, certificate))?;
        }
    }
    Ok(())
}

fn with_certificate(event: Event) -> Option<(Event, Certificate)> {
    let certificate = event.certificate.clone()?;
    Some((event, certificate))
}

fn nothing(args: &Args, silent: &[NodeId]) -> anyhow::Result<()> {
    let which = args
        .epoch
        .map_or_else(String::new, |epoch| format!(" to epoch {epoch}"));
    let volume = &args.volume;
    ensure!(
        !silent.is_empty(),
        "no node remembers a promotion{which} of `{volume}`; its first primary was named when it was created, and \
         `mainstay events` shows what else happened"
    );
    bail!(
        "no node that answers remembers a promotion{which} of `{volume}`; nodes {} did not answer and may know more",
        text::list(silent)
    )
}

fn told(volume: &str, event: &Event, c: &Certificate) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        let _infallible = writeln!(out, "{text}");
    };
    line(format!(
        "{volume}: epoch {} under node {} ended, epoch {} began under node {}",
        c.epoch_before, c.primary_before, c.epoch_after, c.primary_after
    ));
    line(format!(
        "  when      {}, driven by witness {}, {}",
        text::moment(event.unix_ms),
        c.driven_by,
        text::span_ms(c.took_ms)
    ));
    line(format!("  why       {}", c.reason));
    let fenced: Vec<String> = c
        .fences
        .iter()
        .filter(|fence| fence.fenced)
        .map(|fence| fence.witness.to_string())
        .collect();
    line(format!(
        "  fenced    witnesses {} grant no lease of epoch {} any more",
        fenced.join(", "),
        c.epoch_before
    ));
    for seal in &c.seals {
        line(format!("  copy      {}", copy(seal)));
    }
    if !c.external_fence.is_empty() {
        line(format!("  outside   {}", c.external_fence));
    }
    line(format!(
        "  chosen    the log that ends at {}; {} intact answers were needed to see everything committed",
        c.cut, c.sight_needed
    ));
    let members: Vec<String> = c.members_after.iter().map(NodeId::to_string).collect();
    line(format!(
        "  since     members {}; {} of them commit a write",
        members.join(", "),
        c.ack_quorum_after
    ));
    line(format!("  lost      {}", lost(c)));
    out
}

fn copy(seal: &SealReport) -> String {
    if seal.answer == "sealed" {
        format!("node {} sealed; its log ends at {}", seal.node, seal.last)
    } else {
        format!("node {} {}", seal.node, seal.answer)
    }
}

fn lost(c: &Certificate) -> String {
    match (c.nothing_lost, c.doubt_from, c.doubt_to) {
        (true, _, _) => "no acknowledged write".to_owned(),
        (false, Some(from), Some(to)) => {
            format!("forced by an operator: entries {from} to {to} were given up")
        }
        (false, from, _) => format!(
            "forced by an operator: every entry from {} on was given up; nobody knows how many there were",
            from.map_or_else(|| "?".to_owned(), |from| from.to_string())
        ),
    }
}

#[cfg(test)]
mod tests {
    use mainstay_client::report::{EventKind, FenceAnswer, Severity};
    use mainstay_types::{Incarnation, Instance, Lineage, LogPoint, Lsn};

    use super::*;

    fn certificate() -> Certificate {
        let cut = LogPoint {
            epoch: Epoch(3),
            lsn: Lsn(120),
        };
        let seal = |node, answer: &str| SealReport {
            node: NodeId(node),
            incarnation: Incarnation(1),
            answer: answer.to_owned(),
            last: cut,
            after_ms: 0,
        };
        Certificate {
            epoch_before: Epoch(3),
            epoch_after: Epoch(4),
            lineage: Lineage(1),
            forced: false,
            reason: "the primary's lease ended or was released".to_owned(),
            primary_before: NodeId(1),
            primary_after: NodeId(2),
            instance_after: Instance(5),
            driven_by: NodeId(11),
            fences: vec![FenceAnswer {
                witness: NodeId(11),
                fenced: true,
                after_ms: 0,
            }],
            seals: vec![seal(2, "sealed"), seal(1, "silent")],
            sight_needed: 2,
            cut,
            external_fence: String::new(),
            began_unix_ms: 0,
            took_ms: 41,
            nothing_lost: true,
            doubt_from: None,
            doubt_to: None,
            members_after: vec![NodeId(1), NodeId(2), NodeId(3)],
            ack_quorum_after: 2,
        }
    }

    fn event(certificate: &Certificate) -> Event {
        Event {
            number: 1,
            unix_ms: 0,
            node: NodeId(11),
            kind: EventKind::Promoted,
            severity: Severity::Info,
            volume: None,
            epoch: certificate.epoch_after,
            lsn: certificate.cut.lsn,
            message: String::new(),
            certificate: Some(certificate.clone()),
        }
    }

    #[test]
    fn a_promotion_is_told_with_everybodys_answer() {
        let certificate = certificate();
        let text = told("ledger", &event(&certificate), &certificate);
        for part in [
            "epoch 3 under node 1 ended, epoch 4 began under node 2",
            "41 ms",
            "witnesses 11 grant no lease",
            "node 2 sealed; its log ends at (3,120)",
            "node 1 silent",
            "2 intact answers were needed",
            "no acknowledged write",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
    }

    #[test]
    fn a_forced_one_says_what_was_given_up() {
        let mut certificate = Certificate {
            nothing_lost: false,
            doubt_from: Some(Lsn(121)),
            ..certificate()
        };
        assert!(lost(&certificate).contains("every entry from"));
        certificate.doubt_to = Some(Lsn(130));
        assert!(lost(&certificate).contains("to"));
    }
}
