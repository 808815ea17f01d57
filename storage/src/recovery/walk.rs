//! The walk from segment to segment and frame to frame, with one lookup in the table at each position.

use std::path::Path;

use bytes::Bytes;
use mainstay_types::{Epoch, LogPoint, Lsn};

use super::scan::{Content, Head, HeadState, read_content, read_directory};
use super::table::{Behind, BodyState, HeaderState, Verdict, decide};
use super::{Damage, DamageKind, Doubt, RecoveredLog};
use crate::codec::is_zero;
use crate::engine::{Disk, PAGE, PAGE_BYTES};
use crate::format::{
    EntryError, EntryIter, FRAME_HEADER_BYTES, FrameError, FrameHeader, LogEnd,
    SEGMENT_HEADER_BYTES, SegmentHeader,
};
use crate::wal::{OpenError, SegmentInfo, WalConfig};

/// Where the writer may go on in the last segment.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    pub(crate) seq: u64,
    pub(crate) write_pos: u64,
    pub(crate) file_bytes: u64,
    /// What may be readable and yet not durable, as it was verified, and where: the segment's header and its last frame.
    pub(crate) rewrite: Vec<(u64, Bytes)>,
}

/// Everything that the writer needs to know about a recovered log.
#[derive(Debug)]
pub(crate) struct Recovery {
    pub(crate) log: RecoveredLog,
    pub(crate) end: LogEnd,
    pub(crate) segments: Vec<SegmentInfo>,
    /// Segments that later ones supersede whole.
    pub(crate) dead: Vec<u64>,
    pub(crate) spares: Vec<(u64, u64)>,
    pub(crate) temporary: Vec<String>,
    pub(crate) seq_max: u64,
    /// None if the next append needs a segment of its own.
    pub(crate) tail: Option<Tail>,
}

/// Recovers the log in `dir`. Reads every segment once and changes nothing.
pub(crate) async fn recover<D: Disk>(
    disk: &D,
    dir: &Path,
    config: &WalConfig,
) -> Result<Recovery, OpenError> {
    let found = read_directory(disk, dir, config).await?;
    if found.heads.is_empty() {
        return Err(OpenError::Missing {
            path: dir.to_owned(),
        });
    }
    let seqs = found
        .heads
        .iter()
        .map(|head| head.seq)
        .chain(found.spares.iter().map(|spare| spare.0));
    let seq_max = seqs.max().unwrap_or(0);
    let mut walk = walk_all(disk, dir, config, &found.heads, None).await?;
    if let Some(unknown) = walk.unknown_header.take() {
        // A segment whose beginning nobody knows may have cut anything above the commit point: trust no more.
        let limit = walk
            .commit
            .min(walk.end.point.lsn)
            .max(walk.first.prev())
            .next();
        walk = walk_all(disk, dir, config, &found.heads, Some((unknown, limit))).await?;
    }
    let mut recovery = walk.finish(seq_max);
    recovery.dead = found
        .heads
        .iter()
        .map(|head| head.seq)
        .filter(|seq| !recovery.segments.iter().any(|info| info.seq == *seq))
        .collect();
    if recovery.log.damage.is_some() {
        // Until the damage is cut and repaired, every file stays for inspection.
        recovery.dead.clear();
    }
    recovery.spares = found.spares;
    recovery.temporary = found.temporary;
    Ok(recovery)
}

/// The segments that count, in order, with the first LSN that the next one takes over.
fn live_heads(heads: &[Head], guess: Option<(u64, Lsn)>) -> Vec<(&Head, Lsn)> {
    let mut limit = Lsn(u64::MAX);
    let mut live = Vec::new();
    for head in heads.iter().rev() {
        let first = match (&head.header, guess) {
            (HeadState::Intact(header), _) => header.first_lsn(),
            (HeadState::Damaged(_), Some((seq, first))) if seq == head.seq => first,
            (HeadState::Damaged(Some(first)), _) => *first,
            // Cuts nothing in this walk; the walk reports it when it gets there.
            (HeadState::Damaged(None), _) => limit,
        };
        let reported = matches!(head.header, HeadState::Damaged(_));
        if first < limit || reported {
            live.push((head, limit));
            limit = limit.min(first);
        }
    }
    live.reverse();
    live
}

