//! A small NBD client: one connection, many requests in flight, structured replies.
//!
//! * The *call* of [`NbdClient::submit`] fixes the order in which requests reach the server.
//! * Dropping a [`Pending`] forgets the answer, not the request.
//! * A lost connection is final: everything unanswered fails, and so does everything submitted later.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use mainstay_nbd::codec::{
    CHUNK_HEADER_BYTES, Chunk, ChunkHeader, ClientFlags, CodecError, ExportQuery, GREETING_BYTES,
    Greeting, OPTION_REPLY_HEADER_BYTES, OptionHeader, OptionReplyHeader, REQUEST_BYTES, Request,
    SIMPLE_REPLY_BYTES, SimpleReply,
};
use mainstay_nbd::protocol::{
    SIMPLE_REPLY_MAGIC, chunk, command, command_flag, info, option, reply,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

/// Why there is no connection, or no success.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The connection.
    #[error("NBD connection")]
    Io(#[from] io::Error),
    /// The server does not speak NBD as this client does.
    #[error("NBD")]
    Codec(#[from] CodecError),
    /// The server refused an option of the negotiation.
    #[error("NBD option {option} refused with {reply:#x}: {message}")]
    Refused {
        /// The option.
        option: u32,
        /// Its answer.
        reply: u32,
        /// The server's words.
        message: String,
    },
    /// The server did not carry out a request.
    #[error("NBD error {errno}: {message}")]
    Failed {
        /// As on the wire.
        errno: u32,
        /// The server's words; simple replies have none.
        message: String,
    },
    /// An answer that does not fit its request.
    #[error("NBD: {0}")]
    Misfit(&'static str),
    /// The connection ended before the answer.
    #[error("the NBD connection ended before the answer")]
    Closed,
}

/// What an export can be asked.
#[derive(Debug, Clone)]
pub enum Command {
    /// Read.
    Read {
        /// First byte.
        offset: u64,
        /// Count.
        len: u32,
    },
    /// Write.
    Write {
        /// First byte.
        offset: u64,
        /// What.
        data: Bytes,
        /// Answer only when durable.
        fua: bool,
    },
    /// Make a range read as zeroes.
    Zeroes {
        /// First byte.
        offset: u64,
        /// Count.
        len: u32,
        /// Answer only when durable.
        fua: bool,
    },
    /// Declare a range not needed.
    Trim {
        /// First byte.
        offset: u64,
        /// Count.
        len: u32,
    },
    /// Make everything answered durable.
    Flush,
}

/// An export that was chosen. Its tasks end when it is dropped and every answer has come, or the connection is lost.
#[derive(Debug)]
pub struct NbdClient {
    size_bytes: u64,
    flags: u16,
    requests: mpsc::UnboundedSender<(Bytes, Bytes)>,
    waiting: Arc<Waiting>,
}

/// One answer to come: the bytes of a read, nothing for everything else.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Bytes, NbdError>>);

impl Pending {
    /// Waits for it.
    ///
    /// # Errors
    /// The server failed the request, or the connection was lost.
    pub async fn answer(self) -> Result<Bytes, NbdError> {
        self.0.await.unwrap_or(Err(NbdError::Closed))
    }
}

impl NbdClient {
    /// Connects to `address` and chooses `export`.
    ///
    /// # Errors
    /// No connection, or the server refuses.
    pub async fn connect(address: &str, export: &str) -> Result<Self, NbdError> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (size_bytes, flags) = negotiate(&mut stream, export).await?;
        let (from_server, to_server) = stream.into_split();
        let waiting = Arc::new(Waiting::default());
        let (requests, queue) = mpsc::unbounded_channel();
        tokio::spawn(send(to_server, queue));
        tokio::spawn(receive(from_server, waiting.clone()));
        Ok(Self {
            size_bytes,
            flags,
            requests,
            waiting,
        })
    }

    /// Size of the export.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// What the server says that the export can do; see [`mainstay_nbd::protocol::transmission`].
    #[must_use]
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Puts a request in line.
    pub fn submit(&self, what: Command) -> Pending {
        let (answer, pending) = oneshot::channel();
        let (mut request, payload) = what.into_request();
        let read = read_range(&request);
        if let Some(cookie) = self.waiting.add(read, answer) {
            request.cookie = cookie;
            // An error means that the connection was lost: then `receive` fails everything that waits.
            let _lost = self
                .requests
                .send((Bytes::copy_from_slice(&request.encode()), payload));
        }
        Pending(pending)
    }

    /// Puts a request in line and waits for its answer.
    ///
    /// # Errors
    /// As [`Pending::answer`].
    pub async fn call(&self, what: Command) -> Result<Bytes, NbdError> {
        self.submit(what).answer().await
    }

    /// Says goodbye. Call when nothing is in flight.
    pub fn disconnect(self) {
        let goodbye = request(command::DISC, 0, 0, 0).encode();
        let _lost = self
            .requests
            .send((Bytes::copy_from_slice(&goodbye), Bytes::new()));
    }
}

impl Command {
    fn into_request(self) -> (Request, Bytes) {
        let fua_flag = |fua: bool| if fua { command_flag::FUA } else { 0 };
        match self {
            Self::Read { offset, len } => (request(command::READ, 0, offset, len), Bytes::new()),
            Self::Write { offset, data, fua } => {
                let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
                let request = request(command::WRITE, fua_flag(fua), offset, len);
                (request, data)
            }
            Self::Zeroes { offset, len, fua } => {
                let request = request(command::WRITE_ZEROES, fua_flag(fua), offset, len);
                (request, Bytes::new())
            }
            Self::Trim { offset, len } => (request(command::TRIM, 0, offset, len), Bytes::new()),
            Self::Flush => (request(command::FLUSH, 0, 0, 0), Bytes::new()),
        }
    }
}

/// Where the bytes of an answer belong. Headers are compact, so that every length fits.
fn read_range(request: &Request) -> Option<(u64, u32)> {
    let length = u32::try_from(request.length).ok()?;
    (request.command == command::READ).then_some((request.offset, length))
}

fn request(command: u16, flags: u16, offset: u64, length: u32) -> Request {
    Request {
        flags,
        command,
        cookie: 0,
        offset,
        length: u64::from(length),
    }
}

/// Greeting, structured replies, `GO`. Answers size and flags of the export.
async fn negotiate(stream: &mut TcpStream, export: &str) -> Result<(u64, u16), NbdError> {
    let mut greeting = [0; GREETING_BYTES];
    stream.read_exact(&mut greeting).await?;
    Greeting::decode(&greeting)?;
    let flags = ClientFlags {
        fixed_newstyle: true,
        no_zeroes: true,
    };
    stream.write_all(&flags.encode()).await?;
    ask(stream, option::STRUCTURED_REPLY, &[]).await?;
    let query = ExportQuery {
        name: export.to_owned(),
        infos: vec![info::BLOCK_SIZE],
    };
    let mut data = BytesMut::new();
    query.encode(&mut data);
    let facts = ask(stream, option::GO, &data).await?;
    let export = facts
        .iter()
        .find_map(|fact| fact.strip_prefix(&info::EXPORT.to_be_bytes()));
    let export: &[u8; 10] = export
        .and_then(|bytes| bytes.first_chunk())
        .ok_or(NbdError::Misfit("no size of the export"))?;
    let [size @ .., high, low] = export;
    Ok((u64::from_be_bytes(*size), u16::from_be_bytes([*high, *low])))
}

/// Sends one option and collects the data of its replies up to the acknowledgement.
async fn ask(stream: &mut TcpStream, option: u32, data: &[u8]) -> Result<Vec<Vec<u8>>, NbdError> {
    let length = u32::try_from(data.len()).map_err(|_| CodecError::Length)?;
    stream
        .write_all(&OptionHeader { option, length }.encode())
        .await?;
    stream.write_all(data).await?;
    let mut facts = Vec::new();
    loop {
        let mut header = [0; OPTION_REPLY_HEADER_BYTES];
        stream.read_exact(&mut header).await?;
        let header = OptionReplyHeader::decode(&header)?;
        if header.length > OPTION_DATA_BYTES_MAX {
            return Err(CodecError::Length.into());
        }
        let mut data = vec![0; header.length as usize];
        stream.read_exact(&mut data).await?;
        match header.reply {
            reply::ACK => return Ok(facts),
            refused if refused & reply::ERROR_BIT != 0 => {
                return Err(NbdError::Refused {
                    option,
                    reply: refused,
                    message: String::from_utf8_lossy(&data).into_owned(),
                });
            }
            _ => facts.push(data),
        }
    }
}

async fn send(mut stream: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<(Bytes, Bytes)>) {
    while let Some((header, payload)) = queue.recv().await {
        let mut bytes = BytesMut::with_capacity(REQUEST_BYTES + payload.len());
        bytes.put(header);
        bytes.put(payload);
        if stream.write_all(&bytes).await.is_err() {
            // The reading half sees the loss as well, and tells those who wait.
            return;
        }
    }
}

async fn receive(mut stream: OwnedReadHalf, waiting: Arc<Waiting>) {
    // Whatever ends the connection is told to nobody in particular: everything that waits fails with `Closed`.
    while let Ok(answer) = next_answer(&mut stream).await {
        if waiting.settle(answer).is_err() {
            break;
        }
    }
    waiting.close();
}

/// One message of the server.
struct Answer {
    cookie: u64,
    done: bool,
    body: Chunk,
}

async fn next_answer(stream: &mut OwnedReadHalf) -> Result<Answer, NbdError> {
    let mut head = [0; SIMPLE_REPLY_BYTES];
    stream.read_exact(&mut head).await?;
    if head.starts_with(&SIMPLE_REPLY_MAGIC.to_be_bytes()) {
        let simple = SimpleReply::decode(&head)?;
        let body = match simple.error {
            0 => Chunk::None,
            error => Chunk::Error {
                error,
                message: Vec::new(),
            },
        };
        return Ok(Answer {
            cookie: simple.cookie,
            done: true,
            body,
        });
    }
    let mut header = [0; CHUNK_HEADER_BYTES];
    header[..SIMPLE_REPLY_BYTES].copy_from_slice(&head);
    stream.read_exact(&mut header[SIMPLE_REPLY_BYTES..]).await?;
    let header = ChunkHeader::decode(&header)?;
    if header.length > CHUNK_BYTES_MAX {
        return Err(CodecError::Length.into());
    }
    let mut payload = vec![0; header.length as usize];
    stream.read_exact(&mut payload).await?;
    Ok(Answer {
        cookie: header.cookie,
        done: header.flags & chunk::FLAG_DONE != 0,
        body: Chunk::decode(header.kind, &payload)?,
    })
}

/// Requests without an answer.
#[derive(Debug)]
struct Waiting {
    /// `None` once the connection is lost.
    inner: Mutex<Option<WaitingInner>>,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Some(WaitingInner::default())),
        }
    }
}

