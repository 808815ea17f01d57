//! The real tools against the server: libnbd's, QEMU's and fio's. QEMU since 8.2 and libnbd since 1.18 negotiate extended headers
//! by themselves, so that its tests are also tests of these.

mod tools;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use mainstay_nbd::memory::{FixedExports, MemoryDevice};
use mainstay_nbd::{Access, ExportInfo, Limits, MultiConn, Server};
use tokio::net::TcpListener;
use tools::{missing, require, run, try_run};

const SIZE: usize = 16 << 20;

/// A server on a port of its own, and the devices behind it.
struct Fixture {
    address: SocketAddr,
    server: Server,
    plain: MemoryDevice,
    blocky: MemoryDevice,
}

impl Fixture {
    /// Exports `plain`, `blocky` (4 KiB blocks, as a volume has) and `fixed` (read-only).
    async fn start() -> Self {
        let plain = MemoryDevice::new("plain", SIZE);
        let special = |name: &str, access, block_bytes_min| {
            MemoryDevice::with_info(ExportInfo {
                name: name.to_owned(),
                description: format!("the {name} one"),
                size_bytes: SIZE as u64,
                access,
                block_bytes_min,
                block_bytes_preferred: 4096,
                block_bytes_max: 1 << 20,
                multi_conn: MultiConn::Coherent,
            })
        };
        let blocky = special("blocky", Access::ReadWrite, 4096);
        let exports = FixedExports::new()
            .with(plain.clone())
            .with(blocky.clone())
            .with(special("fixed", Access::ReadOnly, 1));
        let server = Server::new(Arc::new(exports), Limits::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let accepting = server.clone();
        tokio::spawn(async move { accepting.serve(listener, std::future::pending()).await });
        Self {
            address,
            server,
            plain,
            blocky,
        }
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.address)
    }

    /// No tool leaves a connection or a byte behind.
    async fn check_nothing_is_held(&self) {
        while self.server.stats().connections > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        assert_eq!(self.server.stats().bytes_held, 0);
    }
}

