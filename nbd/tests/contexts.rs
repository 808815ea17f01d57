//! Metadata contexts: listing, selecting, and the block status that they are for.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use mainstay_nbd::codec::{Chunk, MetaQuery, StatusFilter};
use mainstay_nbd::memory::{FixedExports, MemoryDevice};
use mainstay_nbd::protocol::{Errno, chunk, command, command_flag, option, reply};
use mainstay_nbd::{
    Allocation, BlockDevice, BlockError, Change, ChangePoint, ExportInfo, Exports, Extent, Holes,
    Limits, OpenError, Server,
};
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
    let oversized = format!("x:{}", "y".repeat(70_000));
    let cases: [(Selections<'_>, bool); 8] = [
        (&[("a", &[ALLOCATION])], true),
        (&[("b", &[ALLOCATION]), ("a", &[ALLOCATION])], true),
        (&[("a", &[ALLOCATION]), ("b", &[ALLOCATION])], false),
        (&[("a", &[ALLOCATION]), ("a", &[])], false),
        (&[("a", &[ALLOCATION]), ("a", &["base:"])], false),
        (&[("a", &[ALLOCATION]), ("a", &["no colon"])], false),
        (&[("a", &[ALLOCATION]), ("nothing", &[ALLOCATION])], false),
        (&[("a", &[ALLOCATION]), ("a", &[&oversized])], false),
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

/// Its blocks of 4 KiB changed at LSN 0, 10, 20 and so on, and it stands at 1000.
struct Tracked(MemoryDevice);

const HISTORY: u64 = 0xfeed;
const LSN_NOW: u64 = 1000;

impl BlockDevice for Tracked {
    fn info(&self) -> ExportInfo {
        self.0.info()
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'static, Result<Bytes, BlockError>> {
        self.0.read(offset, len)
    }

    fn write(&self, offset: u64, data: Bytes) -> BoxFuture<'static, Result<(), BlockError>> {
        self.0.write(offset, data)
    }

    fn trim(&self, offset: u64, len: u64) -> BoxFuture<'static, Result<(), BlockError>> {
        self.0.trim(offset, len)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        holes: Holes,
    ) -> BoxFuture<'static, Result<(), BlockError>> {
        self.0.write_zeroes(offset, len, holes)
    }

    fn allocation(
        &self,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Extent<Allocation>>, BlockError>> {
        self.0.allocation(offset, len, extents_max)
    }

    fn changed_since(
        &self,
        since: ChangePoint,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Extent<Change>>, BlockError>> {
        assert_eq!(since.history, HISTORY);
        if since.lsn == 13 {
            return Box::pin(std::future::ready(Err(BlockError::Io)));
        }
        let first = offset / 4096;
        let extents = (first..(offset + len).div_ceil(4096)).map(|block| {
            let state = if block * 10 > since.lsn {
                Change::Changed
            } else {
                Change::Unchanged
            };
            let start = (block * 4096).max(offset);
            let len = (block + 1) * 4096 - start;
            Extent { len, state }
        });
        Box::pin(std::future::ready(Ok(extents.take(extents_max).collect())))
    }

    fn flush(&self) -> BoxFuture<'static, Result<(), BlockError>> {
        self.0.flush()
    }
}

/// `a` has a history, `plain` has none, `gone` cannot be asked.
struct TrackedExports(FixedExports);

impl Exports for TrackedExports {
    fn list(&self) -> BoxFuture<'static, Result<Vec<String>, OpenError>> {
        self.0.list()
    }

    fn open(
        &self,
        name: &str,
        peer: SocketAddr,
    ) -> BoxFuture<'static, Result<Arc<dyn BlockDevice>, OpenError>> {
        self.0.open(name, peer)
    }

    fn change_point(
        &self,
        name: &str,
        _peer: SocketAddr,
    ) -> BoxFuture<'static, Result<Option<ChangePoint>, OpenError>> {
        let point = ChangePoint {
            history: HISTORY,
            lsn: LSN_NOW,
        };
        let reason = "no primary".to_owned();
        Box::pin(std::future::ready(match name {
            "a" => Ok(Some(point)),
            "plain" => Ok(None),
            _ => Err(OpenError::Unavailable { reason }),
        }))
    }
}

fn tracked() -> Server {
    let a = MemoryDevice::new("a", SIZE);
    a.fill(4096, b"data");
    let exports = FixedExports::new()
        .with(Tracked(a))
        .with(MemoryDevice::new("plain", SIZE))
        .with(MemoryDevice::new("gone", SIZE));
    Server::new(Arc::new(TrackedExports(exports)), Limits::default())
}

/// The names in what answers an option, with their ids.
fn contexts_of(replies: &[(u32, Vec<u8>)]) -> Vec<(u32, String)> {
    let contexts = replies
        .iter()
        .filter(|(kind, _)| *kind == reply::META_CONTEXT);
    contexts
        .map(|(_, data)| {
            let (id, name) = data.split_first_chunk::<4>().expect("an id");
            let name = String::from_utf8(name.to_vec()).expect("text");
            (u32::from_be_bytes(*id), name)
        })
        .collect()
}

