//! `mainstay volume`: create, list, show, delete.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context as _, bail};
use mainstay_client::report::{CreateVolume, Created, VolumeStatus};
use mainstay_client::{Admin, AdminError, Retention, RetentionChange};
use mainstay_types::{AckRule, NodeId, VolumeKind};
use serde::Serialize;
use tokio::time::Instant;

use super::log::retain::{self, kept};
use super::table::{Align, Table};
use super::{connect, print_json, size, status, text};

/// What to create.
#[derive(Debug, Clone)]
pub struct Create {
    /// Its name.
    pub volume: String,
    /// A log, or a block volume of some size: see [`size::block_kind`].
    pub kind: VolumeKind,
    /// Copies; zero lets the cluster choose. Only without `placement`.
    pub copies: u32,
    /// Nodes that shall hold a copy; the first one makes the volume. Empty: the cluster chooses.
    pub placement: Vec<NodeId>,
    /// Among copies that are equally good as primary, these first, in this order.
    pub prefer: Vec<NodeId>,
    /// A block volume that several hosts may attach at a time.
    pub shared: bool,
    /// How many durable copies commit; `None` is the default for that many copies.
    pub ack: Option<AckRule>,
    /// Full copies below which the membership never shrinks; zero is the default.
    pub min_copies: u32,
    /// What a log shall keep.
    pub retention: RetentionChange,
    /// How long to wait until every copy has joined. The volume serves without.
    pub wait: Duration,
    /// Print JSON.
    pub json: bool,
}

impl Create {
    /// A volume as the cluster would have it.
    #[must_use]
    pub fn new(volume: impl Into<String>, kind: VolumeKind) -> Self {
        Self {
            volume: volume.into(),
            kind,
            copies: 0,
            placement: Vec::new(),
            prefer: Vec::new(),
            shared: false,
            ack: None,
            min_copies: 0,
            retention: RetentionChange::default(),
            wait: Duration::from_secs(10),
            json: false,
        }
    }

    fn request(&self) -> anyhow::Result<CreateVolume> {
        if self.shared && self.kind == VolumeKind::Log {
            bail!("a log is open to every writer as it is: --shared is for block volumes");
        }
        if self.retention != RetentionChange::default() && self.kind != VolumeKind::Log {
            bail!(
                "a block volume keeps what is written to it: --retain-age and --retain-bytes are for logs"
            );
        }
        if let VolumeKind::Block { size_bytes } = self.kind {
            size::block_kind(size_bytes)?;
        }
        if self.copies > 0 && !self.placement.is_empty() {
            bail!("give either a number of copies or the nodes that shall hold them, not both");
        }
        Ok(CreateVolume {
            name: self.volume.clone(),
            kind: self.kind,
            copies: self.copies,
            placement: self.placement.clone(),
            prefer: self.prefer.clone(),
            shared: self.shared,
            ack: self.ack,
            min_copies: self.min_copies,
        })
    }
}

/// Creates a volume and waits until all its copies have joined, or says how many have.
///
/// # Errors
/// The size or the placement cannot be, another volume has the name, or no majority of the witnesses answers.
pub async fn create(
    args: &Create,
    endpoints: Vec<String>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let request = args.request()?;
    let client = connect(endpoints).await?;
    let admin = client.admin();
    let mut created = admin.create_volume(request).await?;
    if args.retention != RetentionChange::default() && !created.existed {
        let set = retain::change(&client, &args.volume, args.retention).await;
        set.with_context(|| {
            format!(
                "log `{0}` is created, but not what it keeps: say it with `mainstay log retain {0}`",
                args.volume
            )
        })?;
        created.volume = admin.show_volume(&args.volume).await?;
    }
    created.volume = until_joined(&admin, created.volume, args.wait).await;
    if args.json {
        return print_json(out, &created);
    }
    write!(out, "{}", describe_created(&created))?;
    Ok(())
}

/// Waits until each node of the placement is a member. Whatever goes wrong meanwhile is not an error of the creation.
async fn until_joined(admin: &Admin, mut volume: VolumeStatus, wait: Duration) -> VolumeStatus {
    let give_up = Instant::now() + wait;
    while volume.members.len() < volume.placement.len() && Instant::now() < give_up {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let shown = tokio::time::timeout_at(give_up, admin.show_volume(&volume.name));
        if let Ok(Ok(now)) = shown.await {
            volume = now;
        }
    }
    volume
}

