//! What a log promises its writers and readers, against a real cluster in this process.

mod support;

use std::io::Cursor;

use mainstay_client::report::{CreateVolume, Promote};
use mainstay_client::{
    Admin, AppendError, Client, ClientConfig, LogVolume, OpenError, Outcome, ReadLimits, Refusal,
};
use mainstay_node::commands::log::append;
use mainstay_types::{Lsn, NodeId, VolumeKind};
use support::{Cluster, healed};

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
    let page = log.read(Lsn(1), ReadLimits::default()).await.expect("read");
    let text = |data: &[u8]| String::from_utf8_lossy(data).into_owned();
    page.records.iter().map(|r| text(&r.data)).collect()
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
