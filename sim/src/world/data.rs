//! Data nodes: starting, their copies, and what comes of the work that their disks do.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use mainstay_replication::Beats;
use mainstay_storage::engine::SimDisk;
use mainstay_types::{Epoch, Incarnation, Instance, Lineage, NodeId, VolumeId};
use mainstay_volume::store::{CopyConfig, NewCopy};
use mainstay_volume::{Event as VolumeEvent, Now, Volume, WriteGate};

use super::{Event, Reply, World};
use crate::clock::Clock;
use crate::disk::Delays;
use crate::executor::ProcId;
use crate::node::{
    Answer, CLUSTER, CreateArgs, DataNode, Done, Host, Jobs, OpenArgs, Opened, Opening, Process,
    create, open, write_log,
};
use crate::properties::CopyLog;
use crate::properties::damage::Found;
use crate::scenario::MS;

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

    pub(super) fn answer(&self, i: usize, volume: VolumeId, incarnation: Incarnation) -> Answer {
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
        let task = open(self.executor.clone(), args, answer.clone());
        self.executor.spawn(answer.pid, task);
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

    pub(super) fn now_of(&self, i: usize) -> Now {
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
                let failed = VolumeEvent::CheckpointFailed { mended: false };
                self.volume_event(i, volume, failed);
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
            gate: WriteGate::default(),
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

    pub(super) fn host_mut(&mut self, i: usize, volume: VolumeId) -> Option<&mut Host> {
        self.nodes[i].process.as_mut()?.hosts.get_mut(&volume)
    }

    pub(super) fn oracle_mut(&mut self, volume: VolumeId) -> &mut crate::properties::Oracle {
        &mut self
            .volumes
            .get_mut(&volume)
            .expect("every copy is of a known volume")
            .oracle
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
