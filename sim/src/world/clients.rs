//! Clients: acting at their times, and taking their answers to the oracle.

use std::collections::BTreeMap;

use mainstay_replication::Rng;
use mainstay_types::{Lsn, NodeId, SessionId, VolumeKind};
use mainstay_volume::{Event as VolumeEvent, OpResult, Outcome, Refusal};

use super::{CLIENT_BASE, Event, Packet, Reply, World};
use crate::client::{Ask, Client, Mutation, Phase, Waiting};
use crate::net::Arrival;
use crate::properties::{Called, LogRead, Property};
use crate::scenario::MS;

impl World {
    pub(super) fn build_clients(&mut self) {
        let mut number = 0;
        let volumes: Vec<_> = self.volumes.keys().copied().collect();
        for volume in volumes {
            let world = &self.volumes[&volume];
            let setup = self
                .scenario
                .volumes
                .iter()
                .find(|setup| setup.policy == world.policy && setup.kind == world.spec.kind)
                .expect("every volume has a setup");
            let clients = setup.clients;
            let size_bytes = match setup.kind {
                VolumeKind::Block { size_bytes } => Some(size_bytes),
                VolumeKind::Log => None,
            };
            let one_host = self.rng.below(2) == 0;
            for index in 0..clients {
                let mut rng = Rng::new(self.rng.id());
                let attach = match size_bytes {
                    Some(_) if one_host => Some("host".to_owned()),
                    Some(_) => Some(format!("host-{index}")),
                    None => None,
                };
                let session = SessionId(rng.id());
                let mut log_rng = Rng::new(session.0);
                let rivals = size_bytes.is_none() && log_rng.below(3) == 0;
                let token = if rivals { log_rng.below(4) } else { 0 };
                let trims = size_bytes.is_none() && log_rng.below(4) == 0;
                let act_at = 20 * MS + rng.below(100 * MS);
                let patience_ns =
                    MS * [300, 1_000, 3_000][usize::try_from(rng.below(3)).unwrap_or(0)];
                let patience_ns = match self.scenario.patience_ns {
                    Some(given) => given[index as usize % given.len()],
                    None => patience_ns,
                };
                self.clients.push(Client {
                    id: NodeId(CLIENT_BASE + number),
                    volume,
                    nodes: self.volumes[&volume].policy.placement.clone(),
                    node: self.volumes[&volume].policy.placement[0],
                    session,
                    generation: 0,
                    known: false,
                    conn: u64::from(number) << 32,
                    phase: Phase::Idle,
                    open_ops: BTreeMap::new(),
                    next_seq: 1,
                    waiting: BTreeMap::new(),
                    next_token: 1,
                    act_at,
                    window: self.scenario.window,
                    pace_ns: self.scenario.pace_ns,
                    patience_ns,
                    attach,
                    takeover: false,
                    size_bytes,
                    token,
                    rivals,
                    trims,
                    fenced_by: None,
                    tail: Lsn(1),
                    seen: Lsn::ZERO,
                    rng,
                    log_rng,
                    answered: 0,
                    answered_at: 0,
                    finishing: false,
                });
                self.at(act_at, Event::ClientAct(number as usize, act_at));
                number += 1;
            }
        }
    }

    /// Client links are streams; a loss is a break.
    pub(super) fn send_to_client(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        self.send_client(from, to, packet);
    }

    fn send_client(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        let now = self.now();
        let wait = 20_000 + self.rng.below(self.scenario.net.delay_max_ns.min(5 * MS));
        let last = self.client_links.entry((from, to)).or_insert(0);
        let at = (now + wait).max(*last + 1);
        *last = at;
        self.arrive(from, to, Arrival { at, generation: 0 }, packet);
    }