/// Data, zeroes, and data again, so that holes and their borders are seen.
fn pattern() -> Vec<u8> {
    let mut data: Vec<u8> = (0_u32..)
        .take(SIZE)
        .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    data[3 << 20..7 << 20].fill(0);
    data
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdinfo_describes_every_export() {
    if !require("nbdinfo") {
        return;
    }
    let fixture = Fixture::start().await;
    let json = run("nbdinfo", &["--json", "--list", &fixture.uri("")]).await;
    let json: serde_json::Value = serde_json::from_str(&json).expect("json");
    assert_eq!(json["protocol"], "newstyle-fixed");
    assert_eq!(json["TLS"], false);
    assert_eq!(json["structured"], true);
    let exports = json["exports"].as_array().expect("a list");
    let names: Vec<_> = exports
        .iter()
        .map(|export| &export["export-name"])
        .collect();
    assert_eq!(names, ["blocky", "fixed", "plain"]);

    let blocky = &exports[0];
    assert_eq!(blocky["export-size"], SIZE);
    assert_eq!(blocky["is_read_only"], false);
    for able in [
        "can_flush",
        "can_fua",
        "can_trim",
        "can_zero",
        "can_df",
        "can_multi_conn",
        "can_cache",
        "can_fast_zero",
    ] {
        assert_eq!(blocky[able], true, "{able}");
    }
    assert_eq!(blocky["is_rotational"], false);
    assert_eq!(blocky["contexts"], serde_json::json!(["base:allocation"]));
    assert_eq!(blocky["block_size_minimum"], 4096);
    assert_eq!(blocky["block_size_preferred"], 4096);
    assert_eq!(blocky["block_size_maximum"], 1 << 20);
    assert_eq!(exports[1]["is_read_only"], true);
    assert_eq!(exports[1]["can_trim"], false);

    assert_eq!(
        run("nbdinfo", &["--size", &fixture.uri("plain")])
            .await
            .trim(),
        SIZE.to_string()
    );
    assert!(
        try_run("nbdinfo", &[&fixture.uri("nothing")])
            .await
            .is_err()
    );
    assert!(
        try_run("nbdinfo", &[&fixture.uri("")]).await.is_err(),
        "three exports have no default"
    );
    fixture.check_nothing_is_held().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdcopy_copies_both_ways_over_four_connections() {
    if !require("nbdcopy") {
        return;
    }
    let fixture = Fixture::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    std::fs::write(&source, pattern()).expect("source");
    for (export, device) in [("plain", &fixture.plain), ("blocky", &fixture.blocky)] {
        let uri = fixture.uri(export);
        run(
            "nbdcopy",
            &["--connections=4", "--flush", text(&source), &uri],
        )
        .await;
        assert!(
            device.content() == pattern(),
            "{export} has what was copied to it"
        );
        run("nbdcopy", &["--connections=4", &uri, text(&target)]).await;
        assert!(
            std::fs::read(&target).expect("target") == pattern(),
            "{export} gives what it has"
        );
    }
    let failure = try_run("nbdcopy", &[text(&source), &fixture.uri("fixed")]).await;
    assert!(failure.is_err(), "a read-only export takes nothing");
    fixture.check_nothing_is_held().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_img_converts_compares_and_describes() {
    if !require("qemu-img") {
        return;
    }
    let fixture = Fixture::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let (source, target) = (
        folder.path().join("source"),
        folder.path().join("target.qcow2"),
    );
    std::fs::write(&source, pattern()).expect("source");
    for (export, device) in [("plain", &fixture.plain), ("blocky", &fixture.blocky)] {
        let uri = fixture.uri(export);
        run(
            "qemu-img",
            &[
                "convert",
                "-n",
                "-f",
                "raw",
                "-O",
                "raw",
                text(&source),
                &uri,
            ],
        )
        .await;
        assert!(device.content() == pattern(), "{export}");
        run(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", text(&source), &uri],
        )
        .await;
        run(
            "qemu-img",
            &["convert", "-f", "raw", "-O", "qcow2", &uri, text(&target)],
        )
        .await;
        run(
            "qemu-img",
            &["compare", "-f", "qcow2", "-F", "raw", text(&target), &uri],
        )
        .await;
    }
    let info = run(
        "qemu-img",
        &["info", "--output=json", &fixture.uri("plain")],
    )
    .await;
    let info: serde_json::Value = serde_json::from_str(&info).expect("json");
    assert_eq!(info["virtual-size"], SIZE);
    fixture.check_nothing_is_held().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_io_writes_zeroes_discards_and_verifies() {
    if !require("qemu-io") {
        return;
    }
    let fixture = Fixture::start().await;
    for export in ["plain", "blocky"] {
        let script = [
            "write -P 0xab 0 1M",
            "write -f -P 0xcd 1M 64k",
            "aio_write -P 0x11 2M 64k",
            "aio_write -P 0x22 2112k 64k",
            "aio_flush",
            "flush",
            "read -P 0xab 0 1M",
            "read -P 0xcd 1M 64k",
            "read -P 0x11 2M 64k",
            "read -P 0x22 2112k 64k",
            "write -z 64k 64k",
            "read -P 0 64k 64k",
            "write -z -u 128k 64k",
            "read -P 0 128k 64k",
            "read -P 0xab 192k 64k",
            "discard 512k 64k",
            "read -P 0xab 576k 64k",
            // QEMU reads, changes and writes back what is smaller than a block.
            "write -P 0x77 4608 512",
            "read -P 0x77 4608 512",
            "read -P 0xab 4096 512",
            "read -P 0xab 5120 512",
        ];
        let uri = fixture.uri(export);
        let mut arguments = vec!["-f", "raw"];
        for command in script {
            arguments.extend(["-c", command]);
        }
        arguments.push(&uri);
        let output = run("qemu-io", &arguments).await;
        assert!(
            !output.contains("failed") && !output.contains("error"),
            "{export}: {output}"
        );
    }
    let content = fixture.plain.content();
    assert!(content[..4096] == [0xab; 4096] && content[4608..5120] == [0x77; 512]);
    let refused = try_run(
        "qemu-io",
        &["-f", "raw", "-c", "write 0 512", &fixture.uri("fixed")],
    )
    .await;
    assert!(
        refused.is_err(),
        "a read-only export cannot be opened for writing"
    );
    fixture.check_nothing_is_held().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fio_verifies_random_writes_at_depth() {
    if !require("fio") {
        return;
    }
    if !run("fio", &["--enghelp"])
        .await
        .lines()
        .any(|line| line.trim() == "nbd")
    {
        missing("this `fio` has no nbd engine");
        return;
    }
    let fixture = Fixture::start().await;
    let folder = tempfile::tempdir().expect("folder");
    let uri = format!("--uri={}", fixture.uri("blocky"));
    let aux = format!("--aux-path={}", text(folder.path()));
    let arguments = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        &aux,
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=64",
        "--size=16m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--output-format=json",
    ];
    let output = run("fio", &arguments).await;
    let json = output.find('{').map_or("", |start| &output[start..]);
    let json: serde_json::Value = serde_json::from_str(json).expect("json");
    assert_eq!(json["jobs"][0]["error"], 0);
    assert_eq!(json["jobs"][0]["write"]["total_ios"], 4096);
    fixture.check_nothing_is_held().await;
}

/// What `nbdinfo --map` and `qemu-img map` must say of [`pattern`]: start, length, and whether it is data.
const MAP: [(usize, usize, bool); 3] = [
    (0, 3 << 20, true),
    (3 << 20, 4 << 20, false),
    (7 << 20, 9 << 20, true),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdinfo_maps_data_and_holes() {
    if !require("nbdinfo") {
        return;
    }
    let fixture = Fixture::start().await;
    for (export, device) in [("plain", &fixture.plain), ("blocky", &fixture.blocky)] {
        device.fill(0, &pattern());
        let map = run("nbdinfo", &["--json", "--map", &fixture.uri(export)]).await;
        let map: serde_json::Value = serde_json::from_str(&map).expect("json");
        let expected = MAP.map(|(offset, length, data)| {
            let (kind, description) = if data { (0, "data") } else { (3, "hole,zero") };
            serde_json::json!({
                "offset": offset, "length": length, "type": kind, "description": description,
            })
        });
        assert_eq!(map, serde_json::json!(expected), "{export}");
    }
    fixture.check_nothing_is_held().await;
}

/// QEMU negotiates extended headers where the server has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_img_maps_data_and_holes() {
    if !require("qemu-img") {
        return;
    }
    let fixture = Fixture::start().await;
    for (export, device) in [("plain", &fixture.plain), ("blocky", &fixture.blocky)] {
        device.fill(0, &pattern());
        let uri = fixture.uri(export);
        let arguments = ["map", "-f", "raw", "--output=json", &uri];
        let map: serde_json::Value =
            serde_json::from_str(&run("qemu-img", &arguments).await).expect("json");
        let told: Vec<_> = map
            .as_array()
            .expect("a list")
            .iter()
            .map(|extent| {
                (
                    extent["start"].as_u64(),
                    extent["length"].as_u64(),
                    extent["data"].as_bool(),
                )
            })
            .collect();
        let expected =
            MAP.map(|(start, length, data)| (Some(start as u64), Some(length as u64), Some(data)));
        assert_eq!(told, expected, "{export}");
    }
    fixture.check_nothing_is_held().await;
}

/// `nbdsh` needs the Python module too, which is a package of its own.
async fn require_nbdsh() -> bool {
    if !require("nbdsh") {
        return false;
    }
    match try_run("nbdsh", &["-c", "pass"]).await {
        Ok(_) => true,
        Err(failure) => missing(&format!("`nbdsh` does not start: {failure}")),
    }
}

/// libnbd with its own checks switched off sends what the server must refuse.
const NBDSH_REFUSALS: &str = r#"
import errno
h.set_strict_mode(0)

def refused(expected, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == expected, (call, args, error.errnum)
    else:
        raise AssertionError((call, args, "was not refused"))

size = h.get_size()
refused(errno.EINVAL, h.pread, 512, size)
refused(errno.EINVAL, h.pread, 1024, size - 512)
refused(errno.ENOSPC, h.pwrite, b"x" * 512, size)
refused(errno.ENOSPC, h.pwrite, b"x" * 512, 2**63 - 512)
refused(errno.ENOSPC, h.zero, 512, size)
refused(errno.EINVAL, h.trim, 512, size)
refused(errno.EINVAL, h.cache, 512, size)
h.cache(512, 0)
refused(errno.EINVAL, h.trim, 0, 0)
refused(errno.ENOTSUP, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
refused(errno.EINVAL, h.block_status, 512, 0, lambda *extents: 0)
refused(errno.EINVAL, h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_DF)

# The connection is still in step after all of it.
data = bytes(range(1, 101)) * 41
h.pwrite(data, 12345, nbd.CMD_FLAG_FUA)
h.flush()
assert h.pread(len(data), 12345) == data
chunks = []
h.pread_structured(8192, 1 << 20, lambda buf, offset, status, error: chunks.append((offset, status)))
assert chunks == [(1 << 20, nbd.READ_HOLE)], chunks
h.pread_structured(4, 12345, lambda buf, offset, status, error: chunks.append((bytes(buf), status)), nbd.CMD_FLAG_DF)
assert chunks[1] == (data[:4], nbd.READ_DATA), chunks
h.zero(100, 12345, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(101, 12345) == bytes(100) + data[100:101]
h.shutdown()
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libnbd_sees_the_documented_errors_and_stays_in_step() {
    if !require_nbdsh().await {
        return;
    }
    let fixture = Fixture::start().await;
    run(
        "nbdsh",
        &["-u", &fixture.uri("plain"), "-c", NBDSH_REFUSALS],
    )
    .await;
    fixture.check_nothing_is_held().await;
}

/// Contexts, and extended headers where this libnbd has them (1.18 and later).
const NBDSH_CONTEXTS: &str = r#"
uri = URI
if hasattr(h, "get_extended_headers_negotiated"):
    h.set_request_extended_headers(True)
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.add_meta_context("base:unknown")
h.add_meta_context("x-unknown:thing")
h.connect_uri(uri)
if hasattr(h, "get_extended_headers_negotiated"):
    assert h.get_extended_headers_negotiated()
assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
assert not h.can_meta_context("base:unknown")
assert not h.can_meta_context("x-unknown:thing")

size = h.get_size()
h.pwrite(b"data" * 1024, 1 << 20)

def status(length, offset, flags=0):
    told = []
    def extent(context, start, entries, error):
        assert (context, start) == (nbd.CONTEXT_BASE_ALLOCATION, offset)
        told.extend(zip(entries[::2], entries[1::2]))
    h.block_status(length, offset, extent, flags)
    return told

assert status(size, 0) == [(1 << 20, 3), (4096, 0), (size - (1 << 20) - 4096, 3)], status(size, 0)
assert status(size, 0, nbd.CMD_FLAG_REQ_ONE) == [(1 << 20, 3)]
assert status(8192, 4096, nbd.CMD_FLAG_REQ_ONE) == [(8192, 3)]
chunks = []
start, middle, end = (1 << 20) - (1 << 18), 1 << 20, (1 << 20) + (1 << 18)
def chunk(buf, offset, status, error):
    chunks.append((offset, len(buf) if status == nbd.READ_DATA else 0, status))
h.pread_structured(end - start, start, chunk)
expected = [(start, 0, nbd.READ_HOLE), (middle, 4096, nbd.READ_DATA), (middle + 4096, 0, nbd.READ_HOLE)]
assert sorted(chunks) == expected, chunks
h.shutdown()
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libnbd_selects_contexts_and_sees_sparse_reads() {
    if !require_nbdsh().await {
        return;
    }
    let fixture = Fixture::start().await;
    for export in ["plain", "blocky"] {
        let script = NBDSH_CONTEXTS.replace("URI", &format!("'{}'", fixture.uri(export)));
        run("nbdsh", &["-c", &script]).await;
    }
    fixture.check_nothing_is_held().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libnbd_without_structured_replies_reads_the_same() {
    if !require_nbdsh().await {
        return;
    }
    let fixture = Fixture::start().await;
    fixture.plain.fill(0, &pattern());
    for setting in [
        "h.set_request_structured_replies(False)",
        "h.set_handshake_flags(0)",
    ] {
        let connect = format!("h.connect_uri('{}')", fixture.uri("plain"));
        run(
            "nbdsh",
            &[
                "-c",
                setting,
                "-c",
                &connect,
                "-c",
                "assert h.pread(3, 0) == bytes([0x00, 0x9e, 0x3c])",
            ],
        )
        .await;
    }
    fixture.check_nothing_is_held().await;
}
