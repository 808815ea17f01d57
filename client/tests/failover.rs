//! What callers rely on while primaries come and go: exactly once, in order, and never a guess.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the scripted cluster is small and checks nothing"
)]

#[path = "failover/copies.rs"]
mod copies;
#[path = "failover/histories.rs"]
mod histories;
#[path = "failover/sessions.rs"]
mod sessions;
mod support;
#[path = "failover/tails.rs"]
mod tails;

use std::time::Duration;

use mainstay_client::{
    AdminError, AppendError, AttachOptions, ClientEvent, OpenError, Outcome, OutcomeError,
    ReadLimits, Refusal, Tail, UnknownCause, WriteError, report,
};
use mainstay_types::{Epoch, Lsn, NodeId};
use support::{Cluster, Mood};

async fn next_texts(tail: &mut Tail, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        let record = tail.next().await.expect("goes on").expect("readable");
        texts.push(String::from_utf8_lossy(&record.data).into_owned());
    }
    texts
}

#[tokio::test]
async fn any_endpoint_leads_to_the_primary() {
    let cluster = Cluster::start(3, false).await;
    let client = cluster.client(&[2]).await;
    let log = client.log("ledger").open().await.expect("open");
    assert_eq!(log.append("one").await.expect("committed").lsn, Lsn(1));
    let page = log.read(Lsn(1), ReadLimits::default()).await.expect("read");
    assert_eq!((page.records.len(), page.next, page.end), (1, Lsn(2), true));
    let position = log.position().await.expect("position");
    assert_eq!((position.next, position.epoch), (Lsn(2), Epoch(1)));
    assert_eq!(client.admin().nodes().len(), 3, "the others were learned");
}

/// A node's own client goes over the wire only while the primary is elsewhere.
#[tokio::test]
async fn a_node_reaches_itself_without_a_socket() {
    let cluster = Cluster::start(2, false).await;
    let log = cluster.client_beside(0).await.log("ledger");
    let log = log.open().await.expect("open");
    log.append("here").await.expect("committed");
    cluster.promote(1, None);
    log.append("there").await.expect("committed");
    cluster.promote(0, None);
    log.append("here again").await.expect("committed");
    assert_eq!(cluster.records(), ["here", "there", "here again"]);
    let world = cluster.lock();
    assert_eq!((world.opens.len(), world.local_streams), (3, 2));
}

async fn lost_in_mid_stream(mood: Mood) {
    let cluster = Cluster::start(2, false).await;
    let client = cluster.client(&[0, 1]).await;
    let log = client.log("ledger").open().await.expect("open");
    log.append("a").await.expect("committed");
    cluster.mood(0, mood);
    let mut pending = Vec::new();
    for text in ["b", "c", "d"] {
        pending.push(log.submit(text).await.expect("room"));
    }
    let mut lsns = Vec::new();
    for append in pending {
        lsns.push(append.await.expect("committed").lsn.0);
    }
    assert_eq!(lsns, [2, 3, 4]);
    assert_eq!(cluster.records(), ["a", "b", "c", "d"]);
    let opens = cluster.lock().opens.clone();
    let generations: Vec<_> = opens.iter().map(|open| open.generation).collect();
    assert_eq!(generations, [1, 2], "a new stream is a new generation");
    assert_eq!((opens[1].first_unanswered, opens[1].create), (2, false));
}

#[tokio::test]
async fn a_stream_lost_before_the_commit_applies_once() {
    lost_in_mid_stream(Mood::DropsBefore).await;
}

/// The table already holds the first of the resent: `next_seq` is ahead of it, and it is answered with its first result.
#[tokio::test]
async fn a_stream_lost_after_the_commit_applies_once() {
    lost_in_mid_stream(Mood::DropsAfter).await;
}

/// The old primary takes requests, never answers, and does not know that it was deposed.
#[tokio::test]
async fn a_stale_primary_is_left_while_requests_wait() {
    let cluster = Cluster::start(3, false).await;
    let client = cluster.client(&[0]).await;
    let mut events = client.events();
    let log = client.log("ledger").open().await.expect("open");
    log.append("a").await.expect("committed");
    cluster.mood(0, Mood::Silent);
    let pending = log.submit("b").await.expect("room");
    cluster.until(|world| world.mutations_seen == 2).await;
    cluster.promote(1, Some(0));
    assert_eq!(pending.await.expect("committed").lsn, Lsn(2));
    assert_eq!(cluster.records(), ["a", "b"]);
    let (mut changed, mut resumed) = (false, false);
    while !resumed {
        match events.next().await.expect("client lives") {
            ClientEvent::PrimaryChanged {
                from, to, epoch, ..
            } => {
                changed = (from, to, epoch) == (NodeId(0), NodeId(1), Epoch(2));
            }
            ClientEvent::Resumed { replayed, gap, .. } => {
                resumed = replayed == 1 && gap < Duration::from_secs(5);
            }
            _ => {}
        }
    }
    assert!(changed);
}

