//! Writers' tokens: of a log with a single writer, the newest one fences all before it.
//!
//! A token is a number greater than zero that a writer gives when it opens its session; whoever starts a new writer gives it a
//! greater one. The greatest token ever given is part of the replicated state: it is raised by the writer's `SessionOpen` entry, which is
//! committed before the open is answered.
//!
//! **Invariant**: behind the entry that raised the token to T, the log holds no record of a writer with a token below T, or with
//! none. The order of events that would break it: A, with token 1, has records queued at the primary and in its own buffers; B opens
//! with token 2, reads the log to its end and begins to write; then what A had queued is appended behind what B has read. So the
//! primary takes nothing of older tokens from the moment at which it orders B's entry: what of A lies in the log before that entry
//! stands, and B, which hears of its open only when that entry is committed, reads all of it.
//!
//! What is refused because of an entry that is not committed yet waits for that entry: if a failover takes it away, the token was never
//! raised, and nobody may be told of it.

use mainstay_replication::Mistake;
use mainstay_types::{Lsn, SessionId, VolumeKind};

use crate::clients::Clients;
use crate::event::{ConnId, OpResult, Refusal, Token};
use crate::volume::Volume;

/// The newest token as it will be once everything proposed is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Fence {
    pub(crate) token: u64,
    /// The entry that raised it; zero if that is of an earlier epoch.
    pub(crate) lsn: Lsn,
}

impl Clients {
    /// What keeps a writer with `token` from appending, if anything does.
    pub(crate) fn fence_over(&self, token: u64) -> Option<Fence> {
        (token < self.fence.token).then_some(self.fence)
    }
}

impl Volume {
    /// Whether a session may be opened with `token`. One that is known may be, whatever its token: it learns what became of what it
    /// sent, and appends nothing more.
    pub(crate) fn check_token(
        &self,
        session: SessionId,
        token: u64,
    ) -> Result<Option<Fence>, Refusal> {
        if token == 0 {
            return Ok(None);
        }
        if self.spec.kind != VolumeKind::Log {
            return Err(Refusal::WrongKind);
        }
        let known =
            self.sessions.get(session).is_some() || self.clients.proposed.contains_key(&session);
        Ok(self.clients.fence_over(token).filter(|_| !known))
    }

    /// The next entry staged raises the token, if `token` is a newer one.
    pub(crate) fn raise_token(&mut self, token: u64) {
        if token > self.clients.fence.token {
            let lsn = self.next_lsn();
            self.clients.fence = Fence { token, lsn };
        }
    }

    /// Refuses once the entry that fences is committed.
    pub(crate) fn refuse_fenced(
        &mut self,
        conn: ConnId,
        token: Token,
        fence: Fence,
    ) -> Result<Option<OpResult>, Refusal> {
        let refusal = Refusal::FencedToken {
            current: fence.token,
        };
        if self.config.member.mistakes.has(Mistake::TokenToldEarly) {
            return Err(refusal);
        }
        self.refuse_behind(conn, token, fence.lsn, refusal)
    }
}
