//! Blocks that do not read back here, taken from another member while whoever asked for them waits; and the scrub, which looks for them
//! before anybody asks. What may be taken is decided by [`Image::repair`].

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use mainstay_proto::MESSAGE_BYTES_MAX;
use mainstay_proto::tuning::node_endpoint;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::replication_client::ReplicationClient;
use mainstay_storage::Image;
use mainstay_storage::engine::{Disk, RealDisk};
use mainstay_storage::image::{Donation, Holding, ImageReadError, RepairError};
use mainstay_types::{BLOCK_BYTES, Lineage, Lsn, NodeId, VolumeName};
use mainstay_volume::Event;
use mainstay_volume::store::State;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tonic::Status;

use super::Node;
use super::checkpoint_pace::Held;
use super::copies::{decode_block, encode_block};
use super::events::{self, EventKind, Severity};
use super::handle::ToVolume;

/// Blocks that are asked for together: what lies behind a block that does not read back often does not, either.
const WINDOW: u64 = 64;

/// Blocks that one request may name.
const ASKED_MAX: usize = 256;

/// How long whoever asked for a block waits for its repair.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one member may take.
const MEMBER_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause before the members are asked again, some of which were not far enough.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Repairs and failures of one volume are events at most this often: thousands of blocks may be damaged at once.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// The scrub looks at a window no more often than this.
const SCRUB_PAUSE_MIN: Duration = Duration::from_millis(10);

/// How many blocks of one copy were repaired, and the like. Only rises.
#[derive(Debug, Default)]
pub struct RepairCounts {
    /// Blocks taken from another member.
    pub repaired: AtomicU64,
    /// Times that no member had a block that was needed.
    pub failed: AtomicU64,
    /// Bytes that the scrub has looked at.
    pub scrubbed_bytes: AtomicU64,
}

/// Repairs one block volume, on the thread of its disk.
pub(super) struct Repairer {
    node: Arc<Node>,
    name: VolumeName,
    lineage: Lineage,
    to: mpsc::UnboundedSender<ToVolume>,
    held: Arc<Held>,
    pub(super) counts: Arc<RepairCounts>,
    /// One repair at a time: many may wait for the same blocks.
    busy: tokio::sync::Mutex<()>,
    stopping: watch::Sender<bool>,
    said: Cell<Said>,
}

/// What was last said, and what came since.
#[derive(Debug, Clone, Copy, Default)]
struct Said {
    repaired_at: Option<Instant>,
    repaired: u64,
    failed_at: Option<Instant>,
}

/// What the members had of some blocks.
#[derive(Debug, Default)]
struct Taken {
    blocks: u64,
    from: Option<NodeId>,
    /// Why one was not taken, last.
    refused: Option<String>,
}

impl Taken {
    /// Puts what a member gave in the place of those `missing`, and of no others: what reads back here is not to be changed by anybody.
    async fn put<D: Disk>(
        &mut self,
        volume: &VolumeName,
        image: &Image<D>,
        from: NodeId,
        donation: &Donation,
        missing: &mut Vec<u64>,
    ) {
        for given in &donation.blocks {
            let Some(place) = missing.iter().position(|block| *block == given.block) else {
                continue;
            };
            match image.repair(given, donation.at).await {
                Ok(()) => {
                    missing.swap_remove(place);
                    self.blocks += 1;
                    self.from = Some(from);
                }
                Err(error) => {
                    if let RepairError::Differs { .. } = error {
                        tracing::error!(%volume, %from, %error, "copies differ");
                    }
                    self.refused = Some(format!("node {from}: {error}"));
                }
            }
        }
    }
}

impl Repairer {
    pub(super) fn new(
        node: &Arc<Node>,
        name: VolumeName,
        lineage: Lineage,
        to: mpsc::UnboundedSender<ToVolume>,
        held: Arc<Held>,
    ) -> Self {
        Self {
            node: node.clone(),
            name,
            lineage,
            to,
            held,
            counts: Arc::default(),
            busy: tokio::sync::Mutex::default(),
            stopping: watch::Sender::default(),
            said: Cell::default(),
        }
    }

