//! Requests and replies after the handshake: data, errors, order, goodbye.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use mainstay_nbd::codec::Chunk;
use mainstay_nbd::memory::MemoryDevice;
use mainstay_nbd::protocol::{Errno, chunk, command, command_flag};
use mainstay_nbd::{
    Access, BlockDevice, BlockError, ConnectionEnd, ConnectionError, Ended, ExportInfo, Holes,
    Limits, MultiConn,
};
use support::{HeldDevice, ready, ready_extended, server, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt};
use tokio::sync::Semaphore;

const SIZE: usize = 1 << 20;

fn memory() -> MemoryDevice {
    MemoryDevice::new("vol", SIZE)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| u8::try_from(n % 251).expect("below 251") + 1)
        .collect()
}

#[tokio::test]
async fn simple_replies_carry_what_was_written() {
    let device = memory();
    let (mut client, _served) = ready(&server(device.clone(), Limits::default()), false).await;
    let data = pattern(100_000);
    client
        .request(command::WRITE, command_flag::FUA, 1, 1000, 100_000)
        .await;
    client.send(&data).await;
    assert_eq!(client.simple().await, (1, 0));
    assert_eq!(device.content()[1000..101_000], data);
    client.request(command::READ, 0, 2, 1000, 100_000).await;
    assert_eq!(client.simple().await, (2, 0));
    assert_eq!(client.receive_vec(100_000).await, data);
    client.request(command::READ, 0, 3, 0, 1000).await;
    assert_eq!(client.simple().await, (3, 0));
    assert_eq!(client.receive_vec(1000).await, vec![0; 1000]);
}

#[tokio::test]
async fn structured_replies_tell_data_from_holes_and_say_why_they_fail() {
    let device = memory();
    device.fill(512, &pattern(10));
    let (mut client, _served) = ready(&server(device, Limits::default()), true).await;
    client
        .request(command::READ, command_flag::DF, 1, 510, 4)
        .await;
    let data = vec![0, 0, 1, 2];
    assert_eq!(client.chunk().await, (1, Chunk::Data { offset: 510, data }));
    client.request(command::READ, 0, 2, 4096, 8192).await;
    let hole = Chunk::Hole {
        offset: 4096,
        length: 8192,
    };
    assert_eq!(client.chunk().await, (2, hole));
    client.request(command::READ, 0, 3, SIZE as u64, 1).await;
    let error = Chunk::Error {
        error: Errno::Inval.code(),
        message: b"beyond the end of the export".to_vec(),
    };
    assert_eq!(client.chunk().await, (3, error));
    // Everything but reads is answered by simple replies, which the specification allows.
    client.request(command::FLUSH, 0, 4, 0, 0).await;
    assert_eq!(client.simple().await, (4, 0));
}

#[tokio::test]
async fn trim_and_zeroes_and_flush_reach_the_device_with_their_flags() {
    let device = HeldDevice::new(SIZE);
    device.answers.add_permits(100);
    let (mut client, _served) = ready(&server(device.clone(), Limits::default()), true).await;
    client
        .request(command::TRIM, command_flag::FUA, 1, 0, 4096)
        .await;
    assert_eq!(client.simple().await, (1, 0));
    client.request(command::WRITE_ZEROES, 0, 2, 1, 2).await;
    assert_eq!(client.simple().await, (2, 0));
    client
        .request(command::WRITE_ZEROES, command_flag::NO_HOLE, 3, 3, 4)
        .await;
    assert_eq!(client.simple().await, (3, 0));
    client.request(command::FLUSH, 0, 4, 0, 0).await;
    assert_eq!(client.simple().await, (4, 0));
    let (allowed, forbidden) = (Holes::Allowed, Holes::Forbidden);
    let expected = [
        "trim 0+4096".to_owned(),
        format!("zero 1+2 {allowed:?}"),
        format!("zero 3+4 {forbidden:?}"),
        "flush".to_owned(),
    ];
    assert_eq!(device.calls(), expected);
}

