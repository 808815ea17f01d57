//! Writes as a file system makes them, over NBD, with a model of the disk in memory; and the comparison of the two.
//!
//! * Offsets and lengths are multiples of 4 KiB, ranges overlap earlier ones, several requests are in flight.
//! * The server takes the requests of one connection in the order in which they arrive, so the model changes when a
//!   request is submitted. Bytes that a request in flight covers are not certain; all others must read back at any
//!   time, also in the middle of a failover.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::gaps::Gaps;
use super::nbd_client::{Command, NbdClient, NbdError};

/// Unit of offsets and lengths.
const BLOCK_BYTES: usize = 4096;
/// Blocks of one write at most.
const WRITE_BLOCKS_MAX: usize = 16;
/// Blocks of one request for zeroes, or one trim, at most.
const ZERO_BLOCKS_MAX: usize = 64;
/// Bytes of one request when the whole disk is compared.
const COMPARE_BYTES: usize = 1 << 20;

/// What was asked of the disk, counted by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DiskCounts {
    /// Writes.
    pub writes: u64,
    /// Of them, with FUA.
    pub fua: u64,
    /// Requests for zeroes.
    pub zeroes: u64,
    /// Trims.
    pub trims: u64,
    /// Flushes.
    pub flushes: u64,
    /// Blocks that were read back and compared under load.
    pub blocks_read: u64,
    /// Bytes written.
    pub bytes: u64,
}

/// The disk as it must be.
#[derive(Debug)]
pub struct DiskModel {
    bytes: Vec<u8>,
    /// What led there.
    pub counts: DiskCounts,
}

/// A writer under way.
#[derive(Debug)]
pub struct DiskLoad {
    gaps: Arc<Gaps>,
    stop: watch::Sender<bool>,
    writer: JoinHandle<anyhow::Result<DiskModel>>,
}

impl DiskLoad {
    /// Connects to the export `volume` at `address`, which must read as zeroes all over, and writes to it until told to
    /// stop, `in_flight` requests at a time.
    ///
    /// # Errors
    /// The export cannot be opened.
    pub async fn start(
        address: &str,
        volume: &str,
        seed: u64,
        in_flight: usize,
    ) -> anyhow::Result<Self> {
        let client = NbdClient::connect(address, volume)
            .await
            .with_context(|| format!("NBD export {volume} at {address}"))?;
        let size = usize::try_from(client.size_bytes())?;
        let gaps = Arc::new(Gaps::default());
        let (stop, stopped) = watch::channel(false);
        let writer = Writer {
            client,
            random: StdRng::seed_from_u64(seed),
            model: DiskModel {
                bytes: vec![0; size],
                counts: DiskCounts::default(),
            },
            blocks: vec![Block::default(); size / BLOCK_BYTES],
            gaps: gaps.clone(),
        };
        Ok(Self {
            gaps,
            stop,
            writer: tokio::spawn(writer.run(stopped, in_flight)),
        })
    }

    /// What it saw: only changes of the disk count.
    #[must_use]
    pub fn gaps(&self) -> &Arc<Gaps> {
        &self.gaps
    }

    /// Whether it ended by itself, because of an error.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.writer.is_finished()
    }

    /// Submits nothing more, waits for every answer, flushes and disconnects.
    ///
    /// # Errors
    /// A request failed, or bytes that were certain read back otherwise.
    pub async fn stop(self) -> anyhow::Result<DiskModel> {
        self.stop.send_replace(true);
        self.writer.await.context("the disk's writer panicked")?
    }
}

/// A request in flight.
struct Sent {
    first: usize,
    blocks: usize,
    kind: Kind,
}

enum Kind {
    Change,
    Flush,
    Read(Expected),
}

/// What a read must find, as far as that is certain.
struct Expected {
    bytes: Vec<u8>,
    /// For each block how often it had been changed; `None` if a change was in flight.
    changes: Vec<Option<u32>>,
}

struct Writer {
    client: NbdClient,
    random: StdRng,
    model: DiskModel,
    blocks: Vec<Block>,
    gaps: Arc<Gaps>,
}

/// What is known of one block besides its bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Block {
    /// Changes submitted so far.
    changes: u32,
    /// Of them, in flight.
    in_flight: u32,
}

impl Writer {
    async fn run(
        mut self,
        stopped: watch::Receiver<bool>,
        in_flight: usize,
    ) -> anyhow::Result<DiskModel> {
        let mut pending = FuturesUnordered::new();
        loop {
            while pending.len() < in_flight && !*stopped.borrow() {
                let (sent, command) = self.next();
                let answer = self.client.submit(command);
                let since = Instant::now();
                pending.push(async move { (sent, since, answer.answer().await) });
            }
            let Some((sent, since, answer)) = pending.next().await else {
                break;
            };
            self.settle(sent, since, answer)?;
        }
        self.client.call(Command::Flush).await?;
        self.client.disconnect();
        Ok(self.model)
    }

    fn next(&mut self) -> (Sent, Command) {
        let fua = self.random.random_range(0..8) == 0;
        match self.random.random_range(0..100) {
            0..70 => self.write(fua),
            70..78 => self.zeroes(fua),
            78..84 => self.trim(),
            84..88 => {
                self.model.counts.flushes += 1;
                let (first, blocks, kind) = (0, 0, Kind::Flush);
                let sent = Sent {
                    first,
                    blocks,
                    kind,
                };
                (sent, Command::Flush)
            }
            _ => self.read(),
        }
    }

