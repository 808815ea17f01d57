//! How connections end: what is waited for, for how long, and who is told.

mod support;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mainstay_nbd::memory::MemoryDevice;
use mainstay_nbd::protocol::command;
use mainstay_nbd::{ConnectionEnd, ConnectionError, Limits};
use support::{Client, HeldDevice, Served, listen, ready, server, until};
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

const MIB: usize = 1 << 20;

fn small() -> Limits {
    Limits {
        request_bytes_max: 1 << 20,
        connection_bytes_max: 2 * MIB,
        server_bytes_max: 2 * MIB,
        connection_reserve_bytes: 4096,
        ..Limits::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_waits_for_as_long_as_requests_may_be_parked() {
    let device = HeldDevice::new(4096);
    let (mut client, served) = ready(&server(device.clone(), Limits::default()), false).await;
    client.request(command::WRITE_ZEROES, 0, 1, 0, 4096).await;
    client.request(command::DISC, 0, 2, 0, 0).await;
    tokio::time::sleep(Duration::from_secs(80)).await;
    device.answers.add_permits(1);
    assert_eq!(client.simple().await, (1, 0));
    let end = served.await.expect("task").expect("end");
    assert_eq!(end, ConnectionEnd::Disconnected);
    assert_eq!(device.gone.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_waits_for_whatever_advances() {
    let device = HeldDevice::new(4096);
    let (mut client, served) = ready(&server(device.clone(), Limits::default()), false).await;
    client.request(command::WRITE_ZEROES, 0, 1, 0, 4096).await;
    client.request(command::DISC, 0, 2, 0, 0).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(80)).await;
        device.progress.fetch_add(1, Ordering::Relaxed);
    }
    assert!(!served.is_finished());
    device.answers.add_permits(1);
    assert_eq!(client.simple().await, (1, 0));
    served.await.expect("task").expect("end");
}

/// Has a client ask for all that one connection may have in flight, and leave in either way while it takes nothing of the replies.
async fn leaving(goodbye: bool) -> (Client<DuplexStream>, Served) {
    let device = MemoryDevice::new("vol", MIB);
    let (mut client, served) = ready(&server(device, Limits::default()), false).await;
    for cookie in 0..READS {
        client
            .request(command::READ, 0, cookie, 0, MIB as u64)
            .await;
    }
    // Until what is between has taken all it can.
    tokio::time::sleep(Duration::from_secs(1)).await;
    if goodbye {
        client.request(command::DISC, 0, READS, 0, 0).await;
    } else {
        client.stream.shutdown().await.expect("shutdown");
    }
    (client, served)
}

/// Reads of [`MIB`] that are 64 MiB together.
const READS: u64 = 64;

/// A megabit a second: the replies take minutes longer than the time in which something has to advance.
#[tokio::test(start_paused = true)]
async fn a_slow_reader_that_leaves_is_served_to_the_end() {
    for goodbye in [true, false] {
        let (mut client, served) = leaving(goodbye).await;
        let begun = Instant::now();
        let whole = usize::try_from(READS).expect("few") * (16 + MIB);
        let mut taken = 0;
        while taken < whole {
            tokio::time::sleep(Duration::from_millis(100)).await;
            taken += client.receive_vec(12_500.min(whole - taken)).await.len();
        }
        assert!(begun.elapsed() > 5 * Limits::default().goodbye_timeout);
        assert_eq!(client.rest().await, b"");
        served.await.expect("task").expect("end");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_leaves_and_takes_nothing_is_cut() {
    for goodbye in [true, false] {
        let (_client, served) = leaving(goodbye).await;
        let begun = Instant::now();
        let patience = Limits::default().goodbye_timeout;
        let ended = timeout(2 * patience, served).await.expect("no end");
        let error = ended.expect("task").expect_err("cut");
        let cut = matches!(error, ConnectionError::DrainTimeout);
        assert!(cut, "{error:?}");
        let waited = begun.elapsed();
        let close = waited.abs_diff(patience) < Duration::from_secs(1);
        assert!(close, "{waited:?}");
    }
}

/// Most clients close behind their goodbye without waiting.
#[tokio::test(start_paused = true)]
async fn what_was_sent_before_a_goodbye_is_done_also_when_nobody_hears_of_it() {
    let device = HeldDevice::new(4096);
    let (mut client, served) = ready(&server(device.clone(), Limits::default()), false).await;
    for cookie in 0..2 {
        client
            .request(command::WRITE_ZEROES, 0, cookie, 0, 4096)
            .await;
    }
    client.request(command::DISC, 0, 2, 0, 0).await;
    until("two calls", || device.calls().len() == 2).await;
    drop(client);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert!(!served.is_finished());
        device.answers.add_permits(1);
    }
    // There was nobody to take the first reply.
    let error = served.await.expect("task").expect_err("cut");
    assert!(matches!(error, ConnectionError::Io(_)), "{error:?}");
    assert_eq!(device.gone.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_device_is_told_that_its_peer_left_without_a_goodbye() {
    for framing_is_lost in [false, true] {
        let device = HeldDevice::new(4096);
        let (mut client, served) = ready(&server(device.clone(), Limits::default()), false).await;
        client.request(command::WRITE, 0, 1, 0, 4).await;
        client.send(b"data").await;
        if framing_is_lost {
            client.send(&[0x55; 28]).await;
        } else {
            client.stream.shutdown().await.expect("shutdown");
        }
        until("told", || device.gone.load(Ordering::Relaxed) > 0).await;
        assert!(!served.is_finished());
        device.answers.add_permits(1);
        assert_eq!(served.await.expect("task").is_err(), framing_is_lost);
    }
}

/// Its client may send the same to another server the moment it sees the end.
#[tokio::test]
async fn a_device_is_told_that_a_stop_does_not_wait_for_it_any_more() {
    let device = HeldDevice::new(4096);
    let limits = Limits {
        drain_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let (address, stop, serving) = listen(&server(device.clone(), limits)).await;
    let mut client = over_tcp(address).await;
    client.request(command::WRITE_ZEROES, 0, 1, 0, 4096).await;
    until("a call", || device.calls().len() == 1).await;
    assert_eq!(device.gone.load(Ordering::Relaxed), 0);
    stop.send(()).expect("serving");
    until("told", || device.gone.load(Ordering::Relaxed) == 1).await;
    device.answers.add_permits(1);
    serving.await.expect("ended");
}

/// A peer that is cut and comes back must not leave payloads behind that nobody counts.
#[tokio::test(start_paused = true)]
async fn what_a_device_holds_of_a_cut_connection_counts_until_it_answers() {
    let device = HeldDevice::new(MIB);
    let server = server(device.clone(), small());
    let (mut client, served) = ready(&server, false).await;
    for cookie in 0..2 {
        client
            .request(command::WRITE, 0, cookie, 0, MIB as u64)
            .await;
        client.send(&vec![5; MIB]).await;
    }
    // What only asks is not waited for.
    client.request(command::FLUSH, 0, 2, 0, 0).await;
    until("three calls", || device.calls().len() == 3).await;
    let held = 2 * MIB - small().connection_reserve_bytes;
    assert_eq!(server.stats().bytes_held, held);
    client.send(&[0x55; 28]).await;
    assert_eq!(client.rest().await, b"", "the peer is let go at once");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let stats = server.stats();
    assert_eq!((stats.bytes_held, stats.connections), (held, 1));

    device.answers.add_permits(2);
    let error = served.await.expect("task").expect_err("cut");
    assert!(matches!(error, ConnectionError::Misbehaved(_)), "{error:?}");
    let stats = server.stats();
    assert_eq!((stats.bytes_held, stats.connections), (0, 0));
}

/// A client over TCP that has chosen the only export, and whose kernel holds little of what it has not taken.
async fn over_tcp(address: SocketAddr) -> Client<TcpStream> {
    let socket = TcpSocket::new_v4().expect("socket");
    socket.set_recv_buffer_size(64 << 10).expect("small");
    let mut client = Client::new(socket.connect(address).await.expect("connect"));
    client.greet().await;
    client.go("").await;
    client
}

/// Takes replies so slowly that the kernel of the server still has the last of them when the connection is closed.
async fn take_slowly(client: &mut Client<TcpStream>, cookies: std::ops::Range<u64>) {
    for cookie in cookies {
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(client.simple().await, (cookie, 0));
        assert!(client.receive_vec(MIB).await == [7; MIB], "reply {cookie}");
    }
}

/// Bytes that nobody reads take the last replies back: a socket that is closed with them resets the connection.
#[tokio::test]
async fn what_follows_a_goodbye_takes_no_reply_back() {
    let device = MemoryDevice::new("vol", MIB);
    device.fill(0, &[7; MIB]);
    let (address, _stop, _serving) = listen(&server(device, Limits::default())).await;
    let mut client = over_tcp(address).await;
    for cookie in 0..READS {
        client
            .request(command::READ, 0, cookie, 0, MIB as u64)
            .await;
    }
    client.request(command::DISC, 0, READS, 0, 0).await;
    client.send(&[0x55; 64 << 10]).await;
    take_slowly(&mut client, 0..READS).await;
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn requests_that_a_stopping_server_does_not_read_take_no_reply_back() {
    let device = HeldDevice::new(MIB);
    device.memory.fill(0, &[7; MIB]);
    let limits = Limits {
        connection_requests_max: 8,
        ..Limits::default()
    };
    let (address, stop, serving) = listen(&server(device.clone(), limits)).await;
    let mut client = over_tcp(address).await;
    for cookie in 0..1000 {
        client
            .request(command::READ, 0, cookie, 0, MIB as u64)
            .await;
    }
    while device.calls().len() < 8 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.send(()).expect("serving");
    while TcpStream::connect(address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    device.answers.add_permits(1000);
    take_slowly(&mut client, 0..8).await;
    assert_eq!(client.rest().await, b"", "only what was read is answered");
    drop(client);
    serving.await.expect("serve returns");
}

/// A peer that sends for ever is read for a second, and nothing of it is kept.
#[tokio::test(start_paused = true)]
async fn what_follows_the_end_is_dropped_for_a_while() {
    let server = server(MemoryDevice::new("vol", 4096), Limits::default());
    let (mut client, served) = ready(&server, false).await;
    client.request(command::DISC, 0, 1, 0, 0).await;
    let begun = Instant::now();
    let mut sent = 0;
    while client.stream.write_all(&[0x55; 1 << 16]).await.is_ok() {
        sent += 1 << 16;
        assert_eq!(server.stats().bytes_held, 0);
        assert!(begun.elapsed() < 2 * Limits::default().linger_timeout);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(sent > 32 * MIB, "{sent}");
    let end = served.await.expect("task").expect("end");
    assert_eq!(end, ConnectionEnd::Disconnected);
}
