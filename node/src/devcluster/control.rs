//! How `mainstay up --restart` and `mainstay down` talk to the `mainstay up` that runs a directory: one line of JSON
//! each way over a Unix socket in that directory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use mainstay_types::NodeId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Start this node, which ended.
    Restart(NodeId),
    /// Stop all nodes and end.
    Stop,
}

/// The answer, once the work is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is.
    Done,
    /// It could not be; for people.
    Refused(String),
}

/// The socket of the process that runs a directory. Removed when dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

/// One asker.
#[derive(Debug)]
pub struct Asker {
    stream: BufReader<UnixStream>,
}

impl Listener {
    /// Call under the directory's lock: a socket that is there belongs to a process that is gone.
    pub fn bind(dir: &Path) -> io::Result<Self> {
        let path = dir.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let directory = File::open(dir)?;
        let socket = UnixListener::bind(short_path(&directory))?;
        Ok(Self { socket, path })
    }

    /// The next one who asks something. Cancel safe.
    pub async fn accept(&self) -> io::Result<Asker> {
        let (stream, _) = self.socket.accept().await?;
        Ok(Asker {
            stream: BufReader::new(stream),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Asker {
    /// What it asks.
    pub async fn request(&mut self) -> io::Result<Request> {
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Answers it.
    pub async fn answer(mut self, answer: &Answer) -> io::Result<()> {
        send(self.stream.get_mut(), answer).await
    }
}

/// Asks the process that runs `dir`; `None` if there is none.
pub async fn ask(dir: &Path, request: Request) -> io::Result<Option<Answer>> {
    let Ok(directory) = File::open(dir) else {
        return Ok(None);
    };
    let Ok(mut stream) = UnixStream::connect(short_path(&directory)).await else {
        return Ok(None);
    };
    send(&mut stream, &request).await?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await?;
    if line.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "`mainstay up` ended before it answered",
        ));
    }
    Ok(Some(serde_json::from_str(&line)?))
}

async fn send<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

/// The socket's path by way of the open directory: a socket's path holds at most 107 bytes, a directory's may be
/// longer. Valid while `directory` is open.
fn short_path(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))
}

const SOCKET: &str = "up.sock";
