//! Faults: what a schedule names is done to whoever is there at that time.
//!
//! Damage and lost disks are bounded: one copy of a volume at a time, and only while all others are sound and one less
//! than an ack quorum of them hold everything committed, whether their processes run or not. Until that copy is replaced, other nodes lose no power while they write, as a batch in doubt
//! could then never be settled without an operator (H12).

use std::path::{Path, PathBuf};

use mainstay_storage::engine::SimDisk;
use mainstay_storage::engine::sim::{Fault as DiskFault, OpKind};
use mainstay_types::{Member, NodeId, VolumeId};
use mainstay_volume::Event as VolumeEvent;

use super::{Event, World};
use crate::disk::Delays;
use crate::executor::ProcId;
use crate::properties::Copy;
use crate::scenario::{Fault, MS, ReplicaFault};

/// A pause at least so long counts as a freeze.
const MINUTE: u64 = 60_000 * MS;

impl World {
    pub(super) fn count(&mut self, kind: &'static str) {
        *self.injected.entry(kind).or_default() += 1;
    }

    pub(super) fn inject(&mut self, fault: Fault) {
        if self.ending.healed {
            return;
        }
        let now = self.now();
        self.trace.note(now, 6, 0, 0, || format!("fault {fault:?}"));
        match fault {
            Fault::PowerLoss(a, span) => self.power_loss(self.data_index(a), span),
            Fault::PowerLossAll(span) => self.power_loss_all(span),
            Fault::Kill(a, span) => self.kill(self.data_index(a), span),
            Fault::WitnessCrash(a, span) => self.witness_crash(self.witness_index(a), span),
            Fault::Pause(a, span) => self.pause(self.data_index(a), span),
            Fault::WitnessPause(a, span) => self.pause_witness(self.witness_index(a), span),
            Fault::CutOneWay(a, b, span) => {
                let (a, b) = (self.any_node(a), self.any_node(b));
                self.cut(vec![(a, b)], span);
            }
            Fault::Cut(a, b, span) => {
                let (a, b) = (self.any_node(a), self.any_node(b));
                self.cut(vec![(a, b), (b, a)], span);
            }
            Fault::Isolate(a, mode, span) => {
                let node = self.any_node(a);
                self.isolate(node, mode, span);
            }
            Fault::Split(mask, span) => {
                let all = self.all_nodes();
                self.split(&all, mask, span);
            }
            Fault::SplitData(mask, span) => {
                let all = self.node_ids();
                self.split(&all, mask, span);
            }
            Fault::Reset(a, b) => self.reset(self.any_node(a), self.any_node(b)),
            Fault::ClockRate(a, ppm) => self.clock_rate(a, ppm),
            Fault::WallJump(a, ms) => {
                let i = self.data_index(a);
                self.count("wall clock jump");
                self.nodes[i].clock.wall_offset_ns = ms * 1_000_000;
            }
            Fault::DiskError(a, write, nth) => self.disk_error(self.data_index(a), write, nth),
            Fault::DiskFull(a, span) => {
                let i = self.data_index(a);
                self.count("disk full");
                let used = self.nodes[i].disk.used_bytes();
                self.nodes[i].disk.set_capacity(Some(used));
                self.at(now + span, Event::RoomAgain(i));
            }
            Fault::DiskHang(a, span) => {
                let i = self.data_index(a);
                self.count("disk hangs");
                self.nodes[i].disk.stall(OpKind::Sync);
                self.nodes[i].disk.stall(OpKind::Write);
                self.at(now + span, Event::GoesOn(i));
            }
            Fault::Rot(a) => self.rot(self.data_index(a)),
            Fault::LoseDisk(a) => self.lose_disk(self.data_index(a)),
            Fault::Handover(a, b) => self.handover(a, b),
            Fault::KillPrimary(span) => self.at_primary(|w, i| w.kill(i, span)),
            Fault::PowerLossPrimary(span) => self.at_primary(|w, i| w.power_loss(i, span)),
            Fault::PausePrimary(span) => self.at_primary(|w, i| w.pause(i, span)),
            Fault::IsolatePrimary(mode, span) => self.at_primary(|w, i| {
                let node = w.nodes[i].id;
                w.isolate(node, mode, span);
            }),
            Fault::StrandPrimary(from_data, span) => self.at_primary(|w, i| {
                let node = w.nodes[i].id;
                let others = if from_data {
                    w.node_ids()
                } else {
                    w.witness_ids()
                };
                w.cut_off(node, &others, 0, span);
            }),
            Fault::CutPrimary(mask, span) => self.at_primary(|w, i| {
                let node = w.nodes[i].id;
                let mut others = w.node_ids();
                others.extend(w.some_witnesses(mask));
                w.cut_off(node, &others, 0, span);
            }),
            Fault::CutWitness(a, span) => {
                let node = self.witnesses[self.witness_index(a)].id;
                self.isolate(node, 0, span);
            }
            Fault::LoseWitnessStore(a) => self.lose_witness_store(a),
            Fault::ChangeWitnesses(a, choice) => self.change_witnesses(a, choice),
            Fault::PrimaryWith(mask, span) => self.at_primary(|w, i| {
                let mut side = w.some_witnesses(mask);
                side.push(w.nodes[i].id);
                let all = w.all_nodes();
                let others = all.into_iter().filter(|node| !side.contains(node));
                let pairs = others.flat_map(|other| {
                    let both = |node: &NodeId| [(*node, other), (other, *node)];
                    side.iter().flat_map(both).collect::<Vec<_>>()
                });
                let pairs = pairs.collect();
                w.cut(pairs, span);
            }),
            Fault::LateReport => self.at_primary(|w, i| w.late_report(i)),
            Fault::Replica(n, what, span) => self.at_primary(|w, i| {
                let others = w.nodes.len() - 1;
                if others == 0 {
                    return;
                }
                let other = (i + 1 + n as usize % others) % w.nodes.len();
                let (primary, node) = (w.nodes[i].id, w.nodes[other].id);
                match what {
                    ReplicaFault::Stranded => {
                        let data = w.node_ids();
                        w.cut_off(node, &data, 0, span);
                    }
                    ReplicaFault::CutWitnesses(mask) => {
                        let some = w.some_witnesses(mask);
                        w.cut_off(node, &some, 0, span);
                    }
                    ReplicaFault::RotUncopied => w.rot_uncopied(other),
                    ReplicaFault::Cut => w.cut(vec![(primary, node), (node, primary)], span),
                    ReplicaFault::Isolated => w.isolate(node, 0, span),
                    ReplicaFault::DiskLost => w.lose_disk(other),
                    ReplicaFault::Rot => w.rot(other),
                }
            }),
        }
    }

