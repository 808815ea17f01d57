//! `mainstay witness`: who votes, and how that is changed while the cluster runs.

use std::io::Write;
use std::time::Instant;

use anyhow::Context as _;
use mainstay_client::report::{WitnessChange, WitnessStatus, Witnesses};

use super::table::{Align, Table};
use super::{connect, print_json, text};

/// Prints the witnesses.
///
/// # Errors
/// No node answers.
pub async fn list(json: bool, endpoints: Vec<String>, out: &mut impl Write) -> anyhow::Result<()> {
    let witnesses = connect(endpoints).await?.admin().witnesses().await?;
    if json {
        return print_json(out, &witnesses);
    }
    print(&witnesses, true, out)
}

/// Changes one witness, and prints what came of it.
///
/// # Errors
/// Refused, or not known to have happened; the error says what to do.
pub async fn change(
    change: WitnessChange,
    json: bool,
    endpoints: Vec<String>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let admin = connect(endpoints).await?.admin();
    let began = Instant::now();
    let witnesses = admin
        .change_witnesses(change)
        .await
        .context("the witnesses were not changed")?;
    if json {
        return print_json(out, &witnesses);
    }
    print(&witnesses, false, out)?;
    writeln!(out, "decided after {}", text::span(began.elapsed()))?;
    let count = witnesses.witnesses.len();
    if count.is_multiple_of(2) {
        writeln!(
            out,
            "{count} witnesses survive the loss of no more than {} do: add one, or remove one",
            count - 1
        )?;
    }
    Ok(())
}

fn print(witnesses: &Witnesses, heard: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let mut table = Table::new(&[
        ("witness", Align::Right),
        ("address", Align::Left),
        ("state", Align::Left),
    ]);
    for witness in &witnesses.witnesses {
        table.row(vec![
            witness.node.to_string(),
            witness.address.clone(),
            state(witness, heard).to_owned(),
        ]);
    }
    for node in &witnesses.standby {
        table.row(vec![node.to_string(), String::new(), "waits".to_owned()]);
    }
    write!(out, "{table}")?;
    if witnesses.changing {
        writeln!(out, "a change is under way; it goes on by itself")?;
    }
    Ok(())
}

fn state(witness: &WitnessStatus, heard: bool) -> &'static str {
    match (witness.votes, witness.stays) {
        (true, false) => "goes",
        (false, _) => "comes",
        (true, true) if heard && !witness.heard => "votes, not heard",
        (true, true) => "votes",
    }
}
