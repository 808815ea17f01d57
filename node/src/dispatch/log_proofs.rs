//! `mainstay log root`, `prove` and `verify`, from the command line's arguments.

use std::io;

use mainstay_types::Lsn;

use crate::cli::log_proofs::{ProveArgs, RootArgs, VerifyArgs};
use crate::commands::log::{proof_file::trusted, prove, root, verify};

pub(super) async fn root(args: RootArgs) -> anyhow::Result<()> {
    let options = root::Args {
        volume: args.volume.to_string(),
        size: args.size,
        committed: args.committed,
        json: args.json,
    };
    let endpoints = super::endpoints(&args.cluster)?;
    root::run(&options, endpoints, &mut io::stdout()).await
}

pub(super) async fn prove(args: ProveArgs) -> anyhow::Result<()> {
    let subject = match (args.lsn, args.from) {
        (Some(lsn), _) => prove::Subject::Position(Lsn(lsn)),
        (None, from) => prove::Subject::Since(from.unwrap_or(0)),
    };
    let options = prove::Args {
        volume: args.volume.to_string(),
        subject,
        size: args.size,
        out: args.out,
    };
    let endpoints = super::endpoints(&args.cluster)?;
    prove::run(&options, endpoints, &mut io::stdout()).await
}

pub(super) async fn verify(args: VerifyArgs) -> anyhow::Result<()> {
    let out = &mut io::stdout();
    let kept = args.root.zip(args.size);
    let kept = kept.map(|(hash, size)| trusted(hash, size));
    if let (Some(path), Some(kept)) = (&args.proof, &kept) {
        return verify::file(path, kept, args.json, out);
    }
    let Some(volume) = args.volume else {
        anyhow::bail!("name a log, or a proof with --proof");
    };
    let options = verify::Args {
        volume: volume.to_string(),
        kept,
        roots_only: args.roots_only,
        json: args.json,
    };
    verify::run(&options, super::endpoints(&args.cluster)?, out).await
}