fn describe_created(created: &Created) -> String {
    let volume = &created.volume;
    let what = match volume.kind {
        VolumeKind::Log => "log".to_owned(),
        VolumeKind::Block { size_bytes } => {
            format!("block volume of {}", size::show_size(size_bytes))
        }
    };
    let mut text = if created.existed {
        format!(
            "`{}` exists already and is left as it is: a {what}",
            volume.name
        )
    } else {
        format!("created `{}`, a {what}", volume.name)
    };
    let nodes = text::list(&volume.placement);
    text.push_str(&format!(
        " on {} {nodes}; node {} is primary\n",
        if volume.placement.len() == 1 {
            "node"
        } else {
            "nodes"
        },
        volume.primary
    ));
    if let Some(retention) = volume
        .retention
        .filter(|kept| *kept != Retention::default())
    {
        text.push_str(&format!("it keeps {}\n", kept(retention)));
    }
    let (joined, wanted) = (volume.members.len(), volume.placement.len());
    if joined < wanted {
        text.push_str(&format!(
            "{joined} of {wanted} copies have joined so far; until the others have, writes are durable on {joined} only \
             (`mainstay status` shows how far they are)\n"
        ));
    }
    text
}

/// Lists the volumes.
///
/// # Errors
/// No node answers.
pub async fn list(json: bool, endpoints: Vec<String>, out: &mut impl Write) -> anyhow::Result<()> {
    let volumes = connect(endpoints).await?.admin().list_volumes().await?;
    if json {
        return print_json(out, &volumes);
    }
    if volumes.is_empty() {
        writeln!(out, "no volumes; create one with `mainstay volume create`")?;
        return Ok(());
    }
    let mut table = Table::new(&[
        ("VOLUME", Align::Left),
        ("KIND", Align::Left),
        ("SIZE", Align::Right),
        ("HEALTH", Align::Left),
        ("PRIMARY", Align::Right),
        ("EPOCH", Align::Right),
        ("COPIES", Align::Right),
        ("ON", Align::Left),
    ]);
    for volume in &volumes {
        let (kind, size) = status::kind_and_size(volume.kind);
        table.row(vec![
            volume.name.clone(),
            kind.to_owned(),
            size,
            status::health_word(volume.health).to_owned(),
            volume.primary.to_string(),
            volume.epoch.to_string(),
            format!("{}/{}", volume.members.len(), volume.placement.len()),
            text::list(&volume.placement),
        ]);
    }
    write!(out, "{table}")?;
    Ok(())
}

/// Shows one volume: its register, members and positions.
///
/// # Errors
/// It does not exist, or no node answers.
pub async fn show(
    volume: &str,
    json: bool,
    endpoints: Vec<String>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let admin = connect(endpoints).await?.admin();
    let shown = find(&admin, volume).await?;
    if json {
        return print_json(out, &shown);
    }
    write!(out, "{}", describe(&shown))?;
    Ok(())
}

pub(super) async fn find(admin: &Admin, volume: &str) -> anyhow::Result<VolumeStatus> {
    admin
        .show_volume(volume)
        .await
        .map_err(|error| match error {
            AdminError::NotFound { message } => {
                anyhow::anyhow!("{message}; `mainstay volume list` names those that exist")
            }
            other => anyhow::Error::new(other),
        })
}

fn describe(volume: &VolumeStatus) -> String {
    let (kind, size) = status::kind_and_size(volume.kind);
    let lease = if volume.lease_held {
        format!("held for {} more", text::span_ms(volume.lease_remaining_ms))
    } else {
        "not held".to_owned()
    };
    let ack = match volume.ack {
        AckRule::Majority => "majority",
        AckRule::All => "all",
    };
    let mut lines = vec![
        ("volume", volume.name.clone()),
        (
            "kind",
            if size.is_empty() {
                kind.to_owned()
            } else {
                format!("{kind}, {size}")
            },
        ),
        ("health", status::health_word(volume.health).to_owned()),
        (
            "primary",
            format!("node {} in epoch {}", volume.primary, volume.epoch),
        ),
        ("lease", lease),
        ("copies on", text::list(&volume.placement)),
        (
            "preferred",
            if volume.prefer.is_empty() {
                "no node".to_owned()
            } else {
                format!("{}, in this order", text::list(&volume.prefer))
            },
        ),
        (
            "a write needs",
            format!(
                "{} of {} copies durable (rule: {ack}; never below {} copies)",
                volume.ack_quorum,
                volume.members.len(),
                volume.min_copies
            ),
        ),
        (
            "positions",
            format!(
                "{} to {}, committed to {}",
                volume.first_lsn, volume.accepted_lsn, volume.commit_lsn
            ),
        ),
        ("sessions", volume.sessions.to_string()),
        ("lineage", volume.lineage.to_string()),
    ];
    if let Some(retention) = volume.retention {
        lines.push(("readers begin at", volume.first_shown_lsn.to_string()));
        lines.push(("keeps", kept(retention)));
    }
    if volume.shared {
        lines.push(("shared", "several hosts may attach at a time".to_owned()));
    }
    if !volume.attachments.is_empty() {
        let names = volume.attachments.iter().map(|held| &held.name);
        lines.push(("attached by", text::list(names)));
    }
    if !volume.change.is_empty() {
        lines.push(("change", volume.change.clone()));
    }
    let mut text: String = lines
        .into_iter()
        .map(|(name, value)| format!("{name:<14} {value}\n"))
        .collect();
    text.push('\n');
    text.push_str(&status::copies_table([volume]).to_string());
    for problem in super::problems::of_volume(volume) {
        text.push_str(&format!("\nproblem: {problem}\n"));
    }
    text
}

