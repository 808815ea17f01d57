//! One simulated cluster: the queue of events, and who gets which.
//!
//! One event at a time, in the order of true time and then of scheduling; after each, everything that became possible
//! at once is done, and the properties of what was touched are checked.

mod actions;
mod arrivals;
mod beats;
mod clients;
mod data;
mod ending;
mod faults;
mod witness_sets;
mod witnesses;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use mainstay_replication::message::{Message, WitnessMessage};
use mainstay_replication::{OpId, Rng, Round, Voter, WitnessSet};
use mainstay_types::{Instance, Lineage, NodeId, Policy, VolumeId, VolumeSpec};
use mainstay_volume::{ConnId, OpResult, Token};

use crate::client::{Ask, Client};
use crate::executor::{Executor, ProcId};
use crate::net::Net;
use crate::node::{DataNode, DoneQueue};
use crate::properties::{Check, EntryInfo, Oracle, Property, Violation};
use crate::scenario::{Fault, Scenario};
use crate::trace::Trace;
use crate::witness::WitnessNode;

/// What crosses the network.
#[derive(Debug, Clone)]
pub enum Packet {
    /// Between nodes.
    Core(Message, Bytes),
    /// From a client.
    Ask(ConnId, Token, Ask),
    /// A client closed its connection.
    Close(ConnId),
    /// To a client.
    Reply(ConnId, Token, Reply),
}

/// An answer to a client.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Of the volume itself.
    Op(OpResult),
    /// Bytes of a block volume.
    Block(Option<Bytes>),
    /// The last position that may be shown; where to go on, and what is shown.
    Log(
        mainstay_types::Lsn,
        Option<(mainstay_types::Lsn, Vec<EntryInfo>)>,
    ),
}

#[derive(Debug)]
enum Event {
    Deliver {
        from: NodeId,
        to: NodeId,
        generation: u64,
        packet: Packet,
    },
    /// What came while a process stood still and waits in its sockets: a link that breaks later does not take it away.
    Arrived {
        from: NodeId,
        to: NodeId,
        pid: ProcId,
        packet: Packet,
    },
    Tick(usize, ProcId),
    WitnessTick(usize, ProcId),
    WitnessStored(usize, ProcId, OpId),
    ClientAct(usize, u64),
    OperatorTick(VolumeId),
    Start(usize),
    StartWitness(usize),
    Resume(usize, ProcId),
    ResumeWitness(usize, ProcId),
    Exit(usize, ProcId),
    Report {
        witness: NodeId,
        node: NodeId,
        instance: Instance,
    },
    Fault(Fault),
    Mend(Vec<(NodeId, NodeId)>),
    RoomAgain(usize),
    GoesOn(usize),
    EndFaults,
    Poll,
}

/// One volume, as those see it who see everything.
#[derive(Debug)]
pub struct VolumeWorld {
    /// What it is.
    pub spec: VolumeSpec,
    /// Its history.
    pub lineage: Lineage,
    /// As created.
    pub policy: Policy,
    /// What must hold of it.
    pub oracle: Oracle,
    /// The operator's creation, until it is decided.
    creation: Option<Round>,
    /// A copy was lost or damaged, and is not replaced yet.
    fragile: Option<NodeId>,
    answered_at_end: u64,
    /// A learner is too far behind for the log, and there are no full copies here.
    needs_copy: bool,
}

/// The cluster.
#[expect(
    missing_debug_implementations,
    reason = "an open image prints nothing of use"
)]
pub struct World {
    /// What it runs.
    pub scenario: Scenario,
    /// Tasks and time.
    pub executor: Executor,
    rng: Rng,
    queue: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    net: Net,
    done: DoneQueue,
    nodes: Vec<DataNode>,
    witnesses: Vec<WitnessNode>,
    clients: Vec<Client>,
    volumes: BTreeMap<VolumeId, VolumeWorld>,
    next_pid: ProcId,
    /// The witnesses, as the operator who creates volumes has heard.
    operator_witnesses: Arc<WitnessSet>,
    /// The voter whose store was lost last.
    lost_voter: Option<Voter>,
    /// The newest set that any witness took up.
    newest_set: u64,
    /// What happened.
    pub trace: Trace,
    /// Faults by kind.
    pub injected: BTreeMap<&'static str, u64>,
    /// The last process of each data node that has ended.
    dead: BTreeMap<NodeId, Instance>,
    violation: Option<Violation>,
    ending: ending::Ending,
    /// Last delivery on each client's stream.
    client_links: BTreeMap<(NodeId, NodeId), u64>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.executor.end_all();
    }
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Report {
    /// What did not hold, if anything.
    pub violation: Option<Violation>,
    /// Of every event.
    pub hash: u64,
    /// How many events.
    pub events: u64,
    /// Faults by kind.
    pub injected: BTreeMap<&'static str, u64>,
    /// Changes of primary.
    pub promotions: u64,
    /// Register values decided beside those.
    pub changes: u64,
    /// Mutations answered to clients.
    pub answered: u64,
    /// Reads answered to clients.
    pub reads: u64,
    /// Virtual nanoseconds.
    pub virtual_ns: u64,
    /// The newest lines of the trace.
    pub lines: Vec<String>,
}

