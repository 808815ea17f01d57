//! Frames of a log: how entries are put into them, how they are written, and the mark behind the last one.

use bytes::Bytes;
use mainstay_types::Lsn;

use super::{State, Wal, WalError};
use crate::engine::{AlignedBuf, Disk, DiskFile, PAGE};
use crate::format::{
    BatchError, EntryIter, FRAME_BYTES_MAX, FRAME_HEADER_BYTES, FrameHeader, LogEnd, check_follows,
};

/// One frame to be written.
pub(super) struct Planned {
    pub(super) header: FrameHeader,
    parts: Vec<Bytes>,
    end: LogEnd,
}

impl<D: Disk> Wal<D> {
    /// Writes a mark behind the last frame: proof for recovery that everything before it was complete. Not synced,
    /// and overwritten by the next frame. Does nothing where the segment is full. Call it a few milliseconds after
    /// the last append.
    ///
    /// # Errors
    /// [`WalError::Poisoned`] if the write fails.
    pub async fn mark(&mut self, commit: Lsn) -> Result<(), WalError> {
        self.check_writable()?;
        let end = self.end;
        self.commit = self.commit.max(commit);
        let commit = self.commit;
        let Some(active) = self.active.as_mut().filter(|active| active.has_room(PAGE)) else {
            return Ok(());
        };
        let header = FrameHeader {
            entry_count: 0,
            frame_len: u32::try_from(PAGE).expect("a page fits 32 bits"),
            body_len: 0,
            first_lsn: end.point.lsn.next(),
            lineage: self.config.lineage,
            segment_seq: active.seq,
            commit,
            prev_crc: end.crc,
        };
        let mut buf =
            AlignedBuf::zeroed(FRAME_HEADER_BYTES.next_multiple_of(crate::engine::PAGE_BYTES));
        header.encode(&mut buf);
        self.state = State::Busy;
        let (result, _) = active.file.write_at(buf, active.write_pos).await;
        self.finish(result)
    }

    /// Checks that the entries continue the log and splits them into frames.
    pub(super) fn plan_frames(
        &self,
        entries: &[Bytes],
        commit: Lsn,
    ) -> Result<Vec<Planned>, WalError> {
        let mut end = self.end;
        let mut frames: Vec<Planned> = Vec::new();
        let limit = self
            .config
            .frame_bytes
            .min(FRAME_BYTES_MAX - FRAME_HEADER_BYTES);
        for bytes in entries {
            let mut iter = EntryIter::headers_only(self.config.lineage, bytes.clone());
            loop {
                let offset = iter.offset();
                let Some(item) = iter.next() else { break };
                let entry = item.map_err(|source| BatchError::Entry { offset, source })?;
                check_follows(end, &entry.header)?;
                let len = entry.bytes.len();
                let full = frames
                    .last()
                    .is_none_or(|frame| frame.header.body_len as usize + len > limit);
                if full {
                    frames.push(self.new_frame(end, commit));
                }
                let frame = frames.last_mut().expect("one was pushed if there was none");
                frame.header.entry_count += 1;
                frame.header.body_len +=
                    u32::try_from(len).expect("an entry is below FRAME_BYTES_MAX");
                end = entry.header.end();
                frame.end = end;
                frame.parts.push(entry.bytes);
            }
        }
        if frames.is_empty() {
            return Err(BatchError::Empty.into());
        }
        for frame in &mut frames {
            let len = FrameHeader::frame_bytes(frame.header.body_len as usize);
            frame.header.frame_len = u32::try_from(len).expect("at most FRAME_BYTES_MAX");
        }
        Ok(frames)
    }

    fn new_frame(&self, end: LogEnd, commit: Lsn) -> Planned {
        let header = FrameHeader {
            entry_count: 0,
            frame_len: 0,
            body_len: 0,
            first_lsn: end.point.lsn.next(),
            lineage: self.config.lineage,
            segment_seq: 0,
            commit: self.commit.max(commit),
            prev_crc: end.crc,
        };
        Planned {
            header,
            parts: Vec::new(),
            end,
        }
    }

    pub(super) async fn write_frame(&mut self, mut frame: Planned) -> Result<(), WalError> {
        let active = self.active.as_mut().expect("the caller made room");
        let len = frame.header.frame_len as usize;
        let mut buf = match self.buf.take() {
            Some(buf) if buf.capacity() >= len => buf,
            _ => AlignedBuf::zeroed(len.max(64 << 10)),
        };
        buf.set_len(len);
        frame.header.segment_seq = active.seq;
        frame.header.encode(&mut buf);
        let mut at = FRAME_HEADER_BYTES;
        for part in &frame.parts {
            buf[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        buf[at..].fill(0);
        let offset = active.write_pos;
        assert!(
            offset + len as u64 <= active.file_bytes,
            "frame {offset}+{len} beyond {}",
            active.file_bytes
        );
        let (result, buf) = active.file.write_durable(buf, offset).await;
        if buf.capacity() <= 2 << 20 {
            self.buf = Some(buf);
        }
        self.finish(result)?;
        self.state = State::Busy;
        let active = self.active.as_mut().expect("still there");
        active.write_pos += len as u64;
        self.progress.set(active.write_pos);
        assert!(
            frame.end.point > self.end.point,
            "log end fell from {} to {}",
            self.end.point,
            frame.end.point
        );
        self.end = frame.end;
        let mut state = self.index.lock();
        state.end = frame.end;
        if let Some(info) = state.segments.last_mut() {
            info.note(frame.header.first_lsn, offset);
            info.end_offset = active.write_pos;
        }
        Ok(())
    }
}
