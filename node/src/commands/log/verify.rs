//! `mainstay log verify`: whether a log's history is the one that a root stands for.
//!
//! A proof file is verified without a cluster. A log is audited: everything that can be read is read, the root is computed from that alone
//! and held against the one that the cluster tells, and against one that was kept.

use std::io::Write;
use std::path::Path;

use anyhow::bail;
use mainstay_client::{
    Leaf, LogRecord, LogVolume, Peaks, ProofError, ReadError, ReadLimits, Refusal, TreeHash,
    TreeRoot,
};
use mainstay_types::Lsn;
use serde::Serialize;

use super::proof_file::{Proof, ProofFile};
use super::read::open;
use super::{explain_read, explain_tree};
use crate::commands::{print_json, text};

/// What was verified does not verify: the history, the proof or the root is not the one that it is said to be.
#[derive(Debug, thiserror::Error)]
#[error("NOT VERIFIED: {0}")]
pub struct NotVerified(String);

/// Of an audit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Args {
    /// The log.
    pub volume: String,
    /// A root that was kept.
    pub kept: Option<TreeRoot>,
    /// Only hold the roots against each other.
    pub roots_only: bool,
    /// Print JSON.
    pub json: bool,
}

/// What an audit found to be as it must.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Audited {
    volume: String,
    /// The root of now, which everything below is held against.
    root: TreeRoot,
    /// The root that was kept, and is a part of it.
    kept: Option<TreeRoot>,
    /// First and last position of which the leaves were computed from what readers are shown.
    computed: Option<(Lsn, Lsn)>,
    /// Records among them.
    records: u64,
}

/// Verifies a proof file against a root that is trusted. Talks to nobody.
///
/// # Errors
/// [`NotVerified`]; or there is no such file, or it is none.
pub fn file(path: &Path, kept: &TreeRoot, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let file = ProofFile::read(path)?;
    if file.trusted_size() != kept.size {
        bail!(
            "the proof in {} needs the root at size {}, not at {}",
            path.display(),
            file.trusted_size(),
            kept.size
        );
    }
    file.verify(kept)?
        .map_err(|error| NotVerified(format!("{}: {error}", path.display())))?;
    if json {
        return print_json(out, &file);
    }
    let volume = &file.volume;
    match &file.proof {
        Proof::Inclusion {
            record: None,
            proof,
            ..
        } => writeln!(
            out,
            "verified: a log with this root shows no record at position {}",
            proof.lsn
        )?,
        Proof::Inclusion {
            record: Some(record),
            ..
        } => writeln!(
            out,
            "verified: a log with this root holds this record of {} at position {}, taken in at {} UTC",
            text::count(record.data()?.len() as u64, "byte"),
            record.lsn,
            text::moment(record.timestamp_us / 1000)
        )?,
        Proof::Consistency { root, .. } => writeln!(
            out,
            "verified: log `{volume}` only grew; what had your root at size {} has this one now, which you may keep instead\n\
             root {}\nsize {}",
            kept.size, root.hash, root.size
        )?,
    }
    Ok(())
}

/// Audits a log.
///
/// # Errors
/// [`NotVerified`]; or the log cannot be opened or read, or its copy has no tree.
pub async fn run(args: &Args, endpoints: Vec<String>, out: &mut impl Write) -> anyhow::Result<()> {
    let log = open(&args.volume, endpoints).await?;
    let explain = |error| explain_tree(&args.volume, error);
    let root = log.root().await.map_err(explain)?;
    if let Some(kept) = &args.kept {
        hold_against(&log, args, kept, &root).await?;
    }
    let mut audited = Audited {
        volume: args.volume.clone(),
        root,
        kept: args.kept,
        computed: None,
        records: 0,
    };
    if !args.roots_only {
        compute(&log, &mut audited).await?;
    }
    if args.json {
        return print_json(out, &audited);
    }
    tell(&audited, args.roots_only, out)
}

fn tell(audited: &Audited, roots_only: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let (volume, root) = (&audited.volume, &audited.root);
    if let Some(kept) = &audited.kept {
        writeln!(
            out,
            "verified: nothing in positions 1 to {} of log `{volume}` changed since you kept their root",
            kept.size
        )?;
    }
    match audited.computed {
        Some((first, last)) => writeln!(
            out,
            "verified: the {} that readers are shown in positions {first} to {last} lead to the log's root",
            text::count(audited.records, "record")
        )?,
        None if !roots_only => writeln!(out, "nothing of log `{volume}` can be read")?,
        None => {}
    }
    let first = audited.computed.map(|(first, _)| first);
    if let Some(first) = first.filter(|first| *first > Lsn(1)) {
        writeln!(
            out,
            "positions 1 to {} were trimmed: their hashes lead to the root, too, but nobody can read them again",
            first.prev()
        )?;
    }
    writeln!(out, "root {}\nsize {}", root.hash, root.size)?;
    Ok(())
}

