//! Witnesses, their stores, the operator who creates volumes, and the supervisors' reports.

use std::collections::VecDeque;

use bytes::Bytes;
use mainstay_replication::message::{
    ABSENT, MemberEnvelope, MemberMessage, Message, RegisterMessage, RoundResult, WitnessMessage,
};
use mainstay_replication::{
    OpId, Round, SetState, Witness, WitnessEvent, WitnessInput, WitnessOutput, WitnessStart,
};
use mainstay_types::{
    Epoch, Incarnation, Instance, Lineage, LogPoint, Member, MemberKind, MonoTime, NodeId,
    PrimaryId, Register, RegisterId, VolumeId, VolumeName, VolumeSpec,
};

use super::{Event, OPERATOR, Packet, VolumeWorld, WITNESS_BASE, World};
use crate::executor::ProcId;
use crate::properties::Oracle;
use crate::properties::monotonic::check_record;
use crate::witness::{Stored, WitnessNode, WitnessProcess, Write};

impl World {
    pub(super) fn build_witnesses(&mut self) {
        let first = self.first_witnesses();
        for number in 0..self.scenario.witnesses + self.scenario.spare_witnesses {
            let clock = self.new_clock();
            let mut state = SetState::default();
            if number < self.scenario.witnesses {
                state.set = (*first).clone();
            }
            self.witnesses.push(WitnessNode {
                id: NodeId(WITNESS_BASE + number),
                clock,
                durable: Stored {
                    state,
                    ..Stored::default()
                },
                pending: VecDeque::new(),
                process: None,
                down_until: 0,
                store_busy_until: 0,
            });
        }
        for witness in 0..self.witnesses.len() {
            self.at(0, Event::StartWitness(witness));
        }
    }

    pub(super) fn start_witness(&mut self, w: usize) {
        let now = self.now();
        if self.witnesses[w].process.is_some() || now < self.witnesses[w].down_until {
            return;
        }
        let pid = self.new_pid();
        let start = WitnessStart {
            node: self.witnesses[w].id,
            instance: Instance(self.rng.id()),
            state: self.witnesses[w].durable.state.clone(),
            stored: true,
            records: self.witnesses[w].durable.records.clone(),
            seed: self.rng.id(),
        };
        let local = self.witnesses[w].clock.read(now);
        let witness = Witness::new(local, self.scenario.lease.clone(), start);
        self.witnesses[w].process = Some(WitnessProcess {
            pid,
            witness,
            paused_until: None,
            tick_at: u64::MAX,
        });
        self.pump_witness(w);
    }

    pub(super) fn witness_input(&mut self, w: usize, input: WitnessInput) {
        let now = self.now();
        let local = self.witnesses[w].clock.read(now);
        if let Some(process) = &mut self.witnesses[w].process {
            process.witness.handle(local, input);
            self.pump_witness(w);
        }
    }

    fn write_witness(&mut self, w: usize, op: OpId, write: Write) {
        let takes = 1_000 + self.rng.below(self.scenario.store_ns);
        let now = self.now();
        let node = &mut self.witnesses[w];
        node.pending.push_back((op, write));
        let at = node.store_busy_until.max(now) + takes;
        node.store_busy_until = at;
        let pid = node.process.as_ref().map_or(0, |p| p.pid);
        self.at(at, Event::WitnessStored(w, pid, op));
    }

    /// A write of a witness's store is durable.
    pub(super) fn apply_write(&mut self, w: usize, write: Write) {
        let id = self.witnesses[w].id;
        match write {
            Write::Record(volume, record) => {
                if let Some(before) = self.witnesses[w].durable.records.get(&volume) {
                    let check = check_record(before, &record);
                    self.check(check);
                }
                if let Some((ballot, value)) = &record.accepted {
                    let set = self.witnesses[w].durable.state.set.clone();
                    let oracle = self.oracle_mut(volume);
                    let check = oracle.chain.accepted(id, *ballot, value, &set);
                    self.check(check);
                }
                self.witnesses[w].durable.records.insert(volume, record);
            }
            Write::Set(state, wipe) => {
                let durable = &mut self.witnesses[w].durable;
                durable.state = *state;
                if wipe {
                    durable.records.clear();
                }
            }
        }
    }

