//! A scripted cluster in one process: real gRPC on ephemeral ports in front of one in-memory log that stands for what a
//! quorum holds. Nodes misbehave on command; the log never does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use mainstay_client::{Client, ClientConfig, LocalNode, LocalReplies, LocalRequests};
use mainstay_proto::tuning;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::admin_server::{Admin, AdminServer};
use mainstay_proto::v1::client_reply::Body as Reply;
use mainstay_proto::v1::client_request::Body as Ask;
use mainstay_proto::v1::client_server::{Client as ClientService, ClientServer};
use mainstay_proto::v1::refused::Reason;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

/// What the primary does with mutations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Commits and answers.
    Well,
    /// Takes them in, and says and does nothing: frozen, or cut off from its members.
    Silent,
    /// Ends the stream at the next one, before it is in the log; then well again.
    DropsBefore,
    /// Commits the next one and ends the stream without an answer; then well again.
    DropsAfter,
    /// Answers every three mutations in reverse.
    Reverses,
}

#[derive(Debug, Default)]
pub(crate) struct Session {
    pub(crate) generation: u64,
    pub(crate) results: BTreeMap<u64, u64>,
}

/// What a quorum holds, and who is who.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) exists: bool,
    pub(crate) block: bool,
    pub(crate) epoch: u64,
    /// Index of the primary; `None`: there is none now.
    pub(crate) primary: Option<usize>,
    pub(crate) moods: Vec<Mood>,
    /// What each node believes: (epoch, primary).
    pub(crate) beliefs: Vec<(u64, Option<usize>)>,
    pub(crate) log: Vec<(u64, u64, Bytes)>,
    pub(crate) image: Vec<u8>,
    pub(crate) sessions: BTreeMap<u64, Session>,
    pub(crate) holder: Option<(u64, String)>,
    pub(crate) mutations_seen: usize,
    pub(crate) opens: Vec<pb::Open>,
    /// Streams opened without a socket.
    pub(crate) local_streams: usize,
}

