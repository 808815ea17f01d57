//! After the last fault: everything is mended and started, and the world waits for writes to resume and for all copies
//! to become equal.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use mainstay_replication::quorum::sight;
use mainstay_storage::Image;
use mainstay_storage::engine::SimDisk;
use mainstay_types::{NodeId, VolumeId, VolumeKind};
use mainstay_volume::store::State;

use super::{Event, World};
use crate::client::Phase;
use crate::node::whole_image;
use crate::properties::Property;
use crate::properties::linearizable::SECTOR;
use crate::properties::liveness::{CONVERGE_NS, Final, RESUME_NS, unequal};
use crate::scenario::MS;

type Images = Rc<RefCell<Vec<(VolumeId, NodeId, Option<Bytes>)>>>;

/// How far the end is.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// No fault is injected any more.
    pub(super) healed: bool,
    healed_at: u64,
    resumed_at: Option<u64>,
    /// Images that are being read, how many, and what was committed when that began.
    images: Option<(Images, usize, u64)>,
    /// All is said.
    pub(super) over: bool,
}

impl World {
    pub(super) fn end_faults(&mut self) {
        let now = self.now();
        self.trace.note(now, 7, 0, 0, || "faults end".to_owned());
        self.ending.healed = true;
        self.ending.healed_at = now;
        self.net.heal();
        for i in 0..self.nodes.len() {
            let node = &mut self.nodes[i];
            node.disk.clear_faults();
            node.disk.set_capacity(None);
            node.disk.release();
            node.down_until = 0;
            match &node.process {
                None => self.start_node(i),
                Some(process) => {
                    let pid = process.pid;
                    self.resume_node(i, pid);
                    self.links_of(i, true);
                }
            }
        }
        for w in 0..self.witnesses.len() {
            self.witnesses[w].down_until = 0;
            match &self.witnesses[w].process {
                None => self.start_witness(w),
                Some(process) => {
                    let pid = process.pid;
                    self.resume_witness(w, pid);
                }
            }
        }
        for volume in self.volumes.values_mut() {
            volume.answered_at_end = volume.oracle.ops.answered;
        }
        self.at(now + 50 * MS, Event::Poll);
    }

    pub(super) fn poll_ending(&mut self) {
        let now = self.now();
        if self.ending.resumed_at.is_none() {
            let resumed = self
                .volumes
                .values()
                .all(|volume| volume.oracle.ops.answered > volume.answered_at_end);
            if resumed {
                self.ending.resumed_at = Some(now);
                for client in &mut self.clients {
                    client.finishing = true;
                }
            } else if now > self.ending.healed_at + RESUME_NS {
                if self.beyond_repair() {
                    self.ending.over = true;
                    return;
                }
                let text = self.describe("no write is answered");
                return self.violate(Property::Liveness, text);
            }
        } else if let Some(reason) = self.not_equal() {
            let since = self.ending.resumed_at.unwrap_or(now);
            if now > since + CONVERGE_NS {
                let text = self.describe(&reason);
                return self.violate(Property::Liveness, text);
            }
        } else if self.images_equal() {
            self.ending.over = true;
            return;
        }
        self.at(now + 100 * MS, Event::Poll);
    }

    /// Whether damage that was injected has met a membership that shrank since, so that too few sound copies are
    /// registered: only an operator could go on.
    fn beyond_repair(&self) -> bool {
        self.volumes.values().any(|world| {
            let Some(register) = world.oracle.chain.newest() else {
                return false;
            };
            let sound = register.members.iter().filter(|m| {
                let copy = world.oracle.copies.get(&(m.node, m.incarnation));
                copy.is_some_and(|copy| !copy.tainted && !copy.gone)
            });
            sound.count() < sight(register.members.len(), register.quorum())
        })
    }

    fn finals(&self, volume: VolumeId) -> Vec<Final> {
        let of = |i: usize| {
            let host = self.host(i, volume)?;
            let member = host.volume.member();
            let copy = self.volumes[&volume]
                .oracle
                .copies
                .get(&(self.nodes[i].id, host.incarnation))?;
            Some(Final {
                node: self.nodes[i].id,
                role: member.role(),
                commit: member.commit(),
                last: copy.durable.last(),
                applied: host.volume.applied(),
                crc: copy
                    .durable
                    .get(copy.durable.last())
                    .map_or(0, |info| info.crc),
                sessions: host.volume.sessions().encode(),
            })
        };
        (0..self.nodes.len()).filter_map(of).collect()
    }

    /// Why the clients or the copies are not done yet.
    fn not_equal(&self) -> Option<String> {
        for client in &self.clients {
            // A client whose volume somebody else holds has nothing to wait for.
            let done = client.phase == Phase::Stopped || client.attach.is_some();
            if !done {
                return Some(format!("client {} has no answer", client.id));
            }
        }
        for (volume, world) in self.volumes.iter().filter(|(_, world)| !world.needs_copy) {
            let register = world.oracle.chain.newest()?;
            for node in &world.policy.placement {
                if register.member(*node).is_none() {
                    return Some(format!("node {node} is no member"));
                }
            }
            if register.members.len() != world.policy.placement.len() {
                return Some(format!("{} members", register.members.len()));
            }
            let committed = world.oracle.last_committed();
            let finals = self.finals(*volume);
            if let Some(reason) = unequal(&finals, &world.policy.placement, committed) {
                return Some(reason);
            }
        }
        None
    }