#[tokio::test]
async fn zeroes_that_must_be_fast_are_left_alone_where_they_would_not_be() {
    let device = memory();
    device.fill(0, &pattern(100));
    let (mut client, _served) = ready(&server(device.clone(), Limits::default()), false).await;
    let (fast, no_hole) = (command_flag::FAST_ZERO, command_flag::NO_HOLE);
    client
        .request(command::WRITE_ZEROES, fast | no_hole, 1, 0, 50)
        .await;
    assert_eq!(client.simple().await, (1, Errno::NotSup.code()));
    assert_eq!(device.content()[..100], pattern(100));
    client.request(command::WRITE_ZEROES, fast, 2, 0, 50).await;
    assert_eq!(client.simple().await, (2, 0));
    assert_eq!(device.content()[..50], [0; 50]);

    // A device that says nothing about it is not fast.
    let slow = SlowReads(HeldDevice::new(SIZE));
    let (mut client, _served) = ready(&server(slow, Limits::default()), false).await;
    client.request(command::WRITE_ZEROES, fast, 3, 0, 50).await;
    assert_eq!(client.simple().await, (3, Errno::NotSup.code()));
}

#[tokio::test]
async fn cache_is_answered_and_reads_nothing() {
    let device = HeldDevice::new(SIZE);
    let (mut client, _served) = ready(&server(device.clone(), Limits::default()), true).await;
    client.request(command::CACHE, 0, 1, 0, SIZE as u64).await;
    assert_eq!(client.simple().await, (1, 0));
    assert!(device.calls().is_empty());
}

#[tokio::test]
async fn a_sparse_read_comes_in_chunks_and_an_unfragmented_one_in_one() {
    let device = memory();
    device.fill(5, &pattern(10));
    device.fill(300_000, &pattern(10));
    for extended in [false, true] {
        let server = server(device.clone(), Limits::default());
        let (mut client, _served) = if extended {
            ready_extended(&server).await
        } else {
            ready(&server, true).await
        };
        client.request(command::READ, 0, 1, 0, 400_000).await;
        let mut read = Vec::new();
        let mut kinds = Vec::new();
        loop {
            let (header, _, chunk) = client.any_chunk().await;
            assert_eq!(header.cookie, 1);
            match chunk {
                Chunk::Data { offset, data } => {
                    assert_eq!(offset, read.len() as u64);
                    read.extend(data);
                }
                Chunk::Hole { offset, length } => {
                    assert_eq!(offset, read.len() as u64);
                    read.resize(read.len() + length as usize, 0);
                }
                other => panic!("{other:?}"),
            }
            kinds.push(header.kind);
            if header.flags & chunk::FLAG_DONE != 0 {
                break;
            }
        }
        assert!(read == device.content()[..400_000]);
        let (data, hole) = (chunk::OFFSET_DATA, chunk::OFFSET_HOLE);
        assert_eq!(kinds, [data, hole, data, hole]);

        client
            .request(command::READ, command_flag::DF, 2, 0, 400_000)
            .await;
        let data = device.content()[..400_000].to_vec();
        assert_eq!(client.chunk().await, (2, Chunk::Data { offset: 0, data }));
    }
}

#[tokio::test]
async fn refused_requests_change_nothing_and_leave_the_connection_in_step() {
    let device = memory();
    let limits = Limits {
        request_bytes_max: 65_536,
        ..Limits::default()
    };
    let before = device.content();
    let (mut client, _served) = ready(&server(device.clone(), limits), false).await;
    let size = SIZE as u64;
    let cases = [
        (command::WRITE, 0, size, 4096, Errno::NoSpc),
        (command::WRITE, 0, size - 1, 2, Errno::NoSpc),
        (command::WRITE, 0, u64::MAX, 100, Errno::NoSpc),
        (command::WRITE, 0, 0, 65_537, Errno::Inval),
        (command::WRITE, 0, 0, 900_000, Errno::Inval),
        (command::WRITE, 1 << 9, 0, 512, Errno::Inval),
        (command::WRITE, 0, 0, 0, Errno::Inval),
        (command::READ, 0, 0, 65_537, Errno::Inval),
        (command::READ, 0, 0, u64::from(u32::MAX), Errno::Inval),
        (command::TRIM, 0, size, 1, Errno::Inval),
        (command::WRITE_ZEROES, 0, size, 1, Errno::NoSpc),
        (
            command::WRITE_ZEROES,
            command_flag::FAST_ZERO | command_flag::NO_HOLE,
            0,
            1,
            Errno::NotSup,
        ),
        (command::CACHE, 0, size, 512, Errno::Inval),
        (command::CACHE, command_flag::NO_HOLE, 0, 512, Errno::Inval),
        (command::BLOCK_STATUS, 0, 0, 512, Errno::Inval),
        (4711, 0, 0, 512, Errno::Inval),
    ];
    for (cookie, (command, flags, offset, length, errno)) in (0..).zip(cases) {
        client.request(command, flags, cookie, offset, length).await;
        if command == command::WRITE {
            let payload = usize::try_from(length).expect("small");
            client.send(&vec![0xff; payload]).await;
        }
        assert_eq!(
            client.simple().await,
            (cookie, errno.code()),
            "case {cookie}"
        );
    }
    assert!(device.content() == before);
}