pub(crate) struct Cluster {
    pub(crate) world: Arc<Mutex<World>>,
    pub(crate) changed: watch::Sender<u64>,
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Cluster {
    /// `count` nodes; the first is primary in epoch 1.
    pub(crate) async fn start(count: usize, block: bool) -> Self {
        let world = World {
            exists: true,
            block,
            epoch: 1,
            primary: Some(0),
            moods: vec![Mood::Well; count],
            beliefs: vec![(1, Some(0)); count],
            log: Vec::new(),
            image: vec![0; 1 << 20],
            sessions: BTreeMap::new(),
            holder: None,
            mutations_seen: 0,
            opens: Vec::new(),
            local_streams: 0,
        };
        let world = Arc::new(Mutex::new(world));
        let changed = watch::Sender::new(0);
        let mut listeners = Vec::new();
        for _ in 0..count {
            listeners.push(
                tokio::net::TcpListener::bind("127.0.0.1:0")
                    .await
                    .expect("a port"),
            );
        }
        let addresses: Vec<_> = listeners
            .iter()
            .map(|l| l.local_addr().expect("bound"))
            .collect();
        for (me, listener) in listeners.into_iter().enumerate() {
            let node = Node {
                me,
                world: Arc::clone(&world),
                changed: changed.clone(),
                addresses: addresses.clone(),
            };
            let server = tuning::client_server()
                .add_service(ClientServer::new(node.clone()))
                .add_service(AdminServer::new(node));
            tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        }
        Self {
            world,
            changed,
            addresses,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no test panicked with it")
    }

    pub(crate) fn config(&self, known: &[usize]) -> ClientConfig {
        let endpoints = known.iter().map(|at| self.addresses[*at].to_string());
        ClientConfig {
            stall_check: Duration::from_millis(60),
            open_deadline: Duration::from_secs(5),
            ..ClientConfig::new(endpoints)
        }
    }

    /// A client that was told of the nodes `known`.
    pub(crate) async fn client(&self, known: &[usize]) -> Client {
        Client::connect(self.config(known))
            .await
            .expect("a node lives")
    }

    /// The client within the process of `node`.
    pub(crate) async fn client_beside(&self, node: usize) -> Client {
        let local = Node {
            me: node,
            world: Arc::clone(&self.world),
            changed: self.changed.clone(),
            addresses: self.addresses.clone(),
        };
        let address = self.addresses[node].to_string();
        Client::connect_beside(self.config(&[node]), address, Arc::new(local))
            .await
            .expect("a node lives")
    }

    /// A new epoch; every node but `deaf` hears of it. Streams of the old primary end if it hears.
    pub(crate) fn promote(&self, to: usize, deaf: Option<usize>) {
        {
            let mut world = self.lock();
            world.epoch += 1;
            world.primary = Some(to);
            let belief = (world.epoch, Some(to));
            for (node, held) in world.beliefs.iter_mut().enumerate() {
                if Some(node) != deaf {
                    *held = belief;
                }
            }
        }
        self.touch();
    }

    /// Nobody is primary: streams end, and nobody knows where to go.
    pub(crate) fn depose(&self) {
        {
            let mut world = self.lock();
            world.epoch += 1;
            world.primary = None;
            let epoch = world.epoch;
            world
                .beliefs
                .iter_mut()
                .for_each(|held| *held = (epoch, None));
        }
        self.touch();
    }

    pub(crate) fn mood(&self, node: usize, mood: Mood) {
        self.lock().moods[node] = mood;
    }

    pub(crate) fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Waits until `condition` holds of the world.
    pub(crate) async fn until(&self, condition: impl Fn(&World) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !condition(&self.lock()) {
                changed.changed().await.expect("the cluster lives");
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .expect("in time");
    }

    /// The records in the log, as text.
    pub(crate) fn records(&self) -> Vec<String> {
        let text = |(_, _, data): &(u64, u64, Bytes)| String::from_utf8_lossy(data).into_owned();
        self.lock().log.iter().map(text).collect()
    }
}

#[derive(Debug, Clone)]
struct Node {
    me: usize,
    world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
    addresses: Vec<SocketAddr>,
}

/// One stream.
struct Serving {
    node: Node,
    epoch: u64,
    session: u64,
    generation: u64,
    out: mpsc::UnboundedSender<Result<pb::ClientReply, Status>>,
    held_back: Vec<(u64, Reply)>,
    tails: Vec<(u64, u64)>,
}

fn refused(reason: Reason) -> Reply {
    Reply::Refused(pb::Refused {
        message: String::new(),
        reason: Some(reason),
    })
}

impl Node {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no test panicked with it")
    }

    fn not_primary(&self) -> Reply {
        let (epoch, primary) = self.lock().beliefs[self.me];
        Reply::NotPrimary(pb::NotPrimary {
            primary: primary.map(|at| at as u32),
            address: primary.map_or_else(String::new, |at| self.addresses[at].to_string()),
            epoch,
        })
    }

    /// `Opened`, and the generation in force; or why not.
    fn open(&self, open: &pb::Open) -> Result<(pb::Opened, u64, u64), Reply> {
        let mut world = self.lock();
        world.opens.push(open.clone());
        let (epoch, primary) = world.beliefs[self.me];
        if primary != Some(self.me) || world.epoch != epoch {
            drop(world);
            return Err(self.not_primary());
        }
        if let Some(attachment) = &open.attachment {
            match &world.holder {
                Some((session, name)) if *session != open.session && !attachment.takeover => {
                    let (name, session) = (name.clone(), *session);
                    return Err(refused(Reason::AttachedElsewhere(pb::AttachedElsewhere {
                        name,
                        session,
                    })));
                }
                _ => world.holder = Some((open.session, attachment.name.clone())),
            }
        }
        if open.session != 0 && !open.create && !world.sessions.contains_key(&open.session) {
            return Err(refused(Reason::UnknownSession(pb::UnknownSession {})));
        }
        let session = world.sessions.entry(open.session).or_default();
        let wanted = if open.generation == 0 {
            session.generation + 1
        } else {
            open.generation
        };
        if open.session != 0 && wanted <= session.generation {
            let current = session.generation;
            return Err(refused(Reason::FencedGeneration(pb::FencedGeneration {
                current,
            })));
        }
        session.generation = wanted;
        let next_seq = session
            .results
            .last_key_value()
            .map_or(1, |(seq, _)| seq + 1);
        let kind = if world.block {
            pb::volume_kind::Kind::Block(pb::BlockKind {
                size_bytes: 1 << 20,
            })
        } else {
            pb::volume_kind::Kind::Log(pb::LogKind {})
        };
        let opened = pb::Opened {
            kind: Some(pb::VolumeKind { kind: Some(kind) }),
            epoch,
            node: self.me as u32,
            generation: wanted,
            next_seq,
            payload_bytes_max: 1 << 16,
            commit: world.log.len() as u64,
            first_lsn: 1,
            batch_records_max: 4,
        };
        Ok((opened, epoch, wanted))
    }
}

impl Serving {
    fn reply(&self, tag: u64, body: Reply) {
        let body = Some(body);
        let _gone = self.out.send(Ok(pb::ClientReply { tag, body }));
    }

    /// Another primary, and this node knows.
    fn deposed(&self) -> bool {
        self.node.lock().beliefs[self.node.me] != (self.epoch, Some(self.node.me))
    }

    /// Answers one request; false ends the stream.
    fn handle(&mut self, request: pb::ClientRequest) -> bool {
        let Some(body) = request.body else {
            return false;
        };
        let tag = request.tag;
        if let Ask::AppendBatch(batch) = body {
            let records = (0..).zip(batch.records);
            return records.into_iter().all(|(at, record)| {
                let tag = tag + at * batch.tag_step;
                self.mutate(tag, batch.first_seq + at, vec![record], None, None)
            });
        }
        if let Ask::AppendAtomic(batch) = body {
            return self.mutate(tag, batch.seq, batch.records, batch.expected_lsn, None);
        }
        let mutation = match &body {
            Ask::Append(m) => Some((m.seq, m.record.clone(), m.expected_lsn, None)),
            Ask::Write(m) => Some((
                m.seq,
                m.data.clone(),
                None,
                Some((m.offset, m.data.clone())),
            )),
            Ask::Trim(m) => Some((
                m.seq,
                Bytes::from_static(b"trim"),
                None,
                Some((m.offset, vec![0; m.len as usize].into())),
            )),
            Ask::Zeroes(m) => Some((
                m.seq,
                Bytes::from_static(b"zeroes"),
                None,
                Some((m.offset, vec![0; m.len as usize].into())),
            )),
            Ask::TrimLog(m) => Some((m.seq, Bytes::from_static(b"trim log"), None, None)),
            _ => None,
        };
        match mutation {
            Some((seq, data, expected, image)) => {
                self.mutate(tag, seq, vec![data], expected, image)
            }
            None => self.query(tag, body),
        }
    }

    fn mutate(
        &mut self,
        tag: u64,
        seq: u64,
        data: Vec<Bytes>,
        expected: Option<u64>,
        image: Option<(u64, Bytes)>,
    ) -> bool {
        let me = self.node.me;
        let mood = {
            let mut world = self.node.lock();
            world.mutations_seen += 1;
            // Its members are sealed higher: whatever it takes in never commits.
            let fenced = world.epoch != self.epoch;
            let mood = if fenced {
                Mood::Silent
            } else {
                world.moods[me]
            };
            if matches!(mood, Mood::DropsBefore | Mood::DropsAfter) {
                world.moods[me] = Mood::Well;
            }
            mood
        };
        if mood == Mood::Silent || mood == Mood::DropsBefore {
            self.node.changed.send_modify(|count| *count += 1);
            return mood == Mood::Silent;
        }
        let answer = self.commit(seq, data, expected, image);
        self.node.changed.send_modify(|count| *count += 1);
        match mood {
            Mood::DropsAfter => return false,
            Mood::Reverses => {
                self.held_back.push((tag, answer));
                if self.held_back.len() == 3 {
                    while let Some((tag, answer)) = self.held_back.pop() {
                        self.reply(tag, answer);
                    }
                }
            }
            _ => self.reply(tag, answer),
        }
        true
    }

    fn commit(
        &self,
        seq: u64,
        data: Vec<Bytes>,
        expected: Option<u64>,
        image: Option<(u64, Bytes)>,
    ) -> Reply {
        let mut world = self.node.lock();
        let next = world.log.len() as u64 + 1;
        let (current_epoch, session) = (world.epoch, self.session);
        assert_eq!(
            current_epoch, self.epoch,
            "a fenced primary commits nothing"
        );
        let table = world.sessions.get(&session).expect("opened");
        if table.generation != self.generation {
            let current = table.generation;
            return refused(Reason::FencedGeneration(pb::FencedGeneration { current }));
        }
        if let Some(lsn) = table.results.get(&seq) {
            return Reply::Committed(committed(&world, *lsn));
        }
        if table
            .results
            .last_key_value()
            .is_some_and(|(last, _)| *last > seq)
        {
            return refused(Reason::RefusedBefore(pb::RefusedBefore {}));
        }
        if expected.is_some_and(|expected| expected != next) {
            return refused(Reason::UnexpectedPosition(pb::UnexpectedPosition {
                next_lsn: next,
            }));
        }
        let records = data.into_iter().map(|data| (session, seq, data));
        world.log.extend(records);
        if let Some((offset, data)) = image {
            let at = offset as usize;
            world.image[at..at + data.len()].copy_from_slice(&data);
        }
        let table = world.sessions.get_mut(&session).expect("opened");
        table.results.insert(seq, next);
        Reply::Committed(committed(&world, next))
    }

    fn query(&mut self, tag: u64, body: Ask) -> bool {
        let world = self.node.lock();
        let commit = world.log.len() as u64;
        let answer = match body {
            Ask::Read(m) => {
                let at = m.offset as usize;
                let data = Bytes::copy_from_slice(&world.image[at..at + m.len as usize]);
                Reply::Data(pb::Data { data })
            }
            Ask::ReadLog(m) => Reply::Records(records(&world, m.from_lsn, m.max_records as usize)),
            Ask::Tail(m) => {
                drop(world);
                self.tails.push((tag, m.from_lsn));
                self.feed_tails();
                return true;
            }
            Ask::Outcome(m) => {
                use pb::outcome_is::Outcome;
                let found = world
                    .sessions
                    .get(&self.session)
                    .and_then(|s| s.results.get(&m.seq));
                let outcome = match found {
                    Some(lsn) => Outcome::Committed(committed(&world, *lsn)),
                    None => Outcome::Never(pb::Never {}),
                };
                Reply::Outcome(pb::OutcomeIs {
                    outcome: Some(outcome),
                })
            }
            Ask::Flush(_) => Reply::Flushed(pb::Flushed { commit }),
            Ask::Position(_) => Reply::Position(pb::PositionIs {
                first_lsn: 1,
                next_lsn: commit + 1,
                commit,
                epoch: self.epoch,
                lineage: 0,
                retention: None,
            }),
            Ask::Close(_) => Reply::Closed(pb::Closed {}),
            _ => return false,
        };
        drop(world);
        self.reply(tag, answer);
        true
    }

    fn feed_tails(&mut self) {
        let mut out = Vec::new();
        {
            let world = self.node.lock();
            for (tag, next) in &mut self.tails {
                let page = records(&world, *next, usize::MAX);
                *next = page.next_lsn;
                if !page.records.is_empty() {
                    out.push((*tag, page));
                }
            }
        }
        for (tag, page) in out {
            self.reply(tag, Reply::Records(page));
        }
    }
}

/// The result of the mutation that begins at `lsn`.
fn committed(world: &World, lsn: u64) -> pb::Committed {
    let of = |at: usize| world.log.get(at).map(|(session, seq, _)| (*session, *seq));
    let first = lsn as usize - 1;
    let count = (first..).take_while(|at| of(*at) == of(first)).count() as u32;
    pb::Committed {
        lsn,
        timestamp_us: lsn,
        count: if count > 1 { count } else { 0 },
    }
}

fn records(world: &World, from: u64, max: usize) -> pb::Records {
    let skip = from.saturating_sub(1) as usize;
    let records: Vec<_> = (from.max(1)..)
        .zip(world.log.iter().skip(skip))
        .take(max)
        .map(|(lsn, (_, _, data))| pb::Record {
            lsn,
            timestamp_us: lsn,
            data: data.clone(),
        })
        .collect();
    let next_lsn = from.max(1) + records.len() as u64;
    pb::Records {
        end: next_lsn > world.log.len() as u64,
        records,
        next_lsn,
        commit: world.log.len() as u64,
    }
}

type Replies = UnboundedReceiverStream<Result<pb::ClientReply, Status>>;

#[tonic::async_trait]
impl ClientService for Node {
    type VolumeStream = Replies;

    async fn volume(
        &self,
        request: Request<Streaming<pb::ClientRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let replies = self.begin(request.into_inner());
        Ok(Response::new(UnboundedReceiverStream::new(replies)))
    }
}

impl LocalNode for Node {
    fn volume(&self, requests: LocalRequests) -> LocalReplies {
        self.lock().local_streams += 1;
        let mut replies = self.begin(UnboundedReceiverStream::new(requests).map(Ok));
        let (out, bounded) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Some(reply) = replies.recv().await {
                if out.send(reply).await.is_err() {
                    return;
                }
            }
        });
        bounded
    }
}