/// A node that still believes in the old epoch, and is asked first, must not win over the newer one.
#[tokio::test]
async fn requests_wait_for_the_next_primary() {
    let cluster = Cluster::start(3, false).await;
    let client = cluster.client(&[0, 1, 2]).await;
    let log = client.log("ledger").open().await.expect("open");
    log.append("a").await.expect("committed");
    cluster.depose();
    let pending = log.submit("b").await.expect("room");
    let read = tokio::spawn({
        let log = log.clone();
        async move { log.read(Lsn(1), ReadLimits::default()).await }
    });
    cluster.promote(2, Some(0));
    assert_eq!(pending.await.expect("committed").lsn, Lsn(2));
    assert!(
        !read
            .await
            .expect("no panic")
            .expect("read")
            .records
            .is_empty()
    );
}

/// The stream is lost after the batch was committed: sent again, it is answered with its first result.
#[tokio::test]
async fn a_batch_is_one_mutation_across_a_lost_stream() {
    let cluster = Cluster::start(2, false).await;
    let client = cluster.client(&[0, 1]).await;
    let log = client.log("ledger").open().await.expect("open");
    log.append("a").await.expect("committed");
    for mood in [Mood::DropsAfter, Mood::DropsBefore] {
        cluster.mood(0, mood);
        let before = cluster.records().len() as u64;
        let batch = log.submit_batch(["b", "c", "d"]).await.expect("room");
        let single = log.submit("e").await.expect("room");
        let op = batch.op();
        let committed = batch.await.expect("committed");
        assert_eq!((committed.lsn, committed.count), (Lsn(before + 1), 3));
        assert_eq!(committed.last(), Lsn(before + 3));
        assert_eq!(single.await.expect("committed").lsn, Lsn(before + 4));
        let outcome = log.outcome(op).await.expect("settled");
        assert_eq!(outcome, Outcome::Committed(committed));
    }
    assert_eq!(
        cluster.records(),
        ["a", "b", "c", "d", "e", "b", "c", "d", "e"]
    );
}