    /// Does `read`, again after each repair of a block that it stumbles over, until it succeeds or nobody has the block.
    pub(super) async fn mending<T>(
        &self,
        image: &Image<RealDisk>,
        read: impl AsyncFn() -> Result<T, ImageReadError>,
    ) -> Result<T, ImageReadError> {
        let until = Instant::now() + REPAIR_TIMEOUT;
        let mut before = None;
        loop {
            let block = match read().await {
                Err(ImageReadError::Corrupt { block }) => block,
                other => return other,
            };
            if before == Some(block) {
                // It reads back by itself and not beside others: trying on without a pause would keep the thread busy.
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            let late = before.is_some() && Instant::now() >= until;
            if late || !self.repair_until(image, block, until).await {
                return Err(ImageReadError::Corrupt { block });
            }
            before = Some(block);
        }
    }

    /// Repairs `block`, and those behind it that do not read back either. Whether `block` reads back now.
    pub(super) async fn repair(&self, image: &Image<RealDisk>, block: u64) -> bool {
        let until = Instant::now() + REPAIR_TIMEOUT;
        self.repair_until(image, block, until).await
    }

    /// Nothing is repaired from now on, and whoever waits for a repair hears that it failed: a stop waits for some of them.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
    }

    async fn repair_until(&self, image: &Image<RealDisk>, block: u64, until: Instant) -> bool {
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => false,
            repaired = self.ask_until(image, block, until) => repaired,
        }
    }

    /// Asks once at least, however late it is: those before it may have taken all of the time, for blocks that nobody has.
    async fn ask_until(&self, image: &Image<RealDisk>, block: u64, until: Instant) -> bool {
        let mut alone = true;
        loop {
            let refused = self.take(image, &[block]).await;
            if std::mem::take(&mut alone) {
                self.take_behind(image, block, until).await;
            }
            match image.scrub(block, 1).await {
                Ok(bad) if bad.is_empty() => return true,
                Ok(_) => {}
                // Being replaced, or a disk that refuses: no fault of the block.
                Err(_) => return false,
            }
            if Instant::now() >= until {
                self.say_failed(block, refused.as_deref());
                return false;
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    /// Looks for what does not read back behind `block`, and takes that. A bad medium may need seconds for each: whoever waits for `block`
    /// was given it before.
    async fn take_behind(&self, image: &Image<RealDisk>, block: u64, until: Instant) {
        let blocks = image.size_bytes() / u64::from(BLOCK_BYTES);
        let mut bad = Vec::new();
        for block in block + 1..blocks.min(block + WINDOW) {
            if Instant::now() >= until {
                break;
            }
            // The engine of plain calls never does.
            tokio::task::yield_now().await;
            bad.extend(image.scrub(block, 1).await.unwrap_or_default());
        }
        if !bad.is_empty() {
            self.take(image, &bad).await;
        }
    }

    /// Takes blocks that do not read back from other members. Gives back why one was not taken, the last.
    async fn take(&self, image: &Image<RealDisk>, blocks: &[u64]) -> Option<String> {
        // For these only, not until they are there: many may wait for the same ones, and others for what is to be had.
        let _alone = self.busy.lock().await;
        let room = self.has_room(image);
        let held = |block: &u64| image.holding(*block);
        let (wanted, put_off): (Vec<u64>, Vec<u64>) = blocks
            .iter()
            .copied()
            .filter(|block| held(block) != Holding::Whole)
            // What memory holds in part takes no more of it when it is whole; and no checkpoint makes room without it.
            .partition(|block| room || held(block) == Holding::Part);
        if !put_off.is_empty() {
            // It makes room for them, and nothing else may ask for one where nobody writes.
            self.ask_for_checkpoint();
        }
        let first = *wanted.first()?;
        let taken = self.take_from_members(image, wanted).await;
        self.held.tell(image);
        if taken.blocks > 0 {
            self.say_repaired(taken.blocks, first, taken.from);
            self.ask_for_checkpoint();
        }
        taken.refused
    }

    fn ask_for_checkpoint(&self) {
        let _stopped = self.to.send(ToVolume::Event(Event::Repaired));
    }

    /// What is repaired waits in memory for a checkpoint: a damaged disk must not fill it.
    fn has_room(&self, image: &Image<RealDisk>) -> bool {
        image.dirty_bytes() < 2 * self.node.checkpoint_bytes()
    }

    async fn take_from_members(&self, image: &Image<RealDisk>, mut missing: Vec<u64>) -> Taken {
        let register = self.node.register(self.name.id());
        let members = register.iter().flat_map(|register| &register.members);
        let others = members
            .map(|member| member.node)
            .filter(|node| *node != self.node.settings.node && self.node.peers.is_up(*node));
        let mut taken = Taken::default();
        for from in others {
            let ask = ask(
                self.node.clone(),
                from,
                self.name.clone(),
                self.lineage,
                missing.clone(),
            );
            // On the node's own runtime: this thread's disk and network are different things.
            let answer = self
                .node
                .handle
                .spawn(ask)
                .await
                .map_err(anyhow::Error::from);
            let donation = match answer.flatten() {
                Ok(donation) => donation,
                Err(error) => {
                    taken.refused = Some(format!("node {from}: {error:#}"));
                    continue;
                }
            };
            taken
                .put(&self.name, image, from, &donation, &mut missing)
                .await;
            if missing.is_empty() {
                break;
            }
        }
        taken
    }

    fn say_repaired(&self, blocks: u64, first: u64, from: Option<NodeId>) {
        self.counts.repaired.fetch_add(blocks, Ordering::Relaxed);
        let mut said = self.said.get();
        said.repaired += blocks;
        if said.repaired_at.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            let from = from.map_or_else(String::new, |from| format!(" from node {from}"));
            let message = format!(
                "{} blocks of this copy did not read back and were taken{from}, the last at block {first} and behind it: look at \
                 the disk",
                said.repaired
            );
            self.say(events::warning(EventKind::Repaired, message));
            said = Said {
                repaired_at: Some(Instant::now()),
                repaired: 0,
                ..said
            };
        }
        self.said.set(said);
    }

    fn say_failed(&self, block: u64, why: Option<&str>) {
        self.counts.failed.fetch_add(1, Ordering::Relaxed);
        let mut said = self.said.get();
        if said.failed_at.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            let why = why.unwrap_or("none that is reached has it");
            let message = format!(
                "block {block} of this copy does not read back, and no other member's took its place ({why}): reading it fails until \
                 one does or it is written again"
            );
            self.say(events::Event {
                severity: Severity::Alarm,
                ..events::warning(EventKind::DamageFound, message)
            });
            said.failed_at = Some(Instant::now());
        }
        self.said.set(said);
    }

    fn say(&self, event: events::Event) {
        self.node.events.add(events::Event {
            volume: Some(self.name.clone()),
            ..event
        });
    }

    /// Looks at all of the image again and again, once in each `period`, from anywhere on: a node that is often started again shall not
    /// look at the beginning only.
    pub(super) async fn scrub(&self, state: Rc<State<RealDisk>>, period: Duration) {
        let State::Block(image) = &*state else { return };
        let blocks = image.size_bytes() / u64::from(BLOCK_BYTES);
        let windows = blocks.div_ceil(WINDOW);
        let pause = period.div_f64(windows as f64).max(SCRUB_PAUSE_MIN);
        let mut window = self.node.random() % windows;
        loop {
            tokio::time::sleep(pause).await;
            let first = window * WINDOW;
            let count = WINDOW.min(blocks - first);
            if image.scrub_sums(first, count).await.unwrap_or_default() {
                self.held.tell(image);
                self.ask_for_checkpoint();
            }
            // An image that is being replaced, or not replayed yet, has nothing to look at.
            if let Ok(bad) = image.scrub_medium(first, count).await {
                let bytes = count * u64::from(BLOCK_BYTES);
                self.counts
                    .scrubbed_bytes
                    .fetch_add(bytes, Ordering::Relaxed);
                if let Some(first) = bad.first() {
                    self.repair(image, *first).await;
                }
            }
            window = (window + 1) % windows;
        }
    }
}

