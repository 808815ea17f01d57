//! `mainstay status`: nodes, volumes, copies, and what is wrong, once or again and again.

use std::io::Write;
use std::time::Duration;

use mainstay_client::Admin;
use mainstay_client::report::{
    ClusterStatus, LearnerPhase, LearnerStatus, MemberRole, MemberStatus, NodeStatus, VolumeHealth,
    VolumeStatus,
};
use mainstay_types::VolumeKind;

use super::table::{Align, Table};
use super::{connect, print_json, print_json_line, problems, size, text};

/// How to show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Args {
    /// Again after each such interval, until the process ends.
    pub watch: Option<Duration>,
    /// Print JSON; with `watch`, one line each time.
    pub json: bool,
    /// Draw over what was shown before: `out` is a terminal.
    pub redraw: bool,
}

/// Shows the state of the cluster.
///
/// # Errors
/// No node answers. With `watch`, only at the start: later it is shown, and asked again.
pub async fn run(args: Args, endpoints: Vec<String>, out: &mut impl Write) -> anyhow::Result<()> {
    let admin = connect(endpoints).await?.admin();
    let Some(interval) = args.watch else {
        let status = admin.status().await?;
        if args.json {
            return print_json(out, &status);
        }
        write!(out, "{}", render(&status))?;
        return Ok(());
    };
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        watch_once(args, &admin, out).await?;
    }
}

async fn watch_once(args: Args, admin: &Admin, out: &mut impl Write) -> anyhow::Result<()> {
    let status = admin.status().await;
    match (status, args.json) {
        (Ok(status), true) => print_json_line(out, &status)?,
        (Err(error), true) => eprintln!("{error}"),
        (status, false) => {
            let text = match status {
                Ok(status) => render(&status),
                Err(error) => format!("no node answers: {error}\n"),
            };
            if args.redraw {
                // Home, the text, and away with what is left of the one before. Clearing first would flicker.
                let text = text.replace('\n', "\x1b[K\n");
                write!(out, "\x1b[H{text}\x1b[J")?;
            } else {
                writeln!(out, "{text}")?;
            }
        }
    }
    out.flush()?;
    Ok(())
}

/// The whole page.
fn render(status: &ClusterStatus) -> String {
    let mut page = format!(
        "cluster {} at {} UTC, told by node {}\n\n{}",
        status.cluster,
        text::moment(status.unix_ms),
        status.answered_by,
        nodes_table(&status.nodes)
    );
    if status.volumes.is_empty() {
        page.push_str("\nno volumes; create one with `mainstay volume create`\n");
    } else {
        page.push_str(&format!(
            "\n{}\n{}",
            volumes_table(&status.volumes),
            copies_table(&status.volumes)
        ));
    }
    let problems = problems::of_cluster(status);
    if problems.is_empty() {
        page.push_str("\nno problems\n");
    } else {
        page.push_str("\nproblems:\n");
        for problem in problems {
            page.push_str(&format!("  * {problem}\n"));
        }
    }
    page
}

fn nodes_table(nodes: &[NodeStatus]) -> Table {
    let mut table = Table::new(&[
        ("NODE", Align::Right),
        ("ROLES", Align::Left),
        ("ADDRESS", Align::Left),
        ("STATE", Align::Left),
        ("UP", Align::Right),
        ("COPIES", Align::Right),
        ("PRIMARY OF", Align::Right),
        ("RELEASE", Align::Left),
    ]);
    for node in nodes {
        let roles = match (node.data, node.witness) {
            (true, true) => "data+witness",
            (true, false) => "data",
            (false, true) => "witness",
            (false, false) => "",
        };
        let state = match (node.reachable, node.healthy) {
            (false, _) => "silent",
            (true, true) => "ok",
            (true, false) => "unwell",
        };
        let up = if node.reachable {
            text::span_ms(node.uptime_ms)
        } else {
            String::new()
        };
        let store = node.store.as_ref();
        table.row(vec![
            node.node.to_string(),
            roles.to_owned(),
            node.address.clone(),
            state.to_owned(),
            up,
            store.map_or_else(String::new, |store| store.volumes.to_string()),
            store.map_or_else(String::new, |store| store.primaries.to_string()),
            node.release.clone(),
        ]);
    }
    table
}