impl Node {
    /// Serves one stream, in a task that ends with it.
    fn begin(
        &self,
        mut asked: impl Stream<Item = Result<pb::ClientRequest, Status>> + Unpin + Send + 'static,
    ) -> mpsc::UnboundedReceiver<Result<pb::ClientReply, Status>> {
        let (out, replies) = mpsc::unbounded_channel();
        let node = self.clone();
        tokio::spawn(async move {
            let Some(Ok(pb::ClientRequest {
                tag,
                body: Some(Ask::Open(open)),
            })) = asked.next().await
            else {
                return;
            };
            let mut changed = node.changed.subscribe();
            let opened = node.open(&open);
            node.changed.send_modify(|count| *count += 1);
            let (opened, epoch, generation) = match opened {
                Ok(opened) => opened,
                Err(body) => {
                    let _gone = out.send(Ok(pb::ClientReply {
                        tag,
                        body: Some(body),
                    }));
                    return;
                }
            };
            let mut serving = Serving {
                node,
                epoch,
                session: open.session,
                generation,
                out,
                held_back: Vec::new(),
                tails: Vec::new(),
            };
            serving.reply(tag, Reply::Opened(opened));
            loop {
                tokio::select! {
                    request = asked.next() => match request {
                        Some(Ok(request)) => {
                            if !serving.handle(request) {
                                return;
                            }
                        }
                        _ => return,
                    },
                    _ = changed.changed() => {
                        if serving.deposed() {
                            serving.reply(0, serving.node.not_primary());
                            return;
                        }
                        serving.feed_tails();
                    }
                }
            }
        });
        replies
    }
}