    fn at_primary(&mut self, act: impl FnOnce(&mut Self, usize)) {
        let volume: Option<VolumeId> = self.volumes.keys().next().copied();
        if let Some(i) = volume.and_then(|volume| self.primary_of(volume)) {
            act(self, i);
        }
    }

    fn data_index(&self, a: u32) -> usize {
        a as usize % self.nodes.len()
    }

    pub(super) fn witness_index(&self, a: u32) -> usize {
        a as usize % self.witnesses.len()
    }

    fn all_nodes(&self) -> Vec<NodeId> {
        let mut all = self.node_ids();
        all.extend(self.witness_ids());
        all
    }

    fn some_witnesses(&self, mask: u32) -> Vec<NodeId> {
        let all = self.witness_ids().into_iter().enumerate();
        all.filter(|(at, _)| mask >> at & 1 == 1)
            .map(|(_, id)| id)
            .collect()
    }

    fn any_node(&self, a: u32) -> NodeId {
        let all = self.all_nodes();
        all[a as usize % all.len()]
    }

    /// Ends a process; the disk keeps what it has, or loses what was not synced.
    fn end_process(&mut self, i: usize, power: bool, span: u64) -> bool {
        let now = self.now();
        let Some(process) = self.nodes[i].process.take() else {
            return false;
        };
        self.executor.end(process.pid);
        self.dead.insert(self.nodes[i].id, process.instance);
        if power {
            self.nodes[i].disk.crash();
            self.nodes[i].lost_power = true;
        } else {
            self.nodes[i].disk.kill_process();
        }
        self.nodes[i].disk.release();
        self.nodes[i].down_until = now + span;
        self.at(now + span, Event::Start(i));
        drop(process);
        self.links_of(i, false);
        true
    }

    fn power_loss(&mut self, i: usize, span: u64) {
        let id = self.nodes[i].id;
        let fragile = self
            .volumes
            .values()
            .any(|volume| volume.fragile.is_some_and(|node| node != id));
        if fragile {
            return self.kill(i, span);
        }
        if self.end_process(i, true, span) {
            self.count("power loss");
        } else {
            self.nodes[i].disk.crash();
            self.nodes[i].lost_power = true;
        }
    }

    fn power_loss_all(&mut self, span: u64) {
        for i in 0..self.nodes.len() {
            self.power_loss(i, span);
        }
        for w in 0..self.witnesses.len() {
            self.witness_crash(w, span);
        }
        self.count("power loss of all");
    }

