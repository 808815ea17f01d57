//! Property 6: what a client sees is committed, and stays.
//!
//! That it stays follows from properties 1 and 2, as everything seen is compared with the one committed history.

use mainstay_types::Lsn;

use super::{Check, EntryInfo, Oracle, Property, broken};

impl Oracle {
    /// A client was shown these entries.
    ///
    /// # Errors
    /// One of them is not committed, or is not the one that is.
    pub fn check_shown(&self, entries: &[EntryInfo]) -> Check {
        for info in entries {
            if self.committed(info.point.lsn).is_none_or(|c| !c.same(info)) {
                return broken(
                    Property::NoPhantom,
                    format!("a read shows {}, which is not committed", info.point),
                );
            }
        }
        Ok(())
    }

    /// A client was told of a commit point.
    ///
    /// # Errors
    /// Nobody has committed that far.
    pub fn check_position(&self, commit: Lsn) -> Check {
        if commit > self.last_committed() {
            return broken(
                Property::NoPhantom,
                format!(
                    "a client is told of commit point {commit}, committed is {}",
                    self.last_committed()
                ),
            );
        }
        self.ops.batches.check_end(commit)
    }
}