/// Whether the present root begins with the one that was kept.
async fn hold_against(
    log: &LogVolume,
    args: &Args,
    kept: &TreeRoot,
    root: &TreeRoot,
) -> anyhow::Result<()> {
    if kept.size > root.size {
        let volume = &args.volume;
        let found = format!(
            "log `{volume}` has {} positions, and had {} when the root was kept: it lost some",
            root.size, kept.size
        );
        return Err(NotVerified(found).into());
    }
    let proof = log.prove_consistency(kept.size, root.size).await;
    let proof = proof.map_err(|error| explain_tree(&args.volume, error))?;
    Ok(proof.verify(kept, root).map_err(|error| match error {
        ProofError::OldRoot { computed, given } => NotVerified(format!(
            "the first {} positions of log `{}` have the root {computed}, and had {given} when it was kept: \
             the history was altered",
            kept.size, args.volume
        )),
        error => NotVerified(format!("the cluster's proof: {error}")),
    })?)
}

/// Computes the root from what readers are shown, as far back as they are shown anything.
async fn compute(log: &LogVolume, audited: &mut Audited) -> anyhow::Result<()> {
    let (volume, root) = (audited.volume.clone(), audited.root);
    let position = log.position().await;
    let first = position
        .map_err(|error| explain_read(&volume, error))?
        .first
        .max(Lsn(1));
    if first.0 > root.size {
        return Ok(());
    }
    let mut peaks = peaks_below(log, &volume, first, &root).await?;
    let mut next = first;
    while peaks.size() < root.size {
        let page = match log.read(next, ReadLimits::default()).await {
            Err(ReadError::Refused(Refusal::Trimmed { first })) => {
                bail!("log `{volume}` was trimmed to position {first} meanwhile: begin again")
            }
            read => read.map_err(|error| explain_read(&volume, error))?,
        };
        for record in &page.records {
            take(&mut peaks, root.size, record, &mut audited.records);
        }
        let through = page.next.prev().0.min(root.size);
        fill(&mut peaks, through);
        if page.end && peaks.size() < root.size || page.next <= next && !page.end {
            let found = format!("log `{volume}` shows nothing behind position {}", page.next);
            return Err(NotVerified(found).into());
        }
        next = page.next;
    }
    let computed = peaks.root();
    if computed != root {
        let found = format!(
            "what log `{volume}` shows from position {first} on leads to {}, and its root is {}: \
             the records, or the root, are not those of its history",
            computed.hash, root.hash
        );
        return Err(NotVerified(found).into());
    }
    audited.computed = Some((first, Lsn(root.size)));
    Ok(())
}

fn take(peaks: &mut Peaks, size: u64, record: &LogRecord, records: &mut u64) {
    if record.lsn.0 > peaks.size() && record.lsn.0 <= size {
        fill(peaks, record.lsn.0 - 1);
        peaks.push(record.leaf().hash(), |_| {});
        *records += 1;
    }
}

/// Readers are shown nothing in the positions up to `through` that are not in the tree yet.
fn fill(peaks: &mut Peaks, through: u64) {
    while peaks.size() < through {
        let lsn = Lsn(peaks.size() + 1);
        peaks.push(Leaf::Blank { lsn }.hash(), |_| {});
    }
}

/// The peaks of the tree over the positions below `first`, proved to lead to `root`. They are the proof of position `first` in the tree
/// that it is the last one of: every subtree to the left of it.
async fn peaks_below(
    log: &LogVolume,
    volume: &str,
    first: Lsn,
    root: &TreeRoot,
) -> anyhow::Result<Peaks> {
    let size = first.prev().0;
    if size == 0 {
        return Ok(Peaks::default());
    }
    let explain = |error| explain_tree(volume, error);
    let proof = log.prove(first, first.0).await.map_err(explain)?;
    let hashes: Vec<TreeHash> = proof.path.into_iter().rev().collect();
    let misfit = || {
        NotVerified(format!(
            "the cluster's proof of position {first} has another number of hashes"
        ))
    };
    let peaks = Peaks::new(size, hashes).ok_or_else(misfit)?;
    let proof = log.prove_consistency(size, root.size).await;
    let verified = proof.map_err(explain)?.verify(&peaks.root(), root);
    verified.map_err(|error| NotVerified(format!("positions 1 to {size}: {error}")))?;
    Ok(peaks)
}