    pub(super) fn client_act(&mut self, c: usize, at: u64) {
        let now = self.now();
        if self.clients[c].act_at != at || self.clients[c].phase == Phase::Stopped {
            return;
        }
        match self.clients[c].phase {
            Phase::Idle => self.client_connect(c),
            Phase::Opening | Phase::Open => {
                let client = &mut self.clients[c];
                let late = client
                    .waiting
                    .values()
                    .any(|(sent, _)| now >= sent + client.patience_ns);
                if late {
                    let (id, node, conn) = (client.id, client.node, client.conn);
                    if client.rng.below(2) == 0 {
                        self.send_client(id, node, Packet::Close(conn));
                    }
                    self.clients[c].reconnect(now, None, 10 * MS);
                } else {
                    if client.phase == Phase::Open {
                        self.client_work(c);
                    }
                    let client = &mut self.clients[c];
                    let pace = client.pace_ns;
                    client.act_at = now + 1 + client.rng.below(2 * pace);
                }
            }
            Phase::Stopped => return,
        }
        self.client_sleep(c);
    }

    fn client_sleep(&mut self, c: usize) {
        let at = self.clients[c].act_at;
        self.at(at, Event::ClientAct(c, at));
    }

    fn ask(&mut self, c: usize, ask: Ask, waiting: Waiting) {
        let now = self.now();
        let client = &mut self.clients[c];
        let token = client.next_token;
        client.next_token += 1;
        client.waiting.insert(token, (now, waiting));
        let (id, node, conn) = (client.id, client.node, client.conn);
        self.send_client(id, node, Packet::Ask(conn, token, ask));
    }

    fn client_connect(&mut self, c: usize) {
        let now = self.now();
        let client = &mut self.clients[c];
        client.conn += 1;
        client.generation += 1;
        client.phase = Phase::Opening;
        client.act_at = now + client.patience_ns + 1;
        client.takeover = client.rng.below(6) == 0;
        if client.rivals && client.log_rng.below(8) == 0 {
            client.token += 1;
        }
        let ask = Ask::Open {
            session: client.session,
            generation: client.generation,
            create: !client.known,
            attachment: client.attach.clone().map(|name| (name, client.takeover)),
            token: client.token,
        };
        self.ask(c, ask, Waiting::Open);
    }

    fn client_work(&mut self, c: usize) {
        let client = &mut self.clients[c];
        if client.finishing {
            if client.open_ops.is_empty() {
                client.phase = Phase::Stopped;
            }
            return;
        }
        if let Some(current) = client.fenced_by {
            if client.open_ops.is_empty() {
                client.fenced_by = None;
                client.begin_session();
                client.token = current + 1;
                let (now, node) = (self.now(), self.clients[c].node);
                self.clients[c].reconnect(now, Some(node), 300 * MS);
            }
            return;
        }
        if client.size_bytes.is_none() && client.log_rng.below(4) == 0 {
            return self.client_tail(c);
        }
        match client.rng.below(10) {
            0..=6 if client.open_ops.len() < client.window => {
                let op = client.mutation();
                let seq = client.next_seq;
                client.next_seq += 1;
                client.open_ops.insert(seq, op);
                let (volume, session) = (client.volume, client.session);
                let ops = &mut self.oracle_mut(volume).ops;
                let called = Called {
                    tag: op.first_word(),
                    records: op.records,
                    expected: op.expected,
                    kind: op.kind,
                    arg: op.offset,
                    floor: ops.floor,
                    never: false,
                };
                ops.call(session, seq, called);
                self.send_mutation(c, seq, op);
            }
            7 => self.ask_position(c),
            8 | 9 => self.client_read(c),
            _ => {}
        }
    }

    fn send_mutation(&mut self, c: usize, seq: u64, op: Mutation) {
        self.ask(c, Ask::Mutate { seq, op }, Waiting::Mutate(seq));
    }

    fn ask_position(&mut self, c: usize) {
        let floor = self.volumes[&self.clients[c].volume].oracle.ops.floor;
        self.ask(c, Ask::Position, Waiting::Position { floor });
    }