#[tokio::test]
async fn a_read_only_export_with_large_blocks_says_so() {
    let device = MemoryDevice::with_info(ExportInfo {
        name: "fixed".to_owned(),
        description: String::new(),
        size_bytes: SIZE as u64,
        access: Access::ReadOnly,
        block_bytes_min: 4096,
        block_bytes_preferred: 4096,
        block_bytes_max: 65_536,
        multi_conn: MultiConn::Unsupported,
    });
    let (mut client, _served) = ready(&server(device, Limits::default()), false).await;
    client.request(command::WRITE, 0, 1, 0, 4096).await;
    client.send(&[1; 4096]).await;
    assert_eq!(client.simple().await, (1, Errno::Perm.code()));
    client.request(command::READ, 0, 2, 512, 4096).await;
    assert_eq!(client.simple().await, (2, Errno::Inval.code()));
    client.request(command::READ, 0, 3, 4096, 4096).await;
    assert_eq!(client.simple().await, (3, 0));
}

#[tokio::test]
async fn calls_are_made_in_arrival_order_before_any_answer() {
    let device = HeldDevice::new(SIZE);
    let (mut client, _served) = ready(&server(device.clone(), Limits::default()), false).await;
    client.request(command::WRITE, 0, 1, 0, 5000).await;
    client.send(&[1; 5000]).await;
    client.request(command::WRITE, 0, 2, 0, 3).await;
    client.send(&[2; 3]).await;
    client.request(command::READ, 0, 3, 0, 4).await;
    client.request(command::FLUSH, 0, 4, 0, 0).await;
    until("four calls", || device.calls().len() == 4).await;
    // Not "shared": the payload is the only handle on its buffer.
    assert_eq!(
        device.calls(),
        ["write 0+5000", "write 0+3", "read 0+4", "flush"]
    );
    device.answers.add_permits(4);
    let mut cookies = Vec::new();
    for _ in 0..4 {
        let (cookie, error) = client.simple().await;
        assert_eq!(error, 0);
        if cookie == 3 {
            assert_eq!(client.receive::<4>().await, [2, 2, 2, 1]);
        }
        cookies.push(cookie);
    }
    cookies.sort_unstable();
    assert_eq!(cookies, [1, 2, 3, 4]);
}

/// Reads wait for a permit, everything else answers at once.
struct SlowReads(HeldDevice);

impl BlockDevice for SlowReads {
    fn info(&self) -> ExportInfo {
        self.0.info()
    }
    fn read(&self, offset: u64, len: u32) -> BoxFuture<'static, Result<Bytes, BlockError>> {
        self.0.read(offset, len)
    }
    fn write(&self, offset: u64, data: Bytes) -> BoxFuture<'static, Result<(), BlockError>> {
        self.0.memory.write(offset, data)
    }
    fn trim(&self, _: u64, _: u64) -> BoxFuture<'static, Result<(), BlockError>> {
        Box::pin(async { Err(BlockError::NotSupported) })
    }
    fn write_zeroes(&self, _: u64, _: u64, _: Holes) -> BoxFuture<'static, Result<(), BlockError>> {
        Box::pin(async { Err(BlockError::Io) })
    }
    fn flush(&self) -> BoxFuture<'static, Result<(), BlockError>> {
        self.0.memory.flush()
    }
}

#[tokio::test]
async fn a_slow_request_does_not_hold_up_the_others() {
    let held = HeldDevice::new(SIZE);
    let (mut client, _served) =
        ready(&server(SlowReads(held.clone()), Limits::default()), false).await;
    client.request(command::READ, 0, 1, 0, 4).await;
    client.request(command::FLUSH, 0, 2, 0, 0).await;
    assert_eq!(client.simple().await, (2, 0));
    client.request(command::TRIM, 0, 3, 0, 4).await;
    assert_eq!(client.simple().await, (3, Errno::Inval.code()));
    client.request(command::WRITE_ZEROES, 0, 4, 0, 4).await;
    assert_eq!(client.simple().await, (4, Errno::Io.code()));
    held.answers.add_permits(1);
    assert_eq!(client.simple().await, (1, 0));
}

