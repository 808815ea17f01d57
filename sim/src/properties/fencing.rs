//! Property 4: after the register moved to a newer epoch, nothing of an older one newly commits behind its cut.
//!
//! An old primary may still learn that something is committed: only what the newer epoch inherited.

use std::collections::BTreeMap;

use mainstay_replication::Member;
use mainstay_types::{Epoch, Instance, NodeId};

use super::{Check, CopyKey, CopyLog, EntryInfo, Oracle, Property, broken};

#[derive(Debug)]
pub(crate) struct Start {
    node: NodeId,
    instance: Instance,
    /// The log that the epoch began with.
    log: CopyLog,
}

/// Who began to act in which epoch, with what.
#[derive(Debug, Default)]
pub(crate) struct Starts(BTreeMap<Epoch, Start>);

impl Starts {
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

impl Oracle {
    /// How many epochs had a primary that acted.
    #[must_use]
    pub fn epochs_started(&self) -> usize {
        self.starts.count()
    }

    pub(super) fn check_start(&mut self, key: CopyKey, member: &Member) -> Check {
        let Some(epoch) = member.acting_epoch() else {
            return Ok(());
        };
        let me = member.id();
        if let Some(start) = self.starts.0.get(&epoch) {
            if (start.node, start.instance) != (me.node, me.instance) {
                return broken(
                    Property::OnePrimary,
                    format!(
                        "{:?} on {} and {:?} on {} act in epoch {epoch}",
                        start.instance, start.node, me.instance, me.node
                    ),
                );
            }
            return Ok(());
        }
        if !self.chain.names(epoch, me) {
            return broken(
                Property::OnePrimary,
                format!("{key:?} acts in epoch {epoch}, and no decided register names it"),
            );
        }
        if member.sealed() != epoch {
            return broken(
                Property::Fencing,
                format!(
                    "{key:?} begins to act in epoch {epoch}, sealed at {}",
                    member.sealed()
                ),
            );
        }
        self.check_inherited(key, epoch)?;
        let log = self
            .copies
            .get(&key)
            .map(|copy| copy.log.clone())
            .unwrap_or_default();
        let start = Start {
            node: me.node,
            instance: me.instance,
            log,
        };
        self.starts.0.insert(epoch, start);
        Ok(())
    }

    /// `info` newly commits in `epoch`.
    pub(super) fn check_fenced(&self, key: CopyKey, epoch: Epoch, info: &EntryInfo) -> Check {
        for register in self.chain.after(epoch) {
            if info.point.lsn > register.cut.lsn {
                return broken(
                    Property::Fencing,
                    format!(
                        "{key:?} commits {} in epoch {epoch} after epoch {} began at {}",
                        info.point, register.epoch, register.cut
                    ),
                );
            }
        }
        for (later, start) in self
            .starts
            .0
            .range((std::ops::Bound::Excluded(epoch), std::ops::Bound::Unbounded))
        {
            let inherited = start.log.get(info.point.lsn);
            let below = info.point.lsn <= start.log.base;
            if !below && inherited.is_none_or(|other| !other.same(info)) {
                return broken(
                    Property::Fencing,
                    format!(
                        "{key:?} commits {} in epoch {epoch}, which epoch {later} did not inherit",
                        info.point
                    ),
                );
            }
        }
        Ok(())
    }
}
