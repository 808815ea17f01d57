//! Reads that any copy may serve.

use mainstay_client::{Consistency, LogPage, LogVolume, ReadError, ReadLimits, Refusal};
use mainstay_types::Lsn;

use super::next_texts;
use super::support::Cluster;

fn positions(page: &LogPage) -> Vec<u64> {
    page.records.iter().map(|record| record.lsn.0).collect()
}

/// A copy may have all that the handle has seen, and not the trim behind it.
#[tokio::test]
async fn what_was_told_to_be_trimmed_is_not_shown_by_a_copy_that_lags() {
    let cluster = Cluster::start(2, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").open().await.expect("open");
    for text in ["a", "b", "c"] {
        log.append(text).await.expect("committed");
    }
    let limits = ReadLimits::default();
    let any_copy = log.with_consistency(Consistency::Committed);
    let page = any_copy.read(Lsn(1), limits).await.expect("read");
    assert_eq!(positions(&page), [1, 2, 3]);

    cluster.lock().first = 2;
    let trimmed = Err(ReadError::Refused(Refusal::Trimmed { first: Lsn(2) }));
    assert_eq!(log.read(Lsn(1), limits).await, trimmed);
    cluster.lock().first = 1;
    assert_eq!(any_copy.read(Lsn(1), limits).await, trimmed);
    let found = any_copy.find_by_timestamp(0).await.expect("searched");
    assert_eq!(found.map(|record| record.lsn), Some(Lsn(2)));
    let page = any_copy.read(Lsn(2), limits).await.expect("read");
    assert_eq!(positions(&page), [2, 3]);
    let page = any_copy
        .read_back(Lsn(u64::MAX), limits)
        .await
        .expect("read");
    assert_eq!((positions(&page), page.end), (vec![3, 2], true));
    assert_eq!(any_copy.position().await.expect("position").first, Lsn(2));
}

/// What a read from any copy of `log` has to include.
async fn must_include(cluster: &Cluster, log: &LogVolume) -> u64 {
    let copies = log.with_consistency(Consistency::Committed);
    copies.position().await.expect("a position");
    cluster.lock().at_least
}

/// A copy that lags must not serve a handle that was told, by whatever answer, of more.
#[tokio::test]
async fn every_answer_counts_for_later_reads_from_copies() {
    let cluster = Cluster::start(1, false).await;
    let client = cluster.client(&[0]).await;
    let reader = || client.log("ledger").read_only().open();
    let by_flush = reader().await.expect("open");
    let by_tail = reader().await.expect("open");
    let log = client.log("ledger").open().await.expect("open");
    let op = log.submit("a").await.expect("room").op();
    log.outcome(op).await.expect("settled");
    assert_eq!(must_include(&cluster, &log).await, 1, "an outcome");
    log.append("b").await.expect("committed");
    by_flush.flush().await.expect("flushed");
    assert_eq!(must_include(&cluster, &by_flush).await, 2, "a flush");
    let mut tail = by_tail.tail(Lsn(1));
    assert_eq!(next_texts(&mut tail, 2).await, ["a", "b"]);
    assert_eq!(must_include(&cluster, &by_tail).await, 2, "a tail");
}

/// What a tail was told is trimmed is not shown by a copy that has not heard.
#[tokio::test]
async fn what_a_tail_was_told_to_be_trimmed_is_not_shown_again() {
    let cluster = Cluster::start(1, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").open().await.expect("open");
    for text in ["a", "b"] {
        log.append(text).await.expect("committed");
    }
    cluster.lock().first = 2;
    let trimmed = ReadError::Refused(Refusal::Trimmed { first: Lsn(2) });
    let told = log.tail(Lsn(1)).next().await;
    assert_eq!(told, Some(Err(trimmed.clone())));
    cluster.lock().first = 1;
    let copies = log.with_consistency(Consistency::Committed);
    let page = copies.read(Lsn(1), ReadLimits::default()).await;
    assert_eq!(page, Err(trimmed));
}