    /// Reads every block image whole and compares it with the model. False until the answers are there.
    fn images_equal(&mut self) -> bool {
        let committed: u64 = self
            .volumes
            .values()
            .map(|world| world.oracle.last_committed().0)
            .sum();
        // What was committed while they were read may or may not be in them: read them again.
        let fresh = self.ending.images.take().filter(|read| read.2 == committed);
        let Some((images, count, _)) = fresh else {
            let (images, count) = self.read_images();
            self.ending.images = Some((images, count, committed));
            return false;
        };
        if images.borrow().len() < count {
            self.ending.images = Some((images, count, committed));
            return false;
        }
        let found: Vec<_> = images.borrow_mut().drain(..).collect();
        for (volume, node, data) in found {
            let oracle = &self.volumes[&volume].oracle;
            let last = oracle.last_committed();
            let expected = |sector: usize| oracle.ops.sector(sector as u64, last).to_le_bytes();
            let sector_bytes = usize::try_from(SECTOR).expect("small");
            let wrong = match &data {
                None => Some("does not read back".to_owned()),
                Some(data) => data
                    .chunks(sector_bytes)
                    .enumerate()
                    .find(|(sector, bytes)| bytes.chunks(8).any(|word| word != expected(*sector)))
                    .map(|(sector, bytes)| {
                        format!(
                            "differs from the committed writes at sector {sector}: {:x?}, written were {:x?}",
                            bytes.chunks(8).take(2).map(|w| w.try_into().map_or(0, u64::from_le_bytes)).collect::<Vec<_>>(),
                            oracle.ops.history(sector as u64)
                        )
                    }),
            };
            if let Some(wrong) = wrong {
                let text = format!("the image on node {node} {wrong}");
                self.violate(Property::Liveness, text);
                return true;
            }
        }
        true
    }

    fn read_images(&mut self) -> (Images, usize) {
        let images = Images::default();
        let mut count = 0;
        for (volume, world) in &self.volumes {
            if world.spec.kind == VolumeKind::Log || world.needs_copy {
                continue;
            }
            for node in &world.policy.placement {
                let i = node.0 as usize - 1;
                let (Some(host), Some(process)) = (self.host(i, *volume), &self.nodes[i].process)
                else {
                    continue;
                };
                count += 1;
                let task = read_whole(host.state.clone(), images.clone(), *volume, *node);
                self.executor.spawn(process.pid, task);
            }
        }
        (images, count)
    }

    fn describe(&self, reason: &str) -> String {
        let mut text = reason.to_owned();
        for (volume, world) in &self.volumes {
            text += &format!(
                "; volume {}; register {}; committed {}; fragile {:?}",
                world.spec.name,
                world.oracle.chain.newest().map_or_else(String::new, brief),
                world.oracle.last_committed(),
                world.fragile
            );
            for (i, node) in self.nodes.iter().enumerate() {
                let Some(process) = &node.process else {
                    text += &format!("; node {} down", node.id);
                    continue;
                };
                match self.host(i, *volume) {
                    None => text += &format!("; node {} opening {:?}", node.id, process.opening),
                    Some(host) => {
                        let member = host.volume.member();
                        text += &format!(
                            "; node {} {:?} sealed {} commit {} last {} register {:?} damaged {} failed {} durable {} changing {} peers {:?}",
                            node.id,
                            member.role(),
                            member.sealed(),
                            member.commit(),
                            member.last(),
                            member.register().map(|r| (r.epoch, r.version)),
                            host.damaged,
                            host.failed,
                            member.durable(),
                            member.is_changing(),
                            member.peer_status(node.clock.read(self.now()))
                        );
                    }
                }
            }
        }
        for client in &self.clients {
            text += &format!(
                "; client {} {:?} at {} gen {} open {:?}",
                client.id,
                client.phase,
                client.node,
                client.generation,
                client.open_ops.keys().collect::<Vec<_>>()
            );
        }
        text
    }
}

fn brief(register: &mainstay_types::Register) -> String {
    let members: Vec<_> = register.members.iter().map(|m| m.node).collect();
    format!(
        "version {} epoch {} primary {} members {members:?} k {} placement {:?} min {}",
        register.version,
        register.epoch,
        register.primary.node,
        register.ack_quorum,
        register.policy.placement,
        register.policy.min_copies
    )
}

async fn read_whole(state: Rc<State<SimDisk>>, images: Images, volume: VolumeId, node: NodeId) {
    let data = match &*state {
        State::Block(image) => whole_image(image as &Image<SimDisk>).await,
        State::Log(_) => None,
    };
    images.borrow_mut().push((volume, node, data));
}