#[tokio::test]
async fn a_list_names_the_point_that_nothing_has_changed_since() {
    let (mut client, _served) = negotiating(&tracked(), false).await;
    let now = "mainstay:changed-since/1000@000000000000feed".to_owned();
    let both = [(0, ALLOCATION.to_owned()), (0, now.clone())];
    for (export, queries, expected) in [
        ("a", &[][..], &both[..]),
        ("a", &["mainstay:"], &both[1..]),
        ("a", &["mainstay:changed-since/"], &both[1..]),
        ("a", &["base:", &now], &both[..]),
        ("a", &["mainstay:changed-since/1001"], &[]),
        ("plain", &[], &both[..1]),
        ("plain", &["mainstay:", "mainstay:changed-since/0"], &[]),
    ] {
        let data = query(export, queries);
        let listed = client.option(option::LIST_META_CONTEXT, &data).await;
        assert_eq!(listed.last().map(|last| last.0), Some(reply::ACK));
        assert_eq!(contexts_of(&listed), expected, "{export} {queries:?}");
    }
    // Wildcards select nothing; who cannot be asked says so, but only if there is something to ask.
    for (option, export, queries, expected) in [
        (
            option::SET_META_CONTEXT,
            "a",
            &["mainstay:"][..],
            reply::ACK,
        ),
        (
            option::SET_META_CONTEXT,
            "gone",
            &["mainstay:"],
            reply::ERR_POLICY,
        ),
        (option::LIST_META_CONTEXT, "gone", &[], reply::ERR_POLICY),
        (option::LIST_META_CONTEXT, "gone", &["x:"], reply::ACK),
    ] {
        let replies = client.option(option, &query(export, queries)).await;
        assert_eq!(replies, [(expected, vec![])], "{export} {queries:?}");
    }
}

/// All of them and no more: the last one says so.
async fn check_chunks(client: &mut Client<DuplexStream>, cookie: u64, expected: &[Chunk]) {
    let count = expected.len();
    for (number, expected) in (1..).zip(expected) {
        let (header, _, chunk) = client.any_chunk().await;
        assert_eq!((header.cookie, &chunk), (cookie, expected));
        let done = header.flags == chunk::FLAG_DONE;
        assert_eq!(done, number == count, "the end of the reply");
    }
}

#[tokio::test]
async fn the_status_tells_what_changed_since_each_point_that_was_selected() {
    let size = SIZE as u64;
    let (long, short) = (
        "mainstay:changed-since/30@000000000000feed",
        "mainstay:changed-since/0",
    );
    for extended in [false, true] {
        let (mut client, _served) = negotiating(&tracked(), extended).await;
        let queries = [
            short,
            "mainstay:changed-since/1001",
            ALLOCATION,
            "mainstay:changed-since/9@0000000000000bad",
            "mainstay:changed-since/x",
            long,
        ];
        let data = query("a", &queries);
        let selected = client.option(option::SET_META_CONTEXT, &data).await;
        let selected = contexts_of(&selected);
        let names: Vec<_> = selected.iter().map(|(_, name)| &name[..]).collect();
        assert_eq!(
            names,
            [ALLOCATION, short, long],
            "under the names asked for"
        );
        let ids: Vec<_> = selected.iter().map(|(id, _)| *id).collect();
        client.go("a").await;
        let expected = [
            status(ids[0], &[(4096, HOLE), (4096, 0), (size - 8192, HOLE)]),
            status(ids[1], &[(4096, 0), (size - 4096, 1)]),
            status(ids[2], &[(4 * 4096, 0), (size - 4 * 4096, 1)]),
        ];
        client.request(command::BLOCK_STATUS, 0, 7, 0, size).await;
        check_chunks(&mut client, 7, &expected).await;
        // A part of it, cut to what was asked.
        let one = command_flag::REQ_ONE;
        client
            .request(command::BLOCK_STATUS, one, 8, 3 * 4096 + 5, 10)
            .await;
        let part = [(ids[0], HOLE), (ids[1], 1), (ids[2], 0)];
        let part = part.map(|(id, flags)| status(id, &[(10, flags)]));
        check_chunks(&mut client, 8, &part).await;
        if !extended {
            continue;
        }
        // With a filter, those that it names.
        let mut payload = BytesMut::new();
        let contexts = vec![ids[2]];
        StatusFilter {
            length: size,
            contexts,
        }
        .encode(&mut payload);
        let (flags, bytes) = (command_flag::PAYLOAD_LEN, payload.len() as u64);
        client
            .request(command::BLOCK_STATUS, flags, 9, 0, bytes)
            .await;
        client.send(&payload).await;
        assert_eq!(client.chunk().await, (9, expected[2].clone()));
    }
}

#[tokio::test]
async fn a_status_that_one_context_cannot_answer_is_an_error() {
    let (mut client, _served) = negotiating(&tracked(), false).await;
    let data = query("a", &[ALLOCATION, "mainstay:changed-since/13"]);
    client.option(option::SET_META_CONTEXT, &data).await;
    client.go("a").await;
    client.request(command::BLOCK_STATUS, 0, 1, 0, 4096).await;
    let (_, chunk) = client.chunk().await;
    let error = Errno::Io.code();
    assert!(
        matches!(chunk, Chunk::Error { error: found, .. } if found == error),
        "{chunk:?}"
    );
    client.request(command::FLUSH, 0, 2, 0, 0).await;
    assert_eq!(client.simple().await, (2, 0));
}

#[tokio::test]
async fn contexts_are_counted() {
    let (mut client, _served) = negotiating(&tracked(), false).await;
    let points: Vec<_> = (0..17)
        .map(|lsn| format!("mainstay:changed-since/{lsn}"))
        .collect();
    let points: Vec<_> = points.iter().map(String::as_str).collect();
    for option in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        let refused = client.option(option, &query("a", &points)).await;
        assert_eq!(refused, [(reply::ERR_TOO_BIG, vec![])]);
        let found = client.option(option, &query("a", &points[..16])).await;
        assert_eq!(contexts_of(&found).len(), 16);
    }
}
