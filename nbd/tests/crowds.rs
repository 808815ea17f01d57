//! A thousand connections that do nothing, ten thousand that come and are refused. In a program of its own: it looks at its memory.

mod support;

use std::time::Duration;

use mainstay_nbd::Limits;
use mainstay_nbd::memory::MemoryDevice;
use mainstay_nbd::protocol::command;
use rustix::process::{Resource, getrlimit, setrlimit};
use support::{Client, listen, server};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

fn device() -> MemoryDevice {
    MemoryDevice::new("vol", 4096)
}

#[tokio::test]
async fn ten_thousand_connections_are_refused_and_forgotten_and_a_client_works_on() {
    let limits = Limits {
        handshakes_max: 10,
        ..Limits::default()
    };
    let server = server(device(), limits);
    let (address, _stop, _serving) = listen(&server).await;
    let mut works_on = Client::new(TcpStream::connect(address).await.expect("connect"));
    works_on.greet().await;
    works_on.go("vol").await;
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..10_000 {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        let mut greeting = [0; 18];
        match stream.read_exact(&mut greeting).await {
            Ok(_) => open.push(stream),
            Err(_) => refused += 1,
        }
        works_on.request(command::READ, 0, 1, 0, 512).await;
        assert_eq!(works_on.simple().await, (1, 0));
        works_on.receive::<512>().await;
    }
    assert_eq!((open.len(), refused), (10, 9_990));
    assert_eq!(
        (server.stats().handshakes, server.stats().refused),
        (10, 9_990)
    );
    drop((open, works_on));
    while server.stats().connections > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let stream = TcpStream::connect(address).await.expect("connect");
    let mut client = Client::new(stream);
    client.greet().await;
    client.go("vol").await;
    assert_eq!(server.stats().handshakes, 0);
}

/// Lets this process open so many files, if it may.
fn more_descriptors(wanted: u64) {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(wanted, |most| wanted.min(most));
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted);
        setrlimit(Resource::Nofile, limit).expect("below the greatest");
    }
}

/// Memory of this process that no file holds.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a number") << 10
}

#[tokio::test]
async fn a_thousand_idle_connections_cost_no_payload_memory() {
    // Both ends of each are in this process.
    more_descriptors(4_096);
    let before = anonymous_bytes();
    let server = server(device(), Limits::default());
    let (address, _stop, _serving) = listen(&server).await;
    let mut idle = Vec::new();
    for _ in 0..1_000 {
        let stream = TcpStream::connect(address).await.expect("connect");
        let mut client = Client::new(stream);
        client.greet().await;
        client.go("vol").await;
        idle.push(client);
    }
    assert_eq!(
        (server.stats().connections, server.stats().bytes_held),
        (1_000, 0)
    );
    let each = anonymous_bytes().saturating_sub(before) / 1_000;
    println!("{each} bytes for both ends of a connection");
    assert!(each < 64 << 10, "{each} bytes for each");
    for (cookie, client) in (0..).zip(&mut idle) {
        client.request(command::READ, 0, cookie, 0, 512).await;
        assert_eq!(client.simple().await, (cookie, 0));
        client.receive::<512>().await;
    }
}
