//! The external fence: a command of the operator's that makes sure that a process can do nothing any more, whatever it
//! believes. Rules R6.6 and *Forced*, traps C7 and M9. Safety of the store does not need it; what a primary does outside of
//! the store may.
//!
//! Decided here: whether, when and against whom it runs, and what its result is worth. The driver runs it and answers once.
//!
//! * A success is remembered under the process that it was meant for. An instance is one start of a process and never comes
//!   back, so what is gone stays gone: a later attempt, or another volume of the same primary, does not run it again.
//! * A failure ends the attempt and the register stays as it is. The next attempt begins after a pause that grows.
//! * All witnesses that took part in an attempt are configured alike, so they take turns: a machine is not struck by each.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstay_types::{
    Epoch, Instance, MonoTime, NodeId, PrimaryId, Register, VolumeId, VolumeName,
};

use super::choose::Answers;
use super::coordinator::{Coordinator, Step};
use super::forced::ForceRefused;
use super::{Witness, WitnessEvent, WitnessOutput};

/// A command to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalFence {
    /// Names the answer.
    pub id: u64,
    /// The volume for which it runs.
    pub volume: VolumeId,
    /// Its name.
    pub name: VolumeName,
    /// The epoch to be ended.
    pub epoch: Epoch,
    /// The machine.
    pub node: NodeId,
    /// The process that must be gone; `None` if it is not known which one runs there.
    pub instance: Option<Instance>,
}

/// How a command ended: what it wrote, either way.
pub type ExternalFenceResult = Result<String, String>;

/// Who must be gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    node: NodeId,
    /// `None`: whatever runs there. Such a success is worth something in its own attempt only.
    instance: Option<Instance>,
}

/// One command that an attempt waits for.
#[derive(Debug)]
pub(super) struct Wait {
    target: Target,
    /// The command; none until it is this witness's turn.
    id: Option<u64>,
    outcome: Option<ExternalFenceResult>,
}

/// What this witness knows about external fences. Volatile: a restarted witness may run one again.
#[derive(Debug, Default)]
pub(super) struct ExternalFences {
    last_id: u64,
    running: BTreeMap<u64, Running>,
    /// Registered primaries that are gone for good, and what the command wrote.
    gone: BTreeMap<Instance, String>,
    failed: BTreeMap<Instance, Failures>,
}

#[derive(Debug)]
struct Running {
    target: Target,
    /// Without an answer by then it counts as failed. The driver ends a command before.
    until: MonoTime,
}

#[derive(Debug, Default)]
struct Failures {
    count: u32,
    /// No attempt that needs the same again begins before.
    pause_until: MonoTime,
}

impl Witness {
    /// Whether the registered primary must be fenced from outside before `chosen` may take its place.
    ///
    /// Not if it is chosen itself, or if a later process of its machine is: the command would strike the very node that
    /// shall serve (M9), and a process that holds the data directory proves that the one before it has ended. Not either if it
    /// released the epoch itself: it has stopped serving in order, and nobody wants a planned switchover to cut the power.
    pub(super) fn needs_external_fence(
        &self,
        volume: VolumeId,
        register: &Register,
        chosen: &PrimaryId,
    ) -> Option<Target> {
        let old = register.primary;
        let needed = self.strikes(volume, register) && chosen.node != old.node;
        needed.then_some(Target {
            node: old.node,
            instance: Some(old.instance),
        })
    }

    /// Whether to choose any other node than the registered primary's costs an external fence.
    pub(super) fn strikes(&self, volume: VolumeId, register: &Register) -> bool {
        let (epoch, instance) = (register.epoch, register.primary.instance);
        let released = self
            .grants
            .get(&volume)
            .is_some_and(|grants| grants.has_released(epoch, instance));
        let gone = self.external.gone.contains_key(&instance);
        self.config.external_fence.is_some() && !released && !gone
    }

    /// What was said when the registered primary was fenced from outside, for the certificate of its replacement.
    pub(super) fn externally_gone(
        &self,
        register: &Register,
        chosen: &PrimaryId,
    ) -> BTreeMap<NodeId, String> {
        let old = register.primary;
        let output = self.external.gone.get(&old.instance);
        let output = output.filter(|_| chosen.node != old.node);
        output
            .map(|text| (old.node, text.clone()))
            .into_iter()
            .collect()
    }

