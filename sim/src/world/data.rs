//! Data nodes: starting, stopping, and carrying out what `Volume` and `Beats` ask for.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use mainstay_replication::message::{
    Claim, ClaimHealth, MemberEnvelope, MemberMessage, Message, Orphan, SetStep, WitnessMessage,
};
use mainstay_replication::{BeatOutput, Beats};
use mainstay_storage::engine::SimDisk;
use mainstay_types::{
    Epoch, Incarnation, Instance, Lineage, MonoTime, NodeId, PrimaryId, Register, VolumeId,
};
use mainstay_volume::store::{CopyConfig, NewCopy, State};
use mainstay_volume::{Action, Event as VolumeEvent, Now, Volume};

use super::{CLIENT_BASE, Event, Packet, Reply, WITNESS_BASE, World};
use crate::clock::Clock;
use crate::disk::Delays;
use crate::executor::ProcId;
use crate::node::{
    Answer, CLUSTER, CreateArgs, DataNode, Done, Host, Jobs, OpenArgs, Opened, Opening, Process,
    checkpoint, create, feed, open, read_block, read_log, write_log,
};
use crate::properties::damage::Found;
use crate::properties::{CopyLog, Property};
use crate::scenario::MS;

/// Work overdue by this much is reported in the beat.
const UNWELL_MS: u64 = 200;

impl World {
    pub(super) fn build_nodes(&mut self) {
        for number in 1..=self.scenario.data {
            let delays = Delays::new(self.executor.clone(), self.rng.id(), self.scenario.disk);
            let disk = SimDisk::new(self.rng.id(), delays.clone());
            let clock = self.new_clock();
            self.nodes.push(DataNode {
                id: NodeId(number),
                disk,
                delays,
                clock,
                dirs: BTreeMap::new(),
                process: None,
                down_until: 0,
                witnesses: self.first_witnesses(),
                lost_power: false,
                erring: false,
            });
        }
        for node in 0..self.nodes.len() {
            self.at(0, Event::Start(node));
        }
    }

    pub(super) fn new_clock(&mut self) -> Clock {
        let bound = self.scenario.clock_ppm;
        let ppm = i64::try_from(self.rng.below(2 * bound + 1)).expect("small")
            - i64::try_from(bound).expect("small");
        let mut clock = Clock::new(self.rng.below(1 << 40), ppm);
        clock.wall_offset_ns = i64::try_from(self.rng.below(10_000 * MS)).expect("small");
        clock
    }

    pub(super) fn start_node(&mut self, i: usize) {
        let now = self.now();
        if self.nodes[i].process.is_some() || now < self.nodes[i].down_until {
            return;
        }
        let pid = self.new_pid();
        let instance = Instance(self.rng.id());
        let local = self.nodes[i].clock.read(now);
        self.trace.note(now, 2, i as u64, instance.0, || {
            format!("node {} starts as {instance}", i + 1)
        });
        let beats = Beats::new(
            local,
            self.scenario.lease.clone(),
            instance,
            Arc::clone(&self.nodes[i].witnesses),
            &self.node_ids(),
        );
        self.nodes[i].process = Some(Process {
            pid,
            instance,
            beats,
            hosts: BTreeMap::new(),
            opening: BTreeMap::new(),
            paused_until: None,
            tick_at: u64::MAX,
        });
        let volumes: Vec<VolumeId> = self.nodes[i].dirs.keys().copied().collect();
        for volume in volumes {
            self.open_copy(i, volume);
        }
        self.links_of(i, true);
        self.pump(i);
    }

    pub(super) fn new_pid(&mut self) -> ProcId {
        self.next_pid += 1;
        self.next_pid
    }

    fn open_args(&mut self, i: usize, dirs: Vec<PathBuf>) -> Option<OpenArgs> {
        let instance = self.nodes[i].process.as_ref()?.instance;
        Some(OpenArgs {
            disk: self.nodes[i].disk.clone(),
            dirs,
            config: CopyConfig {
                cluster: CLUSTER,
                node: self.nodes[i].id,
                segment_bytes: self.scenario.segment_bytes,
            },
            instance,
            witnesses: Arc::clone(&self.nodes[i].witnesses),
            seed: self.rng.id(),
        })
    }

