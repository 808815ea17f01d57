//! Data nodes: what arrives at them, and their connections.

use std::sync::Arc;

use bytes::Bytes;
use mainstay_replication::message::{
    MemberEnvelope, MemberMessage, Message, SetStep, WitnessMessage,
};
use mainstay_types::{Incarnation, NodeId, PrimaryId, Register, VolumeId};
use mainstay_volume::Event as VolumeEvent;

use super::{Event, Packet, WITNESS_BASE, World};

impl World {
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
}
