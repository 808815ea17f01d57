//! The primary with its load: forms batches, writes and sends them, counts what is committed.
//!
//! Threads: the caller forms batches and sends them; one writes the local file; one a replica reads answers. All
//! report to the caller over one channel. A batch is formed when the local disk is free: that is group commit.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::TcpStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::{FILE_BYTES, FrameHeader, send};
use crate::disk::{AlignedBuf, LogFile, Method};
use crate::report::{self, Load, Quantiles, Row};

/// Something was made durable.
#[derive(Debug)]
enum Event {
    /// All batches up to this one are durable in the local file; gives the payload's memory back.
    Local(u64, Vec<u8>),
    /// All batches up to this one are durable on the replica of this index.
    Replica(usize, u64),
    /// Somebody is gone.
    Failed(io::Error),
}

/// A batch on its way, for the local file.
struct Write {
    header: FrameHeader,
    payload: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Primary {
    replicas: Vec<TcpStream>,
    writes: Sender<Write>,
    events: Receiver<Event>,
    /// Number of the last batch formed.
    formed: u64,
    /// Last batch durable in the local file.
    local: u64,
    /// Last batch durable on each replica.
    acked: Vec<u64>,
    spare: Vec<Vec<u8>>,
}

/// One run of a load.
struct Run {
    load: Load,
    /// Records that wait for the next batch, by when they were handed in.
    waiting: Vec<Instant>,
    /// Batches without a commit, oldest first.
    ///
    /// Invariant: `waiting` and these together hold `in_flight` records until the end of the run.
    open: VecDeque<(u64, Vec<Instant>)>,
    times: Histogram<u64>,
    batches: usize,
    record: Vec<u8>,
    until: Instant,
}

impl Primary {
    pub(super) fn start(path: &Path, method: Method, replicas: Vec<TcpStream>) -> io::Result<Self> {
        let file = LogFile::create(path, FILE_BYTES, method)?;
        let (events_in, events) = channel();
        let (writes, writes_out) = channel();
        for (index, replica) in replicas.iter().enumerate() {
            let (stream, events) = (replica.try_clone()?, events_in.clone());
            thread::spawn(move || read_answers(stream, index, &events));
        }
        thread::spawn(move || write_batches(file, &writes_out, &events_in));
        Ok(Self {
            acked: vec![0; replicas.len()],
            replicas,
            writes,
            events,
            formed: 0,
            local: 0,
            spare: Vec::new(),
        })
    }

    pub(super) fn run(&mut self, load: Load, span: Duration) -> io::Result<(Row, Histogram<u64>)> {
        let started = Instant::now();
        let mut run = Run::new(load, started + span);
        loop {
            if self.local == self.formed && !run.waiting.is_empty() {
                self.form_batch(&mut run)?;
            }
            if run.open.is_empty() {
                break;
            }
            self.take_event()?;
            // More may have arrived while the first was waited for; they make the next batch larger.
            while let Ok(event) = self.events.try_recv() {
                self.note(event)?;
            }
            run.commit(self.committed());
        }
        self.settle()?;
        let row = run.row(started.elapsed());
        Ok((row, run.times))
    }

    fn form_batch(&mut self, run: &mut Run) -> io::Result<()> {
        self.formed += 1;
        let mut payload = self.spare.pop().unwrap_or_default();
        payload.clear();
        for _ in &run.waiting {
            payload.extend_from_slice(&run.record);
        }
        let header = FrameHeader::of(self.formed, &payload)?;
        run.batches += 1;
        run.open
            .push_back((self.formed, std::mem::take(&mut run.waiting)));
        // The local write runs while the batch is sent.
        let for_replicas = payload.clone();
        let gone = |_| io::Error::other("the writer of the local file ended");
        self.writes.send(Write { header, payload }).map_err(gone)?;
        for replica in &mut self.replicas {
            send(replica, header, &for_replicas)?;
        }
        Ok(())
    }

    /// Durable here and on at least one replica.
    fn committed(&self) -> u64 {
        let best = self.acked.iter().copied().max().unwrap_or(0);
        self.local.min(best)
    }

    /// Waits until the slower replica has everything too, so that no load starts with the work of the one before.
    fn settle(&mut self) -> io::Result<()> {
        while self.local < self.formed || self.acked.iter().any(|acked| *acked < self.formed) {
            self.take_event()?;
        }
        Ok(())
    }

    fn take_event(&mut self) -> io::Result<()> {
        let gone = |_| io::Error::other("every thread of the primary ended");
        let event = self.events.recv().map_err(gone)?;
        self.note(event)
    }

    fn note(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Local(batch, memory) => {
                self.local = batch;
                self.spare.push(memory);
            }
            Event::Replica(index, batch) => self.acked[index] = batch,
            Event::Failed(error) => return Err(error),
        }
        Ok(())
    }
}

impl Run {
    fn new(load: Load, until: Instant) -> Self {
        Self {
            load,
            waiting: vec![Instant::now(); load.in_flight],
            open: VecDeque::new(),
            times: report::histogram(),
            batches: 0,
            record: vec![0xa5; load.record_bytes],
            until,
        }
    }

    /// Every batch up to `committed` is; each of its records is followed by a new one until the time is over.
    fn commit(&mut self, committed: u64) {
        let now = Instant::now();
        while self
            .open
            .front()
            .is_some_and(|(batch, _)| *batch <= committed)
        {
            let Some((_, handed_in)) = self.open.pop_front() else {
                return;
            };
            for then in handed_in {
                report::record(&mut self.times, now - then);
                if now < self.until {
                    self.waiting.push(now);
                }
            }
        }
    }

    fn row(&self, took: Duration) -> Row {
        let latency = Quantiles::of(&self.times);
        let committed = usize::try_from(latency.count).unwrap_or(usize::MAX);
        let committed = report::as_f64(committed);
        Row {
            load: self.load,
            ops_per_second: committed / took.as_secs_f64(),
            latency,
            records_per_batch: committed / report::as_f64(self.batches.max(1)),
        }
    }
}

fn write_batches(mut file: LogFile, writes: &Receiver<Write>, events: &Sender<Event>) {
    let mut buffer = AlignedBuf::default();
    while let Ok(Write { header, payload }) = writes.recv() {
        buffer.fill(&[&header.encode(), &payload]);
        let event = match file.append(buffer.padded()) {
            Ok(()) => Event::Local(header.batch, payload),
            Err(error) => Event::Failed(error),
        };
        // Nobody listens once the floor was dropped.
        if events.send(event).is_err() {
            return;
        }
    }
}

fn read_answers(mut stream: TcpStream, index: usize, events: &Sender<Event>) {
    let mut bytes = [0; 8];
    loop {
        let event = match stream.read_exact(&mut bytes) {
            Ok(()) => Event::Replica(index, u64::from_le_bytes(bytes)),
            Err(error) => Event::Failed(error),
        };
        let last = matches!(event, Event::Failed(_));
        if events.send(event).is_err() || last {
            return;
        }
    }
}