/// Events of one run: many times what the longest of the first 2,000 seeds takes.
const EVENTS_MAX: u64 = 2_000_000;
/// Polls of tasks in one run.
const POLLS_MAX: u64 = 20_000_000;
/// First witness.
const WITNESS_BASE: u32 = 11;
/// First client.
const CLIENT_BASE: u32 = 101;
/// The operator who creates volumes.
const OPERATOR: NodeId = NodeId(99);

impl World {
    /// A cluster that has not started.
    #[must_use]
    pub fn new(scenario: Scenario, trace: Trace) -> Self {
        let mut rng = Rng::new(scenario.seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5eed);
        let executor = Executor::default();
        let net = Net::new(scenario.net, rng.id());
        let mut world = Self {
            executor,
            net,
            queue: BTreeMap::new(),
            scheduled: 0,
            done: Rc::new(RefCell::new(VecDeque::new())),
            nodes: Vec::new(),
            witnesses: Vec::new(),
            clients: Vec::new(),
            volumes: BTreeMap::new(),
            next_pid: 1,
            operator_witnesses: Arc::default(),
            lost_voter: None,
            newest_set: 1,
            trace,
            injected: BTreeMap::new(),
            dead: BTreeMap::new(),
            violation: None,
            ending: ending::Ending::default(),
            client_links: BTreeMap::new(),
            rng,
            scenario,
        };
        world.build();
        world
    }

    fn build(&mut self) {
        self.build_nodes();
        self.operator_witnesses = self.first_witnesses();
        self.build_witnesses();
        self.build_volumes();
        self.build_clients();
        for (at, fault) in self.scenario.faults.clone() {
            self.at(at, Event::Fault(fault));
        }
        let end = self.scenario.faults_end;
        self.at(end, Event::EndFaults);
    }

    /// Runs to the end.
    pub fn run(&mut self) -> Report {
        loop {
            self.settle();
            if self.violation.is_some() || self.ending.over {
                break;
            }
            if self.ran_away() {
                let text = format!(
                    "more than {EVENTS_MAX} events, at {:.6} s: messages or retries multiply without end",
                    self.now() as f64 / 1e9
                );
                self.violate(Property::Liveness, text);
                break;
            }
            if !self.step() {
                self.violate(Property::Liveness, "nothing is left to happen".to_owned());
                break;
            }
        }
        self.report()
    }

    /// Moves to the next event or timer.
    fn step(&mut self) -> bool {
        let event = self.queue.first_key_value().map(|((at, _), _)| *at);
        let timer = self.executor.next_timer();
        match (event, timer) {
            (None, None) => return false,
            (Some(event), timer) if timer.is_none_or(|timer| event <= timer) => {
                self.executor.advance(event);
                if let Some(((_, _), event)) = self.queue.pop_first() {
                    self.handle(event);
                }
            }
            (_, Some(timer)) => self.executor.advance(timer),
            (Some(_), None) => {}
        }
        true
    }

    /// Whether far more has happened than in any run that makes progress.
    fn ran_away(&self) -> bool {
        self.trace.events() > EVENTS_MAX || self.executor.polls() > POLLS_MAX
    }

