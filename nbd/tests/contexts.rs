//! Metadata contexts: listing, selecting, and the block status that they are for.

mod support;

use std::sync::Arc;

use bytes::BytesMut;
use mainstay_nbd::codec::{Chunk, MetaQuery, StatusFilter};
use mainstay_nbd::memory::{FixedExports, MemoryDevice};
use mainstay_nbd::protocol::{Errno, command, command_flag, option, reply};
use mainstay_nbd::{Limits, Server};
use support::{Client, Served, connect};
use tokio::io::DuplexStream;

const SIZE: usize = 1 << 20;
const ALLOCATION: &str = "base:allocation";
const HOLE: u64 = 3;

/// `a` has data in its first, third and last block of 4 KiB; `b` has none.
fn server() -> Server {
    server_within(Limits::default())
}

fn server_within(limits: Limits) -> Server {
    let a = MemoryDevice::new("a", SIZE);
    for block in [0, 2, SIZE / 4096 - 1] {
        a.fill(block * 4096 + 7, b"data");
    }
    let exports = FixedExports::new()
        .with(a)
        .with(MemoryDevice::new("b", SIZE));
    Server::new(Arc::new(exports), limits)
}

fn query(export: &str, queries: &[&str]) -> BytesMut {
    let mut data = BytesMut::new();
    MetaQuery {
        export: export.to_owned(),
        queries: queries.iter().map(|&query| query.to_owned()).collect(),
    }
    .encode(&mut data);
    data
}

/// Before an export is chosen.
async fn negotiating(server: &Server, extended: bool) -> (Client<DuplexStream>, Served) {
    let (mut client, served) = connect(server, 1 << 18);
    client.greet().await;
    if extended {
        client.extend_headers().await;
    } else {
        client.option(option::STRUCTURED_REPLY, b"").await;
    }
    (client, served)
}

/// With the context selected, and `a` chosen.
async fn ready(server: &Server, extended: bool) -> (Client<DuplexStream>, Served, u32) {
    let (mut client, served) = negotiating(server, extended).await;
    let data = query("a", &[ALLOCATION]);
    let selected = client.option(option::SET_META_CONTEXT, &data).await;
    let [(reply::META_CONTEXT, context), (reply::ACK, _)] = &selected[..] else {
        panic!("{selected:?}");
    };
    let (id, name) = context.split_first_chunk::<4>().expect("an id");
    assert_eq!(name, ALLOCATION.as_bytes());
    let id = u32::from_be_bytes(*id);
    client.go("a").await;
    (client, served, id)
}

fn status(context: u32, extents: &[(u64, u64)]) -> Chunk {
    Chunk::Status {
        context,
        extents: extents.to_vec(),
    }
}

fn inval(message: &str) -> Chunk {
    Chunk::Error {
        error: Errno::Inval.code(),
        message: message.as_bytes().to_vec(),
    }
}

#[tokio::test]
async fn contexts_are_listed_by_namespace_leaf_or_all() {
    let (mut client, _served) = negotiating(&server(), false).await;
    let name = |id: u32| [&id.to_be_bytes(), ALLOCATION.as_bytes()].concat();
    let found = [(reply::META_CONTEXT, name(0)), (reply::ACK, vec![])];
    let nothing = [(reply::ACK, vec![])];
    for queries in [
        &[][..],
        &["base:"],
        &[ALLOCATION],
        &["x:", "base:", ALLOCATION],
    ] {
        let data = query("a", queries);
        let listed = client.option(option::LIST_META_CONTEXT, &data).await;
        assert_eq!(listed, found, "{queries:?}");
    }
    for queries in [&["base:no"][..], &["x-mine:"], &["qemu:dirty-bitmap:b"]] {
        let data = query("a", queries);
        let listed = client.option(option::LIST_META_CONTEXT, &data).await;
        assert_eq!(listed, nothing, "{queries:?}");
    }
}

#[tokio::test]
async fn malformed_queries_and_unknown_exports_leave_the_negotiation_alive() {
    let (mut client, _served) = negotiating(&server(), false).await;
    let many = vec![ALLOCATION; 1025];
    let long = format!("x:{}", "y".repeat(4095));
    for option in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        for (data, error) in [
            (BytesMut::new(), reply::ERR_INVALID),
            (BytesMut::from(&[0xff; 12][..]), reply::ERR_INVALID),
            (query("a", &["allocation"]), reply::ERR_INVALID),
            (query("a", &[&long]), reply::ERR_INVALID),
            (query("a", &["base:a\0"]), reply::ERR_INVALID),
            (query("a", &many), reply::ERR_TOO_BIG),
            (BytesMut::zeroed(70_000), reply::ERR_TOO_BIG),
            (query("nothing", &[ALLOCATION]), reply::ERR_UNKNOWN),
            (query("", &[ALLOCATION]), reply::ERR_UNKNOWN),
        ] {
            let refused = client.option(option, &data).await;
            assert_eq!(refused, [(error, vec![])]);
        }
    }
    assert_eq!(client.go("a").await.last(), Some(&(reply::ACK, vec![])));
}

#[tokio::test]
async fn without_chunks_there_are_no_contexts() {
    let (mut client, _served) = connect(&server(), 4096);
    client.greet().await;
    for option in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        let refused = client.option(option, &query("a", &[ALLOCATION])).await;
        assert_eq!(refused, [(reply::ERR_INVALID, vec![])]);
    }
}

