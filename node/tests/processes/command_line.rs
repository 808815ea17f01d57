//! `mainstay up`, `down` and `node` as commands.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use mainstay_node::devcluster::{ClusterFile, NodeState, Signal, random_loopback};
use mainstay_node::processes;

use crate::Test;
use crate::support::{ended, kill, program, wait_for};

pub(crate) const TESTS: &[Test] = &[
    (
        "up_can_be_asked_and_stopped_from_outside",
        up_can_be_asked_and_stopped_from_outside,
    ),
    (
        "what_a_killed_up_left_is_stopped",
        what_a_killed_up_left_is_stopped,
    ),
    (
        "up_detached_returns_with_the_cluster_up",
        up_detached_returns_with_the_cluster_up,
    ),
    (
        "node_refuses_a_bad_file_and_says_why",
        node_refuses_a_bad_file_and_says_why,
    ),
    (
        "commands_without_a_cluster_say_what_to_do",
        commands_without_a_cluster_say_what_to_do,
    ),
];

fn command(args: &[&str], dir: &Path) -> Command {
    let mut command = Command::new(program());
    command
        .args(args)
        .arg("--dir")
        .arg(dir)
        .stdin(Stdio::null());
    command
}

fn run(args: &[&str], dir: &Path) -> (bool, String) {
    said(&command(args, dir).output().expect("started"))
}

fn said(output: &Output) -> (bool, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (
        output.status.success(),
        String::from_utf8(text).expect("text"),
    )
}

fn file(dir: &Path) -> Option<ClusterFile> {
    serde_json::from_str(&std::fs::read_to_string(ClusterFile::path(dir)).ok()?).ok()
}

/// A cluster of two data nodes and one witness in the foreground, once it is up.
fn foreground(dir: &Path) -> (Child, ClusterFile) {
    let host = random_loopback().to_string();
    let shape = ["up", "--nodes", "2", "--witnesses", "1", "--host", &host];
    let child = command(&shape, dir)
        .stdout(Stdio::null())
        .spawn()
        .expect("started");
    let file = wait_for("a running cluster", || {
        let file = file(dir)?;
        let up = file
            .nodes
            .iter()
            .all(|node| node.state == NodeState::Running);
        (up && dir.join("up.sock").exists()).then_some(file)
    });
    assert_eq!(file.up_pid, Some(child.id()));
    (child, file)
}

fn up_can_be_asked_and_stopped_from_outside() {
    // Longer than the path of a Unix socket may be.
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path().join("d".repeat(120));
    let (mut up, file_before) = foreground(&dir);
    let (ok, text) = run(&["up"], &dir);
    assert!(!ok && text.contains("a cluster runs in"), "{text}");

    let first = &file_before.nodes[0];
    kill(first.worker_pid.expect("runs"), Signal::KILL);
    wait_for("the end of node 1", || {
        matches!(file(&dir)?.nodes[0].state, NodeState::Exited { .. }).then_some(())
    });
    assert_eq!(
        run(&["up", "--restart", "1"], &dir),
        (true, "node 1 runs again\n".to_owned())
    );
    let (ok, text) = run(&["up", "--restart", "1"], &dir);
    assert!(!ok && text.contains("node 1 runs already"), "{text}");

    let (ok, text) = run(&["down"], &dir);
    assert!(
        ok && text.starts_with("stopped; the data is kept"),
        "{text}"
    );
    assert_eq!(ended(&mut up).code(), Some(0));
    let (ok, text) = run(&["down"], &dir);
    assert!(ok && text.starts_with("nothing runs in"), "{text}");
    let (ok, text) = run(&["up", "--restart", "1"], &dir);
    assert!(!ok && text.contains("no `mainstay up` runs in"), "{text}");
}

fn what_a_killed_up_left_is_stopped() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut up, before) = foreground(dir.path());
    kill(up.id(), Signal::KILL);
    ended(&mut up);
    let runs = |node: &mainstay_node::devcluster::NodeStatus| {
        let (pid, mark) = (node.worker_pid.expect("ran"), node.instance.expect("ran"));
        processes::runs(pid, &mark.to_string())
    };
    assert!(before.nodes.iter().all(runs), "nodes go on without `up`");
    let (mut up, after) = foreground_after(dir.path(), &before);
    assert!(
        !before.nodes.iter().any(runs),
        "the next `up` replaced them"
    );

    kill(up.id(), Signal::KILL);
    ended(&mut up);
    let (ok, text) = run(&["down"], dir.path());
    assert!(
        ok && text.contains("that an earlier `mainstay up` left"),
        "{text}"
    );
    assert!(!after.nodes.iter().any(runs));
}

/// As [`foreground`], where the file still says that the cluster `before` runs.
fn foreground_after(dir: &Path, before: &ClusterFile) -> (Child, ClusterFile) {
    let child = command(&["up"], dir)
        .stdout(Stdio::null())
        .spawn()
        .expect("started");
    let file = wait_for("a running cluster", || {
        let file = file(dir)?;
        let up = file
            .nodes
            .iter()
            .all(|node| node.state == NodeState::Running);
        (up && file.up_pid != before.up_pid).then_some(file)
    });
    (child, file)
}

fn up_detached_returns_with_the_cluster_up() {
    let dir = tempfile::tempdir().expect("a directory");
    // Its output is not a pipe of ours: the background process has its own.
    let host = random_loopback().to_string();
    let shape = ["up", "--nodes", "1", "--witnesses", "1", "--host", &host];
    let (ok, text) = run(&[&shape[..], &["--detach"]].concat(), dir.path());
    assert!(ok && text.starts_with("NODE  ROLES"), "{text}");
    let file = file(dir.path()).expect("cluster.json");
    assert!(text.contains(&file.nodes[0].grpc), "{text}");
    let (ok, text) = run(&["down"], dir.path());
    assert!(ok, "{text}");
    let (ok, text) = run(&["up", "--nodes", "2", "--detach"], dir.path());
    assert!(
        !ok && text.contains("holds a cluster of 1 data nodes and 1 witnesses on 127."),
        "{text}"
    );
}

fn mainstay(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("started")
}

fn node_refuses_a_bad_file_and_says_why() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("bad.toml");
    std::fs::write(&path, "cluster = \"a\"\nnodes = 3\n").expect("written");
    let path = path.to_str().expect("text");
    let output = mainstay(&["node", "--config", path]);
    assert_eq!(output.status.code(), Some(78));
    let (_, text) = said(&output);
    assert!(
        text.starts_with(&format!("{path}:2: nodes: unknown field `nodes`")),
        "{text}"
    );
    let (ok, text) = said(&mainstay(&["node", "--config", "/nonexistent"]));
    assert!(
        !ok && text.contains("/nonexistent: cannot be read"),
        "{text}"
    );
}

fn commands_without_a_cluster_say_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("text");
    let (ok, text) = said(&mainstay(&["down", "--dir", path]));
    assert!(
        !ok && text.contains("start one with `mainstay up`"),
        "{text}"
    );
    let (ok, text) = said(&mainstay(&["up", "--witnesses", "2", "--dir", path]));
    assert!(!ok && text.contains("odd number of witnesses"), "{text}");
}
