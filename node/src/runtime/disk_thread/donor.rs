//! What this copy gives to others: all of it to a learner, and blocks for another member's repair.

use bytes::Bytes;
use mainstay_storage::engine::RealDisk;
use mainstay_storage::image::Donation;
use mainstay_storage::{Image, LogEnd};
use mainstay_types::{BLOCK_BYTES, Lsn};
use mainstay_volume::store::State;
use tokio::sync::{mpsc, oneshot};

use super::Worker;
use crate::runtime::copies::{BLOCKS_AT_ONCE, ExportPart};
use crate::runtime::repair::Repairer;
use crate::runtime::tree_thread::ToTree;

impl Worker {
    /// Reads blocks as they are now, if what is now is what the log says.
    pub(super) fn donate(
        &self,
        blocks: Vec<u64>,
        answer: oneshot::Sender<Result<Donation, String>>,
    ) {
        if self.failed || self.rebuilt_at.is_some() {
            let _gone = answer.send(Err("this copy is not whole itself".to_owned()));
            return;
        }
        let state = self.state.clone();
        tokio::task::spawn_local(async move {
            let donation = match &*state {
                State::Block(image) => image.donate(&blocks).await.map_err(|e| e.to_string()),
                State::Log(_) => Err("a log has no blocks".to_owned()),
            };
            let _gone = answer.send(donation);
        });
    }

    /// A log's copy begins where the log begins; the session table is ahead of that, and says so, and the tree reaches back to the
    /// first position of all.
    pub(super) fn export_log(
        &self,
        parts: mpsc::Sender<ExportPart>,
        applied: Lsn,
        sessions: Bytes,
    ) {
        let (reader, tree) = (self.reader.clone(), self.tree.clone());
        tokio::task::spawn_local(async move {
            let first = reader.index().first_lsn();
            let begin = match reader.end_at(first.prev()).await {
                Ok(base) => ExportPart::Begin { base, sessions },
                Err(error) => ExportPart::Failed(error.to_string()),
            };
            let begun = parts.send(begin).await;
            if let (Some(tree), Ok(())) = (tree, &begun) {
                let (done, sent) = oneshot::channel();
                let (base, parts) = (first.prev(), parts.clone());
                let _stopped = tree.to.send(ToTree::Export { base, parts, done });
                let _dropped_when_sent = sent.await;
            }
            if begun.is_ok() {
                let consistent_from = applied;
                let _gone = parts.send(ExportPart::End { consistent_from }).await;
            }
        });
    }

    /// Reads the image from its first block to its last, beside everything else.
    pub(super) fn export(
        &self,
        parts: mpsc::Sender<ExportPart>,
        base: LogEnd,
        sessions: Bytes,
        size_bytes: u64,
    ) {
        let (state, repairer) = (self.state.clone(), self.repairer.clone());
        tokio::task::spawn_local(async move {
            if let State::Block(image) = &*state {
                export_image(image, &repairer, &parts, (base, sessions), size_bytes).await;
            }
        });
    }
}

async fn export_image(
    image: &Image<RealDisk>,
    repairer: &Repairer,
    parts: &mpsc::Sender<ExportPart>,
    (base, sessions): (LogEnd, Bytes),
    size_bytes: u64,
) {
    let mut sent = parts.send(ExportPart::Begin { base, sessions }).await;
    let count = size_bytes / u64::from(BLOCK_BYTES);
    let mut first = 0;
    while sent.is_ok() && first < count {
        let blocks = BLOCKS_AT_ONCE.min(count - first);
        let read = async || image.export_block_range(first, blocks).await;
        let part = match repairer.mending(image, read).await {
            Ok(blocks) => ExportPart::Blocks(blocks),
            Err(error) => {
                let _gone = parts.send(ExportPart::Failed(error.to_string())).await;
                return;
            }
        };
        first += BLOCKS_AT_ONCE;
        sent = parts.send(part).await;
    }
    if sent.is_ok() {
        let consistent_from = image.applied().point.lsn;
        let _gone = parts.send(ExportPart::End { consistent_from }).await;
    }
}