    pub(super) fn kill(&mut self, i: usize, span: u64) {
        let instance = self.nodes[i].process.as_ref().map(|p| p.instance);
        let node = self.nodes[i].id;
        if self.end_process(i, false, span) {
            self.count("process killed");
            if let Some(instance) = instance {
                self.supervise(node, instance);
            }
        }
    }

    pub(super) fn exit_node(&mut self, i: usize, pid: ProcId) {
        if self.nodes[i].process.as_ref().is_some_and(|p| p.pid == pid) {
            let span = self.rng.below(500 * MS);
            self.kill(i, span);
        }
    }

    /// The supervisor's report of the process that ran before this one reaches all witnesses only now.
    fn late_report(&mut self, i: usize) {
        let node = self.nodes[i].id;
        let Some(instance) = self.dead.get(&node).copied() else {
            return;
        };
        self.count("late report");
        for witness in self.witness_ids() {
            let at = self.now() + 1 + self.rng.below(2 * MS);
            let report = Event::Report {
                witness,
                node,
                instance,
            };
            self.at(at, report);
        }
    }

    pub(super) fn witness_crash(&mut self, w: usize, span: u64) {
        let now = self.now();
        if self.witnesses[w].process.is_none() {
            return;
        }
        self.count("witness crash");
        let kept = self.witnesses[w].crash(&mut self.rng);
        self.witnesses[w].down_until = now + span;
        self.at(now + span, Event::StartWitness(w));
        // What was kept of the writes under way is accepted, durably, though nobody heard of it.
        for write in kept {
            self.apply_write(w, write);
        }
    }

    fn pause(&mut self, i: usize, span: u64) {
        let until = self.now() + span;
        let Some(process) = &mut self.nodes[i].process else {
            return;
        };
        if process.paused_until.is_some() {
            return;
        }
        process.paused_until = Some(until);
        let pid = process.pid;
        self.executor.pause(pid);
        self.count(if span < MINUTE {
            "process paused"
        } else {
            "process frozen for minutes"
        });
        self.at(until, Event::Resume(i, pid));
    }

    pub(super) fn resume_node(&mut self, i: usize, pid: ProcId) {
        let Some(process) = &mut self.nodes[i].process else {
            return;
        };
        if process.pid != pid || process.paused_until.take().is_none() {
            return;
        }
        self.executor.resume(pid);
        self.settle();
        if let Some(process) = &mut self.nodes[i].process {
            process.tick_at = self.executor.now();
        }
        self.tick_node(i, pid);
    }

    fn pause_witness(&mut self, w: usize, span: u64) {
        let until = self.now() + span;
        let Some(process) = &mut self.witnesses[w].process else {
            return;
        };
        if process.paused_until.is_some() {
            return;
        }
        process.paused_until = Some(until);
        let pid = process.pid;
        self.count(if span < MINUTE {
            "witness paused"
        } else {
            "witness frozen for minutes"
        });
        self.at(until, Event::ResumeWitness(w, pid));
    }

    pub(super) fn resume_witness(&mut self, w: usize, pid: ProcId) {
        let now = self.now();
        if let Some(process) = &mut self.witnesses[w].process
            && process.pid == pid
            && process.paused_until.take().is_some()
        {
            process.tick_at = now;
            self.tick_witness(w, pid);
        }
    }

    fn cut(&mut self, pairs: Vec<(NodeId, NodeId)>, span: u64) {
        self.count("links cut");
        for (from, to) in &pairs {
            self.net.cut(*from, *to);
            if self.net.streams() {
                self.reset_quietly(*from, *to);
            }
        }
        let at = self.now() + span;
        self.at(at, Event::Mend(pairs));
    }

    pub(super) fn mend(&mut self, pairs: &[(NodeId, NodeId)]) {
        for (from, to) in pairs {
            self.net.mend(*from, *to);
        }
        for (a, b) in pairs {
            self.tell(*a, *b, true);
        }
    }

    fn isolate(&mut self, node: NodeId, mode: u8, span: u64) {
        let all = self.all_nodes();
        self.cut_off(node, &all, mode, span);
    }

    fn cut_off(&mut self, node: NodeId, others: &[NodeId], mode: u8, span: u64) {
        let mut pairs = Vec::new();
        for other in others.iter().filter(|other| **other != node) {
            if mode != 2 {
                pairs.push((*other, node));
            }
            if mode != 1 {
                pairs.push((node, *other));
            }
        }
        self.cut(pairs, span);
    }