    fn answer(&self, i: usize, volume: VolumeId, incarnation: Incarnation) -> Answer {
        let pid = self.nodes[i].process.as_ref().map_or(0, |p| p.pid);
        Answer {
            queue: self.done.clone(),
            pid,
            volume,
            incarnation,
        }
    }

    fn open_copy(&mut self, i: usize, volume: VolumeId) {
        let dirs: Vec<PathBuf> = self.nodes[i].dirs[&volume].iter().rev().cloned().collect();
        if dirs.is_empty() {
            return;
        }
        let Some(args) = self.open_args(i, dirs) else {
            return;
        };
        let answer = self.answer(i, volume, Incarnation(0));
        if let Some(process) = &mut self.nodes[i].process {
            process.opening.insert(volume, Opening::Existing);
        }
        self.executor.spawn(answer.pid, open(args, answer.clone()));
    }

    /// Formats a copy for a volume that this node should hold.
    pub(super) fn make_copy(
        &mut self,
        i: usize,
        volume: VolumeId,
        lineage: Lineage,
        sealed: Epoch,
    ) {
        let incarnation = Incarnation(self.rng.id());
        let name = format!("/{volume}-{incarnation}");
        let dir = PathBuf::from(name);
        self.nodes[i]
            .dirs
            .entry(volume)
            .or_default()
            .push(dir.clone());
        let Some(open) = self.open_args(i, vec![dir]) else {
            return;
        };
        let spec = self.volumes[&volume].spec.clone();
        let args = CreateArgs {
            open,
            new: NewCopy {
                spec,
                lineage,
                log_lineage: lineage,
                incarnation,
                sealed,
            },
        };
        let answer = self.answer(i, volume, Incarnation(0));
        if let Some(process) = &mut self.nodes[i].process {
            process.opening.insert(volume, Opening::Fresh(incarnation));
        }
        self.executor
            .spawn(answer.pid, create(args, answer.clone()));
    }

    fn now_of(&self, i: usize) -> Now {
        let now = self.now();
        Now {
            mono: self.nodes[i].clock.read(now),
            wall_ns: self.nodes[i].clock.wall(now),
        }
    }

    pub(super) fn task_done(
        &mut self,
        pid: ProcId,
        volume: VolumeId,
        incarnation: Incarnation,
        done: Done,
    ) {
        let Some(i) = self
            .nodes
            .iter()
            .position(|node| node.process.as_ref().is_some_and(|p| p.pid == pid))
        else {
            return;
        };
        let now = self.now();
        self.trace.note(now, 3, i as u64, done_code(&done), || {
            format!("node {}: {done:?}", i + 1)
        });
        let present = self.host(i, volume).map(|host| host.incarnation);
        match done {
            Done::Opened(opened) => self.opened(i, volume, *opened),
            Done::NotOpened(reason) => self.not_opened(i, volume, &reason),
            _ if present != Some(incarnation) => {}
            Done::Stored(op) => {
                let key = (self.nodes[i].id, incarnation);
                if let Some(host) = self.host_mut(i, volume) {
                    while host.since.front().is_some_and(|(id, _)| *id <= op) {
                        host.since.pop_front();
                    }
                }
                if let Some(copy) = self.oracle_mut(volume).copies.get_mut(&key) {
                    copy.stored(op);
                }
                self.volume_event(i, volume, VolumeEvent::Stored { op });
            }
            Done::Failed(reason) => {
                self.nodes[i].erring = false;
                if let Some(host) = self.host_mut(i, volume) {
                    host.failed = true;
                }
                self.volume_event(i, volume, VolumeEvent::StorageFailed { reason });
                // A process whose disk failed it ends soon, and comes back through recovery.
                let wait = self.rng.below(300 * MS);
                self.at(now + wait, Event::Exit(i, pid));
            }
            Done::Recycled(first) => {
                let key = (self.nodes[i].id, incarnation);
                if self.oracle_mut(volume).ops.size_bytes().is_none() {
                    let check = self.oracle_mut(volume).check_given_back(key, first);
                    self.check(check);
                }
                if let Some(copy) = self.oracle_mut(volume).copies.get_mut(&key) {
                    copy.recycled(first);
                }
                self.volume_event(i, volume, VolumeEvent::Recycled { first });
            }
            Done::Checkpointed(Some(at)) => {
                self.volume_event(i, volume, VolumeEvent::Checkpointed { at });
            }
            Done::Checkpointed(None) => {
                self.volume_event(i, volume, VolumeEvent::CheckpointFailed);
            }
            Done::Fed(plan, entries) => {
                self.volume_event(i, volume, VolumeEvent::Fed { plan, entries });
            }
            Done::BlockRead(conn, token, data) => self.reply(i, conn, token, Reply::Block(data)),
            Done::LogRead(conn, token, through, entries) => {
                self.reply(i, conn, token, Reply::Log(through, entries));
            }
        }
        self.pump(i);
    }

