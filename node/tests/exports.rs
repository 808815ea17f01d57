//! What the real NBD tools see of a volume beyond its bytes: allocation, read-only exports, fast zeroes. Against a real cluster
//! in this process.

mod support;
mod tools;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;

use mainstay_client::{AttachOptions, Client, ClientConfig};
use mainstay_node::commands::{nbd, size, volume};
use mainstay_node::nbd_export::{Terms, VolumeExports, serve};
use serde_json::{Value, json};
use support::{Cluster, PATIENCE};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

const SIZE: u64 = 96 << 20;

/// A cluster with the volume `disk`, and a gateway over all volumes.
struct Fixture {
    cluster: Cluster,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<()>,
}

impl Fixture {
    async fn start(size_bytes: u64) -> Self {
        let cluster = Cluster::start().await;
        let args = volume::Create::new("disk", size::block_kind(size_bytes).expect("a size"));
        let created = volume::create(&args, cluster.endpoints(), &mut Vec::new()).await;
        created.expect("created");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let client = Client::connect(ClientConfig::new(cluster.endpoints())).await;
        let exports = VolumeExports::all(client.expect("connected"), PATIENCE);
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let stopped = async {
                let _dropped = stopped.await;
            };
            serve(listener, exports, Terms::default(), stopped).await;
        });
        Self {
            cluster,
            address,
            stop,
            serving,
        }
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.address)
    }

    async fn stop(self) {
        let _running = self.stop.send(());
        self.serving.await.expect("no panic");
        self.cluster.shut_down().await;
    }
}

/// Start, length and whether it is data, as both tools say. They must agree.
async fn map(uri: &str) -> Vec<(u64, u64, bool)> {
    let parse = |text: String| -> Vec<Value> { serde_json::from_str(&text).expect("JSON") };
    let libnbd = parse(tools::run("nbdinfo", &["--json", "--map", uri]).await);
    let number = |value: &Value| value.as_u64().expect("a number");
    let libnbd: Vec<_> = libnbd
        .iter()
        .map(|extent| {
            let data = extent["type"] == 0;
            assert!(data || extent["description"] == "hole,zero", "{extent}");
            (number(&extent["offset"]), number(&extent["length"]), data)
        })
        .collect();
    let qemu = parse(tools::run("qemu-img", &["map", "-f", "raw", "--output=json", uri]).await);
    let qemu: Vec<_> = qemu
        .iter()
        .map(|extent| {
            let data = extent["data"] == true;
            (number(&extent["start"]), number(&extent["length"]), data)
        })
        .collect();
    assert_eq!(libnbd, qemu);
    libnbd
}