    fn client_read(&mut self, c: usize) {
        let floor = self.volumes[&self.clients[c].volume].oracle.ops.floor;
        let client = &mut self.clients[c];
        if let Some(size) = client.size_bytes {
            let blocks = size / 4_096;
            let offset = 4_096 * client.rng.below(blocks);
            let most = (size - offset) / 512;
            let len = u32::try_from(512 * (1 + client.rng.below(most))).expect("small");
            let ask = Ask::ReadBlock { offset, len };
            return self.ask(c, ask, Waiting::ReadBlock { offset, floor });
        }
        let from = Lsn(1 + client.rng.below(floor.0 + 1));
        let bytes_max = 128 << client.rng.below(8);
        let stale_ok = client.rng.below(4) == 0;
        let floor = if stale_ok { Lsn::ZERO } else { floor };
        let ask = Ask::ReadLog {
            from,
            bytes_max,
            stale_ok,
        };
        let waiting = Waiting::ReadLog {
            from,
            floor,
            tail: false,
        };
        self.ask(c, ask, waiting);
    }

    /// Follows the log, at whatever node the client talks to.
    fn client_tail(&mut self, c: usize) {
        let client = &mut self.clients[c];
        let from = client.tail;
        let ask = Ask::ReadLog {
            from,
            bytes_max: 128 << client.log_rng.below(8),
            stale_ok: true,
        };
        let waiting = Waiting::ReadLog {
            from,
            floor: Lsn::ZERO,
            tail: true,
        };
        self.ask(c, ask, waiting);
    }

    pub(super) fn deliver_ask(&mut self, i: usize, conn: u64, token: u64, ask: Ask) {
        let c = usize::try_from(conn >> 32).expect("made here");
        let volume = self.clients[c].volume;
        if self.host(i, volume).is_some() {
            let op = ask.op();
            self.volume_event(i, volume, VolumeEvent::Client { conn, token, op });
        }
    }

    pub(super) fn client_reply(&mut self, to: NodeId, conn: u64, token: u64, reply: Reply) {
        let c = (to.0 - CLIENT_BASE) as usize;
        let client = &mut self.clients[c];
        if client.conn != conn || matches!(client.phase, Phase::Idle | Phase::Stopped) {
            return;
        }
        let Some((_, waiting)) = client.waiting.remove(&token) else {
            return;
        };
        match (waiting, reply) {
            (Waiting::Mutate(seq), Reply::Op(OpResult::Refused(Refusal::RefusedBefore { .. }))) => {
                self.outcome_known(c, seq, Outcome::Never);
            }
            (
                Waiting::Mutate(seq),
                Reply::Op(OpResult::Refused(
                    Refusal::UnexpectedLsn { .. } | Refusal::TrimBeyondEnd { .. },
                )),
            ) => self.outcome_known(c, seq, Outcome::Never),
            (
                Waiting::ReadLog { tail, .. },
                Reply::Op(OpResult::Refused(Refusal::Trimmed { first })),
            ) => {
                let client = &mut self.clients[c];
                if tail {
                    client.tail = client.tail.max(first);
                }
                let volume = client.volume;
                let check = self.oracle_mut(volume).trim_told(first);
                self.check(check);
            }
            (waiting, Reply::Op(OpResult::Refused(Refusal::FencedToken { current }))) => {
                self.client_fenced(c, &waiting, current)
            }
            (_, Reply::Op(OpResult::Refused(refusal))) => {
                let now = self.now();
                let client = &mut self.clients[c];
                client.refused(now, &refusal);
                self.client_sleep(c);
            }
            (_, Reply::Op(OpResult::Interrupted)) => {
                let now = self.now();
                self.clients[c].reconnect(now, None, 20 * MS);
                self.client_sleep(c);
            }
            (Waiting::Open, Reply::Op(OpResult::Opened { commit, .. })) => {
                self.session_open(c, commit);
            }
            (Waiting::Mutate(seq), Reply::Op(OpResult::Committed { lsn, count, .. })) => {
                self.mutation_done(c, seq, lsn, count);
            }
            (Waiting::Outcome(seq), Reply::Op(OpResult::Outcome(outcome))) => {
                self.outcome_known(c, seq, outcome);
            }
            (Waiting::Position { floor }, Reply::Op(OpResult::Position { first, commit, .. })) => {
                let client = &mut self.clients[c];
                client.seen = client.seen.max(commit);
                let volume = client.volume;
                let check = self.oracle_mut(volume).position_read(first, commit, floor);
                self.check(check);
            }
            (Waiting::ReadBlock { offset, floor }, Reply::Block(Some(data))) => {
                let volume = self.clients[c].volume;
                let check = self.oracle_mut(volume).block_read(offset, &data, floor);
                self.check(check);
            }
            (
                Waiting::ReadLog { from, floor, tail },
                Reply::Log(through, Some((next, entries))),
            ) => {
                let client = &mut self.clients[c];
                if tail && client.tail == from {
                    client.tail = next;
                }
                let volume = client.volume;
                let read = LogRead {
                    from,
                    through,
                    next,
                    entries: &entries,
                    floor,
                };
                let check = self.oracle_mut(volume).log_read(&read);
                self.check(check);
            }
            (Waiting::ReadBlock { .. }, Reply::Block(None))
            | (Waiting::ReadLog { .. }, Reply::Log(_, None)) => {}
            (waiting, reply) => {
                let text = format!("{waiting:?} is answered by {reply:?}");
                self.violate(Property::Assertion, text);
            }
        }
    }