#[derive(Debug, Default)]
struct WaitingInner {
    last_cookie: u64,
    requests: HashMap<u64, Waiter>,
}

#[derive(Debug)]
struct Waiter {
    answer: oneshot::Sender<Result<Bytes, NbdError>>,
    /// Where a read begins.
    offset: u64,
    /// Zeroes at first, as long as what is read.
    data: BytesMut,
    /// Bytes of it that have come.
    come: usize,
}

impl Waiting {
    /// `None` once the connection is lost: `answer` is dropped.
    fn add(
        &self,
        read: Option<(u64, u32)>,
        answer: oneshot::Sender<Result<Bytes, NbdError>>,
    ) -> Option<u64> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = inner.as_mut()?;
        inner.last_cookie += 1;
        let (offset, len) = read.unwrap_or_default();
        let waiter = Waiter {
            answer,
            offset,
            data: BytesMut::zeroed(len as usize),
            come: 0,
        };
        inner.requests.insert(inner.last_cookie, waiter);
        Some(inner.last_cookie)
    }

    fn settle(&self, answer: Answer) -> Result<(), NbdError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = inner.as_mut().ok_or(NbdError::Closed)?;
        let mut waiter = inner
            .requests
            .remove(&answer.cookie)
            .ok_or(NbdError::Misfit("an answer to nothing that was asked"))?;
        let failed = match answer.body {
            Chunk::None => None,
            Chunk::Data { offset, data } => waiter.put(offset, data.len(), Some(&data)).err(),
            Chunk::Hole { offset, length } => waiter.put(offset, length as usize, None).err(),
            Chunk::Status { .. } => Some(NbdError::Misfit("a status that nobody asked for")),
            Chunk::Error { error, message } => Some(NbdError::Failed {
                errno: error,
                message: String::from_utf8_lossy(&message).into_owned(),
            }),
        };
        if let Some(error) = failed {
            let _not_waited_for = waiter.answer.send(Err(error));
        } else if answer.done {
            waiter.finish();
        } else {
            inner.requests.insert(answer.cookie, waiter);
        }
        Ok(())
    }

    fn close(&self) {
        *self.inner.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Waiter {
    /// Takes part of a read: `data`, or zeroes.
    fn put(&mut self, offset: u64, len: usize, data: Option<&[u8]>) -> Result<(), NbdError> {
        let begin = offset
            .checked_sub(self.offset)
            .and_then(|begin| usize::try_from(begin).ok())
            .ok_or(NbdError::Misfit("bytes before those asked for"))?;
        let to = begin
            .checked_add(len)
            .and_then(|end| self.data.get_mut(begin..end))
            .ok_or(NbdError::Misfit("bytes beyond those asked for"))?;
        if let Some(data) = data {
            to.copy_from_slice(data);
        }
        self.come += len;
        Ok(())
    }

    fn finish(self) {
        let result = if self.come == self.data.len() {
            Ok(self.data.freeze())
        } else {
            Err(NbdError::Misfit("fewer bytes than asked for"))
        };
        let _not_waited_for = self.answer.send(result);
    }
}

/// Longest data of an option reply that is taken.
const OPTION_DATA_BYTES_MAX: u32 = 1 << 16;
/// Longest chunk that is taken.
const CHUNK_BYTES_MAX: u32 = 64 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mainstay_nbd::memory::{FixedExports, MemoryDevice};
    use mainstay_nbd::{Limits, Server};
    use tokio::net::TcpListener;

    use super::*;
    use crate::demo::disk::DiskLoad;

    const SIZE: usize = 1 << 20;

    /// A device made of memory, served until the test ends.
    async fn served() -> String {
        let device = MemoryDevice::new("disk", SIZE);
        let server = Server::new(
            Arc::new(FixedExports::new().with(device)),
            Limits::default(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
        address
    }

    fn write(offset: u64, data: &'static [u8]) -> Command {
        Command::Write {
            offset,
            data: Bytes::from_static(data),
            fua: true,
        }
    }

    #[tokio::test]
    async fn requests_in_flight_are_answered_each_with_its_own_bytes() {
        let client = NbdClient::connect(&served().await, "disk")
            .await
            .expect("connects");
        assert_eq!(client.size_bytes(), SIZE as u64);
        let writes = [
            client.submit(write(0, &[1; 4096])),
            client.submit(write(4096, &[2; 4096])),
        ];
        for pending in writes {
            pending.answer().await.expect("written");
        }
        let reads = [(4096, 2), (0, 1), (8192, 0)].map(|(offset, byte)| {
            let len = 4096;
            (client.submit(Command::Read { offset, len }), byte)
        });
        for (pending, byte) in reads {
            let found = pending.answer().await.expect("read");
            assert!(found.len() == 4096 && found.iter().all(|b| *b == byte));
        }
        client.call(Command::Flush).await.expect("flushed");
    }

    #[tokio::test]
    async fn what_the_server_refuses_fails_and_the_connection_goes_on() {
        let address = served().await;
        let refused = NbdClient::connect(&address, "no such").await;
        assert!(matches!(refused, Err(NbdError::Refused { .. })));
        let client = NbdClient::connect(&address, "disk")
            .await
            .expect("connects");
        let (offset, len) = (SIZE as u64, 4096);
        let beyond = client.call(Command::Read { offset, len }).await;
        assert!(matches!(beyond, Err(NbdError::Failed { .. })));
        client.call(write(0, &[3; 4096])).await.expect("written");
    }

    #[tokio::test]
    async fn a_load_leaves_the_disk_as_its_model_says_and_a_changed_block_is_found() {
        let address = served().await;
        let load = DiskLoad::start(&address, "disk", 7, 4)
            .await
            .expect("starts");
        while load.gaps().count() < 500 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let model = load.stop().await.expect("ends well");
        assert!(model.counts.writes > 0 && model.counts.blocks_read > 0);
        let same = model.compare(&address, "disk").await.expect("reads");
        assert_eq!(same.blocks, 0);
        let client = NbdClient::connect(&address, "disk")
            .await
            .expect("connects");
        client
            .call(write(8192, &[0xee; 512]))
            .await
            .expect("written");
        let changed = model.compare(&address, "disk").await.expect("reads");
        assert_eq!((changed.blocks, changed.first), (1, Some(8192)));
    }
}