async fn qemu_io(uri: &str, commands: &[&str]) -> Result<String, String> {
    let mut arguments = vec!["-f", "raw"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(uri);
    tools::try_run("qemu-io", &arguments).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_map_of_a_volume_is_what_was_written_and_not_given_back() {
    let needed = ["nbdinfo", "nbdcopy", "qemu-img", "qemu-io"];
    if !needed.into_iter().all(tools::require) {
        return;
    }
    const MIB: u64 = 1 << 20;
    let fixture = Fixture::start(SIZE).await;
    let uri = fixture.uri("disk");
    assert_eq!(map(&uri).await, [(0, SIZE, false)]);

    // The second write lies across the place up to which one question to the primary looks.
    let written = ["write -P 1 1M 1M", "write -P 2 63M 2M", "flush"];
    qemu_io(&uri, &written).await.expect("written");
    let expected = [
        (0, MIB, false),
        (MIB, MIB, true),
        (2 * MIB, 61 * MIB, false),
        (63 * MIB, 2 * MIB, true),
        (65 * MIB, SIZE - 65 * MIB, false),
    ];
    assert_eq!(map(&uri).await, expected);

    // Without `-u`, zeroes are to keep their space.
    let given_back = [
        "discard 1M 512k",
        "write -z -u 63M 2M",
        "write -P 3 0 1",
        "write -z 10M 1M",
    ];
    qemu_io(&uri, &given_back).await.expect("given back");
    let expected = [
        (0, 4096, true),
        (4096, MIB + 512 * 1024 - 4096, false),
        (MIB + 512 * 1024, 512 * 1024, true),
        (2 * MIB, 8 * MIB, false),
        (10 * MIB, MIB, true),
        (11 * MIB, SIZE - 11 * MIB, false),
    ];
    assert_eq!(map(&uri).await, expected);

    // What was copied by what the map says is the whole.
    let copy = fixture.cluster.scratch().join("copy");
    let copy = copy.to_str().expect("text");
    tools::run("nbdcopy", &[&uri, copy]).await;
    tools::run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", copy, &uri],
    )
    .await;
    let bytes = std::fs::read(copy).expect("read");
    assert_eq!(bytes.len() as u64, SIZE);
    assert_eq!(
        bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>(),
        3 + (MIB / 2)
    );
    fixture.stop().await;
}

/// QEMU sends it as one request with extended headers. It is more pieces than may be on their way at a time.
#[tokio::test(flavor = "multi_thread")]
async fn zeroes_of_gigabytes_are_one_request() {
    let needed = ["nbdinfo", "qemu-img", "qemu-io"];
    if !needed.into_iter().all(tools::require) {
        return;
    }
    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;
    let fixture = Fixture::start(5 * GIB).await;
    let uri = fixture.uri("disk");
    let script = [
        "write -P 1 3G 1M",
        "write -P 1 5119M 1M",
        "write -z -n -u 0 5G",
        "write -P 2 4G 1M",
    ];
    let said = qemu_io(&uri, &script).await.expect("done");
    assert!(!said.contains("failed"), "{said}");
    let expected = [
        (0, 4 * GIB, false),
        (4 * GIB, MIB, true),
        (4 * GIB + MIB, GIB - MIB, false),
    ];
    assert_eq!(map(&uri).await, expected);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_for_reading_is_served_whoever_holds_the_volume() {
    let needed = ["nbdinfo", "qemu-io"];
    if !needed.into_iter().all(tools::require) {
        return;
    }
    let fixture = Fixture::start(SIZE).await;
    let endpoints = fixture.cluster.endpoints();
    let client = Client::connect(ClientConfig::new(endpoints)).await;
    let held = client.expect("connected").block("disk");
    let held = held.attach(AttachOptions::named("somebody-else")).open();
    let held = held.await.expect("attached");
    held.write(4096, vec![7; 4096]).await.expect("written");

    let (plain, reading) = (fixture.uri("disk"), fixture.uri("disk:ro"));
    let refused = qemu_io(&plain, &["read 0 4096"]).await;
    let refused = refused.expect_err("it is held");
    assert!(refused.contains("somebody-else"), "{refused}");

    let info = tools::run("nbdinfo", &["--json", &reading]).await;
    let info: Value = serde_json::from_str(&info).expect("JSON");
    let export = &info["exports"][0];
    assert_eq!(export["is_read_only"], true);
    assert_eq!(export["export-size"], SIZE);
    let contexts = export["contexts"].as_array().expect("contexts");
    assert_eq!(contexts[0], json!("base:allocation"));
    let changes = contexts[1].as_str().expect("text");
    assert!(changes.starts_with("mainstay:changed-since/"), "{changes}");
    assert_eq!(contexts.len(), 2);
    for unable in ["can_trim", "can_zero", "can_fast_zero"] {
        assert_eq!(export[unable], false, "{unable}");
    }
    let read = ["-r", "-f", "raw", "-c", "read -P 7 4096 4096", &reading];
    let said = tools::run("qemu-io", &read).await;
    assert!(!said.contains("verification failed"), "{said}");
    // What the holder writes from now on is seen by the next read.
    held.write(4096, vec![8; 4096]).await.expect("written");
    let read = ["-r", "-f", "raw", "-c", "read -P 8 4096 4096", &reading];
    let said = tools::run("qemu-io", &read).await;
    assert!(!said.contains("verification failed"), "{said}");
    let refused = qemu_io(&reading, &["write 0 4096"]).await;
    refused.expect_err("it is for reading");

    // The list names each volume once.
    let list = tools::run("nbdinfo", &["--list", "--json", &fixture.uri("")]).await;
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let names = list["exports"].as_array().expect("exports").iter();
    let names: Vec<_> = names.map(|export| &export["export-name"]).collect();
    assert_eq!(names, ["disk"]);
    held.close().await.expect("closed");
    fixture.stop().await;
}

/// `mainstay nbd disk`, while it runs.
struct Gateway {
    uri: String,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Gateway {
    async fn start(fixture: &Fixture, with: impl FnOnce(&mut nbd::Args)) -> Self {
        let endpoints = fixture.cluster.endpoints();
        let (stop, stopped) = oneshot::channel();
        let listen = "127.0.0.1:0".parse().expect("an address");
        let mut args = nbd::Args::new("disk", listen);
        with(&mut args);
        let reads = args.read_only;
        let (said, out) = std::io::pipe().expect("a pipe");
        let serving = tokio::spawn(async move {
            let stopped = async {
                let _dropped = stopped.await;
            };
            let mut out = out;
            nbd::run(args, endpoints, &mut out, stopped).await
        });
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            let read = BufReader::new(said).read_line(&mut line);
            read.expect("said");
            line
        });
        let line = line.await.expect("no panic");
        assert_eq!(line.contains("for reading"), reads, "{line}");
        let uri = line
            .split_whitespace()
            .find(|word| word.starts_with("nbd://"));
        Self {
            uri: uri.expect("an address").to_owned(),
            stop,
            serving,
        }
    }

    async fn stop(self) {
        let _running = self.stop.send(());
        self.serving.await.expect("no panic").expect("stopped");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_gateway_attaches_nothing_and_sees_what_the_holder_wrote() {
    if !tools::require("nbdinfo") || !tools::require_run("nbdsh", &["-c", "pass"]).await {
        return;
    }
    let fixture = Fixture::start(SIZE).await;
    let gateway = Gateway::start(&fixture, |args| args.read_only = true).await;
    let uri = &gateway.uri;
    let info = tools::run("nbdinfo", &["--json", uri]).await;
    let info: Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["exports"][0]["is_read_only"], true);
    // Connected before anybody holds the volume, it is in nobody's way, and sees what is written from then on.
    let script = format!(
        r#"
import errno
h.connect_uri("{uri}")
assert h.is_read_only()
assert h.pread(4096, 0) == bytes(4096)
writer = nbd.NBD()
writer.connect_uri("{}")
writer.pwrite(b"w" * 4096, 0)
assert h.pread(4096, 0) == b"w" * 4096
h.set_strict_mode(0)
for call in (lambda: h.pwrite(b"x" * 4096, 0), lambda: h.trim(4096, 0), lambda: h.zero(4096, 0)):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error
    else:
        raise AssertionError("a change was not refused")
assert h.pread(4096, 0) == b"w" * 4096
writer.shutdown()
h.shutdown()
"#,
        fixture.uri("disk")
    );
    tools::run("nbdsh", &["-c", &script]).await;
    gateway.stop().await;
    fixture.stop().await;
}

/// The first client of a gateway that was told so takes the volume over. After that it is as any other: when somebody took it over
/// from there, its host is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_takes_over_does_so_once() {
    if !["nbdcopy", "qemu-io"].into_iter().all(tools::require) {
        return;
    }
    let fixture = Fixture::start(SIZE).await;
    let client = Client::connect(ClientConfig::new(fixture.cluster.endpoints())).await;
    let client = client.expect("connected");
    let hold = async |takeover| {
        let options = AttachOptions {
            name: "lost".to_owned(),
            takeover,
        };
        let held = client.block("disk").attach(options).open().await;
        held.expect("attached")
    };
    let lost = hold(false).await;
    lost.write(0, vec![1; 4096]).await.expect("committed");
    let gateway = Gateway::start(&fixture, |args| args.takeover = true).await;
    let said = qemu_io(&gateway.uri, &["read -P 1 0 4096", "write -P 2 0 4096"]).await;
    let said = said.expect("taken over");
    assert!(!said.contains("failed"), "{said}");
    lost.write(0, vec![3; 4096]).await.expect_err("fenced");
    let copy = fixture.cluster.scratch().join("copy");
    let copy = copy.to_str().expect("text");
    tools::run("nbdcopy", &["--connections=4", &gateway.uri, copy]).await;
    assert_eq!(std::fs::read(copy).expect("read")[..4096], [2; 4096]);

    let back = hold(true).await;
    let refused = qemu_io(&gateway.uri, &["read 0 4096"]).await;
    let refused = refused.expect_err("it took over once");
    assert!(refused.contains("lost"), "{refused}");
    back.close().await.expect("closed");
    gateway.stop().await;
    fixture.stop().await;
}

/// What only a client without checks of its own sends. Extended headers where this libnbd has them (1.18 and later).
const SCRIPT: &str = r#"
import errno

h.set_strict_mode(0)
if hasattr(h, "set_request_extended_headers"):
    h.set_request_extended_headers(True)
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(URI)
if hasattr(h, "get_extended_headers_negotiated"):
    assert h.get_extended_headers_negotiated()
size = h.get_size()

def refused(expected, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == expected, (call, args, error.errnum)
    else:
        raise AssertionError((call, args, "was not refused"))

if h.is_read_only():
    refused(errno.EPERM, h.pwrite, b"x" * 4096, 0)
    refused(errno.EPERM, h.trim, 4096, 0)
    refused(errno.EPERM, h.zero, 4096, 0)
else:
    h.pwrite(b"x" * 8192, 4096)
    fast = nbd.CMD_FLAG_FAST_ZERO
    refused(errno.ENOTSUP, h.zero, 4096, 4096, fast | nbd.CMD_FLAG_NO_HOLE)
    refused(errno.ENOTSUP, h.zero, 100, 4096, fast)
    h.zero(4096, 4096, fast)
    # All of it in one request.
    h.zero(size - 12288, 12288)
    refused(errno.ENOSPC, h.pwrite, b"x", size)

told = []
h.block_status(size, 0, lambda context, offset, entries, error: told.extend(entries))
assert told == [8192, 3, 4096, 0, size - 12288, 3], told
h.cache(size, 0)
assert h.pread(8192, 4096) == bytes(4096) + b"x" * 4096
refused(errno.EINVAL, h.pread, 1, size)
refused(errno.EINVAL, h.cache, 1, size)
h.shutdown()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn libnbd_finds_volumes_as_the_specification_has_them() {
    if !tools::require("nbdsh") || !tools::require_run("nbdsh", &["-c", "pass"]).await {
        return;
    }
    let fixture = Fixture::start(SIZE).await;
    for export in ["disk", "disk:ro"] {
        let script = SCRIPT.replace("URI", &format!("'{}'", fixture.uri(export)));
        tools::run("nbdsh", &["-c", &script]).await;
    }
    fixture.stop().await;
}