async fn walk_all<D: Disk>(
    disk: &D,
    dir: &Path,
    config: &WalConfig,
    heads: &[Head],
    guess: Option<(u64, Lsn)>,
) -> Result<Walk, OpenError> {
    let live = live_heads(heads, guess);
    let mut walk = Walk::new(config, live.first().and_then(|(head, _)| head.prev()));
    for (head, limit) in live {
        let header = match &head.header {
            HeadState::Intact(header) => header,
            HeadState::Damaged(first) => {
                let known = first.or_else(|| {
                    guess
                        .filter(|(seq, _)| *seq == head.seq)
                        .map(|(_, first)| first)
                });
                if known.is_none() && walk.unknown_header.is_none() {
                    walk.unknown_header = Some(head.seq);
                }
                walk.damaged_header(head);
                continue;
            }
        };
        let path = dir.join(&head.name);
        let content = read_content(disk, &path, header.file_bytes)
            .await
            .map_err(|source| OpenError::Io {
                path: path.clone(),
                source,
            })?;
        walk.segment(head, header, &content, limit)?;
    }
    Ok(walk)
}

struct Walk {
    config: WalConfig,
    first: Lsn,
    /// Last usable entry. Stands still after damage.
    end: LogEnd,
    /// End of the chain that is being followed, also behind damage; none where the chain is lost.
    running: Option<LogEnd>,
    runs: Vec<(Epoch, Lsn)>,
    commit: Lsn,
    doubt: Option<Doubt>,
    damage: Option<Damage>,
    segments: Vec<SegmentInfo>,
    tail: Option<Tail>,
    unknown_header: Option<u64>,
}

/// What one position holds.
struct Found {
    header: HeaderState,
    body: BodyState,
    frame: Option<FrameHeader>,
    ends: Vec<LogEnd>,
}

impl Found {
    fn bare(header: HeaderState, body: BodyState) -> Self {
        Self {
            header,
            body,
            frame: None,
            ends: Vec::new(),
        }
    }
}

impl Walk {
    fn new(config: &WalConfig, start: Option<LogEnd>) -> Self {
        Self {
            config: *config,
            first: start.map_or(Lsn(1), |end| end.point.lsn.next()),
            end: start.unwrap_or(LogEnd::ZERO),
            running: start,
            runs: Vec::new(),
            commit: Lsn::ZERO,
            doubt: None,
            damage: None,
            segments: Vec::new(),
            tail: None,
            unknown_header: None,
        }
    }

    fn damaged(&mut self, head: &Head, offset: u64, why: DamageKind) {
        if self.damage.is_none() {
            self.damage = Some(Damage {
                from: self.end.point.lsn.next(),
                proved_end: None,
                file: head.name.clone(),
                offset,
                why,
            });
        }
        self.running = None;
        self.tail = None;
        // What was doubtful is behind the damage now.
        self.doubt = None;
    }

    fn damaged_header(&mut self, head: &Head) {
        self.damaged(head, 0, DamageKind::SegmentHeader);
    }

