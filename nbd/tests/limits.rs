//! What hostile and slow peers cost: connections, memory, time, and whom it hurts.

mod support;

use std::sync::Arc;
use std::time::Duration;

use mainstay_nbd::memory::{FixedExports, MemoryDevice};
use mainstay_nbd::protocol::command;
use mainstay_nbd::{ConnectionEnd, ConnectionError, Limits, Server};
use support::{Client, HeldDevice, Served, connect, listen, ready, server, until};
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::net::TcpStream;

const MIB: u32 = 1 << 20;

fn small() -> Limits {
    Limits {
        request_bytes_max: MIB,
        connection_requests_max: 8,
        connection_bytes_max: 2 * MIB as usize,
        server_bytes_max: 2 * MIB as usize,
        connection_reserve_bytes: 4096,
        transfer_timeout: Duration::from_secs(5),
        ..Limits::default()
    }
}

fn device() -> MemoryDevice {
    let device = MemoryDevice::new("vol", 4 * MIB as usize);
    device.fill(0, &vec![7; 4 * MIB as usize]);
    device
}

#[tokio::test]
async fn requests_in_flight_are_bounded_by_count() {
    let device = HeldDevice::new(4096);
    let (mut client, _served) = ready(&server(device.clone(), small()), false).await;
    for cookie in 0..20 {
        client.request(command::FLUSH, 0, cookie, 0, 0).await;
    }
    until("eight calls", || device.calls().len() == 8).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(device.calls().len(), 8);
    device.answers.add_permits(20);
    for _ in 0..20 {
        assert_eq!(client.simple().await.1, 0);
    }
}

