//! The raw floor of replicated appends: what they cost with nothing but a disk, two sockets and a checksum.
//!
//! Three plain processes: the one that measures is the primary, and starts this program twice as a replica. A batch
//! is everything that waits; it is written to the local file and sent to both replicas at the same time, and its
//! records count as committed when it is durable here and on one replica. No recovery, no failover, no clients: a
//! replicated log that promises more cannot be faster with the same disk and the same writes.

mod primary;
mod replica;

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::disk::Method;
use crate::loads::Outcome;
use crate::report::{Load, Row};
use primary::Primary;
pub use replica::serve;

/// Two replica processes and this one. The processes end with it.
#[derive(Debug)]
pub struct Floor {
    primary: Primary,
    replicas: Vec<Child>,
}

impl Floor {
    /// Starts the replicas as `program replica --file FILE --method METHOD`; all files lie in `dir`.
    pub fn start(program: &Path, dir: &Path, method: Method) -> io::Result<Self> {
        let mut replicas = Vec::new();
        let mut streams = Vec::new();
        for name in ["replica-1", "replica-2"] {
            let (child, stream) = start_replica(program, &dir.join(name), method)?;
            replicas.push(child);
            streams.push(stream);
        }
        let primary = Primary::start(&dir.join("primary"), method, streams)?;
        Ok(Self { primary, replicas })
    }

    /// Runs one load for `span`.
    pub fn run(&mut self, load: Load, span: Duration) -> io::Result<Row> {
        Ok(self.primary.run(load, span)?.0)
    }

    /// As [`Floor::run`], with the times of all records.
    pub fn run_timed(&mut self, load: Load, span: Duration) -> io::Result<Outcome> {
        let (row, times) = self.primary.run(load, span)?;
        Ok(Outcome {
            per_second: row.ops_per_second,
            times,
        })
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        for replica in &mut self.replicas {
            let _ = replica.kill();
            let _ = replica.wait();
        }
    }
}

fn start_replica(program: &Path, file: &PathBuf, method: Method) -> io::Result<(Child, TcpStream)> {
    let method = match method {
        Method::Dsync => "dsync",
        Method::Fdatasync => "fdatasync",
    };
    let mut child = Command::new(program)
        .arg("replica")
        .arg("--file")
        .arg(file)
        .args(["--method", method])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    match connect(&mut child) {
        Ok(stream) => Ok((child, stream)),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// The replica prints its port once it listens.
fn connect(child: &mut Child) -> io::Result<TcpStream> {
    let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let port: u16 = line
        .trim()
        .parse()
        .map_err(|_| io::Error::other("a replica did not start"))?;
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Before each batch on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FrameHeader {
    len: u32,
    crc: u32,
    /// Number of the batch; the answer is this number alone.
    batch: u64,
}

impl FrameHeader {
    const BYTES: usize = 16;

    fn of(batch: u64, payload: &[u8]) -> io::Result<Self> {
        Ok(Self {
            len: u32::try_from(payload.len()).map_err(io::Error::other)?,
            crc: crc32fast::hash(payload),
            batch,
        })
    }

    fn encode(self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[..4].copy_from_slice(&self.len.to_le_bytes());
        out[4..8].copy_from_slice(&self.crc.to_le_bytes());
        out[8..].copy_from_slice(&self.batch.to_le_bytes());
        out
    }

    fn decode(bytes: [u8; Self::BYTES]) -> Self {
        let [l0, l1, l2, l3, c0, c1, c2, c3, batch @ ..] = bytes;
        Self {
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
            batch: u64::from_le_bytes(batch),
        }
    }
}

fn send(stream: &mut TcpStream, header: FrameHeader, payload: &[u8]) -> io::Result<()> {
    // Small batches go out in one piece: a second system call costs more than the copy.
    if payload.len() <= ONE_PIECE_BYTES {
        let whole = [&header.encode()[..], payload].concat();
        return stream.write_all(&whole);
    }
    stream.write_all(&header.encode())?;
    stream.write_all(payload)
}

const ONE_PIECE_BYTES: usize = 64 << 10;
/// Of each of the three files: many times the largest batch.
const FILE_BYTES: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = FrameHeader::of(u64::MAX - 5, b"payload").expect("short");
        assert_eq!(FrameHeader::decode(header.encode()), header);
        assert_eq!(header.len, 7);
    }
}
