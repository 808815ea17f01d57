//! Development clusters through the library.

use std::path::Path;
use std::time::Duration;

use mainstay_node::devcluster::{
    ClusterFile, DevCluster, DevError, LayoutError, NodeState, Options, Signal, Target, Wanted,
};
use mainstay_node::processes;
use mainstay_types::NodeId;

use crate::fakes::{DEAF, REPORTS};
use crate::support::{lines, program, wanted};
use crate::{Test, fakes};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_killed_node_stays_dead_until_it_is_asked_for",
        a_killed_node_stays_dead_until_it_is_asked_for,
    ),
    (
        "the_loss_of_a_machine_is_reported_by_nobody",
        the_loss_of_a_machine_is_reported_by_nobody,
    ),
    (
        "a_node_goes_on_without_its_supervisor",
        a_node_goes_on_without_its_supervisor,
    ),
    (
        "with_respawn_a_killed_node_comes_back",
        with_respawn_a_killed_node_comes_back,
    ),
    (
        "a_cluster_keeps_its_data_ids_and_ports",
        a_cluster_keeps_its_data_ids_and_ports,
    ),
    ("one_directory_is_run_once", one_directory_is_run_once),
    (
        "a_node_that_does_not_start_shows_its_log",
        a_node_that_does_not_start_shows_its_log,
    ),
    ("a_frozen_node_is_stopped_too", a_frozen_node_is_stopped_too),
    (
        "a_dropped_cluster_leaves_no_process",
        a_dropped_cluster_leaves_no_process,
    ),
];

const ONE: NodeId = NodeId(1);
const PATIENCE: Duration = Duration::from_secs(30);

/// Two data nodes and a witness in a new directory; in a used one, what is there.
fn wanted_at(dir: &Path) -> Wanted {
    if dir.join("layout.json").exists() {
        Wanted::default()
    } else {
        wanted(2, 1)
    }
}

fn options(dir: &Path) -> Options {
    Options {
        wanted: wanted_at(dir),
        program: program(),
        ..Options::new(dir).expect("options")
    }
}

/// Runs `test` with a directory, on the runtime that `mainstay up` uses.
fn with_dir<F: Future<Output = ()>>(test: impl FnOnce(tempfile::TempDir) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(test(tempfile::tempdir().expect("a directory")));
}

fn on_disk(dir: &Path) -> ClusterFile {
    let text = std::fs::read_to_string(ClusterFile::path(dir)).expect("cluster.json");
    serde_json::from_str(&text).expect("well formed")
}

async fn exited(cluster: &DevCluster, id: NodeId) -> String {
    let gone = |node: &mainstay_node::devcluster::NodeStatus| {
        matches!(node.state, NodeState::Exited { .. })
    };
    assert!(
        cluster.wait_for(id, PATIENCE, gone).await,
        "node {id} still runs"
    );
    match cluster.node(id).expect("known").state {
        NodeState::Exited { reason } => reason,
        other => panic!("{other:?}"),
    }
}

fn a_killed_node_stays_dead_until_it_is_asked_for() {
    with_dir(|dir| async move {
        let cluster = DevCluster::start(options(dir.path())).await.expect("up");
        let file = on_disk(dir.path());
        assert_eq!(file, cluster.status());
        assert!(
            file.nodes
                .iter()
                .all(|node| node.state == NodeState::Running)
        );
        let before = cluster.node(ONE).expect("known");
        let worker = before.worker_pid.expect("a worker");
        assert!(processes::runs(
            worker,
            &before.instance.expect("known").to_string()
        ));

        assert!(matches!(
            cluster.restart(ONE).await,
            Err(DevError::NodeRuns(_))
        ));
        cluster
            .kill(ONE, Signal::KILL, Target::Worker)
            .await
            .expect("sent");
        assert_eq!(exited(&cluster, ONE).await, "killed by signal 9");
        let dead = on_disk(dir.path()).node(ONE).cloned().expect("known");
        assert_eq!((dead.worker_pid, dead.supervisor_pid), (None, None));
        let reports = lines(&dead.data_dir.join(REPORTS));
        assert_eq!(
            reports,
            [format!("1 {} gone", before.instance.expect("known"))]
        );
        let killed = cluster.kill(ONE, Signal::KILL, Target::Both).await;
        assert!(matches!(killed, Err(DevError::NoProcess(_))));

        cluster.restart(ONE).await.expect("runs again");
        let after = cluster.node(ONE).expect("known");
        assert_ne!(after.worker_pid, before.worker_pid);
        assert_eq!(after.grpc, before.grpc);
        let unknown = cluster.restart(NodeId(7)).await.expect_err("no such node");
        assert!(
            unknown.to_string().contains("its nodes are 1, 2, 101"),
            "{unknown}"
        );
        cluster.stop().await;
        let stopped = on_disk(dir.path());
        assert_eq!(stopped.up_pid, None);
        let state = NodeState::Exited {
            reason: "stopped".to_owned(),
        };
        assert!(
            stopped.nodes.iter().all(|node| node.state == state),
            "{stopped:?}"
        );
    });
}