#[tokio::test]
async fn what_cannot_be_one_batch_is_refused_before_it_is_sent() {
    let cluster = Cluster::start(1, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").open().await.expect("open");
    let refused = |result: Result<_, AppendError>| match result {
        Err(AppendError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let none: [&str; 0] = [];
    assert_eq!(refused(log.append_batch(none).await), Refusal::EmptyBatch);
    let many = Refusal::TooManyRecords { records_max: 4 };
    assert_eq!(refused(log.append_batch(["x"; 5]).await), many);
    let bytes_max = log.record_bytes_max();
    let half = vec![0; usize::try_from(bytes_max).expect("small") / 2 + 1];
    let large = Refusal::TooLarge { bytes_max };
    assert_eq!(refused(log.append_batch([half.clone(), half]).await), large);
    let late = log.append_batch_at(Lsn(9), ["x", "y"]).await;
    let taken = Refusal::UnexpectedPosition { next: Lsn(1) };
    assert_eq!(refused(late), taken);
    assert_eq!(
        log.append_batch_at(Lsn(1), ["x", "y"])
            .await
            .expect("committed")
            .count,
        2
    );
    assert_eq!(cluster.records(), ["x", "y"]);
}

#[tokio::test]
async fn a_tail_survives_failover_without_gap_or_repeat() {
    let cluster = Cluster::start(2, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").open().await.expect("open");
    let mut tail = log.tail(Lsn(1));
    log.append("a").await.expect("committed");
    log.append("b").await.expect("committed");
    assert_eq!(next_texts(&mut tail, 2).await, ["a", "b"]);
    cluster.promote(1, None);
    log.append("c").await.expect("committed");
    log.append("d").await.expect("committed");
    assert_eq!(next_texts(&mut tail, 2).await, ["c", "d"]);
}

#[tokio::test]
async fn a_passed_deadline_is_unknown_until_settled() {
    let cluster = Cluster::start(2, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").deadline(Duration::from_millis(300));
    let log = log.open().await.expect("open");
    cluster.mood(0, Mood::Silent);
    let error = log.append("a").await.expect_err("silent");
    let op = error.unknown_op().expect("unknown");
    assert!(matches!(
        error,
        AppendError::Unknown {
            cause: UnknownCause::Deadline { .. },
            ..
        }
    ));
    assert!(!error.is_retryable());
    assert!(matches!(
        log.outcome(op).await,
        Err(OutcomeError::Deadline { .. })
    ));
    cluster.promote(1, Some(0));
    let outcome = log.outcome(op).await.expect("settled");
    assert!(
        matches!(outcome, Outcome::Committed(c) if c.lsn == Lsn(1)),
        "{outcome:?}"
    );
    assert_eq!(cluster.records(), ["a"]);
    // Answered from what the handle remembers, or by the cluster: the same.
    assert_eq!(log.outcome(op).await.expect("settled"), outcome);
}

#[tokio::test]
async fn another_process_settles_an_operation_by_its_name() {
    let cluster = Cluster::start(1, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").open().await.expect("open");
    let pending = log.submit("a").await.expect("room");
    let op = pending.op();
    pending.await.expect("committed");
    drop(log);
    let other = cluster.client(&[0]).await;
    let patience = Duration::from_secs(5);
    let settled = other
        .outcome("ledger", op, patience)
        .await
        .expect("settled");
    assert!(matches!(settled, Outcome::Committed(c) if c.lsn == Lsn(1)));
    let never = mainstay_client::OpId { seq: 2, ..op };
    assert_eq!(
        other
            .outcome("ledger", never, patience)
            .await
            .expect("settled"),
        Outcome::Never
    );
}

#[tokio::test]
async fn no_more_is_in_flight_than_allowed() {
    let cluster = Cluster::start(1, false).await;
    let config = mainstay_client::ClientConfig {
        in_flight_requests_max: 2,
        ..cluster.config(&[0])
    };
    let client = mainstay_client::Client::connect(config)
        .await
        .expect("lives");
    let log = client.log("ledger").deadline(Duration::from_millis(200));
    let log = log.open().await.expect("open");
    cluster.mood(0, Mood::Silent);
    let _first = log.submit("a").await.expect("room");
    let _second = log.submit("b").await.expect("room");
    let third = log.submit("c").await.expect_err("no room");
    assert!(matches!(third, AppendError::NoRoom { .. }) && third.is_retryable());
    cluster.until(|world| world.mutations_seen == 2).await;
}

#[tokio::test]
async fn replies_out_of_order_reach_their_callers() {
    let cluster = Cluster::start(1, false).await;
    cluster.mood(0, Mood::Reverses);
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").open().await.expect("open");
    let mut pending = Vec::new();
    for text in ["a", "b", "c"] {
        pending.push(log.submit(text).await.expect("room"));
    }
    for (append, lsn) in pending.into_iter().zip(1..) {
        assert_eq!(append.await.expect("committed").lsn, Lsn(lsn));
    }
}

#[tokio::test]
async fn refusals_are_typed_and_leave_the_session_working() {
    let cluster = Cluster::start(1, false).await;
    let client = cluster.client(&[0]).await;
    let log = client.log("ledger").open().await.expect("open");
    let error = log.append_at(Lsn(9), "x").await.expect_err("not there yet");
    assert_eq!(
        error,
        AppendError::Refused(Refusal::UnexpectedPosition { next: Lsn(1) })
    );
    assert_eq!(
        log.append_at(Lsn(1), "a").await.expect("committed").lsn,
        Lsn(1)
    );
    let large = log.append(vec![0; 1 << 17]).await.expect_err("too large");
    assert!(matches!(
        large,
        AppendError::Refused(Refusal::TooLarge { .. })
    ));
    // Longer than any message may be: sent, it would end the stream, and each one after it.
    let huge = log.append_at(Lsn(2), vec![0; 65 << 20]).await;
    assert!(
        matches!(huge, Err(AppendError::Refused(Refusal::TooLarge { .. }))),
        "{huge:?}"
    );
    let reader = client.log("ledger").read_only().open().await.expect("open");
    assert_eq!(
        reader.append("x").await.expect_err("read-only"),
        AppendError::Refused(Refusal::ReadOnly)
    );
    assert_eq!(reader.position().await.expect("position").next, Lsn(2));
    log.clone().close().await.expect("closed");
    assert_eq!(
        log.append("b").await.expect_err("closed"),
        AppendError::Refused(Refusal::Closed)
    );
    assert!(matches!(
        client.block("ledger").open().await,
        Err(OpenError::Refused(Refusal::WrongKind))
    ));
    assert!(matches!(
        client.log("Not A Name").open().await,
        Err(OpenError::Name(_))
    ));
    cluster.lock().exists = false;
    assert!(matches!(
        client.log("ledger").open().await,
        Err(OpenError::Refused(Refusal::NoSuchVolume))
    ));
}

#[tokio::test]
async fn the_call_fixes_the_order_of_writes() {
    let cluster = Cluster::start(2, true).await;
    let client = cluster.client(&[1]).await;
    let disk = client.block("disk0").attach(AttachOptions::named("vm-1"));
    let disk = disk.open().await.expect("attached");
    assert_eq!(disk.info().size_bytes, 1 << 20);
    cluster.mood(0, Mood::DropsAfter);
    // The second is awaited first, the first not at all.
    let _first = disk.write(0, "aaaa");
    let second = disk.write(2, "bb");
    let third = disk.write_zeroes(3, 1, true);
    let fourth = disk.trim(0, 1);
    second.await.expect("committed");
    third.await.expect("committed");
    fourth.await.expect("committed");
    disk.flush().await.expect("flushed");
    assert_eq!(disk.read(0, 5).await.expect("read")[..], *b"\0ab\0\0");
    assert_eq!(cluster.lock().log.len(), 4, "each once");
    let beyond = disk
        .write((1 << 20) - 1, "xx")
        .await
        .expect_err("beyond the end");
    assert!(matches!(
        beyond,
        WriteError::Refused(Refusal::OutOfRange { .. })
    ));
    assert!(disk.read(u64::MAX, 2).await.is_err());
}

#[tokio::test]
async fn a_takeover_ends_the_attachment_before_it() {
    let cluster = Cluster::start(1, true).await;
    let client = cluster.client(&[0]).await;
    let attach = |name: &str, takeover| {
        let name = name.to_owned();
        client
            .block("disk0")
            .attach(AttachOptions { name, takeover })
    };
    let first = attach("vm-1", false).open().await.expect("attached");
    assert!(matches!(
        attach("vm-2", false).open().await,
        Err(OpenError::Refused(Refusal::AttachedElsewhere { name, .. })) if name == "vm-1"
    ));
    let second = attach("vm-2", true).open().await.expect("took over");
    // The first one's stream ends at its next write; on its way back it finds the volume held.
    cluster.mood(0, Mood::DropsBefore);
    let error = first.write(0, "x").await.expect_err("taken over");
    assert!(matches!(
        error,
        WriteError::Unknown {
            cause: UnknownCause::SessionEnded(Refusal::AttachedElsewhere { .. }),
            ..
        }
    ));
    let later = first.write(0, "y").await.expect_err("over");
    assert!(matches!(
        later,
        WriteError::Refused(Refusal::AttachedElsewhere { .. })
    ));
    second.write(0, "z").await.expect("committed");
    assert_eq!(cluster.records(), ["z"]);
}

/// H11. Its caller is told that nobody served the volume only when nothing of it can be on its way any more; nothing is sent again.
#[tokio::test]
async fn a_forwarding_handle_sends_nothing_that_is_too_old() {
    let cluster = Cluster::start(1, true).await;
    let client = cluster.client(&[0]).await;
    let disk = client
        .block("disk0")
        .attach(AttachOptions::named("host"))
        .deadline(Duration::from_secs(2))
        .forwarding(Duration::from_secs(4));
    let disk = disk.open().await.expect("attached");
    disk.write(0, "a").await.expect("committed");
    cluster.mood(0, Mood::Silent);
    let sent = tokio::time::Instant::now();
    let error = disk.write(0, "b").await.expect_err("nobody answers");
    assert!(sent.elapsed() >= Duration::from_secs(4), "too early");
    assert!(
        matches!(
            error,
            WriteError::Unknown {
                cause: UnknownCause::SessionEnded(Refusal::NotServed),
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(disk.ended().await, Refusal::NotServed);
    cluster.mood(0, Mood::Well);
    let error = disk.write(0, "c").await.expect_err("it is over");
    assert_eq!(error, WriteError::Refused(Refusal::NotServed));
    let next = client.block("disk0").attach(AttachOptions {
        name: "host".to_owned(),
        takeover: true,
    });
    let next = next.open().await.expect("attached");
    next.write(0, "d").await.expect("committed");
    assert_eq!(cluster.records(), ["a", "d"]);
}

/// H11. Its caller has gone, and may have sent the same through another node by the time that there is a primary again.
#[tokio::test]
async fn an_abandoned_handle_sends_nothing_more_and_lets_the_volume_go() {
    let cluster = Cluster::start(1, true).await;
    let client = cluster.client(&[0]).await;
    let attach = || client.block("disk0").attach(AttachOptions::named("host"));
    let disk = attach().open().await.expect("attached");
    disk.write(0, "a").await.expect("committed");
    cluster.depose();
    let parked = disk.write(0, "b");
    tokio::time::sleep(Duration::from_millis(100)).await;
    disk.abandon();
    let error = parked.await.expect_err("nobody served it");
    let ended = UnknownCause::SessionEnded(Refusal::Closed);
    assert!(
        matches!(&error, WriteError::Unknown { cause, .. } if *cause == ended),
        "{error:?}"
    );
    let closing = tokio::spawn(disk.clone().close());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!closing.is_finished(), "nobody has let it go");
    cluster.promote(0, None);
    let _refused = closing.await.expect("a task");
    assert!(cluster.lock().sessions.is_empty());
    assert_eq!(
        disk.write(0, "c").await,
        Err(WriteError::Refused(Refusal::Closed))
    );
    let next = attach().open().await.expect("attached");
    next.write(0, "d").await.expect("committed");
    assert_eq!(cluster.records(), ["a", "d"]);
}

/// What was sent may be answered for a moment; what was not is refused.
#[tokio::test]
async fn an_abandoned_handle_waits_for_what_is_on_its_way_but_not_for_long() {
    let cluster = Cluster::start(1, true).await;
    let client = cluster.client(&[0]).await;
    let disk = client.block("disk0").attach(AttachOptions::named("host"));
    let disk = disk.open().await.expect("attached");
    // Two are answered with a third, which does not come.
    cluster.mood(0, Mood::Reverses);
    let on_their_way = [disk.write(0, "a"), disk.write(0, "b")];
    cluster.until(|world| world.mutations_seen == 2).await;
    let begun = tokio::time::Instant::now();
    disk.abandon();
    let late = disk.write(0, "c").await;
    assert_eq!(late, Err(WriteError::Refused(Refusal::Closed)));
    assert!(begun.elapsed() < Duration::from_millis(900));
    for write in on_their_way {
        let ended = write.await;
        assert!(
            matches!(ended, Err(WriteError::Unknown { .. })),
            "{ended:?}"
        );
    }
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(disk.ended().await, Refusal::Closed);
    cluster.until(|world| world.sessions.is_empty()).await;
}

#[tokio::test]
async fn operators_get_plain_types_from_any_node_that_can_answer() {
    let cluster = Cluster::start(2, false).await;
    let client = cluster.client(&[0, 1]).await;
    let admin = client.admin();
    let volumes = admin.list_volumes().await.expect("the second node answers");
    assert_eq!(volumes[0].name, "ledger");
    assert_eq!(
        volumes[0].health,
        report::VolumeHealth::Unknown,
        "a later release's word"
    );
    let json = serde_json::to_value(&volumes[0]).expect("serializes");
    assert_eq!(json["epoch"], 4);
    let refused = admin
        .promote(report::Promote::planned("ledger"))
        .await
        .expect_err("behind");
    assert!(matches!(
        refused,
        AdminError::PromoteRefused(reason)
            if *reason == report::PromoteRefused::Behind { have: Lsn(3), need: Lsn(9) }
    ));
    let mut events = admin
        .events(report::EventFilter::default())
        .await
        .expect("a stream");
    let event = events.next().await.expect("one").expect("readable");
    assert_eq!((event.number, event.kind), (9, report::EventKind::Promoted));
    assert!(events.next().await.is_none());
}

/// A frozen machine: its kernel takes connections, and nothing ever answers.
#[tokio::test]
async fn a_frozen_node_does_not_hold_up_the_search() {
    let cluster = Cluster::start(2, false).await;
    let frozen = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut config = cluster.config(&[1]);
    let address = frozen.local_addr().expect("bound").to_string();
    config.endpoints.insert(0, address);
    config.ask_timeout = Duration::from_secs(60);
    let client = mainstay_client::Client::connect(config)
        .await
        .expect("one lives");
    let log = client.log("ledger").open().await.expect("open");
    log.append("a").await.expect("committed");
    cluster.promote(1, Some(0));
    assert_eq!(log.append("b").await.expect("committed").lsn, Lsn(2));
}