/// What to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    /// Which.
    pub volume: String,
    /// Do not ask.
    pub yes: bool,
    /// Delete it although somebody is attached.
    pub force: bool,
    /// Print JSON.
    pub json: bool,
}

#[derive(Serialize)]
struct Deleted<'a> {
    volume: &'a str,
    deleted: bool,
}

/// Deletes a volume and everything in it. Without `yes`, `ask` puts the question to a person and returns the answer; it is
/// `None` where there is nobody to ask.
///
/// # Errors
/// It does not exist, somebody is attached, nobody agreed, or no majority of the witnesses answers.
pub async fn delete(
    args: &Delete,
    endpoints: Vec<String>,
    ask: Option<impl FnOnce(&str) -> std::io::Result<String>>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let admin = connect(endpoints).await?.admin();
    let volume = find(&admin, &args.volume).await?;
    if !args.force
        && let Some(holder) = volume.attachments.first()
    {
        bail!(
            "`{}` is attached by `{}`; detach it there first, or delete it all the same with --force",
            args.volume,
            holder.name
        );
    }
    if !args.yes {
        agree(&volume, ask)?;
    }
    admin.delete_volume(&args.volume, args.force).await?;
    if args.json {
        let (volume, deleted) = (args.volume.as_str(), true);
        return print_json(out, &Deleted { volume, deleted });
    }
    writeln!(out, "deleted `{}`", args.volume)?;
    Ok(())
}

fn agree(
    volume: &VolumeStatus,
    ask: Option<impl FnOnce(&str) -> std::io::Result<String>>,
) -> anyhow::Result<()> {
    let Some(ask) = ask else {
        bail!(
            "deleting `{}` needs --yes where nobody can be asked: what it holds is gone for good",
            volume.name
        );
    };
    let question = format!(
        "This deletes `{}` and all its copies on nodes {}, for good. Type its name to go on: ",
        volume.name,
        text::list(&volume.placement)
    );
    if ask(&question)?.trim() == volume.name {
        return Ok(());
    }
    bail!("`{}` is left as it is", volume.name);
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::volume;
    use super::*;

    #[test]
    fn a_creation_is_checked_before_the_cluster_is_asked() {
        let mut args = Create::new("disk", VolumeKind::Block { size_bytes: 5000 });
        let error = args.request().expect_err("no multiple").to_string();
        assert!(error.contains("4096 or 8192"), "{error}");
        args.kind = VolumeKind::Log;
        args.shared = true;
        let error = args.request().expect_err("a log").to_string();
        assert!(error.contains("--shared is for block volumes"), "{error}");
        args.shared = false;
        args.copies = 2;
        args.placement = vec![NodeId(1)];
        assert!(args.request().is_err());
        args.copies = 0;
        assert!(args.request().is_ok());
    }

    #[test]
    fn a_creation_says_how_many_copies_have_joined() {
        let mut created = Created {
            volume: volume(),
            existed: false,
        };
        assert_eq!(
            describe_created(&created),
            "created `ledger`, a log on nodes 1, 2, 3; node 1 is primary\n"
        );
        created.volume.members.pop();
        created.existed = true;
        let text = describe_created(&created);
        assert!(text.starts_with("`ledger` exists already"), "{text}");
        assert!(text.contains("2 of 3 copies have joined so far"), "{text}");
    }

    #[test]
    fn a_volume_is_shown_with_its_members() {
        let text = describe(&volume());
        for part in [
            "ledger",
            "node 1 in epoch 4",
            "held for 700 ms more",
            "2 of 3 copies durable (rule: majority; never below 2 copies)",
            "1 to 12, committed to 11",
            "replica",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_deletion_needs_the_name_or_yes() {
        let answer = |text: &'static str| Some(move |_: &str| Ok(text.to_owned()));
        assert!(agree(&volume(), answer("ledger\n")).is_ok());
        assert!(agree(&volume(), answer("y\n")).is_err());
        let nobody = None::<fn(&str) -> std::io::Result<String>>;
        let error = agree(&volume(), nobody).expect_err("nobody agreed");
        assert!(error.to_string().contains("--yes"), "{error}");
    }
}
