//! Who may write to a block volume: attachments, and what a takeover voids (R9.3).
//!
//! **Invariant**: an entry of a session commits only while the attachment that the session was opened under is the last one of
//! the log. In the order of events that would break it, A holds the volume and has sent a write that is not answered; B takes the
//! volume over and writes; then A's write reaches a primary and overwrites what B wrote. Three rules prevent it, by the way that
//! the write takes:
//!
//! * *On the connection that A has*: from the moment an `Attach` entry is ordered, connections of before are fenced. The entry
//!   lies in the log before anything of B.
//! * *On a new connection while B holds the volume*: A's name is not the holder's, so it is refused.
//! * *On a new connection once B has let the volume go*: A's session belongs to an attachment that is over, and no other
//!   attachment revives it. A begins a new session, under which nothing is sent again.
//!
//! On a volume that was created as shared all names are one: there is one attachment for whoever comes.
//!
//! What somebody else's entry ends is told once that entry is committed. The order of events otherwise: B takes the volume over from A;
//! the primary fences A, tells it so, and dies; B's entry is lost. A's handle has ended for a takeover that never was, and nobody holds
//! the volume. The same goes for the opening that supersedes a connection of its session.

use mainstay_storage::EntryKind;
use mainstay_storage::format::encode_unstamped;
use mainstay_types::{Lsn, SessionId, VolumeKind};

use crate::event::{Attachment, ConnId, OpResult, Refusal, Token};
use crate::sessions::Attached;
use crate::volume::Volume;

/// Holder of a shared volume.
const SHARED: &str = "shared";

/// Longest name of an attachment. It is part of an entry, of every checkpoint, and of what others are refused with.
pub const ATTACHMENT_NAME_BYTES_MAX: usize = 256;

/// Whether a session may be opened so at all, whatever the state is.
///
/// # Errors
/// [`Refusal::BadRequest`].
pub fn check_opening(session: SessionId, attachment: Option<&Attachment>) -> Result<(), Refusal> {
    // Entries of session zero are the primary's own.
    if session == SessionId(0) {
        return Err(Refusal::BadRequest(
            "session 0 stands for none: choose another number, at random",
        ));
    }
    if attachment.is_some_and(|wanted| wanted.name.len() > ATTACHMENT_NAME_BYTES_MAX) {
        return Err(Refusal::BadRequest(
            "the name of an attachment is at most 256 bytes long",
        ));
    }
    Ok(())
}

impl Volume {
    /// Takes the volume for `session`, or joins the holder of the same name. Answers where the attachment is in the log.
    pub(crate) fn take_attachment(
        &mut self,
        session: SessionId,
        wanted: Attachment,
    ) -> Result<Lsn, Refusal> {
        // A log is not held: an attachment would end the session of every writer.
        if self.spec.kind == VolumeKind::Log {
            return Err(Refusal::WrongKind);
        }
        let shared = self
            .member
            .register()
            .is_some_and(|register| register.policy.shared);
        let name = if shared { SHARED } else { &wanted.name };
        let holder = self.clients.attached.as_ref();
        let joined = holder.filter(|holder| holder.name == *name);
        match (holder, joined) {
            (Some(other), None) if !wanted.takeover => {
                let by = other.name.clone();
                return Err(Refusal::Attached { by });
            }
            _ => {}
        }
        let joined = joined.map(|holder| holder.lsn);
        let before = self.attachment_of(session).filter(|lsn| *lsn != Lsn::ZERO);
        if before.is_some() && before != joined {
            return Err(Refusal::AttachmentEnded);
        }
        Ok(joined.unwrap_or_else(|| self.attach(session, name.to_owned())))
    }

    /// Where the attachment is that a known session writes under; zero for none.
    pub(crate) fn attachment_of(&self, session: SessionId) -> Option<Lsn> {
        let proposed = self.clients.proposed.get(&session);
        let table = self.sessions.get(session);
        proposed
            .map(|proposed| proposed.attachment)
            .or_else(|| table.map(|known| known.attachment))
    }

    /// The end of `session` is ordered. If that lets the volume go, whoever comes behind it attaches anew: its session would else
    /// belong to no attachment, and be fenced by none.
    pub(crate) fn leave_attachment(&mut self, session: SessionId) {
        let left = self.attachment_of(session);
        self.clients.closing.insert(session);
        let Some(holder) = self.clients.attached.as_ref() else {
            return;
        };
        let known = self.sessions.ids().chain(self.clients.proposed.keys());
        let mut others = known.filter(|id| !self.clients.closing.contains(id));
        let held = others.any(|id| self.attachment_of(*id) == Some(holder.lsn));
        if left == Some(holder.lsn) && !held {
            self.clients.attached = None;
        }
    }

    /// Keeps a refusal for what another connection had ordered until that is committed. It is in the log by now, wherever: so it is once
    /// the last entry is that has been ordered.
    pub(crate) fn refuse_for_another(
        &mut self,
        conn: ConnId,
        token: Token,
        refusal: Refusal,
    ) -> Result<Option<OpResult>, Refusal> {
        match refusal {
            Refusal::Attached { .. } | Refusal::AttachmentEnded | Refusal::Superseded { .. } => {
                let because = self.next_lsn().prev();
                self.refuse_behind(conn, token, because, refusal)
            }
            other => Err(other),
        }
    }

    /// From this entry on, whoever was attached before writes nothing any more: their sessions end here.
    fn attach(&mut self, session: SessionId, name: String) -> Lsn {
        let entry = encode_unstamped(EntryKind::Attach, session, 0, 0, 0, name.as_bytes());
        let lsn = self.next_lsn();
        self.clients.stage(entry);
        self.clients.attached = Some(Attached { name, lsn });
        self.clients.fence_all();
        lsn
    }
}