    fn pump_witness(&mut self, w: usize) {
        let now = self.now();
        let id = self.witnesses[w].id;
        while let Some(output) = self.witnesses[w]
            .process
            .as_mut()
            .and_then(|process| process.witness.poll_output())
        {
            match output {
                WitnessOutput::Send { to, message } => {
                    self.send(id, to, Packet::Core(message, Bytes::new()));
                }
                WitnessOutput::Persist { op, volume, record } => {
                    self.write_witness(w, op, Write::Record(volume, record));
                }
                WitnessOutput::PersistSet { op, state, wipe } => {
                    self.write_witness(w, op, Write::Set(state, wipe));
                }
                WitnessOutput::Set(set) => {
                    self.trace.note(now, 5, w as u64, 7, || {
                        format!("witness {id} goes by {set:?}")
                    });
                    self.count_set(&set);
                }
                WitnessOutput::Changed { .. } => {}
                // Nobody forces anything here, and no scenario has an external fence.
                WitnessOutput::Forced { .. } | WitnessOutput::ExternalFence(_) => {}
                WitnessOutput::Event(event) => {
                    let code = match &event {
                        WitnessEvent::PromotionStarted { .. } => 1,
                        WitnessEvent::PromotionWaits { .. } => 2,
                        WitnessEvent::Promoted(_) => 3,
                        WitnessEvent::HeldDown { .. } => 4,
                        WitnessEvent::ExternalFenceFailed { .. } => 5,
                        WitnessEvent::OtherWitnesses { .. } => 6,
                    };
                    self.trace.note(now, 5, w as u64, code, || {
                        format!("witness {id}: {event:?}")
                    });
                }
            }
        }
        let Some(process) = &self.witnesses[w].process else {
            return;
        };
        let due: MonoTime = process.witness.next_deadline();
        let at = self.witnesses[w].clock.when(due).max(now + 50_000);
        if let Some(process) = &mut self.witnesses[w].process
            && at < process.tick_at
        {
            process.tick_at = at;
            let pid = process.pid;
            self.at(at, Event::WitnessTick(w, pid));
        }
    }

    pub(super) fn tick_witness(&mut self, w: usize, pid: ProcId) {
        let now = self.now();
        let Some(process) = &mut self.witnesses[w].process else {
            return;
        };
        if process.pid != pid || process.tick_at > now || process.paused_until.is_some() {
            return;
        }
        process.tick_at = u64::MAX;
        self.witness_input(w, WitnessInput::Tick);
    }

    pub(super) fn witness_stored(&mut self, w: usize, pid: ProcId, op: OpId) {
        let Some(process) = &self.witnesses[w].process else {
            return;
        };
        if process.pid != pid {
            return;
        }
        if let Some(until) = process.paused_until {
            return self.at(until + 1, Event::WitnessStored(w, pid, op));
        }
        while self.witnesses[w]
            .pending
            .front()
            .is_some_and(|(first, _)| *first <= op)
        {
            let Some((_, write)) = self.witnesses[w].pending.pop_front() else {
                break;
            };
            self.apply_write(w, write);
        }
        self.witness_input(w, WitnessInput::Persisted(op));
    }

    pub(super) fn deliver_witness(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        let w = (to.0 - WITNESS_BASE) as usize;
        let Some(process) = &self.witnesses[w].process else {
            return;
        };
        if let Some(until) = process.paused_until {
            let pid = process.pid;
            let event = Event::Arrived {
                from,
                to,
                pid,
                packet,
            };
            return self.at(until + 1, event);
        }
        if let Packet::Core(message, _) = packet {
            self.witness_input(w, WitnessInput::Message { from, message });
        }
    }

    pub(super) fn report_death(&mut self, witness: NodeId, node: NodeId, instance: Instance) {
        if self.net.is_cut(node, witness) {
            return;
        }
        let message = Message::Witness(WitnessMessage::ReleaseInstance { node, instance });
        self.deliver_witness(node, witness, Packet::Core(message, Bytes::new()));
    }

    /// The supervisor of a process that has ended tells the witnesses: perhaps, perhaps late, perhaps twice.
    pub(super) fn supervise(&mut self, node: NodeId, instance: Instance) {
        if self.rng.below(4) >= self.scenario.reports {
            return;
        }
        let times = if self.rng.below(8) == 0 { 2 } else { 1 };
        for _ in 0..times {
            for witness in self.witness_ids() {
                let wait = 1_000_000 + self.rng.below(self.scenario.report_ns);
                let at = self.now() + wait;
                if self.rng.below(10) > 0 {
                    self.at(
                        at,
                        Event::Report {
                            witness,
                            node,
                            instance,
                        },
                    );
                }
            }
        }
    }