fn volumes_table(volumes: &[VolumeStatus]) -> Table {
    let mut table = Table::new(&[
        ("VOLUME", Align::Left),
        ("KIND", Align::Left),
        ("SIZE", Align::Right),
        ("HEALTH", Align::Left),
        ("PRIMARY", Align::Right),
        ("EPOCH", Align::Right),
        ("COPIES", Align::Right),
        ("COMMITTED", Align::Right),
        ("LEASE LEFT", Align::Right),
        ("SESSIONS", Align::Right),
        ("ATTACHED BY", Align::Left),
    ]);
    for volume in volumes {
        let (kind, size) = kind_and_size(volume.kind);
        let lease = match (volume.authoritative, volume.lease_held) {
            (true, true) => text::span_ms(volume.lease_remaining_ms),
            (true, false) => "none".to_owned(),
            (false, _) => String::new(),
        };
        table.row(vec![
            volume.name.clone(),
            kind.to_owned(),
            size,
            health_word(volume.health).to_owned(),
            volume.primary.to_string(),
            volume.epoch.to_string(),
            format!("{}/{}", volume.members.len(), volume.placement.len()),
            volume.commit_lsn.to_string(),
            lease,
            volume.sessions.to_string(),
            text::list(volume.attachments.iter().map(|held| &held.name)),
        ]);
    }
    table
}

/// Members and learners of some volumes.
pub(super) fn copies_table<'a>(volumes: impl IntoIterator<Item = &'a VolumeStatus>) -> Table {
    let mut table = Table::new(&[
        ("VOLUME", Align::Left),
        ("NODE", Align::Right),
        ("ROLE", Align::Left),
        ("SEALED", Align::Right),
        ("DURABLE", Align::Right),
        ("COMMITTED", Align::Right),
        ("LAG", Align::Right),
        ("SILENT", Align::Right),
        ("NOTE", Align::Left),
    ]);
    for volume in volumes {
        for member in &volume.members {
            table.row(member_row(volume, member));
        }
        for learner in &volume.learners {
            table.row(learner_row(volume, learner));
        }
    }
    table
}

fn member_row(volume: &VolumeStatus, member: &MemberStatus) -> Vec<String> {
    let role = match member.role {
        MemberRole::Primary => "primary",
        MemberRole::Replica => "replica",
        MemberRole::CatchingUp => "catching up",
        MemberRole::Silent => "silent",
        MemberRole::Refusing => "refusing",
        MemberRole::Unknown => "unknown",
    };
    let flags = [
        (member.damaged, "damaged"),
        (member.rebuilding, "rebuilding"),
        (member.in_doubt, "in doubt"),
    ];
    let flags = flags
        .into_iter()
        .filter(|(set, _)| *set)
        .map(|(_, word)| word);
    let note = flags.chain((!member.reason.is_empty()).then_some(member.reason.as_str()));
    let silent = match member.role {
        MemberRole::Primary => String::new(),
        _ => text::span_ms(member.silent_ms),
    };
    vec![
        volume.name.clone(),
        member.node.to_string(),
        role.to_owned(),
        member.sealed_epoch.to_string(),
        member.durable_lsn.to_string(),
        member.committed_lsn.to_string(),
        member.lag_entries.to_string(),
        silent,
        text::list(note),
    ]
}

fn learner_row(volume: &VolumeStatus, learner: &LearnerStatus) -> Vec<String> {
    let phase = match learner.phase {
        LearnerPhase::Log => "learns from log",
        LearnerPhase::Image => "copies image",
        LearnerPhase::Verify => "verifies",
        LearnerPhase::Ready => "ready to join",
        LearnerPhase::Unknown => "learner",
    };
    let mut note = Vec::new();
    if learner.bytes_total > 0 {
        let (done, total) = (learner.bytes_done, learner.bytes_total);
        note.push(format!(
            "{} of {}",
            size::show_size(done),
            size::show_size(total)
        ));
    }
    if let Some(eta_ms) = learner.eta_ms {
        note.push(format!("{} left", text::span_ms(eta_ms)));
    }
    if !learner.reason.is_empty() {
        note.push(learner.reason.clone());
    }
    let lag = learner.target_lsn.0.saturating_sub(learner.durable_lsn.0);
    vec![
        volume.name.clone(),
        learner.node.to_string(),
        phase.to_owned(),
        String::new(),
        learner.durable_lsn.to_string(),
        String::new(),
        lag.to_string(),
        String::new(),
        text::list(note),
    ]
}

pub(super) fn kind_and_size(kind: VolumeKind) -> (&'static str, String) {
    let size = match kind {
        VolumeKind::Log => String::new(),
        VolumeKind::Block { size_bytes } => size::show_size(size_bytes),
    };
    (problems::kind_word(kind), size)
}

pub(super) fn health_word(health: VolumeHealth) -> &'static str {
    match health {
        VolumeHealth::Ok => "ok",
        VolumeHealth::Degraded => "degraded",
        VolumeHealth::Promoting => "promoting",
        VolumeHealth::Unavailable => "unavailable",
        VolumeHealth::Unknown => "unknown",
    }
}

#[cfg(test)]
pub(super) mod tests;
