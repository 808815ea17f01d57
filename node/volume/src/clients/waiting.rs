//! Operations that wait before they are taken: for this node to be primary, for memory, for the end of a session.

use mainstay_types::SessionId;

use crate::event::{ClientOp, ConnId, Now, OpResult, Token};
use crate::volume::Volume;

impl Volume {
    /// Keeps `op` until it is decided whether this node is primary. If too many are kept, its client is sent away to come back.
    pub(super) fn park(&mut self, conn: ConnId, token: Token, op: ClientOp) {
        if self.clients.parked.len() >= self.config.parked_max {
            // All that the client has under way comes again, in order, on another connection. Nothing of this one is taken until then:
            // a higher number that got in first would have this one refused.
            self.clients.conns.remove(&conn);
            let refusal = self.not_primary();
            return self.reply(conn, token, OpResult::Refused(refusal));
        }
        self.clients.parked.push_back((conn, token, op));
    }

    pub(crate) fn unpark(&mut self, now: Now) {
        for (conn, token, op) in std::mem::take(&mut self.clients.parked) {
            self.handle_client(now, conn, token, op);
        }
    }

    /// Takes what waited for memory or for copies that were behind, or for the end of a session that has come.
    ///
    /// The end of a session is why its next connection waits. The order of events that would lose a write: a client sends its last
    /// write and the end of its session, and none of it is committed yet; the connection breaks; the client opens the session, which
    /// is known, to hear what became of the write; the end is committed and makes the session unknown; the connection begins
    /// it anew behind that, with nothing in its table, and the write, which is committed, is told to have been refused, or taken again.
    pub(crate) fn take_up(&mut self, now: Now) {
        // While a switchover is under way, what was here first would be kept behind what came later.
        if !self.member.accepts() {
            return;
        }
        for (conn, token, op) in std::mem::take(&mut self.clients.ending) {
            match op.opens() {
                Some(session) if self.clients.closing.contains(&session) => {
                    self.clients.ending.push_back((conn, token, op));
                }
                _ => self.handle_client(now, conn, token, op),
            }
        }
        if !self.mutations_wait() {
            for (conn, token, op) in std::mem::take(&mut self.clients.no_room) {
                self.handle_client(now, conn, token, op);
            }
        }
    }

    /// This node is not primary any more: what waits has an outcome that others will tell.
    pub(crate) fn interrupt_clients(&mut self) {
        let clients = std::mem::take(&mut self.clients);
        self.memory.forget_ordered();
        for (_, waiter) in clients.waiting {
            self.reply(waiter.conn, waiter.token, OpResult::Interrupted);
        }
        let refusal = self.not_primary();
        let waiting = clients.parked.into_iter().chain(clients.no_room);
        for (conn, token, _) in waiting.chain(clients.ending) {
            self.reply(conn, token, OpResult::Refused(refusal.clone()));
        }
        for id in self.reads.keys().copied().collect::<Vec<_>>() {
            self.refuse_read(id);
        }
    }
}

impl ClientOp {
    /// The session that it opens, if it opens one.
    pub(super) fn opens(&self) -> Option<SessionId> {
        match self {
            Self::Open { session, .. } => Some(*session),
            _ => None,
        }
    }
}
