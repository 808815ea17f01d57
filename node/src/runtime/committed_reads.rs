//! Reads that any copy may serve: of what it knows to be committed, once that is enough for the reader.

use std::time::Duration;

use mainstay_proto::v1::client_reply::Body as Reply;
use mainstay_types::Lsn;
use mainstay_volume::{ClientOp, ConnId, Event};
use tokio::sync::mpsc;

use super::handle::{ConnReply, ToVolume, VolumeHandle};
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
    let answer = ask(&handle.to, node.new_conn(), op).await;
    match answer {
        Some(reply) => replies::of_log_read(node, handle, reply.answer),
        None => replies::not_primary(node, None, handle.report().sealed),
    }
}

/// Asks on a connection for this one question; `None` if the volume has stopped. Cancelling it leaves no connection behind.
async fn ask(
    to: &mpsc::UnboundedSender<ToVolume>,
    conn: ConnId,
    op: ClientOp,
) -> Option<ConnReply> {
    let (replies, mut answers) = mpsc::unbounded_channel();
    let _stopped = to.send(ToVolume::Connect { conn, replies });
    let _closes = Closes { conn, to };
    let _stopped = to.send(ToVolume::Event(Event::Client { conn, token: 0, op }));
    answers.recv().await.and_then(|mut replies| replies.pop())
}

/// Closes a connection when it is dropped.
struct Closes<'a> {
    conn: ConnId,
    to: &'a mpsc::UnboundedSender<ToVolume>,
}

impl Drop for Closes<'_> {
    fn drop(&mut self) {
        let conn = self.conn;
        let _stopped = self.to.send(ToVolume::Event(Event::ConnClosed { conn }));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// A client that leaves while its read is under way: the volume would keep where to answer for ever.
    #[test]
    fn a_read_that_nobody_waits_for_closes_its_connection() {
        let (to, mut told) = mpsc::unbounded_channel();
        assert!(ask(&to, 7, ClientOp::Position).now_or_never().is_none());
        let connected = told.try_recv();
        assert!(
            matches!(connected, Ok(ToVolume::Connect { conn: 7, .. })),
            "{connected:?}"
        );
        let asked = told.try_recv();
        assert!(
            matches!(asked, Ok(ToVolume::Event(Event::Client { conn: 7, .. }))),
            "{asked:?}"
        );
        let closed = told.try_recv();
        assert!(
            matches!(closed, Ok(ToVolume::Event(Event::ConnClosed { conn: 7 }))),
            "{closed:?}"
        );
    }
}
