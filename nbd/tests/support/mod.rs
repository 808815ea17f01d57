//! A small NBD client over any stream, and devices that tests can hold back.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(
    clippy::cast_possible_truncation,
    reason = "lengths of tests are small"
)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use mainstay_nbd::codec::{
    CHUNK_HEADER_BYTES, Chunk, ChunkHeader, ClientFlags, EXTENDED_CHUNK_HEADER_BYTES, ExportQuery,
    ExtendedChunkHeader, GREETING_BYTES, Greeting, OPTION_REPLY_HEADER_BYTES, OptionHeader,
    OptionReplyHeader, Request, SIMPLE_REPLY_BYTES, SimpleReply,
};
use mainstay_nbd::memory::{FixedExports, MemoryDevice};
use mainstay_nbd::protocol::{chunk, info, option, reply};
use mainstay_nbd::{
    BlockDevice, BlockError, ConnectionEnd, ConnectionError, ExportInfo, Holes, Limits, Server,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

pub(crate) type Served = JoinHandle<Result<ConnectionEnd, ConnectionError>>;

pub(crate) const PEER: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

pub(crate) fn server(device: impl BlockDevice, limits: Limits) -> Server {
    Server::new(Arc::new(FixedExports::new().with(device)), limits)
}

/// A connection to `server` with `pipe` bytes of buffer in each direction.
pub(crate) fn connect(server: &Server, pipe: usize) -> (Client<DuplexStream>, Served) {
    let (near, far) = duplex(pipe);
    let server = server.clone();
    let served =
        tokio::spawn(async move { server.serve_stream(far, PEER, std::future::pending()).await });
    (Client::new(near), served)
}

/// A client that has chosen the only export.
pub(crate) async fn ready(server: &Server, structured: bool) -> (Client<DuplexStream>, Served) {
    let (mut client, served) = connect(server, 1 << 16);
    client.greet().await;
    if structured {
        let replies = client.option(option::STRUCTURED_REPLY, b"").await;
        assert_eq!(replies, [(reply::ACK, vec![])]);
    }
    let facts = client.go("").await;
    assert_eq!(facts.last().map(|reply| reply.0), Some(reply::ACK));
    (client, served)
}

/// A client that has negotiated extended headers and chosen the only export.
pub(crate) async fn ready_extended(server: &Server) -> (Client<DuplexStream>, Served) {
    let (mut client, served) = connect(server, 1 << 16);
    client.greet().await;
    client.extend_headers().await;
    let facts = client.go("").await;
    assert_eq!(facts.last().map(|reply| reply.0), Some(reply::ACK));
    (client, served)
}

/// A TCP server whose stop is in the test's hand.
pub(crate) async fn listen(server: &Server) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let (stop, stopped) = oneshot::channel();
    let server = server.clone();
    let serving = tokio::spawn(async move {
        server
            .serve(listener, async {
                let _ = stopped.await;
            })
            .await;
    });
    (address, stop, serving)
}

impl<S> Client<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            extended: false,
        }
    }
}

