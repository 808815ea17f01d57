//! Hooks of a planned switchover, with scripts that write down when they ran.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use mainstay_node::demo::cluster::LEDGER;
use mainstay_node::devcluster::{NodeState, NodeStatus, Signal, Target};
use mainstay_types::NodeId;

use crate::rig::{NOTHING_FOR, ONE, PATIENCE, Rig, Setup, TWO, progress, wait_for};

/// Writes down what it was told, of the log only. A promotion of node 1 fails, and one of node 2 waits for the file `go`; the
/// demotion of node 1 fails.
const HOOK: &str = r#"#!/bin/sh
cd "$1" || exit 2
[ "$MAINSTAY_VOLUME" = ledger ] || exit 0
echo "$2 $MAINSTAY_ROLE $MAINSTAY_NODE $MAINSTAY_EPOCH" >>ran
if [ "$MAINSTAY_NODE" = 1 ]; then
    echo "no luck with $2" >&2
    exit 1
fi
while [ "$MAINSTAY_NODE" = 2 ] && [ ! -e go ]; do
    sleep 0.02
done
"#;

/// What ran on a node for the log: hook, role, epoch.
fn ran(rig: &Rig, node: NodeId) -> Vec<(String, String, u64)> {
    let text = std::fs::read_to_string(rig.path().join("ran")).unwrap_or_default();
    let lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let own = lines.filter(|words| words[2] == node.to_string());
    own.map(|words| {
        let epoch = words[3].parse().expect("an epoch");
        (words[0].to_owned(), words[1].to_owned(), epoch)
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_in_order_and_a_new_primary_serves_once_its_own_has_ended() {
    assert_eq!(LEDGER, "ledger", "as the script has it");
    let setup = Setup::new();
    let script = setup.path().join("hook.sh");
    std::fs::write(&script, HOOK).expect("written");
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("executable");
    let command = |hook: &str| {
        let (script, dir) = (script.display(), setup.path().display());
        format!("{hook} = [\"{script}\", \"{dir}\", \"{hook}\"]\n")
    };
    let (promoted, demoted) = (command("promoted"), command("demoted"));
    let config = format!("[hooks]\n{promoted}{demoted}timeout_ms = 60000\n");
    let rig = setup.config(&config).start().await;
    let load = rig.load().await;
    let before = rig.primary().await;
    assert_eq!(before.node, ONE);

    let (ok, text) = rig.mainstay(&["promote", LEDGER, "--to", "2"]).await;
    assert!(ok, "{text}");
    wait_for("both hooks", PATIENCE, async || {
        let both = ran(&rig, ONE).len() >= 2 && !ran(&rig, TWO).is_empty();
        both.then_some(())
    })
    .await;
    // Its hook runs, and until it has ended nobody is served.
    let written = load.gaps().count();
    let nobody = rig.stage.wait_serving(LEDGER, before.epoch, NOTHING_FOR);
    assert!(nobody.await.is_err(), "it serves before its hook has ended");
    let late = load.gaps().count() - written;
    assert!(late <= 8, "{late} appends were answered meanwhile");

    std::fs::write(rig.path().join("go"), "").expect("written");
    let after = rig.served_above(before.epoch).await;
    assert_eq!(after.node, TWO);
    progress(&load).await;
    let told = |hook: &str, role: &str, epoch| (hook.to_owned(), role.to_owned(), epoch);
    let first = before.epoch.0;
    let expected = [
        told("promoted", "primary", first),
        told("demoted", "replica", first),
    ];
    assert_eq!(ran(&rig, ONE), expected);
    assert_eq!(ran(&rig, TWO), [told("promoted", "primary", after.epoch.0)]);
    // A hook that fails holds nobody up, and is told.
    for hook in ["promoted", "demoted"] {
        let failed = format!("the hook `{hook}` of epoch {first} failed");
        wait_for("an event", PATIENCE, async || {
            let (_, text) = rig.mainstay(&["events"]).await;
            let told = text.contains(&failed) && text.contains(&format!("no luck with {hook}"));
            told.then_some(())
        })
        .await;
    }

    // A node that stops in order ends only once its hook has run.
    rig.prove(load, false).await;
    let supervisor = rig.stage.dev.kill(TWO, Signal::TERM, Target::Supervisor);
    supervisor.await.expect("it is there");
    let gone = |node: &NodeStatus| matches!(node.state, NodeState::Exited { .. });
    assert!(rig.stage.dev.wait_for(TWO, PATIENCE, gone).await);
    let last = ran(&rig, TWO).pop().expect("hooks ran");
    assert_eq!((last.0.as_str(), last.1.as_str()), ("demoted", "replica"));
    rig.stop().await;
}
