//! Following a log and reading it, beside the same bytes read from a file and sent through a socket.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use mainstay_benches::loads::{self, Outcome};
use mainstay_benches::report::{Load, as_f64, histogram, record};
use mainstay_client::{Consistency, LogVolume, ReadLimits};
use mainstay_types::Lsn;
use tokio::runtime::Runtime;

use crate::cases::Table;
use crate::rig::Rig;

const RECORD_BYTES: usize = 256;
/// Of a page of the product, and of a read of the reference.
const PAGE_BYTES: usize = 1 << 20;
/// How often a live tail that is silent looks whether all has come, and for how long it may be.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const SILENT_MOST: Duration = Duration::from_secs(30);
/// Records on their way while a live tail follows.
const LIVE_IN_FLIGHT: usize = 16;

/// Follows the log from a position in the past, and then live.
pub(crate) fn tail(
    runtime: &Runtime,
    rig: &Rig,
    span: Duration,
    dir: &Path,
    table: &mut Table,
) -> anyhow::Result<()> {
    let (from, count) = runtime.block_on(fill(&rig.product.log, span))?;
    let ours = runtime.block_on(follow(&rig.product.log, from, count))?;
    let raw = raw_stream(dir, count)?;
    let load = format!("{RECORD_BYTES} B, from the past");
    let against = Some(("a file through a socket, checksummed", raw));
    table.rates("tail", &load, ours, against);

    let live = runtime.block_on(follow_live(&rig.product.log, span))?;
    let load = format!("{RECORD_BYTES} B, live, {LIVE_IN_FLIGHT} appends in flight");
    table.ours("tail", &load, live);
    Ok(())
}

/// Reads the log page by page, one request at a time.
pub(crate) fn reads(
    runtime: &Runtime,
    rig: &Rig,
    span: Duration,
    dir: &Path,
    table: &mut Table,
) -> anyhow::Result<()> {
    let (from, count) = runtime.block_on(fill(&rig.product.log, span))?;
    for (name, consistency) in [
        ("linearizable", Consistency::Linearizable),
        ("committed", Consistency::Committed),
    ] {
        let log = rig.product.log.with_consistency(consistency);
        let ours = runtime.block_on(read_all(&log, from, count))?;
        let raw = raw_pages(dir, count)?;
        let load = format!("{RECORD_BYTES} B, pages of 1 MiB, {name}");
        let against = Some(("pages of a file over a socket, checksummed", raw));
        table.rates("reads", &load, ours, against);
    }
    Ok(())
}

/// Appends for `span`: the first position, and how many records.
async fn fill(log: &LogVolume, span: Duration) -> anyhow::Result<(Lsn, usize)> {
    let from = log.position().await?.next;
    let load = Load {
        record_bytes: RECORD_BYTES,
        in_flight: 256,
    };
    let filled = loads::closed_loop(log, load, span).await?;
    Ok((from, usize::try_from(filled.times.len())?))
}

/// Records a second.
async fn follow(log: &LogVolume, from: Lsn, count: usize) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let mut tail = log.tail(from);
    for _ in 0..count {
        let record = tail.next().await.context("a tail ended")??;
        ensure!(
            record.data.len() == RECORD_BYTES,
            "a record of another length"
        );
    }
    Ok(as_f64(count) / begin.elapsed().as_secs_f64())
}

/// Appends with their time inside, and what a tail says how long they took to come through.
async fn follow_live(log: &LogVolume, span: Duration) -> anyhow::Result<Outcome> {
    let base = Instant::now();
    let from = log.position().await?.next;
    let mut tail = log.tail(from);
    let writers: Vec<_> = (0..LIVE_IN_FLIGHT)
        .map(|_| {
            let log = log.clone();
            tokio::spawn(async move {
                let mut count = 0;
                while base.elapsed() < span {
                    let mut data = vec![0x5a_u8; RECORD_BYTES];
                    let now = u64::try_from(base.elapsed().as_nanos())?;
                    data[..8].copy_from_slice(&now.to_le_bytes());
                    log.append(Bytes::from(data)).await?;
                    count += 1;
                }
                anyhow::Ok(count)
            })
        })
        .collect();
    let goal = Arc::new(AtomicUsize::new(usize::MAX));
    let known = goal.clone();
    let follower = tokio::spawn(async move {
        let mut times = histogram();
        let mut seen = 0_usize;
        let mut silent = Duration::ZERO;
        while seen < known.load(Ordering::Relaxed) {
            let Ok(next) = tokio::time::timeout(LOOK_AGAIN, tail.next()).await else {
                silent += LOOK_AGAIN;
                ensure!(
                    silent < SILENT_MOST,
                    "a tail is silent after {seen} records"
                );
                continue;
            };
            silent = Duration::ZERO;
            let followed = next.context("a tail ended")??;
            let sent = followed.data.first_chunk::<8>().context("a short record")?;
            let sent = Duration::from_nanos(u64::from_le_bytes(*sent));
            record(&mut times, base.elapsed().saturating_sub(sent));
            seen += 1;
        }
        anyhow::Ok((times, seen))
    });
    let mut appended = 0;
    for writer in writers {
        appended += writer.await??;
    }
    goal.store(appended, Ordering::Relaxed);
    let (times, seen) = follower.await??;
    ensure!(
        seen == appended,
        "{appended} appended, {seen} came through a tail"
    );
    Ok(Outcome {
        per_second: as_f64(seen) / span.as_secs_f64(),
        times,
    })
}

