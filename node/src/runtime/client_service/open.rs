//! The first request of a client's stream: which volume it opens, how, and what it is told.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body as Reply;
use mainstay_types::{SessionId, VolumeName};
use mainstay_volume::{Attachment, ClientOp, Event, OpResult, Refusal, check_opening};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Status;

use super::under_way::UnderWay;
use super::{Opened, Stream};
use crate::runtime::handle::{ConnAnswer, ToVolume};
use crate::runtime::silence::Silence;
use crate::runtime::{client_replies as replies, clock, rounds};

/// How long a lookup of an unknown volume may take.
const LOOKUP: Duration = Duration::from_millis(1000);

impl Stream {
    /// Opens the volume for this stream; `None` if the answer ended it.
    pub(super) async fn open(
        &mut self,
        tag: u64,
        open: pb::Open,
    ) -> Result<Option<Opened>, Status> {
        let Ok(name) = open.volume.parse::<VolumeName>() else {
            self.send(tag, replies::no_such_volume(&open.volume))
                .await?;
            return Ok(None);
        };
        let Some(handle) = self.node.volume(name.id()) else {
            let reply = self.elsewhere(&name).await;
            self.send(tag, reply).await?;
            return Ok(None);
        };
        let Ok(generation) = u32::try_from(open.generation) else {
            return Err(Status::invalid_argument(
                "a generation does not exceed 32 bits",
            ));
        };
        if open.any_copy && !(open.read_only && open.session == 0) {
            return Err(Status::invalid_argument(
                "a stream to any copy is for reading, without a session",
            ));
        }
        // A stream of another history leaves nothing in this one. Only a primary may say so: a copy may be the one that has not heard.
        let replaced = open.lineage != 0 && open.lineage != handle.lineage.0;
        let op = match op_of(&open, generation) {
            _ if replaced => ClientOp::Position,
            Ok(op) => op,
            Err(refusal) => {
                self.send(tag, replies::refused(&refusal)).await?;
                return Ok(None);
            }
        };
        let (sender, answers) = mpsc::unbounded_channel();
        let conn = self.node.new_conn();
        let mut opened = Opened {
            handle,
            conn,
            answers,
            taken: Vec::new(),
            read_only: open.read_only,
            tails: BTreeMap::new(),
            late: JoinSet::new(),
            under_way: UnderWay::default(),
            silence: None,
        };
        let _stopped = opened.handle.to.send(ToVolume::Connect {
            conn,
            replies: sender,
        });
        if open.any_copy {
            let (commit, sealed) = (
                *opened.handle.commit.borrow(),
                opened.handle.report().sealed,
            );
            let body = replies::opened(&self.node, &opened.handle, sealed, 0, 1, commit);
            self.send(tag, body).await?;
            return Ok(Some(opened));
        }
        opened.handle.tell(Event::Client {
            conn,
            token: tag,
            op,
        });
        let patience = Duration::from_millis(u64::from(open.patience_ms.clamp(1, 60_000)));
        let answer = tokio::time::timeout(patience, opened.answers.recv()).await;
        let report = opened.handle.report();
        let first = answer.ok().flatten().and_then(|mut replies| replies.pop());
        let (body, stays) = match first.map(|reply| reply.answer) {
            Some(ConnAnswer::Result(OpResult::Opened {
                epoch,
                generation,
                next_seq,
                commit,
            })) => (
                replies::opened(
                    &self.node,
                    &opened.handle,
                    epoch,
                    generation,
                    next_seq,
                    commit,
                ),
                true,
            ),
            Some(ConnAnswer::Result(OpResult::Position { .. })) if replaced => {
                (replies::history_replaced(&opened.handle), false)
            }
            Some(ConnAnswer::Result(OpResult::Position { commit, .. })) => {
                let epoch = report.acting.map_or(report.sealed, |(epoch, _)| epoch);
                (
                    replies::opened(&self.node, &opened.handle, epoch, 0, 1, commit),
                    true,
                )
            }
            Some(ConnAnswer::Result(result)) => (
                replies::of_result(&self.node, &opened.handle, result),
                false,
            ),
            _ => (replies::not_primary(&self.node, None, report.sealed), false),
        };
        if open.silence_ms > 0 {
            // From before the answer: whatever the client sends behind it was sent later.
            let limit = u64::from(open.silence_ms.clamp(100, 600_000));
            opened.silence = Some(Silence::new(Duration::from_millis(limit), clock::mono()));
        }
        self.send(tag, body).await?;
        Ok(stays.then_some(opened))
    }

    /// The answer for a volume that this node does not hold.
    async fn elsewhere(&self, name: &VolumeName) -> Reply {
        let known = match self.node.register(name.id()) {
            Some(register) => Ok(Some(register)),
            None => rounds::read(&self.node, name.id(), LOOKUP).await,
        };
        match known {
            Ok(Some(register)) if !register.deleted => {
                replies::not_primary(&self.node, Some(register.primary.node), register.epoch)
            }
            Ok(_) => replies::no_such_volume(name.as_str()),
            Err(_) => replies::not_primary(&self.node, None, mainstay_types::Epoch::ZERO),
        }
    }
}

/// What the volume is asked for. It checks the same again, but may keep for a while what it is told before it does.
fn op_of(open: &pb::Open, generation: u32) -> Result<ClientOp, Refusal> {
    // A stream without a session leaves nothing in the log; a read proves that this is the primary.
    if open.read_only && open.session == 0 {
        return Ok(ClientOp::Position);
    }
    let session = SessionId(open.session);
    let attachment = open.attachment.as_ref().map(|wanted| Attachment {
        name: wanted.name.clone(),
        takeover: wanted.takeover,
    });
    check_opening(session, attachment.as_ref())?;
    Ok(ClientOp::Open {
        session,
        generation,
        create: open.create,
        answered: open.first_unanswered.saturating_sub(1),
        attachment,
        token: open.token,
    })
}
