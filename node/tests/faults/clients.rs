//! Clients that get in each other's way, and requests that do not fit: faults 60 and 64.

use bytes::Bytes;
use mainstay_client::{AppendError, AttachOptions, BlockVolume, OpenError, Refusal, WriteError};
use mainstay_node::demo::cluster::{DISK, LEDGER};
use mainstay_node::demo::faults::FaultKind;
use mainstay_node::demo::nbd_client::{Command, NbdClient, NbdError};

use crate::rig::Rig;

async fn attach(rig: &Rig, name: &str, takeover: bool) -> Result<BlockVolume, OpenError> {
    let attach = AttachOptions {
        name: name.to_owned(),
        takeover,
    };
    rig.stage.client.block(DISK).attach(attach).open().await
}

fn page(byte: u8) -> Bytes {
    vec![byte; 4096].into()
}

/// Fault 60: an attachment is exclusive; a takeover ends it for good, also across a failover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_fences_the_attachment_before_it_also_across_a_failover() {
    let rig = Rig::start().await;
    let first = attach(&rig, "first", false).await.expect("free");
    first.write(0, page(1)).await.expect("committed");
    let refused = attach(&rig, "second", false).await.expect_err("held");
    assert!(
        matches!(&refused, OpenError::Refused(Refusal::AttachedElsewhere { name, .. }) if name == "first"),
        "{refused:?}"
    );
    // The holder is gone without a word, and so is the primary.
    let before = rig.stage.serving(DISK).await.expect("served");
    let struck = rig.stage.strike(FaultKind::Process, before.node).await;
    struck.expect("it is there");
    let second = attach(&rig, "second", true).await.expect("taken over");
    second.write(0, page(2)).await.expect("committed");
    let fenced = first.write(0, page(3)).await.expect_err("fenced");
    assert!(
        matches!(
            fenced,
            WriteError::Refused(Refusal::AttachedElsewhere { .. })
        ) || matches!(fenced, WriteError::Unknown { .. }),
        "{fenced:?}"
    );
    let fenced = first.write(0, page(4)).await.expect_err("for good");
    assert!(matches!(fenced, WriteError::Refused(_)), "{fenced:?}");
    let recovered = rig.stage.recover(FaultKind::Process, before.node).await;
    recovered.expect("it starts");
    rig.stage.wait_whole(DISK).await.expect("whole");
    let moved = rig.stage.move_primary(DISK, before.node).await;
    moved.expect("a planned switchover");
    assert_eq!(second.read(0, 4096).await.expect("reads"), page(2));
    rig.stop().await;
}

/// Fault 64, appends: what is too large is refused before anything of it is sent, and the log goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_above_the_limit_is_refused_and_an_empty_one_is_a_record() {
    let rig = Rig::start().await;
    let log = rig.stage.client.log(LEDGER).open().await.expect("opens");
    let limit = usize::try_from(log.record_bytes_max()).expect("fits");
    let refused = log.append(vec![0; limit + 1]).await.expect_err("too large");
    let AppendError::Refused(Refusal::TooLarge { bytes_max }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(bytes_max, limit as u64);
    let empty = log
        .append(Bytes::new())
        .await
        .expect("a record of no bytes");
    let largest = log.append(vec![7; limit]).await.expect("just fits");
    assert_eq!(largest.lsn, empty.lsn.next(), "nothing in between");
    let limits = mainstay_client::ReadLimits::default();
    let page = log.read(empty.lsn, limits).await.expect("reads");
    assert_eq!(page.records[0].data.len(), 0);
    let page = log.read(largest.lsn, limits).await.expect("reads");
    assert_eq!(page.records[0].data.len(), limit);
    rig.stop().await;
}

/// Fault 64, a real export: ranges that do not fit are refused, change nothing, and leave the connection in step.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_do_not_fit_a_real_export_change_nothing() {
    let rig = Rig::start().await;
    // Node 3 is primary of neither volume: it forwards.
    let address = rig.stage.nbd(crate::rig::THREE).expect("exports");
    let nbd = NbdClient::connect(&address, DISK).await.expect("connected");
    let size = nbd.size_bytes();
    let write = |offset, data: Bytes| {
        nbd.call(Command::Write {
            offset,
            data,
            fua: false,
        })
    };
    let read = |offset, len| nbd.call(Command::Read { offset, len });
    write(size - 4096, page(1)).await.expect("the last block");
    // Any alignment, over the border of two blocks.
    write(4095, vec![2; 3].into()).await.expect("unaligned");
    assert_eq!(
        read(4093, 7).await.expect("unaligned")[..],
        [0, 0, 2, 2, 2, 0, 0]
    );

    for offset in [size, size - 1, size + 4096, u64::MAX - 1, u64::MAX] {
        let failed = write(offset, vec![9; 2].into()).await;
        assert_eq!(errno(failed), ENOSPC, "write at {offset}");
        assert_eq!(errno(read(offset, 2).await), EINVAL, "read at {offset}");
        for what in [
            Command::Trim { offset, len: 2 },
            Command::Zeroes {
                offset,
                len: 2,
                fua: true,
            },
        ] {
            let failed = errno(nbd.call(what.clone()).await);
            assert!([EINVAL, ENOSPC].contains(&failed), "{what:?}: {failed}");
        }
    }
    assert_eq!(errno(read(0, u32::MAX).await), EINVAL, "4 GiB at once");
    for what in [
        Command::Read { offset: 0, len: 0 },
        Command::Write {
            offset: 0,
            data: Bytes::new(),
            fua: true,
        },
        Command::Trim { offset: 0, len: 0 },
    ] {
        // The protocol leaves it open: no effect, or an error, but an answer.
        let answered = nbd.call(what.clone()).await;
        assert!(
            answered.is_ok() || errno(answered) == EINVAL,
            "{what:?} of no bytes"
        );
    }
    let flushed = nbd.call(Command::Flush).await;
    flushed.expect("still in step");
    assert_eq!(read(size - 4096, 4096).await.expect("reads"), page(1));
    assert_eq!(read(0, 4095).await.expect("reads"), vec![0; 4095]);
    nbd.disconnect();
    rig.stop().await;
}

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// Of a request that was answered with an error.
#[track_caller]
fn errno(answer: Result<Bytes, NbdError>) -> u32 {
    match answer {
        Err(NbdError::Failed { errno, .. }) => errno,
        other => panic!("not refused: {other:?}"),
    }
}
