//! Extended headers: how they are negotiated, and what requests and replies look like with them.

mod support;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mainstay_nbd::codec::Chunk;
use mainstay_nbd::memory::MemoryDevice;
use mainstay_nbd::protocol::{Errno, chunk, command, command_flag, option, reply};
use mainstay_nbd::{
    BlockDevice, BlockError, ConnectionEnd, ConnectionError, ExportInfo, Holes, Limits,
};
use support::{HeldDevice, connect, ready_extended, server};

const SIZE: usize = 1 << 20;
const PAYLOAD: u16 = command_flag::PAYLOAD_LEN;

fn error(errno: Errno, message: &str) -> Chunk {
    Chunk::Error {
        error: errno.code(),
        message: message.as_bytes().to_vec(),
    }
}

#[tokio::test]
async fn extended_headers_take_precedence_whatever_was_negotiated_before() {
    for structured_first in [false, true] {
        let device = MemoryDevice::new("vol", SIZE);
        let (mut client, _served) = connect(&server(device, Limits::default()), 4096);
        client.greet().await;
        if structured_first {
            client.option(option::STRUCTURED_REPLY, b"").await;
        }
        let refused = client.option(option::EXTENDED_HEADERS, b"x").await;
        assert_eq!(refused, [(reply::ERR_INVALID, vec![])]);
        client.extend_headers().await;
        let refused = client.option(option::STRUCTURED_REPLY, b"").await;
        assert_eq!(refused, [(reply::ERR_EXT_HEADER_REQD, vec![])]);
        client.go("vol").await;
        client.request(command::FLUSH, 0, 7, 0, 0).await;
        assert_eq!(client.chunk().await, (7, Chunk::None));
    }
}

#[tokio::test(start_paused = true)]
async fn export_name_is_not_for_clients_with_extended_headers() {
    let device = MemoryDevice::new("vol", SIZE);
    let (mut client, served) = connect(&server(device, Limits::default()), 4096);
    client.greet().await;
    client.extend_headers().await;
    client.send_option(option::EXPORT_NAME, b"vol").await;
    assert_eq!(client.rest().await, b"");
    let end = served.await.expect("task").expect("end");
    assert_eq!(end, ConnectionEnd::NoExport);
}

#[tokio::test]
async fn every_reply_is_extended_and_repeats_cookie_and_offset() {
    let device = MemoryDevice::new("vol", SIZE);
    let (mut client, _served) = ready_extended(&server(device.clone(), Limits::default())).await;
    client.request(command::WRITE, PAYLOAD, 1, 1000, 4).await;
    client.send(b"data").await;
    let (header, offset, chunk) = client.any_chunk().await;
    assert_eq!((header.cookie, offset, chunk), (1, 1000, Chunk::None));
    assert_eq!(device.content()[1000..1004], *b"data");

    client.request(command::READ, 0, 2, 1001, 2).await;
    let (header, offset, chunk) = client.any_chunk().await;
    let data = Chunk::Data {
        offset: 1001,
        data: b"at".to_vec(),
    };
    assert_eq!((header.cookie, offset, chunk), (2, 1001, data));
    assert_eq!(header.flags, chunk::FLAG_DONE);

    for (cookie, command) in (3..).zip([command::TRIM, command::WRITE_ZEROES]) {
        client.request(command, 0, cookie, 1000, 4).await;
        let (header, offset, chunk) = client.any_chunk().await;
        assert_eq!((header.cookie, offset, chunk), (cookie, 1000, Chunk::None));
    }
    client.request(command::TRIM, 0, 9, 77, u64::MAX).await;
    let (header, offset, chunk) = client.any_chunk().await;
    let beyond = error(Errno::Inval, "beyond the end of the export");
    assert_eq!((header.cookie, offset, chunk), (9, 77, beyond));
}

#[tokio::test]
async fn payloads_are_found_and_unexpected_ones_dropped_in_step() {
    let device = MemoryDevice::new("vol", SIZE);
    let (mut client, _served) = ready_extended(&server(device.clone(), Limits::default())).await;
    let before = device.content();
    let unknown = || error(Errno::Inval, "unknown flag for this command");
    for (cookie, command) in (2..).zip([
        command::READ,
        command::FLUSH,
        command::TRIM,
        command::WRITE_ZEROES,
        command::BLOCK_STATUS,
        4711,
    ]) {
        client.request(command, PAYLOAD, cookie, 0, 3000).await;
        client.send(&[0x25; 3000]).await;
        assert_eq!(client.chunk().await, (cookie, unknown()));
    }
    client.request(command::WRITE, PAYLOAD, 9, 0, 0).await;
    assert_eq!(
        client.chunk().await,
        (9, error(Errno::Inval, "zero length"))
    );
    client.request(command::FLUSH, 0, 10, 0, 0).await;
    assert_eq!(client.chunk().await, (10, Chunk::None));
    assert!(device.content() == before);
}