async fn read_all(log: &LogVolume, from: Lsn, count: usize) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let limits = ReadLimits {
        records_max: u32::MAX,
        bytes_max: u32::try_from(PAGE_BYTES)?,
    };
    let (mut at, mut read) = (from, 0);
    while read < count {
        let page = log.read(at, limits).await?;
        ensure!(!page.records.is_empty(), "{read} of {count} records read");
        read += page.records.len();
        at = page.next;
    }
    Ok(as_f64(count) / begin.elapsed().as_secs_f64())
}

/// A file of as many bytes, sent as one stream and checksummed record by record; records a second.
fn raw_stream(dir: &Path, count: usize) -> anyhow::Result<f64> {
    let path = raw_file(dir, count)?;
    let (mut stream, server) = raw_server(move |mut stream| {
        let mut file = std::fs::File::open(path)?;
        io::copy(&mut file, &mut stream).map(drop)
    })?;
    let begin = Instant::now();
    let mut page = vec![0; PAGE_BYTES];
    let mut left = count * RECORD_BYTES;
    while left > 0 {
        let part = left.min(PAGE_BYTES);
        stream.read_exact(&mut page[..part])?;
        check(&page[..part]);
        left -= part;
    }
    let took = begin.elapsed();
    server.join().ok().context("the reference failed")??;
    Ok(as_f64(count) / took.as_secs_f64())
}

/// The same, asked for page by page.
fn raw_pages(dir: &Path, count: usize) -> anyhow::Result<f64> {
    let path = raw_file(dir, count)?;
    let (mut stream, server) = raw_server(move |mut stream| {
        let mut file = std::fs::File::open(path)?;
        let mut page = vec![0; PAGE_BYTES];
        let mut request = [0; 16];
        while stream.read_exact(&mut request).is_ok() {
            let [offset, len] = [&request[..8], &request[8..]]
                .map(|part| u64::from_le_bytes(part.try_into().expect("8 bytes")));
            let part = &mut page[..usize::try_from(len).map_err(io::Error::other)?];
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(part)?;
            stream.write_all(part)?;
        }
        Ok(())
    })?;
    let begin = Instant::now();
    let mut page = vec![0; PAGE_BYTES];
    let (mut at, end) = (0, count * RECORD_BYTES);
    while at < end {
        let part = (end - at).min(PAGE_BYTES);
        let request = [(at as u64).to_le_bytes(), (part as u64).to_le_bytes()].concat();
        stream.write_all(&request)?;
        stream.read_exact(&mut page[..part])?;
        check(&page[..part]);
        at += part;
    }
    let took = begin.elapsed();
    drop(stream);
    server.join().ok().context("the reference failed")??;
    Ok(as_f64(count) / took.as_secs_f64())
}

fn check(page: &[u8]) {
    for record in page.chunks(RECORD_BYTES) {
        std::hint::black_box(crc32fast::hash(record));
    }
}

fn raw_file(dir: &Path, count: usize) -> anyhow::Result<std::path::PathBuf> {
    let path = dir.join("raw");
    std::fs::write(&path, vec![0x5a_u8; count * RECORD_BYTES])?;
    Ok(path)
}

type Server = std::thread::JoinHandle<io::Result<()>>;

/// Serves one connection on a thread of its own.
fn raw_server(
    serve: impl FnOnce(TcpStream) -> io::Result<()> + Send + 'static,
) -> io::Result<(TcpStream, Server)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        serve(stream)
    });
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok((stream, server))
}