fn not_offered<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in this fake"))
}

#[tonic::async_trait]
impl Admin for Node {
    type EventsStream = ReceiverStream<Result<pb::Event, Status>>;

    async fn r#where(
        &self,
        request: Request<pb::WhereRequest>,
    ) -> Result<Response<pb::WhereReply>, Status> {
        let (epoch, primary) = self.lock().beliefs[self.me];
        let asked = request.into_inner();
        let node = |(node, address): (usize, &SocketAddr)| pb::NodeAddress {
            node: node as u32,
            address: address.to_string(),
        };
        Ok(Response::new(pb::WhereReply {
            known: self.lock().exists && !asked.volume.is_empty(),
            epoch,
            primary: primary.map(|at| at as u32),
            address: primary.map_or_else(String::new, |at| self.addresses[at].to_string()),
            serving: primary == Some(self.me),
            node: self.me as u32,
            nodes: self.addresses.iter().enumerate().map(node).collect(),
        }))
    }

    async fn health(
        &self,
        _: Request<pb::HealthRequest>,
    ) -> Result<Response<pb::HealthReply>, Status> {
        Ok(Response::new(pb::HealthReply {
            node: self.me as u32,
            ready: true,
            ..pb::HealthReply::default()
        }))
    }

    async fn list_volumes(
        &self,
        _: Request<pb::ListVolumesRequest>,
    ) -> Result<Response<pb::ListVolumesReply>, Status> {
        // The first node has lost its witnesses: the client must ask another.
        if self.me == 0 {
            return Err(Status::unavailable("no witness majority"));
        }
        let kind = pb::volume_kind::Kind::Log(pb::LogKind {});
        let register = pb::Register {
            spec: Some(pb::VolumeSpec {
                name: "ledger".to_owned(),
                kind: Some(pb::VolumeKind { kind: Some(kind) }),
            }),
            epoch: 4,
            ..pb::Register::default()
        };
        Ok(Response::new(pb::ListVolumesReply {
            volumes: vec![pb::VolumeStatus {
                register: Some(register),
                health: 77,
                ..pb::VolumeStatus::default()
            }],
        }))
    }

    async fn promote(
        &self,
        _: Request<pb::PromoteRequest>,
    ) -> Result<Response<pb::PromoteReply>, Status> {
        use pb::promote_refused::Reason;
        let refused = pb::PromoteRefused {
            message: String::new(),
            reason: Some(Reason::Behind(pb::Behind {
                have_lsn: 3,
                need_lsn: 9,
            })),
        };
        Ok(Response::new(pb::PromoteReply {
            outcome: Some(pb::promote_reply::Outcome::Refused(refused)),
        }))
    }

    async fn events(
        &self,
        _: Request<pb::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let (out, events) = mpsc::channel(1);
        let event = pb::Event {
            number: 9,
            kind: pb::EventKind::Promoted.into(),
            ..pb::Event::default()
        };
        out.send(Ok(event))
            .await
            .map_err(|_| Status::internal("gone"))?;
        Ok(Response::new(ReceiverStream::new(events)))
    }

    async fn create_volume(
        &self,
        _: Request<pb::CreateVolumeRequest>,
    ) -> Result<Response<pb::CreateVolumeReply>, Status> {
        not_offered()
    }

    async fn show_volume(
        &self,
        _: Request<pb::ShowVolumeRequest>,
    ) -> Result<Response<pb::ShowVolumeReply>, Status> {
        not_offered()
    }

    async fn delete_volume(
        &self,
        _: Request<pb::DeleteVolumeRequest>,
    ) -> Result<Response<pb::DeleteVolumeReply>, Status> {
        not_offered()
    }

    async fn list_witnesses(
        &self,
        _: Request<pb::ListWitnessesRequest>,
    ) -> Result<Response<pb::ListWitnessesReply>, Status> {
        not_offered()
    }

    async fn change_witnesses(
        &self,
        _: Request<pb::ChangeWitnessesRequest>,
    ) -> Result<Response<pb::ChangeWitnessesReply>, Status> {
        not_offered()
    }

    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusReply>, Status> {
        not_offered()
    }
}
