//! Property 1: what is committed is durable on a quorum of the registered copies, and in every later primary's log.

use mainstay_types::Epoch;

use super::{Check, CopyKey, EntryInfo, Oracle, Property, broken};

impl Oracle {
    /// The primary of `epoch` says that `info` is committed, the last of a batch.
    pub(super) fn check_quorum(&self, key: CopyKey, epoch: Epoch, info: &EntryInfo) -> Check {
        if info.point.epoch != epoch {
            return broken(
                Property::Durability,
                format!(
                    "{key:?} commits up to {} in epoch {epoch} without an entry of its own",
                    info.point
                ),
            );
        }
        let Some(register) = self.chain.last_of(epoch) else {
            return broken(
                Property::OnePrimary,
                format!("{key:?} commits in epoch {epoch}, which was never decided"),
            );
        };
        let holding = register
            .members
            .iter()
            .filter(|m| {
                self.copies
                    .get(&(m.node, m.incarnation))
                    .is_some_and(|copy| copy.held(info))
            })
            .count();
        if holding < register.quorum() {
            return broken(
                Property::Durability,
                format!(
                    "{key:?} says {} is committed: durable on {holding} of {} members, {} needed",
                    info.point,
                    register.members.len(),
                    register.quorum()
                ),
            );
        }
        Ok(())
    }

    /// A new primary's log holds everything that was ever committed in an epoch before its own.
    ///
    /// A start order may reach its primary when a later epoch has long been committing. What that epoch inherited need
    /// not be in the log of the one that it replaced, whose members never heard of it; nor can the late primary commit
    /// anything any more, which is property 4.
    pub(super) fn check_inherited(&self, key: CopyKey, epoch: Epoch) -> Check {
        let Some(copy) = self.copies.get(&key) else {
            return Ok(());
        };
        for (info, committed_in) in &self.canon {
            if *committed_in >= epoch || info.point.lsn <= copy.log.base {
                continue;
            }
            match copy.log.get(info.point.lsn) {
                Some(held) if held.same(info) => {}
                Some(held) => {
                    return broken(
                        Property::Durability,
                        format!(
                            "primary {key:?} of epoch {epoch} holds {} where {} was committed",
                            held.point, info.point
                        ),
                    );
                }
                None => {
                    return broken(
                        Property::Durability,
                        format!(
                            "primary {key:?} of epoch {epoch} lacks {}, which was committed",
                            info.point
                        ),
                    );
                }
            }
        }
        Ok(())
    }
}
