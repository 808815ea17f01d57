//! The feed: which entries the other copies are sent, from memory or from the disk.

use bytes::Bytes;
use mainstay_replication::AppendPlan;
use mainstay_types::Lsn;

use super::Volume;
use crate::event::{Action, Now};
use crate::tail::join;

impl Volume {
    pub(super) fn feed(&mut self, now: Now) {
        self.feed_again.retain(|_, again| now.mono < *again);
        for node in self.member.peers() {
            while !self.feeding.contains(&node)
                && !self.feed_again.contains_key(&node)
                && let Some(plan) = self.member.append_plan(now.mono, node)
            {
                if !self.feed_one(now, plan) {
                    break;
                }
            }
        }
        self.drain_core(now);
    }

    /// Sends one append. False if the entries must be read from disk first, or cannot be had.
    fn feed_one(&mut self, now: Now, plan: AppendPlan) -> bool {
        if plan.last < plan.first {
            return self.send_append(now, plan, plan.last, Bytes::new());
        }
        let cached = self
            .joined
            .as_ref()
            .filter(|(first, last, _)| *first == plan.first && *last <= plan.last);
        if let Some((_, last, bytes)) = cached {
            let (last, bytes) = (*last, bytes.clone());
            return self.send_append(now, plan, last, bytes);
        }
        match self
            .tail
            .pieces(plan.first, plan.last, self.config.feed_bytes_max)
        {
            Some((last, pieces)) => {
                let bytes = join(pieces);
                self.joined = Some((plan.first, last, bytes.clone()));
                self.send_append(now, plan, last, bytes)
            }
            None if plan.first <= self.member.log().base().lsn => {
                // The core finds that its log begins too late, and asks for a full copy.
                self.send_append(now, plan, plan.last, Bytes::new())
            }
            None => {
                self.feeding.insert(plan.to);
                self.out.push_back(Action::Feed {
                    plan,
                    bytes_max: self.config.feed_bytes_max,
                });
                false
            }
        }
    }

    fn send_append(&mut self, now: Now, plan: AppendPlan, last: Lsn, batch: Bytes) -> bool {
        let bytes = batch.len() as u64;
        match self.member.append_sent(now.mono, plan, last, bytes) {
            Some(message) => {
                self.send(plan.to, message, batch);
                true
            }
            None => false,
        }
    }

    pub(super) fn handle_fed(
        &mut self,
        now: Now,
        plan: AppendPlan,
        entries: Option<(Lsn, Vec<Bytes>)>,
    ) {
        self.feeding.remove(&plan.to);
        let Some((last, pieces)) = entries else {
            let again = now.mono + self.config.member.heartbeat;
            self.feed_again.insert(plan.to, again);
            return;
        };
        // What was read may have been cut since, or the member may want something else by now.
        let wanted = self
            .member
            .append_plan(now.mono, plan.to)
            .is_some_and(|present| present.first == plan.first);
        if wanted && last >= plan.first && last <= self.member.last().lsn {
            self.send_append(now, plan, last, join(pieces));
        }
    }
}
