//! Sessions that are opened late, closed early, or settled by somebody else.

use std::time::Duration;

use mainstay_client::{
    AppendError, AttachOptions, Client, OpenError, Outcome, ReadError, Refusal, UnknownCause,
};
use mainstay_types::Lsn;

use super::support::{Cluster, Mood};

/// A process whose tasks run only while `block_on` is called: between two calls it stands still.
fn process() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

/// Runs the test beside the cluster, so that it may run other processes.
async fn beside<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(test).await.expect("no panic")
}

/// The writer stands still with an append under way; somebody else is told that it will never commit, and appends it anew. The writer
/// goes on, and an attempt of it is lost before one arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_settled_session_stays_fenced_however_often_its_writer_tries() {
    let cluster = Cluster::start(2, false).await;
    // The handle is kept: without one the writer would end.
    let (cluster, writer, _log, pending) = beside(move || {
        let writer = process();
        let (log, pending) = writer.block_on(async {
            let client = cluster.client(&[0]).await;
            let log = client.log("ledger").open().await.expect("open");
            cluster.mood(0, Mood::Silent);
            let pending = log.submit("a").await.expect("room");
            cluster.until(|world| world.mutations_seen == 1).await;
            (log, pending)
        });
        (cluster, writer, log, pending)
    })
    .await;

    cluster.promote(1, None);
    let standby = cluster.client(&[1]).await;
    let outcome = standby.outcome("ledger", pending.op(), Duration::from_secs(5));
    assert_eq!(outcome.await.expect("settled"), Outcome::Never);
    let log = standby.log("ledger").open().await.expect("open");
    log.append("a").await.expect("committed");

    // The first node believes that it is the primary, and is not.
    let opens_before = cluster.mislead(0);
    let (cluster, ended) = beside(move || {
        let ended = writer.block_on(async {
            let attempts = |opens: usize| opens - opens_before;
            cluster
                .until(|world| attempts(world.opens.len()) >= 2)
                .await;
            cluster.promote(1, None);
            pending.await
        });
        (cluster, ended)
    })
    .await;
    assert!(
        matches!(
            ended,
            Err(AppendError::Unknown {
                cause: UnknownCause::SessionEnded(Refusal::Fenced { .. }),
                ..
            })
        ),
        "{ended:?}"
    );
    assert_eq!(cluster.records(), ["a"]);
}

/// Each of two is answered for good: the second fences what the first opened.
#[tokio::test]
async fn a_session_can_be_settled_twice() {
    let cluster = Cluster::start(1, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").open().await.expect("open");
    let pending = log.submit("a").await.expect("room");
    let op = pending.op();
    let committed = pending.await.expect("committed");
    drop(log);
    for _ in 0..3 {
        let outcome = client.outcome("ledger", op, Duration::from_secs(5));
        let outcome = outcome.await.expect("settled");
        assert_eq!(outcome, Outcome::Committed(committed));
    }
}

/// Nobody looks at the clock during the search, and nothing is held for anybody yet.
#[tokio::test]
async fn a_forwarding_handle_that_was_long_in_opening_serves() {
    let cluster = Cluster::start(1, true).await;
    let client = cluster.client(&[0]).await;
    cluster.depose();
    let opening = client
        .block("disk0")
        .attach(AttachOptions::named("host"))
        .forwarding(Duration::from_secs(4));
    let opening = tokio::spawn(opening.open());
    // More than half of the silence that it is allowed.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    cluster.promote(0, None);
    let disk = opening.await.expect("no panic").expect("attached");
    disk.write(0, "a").await.expect("committed");
}

/// A forwarder hands a write to its stream and stands still, for more than half of the silence and less than all of it. It goes on, and so
/// does what lies in its buffers: the write reaches a primary that still takes it. Were its peer told before, it would send the write
/// through another node, and newer data, and find the old write on top of both.
#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_that_stood_still_is_silent_until_nothing_of_it_arrives() {
    let silence = Duration::from_secs(2);
    let cluster = Cluster::start(1, true).await;
    let (ended, since_sent) = beside(move || {
        let forwarder = process();
        let (disk, sent) = forwarder.block_on(async {
            let client = cluster.client(&[0]).await;
            let opening = client.block("disk0").attach(AttachOptions::named("host"));
            let disk = opening.forwarding(silence).open().await.expect("attached");
            cluster.mood(0, Mood::Silent);
            let sent = std::time::Instant::now();
            let _pending = disk.write(0, "a");
            cluster.until(|world| world.mutations_seen == 1).await;
            (disk, sent)
        });
        std::thread::sleep(silence * 6 / 10);
        let ended = forwarder.block_on(disk.ended());
        (ended, sent.elapsed())
    })
    .await;
    assert_eq!(ended, Refusal::StoodStill);
    assert!(since_sent >= silence, "told after {since_sent:?}");
}

