//! A forced promotion: refused while it is not needed, says first what it costs, and leaves nothing of two histories mixed.

mod support;

use std::time::Duration;

use bytes::Bytes;
use mainstay_client::report::{CreateVolume, EventFilter, Promote, PromoteRefused, VolumeHealth};
use mainstay_client::{
    Admin, AdminError, AppendError, Client, ClientConfig, Consistency, LogVolume, ReadError,
    ReadLimits, Refusal, UnknownCause,
};
use mainstay_types::{Lsn, NodeId, VolumeKind};
use support::{Cluster, PATIENCE, healed};

const LEDGER: &str = "ledger";

async fn connect(cluster: &Cluster) -> Client {
    let config = ClientConfig::new(cluster.endpoints());
    Client::connect(config).await.expect("connected")
}

async fn append(log: &LogVolume, from: u32, to: u32) {
    for number in from..to {
        let record = Bytes::from(format!("record {number}"));
        log.append(record).await.expect("committed");
    }
}

async fn records(log: &LogVolume) -> Vec<String> {
    let (mut out, mut next) = (Vec::new(), Lsn(1));
    loop {
        let page = log.read(next, ReadLimits::default()).await.expect("read");
        let text = |data: &Bytes| String::from_utf8(data.to_vec()).expect("text");
        out.extend(page.records.iter().map(|record| text(&record.data)));
        if page.end {
            return out;
        }
        next = page.next;
    }
}

fn forced(accept_data_loss: bool, off: &[u32]) -> Promote {
    Promote {
        to: Some(NodeId(3)),
        force: true,
        accept_data_loss,
        declared_off: off.iter().copied().map(NodeId).collect(),
        min_copies: 1,
        ..Promote::planned(LEDGER)
    }
}

async fn refused(admin: &Admin, promote: Promote) -> PromoteRefused {
    match admin.promote(promote).await {
        Err(AdminError::PromoteRefused(refused)) => *refused,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_copy_goes_on_only_by_an_explicit_word_and_in_a_history_of_its_own() {
    let mut cluster = Cluster::start().await;
    let client = connect(&cluster).await;
    let admin = client.admin();
    admin
        .create_volume(CreateVolume {
            placement: [1, 2, 3].map(NodeId).to_vec(),
            ..CreateVolume::new(LEDGER, VolumeKind::Log)
        })
        .await
        .expect("created");
    healed(&admin, LEDGER, 3).await;
    let log = client.log(LEDGER).open().await.expect("open");
    append(&log, 0, 20).await;

    // Served: nothing is to be forced.
    let why = refused(&admin, forced(true, &[1, 2])).await;
    assert!(why.to_string().contains("without `--force`"), "{why}");

    // Node 3 misses ten records; then the two that have them are lost.
    cluster.stop(NodeId(3)).await;
    append(&log, 20, 30).await;
    let (old, mut old_tail) = (log.clone(), log.tail(Lsn(1)));
    while let Some(record) = old_tail.next().await {
        if record.expect("readable").data == "record 29" {
            break;
        }
    }
    cluster.stop_together(&[NodeId(1), NodeId(2)]).await;
    cluster.restart(NodeId(3)).await;

    let why = refused(&admin, forced(false, &[])).await;
    let PromoteRefused::WouldLose { not_fenced, to, .. } = &why else {
        panic!("{why}");
    };
    assert_eq!((not_fenced, *to), (&vec![NodeId(1), NodeId(2)], None));
    let why = refused(&admin, forced(true, &[1])).await;
    assert!(why.to_string().contains("--declare-off"), "{why}");

    let promoted = admin.promote(forced(true, &[1, 2])).await.expect("forced");
    assert_eq!(promoted.primary, NodeId(3));
    let certificate = promoted.certificate.expect("a certificate");
    assert!(certificate.forced && !certificate.nothing_lost);
    assert_eq!(certificate.doubt_to, None, "open-ended");
    healed_alone(&admin).await;
    let client = connect(&cluster).await;
    let log = client.log(LEDGER).open().await.expect("open");
    append(&log, 100, 110).await;
    let kept: Vec<u32> = (0..20).chain(100..110).collect();
    let kept: Vec<String> = kept.iter().map(|n| format!("record {n}")).collect();
    assert_eq!(records(&log).await, kept);

    // What began in the history before ends: the tail has shown what is no more.
    let last = old_tail.next().await.expect("an error");
    let is_replaced = |refusal: &Refusal| matches!(refusal, Refusal::HistoryReplaced { .. });
    assert!(
        matches!(&last, Err(ReadError::Refused(why)) if is_replaced(why)),
        "{last:?}"
    );
    refused_as_replaced(&old).await;
    let copies = old.with_consistency(Consistency::Committed);
    let read = copies.read(Lsn(1), ReadLimits::default()).await;
    assert!(
        matches!(&read, Err(ReadError::Refused(why)) if is_replaced(why)),
        "{read:?}"
    );

    // The others come back: what they hold is set aside, and they are fed anew.
    cluster.restart(NodeId(1)).await;
    cluster.restart(NodeId(2)).await;
    healed(&admin, LEDGER, 3).await;
    for node in [1, 2] {
        assert_eq!(cluster.set_aside(NodeId(node)).len(), 1, "node {node}");
        admin
            .promote(Promote {
                to: Some(NodeId(node)),
                ..Promote::planned(LEDGER)
            })
            .await
            .expect("moved");
        assert_eq!(records(&log).await, kept, "node {node}");
    }
    assert!(told(&admin).await, "no event says what was given up");
    cluster.shut_down().await;
}

async fn refused_as_replaced(log: &LogVolume) {
    let refused = log.append("of another history").await;
    let why = match &refused {
        Err(AppendError::Refused(why)) => Some(why),
        Err(AppendError::Unknown {
            cause: UnknownCause::SessionEnded(why),
            ..
        }) => Some(why),
        _ => None,
    };
    assert!(
        matches!(why, Some(Refusal::HistoryReplaced { .. })),
        "{refused:?}"
    );
}

/// A writer is idle while its log is deleted and created anew: it leaves nothing in the new one, not even its session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_created_anew_is_another_one() {
    let cluster = Cluster::of(1, 1).await;
    let client = connect(&cluster).await;
    let admin = client.admin();
    let create = || admin.create_volume(CreateVolume::new(LEDGER, VolumeKind::Log));
    create().await.expect("created");
    let old = client.log(LEDGER).open().await.expect("open");
    append(&old, 0, 3).await;
    admin.delete_volume(LEDGER, true).await.expect("deleted");
    create().await.expect("created");
    refused_as_replaced(&old).await;
    let log = client.log(LEDGER).open().await.expect("open");
    assert!(records(&log).await.is_empty());
    cluster.shut_down().await;
}

/// Waits until the only copy serves: it is short of copies, and says so.
async fn healed_alone(admin: &Admin) {
    let give_up = tokio::time::Instant::now() + PATIENCE;
    loop {
        let found = admin.show_volume(LEDGER).await.expect("shown");
        if found.authoritative && found.health == VolumeHealth::Degraded {
            return;
        }
        assert!(
            tokio::time::Instant::now() < give_up,
            "not served: {found:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn told(admin: &Admin) -> bool {
    let status = admin.status().await.expect("status");
    for node in status.nodes {
        let filter = EventFilter::default();
        let mut events = admin
            .events_of(&node.address, filter)
            .await
            .expect("events");
        while let Some(event) = events.next().await {
            let event = event.expect("an event");
            if event.message.contains("a new history begins") {
                return true;
            }
        }
    }
    false
}