    /// Before this time no attempt to replace the registered primary begins: its external fence has just failed.
    pub(super) fn external_pause(&self, register: &Register) -> MonoTime {
        let failed = self.external.failed.get(&register.primary.instance);
        failed.map_or(MonoTime::ZERO, |failures| failures.pause_until)
    }

    /// Fences `targets` from outside; the members are sealed again afterwards.
    pub(super) fn start_external(
        &mut self,
        now: MonoTime,
        volume: VolumeId,
        c: &mut Coordinator,
        targets: Vec<Target>,
    ) -> bool {
        let Step::Sealing {
            register, epoch, ..
        } = &c.step
        else {
            return true;
        };
        let timeout = self.config.external_fence.unwrap_or_default();
        let turns = match targets.first() {
            // An operator chose this witness.
            _ if c.force.is_some() => 0,
            Some(target) => self.external_turn(volume, c, target.node),
            None => 0,
        };
        c.step = Step::FencingExternally {
            register: register.clone(),
            epoch: *epoch,
            turn: now + timeout * turns,
            waits: targets
                .into_iter()
                .map(|target| Wait {
                    target,
                    id: None,
                    outcome: None,
                })
                .collect(),
        };
        // A command that runs is not cut short: it ends by itself, and each has a time of its own.
        c.give_up = MonoTime::MAX;
        c.resend = MonoTime::MAX;
        self.step(now, volume, c)
    }

    /// How many witnesses of this attempt come before this one. A witness on the machine to be fenced comes last.
    fn external_turn(&self, volume: VolumeId, c: &Coordinator, node: NodeId) -> u32 {
        let order = |witness: NodeId| (witness == node, self.rank(volume, c.epoch, witness));
        let own = order(self.me);
        let before = c.fenced.iter().filter(|witness| order(**witness) < own);
        u32::try_from(before.count()).unwrap_or(u32::MAX)
    }

    pub(super) fn step_external(
        &mut self,
        now: MonoTime,
        volume: VolumeId,
        c: &mut Coordinator,
    ) -> bool {
        let Step::FencingExternally {
            register,
            turn,
            waits,
            ..
        } = &mut c.step
        else {
            return true;
        };
        if now < *turn {
            self.wake_at(*turn);
            return true;
        }
        for wait in waits.iter_mut().filter(|wait| wait.id.is_none()) {
            self.begin_external(now, volume, register, wait);
        }
        let mut ended = BTreeMap::new();
        for wait in waits {
            let Some(outcome) = &wait.outcome else {
                return true;
            };
            ended.insert(wait.target.node, outcome.clone());
        }
        let failed = ended
            .iter()
            .find_map(|(node, outcome)| Some((*node, outcome.as_ref().err()?.clone())));
        if let Some((node, output)) = failed {
            self.external_failed(volume, c, node, output);
            return false;
        }
        let succeeded = ended
            .into_iter()
            .filter_map(|(node, outcome)| Some((node, outcome.ok()?)));
        c.external.extend(succeeded);
        self.seal_again(now, volume, c)
    }

    /// Starts a command, unless the same process is being fenced, or was.
    fn begin_external(
        &mut self,
        now: MonoTime,
        volume: VolumeId,
        register: &Register,
        wait: &mut Wait,
    ) {
        let target = wait.target;
        let external = &mut self.external;
        if let Some(instance) = target.instance {
            if let Some(output) = external.gone.get(&instance) {
                wait.outcome = Some(Ok(output.clone()));
                return;
            }
            let same = |(_, running): &(&u64, &Running)| running.target == target;
            if let Some((id, _)) = external.running.iter().find(same) {
                wait.id = Some(*id);
                return;
            }
        }
        external.last_id += 1;
        let id = external.last_id;
        wait.id = Some(id);
        let until = now + self.config.external_fence.unwrap_or_default() + self.config.attempt;
        external.running.insert(id, Running { target, until });
        self.out
            .push_back(WitnessOutput::ExternalFence(ExternalFence {
                id,
                volume,
                name: register.spec.name.clone(),
                epoch: register.epoch,
                node: target.node,
                instance: target.instance,
            }));
    }

