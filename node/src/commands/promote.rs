//! `mainstay promote`: a planned switchover, or a forced promotion.

use std::io::Write;
use std::time::Instant;

use mainstay_client::AdminError;
use mainstay_client::report::{Promote, PromoteRefused, Promoted};
use mainstay_types::NodeId;
use serde::Serialize;

use super::{connect, print_json, text};

/// What to move where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// The volume.
    pub volume: String,
    /// The node that shall be primary; `None`: whoever is best.
    pub to: Option<NodeId>,
    /// Whatever is lost by it.
    pub force: Option<Force>,
    /// For the event log.
    pub reason: String,
    /// Print JSON.
    pub json: bool,
}

/// What an operator says to a forced promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Force {
    /// Without it the refusal says what would be lost.
    pub accept_data_loss: bool,
    /// Nodes that are off, and stay off.
    pub declared_off: Vec<NodeId>,
    /// Full copies below which nothing is acknowledged from now on; zero: as before.
    pub min_copies: u32,
}

#[derive(Serialize)]
struct Done<'a> {
    volume: &'a str,
    #[serde(flatten)]
    promoted: &'a Promoted,
    took_ms: u64,
}

/// Moves the primary, and says how long it took.
///
/// # Errors
/// Refused for a named reason, or the outcome is unknown; the error says what to do.
pub async fn run(args: &Args, endpoints: Vec<String>, out: &mut impl Write) -> anyhow::Result<()> {
    let admin = connect(endpoints).await?.admin();
    let mut request = Promote {
        to: args.to,
        reason: args.reason.clone(),
        ..Promote::planned(&args.volume)
    };
    if let Some(force) = &args.force {
        request.force = true;
        request.accept_data_loss = force.accept_data_loss;
        request.declared_off.clone_from(&force.declared_off);
        request.min_copies = force.min_copies;
    }
    let began = Instant::now();
    let promoted = admin
        .promote(request)
        .await
        .map_err(|error| explain(&args.volume, error))?;
    let took = began.elapsed();
    if args.json {
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        return print_json(
            out,
            &Done {
                volume: &args.volume,
                promoted: &promoted,
                took_ms,
            },
        );
    }
    writeln!(
        out,
        "node {} is primary of `{}` in epoch {}, after {}",
        promoted.primary,
        args.volume,
        promoted.epoch,
        text::span(took)
    )?;
    if args.force.is_some() {
        writeln!(
            out,
            "a new history began; `mainstay events` says which writes were given up"
        )?;
    }
    Ok(())
}

fn explain(volume: &str, error: AdminError) -> anyhow::Error {
    let advice = match &error {
        AdminError::NotFound { .. } => "`mainstay volume list` names the volumes",
        AdminError::PromoteRefused(refused) => advice(refused),
        AdminError::Unknown { .. } => "`mainstay status` shows who is primary now",
        AdminError::Unavailable { .. } => "`mainstay status` says what is wrong; then try again",
        AdminError::Exists { .. } | AdminError::Invalid { .. } => {
            "`mainstay volume show` names the nodes that hold a copy"
        }
    };
    anyhow::anyhow!("`{volume}` was not moved: {error}; {advice}")
}

/// What to do about a refusal.
fn advice(refused: &PromoteRefused) -> &'static str {
    match refused {
        PromoteRefused::AlreadyPrimary => "nothing is to be done",
        PromoteRefused::NotAMember => "`mainstay volume show` names the nodes that hold a copy",
        PromoteRefused::Behind { .. } => {
            "wait until `mainstay status` shows no lag, then try again"
        }
        PromoteRefused::NotIntact => "choose another node",
        PromoteRefused::NoWitnessQuorum { .. } => "start witnesses again",
        PromoteRefused::NoSight { .. } => "start one of these members again",
        PromoteRefused::LeaseHeld { .. } | PromoteRefused::HoldDown { .. } => {
            "try again after that"
        }
        PromoteRefused::ExternalFenceFailed { .. } => {
            "make that command succeed, or make sure that the node is off and say so with `--declare-off`"
        }
        PromoteRefused::WouldLose { .. } => {
            "bring back a member that holds these entries; if they are gone for good, `mainstay promote --help` says what to add"
        }
        PromoteRefused::Raced { .. } | PromoteRefused::Other { .. } => {
            "`mainstay status` shows who is primary now"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_why_and_what_to_do() {
        let refused = PromoteRefused::NoWitnessQuorum {
            votes: 1,
            needed: 2,
        };
        let error = explain("ledger", AdminError::PromoteRefused(Box::new(refused)));
        assert_eq!(
            error.to_string(),
            "`ledger` was not moved: 1 of 2 witnesses; start witnesses again"
        );
    }
}