    fn split(&mut self, nodes: &[NodeId], mask: u32, span: u64) {
        let side = |index: usize| mask >> (index % 6) & 1;
        let mut pairs = Vec::new();
        for (i, a) in nodes.iter().enumerate() {
            for (j, b) in nodes.iter().enumerate() {
                if side(i) != side(j) {
                    pairs.push((*a, *b));
                }
            }
        }
        self.cut(pairs, span);
    }

    fn reset(&mut self, a: NodeId, b: NodeId) {
        if a != b {
            self.count("connection reset");
            self.reset_quietly(a, b);
            self.tell(a, b, true);
        }
    }

    fn reset_quietly(&mut self, a: NodeId, b: NodeId) {
        self.net.reset(a, b);
        self.tell(a, b, false);
    }

    /// Both ends hear of their connection, if both are data nodes.
    fn tell(&mut self, a: NodeId, b: NodeId, up: bool) {
        let data = self.scenario.data;
        if a.0 <= data && b.0 <= data && a != b {
            self.link_event(a.0 as usize - 1, b, up);
            self.link_event(b.0 as usize - 1, a, up);
        }
    }

    fn clock_rate(&mut self, a: u32, ppm: i64) {
        let now = self.now();
        let bound = i64::try_from(self.scenario.clock_ppm).expect("small");
        let ppm = ppm.clamp(-bound, bound);
        self.count("clock rate");
        let index = a as usize % (self.nodes.len() + self.witnesses.len());
        match self.nodes.get_mut(index) {
            Some(node) => node.clock.change_rate(now, ppm),
            None => {
                let w = index - self.nodes.len();
                self.witnesses[w].clock.change_rate(now, ppm);
            }
        }
    }

    /// Whether this node's copies may be damaged or lost now.
    fn may_lose(&mut self, i: usize) -> bool {
        let id = self.nodes[i].id;
        self.refresh_fragile();
        let placed = |volume: &super::VolumeWorld| volume.policy.placement.contains(&id);
        let volumes: Vec<VolumeId> = self
            .volumes
            .iter()
            .filter(|(_, volume)| placed(volume))
            .map(|(id, _)| *id)
            .collect();
        let safe = volumes
            .iter()
            .all(|volume| self.others_suffice(id, *volume));
        if safe {
            for volume in volumes {
                if let Some(world) = self.volumes.get_mut(&volume) {
                    world.fragile = Some(id);
                }
            }
        }
        safe
    }

    /// Whether the other registered copies are all sound, and enough of them hold everything committed: with the copy on
    /// `id` gone, any n - k + 1 of them still have it in sight. A process that is down takes nothing with it.
    fn others_suffice(&self, id: NodeId, volume: VolumeId) -> bool {
        let world = &self.volumes[&volume];
        let Some(register) = world.oracle.chain.newest() else {
            return false;
        };
        let committed = world.oracle.last_committed();
        let others = register.members.iter().filter(|m| m.node != id);
        let copies: Vec<_> = others
            .map(|m| (m, world.oracle.copies.get(&(m.node, m.incarnation))))
            .collect();
        let sound = |m: &Member, copy: &Copy| {
            let i = m.node.0 as usize - 1;
            let clear = match self.host(i, volume) {
                Some(host) => {
                    let settled = !host.doubt || copy.durable.last() >= committed;
                    host.incarnation == m.incarnation && !host.damaged && !host.failed && settled
                }
                None => !self.nodes[i].lost_power,
            };
            clear && !copy.tainted && !copy.gone
        };
        let all_sound = copies
            .iter()
            .all(|(m, copy)| copy.is_some_and(|copy| sound(m, copy)));
        let holding = copies
            .iter()
            .filter(|(_, copy)| copy.is_some_and(|copy| copy.durable.last() >= committed));
        world.fragile.is_none()
            && register.members.len() == world.policy.placement.len()
            && register.quorum() >= 2
            && all_sound
            && holding.count() + 1 >= register.quorum()
    }

    /// A lost copy is replaced once the register has a sound one on its node again.
    pub(super) fn refresh_fragile(&mut self) {
        for volume in self.volumes.keys().copied().collect::<Vec<_>>() {
            let world = &self.volumes[&volume];
            let Some(node) = world.fragile else { continue };
            let Some(register) = world.oracle.chain.newest() else {
                continue;
            };
            let erring = self.nodes[node.0 as usize - 1].erring;
            let sound = register.members.iter().any(|m| {
                m.node == node
                    && !erring
                    && world
                        .oracle
                        .copies
                        .get(&(m.node, m.incarnation))
                        .is_some_and(|copy| !copy.tainted && !copy.gone)
            });
            if sound && let Some(world) = self.volumes.get_mut(&volume) {
                world.fragile = None;
            }
        }
    }

