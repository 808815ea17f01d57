//! Full copies of block images, and of what a trimmed log does not hold any more, for learners whose log ends before the primary's begins.
//!
//! The donor reads its image while it goes on changing; the receiver's log goes on behind the entry at which the donor
//! began, and applying it puts everything right. A copy that breaks off leaves nothing and is begun anew.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use mainstay_proto::tuning::node_endpoint;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::copy_frame::Body;
use mainstay_proto::v1::replication_client::ReplicationClient;
use mainstay_storage::LogEnd;
use mainstay_storage::engine::{RealDisk, run_on};
use mainstay_storage::image::ExportedBlock;
use mainstay_types::{Epoch, Incarnation, LogPoint, Lsn, NodeId, Register, VolumeName};
use mainstay_volume::Event;
use mainstay_volume::store::{CopyReceiver, NewCopy};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::handle::ToVolume;
use super::incoming::{Incoming, Receiving};
use super::{Node, volumes};
use crate::wire::{decode_register, encode_register};

/// Blocks in one message.
pub const BLOCKS_AT_ONCE: u64 = 128;

/// A copy that broke off is begun anew after this pause.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Messages read ahead of the network.
const READ_AHEAD: usize = 4;

/// Copies under way, from this node.
#[derive(Debug, Default)]
pub struct Copies {
    under_way: Mutex<BTreeSet<(VolumeName, NodeId)>>,
    /// And those to it.
    incoming: Incoming,
}

/// What the donor's volume thread reads for a copy.
#[derive(Debug)]
pub enum ExportPart {
    /// First.
    Begin {
        /// The log goes on behind it.
        base: LogEnd,
        /// The session table at it.
        sessions: Bytes,
    },
    /// Blocks, in order.
    Blocks(Vec<ExportedBlock>),
    /// Nodes of a log's Merkle tree, in order.
    Tree(Bytes),
    /// Last.
    End {
        /// What the image included when its last block was read.
        consistent_from: Lsn,
    },
    /// The image does not read back.
    Failed(String),
}