    /// Walks one segment up to `limit`, the first LSN that a later segment takes over.
    fn segment(
        &mut self,
        head: &Head,
        header: &SegmentHeader,
        content: &Content,
        limit: Lsn,
    ) -> Result<(), OpenError> {
        if self.damage.is_none() && self.running != Some(header.prev) {
            self.damaged(head, 0, DamageKind::Chain);
        }
        self.running = Some(header.prev);
        if self.damage.is_none() {
            self.segments.push(SegmentInfo::new(head.seq, header.prev));
        }
        self.tail = None;
        let mut pos = SEGMENT_HEADER_BYTES;
        let mut write_pos = pos;
        let mut last_frame = pos..pos;
        loop {
            if self
                .running
                .is_some_and(|end| end.point.lsn.next() >= limit)
            {
                break;
            }
            if pos + PAGE_BYTES > content.bytes.len() {
                if (content.bytes.len() as u64) < header.file_bytes {
                    self.damaged(head, content.bytes.len() as u64, DamageKind::ShortFile);
                }
                break;
            }
            let found = self.classify(head, content, pos, limit)?;
            let skip = found
                .frame
                .map_or(PAGE_BYTES, |frame| frame.frame_len as usize);
            let next = find_frame(&self.config, head, content, pos + skip, self.next_lsn());
            let behind = if next.is_some() || limit != Lsn(u64::MAX) {
                Behind::Evidence
            } else {
                Behind::Nothing
            };
            match decide(found.header, found.body, behind) {
                Verdict::Accept => {
                    let frame = found.frame.expect("an accepted position holds a frame");
                    self.accept(&frame, &found.ends, pos);
                    pos += skip;
                    // The next frame takes a mark's place, since the mark is perhaps not durable.
                    if frame.entry_count > 0 {
                        last_frame = pos - skip..pos;
                        write_pos = pos;
                    }
                }
                Verdict::CleanEnd if (content.bytes.len() as u64) < header.file_bytes => {
                    self.damaged(head, content.bytes.len() as u64, DamageKind::ShortFile);
                    break;
                }
                Verdict::CleanEnd => break,
                Verdict::InDoubt => {
                    self.in_doubt(&found);
                    break;
                }
                Verdict::Damage(why) => {
                    self.damaged(head, pos as u64, why);
                    let Some((at, frame)) = next else { break };
                    self.running = Some(LogEnd {
                        point: LogPoint {
                            epoch: Epoch::ZERO,
                            lsn: frame.first_lsn.prev(),
                        },
                        crc: frame.prev_crc,
                    });
                    pos = at;
                }
            }
        }
        if self.damage.is_none() && self.doubt.is_none() {
            let mut page = vec![0; SEGMENT_HEADER_BYTES];
            header.encode(&mut page);
            let mut rewrite = vec![(0, Bytes::from(page))];
            if !last_frame.is_empty() {
                rewrite.push((
                    last_frame.start as u64,
                    content.bytes.slice(last_frame.clone()),
                ));
            }
            self.tail = Some(Tail {
                seq: head.seq,
                write_pos: write_pos as u64,
                file_bytes: header.file_bytes,
                rewrite,
            });
            if let Some(info) = self.segments.last_mut() {
                info.end_offset = write_pos as u64;
            }
        }
        self.check_reaches(head, write_pos, limit);
        Ok(())
    }

    /// A segment that another one follows must hold everything up to it.
    fn check_reaches(&mut self, head: &Head, write_pos: usize, limit: Lsn) {
        let reaches = self
            .running
            .is_some_and(|end| end.point.lsn.next() >= limit);
        if limit != Lsn(u64::MAX) && !reaches && self.damage.is_none() {
            self.damaged(head, write_pos as u64, DamageKind::Chain);
        }
    }

    fn next_lsn(&self) -> Option<Lsn> {
        self.running.map(|end| end.point.lsn.next())
    }

    fn accept(&mut self, frame: &FrameHeader, ends: &[LogEnd], pos: usize) {
        if let Some(last) = ends.last() {
            self.running = Some(*last);
        }
        if self.damage.is_some() {
            return;
        }
        self.commit = self.commit.max(frame.commit);
        for end in ends {
            if self
                .runs
                .last()
                .is_none_or(|(epoch, _)| *epoch != end.point.epoch)
            {
                self.runs.push((end.point.epoch, end.point.lsn));
            }
            self.end = *end;
        }
        if let (Some(first), Some(info)) = (ends.first(), self.segments.last_mut()) {
            info.note(first.point.lsn, pos as u64);
        }
    }

    fn in_doubt(&mut self, found: &Found) {
        let from = self.next_lsn();
        // The end that an interrupted write would have had; behind damage it only stays unproved.
        if let (Some(from), None) = (from, &self.damage) {
            let to = found
                .frame
                .map(|frame| frame.last_lsn())
                .filter(|to| *to >= from);
            self.doubt = Some(Doubt { from, to });
        }
        if self.damage.is_some() {
            self.running = None;
        }
    }

    fn classify(
        &self,
        head: &Head,
        content: &Content,
        pos: usize,
        limit: Lsn,
    ) -> Result<Found, OpenError> {
        let bytes = &content.bytes[pos..];
        let rest = || match (is_zero(bytes), content.readable(pos..content.bytes.len())) {
            (_, false) => BodyState::Unreadable,
            (true, true) => BodyState::Intact,
            (false, true) => BodyState::Bad,
        };
        if !content.readable(pos..pos + PAGE_BYTES) {
            return Ok(Found::bare(HeaderState::Unreadable, BodyState::Bad));
        }
        if is_zero(&bytes[..FRAME_HEADER_BYTES]) {
            return Ok(Found::bare(HeaderState::Zero, rest()));
        }
        let frame = match FrameHeader::decode(bytes) {
            Ok(frame) => frame,
            Err(FrameError::NotAFrame) => {
                return Ok(Found::bare(HeaderState::Garbage, BodyState::Bad));
            }
            Err(FrameError::Version { found, expected }) => {
                return Err(OpenError::Version {
                    file: head.name.clone(),
                    found,
                    expected,
                });
            }
        };
        let start = self.running;
        let expected = frame.lineage == self.config.lineage
            && frame.segment_seq == head.seq
            && start.is_some_and(|end| {
                end.point.lsn.next() == frame.first_lsn && end.crc == frame.prev_crc
            });
        let Some(start) = start.filter(|_| expected) else {
            return Ok(Found::bare(HeaderState::Misplaced, BodyState::Bad));
        };
        let (body, ends) = self.check_body(head, content, pos, &frame, start, limit)?;
        Ok(Found {
            header: HeaderState::Expected,
            body,
            frame: Some(frame),
            ends,
        })
    }