/// Ends when it is told to.
struct Ending {
    held: HeldDevice,
    end: Arc<Semaphore>,
    how: Ended,
}

impl BlockDevice for Ending {
    fn info(&self) -> ExportInfo {
        self.held.info()
    }
    fn read(&self, offset: u64, len: u32) -> BoxFuture<'static, Result<Bytes, BlockError>> {
        self.held.read(offset, len)
    }
    fn write(&self, offset: u64, data: Bytes) -> BoxFuture<'static, Result<(), BlockError>> {
        self.held.write(offset, data)
    }
    fn trim(&self, offset: u64, len: u64) -> BoxFuture<'static, Result<(), BlockError>> {
        self.held.trim(offset, len)
    }
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        holes: Holes,
    ) -> BoxFuture<'static, Result<(), BlockError>> {
        self.held.write_zeroes(offset, len, holes)
    }
    fn flush(&self) -> BoxFuture<'static, Result<(), BlockError>> {
        self.held.flush()
    }
    fn ended(&self) -> BoxFuture<'static, Ended> {
        let (end, how) = (Arc::clone(&self.end), self.how);
        Box::pin(async move {
            end.acquire().await.expect("open").forget();
            how
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_ends_ends_its_connection_with_or_without_answers() {
    for how in [Ended::Finished, Ended::Cut] {
        let held = HeldDevice::new(SIZE);
        let end = Arc::new(Semaphore::new(0));
        let device = Ending {
            held: held.clone(),
            end: end.clone(),
            how,
        };
        let (mut client, served) = ready(&server(device, Limits::default()), false).await;
        client.request(command::FLUSH, 0, 1, 0, 0).await;
        until("the flush is called", || held.calls() == ["flush"]).await;
        end.add_permits(1);
        if how == Ended::Finished {
            held.answers.add_permits(1);
            assert_eq!(client.simple().await, (1, 0));
        }
        let mut rest = Vec::new();
        client.stream.read_to_end(&mut rest).await.expect("closed");
        assert_eq!(rest, [], "{how:?}");
        let served = served.await.expect("no panic");
        match how {
            Ended::Finished => assert!(matches!(served, Ok(ConnectionEnd::DeviceEnded))),
            Ended::Cut => assert!(matches!(served, Err(ConnectionError::DeviceEnded))),
        }
    }
}

/// Fails everything with one error.
struct Failing(BlockError);

impl BlockDevice for Failing {
    fn info(&self) -> ExportInfo {
        memory().info()
    }
    fn read(&self, _: u64, _: u32) -> BoxFuture<'static, Result<Bytes, BlockError>> {
        let error = self.0;
        Box::pin(async move { Err(error) })
    }
    fn write(&self, _: u64, _: Bytes) -> BoxFuture<'static, Result<(), BlockError>> {
        self.flush()
    }
    fn trim(&self, _: u64, _: u64) -> BoxFuture<'static, Result<(), BlockError>> {
        self.flush()
    }
    fn write_zeroes(&self, _: u64, _: u64, _: Holes) -> BoxFuture<'static, Result<(), BlockError>> {
        self.flush()
    }
    fn flush(&self) -> BoxFuture<'static, Result<(), BlockError>> {
        let error = self.0;
        Box::pin(async move { Err(error) })
    }
}

