//! Clients of NBD exports: while nobody serves them, and with connections to several nodes of which one stands still.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use mainstay_node::demo::cluster::DISK;
use mainstay_node::demo::nbd_client::{Command, NbdClient, NbdError};
use mainstay_node::devcluster::Signal;
use mainstay_node::nbd_export::FORWARDER_SILENCE;
use rustix::process::{Pid, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;

use crate::rig::{ONE, PATIENCE, Rig, Setup, THREE, TWO, program, wait_for};

const EIO: u32 = 5;

fn write(byte: u8) -> Command {
    Command::Write {
        offset: 0,
        data: Bytes::from(vec![byte; 4096]),
        fua: false,
    }
}

const READ: Command = Command::Read {
    offset: 0,
    len: 4096,
};

async fn connect(rig: &Rig, node: mainstay_types::NodeId) -> NbdClient {
    let address = rig.stage.nbd(node).expect("exports");
    let connected = wait_for("a connection", PATIENCE, async || {
        NbdClient::connect(&address, DISK).await.ok()
    });
    connected.await
}

async fn holds(client: &NbdClient, byte: u8) {
    let page = client.call(READ).await.expect("reads");
    assert!(page[..] == [byte; 4096], "{} and not {byte}", page[0]);
}

/// Two of three copies are gone, so nobody may serve. A request waits for as long as it may and no longer, and what its client is
/// told stands in the events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_nobody_serves_in_time_end_in_eio_and_in_an_event() {
    let rig = Setup::new()
        .config("[nbd]\npark_timeout_ms = 1000\n")
        .start()
        .await;
    let address = rig.stage.nbd(THREE).expect("exports");
    let nbd = NbdClient::connect(&address, DISK).await.expect("connected");
    nbd.call(write(1)).await.expect("committed");
    rig.kill(ONE).await;
    rig.kill(TWO).await;
    let pending = [nbd.submit(write(2)), nbd.submit(write(3))];
    for pending in pending {
        let failed = pending.answer().await.expect_err("nobody serves");
        assert!(
            matches!(failed, NbdError::Failed { errno: EIO, .. }),
            "{failed:?}"
        );
    }
    // It asks the dead for a while, too.
    let said = wait_for("the event", 2 * PATIENCE, async || {
        let (_, said) = rig.mainstay(&["events"]).await;
        said.contains("ended in EIO").then_some(said)
    });
    let said = said.await;
    let line = said.lines().find(|line| line.contains("ended in EIO"));
    let line = line.expect("found above");
    assert!(line.contains("for 1.0 s, so 2 NBD requests"), "{line}");
    rig.stop().await;
}

/// H11. A client's node stands still with a write in its socket. The client gives that connection up, repeats the write through
/// another node, and writes newer data there. The node runs again, and nothing of what it held gets through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_a_paused_node_held_never_overwrites_a_newer_one() {
    // The volume's primary is node 2; the client's connections are to nodes 3 and 1.
    let rig = Rig::start().await;
    let (given_up, other) = (connect(&rig, THREE).await, connect(&rig, ONE).await);
    given_up.call(write(1)).await.expect("committed");
    holds(&other, 1).await;
    rig.signal(THREE, Signal::STOP).await;
    let held = given_up.submit(write(2));
    other.call(write(2)).await.expect("committed");
    other.call(write(3)).await.expect("committed");
    // Longer than any client may wait that is told to wait longer than this.
    tokio::time::sleep(FORWARDER_SILENCE * 3 / 2).await;
    rig.signal(THREE, Signal::CONT).await;
    let answer = held.answer().await.expect_err("not forwarded");
    assert!(
        !matches!(answer, NbdError::Failed { .. }),
        "cut: {answer:?}"
    );
    holds(&other, 3).await;
    // The node is as good as any for a client that connects anew.
    let again = connect(&rig, THREE).await;
    holds(&again, 3).await;
    again.call(write(4)).await.expect("committed");
    holds(&other, 4).await;
    rig.stop().await;
}

/// `mainstay nbd` for the volume, a process that stands still alone.
struct Gateway {
    child: Child,
    address: String,
}

impl Gateway {
    async fn start(rig: &Rig) -> Self {
        let mut command = tokio::process::Command::new(program());
        command
            .args(["nbd", DISK, "--listen", "127.0.0.1:0", "--endpoints"])
            .arg(rig.stage.dev.endpoints().join(","))
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("started");
        let mut line = String::new();
        let out = child.stdout.take().expect("piped");
        let mut out = BufReader::new(out);
        let read = tokio::time::timeout(PATIENCE, out.read_line(&mut line)).await;
        read.expect("it says so").expect("readable");
        let uri = line.split("nbd://").nth(1).expect("an address");
        let address = uri.split('/').next().expect("an address").to_owned();
        Self { child, address }
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("runs");
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process"), signal).expect("sent");
    }
}

