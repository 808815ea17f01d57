//! Property 7: seals, commit points and register versions never fall, within a process and across restarts.
//!
//! Seals across restarts are compared in `damage.rs`, where a disk is read; here, what one process says.

use mainstay_replication::{Member, WitnessRecord};

use super::{Check, CopyKey, Oracle, Property, broken};

impl Oracle {
    pub(super) fn check_monotonic(&mut self, key: CopyKey, member: &Member) -> Check {
        let Some(copy) = self.copies.get_mut(&key) else {
            return Ok(());
        };
        if member.commit() < copy.commit_seen {
            return broken(
                Property::Monotonic,
                format!(
                    "{key:?}: commit point fell from {} to {}",
                    copy.commit_seen,
                    member.commit()
                ),
            );
        }
        if member.sealed() > copy.sealed {
            return broken(
                Property::Monotonic,
                format!(
                    "{key:?} counts {} as sealed, its disk {}",
                    member.sealed(),
                    copy.sealed
                ),
            );
        }
        if let Some(register) = member.register() {
            let seen = (register.epoch, register.version);
            if seen < copy.register_seen {
                return broken(
                    Property::Monotonic,
                    format!(
                        "{key:?}: register fell from {:?} to {seen:?}",
                        copy.register_seen
                    ),
                );
            }
            copy.register_seen = seen;
        }
        Ok(())
    }
}

/// A witness's record replaces the one before.
///
/// # Errors
/// Something fell.
pub fn check_record(before: &WitnessRecord, after: &WitnessRecord) -> Check {
    let accepted = |record: &WitnessRecord| record.accepted.as_ref().map(|(ballot, _)| *ballot);
    let fell = after.promised < before.promised
        || after.fenced < before.fenced
        || accepted(after) < accepted(before);
    if fell {
        return broken(
            Property::Monotonic,
            format!("a witness's record fell from {before:?} to {after:?}"),
        );
    }
    Ok(())
}
