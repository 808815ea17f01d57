//! The external fence: a script plays the power switch. Fault 1 with one that does not answer at first.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use mainstay_node::demo::cluster::LEDGER;
use mainstay_types::NodeId;

use crate::rig::{NOTHING_FOR, ONE, PATIENCE, Rig, Setup, THREE, TWO, progress, wait_for};

/// A switch that answers once the file `answers` is there, and writes down whom it struck in `struck`.
const SWITCH: &str = r#"#!/bin/sh
cd "$1" || exit 2
if [ ! -e answers ]; then
    echo no answer from the switch >&2
    exit 1
fi
echo "$MAINSTAY_VOLUME $MAINSTAY_NODE $MAINSTAY_EPOCH $MAINSTAY_INSTANCE $MAINSTAY_ADDRESS" >>struck
echo the outlet is off
"#;

fn switch(dir: &Path) -> PathBuf {
    let path = dir.join("switch.sh");
    std::fs::write(&path, SWITCH).expect("written");
    std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("executable");
    path
}

fn struck(rig: &Rig) -> Vec<String> {
    let text = std::fs::read_to_string(rig.path().join("struck")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

async fn says(rig: &Rig, args: &[&str], what: &str) -> String {
    wait_for(what, PATIENCE, async || {
        let (_, text) = rig.mainstay(args).await;
        text.contains(what).then_some(text)
    })
    .await
}

/// A cluster with that switch, which does not answer yet.
async fn switched() -> Rig {
    let setup = Setup::new();
    let (dir, script) = (setup.path().to_owned(), switch(setup.path()));
    let config = format!(
        "[fence]\ncommand = [\"{}\", \"{}\"]\ntimeout_ms = 2000\n",
        script.display(),
        dir.display()
    );
    setup.config(&config).start().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_promoted_until_the_lost_machine_is_switched_off() {
    let rig = switched().await;
    let load = rig.load().await;

    // A switchover in order leaves every machine on.
    let moved = rig.stage.move_primary(LEDGER, TWO).await;
    moved.expect("a planned switchover");
    progress(&load).await;
    let moved = rig.stage.move_primary(LEDGER, ONE).await;
    moved.expect("a planned switchover");
    let before = rig.primary().await;
    let instance = rig.stage.node(ONE).expect("known").instance;
    rig.kill(ONE).await;
    says(&rig, &["events"], "no answer from the switch").await;
    let nobody = rig.stage.wait_serving(LEDGER, before.epoch, NOTHING_FOR);
    let nobody = nobody.await;
    assert!(nobody.is_err(), "promoted without a fence: {nobody:?}");
    assert_eq!(struck(&rig), Vec::<String>::new());

    std::fs::write(rig.path().join("answers"), "").expect("written");
    let after = rig.stage.wait_serving(LEDGER, before.epoch, PATIENCE).await;
    let after = after.expect("served again");
    assert_ne!(after.node, ONE);
    progress(&load).await;
    let told = says(&rig, &["explain", LEDGER], "the outlet is off").await;
    assert!(told.contains("outside   node 1: "), "{told}");
    let line = struck(&rig).swap_remove(0);
    let told: Vec<&str> = line.split(' ').collect();
    let epoch = before.epoch.to_string();
    let instance = instance.expect("it ran").to_string();
    assert_eq!(told[..4], [LEDGER, "1", &epoch, &instance]);
    assert!(told[4].starts_with("127."), "{line}");

    // The machine is on again: it is a member like any other, and nobody strikes it a second time.
    rig.restart(ONE).await;
    rig.whole().await;
    let others: Vec<String> = struck(&rig);
    let only_one = |line: &String| line.split(' ').nth(1) == Some(&NodeId(1).to_string());
    assert!(others.iter().all(only_one), "{others:?}");
    rig.end(load).await;
}

/// C7: a switch is as good as an operator's word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_promotion_switches_off_who_did_not_promise_to_be_silent() {
    let rig = switched().await;
    let before = rig.primary().await;
    rig.kill(ONE).await;
    rig.kill(TWO).await;
    let force = [
        "promote",
        LEDGER,
        "--to",
        "3",
        "--force",
        "--accept-data-loss",
        "--min-copies",
        "1",
    ];
    let (ok, text) = rig.mainstay(&force).await;
    assert!(!ok && text.contains("no answer from the switch"), "{text}");
    assert!(text.contains("--declare-off"), "{text}");

    std::fs::write(rig.path().join("answers"), "").expect("written");
    let (ok, text) = rig.mainstay(&force).await;
    assert!(ok, "{text}");
    let after = rig.served_above(before.epoch).await;
    assert_eq!(after.node, THREE);
    let told = says(&rig, &["explain", LEDGER], "the outlet is off").await;
    assert!(told.contains("node 2 fenced from outside"), "{told}");
    let nodes: Vec<String> = struck(&rig)
        .iter()
        .filter_map(|line| Some(line.split(' ').nth(1)?.to_owned()))
        .collect();
    assert!(nodes.contains(&"1".to_owned()) && nodes.contains(&"2".to_owned()));
    assert!(!nodes.contains(&"3".to_owned()), "{nodes:?}");
    rig.stop().await;
}
