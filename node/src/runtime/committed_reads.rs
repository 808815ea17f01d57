//! Reads that any copy may serve: of what it knows to be committed, once that is enough for the reader.

use std::time::Duration;

use mainstay_proto::v1::client_reply::Body as Reply;
use mainstay_types::Lsn;
use mainstay_volume::{ClientOp, Event};
use tokio::sync::mpsc;

use super::handle::{ToVolume, VolumeHandle};
use super::{Node, client_replies as replies};

/// How long a copy that is behind waits before it says so: longer than the commit point is on its way when nothing is wrong.
const PATIENCE: Duration = Duration::from_millis(300);

/// What is read.
#[derive(Debug)]
pub(super) enum ReadHere {
    /// Where the log stands.
    Position,
    /// Its records.
    Log(ClientOp),
}

/// Reads from this node's copy. Never beyond what it knows to be committed, and not before it knows `at_least` to be: a reader that
/// says what it has seen elsewhere never goes back.
pub(super) async fn committed_read(
    node: &Node,
    handle: &VolumeHandle,
    at_least: Lsn,
    read: ReadHere,
) -> Reply {
    let mut commit = handle.commit.clone();
    let enough = commit.wait_for(|commit| *commit >= at_least);
    match tokio::time::timeout(PATIENCE, enough).await {
        Ok(Ok(_)) => {}
        Ok(Err(_)) => return replies::not_primary(node, None, handle.report().sealed),
        Err(_) => return replies::behind(*handle.commit.borrow()),
    }
    let op = match read {
        ReadHere::Position => return replies::position_here(handle),
        ReadHere::Log(op) => op,
    };
    let conn = node.new_conn();
    let (replies_to, mut answers) = mpsc::unbounded_channel();
    let _stopped = handle.to.send(ToVolume::Connect {
        conn,
        replies: replies_to,
    });
    handle.tell(Event::Client { conn, token: 0, op });
    let answer = answers.recv().await.and_then(|mut replies| replies.pop());
    handle.tell(Event::ConnClosed { conn });
    match answer {
        Some(reply) => replies::of_log_read(node, handle, reply.answer),
        None => replies::not_primary(node, None, handle.report().sealed),
    }
}
