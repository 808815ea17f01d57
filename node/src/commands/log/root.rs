//! `mainstay log root`: the hash that stands for a log's whole history.

use std::io::Write;

use mainstay_client::Consistency;

use super::explain_tree;
use super::read::open;
use crate::commands::print_json;

/// Which root, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// The log.
    pub volume: String,
    /// Over so many positions; `None`: over all that are committed now.
    pub size: Option<u64>,
    /// From any copy.
    pub committed: bool,
    /// Print JSON.
    pub json: bool,
}

/// Prints a root.
///
/// # Errors
/// The log cannot be opened, it has fewer positions, or its copy has no tree.
pub async fn run(args: &Args, endpoints: Vec<String>, out: &mut impl Write) -> anyhow::Result<()> {
    let mut log = open(&args.volume, endpoints).await?;
    if args.committed {
        log = log.with_consistency(Consistency::Committed);
    }
    let root = match args.size {
        None => log.root().await,
        Some(size) => log.root_at(size).await,
    };
    let root = root.map_err(|error| explain_tree(&args.volume, error))?;
    if args.json {
        return print_json(out, &root);
    }
    writeln!(out, "root {}\nsize {}", root.hash, root.size)?;
    Ok(())
}
