//! Networks that break: faults 37 to 42. Every node has a network of its own, and the test is the router between them.
//!
//! Dropped packets are noticed by nobody at once, unlike killed processes: no connection is reset, every peer just falls silent.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use mainstay_node::demo::cluster::{DISK, LEDGER};
use mainstay_node::demo::ledger::LedgerLoad;
use mainstay_node::devcluster::Layout;
use mainstay_types::{Epoch, NodeId};
use tokio::time::sleep;

use crate::rig::{NOTHING_FOR, ONE, Rig, Setup, THREE, TWO, WITNESSES, program, progress};
use crate::sandbox::{command, elsewhere, text};

/// A silent member leaves the membership.
const DROP_AFTER: Duration = Duration::from_millis(1500);
const TOOLS: [&str; 2] = ["nft", "sysctl"];
const ALL: [NodeId; 6] = [ONE, TWO, THREE, WITNESSES[0], WITNESSES[1], WITNESSES[2]];

/// One network a node, all reached through this process's own.
struct Networks;

impl Networks {
    /// Makes them, and lets every node of `setup` start in its own.
    fn make(setup: &mut Setup) -> Self {
        command("mount", &["-t", "tmpfs", "none", "/run"]);
        command("sysctl", &["-q", "-w", "net.ipv4.ip_forward=1"]);
        for node in ALL {
            Self::make_one(node);
        }
        command("nft", &["add table ip faults"]);
        command(
            "nft",
            &[
                "add chain ip faults forward { type filter hook forward priority 0; policy accept; }",
            ],
        );
        let mut layout = Layout::open(setup.path(), setup.options.wanted).expect("a plan");
        for node in &mut layout.nodes {
            node.host = Some(address(node.id).parse().expect("an address"));
        }
        let plan = serde_json::to_vec(&layout).expect("a plan");
        std::fs::write(setup.path().join("layout.json"), plan).expect("written");
        setup.options.program = Self::starter(setup);
        Self
    }

    fn make_one(node: NodeId) {
        let (inside, outside) = (format!("n{node}"), format!("v{node}"));
        let inside = inside.as_str();
        let within = ["-n", inside];
        let ip = |args: &[&str]| command("ip", args);
        let at = |args: &[&str]| ip(&[&within[..], args].concat());
        ip(&["netns", "add", inside]);
        ip(&[
            "link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", inside,
        ]);
        let router = format!("10.77.{}.1", node.0);
        ip(&["addr", "add", &format!("{router}/24"), "dev", &outside]);
        ip(&["link", "set", &outside, "up"]);
        at(&[
            "addr",
            "add",
            &format!("{}/24", address(node)),
            "dev",
            "eth0",
        ]);
        at(&["link", "set", "lo", "up"]);
        at(&["link", "set", "eth0", "up"]);
        at(&["route", "add", "default", "via", &router]);
    }

    /// A program that starts a node in its network. The configuration's name says which.
    fn starter(setup: &Setup) -> std::path::PathBuf {
        let path = setup.path().join("start-node");
        let program = program();
        let script = format!(
            "#!/bin/sh\nid=$(basename \"$3\" .toml)\nexec ip netns exec \"n${{id#node-}}\" {} \"$@\"\n",
            text(&program)
        );
        std::fs::write(&path, script).expect("written");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("a program");
        path
    }

    /// From now on nothing gets from any of `from` to any of `to`.
    fn cut_one_way(&self, from: &[NodeId], to: &[NodeId]) {
        let mut rules = String::new();
        for (from, to) in from
            .iter()
            .flat_map(|from| to.iter().map(move |to| (from, to)))
        {
            let (from, to) = (address(*from), address(*to));
            writeln!(
                rules,
                "add rule ip faults forward ip saddr {from} ip daddr {to} drop"
            )
            .expect("a String takes everything");
        }
        command("nft", &[&rules]);
    }

    /// Nothing gets from one side to the other, either way.
    fn cut(&self, one: &[NodeId], other: &[NodeId]) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    fn heal(&self) {
        command("nft", &["flush chain ip faults forward"]);
    }
}

fn address(node: NodeId) -> String {
    format!("10.77.{}.2", node.0)
}

fn others(of: &[NodeId]) -> Vec<NodeId> {
    ALL.into_iter().filter(|node| !of.contains(node)).collect()
}

async fn start() -> (Rig, Networks) {
    let config = format!(
        "[replication]\ndrop_after_ms = {}\n",
        DROP_AFTER.as_millis()
    );
    let mut setup = Setup::new().config(&config);
    let networks = Networks::make(&mut setup);
    (setup.start().await, networks)
}

