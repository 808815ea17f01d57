//! Clients of NBD exports while nobody serves them.

use bytes::Bytes;
use mainstay_node::demo::cluster::DISK;
use mainstay_node::demo::nbd_client::{Command, NbdClient, NbdError};

use crate::rig::{ONE, PATIENCE, Setup, THREE, TWO, wait_for};

const EIO: u32 = 5;

fn write(byte: u8) -> Command {
    Command::Write {
        offset: 0,
        data: Bytes::from(vec![byte; 4096]),
        fua: false,
    }
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
    let read = nbd.submit(Command::Read {
        offset: 0,
        len: 4096,
    });
    for pending in pending.into_iter().chain([read]) {
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
    assert!(line.contains("for 1.0 s, so 3 NBD requests"), "{line}");
    rig.stop().await;
}
