//! What a log promises its writers and readers, against a real cluster in this process.

mod support;

use std::io::Cursor;

use mainstay_client::report::{CreateVolume, Promote};
use mainstay_client::{
    Admin, AppendError, Client, ClientConfig, Consistency, LogRecord, LogVolume, OpenError,
    Outcome, ReadError, ReadLimits, Refusal, Retention, RetentionChange,
};
use mainstay_node::commands::log::{append, read, retain, trim};
use mainstay_node::commands::volume;
use mainstay_types::{Lsn, NodeId, VolumeKind};
use mainstay_volume::VolumeConfig;
use support::{Cluster, PATIENCE, healed};

async fn with_log(cluster: &Cluster) -> (Client, Admin) {
    let client = Client::connect(ClientConfig::new(cluster.endpoints()))
        .await
        .expect("connected");
    let admin = client.admin();
    let create = CreateVolume::new("ledger", VolumeKind::Log);
    admin.create_volume(create).await.expect("created");
    healed(&admin, "ledger", 3).await;
    (client, admin)
}

async fn promote(admin: &Admin, node: u32) {
    let to = Promote {
        to: Some(NodeId(node)),
        ..Promote::planned("ledger")
    };
    admin.promote(to).await.expect("promoted");
    healed(admin, "ledger", 3).await;
}

async fn records(log: &LogVolume) -> Vec<String> {
    let text = |data: &[u8]| String::from_utf8_lossy(data).into_owned();
    let (mut from, mut records) = (Lsn(1), Vec::new());
    loop {
        let page = log.read(from, ReadLimits::default()).await.expect("read");
        records.extend(page.records.iter().map(|record| text(&record.data)));
        if page.end {
            return records;
        }
        assert!(page.next > from, "stands still at {from}");
        from = page.next;
    }
}

async fn append_with(cluster: &Cluster, token: u64, text: &str) -> anyhow::Result<()> {
    let args = append::Args {
        token: Some(token),
        quiet: true,
        ..append::Args::new("ledger")
    };
    let input = Cursor::new(text.to_owned());
    append::run(&args, cluster.endpoints(), input, &mut Vec::new()).await
}

