//! Register rounds that operators' requests run: create, delete, look up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use mainstay_replication::message::{Message, RegisterMessage, RoundResult};
use mainstay_replication::{Mistakes, Round};
use mainstay_types::{NodeId, Register, RegisterId, VolumeId};
use tokio::sync::mpsc;

use super::{Node, clock};

type Answer = (NodeId, RegisterMessage);

type Waiting = BTreeMap<u64, (VolumeId, mpsc::UnboundedSender<Answer>)>;

/// Rounds under way.
#[derive(Debug, Default)]
pub struct Rounds {
    next: AtomicU64,
    waiting: Mutex<Waiting>,
}

/// A round of [`Rounds`]. Ends with whoever runs it, also if the request for it is given up.
#[derive(Debug)]
struct UnderWay<'a> {
    rounds: &'a Rounds,
    id: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.rounds.waiting().remove(&self.id);
    }
}

/// The witnesses did not settle it in time. Whether a change was made is unknown; read the register to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no majority of the witnesses answered within {0:?}; check that they run and can be reached"
)]
pub struct NoWitnesses(pub Duration);

impl Rounds {
    /// Takes part in a round: witnesses' answers about `volume` are received until the guard is dropped.
    fn enter(&self, volume: VolumeId) -> (UnderWay<'_>, mpsc::UnboundedReceiver<Answer>) {
        let (sender, answers) = mpsc::unbounded_channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.waiting().insert(id, (volume, sender));
        (UnderWay { rounds: self, id }, answers)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting
            .lock()
            .expect("no panic while the lock is held")
    }

    /// A witness's answer, for whichever round it belongs to.
    pub fn answer(&self, from: NodeId, volume: VolumeId, body: &RegisterMessage) {
        let waiting = self.waiting();
        for (_, sender) in waiting.values().filter(|(wanted, _)| *wanted == volume) {
            let _ended = sender.send((from, body.clone()));
        }
    }
}

/// The decided value of a volume's register; `None` if there never was one.
///
/// # Errors
/// No majority of the witnesses answered within `patience`.
pub async fn read(
    node: &Arc<Node>,
    volume: VolumeId,
    patience: Duration,
) -> Result<Option<Register>, NoWitnesses> {
    let witnesses = node.witnesses();
    let retry = node.settings.lease.retry * 2;
    let round = Round::read(
        clock::mono(),
        &witnesses,
        node.random(),
        retry,
        Mistakes::NONE,
    );
    match run(node, volume, round, patience).await? {
        RoundResult::Decided(register) | RoundResult::Conflict(register) => {
            node.learn((*register).clone());
            Ok(Some(*register))
        }
        RoundResult::Absent => Ok(None),
    }
}

/// Replaces the value with id `expect` by `new`.
///
/// # Errors
/// No majority of the witnesses answered within `patience`: whether the change was made is unknown.
pub async fn swap(
    node: &Arc<Node>,
    expect: RegisterId,
    new: Register,
    patience: Duration,
) -> Result<RoundResult, NoWitnesses> {
    let volume = new.spec.name.id();
    let witnesses = node.witnesses();
    let retry = node.settings.lease.retry * 2;
    let round = Round::swap(
        clock::mono(),
        &witnesses,
        node.random(),
        retry,
        Mistakes::NONE,
        expect,
        new,
    );
    run(node, volume, round, patience).await
}

async fn run(
    node: &Arc<Node>,
    volume: VolumeId,
    mut round: Round,
    patience: Duration,
) -> Result<RoundResult, NoWitnesses> {
    let (_under_way, mut answers) = node.rounds.enter(volume);
    let give_up = clock::mono() + patience;
    loop {
        round.set_witnesses(clock::mono(), &node.witnesses());
        while let Some((to, body)) = round.poll_send() {
            node.send(to, Message::Register { volume, body }, Bytes::new());
        }
        if clock::mono() >= give_up {
            return Err(NoWitnesses(patience));
        }
        let wait = clock::until(round.deadline().min(give_up), patience);
        match tokio::time::timeout(wait, answers.recv()).await {
            Ok(Some((from, body))) => {
                if let Some(result) = round.handle(clock::mono(), from, body) {
                    return Ok(result);
                }
            }
            Ok(None) | Err(_) => round.tick(clock::mono()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_is_given_up_waits_for_no_answers() {
        let rounds = Rounds::default();
        let volume = VolumeId(7);
        let (first, _answers) = rounds.enter(volume);
        let (second, _answers) = rounds.enter(volume);
        drop(first);
        assert_eq!(rounds.waiting().keys().copied().collect::<Vec<_>>(), [1]);
        drop(second);
        assert!(rounds.waiting().is_empty());
    }
}