/// H11, with the write further on its way: the gateway has read it, and waits for a primary to send it to. Then it stands still,
/// and everything else goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_a_paused_gateway_had_parked_never_overwrites_a_newer_one() {
    let rig = Rig::start().await;
    let gateway = Gateway::start(&rig).await;
    let given_up = NbdClient::connect(&gateway.address, DISK).await;
    let given_up = given_up.expect("connected");
    let other = connect(&rig, ONE).await;
    given_up.call(write(1)).await.expect("committed");
    // Nobody reports the death of the primary, so that nobody serves until its lease is over.
    rig.kill(TWO).await;
    let parked = given_up.submit(write(2));
    tokio::time::sleep(Duration::from_millis(100)).await;
    gateway.signal(Signal::STOP);
    other
        .call(write(3))
        .await
        .expect("committed by the next primary");
    tokio::time::sleep(FORWARDER_SILENCE * 3 / 2).await;
    gateway.signal(Signal::CONT);
    let _cut_or_committed_before_it_stood_still = parked.answer().await;
    holds(&other, 3).await;
    let again = NbdClient::connect(&gateway.address, DISK).await;
    holds(&again.expect("serves anew"), 3).await;
    rig.stop().await;
}

/// A path to a server that can be cut.
async fn path_to(server: String) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let carry = async move {
        let (mut client, _) = listener.accept().await.expect("a client");
        let mut server = TcpStream::connect(server).await.expect("a server");
        let _ended = copy_bidirectional(&mut client, &mut server).await;
    };
    (address, tokio::spawn(carry))
}

/// H11, and the connection ends in the middle: a client that was killed and starts again must not find later what it sent before. The
/// gateway waits for a primary with the write, sees its client go, and then stands still for less than it would notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_client_has_gone_never_overwrites_a_newer_one() {
    let rig = Rig::start().await;
    let gateway = Gateway::start(&rig).await;
    let (address, path) = path_to(gateway.address.clone()).await;
    let gone = NbdClient::connect(&address, DISK).await;
    let gone = gone.expect("connected");
    let other = connect(&rig, ONE).await;
    gone.call(write(1)).await.expect("committed");
    // Nobody reports the death of the primary, so that nobody serves until its lease is over.
    rig.kill(TWO).await;
    let parked = gone.submit(write(2));
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Without a goodbye.
    path.abort();
    parked.answer().await.expect_err("cut");
    tokio::time::sleep(Duration::from_millis(200)).await;
    gateway.signal(Signal::STOP);
    for byte in [2, 3] {
        other.call(write(byte)).await.expect("the next primary");
    }
    gateway.signal(Signal::CONT);
    // Much longer than it takes to find the primary.
    tokio::time::sleep(Duration::from_secs(2)).await;
    holds(&other, 3).await;
    let again = NbdClient::connect(&gateway.address, DISK).await;
    holds(&again.expect("serves on"), 3).await;
    rig.stop().await;
}

/// One client, connections to two nodes that forward: what one answered the other shows, and either may die.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_two_nodes_sees_its_writes_on_both_and_survives_either() {
    let rig = Rig::start().await;
    let (mut one, mut three) = (connect(&rig, ONE).await, connect(&rig, THREE).await);
    for byte in 0..100 {
        let (writer, reader) = if byte % 2 == 0 {
            (&one, &three)
        } else {
            (&three, &one)
        };
        writer.call(write(byte)).await.expect("committed");
        holds(reader, byte).await;
    }
    rig.kill(THREE).await;
    three.call(READ).await.expect_err("its node is gone");
    one.call(write(100)).await.expect("committed");
    rig.restart(THREE).await;
    rig.stage.wait_whole(DISK).await.expect("whole");
    three = connect(&rig, THREE).await;
    holds(&three, 100).await;
    rig.kill(ONE).await;
    one.call(READ).await.expect_err("its node is gone");
    three.call(write(101)).await.expect("committed");
    rig.restart(ONE).await;
    rig.stage.wait_whole(DISK).await.expect("whole");
    one = connect(&rig, ONE).await;
    holds(&one, 101).await;
    rig.stop().await;
}