pub(crate) struct Client<S> {
    pub(crate) stream: S,
    /// Whether requests and replies have extended headers.
    pub(crate) extended: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("send");
    }

    pub(crate) async fn receive<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).await.expect("receive");
        bytes
    }

    pub(crate) async fn receive_vec(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).await.expect("receive");
        bytes
    }

    /// Whatever comes until the server closes.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).await.expect("rest");
        rest
    }

    pub(crate) async fn greet(&mut self) {
        let greeting = self.receive::<GREETING_BYTES>().await;
        assert_eq!(Greeting::decode(&greeting), Ok(Greeting::ours()));
        let flags = ClientFlags {
            fixed_newstyle: true,
            no_zeroes: true,
        };
        self.send(&flags.encode()).await;
    }

    pub(crate) async fn send_option(&mut self, option: u32, data: &[u8]) {
        let length = data.len() as u32;
        self.send(&OptionHeader { option, length }.encode()).await;
        self.send(data).await;
    }

    pub(crate) async fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let header = OptionReplyHeader::decode(&self.receive::<OPTION_REPLY_HEADER_BYTES>().await)
            .expect("magic");
        assert_eq!(header.option, option);
        (header.reply, self.receive_vec(header.length as usize).await)
    }

    /// Sends an option and collects its replies up to the last. Texts of errors are dropped.
    pub(crate) async fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send_option(option, data).await;
        let mut replies = Vec::new();
        loop {
            let (kind, data) = self.option_reply(option).await;
            if kind & reply::ERROR_BIT != 0 {
                replies.push((kind, vec![]));
                return replies;
            }
            replies.push((kind, data));
            if kind == reply::ACK {
                return replies;
            }
        }
    }

    pub(crate) async fn query(
        &mut self,
        option: u32,
        name: &str,
        infos: &[u16],
    ) -> Vec<(u32, Vec<u8>)> {
        let mut data = BytesMut::new();
        ExportQuery {
            name: name.to_owned(),
            infos: infos.to_vec(),
        }
        .encode(&mut data);
        self.option(option, &data).await
    }

    pub(crate) async fn go(&mut self, name: &str) -> Vec<(u32, Vec<u8>)> {
        self.query(option::GO, name, &[info::BLOCK_SIZE]).await
    }

    pub(crate) async fn extend_headers(&mut self) {
        let replies = self.option(option::EXTENDED_HEADERS, b"").await;
        assert_eq!(replies, [(reply::ACK, vec![])]);
        self.extended = true;
    }

    pub(crate) async fn request(
        &mut self,
        command: u16,
        flags: u16,
        cookie: u64,
        offset: u64,
        length: u64,
    ) {
        let request = Request {
            flags,
            command,
            cookie,
            offset,
            length,
        };
        if self.extended {
            self.send(&request.encode_extended()).await;
        } else {
            self.send(&request.encode()).await;
        }
    }

    pub(crate) async fn simple(&mut self) -> (u64, u32) {
        let reply =
            SimpleReply::decode(&self.receive::<SIMPLE_REPLY_BYTES>().await).expect("magic");
        (reply.cookie, reply.error)
    }

    pub(crate) async fn chunk(&mut self) -> (u64, Chunk) {
        let (header, _, chunk) = self.any_chunk().await;
        assert_eq!(header.flags, chunk::FLAG_DONE);
        (header.cookie, chunk)
    }

    /// A chunk that need not be the last, and the offset that its header repeats.
    pub(crate) async fn any_chunk(&mut self) -> (ChunkHeader, u64, Chunk) {
        let (header, offset) = if self.extended {
            let header = self.receive::<EXTENDED_CHUNK_HEADER_BYTES>().await;
            let header = ExtendedChunkHeader::decode(&header).expect("magic");
            (header.chunk, header.offset)
        } else {
            let header = self.receive::<CHUNK_HEADER_BYTES>().await;
            (ChunkHeader::decode(&header).expect("magic"), 0)
        };
        let payload = self.receive_vec(header.length as usize).await;
        let chunk = Chunk::decode(header.kind, &payload).expect("chunk");
        (header, offset, chunk)
    }
}

/// A memory device whose calls are noted when made, and answered one by one as `answers` gets permits.
#[derive(Clone)]
pub(crate) struct HeldDevice {
    pub(crate) memory: MemoryDevice,
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
    pub(crate) answers: Arc<Semaphore>,
    /// How often it was told that its peer is gone.
    pub(crate) gone: Arc<AtomicUsize>,
    pub(crate) progress: Arc<AtomicU64>,
}

impl HeldDevice {
    pub(crate) fn new(size_bytes: usize) -> Self {
        Self {
            memory: MemoryDevice::new("held", size_bytes),
            calls: Arc::default(),
            answers: Arc::new(Semaphore::new(0)),
            gone: Arc::default(),
            progress: Arc::default(),
        }
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("calls").clone()
    }

    fn hold<T: Send + 'static>(
        &self,
        call: String,
        answer: BoxFuture<'static, Result<T, BlockError>>,
    ) -> BoxFuture<'static, Result<T, BlockError>> {
        self.calls.lock().expect("calls").push(call);
        let answers = Arc::clone(&self.answers);
        Box::pin(async move {
            answers.acquire().await.expect("open").forget();
            answer.await
        })
    }
}

impl BlockDevice for HeldDevice {
    fn info(&self) -> ExportInfo {
        self.memory.info()
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'static, Result<Bytes, BlockError>> {
        self.hold(
            format!("read {offset}+{len}"),
            self.memory.read(offset, len),
        )
    }

    fn write(&self, offset: u64, data: Bytes) -> BoxFuture<'static, Result<(), BlockError>> {
        let unique = if data.is_unique() { "" } else { " shared" };
        let call = format!("write {offset}+{}{unique}", data.len());
        self.hold(call, self.memory.write(offset, data))
    }

    fn trim(&self, offset: u64, len: u64) -> BoxFuture<'static, Result<(), BlockError>> {
        self.hold(
            format!("trim {offset}+{len}"),
            self.memory.trim(offset, len),
        )
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        holes: Holes,
    ) -> BoxFuture<'static, Result<(), BlockError>> {
        let call = format!("zero {offset}+{len} {holes:?}");
        self.hold(call, self.memory.write_zeroes(offset, len, holes))
    }

    fn flush(&self) -> BoxFuture<'static, Result<(), BlockError>> {
        self.hold("flush".to_owned(), self.memory.flush())
    }

    fn peer_gone(&self) {
        self.gone.fetch_add(1, Ordering::Relaxed);
    }

    fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }
}

/// Waits for a condition that other tasks bring about. By the real clock, which goes on where a test stops tokio's, and without a sleep,
/// which would turn that one on.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !condition() {
        assert!(
            std::time::Instant::now() < give_up,
            "never came true: {what}"
        );
        tokio::task::yield_now().await;
    }
}