async fn ask(
    node: Arc<Node>,
    from: NodeId,
    volume: VolumeName,
    lineage: Lineage,
    blocks: Vec<u64>,
) -> anyhow::Result<Donation> {
    let address = node.settings.address_of(from).context("unknown node")?;
    let endpoint = node_endpoint(address)?;
    let asked = blocks.len();
    let request = pb::BlocksRequest {
        cluster: node.settings.cluster.0,
        volume: volume.id().0,
        lineage: lineage.0,
        blocks,
    };
    let answer = tokio::time::timeout(MEMBER_TIMEOUT, async {
        let mut client = ReplicationClient::new(endpoint.connect().await?)
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        anyhow::Ok(client.blocks(request).await?.into_inner())
    });
    let reply = answer.await.context("no answer in time")??;
    let given = reply.blocks.len();
    anyhow::ensure!(given <= asked, "{given} blocks for {asked}");
    Ok(Donation {
        blocks: reply.blocks.into_iter().map(decode_block).collect(),
        at: Lsn(reply.at),
    })
}

/// Answers another member that asks for blocks.
pub(super) async fn donate(
    node: &Node,
    request: pb::BlocksRequest,
) -> Result<pb::BlocksReply, Status> {
    if request.cluster != node.settings.cluster.0 {
        return Err(Status::failed_precondition("another cluster"));
    }
    if request.blocks.len() > ASKED_MAX {
        return Err(Status::invalid_argument("more than 256 blocks"));
    }
    let handle = node
        .volumes()
        .into_iter()
        .find(|handle| {
            handle.spec.name.id().0 == request.volume && handle.lineage.0 == request.lineage
        })
        .ok_or_else(|| Status::not_found("no copy of this history here"))?;
    let (answer, donated) = oneshot::channel();
    let asked = ToVolume::Donate {
        blocks: request.blocks,
        answer,
    };
    let gone = || Status::unavailable("the volume has stopped");
    handle.to.send(asked).map_err(|_| gone())?;
    let donation = donated.await.map_err(|_| gone())?;
    let donation = donation.map_err(Status::failed_precondition)?;
    Ok(pb::BlocksReply {
        blocks: donation.blocks.into_iter().map(encode_block).collect(),
        at: donation.at.0,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use mainstay_storage::LogEnd;
    use mainstay_storage::engine::SimDisk;
    use mainstay_storage::image::{ExportedBlock, ImageConfig};

    use super::*;

    /// A member that answers with a block that nobody asked about, or with one twice.
    #[tokio::test]
    async fn only_what_was_asked_for_is_taken() {
        let config = ImageConfig {
            lineage: Lineage(1),
            size_bytes: 4 * u64::from(BLOCK_BYTES),
            sums_pages: 1,
        };
        let (disk, dir) = (SimDisk::immediate(1), Path::new("/v"));
        let made = Image::create(disk, dir, config, LogEnd::ZERO, Bytes::new());
        let image = made.await.expect("made");
        let given = |block| ExportedBlock {
            block,
            data: None,
            crc: 0,
            lsn: Lsn::ZERO,
        };
        let donation = Donation {
            blocks: [2, 1, 2, 3].map(given).to_vec(),
            at: Lsn::ZERO,
        };
        let (mut taken, mut missing) = (Taken::default(), vec![0, 2]);
        let name = "disk".parse().expect("a name");
        taken
            .put(&name, &image, NodeId(2), &donation, &mut missing)
            .await;
        assert_eq!((taken.blocks, missing), (1, vec![0]));
        let held: Vec<Holding> = (0..4).map(|block| image.holding(block)).collect();
        let (nothing, whole) = (Holding::Nothing, Holding::Whole);
        assert_eq!(held, [nothing, nothing, whole, nothing]);
    }
}