    /// The copies on this node may be damaged from now on.
    fn taint(&mut self, i: usize) {
        let id = self.nodes[i].id;
        for world in self.volumes.values_mut() {
            for ((node, _), copy) in &mut world.oracle.copies {
                copy.tainted |= *node == id;
            }
        }
    }

    fn disk_error(&mut self, i: usize, write: bool, nth: u64) {
        // It costs no copy, but it may strike while one is opened: not while another one is lost.
        if self.may_lose(i) {
            self.count("disk error");
            self.nodes[i].erring = true;
            let kind = if write { OpKind::Write } else { OpKind::Sync };
            self.nodes[i].disk.fail_nth(kind, nth, DiskFault::Eio);
        }
    }

    fn rot(&mut self, i: usize) {
        if !self.may_lose(i) {
            return;
        }
        let volume = self.volumes.keys().next().copied();
        let Some(dir) = volume
            .and_then(|volume| self.host(i, volume))
            .map(|host| host.dir.clone())
        else {
            return;
        };
        self.count("bit rot");
        self.taint(i);
        // Somewhere in the part of the first segments that is in use.
        for number in 1..12_u64 {
            let path = segment_path(&dir, number);
            let offset = self.rng.below(24_576);
            if self.nodes[i]
                .disk
                .rot(&path, offset, 1 << self.rng.below(8))
            {
                break;
            }
        }
        self.kill(i, 50 * MS);
    }

    /// Rots the oldest entry of this copy that some other registered copy has not, and restarts the process: not the
    /// end of the log, so that it is damage and not doubt.
    fn rot_uncopied(&mut self, i: usize) {
        let id = self.nodes[i].id;
        let Some((volume, world)) = self.volumes.first_key_value() else {
            return;
        };
        let (Some(host), Some(register)) = (self.host(i, *volume), world.oracle.chain.newest())
        else {
            return;
        };
        let others = register.members.iter().filter(|m| m.node != id);
        let least = others
            .filter_map(|m| world.oracle.copies.get(&(m.node, m.incarnation)))
            .map(|copy| copy.durable.last())
            .min();
        let own = world.oracle.copies.get(&(id, host.incarnation));
        let Some(info) = least
            .zip(own)
            .and_then(|(least, own)| own.durable.get(least.next()))
        else {
            return;
        };
        let (crc, dir) = (info.crc.to_le_bytes(), host.dir.clone());
        if !self.may_lose(i) {
            return;
        }
        self.count("bit rot of an entry that not all have");
        self.taint(i);
        let disk = &self.nodes[i].disk;
        for number in 1..64_u64 {
            let path = segment_path(&dir, number);
            let found = disk
                .peek(&path)
                .and_then(|bytes| bytes.windows(4).position(|four| four == crc));
            if let Some(offset) = found {
                disk.rot(&path, offset as u64, 1);
                break;
            }
        }
        self.kill(i, 20 * MS);
    }

    fn lose_disk(&mut self, i: usize) {
        if self.nodes[i].process.is_none() || !self.may_lose(i) {
            return;
        }
        self.count("disk lost");
        self.taint(i);
        let id = self.nodes[i].id;
        let span = 100 * MS + self.rng.below(1_000 * MS);
        self.end_process(i, true, span);
        let delays = Delays::new(self.executor.clone(), self.rng.id(), self.scenario.disk);
        self.nodes[i].disk = SimDisk::new(self.rng.id(), delays.clone());
        self.nodes[i].delays = delays;
        self.nodes[i].dirs.clear();
        for world in self.volumes.values_mut() {
            for ((node, _), copy) in &mut world.oracle.copies {
                copy.gone |= *node == id;
            }
        }
    }

    fn handover(&mut self, a: u32, b: u32) {
        let count = self.volumes.len();
        let Some(volume) = self.volumes.keys().nth(a as usize % count).copied() else {
            return;
        };
        if let Some(i) = self.primary_of(volume) {
            self.count("planned switchover");
            let node = NodeId(b % (self.scenario.data + 1));
            let to = (node.0 > 0).then_some(node);
            self.volume_event(i, volume, VolumeEvent::Handover { to });
            self.pump(i);
        }
    }
}

/// A segment of a log, as `docs/disk-format.md` names it.
fn segment_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("wal-{number:016x}"))
}
