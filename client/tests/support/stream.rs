//! What a node of the scripted cluster does with the requests of one stream.

use bytes::Bytes;
use mainstay_proto::v1 as pb;
use mainstay_proto::v1::client_reply::Body as Reply;
use mainstay_proto::v1::client_request::Body as Ask;
use mainstay_proto::v1::refused::Reason;
use tokio::sync::mpsc;
use tonic::Status;

use super::{Mood, Node, World};

/// Records of one page of a tail.
const TAIL_RECORDS: usize = 16;

/// One stream.
pub(super) struct Serving {
    pub(super) node: Node,
    pub(super) epoch: u64,
    pub(super) any_copy: bool,
    pub(super) session: u64,
    pub(super) generation: u64,
    pub(super) out: mpsc::UnboundedSender<Result<pb::ClientReply, Status>>,
    pub(super) held_back: Vec<(u64, Reply)>,
    pub(super) tails: Vec<(u64, u64)>,
}

fn refused(reason: Reason) -> Reply {
    Reply::Refused(pb::Refused {
        message: String::new(),
        reason: Some(reason),
    })
}

impl Node {
    /// `Opened`, and the generation in force; or why not.
    pub(super) fn open(&self, open: &pb::Open) -> Result<(pb::Opened, u64, u64), Reply> {
        let mut world = self.lock();
        world.opens.push(open.clone());
        if !world.exists {
            return Err(refused(Reason::NoSuchVolume(pb::NoSuchVolume {})));
        }
        let (epoch, primary) = world.beliefs[self.me];
        if open.any_copy {
            return Ok((opened(&world, self.me, 0, 1), epoch, 0));
        }
        if primary != Some(self.me) || world.epoch != epoch {
            drop(world);
            return Err(self.not_primary());
        }
        if open.lineage != 0 && world.lineage != 0 && open.lineage != world.lineage {
            let lineage = world.lineage;
            return Err(refused(Reason::HistoryReplaced(pb::HistoryReplaced {
                lineage,
            })));
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
        Ok((opened(&world, self.me, wanted, next_seq), epoch, wanted))
    }
}

fn opened(world: &World, node: usize, generation: u64, next_seq: u64) -> pb::Opened {
    let kind = if world.block {
        pb::volume_kind::Kind::Block(pb::BlockKind {
            size_bytes: 1 << 20,
        })
    } else {
        pb::volume_kind::Kind::Log(pb::LogKind {})
    };
    pb::Opened {
        kind: Some(pb::VolumeKind { kind: Some(kind) }),
        epoch: world.beliefs[node].0,
        node: node as u32,
        generation,
        next_seq,
        payload_bytes_max: 1 << 16,
        commit: world.log.len() as u64,
        first_lsn: 1,
        batch_records_max: 4,
        lineage: world.lineage,
    }
}

impl Serving {
    pub(super) fn reply(&self, tag: u64, body: Reply) {
        let body = Some(body);
        let _gone = self.out.send(Ok(pb::ClientReply { tag, body }));
    }

    /// Another primary, and this node knows.
    pub(super) fn deposed(&self) -> bool {
        !self.any_copy && self.node.lock().beliefs[self.node.me] != (self.epoch, Some(self.node.me))
    }

    /// Answers one request; false ends the stream.
    pub(super) fn handle(&mut self, request: pb::ClientRequest) -> bool {
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
        let mut world = self.node.lock();
        let commit = world.log.len() as u64;
        if let Ask::Position(pb::Position {
            committed: Some(known),
        }) = &body
        {
            world.at_least = known.at_least;
        }
        let answer = match body {
            Ask::Read(m) => {
                let at = m.offset as usize;
                let data = Bytes::copy_from_slice(&world.image[at..at + m.len as usize]);
                Reply::Data(pb::Data { data })
            }
            Ask::ReadLog(m) if m.committed.is_some_and(|known| known.at_least > commit) => {
                refused(Reason::CopyBehind(pb::CopyBehind { commit }))
            }
            Ask::ReadLog(m) if m.from_lsn < world.first => {
                let first_lsn = world.first;
                refused(Reason::Trimmed(pb::Trimmed { first_lsn }))
            }
            Ask::ReadLog(m) if m.backwards => {
                let mut page = records(&world, world.first, m.from_lsn as usize);
                page.records.retain(|record| record.lsn < m.from_lsn);
                page.records.reverse();
                (page.next_lsn, page.end) = (world.first, true);
                Reply::Records(page)
            }
            Ask::ReadLog(m) => {
                let page = records(&world, m.from_lsn, m.max_records as usize);
                readable(&world, self.node.me, page)
            }
            Ask::FindTime(m) => {
                let page = records(&world, world.first, usize::MAX);
                let mut young = page.records.iter();
                let found = young.find(|record| record.timestamp_us >= m.timestamp_us);
                Reply::Found(pb::Found {
                    lsn: found.map(|record| record.lsn),
                    timestamp_us: found.map_or(0, |record| record.timestamp_us),
                })
            }
            Ask::Tail(m) if m.from_lsn < world.first => {
                let first_lsn = world.first;
                refused(Reason::Trimmed(pb::Trimmed { first_lsn }))
            }
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
            Ask::Close(_) => {
                drop(world);
                self.close();
                Reply::Closed(pb::Closed {})
            }
            _ => return false,
        };
        self.reply(tag, answer);
        true
    }

    fn close(&self) {
        let mut world = self.node.lock();
        world.sessions.remove(&self.session);
        if world
            .holder
            .as_ref()
            .is_some_and(|(session, _)| *session == self.session)
        {
            world.holder = None;
        }
        drop(world);
        self.node.changed.send_modify(|count| *count += 1);
    }

    pub(super) fn feed_tails(&mut self) {
        let mut out = Vec::new();
        let world = self.node.lock();
        self.tails.retain_mut(|(tag, next)| {
            loop {
                let page = records(&world, *next, TAIL_RECORDS);
                *next = page.next_lsn;
                if page.records.is_empty() {
                    return true;
                }
                let page = readable(&world, self.node.me, page);
                let goes_on = matches!(page, Reply::Records(_));
                out.push((*tag, page));
                if !goes_on {
                    return false;
                }
            }
        });
        drop(world);
        for (tag, page) in out {
            self.reply(tag, page);
        }
    }
}

/// `page`, as `node` reads it.
fn readable(world: &World, node: usize, page: pb::Records) -> Reply {
    let lost = world.unreadable.filter(|(at, _)| *at == node);
    if lost.is_some_and(|(_, lsn)| page.records.iter().any(|record| record.lsn == lsn)) {
        return refused(Reason::Unreadable(pb::Unreadable {}));
    }
    Reply::Records(page)
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