    /// Verifies a frame's entries below `limit`, and all of its padding if they are all below.
    fn check_body(
        &self,
        head: &Head,
        content: &Content,
        pos: usize,
        frame: &FrameHeader,
        start: LogEnd,
        limit: Lsn,
    ) -> Result<(BodyState, Vec<LogEnd>), OpenError> {
        let mut end = start;
        let mut ends = Vec::new();
        let whole = pos..pos + frame.frame_len as usize;
        if whole.end > content.bytes.len() {
            return Ok((BodyState::Bad, ends));
        }
        if !content.readable(whole.clone()) {
            return Ok((BodyState::Unreadable, ends));
        }
        let body_start = pos + FRAME_HEADER_BYTES;
        let body_end = body_start + frame.body_len as usize;
        let body = content.bytes.slice(body_start..body_end);
        for item in EntryIter::new(self.config.lineage, body) {
            let entry = match item {
                Ok(entry) => entry,
                Err(source @ EntryError::UnknownKind { .. }) => {
                    return Err(OpenError::UnknownEntry {
                        file: head.name.clone(),
                        source,
                    });
                }
                Err(_) => return Ok((BodyState::Bad, ends)),
            };
            let follows =
                if end.point.epoch == Epoch::ZERO && end.point.lsn == frame.first_lsn.prev() {
                    // Behind damage the epoch of the entry before is not known.
                    entry.header.prev_crc == end.crc && entry.header.point.lsn == frame.first_lsn
                } else {
                    crate::format::check_follows(end, &entry.header).is_ok()
                };
            if !follows {
                return Ok((BodyState::Bad, ends));
            }
            end = entry.header.end();
            ends.push(end);
            if end.point.lsn.next() >= limit {
                return Ok((BodyState::Intact, ends));
            }
        }
        let complete = ends.len() == frame.entry_count as usize
            && is_zero(&content.bytes[body_end..whole.end]);
        Ok((
            if complete {
                BodyState::Intact
            } else {
                BodyState::Bad
            },
            ends,
        ))
    }

    fn finish(mut self, seq_max: u64) -> Recovery {
        if let Some(damage) = &mut self.damage {
            damage.proved_end = self
                .running
                .map(|end| end.point)
                .filter(|point| point.epoch != Epoch::ZERO && point.lsn >= damage.from);
        }
        let log = RecoveredLog {
            first_lsn: self.first,
            last: self.end.point,
            last_crc: self.end.crc,
            runs: self.runs,
            commit_floor: self.commit.min(self.end.point.lsn),
            doubt: self.doubt,
            damage: self.damage,
        };
        Recovery {
            log,
            end: self.end,
            segments: self.segments,
            dead: Vec::new(),
            spares: Vec::new(),
            temporary: Vec::new(),
            seq_max,
            tail: self.tail,
        }
    }
}

/// The next intact frame header of this segment at or behind `from`, with an LSN that can follow.
fn find_frame(
    config: &WalConfig,
    head: &Head,
    content: &Content,
    from: usize,
    next: Option<Lsn>,
) -> Option<(usize, FrameHeader)> {
    let mut pos = from;
    while pos + PAGE_BYTES <= content.bytes.len() {
        if let Ok(frame) = FrameHeader::decode(&content.bytes[pos..])
            && frame.lineage == config.lineage
            && frame.segment_seq == head.seq
            && next.is_none_or(|next| frame.first_lsn >= next)
        {
            return Some((pos, frame));
        }
        pos += PAGE_BYTES;
    }
    None
}

const _: () = assert!(PAGE == PAGE_BYTES as u64);