    fn opened(&mut self, i: usize, volume: VolumeId, opened: Opened) {
        let now = self.now_of(i);
        let start = &opened.start.member;
        let incarnation = start.me.incarnation;
        let key = (self.nodes[i].id, incarnation);
        let found = Found {
            log: CopyLog::new(opened.base, opened.entries),
            sealed: start.sealed,
            commit: start.commit,
            damaged: start.damaged,
            doubt: start.doubt.map(|doubt| doubt.to),
        };
        let damaged = start.damaged;
        let doubt = start.doubt.is_some();
        if !doubt {
            self.nodes[i].lost_power = false;
        }
        let check = self.oracle_mut(volume).opened(key, found);
        self.check(check);
        let jobs = Rc::new(Jobs::default());
        let state = Rc::new(opened.state);
        let config = self.scenario.volume.clone();
        let host = Host {
            volume: Volume::new(now, config, opened.start),
            incarnation,
            log_lineage: opened.log_lineage,
            jobs: jobs.clone(),
            reader: opened.reader,
            state,
            since: VecDeque::new(),
            damaged,
            doubt,
            failed: false,
            dir: opened.dir,
        };
        let answer = self.answer(i, volume, incarnation);
        if let Some(process) = &mut self.nodes[i].process {
            process.opening.remove(&volume);
            process.hosts.insert(volume, host);
        }
        let task = write_log(
            self.executor.clone(),
            opened.wal,
            opened.meta,
            jobs,
            answer.clone(),
        );
        self.executor.spawn(answer.pid, task);
        let witnesses = Arc::clone(&self.nodes[i].witnesses);
        self.volume_event(i, volume, VolumeEvent::Witnesses(witnesses));
        let id = self.nodes[i].id;
        for other in self.node_ids() {
            if other != id && !self.net.is_cut(id, other) {
                self.volume_event(i, volume, VolumeEvent::LinkUp { node: other });
            }
        }
        self.maybe_create(volume);
    }

    fn not_opened(&mut self, i: usize, volume: VolumeId, _reason: &str) {
        if let Some(process) = &mut self.nodes[i].process {
            process.opening.remove(&volume);
        }
        if self.nodes[i].erring && !self.nodes[i].dirs[&volume].is_empty() {
            // Most likely the disk's error, and not the copy's: the process tries again from the start.
            self.nodes[i].erring = false;
            let pid = self.nodes[i].process.as_ref().map_or(0, |p| p.pid);
            let at = self.now() + self.rng.below(100 * MS);
            return self.at(at, Event::Exit(i, pid));
        }
        // Whatever is there is set aside: it answers nothing, and a new copy is another incarnation.
        self.nodes[i].dirs.insert(volume, Vec::new());
    }

