//! Planned switchover: drain, stop serving, release (`docs/protocol.md`).

use mainstay_types::{Lsn, MonoTime, NodeId};

use crate::member::{Member, Output, State};
use crate::progress::Progress;

/// A switchover under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handover {
    to: Option<NodeId>,
    deadline: MonoTime,
}

impl Member {
    pub(crate) fn handle_handover(&mut self, now: MonoTime, to: Option<NodeId>) {
        let deadline = now + self.config.handover_timeout;
        let me = self.me.node;
        if to == Some(me) {
            return;
        }
        if let State::Primary(primary) = &mut self.state {
            primary.handover.get_or_insert(Handover { to, deadline });
        }
    }

    /// Releases once everything taken in is committed and the successor holds it; gives up at the deadline.
    pub(crate) fn close_handover(&mut self, now: MonoTime) {
        let (last, commit) = (self.log.last().lsn, self.commit);
        let State::Primary(primary) = &mut self.state else {
            return;
        };
        let Some(handover) = primary.handover else {
            return;
        };
        // What answers on that node may be another copy than the registered one, which is no more.
        let registered = |node: &NodeId, p: &Progress| {
            let member = primary.register.member(*node);
            member.is_some_and(|member| p.incarnation == Some(member.incarnation))
        };
        let holds = |node: &NodeId| {
            primary
                .progress
                .get(node)
                .is_some_and(|p| p.acked >= last && !p.rebuilding && registered(node, p))
        };
        let others = primary.progress.keys();
        let successor: Option<NodeId> = match handover.to {
            Some(node) => Some(node).filter(holds),
            None => others.copied().find(holds),
        };
        let settled = primary.joint.is_none() && commit == last && commit >= primary.start;
        if settled && (successor.is_some() && commit > Lsn::ZERO) {
            let epoch = primary.epoch;
            self.step_down();
            self.released = epoch;
            self.out.push_back(Output::Release {
                epoch,
                prefer: successor,
            });
        } else if now >= handover.deadline {
            primary.handover = None;
        } else {
            self.wake_at(handover.deadline);
        }
    }
}
