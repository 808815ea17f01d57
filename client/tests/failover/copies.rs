//! Reads that any copy may serve.

use mainstay_client::{Consistency, LogPage, ReadError, ReadLimits, Refusal};
use mainstay_types::Lsn;

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
