//! Data nodes: events handed to `Volume`, and carrying out what it asks for.

use bytes::Bytes;
use mainstay_replication::message::{MemberMessage, Message};
use mainstay_types::{NodeId, VolumeId};
use mainstay_volume::store::State;
use mainstay_volume::{Action, Event as VolumeEvent};

use super::{CLIENT_BASE, Packet, Reply, World};
use crate::node::{checkpoint, feed, read_block, read_log};
use crate::properties::Property;

impl World {
    pub(super) fn volume_event(&mut self, i: usize, volume: VolumeId, event: VolumeEvent) {
        let now = self.now_of(i);
        if let Some(host) = self.host_mut(i, volume) {
            if let State::Block(image) = &*host.state {
                let applied = image.applied().point.lsn;
                host.volume.set_held(image.dirty_bytes(), applied);
            }
            host.volume.handle(now, event);
            host.volume.finish(now);
            self.drain(i, volume);
        }
    }

    /// Carries out what a volume asked for; then its properties are checked.
    fn drain(&mut self, i: usize, volume: VolumeId) {
        self.write_log(i, volume);
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

    fn write_log(&mut self, i: usize, volume: VolumeId) {
        let local = self.now_of(i).mono;
        let Some(host) = self.host_mut(i, volume) else {
            return;
        };
        while let Some(job) = host.gate.next(&host.volume) {
            host.since.push_back((job.op, local));
            host.jobs.queue.borrow_mut().push_back(job);
            host.jobs.wake.notify();
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
                host.gate.take(job.clone());
                let copy = self.oracle_mut(volume).copies.entry(key).or_default();
                copy.job(job.op, &job.write, lineage);
                self.write_log(i, volume);
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

    pub(super) fn reply(&mut self, i: usize, conn: u64, token: u64, reply: Reply) {
        let client = NodeId(CLIENT_BASE + u32::try_from(conn >> 32).expect("made here"));
        let from = self.nodes[i].id;
        self.send_to_client(from, client, Packet::Reply(conn, token, reply));
    }
}
