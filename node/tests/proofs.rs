//! The history of a log is proved, and an altered one is found out, against a real cluster in this process.

mod support;

use std::path::PathBuf;

use mainstay_client::report::{CreateVolume, Promote};
use mainstay_client::{
    Admin, Client, ClientConfig, Consistency, Leaf, LogRecord, LogVolume, Peaks, ReadError,
    ReadLimits, Refusal, TreeHash, TreeRoot,
};
use mainstay_node::commands::log::{prove, root, verify};
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

/// The root that a reader computes who sees these records and nothing else.
fn root_of(records: &[LogRecord], size: u64) -> TreeRoot {
    let mut peaks = Peaks::default();
    for number in 1..=size {
        let lsn = Lsn(number);
        let shown = records.iter().find(|record| record.lsn == lsn);
        let leaf = shown.map_or(Leaf::Blank { lsn }, LogRecord::leaf);
        peaks.push(leaf.hash(), |_| {});
    }
    peaks.root()
}

/// The tree's file of a node that is stopped.
fn tree_file(cluster: &Cluster, node: u32) -> PathBuf {
    let volumes = cluster.data_dir(NodeId(node)).join("volumes");
    let copies = std::fs::read_dir(&volumes).expect("listed");
    let files = copies.map(|entry| entry.expect("an entry").path().join("tree"));
    let mut files: Vec<PathBuf> = files.filter(|path| path.exists()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

async fn audit(cluster: &Cluster, kept: Option<TreeRoot>) -> anyhow::Result<String> {
    let args = verify::Args {
        volume: "ledger".to_owned(),
        kept,
        roots_only: false,
        json: false,
    };
    let mut out = Vec::new();
    verify::run(&args, cluster.endpoints(), &mut out).await?;
    Ok(String::from_utf8(out).expect("text"))
}

/// Every copy has the same roots, which are those that a reader computes; they outlive failovers and restarts, lost files and damage.
#[tokio::test(flavor = "multi_thread")]
async fn every_copy_proves_the_same_history() {
    let mut cluster = Cluster::start().await;
    let (client, admin) = with_log(&cluster).await;
    let log = client.log("ledger").open().await.expect("open");
    log.append("a").await.expect("committed");
    log.append_batch(["b", "c", "d"]).await.expect("committed");
    let kept = log.root().await.expect("a root");
    let kept_records = read_from(&log, Lsn(1)).await;
    assert_eq!(kept, root_of(&kept_records, kept.size));

    for node in [1, 2, 3] {
        promote(&admin, node).await;
        for number in 0..40 {
            log.append(format!("{node}/{number}")).await.expect("room");
        }
        assert_eq!(log.root_at(kept.size).await, Ok(kept));
        let now = log.root().await.expect("a root");
        assert_eq!(now, root_of(&read_from(&log, Lsn(1)).await, now.size));
        let proof = log.prove_consistency(kept.size, now.size).await;
        assert_eq!(proof.expect("a proof").verify(&kept, &now), Ok(()));
    }
    let now = log.root().await.expect("a root");
    let any = log.with_consistency(Consistency::Committed);
    assert_eq!(any.root_at(now.size).await, Ok(now));
    let record = &read_from(&log, Lsn(1)).await[2];
    let proof = any.prove(record.lsn, now.size).await.expect("a proof");
    assert_eq!(proof.verify(&record.leaf(), &now), Ok(()));
    let altered = LogRecord {
        data: "altered".into(),
        ..record.clone()
    };
    assert!(proof.verify(&altered.leaf(), &now).is_err());

    // A restart goes on where the tree was synced; a file that is gone, or rotten, is made again from the log.
    let lose: [fn(PathBuf); 3] = [
        |_| {},
        |path| std::fs::remove_file(path).expect("removed"),
        |path| {
            let mut bytes = std::fs::read(&path).expect("read");
            bytes[8192..].fill(7);
            std::fs::write(&path, bytes).expect("written");
        },
    ];
    for (node, lose) in (1..).zip(lose) {
        cluster.stop(NodeId(node)).await;
        lose(tree_file(&cluster, node));
        cluster.restart(NodeId(node)).await;
        healed(&admin, "ledger", 3).await;
        promote(&admin, node).await;
        log.append("more").await.expect("committed");
        assert_eq!(log.root_at(kept.size).await, Ok(kept), "node {node}");
        assert_eq!(log.root_at(now.size).await, Ok(now), "node {node}");
        let told = audit(&cluster, Some(kept)).await.expect("verified");
        assert!(told.contains("nothing in positions 1 to"), "{told}");
    }
    cluster.shut_down().await;
}

/// What the commands say of good proofs and of altered ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_proof_file_needs_no_cluster_and_an_altered_history_is_named() {
    let cluster = Cluster::start().await;
    let (client, _admin) = with_log(&cluster).await;
    let log = client.log("ledger").open().await.expect("open");
    let committed = log.append("debit").await.expect("committed");
    for number in 0..20 {
        log.append(format!("{number}")).await.expect("committed");
    }
    let mut out = Vec::new();
    let args = root::Args {
        volume: "ledger".to_owned(),
        size: None,
        committed: false,
        json: true,
    };
    let told = root::run(&args, cluster.endpoints(), &mut out).await;
    told.expect("a root");
    let kept: TreeRoot = serde_json::from_slice(&out).expect("JSON");
    assert_eq!(log.root().await, Ok(kept));

    // Outlives the cluster.
    let dir = tempfile::tempdir().expect("a directory");
    let (record, grew) = (dir.path().join("record.json"), dir.path().join("grew.json"));
    let mut args = prove::Args {
        volume: "ledger".to_owned(),
        subject: prove::Subject::Position(committed.lsn),
        size: Some(kept.size),
        out: Some(record.clone()),
    };
    let proved = prove::run(&args, cluster.endpoints(), &mut Vec::new()).await;
    proved.expect("a proof");
    log.append("later").await.expect("committed");
    args = prove::Args {
        subject: prove::Subject::Since(kept.size),
        size: None,
        out: Some(grew.clone()),
        ..args
    };
    let proved = prove::run(&args, cluster.endpoints(), &mut Vec::new()).await;
    proved.expect("a proof");

    let told = audit(&cluster, Some(kept)).await.expect("verified");
    assert!(told.contains("22 records that readers are shown"), "{told}");
    let altered = TreeRoot {
        hash: TreeHash([7; 32]),
        ..kept
    };
    let error = audit(&cluster, Some(altered)).await.expect_err("altered");
    assert!(error.is::<verify::NotVerified>(), "{error:#}");
    assert!(
        format!("{error}").contains("the history was altered"),
        "{error}"
    );
    let longer = TreeRoot {
        size: kept.size + 1000,
        ..kept
    };
    let error = audit(&cluster, Some(longer)).await.expect_err("lost");
    assert!(format!("{error}").contains("it lost some"), "{error}");
    let none = log.prove(Lsn(kept.size + 1), kept.size).await;
    assert!(
        matches!(none, Err(ReadError::Refused(Refusal::BadRequest { .. }))),
        "{none:?}"
    );
    cluster.shut_down().await;

    // Nobody is there any more.
    for path in [&record, &grew] {
        let mut out = Vec::new();
        verify::file(path, &kept, false, &mut out).expect("verified");
        let told = String::from_utf8(out).expect("text");
        assert!(told.starts_with("verified: "), "{told}");
        let error = verify::file(path, &altered, false, &mut Vec::new()).expect_err("altered");
        assert!(error.is::<verify::NotVerified>(), "{error:#}");
        let error = verify::file(path, &longer, false, &mut Vec::new()).expect_err("other root");
        assert!(!error.is::<verify::NotVerified>(), "{error:#}");
    }
    let text = std::fs::read_to_string(&record).expect("read");
    std::fs::write(&record, text.replace("6465626974", "6465626975")).expect("written");
    let error = verify::file(&record, &kept, false, &mut Vec::new()).expect_err("altered");
    assert!(error.is::<verify::NotVerified>(), "{error:#}");
}

async fn append_much(log: &LogVolume, from: u64) {
    for batch in from..from + 20 {
        let record = |at: u64| format!("{batch}/{at}:{}", "x".repeat(40_000));
        let records: Vec<String> = (0..10).map(record).collect();
        log.append_batch(records).await.expect("committed");
    }
}

/// Old roots are proved consistent after the records are gone, also by a node that came when they were; a copy that cannot says so.
#[tokio::test(flavor = "multi_thread")]
async fn hashes_outlive_what_was_trimmed_and_a_blank_node_gets_them() {
    let volume = VolumeConfig {
        log_keep_bytes: 1 << 20,
        tail_bytes: 1 << 20,
        ..VolumeConfig::default()
    };
    let mut cluster = Cluster::with(3, 3, volume).await;
    let (client, admin) = with_log(&cluster).await;
    let log = client.log("ledger").open().await.expect("open");
    append_much(&log, 0).await;
    let kept = log.root().await.expect("a root");
    let early = read_from(&log, Lsn(1)).await[3].clone();
    promote(&admin, 1).await;
    cluster.stop(NodeId(3)).await;
    append_much(&log, 20).await;
    let second = log.position().await.expect("known").next;
    append_much(&log, 40).await;
    log.trim(second).await.expect("trimmed");
    let waited = tokio::time::timeout(PATIENCE, async {
        while admin
            .show_volume("ledger")
            .await
            .expect("shown")
            .first_lsn
            .0
            <= kept.size
        {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    waited.await.expect("segments are given back");

    cluster.wipe(NodeId(3));
    cluster.restart(NodeId(3)).await;
    healed(&admin, "ledger", 3).await;
    for node in [3, 2] {
        promote(&admin, node).await;
        let now = log.root().await.expect("a root");
        let proof = log.prove_consistency(kept.size, now.size).await;
        assert_eq!(proof.expect("a proof").verify(&kept, &now), Ok(()));
        let proof = log.prove(early.lsn, now.size).await.expect("a proof");
        assert_eq!(proof.verify(&early.leaf(), &now), Ok(()));
        let told = audit(&cluster, Some(kept)).await.expect("verified");
        assert!(told.contains("200 records"), "{told}");
        assert!(told.contains("were trimmed"), "{told}");
    }
    // The tree of one copy is lost, and its log begins too late to make another.
    cluster.stop(NodeId(3)).await;
    std::fs::remove_file(tree_file(&cluster, 3)).expect("removed");
    cluster.restart(NodeId(3)).await;
    healed(&admin, "ledger", 3).await;
    promote(&admin, 3).await;
    let root = log.root().await;
    let Err(ReadError::Refused(Refusal::TreeUnavailable { message })) = root else {
        panic!("{root:?}")
    };
    assert!(message.contains("this copy's log begins at"), "{message}");
    let any = log.with_consistency(Consistency::Committed);
    assert_eq!(any.root_at(kept.size).await, Ok(kept), "from another copy");
    cluster.shut_down().await;
}
