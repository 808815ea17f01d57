//! Data nodes: what they claim in their beats, carrying out what `Beats` asks for, and their ticks.

use bytes::Bytes;
use mainstay_replication::BeatOutput;
use mainstay_replication::message::{Claim, ClaimHealth, Message, Orphan};
use mainstay_types::{MonoTime, VolumeId};
use mainstay_volume::Event as VolumeEvent;

use super::{Event, Packet, World};
use crate::executor::ProcId;
use crate::node::Process;

/// Work overdue by this much is reported in the beat.
const UNWELL_MS: u64 = 200;

impl World {
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