    /// The seals of before may be overtaken: others did not stand still while the command ran.
    fn seal_again(&mut self, now: MonoTime, volume: VolumeId, c: &mut Coordinator) -> bool {
        let Step::FencingExternally {
            register, epoch, ..
        } = &c.step
        else {
            return true;
        };
        let seen = self.greatest_seal(volume, register);
        let epoch = if seen > *epoch { seen.next() } else { *epoch };
        c.step = Step::Sealing {
            register: register.clone(),
            epoch,
            answers: Answers::new(),
            choose_at: None,
        };
        c.outbid = 0;
        c.give_up = now + self.config.attempt;
        self.force_seals_again(now, c);
        c.resend = now;
        self.step(now, volume, c)
    }

    fn external_failed(
        &mut self,
        volume: VolumeId,
        c: &mut Coordinator,
        node: NodeId,
        output: String,
    ) {
        let again = match &c.step {
            Step::FencingExternally { register, .. } if c.force.is_none() => {
                Some(self.external_pause(register))
            }
            _ => None,
        };
        self.out
            .push_back(WitnessOutput::Event(WitnessEvent::ExternalFenceFailed {
                volume,
                epoch: c.epoch,
                node,
                output: output.clone(),
                again,
            }));
        self.force_refused(c, ForceRefused::ExternalFenceFailed { node, output });
    }

    /// The answer to `WitnessOutput::ExternalFence`. One that comes after its time is ignored: it counted as a failure.
    pub(super) fn handle_externally_fenced(
        &mut self,
        now: MonoTime,
        id: u64,
        result: ExternalFenceResult,
    ) {
        let Some(running) = self.external.running.remove(&id) else {
            return;
        };
        self.forget_external();
        if let Some(instance) = running.target.instance {
            self.note_external(now, instance, &result);
        }
        for c in self.coordinators.values_mut() {
            let Step::FencingExternally { waits, .. } = &mut c.step else {
                continue;
            };
            for wait in waits.iter_mut().filter(|wait| wait.id == Some(id)) {
                wait.outcome = Some(result.clone());
            }
        }
    }

    fn note_external(&mut self, now: MonoTime, instance: Instance, result: &ExternalFenceResult) {
        match result {
            Ok(output) => {
                self.external.failed.remove(&instance);
                self.external.gone.insert(instance, output.clone());
            }
            Err(_) => {
                let failures = self.external.failed.entry(instance).or_default();
                failures.count += 1;
                let pause = self.config.attempt * (1 << failures.count.min(PAUSE_DOUBLINGS_MAX));
                failures.pause_until = now + pause.min(PAUSE_MAX);
            }
        }
    }

    /// Forgets processes that no register names any more.
    fn forget_external(&mut self) {
        let registered: BTreeSet<Instance> = self
            .records
            .values()
            .filter_map(|record| Some(record.accepted.as_ref()?.1.primary.instance))
            .collect();
        let external = &mut self.external;
        external
            .gone
            .retain(|instance, _| registered.contains(instance));
        external
            .failed
            .retain(|instance, _| registered.contains(instance));
    }

    /// Ends commands that the driver has lost.
    pub(super) fn close_external(&mut self, now: MonoTime) {
        let late: Vec<u64> = self
            .external
            .running
            .iter()
            .filter(|(_, running)| now >= running.until)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.handle_externally_fenced(now, id, Err("it did not end in time".to_owned()));
        }
        if let Some(until) = self.external.running.values().map(|r| r.until).min() {
            self.wake_at(until);
        }
    }
}

impl Target {
    /// A member's node, for a forced promotion.
    pub(super) fn of_member(node: NodeId, register: &Register) -> Self {
        let primary = register.primary;
        Self {
            node,
            instance: (primary.node == node).then_some(primary.instance),
        }
    }
}

/// No pause after a failure is longer.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Keeps the doubling of the pause within bounds.
const PAUSE_DOUBLINGS_MAX: u32 = 8;
