//! `mainstay log prove`: a proof of one position, or of what happened between two roots, as a file that needs no cluster to be verified.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use mainstay_client::{LogVolume, ReadError, ReadLimits, Refusal, TreeRoot};
use mainstay_types::Lsn;

use super::proof_file::{Proof, ProofFile, ProvedRecord};
use super::read::open;
use super::{explain_read, explain_tree};
use crate::commands::print_json;

/// What to prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// What is at a position.
    Position(Lsn),
    /// That the log only grew since it had so many positions.
    Since(u64),
}

/// Of what, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// The log.
    pub volume: String,
    /// What to prove.
    pub subject: Subject,
    /// Against the root over so many positions; `None`: over all that are committed now.
    pub size: Option<u64>,
    /// The file; `None`: to `out`.
    pub out: Option<PathBuf>,
}

/// Writes a proof.
///
/// # Errors
/// The log cannot be opened, it has no such position, its copy has no tree, or the file cannot be written.
pub async fn run(args: &Args, endpoints: Vec<String>, out: &mut impl Write) -> anyhow::Result<()> {
    let log = open(&args.volume, endpoints).await?;
    let explain = |error| explain_tree(&args.volume, error);
    let root = match args.size {
        None => log.root().await,
        Some(size) => log.root_at(size).await,
    };
    let root = root.map_err(explain)?;
    let proof = match args.subject {
        Subject::Position(lsn) => inclusion(&log, &args.volume, lsn, root).await?,
        Subject::Since(old_size) => Proof::Consistency {
            old_root: log.root_at(old_size).await.map_err(explain)?,
            proof: log
                .prove_consistency(old_size, root.size)
                .await
                .map_err(explain)?,
            root,
        },
    };
    let file = ProofFile::new(&args.volume, proof);
    let Some(path) = &args.out else {
        return print_json(out, &file);
    };
    let mut text = serde_json::to_string_pretty(&file)?;
    text.push('\n');
    std::fs::write(path, text).with_context(|| format!("{}", path.display()))?;
    writeln!(
        out,
        "proof written to {}; verify it anywhere with\n  mainstay log verify --proof {} --root HASH --size {}",
        path.display(),
        path.display(),
        file.trusted_size()
    )?;
    Ok(())
}

async fn inclusion(
    log: &LogVolume,
    volume: &str,
    lsn: Lsn,
    root: TreeRoot,
) -> anyhow::Result<Proof> {
    if lsn.0 > root.size {
        bail!(
            "log `{volume}` has no position {lsn} among its first {}",
            root.size
        );
    }
    let one = ReadLimits {
        records_max: 1,
        ..ReadLimits::default()
    };
    let page = match log.read(lsn, one).await {
        Err(ReadError::Refused(Refusal::Trimmed { first })) => bail!(
            "position {lsn} of log `{volume}` was trimmed, so there is no record to put into the proof; \
             the first one is {first}"
        ),
        read => read.map_err(|error| explain_read(volume, error))?,
    };
    let record = page.records.first().filter(|record| record.lsn == lsn);
    let proof = log.prove(lsn, root.size).await;
    Ok(Proof::Inclusion {
        record: record.map(ProvedRecord::of),
        root,
        proof: proof.map_err(|error| explain_tree(volume, error))?,
    })
}