    pub(super) fn build_volumes(&mut self) {
        for (number, setup) in self.scenario.volumes.clone().into_iter().enumerate() {
            let name: VolumeName = format!("v{number}")
                .parse()
                .expect("a letter and a digit name a volume");
            let id = name.id();
            self.volumes.insert(
                id,
                VolumeWorld {
                    spec: VolumeSpec {
                        name,
                        kind: setup.kind,
                    },
                    lineage: Lineage(self.rng.id()),
                    policy: setup.policy,
                    oracle: Oracle::new(setup.kind),
                    creation: None,
                    fragile: None,
                    answered_at_end: 0,
                    needs_copy: false,
                },
            );
        }
        // The nodes are up at time zero; the copies are made right after.
        for volume in self.volumes.keys().copied().collect::<Vec<_>>() {
            self.at(1, Event::OperatorTick(volume));
        }
    }

    /// Creation as a real node does it: copies first, then the register, then word to all.
    pub(super) fn operator_tick(&mut self, volume: VolumeId) {
        let now = MonoTime(self.now());
        let world = self.volumes.get_mut(&volume).expect("known");
        if let Some(round) = &mut world.creation {
            round.tick(now);
            return self.drive_creation(volume);
        }
        if world.oracle.chain.is_empty() {
            let (placement, lineage) = (world.policy.placement.clone(), world.lineage);
            for node in placement {
                self.make_copy(node.0 as usize - 1, volume, lineage, Epoch(1));
            }
        }
    }

    /// Once all copies are open the register is written.
    pub(super) fn maybe_create(&mut self, volume: VolumeId) {
        let world = &self.volumes[&volume];
        if world.creation.is_some() || !world.oracle.chain.is_empty() {
            return;
        }
        let placement = world.policy.placement.clone();
        let mut members = Vec::new();
        for node in &placement {
            let Some(host) = self.host(node.0 as usize - 1, volume) else {
                return;
            };
            members.push((host.volume.member().id(), host.incarnation));
        }
        let ack = world.policy.ack.quorum(members.len());
        let register = Register {
            id: RegisterId(self.rng.id()),
            version: 1,
            lineage: world.lineage,
            log_lineage: world.lineage,
            epoch: Epoch(1),
            primary: members[0].0,
            members: members
                .iter()
                .map(|(id, incarnation)| Member {
                    node: id.node,
                    incarnation: *incarnation,
                    kind: MemberKind::Full,
                })
                .collect(),
            ack_quorum: u32::try_from(ack).expect("small"),
            policy: world.policy.clone(),
            cut: LogPoint::ZERO,
            spec: world.spec.clone(),
            deleted: false,
        };
        let round = Round::swap(
            MonoTime(self.now()),
            &self.operator_witnesses,
            self.rng.id(),
            self.scenario.volume.member.round_retry,
            self.scenario.volume.member.mistakes,
            ABSENT,
            register,
        );
        self.volumes.get_mut(&volume).expect("known").creation = Some(round);
        self.drive_creation(volume);
    }

    pub(super) fn drive_creation(&mut self, volume: VolumeId) {
        let mut sends = Vec::new();
        let mut due = MonoTime::MAX;
        if let Some(round) = &mut self.volumes.get_mut(&volume).expect("known").creation {
            while let Some(send) = round.poll_send() {
                sends.push(send);
            }
            due = round.deadline();
        }
        for (to, body) in sends {
            let message = Message::Register { volume, body };
            self.send(OPERATOR, to, Packet::Core(message, Bytes::new()));
        }
        if due != MonoTime::MAX {
            self.at(due.0.max(self.now() + 50_000), Event::OperatorTick(volume));
        }
    }

    pub(super) fn operator_answer(
        &mut self,
        volume: VolumeId,
        from: NodeId,
        body: RegisterMessage,
    ) {
        let now = MonoTime(self.now());
        let world = self.volumes.get_mut(&volume).expect("known");
        let Some(round) = &mut world.creation else {
            return;
        };
        let Some(result) = round.handle(now, from, body) else {
            return self.drive_creation(volume);
        };
        world.creation = None;
        let (RoundResult::Decided(register) | RoundResult::Conflict(register)) = result else {
            return;
        };
        for member in register.members.clone() {
            let envelope = MemberEnvelope {
                volume,
                lineage: register.lineage,
                from: PrimaryId {
                    node: OPERATOR,
                    incarnation: Incarnation(0),
                    instance: Instance(1),
                },
                body: MemberMessage::Decided(register.clone()),
            };
            let message = Message::Member(Box::new(envelope));
            self.send(OPERATOR, member.node, Packet::Core(message, Bytes::new()));
        }
    }
}