/// A `Close` that goes out behind an append without an answer may take the answer with it.
#[tokio::test]
async fn a_close_waits_for_the_answers_before_it() {
    let cluster = Cluster::start(2, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").open().await.expect("open");
    cluster.mood(0, Mood::Silent);
    let pending = log.submit("a").await.expect("room");
    cluster.until(|world| world.mutations_seen == 1).await;
    let closing = tokio::spawn(log.clone().close());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!closing.is_finished(), "an append has no answer");
    let late = log.append("b").await.expect_err("it is being closed");
    assert_eq!(late, AppendError::Refused(Refusal::Closed));
    cluster.promote(1, Some(0));
    assert_eq!(pending.await.expect("committed").lsn, Lsn(1));
    closing.await.expect("no panic").expect("closed");
    assert_eq!(cluster.records(), ["a"]);
}

/// A disk is being closed while its primary is silent; the caller gives that up, or its deadline passes. Nobody is left who would close it,
/// and nobody else could have it.
#[tokio::test]
async fn a_disk_whose_close_was_given_up_is_let_go() {
    for cancelled in [false, true] {
        let cluster = Cluster::start(1, true).await;
        let client = cluster.client(&[0]).await;
        let opening = client.block("disk0").attach(AttachOptions::named("host"));
        let opening = opening.deadline(Duration::from_millis(500));
        let disk = opening.open().await.expect("attached");
        cluster.mood(0, Mood::Silent);
        let _pending = disk.write(0, "a");
        cluster.until(|world| world.mutations_seen == 1).await;
        if cancelled {
            let closing = tokio::time::timeout(Duration::from_millis(50), disk.close());
            assert!(closing.await.is_err(), "nobody answers");
        } else {
            let error = disk.close().await.expect_err("nobody answers");
            assert!(matches!(error, ReadError::Deadline { .. }), "{error:?}");
        }
        cluster.until(|world| world.holder.is_none()).await;
    }
}

#[tokio::test]
async fn a_close_gives_up_at_its_deadline() {
    let cluster = Cluster::start(1, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").deadline(Duration::from_millis(300));
    let log = log.open().await.expect("open");
    cluster.mood(0, Mood::Silent);
    let _pending = log.submit("a").await.expect("room");
    let error = log.close().await.expect_err("nobody answers");
    assert!(matches!(error, ReadError::Deadline { .. }), "{error:?}");
}

#[tokio::test]
async fn a_deleted_volume_ends_its_handles_and_tails() {
    let cluster = Cluster::start(2, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").open().await.expect("open");
    let mut tail = log.tail(Lsn(1));
    log.append("a").await.expect("committed");
    assert!(tail.next().await.expect("goes on").is_ok());
    cluster.lock().exists = false;
    cluster.depose();
    let ended = async {
        let late = log.append("b").await.expect_err("there is no volume");
        // It may have been sent before the stream ended.
        assert!(
            matches!(
                &late,
                AppendError::Refused(Refusal::NoSuchVolume)
                    | AppendError::Unknown {
                        cause: UnknownCause::SessionEnded(Refusal::NoSuchVolume),
                        ..
                    }
            ),
            "{late:?}"
        );
        let last = tail.next().await.expect("an error");
        assert_eq!(last, Err(ReadError::Refused(Refusal::NoSuchVolume)));
        assert!(tail.next().await.is_none());
    };
    let patience = Duration::from_secs(10);
    tokio::time::timeout(patience, ended).await.expect("told");
}

#[tokio::test]
async fn a_deadline_may_be_endless() {
    let cluster = Cluster::start(1, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").deadline(Duration::MAX);
    let log = log.open().await.expect("open");
    log.append("a").await.expect("committed");
    log.position().await.expect("a position");
    log.close().await.expect("closed");

    let cluster = Cluster::start(1, true).await;
    let client = cluster.client(&[0]).await;
    let disk = client
        .block("disk0")
        .attach(AttachOptions::named("host"))
        .deadline(Duration::MAX)
        .forwarding(Duration::from_secs(4));
    let disk = disk.open().await.expect("attached");
    disk.write(0, "a").await.expect("committed");
}

/// Its peer has other ways to the volume, and must not find it held by a handle that is gone.
#[tokio::test]
async fn a_forwarding_handle_that_is_dropped_in_an_outage_lets_go() {
    let cluster = Cluster::start(1, true).await;
    let client = cluster.client(&[0]).await;
    let disk = client
        .block("disk0")
        .attach(AttachOptions::named("host"))
        .forwarding(Duration::from_secs(4));
    let disk = disk.open().await.expect("attached");
    cluster.depose();
    drop(disk);
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.promote(0, None);
    cluster.until(|world| world.holder.is_none()).await;
}

#[tokio::test]
async fn an_attachment_that_was_not_heard_of_in_time_is_let_go() {
    let cluster = Cluster::start(1, true).await;
    let mut config = cluster.config(&[0]);
    config.open_deadline = Duration::from_millis(500);
    let client = Client::connect(config).await.expect("lives");
    cluster.mood(0, Mood::OpensUnheard);
    let opening = client.block("disk0").attach(AttachOptions::named("host"));
    let error = opening.open().await.expect_err("nothing is answered");
    assert!(matches!(error, OpenError::NoPrimary { .. }), "{error:?}");
    assert!(cluster.lock().holder.is_some(), "attached all the same");
    cluster.mood(0, Mood::Well);
    cluster.until(|world| world.holder.is_none()).await;
}
