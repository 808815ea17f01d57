//! How a session ends: by itself, given up by its handle, or too old to be forwarded; and what everybody is told who still waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::{Command, Driver, Exit, lost};
use crate::Refusal;
use crate::event::ClientEvent;
use crate::inflight::Failed;
use crate::session::let_go;

/// How long what an abandoned handle has sent may still be answered.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

impl Driver {
    /// Whether a handle that was abandoned has heard all that it may still hear.
    pub(super) fn given_up(&self) -> Option<Exit> {
        let (since, _) = self.abandoned?;
        let settled = self.inflight.unanswered() == 0 && self.queries.is_empty();
        (settled || since.elapsed() >= LAST_ANSWERS).then_some(Exit::Over(Refusal::Closed))
    }

    /// Whether a handle that forwards may send nothing of what it holds any more. To be asked before anything is sent.
    pub(super) fn too_old(&mut self) -> Option<Exit> {
        let (forwarding, age_max) = self.forwarding.as_mut()?;
        if !forwarding.ran() {
            return Some(Exit::Over(Refusal::StoodStill));
        }
        let oldest = self.inflight.oldest_queued()?;
        (oldest.elapsed() >= *age_max).then_some(Exit::Over(Refusal::NotServed))
    }

    /// Whether the primary was silent for so long that it takes nothing from this stream any more.
    pub(super) fn silent(&self) -> Option<Exit> {
        let (forwarding, _) = self.forwarding.as_ref()?;
        (self.last_reply.elapsed() >= forwarding.silence).then(|| lost("the primary was silent"))
    }

    /// A handle that forwards ended by itself. What was sent may be under way for as long as the primary takes it; only then it is
    /// told how it ended.
    pub(super) async fn give_up(&mut self, refusal: &Refusal) {
        let Some((forwarding, _)) = &self.forwarding else {
            return;
        };
        match (refusal, self.inflight.last_sent()) {
            // Also after a standstill: what was handed to the stream just before it may leave this process only now, and its peer,
            // once told, sends it again elsewhere, and newer data behind it.
            (Refusal::NotServed | Refusal::StoodStill, Some(sent)) => {
                tokio::time::sleep_until(sent + forwarding.silence).await;
            }
            // What was sent before the history was replaced has no place in the new one.
            (Refusal::NotServed | Refusal::StoodStill | Refusal::HistoryReplaced { .. }, _) => {}
            _ => return,
        }
        self.let_go();
    }

    /// Nobody is left who would close the session of a handle that forwards: its peer has other ways to the volume, and must not find it
    /// held. Nor one that holds a volume and was to be closed: `close` was cancelled, or ran out of time.
    pub(super) fn let_go(&self) {
        let forwarding = self.forwarding.as_ref().map(|(_, waited)| *waited);
        let holds = self.opening.attachment.is_some();
        if let Some(waited) = forwarding.or_else(|| self.close_within.filter(|_| holds)) {
            let _by_itself = self.let_go_within(waited);
        }
    }

    pub(super) fn let_go_within(&self, waited: Duration) -> JoinHandle<()> {
        let (cluster, opening) = (Arc::clone(&self.cluster), self.opening.clone());
        tokio::spawn(let_go(cluster, opening, waited))
    }

    /// The session is over: answers everything with that until no handle is left. Who closes it hears when it is let go.
    pub(super) async fn refuse_all(
        mut self,
        refusal: Refusal,
        mut letting_go: Option<JoinHandle<()>>,
    ) {
        if refusal != Refusal::Closed {
            self.publish(|volume| ClientEvent::SessionEnded {
                volume,
                reason: refusal.to_string(),
            });
        }
        self.over.send_replace(Some(refusal.clone()));
        self.inflight.end(&refusal);
        for (_, query) in std::mem::take(&mut self.queries) {
            let _gone = query.reply.send(Err(refusal.clone()));
        }
        loop {
            if letting_go.is_none() {
                for closer in std::mem::take(&mut self.closers) {
                    let _gone = closer.send(Err(refusal.clone()));
                }
            }
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.refuse(command, &refusal),
                    None => return,
                },
                () = ended(&mut letting_go) => letting_go = None,
            }
        }
    }

    fn refuse(&mut self, command: Command, refusal: &Refusal) {
        match command {
            Command::Mutate { reply, .. } => {
                let _gone = reply.send(Err(Failed::Refused(refusal.clone())));
            }
            Command::Query { reply, .. } => {
                let _gone = reply.send(Err(refusal.clone()));
            }
            Command::Close { reply, .. } => self.closers.push(reply),
            Command::Outcome { .. } => {
                self.handle_command(command, None);
            }
            Command::Abandon { .. } => {}
        }
    }
}

/// Resolves when a task has ended; never, if there is none.
async fn ended(task: &mut Option<JoinHandle<()>>) {
    match task {
        Some(task) => {
            let _ended = task.await;
        }
        None => std::future::pending().await,
    }
}
