//! Property 10: nothing of a session commits once the attachment is over that the session was opened under.
//!
//! Read from the committed log alone: an `Attach` begins an attachment, a session belongs to the one in which its first opening
//! lies. Sessions are opened with an attachment on block volumes, and never closed, in the simulator.

use std::collections::BTreeMap;

use mainstay_storage::EntryKind;
use mainstay_types::{Lsn, SessionId};

use super::{Check, EntryInfo, Property, broken};

/// What the committed log says of attachments.
#[derive(Debug, Default)]
pub(super) struct Attachments {
    /// The last `Attach`; zero before the first.
    present: Lsn,
    of: BTreeMap<SessionId, Lsn>,
}

impl Attachments {
    /// The next entry of a block volume commits.
    pub(super) fn committed(&mut self, info: &EntryInfo) -> Check {
        match info.kind {
            EntryKind::Attach => self.present = info.point.lsn,
            EntryKind::SessionOpen => {
                self.of.entry(info.session).or_insert(self.present);
            }
            EntryKind::Write | EntryKind::Trim | EntryKind::Zeroes => {
                let under = self.of.get(&info.session).copied();
                if under != Some(self.present) {
                    return broken(
                        Property::Attachments,
                        format!(
                            "{} of {} commits under the attachment at {}, and its session belongs to that at {under:?}",
                            info.point, info.session, self.present
                        ),
                    );
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry;
    use super::*;

    #[test]
    fn a_write_of_an_attachment_that_is_over_is_found() {
        use EntryKind::{Attach, SessionOpen, Write};
        let run = |entries: &[(EntryKind, u64)]| {
            let mut attachments = Attachments::default();
            let mut lsns = 1..;
            entries.iter().try_for_each(|(kind, session)| {
                let lsn = lsns.next().expect("endless");
                attachments.committed(&entry(lsn, *kind, *session))
            })
        };
        let taken = [
            (Attach, 1),
            (SessionOpen, 1),
            (Write, 1),
            (Attach, 2),
            (SessionOpen, 2),
            (Write, 2),
        ];
        assert_eq!(run(&taken), Ok(()));
        // On the connection of before, on a new one, and on a new one under an attachment of its own.
        for behind in [
            &[(Write, 1)][..],
            &[(SessionOpen, 1), (Write, 1)],
            &[(Attach, 1), (SessionOpen, 1), (Write, 1)],
        ] {
            assert!(run(&[&taken, behind].concat()).is_err(), "{behind:?}");
        }
    }
}