/// A learner on `to` needs a full copy of `volume`: sends one, unless that is under way.
pub fn wanted(node: &Arc<Node>, volume: &VolumeName, to: NodeId) {
    if !node.peers.is_up(to) {
        return;
    }
    let key = (volume.clone(), to);
    let under_way = &node.copies.under_way;
    if !under_way
        .lock()
        .expect("no panic while the lock is held")
        .insert(key.clone())
    {
        return;
    }
    let node = node.clone();
    node.handle.clone().spawn(async move {
        tracing::info!(volume = %key.0, %to, "sending a full copy");
        match send(&node, &key.0, to).await {
            Ok(blocks) => tracing::info!(volume = %key.0, %to, blocks, "the full copy was taken in"),
            Err(error) => {
                tracing::warn!(volume = %key.0, %to, error = %format!("{error:#}"), "full copy broke off");
                if let Some(handle) = node.volume(key.0.id()) {
                    handle.tell(Event::CopyBroke { node: to });
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
        node.copies.under_way.lock().expect("no panic while the lock is held").remove(&key);
    });
}

async fn send(node: &Arc<Node>, volume: &VolumeName, to: NodeId) -> anyhow::Result<u64> {
    let handle = node.volume(volume.id()).context("the volume is gone")?;
    let register = handle.report().register.context("no register")?;
    let address = node.settings.address_of(to).context("unknown node")?;
    let (parts, mut exported) = mpsc::channel(READ_AHEAD);
    handle
        .to
        .send(ToVolume::Export { parts, to })
        .ok()
        .context("the volume has stopped")?;
    let (frames, receiver) = mpsc::channel(READ_AHEAD);
    let cluster = node.settings.cluster.0;
    let feed = tokio::spawn(async move {
        let (mut blocks, mut done, mut from) = (0, false, Lsn::ZERO);
        while let Some(part) = exported.recv().await {
            match &part {
                ExportPart::Begin { base, .. } => from = base.point.lsn,
                ExportPart::Blocks(part) => blocks += part.len() as u64,
                ExportPart::End { .. } => done = true,
                ExportPart::Tree(_) | ExportPart::Failed(_) => {}
            }
            let frame = encode(part, cluster, &register)?;
            frames
                .send(frame)
                .await
                .ok()
                .context("the learner went away")?;
        }
        anyhow::ensure!(done, "the volume stopped");
        Ok((blocks, from))
    });
    let channel = node_endpoint(address)?.connect().await?;
    let mut client = ReplicationClient::new(channel)
        .max_encoding_message_size(mainstay_proto::MESSAGE_BYTES_MAX);
    client.copy(ReceiverStream::new(receiver)).await?;
    let (blocks, base) = feed.await??;
    handle.tell(Event::CopySent { node: to, base });
    Ok(blocks)
}

fn encode(part: ExportPart, cluster: u64, register: &Register) -> anyhow::Result<pb::CopyFrame> {
    let body = match part {
        ExportPart::Begin { base, sessions } => Body::Begin(pb::CopyBegin {
            cluster,
            register: Some(encode_register(register)),
            base: Some(pb::LogPoint {
                epoch: base.point.epoch.0,
                lsn: base.point.lsn.0,
            }),
            base_crc: base.crc,
            sessions,
        }),
        ExportPart::Blocks(blocks) => Body::Blocks(pb::CopyBlocks {
            blocks: blocks.into_iter().map(encode_block).collect(),
        }),
        ExportPart::Tree(nodes) => Body::Tree(pb::CopyTree { nodes }),
        ExportPart::End { consistent_from } => Body::End(pb::CopyEnd {
            consistent_from: consistent_from.0,
        }),
        ExportPart::Failed(reason) => anyhow::bail!("the donor's image: {reason}"),
    };
    Ok(pb::CopyFrame { body: Some(body) })
}

/// What the receiving thread is told.
enum Received {
    Blocks(Vec<ExportedBlock>),
    Tree(Bytes),
    End {
        consistent_from: Lsn,
        done: tokio::sync::oneshot::Sender<()>,
    },
}

/// Takes a full copy in, replacing whatever copy of the volume is here. The donor sends one only to a learner.
pub async fn receive(
    node: &Arc<Node>,
    mut frames: Streaming<pb::CopyFrame>,
) -> Result<Incarnation, Status> {
    let bad = |why: &str| Status::invalid_argument(why.to_owned());
    let first = frames.message().await?.and_then(|frame| frame.body);
    let Some(Body::Begin(begin)) = first else {
        return Err(bad("a copy begins with Begin"));
    };
    if begin.cluster != node.settings.cluster.0 {
        return Err(Status::failed_precondition("another cluster"));
    }
    let register = begin.register.ok_or_else(|| bad("no register"))?;
    let register = decode_register(register).map_err(|error| bad(&error.to_string()))?;
    let point = begin.base.ok_or_else(|| bad("no base"))?;
    let base = LogEnd {
        point: LogPoint {
            epoch: Epoch(point.epoch),
            lsn: Lsn(point.lsn),
        },
        crc: begin.base_crc,
    };
    // The primary acts on it, so it is decided. This node may not have heard that its copy is no member any more: nobody sends entries to one that
    // needs a full copy.
    node.learn(register.clone());
    check_replaceable(node, &register)?;
    let incarnation = Incarnation(node.random());
    let (volume, epoch) = (register.spec.name.id(), register.epoch);
    // Asked again at the end: all of it would be sent for nothing.
    if node.is_opening(volume) {
        return Err(Status::aborted("the copy here is being opened"));
    }
    let receiving = Receiving::begin(&node.copies.incoming, volume, epoch, incarnation);
    let receiving = receiving.ok_or_else(superseded)?;
    let dir = volumes::incoming_dir(node, volume, register.lineage, incarnation);
    let (to_thread, received) = mpsc::channel(READ_AHEAD);
    start_receiver(
        node,
        &register,
        (incarnation, &dir),
        base,
        begin.sessions,
        received,
    )?;
    loop {
        let frame = frames.message().await?.and_then(|frame| frame.body);
        if !receiving.is_current() {
            return Err(superseded());
        }
        let gone = || Status::aborted("the copy could not be written here; see this node's log");
        match frame {
            Some(Body::Blocks(blocks)) => {
                let blocks = blocks.blocks.into_iter().map(decode_block).collect();
                to_thread
                    .send(Received::Blocks(blocks))
                    .await
                    .map_err(|_| gone())?;
            }
            Some(Body::Tree(tree)) => to_thread
                .send(Received::Tree(tree.nodes))
                .await
                .map_err(|_| gone())?,
            Some(Body::End(end)) => {
                let (done, ended) = tokio::sync::oneshot::channel();
                let consistent_from = Lsn(end.consistent_from);
                to_thread
                    .send(Received::End {
                        consistent_from,
                        done,
                    })
                    .await
                    .map_err(|_| gone())?;
                ended.await.map_err(|_| gone())?;
                // By itself: whoever sent the copy may be gone any time, and this call with it, but not between the end of the old
                // copy and the beginning of the new one.
                let adopting = tokio::spawn(put_in_place(node.clone(), register, dir, receiving));
                adopting
                    .await
                    .map_err(|_| gone())?
                    .map_err(|error| Status::aborted(format!("{error:#}")))?;
                return Ok(incarnation);
            }
            Some(Body::Begin(_)) => return Err(bad("a second Begin")),
            None => return Err(bad("the copy broke off")),
        }
    }
}

fn superseded() -> Status {
    Status::aborted("a newer primary sends a copy of this volume")
}

/// Lets the copy that was received in `dir` take its place here, if it still may.
async fn put_in_place(
    node: Arc<Node>,
    register: Register,
    dir: PathBuf,
    receiving: Receiving,
) -> anyhow::Result<()> {
    // Either may have changed while it was received.
    let allowed = || {
        check_replaceable(&node, &register)?;
        receiving.is_current().then_some(()).ok_or_else(superseded)
    };
    let adopted = volumes::adopt_copy(&node, &register, &dir, allowed).await;
    if adopted.is_err() {
        volumes::discard(&dir).await;
    }
    adopted
}

/// A copy that the register counts is never replaced, whichever of what its sender knew and what is known here is newer.
fn check_replaceable(node: &Node, register: &Register) -> Result<(), Status> {
    let volume = register.spec.name.id();
    let hosted = node.volume(volume).map(|hosted| hosted.incarnation);
    let counts = |register: &Register| {
        let member = register.member(node.settings.node);
        member.is_some_and(|member| Some(member.incarnation) == hosted)
    };
    if counts(register) || node.register(volume).as_ref().is_some_and(counts) {
        return Err(Status::failed_precondition(
            "this copy is a member: it is never replaced",
        ));
    }
    Ok(())
}

pub(super) fn encode_block(block: ExportedBlock) -> pb::CopyBlock {
    pb::CopyBlock {
        block: block.block,
        data: block.data.unwrap_or_default(),
        crc: block.crc,
        lsn: block.lsn.0,
    }
}

pub(super) fn decode_block(block: pb::CopyBlock) -> ExportedBlock {
    ExportedBlock {
        block: block.block,
        data: (!block.data.is_empty()).then_some(block.data),
        crc: block.crc,
        lsn: Lsn(block.lsn),
    }
}

/// Starts the thread that writes the copy into a directory beside the present one, and removes it if the copy breaks off.
fn start_receiver(
    node: &Arc<Node>,
    register: &Register,
    (incarnation, dir): (Incarnation, &Path),
    base: LogEnd,
    sessions: Bytes,
    mut received: mpsc::Receiver<Received>,
) -> Result<(), Status> {
    let io = |error: std::io::Error| Status::aborted(format!("{}: {error}", dir.display()));
    let (config, engine, register) = (node.copy_config(), node.settings.engine, register.clone());
    let (path, left) = (dir.to_owned(), dir.to_owned());
    let work = move |disk: RealDisk| async move {
        let new = NewCopy {
            spec: register.spec.clone(),
            lineage: register.lineage,
            log_lineage: register.log_lineage,
            incarnation,
            sealed: register.epoch,
        };
        let mut receiver = CopyReceiver::begin(&disk, &path, new, base, &sessions).await?;
        while let Some(part) = received.recv().await {
            match part {
                Received::Blocks(blocks) => receiver.import(&blocks).await?,
                Received::Tree(nodes) => receiver.import_tree(&nodes).await?,
                Received::End {
                    consistent_from,
                    done,
                } => {
                    receiver.finish(&config, consistent_from).await?;
                    // Whoever waits for it sees to the directory from now on.
                    anyhow::ensure!(done.send(()).is_ok(), "the copy broke off at its end");
                    return anyhow::Ok(());
                }
            }
        }
        anyhow::bail!("the copy broke off")
    };
    let run = move || {
        let done = run_on(engine, work);
        if let Err(error) = done.map_err(anyhow::Error::from).flatten() {
            tracing::warn!(error = %format!("{error:#}"), "a full copy was not taken in");
            // It may be large, and this thread may wait.
            if let Err(error) = std::fs::remove_dir_all(&left) {
                tracing::warn!(path = %left.display(), %error, "what a copy left that broke off is left until the next start");
            }
        }
    };
    std::thread::Builder::new()
        .name("copy".to_owned())
        .spawn(run)
        .map_err(io)?;
    Ok(())
}
