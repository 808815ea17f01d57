//! Processes that are killed: faults 1 to 6.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use mainstay_node::demo::cluster::LEDGER;
use mainstay_node::demo::faults::FaultKind;
use mainstay_node::devcluster::{NodeState, NodeStatus, Signal, Target};
use mainstay_types::NodeId;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::sleep;

use crate::rig::{
    NOTHING_FOR, ONE, PATIENCE, Rig, Setup, THREE, TWO, WITNESSES, progress, wait_for,
};

const ALL: [NodeId; 6] = [ONE, TWO, THREE, WITNESSES[0], WITNESSES[1], WITNESSES[2]];

/// Fault 1: once with a supervisor that reports it, once without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_is_replaced_under_load() {
    let rig = Rig::start().await;
    let load = rig.load().await;
    for kind in [FaultKind::Process, FaultKind::Machine] {
        let before = rig.primary().await;
        rig.stage
            .strike(kind, before.node)
            .await
            .expect("it is there");
        let after = rig.served_above(before.epoch).await;
        assert_ne!(after.node, before.node);
        progress(&load).await;
        rig.stage
            .recover(kind, before.node)
            .await
            .expect("it starts");
        rig.whole().await;
    }
    rig.end(load).await;
}

/// Fault 2: it leaves the membership, and comes back with everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_replica_leaves_catches_up_and_is_a_member_again() {
    let setup = Setup::new().config("[replication]\ndrop_after_ms = 500\n");
    let rig = setup.start().await;
    let load = rig.load().await;
    rig.kill(THREE).await;
    let members = wait_for("a smaller membership", PATIENCE, async || {
        let status = rig.stage.client.admin().show_volume(LEDGER).await.ok()?;
        (status.members.len() == 2).then_some(status.members)
    });
    let members = members.await;
    assert!(members.iter().all(|member| member.node != THREE));
    progress(&load).await;
    assert_eq!(rig.primary().await.node, ONE, "nothing was promoted");
    rig.restart(THREE).await;
    rig.whole().await;
    rig.prove(load, true).await;
    rig.stop().await;
}

/// Fault 3: writes need no witness, promotions need a majority of them, and `status` says which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_witnesses_writes_go_on_and_nothing_is_promoted() {
    let rig = Rig::start().await;
    let load = rig.load().await;
    let before = rig.primary().await;
    rig.kill(WITNESSES[0]).await;
    progress(&load).await;
    let (ok, text) = rig.mainstay(&["status"]).await;
    assert!(ok && text.contains("2 of 3 witnesses answer"), "{text}");
    for witness in &WITNESSES[1..] {
        rig.kill(*witness).await;
    }
    // Longer than every lease that was granted.
    let until = Instant::now() + NOTHING_FOR;
    while Instant::now() < until {
        progress(&load).await;
    }
    let status = rig.stage.own_view(before.node, LEDGER).await;
    let epoch = status.expect("its view").register.expect("known").epoch;
    assert_eq!(epoch, before.epoch.0, "no promotion");
    let (_, text) = rig.mainstay(&["status"]).await;
    assert!(
        text.contains("0 of 3 witnesses answer and 2 are needed"),
        "{text}"
    );

    rig.kill(before.node).await;
    let nobody = rig
        .stage
        .wait_serving(LEDGER, before.epoch, NOTHING_FOR)
        .await;
    assert!(nobody.is_err(), "promoted without witnesses: {nobody:?}");
    for witness in WITNESSES {
        rig.restart(witness).await;
    }
    let after = rig.served_above(before.epoch).await;
    assert_ne!(after.node, before.node);
    progress(&load).await;
    rig.restart(before.node).await;
    rig.end(load).await;
}

/// Fault 4: the whole cluster loses power at once, and comes back in one order and another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_killed_at_once_comes_back_in_any_order() {
    let rig = Rig::start().await;
    let load = rig.load().await;
    let mut backwards = ALL;
    backwards.reverse();
    let mixed = [WITNESSES[1], THREE, ONE, WITNESSES[2], TWO, WITNESSES[0]];
    for order in [ALL, backwards, mixed] {
        progress(&load).await;
        join_all(ALL.map(|node| rig.kill(node))).await;
        for node in order {
            rig.restart(node).await;
        }
        progress(&load).await;
        rig.whole().await;
    }
    rig.end(load).await;
}

/// Fault 5: whoever was just promoted, and whoever just starts, is killed again after a random moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_in_the_middle_of_promotion_recovery_and_catch_up_lose_nothing() {
    let rig = Rig::start().await;
    let load = rig.load().await;
    let mut random = StdRng::seed_from_u64(5);
    for _ in 0..5 {
        let first = rig.primary().await;
        rig.kill(first.node).await;
        // In the middle of the promotion: at this moment two are down, and nothing can commit until one is back.
        sleep(Duration::from_millis(random.random_range(0..60))).await;
        let others = [ONE, TWO, THREE].into_iter();
        let others: Vec<_> = others.filter(|node| *node != first.node).collect();
        let second = *others.choose(&mut random).expect("two are left");
        rig.kill(second).await;
        let early = Duration::from_millis(random.random_range(0..80));
        killed_while_it_starts(&rig, first.node, early).await;
        rig.restart(first.node).await;
        // In the middle of its catching up, or of the next promotion.
        sleep(Duration::from_millis(random.random_range(0..60))).await;
        rig.kill(first.node).await;
        tokio::join!(rig.restart(second), rig.restart(first.node));
        progress(&load).await;
        rig.whole().await;
    }
    rig.end(load).await;
}

/// Starts a node and kills it in the middle of its recovery: `early` after its worker was there.
async fn killed_while_it_starts(rig: &Rig, node: NodeId, early: Duration) {
    let strike = async {
        let started = |status: &NodeStatus| status.worker_pid.is_some();
        let started = rig.stage.dev.wait_for(node, PATIENCE, started).await;
        assert!(started, "node {node} has a worker");
        sleep(early).await;
        rig.kill(node).await;
    };
    // It may have answered before it was killed.
    let (_started, ()) = tokio::join!(rig.stage.dev.restart(node), strike);
}

/// Fault 6: for a while something is killed every few hundred milliseconds, and comes back by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_in_a_loop_lose_nothing_and_service_is_there_between_them() {
    let mut setup = Setup::new();
    setup.options.respawn = true;
    let rig = setup.start().await;
    let load = rig.load().await;
    let mut random = StdRng::seed_from_u64(6);
    let (began, mut kills) = (Instant::now(), 0);
    let acknowledged = load.gaps().count();
    while began.elapsed() < LOOP_FOR {
        sleep(Duration::from_millis(random.random_range(100..900))).await;
        let victim = *ALL.choose(&mut random).expect("six");
        let target = *[Target::Worker, Target::Both]
            .choose(&mut random)
            .expect("two");
        // One that is down already, or not yet up, is left alone.
        if rig
            .stage
            .dev
            .kill(victim, Signal::KILL, target)
            .await
            .is_ok()
        {
            kills += 1;
        }
    }
    assert!(kills > 10, "{kills} kills");
    assert!(load.gaps().count() > acknowledged, "service between them");
    let longest = load.gaps().longest(began, Instant::now());
    println!("{kills} kills in {LOOP_FOR:?}, longest gap {longest:?}");
    wait_for("all nodes", PATIENCE, async || {
        let nodes = rig.stage.dev.status().nodes;
        nodes
            .iter()
            .all(|node| node.state == NodeState::Running)
            .then_some(())
    })
    .await;
    rig.primary().await;
    progress(&load).await;
    rig.end(load).await;
}

const LOOP_FOR: Duration = Duration::from_secs(15);