/// The specification demands the flag; QEMU 10.0 leaves it out.
#[tokio::test]
async fn a_write_has_its_payload_also_without_the_flag() {
    let device = MemoryDevice::new("vol", SIZE);
    let (mut client, _served) = ready_extended(&server(device.clone(), Limits::default())).await;
    client.request(command::WRITE, 0, 1, 5, 4).await;
    client.send(b"data").await;
    assert_eq!(client.chunk().await, (1, Chunk::None));
    assert_eq!(device.content()[5..9], *b"data");
    client.request(command::WRITE, 0, 2, SIZE as u64, 4).await;
    client.send(b"data").await;
    let beyond = error(Errno::NoSpc, "beyond the end of the export");
    assert_eq!(client.chunk().await, (2, beyond));
}

#[tokio::test]
async fn a_payload_beyond_the_maximum_is_dropped_and_one_beyond_reason_ends_the_connection() {
    let limits = Limits {
        request_bytes_max: 65_536,
        ..Limits::default()
    };
    let server = server(MemoryDevice::new("vol", SIZE), limits);
    let (mut client, served) = ready_extended(&server).await;
    client.request(command::WRITE, PAYLOAD, 1, 0, 100_000).await;
    client.send(&[1; 100_000]).await;
    let too_large = error(Errno::Inval, "larger than the maximum block size");
    assert_eq!(client.chunk().await, (1, too_large));
    let hostile = 1_u64 << 40;
    client.request(command::WRITE, PAYLOAD, 2, 0, hostile).await;
    assert_eq!(client.rest().await, b"");
    assert!(matches!(
        served.await.expect("task"),
        Err(ConnectionError::PayloadTooLarge { bytes }) if bytes == hostile
    ));
    assert_eq!(server.stats().bytes_held, 0);
}

/// As large as a client may ask for, and made of nothing.
struct Vast(HeldDevice);

impl BlockDevice for Vast {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            size_bytes: 1 << 50,
            ..self.0.info()
        }
    }
    fn read(&self, offset: u64, len: u32) -> BoxFuture<'static, Result<Bytes, BlockError>> {
        self.0.read(offset, len)
    }
    fn write(&self, offset: u64, data: Bytes) -> BoxFuture<'static, Result<(), BlockError>> {
        self.0.write(offset, data)
    }
    fn trim(&self, offset: u64, len: u64) -> BoxFuture<'static, Result<(), BlockError>> {
        // The memory behind it has no such range; that it was asked is what counts.
        drop(self.0.trim(offset, len));
        self.0.memory.flush()
    }
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        holes: Holes,
    ) -> BoxFuture<'static, Result<(), BlockError>> {
        drop(self.0.write_zeroes(offset, len, holes));
        self.0.memory.flush()
    }
    fn flush(&self) -> BoxFuture<'static, Result<(), BlockError>> {
        self.0.flush()
    }
}

#[tokio::test]
async fn trims_and_zeroes_beyond_4_gib_are_one_request() {
    let held = HeldDevice::new(SIZE);
    let (mut client, _served) =
        ready_extended(&server(Vast(held.clone()), Limits::default())).await;
    client.request(command::TRIM, 0, 1, 4096, 5 << 30).await;
    assert_eq!(client.chunk().await, (1, Chunk::None));
    client
        .request(command::WRITE_ZEROES, 0, 2, 0, 1 << 50)
        .await;
    assert_eq!(client.chunk().await, (2, Chunk::None));
    let expected = [
        format!("trim 4096+{}", 5_u64 << 30),
        format!("zero 0+{} {:?}", 1_u64 << 50, Holes::Allowed),
    ];
    assert_eq!(held.calls(), expected);
}

#[tokio::test]
async fn compact_requests_after_extended_headers_are_lost_framing() {
    let device = MemoryDevice::new("vol", SIZE);
    let (mut client, served) = ready_extended(&server(device, Limits::default())).await;
    client.extended = false;
    client.request(command::FLUSH, 0, 1, 0, 0).await;
    client.send(&[0; 4]).await;
    assert_eq!(client.rest().await, b"");
    assert!(matches!(
        served.await.expect("task"),
        Err(ConnectionError::Misbehaved(_))
    ));
}