fn refused<T: std::fmt::Debug>(result: Result<T, AppendError>) -> Refusal {
    match result {
        Err(AppendError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

/// A newer writer fences the older one and those without a token, on every later primary, too; nobody loses what it was told.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_writer_takes_the_log_over_for_good() {
    let cluster = Cluster::start().await;
    let (client, admin) = with_log(&cluster).await;
    let old = client.log("ledger").token(1).open().await.expect("open");
    let plain = client.log("ledger").open().await.expect("open");
    let op = {
        let pending = old.submit("a").await.expect("room");
        let op = pending.op();
        pending.await.expect("committed");
        op
    };
    assert_eq!(
        refused(plain.append("no token").await),
        Refusal::FencedToken { current: 1 }
    );
    append_with(&cluster, 2, "b\n").await.expect("appended");
    let fenced = Refusal::FencedToken { current: 2 };
    assert_eq!(refused(old.append("late").await), fenced);
    assert_eq!(refused(old.append_batch(["late", "too"]).await), fenced);

    for node in [1, 2] {
        promote(&admin, node).await;
        assert_eq!(refused(old.append("late").await), fenced);
        assert_eq!(refused(plain.append("late").await), fenced);
        let outcome = old.outcome(op).await.expect("settled");
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    }
    let error = append_with(&cluster, 1, "c\n").await.expect_err("fenced");
    let text = format!("{error:#}");
    assert!(text.contains("token 2 has taken the log over"), "{text}");
    let open = client.log("ledger").token(1).open().await;
    let Err(OpenError::Refused(refusal)) = open else {
        panic!("{open:?}")
    };
    assert_eq!(refusal, fenced);
    append_with(&cluster, 2, "d\n").await.expect("appended");
    assert_eq!(records(&plain).await, ["a", "b", "d"]);
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_must_be_one_and_a_reader_has_none() {
    let cluster = Cluster::of(1, 1).await;
    let client = Client::connect(ClientConfig::new(cluster.endpoints()))
        .await
        .expect("connected");
    for builder in [
        client.log("ledger").token(0),
        client.log("ledger").token(3).read_only(),
    ] {
        let open = builder.open().await;
        let Err(OpenError::Refused(Refusal::BadRequest { message })) = open else {
            panic!("{open:?}")
        };
        assert!(message.contains("token"), "{message}");
    }
    cluster.shut_down().await;
}

/// Every record, page by page.
async fn all(log: &LogVolume, limits: ReadLimits, back: bool) -> Vec<LogRecord> {
    let mut records = Vec::new();
    let mut next = if back { Lsn(u64::MAX) } else { Lsn(1) };
    loop {
        let page = match back {
            false => log.read(next, limits).await,
            true => log.read_back(next, limits).await,
        };
        let page = page.expect("read");
        assert!(page.records.len() <= limits.records_max as usize);
        records.extend(page.records);
        if page.end {
            return records;
        }
        next = page.next;
    }
}

/// Records on the disk, none of them in memory: pages of any bound, both ways, and the search by time.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_read_both_ways_and_searched_by_time_on_the_disk() {
    let volume = VolumeConfig {
        tail_bytes: 0,
        ..VolumeConfig::default()
    };
    let cluster = Cluster::with(1, 1, volume).await;
    let client = Client::connect(ClientConfig::new(cluster.endpoints()))
        .await
        .expect("connected");
    let create = CreateVolume::new("ledger", VolumeKind::Log);
    client.admin().create_volume(create).await.expect("created");
    healed(&client.admin(), "ledger", 1).await;
    let log = client.log("ledger").open().await.expect("open");
    for batch in 0..60_usize {
        let record = |at: usize| format!("{batch}/{at}:{}", "x".repeat(batch * 37 % 5000));
        let records: Vec<String> = (0..20).map(record).collect();
        log.append_batch(records).await.expect("committed");
    }
    let whole = all(&log, ReadLimits::default(), false).await;
    assert_eq!(whole.len(), 1200);
    for (records_max, bytes_max) in [(1, 1 << 20), (7, 1 << 20), (4096, 3000), (1000, 200_000)] {
        let limits = ReadLimits {
            records_max,
            bytes_max,
        };
        assert!(all(&log, limits, false).await == whole, "{limits:?}");
        let mut back = all(&log, limits, true).await;
        back.reverse();
        assert!(back == whole, "backwards, {limits:?}");
    }
    for record in whole.iter().step_by(61) {
        let first = whole.iter().find(|r| r.timestamp_us >= record.timestamp_us);
        let found = log.find_by_timestamp(record.timestamp_us).await;
        let found = found.expect("searched").map(|found| found.lsn);
        assert_eq!(found, first.map(|record| record.lsn));
    }
    let newest = whole.last().expect("records").timestamp_us;
    assert_eq!(log.find_by_timestamp(newest + 1).await, Ok(None));
    let oldest = log.find_by_timestamp(0).await.expect("searched");
    assert_eq!(oldest.map(|found| found.lsn), Some(whole[0].lsn));

    let args = read::Args {
        reverse: true,
        limit: Some(2),
        since_us: Some(whole[1190].timestamp_us),
        ..read::Args::all("ledger")
    };
    let mut out = Vec::new();
    let printed = read::run(&args, cluster.endpoints(), &mut out).await;
    printed.expect("printed");
    let newest = [&whole[1199].data[..], b"\n", &whole[1198].data[..], b"\n"].concat();
    assert!(out == newest, "{} bytes", out.len());
    cluster.shut_down().await;
}

/// The last copy serves what it knows to be committed while there is no quorum, and nothing to a reader who has seen more.
#[tokio::test(flavor = "multi_thread")]
async fn any_copy_serves_what_is_committed_and_no_reader_goes_back() {
    let mut cluster = Cluster::start().await;
    let (client, admin) = with_log(&cluster).await;
    let log = client
        .log("ledger")
        .deadline(std::time::Duration::from_secs(3));
    let log = log.open().await.expect("open");
    let committed = log.with_consistency(Consistency::Committed);
    log.append_batch(["a", "b"]).await.expect("committed");
    assert_eq!(
        records(&committed).await,
        ["a", "b"],
        "what this handle wrote"
    );
    let other = client.log("ledger").read_only().open().await.expect("open");
    let other = other.with_consistency(Consistency::Committed);

    promote(&admin, 1).await;
    // Comes with the commit point of a primary that serves, so that whoever has it knows of everything that was shown so far.
    log.append("x").await.expect("committed");
    healed(&admin, "ledger", 3).await;
    cluster.stop(NodeId(3)).await;
    log.append("c").await.expect("committed");
    cluster.stop_together(&[NodeId(1), NodeId(2)]).await;
    cluster.restart(NodeId(3)).await;
    // Nobody is primary. A reader who has seen less is served...
    let served = records(&other).await;
    assert!(
        served == ["a", "b"] || served == ["a", "b", "x"],
        "{served:?}"
    );
    let position = other.position().await.expect("known");
    let found = other.find_by_timestamp(0).await.expect("searched");
    assert!(found.is_some_and(|found| found.lsn < position.next));
    let linear = log.read(Lsn(1), ReadLimits::default()).await;
    assert!(
        matches!(linear, Err(ReadError::Deadline { .. })),
        "{linear:?}"
    );
    // ...and one who has seen more is not.
    let back = committed.read(Lsn(1), ReadLimits::default()).await;
    assert!(matches!(back, Err(ReadError::Deadline { .. })), "{back:?}");

    cluster.restart(NodeId(1)).await;
    cluster.restart(NodeId(2)).await;
    healed(&admin, "ledger", 3).await;
    assert_eq!(records(&committed).await, ["a", "b", "x", "c"]);
    cluster.shut_down().await;
}

/// Settles once `what` is the log's first position; fails when that takes too long.
async fn begins_at(log: &LogVolume, what: impl Fn(u64) -> bool) -> u64 {
    let give_up = tokio::time::Instant::now() + PATIENCE;
    loop {
        let first = log.position().await.expect("known").first.0;
        if what(first) {
            return first;
        }
        assert!(tokio::time::Instant::now() < give_up, "begins at {first}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

/// What a policy lets go is trimmed, by whoever is primary; what it keeps stays; and the policy survives everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_keeps_what_its_policy_says_across_failovers_and_restarts() {
    let mut cluster = Cluster::start().await;
    let (client, admin) = with_log(&cluster).await;
    let log = client.log("ledger").open().await.expect("open");
    append_much(&log, 0).await;
    let end = log.position().await.expect("known").next.0;
    assert_eq!(
        begins_at(&log, |_| true).await,
        1,
        "nothing goes without a policy"
    );

    let mut said = Vec::new();
    let change = RetentionChange {
        bytes: Some(Some(2 << 20)),
        ..RetentionChange::default()
    };
    let endpoints = cluster.endpoints();
    let ran = retain::run("ledger", change, false, endpoints, &mut said).await;
    ran.expect("changed");
    let said = String::from_utf8(said).expect("text");
    assert_eq!(said, "log `ledger` keeps the newest 2 MiB of records\n");
    // 53 records of a little more than 40,000 bytes are 2 MiB.
    let by_bytes = begins_at(&log, |first| first > 1).await;
    assert!(
        (end - 90..=end - 53).contains(&by_bytes),
        "{by_bytes} of {end}"
    );
    let below = log.read(Lsn(1), ReadLimits::default()).await;
    assert!(
        matches!(below, Err(ReadError::Refused(Refusal::Trimmed { first })) if first.0 == by_bytes),
        "{below:?}"
    );
    let page = log.read(Lsn(by_bytes), ReadLimits::default()).await;
    let page = page.expect("read");
    let text = String::from_utf8_lossy(&page.records[0].data);
    assert!(text.contains("/0:"), "a batch is not cut: {}", &text[..10]);

    // Another primary goes on by the same policy.
    promote(&admin, 2).await;
    append_much(&log, 100).await;
    let end = log.position().await.expect("known").next.0;
    let later = begins_at(&log, |first| first + 90 >= end).await;
    assert!(later <= end - 53, "{later} of {end}");

    cluster
        .stop_together(&[NodeId(1), NodeId(2), NodeId(3)])
        .await;
    for node in 1..=3 {
        cluster.restart(NodeId(node)).await;
    }
    healed(&admin, "ledger", 3).await;
    let kept = log.retention().await.expect("known");
    assert_eq!((kept.age, kept.bytes), (None, Some(2 << 20)));

    // By age: everything is older than a second soon, whether anything follows or not.
    let second = Retention {
        age: Some(std::time::Duration::from_secs(1)),
        bytes: None,
    };
    log.set_retention(second).await.expect("committed");
    let last = log.append("old soon").await.expect("committed").lsn.0;
    let empty = begins_at(&log, |first| first > last).await;
    let page = log.read(Lsn(empty), ReadLimits::default()).await;
    assert!(page.expect("read").records.is_empty());
    // One bound changes, the other stays.
    let hour = RetentionChange {
        age: Some(Some(std::time::Duration::from_secs(3600))),
        ..RetentionChange::default()
    };
    log.change_retention(hour).await.expect("committed");
    log.append("young").await.expect("committed");
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    let page = log.read(Lsn(empty), ReadLimits::default()).await;
    assert_eq!(page.expect("read").records.len(), 1, "an hour is not over");
    let kept = Retention {
        age: Some(std::time::Duration::from_secs(3600)),
        bytes: None,
    };
    let shown = admin.show_volume("ledger").await.expect("shown");
    assert_eq!(
        (shown.first_shown_lsn.0, shown.retention),
        (empty, Some(kept))
    );
    cluster.shut_down().await;
}

/// What a log keeps can be said when it is made; it is part of what is shown of it at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_made_with_what_it_keeps() {
    let cluster = Cluster::start().await;
    let mut args = volume::Create::new("short", VolumeKind::Log);
    args.retention.bytes = Some(Some(1 << 20));
    let mut out = Vec::new();
    let created = volume::create(&args, cluster.endpoints(), &mut out).await;
    created.expect("created");
    let said = String::from_utf8(out).expect("text");
    assert!(
        said.contains("\nit keeps the newest 1 MiB of records\n"),
        "{said}"
    );
    // Made again, it is left as it is.
    args.retention.bytes = Some(None);
    args.json = true;
    let mut out = Vec::new();
    let again = volume::create(&args, cluster.endpoints(), &mut out).await;
    again.expect("the same");
    let shown: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
    assert_eq!(shown["existed"], true);
    assert_eq!(shown["volume"]["retention"]["bytes"], 1 << 20);
    let kind = VolumeKind::Block {
        size_bytes: 1 << 20,
    };
    let mut args = volume::Create::new("disk", kind);
    args.retention.bytes = Some(Some(1));
    let refused = volume::create(&args, cluster.endpoints(), &mut Vec::new()).await;
    let error = refused.expect_err("no log").to_string();
    assert!(error.contains("--retain-bytes"), "{error}");
    cluster.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_volume_has_nothing_to_retain() {
    let cluster = Cluster::start().await;
    let (client, admin) = with_log(&cluster).await;
    let kind = VolumeKind::Block {
        size_bytes: 1 << 20,
    };
    let create = CreateVolume::new("disk", kind);
    admin.create_volume(create).await.expect("created");
    let endpoints = cluster.endpoints();
    let change = RetentionChange {
        bytes: Some(Some(1)),
        ..RetentionChange::default()
    };
    let ran = retain::run("disk", change, false, endpoints, &mut Vec::new()).await;
    let error = format!("{:#}", ran.expect_err("refused"));
    assert!(error.contains("log"), "{error}");
    drop(client);
    cluster.shut_down().await;
}

async fn trim_below(cluster: &Cluster, lsn: u64) -> anyhow::Result<String> {
    let mut out = Vec::new();
    let below = trim::Below::Position(Lsn(lsn));
    trim::run("ledger", below, false, cluster.endpoints(), &mut out).await?;
    // Again, which changes nothing.
    let mut shown = Vec::new();
    trim::run("ledger", below, true, cluster.endpoints(), &mut shown).await?;
    let shown: serde_json::Value = serde_json::from_slice(&shown).expect("JSON");
    assert_eq!(
        shown,
        serde_json::json!({ "volume": "ledger", "first": lsn })
    );
    Ok(String::from_utf8(out).expect("text"))
}

async fn append_much(log: &LogVolume, from: u64) {
    for batch in from..from + 20 {
        let record = |at: u64| format!("{batch}/{at}:{}", "x".repeat(40_000));
        let records: Vec<String> = (0..10).map(record).collect();
        log.append_batch(records).await.expect("committed");
    }
}

/// Waits until the primary does not hold the first entries of the log any more.
async fn given_back(admin: &Admin) {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            let found = admin.show_volume("ledger").await.expect("shown");
            if found.first_lsn > Lsn(1) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    waited.await.expect("segments are given back");
}

/// A log is trimmed while a node is away: readers are shown nothing below, on every primary; the segments go; and the node, which comes
/// back blank, gets the state and the log that there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_trimmed_log_is_smaller_and_a_blank_node_gets_what_is_left() {
    let volume = VolumeConfig {
        log_keep_bytes: 1 << 20,
        tail_bytes: 1 << 20,
        ..VolumeConfig::default()
    };
    let mut cluster = Cluster::with(3, 3, volume).await;
    let (client, admin) = with_log(&cluster).await;
    let log = client.log("ledger").open().await.expect("open");
    append_much(&log, 0).await;
    promote(&admin, 1).await;
    cluster.stop(NodeId(3)).await;
    append_much(&log, 20).await;
    // Nothing is released while node 3 is a member and lags; then it is dropped.
    let second = log.position().await.expect("known").next;
    append_much(&log, 40).await;
    let error = trim_below(&cluster, 1 << 40)
        .await
        .expect_err("beyond the end");
    assert!(
        format!("{error:#}").contains("the next entry is"),
        "{error:#}"
    );
    let told = trim_below(&cluster, second.0).await.expect("trimmed");
    assert_eq!(told, format!("log `ledger` begins at position {second}\n"));
    let below = log.read(Lsn(1), ReadLimits::default()).await;
    let trimmed = ReadError::Refused(Refusal::Trimmed { first: second });
    assert_eq!(below, Err(trimmed.clone()));
    let whole = read_from(&log, second).await;
    assert_eq!(whole.len(), 200);
    given_back(&admin).await;

    cluster.wipe(NodeId(3));
    cluster.restart(NodeId(3)).await;
    healed(&admin, "ledger", 3).await;
    promote(&admin, 3).await;
    assert_eq!(log.read(Lsn(1), ReadLimits::default()).await, Err(trimmed));
    assert!(
        read_from(&log, second).await == whole,
        "from the copy of the node that was blank"
    );
    // The session of before, and its numbers, came with the state.
    log.append("more").await.expect("committed");
    assert_eq!(read_from(&log, second).await.len(), 201);
    promote(&admin, 2).await;
    assert_eq!(read_from(&log, second).await.len(), 201);
    cluster.shut_down().await;
}

async fn read_from(log: &LogVolume, first: Lsn) -> Vec<LogRecord> {
    let (mut records, mut next) = (Vec::new(), first);
    loop {
        let page = log.read(next, ReadLimits::default()).await.expect("read");
        records.extend(page.records);
        if page.end {
            return records;
        }
        next = page.next;
    }
}

/// Of an operation whose handle is gone, the cluster tells what its handle would have been told.
#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_is_the_whole_first_result() {
    let cluster = Cluster::start().await;
    let (client, _admin) = with_log(&cluster).await;
    let log = client.log("ledger").open().await.expect("open");
    let pending = log.submit_batch(["a", "b"]).await.expect("room");
    let op = pending.op();
    let committed = pending.await.expect("committed");
    assert!(committed.timestamp_us > 0);
    drop(log);
    let outcome = client.outcome("ledger", op, PATIENCE).await;
    assert_eq!(outcome.expect("settled"), Outcome::Committed(committed));
}
