//! A client that follows a log: one task for each of its tails.

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body as Reply;
use mainstay_types::Lsn;
use mainstay_volume::{ClientOp, ConnId, Direction, Event, OpResult, PageLimits};
use tokio::sync::{mpsc, watch};
use tonic::Status;

use crate::runtime::client_ops::RECORDS_BYTES;
use crate::runtime::client_replies as replies;
use crate::runtime::handle::{ConnAnswer, ToVolume, VolumeHandle};

/// Follows a log's commit point. What is committed stays committed whoever is primary, so this needs no lease.
pub(super) struct Tail {
    pub(super) conn: ConnId,
    pub(super) handle: VolumeHandle,
    pub(super) commit: watch::Receiver<Lsn>,
    pub(super) out: mpsc::Sender<Result<pb::ClientReply, Status>>,
    pub(super) tag: u64,
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.handle.tell(Event::ConnClosed { conn: self.conn });
    }
}

impl Tail {
    pub(super) async fn run(mut self, mut from: Lsn) {
        let (replies, mut answers) = mpsc::unbounded_channel();
        let _stopped = self.handle.to.send(ToVolume::Connect {
            conn: self.conn,
            replies,
        });
        loop {
            if self
                .commit
                .wait_for(|commit| *commit >= from)
                .await
                .is_err()
            {
                return;
            }
            let op = ClientOp::ReadLog {
                from,
                direction: Direction::Forwards,
                limits: PageLimits {
                    bytes_max: RECORDS_BYTES,
                    records_max: usize::MAX,
                },
                stale_ok: true,
            };
            self.handle.tell(Event::Client {
                conn: self.conn,
                token: 0,
                op,
            });
            let Some(reply) = answers.recv().await.and_then(|mut replies| replies.pop()) else {
                return;
            };
            let body = match reply.answer {
                ConnAnswer::Records {
                    records,
                    next,
                    end,
                    through,
                } => {
                    from = next;
                    if records.is_empty() {
                        continue;
                    }
                    replies::of_records(records, next, end, through)
                }
                ConnAnswer::Unreadable(why) => replies::unreadable(why),
                ConnAnswer::Result(OpResult::Refused(refusal)) => replies::refused(&refusal),
                _ => return,
            };
            let ended = !matches!(body, Reply::Records(_));
            let reply = pb::ClientReply {
                tag: self.tag,
                body: Some(body),
            };
            if self.out.send(Ok(reply)).await.is_err() || ended {
                return;
            }
        }
    }
}