    pub(super) fn host(&self, i: usize, volume: VolumeId) -> Option<&Host> {
        self.nodes[i].process.as_ref()?.hosts.get(&volume)
    }

    fn host_mut(&mut self, i: usize, volume: VolumeId) -> Option<&mut Host> {
        self.nodes[i].process.as_mut()?.hosts.get_mut(&volume)
    }

    pub(super) fn oracle_mut(&mut self, volume: VolumeId) -> &mut crate::properties::Oracle {
        &mut self
            .volumes
            .get_mut(&volume)
            .expect("every copy is of a known volume")
            .oracle
    }

    pub(super) fn volume_event(&mut self, i: usize, volume: VolumeId, event: VolumeEvent) {
        let now = self.now_of(i);
        if let Some(host) = self.host_mut(i, volume) {
            host.volume.handle(now, event);
            host.volume.finish(now);
            self.drain(i, volume);
        }
    }

    /// Carries out what a volume asked for; then its properties are checked.
    fn drain(&mut self, i: usize, volume: VolumeId) {
        while let Some(action) = self
            .host_mut(i, volume)
            .and_then(|host| host.volume.poll_action())
        {
            self.act(i, volume, action);
        }
        let Some(host) = self.nodes[i]
            .process
            .as_ref()
            .and_then(|process| process.hosts.get(&volume))
        else {
            return;
        };
        let key = (self.nodes[i].id, host.incarnation);
        if !host.failed {
            let oracle = &mut self.volumes.get_mut(&volume).expect("known").oracle;
            let check = oracle.after_event(key, host.volume.member());
            self.check(check);
        }
    }

    fn act(&mut self, i: usize, volume: VolumeId, action: Action) {
        let id = self.nodes[i].id;
        let local = self.now_of(i).mono;
        let Some(host) = self.host_mut(i, volume) else {
            return;
        };
        let incarnation = host.incarnation;
        let key = (id, incarnation);
        match action {
            Action::Wal(job) => {
                let lineage = host.log_lineage;
                host.since.push_back((job.op, local));
                let jobs = host.jobs.clone();
                let copy = self.oracle_mut(volume).copies.entry(key).or_default();
                copy.job(job.op, &job.write, lineage);
                jobs.queue.borrow_mut().push_back(job);
                jobs.wake.notify();
            }
            Action::Send {
                to,
                envelope,
                batch,
            } => {
                if let MemberMessage::Sealed(answer) = &envelope.body {
                    let check = self.oracle_mut(volume).check_seal_answer(key, answer);
                    self.check(check);
                }
                let message = Message::Member(Box::new(envelope));
                self.send(id, to, Packet::Core(message, batch));
            }
            Action::SendRegister { to, body } => {
                let message = Message::Register { volume, body };
                self.send(id, to, Packet::Core(message, Bytes::new()));
            }
            Action::Apply(entry) => {
                if let State::Block(image) = &*host.state
                    && let Err(error) = image.apply(&entry)
                {
                    let text = format!("{key:?} cannot apply {}: {error}", entry.header.point);
                    self.violate(Property::Assertion, text);
                }
            }
            Action::Reply {
                conn,
                token,
                result,
            } => self.reply(i, conn, token, Reply::Op(result)),
            Action::ReadBlock {
                conn,
                token,
                offset,
                len,
            } => {
                let state = host.state.clone();
                let answer = self.answer(i, volume, incarnation);
                let task = read_block(state, conn, token, offset, len, answer.clone());
                self.executor.spawn(answer.pid, task);
            }
            // The simulated clients ask for bytes only.
            Action::ReadExtents { .. } => {}
            Action::ReadLog {
                conn,
                token,
                stretch,
                cached,
            } => {
                let (reader, lineage) = (host.reader.clone(), host.log_lineage);
                let answer = self.answer(i, volume, incarnation);
                let task = read_log(
                    reader,
                    lineage,
                    (conn, token),
                    stretch,
                    cached,
                    answer.clone(),
                );
                self.executor.spawn(answer.pid, task);
            }
            // The simulated clients ask for no times, and for no proofs.
            Action::Find { .. } | Action::ReadTree { .. } => {}
            Action::Feed { plan, bytes_max } => {
                let (reader, lineage) = (host.reader.clone(), host.log_lineage);
                let answer = self.answer(i, volume, incarnation);
                let task = feed(reader, lineage, plan, bytes_max, answer.clone());
                self.executor.spawn(answer.pid, task);
            }
            Action::Checkpoint { blob, at } => {
                let state = host.state.clone();
                let answer = self.answer(i, volume, incarnation);
                let task = checkpoint(state, blob, at, answer.clone());
                self.executor.spawn(answer.pid, task);
            }
            Action::Recycle { below } => {
                *host.jobs.recycle.borrow_mut() = Some(below);
                host.jobs.wake.notify();
            }
            Action::NeedsCopy { .. } => {
                // Full copies are not simulated yet: this volume will not have all its copies again.
                self.volumes.get_mut(&volume).expect("known").needs_copy = true;
            }
            Action::Release { epoch, prefer } => {
                if let Some(process) = &mut self.nodes[i].process {
                    process.beats.release(local, volume, epoch, prefer);
                }
            }
            // No scenario has hooks.
            Action::AwaitReady { .. } => {}
            Action::Role(role) => {
                let now = self.now();
                self.trace
                    .note(now, 4, i as u64, 0, || format!("node {id} is now {role:?}"));
            }
            Action::Decided(_) => {}
            Action::PeerMisbehaved { node, reason } => {
                let text = format!("node {id} says that node {node} misbehaves: {reason}");
                self.violate(Property::Assertion, text);
            }
            Action::Violation(text) => {
                let text = format!("node {id}: {text}");
                self.violate(Property::Assertion, text);
            }
        }
    }