    /// Runs tasks and takes their answers until nothing moves.
    fn settle(&mut self) {
        while !self.ran_away() {
            self.executor.run_ready(POLLS_MAX);
            let Some((pid, volume, incarnation, done)) = self.done.borrow_mut().pop_front() else {
                return;
            };
            self.task_done(pid, volume, incarnation, done);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver {
                from,
                to,
                generation,
                packet,
            } => self.deliver(from, to, generation, packet),
            Event::Arrived {
                from,
                to,
                pid,
                packet,
            } => self.deliver_arrived(from, to, pid, packet),
            Event::Tick(node, pid) => self.tick_node(node, pid),
            Event::WitnessTick(witness, pid) => self.tick_witness(witness, pid),
            Event::WitnessStored(witness, pid, op) => self.witness_stored(witness, pid, op),
            Event::ClientAct(client, at) => self.client_act(client, at),
            Event::OperatorTick(volume) => self.operator_tick(volume),
            Event::Start(node) => self.start_node(node),
            Event::StartWitness(witness) => self.start_witness(witness),
            Event::Resume(node, pid) => self.resume_node(node, pid),
            Event::ResumeWitness(witness, pid) => self.resume_witness(witness, pid),
            Event::Exit(node, pid) => self.exit_node(node, pid),
            Event::Report {
                witness,
                node,
                instance,
            } => self.report_death(witness, node, instance),
            Event::Fault(fault) => self.inject(fault),
            Event::Mend(pairs) => self.mend(&pairs),
            Event::RoomAgain(node) => self.nodes[node].disk.set_capacity(None),
            Event::GoesOn(node) => self.nodes[node].disk.release(),
            Event::EndFaults => self.end_faults(),
            Event::Poll => self.poll_ending(),
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, generation: u64, packet: Packet) {
        let client = from.0 >= CLIENT_BASE || to.0 >= CLIENT_BASE;
        if !client && !self.net.delivers(from, to, generation) {
            return;
        }
        self.hand_over(from, to, packet);
    }

    /// A process that stood still reads what came meanwhile.
    fn deliver_arrived(&mut self, from: NodeId, to: NodeId, pid: ProcId, packet: Packet) {
        let present = if to.0 >= WITNESS_BASE {
            let witness = &self.witnesses[(to.0 - WITNESS_BASE) as usize];
            witness.process.as_ref().map(|process| process.pid)
        } else {
            let node = &self.nodes[to.0 as usize - 1];
            node.process.as_ref().map(|process| process.pid)
        };
        if present == Some(pid) {
            self.hand_over(from, to, packet);
        }
    }

    fn hand_over(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        let now = self.now();
        self.trace.note(
            now,
            1,
            u64::from(from.0) << 32 | u64::from(to.0),
            packet_code(&packet),
            || format!("{from:?} -> {to:?} {}", packet_text(&packet)),
        );
        if to.0 >= CLIENT_BASE {
            if let Packet::Reply(conn, token, reply) = packet {
                self.client_reply(to, conn, token, reply);
            }
        } else if to == OPERATOR {
            match packet {
                Packet::Core(Message::Register { volume, body }, _) => {
                    self.operator_answer(volume, from, body);
                }
                Packet::Core(Message::Witness(WitnessMessage::Set(set)), _) => {
                    self.operator_learns_set(set);
                }
                _ => {}
            }
        } else if to.0 >= WITNESS_BASE {
            self.deliver_witness(from, to, packet);
        } else {
            self.deliver_data(from, to, packet);
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.executor.now()
    }

    fn at(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        let at = at.max(self.now());
        self.queue.insert((at, self.scheduled), event);
    }

    fn send(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        let now = self.now();
        let [first, second] = self.net.send(now, from, to);
        if let Some(arrival) = second {
            self.arrive(from, to, arrival, packet.clone());
        }
        if let Some(arrival) = first {
            self.arrive(from, to, arrival, packet);
        }
    }

    fn arrive(&mut self, from: NodeId, to: NodeId, arrival: crate::net::Arrival, packet: Packet) {
        self.at(
            arrival.at,
            Event::Deliver {
                from,
                to,
                generation: arrival.generation,
                packet,
            },
        );
    }

    fn check(&mut self, check: Check) {
        if let Err(violation) = check {
            self.violate(violation.property, violation.text);
        }
    }

    fn violate(&mut self, property: Property, text: String) {
        let now = self.now();
        self.trace
            .note(now, 99, 0, 0, || format!("VIOLATION {property}: {text}"));
        self.violation.get_or_insert(Violation { property, text });
    }

    fn witness_ids(&self) -> Vec<NodeId> {
        self.witnesses.iter().map(|witness| witness.id).collect()
    }

    fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    fn report(&self) -> Report {
        let oracles = || self.volumes.values().map(|volume| &volume.oracle);
        let promotions: u64 = oracles().map(|oracle| oracle.chain.promotions()).sum();
        let values: u64 = oracles().map(|oracle| oracle.chain.len() as u64).sum();
        let mut injected = self.injected.clone();
        injected.insert("message lost", self.net.lost);
        injected.insert("message doubled", self.net.doubled);
        Report {
            violation: self.violation.clone(),
            hash: self.trace.hash(),
            events: self.trace.events(),
            injected,
            promotions,
            changes: values.saturating_sub(promotions + self.volumes.len() as u64),
            answered: oracles().map(|oracle| oracle.ops.answered).sum(),
            reads: oracles().map(|oracle| oracle.ops.reads).sum(),
            virtual_ns: self.now(),
            lines: self.trace.lines().map(str::to_owned).collect(),
        }
    }
}

fn packet_code(packet: &Packet) -> u64 {
    match packet {
        Packet::Core(Message::Member(envelope), batch) => {
            0x100 + batch.len() as u64 * 0x10000 + envelope.from.instance.0 % 251
        }
        Packet::Core(Message::Register { .. }, _) => 2,
        Packet::Core(Message::Witness(_), _) => 3,
        Packet::Ask(conn, token, _) => 4 + (conn << 8) + (token << 40),
        Packet::Close(conn) => 5 + (conn << 8),
        Packet::Reply(conn, token, _) => 6 + (conn << 8) + (token << 40),
    }
}

fn packet_text(packet: &Packet) -> String {
    match packet {
        Packet::Core(Message::Member(envelope), _) => {
            format!("[{}] {:?}", envelope.from.instance, envelope.body)
        }
        Packet::Core(Message::Register { body, .. }, _) => format!("{body:?}"),
        Packet::Core(Message::Witness(body), _) => format!("{body:?}"),
        other => format!("{other:?}"),
    }
}
