//! A volume whose history is replaced: nothing of a handle, a tail or a reader of the old one reaches the new one unnoticed.

use std::time::Duration;

use mainstay_client::{
    AppendError, AttachOptions, BlockVolume, Consistency, LogVolume, ReadError, ReadLimits,
    Refusal, UnknownCause, WriteError,
};
use mainstay_types::{Lineage, Lsn};

use super::next_texts;
use super::support::{Cluster, Mood};

const REPLACED: Refusal = Refusal::HistoryReplaced {
    lineage: Lineage(2),
};

async fn log_with(cluster: &Cluster, texts: &[&str]) -> LogVolume {
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").open().await.expect("open");
    for text in texts {
        log.append(text.to_string()).await.expect("committed");
    }
    log
}

async fn attached(cluster: &Cluster, name: &str) -> BlockVolume {
    let client = cluster.client(&[0]).await;
    let attach = AttachOptions::named(name);
    let opening = client.block("disk0").attach(attach);
    opening.open().await.expect("attached")
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    let patience = Duration::from_secs(5);
    tokio::time::timeout(patience, what).await.expect("in time")
}

/// A tail shows 1 to 5; a forced promotion goes on from a copy that ends at 3; two other records become 4 and 5, and a third one 6. A
/// tail that asked on from 6 would skip two records, and tell nobody.
#[tokio::test]
async fn a_tail_ends_with_the_history_that_it_showed() {
    let cluster = Cluster::start(2, false).await;
    let log = log_with(&cluster, &["a", "b", "c", "d", "e"]).await;
    let mut tail = log.tail(Lsn(1));
    assert_eq!(next_texts(&mut tail, 5).await, ["a", "b", "c", "d", "e"]);
    cluster.force(1, 3);
    let _new = log_with(&cluster, &["x", "y", "z"]).await;
    let last = soon(tail.next()).await.expect("an error");
    assert_eq!(last, Err(ReadError::Refused(REPLACED)));
    assert!(soon(tail.next()).await.is_none());
    // One that begins now, by a handle of then, shows nothing either.
    let mut late = log.tail(Lsn(1));
    let only = soon(late.next()).await.expect("an error");
    assert_eq!(only, Err(ReadError::Refused(REPLACED)));
}

/// A writer is idle, so that it may make its session anew; the volume is deleted and created anew under its name. What it appends next
/// was meant for the other one.
#[tokio::test]
async fn an_idle_writer_appends_nothing_to_a_volume_created_anew() {
    let cluster = Cluster::start(2, false).await;
    let log = log_with(&cluster, &["a"]).await;
    cluster.create_anew(1);
    let refused = soon(log.append("b")).await;
    let sent = matches!(
        &refused,
        Err(AppendError::Unknown { cause: UnknownCause::SessionEnded(why), .. }) if *why == REPLACED
    );
    assert!(
        sent || refused == Err(AppendError::Refused(REPLACED)),
        "{refused:?}"
    );
    assert_eq!(
        soon(log.append("c")).await,
        Err(AppendError::Refused(REPLACED))
    );
    let world = cluster.lock();
    assert!(world.log.is_empty() && world.sessions.is_empty());
}

/// The same of a disk: neither its blank blocks nor who may hold it are touched.
#[tokio::test]
async fn a_disk_created_anew_is_not_held_and_not_written() {
    let cluster = Cluster::start(2, true).await;
    let disk = attached(&cluster, "host").await;
    disk.write(0, "a").await.expect("committed");
    cluster.create_anew(1);
    assert_eq!(soon(disk.ended()).await, REPLACED);
    assert_eq!(
        soon(disk.write(0, "b")).await,
        Err(WriteError::Refused(REPLACED))
    );
    assert_eq!(
        soon(disk.read(0, 1)).await,
        Err(ReadError::Refused(REPLACED))
    );
    let world = cluster.lock();
    assert!(world.holder.is_none() && world.sessions.is_empty());
    assert_eq!(world.image[0], 0);
}

/// The append was under way when the history ended: nobody says that it is in the new one, or that it is not.
#[tokio::test]
async fn what_was_under_way_is_unknown() {
    let cluster = Cluster::start(2, false).await;
    let log = log_with(&cluster, &["a"]).await;
    cluster.mood(0, Mood::Silent);
    let pending = log.submit("b").await.expect("room");
    cluster.until(|world| world.mutations_seen == 2).await;
    cluster.force(1, 0);
    let ended = soon(pending).await;
    assert!(
        matches!(
            &ended,
            Err(AppendError::Unknown { cause: UnknownCause::SessionEnded(why), .. }) if *why == REPLACED
        ),
        "{ended:?}"
    );
    assert!(cluster.records().is_empty());
}

/// The reader has seen position 3, and the new volume ends at 1: it would ask for what no copy has, until its deadline, for ever.
#[tokio::test]
async fn a_reader_from_copies_hears_that_its_history_is_gone() {
    let cluster = Cluster::start(2, false).await;
    let log = log_with(&cluster, &["a", "b", "c"]).await;
    let copies = log.with_consistency(Consistency::Committed);
    let page = copies.read(Lsn(1), ReadLimits::default()).await;
    assert_eq!(page.expect("read").records.len(), 3);
    cluster.create_anew(1);
    let _new = log_with(&cluster, &["x"]).await;
    for _ in 0..2 {
        let page = soon(copies.read(Lsn(1), ReadLimits::default())).await;
        assert_eq!(page, Err(ReadError::Refused(REPLACED)));
    }
}

/// A hold that a forwarder had in the old history does not keep others out of the new one.
#[tokio::test]
async fn a_forwarder_lets_go_in_the_new_history() {
    let cluster = Cluster::start(2, true).await;
    let client = cluster.client(&[0]).await;
    let opening = client.block("disk0").attach(AttachOptions::named("host"));
    let opening = opening.forwarding(Duration::from_secs(4));
    let disk = opening.open().await.expect("attached");
    cluster.force(1, 0);
    assert_eq!(soon(disk.ended()).await, REPLACED);
    cluster.until(|world| world.holder.is_none()).await;
}

/// Nodes of a release that does not tell the history: any will do.
#[tokio::test]
async fn a_history_that_is_not_told_is_not_compared() {
    let cluster = Cluster::start(2, false).await;
    let log = log_with(&cluster, &["a"]).await;
    let mut tail = log.tail(Lsn(1));
    cluster.lock().lineage = 0;
    cluster.promote(1, None);
    log.append("b").await.expect("committed");
    let copies = log.with_consistency(Consistency::Committed);
    copies.position().await.expect("a position");
    assert_eq!(next_texts(&mut tail, 2).await, ["a", "b"]);
}