    fn reply(&mut self, i: usize, conn: u64, token: u64, reply: Reply) {
        let client = NodeId(CLIENT_BASE + u32::try_from(conn >> 32).expect("made here"));
        let from = self.nodes[i].id;
        self.send_to_client(from, client, Packet::Reply(conn, token, reply));
    }

    /// States claims, drains beats, sets the next tick.
    pub(super) fn pump(&mut self, i: usize) {
        let local = self.now_of(i).mono;
        loop {
            let Some(process) = &mut self.nodes[i].process else {
                return;
            };
            let (claims, unwell, orphans) = statement(process, local);
            process.beats.state(local, &claims, unwell, orphans);
            let mut outputs = Vec::new();
            while let Some(output) = process.beats.poll_output() {
                outputs.push(output);
            }
            if outputs.is_empty() {
                break;
            }
            let id = self.nodes[i].id;
            for output in outputs {
                match output {
                    BeatOutput::Send { to, message } => {
                        let packet = Packet::Core(Message::Witness(message), Bytes::new());
                        self.send(id, to, packet);
                    }
                    BeatOutput::Lease {
                        volume,
                        epoch,
                        until,
                        silent,
                    } => self.volume_event(
                        i,
                        volume,
                        VolumeEvent::Lease {
                            epoch,
                            until,
                            silent,
                        },
                    ),
                }
            }
        }
        self.schedule_tick(i);
    }

    fn schedule_tick(&mut self, i: usize) {
        let now = self.now();
        let Some(process) = &self.nodes[i].process else {
            return;
        };
        let due = process
            .hosts
            .values()
            .map(|host| host.volume.next_deadline())
            .chain([process.beats.next_deadline()])
            .min()
            .unwrap_or(MonoTime::MAX);
        let at = self.nodes[i].clock.when(due).max(now + 50_000);
        let Some(process) = &mut self.nodes[i].process else {
            return;
        };
        if at < process.tick_at {
            process.tick_at = at;
            let pid = process.pid;
            self.at(at, Event::Tick(i, pid));
        }
    }

