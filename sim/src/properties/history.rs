//! Property 2: two members never hold different entries committed at one LSN. Compared entry by entry as each
//! member's commit point moves.

use mainstay_replication::Member;

use super::{Check, CopyKey, Oracle, Property, broken};

impl Oracle {
    pub(super) fn check_commits(&mut self, key: CopyKey, member: &Member) -> Check {
        let commit = member.commit();
        let Some(copy) = self.copies.get(&key) else {
            return Ok(());
        };
        if commit <= copy.commit_seen {
            return Ok(());
        }
        let mut fresh = Vec::new();
        let mut lsn = copy.commit_seen.max(copy.log.base).next();
        while lsn <= commit {
            let Some(info) = copy.log.get(lsn) else {
                return broken(
                    Property::OneHistory,
                    format!("{key:?} says {lsn} is committed and does not hold it"),
                );
            };
            match self.committed(lsn) {
                Some(known) if known.same(info) => {}
                Some(known) => {
                    return broken(
                        Property::OneHistory,
                        format!(
                            "{key:?} holds {} as committed, others {}",
                            info.point, known.point
                        ),
                    );
                }
                None => fresh.push(*info),
            }
            lsn = lsn.next();
        }
        if let (Some(first), Some(last)) = (fresh.first().copied(), fresh.last().copied()) {
            // A primary may commit and step down in one event.
            let Some(epoch) = member.acting_epoch().or(copy.acted) else {
                return broken(
                    Property::OneHistory,
                    format!(
                        "{key:?} follows, and says {} is committed before any primary did",
                        last.point
                    ),
                );
            };
            self.check_quorum(key, epoch, &last)?;
            if first.point.lsn != self.last_committed().next() {
                return broken(
                    Property::OneHistory,
                    format!(
                        "{key:?} commits {} right behind {}",
                        first.point,
                        self.last_committed()
                    ),
                );
            }
            for info in fresh {
                self.check_fenced(key, epoch, &info)?;
                self.ops.committed(&info)?;
                self.canon.push((info, epoch));
            }
        }
        if let Some(copy) = self.copies.get_mut(&key) {
            copy.commit_seen = commit;
        }
        Ok(())
    }
}
