//! Tails: what their readers leave unread, and what they ask while nothing happens.

use std::time::Duration;

use mainstay_types::Lsn;

use super::next_texts;
use super::support::Cluster;

/// What nobody reads fills a connection's window; nothing else may have to pass through it.
#[tokio::test]
async fn tails_that_nobody_reads_hold_up_nothing_else() {
    let cluster = Cluster::start(1, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").open().await.expect("open");
    for _ in 0..200 {
        log.append(vec![7; 1 << 16]).await.expect("committed");
    }
    let unread = [log.tail(Lsn(1)), log.tail(Lsn(1)), log.tail(Lsn(1))];
    cluster.until(|world| world.opens.len() >= 4).await;
    // Until they have taken all that they take.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let appended = tokio::time::timeout(Duration::from_secs(5), log.append("a"));
    appended.await.expect("in time").expect("committed");
    for mut tail in unread {
        for lsn in 1..=201 {
            let record = tail.next().await.expect("goes on").expect("readable");
            assert_eq!(record.lsn, Lsn(lsn));
        }
    }
}

#[tokio::test]
async fn an_idle_tail_asks_seldom() {
    let cluster = Cluster::start(1, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").read_only().open().await.expect("open");
    let mut tail = log.tail(Lsn(1));
    let idle = tokio::time::timeout(Duration::from_millis(1500), tail.next());
    assert!(idle.await.is_err(), "nothing is in the log");
    let before = cluster.lock().questions;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let asked = cluster.lock().questions - before;
    assert!((1..=5).contains(&asked), "{asked} times in three seconds");
}

/// One copy has a record that does not read back; the tail gets it from another one, and goes on.
#[tokio::test]
async fn a_tail_gets_past_what_one_copy_does_not_read_back() {
    let cluster = Cluster::start(2, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").open().await.expect("open");
    for text in ["a", "b", "c"] {
        log.append(text).await.expect("committed");
    }
    cluster.lock().unreadable = Some((0, 2));
    let mut tail = log.tail(Lsn(1));
    assert_eq!(next_texts(&mut tail, 3).await, ["a", "b", "c"]);
    log.append("d").await.expect("committed");
    assert_eq!(next_texts(&mut tail, 1).await, ["d"]);
}