    fn write(&mut self, fua: bool) -> (Sent, Command) {
        // Most writes of a file system are a block long.
        let longest = if self.random.random_bool(0.6) {
            1
        } else {
            WRITE_BLOCKS_MAX
        };
        let (first, blocks) = self.range(longest);
        let mut data = vec![0; blocks * BLOCK_BYTES];
        self.random.fill_bytes(&mut data);
        self.model.bytes[span(first, blocks)].copy_from_slice(&data);
        self.model.counts.writes += 1;
        self.model.counts.fua += u64::from(fua);
        self.model.counts.bytes += data.len() as u64;
        let command = Command::Write {
            offset: offset(first),
            data: Bytes::from(data),
            fua,
        };
        (self.change(first, blocks), command)
    }

    fn zeroes(&mut self, fua: bool) -> (Sent, Command) {
        let (first, blocks) = self.range(ZERO_BLOCKS_MAX);
        self.model.bytes[span(first, blocks)].fill(0);
        self.model.counts.zeroes += 1;
        let (offset, len) = (offset(first), len(blocks));
        let command = Command::Zeroes { offset, len, fua };
        (self.change(first, blocks), command)
    }

    /// NBD leaves open what trimmed bytes read as; Mainstay says zeroes, on every copy.
    fn trim(&mut self) -> (Sent, Command) {
        let (first, blocks) = self.range(ZERO_BLOCKS_MAX);
        self.model.bytes[span(first, blocks)].fill(0);
        self.model.counts.trims += 1;
        let (offset, len) = (offset(first), len(blocks));
        (self.change(first, blocks), Command::Trim { offset, len })
    }

    fn read(&mut self) -> (Sent, Command) {
        let (first, blocks) = self.range(WRITE_BLOCKS_MAX);
        let certain = |block: &Block| (block.in_flight == 0).then_some(block.changes);
        let expected = Expected {
            bytes: self.model.bytes[span(first, blocks)].to_vec(),
            changes: self.blocks[first..first + blocks]
                .iter()
                .map(certain)
                .collect(),
        };
        let sent = Sent {
            first,
            blocks,
            kind: Kind::Read(expected),
        };
        let (offset, len) = (offset(first), len(blocks));
        (sent, Command::Read { offset, len })
    }

    fn range(&mut self, blocks_max: usize) -> (usize, usize) {
        let blocks = self.random.random_range(1..=blocks_max);
        let first = self
            .random
            .random_range(0..=self.blocks.len().saturating_sub(blocks));
        (first, blocks)
    }

    fn change(&mut self, first: usize, blocks: usize) -> Sent {
        for block in &mut self.blocks[first..first + blocks] {
            block.changes += 1;
            block.in_flight += 1;
        }
        let kind = Kind::Change;
        Sent {
            first,
            blocks,
            kind,
        }
    }

    fn settle(
        &mut self,
        sent: Sent,
        since: Instant,
        answer: Result<Bytes, NbdError>,
    ) -> anyhow::Result<()> {
        let Sent { first, blocks, .. } = sent;
        let found = answer.with_context(|| {
            let waited = since.elapsed();
            format!("{blocks} blocks from block {first}, after {waited:?}")
        })?;
        match sent.kind {
            Kind::Flush => {}
            Kind::Change => {
                for block in &mut self.blocks[first..first + blocks] {
                    block.in_flight -= 1;
                }
                self.gaps.acknowledged();
            }
            Kind::Read(expected) => self.check_read(first, &expected, &found)?,
        }
        Ok(())
    }

    /// Compares the blocks that were certain when the read was submitted and were not changed since.
    fn check_read(
        &mut self,
        first: usize,
        expected: &Expected,
        found: &[u8],
    ) -> anyhow::Result<()> {
        let pairs = found
            .chunks(BLOCK_BYTES)
            .zip(expected.bytes.chunks(BLOCK_BYTES));
        for (index, (is, must)) in pairs.enumerate() {
            let block = first + index;
            let certain = expected.changes[index] == Some(self.blocks[block].changes);
            self.model.counts.blocks_read += u64::from(certain);
            ensure!(
                !certain || is == must,
                "block {block} read back otherwise than acknowledged"
            );
        }
        Ok(())
    }
}

impl DiskModel {
    /// Size of the disk.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Reads the whole export at `address` and compares it. Answers how many blocks differ and where the first one is.
    ///
    /// # Errors
    /// The export cannot be read.
    pub async fn compare(&self, address: &str, volume: &str) -> anyhow::Result<Difference> {
        let client = NbdClient::connect(address, volume).await?;
        ensure!(
            client.size_bytes() == self.size_bytes(),
            "the export has {} bytes instead of {}",
            client.size_bytes(),
            self.size_bytes()
        );
        let mut difference = Difference::default();
        for (index, expected) in self.bytes.chunks(COMPARE_BYTES).enumerate() {
            let offset = (index * COMPARE_BYTES) as u64;
            let len = u32::try_from(expected.len())?;
            let found = client.call(Command::Read { offset, len }).await?;
            let blocks = found
                .chunks(BLOCK_BYTES)
                .zip(expected.chunks(BLOCK_BYTES))
                .enumerate();
            for (block, _) in blocks.filter(|(_, (is, must))| is != must) {
                difference.blocks += 1;
                let at = offset + (block * BLOCK_BYTES) as u64;
                difference.first.get_or_insert(at);
            }
        }
        client.disconnect();
        Ok(difference)
    }
}

/// How a disk differs from its model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Blocks that differ.
    pub blocks: u64,
    /// Offset of the first of them.
    pub first: Option<u64>,
}

fn span(first: usize, blocks: usize) -> std::ops::Range<usize> {
    first * BLOCK_BYTES..(first + blocks) * BLOCK_BYTES
}

fn offset(block: usize) -> u64 {
    (block * BLOCK_BYTES) as u64
}

fn len(blocks: usize) -> u32 {
    u32::try_from(blocks * BLOCK_BYTES).expect("a request is far below 4 GiB")
}