    fn session_open(&mut self, c: usize, commit: Lsn) {
        let now = self.now();
        let client = &mut self.clients[c];
        let volume = client.volume;
        client.phase = Phase::Open;
        client.known = true;
        client.act_at = now + 1 + client.rng.below(client.pace_ns);
        let mut again: Vec<(u64, Mutation)> = client
            .open_ops
            .iter()
            .map(|(seq, op)| (*seq, *op))
            .collect();
        let asks = client.rng.below(4) == 0;
        let last = again.last().map(|(seq, _)| *seq);
        if asks {
            again.pop();
        }
        let check = self.oracle_mut(volume).check_position(commit);
        self.check(check);
        for (seq, op) in again {
            self.send_mutation(c, seq, op);
        }
        if asks && let Some(seq) = last {
            self.ask(c, Ask::Outcome { seq }, Waiting::Outcome(seq));
        }
        self.client_sleep(c);
    }

    /// A newer writer has the log. What this client sends from now on would be refused; what it has sent is settled first.
    fn client_fenced(&mut self, c: usize, waiting: &Waiting, current: u64) {
        let now = self.now();
        let volume = self.clients[c].volume;
        let check = self.oracle_mut(volume).token_told(current);
        self.check(check);
        if let Waiting::Mutate(seq) = waiting {
            self.outcome_known(c, *seq, Outcome::Never);
            self.clients[c].fenced_by = Some(current);
        } else {
            self.clients[c].refused(now, &Refusal::FencedToken { current });
            self.client_sleep(c);
        }
    }

    fn mutation_done(&mut self, c: usize, seq: u64, lsn: Lsn, count: u32) {
        let now = self.now();
        let client = &mut self.clients[c];
        client.open_ops.remove(&seq);
        client.answered += 1;
        client.answered_at = now;
        client.seen = client.seen.max(Lsn(lsn.0 + u64::from(count) - 1));
        let (volume, session) = (client.volume, client.session);
        let check = self.oracle_mut(volume).answered(session, seq, lsn, count);
        self.check(check);
    }

    fn outcome_known(&mut self, c: usize, seq: u64, outcome: Outcome) {
        let (volume, session) = (self.clients[c].volume, self.clients[c].session);
        match outcome {
            Outcome::Committed { lsn, count, .. } => self.mutation_done(c, seq, lsn, count),
            Outcome::Never => {
                let check = self.oracle_mut(volume).ops.never(session, seq);
                self.check(check);
                self.clients[c].settled(seq, outcome);
            }
            Outcome::Pending => {
                if let Some(op) = self.clients[c].open_ops.get(&seq).copied() {
                    self.send_mutation(c, seq, op);
                }
            }
            Outcome::Forgotten => {
                let text = format!("the result of {seq} is forgotten");
                self.violate(Property::Linearizable, text);
            }
        }
    }
}