    pub(super) fn tick_node(&mut self, i: usize, pid: ProcId) {
        let now = self.now();
        let local = self.now_of(i).mono;
        let Some(process) = &mut self.nodes[i].process else {
            return;
        };
        if process.pid != pid || process.tick_at > now {
            return;
        }
        if process.paused_until.is_some() {
            return; // Resuming ticks.
        }
        process.tick_at = u64::MAX;
        let due: Vec<VolumeId> = process
            .hosts
            .iter()
            .filter(|(_, host)| host.volume.next_deadline() <= local)
            .map(|(volume, _)| *volume)
            .collect();
        process.beats.tick(local);
        for volume in due {
            self.volume_event(i, volume, VolumeEvent::Tick);
        }
        self.pump(i);
    }

    pub(super) fn deliver_data(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        let i = to.0 as usize - 1;
        let Some(process) = &self.nodes[i].process else {
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
        match packet {
            Packet::Core(Message::Member(envelope), batch) => {
                self.deliver_member(i, *envelope, batch);
            }
            Packet::Core(Message::Register { volume, body }, _) => {
                self.volume_event(i, volume, VolumeEvent::Register { from, body });
            }
            Packet::Core(Message::Witness(WitnessMessage::Granted(granted)), _) => {
                let local = self.now_of(i).mono;
                if let Some(process) = &mut self.nodes[i].process {
                    process.beats.handle_granted(local, from, granted);
                }
            }
            Packet::Core(Message::Witness(WitnessMessage::Set(set)), _) => {
                self.data_learns_set(i, from, set);
            }
            Packet::Core(Message::Witness(WitnessMessage::SetStep(SetStep::Wanted)), _) => {
                let set = Arc::clone(&self.nodes[i].witnesses);
                let message = Message::Witness(WitnessMessage::Set(set));
                self.send(to, from, Packet::Core(message, Bytes::new()));
            }
            Packet::Core(Message::Witness(_), _) | Packet::Reply(..) => {}
            Packet::Ask(conn, token, ask) => self.deliver_ask(i, conn, token, ask),
            Packet::Close(conn) => {
                let volumes: Vec<VolumeId> = self.volumes.keys().copied().collect();
                for volume in volumes {
                    self.volume_event(i, volume, VolumeEvent::ConnClosed { conn });
                }
            }
        }
        self.pump(i);
    }

    fn deliver_member(&mut self, i: usize, envelope: MemberEnvelope, batch: Bytes) {
        let volume = envelope.volume;
        if !self.volumes.contains_key(&volume) {
            return;
        }
        let appended = matches!(envelope.body, MemberMessage::Append(_));
        if self.host(i, volume).is_some_and(|host| host.damaged) && appended {
            // Somebody acts as primary, so every committed entry is in its log: this copy is set aside.
            self.set_aside(i, volume);
        }
        if self.host(i, volume).is_some() {
            return self.volume_event(i, volume, VolumeEvent::Peer { envelope, batch });
        }
        let id = self.nodes[i].id;
        let Some(process) = &self.nodes[i].process else {
            return;
        };
        if process.opening.contains_key(&volume) {
            return;
        }
        match envelope.body {
            MemberMessage::Decided(register) => self.maybe_format(i, volume, &register),
            _ if envelope.from.node.0 < WITNESS_BASE => {
                let answer = MemberEnvelope {
                    volume,
                    lineage: envelope.lineage,
                    from: PrimaryId {
                        node: id,
                        incarnation: Incarnation(0),
                        instance: process.instance,
                    },
                    body: MemberMessage::NoCopy,
                };
                let message = Message::Member(Box::new(answer));
                self.send(id, envelope.from.node, Packet::Core(message, Bytes::new()));
            }
            _ => {}
        }
    }

    fn maybe_format(&mut self, i: usize, volume: VolumeId, register: &Register) {
        let wanted = register.policy.placement.contains(&self.nodes[i].id);
        if wanted && !register.deleted {
            self.make_copy(i, volume, register.lineage, register.epoch);
        }
    }

    fn set_aside(&mut self, i: usize, volume: VolumeId) {
        let id = self.nodes[i].id;
        let Some(host) = self.nodes[i]
            .process
            .as_mut()
            .and_then(|process| process.hosts.remove(&volume))
        else {
            return;
        };
        self.nodes[i].dirs.insert(volume, Vec::new());
        if let Some(copy) = self
            .oracle_mut(volume)
            .copies
            .get_mut(&(id, host.incarnation))
        {
            copy.gone = true;
        }
    }

    /// Tells a node of the connections it has now.
    pub(super) fn links_of(&mut self, i: usize, up: bool) {
        let id = self.nodes[i].id;
        for other in 0..self.nodes.len() {
            if other != i {
                let node = self.nodes[other].id;
                self.link_event(other, id, up && !self.net.is_cut(id, node));
            }
        }
    }

    /// One node hears that its connection to another stands or broke.
    pub(super) fn link_event(&mut self, i: usize, node: NodeId, up: bool) {
        let paused = self.nodes[i]
            .process
            .as_ref()
            .is_none_or(|process| process.paused_until.is_some());
        if paused {
            return;
        }
        let volumes: Vec<VolumeId> = self.volumes.keys().copied().collect();
        for volume in volumes {
            let event = if up {
                VolumeEvent::LinkUp { node }
            } else {
                VolumeEvent::LinkLost { node }
            };
            self.volume_event(i, volume, event);
        }
        self.pump(i);
    }

    /// How far the newest epoch's primary is known: its node, if its process acts.
    pub(super) fn primary_of(&self, volume: VolumeId) -> Option<usize> {
        let acting = |i: &usize| {
            self.host(*i, volume)
                .and_then(|host| host.volume.member().acting_epoch())
        };
        (0..self.nodes.len())
            .filter(|i| acting(i).is_some())
            .max_by_key(|i| acting(i))
    }
}

/// What a process says in its beats.
fn statement(process: &Process, local: MonoTime) -> (Vec<Claim>, Vec<ClaimHealth>, Vec<Orphan>) {
    let (mut claims, mut unwell, mut orphans) = (Vec::new(), Vec::new(), Vec::new());
    for (volume, host) in &process.hosts {
        let member = host.volume.member();
        let acting = member.acting(local);
        claims.extend(acting.map(|(epoch, _)| Claim {
            volume: *volume,
            epoch,
        }));
        let sync = host
            .since
            .front()
            .map_or(0, |(_, at)| millis(local.since(*at)));
        let uncommitted = acting.map_or(0, |(_, age)| millis(age));
        let overdue = u64::from(sync.max(uncommitted)) > UNWELL_MS;
        let unreachable = member.unreachable(local);
        let unheard = acting.is_none() && !unreachable.is_empty();
        if overdue || unheard || member.syncs_due() > 0 {
            unwell.push(ClaimHealth {
                volume: *volume,
                sync_age_ms: sync,
                uncommitted_age_ms: uncommitted,
                unreachable,
                syncs_due: member.syncs_due(),
            });
        }
        if let Some(sealed) = member.orphaned() {
            orphans.push(Orphan {
                volume: *volume,
                sealed,
            });
        }
    }
    (claims, unwell, orphans)
}

fn millis(span: std::time::Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

fn done_code(done: &Done) -> u64 {
    match done {
        Done::Opened(opened) => 1 + (opened.entries.len() as u64) * 16,
        Done::NotOpened(_) => 2,
        Done::Stored(op) => 3 + op.0 * 16,
        Done::Failed(_) => 4,
        Done::Recycled(first) => 5 + first.0 * 16,
        Done::Checkpointed(at) => 6 + at.map_or(0, |at| at.point.lsn.0) * 16,
        Done::Fed(plan, _) => 7 + plan.first.0 * 16,
        Done::BlockRead(conn, token, _) => 8 + conn * 16 + (token << 40),
        Done::LogRead(conn, token, through, _) => 9 + conn * 16 + (token << 40) + through.0,
    }
}