/// Exports and queries of one `SET_META_CONTEXT` each.
type Selections<'a> = &'a [(&'a str, &'a [&'a str])];

/// What is asked for before `GO a`, and whether that leaves a context.
#[tokio::test]
async fn only_the_last_selection_for_the_chosen_export_counts() {
    let cases: [(Selections<'_>, bool); 7] = [
        (&[("a", &[ALLOCATION])], true),
        (&[("b", &[ALLOCATION]), ("a", &[ALLOCATION])], true),
        (&[("a", &[ALLOCATION]), ("b", &[ALLOCATION])], false),
        (&[("a", &[ALLOCATION]), ("a", &[])], false),
        (&[("a", &[ALLOCATION]), ("a", &["base:"])], false),
        (&[("a", &[ALLOCATION]), ("a", &["no colon"])], false),
        (&[("a", &[ALLOCATION]), ("nothing", &[ALLOCATION])], false),
    ];
    for (selections, counts) in cases {
        let (mut client, _served) = negotiating(&server(), false).await;
        for (export, queries) in selections {
            let data = query(export, queries);
            client.option(option::SET_META_CONTEXT, &data).await;
        }
        client.go("a").await;
        client.request(command::BLOCK_STATUS, 0, 1, 0, 4096).await;
        let (cookie, chunk) = client.chunk().await;
        assert_eq!(cookie, 1);
        if counts {
            assert_eq!(chunk, status(1, &[(4096, 0)]), "{selections:?}");
        } else {
            let refused = inval("no metadata context was selected");
            assert_eq!(chunk, refused, "{selections:?}");
        }
    }
}

#[tokio::test]
async fn a_listing_keeps_the_selection() {
    let (mut client, _served) = negotiating(&server(), false).await;
    let data = query("a", &[ALLOCATION]);
    client.option(option::SET_META_CONTEXT, &data).await;
    client
        .option(option::LIST_META_CONTEXT, &query("b", &[]))
        .await;
    client.go("a").await;
    client.request(command::BLOCK_STATUS, 0, 1, 0, 4096).await;
    assert_eq!(client.chunk().await.1, status(1, &[(4096, 0)]));
}

#[tokio::test]
async fn the_status_tells_data_from_holes_in_either_form() {
    let size = SIZE as u64;
    for extended in [false, true] {
        let (mut client, _served, id) = ready(&server(), extended).await;
        let one = command_flag::REQ_ONE;
        let whole = [
            (4096, 0),
            (4096, HOLE),
            (4096, 0),
            (size - 4 * 4096, HOLE),
            (4096, 0),
        ];
        for (cookie, (flags, offset, len, expected)) in (1..).zip([
            (0, 0, size, &whole[..]),
            (one, 0, size, &whole[..1]),
            (one, 4096, size - 4096, &[(4096, HOLE)]),
            // Nothing is told beyond what was asked.
            (0, 4096, 100, &[(100, HOLE)]),
            (one, 8000, 1000, &[(192, HOLE)]),
            (0, 8000, 1000, &[(192, HOLE), (808, 0)]),
            (command_flag::FUA, size - 4096, 4096, &[(4096, 0)]),
        ]) {
            let command = command::BLOCK_STATUS;
            client.request(command, flags, cookie, offset, len).await;
            assert_eq!(client.chunk().await, (cookie, status(id, expected)));
        }
        for (flags, offset, len, message) in [
            (0, size, 1, "beyond the end of the export"),
            (0, 0, size + 1, "beyond the end of the export"),
            (0, 0, 0, "zero length"),
            (command_flag::DF, 0, 1, "unknown flag for this command"),
        ] {
            let command = command::BLOCK_STATUS;
            client.request(command, flags, 99, offset, len).await;
            assert_eq!(client.chunk().await, (99, inval(message)));
        }
    }
}

#[tokio::test]
async fn a_filter_gives_the_contexts_it_names() {
    let (mut client, _served, id) = ready(&server(), true).await;
    let flags = command_flag::PAYLOAD_LEN;
    let refused = || inval("unknown or repeated context");
    for (cookie, (contexts, expected)) in (1..).zip([
        (vec![id], status(id, &[(4096, 0), (904, HOLE)])),
        (vec![], Chunk::None),
        (vec![id + 1], refused()),
        (vec![id, id], inval("more contexts than were selected")),
        (vec![id; 9000], inval("more contexts than were selected")),
    ]) {
        let mut payload = BytesMut::new();
        let length = 5000;
        StatusFilter { length, contexts }.encode(&mut payload);
        let bytes = payload.len() as u64;
        let command = command::BLOCK_STATUS;
        client.request(command, flags, cookie, 0, bytes).await;
        client.send(&payload).await;
        assert_eq!(client.chunk().await, (cookie, expected));
    }
    client.request(command::BLOCK_STATUS, flags, 9, 0, 9).await;
    client.send(&[0; 9]).await;
    assert_eq!(
        client.chunk().await,
        (9, inval("malformed list of contexts"))
    );
}

#[tokio::test]
async fn few_extents_are_told_where_memory_is_short() {
    let limits = Limits {
        request_bytes_max: 4096,
        connection_bytes_max: 0,
        ..Limits::default()
    };
    let device = MemoryDevice::new("a", SIZE);
    for block in (0..SIZE / 4096).step_by(2) {
        device.fill(block * 4096, b"data");
    }
    let server = Server::new(Arc::new(FixedExports::new().with(device)), limits);
    let (mut client, _served, _) = ready(&server, false).await;
    client
        .request(command::BLOCK_STATUS, 0, 1, 0, SIZE as u64)
        .await;
    let (_, Chunk::Status { extents, .. }) = client.chunk().await else {
        panic!("no status");
    };
    // 4096 bytes for all of it, at 32 bytes an extent.
    assert_eq!(extents.len(), 128);
    client.request(command::FLUSH, 0, 2, 0, 0).await;
    assert_eq!(client.simple().await, (2, 0));
    assert_eq!(server.stats().bytes_held, 0);
}