#[tokio::test]
async fn every_error_of_a_device_reaches_the_peer_in_every_style() {
    let commands = [
        command::READ,
        command::WRITE,
        command::TRIM,
        command::WRITE_ZEROES,
        command::FLUSH,
    ];
    for (error, errno) in [
        (BlockError::Io, Errno::Io),
        (BlockError::Invalid, Errno::Inval),
        (BlockError::NoSpace, Errno::NoSpc),
        (BlockError::NotPermitted, Errno::Perm),
        (BlockError::ShuttingDown, Errno::Shutdown),
        (BlockError::NotSupported, Errno::Inval),
    ] {
        for style in 0..3 {
            let server = server(Failing(error), Limits::default());
            let (mut client, _served) = match style {
                0 => ready(&server, false).await,
                1 => ready(&server, true).await,
                _ => ready_extended(&server).await,
            };
            for (cookie, command) in (1..).zip(commands) {
                let len = if command == command::FLUSH { 0 } else { 4 };
                let payload = command == command::WRITE && client.extended;
                let flags = if payload {
                    command_flag::PAYLOAD_LEN
                } else {
                    0
                };
                client.request(command, flags, cookie, 0, len).await;
                if command == command::WRITE {
                    client.send(b"data").await;
                }
                let in_chunk = client.extended || (style == 1 && command == command::READ);
                let told = if in_chunk {
                    match client.chunk().await {
                        (of, Chunk::Error { error, .. }) => (of, error),
                        other => panic!("{other:?}"),
                    }
                } else {
                    client.simple().await
                };
                assert_eq!(told, (cookie, errno.code()), "{command} in style {style}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn goodbye_answers_everything_before_it_and_nothing_after_it() {
    let device = HeldDevice::new(SIZE);
    let (mut client, served) = ready(&server(device.clone(), Limits::default()), false).await;
    client.request(command::WRITE, 0, 1, 0, 4).await;
    client.send(b"data").await;
    client.request(command::DISC, 0, 2, 0, 0).await;
    client.request(command::WRITE, 0, 3, 4, 4).await;
    client.send(b"late").await;
    until("the call", || device.calls().len() == 1).await;
    device.answers.add_permits(10);
    assert_eq!(client.simple().await, (1, 0));
    assert_eq!(client.rest().await, b"");
    assert_eq!(
        served.await.expect("task").expect("end"),
        ConnectionEnd::Disconnected
    );
    assert_eq!(device.calls(), ["write 0+4"]);
    assert_eq!(device.memory.content()[..8], *b"data\0\0\0\0");
}

#[tokio::test]
async fn a_closed_sending_side_still_gets_its_replies() {
    let device = HeldDevice::new(SIZE);
    let (mut client, served) = ready(&server(device.clone(), Limits::default()), false).await;
    client.request(command::FLUSH, 0, 1, 0, 0).await;
    client.stream.shutdown().await.expect("shutdown");
    device.answers.add_permits(1);
    assert_eq!(client.simple().await, (1, 0));
    assert_eq!(
        served.await.expect("task").expect("end"),
        ConnectionEnd::Closed
    );
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_does_not_wait_for_ever() {
    let device = HeldDevice::new(SIZE);
    let (mut client, served) = ready(&server(device, Limits::default()), false).await;
    client.request(command::FLUSH, 0, 1, 0, 0).await;
    client.request(command::DISC, 0, 2, 0, 0).await;
    assert!(matches!(
        served.await.expect("task"),
        Err(ConnectionError::DrainTimeout)
    ));
}

#[tokio::test]
async fn lost_framing_cuts_the_connection() {
    let (mut client, served) = ready(&server(memory(), Limits::default()), false).await;
    client.send(&[0x55; 28]).await;
    assert_eq!(client.rest().await, b"");
    assert!(matches!(
        served.await.expect("task"),
        Err(ConnectionError::Misbehaved(_))
    ));
}

#[tokio::test]
async fn a_payload_cut_short_never_reaches_the_device() {
    let device = HeldDevice::new(SIZE);
    let (mut client, served) = ready(&server(device.clone(), Limits::default()), false).await;
    client.request(command::WRITE, 0, 1, 0, 100).await;
    client.send(&[1; 99]).await;
    client.stream.shutdown().await.expect("shutdown");
    assert!(matches!(
        served.await.expect("task"),
        Err(ConnectionError::Io(_))
    ));
    assert!(device.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_never_comes_ends_the_connection() {
    let limits = Limits {
        transfer_timeout: Duration::from_secs(5),
        ..Limits::default()
    };
    let server = server(memory(), limits);
    let (mut client, served) = ready(&server, false).await;
    client.request(command::WRITE, 0, 1, 0, 1 << 20).await;
    let error = served.await.expect("task").expect_err("cut");
    assert!(matches!(
        error,
        ConnectionError::PayloadTimeout { bytes: 1_048_576 }
    ));
    assert_eq!(server.stats().bytes_held, 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_left_alone() {
    let (mut client, _served) = ready(&server(memory(), Limits::default()), false).await;
    tokio::time::sleep(Duration::from_secs(86_400)).await;
    client.request(command::FLUSH, 0, 1, 0, 0).await;
    assert_eq!(client.simple().await, (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_device_is_dropped_with_its_connection() {
    let device = HeldDevice::new(16);
    let counted = Arc::clone(&device.calls);
    let server = server(device, Limits::default());
    let held_by_exports = Arc::strong_count(&counted);
    let (mut client, served) = ready(&server, false).await;
    client.request(command::DISC, 0, 1, 0, 0).await;
    served.await.expect("task").expect("end");
    assert_eq!(Arc::strong_count(&counted), held_by_exports);
}
