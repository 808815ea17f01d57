//! Property 8: what was durable is held, or its loss is reported; it is never answered as "I do not have it".

use mainstay_replication::message::SealAnswer;
use mainstay_types::{Epoch, Lsn};

use super::{Check, CopyKey, CopyLog, Oracle, Property, broken};

/// What a process found on its disk.
#[derive(Debug)]
pub struct Found {
    /// Intact entries.
    pub log: CopyLog,
    /// The seal.
    pub sealed: Epoch,
    /// The floor of the commit point.
    pub commit: Lsn,
    /// It says that entries are lost.
    pub damaged: bool,
    /// It says that the last batch is in doubt, up to there if it can tell.
    pub doubt: Option<Option<Lsn>>,
}

impl Oracle {
    /// A process has read its disk.
    ///
    /// # Errors
    /// Something durable is missing, and recovery does not say so.
    pub fn opened(&mut self, key: CopyKey, found: Found) -> Check {
        let copy = self.copies.entry(key).or_default();
        let (had, has) = (copy.durable.last(), found.log.last());
        let covered = found.damaged
            || copy.tainted
            || has >= had
            || found.doubt.is_some_and(|to| to.is_none_or(|to| to >= had));
        if !covered {
            return broken(
                Property::DamageIsNotAbsence,
                format!(
                    "{key:?}: entries up to {had} were durable, recovery ends at {has} and reports no loss"
                ),
            );
        }
        if found.damaged && !copy.tainted {
            return broken(
                Property::DamageIsNotAbsence,
                format!("{key:?}: recovery reports damage where no fault was injected"),
            );
        }
        for info in copy.durable.entries() {
            if let Some(other) = found.log.get(info.point.lsn)
                && !other.same(info)
            {
                return broken(
                    Property::DamageIsNotAbsence,
                    format!(
                        "{key:?}: {} was durable, recovery found {}",
                        info.point, other.point
                    ),
                );
            }
        }
        if found.sealed < copy.sealed {
            return broken(
                Property::Monotonic,
                format!("{key:?}: sealed at {}, found {}", copy.sealed, found.sealed),
            );
        }
        copy.sealed = found.sealed;
        copy.reopened(found.log, found.commit);
        Ok(())
    }

    /// A member answers a seal.
    ///
    /// # Errors
    /// It claims an intact log that lacks what was durable.
    pub fn check_seal_answer(&self, key: CopyKey, answer: &SealAnswer) -> Check {
        let Some(copy) = self.copies.get(&key) else {
            return Ok(());
        };
        let clear = !answer.damaged && !answer.rebuilding && answer.doubt.is_none();
        if clear && answer.last.lsn < copy.durable.last() {
            return broken(
                Property::DamageIsNotAbsence,
                format!(
                    "{key:?} answers a seal with {}, durable up to {}",
                    answer.last,
                    copy.durable.last()
                ),
            );
        }
        if copy.sealed < answer.epoch {
            return broken(
                Property::Monotonic,
                format!(
                    "{key:?} answers a seal at {} that its disk does not have",
                    answer.epoch
                ),
            );
        }
        Ok(())
    }
}
