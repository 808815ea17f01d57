//! `mainstay volume attach` and `detach`: who may write to a block volume, settled by hand.

use std::io::Write;

use mainstay_client::{AttachOptions, BlockVolume, Client, OpenError, Refusal};

use super::{connect, explain_open, text};
use crate::nbd_export::local_name;

/// Name of an attachment that only ends another, with a number of its own behind it: one of the same name would be joined and not
/// ended, and one that was cut off before it was closed would stay for ever.
const DETACHING: &str = "mainstay-volume-detach";

/// Whom to attach a volume to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The block volume.
    pub volume: String,
    /// Whom, as `mainstay status` names holders; NBD clients on this machine if absent.
    pub name: Option<String>,
    /// End the attachment of somebody else.
    pub takeover: bool,
}

/// Attaches a volume, and leaves it attached until it is detached or taken over.
///
/// # Errors
/// There is no such block volume, somebody else holds it, or no primary serves it.
pub async fn attach(
    args: &Attach,
    endpoints: Vec<String>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let client = connect(endpoints).await?;
    let before = holders(&client, &args.volume).await?;
    let name = args.name.clone().unwrap_or_else(local_name);
    let options = AttachOptions {
        name: name.clone(),
        takeover: args.takeover,
    };
    // Dropped and not closed: the session stays, and with it the attachment.
    drop(open(&client, &args.volume, options).await?);
    let lost = before.iter().filter(|holder| **holder != name);
    let lost: Vec<_> = lost.collect();
    writeln!(out, "`{}` is attached by `{name}`", args.volume)?;
    if args.takeover && !lost.is_empty() {
        writeln!(
            out,
            "it was attached by {} before: nothing of theirs that is not committed yet takes effect",
            text::list(lost)
        )?;
    }
    Ok(())
}

/// Ends whatever attachment a volume has.
///
/// # Errors
/// There is no such block volume, or no primary serves it.
pub async fn detach(
    volume: &str,
    endpoints: Vec<String>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let client = connect(endpoints).await?;
    let before = holders(&client, volume).await?;
    if before.is_empty() {
        writeln!(out, "`{volume}` is attached by nobody")?;
        return Ok(());
    }
    let options = AttachOptions {
        name: format!("{DETACHING}-{:08x}", rand::random::<u32>()),
        takeover: true,
    };
    open(&client, volume, options).await?.close().await?;
    writeln!(
        out,
        "`{volume}` was attached by {}, and is free now: nothing of theirs that is not committed yet takes effect",
        text::list(&before)
    )?;
    Ok(())
}

async fn holders(client: &Client, volume: &str) -> anyhow::Result<Vec<String>> {
    let shown = super::volume::find(&client.admin(), volume).await?;
    Ok(shown
        .attachments
        .into_iter()
        .map(|held| held.name)
        .collect())
}

async fn open(
    client: &Client,
    volume: &str,
    options: AttachOptions,
) -> anyhow::Result<BlockVolume> {
    let opened = client.block(volume).attach(options).open().await;
    opened.map_err(|error| match error {
        OpenError::Refused(Refusal::AttachedElsewhere { name, .. }) => anyhow::anyhow!(
            "`{volume}` is attached by `{name}`: stop its client and detach it, or take it over with --takeover, after which \
             nothing of `{name}` that is not committed yet takes effect"
        ),
        other => explain_open(volume, other),
    })
}
