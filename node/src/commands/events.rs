//! `mainstay events`: what happened, on all nodes, by time.
//!
//! Each node keeps an event log of its own, with numbers that go on across restarts. So every node is asked.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use mainstay_client::report::{Event, EventFilter, Severity};
use mainstay_client::{Admin, AdminError};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{connect, print_json_line, text};

/// Which events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// Go on as they happen.
    pub follow: bool,
    /// Only of this volume.
    pub volume: Option<String>,
    /// Print one JSON object a line.
    pub json: bool,
}

/// Events of several nodes within this span are put in order before they are printed.
const TOGETHER: Duration = Duration::from_millis(150);
/// Pause before a node that was lost is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// Prints events.
///
/// # Errors
/// No node answers.
pub async fn run(args: &Args, endpoints: Vec<String>, out: &mut impl Write) -> anyhow::Result<()> {
    let admin = connect(endpoints).await?.admin();
    let status = admin.status().await?;
    let addresses: Vec<String> = status.nodes.into_iter().map(|node| node.address).collect();
    let pasts = futures_util::future::join_all(
        addresses
            .iter()
            .map(|address| past(&admin, address, &args.volume)),
    )
    .await;
    let mut events = Vec::new();
    let mut seen = BTreeMap::new();
    for (address, past) in addresses.into_iter().zip(pasts) {
        let number = match past {
            Ok((number, found)) => {
                events.extend(found);
                number
            }
            Err(error) => {
                eprintln!("without the events of {address}: {error}");
                0
            }
        };
        seen.insert(address, number);
    }
    print(args, events, out)?;
    if args.follow {
        follow(args, &admin, seen, out).await?;
    }
    Ok(())
}

pub(super) async fn past(
    admin: &Admin,
    address: &str,
    volume: &Option<String>,
) -> Result<(u64, Vec<Event>), AdminError> {
    let filter = EventFilter {
        volume: volume.clone(),
        ..EventFilter::default()
    };
    let mut stream = admin.events_of(address, filter).await?;
    let mut events: Vec<Event> = Vec::new();
    while let Some(event) = stream.next().await {
        events.push(event?);
    }
    let number = events.last().map_or(0, |event| event.number);
    Ok((number, events))
}

async fn follow(
    args: &Args,
    admin: &Admin,
    seen: BTreeMap<String, u64>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let (sender, mut arriving) = mpsc::channel(256);
    for (address, number) in seen {
        let follower = follow_node(
            admin.clone(),
            address,
            number,
            args.volume.clone(),
            sender.clone(),
        );
        tokio::spawn(follower);
    }
    drop(sender);
    while let Some(first) = arriving.recv().await {
        let mut together = vec![first];
        let until = Instant::now() + TOGETHER;
        while let Ok(Some(event)) = tokio::time::timeout_at(until, arriving.recv()).await {
            together.push(event);
        }
        print(args, together, out)?;
    }
    Ok(())
}

/// Hands over one node's events as they happen, for as long as somebody takes them.
async fn follow_node(
    admin: Admin,
    address: String,
    mut number: u64,
    volume: Option<String>,
    events: mpsc::Sender<Event>,
) {
    while !events.is_closed() {
        // An error only means that the node does not answer now.
        let _lost = follow_process(&admin, &address, &mut number, &volume, &events).await;
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow_process(
    admin: &Admin,
    address: &str,
    number: &mut u64,
    volume: &Option<String>,
    events: &mpsc::Sender<Event>,
) -> Result<(), AdminError> {
    let filter = EventFilter {
        since: *number,
        volume: volume.clone(),
        follow: true,
        past_max: 0,
    };
    let mut stream = admin.events_of(address, filter).await?;
    while let Some(event) = stream.next().await {
        let event = event?;
        *number = event.number;
        if events.send(event).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn print(args: &Args, mut events: Vec<Event>, out: &mut impl Write) -> anyhow::Result<()> {
    events.sort_by_key(|event| (event.unix_ms, event.node, event.number));
    for event in &events {
        if args.json {
            print_json_line(out, event)?;
        } else {
            writeln!(out, "{}", line(event))?;
        }
    }
    out.flush()?;
    Ok(())
}

fn line(event: &Event) -> String {
    let severity = match event.severity {
        Severity::Info | Severity::Unknown => "",
        Severity::Warning => "warning: ",
        Severity::Alarm => "ALARM: ",
    };
    let volume = event
        .volume
        .as_ref()
        .map_or_else(String::new, |name| format!("{name}: "));
    let took = event
        .certificate
        .as_ref()
        .filter(|certificate| certificate.took_ms > 0)
        .map_or_else(String::new, |certificate| {
            format!(" ({})", text::span_ms(certificate.took_ms))
        });
    format!(
        "{}  node {:<3} {severity}{volume}{}{took}",
        text::moment(event.unix_ms),
        event.node.0,
        event.message
    )
}

#[cfg(test)]
mod tests {
    use mainstay_client::report::EventKind;
    use mainstay_types::{Epoch, Lsn, NodeId};

    use super::*;

    fn event(unix_ms: u64, node: u32, message: &str) -> Event {
        Event {
            number: 1,
            unix_ms,
            node: NodeId(node),
            kind: EventKind::PrimaryLost,
            severity: Severity::Warning,
            volume: Some("ledger".to_owned()),
            epoch: Epoch(2),
            lsn: Lsn(0),
            message: message.to_owned(),
            certificate: None,
        }
    }

    #[test]
    fn events_of_several_nodes_are_printed_by_time() {
        let events = vec![
            event(20, 1, "later"),
            event(10, 4, "first"),
            event(10, 2, "zeroth"),
        ];
        let mut out = Vec::new();
        print(&Args::default(), events, &mut out).expect("printed");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "\
1970-01-01 00:00:00.010  node 2   warning: ledger: zeroth
1970-01-01 00:00:00.010  node 4   warning: ledger: first
1970-01-01 00:00:00.020  node 1   warning: ledger: later
"
        );
    }

    #[test]
    fn json_is_an_object_a_line() {
        let args = Args {
            json: true,
            ..Args::default()
        };
        let mut out = Vec::new();
        print(&args, vec![event(1, 1, "a"), event(2, 1, "b")], &mut out).expect("printed");
        let lines: Vec<serde_json::Value> = out
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["message"], "b");
        assert_eq!(lines[0]["kind"], "primary_lost");
    }
}
