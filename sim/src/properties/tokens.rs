//! Property 12: behind the entry that raised a log's token, no record of an older writer commits, nor of one without a token; and
//! nobody is told of a token that was not raised.

use std::collections::BTreeMap;

use mainstay_storage::EntryKind;
use mainstay_types::SessionId;

use super::{Check, EntryInfo, Oracle, Property, broken};

/// What the committed log says of tokens.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    greatest: u64,
    of: BTreeMap<SessionId, u64>,
}

impl Tokens {
    /// The next entry of a log commits.
    pub(super) fn committed(&mut self, info: &EntryInfo) -> Check {
        match info.kind {
            EntryKind::SessionOpen => {
                self.greatest = self.greatest.max(info.arg);
                self.of.insert(info.session, info.arg);
            }
            EntryKind::Record => {
                let token = self.of.get(&info.session).copied().unwrap_or(0);
                if token < self.greatest {
                    return broken(
                        Property::Tokens,
                        format!(
                            "{} of {} commits with token {token} behind token {}",
                            info.point, info.session, self.greatest
                        ),
                    );
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Oracle {
    /// A client is told that a writer with this token has the log.
    ///
    /// # Errors
    /// It was never raised so far.
    pub fn token_told(&self, current: u64) -> Check {
        let greatest = self.ops.tokens.greatest;
        if current > greatest {
            return broken(
                Property::Tokens,
                format!(
                    "a client is told of token {current}, the greatest one committed is {greatest}"
                ),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry;
    use super::*;

    #[test]
    fn a_record_of_an_older_writer_is_found() {
        use EntryKind::{Record, SessionOpen};
        let run = |entries: &[(EntryKind, u64, u64)]| {
            let mut tokens = Tokens::default();
            let mut lsns = 1..;
            entries.iter().try_for_each(|(kind, session, arg)| {
                let lsn = lsns.next().expect("endless");
                tokens.committed(&EntryInfo {
                    arg: *arg,
                    ..entry(lsn, *kind, *session)
                })
            })
        };
        let open = |session, token| (SessionOpen, session, token);
        let write = |session| (Record, session, 999);
        assert_eq!(
            run(&[open(1, 0), write(1), open(2, 5), write(2), open(1, 0)]),
            Ok(())
        );
        assert_eq!(run(&[open(1, 5), open(2, 5), write(1), write(2)]), Ok(()));
        assert!(run(&[open(1, 4), open(2, 5), write(1)]).is_err());
        assert!(run(&[open(1, 0), open(2, 5), write(1)]).is_err());
    }
}