fn the_loss_of_a_machine_is_reported_by_nobody() {
    with_dir(|dir| async move {
        let cluster = DevCluster::start(options(dir.path())).await.expect("up");
        cluster
            .kill(ONE, Signal::KILL, Target::Both)
            .await
            .expect("sent");
        exited(&cluster, ONE).await;
        let node = cluster.node(ONE).expect("known");
        assert_eq!(lines(&node.data_dir.join(REPORTS)), Vec::<String>::new());
        cluster.restart(ONE).await.expect("runs again");
        cluster.stop().await;
    });
}

fn a_node_goes_on_without_its_supervisor() {
    with_dir(|dir| async move {
        let cluster = DevCluster::start(options(dir.path())).await.expect("up");
        cluster
            .kill(ONE, Signal::KILL, Target::Supervisor)
            .await
            .expect("sent");
        let alone = cluster.wait_for(ONE, PATIENCE, |node| node.state == NodeState::Unsupervised);
        assert!(alone.await);
        let node = on_disk(dir.path()).node(ONE).cloned().expect("known");
        assert!(node.supervisor_pid.is_none() && node.worker_pid.is_some());
        cluster.stop().await;
        assert!(!processes::runs(
            node.worker_pid.expect("a worker"),
            &node.instance.expect("known").to_string()
        ));
    });
}

fn with_respawn_a_killed_node_comes_back() {
    with_dir(|dir| async move {
        let options = Options {
            respawn: true,
            ..options(dir.path())
        };
        let cluster = DevCluster::start(options).await.expect("up");
        for target in [Target::Worker, Target::Both] {
            let before = cluster.node(ONE).expect("known").instance;
            cluster.kill(ONE, Signal::KILL, target).await.expect("sent");
            let back = cluster.wait_for(ONE, PATIENCE, |node| {
                node.state == NodeState::Running && node.instance != before
            });
            assert!(back.await, "{target:?}");
        }
        cluster.stop().await;
    });
}

fn a_cluster_keeps_its_data_ids_and_ports() {
    with_dir(|dir| async move {
        let cluster = DevCluster::start(options(dir.path())).await.expect("up");
        let before = cluster.endpoints();
        cluster.stop().await;
        drop(cluster);
        let other = Options {
            wanted: wanted(3, 1),
            ..options(dir.path())
        };
        let refused = DevCluster::start(other).await.expect_err("another shape");
        assert!(matches!(
            refused,
            DevError::Layout(LayoutError::OtherShape { .. })
        ));
        let same = Options {
            wanted: Wanted::default(),
            ..options(dir.path())
        };
        let cluster = DevCluster::start(same).await.expect("up again");
        assert_eq!(cluster.endpoints(), before);
        let starts = cluster
            .node(ONE)
            .expect("known")
            .data_dir
            .join(fakes::STARTS);
        assert_eq!(lines(&starts).len(), 2);
        cluster.stop().await;
        drop(cluster);

        let (_, port) = before[0].rsplit_once(':').expect("a port");
        let _taken = std::net::TcpListener::bind(&before[0]).expect("free");
        let refused = DevCluster::start(options(dir.path()))
            .await
            .expect_err("a taken port");
        assert!(
            refused
                .to_string()
                .contains(&format!("port {port} of node 1 is in use"))
        );
    });
}

fn one_directory_is_run_once() {
    with_dir(|dir| async move {
        let cluster = DevCluster::start(options(dir.path())).await.expect("up");
        let second = DevCluster::start(options(dir.path()))
            .await
            .expect_err("refused");
        let holder = format!("(process {})", std::process::id());
        assert!(second.to_string().contains(&holder), "{second}");
        cluster.stop().await;
    });
}

fn a_node_that_does_not_start_shows_its_log() {
    with_dir(|dir| async move {
        let broken = Options {
            program: "/bin/false".into(),
            ..options(dir.path())
        };
        let error = DevCluster::start(broken).await.expect_err("nothing starts");
        assert!(
            error
                .to_string()
                .contains("did not start: exited with code 1"),
            "{error}"
        );
        let mistaken = Options {
            extra_config: "[lease]\nbeat_ms = 0".to_owned(),
            ..options(dir.path())
        };
        let error = DevCluster::start(mistaken).await.expect_err("a mistake");
        assert!(
            error.to_string().contains("lease.beat_ms: is zero"),
            "{error}"
        );
    });
}

fn a_frozen_node_is_stopped_too() {
    with_dir(|dir| async move {
        let cluster = DevCluster::start(options(dir.path())).await.expect("up");
        cluster
            .kill(ONE, Signal::STOP, Target::Both)
            .await
            .expect("sent");
        cluster.stop().await;
        let state = cluster.node(ONE).expect("known").state;
        assert_eq!(
            state,
            NodeState::Exited {
                reason: "stopped".to_owned()
            }
        );
    });
}

fn a_dropped_cluster_leaves_no_process() {
    with_dir(|dir| async move {
        let cluster = DevCluster::start(options(dir.path())).await.expect("up");
        let file = cluster.status();
        std::fs::write(file.nodes[0].data_dir.join(DEAF), "").expect("written");
        drop(cluster);
        for node in &file.nodes {
            let (worker, mark) = (node.worker_pid.expect("ran"), node.instance.expect("ran"));
            assert!(processes::gone_within(worker, &mark.to_string(), PATIENCE).await);
        }
    });
}