#[tokio::test]
async fn bytes_in_flight_are_bounded() {
    let device = HeldDevice::new(4 * MIB as usize);
    let server = server(device.clone(), small());
    let (mut client, _served) = ready(&server, false).await;
    for cookie in 0..4 {
        client
            .request(command::READ, 0, cookie, 0, MIB.into())
            .await;
    }
    until("two calls", || device.calls().len() == 2).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(device.calls().len(), 2);
    assert_eq!(server.stats().bytes_held, 2 * MIB as usize);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_costs_bounded_memory_and_harms_nobody() {
    let server = server(device(), small());
    let (mut slow, slow_served) = ready(&server, false).await;
    for cookie in 0..8 {
        slow.request(command::READ, 0, cookie, 0, MIB.into()).await;
    }
    until("the budget is used up", || {
        server.stats().bytes_held == 2 * MIB as usize
    })
    .await;

    // Nobody else needs the memory: it may sleep for a day.
    tokio::time::sleep(Duration::from_secs(86_400)).await;
    assert!(!slow_served.is_finished());
    assert_eq!(server.stats().bytes_held, 2 * MIB as usize);

    // Small requests of another connection go on from its reserve, without touching the slow one.
    let (mut other, _served) = ready(&server, false).await;
    for cookie in 0..100 {
        other.request(command::READ, 0, cookie, 0, 4096).await;
        assert_eq!(other.simple().await, (cookie, 0));
        assert_eq!(other.receive_vec(4096).await, vec![7; 4096]);
    }
    assert!(!slow_served.is_finished());

    // A large request needs what the slow one holds, and gets it.
    other.request(command::READ, 0, 1, 0, MIB.into()).await;
    assert_eq!(other.simple().await, (1, 0));
    assert_eq!(other.receive_vec(MIB as usize).await.len(), MIB as usize);
    assert!(matches!(
        slow_served.await.expect("task"),
        Err(ConnectionError::Stalled)
    ));
}

/// Has `slow` hold all memory with replies of `len` bytes, and another connection ask for half of it.
async fn crowded(
    server: &Server,
    len: u32,
) -> (Client<DuplexStream>, Served, Client<DuplexStream>, Served) {
    let (mut slow, slow_served) = ready(server, false).await;
    for cookie in 0..u64::from(2 * MIB / len) {
        slow.request(command::READ, 0, cookie, 0, len.into()).await;
    }
    until("the budget is used up", || {
        server.stats().bytes_held == 2 * MIB as usize
    })
    .await;
    let (mut other, other_served) = ready(server, false).await;
    other.request(command::READ, 0, 1, 0, MIB.into()).await;
    (slow, slow_served, other, other_served)
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_one_reply_now_and_then_does_not_hold_up_others() {
    const LEN: u32 = 128 << 10;
    let limits = Limits {
        connection_requests_max: 16,
        ..small()
    };
    let patience = limits.transfer_timeout;
    let server = server(device(), limits);
    let (mut slow, slow_served, mut other, _served) = crowded(&server, LEN).await;
    let trickle = async {
        loop {
            tokio::time::sleep(patience.mul_f64(0.9)).await;
            let mut reply = vec![0; 16 + LEN as usize];
            if slow.stream.read_exact(&mut reply).await.is_err() {
                break;
            }
        }
    };
    let answer = async {
        assert_eq!(other.simple().await, (1, 0));
        other.receive_vec(MIB as usize).await;
    };
    let begun = tokio::time::Instant::now();
    tokio::select! {
        () = answer => {}
        () = trickle => panic!("cut, and the other was not helped"),
    }
    assert!(begun.elapsed() <= 2 * patience, "{:?}", begun.elapsed());
    assert!(matches!(
        slow_served.await.expect("task"),
        Err(ConnectionError::Stalled)
    ));
}

/// A megabit a second: one large reply takes longer than the patience that others have, and is taken all the same.
#[tokio::test(start_paused = true)]
async fn a_slow_line_is_not_cut() {
    let limits = Limits {
        transfer_timeout: Duration::from_secs(2),
        ..small()
    };
    let server = server(device(), limits);
    let (mut slow, slow_served, mut other, _served) = crowded(&server, MIB).await;
    let whole = 2 * (16 + MIB as usize);
    let mut taken = 0;
    while taken < whole {
        tokio::time::sleep(Duration::from_millis(100)).await;
        taken += slow.receive_vec(12_500.min(whole - taken)).await.len();
    }
    assert!(!slow_served.is_finished());
    assert_eq!(other.simple().await, (1, 0));
}

/// Two hundred peers announce more than thirteen times what the server may hold, and send nothing of it.
#[tokio::test(start_paused = true)]
async fn payloads_that_are_only_announced_cost_no_memory_and_delay_nobody() {
    const LARGE: u32 = 32 * MIB;
    let limits = Limits::default();
    let patience = limits.transfer_timeout;
    let server = server(MemoryDevice::new("vol", LARGE as usize), limits);
    let mut silent = Vec::new();
    for _ in 0..200 {
        let (mut client, served) = ready(&server, false).await;
        client.request(command::WRITE, 0, 1, 0, LARGE.into()).await;
        silent.push((client, served));
    }
    // The clock only moves when everybody waits.
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(server.stats().bytes_held, 0);

    let (mut other, _served) = ready(&server, false).await;
    let begun = tokio::time::Instant::now();
    for (cookie, len) in (0..).zip([1, 4096, 128 << 10, MIB, LARGE]) {
        let data = vec![9; len as usize];
        other
            .request(command::WRITE, 0, cookie, 0, len.into())
            .await;
        other.send(&data).await;
        assert_eq!(other.simple().await, (cookie, 0), "{len} bytes");
    }
    assert_eq!(begun.elapsed(), Duration::ZERO, "it waited");
    for (_client, served) in silent {
        let error = served.await.expect("task").expect_err("cut");
        let cut = matches!(error, ConnectionError::PayloadTimeout { .. });
        assert!(cut, "{error:?}");
    }
    assert!(begun.elapsed() <= patience);
    assert_eq!(server.stats().bytes_held, 0);
}

#[tokio::test(start_paused = true)]
async fn a_payload_holds_no_more_than_a_multiple_of_what_came() {
    let server = server(device(), small());
    let (mut client, served) = ready(&server, false).await;
    client.request(command::WRITE, 0, 1, 0, MIB.into()).await;
    let reserve = small().connection_reserve_bytes;
    let mut sent = 0;
    for (more, held) in [
        (1, 0),
        // What is in the reserve is not counted.
        (4095, 8 * 4096 - reserve),
        (7 * 4096 - 1, 8 * 4096 - reserve),
        (1, 64 * 4096 - reserve),
        (56 * 4096, MIB as usize - reserve),
    ] {
        client.send(&vec![5; more]).await;
        sent += more;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(server.stats().bytes_held, held, "after {sent} bytes");
    }
    client.send(&vec![5; MIB as usize - sent]).await;
    assert_eq!(client.simple().await, (1, 0));
    assert_eq!(server.stats().bytes_held, 0);
    client.request(command::READ, 0, 2, 0, MIB.into()).await;
    assert_eq!(client.simple().await, (2, 0));
    assert!(
        client
            .receive_vec(MIB as usize)
            .await
            .iter()
            .all(|byte| *byte == 5)
    );

    // One that stops half way holds what it has until it is cut.
    client.request(command::WRITE, 0, 3, 0, MIB.into()).await;
    client.send(&[6; 4096]).await;
    assert!(matches!(
        served.await.expect("task"),
        Err(ConnectionError::PayloadTimeout { bytes: 1_048_576 })
    ));
    assert_eq!(server.stats().bytes_held, 0);
}

/// Payloads that have begun hold nearly all memory, and each needs more than is left: none may wait for the others for ever.
#[tokio::test(start_paused = true)]
async fn payloads_that_fill_the_memory_end_one_after_the_other() {
    let server = server(device(), small());
    let mut clients = Vec::new();
    for _ in 0..8 {
        let (mut client, served) = ready(&server, false).await;
        client.request(command::WRITE, 0, 1, 0, MIB.into()).await;
        client.send(&vec![5; 64 * 4096 - 1]).await;
        clients.push((client, served));
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    let held = server.stats().bytes_held;
    assert!(held > 7 * MIB as usize / 4, "{held}");
    let rest: Vec<_> = clients
        .into_iter()
        .map(|(mut client, served)| {
            tokio::spawn(async move {
                client.send(&vec![5; MIB as usize - 64 * 4096 + 1]).await;
                assert_eq!(client.simple().await, (1, 0));
                drop(client);
                served.await.expect("task").expect("closed");
            })
        })
        .collect();
    let begun = tokio::time::Instant::now();
    for client in rest {
        let ended = tokio::time::timeout(Duration::from_secs(600), client).await;
        ended.expect("no end").expect("answered");
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(server.stats().bytes_held, 0);
}

#[tokio::test]
async fn a_reader_of_one_byte_at_a_time_gets_everything() {
    let server = server(device(), small());
    let (mut client, _served) = connect(&server, 3);
    client.greet().await;
    client.go("vol").await;
    client.request(command::READ, 0, 1, 0, 10_000).await;
    assert_eq!(client.simple().await, (1, 0));
    assert_eq!(client.receive_vec(10_000).await, vec![7; 10_000]);
}

#[tokio::test]
async fn ten_thousand_requests_in_one_burst_are_all_answered() {
    let server = server(device(), small());
    let (client, _served) = ready(&server, false).await;
    let (reader, writer) = tokio::io::split(client.stream);
    let (mut sender, mut receiver) = (
        Client::new(tokio::io::join(tokio::io::empty(), writer)),
        reader,
    );
    let sending = async {
        for cookie in 0..10_000 {
            sender.request(command::READ, 0, cookie, cookie, 16).await;
        }
    };
    let receiving = async {
        let mut replies = vec![0; 10_000 * 32];
        receiver.read_exact(&mut replies).await.expect("replies");
        replies
    };
    let ((), replies) = tokio::join!(sending, receiving);
    let mut cookies: Vec<u64> = replies
        .chunks(32)
        .map(|reply| u64::from_be_bytes(reply[8..16].try_into().expect("size")))
        .collect();
    cookies.sort_unstable();
    assert!(cookies.into_iter().eq(0..10_000));
}

#[tokio::test]
async fn slow_readers_over_tcp_hold_no_more_than_the_budget() {
    let server = server(device(), small());
    let (address, _stop, _serving) = listen(&server).await;
    let mut slow = Vec::new();
    for _ in 0..8 {
        let stream = TcpStream::connect(address).await.expect("connect");
        let mut client = Client::new(stream);
        client.greet().await;
        client.go("vol").await;
        // Far more than the kernel buffers of both sides take.
        for cookie in 0..64 {
            client
                .request(command::READ, 0, cookie, 0, MIB.into())
                .await;
        }
        slow.push(client);
    }
    while server.stats().bytes_held < 2 * MIB as usize {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let stream = TcpStream::connect(address).await.expect("connect");
    let mut other = Client::new(stream);
    other.greet().await;
    other.go("vol").await;
    for cookie in 0..1000 {
        other.request(command::READ, 0, cookie, 0, 4096).await;
        assert_eq!(other.simple().await, (cookie, 0));
        other.receive::<4096>().await;
        assert!(server.stats().bytes_held <= 2 * MIB as usize);
    }
    drop(slow);
    while server.stats().connections > 1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(server.stats().bytes_held, 0);
}

#[tokio::test]
async fn a_stop_finishes_what_is_in_flight_and_returns() {
    let device = HeldDevice::new(4096);
    let limits = Limits {
        farewell_timeout: Duration::from_millis(10),
        ..Limits::default()
    };
    let server = server(device.clone(), limits);
    let (address, stop, serving) = listen(&server).await;
    let haggling = TcpStream::connect(address).await.expect("connect");
    let stream = TcpStream::connect(address).await.expect("connect");
    let mut client = Client::new(stream);
    client.greet().await;
    client.go("").await;
    client.request(command::WRITE, 0, 1, 0, 4).await;
    client.send(b"data").await;
    while device.calls().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.send(()).expect("serving");
    let mut haggling = Client::new(haggling);
    haggling.rest().await;
    device.answers.add_permits(1);
    assert_eq!(client.simple().await, (1, 0));
    assert_eq!(client.rest().await, b"");
    serving.await.expect("serve returns");
    assert_eq!(server.stats().connections, 0);
    assert!(
        TcpStream::connect(address).await.is_err(),
        "the listener is closed"
    );
}

#[tokio::test]
async fn a_stream_beyond_the_limit_is_refused() {
    let limits = Limits {
        connections_max: 1,
        ..Limits::default()
    };
    let exports = FixedExports::new().with(device());
    let server = Server::new(Arc::new(exports), limits);
    let (mut first, served) = ready(&server, false).await;
    let (_second, refused) = connect(&server, 64);
    assert!(matches!(
        refused.await.expect("task"),
        Err(ConnectionError::TooMany)
    ));
    first.request(command::DISC, 0, 1, 0, 0).await;
    assert_eq!(
        served.await.expect("task").expect("end"),
        ConnectionEnd::Disconnected
    );
}