/// Faults 37, 38 and 40: the primary is cut off alone, with a witness, and in one direction only. The side with the quorum
/// goes on; the primary, which its clients still reach, acknowledges nothing more and serves no read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_cut_off_in_any_way_is_replaced_and_serves_nothing() {
    let name = "network::a_primary_cut_off_in_any_way_is_replaced_and_serves_nothing";
    if elsewhere(name, &TOOLS) {
        return;
    }
    let (rig, networks) = start().await;
    let (load, disk) = (rig.load().await, rig.disk_load(THREE).await);
    for cut in [
        "alone",
        "with a witness",
        "it hears nobody",
        "nobody hears it",
    ] {
        let before = rig.primary().await;
        let alone = [before.node];
        rig.move_disk(before.node).await;
        match cut {
            "alone" => networks.cut(&alone, &others(&alone)),
            "with a witness" => {
                let side = [before.node, WITNESSES[0]];
                networks.cut(&side, &others(&side));
            }
            "it hears nobody" => networks.cut_one_way(&others(&alone), &alone),
            _ => networks.cut_one_way(&alone, &others(&alone)),
        }
        let at = Instant::now();
        let after = rig.served_above(before.epoch).await;
        progress(&load).await;
        println!(
            "{cut}: served by node {} after {:?}",
            after.node,
            at.elapsed()
        );
        assert_ne!(after.node, before.node, "{cut}");
        if before.node != THREE {
            Rig::goes_on(&disk).await;
        }
        stays_away(&rig, before.node, before.epoch).await;
        networks.heal();
        Rig::goes_on(&disk).await;
        rig.whole().await;
        rig.stage.wait_whole(DISK).await.expect("whole again");
    }
    rig.disk_ends_equal(disk).await;
    rig.prove(load, true).await;
    rig.stop().await;
}

/// For longer than every lease it could hold, the node does not say that it serves the epoch that is over.
async fn stays_away(rig: &Rig, node: NodeId, epoch: Epoch) {
    let until = Instant::now() + NOTHING_FOR;
    while Instant::now() < until {
        let says = rig.stage.says_it_serves(node, LEDGER).await;
        // Its lease may end a moment later than another serves: but only for reads of what was committed by then.
        assert!(
            says.is_none_or(|serving| serving.epoch > epoch),
            "node {node} serves beside another: {says:?}"
        );
        sleep(Duration::from_millis(50)).await;
    }
}

/// Faults 39 and 41: the primary and one replica are cut from each other though both see every witness; a witness is alone.
/// Nobody needs to be replaced, and what was cut off comes back by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_or_a_witness_cut_off_stops_nobody() {
    let name = "network::a_replica_or_a_witness_cut_off_stops_nobody";
    if elsewhere(name, &TOOLS) {
        return;
    }
    let (rig, networks) = start().await;
    let (load, disk) = (rig.load().await, rig.disk_load(TWO).await);
    let before = rig.primary().await;
    rig.move_disk(before.node).await;

    networks.cut(&[before.node], &[THREE]);
    let until = Instant::now() + NOTHING_FOR;
    while Instant::now() < until {
        progress(&load).await;
        Rig::goes_on(&disk).await;
    }
    assert_eq!(rig.primary().await, before, "not for one replica");
    networks.heal();
    rig.whole().await;

    networks.cut(&[WITNESSES[2]], &others(&[WITNESSES[2]]));
    let until = Instant::now() + NOTHING_FOR;
    while Instant::now() < until {
        progress(&load).await;
    }
    assert_eq!(rig.primary().await, before, "not for one witness");
    // The two that are left are enough for a promotion.
    rig.kill(before.node).await;
    let after = rig.served_above(before.epoch).await;
    progress(&load).await;
    Rig::goes_on(&disk).await;
    networks.heal();
    rig.restart(before.node).await;
    rig.whole().await;

    // The primary sees all witnesses and no member: it can commit nothing, so it must not keep the volume (trap H3). One of the
    // members it has not heard for a while already, and would drop soon: then the other could replace nobody.
    let members = [ONE, TWO, THREE].into_iter();
    let members: Vec<NodeId> = members.filter(|node| *node != after.node).collect();
    networks.cut(&[after.node], &members[..1]);
    sleep(DROP_AFTER / 2).await;
    networks.cut(&[after.node], &members[1..]);
    let last = rig.served_above(after.epoch).await;
    assert_ne!(last.node, after.node);
    progress(&load).await;
    stays_away(&rig, after.node, after.epoch).await;
    networks.heal();
    rig.whole().await;
    rig.disk_ends_equal(disk).await;
    rig.prove(load, true).await;
    rig.stop().await;
}

/// Fault 42: a link comes and goes, first that of one node, then that of whoever is primary. Nothing is lost, and service is
/// there whenever the link is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flapping_link_loses_nothing() {
    let name = "network::a_flapping_link_loses_nothing";
    if elsewhere(name, &TOOLS) {
        return;
    }
    let (rig, networks) = start().await;
    let (load, disk) = (rig.load().await, rig.disk_load(THREE).await);
    let first = rig.primary().await;
    rig.move_disk(first.node).await;
    flap(&rig, &networks, &load, async || first.node).await;
    let replaced = rig.primary().await;
    // After that the flapping node is a replica, and its link is nobody's concern.
    assert_eq!(replaced.epoch, first.epoch.next(), "one promotion");
    let began = Instant::now();
    flap(&rig, &networks, &load, async || rig.primary().await.node).await;
    let took = began.elapsed();
    let promotions = rig.primary().await.epoch.0 - replaced.epoch.0;
    println!("the primary's link: {promotions} promotions in {took:?}");
    rig.whole().await;
    rig.disk_ends_equal(disk).await;
    rig.end(load).await;
}

/// Cuts a node off four times for a second each.
async fn flap(rig: &Rig, networks: &Networks, load: &LedgerLoad, victim: impl AsyncFn() -> NodeId) {
    for _ in 0..4 {
        let victim = [victim().await];
        networks.cut(&victim, &others(&victim));
        sleep(Duration::from_secs(1)).await;
        networks.heal();
        progress(load).await;
        rig.primary().await;
    }
}
